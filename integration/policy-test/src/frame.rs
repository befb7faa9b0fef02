//! The first packet of a flow as an Ethernet frame (RFC 791, RFC 8200, RFC 9293, RFC 768, RFC 9260, RFC 792, RFC 4443).
//!
//! Checksums of transport headers stay zero: no program looks at them.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use namegate_abi::{icmp, protocol, tcp};
use namegate_config::reference::Flow;

/// Octets of an Ethernet header.
pub(crate) const LINK_OCTETS: usize = 14;
/// Time to live and hop limit.
const HOPS: u8 = 64;

/// A packet that opens a flow; `own_port` is its source port, or the identifier of an echo.
pub(crate) fn first(source: IpAddr, destination: IpAddr, flow: Flow, own_port: u16) -> Option<Vec<u8>> {
    let payload = transport(flow, own_port);
    let (ethertype, header) = match (source, destination) {
        (IpAddr::V4(source), IpAddr::V4(destination)) => (0x0800_u16, v4(source, destination, flow.protocol, &payload)),
        (IpAddr::V6(source), IpAddr::V6(destination)) => (0x86dd, v6(source, destination, flow.protocol, &payload)),
        _ => return None,
    };
    // Locally administered addresses of nobody (IEEE 802, section 8.4).
    let mut frame = vec![2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2];
    frame.extend(ethertype.to_be_bytes());
    frame.extend(header);
    frame.extend(payload);
    Some(frame)
}

/// Whether flows of the protocol are told apart by ports or an identifier.
pub(crate) const fn has_ports(flow: Flow) -> bool {
    match flow.protocol {
        protocol::TCP | protocol::UDP | protocol::SCTP => true,
        protocol::ICMP | protocol::ICMPV6 => icmp::has_identifier(flow.protocol, flow.port.to_be_bytes()[0]),
        _ => false,
    }
}

fn transport(flow: Flow, own_port: u16) -> Vec<u8> {
    let [own, port] = [own_port, flow.port].map(u16::to_be_bytes);
    let ports = [own[0], own[1], port[0], port[1]];
    match flow.protocol {
        protocol::TCP => [&ports[..], &[0; 8], &[0x50, tcp::SYN], &[0xff, 0xff, 0, 0, 0, 0]].concat(),
        protocol::UDP => [&ports[..], &[0, 8, 0, 0]].concat(),
        // The common header, then INIT with tag 1, room for 65535 octets, one stream each way and the first number.
        protocol::SCTP => {
            let init = [1, 0, 0, 20, 0, 0, 0, 1, 0, 0, 0xff, 0xff, 0, 1, 0, 1, 0, 0, 0, 1];
            [&ports[..], &[0; 8], &init].concat()
        }
        protocol::ICMP | protocol::ICMPV6 => [port[0], port[1], 0, 0, own[0], own[1], 0, 1].to_vec(),
        _ => vec![0; 8],
    }
}

fn v4(source: Ipv4Addr, destination: Ipv4Addr, protocol: u8, payload: &[u8]) -> Vec<u8> {
    let length = u16::try_from(20 + payload.len()).unwrap_or(u16::MAX).to_be_bytes();
    let mut header = vec![0x45, 0, length[0], length[1], 0, 0, 0x40, 0, HOPS, protocol, 0, 0];
    header.extend(source.octets());
    header.extend(destination.octets());
    let sum = header.chunks(2).map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]]))).sum::<u32>();
    let folded = (sum & 0xffff) + (sum >> 16);
    let folded = u16::try_from((folded & 0xffff) + (folded >> 16)).unwrap_or_default();
    header[10..12].copy_from_slice(&(!folded).to_be_bytes());
    header
}

fn v6(source: Ipv6Addr, destination: Ipv6Addr, protocol: u8, payload: &[u8]) -> Vec<u8> {
    let length = u16::try_from(payload.len()).unwrap_or(u16::MAX).to_be_bytes();
    let mut header = vec![0x60, 0, 0, 0, length[0], length[1], protocol, HOPS];
    header.extend(source.octets());
    header.extend(destination.octets());
    header
}

#[cfg(test)]
mod tests {
    use namegate_abi::{Class, Reader, parse};

    use super::*;

    struct Octets(Vec<u8>);

    impl Reader for Octets {
        fn load<const N: usize>(&self, offset: usize) -> Option<[u8; N]> {
            self.0.get(offset..offset + N)?.try_into().ok()
        }
    }

    #[test]
    fn frames_say_what_the_flow_is() {
        let v4 = ["10.0.0.1", "10.0.0.2"].map(|text| text.parse().unwrap());
        let v6 = ["fd00::1", "fd00::2"].map(|text| text.parse().unwrap());
        for (protocol, port) in [(6, 443), (17, 53), (132, 7), (1, 8 << 8), (1, 13 << 8), (58, 128 << 8), (47, 0)] {
            for [source, destination] in [v4, v6] {
                let flow = Flow { protocol, port };
                let frame = first(source, destination, flow, 40_000).unwrap();
                let ethertype = u16::from_be_bytes([frame[12], frame[13]]);
                let packet = parse(&Octets(frame), ethertype, LINK_OCTETS).unwrap();
                assert_eq!((packet.source, packet.destination), (source.into(), destination.into()));
                assert_eq!((packet.protocol, packet.policy_port()), (protocol, port), "{flow:?}");
                assert_eq!((packet.source_port == 40_000, packet.class), (has_ports(flow), Class::Plain), "{flow:?}");
                assert_eq!(packet.opens(), protocol == 6);
            }
        }
        assert_eq!(first(v4[0], v6[0], Flow { protocol: 6, port: 1 }, 1), None);
    }

    #[test]
    fn the_header_of_ipv4_sums_to_nothing() {
        let frame = first("10.0.0.1".parse().unwrap(), "192.0.2.9".parse().unwrap(), Flow { protocol: 17, port: 9 }, 7);
        let header = frame.unwrap()[14..34].to_vec();
        let mut sum: u32 = header.chunks(2).map(|pair| u32::from(pair[0]) << 8 | u32::from(pair[1])).sum();
        sum = (sum & 0xffff) + (sum >> 16);
        assert_eq!(sum, 0xffff);
    }
}
