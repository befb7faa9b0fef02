//! Reads the headers that a verdict needs: RFC 791, RFC 8200, RFC 9293, RFC 768, RFC 9260, RFC 792, RFC 4443.
//!
//! Nothing is followed that is not bounded: at most [`EXTENSIONS_MAX`] IPv6 extension headers are walked.

use crate::{Address, Reason, icmp};

/// IPv6 extension headers walked before a packet counts as malformed.
pub const EXTENSIONS_MAX: usize = 6;

/// `0x0800`, host order.
const ETHERTYPE_IPV4: u16 = 0x0800;
/// `0x86dd`, host order.
const ETHERTYPE_IPV6: u16 = 0x86dd;
/// `0x0806`, host order.
const ETHERTYPE_ARP: u16 = 0x0806;
/// IEEE 802.1Q, IEEE 802.1ad, and what came before that.
const ETHERTYPE_VLAN: u16 = 0x8100;
const ETHERTYPE_SERVICE_VLAN: u16 = 0x88a8;
const ETHERTYPE_OLD_SERVICE_VLAN: u16 = 0x9100;

/// Protocol numbers (IANA).
pub mod protocol {
    /// ICMP.
    pub const ICMP: u8 = 1;
    /// TCP.
    pub const TCP: u8 = 6;
    /// UDP.
    pub const UDP: u8 = 17;
    /// ICMPv6.
    pub const ICMPV6: u8 = 58;
    /// SCTP.
    pub const SCTP: u8 = 132;
}

/// Flags of the TCP header.
pub mod tcp {
    /// Sender is done.
    pub const FIN: u8 = 1;
    /// First packet of a side.
    pub const SYN: u8 = 2;
    /// Abort.
    pub const RST: u8 = 4;
    /// Acknowledgement.
    pub const ACK: u8 = 16;
}

/// Access to the octets of a packet, from the network header of its outer frame.
pub trait Reader {
    /// `N` octets at `offset`, or `None` past the end.
    fn load<const N: usize>(&self, offset: usize) -> Option<[u8; N]>;
}

/// What kind of packet the headers show.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Class {
    /// Judged by ports and protocol.
    Plain = 0,
    /// An ICMP error: judged by the packet it quotes.
    Error = 1,
    /// A later fragment: judged by its first.
    Fragment = 2,
    /// Neighbour or multicast listener discovery, by type and hop limit. It is judged by [`crate::discovery`] first, which
    /// says whether it stays within the link and claims what it may.
    Neighbour = 3,
}

/// The headers that matter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Packet {
    /// Source.
    pub source: Address,
    /// Destination.
    pub destination: Address,
    /// Host order; the identifier of an ICMP request or reply that has one.
    pub source_port: u16,
    /// Host order; the identifier of an ICMP request or reply that has one.
    pub destination_port: u16,
    /// Type and code of ICMP, else 0.
    pub icmp: u16,
    /// IANA protocol number.
    pub protocol: u8,
    /// Flags of TCP, else 0.
    pub tcp_flags: u8,
    /// What the headers show.
    pub class: Class,
    /// Whether more fragments follow this first one.
    pub fragmented: bool,
    /// Identification, of a fragment.
    pub fragment_id: u32,
    /// Where the transport header starts.
    pub transport_at: usize,
}

impl Packet {
    /// Before the headers are read.
    pub const NOTHING_READ: Self = Self {
        source: Address([0; 16]),
        destination: Address([0; 16]),
        source_port: 0,
        destination_port: 0,
        icmp: 0,
        protocol: 0,
        tcp_flags: 0,
        class: Class::Plain,
        fragmented: false,
        fragment_id: 0,
        transport_at: 0,
    };

    /// The port that a policy row is looked up with.
    #[inline(always)]
    pub const fn policy_port(&self) -> u16 {
        match self.protocol {
            protocol::ICMP | protocol::ICMPV6 => self.icmp,
            _ => self.destination_port,
        }
    }

    /// Whether the packet is of neighbour discovery or multicast listener discovery by its type, whatever else it says.
    #[inline(always)]
    pub const fn is_discovery(&self) -> bool {
        self.protocol == protocol::ICMPV6 && !matches!(self.class, Class::Fragment) && is_neighbour(self.icmp)
    }

