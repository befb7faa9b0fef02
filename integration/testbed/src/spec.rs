//! What a world holds: nodes, namespaces, pods, services, outside hosts and their names.
//!
//! The YAML form is that of `conformance/README.md`.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::Path;

use anyhow::{Context, Result};
use ipnet::IpNet;
use serde::Deserialize;

/// Labels of an object.
pub type Labels = BTreeMap<String, String>;

/// A cluster with its surroundings.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Spec {
    /// Name of the world.
    pub name: String,
    /// Domain of cluster names.
    #[serde(default = "cluster_local")]
    pub cluster_domain: String,
    /// Prefixes that pods have their addresses from.
    #[serde(default, rename = "podCIDRs")]
    pub pod_cidrs: Vec<IpNet>,
    /// Prefixes that services have their addresses from.
    #[serde(default, rename = "serviceCIDRs")]
    pub service_cidrs: Vec<IpNet>,
    /// Nodes. The first is the one that the gate runs on.
    #[serde(default)]
    pub nodes: Vec<NodeSpec>,
    /// Namespaces with their labels.
    #[serde(default)]
    pub namespaces: Vec<NamespaceSpec>,
    /// Pods, all of them on the node that the gate runs on.
    #[serde(default)]
    pub pods: Vec<PodSpec>,
    /// Services.
    #[serde(default)]
    pub services: Vec<ServiceSpec>,
    /// Hosts outside the cluster.
    #[serde(default)]
    pub external: Vec<ExternalSpec>,
    /// Whether the servers outside are the caller's to start: the world starts none, no resolver either.
    #[serde(default)]
    pub bare_outside: bool,
    /// What the resolver behind cluster DNS answers.
    #[serde(default)]
    pub dns: BTreeMap<String, DnsSpec>,
}

/// A node.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct NodeSpec {
    /// Name.
    pub name: String,
    /// Addresses.
    pub ips: Vec<IpAddr>,
    /// Labels.
    #[serde(default)]
    pub labels: Labels,
    /// Whether the API server runs here.
    #[serde(default)]
    pub apiserver: bool,
}

/// A namespace.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NamespaceSpec {
    /// Name.
    pub name: String,
    /// Labels.
    #[serde(default)]
    pub labels: Labels,
}

/// A pod.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct PodSpec {
    /// Name.
    pub name: String,
    /// Namespace.
    pub namespace: String,
    /// Labels.
    #[serde(default)]
    pub labels: Labels,
    /// Service account.
    #[serde(default = "default_account")]
    pub service_account: String,
    /// Node that the description puts it on.
    #[serde(default)]
    pub node: String,
    /// Whether it shares the node's namespace; such pods are not built.
    #[serde(default)]
    pub host_network: bool,
    /// Addresses, at most one of each family.
    pub ips: Vec<IpAddr>,
    /// Ports that it serves.
    #[serde(default)]
    pub ports: Vec<PortSpec>,
    /// Whether its servers are the caller's to start: the world starts none, no resolver either.
    #[serde(default)]
    pub bare: bool,
}

/// A port that a pod serves.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct PortSpec {
    /// Number.
    pub port: u16,
    /// Protocol: `TCP`, `UDP` or `SCTP`.
    #[serde(default)]
    pub protocol: Protocol,
    /// Name, if it has one.
    #[serde(default)]
    pub name: Option<String>,
}

/// A transport protocol.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum Protocol {
    /// RFC 9293.
    #[default]
    Tcp,
    /// RFC 768.
    Udp,
    /// RFC 9260.
    Sctp,
}

impl Protocol {
    /// As Kubernetes writes it.
    pub const fn word(self) -> &'static str {
        match self {
            Self::Tcp => "TCP",
            Self::Udp => "UDP",
            Self::Sctp => "SCTP",
        }
    }
}

/// A service: its name resolves to the addresses of the pods that it selects, as that of a headless service does.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ServiceSpec {
    /// Name.
    pub name: String,
    /// Namespace.
    pub namespace: String,
    /// Virtual addresses.
    #[serde(default, rename = "clusterIPs")]
    pub cluster_ips: Vec<IpAddr>,
    /// Whether it has no virtual address.
    #[serde(default)]
    pub headless: bool,
    /// Its own labels.
    #[serde(default)]
    pub labels: Labels,
    /// Labels of the pods behind it; none means no pod.
    #[serde(default)]
    pub selector: Labels,
    /// Ports.
    #[serde(default)]
    pub ports: Vec<ServicePort>,
    /// Addresses behind it that are no pods.
    #[serde(default)]
    pub backends: Vec<IpAddr>,
}

/// A port of a service.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ServicePort {
    /// Name.
    #[serde(default)]
    pub name: Option<String>,
    /// Number.
    pub port: u16,
    /// Protocol.
    #[serde(default)]
    pub protocol: Protocol,
    /// Number or name on the pod.
    #[serde(default)]
    pub target_port: Option<TargetPort>,
}

