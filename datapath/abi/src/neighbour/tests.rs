//! Frames that leave an endpoint on a shared link, and that arrive.

extern crate std;
use core::net::IpAddr;
use std::{collections::BTreeMap, format, string::String, vec, vec::Vec};

use super::discovery::{group_link, is_listeners, solicited_node};
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

/// A frame of ICMPv6; listener discovery gets its hop-by-hop header.
fn frame_v6(to: Mac, from: Mac, source: &str, destination: &str, hops: u8, message: &[u8]) -> Vec<u8> {
    let alert: &[u8] = if is_listeners(message[0]) { &[58, 0, 5, 2, 0, 0, 1, 0] } else { &[] };
    let length = u8::try_from(alert.len() + message.len()).unwrap();
    let mut frame = [to, from].concat();
    frame.extend([0x86, 0xdd, 0x60, 0, 0, 0, 0, length]);
    frame.extend([if alert.is_empty() { 58 } else { 0 }, hops]);
    frame.extend(octets(source));
    frame.extend(octets(destination));
    frame.extend(alert);
    frame.extend(message);
    frame
}

fn link_of(destination: &str) -> Mac {
    let destination = address(destination);
    if destination.is_of_many() { group_link(&destination) } else { OTHER_LINK }
}

fn link_option(kind: u8, link: Mac) -> Vec<u8> {
    [&[kind, 1][..], &link].concat()
}

/// A solicitation or advertisement.
fn about(kind: u8, flags: u8, target: &str, option: &[u8]) -> Vec<u8> {
    [&[kind, 0, 0, 0, flags, 0, 0, 0], &octets(target)[..], option].concat()
}

fn sent(source: &str, destination: &str, message: &[u8]) -> Vec<u8> {
    let hops = if is_listeners(message[0]) { 1 } else { 255 };
    frame_v6(link_of(destination), OWN_LINK, source, destination, hops, message)
}

fn group_for(target: &str) -> String {
    format!("{}", solicited_node(&address(target)).to_ip())
}

#[test]
fn honest_neighbour_discovery_leaves() {
    let (source, target) = (link_option(1, OWN_LINK), link_option(2, OWN_LINK));
    let nonce = link_option(14, *b"random");
    let report = [&[143, 0, 0, 0, 0, 0, 0, 2][..], &[4; 40]].concat();
    let first_version = [&[131, 0, 0, 0, 0, 0, 0, 0][..], &octets("ff02::fb")].concat();
    let done = [&[132, 0, 0, 0, 0, 0, 0, 0][..], &octets("ff02::fb")].concat();
    for (what, frame) in [
        ("duplicate detection", sent("::", &group_for(OWN), &about(135, 0, OWN, &nonce))),
        ("the same without a nonce", sent("::", &group_for(OWN_LOCAL), &about(135, 0, OWN_LOCAL, &[]))),
        ("resolution", sent(OWN, &group_for(OTHERS), &about(135, 0, OTHERS, &source))),
        ("of the gateway", sent(OWN_LOCAL, &group_for(GATEWAY), &about(135, 0, GATEWAY, &source))),
        ("reachability", sent(OWN, OTHERS, &about(135, 0, OTHERS, &[]))),
        ("of the node", sent(OWN, NODES, &about(135, 0, NODES, &source))),
        ("of the gateway", sent(OWN_LOCAL, GATEWAY, &about(135, 0, GATEWAY, &source))),
        ("an answer", sent(OWN, OTHERS, &about(136, 0x60, OWN, &target))),
        ("a router's flag", sent(OWN, GATEWAY, &about(136, 0xe0, OWN, &target))),
        ("from the local address", sent(OWN_LOCAL, GATEWAY, &about(136, 0x40, OWN_LOCAL, &[]))),
        ("unasked", sent(OWN, "ff02::1", &about(136, 0x20, OWN, &target))),
        ("for a router", sent(OWN_LOCAL, "ff02::2", &[&[133, 0, 0, 0, 0, 0, 0, 0][..], &source].concat())),
        ("for a router, from no address", sent("::", "ff02::2", &[133, 0, 0, 0, 0, 0, 0, 0])),
        ("listens", sent(OWN_LOCAL, "ff02::16", &report)),
        ("listens, from no address", sent("::", "ff02::16", &report)),
        ("listens, first version", sent(OWN_LOCAL, "ff02::fb", &first_version)),
        ("listens no more", sent(OWN_LOCAL, "ff02::2", &done)),
    ] {
        assert_eq!(leaves(&frame), Claim::Passes, "{what}");
    }
}

