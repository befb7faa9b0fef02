//! Peers as the engine knows them: pods and nodes by address and by label, and services. A new topology is compared with the
//! one before, so that only what differs is looked at.

mod change;
mod services;

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    hash::{BuildHasher, RandomState},
    net::IpAddr,
    ops::Deref,
    sync::Arc,
};

use namegate_abi::Address;
use namegate_config::{labels::LabelSelector, peer::NamedPort};
use slab::Slab;

use crate::{
    EndpointId, TopologyEndpoint, TopologyNode, fronts::Port, label_index::telling, listed::Listed,
    selectors::first_port,
};

pub(crate) use services::Behind;
use services::Fronts;

/// Where ranks of endpoints begin.
const ENDPOINTS: u64 = 1 << 32;

/// A pod or node as a peer.
#[derive(Clone, Debug)]
pub(crate) struct Peer {
    /// As it was handed over; the key of a node is its name.
    source: Arc<TopologyEndpoint>,
    /// Endpoint of this node.
    pub(crate) id: Option<EndpointId>,
    pub(crate) local_host: bool,
    /// Of two that claim an address the one of the lower rank has it: nodes, then endpoints in their order.
    rank: u64,
}

impl Deref for Peer {
    type Target = TopologyEndpoint;

    fn deref(&self) -> &TopologyEndpoint {
        &self.source
    }
}

impl Peer {
    /// As it was handed over.
    pub(crate) const fn source(&self) -> &Arc<TopologyEndpoint> {
        &self.source
    }

    /// Whether it is none of the nodes.
    const fn is_pod(&self) -> bool {
        self.rank >= ENDPOINTS
    }

    fn is_like(&self, other: &Self) -> bool {
        let is_same = Arc::ptr_eq(&self.source, &other.source) || self.source == other.source;
        is_same && self.id == other.id && self.local_host == other.local_host
    }
}

/// Pods and nodes, and who has which address.
#[derive(Debug, Default)]
pub(crate) struct Peers {
    listed: Listed<TopologyEndpoint>,
    nodes: Vec<TopologyNode>,
    node_slots: Vec<u32>,
    entries: Slab<Peer>,
    /// Endpoints by key; the first one counts.
    by_key: HashMap<Arc<str>, Claim>,
    /// Who claims an address; the first one has it.
    claims: BTreeMap<Address, Claim>,
    /// Keys and addresses that more than one claims.
    contested: BTreeSet<Contested>,
    by_label: HashMap<u64, BTreeSet<u32>>,
    hasher: RandomState,
    ports: BTreeMap<NamedPort, BTreeSet<u32>>,
    locals: BTreeMap<EndpointId, u32>,
    /// Peers that count as outside the cluster.
    worlds: BTreeSet<u32>,
    fronts: Fronts,
    /// Further interfaces of endpoints, by their key.
    more_interfaces: HashMap<Arc<str>, Vec<u32>>,
}

/// Those who claim one thing, by rank.
#[derive(Debug)]
struct Claim {
    first: u32,
    others: Vec<u32>,
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Contested {
    Key(Arc<str>),
    Address(Address),
}

/// What differs between two topologies.
#[derive(Debug, Default)]
pub(crate) struct PeerChanges {
    /// Addresses that belong to another than before, or to one that differs, and virtual ones with others behind.
    pub(crate) addresses: BTreeSet<Address>,
    /// Endpoints of this node that came, went or differ.
    pub(crate) locals: BTreeSet<EndpointId>,
    /// This node differs.
    pub(crate) node: bool,
    /// Names of ports that some peer has now, or none any more.
    pub(crate) port_names: BTreeSet<String>,
}

impl Peers {
    /// Who has the address.
    pub(crate) fn owner(&self, address: Address) -> Option<&Peer> {
        self.claims.get(&address).map(|claim| &self.entries[index(claim.first)])
    }

    /// Whether a pod or node has the address, or it is a virtual one.
    pub(crate) fn has(&self, address: Address) -> bool {
        self.claims.contains_key(&address) || self.fronts.get(address).is_some()
    }

    /// Every address of a pod or node, and every virtual one.
    pub(crate) fn addresses(&self) -> impl Iterator<Item = Address> {
        let fronts = self.fronts.iter().map(|(address, _)| *address);
        self.claims.keys().copied().chain(fronts.filter(|address| !self.claims.contains_key(address)))
    }

    /// Ports of a virtual address, and of one of a node, behind which are others.
    pub(crate) fn front(&self, address: Address) -> Option<&BTreeMap<Port, Behind>> {
        self.fronts.get(address)
    }

    /// Every address with ports behind which are others.
    pub(crate) fn fronts(&self) -> impl Iterator<Item = (&Address, &BTreeMap<Port, Behind>)> {
        self.fronts.iter()
    }

    /// Addresses behind a port of which is this one.
    pub(crate) fn fronts_of(&self, target: Address) -> impl Iterator<Item = Address> {
        self.fronts.of_target(target)
    }

    /// Targets of services in a range of addresses.
    pub(crate) fn targets_in(&self, range: std::ops::RangeInclusive<Address>) -> impl Iterator<Item = Address> {
        self.fronts.targets_in(range)
    }

