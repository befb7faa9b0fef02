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

/// Runs a task for a turn that has begun.
pub(crate) fn during<T>(began: Instant, task: impl FnOnce() -> T) -> T {
    TURN.set(Some((began, false)));
    let outcome = task();
    TURN.set(None);
    outcome
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
