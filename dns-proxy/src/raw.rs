//! UDP headers by hand (RFC 768), for replies in the name of a resolver on this machine that shares its port with nobody.

use std::net::{IpAddr, SocketAddr};

/// Octets of a UDP header.
const UDP_OCTETS: usize = 8;
/// IANA's number of UDP.
const UDP: u8 = 17;

/// Appends header and payload; nothing where they are longer than a datagram may be.
pub(crate) fn push_datagram(out: &mut Vec<u8>, source: SocketAddr, receiver: SocketAddr, payload: &[u8]) {
    let Ok(length) = u16::try_from(UDP_OCTETS + payload.len()) else { return };
    let sum = match checksum(source, receiver, length, payload) {
        // Zero says that there is no sum.
        0 => u16::MAX,
        sum => sum,
    };
    for field in [source.port(), receiver.port(), length, sum] {
        out.extend(field.to_be_bytes());
    }
    out.extend_from_slice(payload);
}

/// Over pseudo header, header and payload (RFC 768, RFC 8200 §8.1).
fn checksum(source: SocketAddr, receiver: SocketAddr, length: u16, payload: &[u8]) -> u16 {
    let fields = [source.port(), receiver.port(), length, length, u16::from(UDP)];
    let words = [source.ip(), receiver.ip()].into_iter().map(sum_of_address);
    let mut sum: u32 = words.sum::<u32>() + fields.into_iter().map(u32::from).sum::<u32>() + sum_of(payload);
    while sum > u32::from(u16::MAX) {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !u16::try_from(sum).unwrap_or_default()
}

fn sum_of_address(address: IpAddr) -> u32 {
    match address {
        IpAddr::V4(v4) => sum_of(&v4.octets()),
        IpAddr::V6(v6) => sum_of(&v6.octets()),
    }
}

/// Of 16-bit words; at most 32,768 of them, so nothing is carried out.
fn sum_of(octets: &[u8]) -> u32 {
    let word = |pair: &[u8]| u32::from(pair[0]) << 8 | u32::from(*pair.get(1).unwrap_or(&0));
    octets.chunks(2).map(word).sum()
}
