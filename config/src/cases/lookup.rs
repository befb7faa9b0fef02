//! Who is who in a [`World`]: ends of flows, pods behind services, answers of DNS.

use std::{collections::BTreeMap, net::IpAddr, sync::Arc};

use super::{
    Family, Place,
    world::{ALIASES_MAX, CLUSTER_TTL_S, Pod, Protocol, Resolved, Service, Side, SideKind, TargetPort, World},
};
use crate::{
    labels::{Labels, NODE},
    name::Fqdn,
    policy::Audience,
};

impl World {
    /// The end of a flow that is named; nothing where there is none, or for a service or a DNS name.
    pub fn side(&self, place: &Place, family: Family) -> Option<Side> {
        match place {
            Place::Pod(key) => self.pods.iter().find(|pod| pod.key() == *key).and_then(|pod| self.pod(pod, family)),
            Place::Host(name) => {
                let node = self.nodes.iter().find(|node| node.name == *name)?;
                Some(self.host(place.clone(), name, family.first(&node.ips)?))
            }
            Place::External(name) => {
                let external = self.external.iter().find(|external| external.name == *name)?;
                Some(world_side(place.clone(), family.first(&external.ips)?, external.apiserver))
            }
            Place::Address(address) => Some(self.at(*address)),
            Place::Service(_) | Place::Name(_) => None,
        }
    }

    /// Who has an address; whoever is outside where nobody has it.
    pub fn at(&self, address: IpAddr) -> Side {
        let family = Family::of(address);
        let pod = self.pods.iter().find(|pod| !pod.host_network && pod.ips.contains(&address));
        if let Some(side) = pod.and_then(|pod| self.pod(pod, family)) {
            return side;
        }
        if let Some(node) = self.nodes.iter().find(|node| node.ips.contains(&address)) {
            return self.host(Place::Host(node.name.clone()), &node.name, address);
        }
        let apiserver = self.external.iter().any(|external| external.apiserver && external.ips.contains(&address));
        world_side(Place::Address(address), address, apiserver)
    }

    /// Everybody whom policies can be about.
    pub fn audience(&self) -> Audience {
        let labels = |place: Place| {
            let side = self.side(&place, Family::V4).or_else(|| self.side(&place, Family::V6))?;
            Some(side.labels_from(None))
        };
        let pods = self.pods.iter().filter(|pod| !pod.host_network);
        Audience {
            endpoints: pods.filter_map(|pod| labels(Place::Pod(pod.key()))).collect(),
            nodes: self.nodes.iter().filter_map(|node| labels(Place::Host(node.name.clone()))).collect(),
        }
    }

    fn pod(&self, pod: &Pod, family: Family) -> Option<Side> {
        let address = family.first(&pod.ips)?;
        let place = Place::Pod(pod.key());
        if pod.host_network {
            let side = self.host(place, pod.node.as_ref()?, address);
            return Some(Side { named_ports: pod.named_ports(), ..side });
        }
        let namespace = self.namespaces.iter().find(|namespace| namespace.name == pod.namespace);
        let of_namespace = namespace.map(|namespace| &namespace.labels);
        let labels = Labels::pod(
            &pod.namespace,
            pairs(&pod.labels),
            of_namespace.into_iter().flat_map(pairs),
            Some(pod.service_account.as_deref().unwrap_or(super::world::ACCOUNT)),
        );
        Some(Side { place, address, kind: SideKind::Pod(pod.node.clone()), named_ports: pod.named_ports(), labels })
    }

    fn host(&self, place: Place, name: &str, address: IpAddr) -> Side {
        let mut labels = Labels::default();
        if let Some(node) = self.nodes.iter().find(|node| node.name == name) {
            pairs(&node.labels).for_each(|(key, value)| labels.insert(NODE, key, value));
            if node.apiserver {
                labels.reserve("kube-apiserver");
            }
        }
        Side { place, address, kind: SideKind::Host(name.to_owned()), named_ports: Arc::new([]), labels }
    }

