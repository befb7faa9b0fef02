//! A cluster on paper from the files of an agent: what the agent would enforce can be asked without it.

use std::{collections::BTreeMap, sync::Arc};

use serde::de::IgnoredAny;

use super::{
    Namespace, Node, Pod, Port, Protocol, Service, ServicePort, World,
    run::RESOLVER,
    world::{CLUSTER_DOMAIN, HOST},
};
use crate::{
    endpoints::{Attachment, Endpoint, EndpointsFile},
    rule::Transport,
    services::{self, Target},
    settings::Dns,
};

impl World {
    /// Everybody in the endpoints file, and the resolvers of the settings as the cluster's. Endpoints without an
    /// interface or network namespace are on no node.
    pub fn of_agent(file: &EndpointsFile, dns: &Dns) -> Self {
        let mut world = Self::default();
        HOST.clone_into(&mut world.name);
        CLUSTER_DOMAIN.clone_into(&mut world.cluster_domain);
        let host = Node {
            name: HOST.to_owned(),
            ips: file.host.addresses.clone(),
            labels: file.host.labels.clone(),
            apiserver: false,
        };
        let others = file.nodes.iter().map(|node| Node {
            name: node.name.clone(),
            ips: node.addresses.clone(),
            labels: node.labels.clone(),
            apiserver: false,
        });
        world.nodes = std::iter::once(host).chain(others).collect();
        let mut namespaces: BTreeMap<&str, BTreeMap<String, String>> =
            file.endpoints.iter().map(|endpoint| (&*endpoint.namespace, BTreeMap::new())).collect();
        namespaces.extend(file.namespaces.iter().map(|one| (&*one.name, one.labels.clone())));
        let namespace = |(name, labels): (&str, _)| Namespace { name: name.to_owned(), labels };
        world.namespaces = namespaces.into_iter().map(namespace).collect();
        world.pods = file.endpoints.iter().map(|endpoint| pod(endpoint)).collect();
        world.services = file.services.iter().map(service).chain(resolver(file, dns)).collect();
        world
    }
}

const fn protocol(transport: Transport) -> Protocol {
    match transport {
        Transport::Tcp => Protocol::Tcp,
        Transport::Udp => Protocol::Udp,
        Transport::Sctp => Protocol::Sctp,
    }
}

fn service(listed: &services::Service) -> Service {
    let port = |port: &services::ServicePort| {
        ServicePort::plain(port.port, protocol(port.protocol)).in_front_of(port.targets.clone())
    };
    Service {
        name: listed.name.clone(),
        namespace: listed.namespace.clone(),
        labels: listed.labels.clone(),
        cluster_ips: listed.addresses.clone(),
        selector: listed.selector.clone(),
        ports: listed.ports.iter().map(port).collect(),
        backends: listed.as_reference().backends,
        ..Service::default()
    }
}

fn pod(endpoint: &Endpoint) -> Pod {
    let port = |port: &crate::peer::NamedPort| Port {
        port: port.port,
        protocol: protocol(port.protocol),
        name: Some(port.name.clone()),
    };
    let is_here = matches!(endpoint.attachment, Some(Attachment::Interface(_) | Attachment::Netns(_)));
    Pod {
        name: endpoint.name.clone(),
        namespace: endpoint.namespace.clone(),
        labels: endpoint.labels.clone(),
        service_account: Some(endpoint.service_account.clone().unwrap_or_default()),
        node: is_here.then(|| HOST.to_owned()),
        host_network: false,
        ips: endpoint.addresses.clone(),
        ports: endpoint.named_ports.iter().map(port).collect(),
    }
}

/// The resolvers as the service that clients ask; nothing where none is known.
fn resolver(file: &EndpointsFile, dns: &Dns) -> Option<Service> {
    let (namespace, name) = RESOLVER.split_once('/')?;
    let selector = if dns.resolver_namespace == namespace { dns.resolver_labels.clone() } else { BTreeMap::new() };
    let ports = [Protocol::Udp, Protocol::Tcp].map(|protocol| ServicePort::plain(53, protocol));
    let is_behind = |endpoint: &&Arc<Endpoint>| {
        let has = |(key, value): (&String, &String)| endpoint.labels.get(key) == Some(value);
        endpoint.namespace == namespace && !selector.is_empty() && selector.iter().all(has)
    };
    let behind: Vec<_> = file.endpoints.iter().filter(is_behind).flat_map(|endpoint| &endpoint.addresses).collect();
    let backends = dns.resolvers.iter().filter(|address| !behind.contains(address)).copied().collect();
    (!selector.is_empty() || !dns.resolvers.is_empty()).then(|| Service {
        name: name.to_owned(),
        namespace: namespace.to_owned(),
        selector,
        ports: ports.into(),
        backends,
        ..Service::default()
    })
}

impl ServicePort {
    /// A port with the same number at the pods.
    const fn plain(port: u16, protocol: Protocol) -> Self {
        Self { _name: IgnoredAny, port, protocol, target_port: None, targets: None }
    }

    /// The port with these behind it, whatever labels they have.
    fn in_front_of(self, targets: Vec<Target>) -> Self {
        Self { targets: Some(targets), ..self }
    }
}
