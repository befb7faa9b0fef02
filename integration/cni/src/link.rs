//! The node's side of a container's interface, as the kernel knows it.

use std::fs::File;
use std::io;
use std::path::Path;
use std::thread;

use netlink_packet_core::{NLM_F_ACK, NLM_F_REQUEST, NetlinkHeader, NetlinkMessage, NetlinkPayload};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::link::{InfoKind, LinkAttribute, LinkInfo, LinkMessage};
use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_ROUTE};
use nix::net::if_::{if_nameindex, if_nametoindex};
use nix::sched::{CloneFlags, setns};

/// Name of the node's side of `interface` inside `netns`; `None` where it is no pair of two interfaces.
pub(crate) fn peer(netns: &Path, interface: &str) -> io::Result<Option<String>> {
    let (netns, interface) = (File::open(netns)?, interface.to_owned());
    let look = move || {
        setns(netns, CloneFlags::CLONE_NEWNET)?;
        peer_of(if_nametoindex(interface.as_str())?)
    };
    let looked = thread::Builder::new().spawn(look)?.join();
    let Some(index) = looked.unwrap_or_else(|_| Err(io::Error::other("looking into a network namespace failed")))?
    else {
        return Ok(None);
    };
    let here = if_nameindex()?;
    Ok(here.iter().find(|found| found.index() == index).map(|found| found.name().to_string_lossy().into_owned()))
}

/// Whether the node has an interface of this name.
pub(crate) fn exists(interface: &str) -> bool {
    if_nametoindex(interface).is_ok()
}

/// Index, on the other side, of the peer of a pair; the kernel calls the parent of a `macvlan` by the same attribute.
fn peer_of(index: u32) -> io::Result<Option<u32>> {
    let mut request = LinkMessage::default();
    request.header.index = index;
    for answer in ask(RouteNetlinkMessage::GetLink(request))? {
        let RouteNetlinkMessage::NewLink(link) = answer else { continue };
        let pair = link.attributes.iter().any(|attribute| match attribute {
            LinkAttribute::LinkInfo(infos) => infos.iter().any(is_pair),
            _ => false,
        });
        let peer = link.attributes.iter().find_map(|attribute| match attribute {
            LinkAttribute::Link(peer) if *peer != 0 => Some(*peer),
            _ => None,
        });
        return Ok(peer.filter(|_| pair));
    }
    Ok(None)
}

fn is_pair(info: &LinkInfo) -> bool {
    match info {
        LinkInfo::Kind(InfoKind::Veth | InfoKind::Netkit) => true,
        LinkInfo::Kind(InfoKind::Other(kind)) => kind == "netkit",
        _ => false,
    }
}

/// Sends one request and gathers what comes back, up to the acknowledgement (`rtnetlink(7)`).
fn ask(request: RouteNetlinkMessage) -> io::Result<Vec<RouteNetlinkMessage>> {
    let mut socket = Socket::new(NETLINK_ROUTE)?;
    socket.bind_auto()?;
    socket.connect(&SocketAddr::new(0, 0))?;
    let mut header = NetlinkHeader::default();
    header.flags = NLM_F_REQUEST | NLM_F_ACK;
    let mut message = NetlinkMessage::new(header, NetlinkPayload::from(request));
    message.finalize();
    let mut octets = vec![0; message.buffer_len()];
    message.serialize(&mut octets);
    socket.send(&octets, 0)?;
    let mut answers = Vec::new();
    loop {
        let (octets, _) = socket.recv_from_full()?;
        let answer = NetlinkMessage::<RouteNetlinkMessage>::deserialize(&octets)
            .map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error.to_string()))?;
        match answer.payload {
            NetlinkPayload::InnerMessage(answer) => answers.push(answer),
            NetlinkPayload::Error(error) if error.code.is_some() => return Err(error.to_io()),
            _ => return Ok(answers),
        }
    }
}
