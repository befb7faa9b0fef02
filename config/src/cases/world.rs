//! A cluster on paper: nodes, pods, services, hosts outside and what DNS answers.

use std::{
    collections::{BTreeMap, HashSet},
    net::IpAddr,
    sync::Arc,
};

use serde::{Deserialize, de::IgnoredAny};

use super::Place;
use crate::{
    diagnostic::{Diagnostic, Source},
    document::read_as,
    labels::Labels,
    name::Fqdn,
    peer::NamedPort,
    policy,
    rule::Transport,
    services::Target,
};

/// Most aliases followed from one name.
pub(super) const ALIASES_MAX: usize = 10;
/// TTL of names of the cluster, in seconds.
pub(super) const CLUSTER_TTL_S: u64 = 30;
/// Service account of pods that name none.
pub(super) const ACCOUNT: &str = "default";

/// Name of the node that an agent runs on, where its files say no other.
pub(super) const HOST: &str = "host";
/// Suffix of the names of services, where none is given.
pub(super) const CLUSTER_DOMAIN: &str = "cluster.local";

/// A cluster.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct World {
    /// Its name: cases refer to it.
    pub name: String,
    /// Suffix of the names of services.
    #[serde(default = "cluster_domain")]
    pub cluster_domain: String,
    #[serde(default, rename = "podCIDRs")]
    _pod_cidrs: IgnoredAny,
    #[serde(default, rename = "serviceCIDRs")]
    _service_cidrs: IgnoredAny,
    /// Nodes.
    #[serde(default)]
    pub nodes: Vec<Node>,
    /// Namespaces.
    #[serde(default)]
    pub namespaces: Vec<Namespace>,
    /// Pods.
    #[serde(default)]
    pub pods: Vec<Pod>,
    /// Services.
    #[serde(default)]
    pub services: Vec<Service>,
    /// Hosts outside the cluster.
    #[serde(default)]
    pub external: Vec<External>,
    /// What the upstream resolver answers.
    #[serde(default)]
    pub dns: BTreeMap<String, Records>,
}

fn cluster_domain() -> String {
    CLUSTER_DOMAIN.to_owned()
}

/// A node.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Node {
    /// Its name.
    pub name: String,
    /// Its addresses.
    pub ips: Vec<IpAddr>,
    /// Its labels.
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
    /// Whether it runs the Kubernetes API server.
    #[serde(default)]
    pub apiserver: bool,
}

/// A namespace.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Namespace {
    /// Its name.
    pub name: String,
    /// Its labels.
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
}

/// A pod.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct Pod {
    /// Its name.
    pub name: String,
    /// Its namespace.
    pub namespace: String,
    /// Its own labels.
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
    /// Its service account.
    #[serde(default)]
    pub service_account: Option<String>,
    /// Where it runs.
    #[serde(default)]
    pub node: Option<String>,
    /// Whether it has the addresses and labels of its node.
    #[serde(default)]
    pub host_network: bool,
    /// Its addresses.
    pub ips: Vec<IpAddr>,
    /// Ports it serves.
    #[serde(default)]
    pub ports: Vec<Port>,
}

/// A port of a pod.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Port {
    /// Its number.
    pub port: u16,
    /// Its protocol.
    #[serde(default)]
    pub protocol: Protocol,
    /// Its name.
    #[serde(default)]
    pub name: Option<String>,
}

/// Transport protocols as Kubernetes writes them.
#[derive(Clone, Copy, Debug, Default, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "UPPERCASE")]
pub enum Protocol {
    /// TCP.
    #[default]
    Tcp,
    /// UDP.
    Udp,
    /// SCTP.
    Sctp,
}

impl Protocol {
    /// The same in rules.
    pub const fn transport(self) -> Transport {
        match self {
            Self::Tcp => Transport::Tcp,
            Self::Udp => Transport::Udp,
            Self::Sctp => Transport::Sctp,
        }
    }
}

/// A service.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct Service {
    /// Its name.
    pub name: String,
    /// Its namespace.
    pub namespace: String,
    /// Its labels.
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
    /// Its addresses.
    #[serde(default, rename = "clusterIPs")]
    pub cluster_ips: Vec<IpAddr>,
    /// Whether its name resolves to its pods.
    #[serde(default)]
    pub headless: bool,
    /// Labels of the pods behind it.
    #[serde(default)]
    pub selector: BTreeMap<String, String>,
    /// Its ports.
    #[serde(default)]
    pub ports: Vec<ServicePort>,
    /// Addresses outside the cluster behind it.
    #[serde(default)]
    pub backends: Vec<IpAddr>,
}

/// A port of a service.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct ServicePort {
    #[serde(default, rename = "name")]
    pub(super) _name: IgnoredAny,
    /// Its number.
    pub port: u16,
    /// Its protocol.
    #[serde(default)]
    pub protocol: Protocol,
    /// Port of the pods behind it; its own number where left out.
    #[serde(default)]
    pub target_port: Option<TargetPort>,
    /// Who is behind this port, where that is known without labels.
    #[serde(skip)]
    pub(super) targets: Option<Vec<Target>>,
}

/// Port of the pods behind a service.
#[derive(Clone, Debug, Deserialize)]
#[serde(untagged)]
pub enum TargetPort {
    /// A number.
    Number(u16),
    /// A port that each pod names.
    Name(String),
}

