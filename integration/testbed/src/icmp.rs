//! Echo requests, IPv4 and IPv6, by the kernel's ping sockets (`ping_group_range` is open in a world).

use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use socket2::{Domain, Protocol, Socket, Type};

use crate::client::Failure;

/// Sends one echo request and waits for its reply. Blocks the calling thread.
pub(crate) fn ping(to: IpAddr, payload_octets: usize, within: Duration) -> Result<(), Failure> {
    let (domain, protocol, request, reply) = match to {
        IpAddr::V4(_) => (Domain::IPV4, Protocol::ICMPV4, 8, 0),
        IpAddr::V6(_) => (Domain::IPV6, Protocol::ICMPV6, 128, 129),
    };
    let exchange = || {
        let mut socket = Socket::new(domain, Type::DGRAM, Some(protocol))?;
        socket.connect(&SocketAddr::new(to, 0).into())?;
        socket.set_read_timeout(Some(within))?;
        let mut message = vec![request, 0, 0, 0, 0, 0, 0, 1];
        message.resize(8 + payload_octets, 0x5a);
        socket.write_all(&message)?;
        let mut answer = vec![0; message.len()];
        let length = socket.read(&mut answer)?;
        Ok::<_, std::io::Error>(length == message.len() && answer[0] == reply)
    };
    match exchange() {
        Ok(true) => Ok(()),
        Ok(false) => Err(Failure::Other("another message than the reply".to_owned())),
        Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => Err(Failure::Timeout),
        Err(error) => Err(Failure::Other(error.to_string())),
    }
}
