//! Where the DNS workers ask: who has an address, who is a trusted resolver, and installing answers.

use std::{
    collections::{HashMap, HashSet},
    net::{IpAddr, SocketAddr},
    sync::Arc,
};

use arc_swap::ArcSwap;
use namegate_config::{
    l7::L7,
    name::Fqdn,
    reference::{Flow, Limits},
    rule::Rule,
};
use namegate_dns_proxy::{Desk, NotInstalled};
use namegate_engine::{Answer, Askers, EndpointId, Engine};

use super::gate::Door;

/// IANA protocol numbers.
const TCP: u8 = 6;
const UDP: u8 = 17;

/// Endpoints and resolvers by address; replaced as a whole when they change.
#[derive(Debug, Default)]
pub(crate) struct Clients {
    endpoints: HashMap<IpAddr, EndpointId>,
    resolvers: HashSet<IpAddr>,
    askers: Askers,
}

impl Clients {
    /// What the engine knows now.
    pub(crate) fn of(engine: &Engine) -> Self {
        Self {
            endpoints: engine.addresses_of_endpoints().into_iter().collect(),
            resolvers: engine.resolvers().iter().copied().collect(),
            askers: engine.askers(),
        }
    }
}

/// The desk of the agent.
#[derive(Clone)]
pub(crate) struct GateDesk {
    clients: Arc<ArcSwap<Clients>>,
    door: Door,
    /// Denials are recorded only: no question is refused.
    audit: bool,
}

impl GateDesk {
    pub(crate) fn new(clients: Arc<ArcSwap<Clients>>, door: Door, audit: bool) -> Self {
        Self { clients, door, audit }
    }
}

impl Desk for GateDesk {
    fn endpoint(&self, address: IpAddr) -> Option<EndpointId> {
        self.clients.load().endpoints.get(&address).copied()
    }

    fn is_trusted(&self, resolver: IpAddr) -> bool {
        self.clients.load().resolvers.contains(&resolver)
    }

    fn limits(&self, client: IpAddr) -> bool {
        !self.audit && self.clients.load().askers.has(client)
    }

    fn forbids(&self, client: IpAddr, resolver: SocketAddr, over_tcp: bool, name: Option<&Fqdn>) -> Option<String> {
        let flow = Flow { protocol: if over_tcp { TCP } else { UDP }, port: resolver.port() };
        forbidden(&self.clients.load().askers.limits(client, resolver.ip(), flow), name)
    }

    async fn install(&self, answers: Vec<Answer>) -> Vec<Result<(), NotInstalled>> {
        let count = answers.len();
        self.door.learn(answers).await.unwrap_or_else(|_| vec![Err(NotInstalled::Closed); count])
    }
}

/// Why a question for the name is refused; `None` where it may be asked. A name that no pattern can stand for is none.
pub(crate) fn forbidden(limits: &Limits, name: Option<&Fqdn>) -> Option<String> {
    match limits {
        Limits::Free => None,
        Limits::Closed(rule) => {
            Some(rule.as_ref().map_or_else(|| "no rule allows this resolver".to_owned(), ToString::to_string))
        }
        Limits::Rules(rules) => {
            let allows = |rule: &Arc<Rule>| match (rule.l7.as_deref(), name) {
                (Some(L7::Dns(patterns)), Some(name)) => patterns.iter().any(|pattern| pattern.matches(name)),
                _ => false,
            };
            let first = rules.first().map(|rule| format!("no pattern of {} allows this name", rule.origin));
            first.filter(|_| !rules.iter().any(allows))
        }
    }
}
