//! What a proxy that reads requests asks: which limits the rules set on those of one connection.

use std::{net::IpAddr, sync::Arc};

use namegate_config::{
    labels::Labels,
    name::Fqdn,
    peer::Peer,
    reference::{Flow, Limits, SubjectFacts, limits, limits_asking, limits_nameless},
    rule::{Binding, Direction, Rule},
    services::Target,
};

use crate::{Engine, compile::Policy, engine::Local, topology::Who};

/// The limits that hold whoever of them is reached. A rule counts where it is one of everybody's.
pub(crate) fn together(targets: &[Target], limits: impl Fn(&Target) -> Limits) -> Limits {
    let mut all: Option<Vec<Arc<Rule>>> = None;
    for target in targets {
        match limits(target) {
            Limits::Free => {}
            Limits::Closed(by) => return Limits::Closed(by),
            Limits::Rules(rules) => match &mut all {
                None => all = Some(rules),
                Some(common) => common.retain(|rule| rules.contains(rule)),
            },
        }
    }
    match all {
        _ if targets.is_empty() => Limits::Closed(None),
        Some(rules) => Limits::Rules(rules),
        None => Limits::Free,
    }
}

/// Which names an address has for an endpoint.
#[derive(Clone, Copy, Debug)]
pub struct NamesAt<'k> {
    /// Names whose TTL had not ended then, in nanoseconds since the boot.
    pub at: u64,
    /// Names that count as well: those that opened the address for a connection when it was let pass.
    pub known: &'k [Fqdn],
}

impl From<u64> for NamesAt<'_> {
    fn from(at: u64) -> Self {
        Self { at, known: &[] }
    }
}

