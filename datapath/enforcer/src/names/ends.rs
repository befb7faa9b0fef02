//! Counts moments that have not come yet, to the second.

use std::collections::BTreeMap;

const SECOND_NS: u64 = 1_000_000_000;

/// Moments, of which those up to `advanced` are past and forgotten. Each counts until the second in which it is has ended:
/// there are far fewer seconds than moments.
#[derive(Debug, Default)]
pub(super) struct Ends {
    /// By the second.
    counts: BTreeMap<u64, usize>,
    all: usize,
    /// The first second that has not ended.
    advanced: u64,
}

/// The second that has a moment in it. A whole second belongs to the one before, since it is past when it comes.
const fn second_of(moment_ns: u64) -> u64 {
    moment_ns.div_ceil(SECOND_NS)
}

impl Ends {
    pub(super) fn add(&mut self, moment_ns: u64) {
        let second = second_of(moment_ns);
        if second > self.advanced {
            *self.counts.entry(second).or_default() += 1;
            self.all += 1;
        }
    }

    pub(super) fn remove(&mut self, moment_ns: u64) {
        let second = second_of(moment_ns);
        if let Some(count) = self.counts.get_mut(&second) {
            *count -= 1;
            self.all -= 1;
            if *count == 0 {
                self.counts.remove(&second);
            }
        }
    }

    /// Counts another moment instead of one that it counts.
    pub(super) fn replace(&mut self, old_ns: u64, new_ns: u64) {
        if second_of(old_ns) != second_of(new_ns) {
            self.remove(old_ns);
            self.add(new_ns);
        }
    }

    /// Forgets the moments up to `now_ns`.
    pub(super) fn advance(&mut self, now_ns: u64) {
        let ended = now_ns / SECOND_NS;
        if ended <= self.advanced {
            return;
        }
        self.advanced = ended;
        while let Some(entry) = self.counts.first_entry()
            && *entry.key() <= ended
        {
            self.all -= entry.remove();
        }
    }

    /// How many of the moments come after `now_ns`.
    pub(super) fn after(&self, now_ns: u64) -> usize {
        let past: usize = self.counts.range(..=now_ns / SECOND_NS).map(|(_, count)| *count).sum();
        self.all - past
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_moment_counts_until_its_second_has_ended() {
        let mut ends = Ends::default();
        let at = |tenths: u64| tenths * SECOND_NS / 10;
        for tenths in [50, 45, 90] {
            ends.add(at(tenths));
        }
        assert_eq!([40, 49, 50, 89, 90].map(|tenths| ends.after(at(tenths))), [3, 3, 1, 1, 0]);
        ends.replace(at(90), at(85));
        ends.replace(at(85), at(97));
        assert_eq!([90, 99, 100].map(|tenths| ends.after(at(tenths))), [1, 1, 0]);
        ends.advance(at(55));
        ends.remove(at(50));
        assert_eq!(ends.after(at(55)), 1, "what has come is not taken off twice");
        ends.add(at(30));
        assert_eq!(ends.after(0), 1, "what is past does not count");
        ends.remove(at(97));
        assert_eq!(ends.after(at(55)), 0);
    }
}