#[test]
fn forged_neighbour_discovery_does_not_leave() {
    let (source, target) = (link_option(1, OWN_LINK), link_option(2, OWN_LINK));
    let advertisement = [134, 0, 0, 0, 64, 0, 7, 8, 0, 0, 0, 0, 0, 0, 0, 0];
    for (what, frame) in [
        ("the gateway's address", sent(OWN, OTHERS, &about(136, 0x60, GATEWAY, &target))),
        ("the node's address", sent(OWN, "ff02::1", &about(136, 0x20, NODES, &target))),
        ("another's address", sent(OWN, "ff02::1", &about(136, 0x20, OTHERS, &target))),
        ("another's local address", sent(OWN, "ff02::1", &about(136, 0x20, OTHERS_LOCAL, &target))),
        ("its own, from another's", sent(OTHERS, GATEWAY, &about(136, 0x60, OWN, &target))),
        ("its own, at another's link", sent(OWN, GATEWAY, &about(136, 0x60, OWN, &link_option(2, OTHER_LINK)))),
        ("asks as another", sent(OTHERS, &group_for(NODES), &about(135, 0, NODES, &source))),
        ("asks as the gateway", sent(GATEWAY, &group_for(OTHERS), &about(135, 0, OTHERS, &source))),
        ("asks with another's link", sent(OWN, &group_for(NODES), &about(135, 0, NODES, &link_option(1, OTHER_LINK)))),
        ("looks whether another's is free", sent("::", &group_for(OTHERS), &about(135, 0, OTHERS, &[]))),
        ("is a router", sent(OWN_LOCAL, "ff02::1", &advertisement)),
        ("redirects", sent(OWN_LOCAL, OTHERS, &[&about(137, 0, GATEWAY, &[])[..], &octets(OTHERS)].concat())),
        ("asks who listens", sent(OWN_LOCAL, "ff02::1", &about(130, 0, "::", &[]))),
        ("listens as the gateway", sent(GATEWAY, "ff02::16", &[&[143, 0, 0, 0, 0, 0, 0, 1][..], &[4; 20]].concat())),
    ] {
        assert_eq!(leaves(&frame), Claim::Forged, "{what}");
        let is_hidden = frame_v6(OTHER_LINK, OWN_LINK, OWN, OUTSIDE, 64, &frame[54..]);
        if matches!(frame[54], 134 | 137) {
            assert_eq!(leaves(&is_hidden), Claim::Forged, "{what}, at another hop limit");
        }
    }
}

#[test]
fn a_message_has_no_room_for_data() {
    let source = link_option(1, OWN_LINK);
    let honest = sent(OWN, &group_for(OTHERS), &about(135, 0, OTHERS, &source));
    let report = sent("::", "ff02::16", &[&[143, 0, 0, 0, 0, 0, 0, 1][..], &[4; 20]].concat());
    for (what, frame) in [("neighbour discovery", &honest), ("listener discovery", &report)] {
        assert_eq!(leaves(frame), Claim::Passes, "{what}");
        for more in [1, 4, 8, 1_000] {
            let mut longer = frame.clone();
            longer.resize(frame.len() + more, 0);
            assert_eq!(leaves(&longer), Claim::Form, "{what}: {more} bytes behind it");
        }
        for (at, bit) in [(15, 1), (15, 0x10), (16, 1), (17, 1), (14, 1)] {
            let mut labelled = frame.clone();
            labelled[at] ^= bit;
            assert_eq!(leaves(&labelled), Claim::Form, "{what}: byte {at} of the frame, bit {bit:#x}");
        }
    }
    let mut asks_router = sent(OWN_LOCAL, "ff02::2", &[&[133, 0, 0, 0, 0, 0, 0, 0][..], &source].concat());
    asks_router[16] = 7;
    assert_eq!(leaves(&asks_router), Claim::Passes, "a label that no endpoint reads");
    let option = |octets: &[u8]| sent(OWN, &group_for(OTHERS), &about(135, 0, OTHERS, octets));
    for (what, frame) in [
        ("two options", option(&[&source[..], &source].concat())),
        ("an unknown option", option(&link_option(200, OWN_LINK))),
        ("a nonce where none belongs", option(&link_option(14, *b"secret"))),
        ("a long option", option(&[&[1, 2][..], &OWN_LINK, &[0; 8]].concat())),
        ("reserved bytes", sent(OWN, &group_for(OTHERS), &about(135, 1, OTHERS, &source))),
        ("reserved bits", sent(OWN, OTHERS, &about(136, 1, OWN, &link_option(2, OWN_LINK)))),
        ("a code", {
            let mut frame = option(&source);
            frame[55] = 1;
            frame
        }),
        ("another target than destination", sent(OWN, OTHERS, &about(135, 0, NODES, &source))),
        ("a group for a target", sent(OWN, "ff02::1", &about(135, 0, "ff02::1", &source))),
        ("another link group", {
            let mut frame = option(&source);
            frame[5] ^= 1;
            frame
        }),
        ("another group's report", sent(OWN_LOCAL, "ff02::fc", &about(131, 0, "ff02::fb", &[]))),
        ("no record", sent("::", "ff02::16", &[&[143, 0, 0, 0, 0, 0, 0, 0][..], &[4; 20]].concat())),
        ("records that are not there", sent("::", "ff02::16", &[&[143, 0, 0, 0, 0, 0, 0, 2][..], &[4; 20]].concat())),
    ] {
        assert_eq!(leaves(&frame), Claim::Form, "{what}");
    }
}

