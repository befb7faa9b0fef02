//! The other side of a flow as selectors see it: labels, an address and the names it was learned under.

use std::{net::IpAddr, sync::Arc};

use crate::{
    labels::Labels,
    name::Fqdn,
    rule::{CidrReach, CidrSelector, Entity, PeerSelector, Peers},
};

/// Someone a flow goes to or comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Peer {
    /// Labels; `reserved:world` for whoever is outside the cluster. See [`crate::labels::Labels`].
    pub labels: Arc<Labels>,
    /// The address judged.
    pub address: IpAddr,
    /// Names by which the judged endpoint learned the address and whose TTL has not ended. Empty for pods and nodes.
    pub names: Vec<Fqdn>,
    /// Named ports of the peer: name, protocol and number. Used for egress rules with named ports.
    pub named_ports: Arc<[NamedPort]>,
}

/// A port that an endpoint names in its specification.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct NamedPort {
    /// Lower case.
    pub name: String,
    /// Protocol.
    pub protocol: crate::rule::Transport,
    /// Number.
    pub port: u16,
}

impl Peers {
    /// Whether the other side is one of them.
    pub fn matches(&self, peer: &Peer) -> bool {
        match self {
            Self::Any => true,
            Self::Of(selectors) => selectors.iter().any(|selector| selector.matches(peer)),
        }
    }
}

impl PeerSelector {
    /// Whether it selects the peer. A name never selects a pod or a node, whatever its address was resolved from.
    pub fn matches(&self, peer: &Peer) -> bool {
        match self {
            Self::Labels(selector) => selector.matches(&peer.labels),
            Self::Cidr(cidr) => cidr.matches(peer),
            Self::Name(pattern) => peer.labels.is_world() && peer.names.iter().any(|name| pattern.matches(name)),
            Self::Entity(entity) => entity.matches(&peer.labels),
        }
    }
}

impl CidrSelector {
    /// Whether it selects the peer.
    pub fn matches(&self, peer: &Peer) -> bool {
        let reachable = self.reach == CidrReach::Everything || peer.labels.is_world();
        reachable && self.contains(peer.address)
    }

    /// Whether the address is inside the prefix and in none of its holes. IPv4-mapped addresses count as IPv4.
    pub fn contains(&self, address: IpAddr) -> bool {
        let address = address.to_canonical();
        self.net.contains(&address) && !self.except.iter().any(|hole| hole.contains(&address))
    }
}

impl Entity {
    /// Whether the entity covers a peer with these labels.
    pub fn matches(self, labels: &Labels) -> bool {
        match self {
            Self::All => true,
            Self::None => false,
            Self::Cluster => {
                labels.namespace().is_some() || Self::CLUSTER.iter().any(|part| labels.is_reserved(part.as_str()))
            }
            one => labels.is_reserved(one.as_str()),
        }
    }

    /// What `cluster` stands for beside the pods.
    const CLUSTER: [Self; 7] =
        [Self::Host, Self::RemoteNode, Self::Init, Self::Ingress, Self::Health, Self::Unmanaged, Self::KubeApiserver];
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{labels::LabelSelector, name::NamePattern};

    fn peer(labels: Labels, address: &str, names: &[&str]) -> Peer {
        Peer {
            labels: Arc::new(labels),
            address: address.parse().unwrap(),
            names: names.iter().map(|name| name.parse().unwrap()).collect(),
            named_ports: Arc::new([]),
        }
    }

    fn pod() -> Labels {
        Labels::pod("empire", [("class", "xwing")], [], None)
    }

    #[test]
    fn entities_expand_over_labels() {
        let apiserver = {
            let mut labels = Labels::node(false, []);
            labels.reserve("kube-apiserver");
            labels
        };
        let peers = [
            pod(),
            Labels::reserved("world"),
            Labels::node(true, []),
            Labels::node(false, []),
            apiserver,
            Labels::default(),
        ];
        for (entity, want) in [
            (Entity::All, [true; 6]),
            (Entity::None, [false; 6]),
            (Entity::World, [false, true, false, false, false, false]),
            (Entity::Host, [false, false, true, false, false, false]),
            (Entity::RemoteNode, [false, false, false, true, true, false]),
            (Entity::KubeApiserver, [false, false, false, false, true, false]),
            (Entity::Cluster, [true, false, true, true, true, false]),
        ] {
            let got = peers.each_ref().map(|labels| entity.matches(labels));
            assert_eq!(got, want, "{entity}");
        }
    }

    #[test]
    fn prefixes_of_cilium_stay_outside_the_cluster() {
        let net = "10.0.0.0/8".parse().unwrap();
        let cidr = |reach| CidrSelector::new(net, ["10.96.0.0/12".parse().unwrap()], reach);
        for (labels, address, outside, everything) in [
            (Labels::reserved("world"), "10.1.1.1", true, true),
            (Labels::reserved("world"), "::ffff:10.1.1.1", true, true),
            (Labels::reserved("world"), "10.97.1.1", false, false),
            (Labels::reserved("world"), "11.0.0.1", false, false),
            (Labels::reserved("world"), "fd00::1", false, false),
            (pod(), "10.1.1.1", false, true),
            (Labels::node(true, []), "10.1.1.1", false, true),
        ] {
            let peer = peer(labels, address, &[]);
            assert_eq!(cidr(CidrReach::OutsideCluster).matches(&peer), outside, "{address} {}", peer.labels);
            assert_eq!(cidr(CidrReach::Everything).matches(&peer), everything, "{address} {}", peer.labels);
        }
    }

    #[test]
    fn a_name_never_opens_a_pod() {
        let name = PeerSelector::Name(NamePattern::pattern("*.io").unwrap());
        assert!(name.matches(&peer(Labels::reserved("world"), "192.0.2.1", &["cilium.io"])));
        assert!(!name.matches(&peer(Labels::reserved("world"), "192.0.2.1", &["google.com"])));
        assert!(!name.matches(&peer(pod(), "10.244.0.1", &["cilium.io"])));
    }

    #[test]
    fn an_empty_list_of_peers_is_nobody() {
        let world = peer(Labels::reserved("world"), "192.0.2.1", &[]);
        assert!(Peers::Any.matches(&world));
        assert!(!Peers::Of(vec![]).matches(&world));
        assert!(Peers::Of(vec![PeerSelector::Labels(LabelSelector::default())]).matches(&world));
    }
}
