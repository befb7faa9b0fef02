//! What waits for the enforcer's thread: answers to be installed, and requests. Each endpoint has its share of the thread's
//! time and of the places for answers, so that what one endpoint causes delays no other.
//!
//! Answers go first, since clients wait for them. Where they do not end, a request has its turn after some of them: a
//! flood of answers keeps no change of policies from being enforced.

use std::{
    collections::VecDeque,
    sync::{Condvar, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use namegate_config::shares::Full;

use crate::fair_queue::FairQueue;

/// Batches of answers that wait at most.
const ANSWERS_MAX: usize = 4_096;
/// Requests that wait at most, beside those of parts of the agent that ask one at a time.
const REQUESTS_MAX: usize = 1_024;
/// Batches of answers that go before a request that waits, and between two parts of one.
pub(crate) const ANSWERS_IN_A_ROW_MAX: u32 = 16;

/// Batches `A` and requests `Q` that wait.
#[derive(Debug)]
pub(crate) struct Inbox<A, Q> {
    state: Mutex<State<A, Q>>,
    arrived: Condvar,
}

#[derive(Debug)]
struct State<A, Q> {
    answers: FairQueue<A>,
    requests: VecDeque<Q>,
    answers_in_a_row: u32,
    /// The thread sleeps: to wake it costs a system call, which is made where it is needed.
    is_waiting: bool,
    /// Nothing more is wanted once what waits is done.
    stops: bool,
    /// Nothing is taken any more.
    is_closed: bool,
}

/// The state with what is to be added to it, or that with the reason why it is not taken.
type Opened<'i, A, Q, T> = Result<(MutexGuard<'i, State<A, Q>>, T), (Refused, T)>;

/// What comes next.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Next<A, Q> {
    /// Answers to queries of one endpoint.
    Answers(Turn<A>),
    Request(Q),
    /// Nothing came in time.
    Nothing,
    Stop,
}

/// Answers of an endpoint whose turn it is. What they took is to be said by [`Inbox::charge`].
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Turn<A> {
    pub(crate) endpoint: u32,
    pub(crate) answers: A,
}

/// Why something is not taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Refused {
    Full(Full),
    Closed,
}

impl<A, Q> Default for Inbox<A, Q> {
    fn default() -> Self {
        let state = State {
            answers: FairQueue::new(ANSWERS_MAX),
            requests: VecDeque::new(),
            answers_in_a_row: 0,
            is_waiting: false,
            stops: false,
            is_closed: false,
        };
        Self { state: Mutex::new(state), arrived: Condvar::new() }
    }
}

impl<A, Q> Inbox<A, Q> {
    /// Hands in answers to queries of one endpoint.
    pub(crate) fn answers(&self, endpoint: u32, answers: A) -> Result<(), (Refused, A)> {
        let (mut state, answers) = self.open(answers)?;
        let pushed = state.answers.push(endpoint, answers);
        self.wake(state);
        pushed.map_err(|(full, answers)| (Refused::Full(full), answers))
    }

    /// Hands in a request of which there may be many.
    pub(crate) fn request(&self, request: Q) -> Result<(), (Refused, Q)> {
        let (mut state, request) = self.open(request)?;
        if state.requests.len() >= REQUESTS_MAX {
            return Err((Refused::Full(Full::All), request));
        }
        state.requests.push_back(request);
        self.wake(state);
        Ok(())
    }

    /// Hands in a request of a part of the agent that asks one at a time: it always finds room.
    pub(crate) fn own_request(&self, request: Q) -> Result<(), (Refused, Q)> {
        let (mut state, request) = self.open(request)?;
        state.requests.push_back(request);
        self.wake(state);
        Ok(())
    }

