//! How the proxy's sockets are opened. All carry the mark, so that the gate lets them pass and sends them nowhere else.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket},
};

use nix::sys::socket::{setsockopt, sockopt};
use socket2::{Domain, Protocol, SockAddr, Socket, Type};

/// Receive buffer of a listening UDP socket, in octets; the kernel may grant less.
const LISTENER_BUFFER_OCTETS: usize = 4 << 20;
/// Receive buffer of a socket to a resolver, in octets.
const UPSTREAM_BUFFER_OCTETS: usize = 1 << 20;
/// Connections that wait to be accepted.
const TCP_BACKLOG: i32 = 1024;
/// "Discard" (RFC 863): nobody sends from it.
const DISCARD_PORT: u16 = 9;

/// What every socket is given.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Marked {
    /// `SO_MARK`; 0 sets none.
    pub(crate) mark: u32,
    /// Without the right to it, a listener is opened all the same: nothing can be redirected to it then.
    pub(crate) transparency_optional: bool,
}

impl Marked {
    fn open(self, address: SocketAddr, kind: Type, protocol: Protocol) -> io::Result<Socket> {
        let socket = Socket::new(Domain::for_address(address), kind, Some(protocol))?;
        if self.mark != 0 {
            socket.set_mark(self.mark)?;
        }
        if address.is_ipv6() && kind != Type::RAW {
            socket.set_only_v6(true)?;
        }
        socket.set_nonblocking(true)?;
        Ok(socket)
    }

    /// Receives redirected questions, with their original destination in a control message.
    pub(crate) fn udp_listener(self, address: SocketAddr) -> io::Result<UdpSocket> {
        let socket = self.open(address, Type::DGRAM, Protocol::UDP)?;
        socket.set_reuse_port(true)?;
        self.make_transparent(&socket, address)?;
        match address {
            SocketAddr::V4(_) => setsockopt(&socket, sockopt::Ipv4OrigDstAddr, &true)?,
            SocketAddr::V6(_) => setsockopt(&socket, sockopt::Ipv6OrigDstAddr, &true)?,
        }
        set_receive_buffer(&socket, LISTENER_BUFFER_OCTETS)?;
        socket.bind(&address.into())?;
        Ok(socket.into())
    }

    /// Accepts redirected connections; their local address is the original destination.
    pub(crate) fn tcp_listener(self, address: SocketAddr) -> io::Result<std::net::TcpListener> {
        let socket = self.open(address, Type::STREAM, Protocol::TCP)?;
        socket.set_reuse_port(true)?;
        socket.set_reuse_address(true)?;
        self.make_transparent(&socket, address)?;
        socket.bind(&address.into())?;
        socket.listen(TCP_BACKLOG)?;
        Ok(socket.into())
    }

    /// Sends replies from a resolver's address. It is connected to a peer that never sends, since a socket bound to the
    /// resolver's address alone would take datagrams away from a resolver on this machine; replies name their receiver.
    /// Such a resolver must share its port (`SO_REUSEPORT`, as CoreDNS does), or binding fails with `AddrInUse`.
    pub(crate) fn udp_replier(self, resolver: SocketAddr) -> io::Result<UdpSocket> {
        let socket = self.open(resolver, Type::DGRAM, Protocol::UDP)?;
        socket.set_reuse_address(true)?;
        socket.set_reuse_port(true)?;
        set_transparent(&socket, resolver)?;
        socket.bind(&resolver.into())?;
        connect_to_nobody(&socket, resolver)?;
        Ok(socket.into())
    }

    /// Sends whole UDP datagrams, headers included, from a resolver's address; ports are none of its business.
    pub(crate) fn raw_replier(self, resolver: SocketAddr) -> io::Result<UdpSocket> {
        let socket = self.open(resolver, Type::RAW, Protocol::UDP)?;
        set_transparent(&socket, resolver)?;
        socket.bind(&SocketAddr::new(resolver.ip(), 0).into())?;
        connect_to_nobody(&socket, resolver)?;
        Ok(socket.into())
    }

    /// Asks one resolver, from a port of the kernel's random choice.
    pub(crate) fn udp_upstream(self, resolver: SocketAddr) -> io::Result<UdpSocket> {
        let socket = self.open(resolver, Type::DGRAM, Protocol::UDP)?;
        set_receive_buffer(&socket, UPSTREAM_BUFFER_OCTETS)?;
        socket.connect(&resolver.into())?;
        Ok(socket.into())
    }

    /// Is to be connected to a resolver.
    pub(crate) fn tcp_upstream(self, resolver: SocketAddr) -> io::Result<std::net::TcpStream> {
        let socket = self.open(resolver, Type::STREAM, Protocol::TCP)?;
        socket.set_tcp_nodelay(true)?;
        Ok(socket.into())
    }

    fn make_transparent(self, socket: &Socket, address: SocketAddr) -> io::Result<()> {
        match set_transparent(socket, address) {
            Err(error) if self.transparency_optional && error.kind() == io::ErrorKind::PermissionDenied => {
                tracing::warn!("without CAP_NET_ADMIN the DNS proxy answers plain questions alone");
                Ok(())
            }
            result => result,
        }
    }
}

/// Beyond the machine's limit where that is allowed.
fn set_receive_buffer(socket: &Socket, octets: usize) -> io::Result<()> {
    setsockopt(socket, sockopt::RcvBufForce, &octets).or_else(|_| socket.set_recv_buffer_size(octets))
}

/// From then on the socket receives from a peer that never sends.
fn connect_to_nobody(socket: &Socket, own: SocketAddr) -> io::Result<()> {
    let nobody: IpAddr = match own {
        SocketAddr::V4(_) => Ipv4Addr::LOCALHOST.into(),
        SocketAddr::V6(_) => Ipv6Addr::LOCALHOST.into(),
    };
    // The port of a raw IPv6 socket is its protocol (raw(7)).
    let port = if socket.r#type()? == Type::RAW { 0 } else { DISCARD_PORT };
    socket.connect(&SockAddr::from(SocketAddr::new(nobody, port)))
}

fn set_transparent(socket: &Socket, address: SocketAddr) -> io::Result<()> {
    match address {
        SocketAddr::V4(_) => socket.set_ip_transparent_v4(true),
        SocketAddr::V6(_) => socket.set_ip_transparent_v6(true),
    }
}
