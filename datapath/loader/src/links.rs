//! Interfaces: their index, the node's side of a pod's interface, and news of those that come and go.

use std::collections::VecDeque;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};
use std::path::Path;
use std::thread;

use netlink_packet_core::{NLM_F_ACK, NLM_F_DUMP, NetlinkPayload};
use netlink_packet_route::link::{LinkAttribute, LinkMessage};
use netlink_packet_route::route::{RouteAttribute, RouteHeader, RouteMessage, RouteType};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_ROUTE};
use nix::errno::Errno;
use nix::net::if_::if_nametoindex;
use nix::sched::{CloneFlags, setns};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use crate::netlink::{ask, payloads};

/// `RTNLGRP_LINK`.
const LINK_GROUP: u32 = 1;

/// The index of an interface by its name; `None` where there is none.
pub fn index_of(interface: &str) -> io::Result<Option<u32>> {
    match if_nametoindex(interface) {
        Ok(index) => Ok(Some(index)),
        Err(Errno::ENODEV) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// The index of the host-side interface that belongs to the default interface inside the network namespace `path`;
/// `None` where there is no namespace, no default interface, or an interface without another side.
///
/// The default interface is that of the IPv4 default route, else of the IPv6 one. The calling thread stays where it is.
pub fn peer_of_netns(path: &Path) -> io::Result<Option<u32>> {
    let netns = match File::open(path) {
        Ok(netns) => netns,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    let look = move || {
        setns(netns, CloneFlags::CLONE_NEWNET)?;
        default_interface()?.map_or(Ok(None), peer_of)
    };
    let thread = thread::Builder::new().name("netns".to_owned()).spawn(look)?;
    thread.join().unwrap_or_else(|_| Err(io::Error::other("looking into a network namespace failed")))
}

/// The interface of the default route in the calling thread's namespace.
fn default_interface() -> io::Result<Option<u32>> {
    for family in [AddressFamily::Inet, AddressFamily::Inet6] {
        let mut request = RouteMessage::default();
        request.header.address_family = family;
        let routes = ask(RouteNetlinkMessage::GetRoute(request), NLM_F_DUMP)?;
        let interface = routes.into_iter().find_map(|answer| match answer {
            RouteNetlinkMessage::NewRoute(route) => default_of(&route),
            _ => None,
        });
        if interface.is_some() {
            return Ok(interface);
        }
    }
    Ok(None)
}

/// The interface of a route, if it is the default one.
fn default_of(route: &RouteMessage) -> Option<u32> {
    let RouteHeader {
        destination_prefix_length: 0, table: RouteHeader::RT_TABLE_MAIN, kind: RouteType::Unicast, ..
    } = route.header
    else {
        return None;
    };
    route.attributes.iter().find_map(|attribute| match attribute {
        RouteAttribute::Oif(interface) => Some(*interface),
        _ => None,
    })
}

/// The other side of an interface.
pub(crate) fn peer_of(interface: u32) -> io::Result<Option<u32>> {
    let mut request = LinkMessage::default();
    request.header.index = interface;
    let answers = ask(RouteNetlinkMessage::GetLink(request), NLM_F_ACK)?;
    Ok(answers.into_iter().find_map(|answer| match answer {
        RouteNetlinkMessage::NewLink(link) => link.attributes.into_iter().find_map(|attribute| match attribute {
            LinkAttribute::Link(peer) if peer != 0 => Some(peer),
            _ => None,
        }),
        _ => None,
    }))
}

/// What happened to an interface of the namespace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LinkChange {
    /// It is there, new or changed.
    Present {
        /// Its index.
        index: u32,
        /// Its name.
        name: String,
    },
    /// It is gone.
    Gone {
        /// The index it had.
        index: u32,
        /// The name it had.
        name: String,
    },
    /// Changes came faster than they were read: look at every interface again.
    Missed,
}

/// News of the interfaces of the namespace it was made in. Readable when there are news.
pub struct LinkWatch {
    socket: Socket,
    waiting: VecDeque<LinkChange>,
}

impl LinkWatch {
    /// Starts to listen.
    pub fn new() -> io::Result<Self> {
        let mut socket = Socket::new(NETLINK_ROUTE)?;
        socket.bind(&SocketAddr::new(0, 0))?;
        socket.add_membership(LINK_GROUP)?;
        socket.set_non_blocking(true)?;
        Ok(Self { socket, waiting: VecDeque::new() })
    }

    /// Waits for changes on the calling task's runtime.
    pub fn into_async(self) -> io::Result<AsyncFd<Self>> {
        // SAFETY: The socket owns its descriptor and keeps it until it is dropped.
        Ok(unsafe { AsyncFd::register_with_interest(self, Interest::READABLE) }?)
    }

    /// The next change, or `None` where all are read.
    #[expect(clippy::should_implement_trait, reason = "the end is not the end: more changes come")]
    pub fn next(&mut self) -> io::Result<Option<LinkChange>> {
        while self.waiting.is_empty() {
            match self.socket.recv_from_full() {
                Ok((octets, sender)) if sender.port_number() == 0 => self.take(&octets),
                Ok(_) => {} // Not from the kernel.
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(None),
                Err(error) if error.raw_os_error() == Some(libc::ENOBUFS) => return Ok(Some(LinkChange::Missed)),
                Err(error) => return Err(error),
            }
        }
        Ok(self.waiting.pop_front())
    }

    fn take(&mut self, octets: &[u8]) {
        for payload in payloads(octets) {
            match payload {
                Ok(NetlinkPayload::InnerMessage(RouteNetlinkMessage::NewLink(link))) => {
                    let (index, name) = identity(link);
                    self.waiting.push_back(LinkChange::Present { index, name });
                }
                Ok(NetlinkPayload::InnerMessage(RouteNetlinkMessage::DelLink(link))) => {
                    let (index, name) = identity(link);
                    self.waiting.push_back(LinkChange::Gone { index, name });
                }
                Ok(_) => {}
                Err(_) => self.waiting.push_back(LinkChange::Missed), // Of a form that a newer kernel writes.
            }
        }
    }
}

fn identity(link: LinkMessage) -> (u32, String) {
    let name = link.attributes.into_iter().find_map(|attribute| match attribute {
        LinkAttribute::IfName(name) => Some(name),
        _ => None,
    });
    (link.header.index, name.unwrap_or_default())
}

impl AsFd for LinkWatch {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl AsRawFd for LinkWatch {
    fn as_raw_fd(&self) -> RawFd {
        self.socket.as_raw_fd()
    }
}

impl std::fmt::Debug for LinkWatch {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("LinkWatch").field("waiting", &self.waiting).finish_non_exhaustive()
    }
}
