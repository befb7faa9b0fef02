//! What is inside another network namespace, and which interface on this side leads to it.

use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::net::IpAddr;
use std::path::Path;
use std::thread;

use netlink_packet_core::NLM_F_DUMP;
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::address::{AddressAttribute, AddressMessage, AddressScope};
use nix::sched::{CloneFlags, setns};

use crate::links::peer_of;
use crate::netlink::ask;

/// Addresses inside the network namespace `path`, each with the index of the interface on this side of its link. Those
/// that only hold inside (loopback, link-local) and those of interfaces without another side here are left out; nothing
/// where there is no such namespace.
///
/// The calling thread stays where it is.
pub fn addresses(path: &Path) -> io::Result<Vec<(IpAddr, u32)>> {
    let netns = match File::open(path) {
        Ok(netns) => netns,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error),
    };
    let look = move || {
        setns(netns, CloneFlags::CLONE_NEWNET)?;
        inside()
    };
    let thread = thread::Builder::new().name("netns".to_owned()).spawn(look)?;
    let inside = thread.join().unwrap_or_else(|_| Err(io::Error::other("looking into a network namespace failed")))?;
    // A number of another namespace may be that of an interface here: both sides must name each other.
    let is_here = |interface: u32, peer: u32| matches!(peer_of(peer), Ok(Some(back)) if back == interface);
    let here = inside.into_iter().filter(|(_, interface, peer)| is_here(*interface, *peer));
    Ok(here.map(|(address, _, peer)| (address, peer)).collect())
}

/// Addresses of the calling thread's namespace: each with its interface and that one's other side.
fn inside() -> io::Result<Vec<(IpAddr, u32, u32)>> {
    let mut peers: HashMap<u32, Option<u32>> = HashMap::new();
    let mut found = Vec::new();
    for answer in ask(RouteNetlinkMessage::GetAddress(AddressMessage::default()), NLM_F_DUMP)? {
        let RouteNetlinkMessage::NewAddress(message) = answer else { continue };
        if message.header.scope != AddressScope::Universe {
            continue;
        }
        let Some(address) = address_of(&message) else { continue };
        let interface = message.header.index;
        let peer = match peers.get(&interface) {
            Some(peer) => *peer,
            None => *peers.entry(interface).or_insert(peer_of(interface)?),
        };
        found.extend(peer.map(|peer| (address, interface, peer)));
    }
    Ok(found)
}

/// Its own address: on a link between two, `IFA_ADDRESS` is that of the other side.
fn address_of(message: &AddressMessage) -> Option<IpAddr> {
    let local = message.attributes.iter().find_map(|attribute| match attribute {
        AddressAttribute::Local(address) => Some(*address),
        _ => None,
    });
    local.or_else(|| {
        message.attributes.iter().find_map(|attribute| match attribute {
            AddressAttribute::Address(address) => Some(*address),
            _ => None,
        })
    })
}
