//! What wakes the thread that reads, and how changes are gathered.

use std::{
    sync::mpsc::Receiver,
    time::{Duration, Instant},
};

use super::touched::{Cause, Touched};

/// How long the end of a change is waited for that is not complete, as a file that is still open.
const QUIET: Duration = Duration::from_millis(3);
/// The same at most, where changes do not end.
const QUIET_MAX: Duration = Duration::from_millis(20);

/// Why the thread wakes.
pub(crate) enum Wake {
    /// Something may have changed.
    Changed {
        /// What.
        causes: Vec<Cause>,
        /// Whether nothing more is to come of it.
        is_complete: bool,
    },
    /// The agent ends.
    Stop,
}

/// What has changed by now, once that is complete; `None` is the end of the agent.
pub(crate) fn gather(first: Wake, woken: &Receiver<Wake>) -> Option<Touched> {
    let until = Instant::now() + QUIET_MAX;
    let mut touched = Touched::default();
    let mut wake = first;
    loop {
        let Wake::Changed { causes, is_complete } = wake else { return None };
        for cause in causes {
            touched.add(cause);
        }
        let left = until.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Some(touched);
        }
        let patience = if is_complete { Duration::ZERO } else { left.min(QUIET) };
        match woken.recv_timeout(patience) {
            Ok(next) => wake = next,
            Err(_) => return Some(touched),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::channel;

    use super::*;

    fn changed(cause: Cause, is_complete: bool) -> Wake {
        Wake::Changed { causes: vec![cause], is_complete }
    }

    fn file(name: &str) -> Cause {
        Cause::Policy(name.to_owned())
    }

    #[test]
    fn changes_that_wait_are_read_together() {
        let (wake, woken) = channel();
        for one in [changed(file("b.yaml"), true), changed(Cause::Machine, false), changed(file("c.yaml"), true)] {
            wake.send(one).unwrap();
        }
        let touched = gather(changed(file("a.yaml"), true), &woken).unwrap();
        let names: Vec<&str> = touched.named_policies().into_iter().flatten().map(String::as_str).collect();
        assert_eq!(names, ["a.yaml", "b.yaml", "c.yaml"]);
        assert!(touched.has_machine());
        assert!(woken.try_recv().is_err());
    }

    #[test]
    fn changes_without_an_end_are_read_all_the_same() {
        let (wake, woken) = channel();
        let sending = std::thread::spawn(move || while wake.send(changed(Cause::Machine, false)).is_ok() {});
        assert!(gather(changed(Cause::Machine, false), &woken).is_some());
        drop(woken);
        sending.join().unwrap();
    }

    #[test]
    fn the_end_of_the_agent_goes_before_what_waits() {
        let (wake, woken) = channel();
        wake.send(Wake::Stop).unwrap();
        wake.send(changed(Cause::Everything, true)).unwrap();
        assert!(gather(changed(Cause::Everything, true), &woken).is_none());
        assert!(gather(Wake::Stop, &woken).is_none());
    }
}
