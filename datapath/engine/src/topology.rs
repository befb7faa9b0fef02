//! Who is where: pods and nodes, their labels, addresses and ports, and which of them this node enforces.

use std::{
    collections::{HashMap, HashSet},
    net::IpAddr,
    sync::Arc,
};

use namegate_abi::Address;
use namegate_config::{labels::Labels, peer::NamedPort};

use crate::EndpointId;

/// Every pod and node that is known.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Topology {
    /// Pods and the like.
    pub endpoints: Vec<TopologyEndpoint>,
    /// Nodes, this one included. An address that a pod has too is the node's.
    pub nodes: Vec<TopologyNode>,
    /// Service addresses of the trusted resolvers.
    pub resolver_services: Vec<IpAddr>,
}

/// A pod or the like.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TopologyEndpoint {
    /// `namespace/name`, unique.
    pub key: String,
    /// Its labels, with those of its namespace.
    pub labels: Labels,
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

/// A pod or node as a peer.
#[derive(Clone, Debug)]
pub(crate) struct Who {
    /// `namespace/name` or the node's name.
    pub(crate) key: Arc<str>,
    pub(crate) labels: Arc<Labels>,
    pub(crate) addresses: Vec<IpAddr>,
    pub(crate) named_ports: Vec<NamedPort>,
    /// Endpoint of this node.
    pub(crate) id: Option<EndpointId>,
    pub(crate) interface: Option<u32>,
    pub(crate) local_host: bool,
}

/// Pods and nodes, and who has which address.
#[derive(Debug, Default)]
pub(crate) struct Peers {
    pub(crate) all: Vec<Who>,
    pub(crate) owners: HashMap<Address, usize>,
    /// Addresses claimed by more than one.
    pub(crate) conflicts: u64,
}

impl Peers {
    /// Nodes claim their addresses first, then endpoints in their order; `id` numbers endpoints of this node.
    pub(crate) fn new(topology: Topology, mut id: impl FnMut(&Arc<str>) -> EndpointId) -> Self {
        let mut peers = Self::default();
        for node in topology.nodes {
            peers.add(Who {
                key: node.name.into(),
                labels: Arc::new(node.labels),
                addresses: node.addresses,
                named_ports: Vec::new(),
                id: None,
                interface: None,
                local_host: node.local,
            });
        }
        let mut seen = HashSet::new();
        for endpoint in topology.endpoints {
            let key: Arc<str> = endpoint.key.into();
            if !seen.insert(Arc::clone(&key)) {
                peers.conflicts += 1;
                continue;
            }
            peers.add(Who {
                id: endpoint.interface.map(|_| id(&key)),
                key,
                labels: Arc::new(endpoint.labels),
                addresses: endpoint.addresses,
                named_ports: endpoint.named_ports,
                interface: endpoint.interface,
                local_host: false,
            });
        }
        peers
    }

    fn add(&mut self, who: Who) {
        for address in &who.addresses {
            let owner = *self.owners.entry(Address::from(address.to_canonical())).or_insert(self.all.len());
            if owner != self.all.len() {
                self.conflicts += 1;
            }
        }
        self.all.push(who);
    }

    /// Who has the address.
    pub(crate) fn owner(&self, address: Address) -> Option<&Who> {
        self.owners.get(&address).map(|at| &self.all[*at])
    }

    /// This node itself, where it is known.
    pub(crate) fn node(&self) -> Option<&Who> {
        self.all.iter().find(|who| who.local_host)
    }

    /// Endpoints of this node.
    pub(crate) fn local(&self) -> impl Iterator<Item = (EndpointId, u32, &Who)> {
        self.all.iter().filter_map(|who| Some((who.id?, who.interface?, who)))
    }
}
