//! Counts moments that have not come yet.

use std::collections::BTreeMap;

/// Moments, in nanoseconds, of which those up to `advanced` are past and forgotten.
#[derive(Debug, Default)]
pub(super) struct Ends {
    counts: BTreeMap<u64, usize>,
    all: usize,
    advanced: u64,
}

impl Ends {
    pub(super) fn add(&mut self, at: u64) {
        if at > self.advanced {
            *self.counts.entry(at).or_default() += 1;
            self.all += 1;
        }
    }

    pub(super) fn remove(&mut self, at: u64) {
        if let Some(count) = self.counts.get_mut(&at) {
            *count -= 1;
            self.all -= 1;
            if *count == 0 {
                self.counts.remove(&at);
            }
        }
    }

    /// Forgets the moments up to `now`.
    pub(super) fn advance(&mut self, now: u64) {
        self.advanced = self.advanced.max(now);
        while let Some(entry) = self.counts.first_entry()
            && *entry.key() <= now
        {
            self.all -= entry.remove();
        }
    }

    /// How many of the moments come after `now`.
    pub(super) fn after(&self, now: u64) -> usize {
        let past: usize = self.counts.range(..=now).map(|(_, count)| *count).sum();
        self.all - past
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_moment_counts_until_it_comes() {
        let mut ends = Ends::default();
        for at in [5, 5, 9] {
            ends.add(at);
        }
        assert_eq!([4, 5, 9].map(|now| ends.after(now)), [3, 1, 0]);
        ends.advance(5);
        ends.remove(5);
        assert_eq!(ends.after(5), 1, "what has come is not taken off twice");
        ends.add(3);
        assert_eq!(ends.after(0), 1, "what is past does not count");
        ends.remove(9);
        assert_eq!(ends.after(5), 0);
    }
}
