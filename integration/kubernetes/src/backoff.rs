//! How long to wait before the API server is asked again.

use std::{
    hash::{BuildHasher, RandomState},
    time::{Duration, Instant},
};

use kube::runtime::utils::Backoff;

/// The first pause.
const MIN: Duration = Duration::from_millis(200);
/// The longest pause, less its random part.
pub(crate) const MAX: Duration = Duration::from_secs(8);
/// So long without an error, and the pauses are short again.
const FORGIVEN: Duration = Duration::from_mins(1);

/// Pauses that double, each with up to a quarter more by chance, so that nodes do not ask together.
#[derive(Debug)]
pub(crate) struct Pauses {
    next: Duration,
    last: Option<Instant>,
}

impl Default for Pauses {
    fn default() -> Self {
        Self { next: MIN, last: None }
    }
}

impl Iterator for Pauses {
    type Item = Duration;

    fn next(&mut self) -> Option<Duration> {
        let now = Instant::now();
        if self.last.is_some_and(|last| now.duration_since(last) > FORGIVEN) {
            self.next = MIN;
        }
        self.last = Some(now);
        let pause = self.next;
        self.next = (pause * 2).min(MAX);
        Some(pause + part(pause / 4))
    }
}

impl Backoff for Pauses {
    /// A single success is none: a listing that fails begins well each time.
    fn reset(&mut self) {}
}

/// A part of the time by chance.
pub(crate) fn part(of: Duration) -> Duration {
    // A hasher with new keys is the chance that the standard library has.
    let chance = u32::try_from(RandomState::new().hash_one(0) >> 32).unwrap_or(0);
    of.mul_f64(f64::from(chance) / f64::from(u32::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_to_a_bound() {
        let mut pauses = Pauses::default();
        let mut seen: Vec<Duration> = pauses.by_ref().take(8).collect();
        pauses.reset();
        seen.extend(pauses.next());
        for (at, pause) in seen.iter().enumerate() {
            let least = (MIN * 2_u32.pow(u32::try_from(at).unwrap())).min(MAX);
            assert!(*pause >= least && *pause <= least + least / 4, "{at}: {pause:?}");
        }
    }
}
