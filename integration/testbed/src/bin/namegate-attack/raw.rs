//! Packets and frames written byte by byte, and the sockets that send them as they are.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::AsRawFd;

use nix::ifaddrs::getifaddrs;
use nix::sys::socket::{SockaddrLike, bind};
use socket2::{Domain, Protocol, SockAddr, Socket, Type};

/// Protocols of the Internet header (IANA).
pub(crate) const ICMP: u8 = 1;
pub(crate) const TCP: u8 = 6;
pub(crate) const UDP: u8 = 17;
pub(crate) const ICMPV6: u8 = 58;

/// `ETH_P_ALL` of `if_ether.h`: every frame.
const EVERY_FRAME: u16 = 3;
/// Hop limit of packets that are no neighbour discovery.
const HOPS: u8 = 64;
/// What a busy capture may have waiting in the kernel, bytes.
const CAPTURE_BYTES: usize = 32 << 20;

/// Sends whole IP packets of both families, whatever their header says.
pub(crate) struct RawIp {
    v4: Socket,
    v6: Socket,
}

impl RawIp {
    /// Opens the sockets in the calling thread's network namespace.
    pub(crate) fn open() -> io::Result<Self> {
        let raw = Some(Protocol::from(libc::IPPROTO_RAW));
        let v4 = Socket::new(Domain::IPV4, Type::RAW, raw)?;
        let v6 = Socket::new(Domain::IPV6, Type::RAW, raw)?;
        v4.set_nonblocking(true)?;
        v6.set_nonblocking(true)?;
        Ok(Self { v4, v6 })
    }

    /// Sends one packet. A full queue loses it: floods are not exact.
    pub(crate) fn send(&self, packet: &Packet) {
        let to = SockAddr::from(SocketAddr::new(packet.to, 0));
        let socket = if packet.to.is_ipv4() { &self.v4 } else { &self.v6 };
        let _ = socket.send_to(&packet.bytes, &to);
    }
}

/// An IP packet with its destination.
pub(crate) struct Packet {
    to: IpAddr,
    bytes: Vec<u8>,
}

impl Packet {
    /// The packet as bytes.
    pub(crate) fn bytes(&self) -> &[u8] {
        &self.bytes
    }
}

/// Both addresses of a packet, of one family.
#[derive(Clone, Copy)]
pub(crate) struct Path {
    pub(crate) from: IpAddr,
    pub(crate) to: IpAddr,
}

impl Path {
    pub(crate) fn new(from: IpAddr, to: IpAddr) -> Self {
        Self { from, to }
    }

    /// A packet with this payload.
    pub(crate) fn packet(self, protocol: u8, payload: &[u8]) -> Packet {
        self.packet_with(protocol, HOPS, payload)
    }

    /// The same with a hop limit.
    pub(crate) fn packet_with(self, protocol: u8, hops: u8, payload: &[u8]) -> Packet {
        match (self.from, self.to) {
            (IpAddr::V6(from), IpAddr::V6(to)) => {
                let mut bytes = vec![0x60, 0, 0, 0];
                bytes.extend(be16(payload.len()));
                bytes.extend([protocol, hops]);
                bytes.extend(from.octets());
                bytes.extend(to.octets());
                bytes.extend(payload);
                Packet { to: self.to, bytes }
            }
            _ => self.fragment(protocol, hops, 0, 0, payload),
        }
    }

    /// An IPv4 packet with an identification and the sixteen bits of flags and offset.
    pub(crate) fn fragment(self, protocol: u8, hops: u8, id: u16, flags: u16, payload: &[u8]) -> Packet {
        let mut header = vec![0x45, 0];
        header.extend(be16(20 + payload.len()));
        header.extend(id.to_be_bytes());
        header.extend(flags.to_be_bytes());
        header.extend([hops, protocol, 0, 0]);
        header.extend(octets(self.from));
        header.extend(octets(self.to));
        let sum = checksum(&[&header]);
        header[10..12].copy_from_slice(&sum);
        header.extend(payload);
        Packet { to: self.to, bytes: header }
    }

    /// A UDP datagram with its checksum.
    pub(crate) fn udp(self, from: u16, to: u16, payload: &[u8]) -> Vec<u8> {
        let mut bytes = [from.to_be_bytes(), to.to_be_bytes()].concat();
        bytes.extend(be16(8 + payload.len()));
        bytes.extend([0, 0]);
        bytes.extend(payload);
        self.with_checksum(UDP, bytes, 6)
    }

    /// The first segment of a TCP connection, with data in it.
    pub(crate) fn syn(self, from: u16, to: u16, sequence: u32, payload: &[u8]) -> Vec<u8> {
        let mut bytes = [from.to_be_bytes(), to.to_be_bytes()].concat();
        bytes.extend(sequence.to_be_bytes());
        bytes.extend([0, 0, 0, 0, 0x50, 0x02, 0xff, 0xff, 0, 0, 0, 0]);
        bytes.extend(payload);
        self.with_checksum(TCP, bytes, 16)
    }

    /// An ICMP message of this path's family: type, code, the four bytes after the checksum, the rest.
    pub(crate) fn icmp(self, kind: u8, code: u8, word: [u8; 4], rest: &[u8]) -> Vec<u8> {
        let mut bytes = vec![kind, code, 0, 0];
        bytes.extend(word);
        bytes.extend(rest);
        if self.to.is_ipv6() {
            return self.with_checksum(ICMPV6, bytes, 2);
        }
        let sum = checksum(&[&bytes]);
        bytes[2..4].copy_from_slice(&sum);
        bytes
    }

