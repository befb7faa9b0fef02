//! What one endpoint learned: its names, which of them gives way first, and how many bytes they take.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use namegate_abi::Address;

use super::Heard;
use crate::names::NameId;

/// How often the names of an endpoint at its bound are searched for ended ones.
const SEARCH_NS: u64 = 1_000_000_000;
/// Bytes that a name takes: its text, and its places in the tables.
const NAME_BYTES: usize = 512;
/// Bytes that an address of a name takes: with the name, at its row, and a part of the row.
const ADDRESS_BYTES: usize = 64;

/// What one endpoint learned.
#[derive(Debug)]
pub(crate) struct Known {
    /// `namespace/name`.
    pub(crate) key: Arc<str>,
    names: BTreeMap<NameId, Name>,
    /// What gives way first: names that no selector matches, and of these those that were heard longest ago.
    order: BTreeSet<(bool, u64, NameId)>,
    /// Names that had ended when they were searched for, the last one first.
    ended: Vec<NameId>,
    searched_ns: u64,
    /// Number of the next answer.
    next: u64,
    addresses: usize,
}

/// What one endpoint learned for a name.
#[derive(Clone, Debug)]
pub(crate) struct Name {
    /// Addresses and their ends, sorted.
    pub(crate) addresses: Vec<(Address, u64)>,
    pub(crate) ttl_s: u32,
    pub(crate) learned_ns: u64,
    /// Whether a selector matches it.
    is_used: bool,
    /// Number of the last answer.
    pub(crate) heard: u64,
}

impl Name {
    fn is_over(&self, now: u64) -> bool {
        self.addresses.iter().all(|(_, expires_ns)| *expires_ns <= now)
    }
}

impl Known {
    pub(super) fn new(key: Arc<str>) -> Self {
        Self {
            key,
            names: BTreeMap::new(),
            order: BTreeSet::new(),
            ended: Vec::new(),
            searched_ns: 0,
            next: 0,
            addresses: 0,
        }
    }

    /// Number of names.
    pub(super) fn len(&self) -> usize {
        self.names.len()
    }

    /// Bytes that the names take, about.
    pub(super) fn bytes(&self) -> usize {
        self.names.len() * NAME_BYTES + self.addresses * ADDRESS_BYTES
    }

    /// Every name.
    pub(crate) fn names(&self) -> impl Iterator<Item = (NameId, &Name)> {
        self.names.iter().map(|(id, name)| (*id, name))
    }

    /// One of them.
    pub(crate) fn name(&self, id: NameId) -> Option<&Name> {
        self.names.get(&id)
    }

    /// Addresses of a name.
    pub(super) fn addresses(&self, name: NameId) -> &[(Address, u64)] {
        self.names.get(&name).map_or(&[], |name| &name.addresses)
    }

    /// Notes addresses of a name; gives those that gave way. None of the answer does.
    pub(super) fn hear(
        &mut self,
        id: NameId,
        is_plain: bool,
        heard: &Heard,
        (ttl_s, learned_ns): (u32, u64),
        addresses_max: usize,
    ) -> Vec<Address> {
        let number = self.next;
        self.next += 1;
        let name = self.names.entry(id).or_insert_with(|| Name {
            addresses: Vec::new(),
            ttl_s,
            learned_ns,
            is_used: !is_plain,
            heard: number,
        });
        self.order.remove(&(name.is_used, name.heard, id));
        name.ttl_s = ttl_s;
        name.learned_ns = learned_ns;
        name.heard = number;
        self.order.insert((name.is_used, name.heard, id));
        self.addresses -= name.addresses.len();
        name.addresses = merged(&name.addresses, heard);
        let evicted = evict(&mut name.addresses, heard, addresses_max);
        self.addresses += name.addresses.len();
        evicted
    }

    pub(super) fn remove(&mut self, id: NameId) -> Option<Vec<(Address, u64)>> {
        let name = self.names.remove(&id)?;
        self.order.remove(&(name.is_used, name.heard, id));
        self.addresses -= name.addresses.len();
        Some(name.addresses)
    }

    /// Removes an address of a name; true where it was the last one, and the name is removed too.
    pub(super) fn drop_address(&mut self, id: NameId, address: Address) -> bool {
        let Some(name) = self.names.get_mut(&id) else { return false };
        if let Ok(at) = name.addresses.binary_search_by_key(&address, |(address, _)| *address) {
            name.addresses.remove(at);
            self.addresses -= 1;
        }
        name.addresses.is_empty() && self.remove(id).is_some()
    }

    /// The name that is worth least: one that has ended, else the first of the order. Ended ones are searched for at most
    /// once in a while, since that takes time for each name.
    pub(super) fn least(&mut self, now: u64) -> Option<NameId> {
        if self.ended.is_empty() && now.saturating_sub(self.searched_ns) >= SEARCH_NS {
            self.searched_ns = now;
            let ended = self.order.iter().rev().filter(|(.., id)| self.names[id].is_over(now));
            self.ended = ended.map(|(.., id)| *id).collect();
        }
        while let Some(id) = self.ended.pop() {
            if self.names.get(&id).is_some_and(|name| name.is_over(now)) {
                return Some(id);
            }
        }
        self.order.first().map(|(.., id)| *id)
    }

    /// Notes whether a selector matches a name.
    pub(super) fn set_plain(&mut self, id: NameId, is_plain: bool) {
        if let Some(name) = self.names.get_mut(&id) {
            self.order.remove(&(name.is_used, name.heard, id));
            name.is_used = !is_plain;
            self.order.insert((name.is_used, name.heard, id));
        }
    }
}

/// Both lists as one; of an address in both the later end counts.
fn merged(known: &[(Address, u64)], heard: &Heard) -> Vec<(Address, u64)> {
    let mut all = Vec::with_capacity(known.len().max(heard.len()));
    let mut known = known.iter().copied().peekable();
    for &(address, expires_ns) in heard {
        while let Some(before) = known.next_if(|(one, _)| *one < address) {
            all.push(before);
        }
        let same = known.next_if(|(one, _)| *one == address);
        all.push((address, expires_ns.max(same.map_or(0, |(_, ends)| ends))));
    }
    all.extend(known);
    all
}

/// Removes addresses down to the bound: those that end first, and none of the answer.
fn evict(addresses: &mut Vec<(Address, u64)>, heard: &Heard, max: usize) -> Vec<Address> {
    let above = addresses.len().saturating_sub(max);
    if above == 0 {
        return Vec::new();
    }
    let is_heard = |address: &Address| heard.binary_search_by_key(address, |(heard, _)| *heard).is_ok();
    let mut others: Vec<(u64, Address)> = addresses
        .iter()
        .filter(|(address, _)| !is_heard(address))
        .map(|(address, expires_ns)| (*expires_ns, *address))
        .collect();
    others.sort_unstable();
    others.truncate(above);
    let mut gone: Vec<Address> = others.into_iter().map(|(_, address)| address).collect();
    gone.sort_unstable();
    addresses.retain(|(address, _)| gone.binary_search(address).is_err());
    gone
}
