//! Where the DNS workers ask: who has an address, who is a trusted resolver, and installing answers.

use std::{
    collections::{HashMap, HashSet},
    net::IpAddr,
    sync::Arc,
};

use arc_swap::ArcSwap;
use namegate_dns_proxy::{Desk, NotInstalled};
use namegate_engine::{Answer, EndpointId, Engine};

use super::gate::Door;

/// Endpoints and resolvers by address; replaced as a whole when they change.
#[derive(Debug, Default)]
pub(crate) struct Clients {
    endpoints: HashMap<IpAddr, EndpointId>,
    resolvers: HashSet<IpAddr>,
}

impl Clients {
    /// What the engine knows now.
    pub(crate) fn of(engine: &Engine) -> Self {
        Self {
            endpoints: engine.addresses_of_endpoints().into_iter().collect(),
            resolvers: engine.resolvers().iter().copied().collect(),
        }
    }
}

/// The desk of the agent.
#[derive(Clone)]
pub(crate) struct GateDesk {
    clients: Arc<ArcSwap<Clients>>,
    door: Door,
}

impl GateDesk {
    pub(crate) fn new(clients: Arc<ArcSwap<Clients>>, door: Door) -> Self {
        Self { clients, door }
    }
}

impl Desk for GateDesk {
    fn endpoint(&self, address: IpAddr) -> Option<EndpointId> {
        self.clients.load().endpoints.get(&address).copied()
    }

    fn is_trusted(&self, resolver: IpAddr) -> bool {
        self.clients.load().resolvers.contains(&resolver)
    }

    async fn install(&self, answers: Vec<Answer>) -> Vec<Result<(), NotInstalled>> {
        let count = answers.len();
        self.door.learn(answers).await.unwrap_or_else(|_| vec![Err(NotInstalled::Closed); count])
    }
}