#[test]
fn what_can_leave_the_link_is_judged_by_rules() {
    let source = link_option(1, OWN_LINK);
    for kind in (130..=137).chain([143]) {
        // No endpoint is a router, whatever the destination.
        if matches!(kind, 130 | 134 | 137) {
            continue;
        }
        for (source, hops) in [(OWN, 64), (OWN, 254), (OWN, 1), (OWN, 255), (OTHERS, 64), (OUTSIDE, 1)] {
            let claim = leaves(&frame_v6(NODE_LINK, OWN_LINK, source, OUTSIDE, hops, &about(kind, 0, OUTSIDE, &[])));
            assert_ne!(claim, Claim::Passes, "type {kind} from {source}, hop limit {hops}");
            if source == OWN && hops == 64 {
                assert_eq!(claim, Claim::Ordinary, "type {kind}");
            }
        }
    }
    let to = |destination: &str, message: &[u8]| sent(OWN, destination, message);
    assert_eq!(leaves(&to(OUTSIDE, &about(135, 0, OUTSIDE, &source))), Claim::Ordinary);
    assert_eq!(leaves(&to(OUTSIDE, &about(136, 0x60, OWN, &link_option(2, OWN_LINK)))), Claim::Ordinary);
    assert_eq!(leaves(&to("ff05::2", &[133, 0, 0, 0, 0, 0, 0, 0])), Claim::Ordinary);
    assert_eq!(leaves(&to("ff0e::1", &about(131, 0, "ff0e::1", &[]))), Claim::Ordinary);
    assert_eq!(leaves(&to(OTHERS, &[133, 0, 0, 0, 0, 0, 0, 0])), Claim::Ordinary);
}

