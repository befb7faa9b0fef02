//! The node's side of a container's interface, as the kernel knows it.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::path::Path;
use std::thread;

use netlink_packet_core::{NLM_F_ACK, NLM_F_REQUEST, NetlinkHeader, NetlinkMessage, NetlinkPayload};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::link::{InfoKind, LinkAttribute, LinkInfo, LinkMessage};
use netlink_packet_route::nsid::{NsidAttribute, NsidMessage};
use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_ROUTE};
use nix::errno::Errno;
use nix::net::if_::if_nametoindex;
use nix::sched::{CloneFlags, setns};

/// Name of the node's side of `interface` inside `netns`; `None` where it is no pair of two interfaces with a side here.
///
/// Both sides must name each other: an index alone means another interface in another namespace.
pub(crate) fn peer(netns: &Path, interface: &str) -> io::Result<Option<String>> {
    let (netns, interface) = (File::open(netns)?, interface.to_owned());
    let inside = netns.try_clone()?;
    let look = move || {
        setns(inside, CloneFlags::CLONE_NEWNET)?;
        let index = if_nametoindex(interface.as_str())?;
        Ok((index, link(index)?.and_then(|link| pair(&link))))
    };
    let looked = thread::Builder::new().spawn(look)?.join();
    let looked: io::Result<_> =
        looked.unwrap_or_else(|_| Err(io::Error::other("looking into a network namespace failed")));
    let (index, Some(Side { index: here, .. })) = looked? else { return Ok(None) };
    let Some(found) = link(here)? else { return Ok(None) };
    let is_here = pair(&found).is_some_and(|back| back.index == index && back.netns.is_some());
    if !is_here || pair(&found).and_then(|back| back.netns) != number_of(&netns)? {
        return Ok(None);
    }
    Ok(found.attributes.into_iter().find_map(|attribute| match attribute {
        LinkAttribute::IfName(name) => Some(name),
        _ => None,
    }))
}

/// Whether the node has an interface of this name. An error is that this cannot be said.
pub(crate) fn exists(interface: &str) -> io::Result<bool> {
    match if_nametoindex(interface) {
        Ok(_) => Ok(true),
        Err(Errno::ENODEV) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

/// The other side of a pair: its index in the namespace with this number, or in the same one.
struct Side {
    index: u32,
    netns: Option<i32>,
}

/// An interface of the calling thread's namespace; `None` where the kernel says that there is none.
fn link(index: u32) -> io::Result<Option<LinkMessage>> {
    let mut request = LinkMessage::default();
    request.header.index = index;
    let answers = match ask(RouteNetlinkMessage::GetLink(request)) {
        Err(error) if error.raw_os_error() == Some(Errno::ENODEV as i32) => return Ok(None),
        answers => answers?,
    };
    Ok(answers.into_iter().find_map(|answer| match answer {
        RouteNetlinkMessage::NewLink(link) => Some(link),
        _ => None,
    }))
}

/// The other side; the kernel calls the parent of a `macvlan` by the same attribute.
fn pair(link: &LinkMessage) -> Option<Side> {
    let is_pair = link.attributes.iter().any(|attribute| match attribute {
        LinkAttribute::LinkInfo(infos) => infos.iter().any(is_pair),
        _ => false,
    });
    let index = link.attributes.iter().find_map(|attribute| match attribute {
        LinkAttribute::Link(peer) if *peer != 0 => Some(*peer),
        _ => None,
    });
    let netns = link.attributes.iter().find_map(|attribute| match attribute {
        LinkAttribute::LinkNetNsId(number) => Some(*number),
        _ => None,
    });
    index.filter(|_| is_pair).map(|index| Side { index, netns })
}

/// The number by which interfaces here name another namespace; `None` where none leads there.
fn number_of(netns: &File) -> io::Result<Option<i32>> {
    let mut request = NsidMessage::default();
    request.attributes.push(NsidAttribute::Fd(netns.as_raw_fd().cast_unsigned()));
    let answers = ask(RouteNetlinkMessage::GetNsId(request))?;
    let attributes = answers.into_iter().flat_map(|answer| match answer {
        RouteNetlinkMessage::NewNsId(message) => message.attributes,
        _ => Vec::new(),
    });
    let mut numbers = attributes.filter_map(|attribute| match attribute {
        NsidAttribute::Id(number) => Some(number).filter(|number| *number >= 0),
        _ => None,
    });
    Ok(numbers.next())
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

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    fn ip(arguments: &str) {
        let output = Command::new("ip").args(arguments.split(' ')).output().unwrap();
        assert!(output.status.success(), "ip {arguments}: {}", String::from_utf8_lossy(&output.stderr));
    }

    #[test]
    fn both_sides_name_each_other() {
        let own = std::process::id();
        let (node, pod) = (format!("ngc{own}-node"), format!("ngc{own}-pod"));
        for name in [&node, &pod] {
            ip(&format!("netns add {name}"));
        }
        ip(&format!("-n {node} link add ng-out type veth peer name eth0 netns {pod}"));
        ip(&format!("-n {node} link add ng-other index 40 type veth peer name ng-others"));
        // A pair inside, one side of which has the number of an interface of the node.
        ip(&format!("-n {pod} link add decoy2 index 40 type veth peer name decoy"));
        let path = Path::new("/run/netns").join(&pod);
        let here = File::open(Path::new("/run/netns").join(&node)).unwrap();
        let found = thread::spawn(move || {
            setns(here, CloneFlags::CLONE_NEWNET).unwrap();
            let of = |interface: &str| peer(&path, interface).unwrap();
            let found = (of("eth0"), of("decoy"), exists("ng-out").unwrap(), exists("decoy").unwrap());
            (found, peer(&path, "no-such").is_err())
        });
        let found = found.join();
        for name in [&node, &pod] {
            ip(&format!("netns delete {name}"));
        }
        assert_eq!(found.unwrap(), ((Some("ng-out".to_owned()), None, true, false), true));
    }
}
