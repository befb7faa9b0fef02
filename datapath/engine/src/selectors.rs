//! Selectors in force, each with a number, and which of them match a peer: by labels, by address, by name.

use std::{collections::BTreeMap, fmt, net::IpAddr};

use foldhash::HashMap;
use ipnet::IpNet;
use namegate_config::{
    labels::Labels,
    name::{Fqdn, NameIndex},
    peer::NamedPort,
    rule::{Entity, PeerSelector},
};

pub(crate) use crate::terms::{Set, TermId};
use crate::{cidr_index::CidrIndex, fronts::Fronts, label_index::LabelIndex};

/// What can tell peers apart.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Term {
    /// A selector of a rule.
    Peer(PeerSelector),
    /// A port of the peer whose name an egress rule uses.
    Port(NamedPort),
}

impl fmt::Display for Term {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Peer(selector) => selector.fmt(f),
            Self::Port(port) => write!(f, "port {} {} {}", port.name, port.protocol.as_str(), port.port),
        }
    }
}

/// The selectors in force, indexed by what they look at.
#[derive(Debug, Default)]
pub(crate) struct Terms {
    by_id: HashMap<TermId, Term>,
    peers: HashMap<PeerSelector, TermId>,
    ports: BTreeMap<NamedPort, TermId>,
    labels: LabelIndex<TermId>,
    entities: Vec<(Entity, TermId)>,
    pub(crate) cidrs: CidrIndex,
    names: NameIndex<TermId>,
    /// Beside the selectors: see [`Fronts`].
    pub(crate) fronts: Fronts,
}

impl Terms {
    /// Puts a selector in force.
    pub(crate) fn insert(&mut self, id: TermId, term: Term) {
        match &term {
            Term::Peer(selector) => _ = self.peers.insert(selector.clone(), id),
            Term::Port(port) => _ = self.ports.insert(port.clone(), id),
        }
        match &term {
            Term::Peer(PeerSelector::Labels(selector)) => self.labels.insert(selector, id),
            Term::Peer(PeerSelector::Entity(entity)) => self.entities.push((*entity, id)),
            Term::Peer(PeerSelector::Cidr(cidr)) => self.cidrs.insert(cidr, id),
            Term::Peer(PeerSelector::Name(pattern)) => self.names.insert(pattern, id),
            Term::Port(_) => {}
        }
        self.by_id.insert(id, term);
    }

    /// Takes a selector out of force.
    pub(crate) fn remove(&mut self, id: TermId) {
        let Some(term) = self.by_id.remove(&id) else { return };
        match &term {
            Term::Peer(selector) => _ = self.peers.remove(selector),
            Term::Port(port) => _ = self.ports.remove(port),
        }
        match &term {
            Term::Peer(PeerSelector::Labels(selector)) => self.labels.remove(selector, id),
            Term::Peer(PeerSelector::Entity(_)) => self.entities.retain(|(_, known)| *known != id),
            Term::Peer(PeerSelector::Cidr(cidr)) => self.cidrs.remove(cidr, id),
            Term::Peer(PeerSelector::Name(pattern)) => self.names.remove(pattern, id),
            Term::Port(_) => {}
        }
    }

    /// The selector that a number stands for.
    pub(crate) fn get(&self, id: TermId) -> Option<&Term> {
        self.by_id.get(&id)
    }

    /// The number of a selector of a rule.
    pub(crate) fn peer(&self, selector: &PeerSelector) -> Option<TermId> {
        self.peers.get(selector).copied()
    }

    /// Ports in force with this name, and their numbers.
    pub(crate) fn ports_named<'t>(&'t self, name: &'t str) -> impl Iterator<Item = (&'t NamedPort, TermId)> {
        let all = self.ports.range(first_port(name)..).map(|(port, id)| (port, *id));
        all.take_while(move |(port, _)| port.name == name)
    }

    /// Whether the number stands for a name.
    pub(crate) fn is_name(&self, id: TermId) -> bool {
        matches!(self.by_id.get(&id), Some(Term::Peer(PeerSelector::Name(_))))
    }

    /// The port that a number stands for.
    pub(crate) fn port(&self, id: TermId) -> Option<&NamedPort> {
        match self.by_id.get(&id) {
            Some(Term::Port(port)) => Some(port),
            _ => None,
        }
    }

    /// Selectors that match labels, and ports that are in force.
    pub(crate) fn of_peer(&self, labels: &Labels, ports: &[NamedPort]) -> Vec<TermId> {
        let mut found = Vec::new();
        self.labels.each_match(labels, |id| found.push(id));
        found.extend(self.entities.iter().filter(|(entity, _)| entity.matches(labels)).map(|(_, id)| *id));
        found.extend(ports.iter().filter_map(|port| self.ports.get(port)));
        found
    }

    /// Selectors of prefixes that contain the address of somebody inside or outside the cluster.
    pub(crate) fn of_address(&self, address: IpAddr, outside: bool) -> Vec<TermId> {
        let address = address.to_canonical();
        self.cidrs.of(IpNet::from(address), outside)
    }

    /// Selectors of names that match.
    pub(crate) fn of_name(&self, name: &Fqdn) -> Vec<TermId> {
        let mut found = Vec::new();
        self.names.each_match(name, |id| found.push(id));
        set(found)
    }
}

/// The least port with a name, in the order of ports.
pub(crate) fn first_port(name: &str) -> NamedPort {
    NamedPort { name: name.to_owned(), protocol: namegate_config::rule::Transport::Tcp, port: 0 }
}

/// Sorts numbers into a set.
pub(crate) fn set(mut ids: Vec<TermId>) -> Vec<TermId> {
    ids.sort_unstable();
    ids.dedup();
    ids
}
