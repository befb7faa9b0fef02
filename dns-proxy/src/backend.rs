//! What the proxy asks of the agent, which owns endpoints and maps.

use std::{
    future::Future,
    net::{IpAddr, SocketAddr},
};

use namegate_config::name::Fqdn;
use namegate_engine::{Answer, EndpointId};

/// Answers the proxy's questions about endpoints and resolvers, and takes what it learned.
///
/// The questions are asked for every question on the worker's own thread: they must not block.
pub trait Backend: Clone + Send + Sync + 'static {
    /// The endpoint that has this address. Without one the question is answered REFUSED and counted.
    fn endpoint(&self, address: IpAddr) -> Option<EndpointId>;

    /// Whether answers of this resolver may open addresses. Without it a question is forwarded and nothing recorded.
    fn is_trusted(&self, resolver: IpAddr) -> bool;

    /// What keeps a client from asking `resolver`; `None` where it may. The client gets the reason as extended error
    /// (RFC 8914).
    fn forbids(&self, client: IpAddr, resolver: SocketAddr, over_tcp: bool, asked: Asked<'_>) -> Option<Forbidden> {
        let _ = (client, resolver, over_tcp, asked);
        None
    }

    /// Whether [`Backend::forbids`] is to be asked for this client.
    fn limits(&self, client: IpAddr) -> bool {
        let _ = client;
        false
    }

    /// Takes note that an endpoint's questions look like a tunnel: at most once in a minute for each endpoint and parent.
    fn suspects(&self, suspicion: Suspicion) {
        let _ = suspicion;
    }

    /// Takes note that something was refused to an endpoint since it has its share; `None` is a client that is no endpoint.
    fn refused(&self, share: Share, endpoint: Option<EndpointId>) {
        let _ = (share, endpoint);
    }

    /// Hands over the checked answers of one batch, which are all of one endpoint; resolves when the kernel holds them. One
    /// result per answer, in order. Runs on the worker's tokio runtime and is dropped at `install_timeout`.
    fn install(&self, answers: Vec<Answer>) -> impl Future<Output = Vec<Result<(), NotInstalled>>> + Send;
}

/// What a question asks for.
#[derive(Clone, Copy, Debug)]
pub struct Asked<'q> {
    /// None where no pattern can stand for the name.
    pub name: Option<&'q Fqdn>,
    /// Number of the record type.
    pub kind: u16,
}

/// What endpoints share.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Share {
    /// Questions under way.
    Pending,
    /// Connections of clients.
    TcpClients,
    /// Questions over TCP to resolvers.
    Retries,
    /// Sockets to resolvers.
    Sockets,
}

/// Why a question is not asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Forbidden {
    /// For people.
    pub reason: String,
    /// The name may be asked for, only not with this type.
    pub is_name_allowed: bool,
}

/// Questions that look like a tunnel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Suspicion {
    /// Who asks.
    pub endpoint: EndpointId,
    /// What the names are below.
    pub parent: String,
    /// Different names within a minute.
    pub names: usize,
    /// Whether further names are refused.
    pub refused: bool,
}

/// Why the gate does not hold an answer. The client gets SERVFAIL with these words as extended error (RFC 8914).
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NotInstalled {
    /// A map or another bound is full, or the endpoint is closed since its policy found no room.
    #[error("the gate has no room for the addresses of this answer")]
    Full,
    /// The answer has more addresses than one name may have.
    #[error("this answer has more addresses than `dns.addressesPerNameMax` allows")]
    TooMany,
    /// The endpoint that asked is gone.
    #[error("the gate does not know the endpoint any more")]
    Unknown,
    /// The kernel refused a row.
    #[error("the gate could not write the addresses of this answer")]
    Write,
    /// Nobody owns the maps any more.
    #[error("the gate is shutting down")]
    Closed,
}
