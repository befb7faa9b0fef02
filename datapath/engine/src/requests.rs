//! The limits that rules set on what is asked inside a flow: for the proxies that read it, and for whoever explains it.

use std::{
    borrow::Cow,
    net::IpAddr,
    sync::{Arc, LazyLock},
};

use namegate_abi::Address;
use namegate_config::{
    labels::Labels,
    name::Fqdn,
    peer::Peer,
    reference::{Flow, Limits, SubjectFacts, limits, limits_asking, limits_nameless},
    rule::{Binding, Direction, Rule},
    services::Target,
};

use crate::{
    EndpointId, Engine, KnownName, LearnedNames, TopologyEndpoint, compile::Policy, engine::Local, fronts::Port,
};

/// The limits that hold whoever of them is reached. A rule counts where it is one of everybody's.
fn together(targets: &[Target], limits: impl Fn(&Target) -> Limits) -> Limits {
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

/// How an endpoint of this node is judged.
pub(crate) struct Judged<'a> {
    /// It is denied everything, since its policy can not be in force.
    pub(crate) is_shut: bool,
    /// The rules of its policy.
    pub(crate) rules: Cow<'a, [Arc<Rule>]>,
}

impl Judged<'_> {
    /// Whether a rule selects the endpoint in this direction.
    fn enforces(&self, direction: Direction) -> bool {
        self.rules.iter().any(|rule| rule.direction == direction)
    }
}

/// Who has an address.
#[derive(Clone, Copy)]
pub(crate) struct Owner<'a> {
    pub(crate) source: &'a TopologyEndpoint,
    /// Endpoint of this node.
    pub(crate) id: Option<EndpointId>,
}

/// Knows who is where, and how endpoints of this node are judged.
pub(crate) trait Judging {
    /// The pod or node that has the address.
    fn owner(&self, address: Address) -> Option<Owner<'_>>;

    /// Whether the address is a virtual one, of a service.
    fn is_virtual(&self, address: Address) -> bool;

    /// Who is behind a port of an address; `None` where the address speaks for itself.
    fn targets(&self, address: Address, port: Port) -> Option<&[Target]>;

    /// `None` where this is no endpoint of this node.
    fn judged(&self, endpoint: EndpointId) -> Option<Judged<'_>>;
}

/// Answers from the rules and endpoints of one moment, and the names that are learned.
#[derive(Clone, Copy)]
pub struct Requests<'a> {
    judging: &'a dyn Judging,
    names: &'a dyn LearnedNames,
}

/// Nobody learned a name.
struct NoNames;

impl LearnedNames for NoNames {
    fn names_of(&self, _: EndpointId, _: IpAddr, _: u64) -> Vec<KnownName> {
        Vec::new()
    }
}

static WORLD: LazyLock<Arc<Labels>> = LazyLock::new(|| Arc::new(Labels::reserved("world")));

impl<'a> Requests<'a> {
    pub(crate) const fn new(judging: &'a dyn Judging, names: &'a dyn LearnedNames) -> Self {
        Self { judging, names }
    }