#[test]
fn neighbour_discovery_arrives_where_it_is_for_the_endpoint() {
    let from = |source: &str, destination: &str, message: &[u8]| {
        let link = if destination == OWN { OWN_LINK } else { link_of(destination) };
        frame_v6(link, OTHER_LINK, source, destination, if is_listeners(message[0]) { 1 } else { 255 }, message)
    };
    let (source, target) = (link_option(1, OTHER_LINK), link_option(2, OTHER_LINK));
    let advertisement = [134, 0, 0, 0, 64, 0, 7, 8, 0, 0, 0, 0, 0, 0, 0, 0];
    let (passes, forged, elsewhere) = (Claim::Passes, Claim::Forged, Claim::Elsewhere);
    for (what, frame, other, unknown) in [
        ("asks", from(OTHERS, &group_for(OWN), &about(135, 0, OWN, &source)), passes, forged),
        ("asks alone", from(OTHERS, OWN, &about(135, 0, OWN, &source)), passes, forged),
        ("asks for its local", from(OTHERS, &group_for(OWN_LOCAL), &about(135, 0, OWN_LOCAL, &source)), passes, forged),
        ("a router asks", from(GATEWAY, &group_for(OWN), &about(135, 0, OWN, &source)), forged, passes),
        ("asks for another", from(OTHERS, &group_for(NODES), &about(135, 0, NODES, &source)), elsewhere, forged),
        ("128 bits of data", from(OTHERS, &group_for(OUTSIDE), &about(135, 0, OUTSIDE, &source)), elsewhere, forged),
        ("local bits of data", from(OTHERS, &group_for("fe80::5"), &about(135, 0, "fe80::5", &[])), elsewhere, forged),
        ("looks for its own", from("::", &group_for(OTHERS), &about(135, 0, OTHERS, &[])), elsewhere, forged),
        ("looks for the endpoint's", from("::", &group_for(OWN), &about(135, 0, OWN, &[])), forged, forged),
        ("answers", from(OTHERS, OWN, &about(136, 0x60, OTHERS, &target)), passes, forged),
        ("answers as the gateway", from(OTHERS, OWN, &about(136, 0x60, NODES, &target)), forged, forged),
        ("is a router", from(GATEWAY, "ff02::1", &advertisement), forged, passes),
        ("asks for a router", from(OTHERS, "ff02::2", &[133, 0, 0, 0, 0, 0, 0, 0]), elsewhere, forged),
        ("asks who listens", from(GATEWAY, "ff02::1", &about(130, 0, "::", &[])), forged, passes),
        (
            "listens",
            from(OTHERS_LOCAL, "ff02::16", &[&[143, 0, 0, 0, 0, 0, 0, 1][..], &[4; 20]].concat()),
            elsewhere,
            elsewhere,
        ),
    ] {
        assert_eq!(arrives(&frame, Side::FromOther), other, "{what}: from an endpoint");
        assert_eq!(arrives(&frame, Side::FromUnknown), unknown, "{what}: from an unknown neighbour");
        assert_eq!(arrives(&frame, Side::FromNode), passes, "{what}: from the node");
        if frame[20] == 58 {
            let mut routed = frame.clone();
            routed[21] = 254;
            let claim = arrives(&routed, Side::FromOther);
            assert!(matches!(claim, Claim::Form | Claim::Forged), "{what}: sent on by a router, {claim:?}");
        }
    }
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

#[test]
fn the_node_has_its_own_discovery_and_no_other() {
    let node = |source: &str, destination: &str, hops: u8, message: &[u8]| {
        let frame = frame_v6(OTHER_LINK, NODE_LINK, source, destination, hops, message);
        let packet = parse(&Octets(&frame[14..]), 0x86dd, 0).unwrap();
        discovery_of_node(&Octets(&frame[14..]), &packet, 0, frame.len() - 14)
    };
    let link = link_option(1, NODE_LINK);
    let advertisement = [134, 0, 0, 0, 64, 0, 7, 8, 0, 0, 0, 0, 0, 0, 0, 0];
    for (what, claim, passes) in [
        ("asks", node(NODES, &group_for(OWN), 255, &about(135, 0, OWN, &link)), true),
        ("asks one", node(NODES, OUTSIDE, 255, &about(135, 0, OUTSIDE, &link)), true),
        ("answers one", node(NODES, OUTSIDE, 255, &about(136, 0x60, NODES, &link)), true),
        ("is a router", node(GATEWAY, "ff02::1", 255, &advertisement), true),
        ("is a router for one outside", node(GATEWAY, OUTSIDE, 255, &advertisement), false),
        ("asks one for another", node(NODES, OUTSIDE, 255, &about(135, 0, OWN, &link)), false),
        ("carries data", node(NODES, OUTSIDE, 255, &about(135, 0, OUTSIDE, &[7; 16])), false),
        ("may be sent on", node(NODES, OUTSIDE, 64, &about(135, 0, OUTSIDE, &link)), false),
        ("listens outside", node(NODES, OUTSIDE, 1, &about(143, 0, OUTSIDE, &[])), false),
        ("asks for a router outside", node(NODES, OUTSIDE, 255, &[133, 0, 0, 0, 0, 0, 0, 0]), false),
    ] {
        assert_eq!(claim, if passes { Claim::Passes } else { Claim::Ordinary }, "{what}");
    }
}

proptest::proptest! {
    /// Whatever a closed endpoint sends, another one on the link reads nothing from it but who sent it.
    #[test]
    fn any_frame_ends_in_a_claim(octets: Vec<u8>, kind in 130_u8..=143, hops: u8, from in 0..4_u8) {
        let message = [&[kind, 0, 0, 0, 0, 0, 0, 0][..], &octets].concat();
        let frame = frame_v6(OTHER_LINK, OWN_LINK, OWN, OTHERS, hops, &message);
        let side = [Side::Leaves, Side::FromNode, Side::FromOther, Side::FromUnknown][usize::from(from)];
        if parse(&Octets(&frame), 0x86dd, LINK_OCTETS).is_ok_and(|packet| packet.is_discovery()) {
            let claim = judge_frame(&frame, side, OWN_LINK);
            let fits = matches!(octets.len(), 16 | 24);
            proptest::prop_assert!(fits || !matches!(side, Side::Leaves) || claim != Claim::Passes);
        }
    }
}