/// A host outside the cluster.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct External {
    /// Its name in cases.
    pub name: String,
    /// Its addresses.
    pub ips: Vec<IpAddr>,
    #[serde(default, rename = "dns")]
    _dns: IgnoredAny,
    /// Whether it is the Kubernetes API server.
    #[serde(default)]
    pub apiserver: bool,
}

/// What a name resolves to.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Records {
    /// IPv4 addresses.
    #[serde(default, rename = "A")]
    pub a: Vec<IpAddr>,
    /// IPv6 addresses.
    #[serde(default, rename = "AAAA")]
    pub aaaa: Vec<IpAddr>,
    /// The name that it is an alias of.
    #[serde(default, rename = "CNAME")]
    pub cname: Option<String>,
    /// In seconds.
    pub ttl: u64,
}

/// How a cluster differs from its file.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Changes {
    /// New labels of namespaces.
    #[serde(default)]
    pub namespaces: BTreeMap<String, NewLabels>,
    /// New labels of pods, by `namespace/name`.
    #[serde(default)]
    pub pods: BTreeMap<String, NewLabels>,
    /// Namespaces that are added.
    #[serde(default)]
    pub add_namespaces: Vec<Namespace>,
    /// Pods that are added.
    #[serde(default)]
    pub add_pods: Vec<Pod>,
    /// Namespaces that are gone.
    #[serde(default)]
    pub remove_namespaces: HashSet<String>,
    /// Pods that are gone.
    #[serde(default)]
    pub remove_pods: HashSet<String>,
}

/// Labels that take the place of all others.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NewLabels {
    /// All labels.
    pub labels: BTreeMap<String, String>,
}

/// One end of a flow.
#[derive(Clone, Debug)]
pub struct Side {
    /// How cases name it.
    pub place: Place,
    /// Its address.
    pub address: IpAddr,
    /// What it is.
    pub kind: SideKind,
    /// Ports it names.
    pub named_ports: Arc<[NamedPort]>,
    /// Labels beside those that depend on who looks.
    pub(super) labels: Labels,
}

/// What one end of a flow is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SideKind {
    /// A pod, on the named node.
    Pod(Option<String>),
    /// The named node.
    Host(String),
    /// Outside the cluster.
    World,
}

impl Side {
    /// Its labels as seen from a node: a node is `host` to itself and its pods and `remote-node` to others.
    pub fn labels_from(&self, node: Option<&str>) -> Labels {
        let mut labels = self.labels.clone();
        if let SideKind::Host(own) = &self.kind {
            labels.reserve(if node == Some(own) { "host" } else { "remote-node" });
        }
        labels
    }

    /// The node that it is or runs on.
    pub fn node(&self) -> Option<&str> {
        match &self.kind {
            SideKind::Pod(node) => node.as_deref(),
            SideKind::Host(node) => Some(node),
            SideKind::World => None,
        }
    }
}

/// What a look-up yields.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Resolved {
    /// The name and those that it is an alias of.
    pub names: Vec<Fqdn>,
    /// Addresses of the asked family.
    pub addresses: Vec<IpAddr>,
    /// The smallest on the way, in seconds.
    pub ttl_s: u64,
}

impl World {
    /// Reads a world file.
    pub fn parse(file_name: &str, text: &str) -> Result<Self, Vec<Diagnostic>> {
        read_as(&Source::new(file_name, text)).map_err(|error| vec![error])
    }

    /// The cluster with changes.
    #[must_use]
    pub fn changed(&self, changes: &Changes) -> Self {
        let mut world = self.clone();
        for namespace in &mut world.namespaces {
            if let Some(new) = changes.namespaces.get(&namespace.name) {
                namespace.labels.clone_from(&new.labels);
            }
        }
        for pod in &mut world.pods {
            if let Some(new) = changes.pods.get(&pod.key()) {
                pod.labels.clone_from(&new.labels);
            }
        }
        world.namespaces.extend(changes.add_namespaces.iter().cloned());
        world.pods.extend(changes.add_pods.iter().cloned());
        world.namespaces.retain(|namespace| !changes.remove_namespaces.contains(&namespace.name));
        world.pods.retain(|pod| !changes.remove_pods.contains(&pod.key()));
        world
    }

    /// What policies can refer to.
    pub fn catalog(&self) -> policy::Catalog {
        let service = |service: &Service| policy::Service {
            name: service.name.clone(),
            namespace: service.namespace.clone(),
            labels: service.labels.clone(),
            selector: service.selector.clone(),
            backends: service.backends.clone(),
        };
        policy::Catalog { services: self.services.iter().map(service).collect(), cidr_groups: Vec::new() }
    }
}

impl Pod {
    /// `namespace/name`.
    pub fn key(&self) -> String {
        format!("{}/{}", self.namespace, self.name)
    }

    pub(super) fn named_ports(&self) -> Arc<[NamedPort]> {
        let named = |port: &Port| {
            let name = port.name.as_ref()?.to_ascii_lowercase();
            Some(NamedPort { name, protocol: port.protocol.transport(), port: port.port })
        };
        self.ports.iter().filter_map(named).collect()
    }
}
