//! From the endpoints file to who is where: interfaces that the file names become indices, where they are there.

use std::{collections::HashMap, net::IpAddr, sync::Arc};

use namegate_config::{
    endpoints::{Attachment, Endpoint, EndpointsFile, Namespace},
    labels::{Labels, RESERVED},
};
use namegate_engine::{Topology, TopologyEndpoint, TopologyNode};
use namegate_loader::links;

use super::sources::{Facts, UNKNOWN};

/// Indices of the host-side interfaces by `namespace/name`; an endpoint whose interface is not there yet is left out.
pub(crate) type Interfaces = HashMap<String, u32>;

/// Looks for every interface that the file names.
pub(crate) fn resolve(file: &EndpointsFile) -> Interfaces {
    let mut found = Interfaces::new();
    for endpoint in &file.endpoints {
        let index = match &endpoint.attachment {
            None => continue,
            Some(Attachment::Interface(name)) => links::index_of(name),
            Some(Attachment::Netns(path)) => links::peer_of_netns(path),
        };
        match index {
            Ok(Some(index)) => drop(found.insert(key(endpoint), index)),
            Ok(None) => {}
            Err(error) => tracing::warn!(endpoint = key(endpoint), %error, "looking for the interface"),
        }
    }
    found
}

/// `namespace/name`.
pub(crate) fn key(endpoint: &Endpoint) -> String {
    format!("{}/{}", endpoint.namespace, endpoint.name)
}

/// What the engine was told last: an endpoint that is the same again is told again as it was.
#[derive(Default)]
pub(crate) struct Told {
    /// By where the endpoint lies in memory: it lies there as long as it is held here.
    endpoints: HashMap<usize, (Arc<Endpoint>, Arc<TopologyEndpoint>)>,
    namespaces: Vec<Namespace>,
}

impl Told {
    /// The endpoints of the file for the engine.
    fn endpoints(
        &mut self,
        file: &EndpointsFile,
        facts: &Facts,
        interfaces: &Interfaces,
    ) -> Vec<Arc<TopologyEndpoint>> {
        if self.namespaces != file.namespaces {
            self.endpoints.clear();
            self.namespaces.clone_from(&file.namespaces);
        }
        let mut now = HashMap::with_capacity(file.endpoints.len());
        let mut told = Vec::with_capacity(file.endpoints.len());
        for endpoint in &file.endpoints {
            let place = Arc::as_ptr(endpoint).addr();
            let former = self.endpoints.remove(&place).map(|(_, former)| former);
            let former = former.filter(|former| former.interface == interfaces.get(&*former.key).copied());
            let one = former.unwrap_or_else(|| Arc::new(one(file, endpoint, facts, interfaces)));
            told.push(Arc::clone(&one));
            now.insert(place, (Arc::clone(endpoint), one));
        }
        self.endpoints = now;
        told
    }
}

fn one(file: &EndpointsFile, endpoint: &Endpoint, facts: &Facts, interfaces: &Interfaces) -> TopologyEndpoint {
    let key = key(endpoint);
    let labels = if facts.unknown.contains(&key) { Labels::reserved(UNKNOWN) } else { file.labels(endpoint) };
    TopologyEndpoint {
        labels: Arc::new(labels),
        addresses: endpoint.addresses.clone(),
        named_ports: endpoint.named_ports.clone(),
        interface: interfaces.get(&key).copied(),
        key: key.into(),
    }
}

/// What the engine is told.
pub(crate) fn topology(file: &EndpointsFile, facts: &Facts, interfaces: &Interfaces, told: &mut Told) -> Topology {
    let host = TopologyNode {
        name: "host".to_owned(),
        labels: file.host.labels(),
        addresses: file.host.addresses.clone(),
        local: true,
    };
    let others = file.nodes.iter().map(|node| TopologyNode {
        name: node.name.clone(),
        labels: node.labels(),
        addresses: node.addresses.clone(),
        local: false,
    });
    let mut topology = Topology {
        endpoints: told.endpoints(file, facts, interfaces),
        nodes: std::iter::once(host).chain(others).collect(),
        resolver_services: facts.resolver_services.clone(),
        services: file.services.clone(),
    };
    mark_api_servers(&mut topology, &facts.api_servers);
    topology
}

/// Labels the nodes of the API server; its addresses beside them are those of a peer outside.
fn mark_api_servers(topology: &mut Topology, addresses: &[IpAddr]) {
    const NAME: &str = "kube-apiserver";
    let mut rest: Vec<IpAddr> = addresses.to_vec();
    for node in &mut topology.nodes {
        if node.addresses.iter().any(|address| rest.contains(address)) {
            rest.retain(|address| !node.addresses.contains(address));
            node.labels.insert(RESERVED, NAME, "");
        }
    }
    if !rest.is_empty() {
        let mut labels = Labels::reserved("world");
        labels.insert(RESERVED, NAME, "");
        topology.endpoints.push(Arc::new(TopologyEndpoint {
            key: "default/kubernetes~service".into(),
            labels: Arc::new(labels),
            addresses: rest,
            named_ports: Vec::new(),
            interface: None,
        }));
    }
}