    /// Addresses behind whose ports of DNS, over UDP and TCP, are these resolvers and nobody else.
    pub(crate) fn in_front_of(&self, resolvers: &BTreeSet<IpAddr>) -> Vec<IpAddr> {
        self.fronts.in_front_of(resolvers)
    }

    /// Who is behind a port of an address; `None` where the address speaks for itself.
    pub(crate) fn behind(&self, address: IpAddr, port: Port) -> Option<&Behind> {
        self.fronts.get(Address::from(address.to_canonical()))?.get(&port)
    }

    /// This node itself, where it is known.
    pub(crate) fn node(&self) -> Option<&Peer> {
        self.node_slots.iter().map(|slot| &self.entries[index(*slot)]).find(|peer| peer.local_host)
    }

    /// Interfaces of an endpoint beside its first one.
    pub(crate) fn more_interfaces(&self, peer: &Peer) -> &[u32] {
        self.more_interfaces.get(&peer.key).map_or(&[], Vec::as_slice)
    }

    /// Endpoints of this node.
    pub(crate) fn local(&self) -> impl Iterator<Item = (EndpointId, u32, &Peer)> {
        let peers = self.locals.iter().map(|(id, slot)| (*id, &self.entries[index(*slot)]));
        peers.filter_map(|(id, peer)| Some((id, peer.interface?, peer)))
    }

    /// One of them.
    pub(crate) fn local_of(&self, id: EndpointId) -> Option<&Peer> {
        self.locals.get(&id).map(|slot| &self.entries[index(*slot)])
    }

    /// Peers whose labels match.
    pub(crate) fn matching<'p>(&'p self, selector: &'p LabelSelector) -> impl Iterator<Item = &'p Peer> {
        let candidates: Box<dyn Iterator<Item = u32> + 'p> = match telling(selector) {
            Some((key, values)) => Box::new(values.flat_map(move |value| {
                self.by_label.get(&self.hasher.hash_one((key, value))).into_iter().flatten().copied()
            })),
            None => Box::new(self.active()),
        };
        candidates.map(|slot| &self.entries[index(slot)]).filter(|peer| selector.matches(&peer.labels))
    }

    /// Every peer.
    pub(crate) fn iter(&self) -> impl Iterator<Item = &Peer> {
        self.active().map(|slot| &self.entries[index(slot)])
    }

    fn active(&self) -> impl Iterator<Item = u32> {
        self.node_slots.iter().copied().chain(self.by_key.values().map(|claim| claim.first))
    }

    /// Peers that name a port so.
    pub(crate) fn with_port(&self, port: &NamedPort) -> impl Iterator<Item = &Peer> {
        self.ports.get(port).into_iter().flatten().map(|slot| &self.entries[index(*slot)])
    }

    /// Ports that peers name so.
    pub(crate) fn ports_named<'p>(&'p self, name: &'p str) -> impl Iterator<Item = &'p NamedPort> {
        self.ports.range(first_port(name)..).map(|(port, _)| port).take_while(move |port| port.name == name)
    }

    /// Addresses that a peer has, and no other of a lower rank.
    pub(crate) fn owned<'p>(&'p self, peer: &'p Peer) -> impl Iterator<Item = Address> + 'p {
        let has = |address: &Address| self.owner(*address).is_some_and(|owner| owner.rank == peer.rank);
        addresses_of(peer).filter(has)
    }

    /// Addresses of peers in a range; with `worlds` only of those that count as outside the cluster.
    pub(crate) fn owned_in(
        &self,
        range: std::ops::RangeInclusive<Address>,
        worlds: bool,
    ) -> Box<dyn Iterator<Item = Address> + '_> {
        if worlds {
            let peers = self.worlds.iter().map(|slot| &self.entries[index(*slot)]);
            return Box::new(peers.flat_map(|peer| self.owned(peer)).filter(move |address| range.contains(address)));
        }
        Box::new(self.claims.range(range).map(|(address, _)| *address))
    }

    /// Virtual addresses in a range that no pod or node has.
    pub(crate) fn fronts_in(&self, range: std::ops::RangeInclusive<Address>) -> impl Iterator<Item = Address> {
        self.fronts.in_range(range).filter(|address| !self.claims.contains_key(address))
    }

    /// How often something is claimed that another has.
    pub(crate) fn conflicts(&self) -> u64 {
        let others = |contested: &Contested| match contested {
            Contested::Key(key) => self.by_key.get(key).map_or(0, |claim| claim.others.len()),
            Contested::Address(address) => self.claims.get(address).map_or(0, |claim| claim.others.len()),
        };
        self.contested.iter().map(others).sum::<usize>() as u64 + self.fronts.conflicts()
    }
}

fn addresses_of(peer: &TopologyEndpoint) -> impl Iterator<Item = Address> {
    peer.addresses.iter().map(|address| Address::from(address.to_canonical()))
}

const fn index(slot: u32) -> usize {
    slot as usize
}

fn slot_of(index: usize) -> u32 {
    u32::try_from(index).unwrap_or(u32::MAX)
}
