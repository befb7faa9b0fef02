//! Where the DNS workers ask: who has an address, who is a trusted resolver, and installing answers.

use std::{
    net::{IpAddr, SocketAddr},
    sync::Arc,
};

use namegate_config::reference::Flow;
use namegate_dns_proxy::{Asked, Backend, Forbidden, NotInstalled, Share, Suspicion, forbidden};
use namegate_enforcer::EnforcerHandle;
use namegate_engine::{Answer, EndpointId};

use super::refusals::{Bound, Refusals};

/// IANA protocol numbers.
const TCP: u8 = 6;
const UDP: u8 = 17;

/// The backend of the agent.
#[derive(Clone)]
pub(crate) struct DnsBackend {
    enforcer: EnforcerHandle,
    refusals: Arc<Refusals>,
    /// Denials are recorded only: no question is refused.
    audit: bool,
}

impl DnsBackend {
    pub(crate) fn new(enforcer: EnforcerHandle, refusals: Arc<Refusals>, audit: bool) -> Self {
        Self { enforcer, refusals, audit }
    }
}

impl Backend for DnsBackend {
    fn endpoint(&self, address: IpAddr) -> Option<EndpointId> {
        self.enforcer.reader().view().endpoint_by_address(address)
    }

    fn is_trusted(&self, resolver: IpAddr) -> bool {
        self.enforcer.reader().view().trusts(resolver)
    }

    fn limits(&self, client: IpAddr) -> bool {
        !self.audit && self.enforcer.reader().view().limits_dns(client)
    }

    fn forbids(&self, client: IpAddr, resolver: SocketAddr, over_tcp: bool, asked: Asked<'_>) -> Option<Forbidden> {
        let flow = Flow { protocol: if over_tcp { TCP } else { UDP }, port: resolver.port() };
        forbidden(&self.enforcer.reader().view().dns_limits(client, resolver.ip(), flow), asked)
    }

    fn suspects(&self, suspicion: Suspicion) {
        let Suspicion { endpoint, parent, names, refused } = suspicion;
        let view = self.enforcer.reader().view();
        let endpoint = view.endpoint_key(endpoint).unwrap_or_default();
        tracing::warn!(endpoint, parent, names, refused, "questions of a minute look like a tunnel");
    }

    fn refused(&self, share: Share, endpoint: Option<EndpointId>) {
        let bound = match share {
            Share::Pending => Bound::DnsPending,
            Share::TcpClients => Bound::DnsTcpClients,
            Share::Retries => Bound::DnsRetries,
            Share::Sockets => Bound::DnsSockets,
        };
        self.refusals.count(bound, endpoint.map_or(0, |endpoint| endpoint.0));
    }

    async fn install(&self, answers: Vec<Answer>) -> Vec<Result<(), NotInstalled>> {
        let installed = self.enforcer.learn(answers).await;
        installed.into_iter().map(|result| result.map_err(not_installed)).collect()
    }
}

const fn not_installed(why: namegate_enforcer::NotInstalled) -> NotInstalled {
    match why {
        namegate_enforcer::NotInstalled::Full => NotInstalled::Full,
        namegate_enforcer::NotInstalled::TooMany => NotInstalled::TooMany,
        namegate_enforcer::NotInstalled::Unknown => NotInstalled::Unknown,
        namegate_enforcer::NotInstalled::Write => NotInstalled::Write,
        namegate_enforcer::NotInstalled::Stopped => NotInstalled::Closed,
    }
}
