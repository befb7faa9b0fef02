//! ARP and neighbour discovery on a link that endpoints share: what passes without a rule.

use namegate_abi::{Claim, Direction, DiscoveryHead, LinkFrame, LinkOwner, Mac, arp, discovery, parse};

use crate::link::{Bytes, ENDPOINT, Link, NODE_V4, OTHER, OWN_V4, OWN_V6, ROW, mutate};

/// Link addresses.
const OWN_LINK: Mac = [2, 0, 0, 0, 0, 7];
const OTHER_LINK: Mac = [2, 0, 0, 0, 0, 8];
const BROADCAST: Mac = [0xff; 6];
/// The link-local address that is made of [`OWN_LINK`] (RFC 4291, appendix A).
const OWN_LOCAL: [u8; 16] = [0xfe, 0x80, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xfe, 0, 0, 7];
/// All routers of the link.
const ROUTERS: [u8; 16] = [0xff, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2];
const ALL_NODES: [u8; 16] = [0xff, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1];
/// Bytes of Ethernet and ARP, and the shortest frame of Ethernet.
const ARP_FRAME: usize = 42;
const FRAME_MIN: usize = 60;
/// Neighbour discovery has at most a target and one option with a link address or a nonce, 8 bytes each.
const DISCOVERY_MAX: usize = 24 + 8 + 8;

/// Kind of an honest frame of the endpoint in the first byte, changes of it in the rest.
///
/// # Panics
/// A frame that leaves passes though it claims what is not the endpoint's, is a router's, can leave the link, or has room
/// for data; a frame of another endpoint arrives that claims what is not its own; or an honest one does not leave.
pub fn neighbour(data: &[u8]) {
    let Some((first, changes)) = data.split_first() else { return };
    let frame = mutate(honest(*first), changes);
    let leaving = claim(&frame, Direction::Egress);
    if changes.is_empty() {
        assert_eq!(leaving, Some(Claim::Passes), "kind {}", first % 5);
    }
    if leaving == Some(Claim::Passes) {
        check(&frame, &OWN_V4, &[&OWN_V6, &OWN_LOCAL, &[0; 16]]);
    }
    // The same frame, as if the other endpoint had sent it: nothing in it is the other's own.
    if claim(&frame, Direction::Ingress) == Some(Claim::Passes) {
        check_received(&frame);
    }
}

/// What the datapath says of a frame; `None` for one that is neither ARP nor discovery.
fn claim(frame: &[u8], direction: Direction) -> Option<Claim> {
    let arrives = direction == Direction::Ingress;
    let link = Link::new();
    let mac = |at: usize| frame.get(at..at + 6).and_then(|mac| mac.try_into().ok());
    let mut known = LinkFrame {
        destination: mac(0)?,
        source: mac(6)?,
        known: if arrives { OTHER_LINK } else { OWN_LINK },
        owner: LinkOwner::Endpoint,
        sender: if arrives { OTHER } else { ENDPOINT },
        octets: frame.len(),
        head: DiscoveryHead::default(),
    };
    let reader = Bytes(frame);
    match frame.get(12..14)? {
        [8, 6] => Some(arp(&link, &reader, &ROW, &known, direction)),
        [0x86, 0xdd] => {
            let packet = parse(&reader, 0x86dd, 14).ok()?;
            known.head = DiscoveryHead::read(&reader, &packet, 14, frame.len());
            packet.is_discovery().then(|| discovery(&link, &reader, &ROW, &packet, &known, direction))
        }
        _ => None,
    }
}

/// Whether no router sends a packet to this address on: `fe80::/10` (RFC 4291, section 2.4).
fn is_link_local(address: &[u8]) -> bool {
    address[0] == 0xfe && address[1] & 0xc0 == 0x80
}

