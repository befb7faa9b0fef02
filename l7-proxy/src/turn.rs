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
}

/// Ends the turn, also where the task panics: the thread goes on with others.
struct End;

impl Drop for End {
    fn drop(&mut self) {
        TURN.set(None);
    }
}

/// Runs a task for a turn that has begun.
pub(crate) fn during<T>(began: Instant, task: impl FnOnce() -> T) -> T {
    let _end = End;
    TURN.set(Some((began, false)));
    task()
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
        during(over, || {
            assert_eq!(now(), over);
            assert_eq!([(); 2].map(|()| poll_slice(&context).is_ready()), [true, false]);
        });
        assert!(now() > over);
        catch_unwind(|| during(over, || panic!("in a task"))).unwrap_err();
        assert!(now() > over, "the turn has ended");
        assert!([(); 2].iter().all(|()| poll_slice(&context).is_ready()));
    }
}
