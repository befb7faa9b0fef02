//! A bound that several holders share, so that none of them can use up what the others need.
//!
//! A holder may take more as long as it then has no more than what is free. One greedy holder ends with half of the
//! bound, two with a third each, and a holder that has nothing always finds room as long as anything is free. No holder
//! needs a reservation, so the whole bound serves few holders as well as many.
//!
//! ```
//! use namegate_config::shares::{Full, Shares};
//! let mut shares = Shares::new(8, 8);
//! let taken = (0..8).filter(|_| shares.take("greedy", 1).is_ok()).count();
//! assert_eq!(taken, 4);
//! assert_eq!(shares.take("greedy", 1), Err(Full::Share));
//! assert_eq!(shares.take("modest", 1), Ok(()));
//! ```

use std::{collections::hash_map::Entry, hash::Hash};

use foldhash::HashMap;
/// Why a holder gets no more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Full {
    /// The holder has its share; others may still find room.
    Share,
    /// Nothing is left for any holder.
    All,
}

/// What each holder has of a bound.
#[derive(Clone, Debug)]
pub struct Shares<K> {
    all_max: usize,
    each_max: usize,
    all: usize,
    by_holder: HashMap<K, usize>,
}

impl<K: Copy + Eq + Hash> Shares<K> {
    /// A bound of `all_max` for all holders together and of `each_max` for one.
    pub fn new(all_max: usize, each_max: usize) -> Self {
        Self { all_max, each_max, all: 0, by_holder: HashMap::default() }
    }

    /// Gives `amount` to a holder where its share allows that.
    pub fn take(&mut self, holder: K, amount: usize) -> Result<(), Full> {
        let free = self.all_max.saturating_sub(self.all);
        if amount > free {
            return Err(Full::All);
        }
        let wanted = self.of(&holder) + amount;
        if wanted > self.each_max.min(free) {
            return Err(Full::Share);
        }
        self.take_unchecked(holder, amount);
        Ok(())
    }

    /// Gives `amount` to a holder, whatever its share is: for holders that bound themselves.
    pub fn take_unchecked(&mut self, holder: K, amount: usize) {
        self.all += amount;
        *self.by_holder.entry(holder).or_default() += amount;
    }

    /// Takes back what a holder got.
    pub fn give(&mut self, holder: K, amount: usize) {
        let Entry::Occupied(mut held) = self.by_holder.entry(holder) else { return };
        let given = amount.min(*held.get());
        *held.get_mut() -= given;
        self.all -= given;
        if *held.get() == 0 {
            held.remove();
        }
    }

    /// What one holder has.
    pub fn of(&self, holder: &K) -> usize {
        self.by_holder.get(holder).copied().unwrap_or(0)
    }

    /// What all holders have together.
    pub const fn all(&self) -> usize {
        self.all
    }

    /// The holder with most.
    pub fn greediest(&self) -> Option<K> {
        self.by_holder.iter().max_by_key(|(_, held)| **held).map(|(holder, _)| *holder)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fill(shares: &mut Shares<u32>, holder: u32) -> usize {
        std::iter::from_fn(|| shares.take(holder, 1).ok()).count()
    }

    #[test]
    fn greedy_holders_leave_room_for_one_more() {
        let mut shares = Shares::new(16_384, 16_384);
        assert_eq!(fill(&mut shares, 1), 8_192);
        assert_eq!(fill(&mut shares, 2), 4_096);
        for holder in 3..10 {
            assert!(shares.take(holder, 1).is_ok(), "{holder}");
        }
        assert_eq!(shares.take(1, 1), Err(Full::Share));
        shares.give(1, 8_192);
        assert!(fill(&mut shares, 9) > 5_000, "what was given back is there for others");
        assert_eq!(shares.of(&1), 0);
    }

    #[test]
    fn the_last_place_goes_to_a_holder_without_any() {
        let mut shares = Shares::new(4, 4);
        assert_eq!((fill(&mut shares, 1), fill(&mut shares, 2), fill(&mut shares, 3)), (2, 1, 1));
        assert_eq!(shares.take(4, 1), Err(Full::All));
        assert_eq!(shares.take(1, 1), Err(Full::All));
        shares.give(4, 1);
        assert_eq!(shares.all(), 4, "a holder without any has nothing to give back");
    }

    #[test]
    fn amounts_and_the_bound_of_one_count() {
        let mut shares = Shares::new(100, 30);
        assert_eq!(shares.take(1, 31), Err(Full::Share));
        assert_eq!(shares.take(1, 30), Ok(()));
        assert_eq!(shares.take(2, 101), Err(Full::All));
        assert_eq!(shares.greediest(), Some(1));
        shares.give(1, 1_000);
        assert_eq!((shares.all(), shares.greediest()), (0, None));
    }
}
