//! The last things of several holders, in their order, with a share for each: a holder with very many pushes out its own.

use std::collections::hash_map::Entry;

use foldhash::HashMap;
use slab::Slab;

use crate::shares::Shares;

/// Room that an empty list keeps, things.
const EMPTY_ROOM: usize = 64;

/// A bounded list of things, each of one holder. The things stand in one piece of memory, whatever comes and goes.
#[derive(Clone, Debug)]
pub struct FairRing<T> {
    nodes: Slab<Node<T>>,
    /// The oldest and the newest of all.
    ends: Option<Ends>,
    by_holder: HashMap<u32, Ends>,
    shares: Shares<u32>,
}

#[derive(Clone, Copy, Debug)]
struct Ends {
    oldest: usize,
    newest: usize,
}

#[derive(Clone, Debug)]
struct Node<T> {
    /// The holder, and what it has.
    held: (u32, T),
    older: Option<usize>,
    newer: Option<usize>,
    /// The next newer one of the same holder.
    newer_of_holder: Option<usize>,
}

impl<T> FairRing<T> {
    /// A list of at most `all_max` things.
    pub fn new(all_max: usize) -> Self {
        Self {
            nodes: Slab::new(),
            ends: None,
            by_holder: HashMap::default(),
            shares: Shares::new(all_max.max(1), all_max.max(1)),
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
        let older = self.ends.map(|ends| ends.newest);
        let node = self.nodes.insert(Node { held: (holder, item), older, newer: None, newer_of_holder: None });
        if let Some(older) = older {
            self.nodes[older].newer = Some(node);
        }
        self.ends = Some(Ends { oldest: self.ends.map_or(node, |ends| ends.oldest), newest: node });
        match self.by_holder.entry(holder) {
            Entry::Occupied(mut ends) => {
                let newest = std::mem::replace(&mut ends.get_mut().newest, node);
                self.nodes[newest].newer_of_holder = Some(node);
            }
            Entry::Vacant(place) => drop(place.insert(Ends { oldest: node, newest: node })),
        }
        gone
    }

    /// Takes out the oldest of all.
    pub fn pop(&mut self) -> Option<T> {
        // The oldest of all is the oldest of its holder.
        let oldest = self.ends?.oldest;
        let holder = self.nodes[oldest].held.0;
        self.pop_of(holder).map(|(_, item)| item)
    }

    /// Takes out the oldest of one holder.
    fn pop_of(&mut self, holder: u32) -> Option<(u32, T)> {
        let oldest = self.by_holder.get(&holder)?.oldest;
        let Node { held, older, newer, newer_of_holder } = self.nodes.remove(oldest);
        match newer_of_holder {
            Some(next) => self.by_holder.insert(holder, Ends { oldest: next, ..self.by_holder[&holder] }),
            None => self.by_holder.remove(&holder),
        };
        if let Some(older) = older {
            self.nodes[older].newer = newer;
        }
        if let Some(newer) = newer {
            self.nodes[newer].older = older;
        }
        self.ends = self.ends.and_then(|Ends { oldest, newest }| {
            // An end moves where the node stood there.
            let oldest = if older.is_none() { newer } else { Some(oldest) };
            let newest = if newer.is_none() { older } else { Some(newest) };
            Some(Ends { oldest: oldest?, newest: newest? })
        });
        if self.nodes.is_empty() && self.nodes.capacity() > EMPTY_ROOM {
            self.nodes = Slab::new();
        }
        self.shares.give(holder, 1);
        Some(held)
    }

    /// All things with their holders, oldest first.
    pub fn iter(&self) -> impl DoubleEndedIterator<Item = &(u32, T)> {
        Iter { ring: self, ends: self.ends }
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.nodes.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.nodes.is_empty()
    }
}

/// What is left to give, with both its ends.
struct Iter<'a, T> {
    ring: &'a FairRing<T>,
    ends: Option<Ends>,
}

impl<'a, T> Iterator for Iter<'a, T> {
    type Item = &'a (u32, T);

    fn next(&mut self) -> Option<Self::Item> {
        let Ends { oldest, newest } = self.ends?;
        let node = &self.ring.nodes[oldest];
        let next = if oldest == newest { None } else { node.newer };
        self.ends = next.map(|oldest| Ends { oldest, newest });
        Some(&node.held)
    }
}

impl<T> DoubleEndedIterator for Iter<'_, T> {
    fn next_back(&mut self) -> Option<Self::Item> {
        let Ends { oldest, newest } = self.ends?;
        let node = &self.ring.nodes[newest];
        let next = if oldest == newest { None } else { node.older };
        self.ends = next.map(|newest| Ends { oldest, newest });
        Some(&node.held)
    }
}

/// Picks at most `count` things of a list that begins with the newest: the newest of each holder first, then the second
/// newest of each, and so on. What is picked stays in the order of the list.
pub fn pick_fairly<T>(newest_first: impl Iterator<Item = T>, count: usize, holder: impl Fn(&T) -> u32) -> Vec<T> {
    let mut ranks: HashMap<u32, usize> = HashMap::default();
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

    /// Beside a plain list, with the same choice of what gives way.
    #[test]
    fn the_order_is_that_of_a_plain_list_whatever_comes_and_goes() {
        let mut ring = FairRing::new(16);
        let mut plain: Vec<(u32, u32)> = Vec::new();
        let mut random = 1_u32;
        for number in 0..5_000 {
            random = random.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            if random >> 28 == 0 {
                let oldest = (!plain.is_empty()).then(|| plain.remove(0).1);
                assert_eq!(ring.pop(), oldest);
                continue;
            }
            let holder = (random >> 24) % 7;
            if let Some(gone) = ring.push(holder, number) {
                let place = plain.iter().position(|(of, _)| *of == gone.0).unwrap();
                assert_eq!(plain.remove(place), gone, "the oldest of its holder");
            }
            plain.push((holder, number));
            assert!(ring.iter().eq(plain.iter()));
            assert!(ring.iter().rev().eq(plain.iter().rev()));
            assert_eq!(ring.len(), plain.len());
        }
        let mut both = ring.iter();
        let (first, last) = (both.next(), both.next_back());
        assert_eq!((first, last), (plain.first(), plain.last()));
        assert_eq!(both.count(), plain.len() - 2, "none is given twice");
    }

    #[test]
    fn few_are_seen_beside_many() {
        let newest_first = (0..1_000).map(|number| (1, number)).chain([(2, 1_000), (2, 1_001), (3, 1_002)]);
        let picked = pick_fairly(newest_first, 6, |(holder, _)| *holder);
        assert_eq!(picked, [(1, 0), (1, 1), (1, 2), (2, 1_000), (2, 1_001), (3, 1_002)]);
    }
}
