//! Addresses of this and of other network namespaces, and which interfaces on this side lead to one.

use std::collections::BTreeSet;
use std::fs::File;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::Path;
use std::thread;

use netlink_packet_core::NLM_F_DUMP;
use nix::sched::{CloneFlags, setns};

use crate::links::Links;
use crate::netlink::{self, attributes};

const GET_ADDRESS: u16 = 22;
const NEW_ADDRESS: u16 = 20;
/// Octets of `struct ifaddrmsg`, which stands before the attributes of an address (`rtnetlink(7)`).
const HEADER: usize = 8;
/// `IFA_ADDRESS`, `IFA_LOCAL`, `IFA_BROADCAST`, `IFA_ANYCAST` (`linux/if_addr.h`).
const ADDRESS: u16 = 1;
const LOCAL: u16 = 2;
const BROADCAST: u16 = 4;
const ANYCAST: u16 = 5;

/// An address of an interface.
struct Assigned {
    own: IpAddr,
    prefix: u8,
    /// Broadcast and anycast addresses that the kernel names.
    shared: Vec<IpAddr>,
}

impl Assigned {
    fn read(body: &[u8]) -> Option<Self> {
        let prefix = *body.get(1)?;
        let (mut own, mut far, mut shared) = (None, None, Vec::new());
        for (kind, content) in attributes(body, HEADER) {
            match kind {
                LOCAL => own = address(content),
                ADDRESS => far = address(content),
                BROADCAST | ANYCAST => shared.extend(address(content)),
                _ => {}
            }
        }
        // On a link between two, `IFA_ADDRESS` is that of the other side.
        Some(Self { own: own.or(far)?, prefix, shared })
    }

    /// Addresses of its network that every node on the link answers for: the broadcast address and the older one of all
    /// zeroes (RFC 1122 §3.2.1.3), or the anycast address of the routers (RFC 4291 §2.6.1).
    fn of_network(&self) -> Vec<IpAddr> {
        match self.own {
            IpAddr::V4(own) if self.prefix < 31 => {
                let mask = u32::MAX.checked_shr(self.prefix.into()).unwrap_or(0);
                let bits = own.to_bits();
                vec![Ipv4Addr::from_bits(bits | mask).into(), Ipv4Addr::from_bits(bits & !mask).into()]
            }
            IpAddr::V6(own) if self.prefix < 127 => {
                let mask = u128::MAX.checked_shr(self.prefix.into()).unwrap_or(0);
                vec![Ipv6Addr::from_bits(own.to_bits() & !mask).into()]
            }
            _ => Vec::new(),
        }
    }
}

fn address(content: &[u8]) -> Option<IpAddr> {
    match content.len() {
        4 => content.first_chunk::<4>().map(|octets| IpAddr::from(*octets)),
        16 => content.first_chunk::<16>().map(|octets| IpAddr::from(*octets).to_canonical()),
        _ => None,
    }
}

/// Addresses of the calling thread's namespace.
fn assigned() -> io::Result<Vec<Assigned>> {
    let found = netlink::bodies(GET_ADDRESS, NEW_ADDRESS, NLM_F_DUMP, &[0; HEADER])?;
    Ok(found.iter().filter_map(|body| Assigned::read(body)).collect())
}

/// Whether others can reach an address: loopback and IPv6 link-local addresses hold on one machine or link alone.
fn is_reachable(address: &IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => !address.is_loopback() && !address.is_unspecified(),
        IpAddr::V6(address) => !address.is_loopback() && !address.is_unspecified() && !address.is_unicast_link_local(),
    }
}

/// Addresses of this machine that others can reach.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Own {
    /// Addresses of its interfaces.
    pub addresses: BTreeSet<IpAddr>,
    /// Broadcast and anycast addresses of their networks: it answers for them too.
    pub shared: BTreeSet<IpAddr>,
}

/// Reads the addresses of the calling thread's namespace, from every interface and of both families.
pub fn own() -> io::Result<Own> {
    let found = assigned()?;
    let addresses: BTreeSet<IpAddr> = found.iter().map(|one| one.own).filter(is_reachable).collect();
    let shared = found.iter().filter(|one| is_reachable(&one.own));
    let shared = shared.flat_map(|one| one.shared.iter().copied().chain(one.of_network()));
    let shared = shared.filter(|address| is_reachable(address) && !addresses.contains(address)).collect();
    Ok(Own { addresses, shared })
}

/// A network namespace as seen from here.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Inside {
    /// Addresses inside. What is inside chooses them itself.
    pub addresses: Vec<IpAddr>,
    /// Indices of the interfaces on this side that lead there, see [`Links::leading_to`].
    pub interfaces: Vec<u32>,
}

/// Looks into the network namespace `path`; `None` where there is no such namespace. `links` are those of this side. The
/// calling thread stays where it is.
pub fn inside(links: &Links, path: &Path) -> io::Result<Option<Inside>> {
    let netns = match File::open(path) {
        Ok(netns) => netns,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    let interfaces = links.leading_into(&netns)?;
    if interfaces.is_empty() {
        return Ok(Some(Inside::default()));
    }
    let look = move || {
        setns(netns, CloneFlags::CLONE_NEWNET)?;
        assigned()
    };
    let thread = thread::Builder::new().name("netns".to_owned()).spawn(look)?;
    let found = thread.join().unwrap_or_else(|_| Err(io::Error::other("looking into a network namespace failed")))?;
    let addresses = found.into_iter().map(|one| one.own).filter(is_reachable).collect();
    Ok(Some(Inside { addresses, interfaces }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn networks_have_addresses_that_stand_for_the_node() {
        let of = |own: &str, prefix| {
            let assigned = Assigned { own: own.parse().unwrap(), prefix, shared: Vec::new() };
            assigned.of_network().iter().map(ToString::to_string).collect::<Vec<_>>()
        };
        assert_eq!(of("192.0.2.77", 28), ["192.0.2.79", "192.0.2.64"]);
        assert_eq!(of("192.0.2.77", 0), ["255.255.255.255", "0.0.0.0"]);
        assert_eq!(of("192.0.2.77", 31), [""; 0]);
        assert_eq!(of("192.0.2.77", 32), [""; 0]);
        assert_eq!(of("2001:db8::7", 64), ["2001:db8::"]);
        assert_eq!(of("2001:db8::7", 127), [""; 0]);
    }

    #[test]
    fn own_addresses_are_read() {
        let own = own().unwrap();
        assert!(!own.addresses.contains(&IpAddr::from([127, 0, 0, 1])), "{own:?}");
    }
}
