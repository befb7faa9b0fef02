//! Who is where: pods and nodes, their labels, addresses and ports, and which of them this node enforces.

use std::{collections::HashMap, net::IpAddr, sync::Arc};

use namegate_config::{labels::Labels, peer::NamedPort, services::Service};

/// Every pod and node that is known.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Topology {
    /// Pods and the like. One that is the same as before is found sooner where it is the same `Arc`.
    pub endpoints: Vec<Arc<TopologyEndpoint>>,
    /// Nodes, this one included. An address that a pod has too is the node's.
    pub nodes: Vec<TopologyNode>,
    /// Service addresses of the trusted resolvers, beside those with only trusted resolvers behind their port 53.
    pub resolver_services: Vec<IpAddr>,
    /// Services: what is sent to one is judged by who is behind it.
    pub services: Vec<Service>,
    /// Indices of further host-side interfaces of endpoints, by `namespace/name`: each is judged as the first one is.
    pub more_interfaces: HashMap<Arc<str>, Vec<u32>>,
}

/// A pod or the like.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TopologyEndpoint {
    /// `namespace/name`, unique.
    pub key: Arc<str>,
    /// Its labels, with those of its namespace.
    pub labels: Arc<Labels>,
    /// Its addresses.
    pub addresses: Vec<IpAddr>,
    /// Ports it names.
    pub named_ports: Vec<NamedPort>,
    /// Index of the host-side interface; `None` where it is a peer only.
    pub interface: Option<u32>,
}

/// A node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TopologyNode {
    /// Its name.
    pub name: String,
    /// Its labels, see [`Labels::node`].
    pub labels: Labels,
    /// Its addresses.
    pub addresses: Vec<IpAddr>,
    /// Whether it is this one.
    pub local: bool,
}

/// What stands for `namespace/name` of this node as an endpoint: no other has a name without a namespace.
pub(crate) const NODE_KEY: &str = "host";
