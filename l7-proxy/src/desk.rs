//! The door to whoever knows rules and keeps records.

use std::{future::Future, net::SocketAddr, sync::Arc, time::Duration};

use namegate_config::{
    reference::Limits,
    rule::{Direction, Origin},
};

/// Answers what is asked of the requests of a connection, and takes records of them.
pub trait Desk: Clone + Send + Sync + 'static {
    /// The limits on requests of `client` to `server`, the address that it called. `None` where nobody answers: then no
    /// request passes.
    fn demand(&self, client: SocketAddr, server: SocketAddr) -> impl Future<Output = Option<Demand>> + Send;

    /// Grows when answers may have changed: open connections ask anew before their next request. It must not block.
    fn revision(&self) -> u64;

    /// Takes a record. It must not block.
    fn record(&self, access: Access);
}

/// What is asked of the requests of one connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Demand {
    /// The limits of each end that has any; a request passes where every one lets it pass.
    pub sides: Vec<(Direction, Limits)>,
    /// Whether the server is to see the client's address: its answers find their way back to the proxy.
    pub keeps_source: bool,
    /// What would be denied passes, and is recorded as such.
    pub audit: bool,
}

/// What became of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    /// It passed.
    Allowed,
    /// It did not.
    Denied,
    /// It passed, and would not outside of audit mode.
    Audited,
}

/// A record of one request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Access {
    /// Who asked.
    pub client: SocketAddr,
    /// Whom.
    pub server: SocketAddr,
    /// The end whose rules decided.
    pub direction: Direction,
    /// The rule that decided.
    pub rule: Option<Arc<Origin>>,
    /// What became of it.
    pub fate: Fate,
    /// What was asked.
    pub what: What,
}

/// What a request asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum What {
    /// HTTP.
    Http {
        /// Method.
        method: String,
        /// Normalised path, and query.
        path: String,
        /// Host.
        host: String,
        /// Status that the client got.
        code: u16,
        /// From the request's head to that of the response.
        latency: Duration,
    },
    /// A TLS connection.
    Tls {
        /// The name it asked for.
        server_name: Option<String>,
    },
}
