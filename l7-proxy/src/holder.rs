//! Whose share a connection is.

use std::net::{IpAddr, Ipv6Addr};

use crate::backend::Backend;

/// Bits of an IPv6 address that name a network whose hosts are one client: who has one address of it has all.
const CLIENT_NETWORK: u128 = u128::MAX << 64;

/// Whose share of the connections a connection is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Holder {
    /// An endpoint of this node that calls, by whichever of its addresses.
    Caller(u32),
    /// An endpoint of this node that is called from elsewhere.
    Called(u32),
    /// A client where neither end is known: its address, of IPv6 the network.
    Client(IpAddr),
}

/// The address of an IPv4 client, the network of an IPv6 client.
pub(crate) fn network(client: IpAddr) -> IpAddr {
    match client.to_canonical() {
        IpAddr::V6(address) => Ipv6Addr::from_bits(address.to_bits() & CLIENT_NETWORK).into(),
        IpAddr::V4(address) => address.into(),
    }
}

impl Holder {
    /// Whose a connection with these ends is.
    pub(crate) fn of(backend: &impl Backend, client: IpAddr, server: Option<IpAddr>) -> Self {
        let (client, server) = (client.to_canonical(), server.map(|server| server.to_canonical()));
        if let Some(endpoint) = backend.endpoint(client) {
            return Self::Caller(endpoint);
        }
        let called = server.and_then(|server| backend.endpoint(server));
        called.map_or_else(|| Self::Client(network(client)), Self::Called)
    }

    /// The endpoint that is refused more, where it is one.
    pub(crate) fn endpoint(self) -> Option<u32> {
        match self {
            Self::Caller(endpoint) | Self::Called(endpoint) => Some(endpoint),
            Self::Client(_) => None,
        }
    }
}
