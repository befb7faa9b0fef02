//! The rule model: what every policy language is translated into, and what engine, proxy and API read.
//!
//! A [`Rule`] is one element of one section (`egress[2]`, `ingressDeny[0]`) of one document. Several rules add up.

mod port_set;

use std::{fmt, ops::RangeInclusive, sync::Arc};

use ipnet::IpNet;

use crate::{l7::L7, labels::LabelSelector, name::NamePattern};

pub use port_set::{NoPorts, PortSet};

/// One element of a policy's section, normalised: namespaces are already part of the selectors.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Rule {
    /// Where it stands, for people.
    pub origin: Arc<Origin>,
    /// The endpoints it applies to.
    pub subject: Subject,
    /// Traffic to or from the subject.
    pub direction: Direction,
    /// Which rules it goes before.
    pub tier: Tier,
    /// What happens to matching flows.
    pub effect: Effect,
    /// Whether its presence makes the subject's default in this direction a denial.
    pub default_deny: bool,
    /// The other side.
    pub peers: Peers,
    /// Ports and protocols.
    pub ports: Ports,
    /// Requests that pass within matching flows; `None` is all. Only rules that allow have it.
    pub l7: Option<Arc<L7>>,
    /// Whether its names open their addresses for connections to themselves alone; `None` is as the settings say.
    pub binding: Option<Binding>,
    /// Ports where bound connections must ask for a name, so that protocols without names do not pass; `None` is as the
    /// settings say.
    pub named_only: Option<PortSet>,
}

impl Rule {
    /// Whether a connection must ask for one of its names, at least as strictly as `binding` says. Rules about DNS are
    /// never bound: a question has no name of its server.
    pub fn is_bound(&self, binding: Binding) -> bool {
        self.binding.is_some_and(|own| own >= binding) && self.may_bind()
    }

    /// Whether a bound connection to this port must ask for a name. Without a set every one must.
    pub fn is_named_only(&self, port: u16) -> bool {
        self.named_only.as_ref().is_none_or(|ports| ports.contains(port))
    }

    /// Whether [`Rule::binding`] means anything here.
    pub fn may_bind(&self) -> bool {
        let names = match &self.peers {
            Peers::Any => false,
            Peers::Of(peers) => peers.iter().any(|peer| matches!(peer, PeerSelector::Name(_))),
        };
        names
            && self.effect == Effect::Allow
            && self.direction == Direction::Egress
            && matches!(self.subject, Subject::Endpoints(_))
            && !matches!(self.l7.as_deref(), Some(L7::Dns(_)))
    }
}

/// What becomes of a connection to an address that a name opened, when it asks for another name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Binding {
    /// It passes.
    Off,
    /// It passes, and is recorded.
    Observe,
    /// It does not pass.
    Enforce,
}

impl Binding {
    /// The words for it.
    pub const WORDS: [(&str, Self); 3] = [("off", Self::Off), ("observe", Self::Observe), ("enforce", Self::Enforce)];
}

/// Where a rule stands: `empire/allow-within-namespace specs[1].egress[0]`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Origin {
    /// Kind of the object, as written.
    pub kind: String,
    /// Namespace; `None` for cluster-wide kinds.
    pub namespace: Option<String>,
    /// Name of the object.
    pub name: String,
    /// Path of the element inside the object.
    pub path: String,
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(namespace) = &self.namespace {
            write!(f, "{namespace}/")?;
        }
        write!(f, "{} {}", self.name, self.path)
    }
}

/// Traffic to (ingress) or from (egress) the subject.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Direction {
    /// To the subject.
    Ingress,
    /// From the subject.
    Egress,
}

/// Who a rule applies to.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Subject {
    /// Endpoints whose labels match.
    Endpoints(LabelSelector),
    /// Nodes (host endpoints) whose labels match.
    Nodes(LabelSelector),
}

