//! The hostile endpoint's packets: it may send raw ones, as a container with Docker's usual capabilities may.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use anyhow::{Context, Result};
use namegate_testbed::quic::unfinished;
use namegate_testbed::{Pod, World};

use crate::flood::Flood;
use crate::ground::{BOUND, ENDPOINT, SINK};
use crate::raw::{ICMP, ICMPV6, Path, RawIp, TCP, UDP, data_option};
use crate::tag::{denied, passing};

/// More fragments follow (RFC 791 §3.1).
const MORE_FRAGMENTS: u16 = 0x2000;
/// Ports of the resolver and of the echo server.
const DNS: u16 = 53;
const ECHO: u16 = 7;
/// Where the ports of what the floods send from begin.
const FIRST_PORT: u16 = 10_000;
/// Messages of neighbour discovery and of multicast listeners that are not checked by their form.
const ND_TYPES: [u8; 9] = [130, 131, 132, 133, 134, 135, 136, 137, 143];
/// Hop limit of neighbour discovery (RFC 4861).
const ND_HOPS: u8 = 255;
/// Types of ICMP that have no ports and no business here: timestamp, information, address mask.
const ODD_TYPES: [u8; 3] = [13, 15, 17];

/// What the floods share.
#[derive(Clone)]
struct Shooter {
    raw: Arc<RawIp>,
    own: [IpAddr; 2],
    resolver: [IpAddr; 2],
}

/// Every flood of packets. Together about 3,300 a second, which leaves two cores time for honest endpoints.
pub(crate) fn floods(world: &World) -> Result<Vec<Flood>> {
    let pod = world.pod(ENDPOINT);
    let raw = Arc::new(pod.netns.call(RawIp::open).context("opening raw sockets in the hostile pod")?);
    let resolver = world.pod("kube-system/coredns-1");
    let both = |pod: &Pod| [pod.ipv4(), pod.ipv6()];
    let shooter = Shooter { raw, own: both(pod), resolver: both(resolver) };
    Ok(vec![
        shooter.flood("syn", 400, Shooter::syn),
        shooter.flood("udp-ports", 400, Shooter::udp_ports),
        shooter.flood("spoofed", 200, Shooter::spoofed),
        shooter.flood("fragments", 400, Shooter::first_fragment),
        shooter.flood("lone-fragments", 100, Shooter::lone_fragment),
        shooter.flood("icmp-errors", 200, Shooter::icmp_error),
        shooter.flood("echo-id-0", 100, Shooter::echo_without_id),
        shooter.flood("nd-global", 200, Shooter::discovery),
        shooter.flood("flow-churn", 800, Shooter::churn),
        shooter.flood("dns-names", 200, Shooter::dns_names),
        shooter.flood("dns-zone-names", 100, Shooter::dns_zone_names),
        shooter.flood("quic-initials", 100, Shooter::quic),
    ])
}

impl Shooter {
    fn flood(&self, name: &'static str, rate: u64, send: fn(&Self, u64)) -> Flood {
        let shooter = self.clone();
        Flood::new(name, rate, move |number| send(&shooter, number))
    }

    /// One path of either family in turn, to these addresses.
    fn path(&self, number: u64, to: [IpAddr; 2]) -> Path {
        let family = usize::from(number % 2 == 1);
        Path::new(self.own[family], to[family])
    }

    fn syn(&self, number: u64) {
        let path = self.path(number, closed(number));
        let segment = path.syn(port(number), port(number * 7), low(number), &denied("endpoint:syn"));
        self.raw.send(&path.packet(TCP, &segment));
    }

    fn udp_ports(&self, number: u64) {
        // Ports that policy leaves closed at an address that it opens.
        let path = self.path(number, SINK);
        let datagram = path.udp(port(number), port(number * 13), &denied("endpoint:udp-ports"));
        self.raw.send(&path.packet(UDP, &datagram));
    }

    fn spoofed(&self, number: u64) {
        let v4 = Ipv4Addr::from(0x6440_0000 | low(number));
        let v6 = Ipv6Addr::from((0x2001_0db8_0bad_u128 << 80) | u128::from(number));
        let from = if number.is_multiple_of(2) { v4.into() } else { v6.into() };
        let path = Path { from, ..self.path(number, SINK) };
        // A flow of its own with this port exists, so only the source is wrong.
        let datagram = path.udp(churn_port(number), ECHO, &denied("endpoint:spoofed"));
        self.raw.send(&path.packet(UDP, &datagram));
    }

    fn first_fragment(&self, number: u64) {
        let path = Path::new(self.own[0], SINK[0]);
        let datagram = path.udp(port(number), ECHO, &[&passing("endpoint:fragments")[..], &[0; 32]].concat());
        let first = &datagram[..datagram.len() & !7];
        // Even identifications, see below; and not 0, for which the kernel writes one of its own (raw(7)).
        self.raw.send(&path.fragment(UDP, 64, short(number) & !1 | 2, MORE_FRAGMENTS, first));
    }