    /// The service with an address.
    pub fn service_at(&self, address: IpAddr) -> Option<&Service> {
        self.services.iter().find(|service| service.cluster_ips.contains(&address))
    }

    /// Who is behind a port of a service, and at which port.
    pub fn backends(&self, service: &Service, protocol: u8, port: u16, family: Family) -> Vec<(Side, u16)> {
        let is_it = |protocol_of: Protocol| protocol_of.transport().number() == protocol;
        let Some(entry) = service.ports.iter().find(|entry| entry.port == port && is_it(entry.protocol)) else {
            return Vec::new();
        };
        if let Some(targets) = &entry.targets {
            let reached = targets.iter().filter(|target| Family::of(target.address) == family);
            return reached.map(|target| (self.at(target.address), target.port)).collect();
        }
        let target = |pod: Option<&Pod>| match &entry.target_port {
            None => Some(entry.port),
            Some(TargetPort::Number(number)) => Some(*number),
            Some(TargetPort::Name(name)) => {
                pod?.ports.iter().find(|port| port.name.as_ref() == Some(name)).map(|port| port.port)
            }
        };
        let pods = self.pods_of(service).filter_map(|pod| Some((self.pod(pod, family)?, target(Some(pod))?)));
        let outside = service.backends.iter().filter(|address| Family::of(**address) == family);
        pods.chain(outside.filter_map(|address| Some((self.at(*address), target(None)?)))).collect()
    }

    fn pods_of<'a>(&'a self, service: &'a Service) -> impl Iterator<Item = &'a Pod> {
        let selects = |pod: &&Pod| {
            let has = |(key, value): (&String, &String)| pod.labels.get(key) == Some(value);
            pod.namespace == service.namespace && !service.selector.is_empty() && service.selector.iter().all(has)
        };
        self.pods.iter().filter(selects)
    }

    /// What the cluster's resolver answers.
    pub fn resolve(&self, name: &Fqdn, family: Family) -> Resolved {
        let mut resolved = Resolved { names: vec![name.clone()], addresses: Vec::new(), ttl_s: u64::MAX };
        for _ in 0..ALIASES_MAX {
            let Some(last) = resolved.names.last() else { break };
            let Some(records) = self.dns.get(last.as_str()) else {
                resolved.addresses = self.resolve_service(last, family);
                resolved.ttl_s = resolved.ttl_s.min(CLUSTER_TTL_S);
                break;
            };
            resolved.ttl_s = resolved.ttl_s.min(records.ttl);
            let Some(alias) = records.cname.as_deref().and_then(|alias| alias.parse().ok()) else {
                resolved.addresses = if family == Family::V4 { records.a.clone() } else { records.aaaa.clone() };
                break;
            };
            resolved.names.push(alias);
        }
        resolved
    }

    fn resolve_service(&self, name: &Fqdn, family: Family) -> Vec<IpAddr> {
        let suffix = format!(".svc.{}", self.cluster_domain);
        let named = name.as_str().strip_suffix(&suffix).and_then(|bare| bare.split_once('.'));
        let is_it = |service: &&Service| named == Some((&service.name, &service.namespace));
        let Some(service) = self.services.iter().find(is_it) else { return Vec::new() };
        if service.headless {
            return self.pods_of(service).filter_map(|pod| family.first(&pod.ips)).collect();
        }
        family.first(&service.cluster_ips).into_iter().collect()
    }
}

fn world_side(place: Place, address: IpAddr, apiserver: bool) -> Side {
    let mut labels = Labels::reserved("world");
    if apiserver {
        labels.reserve("kube-apiserver");
    }
    Side { place, address, kind: SideKind::World, named_ports: Arc::new([]), labels }
}

fn pairs(labels: &BTreeMap<String, String>) -> impl Iterator<Item = (&str, &str)> {
    labels.iter().map(|(key, value)| (&**key, &**value))
}
