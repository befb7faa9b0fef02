//! Services and their backends as kube-proxy treats them: which addresses it sends on, and to whom. Pure.
//!
//! An address that kube-proxy does not send on is not virtual: whoever has it gets the packet. So what is taken for virtual
//! here, and who counts as behind it, follows kube-proxy (`pkg/proxy`, `ShouldSkipService`, `CategorizeEndpoints`). Where
//! kube-proxy's choice depends on more than is known here (traffic policies, hints of zones), everybody counts whom it may
//! choose.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use namegate_config::services::{self, ServicePort, Target};
use serde::{Deserialize, Serialize};

use crate::{
    row::{Port, Project, Row, usable},
    wire,
};

/// Label that names the service of a slice.
const SERVICE_NAME: &str = "kubernetes.io/service-name";
/// Labels of services and slices that kube-proxy leaves to others, with any value.
const NOT_PROXIED: [&str; 2] = ["service.kubernetes.io/service-proxy-name", "service.kubernetes.io/headless"];

/// A service.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Service {
    pub(crate) labels: BTreeMap<String, String>,
    pub(crate) selector: BTreeMap<String, String>,
    /// Those that kube-proxy sends on.
    pub(crate) addresses: Vec<IpAddr>,
    pub(crate) ports: Vec<Port>,
    /// One of its traffic policies is `Local`: each node chooses among its own backends.
    pub(crate) is_local: bool,
}

/// A slice of the backends of a service.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Slice {
    pub(crate) service: String,
    pub(crate) backends: Vec<Backend>,
    pub(crate) ports: Vec<Port>,
    /// kube-proxy looks at it.
    pub(crate) is_proxied: bool,
}

/// Somebody behind a service.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Backend {
    pub(crate) address: IpAddr,
    pub(crate) state: State,
}

/// Whether a backend gets connections.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum State {
    /// It does. With `publishNotReadyAddresses` the API server says so of every backend.
    Ready,
    /// It is being deleted, and gets them where nobody is ready.
    Draining,
    /// It gets none.
    Resting,
}

impl State {
    fn of(conditions: &wire::SliceConditions) -> Self {
        match (conditions.ready.unwrap_or(true), conditions.serving.unwrap_or(true), conditions.terminating) {
            (true, ..) => Self::Ready,
            (false, true, Some(true)) => Self::Draining,
            _ => Self::Resting,
        }
    }
}

impl Project for wire::Service {
    fn project(self) -> Option<Row> {
        let Self { metadata, spec, status } = self;
        let labels = metadata.labels.unwrap_or_default();
        let has_address = spec.cluster_ip.as_deref().is_some_and(|address| !matches!(address, "" | "None"));
        let is_named = spec.kind.as_deref() == Some("ExternalName");
        let is_proxied = has_address && !is_named && is_proxied(&labels);
        let own = usable(spec.cluster_ips.into_iter().flatten().chain(spec.cluster_ip));
        // Other modes than this one are for balancers that send to a port of the nodes themselves.
        let is_vip = |balancer: &wire::LoadBalancerIp| balancer.mode.as_deref().is_none_or(|mode| mode == "VIP");
        let balancers = status.load_balancer.ingress.into_iter().flatten().filter(is_vip).filter_map(|one| one.ip);
        // Each family is served by itself, and only where the service has an address of the cluster in it.
        let has_family = |address: &IpAddr| own.iter().any(|own| own.is_ipv4() == address.is_ipv4());
        let mut addresses = own.clone();
        for address in usable(spec.external_ips.into_iter().flatten().chain(balancers)) {
            if has_family(&address) && !addresses.contains(&address) {
                addresses.push(address);
            }
        }
        if !is_proxied {
            addresses.clear();
        }
        let port = |port: wire::ServicePort| {
            let on_nodes = port.node_port.and_then(|port| u16::try_from(port).ok());
            let on_nodes = on_nodes.filter(|port| *port > 0 && is_proxied);
            Some(Port { on_nodes, ..Port::new(port.name, port.port, port.protocol)? })
        };
        let policies = [spec.internal_policy, spec.external_policy];
        Some(Row::Service(Service {
            labels,
            selector: spec.selector.unwrap_or_default(),
            addresses,
            ports: spec.ports.into_iter().flatten().filter_map(port).collect(),
            is_local: policies.iter().any(|policy| policy.as_deref() == Some("Local")),
        }))
    }
}

