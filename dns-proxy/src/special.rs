//! Addresses that no name may open, whoever answers for it: a name that leads to the machine itself, to its link or to a
//! cloud's metadata service is an attack (DNS rebinding) or a mistake. Blocks are those of RFC 6890 and its registry.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// Metadata and wire services of clouds that lie outside the link-local blocks (Alibaba, Azure, Oracle).
const METADATA_V4: [Ipv4Addr; 3] =
    [Ipv4Addr::new(100, 100, 100, 200), Ipv4Addr::new(168, 63, 129, 16), Ipv4Addr::new(192, 0, 0, 192)];
/// The same for IPv6 (Amazon, Google).
const METADATA_V6: [Ipv6Addr; 2] =
    [Ipv6Addr::new(0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x254), Ipv6Addr::new(0xfd20, 0xce, 0, 0, 0, 0, 0, 0x254)];

/// Whether an address in an answer opens nothing.
pub(crate) fn is_special(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(v4) => is_special_v4(v4),
        IpAddr::V6(v6) => is_special_v6(v6),
    }
}

fn is_special_v4(address: Ipv4Addr) -> bool {
    // "This network" (RFC 791 §3.2) and the reserved block with the broadcast address (RFC 1112 §4).
    matches!(address.octets()[0], 0 | 240..)
        || address.is_loopback()
        || address.is_link_local()
        || address.is_multicast()
        || METADATA_V4.contains(&address)
}

fn is_special_v6(address: Ipv6Addr) -> bool {
    address.is_multicast()
        || address.is_unicast_link_local()
        || METADATA_V6.contains(&address)
        || embedded(address).into_iter().flatten().any(|v4| is_special_v4(v4) || v4.is_private())
        || holds_v4_whole(address)
}

/// `::/96`, which holds the unspecified and the loopback address beside the IPv4-compatible ones (RFC 4291 §2.5), and
/// IPv4-mapped addresses: sockets take them for the IPv4 address inside.
fn holds_v4_whole(address: Ipv6Addr) -> bool {
    let segments = address.segments();
    segments[..5] == [0; 5] && matches!(segments[5], 0 | 0xffff)
}

/// IPv4 addresses that a tunnel or translator reads out of this one: NAT64 (RFC 6052, 8215), 6to4 (RFC 3056) and Teredo
/// (RFC 4380: server, then the client with its bits turned). None of them may lead to private space either.
fn embedded(address: Ipv6Addr) -> [Option<Ipv4Addr>; 2] {
    let segments = address.segments();
    let octets = address.octets();
    let v4 = |at: usize| Ipv4Addr::new(octets[at], octets[at + 1], octets[at + 2], octets[at + 3]);
    match segments {
        [0x64, 0xff9b, 0 | 1, 0, 0, 0, ..] => [Some(v4(12)), None],
        // The local prefix is 48 bits long: the address jumps over octet 8.
        [0x64, 0xff9b, 1, ..] => [Some(Ipv4Addr::new(octets[6], octets[7], octets[9], octets[10])), Some(v4(12))],
        [0x2002, ..] => [Some(v4(2)), None],
        [0x2001, 0, ..] => [Some(v4(4)), Some(Ipv4Addr::from_bits(!v4(12).to_bits()))],
        _ => [None, None],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn special_addresses_open_nothing() {
        for (text, want) in [
            ("198.51.100.7", false),
            ("10.96.0.1", false),
            ("172.16.3.4", false),
            ("192.168.1.1", false),
            ("100.64.0.1", false),
            ("0.0.0.0", true),
            ("0.1.2.3", true),
            ("127.0.0.1", true),
            ("127.255.0.3", true),
            ("169.254.0.1", true),
            ("169.254.169.254", true),
            ("168.63.129.16", true),
            ("100.100.100.200", true),
            ("224.0.0.251", true),
            ("240.0.0.1", true),
            ("255.255.255.255", true),
            ("2001:db8::7", false),
            ("fd00::53", false),
            ("fd00:ec2::254", true),
            ("::", true),
            ("::1", true),
            ("::a9fe:a9fe", true),
            ("::ffff:198.51.100.7", true),
            ("::ffff:127.0.0.1", true),
            ("fe80::1", true),
            ("febf::1", true),
            ("ff02::fb", true),
            ("64:ff9b::198.51.100.7", false),
            ("64:ff9b::127.0.0.1", true),
            ("64:ff9b::169.254.169.254", true),
            ("64:ff9b::10.0.0.1", true),
            ("64:ff9b:1::169.254.169.254", true),
            ("64:ff9b:1:a9fe:a9:fe00::", true),
            ("64:ff9b:1:c633:64:700:c633:6407", false),
            ("2002:7f00:1::1", true),
            ("2002:a00:1::1", true),
            ("2002:c633:6407::1", false),
            ("2001:0:a00:1::1", true),
            ("2001:0:c633:6407:0:0:5601:5601", true),
            ("2001:0:c633:6407:0:0:39cc:9bf8", false),
        ] {
            assert_eq!(is_special(text.parse().unwrap()), want, "{text}");
        }
    }
}
