//! Interfaces: their index, the node's side of a pod's interface, and news of those that come and go.
//!
//! A look-up has three outcomes: found, not there (the kernel says so), and an error. No error stands for an absence.

use std::collections::VecDeque;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};
use std::path::Path;

use netlink_packet_core::{NLM_F_ACK, NLM_F_DUMP, NetlinkPayload};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::link::{LinkAttribute, LinkMessage};
use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_ROUTE};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use crate::netlink::{self, Body, attribute, attributes, payloads};

/// `RTNLGRP_LINK`, `RTNLGRP_IPV4_IFADDR` and `RTNLGRP_IPV6_IFADDR`.
const GROUPS: [u32; 3] = [1, 5, 9];

/// Octets of `struct ifinfomsg`, which stands before the attributes of a link (`rtnetlink(7)`).
const LINK_HEADER: usize = 16;
const GET_LINK: u16 = 18;
const NEW_LINK: u16 = 16;
/// `RTM_GETNSID` and its answer.
const GET_NETNS_ID: u16 = 90;
const NEW_NETNS_ID: u16 = 88;

/// Types of attributes (`linux/if_link.h`, `linux/net_namespace.h`).
mod attribute_type {
    pub(super) const NAME: u16 = 3;
    pub(super) const PEER: u16 = 5;
    pub(super) const INFO: u16 = 18;
    pub(super) const INFO_KIND: u16 = 1;
    pub(super) const MASK: u16 = 29;
    pub(super) const PEER_NETNS: u16 = 37;
    pub(super) const NETNS_ID: u16 = 1;
    pub(super) const NETNS_FD: u16 = 3;
}

/// Counters of a link are not wanted (`RTEXT_FILTER_SKIP_STATS`).
const SKIP_COUNTERS: u32 = 1 << 3;
/// The kernel has no number for the namespace: no link leads there.
const NO_NETNS_ID: i32 = -1;

/// One interface of the calling thread's namespace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Link {
    /// Its index.
    pub index: u32,
    /// Its name.
    pub name: String,
    /// It is one side of a pair (veth, netkit) whose other side has this index in the namespace with this number. The
    /// kernel writes both of the other device itself, so nothing inside that namespace can make it up.
    peer: Option<(u32, Option<i32>)>,
}

impl Link {
    fn read(body: &[u8]) -> Option<Self> {
        let index = netlink::number(body.get(4..)?)?;
        let (mut name, mut peer, mut netns, mut is_pair) = (String::new(), None, None, false);
        for (kind, content) in attributes(body, LINK_HEADER) {
            match kind {
                attribute_type::NAME => name = text(content),
                attribute_type::PEER => peer = netlink::number(content),
                attribute_type::PEER_NETNS => netns = netlink::number(content).map(u32::cast_signed),
                attribute_type::INFO => {
                    let kind = attributes(content, 0).find(|(kind, _)| *kind == attribute_type::INFO_KIND);
                    is_pair = kind.is_some_and(|(_, kind)| matches!(&*text(kind), "veth" | "netkit"));
                }
                _ => {}
            }
        }
        // Other kinds name the device below them by the same attribute.
        Some(Self { index, name, peer: peer.filter(|_| is_pair).map(|peer| (peer, netns)) })
    }

    /// Whether its other side is in the namespace with this number.
    fn leads_to(&self, netns: i32) -> bool {
        self.peer.is_some_and(|(_, of)| of == Some(netns))
    }
}

/// Text up to its final zero.
fn text(content: &[u8]) -> String {
    let end = content.iter().position(|octet| *octet == 0).unwrap_or(content.len());
    String::from_utf8_lossy(&content[..end]).into_owned()
}

/// A request for one link by its index, or for all.
fn request(index: u32) -> Body {
    let mut body = vec![0; LINK_HEADER];
    body[4..8].copy_from_slice(&index.to_ne_bytes());
    attribute(&mut body, attribute_type::MASK, &SKIP_COUNTERS.to_ne_bytes());
    body
}

/// The only answer to a question about one link; `None` where the kernel says that there is no such link.
fn one(body: &Body) -> io::Result<Option<Link>> {
    match netlink::bodies(GET_LINK, NEW_LINK, NLM_F_ACK, body) {
        Ok(found) => match found.first().map(|body| Link::read(body)) {
            Some(Some(link)) => Ok(Some(link)),
            _ => Err(io::Error::new(io::ErrorKind::InvalidData, "the kernel's answer holds no link")),
        },
        Err(error) if error.raw_os_error() == Some(libc::ENODEV) => Ok(None),
        Err(error) => Err(error),
    }
}

