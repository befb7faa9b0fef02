//! A queue that is served in turns: one thing of each holder, then the next of each. A holder that hands in very many
//! waits for itself, and a share of the places is all it gets.

use std::collections::{HashMap, VecDeque};

use namegate_config::shares::{Full, Shares};

/// Things that wait, each of one holder.
#[derive(Debug)]
pub(crate) struct FairQueue<T> {
    lanes: HashMap<u32, VecDeque<T>>,
    /// Holders with something that waits, in the order of their turns.
    turns: VecDeque<u32>,
    shares: Shares<u32>,
}

impl<T> FairQueue<T> {
    /// A queue of at most `all_max` things.
    pub(crate) fn new(all_max: usize) -> Self {
        Self { lanes: HashMap::new(), turns: VecDeque::new(), shares: Shares::new(all_max, all_max) }
    }

    /// Adds a thing, or gives it back where its holder has its share.
    pub(crate) fn push(&mut self, holder: u32, item: T) -> Result<(), (Full, T)> {
        match self.shares.take(holder, 1) {
            Ok(()) => {
                self.add(holder, item);
                Ok(())
            }
            Err(full) => Err((full, item)),
        }
    }

    /// Adds a thing of a holder that bounds itself.
    pub(crate) fn push_unchecked(&mut self, holder: u32, item: T) {
        self.shares.take_unchecked(holder, 1);
        self.add(holder, item);
    }

    fn add(&mut self, holder: u32, item: T) {
        let lane = self.lanes.entry(holder).or_default();
        if lane.is_empty() {
            self.turns.push_back(holder);
        }
        lane.push_back(item);
    }

    /// Takes out the next thing.
    pub(crate) fn pop(&mut self) -> Option<T> {
        let holder = self.turns.pop_front()?;
        let lane = self.lanes.get_mut(&holder)?;
        let item = lane.pop_front();
        if lane.is_empty() {
            self.lanes.remove(&holder);
        } else {
            self.turns.push_back(holder);
        }
        self.shares.give(holder, 1);
        item
    }

    /// How many things wait.
    #[cfg(test)]
    pub(crate) fn len(&self) -> usize {
        self.shares.all()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOSTILE: u32 = 1;
    const HONEST: u32 = 2;

    #[test]
    fn a_flood_of_one_endpoint_delays_another_by_one_turn() {
        let mut queue = FairQueue::new(4_096);
        let taken = (0..10_000).filter(|number| queue.push(HOSTILE, (HOSTILE, *number)).is_ok()).count();
        assert_eq!(taken, 2_048, "half of the places");
        assert_eq!(queue.push(HOSTILE, (HOSTILE, 0)), Err((Full::Share, (HOSTILE, 0))));
        for number in 0..3 {
            queue.push(HONEST, (HONEST, number)).unwrap();
        }
        let order: Vec<(u32, i32)> = std::iter::from_fn(|| queue.pop()).take(6).collect();
        let want = [(HOSTILE, 0), (HONEST, 0), (HOSTILE, 1), (HONEST, 1), (HOSTILE, 2), (HONEST, 2)];
        assert_eq!(order, want);
    }

    #[test]
    fn everything_comes_out_once_and_nothing_stays_behind() {
        let mut queue = FairQueue::new(8);
        for holder in 0..4 {
            queue.push(holder, holder).unwrap();
        }
        queue.push_unchecked(9, 9);
        let mut out: Vec<u32> = std::iter::from_fn(|| queue.pop()).collect();
        out.sort_unstable();
        assert_eq!(out, [0, 1, 2, 3, 9]);
        assert!(queue.len() == 0 && queue.lanes.is_empty() && queue.turns.is_empty());
    }
}
