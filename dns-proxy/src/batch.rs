//! Many datagrams with one system call: `recvmmsg` into buffers that are used again, `sendmmsg` out of one arena.

use std::{
    io::{self, IoSlice, IoSliceMut},
    net::{SocketAddr, SocketAddrV4, SocketAddrV6, UdpSocket},
    ops::Range,
    os::fd::AsRawFd,
};

use nix::{
    cmsg_space,
    errno::Errno,
    libc::sockaddr_in6,
    sys::socket::{
        ControlMessageOwned, MsgFlags, MultiHeaders, RecvMsg, SockaddrIn, SockaddrIn6, SockaddrLike, SockaddrStorage,
        recvmmsg, sendmmsg,
    },
};

/// Datagrams of one system call at a socket that many clients share.
pub(crate) const CLIENT_BATCH: usize = 64;
/// Datagrams of one system call at one of many sockets to a resolver.
pub(crate) const UPSTREAM_BATCH: usize = 16;

/// One received datagram.
pub(crate) struct Datagram<'a, S> {
    /// Not whole where it did not fit the buffer.
    pub(crate) octets: &'a [u8],
    pub(crate) is_whole: bool,
    pub(crate) source: Option<S>,
    /// Where it was sent before it was redirected here.
    pub(crate) destination: Option<SocketAddr>,
}

/// Buffers for `BATCH` datagrams; `S` is the kind of their source, or nothing.
pub(crate) struct Inbox<S, const BATCH: usize> {
    headers: MultiHeaders<S>,
    has_control: bool,
    octets: Vec<u8>,
    octets_each: usize,
}

impl<const BATCH: usize> Inbox<SockaddrStorage, BATCH> {
    /// For one listening socket: sources and original destinations are wanted.
    pub(crate) fn for_listener(octets_each: usize) -> Self {
        Self::new(octets_each, true)
    }
}

impl<const BATCH: usize> Inbox<(), BATCH> {
    /// For connected sockets.
    pub(crate) fn for_peers(octets_each: usize) -> Self {
        Self::new(octets_each, false)
    }
}

impl<S: SockaddrLike + Copy, const BATCH: usize> Inbox<S, BATCH> {
    fn new(octets_each: usize, has_control: bool) -> Self {
        Self { headers: Self::headers(has_control), has_control, octets: vec![0; octets_each * BATCH], octets_each }
    }

    fn headers(has_control: bool) -> MultiHeaders<S> {
        MultiHeaders::preallocate(BATCH, has_control.then(|| cmsg_space!(sockaddr_in6)))
    }

    /// Takes what waits at the socket, at most one batch; returns how many. An empty queue is `WouldBlock`.
    pub(crate) fn receive(&mut self, socket: &UdpSocket, mut each: impl FnMut(Datagram<'_, S>)) -> io::Result<usize> {
        let mut chunks = self.octets.chunks_exact_mut(self.octets_each);
        let mut slices: [_; BATCH] = std::array::from_fn(|_| [IoSliceMut::new(chunks.next().unwrap_or_default())]);
        let received =
            recvmmsg(socket.as_raw_fd(), &mut self.headers, slices.iter_mut(), MsgFlags::MSG_DONTWAIT, None)?;
        let (mut count, mut is_complete) = (0, true);
        for message in received {
            let destination = if self.has_control { original_destination(&message) } else { None };
            count += 1;
            is_complete &= destination.is_some();
            each(Datagram {
                octets: message.iovs().next().unwrap_or_default(),
                is_whole: !message.flags.contains(MsgFlags::MSG_TRUNC),
                source: message.address,
                destination,
            });
        }
        if self.has_control && !is_complete {
            // The kernel writes the length it used where the next call reads the length it may use.
            self.headers = Self::headers(true);
        }
        Ok(count)
    }
}

fn original_destination<S>(message: &RecvMsg<'_, '_, S>) -> Option<SocketAddr> {
    message.cmsgs().ok()?.find_map(|control| match control {
        ControlMessageOwned::Ipv4OrigDstAddr(address) => Some(SocketAddrV4::from(SockaddrIn::from(address)).into()),
        ControlMessageOwned::Ipv6OrigDstAddr(address) => Some(SocketAddrV6::from(SockaddrIn6::from(address)).into()),
        _ => None,
    })
}

/// The address of a datagram's source.
pub(crate) fn socket_address(address: &SockaddrStorage) -> Option<SocketAddr> {
    let v4 = address.as_sockaddr_in().map(|v4| SocketAddrV4::from(*v4).into());
    v4.or_else(|| address.as_sockaddr_in6().map(|v6| SocketAddrV6::from(*v6).into()))
}

/// Datagrams that wait to be sent over one socket, to receivers of the kind `S`, or to the socket's peer.
#[derive(Debug, Default)]
pub(crate) struct Outbox<S> {
    arena: Vec<u8>,
    messages: Vec<(Range<usize>, Option<S>)>,
}

/// Headers for [`Outbox::flush`]; one for all sockets of a worker.
pub(crate) struct SendHeaders<S, const BATCH: usize>(MultiHeaders<S>);

impl<S: SockaddrLike + Copy, const BATCH: usize> SendHeaders<S, BATCH> {
    pub(crate) fn new() -> Self {
        Self(MultiHeaders::preallocate(BATCH, None))
    }
}

impl<S: SockaddrLike + Copy> Outbox<S> {
    pub(crate) fn new() -> Self {
        Self { arena: Vec::new(), messages: Vec::new() }
    }

    pub(crate) fn len(&self) -> usize {
        self.messages.len()
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.messages.is_empty()
    }

    /// Adds a datagram that `write` appends to the arena.
    pub(crate) fn push(&mut self, receiver: Option<S>, write: impl FnOnce(&mut Vec<u8>)) {
        let start = self.arena.len();
        write(&mut self.arena);
        self.messages.push((start..self.arena.len(), receiver));
    }

    /// Sends all; calls `failed` for each datagram that the kernel does not take.
    pub(crate) fn flush<const BATCH: usize>(
        &mut self,
        socket: &UdpSocket,
        headers: &mut SendHeaders<S, BATCH>,
        mut failed: impl FnMut(Errno),
    ) {
        let mut at = 0;
        while at < self.messages.len() {
            match self.send_from(at, socket, headers) {
                Ok(sent) => at += sent.max(1),
                Err(Errno::EINTR) => {}
                Err(errno) => {
                    failed(errno);
                    at += 1;
                }
            }
        }
        self.arena.clear();
        self.messages.clear();
    }

    fn send_from<const BATCH: usize>(
        &self,
        at: usize,
        socket: &UdpSocket,
        headers: &mut SendHeaders<S, BATCH>,
    ) -> Result<usize, Errno> {
        let batch = &self.messages[at..self.messages.len().min(at + BATCH)];
        let octets = |index: usize| batch.get(index).map_or(&[][..], |(range, _)| &self.arena[range.clone()]);
        let slices: [_; BATCH] = std::array::from_fn(|index| [IoSlice::new(octets(index))]);
        let receivers: [_; BATCH] = std::array::from_fn(|index| batch.get(index).and_then(|(_, receiver)| *receiver));
        let sent = sendmmsg(
            socket.as_raw_fd(),
            &mut headers.0,
            slices[..batch.len()].iter(),
            receivers,
            [],
            MsgFlags::MSG_DONTWAIT,
        )?;
        Ok(sent.count())
    }
}