    fn open<T>(&self, thing: T) -> Opened<'_, A, Q, T> {
        let state = self.lock();
        if state.is_closed { Err((Refused::Closed, thing)) } else { Ok((state, thing)) }
    }

    /// Ends [`Self::next`] once what waits is done.
    pub(crate) fn stop(&self) {
        let mut state = self.lock();
        state.stops = true;
        self.wake(state);
    }

    /// Wakes the thread where it sleeps, after the lock is given back.
    fn wake(&self, mut state: MutexGuard<'_, State<A, Q>>) {
        let is_waiting = std::mem::take(&mut state.is_waiting);
        drop(state);
        if is_waiting {
            self.arrived.notify_one();
        }
    }

    /// Drops what waits, and takes no more.
    pub(crate) fn close(&self) {
        let (answers, requests) = {
            let mut state = self.lock();
            state.is_closed = true;
            let answers: Vec<Turn<A>> = std::iter::from_fn(|| state.pop_answers()).collect();
            (answers, std::mem::take(&mut state.requests))
        };
        // The callers that wait for them wake here, not under the lock.
        drop((answers, requests));
    }

    /// Waits for the next thing, at most this long.
    pub(crate) fn next(&self, patience: Duration) -> Next<A, Q> {
        let until = Instant::now() + patience;
        let mut state = self.lock();
        loop {
            if let Some(next) = state.pop() {
                return next;
            }
            if state.stops {
                return Next::Stop;
            }
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Next::Nothing;
            }
            state.is_waiting = true;
            let waited = self.arrived.wait_timeout(state, left);
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
            state.is_waiting = false;
        }
    }

    /// The next answers, where some wait.
    pub(crate) fn next_answers(&self) -> Option<Turn<A>> {
        self.lock().pop_answers()
    }

    /// Notes the time that a turn of an endpoint took.
    pub(crate) fn charge(&self, endpoint: u32, took: Duration) {
        self.lock().answers.charge(endpoint, took);
    }

    /// Puts back the rest of answers that one turn was not enough for.
    pub(crate) fn put_back(&self, rest: Turn<A>) {
        self.lock().answers.put_back(rest.endpoint, rest.answers);
    }

    fn lock(&self) -> MutexGuard<'_, State<A, Q>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<A, Q> State<A, Q> {
    fn pop(&mut self) -> Option<Next<A, Q>> {
        let takes_request = self.answers_in_a_row >= ANSWERS_IN_A_ROW_MAX;
        if !takes_request && let Some(turn) = self.pop_answers() {
            self.answers_in_a_row += 1;
            return Some(Next::Answers(turn));
        }
        self.answers_in_a_row = 0;
        self.requests.pop_front().map(Next::Request).or_else(|| self.pop_answers().map(Next::Answers))
    }

    fn pop_answers(&mut self) -> Option<Turn<A>> {
        let (endpoint, answers) = self.answers.pop()?;
        Some(Turn { endpoint, answers })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOSTILE: u32 = 1;
    const HONEST: u32 = 2;

    fn next(inbox: &Inbox<u32, u32>) -> Next<u32, u32> {
        let next = inbox.next(Duration::ZERO);
        if let Next::Answers(turn) = &next {
            inbox.charge(turn.endpoint, Duration::from_micros(1));
        }
        next
    }

    fn honest(answers: u32) -> Next<u32, u32> {
        Next::Answers(Turn { endpoint: HONEST, answers })
    }

    #[test]
    fn an_answer_waits_for_no_flood_of_another_endpoint() {
        let inbox = Inbox::default();
        let refused = (0..10_000).filter(|number| inbox.answers(HOSTILE, *number).is_err()).count();
        assert!(refused > 7_000, "{refused}");
        assert_eq!(inbox.answers(HOSTILE, 0), Err((Refused::Full(Full::Share), 0)));
        inbox.answers(HONEST, 77).unwrap();
        let place = (0..10_000).find(|_| next(&inbox) == honest(77));
        assert_eq!(place, Some(1), "one turn of the other endpoint goes first");
    }

    #[test]
    fn answers_go_first_and_requests_are_not_forgotten() {
        let inbox = Inbox::default();
        for number in 0..100 {
            inbox.request(number).unwrap();
            inbox.answers(HONEST, number).unwrap();
        }
        let order: Vec<_> = (0..40).map(|_| next(&inbox)).collect();
        assert_eq!(order[0], honest(0));
        let requests: Vec<_> = order.iter().filter(|next| matches!(next, Next::Request(_))).collect();
        assert_eq!(requests, [&Next::Request(0), &Next::Request(1)], "{order:?}");
    }

    #[test]
    fn requests_are_bounded_but_for_those_of_the_agent_itself() {
        let inbox = Inbox::<u32, u32>::default();
        let taken = (0..10_000).filter(|number| inbox.request(*number).is_ok()).count();
        assert_eq!(taken, REQUESTS_MAX);
        assert_eq!(inbox.request(7), Err((Refused::Full(Full::All), 7)));
        inbox.own_request(77).unwrap();
        let order: Vec<_> = (0..=REQUESTS_MAX).map(|_| next(&inbox)).collect();
        assert_eq!(order.last(), Some(&Next::Request(77)), "the agent's own has its turn");
    }

    #[test]
    fn the_end_comes_after_what_waits_and_nothing_after_it() {
        let inbox = Inbox::<u32, u32>::default();
        inbox.answers(HONEST, 1).unwrap();
        inbox.stop();
        assert_eq!(next(&inbox), honest(1));
        assert_eq!(next(&inbox), Next::Stop);
        inbox.request(2).unwrap();
        inbox.close();
        assert_eq!(inbox.request(3), Err((Refused::Closed, 3)));
        assert_eq!(inbox.answers(HONEST, 3), Err((Refused::Closed, 3)));
        assert_eq!(next(&inbox), Next::Stop);
    }

    #[test]
    fn a_waiting_thread_wakes() {
        let inbox = Inbox::<u32, u32>::default();
        std::thread::scope(|scope| {
            let waiting = scope.spawn(|| inbox.next(Duration::from_mins(1)));
            inbox.request(5).unwrap();
            assert_eq!(waiting.join().unwrap(), Next::Request(5));
        });
        assert_eq!(next(&inbox), Next::Nothing);
    }
}
