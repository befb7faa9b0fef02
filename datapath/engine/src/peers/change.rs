//! One topology into the next: who came, who went, and whose address is whose now.

use std::{
    collections::{BTreeMap, BTreeSet},
    hash::BuildHasher,
    sync::Arc,
};

use namegate_abi::Address;
use slab::Slab;

use super::{Claim, Contested, ENDPOINTS, Peer, PeerChanges, Peers, addresses_of, index, slot_of};
use crate::{EndpointId, Topology, TopologyEndpoint, TopologyNode};

/// What was so before: collected while a topology is taken.
#[derive(Default)]
struct Before {
    owners: BTreeMap<Address, Option<Peer>>,
    locals: BTreeMap<EndpointId, Option<Peer>>,
    port_names: BTreeSet<String>,
}

impl Peers {
    /// Moves to a new topology; `id` numbers endpoints of this node.
    pub(crate) fn replace(&mut self, topology: Topology, mut id: impl FnMut(&Arc<str>) -> EndpointId) -> PeerChanges {
        let mut before = Before::default();
        let mut changes = PeerChanges::default();
        let are_nodes_same = self.nodes == topology.nodes;
        if !are_nodes_same {
            changes.node = true;
            self.replace_nodes(topology.nodes, &mut before);
        }
        self.replace_endpoints(topology.endpoints, &mut id, &mut before);
        let of_services = topology.services.iter().flat_map(|service| &service.addresses);
        let of_services = of_services.map(|address| Address::from(address.to_canonical()));
        let of_pods = of_services.filter(|address| self.owner(*address).is_some_and(Peer::is_pod)).collect();
        changes.addresses = self.fronts.replace(topology.services, of_pods, &self.nodes, are_nodes_same);
        for (address, old) in before.owners {
            let is_same = match (&old, self.owner(address)) {
                (Some(old), Some(new)) => old.is_like(new),
                (None, None) => true,
                _ => false,
            };
            if !is_same {
                changes.addresses.insert(address);
            }
        }
        let further = std::mem::replace(&mut self.more_interfaces, topology.more_interfaces);
        if further != self.more_interfaces {
            changes.locals.extend(self.locals.keys());
        }
        for (id, old) in before.locals {
            let is_same = match (&old, self.local_of(id)) {
                (Some(old), Some(new)) => old.is_like(new),
                _ => false,
            };
            if !is_same {
                changes.locals.insert(id);
            }
        }
        changes.port_names = before.port_names;
        changes
    }

    fn replace_nodes(&mut self, nodes: Vec<TopologyNode>, before: &mut Before) {
        for slot in std::mem::take(&mut self.node_slots) {
            self.deactivate(slot, before);
            self.entries.remove(index(slot));
        }
        for (rank, node) in (0..).zip(&nodes) {
            let source = TopologyEndpoint {
                key: node.name.as_str().into(),
                labels: Arc::new(node.labels.clone()),
                addresses: node.addresses.clone(),
                named_ports: Vec::new(),
                interface: None,
            };
            let peer = Peer { source: Arc::new(source), id: None, local_host: node.local, rank };
            let slot = slot_of(self.entries.insert(peer));
            self.node_slots.push(slot);
            self.activate(slot, before);
        }
        self.nodes = nodes;
    }

    fn replace_endpoints(
        &mut self,
        endpoints: Vec<Arc<TopologyEndpoint>>,
        id: &mut impl FnMut(&Arc<str>) -> EndpointId,
        before: &mut Before,
    ) {
        let changed = self.listed.replace(endpoints);
        let mut left: BTreeSet<u32> = changed.before.iter().copied().collect();
        let mut slots = Vec::with_capacity(changed.things.len());
        for (source, known) in &changed.things {
            let same = known.filter(|slot| left.contains(slot)).or_else(|| {
                let claim = self.by_key.get(&source.key)?;
                let is_equal = *self.entries[index(claim.first)].source == **source;
                (is_equal && left.contains(&claim.first)).then_some(claim.first)
            });
            if let Some(slot) = same {
                left.remove(&slot);
            }
            slots.push(same);
        }
        for slot in left {
            self.withdraw(slot, before);
        }
        let mut all = Vec::with_capacity(slots.len());
        for (slot, (source, _)) in slots.iter().zip(changed.things) {
            let slot = slot.unwrap_or_else(|| {
                let id = source.interface.map(|_| id(&source.key));
                slot_of(self.entries.insert(Peer { source: Arc::clone(&source), id, local_host: false, rank: 0 }))
            });
            self.entries[index(slot)].source = source;
            all.push(slot);
        }
        let end = changed.start + all.len();
        let is_shifted = self.listed.set(changed.start, changed.before.len(), all.clone());
        let end = if is_shifted { self.listed.slots().len() } else { end };
        for at in changed.start..end {
            self.entries[index(self.listed.slots()[at])].rank = ENDPOINTS + at as u64;
        }
        for slot in all.iter().zip(&slots).filter(|(_, known)| known.is_none()).map(|(slot, _)| *slot) {
            self.admit(slot, before);
        }
        self.settle_contests(before);
    }

