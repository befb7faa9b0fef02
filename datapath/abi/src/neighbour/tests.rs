//! Frames that leave an endpoint on a shared link, and that arrive.

extern crate std;

mod discovery;

use core::net::IpAddr;
use std::{collections::BTreeMap, format, string::String, vec, vec::Vec};

use super::*;
use crate::{
    AddressValue, CidrKey, Direction, EndpointValue, FlowKey, FlowValue, FragmentKey, FragmentValue, PolicyKey,
    PolicyValue, Reader, parse,
};

/// One endpoint with an address of each family, another one on the same link, and the node.
const ENDPOINT: u32 = 7;
const OTHER: u32 = 8;
const OWN_LINK: Mac = [0x02, 0, 0, 0, 0, 0x07];
const OTHER_LINK: Mac = [0x02, 0, 0, 0, 0, 0x08];
const NODE_LINK: Mac = [0x02, 0, 0, 0, 0, 0x01];
const OWN: &str = "fd00::7";
const OWN_LOCAL: &str = "fe80::ff:fe00:7";
const OTHERS: &str = "fd00::8";
const OTHERS_LOCAL: &str = "fe80::ff:fe00:8";
const NODES: &str = "fd00::1";
const GATEWAY: &str = "fe80::1";
const OUTSIDE: &str = "2001:db8::9";

const ROW: EndpointValue = EndpointValue { endpoint: ENDPOINT, policy: 0, scope: 0, revision: 1, flags: 0, moved: 0 };

#[derive(Default)]
struct Rows(BTreeMap<AddressKey, AddressValue>);

impl Rows {
    fn new() -> Self {
        let mut rows = Self::default();
        for (ip, endpoint, flags) in [
            (OWN, ENDPOINT, 0),
            ("10.0.0.7", ENDPOINT, 0),
            (OTHERS, OTHER, 0),
            ("10.0.0.8", OTHER, 0),
            (NODES, 0, address_flags::LOCAL_HOST),
            ("10.0.0.1", 0, address_flags::LOCAL_HOST),
        ] {
            let key = AddressKey { scope: 0, address: address(ip) };
            rows.0.insert(key, AddressValue { endpoint, flags, ..AddressValue::default() });
        }
        rows
    }
}

impl Tables for Rows {
    fn now_ns(&self) -> u64 {
        0
    }
    fn address(&self, key: &AddressKey) -> Option<&AddressValue> {
        self.0.get(key)
    }
    fn cidr(&self, _: &CidrKey) -> Option<u32> {
        None
    }
    fn policy(&self, _: &PolicyKey) -> Option<PolicyValue> {
        None
    }
    fn flow(&self, _: &FlowKey) -> Option<FlowValue> {
        None
    }
    fn fragment(&self, _: &FragmentKey) -> Option<FragmentValue> {
        None
    }
}

struct Octets<'f>(&'f [u8]);

impl Reader for Octets<'_> {
    fn load<const N: usize>(&self, offset: usize) -> Option<[u8; N]> {
        self.0.get(offset..offset.checked_add(N)?)?.try_into().ok()
    }
}

fn address(text: &str) -> Address {
    text.parse::<IpAddr>().unwrap().into()
}

fn octets(text: &str) -> Vec<u8> {
    match text.parse::<IpAddr>().unwrap() {
        IpAddr::V4(v4) => v4.octets().into(),
        IpAddr::V6(v6) => v6.octets().into(),
    }
}

/// How a frame gets to the endpoint, or from it.
#[derive(Clone, Copy)]
enum Side {
    Leaves,
    FromNode,
    FromOther,
    FromUnknown,
}

fn judge_frame(frame: &[u8], side: Side, known: Mac) -> Claim {
    let rows = Rows::new();
    let part = |at: usize| Mac::try_from(&frame[at..at + 6]).unwrap();
    let (owner, sender) = match side {
        Side::Leaves | Side::FromNode => (LinkOwner::Node, 0),
        Side::FromOther => (LinkOwner::Endpoint, OTHER),
        Side::FromUnknown => (LinkOwner::Unknown, 0),
    };
    let head = DiscoveryHead::default();
    let mut link = LinkFrame { destination: part(0), source: part(6), known, owner, sender, octets: frame.len(), head };
    let direction = if matches!(side, Side::Leaves) { Direction::Egress } else { Direction::Ingress };
    let reader = Octets(frame);
    if frame[12..14] == [0x08, 0x06] {
        return arp(&rows, &reader, &ROW, &link, direction);
    }
    let packet = parse(&reader, 0x86dd, LINK_OCTETS).unwrap();
    assert!(packet.is_discovery());
    link.head = DiscoveryHead::read(&reader, &packet, LINK_OCTETS, frame.len());
    discovery(&rows, &reader, &ROW, &packet, &link, direction)
}