fn check(frame: &[u8], own_v4: &[u8], own_v6: &[&[u8; 16]]) {
    if frame[12..14] == [8, 6] {
        check_arp(frame, own_v4);
        return;
    }
    let (packet, at) = (&frame[14..], 54);
    let (source, destination, hops) = (&packet[8..24], &packet[24..40], packet[7]);
    let is_own = |address: &[u8]| own_v6.iter().any(|own| own[..] == *address);
    assert!(is_own(source), "source {source:x?}");
    let stays = destination[..2] == [0xff, 2] || is_link_local(destination);
    assert!(stays, "destination {destination:x?}");
    let end = 14 + 40 + usize::from(u16::from_be_bytes([packet[4], packet[5]]));
    assert_eq!(frame.len(), end, "data behind the packet");
    if packet[6] == 0 {
        let (kind, before) = (frame[at + 8], frame[at]);
        assert!(before == 58 && hops == 1 && [131, 132, 143].contains(&kind), "listeners: {kind}");
        return;
    }
    let kind = frame[at];
    assert!(hops == 255 && [133, 135, 136].contains(&kind), "type {kind}, hop limit {hops}");
    assert!(frame.len() - at <= DISCOVERY_MAX, "{} bytes of discovery", frame.len() - at);
    if kind == 136 {
        let target = &frame[at + 8..at + 24];
        assert!(is_own(target) && *target != [0; 16], "target {target:x?}");
    }
}

fn check_arp(frame: &[u8], own: &[u8]) {
    let padding = frame.get(ARP_FRAME..).unwrap_or_default();
    let is_exact = frame.len() == ARP_FRAME || frame.len() == FRAME_MIN && padding.iter().all(|byte| *byte == 0);
    assert!(is_exact, "{} bytes", frame.len());
    assert_eq!(frame[14..20], [0, 1, 8, 0, 6, 4], "another kind");
    let operation = u16::from_be_bytes([frame[20], frame[21]]);
    let (link, sender) = (&frame[22..28], &frame[28..32]);
    assert!([1, 2].contains(&operation) && *link == frame[6..12], "operation {operation}");
    assert!(sender == own || operation == 1 && sender == [0; 4], "sender {sender:?}");
}

/// What arrives from the other endpoint says nothing about this one's addresses.
fn check_received(frame: &[u8]) {
    if frame[12..14] == [8, 6] {
        let sender = &frame[28..32];
        assert!(*sender != OWN_V4 && *sender != NODE_V4, "the other endpoint claims {sender:?}");
        return;
    }
    let kind = frame[54];
    assert!(![134, 137].contains(&kind), "the other endpoint is a router");
    let claims = kind == 136 || kind == 135 && frame[22..38] == [0; 16];
    assert!(!claims || frame[62..78] != OWN_V6, "the other endpoint claims this one's address");
}

/// A frame that the endpoint may send.
fn honest(kind: u8) -> Vec<u8> {
    match kind % 5 {
        0 => arp_frame(1, BROADCAST, NODE_V4),
        1 => arp_frame(2, OTHER_LINK, [10, 0, 0, 8]),
        2 => discovery_frame(
            OWN_V6,
            solicited(&OWN_V6, 9),
            &[135, 0, 0, 0, 0, 0, 0, 0],
            &[0xfd, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 9],
            &option(1),
        ),
        3 => discovery_frame(OWN_V6, ALL_NODES, &[136, 0, 0, 0, 0x20, 0, 0, 0], &OWN_V6, &option(2)),
        _ => discovery_frame(OWN_LOCAL, ROUTERS, &[133, 0, 0, 0, 0, 0, 0, 0], &[], &option(1)),
    }
}

fn option(kind: u8) -> Vec<u8> {
    [&[kind, 1][..], &OWN_LINK].concat()
}

fn solicited(prefix: &[u8; 16], last: u8) -> [u8; 16] {
    let mut group = ALL_NODES;
    group[11] = 1;
    group[12] = 0xff;
    group[13..].copy_from_slice(&[prefix[13], prefix[14], last]);
    group
}

fn arp_frame(operation: u8, to: Mac, target: [u8; 4]) -> Vec<u8> {
    let target_link = if operation == 1 { [0; 6] } else { to };
    let message = [&[0, 1, 8, 0, 6, 4, 0, operation][..], &OWN_LINK, &OWN_V4, &target_link, &target].concat();
    [&to[..], &OWN_LINK, &[8, 6], &message].concat()
}

fn discovery_frame(from: [u8; 16], to: [u8; 16], head: &[u8], target: &[u8], option: &[u8]) -> Vec<u8> {
    let message = [head, target, option].concat();
    let link = [0x33, 0x33, to[12], to[13], to[14], to[15]];
    let length = u16::try_from(message.len()).unwrap_or(0).to_be_bytes();
    let ip = [&[0x60, 0, 0, 0][..], &length, &[58, 255], &from, &to].concat();
    [&link[..], &OWN_LINK, &[0x86, 0xdd], &ip, &message].concat()
}
