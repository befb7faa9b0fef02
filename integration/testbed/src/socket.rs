//! Sockets that serve every address of a namespace, IPv4 and IPv6 with one socket each.

use std::io::{self, IoSlice, IoSliceMut};
use std::net::{IpAddr, Ipv6Addr, SocketAddr, SocketAddrV6};
use std::os::fd::AsRawFd;

use nix::sys::socket::{
    ControlMessage, ControlMessageOwned, MsgFlags, SockaddrIn6, recvmsg, sendmsg, setsockopt, sockopt,
};
use socket2::{Domain, Protocol, Socket, Type};
use tokio::io::Interest;
use tokio::net::{TcpListener, UdpSocket};

/// Connections that wait to be accepted.
const BACKLOG: i32 = 4096;
/// The longest datagram.
const DATAGRAM_OCTETS: usize = 65_535;
/// Octets that the kernel keeps for a busy UDP server.
const RECEIVE_OCTETS: usize = 4 << 20;

/// A datagram with both its ends.
#[derive(Clone, Debug)]
pub(crate) struct Datagram {
    /// Payload.
    pub(crate) octets: Vec<u8>,
    /// The other side.
    pub(crate) peer: SocketAddr,
    /// The address on this side; with `AnyIP` it can be any.
    pub(crate) local: IpAddr,
}

/// A UDP socket on every address, which answers from the address that was asked.
#[derive(Debug)]
pub(crate) struct UdpAny(UdpSocket);

impl UdpAny {
    /// Binds a port on every address of the calling thread's namespace.
    pub(crate) fn bind(port: u16) -> io::Result<Self> {
        let socket = dual_stack(Type::DGRAM, Protocol::UDP)?;
        let _ = socket.set_recv_buffer_size(RECEIVE_OCTETS); // Capped by the system: less is no error.
        setsockopt(&socket, sockopt::Ipv6RecvPacketInfo, &true)?;
        socket.bind(&wildcard(port).into())?;
        Ok(Self(UdpSocket::from_std(socket.into())?))
    }

    /// The next datagram.
    pub(crate) async fn receive(&self) -> io::Result<Datagram> {
        self.0.async_io(Interest::READABLE, || receive(&self.0)).await
    }

    /// Sends `datagram.octets` from `datagram.local` to `datagram.peer`.
    pub(crate) async fn send(&self, datagram: &Datagram) -> io::Result<()> {
        self.0.async_io(Interest::WRITABLE, || send(&self.0, datagram)).await
    }
}

/// A TCP listener on every address of the calling thread's namespace.
pub(crate) fn listen(port: u16) -> io::Result<TcpListener> {
    let socket = dual_stack(Type::STREAM, Protocol::TCP)?;
    socket.set_reuse_address(true)?;
    socket.bind(&wildcard(port).into())?;
    socket.listen(BACKLOG)?;
    TcpListener::from_std(socket.into())
}

fn dual_stack(kind: Type, protocol: Protocol) -> io::Result<Socket> {
    let socket = Socket::new(Domain::IPV6, kind, Some(protocol))?;
    socket.set_only_v6(false)?;
    socket.set_nonblocking(true)?;
    Ok(socket)
}

fn wildcard(port: u16) -> SocketAddr {
    SocketAddr::from((Ipv6Addr::UNSPECIFIED, port))
}

fn receive(socket: &UdpSocket) -> io::Result<Datagram> {
    let mut octets = vec![0; DATAGRAM_OCTETS];
    let mut space = nix::cmsg_space!(libc::in6_pktinfo);
    let mut slices = [IoSliceMut::new(&mut octets)];
    let message = recvmsg::<SockaddrIn6>(socket.as_raw_fd(), &mut slices, Some(&mut space), MsgFlags::empty())?;
    let (length, peer) = (message.bytes, message.address.map(SocketAddrV6::from));
    let local = message.cmsgs()?.find_map(|control| match control {
        ControlMessageOwned::Ipv6PacketInfo(info) => Some(Ipv6Addr::from(info.ipi6_addr.s6_addr)),
        _ => None,
    });
    let (Some(peer), Some(local)) = (peer, local) else {
        return Err(io::Error::other("a datagram without its addresses"));
    };
    octets.truncate(length);
    let peer = SocketAddr::new(peer.ip().to_canonical(), peer.port());
    Ok(Datagram { octets, peer, local: local.to_canonical() })
}

fn send(socket: &UdpSocket, datagram: &Datagram) -> io::Result<()> {
    let local = mapped(datagram.local).octets();
    let info = libc::in6_pktinfo { ipi6_addr: libc::in6_addr { s6_addr: local }, ipi6_ifindex: 0 };
    let peer = SockaddrIn6::from(SocketAddrV6::new(mapped(datagram.peer.ip()), datagram.peer.port(), 0, 0));
    let control = [ControlMessage::Ipv6PacketInfo(&info)];
    sendmsg(socket.as_raw_fd(), &[IoSlice::new(&datagram.octets)], &control, MsgFlags::empty(), Some(&peer))?;
    Ok(())
}

fn mapped(address: IpAddr) -> Ipv6Addr {
    match address {
        IpAddr::V4(address) => address.to_ipv6_mapped(),
        IpAddr::V6(address) => address,
    }
}
