//! Neighbour discovery that leaves and arrives.

use super::*;
use crate::neighbour::discovery::{group_link, is_listeners, solicited_node};

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
