//! What workers need of the configuration.

use std::net::SocketAddr;

use namegate_config::settings::Refusal;

use crate::{bounds::Bounds, socket::Marked, transaction::Patience};

/// What workers need of [`Config`](crate::Config).
#[derive(Clone, Copy, Debug)]
pub(crate) struct Settings {
    pub(crate) patience: Patience,
    pub(crate) marked: Marked,
    pub(crate) refusal: Refusal,
    pub(crate) refuses_tunnels: bool,
    pub(crate) bounds: Bounds,
    pub(crate) fixed_resolver: Option<SocketAddr>,
    pub(crate) port: u16,
}

impl Settings {
    /// Who is to be asked where a client asked `destination`; none where that would be the proxy itself.
    pub(crate) fn resolver_for(&self, destination: SocketAddr) -> Option<SocketAddr> {
        let is_own = |address: SocketAddr| address.ip().is_loopback() && address.port() == self.port;
        let resolver = if is_own(destination) { self.fixed_resolver? } else { destination };
        (!is_own(resolver)).then_some(resolver)
    }
}