    /// Whether the packet is an ICMP reply: it belongs to the flow of its request.
    #[inline(always)]
    pub const fn is_icmp_reply(&self) -> bool {
        matches!(self.protocol, protocol::ICMP | protocol::ICMPV6)
            && icmp::request_of(self.protocol, (self.icmp >> 8) as u8) != icmp::NO_REQUEST
    }

    /// Whether only a router sends such a packet: redirects, router advertisements and listener queries (RFC 792, RFC 1256,
    /// RFC 4861, RFC 2710).
    #[inline(always)]
    pub const fn is_of_router(&self) -> bool {
        let kind = (self.icmp >> 8) as u8;
        match self.protocol {
            protocol::ICMP => matches!(kind, 5 | 9),
            protocol::ICMPV6 => matches!(kind, 130 | 134 | 137),
            _ => false,
        }
    }

    /// Whether the packet asks for a new TCP connection.
    #[inline(always)]
    pub const fn opens(&self) -> bool {
        self.protocol == protocol::TCP && self.tcp_flags & (tcp::SYN | tcp::ACK) == tcp::SYN
    }

    /// Whether the packet goes on with a TCP connection that the other side has answered.
    #[inline(always)]
    pub const fn acknowledges(&self) -> bool {
        self.protocol == protocol::TCP && self.tcp_flags & (tcp::SYN | tcp::ACK) == tcp::ACK
    }

    /// Whether the packet ends a TCP connection.
    #[inline(always)]
    pub const fn closes(&self) -> bool {
        self.protocol == protocol::TCP && self.tcp_flags & (tcp::FIN | tcp::RST) != 0
    }
}

/// Reads the packet at `at`, whose `EtherType` is `ethertype` (host order).
///
/// # Errors
/// The verdict without a policy: [`Reason::Neighbour`] for ARP, a denial for what cannot be read.
#[inline(always)]
pub fn parse(reader: &impl Reader, ethertype: u16, at: usize) -> Result<Packet, Reason> {
    match ethertype {
        ETHERTYPE_IPV4 => parse_v4::<WHOLE>(reader, at),
        ETHERTYPE_IPV6 => parse_v6::<WHOLE>(reader, at),
        ETHERTYPE_ARP => Err(Reason::Neighbour),
        _ => Err(Reason::NotIp),
    }
}

/// Whether an `EtherType` (host order) is that of a tag. The kernel has taken one off before a program sees the frame; it
/// takes off what is behind that later, and then the node or a neighbour gets a packet that nobody has read.
#[inline(always)]
pub const fn is_tag(ethertype: u16) -> bool {
    matches!(ethertype, ETHERTYPE_VLAN | ETHERTYPE_SERVICE_VLAN | ETHERTYPE_OLD_SERVICE_VLAN)
}

/// The octets of a transport header that are there: those that name its flow and more, or the eight that an ICMP error
/// quotes at least (RFC 792).
const WHOLE: usize = 14;
const QUOTED: usize = 8;

/// Reads the packet that an ICMP error quotes (RFC 792; RFC 4443 §3). Flags of TCP may be cut off, and are 0.
///
/// # Errors
/// [`Reason::Malformed`] where the quote is too short.
#[inline(always)]
pub fn parse_inner(reader: &impl Reader, outer: &Packet) -> Result<Packet, Reason> {
    let at = outer.transport_at + 8;
    if outer.protocol == protocol::ICMP { parse_v4::<QUOTED>(reader, at) } else { parse_v6::<QUOTED>(reader, at) }
}

#[inline(always)]
fn parse_v4<const TCP_OCTETS: usize>(reader: &impl Reader, at: usize) -> Result<Packet, Reason> {
    let head = reader.load::<20>(at).ok_or(Reason::Malformed)?;
    let header_octets = usize::from(head[0] & 0x0f) * 4;
    if head[0] >> 4 != 4 || header_octets < 20 {
        return Err(Reason::Malformed);
    }
    let fragment = u16::from_be_bytes([head[6], head[7]]);
    let mut packet = Packet {
        source: Address::from_v4([head[12], head[13], head[14], head[15]]),
        destination: Address::from_v4([head[16], head[17], head[18], head[19]]),
        source_port: 0,
        destination_port: 0,
        icmp: 0,
        protocol: head[9],
        tcp_flags: 0,
        class: Class::Plain,
        fragmented: fragment & 0x2000 != 0,
        fragment_id: u32::from(u16::from_be_bytes([head[4], head[5]])),
        transport_at: at + header_octets,
    };
    if fragment & 0x1fff != 0 {
        packet.class = Class::Fragment;
        return Ok(packet);
    }
    transport::<TCP_OCTETS>(reader, &mut packet)?;
    Ok(packet)
}

