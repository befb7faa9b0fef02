//! A queue that shares out the time of the thread that serves it: the next thing is one of the holder that has used the
//! least. A holder whose things take long, or that hands in very many, waits for itself, and a share of the places is all
//! it gets.
//!
//! This is start-time fair queueing (Goyal, Vin and Cheng, 1996): each holder has a moment of virtual time at which its next
//! thing begins. What its things took moves that moment on; one that had nothing to do comes in at the present.

use std::{
    collections::{BTreeSet, VecDeque},
    time::Duration,
};

use foldhash::HashMap;
use namegate_config::shares::{Full, Shares};

/// Things that wait, each of one holder.
#[derive(Debug)]
pub(crate) struct FairQueue<T> {
    lanes: HashMap<u32, Lane<T>>,
    /// Holders with something that waits, by the virtual time at which it begins.
    turns: BTreeSet<(Duration, u32)>,
    /// The virtual time: where the thing that was taken last began.
    now: Duration,
    shares: Shares<u32>,
}

/// What one holder has waiting.
#[derive(Debug)]
struct Lane<T> {
    items: VecDeque<T>,
    /// The virtual time at which the first of them begins, or the next one to come.
    begins: Duration,
}

impl<T> FairQueue<T> {
    /// A queue of at most `all_max` things.
    pub(crate) fn new(all_max: usize) -> Self {
        let shares = Shares::new(all_max, all_max);
        Self { lanes: HashMap::default(), turns: BTreeSet::new(), now: Duration::ZERO, shares }
    }

    /// Adds a thing, or gives it back where its holder has its share.
    pub(crate) fn push(&mut self, holder: u32, item: T) -> Result<(), (Full, T)> {
        match self.shares.take(holder, 1) {
            Ok(()) => {
                self.lane(holder).items.push_back(item);
                Ok(())
            }
            Err(full) => Err((full, item)),
        }
    }

    /// Puts back what is left of a thing that was taken out: it goes on with the holder's next turn. It has a place beyond
    /// the holder's share, since it had one before.
    pub(crate) fn put_back(&mut self, holder: u32, item: T) {
        self.shares.take_unchecked(holder, 1);
        self.lane(holder).items.push_front(item);
    }

    /// The lane of a holder, among the turns.
    fn lane(&mut self, holder: u32) -> &mut Lane<T> {
        let now = self.now;
        let lane = self.lanes.entry(holder).or_insert_with(|| Lane { items: VecDeque::new(), begins: now });
        if lane.items.is_empty() {
            lane.begins = lane.begins.max(now);
            self.turns.insert((lane.begins, holder));
        }
        lane
    }

    /// Takes out the next thing, with its holder. What it took is to be said by [`Self::charge`].
    pub(crate) fn pop(&mut self) -> Option<(u32, T)> {
        let (begins, holder) = self.turns.pop_first()?;
        self.now = begins;
        let lane = self.lanes.get_mut(&holder)?;
        let item = lane.items.pop_front()?;
        if !lane.items.is_empty() {
            self.turns.insert((begins, holder));
        }
        self.shares.give(holder, 1);
        Some((holder, item))
    }

    /// Notes the time that a holder's thing took.
    pub(crate) fn charge(&mut self, holder: u32, took: Duration) {
        let Some(lane) = self.lanes.get_mut(&holder) else { return };
        let waits = self.turns.remove(&(lane.begins, holder));
        lane.begins += took;
        if waits {
            self.turns.insert((lane.begins, holder));
        } else if self.turns.is_empty() {
            // No holder waits, so none has used more than another.
            self.lanes.clear();
            self.now = Duration::ZERO;
        }
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

    /// Takes out things and says that each took so many microseconds.
    fn serve(queue: &mut FairQueue<u32>, count: usize, cost: impl Fn(u32) -> u64) -> Vec<u32> {
        let next = |_| {
            let (holder, item) = queue.pop()?;
            queue.charge(holder, Duration::from_micros(cost(holder)));
            Some(item)
        };
        (0..count).map_while(next).collect()
    }

    #[test]
    fn a_flood_of_one_endpoint_delays_another_by_one_turn() {
        let mut queue = FairQueue::new(4_096);
        let taken = (0..10_000).filter(|_| queue.push(HOSTILE, HOSTILE).is_ok()).count();
        assert_eq!(taken, 2_048, "half of the places");
        assert_eq!(queue.push(HOSTILE, HOSTILE), Err((Full::Share, HOSTILE)));
        for _ in 0..3 {
            queue.push(HONEST, HONEST).unwrap();
        }
        assert_eq!(serve(&mut queue, 6, |_| 10), [HOSTILE, HONEST, HOSTILE, HONEST, HOSTILE, HONEST]);
    }

    #[test]
    fn a_holder_has_its_share_of_the_time_whatever_the_things_of_another_take() {
        let mut queue = FairQueue::new(4_096);
        for _ in 0..1_000 {
            queue.push(HOSTILE, HOSTILE).unwrap();
            queue.push(HONEST, HONEST).unwrap();
        }
        let order = serve(&mut queue, 1_000, |holder| if holder == HOSTILE { 9_000 } else { 100 });
        let hostile = order.iter().filter(|holder| **holder == HOSTILE).count();
        assert!((10..=12).contains(&hostile), "as much time, not as many turns: {hostile}");
    }

    #[test]
    fn one_who_comes_later_neither_catches_up_nor_pays_for_the_past() {
        let mut queue = FairQueue::new(4_096);
        for _ in 0..100 {
            queue.push(HOSTILE, HOSTILE).unwrap();
        }
        serve(&mut queue, 50, |_| 9_000);
        for _ in 0..4 {
            queue.push(HONEST, HONEST).unwrap();
        }
        assert_eq!(serve(&mut queue, 6, |_| 9_000), [HONEST, HOSTILE, HONEST, HOSTILE, HONEST, HOSTILE]);
    }

    #[test]
    fn an_empty_lane_is_no_way_around_what_its_things_took() {
        let mut queue = FairQueue::new(4_096);
        let mut order = Vec::new();
        for _ in 0..100 {
            queue.push(HONEST, HONEST).unwrap();
        }
        for _ in 0..50 {
            queue.push(HOSTILE, HOSTILE).unwrap();
            order.extend(serve(&mut queue, 2, |holder| if holder == HOSTILE { 9_000 } else { 100 }));
        }
        let hostile = order.iter().filter(|holder| **holder == HOSTILE).count();
        assert!(hostile <= 3, "{hostile} turns for one that takes ninety times as long");
    }

    #[test]
    fn what_is_put_back_goes_on_with_the_next_turn_of_its_holder() {
        let mut queue = FairQueue::new(4_096);
        queue.push(HOSTILE, 10).unwrap();
        queue.push(HOSTILE, 11).unwrap();
        queue.push(HONEST, 20).unwrap();
        let (holder, item) = queue.pop().unwrap();
        queue.put_back(holder, item);
        queue.charge(holder, Duration::from_millis(1));
        assert_eq!((queue.len(), serve(&mut queue, 4, |_| 1_000)), (3, vec![20, 10, 11]));
    }

    #[test]
    fn everything_comes_out_once_and_nothing_stays_behind() {
        let mut queue = FairQueue::new(8);
        for holder in 0..4 {
            queue.push(holder, holder).unwrap();
        }
        let mut out = serve(&mut queue, 8, u64::from);
        out.sort_unstable();
        assert_eq!(out, [0, 1, 2, 3]);
        assert!(queue.len() == 0 && queue.lanes.is_empty() && queue.turns.is_empty());
    }
}
