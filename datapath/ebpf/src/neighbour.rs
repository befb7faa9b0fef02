//! ARP, neighbour discovery and listener discovery on the link of an endpoint: see `namegate_abi::neighbour`.

use namegate_abi::{
    Claim, Direction, DiscoveryHead, EndpointValue, FlowKey, FlowValue, LinkFrame, LinkOwner, Packet, Reader, Tables,
    arp, arp_addresses, discovery, icmp_way, solicitation,
};

use crate::{
    flows,
    frame::{Frame, LINK_OCTETS},
    maps::{ENDPOINTS, Kernel, LINK_ADDRESSES},
};

/// Judges an ARP message in the frame that `link` describes; gives the octet of its [`Claim`].
#[inline(never)]
pub(crate) fn judge_arp(frame: Frame, endpoint: &EndpointValue, link: &LinkFrame, direction: Direction) -> u32 {
    arp(&Kernel::now(), &frame, endpoint, link, direction) as u32
}

/// Writes the addresses of an ARP message where those of a packet stand in the record of a denial.
#[inline(never)]
pub(crate) fn describe_arp(frame: Frame, packet: &mut Packet) {
    *packet = Packet::NOTHING_READ;
    if let Some((sender, target)) = arp_addresses(&frame) {
        packet.source = sender;
        packet.destination = target;
    }
}

/// Judges a packet of neighbour discovery or listener discovery; gives the octet of its [`Claim`].
#[inline(never)]
pub(crate) fn judge_discovery(
    frame: Frame,
    endpoint: &EndpointValue,
    packet: &Packet,
    link: &LinkFrame,
    direction: Direction,
) -> u32 {
    discovery(&Kernel::now(), &frame, endpoint, packet, link, direction) as u32
}

/// Keeps the link address of an endpoint whose message may pass, where it may have it; gives the octet of the claim then.
#[inline(never)]
pub(crate) fn keep_link(endpoint: &EndpointValue, link: &LinkFrame) -> u32 {
    keep(endpoint, link) as u32
}

/// Reads the link header into `link`, and who put the frame on the link. A frame without one has zeros, which nothing may
/// claim.
#[inline(never)]
pub(crate) fn read_link(frame: Frame, endpoint: &EndpointValue, direction: Direction, link: &mut LinkFrame) {
    link.destination = frame.load::<6>(0).unwrap_or_default();
    link.source = frame.load::<6>(6).unwrap_or([0xff; 6]);
    // SAFETY: Rows are replaced, not changed in place, and live until the program ends (RCU).
    link.known = unsafe { LINK_ADDRESSES.get(endpoint.endpoint) }.map_or([0; 6], |row| row.link);
    link.owner = LinkOwner::Node;
    link.sender = 0;
    // A tag is free to be chosen: no message has this size.
    link.octets = if frame.is_tagged() { 0 } else { frame.octets() as usize };
    let from = frame.came_from();
    if matches!(direction, Direction::Ingress) && from != 0 {
        link.owner = LinkOwner::Unknown;
        // SAFETY: As above.
        if let Some(sender) = unsafe { ENDPOINTS.get(from) } {
            link.owner = LinkOwner::Endpoint;
            link.sender = sender.endpoint;
        }
    }
}

/// Reads the headers of neighbour discovery into `link`.
#[inline(never)]
pub(crate) fn read_head(frame: Frame, packet: &Packet, link: &mut LinkFrame) {
    link.head = DiscoveryHead::read(&frame, packet, LINK_OCTETS, link.octets);
}

#[inline(always)]
fn keep(endpoint: &EndpointValue, link: &LinkFrame) -> Claim {
    // SAFETY: As above.
    let row = unsafe { LINK_ADDRESSES.get(endpoint.endpoint) }.copied().unwrap_or_default();
    let Some(after) = row.after(link.source, Kernel::now().now_ns()) else { return Claim::Forged };
    if after.link != row.link && LINK_ADDRESSES.insert(endpoint.endpoint, after, 0).is_err() {
        return Claim::Forged;
    }
    Claim::Passes
}

/// Lets the endpoint answer a solicitation from an address that could be of any link: it came from this one.
#[inline(never)]
pub(crate) fn expect_reply(frame: Frame, endpoint: &EndpointValue, packet: &Packet) {
    let Some(local) = solicitation(&frame, packet) else { return };
    let [icmp_type, _] = packet.icmp.to_be_bytes();
    let key = FlowKey {
        endpoint: endpoint.endpoint,
        local,
        remote: packet.source,
        local_port: 0,
        remote_port: 0,
        protocol: packet.protocol,
        icmp_type,
        icmp_code: 0,
        icmp_way: icmp_way::ASKED,
    };
    let row = FlowValue {
        last_seen_ns: Kernel::now().now_ns(),
        identity: 0,
        rule: 0,
        revision: endpoint.current(),
        direction: Direction::Ingress as u8,
        flags: 0,
        proxy_port: 0,
    };
    flows::store(&key, &row); // Without a row, the reply is judged by rules.
}
