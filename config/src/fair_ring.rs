//! The last things of several holders, in their order, with a share for each: a holder with very many pushes out its own.

use std::collections::{BTreeMap, HashMap, VecDeque};

use crate::shares::Shares;

/// A bounded list of things, each of one holder.
#[derive(Clone, Debug)]
pub struct FairRing<T> {
    /// By their numbers, which grow.
    items: BTreeMap<u64, (u32, T)>,
    by_holder: HashMap<u32, VecDeque<u64>>,
    shares: Shares<u32>,
    next: u64,
}

impl<T> FairRing<T> {
    /// A list of at most `all_max` things.
    pub fn new(all_max: usize) -> Self {
        Self {
            items: BTreeMap::new(),
            by_holder: HashMap::new(),
            shares: Shares::new(all_max.max(1), all_max.max(1)),
            next: 0,
        }
    }

    /// Adds a thing. Where its holder has its share, the holder's oldest gives way; where all is full, that of the holder
    /// with most. Gives what gave way, and whose it was.
    pub fn push(&mut self, holder: u32, item: T) -> Option<(u32, T)> {
        let mut gone = None;
        if self.shares.take(holder, 1).is_err() {
            let victim = if self.shares.of(&holder) > 0 { Some(holder) } else { self.shares.greediest() };
            gone = victim.and_then(|victim| self.pop_of(victim));
            self.shares.take_unchecked(holder, 1);
        }
        self.items.insert(self.next, (holder, item));
        self.by_holder.entry(holder).or_default().push_back(self.next);
        self.next += 1;
        gone
    }

    /// Takes out the oldest of all.
    pub fn pop(&mut self) -> Option<T> {
        let (_, (holder, item)) = self.items.pop_first()?;
        self.forget_oldest(holder);
        Some(item)
    }

    /// Takes out the oldest of one holder.
    fn pop_of(&mut self, holder: u32) -> Option<(u32, T)> {
        let number = *self.by_holder.get(&holder)?.front()?;
        let item = self.items.remove(&number);
        self.forget_oldest(holder);
        item
    }

    fn forget_oldest(&mut self, holder: u32) {
        self.shares.give(holder, 1);
        if let Some(numbers) = self.by_holder.get_mut(&holder) {
            numbers.pop_front();
            if numbers.is_empty() {
                self.by_holder.remove(&holder);
            }
        }
    }

    /// All things with their holders, oldest first.
    pub fn iter(&self) -> impl DoubleEndedIterator<Item = &(u32, T)> {
        self.items.values()
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.items.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.items.is_empty()
    }
}

/// Picks at most `count` things of a list that begins with the newest: the newest of each holder first, then the second
/// newest of each, and so on. What is picked stays in the order of the list.
pub fn pick_fairly<T>(newest_first: impl Iterator<Item = T>, count: usize, holder: impl Fn(&T) -> u32) -> Vec<T> {
    let mut ranks: HashMap<u32, usize> = HashMap::new();
    let ranked = newest_first.enumerate().map(|(place, item)| {
        let rank = ranks.entry(holder(&item)).or_default();
        *rank += 1;
        (*rank, place, item)
    });
    let mut ranked: Vec<(usize, usize, T)> = ranked.collect();
    ranked.sort_by_key(|(rank, place, _)| (*rank, *place));
    ranked.truncate(count);
    ranked.sort_by_key(|(_, place, _)| *place);
    ranked.into_iter().map(|(_, _, item)| item).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flood_pushes_out_its_own() {
        let mut ring = FairRing::new(100);
        for number in 0..10 {
            assert_eq!(ring.push(1, number), None);
        }
        let lost: Vec<u32> = (0..1_000).filter_map(|number| ring.push(2, number)).map(|(holder, _)| holder).collect();
        assert!(lost.iter().all(|holder| *holder == 2) && lost.len() > 900, "{}", lost.len());
        let kept: Vec<i32> = ring.iter().filter(|(holder, _)| *holder == 1).map(|(_, item)| *item).collect();
        assert_eq!(kept, (0..10).collect::<Vec<_>>());
        assert_eq!(ring.iter().next_back(), Some(&(2, 999)), "the newest stays");
    }

    #[test]
    fn things_come_out_in_their_order() {
        let mut ring = FairRing::new(10);
        for (holder, item) in [(1, 'a'), (2, 'b'), (1, 'c'), (3, 'd')] {
            ring.push(holder, item);
        }
        let out: Vec<char> = std::iter::from_fn(|| ring.pop()).collect();
        assert_eq!(out, ['a', 'b', 'c', 'd']);
        assert!(ring.is_empty() && ring.by_holder.is_empty());
        // Very many holders: the one with most gives way, and the bound holds.
        for holder in 0..50 {
            ring.push(holder, 'x');
        }
        assert_eq!(ring.len(), 10);
        assert!(ring.iter().any(|(holder, _)| *holder == 49));
    }

    #[test]
    fn few_are_seen_beside_many() {
        let newest_first = (0..1_000).map(|number| (1, number)).chain([(2, 1_000), (2, 1_001), (3, 1_002)]);
        let picked = pick_fairly(newest_first, 6, |(holder, _)| *holder);
        assert_eq!(picked, [(1, 0), (1, 1), (1, 2), (2, 1_000), (2, 1_001), (3, 1_002)]);
    }
}
