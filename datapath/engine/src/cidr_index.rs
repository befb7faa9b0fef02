//! Prefixes of selectors and the holes in them: which selectors contain an address, and which edges lie in a prefix.

use std::collections::BTreeMap;

use ipnet::IpNet;
use namegate_config::rule::{CidrReach, CidrSelector};

use crate::terms::TermId;

/// Selectors of prefixes.
#[derive(Debug, Default)]
pub(crate) struct CidrIndex {
    /// Edges in the order of their network, then of their length: those inside a prefix stand in a row.
    edges: BTreeMap<IpNet, Edge>,
    /// Prefix lengths in use, and by how many edges: IPv4, IPv6.
    lengths: [BTreeMap<u8, usize>; 2],
}

/// What begins and ends to match at the edge of a prefix.
#[derive(Debug, Default)]
struct Edge {
    nets: Vec<(TermId, CidrReach)>,
    holes: Vec<TermId>,
    /// Prefixes of IPv6 around the mapped addresses, for which this edge stands.
    around: usize,
}

impl CidrIndex {
    /// Adds a selector.
    pub(crate) fn insert(&mut self, selector: &CidrSelector, id: TermId) {
        self.change(selector.net, |edge| edge.nets.push((id, selector.reach)), |around| *around += 1);
        for hole in &selector.except {
            self.change(*hole, |edge| edge.holes.push(id), |around| *around += 1);
        }
    }

    /// Removes a selector that was added.
    pub(crate) fn remove(&mut self, selector: &CidrSelector, id: TermId) {
        let less = |around: &mut usize| *around = around.saturating_sub(1);
        self.change(selector.net, |edge| edge.nets.retain(|(known, _)| *known != id), less);
        for hole in &selector.except {
            self.change(*hole, |edge| edge.holes.retain(|known| *known != id), less);
        }
    }

    /// Changes the edge of a prefix; none inside `::ffff:0:0/96`, whose addresses count as IPv4.
    fn change(&mut self, net: IpNet, change: impl FnOnce(&mut Edge), around: impl FnOnce(&mut usize)) {
        let net = net.trunc();
        if is_mapped(net) {
            return;
        }
        if holds_mapped(net) {
            // IPv4 lies inside this prefix of the trie, and must not get its selectors.
            self.change_edge(IpNet::V4(ipnet::Ipv4Net::default()), |edge| around(&mut edge.around));
        }
        self.change_edge(net, change);
    }

    fn change_edge(&mut self, net: IpNet, change: impl FnOnce(&mut Edge)) {
        let lengths = &mut self.lengths[usize::from(matches!(net, IpNet::V6(_)))];
        let edge = self.edges.entry(net).or_insert_with(|| {
            *lengths.entry(net.prefix_len()).or_default() += 1;
            Edge::default()
        });
        change(edge);
        if !(edge.nets.is_empty() && edge.holes.is_empty() && edge.around == 0) {
            return;
        }
        self.edges.remove(&net);
        if let Some(count) = lengths.get_mut(&net.prefix_len()) {
            *count -= 1;
            if *count == 0 {
                lengths.remove(&net.prefix_len());
            }
        }
    }

    /// Whether selectors begin or end to match at the edge of the prefix.
    pub(crate) fn has(&self, net: IpNet) -> bool {
        self.edges.contains_key(&net)
    }

    /// Every edge.
    pub(crate) fn edges(&self) -> impl Iterator<Item = IpNet> {
        self.edges.keys().copied()
    }

    /// The edges inside a prefix, its own among them, and the one that stands for IPv4 in a prefix of IPv6.
    pub(crate) fn edges_in(&self, net: IpNet) -> impl Iterator<Item = IpNet> {
        let net = net.trunc();
        let first = IpNet::new(net.network(), 0).unwrap_or(net);
        let inside =
            self.edges.range(first..).map(|(edge, _)| *edge).take_while(move |edge| net.contains(&edge.network()));
        let of_v4 = holds_mapped(net).then(|| IpNet::V4(ipnet::Ipv4Net::default())).filter(|net| self.has(*net));
        inside.filter(move |edge| net.contains(edge)).chain(of_v4)
    }

    /// Selectors that contain the whole prefix, as far as no longer prefix is known.
    pub(crate) fn of(&self, net: IpNet, outside: bool) -> Vec<TermId> {
        let mut found = Vec::new();
        let mut holes = Vec::new();
        let lengths = &self.lengths[usize::from(matches!(net, IpNet::V6(_)))];
        for &length in lengths.range(..=net.prefix_len()).map(|(length, _)| length) {
            let wider = IpNet::new(net.addr(), length).map(|net| net.trunc());
            let Some(edge) = wider.ok().and_then(|net| self.edges.get(&net)) else { continue };
            let reaches = |reach| outside || reach == CidrReach::Everything;
            found.extend(edge.nets.iter().filter(|(_, reach)| reaches(*reach)).map(|(id, _)| *id));
            holes.extend(&edge.holes);
        }
        holes.sort_unstable();
        found.retain(|id| holes.binary_search(id).is_err());
        found
    }
}

/// IPv4 inside IPv6 (RFC 4291 §2.5.5.2).
const MAPPED: ipnet::Ipv6Net = ipnet::Ipv6Net::new_assert(std::net::Ipv6Addr::new(0, 0, 0, 0, 0, 0xffff, 0, 0), 96);

/// Whether the prefix lies among the mapped addresses.
fn is_mapped(net: IpNet) -> bool {
    matches!(net, IpNet::V6(v6) if MAPPED.contains(&v6))
}

/// Whether the mapped addresses lie in the prefix.
fn holds_mapped(net: IpNet) -> bool {
    matches!(net, IpNet::V6(v6) if v6.contains(&MAPPED))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn selector(net: &str, except: &[&str]) -> CidrSelector {
        let except = except.iter().map(|hole| hole.parse().unwrap());
        CidrSelector::new(net.parse().unwrap(), except, CidrReach::OutsideCluster)
    }

    #[test]
    fn every_ipv6_prefix_leaves_ipv4_alone() {
        let mut index = CidrIndex::default();
        let all = selector("::/0", &["2001:db8::/32"]);
        index.insert(&all, 1);
        index.insert(&selector("::ffff:10.0.0.0/104", &[]), 2);
        for (net, want) in
            [("0.0.0.0/0", vec![]), ("10.0.0.0/8", vec![]), ("fd00::/8", vec![1]), ("2001:db8::/64", vec![])]
        {
            assert_eq!(index.of(net.parse().unwrap(), true), want, "{net}");
        }
        assert!(index.has("0.0.0.0/0".parse().unwrap()));
        index.remove(&all, 1);
        assert!(index.edges.is_empty() && index.lengths.iter().all(BTreeMap::is_empty));
    }

    #[test]
    fn edges_inside_a_prefix_stand_in_a_row() {
        let mut index = CidrIndex::default();
        index.insert(&selector("10.0.0.0/8", &["10.1.0.0/16"]), 1);
        index.insert(&selector("10.0.0.0/16", &[]), 2);
        index.insert(&selector("11.0.0.0/8", &[]), 3);
        index.insert(&selector("0.0.0.0/0", &[]), 4);
        let inside = |net: &str| index.edges_in(net.parse().unwrap()).map(|net| net.to_string()).collect::<Vec<_>>();
        assert_eq!(inside("10.0.0.0/8"), ["10.0.0.0/8", "10.0.0.0/16", "10.1.0.0/16"]);
        assert_eq!(inside("10.0.0.0/16"), ["10.0.0.0/16"]);
        assert_eq!(inside("0.0.0.0/0").len(), 5);
    }
}
