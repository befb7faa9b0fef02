//! What waits for the thread that owns engine and maps: answers to be installed, and questions. Each endpoint has its turns
//! and its share of the places, so that what one endpoint causes delays no other.
//!
//! Answers go first, since clients wait for them; after some of them a question has its turn.

use std::{
    sync::{Condvar, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use namegate_config::shares::Full;

use super::fair_queue::FairQueue;

/// Batches of answers that wait at most.
const ANSWERS_MAX: usize = 4_096;
/// Questions that wait at most.
const QUESTIONS_MAX: usize = 4_096;
/// Batches of answers that go before a question that waits.
const ANSWERS_IN_A_ROW_MAX: u32 = 16;
/// Whose questions those of the agent itself are: no endpoint has the number.
pub(crate) const AGENT: u32 = 0;

/// Batches `A` and questions `Q` that wait.
#[derive(Debug)]
pub(crate) struct Inbox<A, Q> {
    state: Mutex<State<A, Q>>,
    arrived: Condvar,
}

#[derive(Debug)]
struct State<A, Q> {
    answers: FairQueue<A>,
    questions: FairQueue<Q>,
    answers_in_a_row: u32,
    /// Nothing more is wanted once what waits is done.
    stops: bool,
    /// Nothing is taken any more.
    is_closed: bool,
}

/// What comes next.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Next<A, Q> {
    Answers(A),
    Question(Q),
    /// Nothing came in time.
    Nothing,
    Stop,
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
            questions: FairQueue::new(QUESTIONS_MAX),
            answers_in_a_row: 0,
            stops: false,
            is_closed: false,
        };
        Self { state: Mutex::new(state), arrived: Condvar::new() }
    }
}

impl<A, Q> Inbox<A, Q> {
    /// Hands in answers to questions of one endpoint.
    pub(crate) fn answers(&self, endpoint: u32, answers: A) -> Result<(), (Refused, A)> {
        let (mut state, answers) = self.open(answers)?;
        let pushed = state.answers.push(endpoint, answers);
        self.arrived.notify_one();
        pushed.map_err(|(full, answers)| (Refused::Full(full), answers))
    }

    /// Hands in a question that an endpoint, or the agent itself, is the cause of.
    pub(crate) fn question(&self, endpoint: u32, question: Q) -> Result<(), (Refused, Q)> {
        let (mut state, question) = self.open(question)?;
        let pushed = state.questions.push(endpoint, question);
        self.arrived.notify_one();
        pushed.map_err(|(full, question)| (Refused::Full(full), question))
    }

    /// Hands in a question of a part of the agent that asks one at a time: it always finds room.
    pub(crate) fn own_question(&self, question: Q) -> Result<(), (Refused, Q)> {
        let (mut state, question) = self.open(question)?;
        state.questions.push_unchecked(AGENT, question);
        self.arrived.notify_one();
        Ok(())
    }

    fn open<T>(&self, thing: T) -> Result<(MutexGuard<'_, State<A, Q>>, T), (Refused, T)> {
        let state = self.lock();
        if state.is_closed { Err((Refused::Closed, thing)) } else { Ok((state, thing)) }
    }

    /// Ends [`Self::next`] once what waits is done.
    pub(crate) fn stop(&self) {
        self.lock().stops = true;
        self.arrived.notify_one();
    }

    /// Drops what waits, and takes no more.
    pub(crate) fn close(&self) {
        let mut state = self.lock();
        state.is_closed = true;
        while state.answers.pop().is_some() {}
        while state.questions.pop().is_some() {}
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
            let waited = self.arrived.wait_timeout(state, left);
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    fn lock(&self) -> MutexGuard<'_, State<A, Q>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<A, Q> State<A, Q> {
    fn pop(&mut self) -> Option<Next<A, Q>> {
        let takes_question = self.answers_in_a_row >= ANSWERS_IN_A_ROW_MAX;
        if !takes_question && let Some(answers) = self.answers.pop() {
            self.answers_in_a_row += 1;
            return Some(Next::Answers(answers));
        }
        self.answers_in_a_row = 0;
        self.questions.pop().map(Next::Question).or_else(|| self.answers.pop().map(Next::Answers))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOSTILE: u32 = 1;
    const HONEST: u32 = 2;

    fn next(inbox: &Inbox<u32, u32>) -> Next<u32, u32> {
        inbox.next(Duration::ZERO)
    }

    #[test]
    fn an_answer_waits_for_no_flood_of_another_endpoint() {
        let inbox = Inbox::default();
        let refused = (0..10_000).filter(|number| inbox.answers(HOSTILE, *number).is_err()).count();
        assert!(refused > 7_000, "{refused}");
        assert_eq!(inbox.answers(HOSTILE, 0), Err((Refused::Full(Full::Share), 0)));
        inbox.answers(HONEST, 77).unwrap();
        let place = (0..10_000).find(|_| next(&inbox) == Next::Answers(77));
        assert_eq!(place, Some(1), "one turn of the other endpoint goes first");
    }

    #[test]
    fn answers_go_first_and_questions_are_not_forgotten() {
        let inbox = Inbox::default();
        for number in 0..100 {
            inbox.question(HOSTILE, number).unwrap();
            inbox.answers(HONEST, number).unwrap();
        }
        inbox.own_question(77).unwrap();
        let order: Vec<_> = (0..40).map(|_| next(&inbox)).collect();
        assert!(matches!(order[0], Next::Answers(0)));
        let questions = order.iter().filter(|next| matches!(next, Next::Question(_))).count();
        assert_eq!(questions, 2);
        assert!(order.contains(&Next::Question(77)), "the agent's own has its turn: {order:?}");
    }

    #[test]
    fn the_end_comes_after_what_waits_and_nothing_after_it() {
        let inbox = Inbox::<u32, u32>::default();
        inbox.answers(HONEST, 1).unwrap();
        inbox.stop();
        assert_eq!(next(&inbox), Next::Answers(1));
        assert_eq!(next(&inbox), Next::Stop);
        inbox.question(HONEST, 2).unwrap();
        inbox.close();
        assert_eq!(inbox.question(HONEST, 3), Err((Refused::Closed, 3)));
        assert_eq!(inbox.answers(HONEST, 3), Err((Refused::Closed, 3)));
        assert_eq!(next(&inbox), Next::Stop);
    }

    #[test]
    fn a_waiting_thread_wakes() {
        let inbox = Inbox::<u32, u32>::default();
        std::thread::scope(|scope| {
            let waiting = scope.spawn(|| inbox.next(Duration::from_mins(1)));
            inbox.question(HONEST, 5).unwrap();
            assert_eq!(waiting.join().unwrap(), Next::Question(5));
        });
        assert_eq!(next(&inbox), Next::Nothing);
    }
}