#[inline(always)]
fn parse_v6<const TCP_OCTETS: usize>(reader: &impl Reader, at: usize) -> Result<Packet, Reason> {
    let head = reader.load::<8>(at).ok_or(Reason::Malformed)?;
    if head[0] >> 4 != 6 {
        return Err(Reason::Malformed);
    }
    let source = Address(reader.load::<16>(at + 8).ok_or(Reason::Malformed)?);
    let destination = Address(reader.load::<16>(at + 24).ok_or(Reason::Malformed)?);
    // They would be judged by the rows of the IPv4 address, to which such a packet never goes.
    if source.is_v4() || destination.is_v4() {
        return Err(Reason::Malformed);
    }
    let mut packet = Packet {
        source,
        destination,
        source_port: 0,
        destination_port: 0,
        icmp: 0,
        protocol: head[6],
        tcp_flags: 0,
        class: Class::Plain,
        fragmented: false,
        fragment_id: 0,
        transport_at: at + 40,
    };
    extensions(reader, &mut packet)?;
    if matches!(packet.class, Class::Fragment) {
        return Ok(packet);
    }
    transport::<TCP_OCTETS>(reader, &mut packet)?;
    if packet.protocol == protocol::ICMPV6 && is_neighbour(packet.icmp) {
        // A router never forwards these: the hop limit shows that they come from the link (RFC 4861 §6.1.1), and
        // listener reports are sent with a limit of one (RFC 3810 §5).
        if head[7] == 255 || head[7] == 1 {
            packet.class = Class::Neighbour;
        }
    }
    Ok(packet)
}

/// Walks extension headers (RFC 8200 §4.1) up to the transport header or a later fragment.
#[inline(always)]
fn extensions(reader: &impl Reader, packet: &mut Packet) -> Result<(), Reason> {
    const HOP_BY_HOP: u8 = 0;
    const ROUTING: u8 = 43;
    const FRAGMENT: u8 = 44;
    const AUTHENTICATION: u8 = 51;
    const DESTINATION: u8 = 60;
    let mut walked = 0;
    while walked < EXTENSIONS_MAX {
        let unit = match packet.protocol {
            HOP_BY_HOP | ROUTING | FRAGMENT | DESTINATION => 8,
            AUTHENTICATION => 4,
            _ => return Ok(()),
        };
        let head = reader.load::<8>(packet.transport_at).ok_or(Reason::Malformed)?;
        if packet.protocol == FRAGMENT {
            let offset = u16::from_be_bytes([head[2], head[3]]);
            packet.fragment_id = u32::from_be_bytes([head[4], head[5], head[6], head[7]]);
            packet.fragmented = offset & 1 != 0;
            packet.transport_at += 8;
            packet.protocol = head[0];
            if offset & 0xfff8 != 0 {
                packet.class = Class::Fragment;
                return Ok(());
            }
        } else {
            // The length counts units past the first eight octets (two units of four for AH, RFC 4302 §2.2).
            packet.transport_at += 8 + usize::from(head[1]) * unit;
            packet.protocol = head[0];
        }
        walked += 1;
    }
    Err(Reason::Malformed)
}

/// Where the flags stand in a TCP header.
const TCP_FLAGS_AT: usize = 13;

#[inline(always)]
fn transport<const TCP_OCTETS: usize>(reader: &impl Reader, packet: &mut Packet) -> Result<(), Reason> {
    match packet.protocol {
        protocol::TCP => {
            let head = reader.load::<TCP_OCTETS>(packet.transport_at).ok_or(Reason::Malformed)?;
            ports(packet, [head[0], head[1], head[2], head[3]]);
            packet.tcp_flags = if TCP_OCTETS > TCP_FLAGS_AT { head[TCP_FLAGS_AT] } else { 0 };
        }
        protocol::UDP | protocol::SCTP => {
            let head = reader.load::<4>(packet.transport_at).ok_or(Reason::Malformed)?;
            ports(packet, head);
        }
        protocol::ICMP | protocol::ICMPV6 => {
            let head = reader.load::<8>(packet.transport_at).ok_or(Reason::Malformed)?;
            packet.icmp = u16::from_be_bytes([head[0], head[1]]);
            if icmp::has_identifier(packet.protocol, head[0]) {
                let id = u16::from_be_bytes([head[4], head[5]]);
                packet.source_port = id;
                packet.destination_port = id;
            } else if is_error(packet.protocol, head[0]) {
                packet.class = Class::Error;
            }
        }
        _ => {}
    }
    Ok(())
}

