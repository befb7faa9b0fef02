//! Flows that were allowed before: whether one is still alive and still allowed, and the ICMP errors that quote its packets.

use crate::{
    Address, AddressKey, CidrKey, Class, Decision, Direction, EndpointValue, FlowKey, FlowValue, NameRow, Packet, Peer,
    Tables,
    decide::{peer, verdict},
    flow_flags, identity,
    packet::protocol,
};

const SECOND_NS: u64 = 1_000_000_000;

/// How long a flow is remembered after its last packet.
mod idle {
    use super::SECOND_NS;
    /// TCP before both sides have spoken.
    pub(super) const TCP_OPENING_NS: u64 = 60 * SECOND_NS;
    /// TCP, both ways (RFC 5382 §5 asks for two hours and four minutes at least).
    pub(super) const TCP_NS: u64 = 6 * 3_600 * SECOND_NS;
    /// TCP after FIN or RST (RFC 5382 §5: four minutes).
    pub(super) const TCP_CLOSING_NS: u64 = 240 * SECOND_NS;
    /// Everything else (RFC 4787 §4.3 asks for two minutes at least).
    pub(super) const OTHER_NS: u64 = 120 * SECOND_NS;
}

impl FlowValue {
    /// Whether a packet of the flow went by lately enough for the flow to be remembered.
    #[inline(always)]
    pub fn is_alive(&self, protocol: u8, now_ns: u64) -> bool {
        let idle_ns = match (protocol, self.flags) {
            (protocol::TCP, flags) if flags & flow_flags::CLOSING != 0 => idle::TCP_CLOSING_NS,
            (protocol::TCP, flags) if flags & flow_flags::REPLIED != 0 => idle::TCP_NS,
            (protocol::TCP, _) => idle::TCP_OPENING_NS,
            _ => idle::OTHER_NS,
        };
        now_ns.saturating_sub(self.last_seen_ns) <= idle_ns
    }
}

/// Whether a flow stands as it was judged: no rule has changed since, and its peer's address is whose it was.
#[inline(always)]
pub fn stands(tables: &impl Tables, endpoint: &EndpointValue, remote: &Address, flow: &FlowValue) -> bool {
    let current = endpoint.current();
    flow.revision == current
        || (flow.revision >= endpoint.revision && flow.revision < current && is_same_peer(tables, remote, flow))
}

/// Whether an address is still whose it was when the flow was judged.
///
/// What a name opened is not asked for the name again, which may have ended: the address must not be a pod's, node's or
/// service's. What another opened is always judged again: the address may have been the node's own.
#[inline(never)]
fn is_same_peer(tables: &impl Tables, remote: &Address, flow: &FlowValue) -> bool {
    let row = tables.address(&AddressKey { scope: 0, address: *remote });
    let owner = row.map_or(NameRow::Expired(0), |row| row.at(tables.now_ns()));
    if flow.flags & flow_flags::LEARNED != 0 {
        return matches!(owner, NameRow::Expired(_));
    }
    if flow.direction != Direction::Egress as u8 {
        return false;
    }
    let identity = match owner {
        NameRow::Live(identity) => identity,
        NameRow::Expired(_) => tables.cidr(&CidrKey { address: *remote }).unwrap_or(identity::WORLD),
    };
    identity == flow.identity
}

/// Who the peer of a flow is, as the flow is judged again: where a name opened it that has ended since, as if it had not.
#[inline(always)]
pub(crate) fn peer_again(tables: &impl Tables, endpoint: &EndpointValue, remote: &Address, flow: &FlowValue) -> Peer {
    let who = peer(tables, endpoint.scope, remote);
    if flow.flags & flow_flags::LEARNED != 0 && who.ended != 0 {
        return Peer { identity: who.ended, learned: true, ..who };
    }
    who
}

/// The verdict about a flow under the rules in force: its own direction and port decide, whichever way a packet goes.
#[inline(always)]
pub(crate) fn verdict_again(
    tables: &impl Tables,
    endpoint: &EndpointValue,
    key: &FlowKey,
    flow: &FlowValue,
    who: Peer,
) -> Decision {
    let opened = Direction::from_octet(flow.direction);
    let port = match (opened, key.protocol) {
        // A reply is judged by its request.
        (_, protocol::ICMP | protocol::ICMPV6) => u16::from_be_bytes([key.icmp_type, key.icmp_code]),
        (Direction::Egress, _) => key.remote_port,
        (Direction::Ingress, _) => key.local_port,
    };
    verdict(tables, endpoint, key.protocol, opened, who, port)
}

/// Whether an ICMP error is about a flow of the endpoint. The packet that it quotes went the other way.
///
/// The error goes to the sender of that packet. One that comes in may be a router's, whose address is not known; what an
/// endpoint sends has a source of its own in any case. The flow is alive, and the rules in force allow it.
#[inline(always)]
pub fn is_related(
    tables: &impl Tables,
    endpoint: &EndpointValue,
    error: &Packet,
    quoted: &Packet,
    direction: Direction,
) -> bool {
    // There are no errors about errors or about later fragments (RFC 1122 §3.2.2, RFC 4443 §2.4).
    if !matches!(quoted.class, Class::Plain) || error.destination != quoted.source {
        return false;
    }
    let key = FlowKey::of(endpoint.endpoint, quoted, direction.reversed());
    let Some(flow) = tables.flow(&key) else { return false };
    if !flow.is_alive(key.protocol, tables.now_ns()) {
        return false;
    }
    stands(tables, endpoint, &key.remote, &flow) || is_allowed_again(tables, endpoint, &key, &flow)
}

#[inline(never)]
fn is_allowed_again(tables: &impl Tables, endpoint: &EndpointValue, key: &FlowKey, flow: &FlowValue) -> bool {
    let who = peer_again(tables, endpoint, &key.remote, flow);
    !verdict_again(tables, endpoint, key, flow, who).reason.denies()
}