impl Engine {
    /// The limits on requests inside a flow between an endpoint of this node, which has the address `own`, and `peer`;
    /// [`Limits::Free`] where no policy holds, or where nobody here has the address.
    ///
    /// Whether the flow may begin is the kernel's to say. Connections outlive the TTL of a name: where nothing else allows
    /// the flow, names count here for an hour longer.
    /// Behind a port of a service a request must be allowed for all who are there: by the rules about them, and by theirs
    /// where `own` is an address of the service.
    pub fn limits<'k>(
        &self,
        own: IpAddr,
        peer: IpAddr,
        direction: Direction,
        flow: Flow,
        now: impl Into<NamesAt<'k>>,
    ) -> Limits {
        let now = now.into();
        let server = if direction == Direction::Egress { peer } else { own };
        let Some(behind) = self.peers.behind(server, (flow.protocol, flow.port)) else {
            return self.limits_of(own, peer, direction, flow, now);
        };
        together(&behind.targets, |target| {
            let flow = Flow { port: target.port, ..flow };
            match direction {
                Direction::Egress => self.limits_of(own, target.address, direction, flow, now),
                Direction::Ingress => self.limits_of(target.address, peer, direction, flow, now),
            }
        })
    }

    fn limits_of(&self, own: IpAddr, peer: IpAddr, direction: Direction, flow: Flow, now: NamesAt<'_>) -> Limits {
        if self.is_shut(own) {
            return Limits::Closed(None);
        }
        let Some((who, policy)) = self.judged(own, direction) else { return Limits::Free };
        let rules: Vec<Arc<Rule>> = policy.rules().map(|numbered| Arc::clone(&numbered.rule)).collect();
        let subject = SubjectFacts { labels: &who.labels, is_node: false, named_ports: &who.named_ports };
        match limits(&rules, &subject, &self.facts_of(own, peer, now, false), direction, flow) {
            Limits::Closed(_) => limits(&rules, &subject, &self.facts_of(own, peer, now, true), direction, flow),
            open => open,
        }
    }

    /// The limits on what a connection from the endpoint with the address `own` asks for, when it asks for a name: as
    /// [`limits_asking`]. Names count whose TTL had not ended at `since`, when the connection began.
    pub fn limits_asking<'k>(
        &self,
        own: IpAddr,
        peer: IpAddr,
        flow: Flow,
        asked: Option<&Fqdn>,
        binding: Binding,
        since: impl Into<NamesAt<'k>>,
    ) -> Limits {
        self.limits_seen(own, peer, since.into(), |rules, subject, peer| {
            limits_asking(rules, subject, peer, flow, asked, binding)
        })
    }

    /// The same for a connection of a protocol without names: as [`limits_nameless`].
    pub fn limits_nameless<'k>(
        &self,
        own: IpAddr,
        peer: IpAddr,
        flow: Flow,
        binding: Binding,
        since: impl Into<NamesAt<'k>>,
    ) -> Limits {
        self.limits_seen(own, peer, since.into(), |rules, subject, peer| {
            limits_nameless(rules, subject, peer, flow, binding)
        })
    }

    fn limits_seen(
        &self,
        own: IpAddr,
        peer: IpAddr,
        since: NamesAt<'_>,
        limits: impl FnOnce(&[Arc<Rule>], &SubjectFacts<'_>, &Peer) -> Limits,
    ) -> Limits {
        if self.is_shut(own) {
            return Limits::Closed(None);
        }
        let Some((who, policy)) = self.judged(own, Direction::Egress) else { return Limits::Free };
        let rules: Vec<Arc<Rule>> = policy.rules().map(|numbered| Arc::clone(&numbered.rule)).collect();
        let subject = SubjectFacts { labels: &who.labels, is_node: false, named_ports: &who.named_ports };
        limits(&rules, &subject, &self.facts_of(own, peer, since, false))
    }

    /// Whether it matters for which name a connection asks that began at `since`. No name opens a service.
    pub fn is_bound<'k>(
        &self,
        own: IpAddr,
        peer: IpAddr,
        flow: Flow,
        binding: Binding,
        since: impl Into<NamesAt<'k>>,
    ) -> bool {
        if self.peers.behind(peer, (flow.protocol, flow.port)).is_some() {
            return false;
        }
        let Some((who, policy)) = self.judged(own, Direction::Egress) else { return false };
        if !policy.rules().any(|numbered| numbered.rule.is_bound(binding)) {
            return false;
        }
        let rules: Vec<Arc<Rule>> = policy.rules().map(|numbered| Arc::clone(&numbered.rule)).collect();
        let subject = SubjectFacts { labels: &who.labels, is_node: false, named_ports: &who.named_ports };
        let facts = self.facts_of(own, peer, since.into(), false);
        let nameless = limits_asking(&rules, &subject, &facts, flow, None, binding);
        nameless != limits(&rules, &subject, &facts, Direction::Egress, flow)
    }

    /// Names that opened the address for this flow, as [`Engine::limits_asking`] sees it.
    pub fn openers(&self, own: IpAddr, peer: IpAddr, flow: Flow, binding: Binding, since: u64) -> Vec<Fqdn> {
        let names = self.facts_of(own, peer, since.into(), false).names;
        let opens =
            |name: &Fqdn| !matches!(self.limits_asking(own, peer, flow, Some(name), binding, since), Limits::Closed(_));
        names.into_iter().filter(opens).collect()
    }

    /// Whether the endpoint with the address `own` is denied everything, since its policy can not be in force.
    fn is_shut(&self, own: IpAddr) -> bool {
        let local = self.endpoint_by_address(own).and_then(|id| self.local.get(&id));
        local.is_some_and(Local::is_shut)
    }

    /// The endpoint with the address `own`, and its policy where that holds in this direction.
    fn judged(&self, own: IpAddr, direction: Direction) -> Option<(&Who, &Policy)> {
        let who = self.peers.owner(own.to_canonical().into())?;
        let policy = self.local.get(&who.id?).and_then(|local| self.policies.get(&local.policy))?;
        policy.enforces(direction).then_some((who, policy))
    }

    /// Who has an address, as the endpoint with the address `own` sees it; `ended` counts names whose TTL has ended too.
    fn facts_of(&self, own: IpAddr, address: IpAddr, now: NamesAt<'_>, ended: bool) -> Peer {
        let address = address.to_canonical();
        if let Some((labels, named_ports)) = self.peers.facts(address.into()) {
            return Peer { labels, address, names: Vec::new(), named_ports };
        }
        let endpoint = self.endpoint_by_address(own);
        let names = endpoint.into_iter().flat_map(|endpoint| self.names_of(endpoint, address, now.at));
        let names = names.filter(|known| ended || !known.ended).map(|known| known.name);
        let names = names.chain(now.known.iter().cloned()).collect();
        Peer { labels: Arc::new(Labels::reserved("world")), address, names, named_ports: Arc::new([]) }
    }
}
