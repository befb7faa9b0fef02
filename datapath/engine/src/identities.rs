//! Identities in use: each stands for one set of selectors, and lives while a row names it.

use std::{collections::BTreeMap, sync::Arc};

use foldhash::{HashMap, HashSet};
use namegate_abi::identity;

use crate::selectors::{Set, TermId};

/// Identities that rows name.
#[derive(Debug)]
pub(crate) struct Identities {
    by_set: HashMap<Set, u32>,
    live: BTreeMap<u32, Live>,
    by_term: HashMap<TermId, HashSet<u32>>,
    /// Identities that no row names any more.
    idle: Vec<u32>,
    /// What matches an address that no row names: identity [`identity::WORLD`].
    world: Set,
}

#[derive(Debug)]
struct Live {
    set: Set,
    uses: u32,
    /// Policies that have rows for it.
    holders: Vec<u32>,
}

/// An identity that nothing uses any more.
#[derive(Debug)]
pub(crate) struct Gone {
    pub(crate) id: u32,
    pub(crate) set: Set,
    /// Policies that may have rows for it.
    pub(crate) holders: Vec<u32>,
}

impl Default for Identities {
    fn default() -> Self {
        Self {
            by_set: HashMap::default(),
            live: BTreeMap::new(),
            by_term: HashMap::default(),
            idle: Vec::new(),
            world: Arc::new([]),
        }
    }
}

impl Identities {
    /// What matches everybody outside the cluster.
    pub(crate) const fn world(&self) -> &Set {
        &self.world
    }

    pub(crate) fn set_world(&mut self, world: Set) {
        self.world = world;
    }

    /// The identity of a set, where it is in use; counts one use more.
    pub(crate) fn reuse(&mut self, set: &[TermId]) -> Option<u32> {
        if *set == *self.world {
            return Some(identity::WORLD);
        }
        let id = *self.by_set.get(set)?;
        self.live.get_mut(&id)?.uses += 1;
        Some(id)
    }

    /// Begins to use an identity.
    pub(crate) fn begin(&mut self, id: u32, set: &Set) {
        for term in set.iter() {
            self.by_term.entry(*term).or_default().insert(id);
        }
        self.by_set.insert(Arc::clone(set), id);
        self.live.insert(id, Live { set: Arc::clone(set), uses: 1, holders: Vec::new() });
    }

    /// Notes that a policy has rows for it.
    pub(crate) fn hold(&mut self, id: u32, policy: u32) {
        if let Some(live) = self.live.get_mut(&id) {
            live.holders.push(policy);
        }
    }

    /// Notes that a policy has none any more.
    pub(crate) fn let_go(&mut self, id: u32, policy: u32) {
        if let Some(live) = self.live.get_mut(&id) {
            live.holders.retain(|holder| *holder != policy);
        }
    }

    /// Ends one use.
    pub(crate) fn release(&mut self, id: u32) {
        let Some(live) = self.live.get_mut(&id) else { return };
        live.uses = live.uses.saturating_sub(1);
        if live.uses == 0 {
            self.idle.push(id);
        }
    }

    /// Whether some may be without use.
    pub(crate) fn has_idle(&self) -> bool {
        !self.idle.is_empty()
    }

    /// Some identities without use; they are forgotten.
    pub(crate) fn sweep(&mut self, most: usize) -> Vec<Gone> {
        let mut gone = Vec::new();
        while gone.len() < most {
            let Some(id) = self.idle.pop() else { break };
            if self.live.get(&id).is_some_and(|live| live.uses == 0) {
                gone.extend(self.forget(id));
            }
        }
        gone
    }

    /// Forgets an identity at once.
    pub(crate) fn forget(&mut self, id: u32) -> Option<Gone> {
        let live = self.live.remove(&id)?;
        self.by_set.remove(&live.set);
        for term in live.set.iter() {
            if let Some(ids) = self.by_term.get_mut(term) {
                ids.remove(&id);
                if ids.is_empty() {
                    self.by_term.remove(term);
                }
            }
        }
        Some(Gone { id, set: live.set, holders: live.holders })
    }

    /// The set of an identity in use.
    pub(crate) fn set_of(&self, id: u32) -> Option<&Set> {
        if id == identity::WORLD { Some(&self.world) } else { self.live.get(&id).map(|live| &live.set) }
    }

    /// Identities that a selector matches, the world's left out.
    pub(crate) fn matched_by(&self, term: TermId) -> impl Iterator<Item = u32> {
        self.by_term.get(&term).into_iter().flatten().copied()
    }

    /// Number of identities in use.
    pub(crate) fn len(&self) -> usize {
        self.live.len()
    }
}
