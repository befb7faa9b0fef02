//! The other side of a flow as selectors see it: labels, an address and the names it was learned under.

use std::{net::IpAddr, sync::Arc};

use crate::{labels::Labels, name::Fqdn};

/// Someone a flow goes to or comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Peer {
    /// Labels; `reserved:world` for whoever is outside the cluster. See [`crate::labels::Labels`].
    pub labels: Arc<Labels>,
    /// The address judged.
    pub address: IpAddr,
    /// Names by which the judged endpoint learned the address and whose TTL has not ended. Empty for pods and nodes.
    pub names: Vec<Fqdn>,
    /// Named ports of the peer: name, protocol and number. Used for egress rules with named ports.
    pub named_ports: Arc<[NamedPort]>,
}

/// A port that an endpoint names in its specification.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct NamedPort {
    /// Lower case.
    pub name: String,
    /// Protocol.
    pub protocol: crate::rule::Transport,
    /// Number.
    pub port: u16,
}
