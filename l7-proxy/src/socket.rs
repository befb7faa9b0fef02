//! How the proxy's sockets are opened. All carry the mark, by which the gate knows them.

use std::{
    io,
    net::{IpAddr, SocketAddr},
    os::fd::AsFd,
    time::Duration,
};

use nix::sys::socket::{setsockopt, sockopt};
use socket2::{Domain, Protocol, SockRef, Socket, Type};
use tokio::{
    net::{TcpSocket, TcpStream},
    time::timeout,
};

/// Connections that wait to be accepted.
const BACKLOG: i32 = 4_096;
/// Bytes that the kernel keeps of a connection beyond those that are on their way: what a side does not read stays with
/// the other one, and not in the memory for TCP that all sockets of the machine share.
const UNSENT_BYTES: u32 = 128 << 10;
/// How long a server may take to accept.
const CONNECT_MAX: Duration = Duration::from_secs(10);

fn open(address: SocketAddr, mark: u32) -> io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    if mark != 0 {
        socket.set_mark(mark)?;
    }
    if address.is_ipv6() {
        socket.set_only_v6(true)?;
    }
    socket.set_nonblocking(true)?;
    Ok(socket)
}

fn set_transparent(socket: &Socket, address: SocketAddr) -> io::Result<()> {
    match address {
        SocketAddr::V4(_) => socket.set_ip_transparent_v4(true),
        SocketAddr::V6(_) => socket.set_ip_transparent_v6(true),
    }
}

/// Accepts redirected connections; their local address is the one that was called.
pub(crate) fn listener(address: SocketAddr, mark: u32) -> io::Result<std::net::TcpListener> {
    let socket = open(address, mark)?;
    socket.set_reuse_address(true)?;
    // Without a mark nothing is redirected here: no right is needed then.
    if mark != 0 {
        set_transparent(&socket, address)?;
    }
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    Ok(socket.into())
}

/// Connects to a server, from the address `source` where there is one: it need not be this node's.
pub(crate) async fn connect(server: SocketAddr, source: Option<IpAddr>, mark: u32) -> io::Result<TcpStream> {
    let socket = open(server, mark)?;
    if let Some(source) = source {
        set_transparent(&socket, server)?;
        // The port is chosen when the other end is known: as many connections as ports, to each server.
        setsockopt(&socket, sockopt::IpBindAddressNoPort, &true)?;
        socket.bind(&SocketAddr::new(source, 0).into())?;
    }
    let stream = timeout(CONNECT_MAX, TcpSocket::from_std_stream(socket.into()).connect(server)).await??;
    tune(&stream)?;
    Ok(stream)
}

/// Sends small parts at once, and keeps few that cannot be sent.
pub(crate) fn tune(stream: &TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    SockRef::from(stream).set_tcp_notsent_lowat(UNSENT_BYTES)
}

/// Sends datagrams in the name of their client, whose address need not be this node's; gives how many were sent.
pub fn send_as(client: SocketAddr, server: SocketAddr, mark: u32, datagrams: &[Vec<u8>]) -> io::Result<usize> {
    let socket = Socket::new(Domain::for_address(client), Type::DGRAM, Some(Protocol::UDP))?;
    if mark != 0 {
        socket.set_mark(mark)?;
    }
    socket.set_nonblocking(true)?;
    set_transparent(&socket, client)?;
    socket.set_reuse_address(true)?;
    socket.bind(&client.into())?;
    let server = server.into();
    for (sent, datagram) in datagrams.iter().enumerate() {
        if socket.send_to(datagram, &server).is_err() {
            return Ok(sent);
        }
    }
    Ok(datagrams.len())
}

/// Ends a connection by RST, so that its client knows at once.
pub(crate) fn reset(stream: impl AsFd) {
    // Without the option the connection ends all the same, by FIN.
    let _ = SockRef::from(&stream).set_linger(Some(Duration::ZERO));
}
