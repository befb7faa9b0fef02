//! Whose turn it is on a thread. The tasks of one holder's connections run for no longer than [`QUOTA`] before those of
//! every other holder have had their turn; a thread without other work goes on with them at once.
//!
//! tokio runs the tasks of a thread in the order in which they were woken. A client with thousands of busy connections
//! would have thousands of tasks in that queue, and everyone else would wait for all of them.

use std::{
    cell::RefCell,
    collections::VecDeque,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll, Waker},
    time::Duration,
};

use foldhash::HashMap;
use slab::Slab;
use tokio::task::yield_now;

use crate::{
    account::{Account, Crowded},
    holder::Holder,
    turn,
    wakers::{Registration, Wakers},
};

/// How long the tasks of a holder may run in one round.
const QUOTA: Duration = Duration::from_millis(1);
/// The same of a holder that has had the thread for itself: another one that comes waits so long once.
const QUOTA_ALONE: Duration = Duration::from_millis(8);
/// Rounds of one holder after which it has the thread for itself.
const ALONE_AFTER: u32 = 256;
/// Holders of one round.
const HOLDERS_MAX: usize = 1_024;
/// Tasks of a holder that are woken for a round, at least.
const WOKEN_MIN: usize = 4;

thread_local! {
    static ROUND: RefCell<Round> = RefCell::default();
}

/// A round of a thread: every holder has had a turn.
#[derive(Default)]
struct Round {
    turns: Slab<Turns>,
    /// The place of each holder's.
    holders: HashMap<Holder, usize>,
    /// The one that ran last: most often it is the next one too.
    last: Option<(Holder, usize)>,
    /// Starts the next round.
    next: Option<Waker>,
    /// Tasks wait for the next round.
    is_wanted: bool,
    /// Rounds that are left until one holder has the thread for itself.
    shared_for: u32,
}

/// The tasks of one holder.
#[derive(Default)]
struct Turns {
    spent: Duration,
    /// Tasks that ran in this round.
    ran: usize,
    waiting: VecDeque<Waiting>,
}

/// A task that waits for the next round.
struct Waiting {
    waker: Waker,
    /// Until its turn.
    waits: Arc<AtomicBool>,
}

impl Round {
    /// The place of the holder's turns where a task may run; else it waits.
    fn enter(&mut self, holder: Holder, context: &Context<'_>, waits: &Arc<AtomicBool>) -> Option<usize> {
        let is_full = self.holders.len() > HOLDERS_MAX;
        let at = self.place(holder);
        let turns = &mut self.turns[at];
        let is_turn = turns.spent < if self.shared_for > 0 { QUOTA } else { QUOTA_ALONE };
        if is_turn {
            turns.ran += 1;
        } else {
            waits.store(true, Ordering::Relaxed);
            turns.waiting.push_back(Waiting { waker: context.waker().clone(), waits: Arc::clone(waits) });
        }
        if is_full || !is_turn {
            self.is_wanted = true;
            self.next.take().into_iter().for_each(Waker::wake);
        }
        is_turn.then_some(at)
    }

    fn place(&mut self, holder: Holder) -> usize {
        if let Some((last, at)) = self.last
            && last == holder
        {
            return at;
        }
        let is_beside = !self.holders.is_empty();
        let at = *self.holders.entry(holder).or_insert_with(|| {
            if is_beside {
                self.shared_for = ALONE_AFTER;
            }
            self.turns.insert(Turns::default())
        });
        self.last = Some((holder, at));
        at
    }

    /// Adds the time that a task of a holder took.
    fn charge(&mut self, at: usize, took: Duration) {
        if let Some(turns) = self.turns.get_mut(at) {
            turns.spent += took;
        }
    }

    /// Begins a round; gives the tasks that it is the turn of.
    fn begin(&mut self) -> Vec<Waiting> {
        let mut woken = Vec::new();
        self.is_wanted = false;
        self.shared_for = if self.holders.len() > 1 { ALONE_AFTER } else { self.shared_for.saturating_sub(1) };
        self.last = None;
        self.holders.retain(|_, at| {
            let turns = &mut self.turns[*at];
            let count = turns.waiting.len().min((2 * turns.ran).max(WOKEN_MIN));
            woken.extend(turns.waiting.drain(..count));
            (turns.spent, turns.ran) = (Duration::ZERO, 0);
            if turns.waiting.is_empty() {
                // The room that a flood took in it goes back.
                turns.waiting = VecDeque::new();
            }
            self.is_wanted |= !turns.waiting.is_empty();
            let stays = count > 0 || !turns.waiting.is_empty();
            if !stays {
                self.turns.remove(*at);
            }
            stays
        });
        woken
    }
}

/// Begins rounds for as long as the thread runs. To be run on each thread once.
pub(crate) async fn rounds() {
    loop {
        std::future::poll_fn(|context| {
            ROUND.with_borrow_mut(|round| {
                if round.is_wanted {
                    return Poll::Ready(());
                }
                round.next = Some(context.waker().clone());
                Poll::Pending
            })
        })
        .await;
        // What is ready to run is before this in the queue.
        yield_now().await;
        for Waiting { waker, waits } in ROUND.with_borrow_mut(Round::begin) {
            waits.store(false, Ordering::Relaxed);
            waker.wake();
        }
    }
}

