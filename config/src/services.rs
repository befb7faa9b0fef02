//! Services with virtual addresses: whoever sends to one reaches somebody behind it. Plain facts, from wherever they come.
//!
//! In Kubernetes these are `Service` and `EndpointSlice` objects; on a plain host the endpoints file says so.

use std::{collections::BTreeMap, net::IpAddr};

use crate::{policy, rule::Transport};

/// A service.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Service {
    /// Its name, unique in its namespace.
    pub name: String,
    /// Its namespace.
    pub namespace: String,
    /// Its own labels.
    pub labels: BTreeMap<String, String>,
    /// Labels of the pods behind it, by which `toServices` selects them; empty where it has no selector.
    pub selector: BTreeMap<String, String>,
    /// Its virtual addresses: of the cluster, external, of load balancers. None for one without (`clusterIP: None`).
    pub addresses: Vec<IpAddr>,
    /// Its ports.
    pub ports: Vec<ServicePort>,
}

/// A port of a service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServicePort {
    /// Its name; one of several has one.
    pub name: Option<String>,
    /// Protocol.
    pub protocol: Transport,
    /// Number at the virtual addresses.
    pub port: u16,
    /// Number at the addresses of every node (`NodePort`), where there is one.
    pub node_port: Option<u16>,
    /// Who is behind it now. Those of the other address family than a virtual address do not count for it.
    pub targets: Vec<Target>,
}

/// Where packets to a service end up.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Target {
    /// Address of a pod, a node, or somebody outside.
    pub address: IpAddr,
    /// Its port.
    pub port: u16,
}

impl Service {
    /// What `toServices` of a policy finds. Behind a service with a selector are pods, which are known by their labels.
    pub fn as_reference(&self) -> policy::Service {
        let targets = self.ports.iter().flat_map(|port| &port.targets).filter(|_| self.selector.is_empty());
        let mut backends: Vec<IpAddr> = targets.map(|target| target.address.to_canonical()).collect();
        backends.sort_unstable();
        backends.dedup();
        policy::Service {
            name: self.name.clone(),
            namespace: self.namespace.clone(),
            labels: self.labels.clone(),
            selector: self.selector.clone(),
            backends,
        }
    }
}
