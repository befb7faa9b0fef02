//! Virtual addresses, and those of nodes, with the ports behind which are others.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    ops::RangeInclusive,
    sync::Arc,
};

use namegate_abi::Address;
use namegate_config::services::{Service, Target};

use crate::{TopologyNode, fronts::Port};

/// Who is behind a port.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Behind {
    /// `namespace/name` of the service; the first where there are several.
    pub(crate) service: Arc<str>,
    /// Of the same address family as the port's address.
    pub(crate) targets: Vec<Target>,
}

/// Ports of services by address.
#[derive(Debug, Default)]
pub(super) struct Fronts {
    services: Vec<Service>,
    /// Addresses of services that pods have too. Packets between pods of one bridge may pass whoever sends them on.
    of_pods: BTreeSet<Address>,
    ports: BTreeMap<Address, BTreeMap<Port, Behind>>,
    /// Addresses behind a port of which a target is.
    of_targets: BTreeMap<Address, BTreeSet<Address>>,
    /// Ports that more than one service has.
    conflicts: u64,
}

impl Fronts {
    /// Takes every service; gives the addresses behind which are others now. A pod that has the address of a service is
    /// one of those behind each of its ports.
    pub(super) fn replace(
        &mut self,
        services: Vec<Service>,
        of_pods: BTreeSet<Address>,
        nodes: &[TopologyNode],
        are_nodes_same: bool,
    ) -> BTreeSet<Address> {
        if self.services == services && self.of_pods == of_pods && are_nodes_same {
            return BTreeSet::new();
        }
        self.services = services;
        self.of_pods = of_pods;
        let old = std::mem::take(&mut self.ports);
        self.conflicts = 0;
        let of_nodes: Vec<IpAddr> = nodes.iter().flat_map(|node| node.addresses.iter().copied()).collect();
        for service in std::mem::take(&mut self.services) {
            self.add(&service, &of_nodes);
            self.services.push(service);
        }
        let addresses = old.keys().chain(self.ports.keys());
        let changed: BTreeSet<Address> =
            addresses.filter(|address| old.get(*address) != self.ports.get(*address)).copied().collect();
        for address in &changed {
            self.index(*address, old.get(address));
        }
        changed
    }

    fn add(&mut self, service: &Service, nodes: &[IpAddr]) {
        let name: Arc<str> = format!("{}/{}", service.namespace, service.name).into();
        for port in &service.ports {
            let own = service.addresses.iter().map(|address| (address, port.port));
            let serves = |node: &&IpAddr| service.addresses.is_empty() || has_family(service, **node);
            let of_nodes = port.node_port.into_iter().flat_map(|number| {
                let nodes = nodes.iter().filter(serves);
                nodes.map(move |node| (node, number))
            });
            for (address, number) in own.chain(of_nodes) {
                let address = address.to_canonical();
                let behind = self.ports.entry(address.into()).or_default();
                let behind = behind.entry((port.protocol.number(), number)).or_default();
                if behind.service.is_empty() {
                    behind.service = Arc::clone(&name);
                } else {
                    self.conflicts += 1;
                }
                let reached =
                    port.targets.iter().filter(|one| one.address.to_canonical().is_ipv4() == address.is_ipv4());
                behind.targets.extend(reached.copied());
                let itself = Target { address, port: number };
                if self.of_pods.contains(&address.into()) && !behind.targets.contains(&itself) {
                    behind.targets.push(itself);
                }
            }
        }
    }

    /// Notes which targets are behind an address, instead of the old ones.
    fn index(&mut self, address: Address, old: Option<&BTreeMap<Port, Behind>>) {
        for target in old.into_iter().flat_map(targets_of) {
            if let Some(fronts) = self.of_targets.get_mut(&target) {
                fronts.remove(&address);
                if fronts.is_empty() {
                    self.of_targets.remove(&target);
                }
            }
        }
        for target in self.ports.get(&address).into_iter().flat_map(targets_of) {
            self.of_targets.entry(target).or_default().insert(address);
        }
    }

    pub(super) fn get(&self, address: Address) -> Option<&BTreeMap<Port, Behind>> {
        self.ports.get(&address)
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (&Address, &BTreeMap<Port, Behind>)> {
        self.ports.iter()
    }

    pub(super) fn in_range(&self, range: RangeInclusive<Address>) -> impl Iterator<Item = Address> {
        self.ports.range(range).map(|(address, _)| *address)
    }

    pub(super) fn of_target(&self, target: Address) -> impl Iterator<Item = Address> {
        self.of_targets.get(&target).into_iter().flatten().copied()
    }

    pub(super) fn targets_in(&self, range: RangeInclusive<Address>) -> impl Iterator<Item = Address> {
        self.of_targets.range(range).map(|(target, _)| *target)
    }

    /// A port without a service is whoever has the address: both of DNS must be there.
    pub(super) fn in_front_of(&self, resolvers: &BTreeSet<IpAddr>) -> Vec<IpAddr> {
        const DNS: [Port; 2] = [(17, 53), (6, 53)];
        let is_trusted = |behind: &Behind| {
            let mut targets = behind.targets.iter();
            !behind.targets.is_empty() && targets.all(|target| resolvers.contains(&target.address.to_canonical()))
        };
        let of_dns = |ports: &BTreeMap<Port, Behind>| DNS.iter().all(|port| ports.get(port).is_some_and(is_trusted));
        self.ports.iter().filter(|(_, ports)| of_dns(ports)).map(|(address, _)| address.to_ip()).collect()
    }

    pub(super) const fn conflicts(&self) -> u64 {
        self.conflicts
    }
}

/// Whether the service has an address of the family; where it has none, nobody sends packets of the family on.
fn has_family(service: &Service, of: IpAddr) -> bool {
    service.addresses.iter().any(|address| address.to_canonical().is_ipv4() == of.to_canonical().is_ipv4())
}

fn targets_of(ports: &BTreeMap<Port, Behind>) -> impl Iterator<Item = Address> {
    let targets = ports.values().flat_map(|behind| &behind.targets);
    targets.map(|target| Address::from(target.address.to_canonical()))
}
