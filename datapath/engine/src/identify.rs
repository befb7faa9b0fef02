//! Identities of addresses, prefixes and names where selectors come and go.

use std::sync::Arc;

use ipnet::IpNet;
use namegate_abi::{Address, CidrKey, CidrValue};
use namegate_config::labels::Labels;

use crate::{
    Engine, Key, MapOp, Row,
    selectors::{Set, TermId, set},
    update::scope_of,
    work::{Budget, NetKey},
};

impl Engine {
    /// Gives addresses of the cluster, prefixes and learned addresses that selectors match otherwise their identities.
    pub(crate) fn identify(&mut self, budget: &mut Budget, now: u64, ops: &mut Vec<MapOp>) -> bool {
        while let Some(address) = self.work.places.pop_first() {
            // One that also goes to another gets its row where that is noted, after this stage.
            if self.work.moved.contains(&address) {
                continue;
            }
            let was_missing = self.unplaced.contains_key(&address);
            self.place_again(address, ops);
            self.work.is_moved |= was_missing && !self.unplaced.contains_key(&address);
            if !budget.spend(ops) {
                return false;
            }
        }
        while let Some(net) = self.work.nets.pop_first() {
            let before = ops.len();
            self.write_net(net, ops);
            self.work.has_put_prefix |= ops[before..].iter().any(|op| matches!(op, MapOp::Put(Row::Cidr(..))));
            if !budget.spend(ops) {
                return false;
            }
        }
        while let Some(name) = self.work.names.pop_front() {
            if let Some(name_text) = self.cache.names.find(name) {
                let terms = self.terms.of_name(name_text);
                let scope = self.settings.dns.scope;
                self.cache.set_terms(name, terms, |id| scope_of(scope, id), &mut self.work.rows);
            }
            if !budget.spend(ops) {
                return false;
            }
        }
        while let Some(row) = self.work.rows.pop_first() {
            self.rewrite(row, now, ops);
            if !budget.spend(ops) {
                return false;
            }
        }
        true
    }

    /// Queues what the selectors that came match.
    pub(crate) fn refine(&mut self) {
        let entered = std::mem::take(&mut self.work.entered);
        for id in &entered {
            self.touch(*id);
        }
        if !entered.is_empty() || !self.ready {
            self.find_world();
        }
    }

    /// Takes the selectors out of force that nothing uses, and queues what they match.
    pub(crate) fn coarsen(&mut self) {
        let leaving = std::mem::take(&mut self.work.leaving);
        for id in &leaving {
            self.touch(*id);
        }
        for id in &leaving {
            if let Some(term) = self.terms.get(*id) {
                self.ledger.selectors.forget(&term.to_string().into());
            }
            self.terms.remove(*id);
        }
        if !leaving.is_empty() {
            self.find_world();
        }
    }

    /// Finds what matches everybody outside the cluster; where that is another set than before, everything outside is
    /// queued, and who is matched as those outside were or are.
    fn find_world(&mut self) {
        let world = set(self.terms.of_peer(&Labels::reserved("world"), &[]));
        if *world == **self.identities.world() {
            return;
        }
        let is_alike = |set: &Set| **set == *world || **set == **self.identities.world();
        let alike = self.placed.iter().filter(|(_, (_, set))| is_alike(set)).map(|(address, _)| *address);
        self.work.places.extend(alike);
        self.identities.set_world(world.into());
        self.work.nets.extend(self.terms.cidrs.edges().map(prefix_of));
        self.work.rows.extend(self.cache.rows.keys());
        self.work.places.extend(self.peers.fronts().map(|(address, _)| *address));
    }

    /// Gives the row of a prefix the identity of what matches its addresses, or removes it.
    fn write_net(&mut self, (prefix, key): NetKey, ops: &mut Vec<MapOp>) {
        let net = net_of((prefix, key));
        if !self.terms.cidrs.has(net) {
            self.nets.remove(&(prefix, key));
            self.unprefixed.remove(&(prefix, key));
            self.mirror.delete(Key::Cidr(prefix, key), ops);
            if let Some(old) = self.cidrs.remove(&(prefix, key)) {
                self.identities.release(old);
            }
            return;
        }
        let mut terms = self.terms.cidrs.of(net, true);
        terms.extend(self.identities.world().iter());
        let terms = set(terms);
        self.nets.insert((prefix, key), terms.as_slice().into());
        if self.write_prefix(prefix, key, &terms, ops) {
            self.unprefixed.remove(&(prefix, key));
        } else {
            self.unprefixed.insert((prefix, key));
        }
    }

    fn write_prefix(&mut self, prefix: u32, key: CidrKey, terms: &[TermId], ops: &mut Vec<MapOp>) -> bool {
        if let Some(namespace) = self.above_share.get(&(prefix, key)).map(Arc::clone) {
            self.refuse_in("limits.cidrsPerNamespace", &namespace);
            return false;
        }
        let Some(identity) = self.acquire(terms, 0, ops) else { return false };
        if !self.mirror.put(Row::Cidr(prefix, key, CidrValue { identity }), ops) {
            self.identities.release(identity);
            return false;
        }
        if let Some(old) = self.cidrs.insert((prefix, key), identity) {
            self.identities.release(old);
        }
        true
    }
}

/// Key of the row of a prefix.
pub(crate) fn prefix_of(net: IpNet) -> NetKey {
    let bits = u32::from(net.prefix_len());
    let prefix = if net.addr().is_ipv4() { bits + Address::V4_PREFIX_BITS } else { bits };
    (prefix, CidrKey { address: net.network().into() })
}

/// The prefix of a row.
fn net_of((prefix, key): NetKey) -> IpNet {
    let address = key.address.to_ip();
    let length = if address.is_ipv4() { prefix.saturating_sub(Address::V4_PREFIX_BITS) } else { prefix };
    IpNet::new(address, u8::try_from(length).unwrap_or(u8::MAX)).unwrap_or_else(|_| address.into())
}