impl Project for wire::EndpointSlice {
    /// A slice that no service owns has no meaning here.
    fn project(self) -> Option<Row> {
        let Self { metadata, endpoints, ports } = self;
        let mut labels = metadata.labels.unwrap_or_default();
        let service = labels.remove(SERVICE_NAME)?;
        let backends = endpoints.into_iter().flatten().flat_map(|endpoint| {
            let state = State::of(&endpoint.conditions);
            let addresses = endpoint.addresses.into_iter().flatten().filter(|text| !is_mapped(text));
            usable(addresses).into_iter().map(move |address| Backend { address, state })
        });
        let ports = ports.unwrap_or_default().into_iter();
        Some(Row::Slice(Slice {
            service,
            backends: backends.collect(),
            ports: ports.filter_map(|port| Port::new(port.name, port.port?, port.protocol)).collect(),
            is_proxied: is_proxied(&labels),
        }))
    }
}

fn is_proxied(labels: &BTreeMap<String, String>) -> bool {
    !NOT_PROXIED.iter().any(|label| labels.contains_key(*label))
}

/// Whether it is an IPv4 address in the form of the other family, which is nobody's backend.
fn is_mapped(text: &str) -> bool {
    text.parse::<IpAddr>().is_ok_and(|address| address.is_ipv6() && address.to_canonical().is_ipv4())
}

impl Service {
    /// The service with who is behind it now.
    pub(crate) fn with(&self, namespace: &str, name: &str, slices: &[&Slice]) -> services::Service {
        let is_virtual = !self.addresses.is_empty();
        let slices: Vec<&Slice> = slices.iter().copied().filter(|slice| slice.is_proxied || !is_virtual).collect();
        let port = |port: &Port| {
            let name = Some(port.name.clone()).filter(|name| !name.is_empty());
            let targets = self.targets(port, &slices);
            Some(ServicePort {
                name,
                protocol: port.transport()?,
                port: port.number,
                node_port: port.on_nodes,
                targets,
            })
        };
        services::Service {
            name: name.to_owned(),
            namespace: namespace.to_owned(),
            labels: self.labels.clone(),
            selector: self.selector.clone(),
            addresses: self.addresses.clone(),
            ports: self.ports.iter().filter_map(port).collect(),
        }
    }

    /// Whom a connection to the port may reach: who is ready, and those being deleted where nobody of their family is ready
    /// for certain. With a policy `Local` that may be so on another node than this one.
    fn targets(&self, port: &Port, slices: &[&Slice]) -> Vec<Target> {
        let behind: Vec<(Target, State)> = slices.iter().flat_map(|slice| slice.behind(port)).collect();
        let of = |state: State| behind.iter().filter(move |(_, has)| *has == state).map(|(target, _)| *target);
        // Of a backend that slices disagree about, kube-proxy believes the one or the other.
        let doubted: BTreeSet<Target> = of(State::Draining).chain(of(State::Resting)).collect();
        let sure: Vec<Target> = of(State::Ready).filter(|target| !doubted.contains(target)).collect();
        let is_served = |target: &Target| sure.iter().any(|one| one.address.is_ipv4() == target.address.is_ipv4());
        let draining = of(State::Draining).filter(|target| self.is_local || !is_served(target));
        let mut targets: Vec<Target> = Vec::with_capacity(behind.len());
        let mut seen = BTreeSet::new();
        targets.extend(of(State::Ready).chain(draining).filter(|target| seen.insert(*target)));
        targets
    }
}

impl Slice {
    /// Where a port of the service leads: the slice's port has its name.
    fn behind(&self, port: &Port) -> Vec<(Target, State)> {
        let target = self.ports.iter().find(|one| (&one.name, &one.protocol) == (&port.name, &port.protocol));
        let Some(target) = target else { return Vec::new() };
        let target = |one: &Backend| (Target { address: one.address, port: target.number }, one.state);
        self.backends.iter().map(target).collect()
    }
}

#[cfg(test)]
mod tests;