    /// The same where no address has a name.
    pub(crate) const fn without_names(judging: &'a dyn Judging) -> Self {
        Self { judging, names: &NoNames }
    }

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
        let Some(targets) = self.targets(server, flow) else {
            return self.limits_of(own, peer, direction, flow, now);
        };
        together(targets, |target| {
            let flow = Flow { port: target.port, ..flow };
            match direction {
                Direction::Egress => self.limits_of(own, target.address, direction, flow, now),
                Direction::Ingress => self.limits_of(target.address, peer, direction, flow, now),
            }
        })
    }

    fn limits_of(&self, own: IpAddr, peer: IpAddr, direction: Direction, flow: Flow, now: NamesAt<'_>) -> Limits {
        let Some((source, judged)) = self.judged(own) else { return Limits::Free };
        if judged.is_shut {
            return Limits::Closed(None);
        }
        if !judged.enforces(direction) {
            return Limits::Free;
        }
        let subject = subject(source);
        let of = |ended| limits(&judged.rules, &subject, &self.facts_of(own, peer, now, ended), direction, flow);
        match of(false) {
            Limits::Closed(_) => of(true),
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
        let Some((source, judged)) = self.judged(own) else { return Limits::Free };
        if judged.is_shut {
            return Limits::Closed(None);
        }
        if !judged.enforces(Direction::Egress) {
            return Limits::Free;
        }
        limits(&judged.rules, &subject(source), &self.facts_of(own, peer, since, false))
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
        if self.targets(peer, flow).is_some() {
            return false;
        }
        let Some((source, judged)) = self.judged(own) else { return false };
        if !judged.enforces(Direction::Egress) || !judged.rules.iter().any(|rule| rule.is_bound(binding)) {
            return false;
        }
        let subject = subject(source);
        let facts = self.facts_of(own, peer, since.into(), false);
        let nameless = limits_asking(&judged.rules, &subject, &facts, flow, None, binding);
        nameless != limits(&judged.rules, &subject, &facts, Direction::Egress, flow)
    }

    /// Names that opened the address for this flow, as [`Requests::limits_asking`] sees it; no more than so many.
    pub fn openers(
        &self,
        (own, peer): (IpAddr, IpAddr),
        flow: Flow,
        binding: Binding,
        since: u64,
        max: usize,
    ) -> Vec<Fqdn> {
        let facts = self.facts_of(own, peer, since.into(), false);
        let judged = self.judged(own);
        if judged.as_ref().is_some_and(|(_, judged)| judged.is_shut) {
            return Vec::new();
        }
        let judged = judged.filter(|(_, judged)| judged.enforces(Direction::Egress));
        let opens = |name: &&Fqdn| {
            judged.as_ref().is_none_or(|(source, judged)| {
                let asking = limits_asking(&judged.rules, &subject(source), &facts, flow, Some(name), binding);
                !matches!(asking, Limits::Closed(_))
            })
        };
        facts.names.iter().filter(opens).take(max).cloned().collect()
    }

    /// Who has the address `own`, and how it is judged; `None` where it is no endpoint of this node.
    fn judged(&self, own: IpAddr) -> Option<(&'a TopologyEndpoint, Judged<'a>)> {
        let owner = self.judging.owner(own.to_canonical().into())?;
        Some((owner.source, self.judging.judged(owner.id?)?))
    }

    fn targets(&self, address: IpAddr, flow: Flow) -> Option<&'a [Target]> {
        self.judging.targets(address.to_canonical().into(), (flow.protocol, flow.port))
    }

    /// Who has an address, as the endpoint with the address `own` sees it; `ended` counts names whose TTL has ended too.
    fn facts_of(&self, own: IpAddr, address: IpAddr, now: NamesAt<'_>, ended: bool) -> Peer {
        let address = address.to_canonical();
        if let Some(Owner { source, .. }) = self.judging.owner(address.into()) {
            let named_ports = source.named_ports.as_slice().into();
            return Peer { labels: Arc::clone(&source.labels), address, names: Vec::new(), named_ports };
        }
        if self.judging.is_virtual(address.into()) {
            return Peer { labels: Arc::default(), address, names: Vec::new(), named_ports: Arc::default() };
        }
        let endpoint = self.judging.owner(own.to_canonical().into()).and_then(|owner| owner.id);
        let names = endpoint.into_iter().flat_map(|endpoint| self.names.names_of(endpoint, address, now.at));
        let names = names.filter(|known| ended || !known.ended).map(|known| known.name);
        let names = names.chain(now.known.iter().cloned()).collect();
        Peer { labels: Arc::clone(&WORLD), address, names, named_ports: Arc::new([]) }
    }
}

fn subject(source: &TopologyEndpoint) -> SubjectFacts<'_> {
    SubjectFacts { labels: &source.labels, is_node: false, named_ports: &source.named_ports }
}

impl Judging for Engine {
    fn owner(&self, address: Address) -> Option<Owner<'_>> {
        self.peers.owner(address).map(|peer| Owner { source: peer.source(), id: peer.id })
    }

    fn is_virtual(&self, address: Address) -> bool {
        self.peers.front(address).is_some()
    }

    fn targets(&self, address: Address, port: Port) -> Option<&[Target]> {
        self.peers.behind(address.to_ip(), port).map(|behind| &*behind.targets)
    }

    fn judged(&self, endpoint: EndpointId) -> Option<Judged<'_>> {
        let local = self.local.get(&endpoint)?;
        let policy = self.policies.get(&local.policy);
        let rules = policy.into_iter().flat_map(Policy::rules).map(|numbered| Arc::clone(&numbered.rule));
        Some(Judged { is_shut: Local::is_shut(local), rules: rules.collect() })
    }
}

impl Engine {
    /// The limits that its rules set now.
    pub fn requests(&self) -> Requests<'_> {
        Requests::new(self, self)
    }
}