fn leaves(frame: &[u8]) -> Claim {
    judge_frame(frame, Side::Leaves, [0; 6])
}

fn arrives(frame: &[u8], side: Side) -> Claim {
    judge_frame(frame, side, OWN_LINK)
}

fn arp_frame(to: Mac, from: Mac, operation: u8, sender: (&str, Mac), target: (&str, Mac)) -> Vec<u8> {
    let mut frame = [to, from].concat();
    frame.extend([0x08, 0x06, 0, 1, 0x08, 0, 6, 4, 0, operation]);
    frame.extend(sender.1);
    frame.extend(octets(sender.0));
    frame.extend(target.1);
    frame.extend(octets(target.0));
    frame
}

const NO_LINK: Mac = [0; 6];

fn asks(from: Mac, sender: &str, target: &str) -> Vec<u8> {
    arp_frame(BROADCAST, from, 1, (sender, from), (target, NO_LINK))
}

#[test]
fn arp_that_leaves_claims_the_endpoints_own_address() {
    for (what, frame, want) in [
        ("asks", asks(OWN_LINK, "10.0.0.7", "10.0.0.1"), Claim::Passes),
        ("probes", asks(OWN_LINK, "0.0.0.0", "10.0.0.7"), Claim::Passes),
        ("announces", asks(OWN_LINK, "10.0.0.7", "10.0.0.7"), Claim::Passes),
        ("asks as the gateway", asks(OWN_LINK, "10.0.0.1", "10.0.0.8"), Claim::Forged),
        ("asks as another", asks(OWN_LINK, "10.0.0.8", "10.0.0.1"), Claim::Forged),
        ("asks as nobody", asks(OWN_LINK, "10.0.0.99", "10.0.0.1"), Claim::Forged),
        (
            "answers",
            arp_frame(OTHER_LINK, OWN_LINK, 2, ("10.0.0.7", OWN_LINK), ("10.0.0.8", OTHER_LINK)),
            Claim::Passes,
        ),
        (
            "answers as the gateway",
            arp_frame(OTHER_LINK, OWN_LINK, 2, ("10.0.0.1", OWN_LINK), ("10.0.0.8", OTHER_LINK)),
            Claim::Forged,
        ),
        (
            "answers from no address",
            arp_frame(OTHER_LINK, OWN_LINK, 2, ("0.0.0.0", OWN_LINK), ("10.0.0.8", OTHER_LINK)),
            Claim::Forged,
        ),
        (
            "names another's link address",
            arp_frame(BROADCAST, OWN_LINK, 1, ("10.0.0.7", OTHER_LINK), ("10.0.0.1", NO_LINK)),
            Claim::Forged,
        ),
        (
            "carries six bytes for the target",
            arp_frame(BROADCAST, OWN_LINK, 1, ("10.0.0.7", OWN_LINK), ("10.0.0.8", *b"secret")),
            Claim::Form,
        ),
        (
            "asks one alone, whom it knows",
            arp_frame(OTHER_LINK, OWN_LINK, 1, ("10.0.0.7", OWN_LINK), ("10.0.0.8", OTHER_LINK)),
            Claim::Passes,
        ),
        (
            "asks for what is not ARP",
            arp_frame(BROADCAST, OWN_LINK, 3, ("10.0.0.7", OWN_LINK), ("10.0.0.1", NO_LINK)),
            Claim::Form,
        ),
        (
            "goes to another group",
            arp_frame([1, 0, 0, 0, 0, 9], OWN_LINK, 1, ("10.0.0.7", OWN_LINK), ("10.0.0.1", NO_LINK)),
            Claim::Form,
        ),
    ] {
        assert_eq!(leaves(&frame), want, "{what}");
    }
}