#[inline(always)]
fn ports(packet: &mut Packet, head: [u8; 4]) {
    packet.source_port = u16::from_be_bytes([head[0], head[1]]);
    packet.destination_port = u16::from_be_bytes([head[2], head[3]]);
}

#[inline(always)]
const fn is_error(protocol: u8, kind: u8) -> bool {
    match protocol {
        protocol::ICMP => matches!(kind, 3 | 11 | 12),
        _ => kind >= 1 && kind <= 4,
    }
}

/// Whether type and code are of neighbour discovery (RFC 4861) or multicast listener discovery (RFC 2710, RFC 3810).
#[inline(always)]
const fn is_neighbour(icmp: u16) -> bool {
    matches!((icmp >> 8) as u8, 130..=137 | 143)
}

#[cfg(test)]
mod tests {
    extern crate std;
    use std::{vec, vec::Vec};

    use super::*;

    struct Octets(Vec<u8>);

    impl Reader for Octets {
        fn load<const N: usize>(&self, offset: usize) -> Option<[u8; N]> {
            self.0.get(offset..offset + N)?.try_into().ok()
        }
    }

    fn v4(protocol: u8, fragment: u16, payload: &[u8]) -> Octets {
        let mut octets = vec![0x45, 0, 0, 0, 0x12, 0x34];
        octets.extend(fragment.to_be_bytes());
        octets.extend([64, protocol, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2]);
        octets.extend(payload);
        Octets(octets)
    }

    fn v6(next: u8, hops: u8, payload: &[u8]) -> Octets {
        let mut octets = vec![0x60, 0, 0, 0, 0, 0, next, hops];
        octets.extend([0xfd; 16]);
        octets.extend([0xfe; 16]);
        octets.extend(payload);
        Octets(octets)
    }

    /// TCP with `::ffff:10.0.0.1` at an offset.
    fn mapped(at: usize) -> Octets {
        let mut packet = v6(6, 64, &SYN_TO_443);
        packet.0[at..at + 16].copy_from_slice(Address::from_v4([10, 0, 0, 1]).octets());
        packet
    }

    const SYN_TO_443: [u8; 14] = [0x90, 0, 1, 0xbb, 0, 0, 0, 0, 0, 0, 0, 0, 0x50, tcp::SYN];

    #[test]
    fn reads_tcp_of_both_families() {
        for (reader, ethertype) in [(v4(6, 0, &SYN_TO_443), ETHERTYPE_IPV4), (v6(6, 64, &SYN_TO_443), ETHERTYPE_IPV6)] {
            let packet = parse(&reader, ethertype, 0).unwrap();
            assert_eq!((packet.source_port, packet.destination_port), (0x9000, 443));
            assert!(packet.opens() && !packet.closes());
            assert_eq!(packet.class, Class::Plain);
        }
    }

    #[test]
    fn walks_extension_headers_to_their_bound() {
        let mut chain = Vec::new();
        for _ in 0..EXTENSIONS_MAX - 1 {
            chain.extend([60, 0, 0, 0, 0, 0, 0, 0]);
        }
        chain.extend([6, 0, 0, 0, 0, 0, 0, 0]);
        chain.extend(SYN_TO_443);
        assert!(parse(&v6(60, 64, &chain), ETHERTYPE_IPV6, 0).is_err(), "one header too many");
        let packet = parse(&v6(60, 64, &chain[8..]), ETHERTYPE_IPV6, 0).unwrap();
        assert_eq!(packet.destination_port, 443);
    }