/// Where a service port leads.
#[derive(Clone, Debug, Deserialize)]
#[serde(untagged)]
pub enum TargetPort {
    /// A number.
    Number(u16),
    /// The name of a pod's port.
    Name(String),
}

/// A host outside the cluster.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ExternalSpec {
    /// Name in test cases.
    pub name: String,
    /// Addresses.
    pub ips: Vec<IpAddr>,
    /// Names that lead there.
    #[serde(default)]
    pub dns: Vec<String>,
}

/// What the resolver answers for one name.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DnsSpec {
    /// IPv4 addresses.
    #[serde(default, rename = "A")]
    pub a: Vec<std::net::Ipv4Addr>,
    /// IPv6 addresses.
    #[serde(default, rename = "AAAA")]
    pub aaaa: Vec<std::net::Ipv6Addr>,
    /// Another name to go on with.
    #[serde(default, rename = "CNAME")]
    pub cname: Option<String>,
    /// Time to live, seconds.
    #[serde(default = "minute")]
    pub ttl: u32,
}

impl Spec {
    /// The application of the seed article, from `conformance/world-empire.yaml`.
    pub fn empire() -> Result<Self> {
        Self::parse(include_str!("../../../conformance/world-empire.yaml")).context("world-empire.yaml")
    }

    /// Reads a world file.
    pub fn read(path: &Path) -> Result<Self> {
        let text = std::fs::read_to_string(path).with_context(|| format!("reading {}", path.display()))?;
        Self::parse(&text).with_context(|| format!("reading {}", path.display()))
    }

    /// Reads the text of a world file.
    pub fn parse(text: &str) -> Result<Self> {
        Ok(serde_saphyr::from_str(text)?)
    }

    /// Pods that a service leads to.
    pub fn pods_of<'a>(&'a self, service: &'a ServiceSpec) -> impl Iterator<Item = &'a PodSpec> {
        let selects = |pod: &PodSpec| service.selector.iter().all(|(key, value)| pod.labels.get(key) == Some(value));
        let here =
            move |pod: &&PodSpec| pod.namespace == service.namespace && !service.selector.is_empty() && selects(pod);
        self.pods.iter().filter(here)
    }

    /// Keeps only these pods (`namespace/name`): a smaller world is up sooner.
    #[must_use]
    pub fn only(mut self, pods: &[&str]) -> Self {
        self.pods.retain(|pod| pods.contains(&pod.key().as_str()));
        self
    }

    /// Adds a pod.
    #[must_use]
    pub fn with(mut self, pod: PodSpec) -> Self {
        self.pods.push(pod);
        self
    }
}

impl PodSpec {
    /// A pod with addresses and no labels.
    pub fn new(namespace: &str, name: &str, ips: &[IpAddr]) -> Self {
        let (name, namespace, ips) = (name.to_owned(), namespace.to_owned(), ips.to_vec());
        Self { name, namespace, ips, service_account: default_account(), ..Self::default() }
    }

    /// Adds a label.
    #[must_use]
    pub fn label(mut self, key: &str, value: &str) -> Self {
        self.labels.insert(key.to_owned(), value.to_owned());
        self
    }

    /// Adds a port to serve.
    #[must_use]
    pub fn serves(mut self, protocol: Protocol, port: u16) -> Self {
        self.ports.push(PortSpec { port, protocol, name: None });
        self
    }

    /// Leaves its servers to the caller.
    #[must_use]
    pub fn bare(mut self) -> Self {
        self.bare = true;
        self
    }

    /// `namespace/name`.
    pub fn key(&self) -> String {
        format!("{}/{}", self.namespace, self.name)
    }
}

fn cluster_local() -> String {
    "cluster.local".to_owned()
}

fn default_account() -> String {
    "default".to_owned()
}

const fn minute() -> u32 {
    60
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_world_file_is_read_without_an_unknown_key() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../conformance");
        let files: Vec<_> = std::fs::read_dir(folder)
            .unwrap()
            .map(|entry| entry.unwrap().path())
            .filter(|path| path.file_name().unwrap().to_string_lossy().starts_with("world-"))
            .collect();
        assert!(files.len() >= 6, "{files:?}");
        for file in files {
            let world = Spec::read(&file).unwrap_or_else(|error| panic!("{}: {error:#}", file.display()));
            assert!(!world.pods.is_empty() && !world.nodes.is_empty(), "{}", file.display());
        }
    }

    #[test]
    fn a_service_leads_to_the_pods_of_its_namespace_that_it_selects() {
        let world = Spec::empire().unwrap();
        let deathstar = world.services.iter().find(|service| service.name == "deathstar").unwrap();
        let pods: Vec<_> = world.pods_of(deathstar).map(PodSpec::key).collect();
        assert_eq!(pods, ["empire/deathstar-1", "empire/deathstar-2"]);
        let prometheus = world.services.iter().find(|service| service.name == "prometheus").unwrap();
        let pods: Vec<_> = world.pods_of(prometheus).map(PodSpec::key).collect();
        assert_eq!(pods, ["monitoring/prometheus-core"], "a pod with the same labels elsewhere does not count");
    }
}
