//! From the endpoints file to who is where: interfaces that the file names become indices, where they are there.

use std::collections::HashMap;

use namegate_config::endpoints::{Attachment, EndpointsFile};
use namegate_engine::{Topology, TopologyEndpoint, TopologyNode};
use namegate_loader::links;

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
pub(crate) fn topology(file: &EndpointsFile, interfaces: &Interfaces) -> Topology {
    let endpoints = file.endpoints.iter().map(|endpoint| TopologyEndpoint {
        key: key(endpoint),
        labels: file.labels(endpoint),
        addresses: endpoint.addresses.clone(),
        named_ports: endpoint.named_ports.clone(),
        interface: interfaces.get(&key(endpoint)).copied(),
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
    Topology {
        endpoints: endpoints.collect(),
        nodes: std::iter::once(host).chain(others).collect(),
        resolver_services: Vec::new(),
        services: file.services.clone(),
    }
}