    #[test]
    fn later_fragments_are_told_from_first_ones() {
        let first = parse(&v4(17, 0x2000, &[0, 53, 0, 53]), ETHERTYPE_IPV4, 0).unwrap();
        assert!(first.fragmented && first.class == Class::Plain);
        let later = parse(&v4(17, 0x0010, &[]), ETHERTYPE_IPV4, 0).unwrap();
        assert_eq!((later.class, later.fragment_id), (Class::Fragment, 0x1234));
        let later6 = [17, 0, 0x00, 0x08, 0, 0, 0, 9];
        let later6 = parse(&v6(44, 64, &later6), ETHERTYPE_IPV6, 0).unwrap();
        assert_eq!((later6.class, later6.protocol, later6.fragment_id), (Class::Fragment, 17, 9));
    }

    #[test]
    fn neighbour_discovery_must_come_from_the_link() {
        for (kind, hops, want) in [
            (135, 255, Class::Neighbour),
            (135, 64, Class::Plain),
            (143, 1, Class::Neighbour),
            (128, 255, Class::Plain),
        ] {
            let packet = parse(&v6(58, hops, &[kind, 0, 0, 0, 0, 7, 0, 0]), ETHERTYPE_IPV6, 0);
            assert_eq!(packet.unwrap().class, want, "type {kind}, hop limit {hops}");
        }
    }

    #[test]
    fn an_error_quotes_the_packet_it_is_about() {
        let mut body = vec![3, 1, 0, 0, 0, 0, 0, 0];
        body.extend(v4(6, 0, &SYN_TO_443).0);
        let reader = v4(1, 0, &body);
        let outer = parse(&reader, ETHERTYPE_IPV4, 0).unwrap();
        assert_eq!(outer.class, Class::Error);
        assert_eq!(parse_inner(&reader, &outer).unwrap().destination_port, 443);
    }

    #[test]
    fn eight_octets_of_a_quoted_header_are_enough() {
        let quote = |transport: &[u8]| {
            let mut v4_body = vec![3, 1, 0, 0, 0, 0, 0, 0];
            v4_body.extend(v4(6, 0, transport).0);
            let mut v6_body = vec![1, 4, 0, 0, 0, 0, 0, 0];
            v6_body.extend(v6(6, 64, transport).0);
            [(v4(1, 0, &v4_body), ETHERTYPE_IPV4), (v6(58, 64, &v6_body), ETHERTYPE_IPV6)]
        };
        for (reader, ethertype) in quote(&SYN_TO_443[..8]) {
            let outer = parse(&reader, ethertype, 0).unwrap();
            let quoted = parse_inner(&reader, &outer).unwrap();
            assert_eq!((quoted.source_port, quoted.destination_port, quoted.tcp_flags), (0x9000, 443, 0));
        }
        for (reader, ethertype) in quote(&SYN_TO_443[..7]) {
            let outer = parse(&reader, ethertype, 0).unwrap();
            assert_eq!(parse_inner(&reader, &outer), Err(Reason::Malformed));
        }
    }

    #[test]
    fn cut_or_wrong_headers_are_refused() {
        for (what, reader, ethertype, want) in [
            ("no header", Octets(vec![]), ETHERTYPE_IPV4, Reason::Malformed),
            ("cut TCP", v4(6, 0, &SYN_TO_443[..13]), ETHERTYPE_IPV4, Reason::Malformed),
            ("version 6 in IPv4", v6(6, 64, &[]), ETHERTYPE_IPV4, Reason::Malformed),
            ("version 4 in IPv6", v4(6, 0, &[0; 40]), ETHERTYPE_IPV6, Reason::Malformed),
            ("IPv4 in an IPv6 source", mapped(8), ETHERTYPE_IPV6, Reason::Malformed),
            ("IPv4 in an IPv6 destination", mapped(24), ETHERTYPE_IPV6, Reason::Malformed),
            ("VLAN tag", v4(6, 0, &[]), 0x8100, Reason::NotIp),
            ("ARP", Octets(vec![]), ETHERTYPE_ARP, Reason::Neighbour),
        ] {
            assert_eq!(parse(&reader, ethertype, 0), Err(want), "{what}");
        }
    }

    proptest::proptest! {
        #[test]
        fn any_octets_end_in_a_packet_or_a_denial(octets: Vec<u8>, v6: bool) {
            let ethertype = if v6 { ETHERTYPE_IPV6 } else { ETHERTYPE_IPV4 };
            let reader = Octets(octets);
            match parse(&reader, ethertype, 0) {
                Ok(packet) => proptest::prop_assert!(packet.transport_at >= 20),
                Err(reason) => proptest::prop_assert!(reason.denies()),
            }
        }
    }
}