/// The interface with this index; `None` only where the kernel says that there is none.
pub fn by_index(index: u32) -> io::Result<Option<Link>> {
    if index == 0 { Ok(None) } else { one(&request(index)) }
}

/// The interface with this name; `None` only where the kernel says that there is none.
pub fn by_name(name: &str) -> io::Result<Option<Link>> {
    let mut body = request(0);
    attribute(&mut body, attribute_type::NAME, &[name.as_bytes(), &[0]].concat());
    one(&body)
}

/// The index of an interface by its name; `None` only where the kernel says that there is none.
pub fn index_of(interface: &str) -> io::Result<Option<u32>> {
    Ok(by_name(interface)?.map(|link| link.index))
}

/// Every interface of the calling thread's namespace at one moment.
#[derive(Clone, Debug)]
pub struct Links(Vec<Link>);

impl Links {
    /// Reads all of them. The kernel gives numbers to the namespaces that they lead to.
    pub fn read() -> io::Result<Self> {
        let found = netlink::bodies(GET_LINK, NEW_LINK, NLM_F_DUMP, &request(0))?;
        let read = |body: &Body| {
            Link::read(body).ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "a link cannot be read"))
        };
        Ok(Self(found.iter().map(read).collect::<io::Result<_>>()?))
    }

    /// Indices of the interfaces of pairs whose other side is in the network namespace `path`, in their order; `None` where
    /// there is no such namespace.
    ///
    /// Only this side is looked at: it names the index and the namespace of the other device. Routes, names and addresses
    /// inside, and devices that were made there, change nothing.
    pub fn leading_to(&self, path: &Path) -> io::Result<Option<Vec<u32>>> {
        // As long as the file is open the namespace has its number for itself.
        let netns = match File::open(path) {
            Ok(netns) => netns,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error),
        };
        self.leading_into(&netns).map(Some)
    }

    /// The same for an open namespace.
    pub(crate) fn leading_into(&self, netns: &File) -> io::Result<Vec<u32>> {
        let number = number_of(netns)?;
        let mut found: Vec<u32> = Vec::new();
        for link in self.0.iter().filter(|_| number != NO_NETNS_ID).filter(|link| link.leads_to(number)) {
            // The number may have been another namespace's when all links were read.
            if by_index(link.index)?.is_some_and(|link| link.leads_to(number)) {
                found.push(link.index);
            }
        }
        found.sort_unstable();
        Ok(found)
    }
}

/// The number by which links of the calling thread's namespace name another one.
fn number_of(netns: &File) -> io::Result<i32> {
    let mut body = vec![0; 4];
    attribute(&mut body, attribute_type::NETNS_FD, &netns.as_raw_fd().to_ne_bytes());
    let found = netlink::bodies(GET_NETNS_ID, NEW_NETNS_ID, NLM_F_ACK, &body)?;
    let attribute =
        found.iter().flat_map(|body| attributes(body, 4)).find(|(kind, _)| *kind == attribute_type::NETNS_ID);
    let number = attribute.and_then(|(_, content)| netlink::number(content));
    number
        .map(u32::cast_signed)
        .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "the namespace has no number"))
}

/// Indices of the interfaces that lead to the network namespace `path`, see [`Links::leading_to`].
pub fn leading_to(path: &Path) -> io::Result<Option<Vec<u32>>> {
    // A namespace that no link has led to so far gets its number when all links are read.
    Links::read()?.leading_to(path)
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
    /// An address came or went.
    Address,
    /// Changes came faster than they were read: look at every interface again.
    Missed,
}

/// News of the interfaces of the namespace it was made in, and of their addresses. Readable when there are news.
pub struct LinkWatch {
    socket: Socket,
    waiting: VecDeque<LinkChange>,
}

impl LinkWatch {
    /// Starts to listen.
    pub fn new() -> io::Result<Self> {
        let mut socket = Socket::new(NETLINK_ROUTE)?;
        socket.bind(&SocketAddr::new(0, 0))?;
        GROUPS.into_iter().try_for_each(|group| socket.add_membership(group))?;
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
                Ok(NetlinkPayload::InnerMessage(
                    RouteNetlinkMessage::NewAddress(_) | RouteNetlinkMessage::DelAddress(_),
                )) => self.waiting.push_back(LinkChange::Address),
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
