//! A cluster on paper as one of its nodes sees it.

use std::sync::Arc;

use namegate_config::{
    cases::{Family, Place, Side, World},
    labels::Labels,
};
use namegate_engine::{Topology, TopologyEndpoint, TopologyNode};

/// The service that pods look names up at.
const RESOLVER: (&str, &str) = ("kube-system", "kube-dns");

/// Everybody, as seen from `node`; `interface` gives the pods of this node theirs.
pub(crate) fn of(world: &World, node: Option<&str>, mut interface: impl FnMut(&str) -> u32) -> Topology {
    let mut topology = Topology::default();
    for pod in world.pods.iter().filter(|pod| !pod.host_network) {
        let key = pod.key();
        let Some(side) = either(world, &Place::Pod(key.clone())) else { continue };
        topology.endpoints.push(Arc::new(TopologyEndpoint {
            labels: Arc::new(side.labels_from(node)),
            addresses: pod.ips.clone(),
            named_ports: side.named_ports.to_vec(),
            interface: (pod.node.as_deref() == node).then(|| interface(&key)),
            key: key.into(),
        }));
    }
    for one in &world.nodes {
        topology.nodes.push(TopologyNode {
            name: one.name.clone(),
            labels: labels(world, &Place::Host(one.name.clone()), node),
            addresses: one.ips.clone(),
            local: node == Some(&one.name),
        });
    }
    // The API server is known by its addresses, wherever it is.
    for external in world.external.iter().filter(|external| external.apiserver) {
        topology.endpoints.push(Arc::new(TopologyEndpoint {
            key: format!("external/{}", external.name).into(),
            labels: Arc::new(labels(world, &Place::External(external.name.clone()), node)),
            addresses: external.ips.clone(),
            named_ports: Vec::new(),
            interface: None,
        }));
    }
    let is_resolver = |service: &&namegate_config::cases::Service| (&*service.namespace, &*service.name) == RESOLVER;
    topology.resolver_services =
        world.services.iter().filter(is_resolver).flat_map(|service| service.cluster_ips.clone()).collect();
    topology
}

fn either(world: &World, place: &Place) -> Option<Side> {
    world.side(place, Family::V4).or_else(|| world.side(place, Family::V6))
}

fn labels(world: &World, place: &Place, node: Option<&str>) -> Labels {
    either(world, place).map(|side| side.labels_from(node)).unwrap_or_default()
}
