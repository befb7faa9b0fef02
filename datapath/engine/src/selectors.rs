//! Selectors in force, each with a number, and which of them match a peer: by labels, by address, by name.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    fmt,
    net::IpAddr,
    sync::Arc,
};

use crate::fronts::Fronts;
use ipnet::IpNet;
use namegate_config::{
    labels::{LabelSelector, Labels, Operator, POD_NAMESPACE},
    name::{Fqdn, NamePattern},
    peer::NamedPort,
    rule::{CidrReach, Entity, PeerSelector},
};

/// Number of a selector.
pub(crate) type TermId = u32;

/// The selectors that match a peer, sorted, each once.
pub(crate) type Set = Arc<[TermId]>;

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
    by_id: BTreeMap<TermId, Term>,
    peers: HashMap<PeerSelector, TermId>,
    ports: HashMap<NamedPort, TermId>,
    labels: LabelIndex<TermId>,
    entities: Vec<(Entity, TermId)>,
    cidrs: CidrIndex,
    exact_names: HashMap<Arc<str>, TermId>,
    patterns: Vec<(NamePattern, TermId)>,
    /// Beside the selectors: see [`Fronts`].
    pub(crate) fronts: Fronts,
}

impl Terms {
    pub(crate) fn new(by_id: BTreeMap<TermId, Term>) -> Self {
        let mut terms = Self::default();
        for (&id, term) in &by_id {
            match term {
                Term::Peer(selector) => _ = terms.peers.insert(selector.clone(), id),
                Term::Port(port) => _ = terms.ports.insert(port.clone(), id),
            }
            match term {
                Term::Peer(PeerSelector::Labels(selector)) => terms.labels.insert(selector.clone(), id),
                Term::Peer(PeerSelector::Entity(entity)) => terms.entities.push((*entity, id)),
                Term::Peer(PeerSelector::Cidr(cidr)) => terms.cidrs.insert(cidr.net, &cidr.except, cidr.reach, id),
                Term::Peer(PeerSelector::Name(pattern)) => match pattern.exact() {
                    Some(name) => _ = terms.exact_names.insert(name.into(), id),
                    None => terms.patterns.push((pattern.clone(), id)),
                },
                Term::Port(_) => {}
            }
        }
        terms.by_id = by_id;
        terms
    }

    /// Every selector, by number.
    pub(crate) const fn all(&self) -> &BTreeMap<TermId, Term> {
        &self.by_id
    }

    /// The number of a selector of a rule.
    pub(crate) fn peer(&self, selector: &PeerSelector) -> Option<TermId> {
        self.peers.get(selector).copied()
    }

    /// The number of a port in force.
    pub(crate) fn port_id(&self, port: &NamedPort) -> Option<TermId> {
        self.ports.get(port).copied()
    }

    /// Numbers of the ports in force with this name.
    pub(crate) fn ports_named(&self, name: &str) -> impl Iterator<Item = TermId> {
        self.ports.iter().filter(move |(port, _)| port.name == name).map(|(_, id)| *id)
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
        self.labels.each_match(labels, |id| found.push(*id));
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
        let patterns = self.patterns.iter().filter(|(pattern, _)| pattern.matches(name)).map(|(_, id)| *id);
        self.exact_names.get(name.as_str()).copied().into_iter().chain(patterns).collect()
    }

    /// Every prefix at whose edge selectors begin or end to match, with those that match inside it for the world.
    pub(crate) fn prefixes(&self) -> Vec<(IpNet, Vec<TermId>)> {
        self.cidrs.entries.keys().map(|net| (*net, self.cidrs.of(*net, true))).collect()
    }
}

/// Sorts numbers into a set.
pub(crate) fn set(mut ids: Vec<TermId>) -> Vec<TermId> {
    ids.sort_unstable();
    ids.dedup();
    ids
}

/// Label selectors, found by one value they ask for.
#[derive(Debug)]
pub(crate) struct LabelIndex<T> {
    entries: Vec<(LabelSelector, T)>,
    /// Key, then value, of a requirement that must hold.
    by_value: HashMap<String, HashMap<String, Vec<usize>>>,
    /// Selectors without such a requirement.
    rest: Vec<usize>,
}

impl<T> Default for LabelIndex<T> {
    fn default() -> Self {
        Self { entries: Vec::new(), by_value: HashMap::new(), rest: Vec::new() }
    }
}

impl<T> LabelIndex<T> {
    pub(crate) fn insert(&mut self, selector: LabelSelector, item: T) {
        let at = self.entries.len();
        let values = |operator: &Operator| match operator {
            Operator::In(values) => Some(values.clone()),
            _ => None,
        };
        // Namespaces hold many peers: another label tells more.
        let key = selector
            .requirements()
            .filter_map(|requirement| values(&requirement.operator).map(|values| (&requirement.key, values)))
            .min_by_key(|(key, values)| (*key == POD_NAMESPACE, values.len()));
        match key {
            Some((key, values)) => {
                let by_value = self.by_value.entry(key.clone()).or_default();
                for value in values {
                    by_value.entry(value).or_default().push(at);
                }
            }
            None => self.rest.push(at),
        }
        self.entries.push((selector, item));
    }

