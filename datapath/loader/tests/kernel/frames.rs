//! Ethernet frames for the programs to judge. Checksums are left out: no program looks at one.

use std::net::IpAddr;

/// Octets of an Ethernet header.
const LINK: usize = 14;
const TCP: u8 = 6;
const UDP: u8 = 17;
const ICMP: u8 = 1;
const ICMPV6: u8 = 58;

/// A frame that carries one IP packet.
#[derive(Clone, Debug)]
pub(crate) struct Frame(pub(crate) Vec<u8>);

impl Frame {
    /// The frame with no more than these octets after the IP header.
    pub(crate) fn cut(&self, octets: usize) -> Self {
        let header = if self.0[LINK] >> 4 == 4 { 20 } else { 40 };
        Self(self.0[..LINK + header + octets].to_vec())
    }
}

/// One packet of `protocol`.
pub(crate) fn packet(source: IpAddr, destination: IpAddr, protocol: u8, payload: &[u8]) -> Frame {
    let octets = u16::try_from(payload.len()).unwrap();
    let mut frame = vec![0; LINK];
    match (source, destination) {
        (IpAddr::V4(source), IpAddr::V4(destination)) => {
            frame[12..].copy_from_slice(&[0x08, 0x00]);
            frame.extend([0x45, 0]);
            frame.extend((20 + octets).to_be_bytes());
            frame.extend([0, 0, 0, 0, 64, protocol, 0, 0]);
            frame.extend(source.octets());
            frame.extend(destination.octets());
        }
        (IpAddr::V6(source), IpAddr::V6(destination)) => {
            frame[12..].copy_from_slice(&[0x86, 0xdd]);
            frame.extend([0x60, 0, 0, 0]);
            frame.extend(octets.to_be_bytes());
            frame.extend([protocol, 64]);
            frame.extend(source.octets());
            frame.extend(destination.octets());
        }
        _ => panic!("{source} and {destination} are of two families"),
    }
    frame.extend(payload);
    Frame(frame)
}

/// A datagram of eight octets.
pub(crate) fn udp(source: (IpAddr, u16), destination: (IpAddr, u16)) -> Frame {
    let ports = [source.1.to_be_bytes(), destination.1.to_be_bytes(), 16_u16.to_be_bytes(), [0; 2]].concat();
    packet(source.0, destination.0, UDP, &[ports, vec![0; 8]].concat())
}

/// The ICMP error "port unreachable" about a packet.
pub(crate) fn error_about(source: IpAddr, destination: IpAddr, about: &Frame) -> Frame {
    let (protocol, kind, code) = if source.is_ipv4() { (ICMP, 3, 3) } else { (ICMPV6, 1, 4) };
    packet(source, destination, protocol, &[&[kind, code, 0, 0, 0, 0, 0, 0], &about.0[LINK..]].concat())
}

/// A TCP segment without payload.
pub(crate) fn tcp(source: (IpAddr, u16), destination: (IpAddr, u16), flags: u8) -> Frame {
    let mut header = [source.1.to_be_bytes(), destination.1.to_be_bytes()].concat();
    header.extend([0; 8]);
    header.extend([0x50, flags, 0, 0, 0, 0, 0, 0]);
    packet(source.0, destination.0, TCP, &header)
}

/// A fragment of a datagram: the first, or a later one.
pub(crate) fn fragment(source: (IpAddr, u16), destination: (IpAddr, u16), id: u16, first: bool) -> Frame {
    const FRAGMENT: u8 = 44;
    let ports = [source.1.to_be_bytes(), destination.1.to_be_bytes(), 16_u16.to_be_bytes(), [0; 2]].concat();
    let payload = [ports, vec![0; 8]].concat();
    if source.0.is_ipv4() {
        let mut frame = packet(source.0, destination.0, UDP, &payload);
        frame.0[LINK + 4..LINK + 6].copy_from_slice(&id.to_be_bytes());
        let offset: u16 = if first { 0x2000 } else { 2 };
        frame.0[LINK + 6..LINK + 8].copy_from_slice(&offset.to_be_bytes());
        return frame;
    }
    let offset: u16 = if first { 1 } else { 16 };
    let mut header = vec![UDP, 0];
    header.extend(offset.to_be_bytes());
    header.extend(u32::from(id).to_be_bytes());
    packet(source.0, destination.0, FRAGMENT, &[header, payload].concat())
}
