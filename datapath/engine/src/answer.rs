//! What the DNS proxy tells the engine: one checked answer of a trusted resolver.

use std::net::IpAddr;

use namegate_config::name::Fqdn;

/// An endpoint on this node, as the kernel knows it. Never zero.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize)]
pub struct EndpointId(pub u32);

/// Addresses that a trusted resolver gave to one endpoint for a name it asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// Who asked.
    pub endpoint: EndpointId,
    /// The asked name, then every alias of the chain in order (RFC 1034 §3.6.2). Never empty.
    pub names: Vec<Fqdn>,
    /// Addresses at the end of the chain, with the smallest TTL on the way to each, in seconds as on the wire (a set
    /// top bit already read as zero, RFC 2181 §8).
    pub addresses: Vec<(IpAddr, u32)>,
}
