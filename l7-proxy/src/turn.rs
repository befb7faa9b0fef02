//! The turn of the task that runs on this thread.

use std::{
    cell::Cell,
    task::{Context, Poll},
    time::{Duration, Instant},
};

/// How long one task may read before it waits for its next turn.
const SLICE: Duration = Duration::from_micros(500);

thread_local! {
    /// When the turn began, and whether the task has read since.
    static TURN: Cell<Option<(Instant, bool)>> = const { Cell::new(None) };
    /// The end of the last turn, where the thread has not slept since and says when it does.
    static AWAKE: Cell<Option<Instant>> = const { Cell::new(None) };
}

/// To be called when the thread is about to sleep.
pub(crate) fn sleeps() {
    AWAKE.set(None);
}

/// To be called when the thread has slept.
pub(crate) fn wakes() {
    AWAKE.set(Some(Instant::now()));
}

/// Ends the turn, also where the task panics: the thread goes on with others.
struct End;

impl Drop for End {
    fn drop(&mut self) {
        TURN.set(None);
    }
}

/// Runs a task for a turn; gives how long that took. A turn begins where the one before it ended:
/// the clock is read once for both.
pub(crate) fn during<T>(task: impl FnOnce() -> T) -> (T, Duration) {
    let awake = AWAKE.take();
    let began = awake.unwrap_or_else(Instant::now);
    let done = since(began, task);
    let ended = Instant::now();
    AWAKE.set(awake.map(|_| ended));
    (done, ended.duration_since(began))
}

fn since<T>(began: Instant, task: impl FnOnce() -> T) -> T {
    let _end = End;
    TURN.set(Some((began, false)));
    task()
}

/// Whether a task has its turn on this thread.
pub(crate) fn is_running() -> bool {
    TURN.get().is_some()
}

/// Ready while the task that runs may read; else it is woken for its next turn. It may read once in each turn.
pub(crate) fn poll_slice(context: &Context<'_>) -> Poll<()> {
    match TURN.get() {
        Some((began, true)) if began.elapsed() >= SLICE => {
            context.waker().wake_by_ref();
            Poll::Pending
        }
        turn => {
            TURN.set(turn.map(|(began, _)| (began, true)));
            Poll::Ready(())
        }
    }
}

/// The time at which the turn of the task that runs began: no clock is read again for it.
pub(crate) fn now() -> Instant {
    TURN.get().map_or_else(Instant::now, |(began, _)| began)
}

#[cfg(test)]
mod tests {
    use std::{panic::catch_unwind, task::Waker};

    use super::*;

    #[test]
    fn a_task_reads_once_in_a_turn_that_is_over_and_a_panic_ends_the_turn() {
        let context = Context::from_waker(Waker::noop());
        let over = Instant::now().checked_sub(2 * SLICE).unwrap();
        since(over, || {
            assert_eq!(now(), over);
            assert_eq!([(); 2].map(|()| poll_slice(&context).is_ready()), [true, false]);
        });
        assert!(now() > over);
        catch_unwind(|| since(over, || panic!("in a task"))).unwrap_err();
        assert!(now() > over, "the turn has ended");
        assert!([(); 2].iter().all(|()| poll_slice(&context).is_ready()));
    }

    #[test]
    fn turns_of_a_thread_follow_each_other_until_it_sleeps() {
        let step = Duration::from_millis(1);
        let turn = || during(now).0;
        assert!(turn() < turn(), "the thread does not say when it sleeps");
        wakes();
        let woke = AWAKE.get().unwrap();
        std::thread::sleep(step);
        let (began, took) = during(|| {
            std::thread::sleep(step);
            now()
        });
        assert_eq!((began, took >= 2 * step), (woke, true));
        assert_eq!(turn(), woke + took);
        sleeps();
        let slept = Instant::now();
        assert!(turn() >= slept);
    }
}
