//! A map of which another that differs little is made cheaply: the two share what is the same.

use std::{
    borrow::Borrow,
    collections::HashMap,
    hash::{BuildHasher, Hash, RandomState},
    sync::Arc,
};

/// Parts of which a change copies one.
const SHARDS: usize = 256;

/// The map. A clone copies references only.
#[derive(Clone, Debug)]
pub(crate) struct Shards<K, V> {
    hasher: RandomState,
    shards: Vec<Arc<HashMap<K, V>>>,
}

impl<K, V> Default for Shards<K, V> {
    fn default() -> Self {
        let empty = Arc::new(HashMap::new());
        Self { hasher: RandomState::new(), shards: vec![empty; SHARDS] }
    }
}

impl<K: Clone + Eq + Hash, V: Clone> Shards<K, V> {
    pub(crate) fn get<Q: Eq + Hash + ?Sized>(&self, key: &Q) -> Option<&V>
    where
        K: Borrow<Q>,
    {
        self.shards[self.place(key)].get(key)
    }

    /// Sets or removes one entry.
    pub(crate) fn set(&mut self, key: K, value: Option<V>) {
        let at = self.place(&key);
        match value {
            Some(value) => drop(Arc::make_mut(&mut self.shards[at]).insert(key, value)),
            None if self.shards[at].contains_key(&key) => drop(Arc::make_mut(&mut self.shards[at]).remove(&key)),
            None => {}
        }
    }

    fn place<Q: Hash + ?Sized>(&self, key: &Q) -> usize {
        usize::try_from(self.hasher.hash_one(key) % SHARDS as u64).unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_map_that_differs_in_one_entry_shares_all_other_parts() {
        let mut map = Shards::default();
        (0..10_000).for_each(|key| map.set(key, Some(key)));
        let before = map.clone();
        map.set(7, Some(70));
        let shared = before.shards.iter().zip(&map.shards).filter(|(one, other)| Arc::ptr_eq(one, other)).count();
        assert_eq!((shared, before.get(&7), map.get(&7)), (SHARDS - 1, Some(&7), Some(&70)));
        map.set(8, None);
        map.set(10_000, None);
        let count: usize = map.shards.iter().map(|shard| shard.len()).sum();
        assert_eq!((before.get(&8), map.get(&8), count), (Some(&8), None, 9_999));
    }
}
