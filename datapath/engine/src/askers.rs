//! A picture of the endpoints whose questions to resolvers are limited, for threads that must not wait for the engine.

use std::{
    collections::HashMap,
    net::IpAddr,
    sync::{Arc, LazyLock},
};

use namegate_config::{
    l7::L7,
    labels::Labels,
    peer::{NamedPort, Peer},
    reference::{Flow, Limits, SubjectFacts, limits},
    rule::{Direction, Rule},
    services::Target,
};

use crate::{Engine, compile::Policy, fronts::Port, requests::together};

/// Endpoints with rules that limit DNS names, and who else is where.
#[derive(Clone, Debug, Default)]
pub struct Askers {
    subjects: HashMap<IpAddr, Arc<Subject>>,
    peers: HashMap<IpAddr, (Arc<Labels>, Arc<[NamedPort]>)>,
    /// Who is behind ports of virtual addresses.
    targets: HashMap<(IpAddr, Port), Vec<Target>>,
}

#[derive(Debug)]
struct Subject {
    labels: Arc<Labels>,
    rules: Vec<Arc<Rule>>,
}

static WORLD: LazyLock<Arc<Labels>> = LazyLock::new(|| Arc::new(Labels::reserved("world")));

impl Askers {
    /// Whether a rule limits what an endpoint with this address asks.
    pub fn has(&self, own: IpAddr) -> bool {
        self.subjects.contains_key(&own.to_canonical())
    }

    /// The limits on what an endpoint with the address `own` asks of `resolver`; [`Limits::Free`] where no rule for it
    /// limits DNS names. Names of the resolver itself do not count.
    pub fn limits(&self, own: IpAddr, resolver: IpAddr, flow: Flow) -> Limits {
        let Some(subject) = self.subjects.get(&own.to_canonical()) else { return Limits::Free };
        let address = resolver.to_canonical();
        match self.targets.get(&(address, (flow.protocol, flow.port))) {
            Some(targets) => together(targets, |target| {
                self.limits_of(subject, target.address.to_canonical(), Flow { port: target.port, ..flow })
            }),
            None => self.limits_of(subject, address, flow),
        }
    }

    fn limits_of(&self, subject: &Subject, address: IpAddr, flow: Flow) -> Limits {
        let (labels, named_ports) = match self.peers.get(&address) {
            Some((labels, named_ports)) => (Arc::clone(labels), Arc::clone(named_ports)),
            None => (Arc::clone(&WORLD), Arc::default()),
        };
        let peer = Peer { labels, address, names: Vec::new(), named_ports };
        let facts = SubjectFacts { labels: &subject.labels, is_node: false, named_ports: &[] };
        limits(&subject.rules, &facts, &peer, Direction::Egress, flow)
    }
}

impl Engine {
    /// The picture as it is now.
    pub fn askers(&self) -> Askers {
        let mut askers = Askers::default();
        for (id, _, who) in self.peers.local() {
            let policy = self.local.get(&id).and_then(|local| self.policies.get(&local.policy));
            let rules: Vec<Arc<Rule>> =
                policy.into_iter().flat_map(Policy::rules).map(|numbered| Arc::clone(&numbered.rule)).collect();
            if !rules.iter().any(|rule| matches!(rule.l7.as_deref(), Some(L7::Dns(_)))) {
                continue;
            }
            let subject = Arc::new(Subject { labels: Arc::clone(&who.labels), rules });
            let addresses = who.addresses.iter().map(IpAddr::to_canonical);
            askers.subjects.extend(addresses.map(|address| (address, Arc::clone(&subject))));
        }
        if !askers.subjects.is_empty() {
            let known = self.peers.owners.keys().chain(self.peers.fronts.keys());
            let facts = known.filter_map(|address| Some((address.to_ip(), self.peers.facts(*address)?)));
            askers.peers = facts.collect();
            let fronts =
                self.peers.fronts.iter().flat_map(|(address, ports)| ports.iter().map(move |one| (address, one)));
            askers.targets =
                fronts.map(|(address, (port, behind))| ((address.to_ip(), *port), behind.targets.clone())).collect();
        }
        askers
    }
}
