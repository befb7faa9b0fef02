//! The first two messages of SCTP (RFC 9260, section 5.1), over raw sockets: they tell whether an association could be,
//! also where the kernel has no SCTP.

use std::collections::BTreeSet;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use socket2::{Domain, Protocol, Socket, Type};
use tokio::net::UdpSocket;
use tokio::time::timeout;

use crate::client::Failure;

/// Number of the protocol.
const SCTP: i32 = 132;
/// Octets of the common header.
const HEAD: usize = 12;
/// Types of chunks.
const INIT: u8 = 1;
const INIT_ACK: u8 = 2;
/// Octets of a chunk INIT without parameters, and of a packet with one.
const CHUNK: u8 = 20;
const PACKET: usize = HEAD + CHUNK as usize;
/// More than a packet here has, with a header of IPv4.
const OCTETS: usize = 256;
/// Receiver window, streams out and in.
const WINDOW: [u8; 8] = [0, 1, 0, 0, 0, 1, 0, 1];
/// A parameter State Cookie of four octets, which an INIT ACK must have.
const COOKIE: [u8; 8] = [0, 7, 0, 8, 0x5a, 0x5a, 0x5a, 0x5a];

/// What matters of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Packet {
    from: u16,
    to: u16,
    /// Verification tag: 0 in a packet with an INIT.
    tag: u32,
    kind: u8,
    /// Initiate tag.
    own: u32,
}

impl Packet {
    fn octets(self) -> Vec<u8> {
        let cookie: &[u8] = if self.kind == INIT_ACK { &COOKIE } else { &[] };
        let length = u16::from(CHUNK) + if cookie.is_empty() { 0 } else { 8 };
        let mut octets = Vec::with_capacity(PACKET + COOKIE.len());
        octets.extend(self.from.to_be_bytes());
        octets.extend(self.to.to_be_bytes());
        octets.extend(self.tag.to_be_bytes());
        octets.extend([0; 4]);
        octets.extend([self.kind, 0]);
        octets.extend(length.to_be_bytes());
        octets.extend(self.own.to_be_bytes());
        octets.extend(WINDOW);
        octets.extend(self.own.to_be_bytes());
        octets.extend(cookie);
        let sum = crc32c::crc32c(&octets);
        octets[8..HEAD].copy_from_slice(&sum.to_le_bytes());
        octets
    }

    /// `None` where it is no packet, or its checksum is wrong.
    fn read(octets: &[u8]) -> Option<Self> {
        let mut plain = octets.to_vec();
        plain.get_mut(8..HEAD)?.fill(0);
        let word = |at: usize| Some(u32::from_be_bytes(octets.get(at..at + 4)?.try_into().ok()?));
        let port = |at: usize| Some(u16::from_be_bytes(octets.get(at..at + 2)?.try_into().ok()?));
        let sum = u32::from_le_bytes(octets[8..HEAD].try_into().ok()?);
        let packet = Self { from: port(0)?, to: port(2)?, tag: word(4)?, kind: *octets.get(HEAD)?, own: word(16)? };
        (crc32c::crc32c(&plain) == sum).then_some(packet)
    }

    /// What a server answers to an INIT.
    fn answer(self) -> Self {
        Self { from: self.to, to: self.from, tag: self.own, kind: INIT_ACK, own: rand::random_range(1..=u32::MAX) }
    }
}

/// Answers those who begin an association with one of the ports, at every address of the calling thread's namespace.
pub(crate) fn serve(ports: &BTreeSet<u16>) -> io::Result<()> {
    for address in [IpAddr::from(Ipv4Addr::UNSPECIFIED), Ipv6Addr::UNSPECIFIED.into()] {
        let (socket, ports) = (raw(address)?, ports.clone());
        tokio::spawn(async move {
            let mut octets = [0; OCTETS];
            // An error is about one packet: its sender may be gone.
            loop {
                let Ok((length, peer)) = socket.recv_from(&mut octets).await else { continue };
                let asked = payload(address, &octets[..length]);
                if let Some(asked) = asked.filter(|asked| asked.kind == INIT && ports.contains(&asked.to)) {
                    let _ = socket.send_to(&asked.answer().octets(), peer).await;
                }
            }
        });
    }
    Ok(())
}

/// Begins an association and waits for the answer.
pub(crate) async fn begin(to: SocketAddr, within: Duration) -> Result<(), Failure> {
    let asked = Packet {
        from: rand::random_range(32_768..=u16::MAX),
        to: to.port(),
        tag: 0,
        kind: INIT,
        own: rand::random_range(1..=u32::MAX),
    };
    let exchange = async {
        let socket = raw(to.ip())?;
        socket.connect(SocketAddr::new(to.ip(), 0)).await?;
        socket.send(&asked.octets()).await?;
        loop {
            let mut octets = [0; OCTETS];
            let length = socket.recv(&mut octets).await?;
            let came = payload(to.ip(), &octets[..length]);
            let is_it =
                |came: Packet| (came.from, came.to, came.tag, came.kind) == (asked.to, asked.from, asked.own, INIT_ACK);
            if came.is_some_and(is_it) {
                return Ok::<_, io::Error>(());
            }
        }
    };
    match timeout(within, exchange).await {
        Err(_) => Err(Failure::Timeout),
        Ok(outcome) => outcome.map_err(|error| Failure::Other(error.to_string())),
    }
}

/// A raw socket of the family of `address` for packets of this protocol. Those of UDP have the calls that it needs.
fn raw(address: IpAddr) -> io::Result<UdpSocket> {
    let domain = if address.is_ipv4() { Domain::IPV4 } else { Domain::IPV6 };
    let socket = Socket::new(domain, Type::RAW, Some(Protocol::from(SCTP)))?;
    socket.set_nonblocking(true)?;
    UdpSocket::from_std(socket.into())
}

/// The packet in what a raw socket gives: with the header of IPv4, without that of IPv6.
fn payload(address: IpAddr, octets: &[u8]) -> Option<Packet> {
    let head = if address.is_ipv4() { usize::from(octets.first()? & 0xf) * 4 } else { 0 };
    Packet::read(octets.get(head..)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn packets_are_read_as_they_were_written() {
        let init = Packet { from: 40_000, to: 80, tag: 0, kind: INIT, own: 7 };
        let answer = init.answer();
        assert_eq!((answer.from, answer.to, answer.tag, answer.kind), (80, 40_000, 7, INIT_ACK));
        for packet in [init, answer] {
            let mut octets = packet.octets();
            assert_eq!(Packet::read(&octets), Some(packet));
            octets[13] ^= 1;
            assert_eq!(Packet::read(&octets), None, "the checksum is wrong");
            assert_eq!(Packet::read(&octets[..HEAD]), None);
            assert_eq!(Packet::read(&[]), None);
        }
    }
}