    fn lone_fragment(&self, number: u64) {
        let path = Path::new(self.own[0], SINK[0]);
        // An offset without a first fragment: no first one has an odd identification.
        let payload = [&denied("endpoint:lone-fragments")[..], &[0; 8]].concat();
        self.raw.send(&path.fragment(UDP, 64, short(number) | 1, 4, &payload));
    }

    fn icmp_error(&self, number: u64) {
        let quoted = self.path(number, SINK);
        let datagram = quoted.udp(churn_port(number), ECHO, &denied("endpoint:icmp-errors"));
        let quote = quoted.packet(UDP, &datagram);
        let outer = self.path(number, closed(number));
        let (protocol, kind, code) = if number.is_multiple_of(2) { (ICMP, 3, 3) } else { (ICMPV6, 1, 4) };
        let message = outer.icmp(kind, code, [0; 4], quote.bytes());
        self.raw.send(&outer.packet(protocol, &message));
    }

    fn echo_without_id(&self, number: u64) {
        let path = Path::new(self.own[0], SINK[0]);
        let request = path.icmp(8, 0, [0, 0, 0, 1], &passing("endpoint:echo"));
        self.raw.send(&path.packet(ICMP, &request));
        let kind = ODD_TYPES[usize::from(short(number)) % ODD_TYPES.len()];
        let odd = path.icmp(kind, 0, [0; 4], &[&[0; 12][..], &denied("endpoint:odd-icmp")].concat());
        self.raw.send(&path.packet(ICMP, &odd));
    }

    fn discovery(&self, number: u64) {
        let kind = ND_TYPES[usize::from(short(number)) % ND_TYPES.len()];
        let path = Path::new(self.own[1], closed(number)[1]);
        let target = [octets(path.to), data_option(&denied("endpoint:nd-global"))].concat();
        let hops = if kind < 133 || kind == 143 { 1 } else { ND_HOPS };
        self.raw.send(&path.packet_with(ICMPV6, hops, &path.icmp(kind, 0, [0; 4], &target)));
        // The same to a router behind the node, which would forward it.
        self.raw.send(&path.packet_with(ICMPV6, ND_HOPS, &path.icmp(kind, 0, [0; 4], &target)));
    }

    fn churn(&self, number: u64) {
        let path = self.path(number, SINK);
        let datagram = path.udp(churn_port(number), ECHO, &passing("endpoint:flow-churn"));
        self.raw.send(&path.packet(UDP, &datagram));
    }

    fn dns_names(&self, number: u64) {
        self.ask(number, &format!("r{number:x}.flood.hostile.test"));
    }

    /// Names that a rule selects, each with addresses: they take rows.
    fn dns_zone_names(&self, number: u64) {
        self.ask(number, &format!("many-{number:x}.zone.hostile.test"));
    }

    fn ask(&self, number: u64, name: &str) {
        let path = self.path(number, self.resolver);
        let mut message = short(number).to_be_bytes().to_vec();
        message.extend([1, 0, 0, 1, 0, 0, 0, 0, 0, 0]);
        for label in name.split('.') {
            message.extend([u8::try_from(label.len()).unwrap_or(63)]);
            message.extend(label.bytes());
        }
        message.extend([0, 0, 1, 0, 1]);
        self.raw.send(&path.packet(UDP, &path.udp(port(number), DNS, &message)));
    }

    fn quic(&self, number: u64) {
        let path = Path::new(self.own[0], BOUND.into());
        self.raw.send(&path.packet(UDP, &path.udp(port(number), 443, &unfinished(number, &denied("quic")))));
    }
}

/// Addresses that no policy opens to anyone.
fn closed(number: u64) -> [IpAddr; 2] {
    let v4 = Ipv4Addr::from(0xc612_0000 | (low(number) & 0x1_ffff));
    let v6 = Ipv6Addr::from((0x2001_0db8_dead_u128 << 80) | u128::from(number));
    [v4.into(), v6.into()]
}

fn octets(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(address) => address.octets().to_vec(),
        IpAddr::V6(address) => address.octets().to_vec(),
    }
}

/// A port that is none of the echo server's.
fn port(number: u64) -> u16 {
    FIRST_PORT + short(number) % 50_000
}

fn churn_port(number: u64) -> u16 {
    FIRST_PORT + short(number) % 40_000
}

fn short(number: u64) -> u16 {
    u16::try_from(number & 0xffff).unwrap_or_default()
}

fn low(number: u64) -> u32 {
    u32::try_from(number & 0x3f_ffff).unwrap_or_default()
}
