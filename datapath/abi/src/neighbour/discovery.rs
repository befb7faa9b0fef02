//! Neighbour discovery (RFC 4861, RFC 4862) and multicast listener discovery (RFC 2710, RFC 3810).

use super::{Claim, LinkFrame, LinkOwner, Mac, equals, is_one, is_zero, may_claim};
use crate::{Address, AddressKey, Direction, EndpointValue, Packet, Reader, Tables, address_flags, decide::is_own};

/// What neighbour discovery is sent with: no router has sent it on (RFC 4861 §6.1, §7.1).
const HOPS: u8 = 255;
/// What listener discovery is sent with (RFC 3810 §5).
const LISTENER_HOPS: u8 = 1;

/// Types of ICMPv6.
mod kind {
    pub(super) const LISTENER_QUERY: u8 = 130;
    pub(super) const LISTENER_REPORT: u8 = 131;
    pub(super) const LISTENER_DONE: u8 = 132;
    pub(super) const ROUTER_SOLICITATION: u8 = 133;
    pub(super) const ROUTER_ADVERTISEMENT: u8 = 134;
    pub(super) const SOLICITATION: u8 = 135;
    pub(super) const ADVERTISEMENT: u8 = 136;
    pub(super) const REDIRECT: u8 = 137;
    pub(super) const LISTENER_REPORT_V2: u8 = 143;
}

/// Types of options in neighbour discovery.
mod option {
    pub(super) const SOURCE: u8 = 1;
    pub(super) const TARGET: u8 = 2;
    /// RFC 7527: tells a host's own looped-back probe from another's.
    pub(super) const NONCE: u8 = 14;
}

/// All nodes, all routers and the routers of listener reports, on the link.
const ALL_NODES: Address = group(1);
const ALL_ROUTERS: Address = group(2);
const REPORTS: Address = group(0x16);
const fn group(last: u8) -> Address {
    Address([0xff, 0x02, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, last])
}

/// What the headers of neighbour discovery say besides what [`Packet`] holds, and what is left for the message itself.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DiscoveryHead {
    /// Bytes of the ICMPv6 message.
    octets: usize,
    hops: u8,
    kind: u8,
    /// Whether the message follows the header that it must follow, has code 0, and ends where the frame does.
    is_plain: bool,
}

impl DiscoveryHead {
    /// Reads the headers once more; `at` is where IPv6 begins. What cannot be read is of no form.
    #[inline(always)]
    pub fn read(reader: &impl Reader, packet: &Packet, at: usize, frame_octets: usize) -> Self {
        let [kind, code] = packet.icmp.to_be_bytes();
        let unread = Self { octets: 0, hops: 0, kind, is_plain: false };
        let Some(head) = reader.load::<8>(at) else { return unread };
        let headers = packet.transport_at - at;
        let follows = if is_listeners(kind) {
            // Router alert in a hop-by-hop header (RFC 2711), filled up by one option or two.
            let Some(alert) = reader.load::<8>(at + 40) else { return unread };
            let alerts = [alert[0], alert[1], alert[2], alert[3], alert[4], alert[5]] == [58, 0, 5, 2, 0, 0];
            headers == 48 && head[6] == 0 && alerts && alert[6] <= 1 && alert[7] == 0
        } else {
            headers == 40
        };
        // Priority and flow label are free to be chosen: those in use are 0, CS6 and CS7, without a label.
        // Programs that ask for routers leave the label to the kernel; no endpoint receives what they ask.
        let is_labelled = [head[1] & 0x0f, head[2], head[3]] != [0; 3];
        let is_usual = matches!(head[0] << 4 | head[1] >> 4, 0 | 0xc0 | 0xe0) && !is_labelled;
        let end = at + 40 + usize::from(u16::from_be_bytes([head[4], head[5]]));
        Self {
            octets: end.saturating_sub(packet.transport_at),
            hops: head[7],
            kind,
            is_plain: follows && code == 0 && (is_usual || kind == kind::ROUTER_SOLICITATION) && end == frame_octets,
        }
    }
}