/// A task of a holder's connection: runs in the holder's turns.
pub(crate) struct Paced<F> {
    task: Pin<Box<F>>,
    holder: Holder,
    /// It waits for the next round.
    waits: Arc<AtomicBool>,
}

impl<F: Future> Paced<F> {
    pub(crate) fn new(holder: Holder, task: F) -> Self {
        Self { task: Box::pin(task), holder, waits: Arc::default() }
    }
}

impl<F: Future> Future for Paced<F> {
    type Output = F::Output;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<F::Output> {
        let this = &mut *self;
        if this.waits.load(Ordering::Relaxed) {
            return Poll::Pending;
        }
        let enter = |round: &mut Round| round.enter(this.holder, context, &this.waits);
        let Some(at) = ROUND.with_borrow_mut(enter) else { return Poll::Pending };
        let (polled, took) = turn::during(|| this.task.as_mut().poll(context));
        ROUND.with_borrow_mut(|round| round.charge(at, took));
        polled
    }
}

/// A task of a connection: ends where the connection gives way to others, and waits for no turn to do so.
pub(crate) struct OfConnection<F> {
    account: Arc<Account>,
    registered: Option<Registration<Arc<Wakers>>>,
    task: Paced<F>,
}

impl<F: Future> OfConnection<F> {
    pub(crate) fn new(account: &Arc<Account>, task: F) -> Self {
        Self { account: Arc::clone(account), registered: None, task: Paced::new(account.holder(), task) }
    }
}

impl<F: Future> Future for OfConnection<F> {
    type Output = Result<F::Output, Crowded>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let this = &mut *self;
        let waker = context.waker();
        if this.registered.as_ref().is_none_or(|registered| !registered.wakes(waker)) {
            this.registered = Some(Registration::new(Arc::clone(this.account.leaving()), waker));
        }
        if let Some(crowded) = this.account.crowded() {
            return Poll::Ready(Err(crowded));
        }
        let polled = Pin::new(&mut this.task).poll(context);
        this.account.settle();
        polled.map(Ok)
    }
}

/// Starts a task of a connection.
pub(crate) fn spawn<F>(account: &Arc<Account>, task: F)
where
    F: Future<Output: Send> + Send + 'static,
{
    let task = OfConnection::new(account, task);
    drop(tokio::spawn(async move { task.await.is_ok() }));
}

/// Starts the tasks that hyper has for a connection.
#[derive(Clone, Debug)]
pub(crate) struct Executor(pub(crate) Arc<Account>);

impl<F> hyper::rt::Executor<F> for Executor
where
    F: Future<Output: Send> + Send + 'static,
{
    fn execute(&self, task: F) {
        spawn(&self.0, task);
    }
}

#[cfg(test)]
mod tests {
    use std::{
        net::{IpAddr, Ipv4Addr},
        sync::atomic::AtomicU64,
        time::Instant,
    };

    use tokio::task::JoinHandle;

    use super::*;

    const HONEST: Holder = Holder::Client(IpAddr::V4(Ipv4Addr::LOCALHOST));

    fn spawn<F>(holder: Holder, task: F) -> JoinHandle<F::Output>
    where
        F: Future<Output: Send> + Send + 'static,
    {
        tokio::spawn(Paced::new(holder, task))
    }

    #[tokio::test]
    async fn one_task_of_a_holder_does_not_wait_for_all_those_of_another() {
        const FLOOD: u64 = 500;
        const TURNS: u64 = 50;
        let driver = tokio::spawn(rounds());
        let ran = Arc::new(AtomicU64::new(0));
        let flood: Vec<_> = (0..FLOOD)
            .map(|_| {
                let ran = Arc::clone(&ran);
                spawn(Holder::Caller(1), async move {
                    loop {
                        ran.fetch_add(1, Ordering::Relaxed);
                        let began = Instant::now();
                        while began.elapsed() < Duration::from_micros(300) {}
                        yield_now().await;
                    }
                })
            })
            .collect();
        let honest = spawn(HONEST, async {
            for _ in 0..TURNS {
                yield_now().await;
            }
        });
        honest.await.unwrap();
        let ran = ran.load(Ordering::Relaxed);
        // Four of them fill a quota; in the order of the queue it would be all of them in each turn.
        assert!(ran < TURNS * 20, "{ran} of {}", FLOOD * TURNS);
        for task in flood {
            task.abort();
        }
        driver.abort();
    }

    #[tokio::test]
    async fn every_task_has_its_turn_in_the_end() {
        let driver = tokio::spawn(rounds());
        let tasks: Vec<_> = (0..200)
            .map(|at| {
                spawn(HONEST, async move {
                    for _ in 0..3 {
                        let began = Instant::now();
                        while began.elapsed() < QUOTA / 2 {}
                        yield_now().await;
                    }
                    at
                })
            })
            .collect();
        for (at, task) in tasks.into_iter().enumerate() {
            assert_eq!(task.await.unwrap(), at);
        }
        driver.abort();
    }
}
