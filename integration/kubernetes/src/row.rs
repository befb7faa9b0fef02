//! What is remembered of an object, and how it is taken from what the API server sends. Pure.

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr},
    sync::{Arc, OnceLock},
};

use kube::core::{DynamicObject, ObjectMeta};
use namegate_config::{endpoints::Endpoint, peer::NamedPort, rule::Transport};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use crate::{service, wire};

/// Annotation of the object that stands for a pod of the kubelet's own folder; its value is the pod's real uid.
const MIRROR: &str = "kubernetes.io/config.mirror";
/// Begins the annotations that say something about a policy.
const OWN: &str = "namegate.io/";

/// The kinds that are watched.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub(crate) enum Kind {
    Pod,
    Namespace,
    Node,
    Service,
    EndpointSlice,
    NetworkPolicy,
    CiliumNetworkPolicy,
    CiliumClusterwideNetworkPolicy,
    CiliumCIDRGroup,
    ClusterNetworkPolicy,
}

impl Kind {
    /// Every kind.
    pub(crate) const ALL: [Self; 10] = [
        Self::Pod,
        Self::Namespace,
        Self::Node,
        Self::Service,
        Self::EndpointSlice,
        Self::NetworkPolicy,
        Self::CiliumNetworkPolicy,
        Self::CiliumClusterwideNetworkPolicy,
        Self::CiliumCIDRGroup,
        Self::ClusterNetworkPolicy,
    ];

    /// Whether its objects are policies, or what policies refer to by name.
    pub(crate) const fn is_policy(self) -> bool {
        !matches!(self, Self::Pod | Self::Namespace | Self::Node | Self::Service | Self::EndpointSlice)
    }

    /// As written in manifests.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Pod => "Pod",
            Self::Namespace => "Namespace",
            Self::Node => "Node",
            Self::Service => "Service",
            Self::EndpointSlice => "EndpointSlice",
            Self::NetworkPolicy => "NetworkPolicy",
            Self::CiliumNetworkPolicy => "CiliumNetworkPolicy",
            Self::CiliumClusterwideNetworkPolicy => "CiliumClusterwideNetworkPolicy",
            Self::CiliumCIDRGroup => "CiliumCIDRGroup",
            Self::ClusterNetworkPolicy => "ClusterNetworkPolicy",
        }
    }
}

/// Namespace, empty for kinds of the whole cluster, and name.
pub(crate) type Key = (Arc<str>, Arc<str>);

/// What is remembered of one object.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) enum Row {
    Pod(Pod),
    Namespace(Labelled),
    Node(Node),
    Service(service::Service),
    Slice(service::Slice),
    Policy(Policy),
}

/// A pod.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Pod {
    pub(crate) uid: String,
    /// Uid that the kubelet and the CNI know it by, where it is another.
    pub(crate) mirror: Option<String>,
    pub(crate) node: Option<String>,
    pub(crate) labels: BTreeMap<String, String>,
    pub(crate) account: Option<String>,
    pub(crate) addresses: Vec<IpAddr>,
    pub(crate) ports: Vec<Port>,
    pub(crate) host_network: bool,
    /// It is being deleted and may still run.
    pub(crate) leaving: bool,
    /// Seconds since 1970.
    pub(crate) created: i64,
    /// The pod in snapshots.
    #[serde(skip)]
    pub(crate) endpoint: Shared,
}

/// Made of the rest of a row when it is first needed, and shared from then on: it tells no rows apart.
#[derive(Clone, Debug, Default)]
pub(crate) struct Shared(pub(crate) OnceLock<Arc<Endpoint>>);

impl PartialEq for Shared {
    fn eq(&self, _: &Self) -> bool {
        true
    }
}

/// A namespace.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Labelled {
    pub(crate) labels: BTreeMap<String, String>,
}

/// A node.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Node {
    pub(crate) labels: BTreeMap<String, String>,
    pub(crate) addresses: Vec<IpAddr>,
}

/// A policy object, or a group of prefixes.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Policy {
    pub(crate) uid: String,
    /// Grows with each change of the specification; 0 where the kind does not count.
    pub(crate) generation: i64,
    /// What the reader of policies reads: version, kind, name, labels, annotations of our own and specification.
    pub(crate) document: Arc<Value>,
    /// What is kept of its status, as it is now.
    pub(crate) status: Arc<Value>,
}

/// A port.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Port {
    pub(crate) name: String,
    pub(crate) number: u16,
    /// `TCP`, `UDP` or `SCTP`.
    pub(crate) protocol: String,
    /// Port at the addresses of every node, where it is one of a service.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) on_nodes: Option<u16>,
}

impl Port {
    pub(crate) fn new(name: Option<String>, number: i64, protocol: Option<String>) -> Option<Self> {
        let number = u16::try_from(number).ok().filter(|number| *number > 0)?;
        let protocol = protocol.unwrap_or_else(|| "TCP".to_owned());
        Some(Self { name: name.unwrap_or_default(), number, protocol, on_nodes: None })
    }

    /// As rules see it; `None` for a protocol that they cannot name.
    pub(crate) fn transport(&self) -> Option<Transport> {
        match &*self.protocol {
            "TCP" => Some(Transport::Tcp),
            "UDP" => Some(Transport::Udp),
            "SCTP" => Some(Transport::Sctp),
            _ => None,
        }
    }