/// Judges neighbour discovery and listener discovery ([`Packet::is_discovery`]) that an endpoint sends or is about to receive,
/// in a frame with a link header whose `head` is read.
#[inline(always)]
pub fn discovery(
    tables: &impl Tables,
    reader: &impl Reader,
    endpoint: &EndpointValue,
    packet: &Packet,
    frame: &LinkFrame,
    direction: Direction,
) -> Claim {
    let message = &frame.head;
    let arrives = matches!(direction, Direction::Ingress);
    if arrives && matches!(frame.owner, LinkOwner::Node) {
        return of_node(packet, message, is_own(tables, endpoint.endpoint, &packet.destination));
    }
    let is_unknown = arrives && matches!(frame.owner, LinkOwner::Unknown);
    if !is_unknown && is_of_router(message.kind) {
        return Claim::Forged;
    }
    let is_listeners = is_listeners(message.kind);
    let hops = if is_listeners { LISTENER_HOPS } else { HOPS };
    if message.hops != hops {
        // Every receiver ignores neighbour discovery that a router has sent on, and none sends it on purpose.
        return if arrives && !is_listeners { Claim::Form } else { Claim::Ordinary };
    }
    if is_listeners {
        return listeners(tables, reader, endpoint, packet, frame, arrives);
    }
    if is_unknown && is_of_router(message.kind) {
        // A router on the link that is no endpoint.
        return if packet.source.is_link_local() { Claim::Passes } else { Claim::Forged };
    }
    neighbours(tables, reader, endpoint, packet, frame, message, arrives)
}

/// Listener discovery on a link with endpoints.
#[inline(always)]
fn listeners(
    tables: &impl Tables,
    reader: &impl Reader,
    endpoint: &EndpointValue,
    packet: &Packet,
    frame: &LinkFrame,
    arrives: bool,
) -> Claim {
    if !packet.destination.is_link_group() {
        return Claim::Ordinary;
    }
    if !frame.head.is_plain || !fits_group(frame, &packet.destination) {
        return Claim::Form;
    }
    if arrives {
        // Queries come from a router; what other hosts listen to is for routers alone.
        let is_query = frame.head.kind == kind::LISTENER_QUERY;
        return if is_query && packet.source.is_link_local() { Claim::Passes } else { Claim::Elsewhere };
    }
    let is_own_local = packet.source.is_link_local() && may_have(tables, endpoint.endpoint, frame, &packet.source);
    if !is_unspecified(&packet.source) && !is_own_local {
        return Claim::Forged;
    }
    if report(reader, packet, frame) { Claim::Passes } else { Claim::Form }
}

/// Whether a report has the size that it says, and goes where such reports go.
#[inline(always)]
fn report(reader: &impl Reader, packet: &Packet, frame: &LinkFrame) -> bool {
    let message = &frame.head;
    let Some(head) = reader.load::<8>(packet.transport_at) else { return false };
    match message.kind {
        kind::LISTENER_REPORT => {
            message.octets == 24 && target(reader, packet).is_some_and(|group| equals16(&group, &packet.destination))
        }
        kind::LISTENER_DONE => message.octets == 24 && packet.destination.0 == ALL_ROUTERS.0,
        _ => {
            let records = usize::from(u16::from_be_bytes([head[6], head[7]]));
            packet.destination.0 == REPORTS.0
                && records != 0
                && message.octets >= 8 + 20 * records
                && message.octets.is_multiple_of(4)
                && [head[4], head[5]] == [0, 0]
        }
    }
}

/// Whether the sender may say that an address is its own; `claimant` is its endpoint, 0 of none of this node.
#[inline(always)]
fn may_have(tables: &impl Tables, claimant: u32, frame: &LinkFrame, address: &Address) -> bool {
    let is_local = if claimant == 0 { address.is_link_local() } else { equals16(address, &link_local(&frame.source)) };
    is_local || may_claim(tables, claimant, address)
}

