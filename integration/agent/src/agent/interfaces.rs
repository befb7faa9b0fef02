//! From the endpoints file to who is where: interfaces that the file names become indices, where they are there.

use std::{collections::HashMap, net::IpAddr};

use namegate_config::{
    endpoints::{Attachment, EndpointsFile},
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
pub(crate) fn key(endpoint: &namegate_config::endpoints::Endpoint) -> String {
    format!("{}/{}", endpoint.namespace, endpoint.name)
}

/// What the engine is told.
pub(crate) fn topology(file: &EndpointsFile, facts: &Facts, interfaces: &Interfaces) -> Topology {
    let endpoints = file.endpoints.iter().map(|endpoint| {
        let key = key(endpoint);
        TopologyEndpoint {
            labels: if facts.unknown.contains(&key) { Labels::reserved(UNKNOWN) } else { file.labels(endpoint) },
            addresses: endpoint.addresses.clone(),
            named_ports: endpoint.named_ports.clone(),
            interface: interfaces.get(&key).copied(),
            key,
        }
    });
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
        endpoints: endpoints.collect(),
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
        topology.endpoints.push(TopologyEndpoint {
            key: "default/kubernetes~service".to_owned(),
            labels,
            addresses: rest,
            named_ports: Vec::new(),
            interface: None,
        });
    }
}