/// Order between rules: every tier is decided before the next is looked at.
///
/// The number of the outer tiers is `priority * 1000 + place of the rule in its policy`: lower goes first. Where rules of
/// equal number match, [`Effect::Deny`] goes before [`Effect::Pass`] before [`Effect::Allow`], whatever their order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Tier {
    /// Administrator's rules of ClusterNetworkPolicy: lower number first, the first match decides.
    Admin(u32),
    /// NetworkPolicy, CiliumNetworkPolicy, CiliumClusterwideNetworkPolicy: any denial beats any allowance.
    Normal,
    /// Fallback rules of ClusterNetworkPolicy, where no other rule selects the subject in this direction.
    Baseline(u32),
}

/// What happens to a flow that a rule matches.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Effect {
    /// The flow passes.
    Allow,
    /// The flow is dropped.
    Deny,
    /// [`Tier::Normal`] decides (Admin tier only).
    Pass,
}

/// The other side of a rule.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Peers {
    /// Everybody: the document names no peer.
    Any,
    /// Whoever one of these selects; nobody where the list is empty.
    Of(Vec<PeerSelector>),
}

/// Selects peers. Its `Display` is canonical: equal selectors print the same text, and the text is kept over restarts.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum PeerSelector {
    /// Peers with labels: pods, and with `reserved:` labels nodes, the host and the world.
    Labels(LabelSelector),
    /// Addresses of a prefix.
    Cidr(CidrSelector),
    /// Addresses outside the cluster that a trusted resolver gave for a matching name.
    Name(NamePattern),
    /// A Cilium entity.
    Entity(Entity),
}

impl fmt::Display for PeerSelector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Labels(selector) => selector.fmt(f),
            Self::Cidr(cidr) => cidr.fmt(f),
            Self::Name(pattern) => write!(f, "name {pattern}"),
            Self::Entity(entity) => write!(f, "entity {entity}"),
        }
    }
}

/// A prefix with holes.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct CidrSelector {
    /// The prefix; host bits are zero.
    pub net: IpNet,
    /// Prefixes inside it that are not selected.
    pub except: Vec<IpNet>,
    /// Whether addresses of pods and nodes count.
    pub reach: CidrReach,
}

impl CidrSelector {
    /// A prefix with holes: host bits are cleared, holes sorted.
    pub fn new(net: IpNet, except: impl IntoIterator<Item = IpNet>, reach: CidrReach) -> Self {
        let mut except: Vec<IpNet> = except.into_iter().map(|hole| hole.trunc()).collect();
        except.sort_unstable();
        except.dedup();
        Self { net: net.trunc(), except, reach }
    }
}

impl fmt::Display for CidrSelector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = match self.reach {
            CidrReach::OutsideCluster => "cidr",
            CidrReach::Everything => "ipBlock",
        };
        write!(f, "{kind} {}", self.net)?;
        for (at, hole) in self.except.iter().enumerate() {
            write!(f, "{} {hole}", if at == 0 { " except" } else { "," })?;
        }
        Ok(())
    }
}

/// Which addresses a [`CidrSelector`] can select.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum CidrReach {
    /// Only addresses that belong to no pod and no node (Cilium).
    OutsideCluster,
    /// Every address (`ipBlock` of NetworkPolicy).
    Everything,
}

/// Cilium's entities.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Entity {
    /// Everybody.
    All,
    /// Everything outside the cluster.
    World,
    /// Every pod, node and the host.
    Cluster,
    /// This node.
    Host,
    /// Other nodes.
    RemoteNode,
    /// Endpoints whose labels are not known yet.
    Init,
    /// The ingress proxy.
    Ingress,
    /// Endpoints that are not managed.
    Unmanaged,
    /// Health endpoints.
    Health,
    /// The Kubernetes API server.
    KubeApiserver,
    /// Nobody.
    None,
}

