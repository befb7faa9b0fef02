//! Who is where: pods and nodes, their labels, addresses and ports, and which of them this node enforces.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    net::IpAddr,
    ops::Deref,
    sync::Arc,
};

use namegate_abi::Address;
use namegate_config::{
    labels::Labels,
    peer::NamedPort,
    services::{Service, Target},
};

use crate::{EndpointId, fronts::Port};

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

/// A pod or node as a peer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Who {
    /// As it was told; the key of a node is its name.
    told: Arc<TopologyEndpoint>,
    /// Endpoint of this node.
    pub(crate) id: Option<EndpointId>,
    pub(crate) local_host: bool,
}

impl Deref for Who {
    type Target = TopologyEndpoint;

    fn deref(&self) -> &TopologyEndpoint {
        &self.told
    }
}

/// Pods and nodes, and who has which address.
#[derive(Debug, Default)]
pub(crate) struct Peers {
    pub(crate) all: Vec<Who>,
    pub(crate) owners: HashMap<Address, usize>,
    /// Virtual addresses, and those of nodes, with the ports behind which are others.
    pub(crate) fronts: HashMap<Address, BTreeMap<Port, Behind>>,
    /// Addresses claimed by more than one.
    pub(crate) conflicts: u64,
    /// Further interfaces of endpoints, by their key.
    pub(crate) more_interfaces: HashMap<Arc<str>, Vec<u32>>,
}

/// Who is behind a port.
#[derive(Clone, Debug, Default)]
pub(crate) struct Behind {
    /// `namespace/name` of the service; the first where there are several.
    pub(crate) service: Arc<str>,
    /// Of the same address family as the port's address.
    pub(crate) targets: Vec<Target>,
}

impl Peers {
    /// Nodes claim their addresses first, then endpoints in their order; `id` numbers endpoints of this node.
    pub(crate) fn new(topology: Topology, mut id: impl FnMut(&Arc<str>) -> EndpointId) -> Self {
        let mut peers = Self { more_interfaces: topology.more_interfaces, ..Self::default() };
        let of_nodes: Vec<IpAddr> = topology.nodes.iter().flat_map(|node| node.addresses.clone()).collect();
        for service in &topology.services {
            peers.add_service(service, &of_nodes);
        }
        for node in topology.nodes {
            let told = TopologyEndpoint {
                key: node.name.into(),
                labels: Arc::new(node.labels),
                addresses: node.addresses,
                named_ports: Vec::new(),
                interface: None,
            };
            peers.add(Who { told: Arc::new(told), id: None, local_host: node.local });
        }
        let mut seen = HashSet::new();
        for told in topology.endpoints {
            if seen.insert(Arc::clone(&told.key)) {
                peers.add(Who { id: told.interface.map(|_| id(&told.key)), told, local_host: false });
            } else {
                peers.conflicts += 1;
            }
        }
        peers
    }

    fn add_service(&mut self, service: &Service, nodes: &[IpAddr]) {
        let name: Arc<str> = format!("{}/{}", service.namespace, service.name).into();
        for port in &service.ports {
            let own = service.addresses.iter().map(|address| (address, port.port));
            let of_nodes = port.node_port.into_iter().flat_map(|number| nodes.iter().map(move |node| (node, number)));
            for (address, number) in own.chain(of_nodes) {
                let address = address.to_canonical();
                let behind = self.fronts.entry(address.into()).or_default();
                let behind = behind.entry((port.protocol.number(), number)).or_default();
                if behind.service.is_empty() {
                    behind.service = Arc::clone(&name);
                } else {
                    self.conflicts += 1;
                }
                let reached =
                    port.targets.iter().filter(|one| one.address.to_canonical().is_ipv4() == address.is_ipv4());
                behind.targets.extend(reached.copied());
            }
        }
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

    /// Labels and named ports of an address of the cluster; a virtual one has none of either. `None` for the world.
    pub(crate) fn facts(&self, address: Address) -> Option<(Arc<Labels>, Arc<[NamedPort]>)> {
        match self.owner(address) {
            Some(who) => Some((Arc::clone(&who.labels), who.named_ports.as_slice().into())),
            None => self.fronts.contains_key(&address).then(Default::default),
        }
    }

    /// Who is behind a port of an address; `None` where the address speaks for itself.
    pub(crate) fn behind(&self, address: IpAddr, port: Port) -> Option<&Behind> {
        self.fronts.get(&Address::from(address.to_canonical()))?.get(&port)
    }

    /// This node itself, where it is known.
    pub(crate) fn node(&self) -> Option<&Who> {
        self.all.iter().find(|who| who.local_host)
    }

    /// Interfaces of an endpoint beside its first one.
    pub(crate) fn more_interfaces(&self, who: &Who) -> &[u32] {
        self.more_interfaces.get(&who.key).map_or(&[], Vec::as_slice)
    }

    /// Endpoints of this node.
    pub(crate) fn local(&self) -> impl Iterator<Item = (EndpointId, u32, &Who)> {
        self.all.iter().filter_map(|who| Some((who.id?, who.interface?, who)))
    }
}
