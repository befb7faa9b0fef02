//! Headers of packets.

use namegate_abi::{Address, Class, EXTENSIONS_MAX, Packet, Reader, Reason, parse, parse_inner};

const IPV4: u16 = 0x0800;
const IPV6: u16 = 0x86dd;
const ARP: u16 = 0x0806;

struct Octets<'a>(&'a [u8]);

impl Reader for Octets<'_> {
    fn load<const N: usize>(&self, offset: usize) -> Option<[u8; N]> {
        self.0.get(offset..offset.checked_add(N)?)?.try_into().ok()
    }
}

/// The first octet says what kind of packet the others are and how far into them it starts.
///
/// # Panics
/// The headers, or those of a packet that an error quotes, are read otherwise than the RFCs say.
pub fn packet(data: &[u8]) {
    let Some((first, octets)) = data.split_first() else { return };
    let ethertype = match first % 8 {
        0..=2 => IPV4,
        3..=5 => IPV6,
        6 => ARP,
        _ => u16::from_be_bytes([octets.first().copied().unwrap_or(0), *first]),
    };
    let at = usize::from(first / 8);
    let reader = Octets(octets);
    let read = parse(&reader, ethertype, at);
    let want = match ethertype {
        IPV4 => v4(octets, at, false),
        IPV6 => v6(octets, at, false),
        ARP => Err(Reason::Neighbour),
        _ => Err(Reason::NotIp),
    };
    assert_eq!(read, want);
    let Ok(outer) = read else { return };
    if outer.class == Class::Error {
        let quoted = outer.transport_at + 8;
        let want = if outer.protocol == 1 { v4(octets, quoted, true) } else { v6(octets, quoted, true) };
        assert_eq!(parse_inner(&reader, &outer), want);
    }
}

const fn blank(source: Address, destination: Address) -> Packet {
    Packet {
        source,
        destination,
        source_port: 0,
        destination_port: 0,
        icmp: 0,
        protocol: 0,
        tcp_flags: 0,
        class: Class::Plain,
        fragmented: false,
        fragment_id: 0,
        transport_at: 0,
    }
}

fn number(octets: &[u8]) -> u16 {
    u16::from_be_bytes([octets[0], octets[1]])
}

/// RFC 791 §3.1.
fn v4(octets: &[u8], at: usize, is_quoted: bool) -> Result<Packet, Reason> {
    let header = octets.get(at..).filter(|rest| rest.len() >= 20).ok_or(Reason::Malformed)?;
    let (version, words) = (header[0] >> 4, usize::from(header[0] & 15));
    if version != 4 || words < 5 {
        return Err(Reason::Malformed);
    }
    let address = |at: usize| Address::from_v4([header[at], header[at + 1], header[at + 2], header[at + 3]]);
    let mut packet = blank(address(12), address(16));
    packet.protocol = header[9];
    packet.fragment_id = number(&header[4..]).into();
    packet.fragmented = header[6] & 0b0010_0000 != 0;
    packet.transport_at = at + words * 4;
    if number(&header[6..]) & 0x1fff > 0 {
        packet.class = Class::Fragment;
        return Ok(packet);
    }
    transport(octets, packet, is_quoted)
}

/// RFC 8200 §3 and §4.
fn v6(octets: &[u8], at: usize, is_quoted: bool) -> Result<Packet, Reason> {
    let header = octets.get(at..).filter(|rest| rest.len() >= 40 && rest[0] >> 4 == 6).ok_or(Reason::Malformed)?;
    let address = |at: usize| {
        let mut address = [0; 16];
        address.copy_from_slice(&header[at..at + 16]);
        Address(address)
    };
    let mut packet = blank(address(8), address(24));
    if packet.source.to_ip().is_ipv4() || packet.destination.to_ip().is_ipv4() {
        return Err(Reason::Malformed);
    }
    packet.protocol = header[6];
    packet.transport_at = at + 40;
    for walked in 1.. {
        if ![0, 43, 44, 51, 60].contains(&packet.protocol) {
            break;
        }
        let extension = octets.get(packet.transport_at..).filter(|rest| rest.len() >= 8).ok_or(Reason::Malformed)?;
        let length = usize::from(extension[1]);
        let octets_long = match packet.protocol {
            44 => 8,
            51 => (length + 2) * 4,
            _ => (length + 1) * 8,
        };
        if packet.protocol == 44 {
            packet.fragment_id = u32::from(number(&extension[4..])) << 16 | u32::from(number(&extension[6..]));
            packet.fragmented = extension[3] % 2 == 1;
            if number(&extension[2..]) / 8 > 0 {
                packet.class = Class::Fragment;
            }
        }
        packet.protocol = extension[0];
        packet.transport_at += octets_long;
        if packet.class == Class::Fragment {
            return Ok(packet);
        }
        // Whatever follows: nobody writes that many.
        if walked == EXTENSIONS_MAX {
            return Err(Reason::Malformed);
        }
    }
    let mut packet = transport(octets, packet, is_quoted)?;
    let kind = packet.icmp / 256;
    let is_discovery = packet.protocol == 58 && ((130..=137).contains(&kind) || kind == 143);
    if is_discovery && [1, 255].contains(&header[7]) {
        packet.class = Class::Neighbour;
    }
    Ok(packet)
}

/// An error quotes eight bytes of the transport header at least (RFC 792), so flags of TCP may be missing there.
fn transport(octets: &[u8], mut packet: Packet, is_quoted: bool) -> Result<Packet, Reason> {
    let body = octets.get(packet.transport_at..).unwrap_or_default();
    let least = match packet.protocol {
        6 if is_quoted => 8,
        6 => 14,
        17 | 132 => 4,
        1 | 58 => 8,
        _ => return Ok(packet),
    };
    if body.len() < least {
        return Err(Reason::Malformed);
    }
    if !matches!(packet.protocol, 1 | 58) {
        (packet.source_port, packet.destination_port) = (number(body), number(&body[2..]));
        packet.tcp_flags = if packet.protocol == 6 && !is_quoted { body[13] } else { 0 };
        return Ok(packet);
    }
    packet.icmp = number(body);
    let (numbered, errors): (&[u8], &[u8]) = if packet.protocol == 1 {
        (&[0, 8, 13, 14, 15, 16, 17, 18, 42, 43], &[3, 11, 12])
    } else {
        (&[128, 129, 160, 161], &[1, 2, 3, 4])
    };
    if numbered.contains(&body[0]) {
        (packet.source_port, packet.destination_port) = (number(&body[4..]), number(&body[4..]));
    }
    if errors.contains(&body[0]) {
        packet.class = Class::Error;
    }
    Ok(packet)
}