#[test]
fn arp_has_its_size_and_zeros_behind_it() {
    let frame = asks(OWN_LINK, "10.0.0.7", "10.0.0.1");
    for length in [41, 42, 43, 59, 60, 61, 64, 1_514] {
        let mut padded = frame.clone();
        padded.resize(length, 0);
        let want = if length == 42 || length == 60 { Claim::Passes } else { Claim::Form };
        assert_eq!(leaves(&padded), want, "{length} bytes");
    }
    for at in 42..60 {
        let mut padded = frame.clone();
        padded.resize(60, 0);
        padded[at] = 1;
        assert_eq!(leaves(&padded), Claim::Form, "byte {at} carries something");
    }
    // Hardware type, protocol type, and both lengths.
    for at in 14..21 {
        let mut other = frame.clone();
        other[at] ^= 0x40;
        assert_eq!(leaves(&other), Claim::Form, "byte {at}");
    }
}

#[test]
fn arp_arrives_where_it_is_for_the_endpoint() {
    let to_one =
        |sender: &str, target: &str, link: Mac| arp_frame(link, OTHER_LINK, 2, (sender, OTHER_LINK), (target, link));
    for (what, frame, other, unknown) in [
        ("asks for it", asks(OTHER_LINK, "10.0.0.8", "10.0.0.7"), Claim::Passes, Claim::Forged),
        ("asks for others", asks(OTHER_LINK, "10.0.0.8", "10.0.0.1"), Claim::Elsewhere, Claim::Forged),
        ("a host outside asks for it", asks(OTHER_LINK, "10.0.0.99", "10.0.0.7"), Claim::Forged, Claim::Passes),
        ("announces", asks(OTHER_LINK, "10.0.0.8", "10.0.0.8"), Claim::Passes, Claim::Forged),
        ("announces the gateway", asks(OTHER_LINK, "10.0.0.1", "10.0.0.1"), Claim::Forged, Claim::Forged),
        ("announces the endpoint's", asks(OTHER_LINK, "10.0.0.7", "10.0.0.7"), Claim::Forged, Claim::Forged),
        ("probes", asks(OTHER_LINK, "0.0.0.0", "10.0.0.99"), Claim::Elsewhere, Claim::Elsewhere),
        ("answers", to_one("10.0.0.8", "10.0.0.7", OWN_LINK), Claim::Passes, Claim::Forged),
        ("answers others", to_one("10.0.0.8", "10.0.0.1", NODE_LINK), Claim::Elsewhere, Claim::Forged),
        ("a flooded link address", to_one("10.0.0.8", "10.0.0.7", *b"\x02cret!"), Claim::Elsewhere, Claim::Forged),
    ] {
        assert_eq!(arrives(&frame, Side::FromOther), other, "{what}: from an endpoint");
        assert_eq!(arrives(&frame, Side::FromUnknown), unknown, "{what}: from an unknown neighbour");
        assert_eq!(arrives(&frame, Side::FromNode), Claim::Passes, "{what}: from the node");
    }
    let answer = to_one("10.0.0.8", "10.0.0.7", OWN_LINK);
    assert_eq!(judge_frame(&answer, Side::FromOther, NO_LINK), Claim::Elsewhere, "to a link address not known yet");
}

#[test]
fn an_endpoint_changes_its_link_address_seldom() {
    let links: Vec<Mac> = (1..=20).map(|last| [2, 0, 0, 0, 0, last]).collect();
    let mut row = LinkAddress::default();
    let mut taken = vec![];
    for (moment_ns, link) in (1_000..).zip(&links) {
        if let Some(after) = row.after(*link, moment_ns) {
            row = after;
            taken.push(link[5]);
        }
    }
    assert_eq!(taken, [1, 2, 3, 4, 5], "the first, and four others");
    assert_eq!(row.after(links[4], 2_000), Some(row), "the last one stays");
    assert_eq!(row.after(links[9], 1_000 + LinkAddress::WINDOW_NS), None);
    let later = row.after(links[9], 1_001 + LinkAddress::WINDOW_NS).unwrap();
    assert_eq!((later.link, later.changes), (links[9], 0));
}