    /// A port by whose name rules may call it.
    pub(crate) fn named(&self) -> Option<NamedPort> {
        let name = Some(self.name.to_ascii_lowercase()).filter(|name| !name.is_empty())?;
        Some(NamedPort { name, protocol: self.transport()?, port: self.number })
    }
}

/// Namespace and name of an object.
pub(crate) fn key(metadata: &ObjectMeta) -> Key {
    (metadata.namespace.as_deref().unwrap_or("").into(), metadata.name.as_deref().unwrap_or("").into())
}

/// An object of the wire as a row; `None` where it is as good as gone.
pub(crate) trait Project {
    /// What is remembered.
    fn project(self) -> Option<Row>;
}

impl Project for wire::Pod {
    /// A pod that has ended has given its addresses back.
    fn project(self) -> Option<Row> {
        let Self { metadata, spec, status } = self;
        if matches!(status.phase.as_deref(), Some("Succeeded" | "Failed")) {
            return None;
        }
        let listed = status.pod_ips.unwrap_or_default().into_iter().filter_map(|one| one.ip);
        let addresses = usable(listed.chain(status.pod_ip));
        let containers = spec.containers.into_iter().chain(spec.init_containers).flatten();
        let ports = containers.filter_map(|container| container.ports).flatten().filter(|port| port.name.is_some());
        let mut annotations = metadata.annotations.unwrap_or_default();
        Some(Row::Pod(Pod {
            uid: metadata.uid.unwrap_or_default(),
            mirror: annotations.remove(MIRROR),
            node: spec.node_name,
            labels: metadata.labels.unwrap_or_default(),
            account: spec.service_account_name,
            addresses,
            ports: ports.filter_map(|port| Port::new(port.name, port.number, port.protocol)).collect(),
            host_network: spec.host_network.unwrap_or(false),
            leaving: metadata.deletion_timestamp.is_some(),
            created: metadata.creation_timestamp.map_or(0, |time| time.0.as_second()),
            endpoint: Shared::default(),
        }))
    }
}

impl Project for wire::Namespace {
    fn project(self) -> Option<Row> {
        Some(Row::Namespace(Labelled { labels: self.metadata.labels.unwrap_or_default() }))
    }
}

impl Project for wire::Node {
    fn project(self) -> Option<Row> {
        let listed = self.status.addresses.unwrap_or_default().into_iter().map(|one| one.address);
        Some(Row::Node(Node { labels: self.metadata.labels.unwrap_or_default(), addresses: usable(listed) }))
    }
}

/// Addresses that can be those of one peer, each once; others are left out.
pub(crate) fn usable(texts: impl IntoIterator<Item = String>) -> Vec<IpAddr> {
    let mut addresses = Vec::new();
    for text in texts {
        let Ok(address) = text.parse::<IpAddr>() else { continue };
        let address = address.to_canonical();
        let is_broadcast = address == IpAddr::V4(Ipv4Addr::BROADCAST);
        let is_special = address.is_loopback() || address.is_unspecified() || address.is_multicast() || is_broadcast;
        if !is_special && !addresses.contains(&address) {
            addresses.push(address);
        }
    }
    addresses
}

/// A policy object as a row. `version` is the `apiVersion` that it was asked for by.
pub(crate) fn policy(kind: Kind, version: &str, object: DynamicObject) -> Row {
    let DynamicObject { metadata, data, .. } = object;
    let mut data = match data {
        Value::Object(map) => map,
        _ => Map::new(),
    };
    let mut named = Map::new();
    named.insert("name".to_owned(), json!(metadata.name));
    if let Some(namespace) = metadata.namespace {
        named.insert("namespace".to_owned(), json!(namespace));
    }
    if let Some(labels) = metadata.labels.filter(|labels| !labels.is_empty()) {
        named.insert("labels".to_owned(), json!(labels));
    }
    // Those of others change often, and mean nothing here.
    let ours = metadata.annotations.unwrap_or_default().into_iter().filter(|(key, _)| key.starts_with(OWN));
    let ours: Map<String, Value> = ours.map(|(key, value)| (key, json!(value))).collect();
    if !ours.is_empty() {
        named.insert("annotations".to_owned(), Value::Object(ours));
    }
    let mut document = Map::new();
    document.insert("apiVersion".to_owned(), json!(version));
    document.insert("kind".to_owned(), json!(kind.name()));
    document.insert("metadata".to_owned(), Value::Object(named));
    let status = kept_of(&data.remove("status").unwrap_or_default());
    // What is not understood is refused by the reader and not dropped here.
    data.remove("apiVersion");
    data.remove("kind");
    document.extend(data);
    Row::Policy(Policy {
        uid: metadata.uid.unwrap_or_default(),
        generation: metadata.generation.unwrap_or(0),
        document: Arc::new(Value::Object(document)),
        status: Arc::new(status),
    })
}

/// The parts of a status that matter here.
pub(crate) fn kept_of(status: &Value) -> Value {
    json!({"conditions": status["conditions"], "namegate": status["namegate"]})
}