/// Solicitations and advertisements of a link with endpoints.
#[inline(always)]
fn neighbours(
    tables: &impl Tables,
    reader: &impl Reader,
    endpoint: &EndpointValue,
    packet: &Packet,
    frame: &LinkFrame,
    message: &DiscoveryHead,
    arrives: bool,
) -> Claim {
    let is_group = packet.destination.is_of_many();
    if is_group && !packet.destination.is_link_group() {
        return Claim::Ordinary;
    }
    let fits_link = if is_group { fits_group(frame, &packet.destination) } else { is_one(&frame.destination) };
    if !message.is_plain || !fits_link || !is_one(&frame.source) {
        return Claim::Form;
    }
    let claimant = if arrives { frame.sender } else { endpoint.endpoint };
    if !is_unspecified(&packet.source) && !may_have(tables, claimant, frame, &packet.source) {
        return Claim::Forged;
    }
    let body = body(reader, packet, frame);
    if !matches!(body, Claim::Passes) {
        return body;
    }
    if message.kind == kind::ROUTER_SOLICITATION {
        return match (arrives, packet.destination.0 == ALL_ROUTERS.0) {
            (true, _) => Claim::Elsewhere,
            (false, true) => Claim::Passes,
            (false, false) => Claim::Ordinary,
        };
    }
    let Some(target) = target(reader, packet) else { return Claim::Form };
    let about = about(packet, message, &target);
    if !matches!(about, Claim::Passes) {
        return about;
    }
    // Who advertises an address, or looks whether it is free, claims it.
    let claims_target = message.kind == kind::ADVERTISEMENT || is_unspecified(&packet.source);
    if claims_target && !may_have(tables, claimant, frame, &target) {
        return Claim::Forged;
    }
    if arrives {
        let to_endpoint = is_group || is_for(tables, endpoint, frame, &packet.destination);
        let about_endpoint = message.kind == kind::ADVERTISEMENT || is_for(tables, endpoint, frame, &target);
        let is_addressed = frame.is_addressed(group_link(&packet.destination));
        return if to_endpoint && about_endpoint && is_addressed { Claim::Passes } else { Claim::Elsewhere };
    }
    if is_group || packet.destination.is_link_local() || is_of_node(tables, &packet.destination) {
        return Claim::Passes;
    }
    Claim::Ordinary
}

/// Judges what is before and behind the target: reserved bytes and the only option that a message may have.
#[inline(always)]
fn body(reader: &impl Reader, packet: &Packet, frame: &LinkFrame) -> Claim {
    let message = &frame.head;
    let fixed = if message.kind == kind::ROUTER_SOLICITATION { 8 } else { 24 };
    let Some(head) = reader.load::<8>(packet.transport_at) else { return Claim::Form };
    let reserved = if message.kind == kind::ADVERTISEMENT { head[4] & 0x1f } else { head[4] };
    if [reserved, head[5], head[6], head[7]] != [0; 4] {
        return Claim::Form;
    }
    if message.octets == fixed {
        return Claim::Passes;
    }
    let wanted = match (message.kind, is_unspecified(&packet.source)) {
        (kind::ADVERTISEMENT, _) => option::TARGET,
        (kind::SOLICITATION, true) => option::NONCE,
        (_, true) => return Claim::Form,
        (_, false) => option::SOURCE,
    };
    let Some(given) = reader.load::<8>(packet.transport_at + fixed) else { return Claim::Form };
    if message.octets != fixed + 8 || given[0] != wanted || given[1] != 1 {
        return Claim::Form;
    }
    let link = [given[2], given[3], given[4], given[5], given[6], given[7]];
    if wanted != option::NONCE && !equals(&link, &frame.source) {
        return Claim::Forged;
    }
    Claim::Passes
}

/// Judges whether source, destination and target go together.
#[inline(always)]
fn about(packet: &Packet, message: &DiscoveryHead, target: &Address) -> Claim {
    let is_group = packet.destination.is_of_many();
    let fits = if message.kind == kind::ADVERTISEMENT {
        !is_unspecified(&packet.source) && (!is_group || packet.destination.0 == ALL_NODES.0)
    } else {
        equals16(&packet.destination, &solicited_node(target)) || equals16(&packet.destination, target)
    };
    if fits && !target.is_of_many() { Claim::Passes } else { Claim::Form }
}

/// Whether an address is the endpoint's, or the one made of the link address by which it is known.
#[inline(always)]
fn is_for(tables: &impl Tables, endpoint: &EndpointValue, frame: &LinkFrame, address: &Address) -> bool {
    let is_local = !is_zero(&frame.known) && equals16(address, &link_local(&frame.known));
    is_local || is_own(tables, endpoint.endpoint, address)
}