impl Entity {
    /// Every entity, in the order of the documentation.
    pub const EVERY: [Self; 11] = [
        Self::All,
        Self::World,
        Self::Cluster,
        Self::Host,
        Self::RemoteNode,
        Self::Init,
        Self::Ingress,
        Self::Unmanaged,
        Self::Health,
        Self::KubeApiserver,
        Self::None,
    ];

    /// The word a policy document uses.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::All => "all",
            Self::World => "world",
            Self::Cluster => "cluster",
            Self::Host => "host",
            Self::RemoteNode => "remote-node",
            Self::Init => "init",
            Self::Ingress => "ingress",
            Self::Unmanaged => "unmanaged",
            Self::Health => "health",
            Self::KubeApiserver => "kube-apiserver",
            Self::None => "none",
        }
    }
}

impl fmt::Display for Entity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Ports and protocols of a rule.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Ports {
    /// Every protocol and port, ICMP included.
    Any,
    /// Whatever one of these matches; nothing where the list is empty.
    Of(Vec<PortMatch>),
}

/// One alternative of [`Ports`].
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum PortMatch {
    /// Ports of a transport protocol; `0..=65535` is every port.
    Numbers {
        /// Protocol.
        protocol: Transport,
        /// Destination ports, both ends included.
        ports: RangeInclusive16,
    },
    /// A port that the destination endpoint names.
    Named {
        /// Protocol; `None` is any of TCP, UDP and SCTP.
        protocol: Option<Transport>,
        /// Lower case, at most 15 characters (RFC 6335 §5.1).
        name: String,
    },
    /// ICMP of one family and type.
    Icmp {
        /// ICMPv6 (RFC 4443) if true, else ICMP (RFC 792).
        v6: bool,
        /// Type field.
        kind: u8,
    },
}

/// Ports, both ends included; `start <= end`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RangeInclusive16 {
    /// First port.
    pub start: u16,
    /// Last port.
    pub end: u16,
}

impl RangeInclusive16 {
    /// Every port.
    pub const ALL: Self = Self { start: 0, end: u16::MAX };

    /// Whether the port lies inside.
    pub fn contains(self, port: u16) -> bool {
        RangeInclusive::new(self.start, self.end).contains(&port)
    }
}

/// Transport protocols that carry ports.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Transport {
    /// IANA protocol 6.
    Tcp,
    /// IANA protocol 17.
    Udp,
    /// IANA protocol 132.
    Sctp,
}

impl Transport {
    /// All of them: what `ANY` stands for.
    pub const ALL: [Self; 3] = [Self::Tcp, Self::Udp, Self::Sctp];

    /// `TCP`, `UDP` or `SCTP`.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Tcp => "TCP",
            Self::Udp => "UDP",
            Self::Sctp => "SCTP",
        }
    }

    /// IANA protocol number.
    pub const fn number(self) -> u8 {
        match self {
            Self::Tcp => 6,
            Self::Udp => 17,
            Self::Sctp => 132,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::labels::Requirement;

    #[test]
    fn selectors_print_one_canonical_text() {
        let net = |text: &str| text.parse::<IpNet>().unwrap();
        let cidr = |reach| CidrSelector::new(net("10.1.2.3/8"), [net("10.96.0.0/12"), net("10.1.0.0/16")], reach);
        for (selector, want) in [
            (PeerSelector::Labels(LabelSelector::new([Requirement::equals("k8s:org", "empire")])), "{k8s:org=empire}"),
            (PeerSelector::Cidr(cidr(CidrReach::OutsideCluster)), "cidr 10.0.0.0/8 except 10.1.0.0/16, 10.96.0.0/12"),
            (PeerSelector::Cidr(cidr(CidrReach::Everything)), "ipBlock 10.0.0.0/8 except 10.1.0.0/16, 10.96.0.0/12"),
            (PeerSelector::Name(NamePattern::pattern("*.Cilium.io.").unwrap()), "name *.cilium.io"),
            (PeerSelector::Entity(Entity::RemoteNode), "entity remote-node"),
        ] {
            assert_eq!(selector.to_string(), want);
        }
    }
}
