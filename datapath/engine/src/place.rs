//! The rows of `ADDRESSES` in scope 0: who has an address, and what matches whoever does.

use std::{
    cell::OnceCell,
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    net::IpAddr,
    sync::Arc,
};

use namegate_abi::{Address, AddressKey, AddressValue, Step};
use namegate_config::labels::Labels;

use crate::{
    Engine, Key, MapOp, Row,
    fronts::Front,
    selectors::{Set, TermId, Terms, set},
    topology::{Peers, Who},
};

/// What matches the labels and ports of each of [`Peers::all`], where that was looked at.
type OfLabels = Vec<OnceCell<Vec<TermId>>>;

impl Engine {
    /// Gives these addresses of peers their rows.
    fn place_all(&mut self, addresses: BTreeSet<Address>, peers: &Peers, ops: &mut Vec<MapOp>) {
        let of_labels: OfLabels = peers.all.iter().map(|_| OnceCell::new()).collect();
        let mut known: HashMap<Address, Set> = HashMap::new();
        for address in addresses {
            let who = peers.owner(address);
            let mut terms = self.matching(address, peers, &of_labels);
            terms.extend(self.front(address, peers, &of_labels, &mut known));
            let new: Set = set(terms).into();
            self.place(address, who, &new, ops);
        }
    }

    /// Gives the addresses of peers their rows after selectors came and went: those whose row may become another.
    /// `more` are the new selectors.
    pub(crate) fn place_again(&mut self, more: &Terms, gone: &[TermId], is_same_world: bool, ops: &mut Vec<MapOp>) {
        let peers = std::mem::take(&mut self.peers);
        let matched: Vec<bool> =
            peers.all.iter().map(|who| !more.of_peer(&who.labels, &who.named_ports).is_empty()).collect();
        let stays = |address: Address, at: usize| {
            let more_nets = || more.of_address(address.to_ip(), peers.all[at].labels.is_world());
            let held = self.row_stands(address).filter(|_| is_same_world && !matched[at] && more_nets().is_empty());
            held.is_some_and(|set| !gone.iter().any(|term| set.binary_search(term).is_ok()))
        };
        let owned = peers.owners.iter().filter(|(address, at)| !stays(**address, **at)).map(|(address, _)| address);
        let addresses = owned.chain(peers.fronts.keys()).copied().collect();
        self.place_all(addresses, &peers, ops);
        self.peers = peers;
    }

    /// What matches an address, where its row is as it should be and nobody was behind a port of it.
    fn row_stands(&self, address: Address) -> Option<&Set> {
        let is_sure = !self.unsure
            && self.doubt.is_none()
            && !self.unplaced.contains_key(&address)
            && !self.peers.fronts.contains_key(&address);
        self.placed.get(&address).filter(|_| is_sure).map(|(_, set)| set)
    }

    /// What matches an address of the cluster; a virtual one has no labels.
    fn matching(&self, address: Address, peers: &Peers, of_labels: &OfLabels) -> Vec<TermId> {
        let of_peer = |who: &Who| self.terms.of_peer(&who.labels, &who.named_ports);
        let mut terms = match peers.owners.get(&address) {
            Some(at) => of_labels[*at].get_or_init(|| of_peer(&peers.all[*at])).clone(),
            None => self.terms.of_peer(&Labels::default(), &[]),
        };
        let outside = peers.owner(address).is_some_and(|who| who.labels.is_world());
        terms.extend(self.terms.of_address(address.to_ip(), outside));
        terms
    }

    /// The number of who is behind the ports of an address, if anybody can be.
    fn front(
        &mut self,
        address: Address,
        peers: &Peers,
        of_labels: &OfLabels,
        known: &mut HashMap<Address, Set>,
    ) -> Option<TermId> {
        let mut matching = |target: IpAddr| {
            let target = Address::from(target.to_canonical());
            let of_target = || match peers.owner(target) {
                Some(_) => set(self.matching(target, peers, of_labels)).into(),
                None => self.outside(target.to_ip()).into(),
            };
            Arc::clone(known.entry(target).or_insert_with(of_target))
        };
        let ports = peers.fronts.get(&address)?.iter().map(|(port, behind)| {
            (*port, behind.targets.iter().map(|target| (matching(target.address), target.port)).collect())
        });
        let front = Front::new(ports);
        let id = self.ledger.selector(front.to_string());
        self.terms.fronts.insert(id, front);
        Some(id)
    }

    /// Gives an address of the cluster its row, where there is room.
    fn place(&mut self, address: Address, who: Option<&Who>, set: &Set, ops: &mut Vec<MapOp>) {
        self.unplaced.insert(address, Arc::clone(set));
        let Some(identity) = self.acquire(set, 0, ops) else { return };
        let is_here = who.is_some_and(|who| who.local_host);
        let mut value = AddressValue {
            endpoint: who.and_then(|who| who.id).map_or(0, |id| id.0),
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

    /// Moves to a new topology.
    pub(crate) fn move_peers(&mut self, peers: Peers, ops: &mut Vec<MapOp>) {
        let stays = |address: &Address, at: usize| {
            self.peers.owner(*address) == Some(&peers.all[at]) && self.row_stands(*address).is_some()
        };
        let owned = peers.owners.iter().filter(|(address, at)| !stays(address, **at)).map(|(address, _)| address);
        let addresses = owned.chain(peers.fronts.keys()).copied().collect();
        self.place_all(addresses, &peers, ops);
        let is_gone = |address: &&Address| !peers.owners.contains_key(*address) && !peers.fronts.contains_key(*address);
        let gone: Vec<Address> = self.placed.keys().filter(is_gone).copied().collect();
        self.unplaced.retain(|address, _| peers.owners.contains_key(address) || peers.fronts.contains_key(address));
        for address in gone {
            self.mirror.delete(Key::Address(node_key(address)), ops);
            if let Some((value, _)) = self.placed.remove(&address) {
                self.release(Some(value));
            }
        }
        self.peers = peers;
    }

    /// Gives the addresses whose row found no room their rows.
    pub(crate) fn place_missing(&mut self, ops: &mut Vec<MapOp>) {
        let missing: BTreeMap<Address, Set> =
            self.unplaced.iter().map(|(address, set)| (*address, Arc::clone(set))).collect();
        let peers = std::mem::take(&mut self.peers);
        for (address, set) in missing {
            self.place(address, peers.owner(address), &set, ops);
        }
        self.peers = peers;
    }

    /// Takes learned rows away where the row of the cluster that should stand above them is missing, and gives them back
    /// where it is there again.
    pub(crate) fn hide_learned(&mut self, now: u64, ops: &mut Vec<MapOp>) {
        let hidden: HashSet<Address> = self.unplaced.keys().copied().collect();
        let changed: BTreeSet<Address> = self.hidden.symmetric_difference(&hidden).copied().collect();
        self.hidden = hidden;
        let scopes: BTreeSet<u32> = self.cache.endpoints.keys().map(|id| self.scope(*id)).collect();
        for address in changed {
            for scope in &scopes {
                self.rewrite(AddressKey { scope: *scope, address }, now, ops);
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