    /// Adds an endpoint; one whose key another of a lower rank has does not count.
    fn admit(&mut self, slot: u32, before: &mut Before) {
        let key = Arc::clone(&self.entries[index(slot)].key);
        match self.by_key.get_mut(&key) {
            None => {
                self.by_key.insert(key, Claim { first: slot, others: Vec::new() });
                self.activate(slot, before);
            }
            Some(claim) => {
                claim.others.push(slot);
                self.contested.insert(Contested::Key(key));
            }
        }
    }

    fn withdraw(&mut self, slot: u32, before: &mut Before) {
        let key = Arc::clone(&self.entries[index(slot)].key);
        if let Some(claim) = self.by_key.get_mut(&key) {
            if claim.first != slot {
                claim.others.retain(|other| *other != slot);
            } else if claim.others.is_empty() {
                self.by_key.remove(&key);
                self.deactivate(slot, before);
            } else {
                let next = claim.others.remove(0);
                claim.first = next;
                self.deactivate(slot, before);
                self.activate(next, before);
            }
        }
        self.entries.remove(index(slot));
    }

    /// Gives what several claim to the one of the lowest rank.
    fn settle_contests(&mut self, before: &mut Before) {
        for contested in std::mem::take(&mut self.contested) {
            let is_contested = match &contested {
                Contested::Key(key) => self.settle_key(key, before),
                Contested::Address(address) => self.settle_address(*address, before),
            };
            if is_contested {
                self.contested.insert(contested);
            }
        }
    }

    fn settle_key(&mut self, key: &Arc<str>, before: &mut Before) -> bool {
        let entries = &self.entries;
        let Some(claim) = self.by_key.get_mut(key) else { return false };
        let had = claim.first;
        claim.sort(entries);
        let (has, is_contested) = (claim.first, !claim.others.is_empty());
        if had != has {
            self.deactivate(had, before);
            self.activate(has, before);
        }
        is_contested
    }

    fn settle_address(&mut self, address: Address, before: &mut Before) -> bool {
        let Some(claim) = self.claims.get_mut(&address) else { return false };
        if claim.others.is_empty() {
            return false;
        }
        before.owners.entry(address).or_insert_with(|| Some(self.entries[index(claim.first)].clone()));
        claim.sort(&self.entries);
        true
    }

    fn activate(&mut self, slot: u32, before: &mut Before) {
        let peer = self.entries[index(slot)].clone();
        for address in addresses_of(&peer) {
            self.note_owner(address, before);
            match self.claims.get_mut(&address) {
                None => _ = self.claims.insert(address, Claim { first: slot, others: Vec::new() }),
                Some(claim) => {
                    claim.others.push(slot);
                    claim.sort(&self.entries);
                    self.contested.insert(Contested::Address(address));
                }
            }
        }
        for label in peer.labels.iter() {
            self.by_label.entry(self.hasher.hash_one((&*label.key, &*label.value))).or_default().insert(slot);
        }
        for port in &peer.named_ports {
            let those = self.ports.entry(port.clone()).or_insert_with(|| {
                before.port_names.insert(port.name.clone());
                BTreeSet::new()
            });
            those.insert(slot);
        }
        if peer.labels.is_world() {
            self.worlds.insert(slot);
        }
        if let Some(id) = peer.id {
            before.locals.entry(id).or_insert(None);
            self.locals.insert(id, slot);
        }
    }

    fn deactivate(&mut self, slot: u32, before: &mut Before) {
        let peer = self.entries[index(slot)].clone();
        for address in addresses_of(&peer) {
            self.note_owner(address, before);
            let Some(claim) = self.claims.get_mut(&address) else { continue };
            if claim.first != slot {
                claim.others.retain(|other| *other != slot);
            } else if claim.others.is_empty() {
                self.claims.remove(&address);
            } else {
                claim.first = claim.others.remove(0);
            }
        }
        for label in peer.labels.iter() {
            let hash = self.hasher.hash_one((&*label.key, &*label.value));
            if let Some(those) = self.by_label.get_mut(&hash) {
                those.remove(&slot);
                if those.is_empty() {
                    self.by_label.remove(&hash);
                }
            }
        }
        for port in &peer.named_ports {
            if let Some(those) = self.ports.get_mut(port) {
                those.remove(&slot);
                if those.is_empty() {
                    self.ports.remove(port);
                    before.port_names.insert(port.name.clone());
                }
            }
        }
        self.worlds.remove(&slot);
        if let Some(id) = peer.id
            && self.locals.get(&id) == Some(&slot)
        {
            self.locals.remove(&id);
            before.locals.entry(id).or_insert(Some(peer));
        }
    }

    fn note_owner(&self, address: Address, before: &mut Before) {
        before.owners.entry(address).or_insert_with(|| self.owner(address).cloned());
    }
}

impl Claim {
    fn sort(&mut self, entries: &Slab<Peer>) {
        let rank = |slot: &u32| entries[index(*slot)].rank;
        self.others.push(self.first);
        self.others.sort_unstable_by_key(rank);
        self.first = self.others.remove(0);
    }
}
