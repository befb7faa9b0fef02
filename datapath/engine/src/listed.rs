//! A list of shared things that is handed over whole each time: which of them are new, and which are gone.
//!
//! What is the same `Arc` as before costs one comparison of pointers, and nothing where it also stands in the same place
//! from the beginning or from the end.

use std::{collections::HashMap, sync::Arc};

/// The list as it was handed over last, with the slot of each thing.
#[derive(Debug)]
pub(crate) struct Listed<T> {
    given: Vec<Arc<T>>,
    slots: Vec<u32>,
}

/// The part of a list that is not as before.
#[derive(Debug)]
pub(crate) struct Changed<T> {
    /// Where it begins.
    pub(crate) start: usize,
    /// The things there now; those that stood there before have their slot.
    pub(crate) things: Vec<(Arc<T>, Option<u32>)>,
    /// Slots of those that stood there before, one for each.
    pub(crate) before: Vec<u32>,
}

impl<T> Default for Listed<T> {
    fn default() -> Self {
        Self { given: Vec::new(), slots: Vec::new() }
    }
}

impl<T> Listed<T> {
    /// The slot of each thing, in order.
    pub(crate) fn slots(&self) -> &[u32] {
        &self.slots
    }

    /// Takes a new list. [`Listed::set`] must follow with the slots of what changed.
    pub(crate) fn replace(&mut self, new: Vec<Arc<T>>) -> Changed<T> {
        let is_same = |(one, other): &(&Arc<T>, &Arc<T>)| Arc::ptr_eq(one, other);
        let start = self.given.iter().zip(&new).take_while(is_same).count();
        let ends = self.given[start..].iter().rev().zip(new[start..].iter().rev());
        let same_at_end = ends.take_while(is_same).count();
        let end = self.given.len() - same_at_end;
        let before = self.slots[start..end].to_vec();
        let known: HashMap<*const T, u32> =
            self.given[start..end].iter().map(Arc::as_ptr).zip(before.iter().copied()).collect();
        let middle = &new[start..new.len() - same_at_end];
        let things = middle.iter().map(|thing| (Arc::clone(thing), known.get(&Arc::as_ptr(thing)).copied())).collect();
        self.given = new;
        Changed { start, things, before }
    }

    /// Notes the slots of what changed; true where things behind it stand in other places than before.
    pub(crate) fn set(&mut self, start: usize, before: usize, slots: Vec<u32>) -> bool {
        let is_shifted = before != slots.len();
        self.slots.splice(start..start + before, slots);
        is_shifted
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_stands_as_before_is_not_looked_at() {
        let all: Vec<Arc<u32>> = (0..5).map(Arc::new).collect();
        let mut listed = Listed::default();
        let changed = listed.replace(all.clone());
        assert_eq!((changed.start, changed.things.len(), changed.before.len()), (0, 5, 0));
        assert!(listed.set(0, 0, vec![10, 11, 12, 13, 14]));
        assert_eq!(listed.replace(all.clone()).things.len(), 0);
        assert!(!listed.set(5, 0, vec![]));
        // The third goes, and another comes before the last.
        let next = vec![all[0].clone(), all[1].clone(), all[3].clone(), Arc::new(9), all[4].clone()];
        let changed = listed.replace(next);
        assert_eq!((changed.start, changed.before), (2, vec![12, 13]));
        let slots: Vec<Option<u32>> = changed.things.iter().map(|(_, slot)| *slot).collect();
        assert_eq!(slots, [Some(13), None]);
        assert!(!listed.set(2, 2, vec![13, 15]));
        assert_eq!(listed.slots(), [10, 11, 13, 15, 14]);
    }
}