    /// Calls `found` for every selector that matches; at most once unless labels repeat a key under two sources.
    pub(crate) fn each_match<'t>(&'t self, labels: &Labels, mut found: impl FnMut(&'t T)) {
        let by_label = labels.iter().filter_map(|label| self.by_value.get(&*label.key)?.get(&*label.value));
        for at in by_label.flatten().chain(&self.rest) {
            let (selector, item) = &self.entries[*at];
            if selector.matches(labels) {
                found(item);
            }
        }
    }
}

/// Prefixes and their holes.
#[derive(Debug, Default)]
struct CidrIndex {
    entries: HashMap<IpNet, Edge>,
    /// Prefix lengths in use: IPv4, IPv6.
    lengths: [BTreeSet<u8>; 2],
}

/// What begins and ends to match at the edge of a prefix.
#[derive(Debug, Default)]
struct Edge {
    nets: Vec<(TermId, CidrReach)>,
    holes: Vec<TermId>,
}

impl CidrIndex {
    fn insert(&mut self, net: IpNet, except: &[IpNet], reach: CidrReach, id: TermId) {
        if let Some(edge) = self.edge(net) {
            edge.nets.push((id, reach));
        }
        for hole in except {
            if let Some(edge) = self.edge(*hole) {
                edge.holes.push(id);
            }
        }
    }

    /// The edge of a prefix; `None` inside `::ffff:0:0/96`, whose addresses count as IPv4.
    fn edge(&mut self, net: IpNet) -> Option<&mut Edge> {
        let net = net.trunc();
        if let IpNet::V6(v6) = net {
            let mapped = MAPPED.contains(&v6);
            if mapped {
                return None;
            }
            if v6.contains(&MAPPED) {
                // IPv4 lies inside this prefix of the trie, and must not get its selectors.
                self.note(IpNet::V4(ipnet::Ipv4Net::default()));
            }
        }
        Some(self.note(net))
    }

    fn note(&mut self, net: IpNet) -> &mut Edge {
        self.lengths[usize::from(matches!(net, IpNet::V6(_)))].insert(net.prefix_len());
        self.entries.entry(net).or_default()
    }

    /// Selectors that contain the whole prefix, as far as no longer prefix is known.
    fn of(&self, net: IpNet, outside: bool) -> Vec<TermId> {
        let mut found = Vec::new();
        let mut holes = Vec::new();
        let lengths = &self.lengths[usize::from(matches!(net, IpNet::V6(_)))];
        for &length in lengths.range(..=net.prefix_len()) {
            let wider = IpNet::new(net.addr(), length).map(|net| net.trunc());
            let Some(edge) = wider.ok().and_then(|net| self.entries.get(&net)) else { continue };
            let reaches = |reach| outside || reach == CidrReach::Everything;
            found.extend(edge.nets.iter().filter(|(_, reach)| reaches(*reach)).map(|(id, _)| *id));
            holes.extend(&edge.holes);
        }
        found.retain(|id| !holes.contains(id));
        found
    }
}

/// IPv4 inside IPv6 (RFC 4291 §2.5.5.2).
const MAPPED: ipnet::Ipv6Net = ipnet::Ipv6Net::new_assert(std::net::Ipv6Addr::new(0, 0, 0, 0, 0, 0xffff, 0, 0), 96);

#[cfg(test)]
mod tests {
    use namegate_config::labels::Requirement;

    use super::*;

    #[test]
    fn the_label_index_finds_what_matches() {
        let selectors = [
            LabelSelector::default(),
            LabelSelector::new([Requirement::equals("k8s:io.kubernetes.pod.namespace", "empire")]),
            LabelSelector::new([
                Requirement::equals("class", "xwing"),
                Requirement::equals("k8s:io.kubernetes.pod.namespace", "empire"),
            ]),
            LabelSelector::new([Requirement::new("class", Operator::DoesNotExist)]),
            LabelSelector::new([Requirement::new("class", Operator::In(["a".into(), "xwing".into()].into()))]),
        ];
        let mut index = LabelIndex::default();
        for (at, selector) in selectors.iter().enumerate() {
            index.insert(selector.clone(), at);
        }
        for labels in [
            Labels::pod("empire", [("class", "xwing")], [], None),
            Labels::pod("rebels", [("class", "a")], [], None),
            Labels::pod("empire", [], [], None),
            Labels::reserved("world"),
        ] {
            let mut got = Vec::new();
            index.each_match(&labels, |at| got.push(*at));
            got.sort_unstable();
            let want: Vec<usize> = (0..selectors.len()).filter(|at| selectors[*at].matches(&labels)).collect();
            assert_eq!(got, want, "{labels}");
        }
    }

    #[test]
    fn every_ipv6_prefix_leaves_ipv4_alone() {
        let mut index = CidrIndex::default();
        index.insert("::/0".parse().unwrap(), &["2001:db8::/32".parse().unwrap()], CidrReach::OutsideCluster, 1);
        index.insert("::ffff:10.0.0.0/104".parse().unwrap(), &[], CidrReach::OutsideCluster, 2);
        for (net, want) in
            [("0.0.0.0/0", vec![]), ("10.0.0.0/8", vec![]), ("fd00::/8", vec![1]), ("2001:db8::/64", vec![])]
        {
            assert_eq!(index.of(net.parse().unwrap(), true), want, "{net}");
        }
        assert!(index.entries.contains_key(&"0.0.0.0/0".parse().unwrap()));
    }
}