    fn with_checksum(self, protocol: u8, mut bytes: Vec<u8>, at: usize) -> Vec<u8> {
        let ends = [octets(self.from), octets(self.to)].concat();
        let tail = [&[0, protocol][..], &be16(bytes.len())].concat();
        let sum = checksum(&[&ends, &tail, &bytes]);
        bytes[at..at + 2].copy_from_slice(&sum);
        bytes
    }
}

/// The sum of the Internet protocols (RFC 1071). Every part but the last has an even length.
fn checksum(parts: &[&[u8]]) -> [u8; 2] {
    let mut sum: u32 = 0;
    for pair in parts.iter().flat_map(|part| part.chunks(2)) {
        sum += u32::from(u16::from_be_bytes([pair[0], pair.get(1).copied().unwrap_or(0)]));
        sum = (sum & 0xffff) + (sum >> 16);
    }
    (!u16::try_from(sum).unwrap_or(u16::MAX)).to_be_bytes()
}

fn octets(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(address) => address.octets().to_vec(),
        IpAddr::V6(address) => address.octets().to_vec(),
    }
}

fn be16(length: usize) -> [u8; 2] {
    u16::try_from(length).unwrap_or(u16::MAX).to_be_bytes()
}

/// An Ethernet address.
pub(crate) type Mac = [u8; 6];

/// An Ethernet frame.
pub(crate) fn frame(to: Mac, from: Mac, kind: u16, payload: &[u8]) -> Vec<u8> {
    [&to[..], &from, &kind.to_be_bytes(), payload].concat()
}

/// An ARP message of RFC 826 with more bytes behind it.
pub(crate) fn arp(operation: u16, sender: (Mac, Ipv4Addr), target: (Mac, Ipv4Addr), behind: &[u8]) -> Vec<u8> {
    let mut bytes = vec![0, 1, 8, 0, 6, 4];
    bytes.extend(operation.to_be_bytes());
    bytes.extend(sender.0);
    bytes.extend(sender.1.octets());
    bytes.extend(target.0);
    bytes.extend(target.1.octets());
    bytes.extend(behind);
    bytes
}

/// An option of neighbour discovery with a link-layer address (RFC 4861 §4.6.1): 1 is the source's, 2 the target's.
pub(crate) fn link_option(kind: u8, mac: Mac) -> Vec<u8> {
    [&[kind, 1][..], &mac].concat()
}

/// An option of an experimental type that holds data, filled to a multiple of eight bytes.
pub(crate) fn data_option(data: &[u8]) -> Vec<u8> {
    let units = (2 + data.len()).div_ceil(8);
    let mut bytes = vec![253, u8::try_from(units).unwrap_or(u8::MAX)];
    bytes.extend(data);
    bytes.resize(units * 8, 0);
    bytes
}

/// The address of all nodes of a link.
pub(crate) const ALL_NODES: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);

/// A socket for whole frames of one interface of the calling thread's namespace; reads wait at most so long.
pub(crate) fn frames_of(interface: &str, patience: std::time::Duration) -> io::Result<Socket> {
    let protocol = i32::from(EVERY_FRAME.to_be());
    let socket = Socket::new(Domain::PACKET, Type::RAW, Some(Protocol::from(protocol)))?;
    // Less room is no error: the capture says what it has seen.
    let _ = nix::sys::socket::setsockopt(&socket, nix::sys::socket::sockopt::RcvBufForce, &CAPTURE_BYTES);
    socket.set_read_timeout(Some(patience))?;
    let link = getifaddrs()?
        .filter(|found| found.interface_name == interface)
        .find_map(|found| found.address.filter(|address| address.as_link_addr().is_some()))
        .ok_or_else(|| io::Error::other(format!("no interface `{interface}`")))?;
    bind(socket.as_raw_fd(), &link as &dyn SockaddrLike)?;
    Ok(socket)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_sum_of_a_message_with_its_sum_is_nothing() {
        let v4 = Path::new([10, 0, 0, 1].into(), [192, 0, 2, 1].into());
        let v6 = Path::new("fd00::1".parse().unwrap(), "2001:db8::1".parse().unwrap());
        for path in [v4, v6] {
            let ends = [octets(path.from), octets(path.to)].concat();
            let message = path.udp(1, 2, b"odd");
            assert_eq!(checksum(&[&ends, &[0, UDP], &be16(message.len()), &message]), [0, 0]);
            let message = path.syn(1, 2, 3, b"data");
            assert_eq!(checksum(&[&ends, &[0, TCP], &be16(message.len()), &message]), [0, 0]);
        }
        assert_eq!(checksum(&[&v4.icmp(8, 0, [0, 0, 0, 1], b"odd")]), [0, 0]);
        assert_eq!(checksum(&[&v4.packet(UDP, b"").bytes()[..20]]), [0, 0]);
    }

    #[test]
    fn an_option_with_data_has_a_whole_number_of_units() {
        for length in [0, 6, 7, 30] {
            let option = data_option(&vec![1; length]);
            assert_eq!(option.len(), usize::from(option[1]) * 8);
        }
    }
}
