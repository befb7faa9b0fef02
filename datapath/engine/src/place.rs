//! The rows of `ADDRESSES` in scope 0: who has an address, and what matches whoever does.

use std::{net::IpAddr, sync::Arc};

use namegate_abi::{Address, AddressKey, AddressValue, Step};
use namegate_config::labels::Labels;

use crate::{
    Engine, Key, MapOp, Row,
    fronts::Front,
    selectors::{Set, TermId, set},
    work::Budget,
};

use foldhash::HashSet;
impl Engine {
    /// Moves addresses to whom they belong now.
    pub(crate) fn move_peers(&mut self, budget: &mut Budget, now: u64, ops: &mut Vec<MapOp>) -> bool {
        while let Some(address) = self.work.moved.pop_first() {
            let before = ops.len();
            self.place_again(address, ops);
            self.work.is_moved |= moves_peers(&ops[before..]);
            if !budget.spend(ops) {
                return false;
            }
        }
        self.hide_learned(now, ops);
        if let Some(services) = self.work.resolvers.take() {
            self.trust(services, ops);
        } else if !self.ready && self.resolvers.is_empty() {
            self.trust(Vec::new(), ops);
        }
        self.trust_again(ops);
        true
    }

    /// Gives an address the row of who has it, or takes it away where nobody of the cluster has it.
    pub(crate) fn place_again(&mut self, address: Address, ops: &mut Vec<MapOp>) {
        if !self.peers.has(address) {
            self.displace(address, ops);
            return;
        }
        let mut terms = self.matching(address);
        let front = self.front(address);
        terms.extend(front);
        self.set_front(address, front);
        let new: Set = set(terms).into();
        self.place(address, &new, ops);
    }

    fn displace(&mut self, address: Address, ops: &mut Vec<MapOp>) {
        self.set_front(address, None);
        self.unplaced.remove(&address);
        self.mirror.delete(Key::Address(node_key(address)), ops);
        if let Some((value, _)) = self.placed.remove(&address) {
            self.release(Some(value));
        }
    }

    /// What matches an address of the cluster; a virtual one has no labels.
    fn matching(&self, address: Address) -> Vec<TermId> {
        let owner = self.peers.owner(address);
        let mut terms = match owner {
            Some(peer) => self.terms.of_peer(&peer.labels, &peer.named_ports),
            None => self.terms.of_peer(&Labels::default(), &[]),
        };
        let outside = owner.is_some_and(|peer| peer.labels.is_world());
        terms.extend(self.terms.of_address(address.to_ip(), outside));
        terms
    }

    /// The number of who is behind the ports of an address, if anybody can be.
    fn front(&mut self, address: Address) -> Option<TermId> {
        let matching = |target: IpAddr| -> Set {
            let target = Address::from(target.to_canonical());
            match self.peers.owner(target) {
                Some(_) => set(self.matching(target)).into(),
                None => self.outside(target.to_ip()).into(),
            }
        };
        let ports = self.peers.front(address)?.iter().map(|(port, behind)| {
            (*port, behind.targets.iter().map(|target| (matching(target.address), target.port)).collect())
        });
        let front = Front::new(ports);
        let id = self.ledger.selector(front.to_string());
        self.terms.fronts.insert(id, front);
        Some(id)
    }

    /// Notes which front an address has.
    fn set_front(&mut self, address: Address, front: Option<TermId>) {
        let old = match front {
            Some(id) => self.front_at.insert(address, id),
            None => self.front_at.remove(&address),
        };
        if let Some(id) = front {
            self.terms.fronts.hold(id);
        }
        if let Some(id) = old {
            self.terms.fronts.release(id);
        }
    }

    /// Forgets fronts that no address has, and no identity stands for.
    pub(crate) fn forget_fronts(&mut self) {
        for id in self.terms.fronts.take_unused() {
            if self.identities.matched_by(id).next().is_none()
                && let Some(front) = self.terms.fronts.remove(id)
            {
                self.ledger.selectors.forget(&front.to_string().into());
            }
        }
    }

    /// Gives an address of the cluster its row, where there is room.
    fn place(&mut self, address: Address, set: &Set, ops: &mut Vec<MapOp>) {
        self.unplaced.insert(address, Arc::clone(set));
        let Some(identity) = self.acquire(set, 0, ops) else { return };
        let peer = self.peers.owner(address);
        let is_here = peer.is_some_and(|peer| peer.local_host);
        let mut value = AddressValue {
            endpoint: peer.and_then(|peer| peer.id).map_or(0, |id| id.0),
            flags: if is_here { namegate_abi::address_flags::LOCAL_HOST } else { 0 },
            ..AddressValue::default()
        };
        value.steps[0] = Step { expires_ns: 0, identity, spare: 0 };
        if !self.mirror.put(Row::Address(node_key(address), value), ops) {
            self.identities.release(identity);
            return;
        }
        self.unplaced.remove(&address);
        let old = self.placed.insert(address, (value, Arc::clone(set)));
        self.release(old.map(|(value, _)| value));
    }

    /// Takes learned rows away where the row of the cluster that should stand above them is missing, and gives them back
    /// where it is there again.
    fn hide_learned(&mut self, now: u64, ops: &mut Vec<MapOp>) {
        if self.hidden.is_empty() && self.unplaced.is_empty() {
            return;
        }
        let hidden: HashSet<Address> = self.unplaced.keys().copied().collect();
        let mut changed: Vec<Address> = self.hidden.symmetric_difference(&hidden).copied().collect();
        changed.sort_unstable();
        self.hidden = hidden;
        for address in changed {
            for row in self.cache.rows_in(address..=address) {
                self.rewrite(row, now, ops);
            }
        }
    }
}

/// Whether one of the writes gives an address of scope 0 to another, or takes it back.
pub(crate) fn moves_peers(ops: &[MapOp]) -> bool {
    let key = |op: &MapOp| match op {
        MapOp::Put(row) => row.key(),
        MapOp::Delete(key) => *key,
    };
    ops.iter().any(|op| matches!(key(op), Key::Address(AddressKey { scope: 0, .. })))
}

pub(crate) const fn node_key(address: Address) -> AddressKey {
    AddressKey { scope: 0, address }
}