/// What the node's own stack sends to an endpoint's link; `to_endpoint` says that the destination is the endpoint's address.
#[inline(always)]
fn of_node(packet: &Packet, message: &DiscoveryHead, to_endpoint: bool) -> Claim {
    let is_listeners = is_listeners(message.kind);
    let hops = if is_listeners { LISTENER_HOPS } else { HOPS };
    let within =
        packet.destination.is_link_group() || (!is_listeners && (packet.destination.is_link_local() || to_endpoint));
    if message.hops == hops && within { Claim::Passes } else { Claim::Ordinary }
}

/// Judges neighbour discovery and listener discovery that a socket of the node sends or receives; `at` is where IPv6 begins,
/// and no link header is known. The kernel itself asks its neighbours and answers them by their own addresses too; such
/// messages have no free byte.
#[inline(always)]
pub fn discovery_of_node(reader: &impl Reader, packet: &Packet, at: usize, octets: usize) -> Claim {
    let message = &DiscoveryHead::read(reader, packet, at, octets);
    let claim = of_node(packet, message, false);
    if !matches!(claim, Claim::Ordinary) || message.hops != HOPS {
        return claim;
    }
    let is_exact = message.is_plain && (message.octets == 24 || message.octets == 32);
    let fits = match message.kind {
        kind::SOLICITATION => target(reader, packet).is_some_and(|target| equals16(&target, &packet.destination)),
        kind::ADVERTISEMENT => target(reader, packet).is_some_and(|target| equals16(&target, &packet.source)),
        _ => false,
    };
    if is_exact && fits { Claim::Passes } else { Claim::Ordinary }
}

/// The address that a solicitation which passed asks an endpoint for, where the one who asks has an address that can be of any
/// link: the endpoint's advertisement to it is then a reply.
#[inline(always)]
pub fn solicitation(reader: &impl Reader, packet: &Packet) -> Option<Address> {
    let asks = packet.icmp == u16::from(kind::SOLICITATION) << 8;
    if !asks || packet.source.is_link_local() || is_unspecified(&packet.source) {
        return None;
    }
    target(reader, packet)
}

/// Whether an address is `::`.
#[inline(always)]
fn is_unspecified(address: &Address) -> bool {
    address.0 == [0; 16]
}

/// The target of a solicitation or advertisement.
#[inline(always)]
fn target(reader: &impl Reader, packet: &Packet) -> Option<Address> {
    reader.load::<16>(packet.transport_at + 8).map(Address)
}

/// Whether an address is one of this node or of an endpoint on it.
#[inline(always)]
fn is_of_node(tables: &impl Tables, address: &Address) -> bool {
    let key = AddressKey { scope: 0, address: *address };
    tables.address(&key).is_some_and(|row| row.endpoint != 0 || row.flags & address_flags::LOCAL_HOST != 0)
}

#[inline(always)]
const fn is_of_router(kind: u8) -> bool {
    matches!(kind, kind::ROUTER_ADVERTISEMENT | kind::REDIRECT | kind::LISTENER_QUERY)
}

#[inline(always)]
pub(super) const fn is_listeners(kind: u8) -> bool {
    matches!(kind, kind::LISTENER_QUERY..=kind::LISTENER_DONE | kind::LISTENER_REPORT_V2)
}

/// The group in which the owner of an address listens for solicitations (RFC 4291 §2.7.1).
#[inline(always)]
pub(super) const fn solicited_node(address: &Address) -> Address {
    let octets = address.octets();
    Address([0xff, 0x02, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0xff, octets[13], octets[14], octets[15]])
}

/// The link-local address made of a link address (RFC 4291, appendix A).
#[inline(always)]
const fn link_local(link: &Mac) -> Address {
    Address([0xfe, 0x80, 0, 0, 0, 0, 0, 0, link[0] ^ 0x02, link[1], link[2], 0xff, 0xfe, link[3], link[4], link[5]])
}

/// The link address of a group (RFC 2464 §7).
#[inline(always)]
pub(super) const fn group_link(group: &Address) -> Mac {
    let octets = group.octets();
    [0x33, 0x33, octets[12], octets[13], octets[14], octets[15]]
}

/// Whether a frame is sent to the link address of its group.
#[inline(always)]
fn fits_group(frame: &LinkFrame, group: &Address) -> bool {
    equals(&frame.destination, &group_link(group))
}

#[inline(always)]
fn equals16(one: &Address, other: &Address) -> bool {
    one.0 == other.0
}
