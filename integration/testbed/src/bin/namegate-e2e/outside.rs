//! Everything that is not of the cluster: a resolver, and web servers on every address.

use std::collections::HashSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use anyhow::Result;
use namegate_testbed::dns::{self, Zone};
use namegate_testbed::{Host, Log, Netns, tls_server};

use crate::cluster::Cluster;

/// Names of the outside with an IPv4 and an IPv6 address each (documentation prefixes: nobody has them).
const NAMES: [(&str, Ipv4Addr, Ipv6Addr); 3] = [
    ("cilium.io", Ipv4Addr::new(203, 0, 113, 10), Ipv6Addr::new(0x2001, 0xdb8, 1, 0, 0, 0, 0, 0x10)),
    ("google.com", Ipv4Addr::new(203, 0, 113, 20), Ipv6Addr::new(0x2001, 0xdb8, 1, 0, 0, 0, 0, 0x20)),
    ("www.google.com", Ipv4Addr::new(203, 0, 113, 21), Ipv6Addr::new(0x2001, 0xdb8, 1, 0, 0, 0, 0, 0x21)),
];
/// An address without a name, which a policy may open.
pub(crate) const OPENED: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 31);
/// Another, which none opens.
pub(crate) const UNNAMED: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 30);
/// TTL of these, seconds.
const TTL: u32 = 60;

/// Servers in the node's namespace `outside`, which end with it.
pub(crate) struct Outside {
    _netns: Netns,
    /// Who called whom.
    pub(crate) log: Log,
}

impl Outside {
    /// Starts them.
    pub(crate) fn start(cluster: &Cluster) -> Result<Self> {
        let (netns, log, zone) = (cluster.enter("outside")?, Log::default(), Zone::default());
        for (name, v4, v6) in NAMES {
            zone.set_addresses(name, TTL, &[IpAddr::from(v4), IpAddr::from(v6)]);
        }
        let host = Host { name: "outside".to_owned(), log: log.clone(), tls: Some(tls_server()?) };
        netns.run(async move {
            [80, 8080].into_iter().try_for_each(|port| host.http(port))?;
            host.https(443)?;
            dns::serve(&zone, 53)
        })?;
        Ok(Self { _netns: netns, log })
    }

    /// Who reached the address that no policy opens, once for each call. Pods get addresses that others had before.
    pub(crate) fn calls(&self) -> Vec<IpAddr> {
        self.calls_of(UNNAMED)
    }

    /// Who reached an address, once for each call.
    pub(crate) fn calls_of(&self, address: Ipv4Addr) -> Vec<IpAddr> {
        let called = self.log.all().into_iter().filter(|entry| entry.local.ip() == IpAddr::from(address));
        called.map(|entry| entry.peer.ip()).collect()
    }

    /// Their addresses, once each.
    pub(crate) fn callers(&self) -> HashSet<IpAddr> {
        self.calls().into_iter().collect()
    }
}
