//! The decision: what becomes of a packet, given the tables. The kernel's programs and the host's tests call it alike.
//!
//! Deny precedence, defaults and tiers are settled when rules are compiled, so two look-ups of the policy trie suffice:
//! the peer's identity, then any peer. The rows of an identity are complete: the first hit is the answer.
//!
//! What is marked never to be inlined gives its part of the kernel's stack (512 octets for a packet) back at its end.

use crate::{
    Address, AddressKey, AddressValue, CidrKey, Class, Direction, EndpointValue, FlowKey, FlowValue, FragmentKey,
    FragmentValue, NameRow, Packet, PolicyKey, PolicyValue, Reader, Reason, address_flags, flow_flags, identity,
    packet::protocol, parse_inner, policy_verdict,
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

/// Type and code of the packet that an ICMP reply answers: only echoes have flows with replies.
const ECHO_REQUEST: u16 = 8 << 8;
/// The same for ICMPv6.
const ECHO_REQUEST_V6: u16 = 128 << 8;

/// Read access to the maps, and the clock.
pub trait Tables {
    /// `CLOCK_BOOTTIME`, nanoseconds.
    fn now_ns(&self) -> u64;
    /// Exact match in `ADDRESSES`.
    fn address(&self, key: &AddressKey) -> Option<&AddressValue>;
    /// Longest match in `CIDRS`.
    fn cidr(&self, key: &CidrKey) -> Option<u32>;
    /// Longest match in `POLICY` for a full key.
    fn policy(&self, key: &PolicyKey) -> Option<PolicyValue>;
    /// Exact match in `FLOWS`.
    fn flow(&self, key: &FlowKey) -> Option<FlowValue>;
    /// Exact match in `FRAGMENTS`.
    fn fragment(&self, key: &FragmentKey) -> Option<FragmentValue>;
}

/// What the caller should do about the flow table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FlowWrite {
    /// Nothing.
    None,
    /// A new flow: write it and tell of it.
    New(FlowValue),
    /// A known flow has news.
    Update(FlowValue),
}

/// A verdict and how it came about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Decision {
    /// Why; also whether ([`Reason::denies`]).
    pub reason: Reason,
    /// Identity of the peer; 0 where none was looked up.
    pub identity: u32,
    /// Cookie of the rule; 0 is the default.
    pub rule: u32,
    /// Port of the proxy the flow goes through; 0 is none.
    pub proxy_port: u16,
    /// News for the flow table.
    pub flow: FlowWrite,
}

impl Decision {
    /// A verdict that needed no rule.
    #[inline(always)]
    pub const fn plain(reason: Reason) -> Self {
        Self { reason, identity: 0, rule: 0, proxy_port: 0, flow: FlowWrite::None }
    }
}

/// Who an address belongs to, as one endpoint sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Peer {
    /// Identity for the policy trie.
    pub identity: u32,
    /// It came from a name that the endpoint resolved.
    pub learned: bool,
    /// There was such a name, and its TTL has ended.
    pub expired: bool,
    /// It is an address of this node.
    pub local_host: bool,
}

/// Looks an address up: pods and nodes first, so that a name never opens them; then what the endpoint learned; then
/// prefixes; else the world.
#[inline(never)]
pub fn peer(tables: &impl Tables, scope: u32, address: &Address) -> Peer {
    let mut key = AddressKey { scope: 0, address: *address };
    if let Some(row) = tables.address(&key) {
        let local_host = row.flags & address_flags::LOCAL_HOST != 0;
        if let NameRow::Live(identity) = row.at(tables.now_ns()) {
            return Peer { identity, learned: false, expired: false, local_host };
        }
    }
    key.scope = scope;
    let mut expired = false;
    if let Some(row) = tables.address(&key) {
        match row.at(tables.now_ns()) {
            NameRow::Live(identity) => {
                return Peer { identity, learned: true, expired: false, local_host: false };
            }
            NameRow::Expired => expired = true,
        }
    }
    let identity = tables.cidr(&CidrKey { address: *address }).unwrap_or(identity::WORLD);
    Peer { identity, learned: false, expired, local_host: false }
}

/// Looks up the rows of one policy for a peer: its identity first, then any peer. No row is the default denial.
#[inline(always)]
pub fn decide(
    tables: &impl Tables,
    policy: u32,
    direction: Direction,
    identity: u32,
    protocol: u8,
    port: u16,
) -> PolicyValue {
    let mut key = PolicyKey::new(policy, direction, identity, protocol, port);
    if let Some(row) = tables.policy(&key) {
        return row;
    }
    key.identity = identity::ANY;
    tables.policy(&key).unwrap_or_default()
}

/// Judges one packet of an endpoint; reads what it quotes if it is an ICMP error.
#[inline(always)]
pub fn judge(
    tables: &impl Tables,
    reader: &impl Reader,
    endpoint: &EndpointValue,
    packet: &Packet,
    direction: Direction,
) -> Decision {
    let quoted = match packet.class {
        Class::Error => parse_inner(reader, packet).ok(),
        _ => None,
    };
    judge_quoting(tables, endpoint, packet, quoted.as_ref(), direction)
}

/// [`judge`], for a caller that has read what an ICMP error quotes.
#[inline(always)]
pub fn judge_quoting(
    tables: &impl Tables,
    endpoint: &EndpointValue,
    packet: &Packet,
    quoted: Option<&Packet>,
    direction: Direction,
) -> Decision {
    match packet.class {
        Class::Neighbour => return Decision::plain(Reason::Neighbour),
        Class::Fragment => return later_fragment(tables, endpoint, packet, direction),
        Class::Error => {
            if quoted.is_some_and(|quoted| is_known(tables, endpoint, quoted, direction)) {
                return Decision::plain(Reason::Related);
            }
        }
        Class::Plain => {}
    }
    let key = flow_key(endpoint.endpoint, packet, direction);
    match live_flow(tables, &key, packet) {
        Some(flow) if flow.revision == endpoint.revision => established(tables, packet, direction, flow),
        Some(flow) => judge_again(tables, endpoint, &key, packet, direction, flow),
        None => judge_new(tables, endpoint, &key, packet, direction),
    }
}

#[inline(always)]
fn later_fragment(tables: &impl Tables, endpoint: &EndpointValue, packet: &Packet, direction: Direction) -> Decision {
    if !endpoint.enforces(direction) {
        return Decision::plain(Reason::NoPolicy);
    }
    let key = FragmentKey::of(endpoint.endpoint, packet, direction);
    match tables.fragment(&key) {
        Some(first) if first.expires_ns > tables.now_ns() => Decision::plain(Reason::Fragment),
        _ => Decision::plain(Reason::FragmentAlone),
    }
}

/// Whether the packet that an ICMP error quotes is of a known flow. It went the other way.
#[inline(never)]
fn is_known(tables: &impl Tables, endpoint: &EndpointValue, quoted: &Packet, direction: Direction) -> bool {
    tables.flow(&flow_key(endpoint.endpoint, quoted, direction.reversed())).is_some()
}

/// The flow of the packet, unless it has been silent for too long or the packet opens a connection anew.
#[inline(always)]
fn live_flow(tables: &impl Tables, key: &FlowKey, packet: &Packet) -> Option<FlowValue> {
    if packet.opens() {
        return None;
    }
    let flow = tables.flow(key)?;
    let idle_ns = match (key.protocol, flow.flags) {
        (protocol::TCP, flags) if flags & flow_flags::CLOSING != 0 => idle::TCP_CLOSING_NS,
        (protocol::TCP, flags) if flags & flow_flags::REPLIED != 0 => idle::TCP_NS,
        (protocol::TCP, _) => idle::TCP_OPENING_NS,
        _ => idle::OTHER_NS,
    };
    (tables.now_ns().saturating_sub(flow.last_seen_ns) <= idle_ns).then_some(flow)
}

#[inline(always)]
fn established(tables: &impl Tables, packet: &Packet, direction: Direction, flow: FlowValue) -> Decision {
    let forward = flow.direction == direction as u8;
    let mut news = flow;
    if !forward {
        news.flags |= flow_flags::REPLIED;
    }
    if packet.closes() {
        news.flags |= flow_flags::CLOSING;
    }
    let now_ns = tables.now_ns();
    // To the second: one write a second keeps the row's cache line shared between cores.
    if now_ns.saturating_sub(flow.last_seen_ns) > SECOND_NS {
        news.last_seen_ns = now_ns;
    }
    Decision {
        reason: if forward { Reason::Established } else { Reason::Reply },
        identity: flow.identity,
        rule: flow.rule,
        proxy_port: if forward { flow.proxy_port } else { 0 },
        flow: if news == flow { FlowWrite::None } else { FlowWrite::Update(news) },
    }
}

/// Judges a flow that was allowed under an earlier revision: its own direction, port and, where a name opened it, the
/// identity it had then.
#[inline(always)]
fn judge_again(
    tables: &impl Tables,
    endpoint: &EndpointValue,
    key: &FlowKey,
    packet: &Packet,
    direction: Direction,
    flow: FlowValue,
) -> Decision {
    let opened = Direction::from_octet(flow.direction);
    let mut who = peer(tables, endpoint.scope, &key.remote);
    if flow.flags & flow_flags::LEARNED != 0 && who.expired {
        who = Peer { identity: flow.identity, learned: true, ..who };
    }
    let port = match (opened, key.protocol) {
        (_, protocol::ICMP | protocol::ICMPV6) if opened as u8 == direction as u8 => packet.icmp,
        (_, protocol::ICMP) => ECHO_REQUEST,
        (_, protocol::ICMPV6) => ECHO_REQUEST_V6,
        (Direction::Egress, _) => key.remote_port,
        (Direction::Ingress, _) => key.local_port,
    };
    let verdict = verdict(tables, endpoint, key.protocol, opened, who, port);
    if verdict.reason.denies() {
        return verdict;
    }
    let news = FlowValue {
        identity: who.identity,
        rule: verdict.rule,
        revision: endpoint.revision,
        proxy_port: verdict.proxy_port,
        ..flow
    };
    match established(tables, packet, direction, news) {
        Decision { flow: FlowWrite::None, reason, identity, rule, proxy_port } => {
            Decision { flow: FlowWrite::Update(news), reason, identity, rule, proxy_port }
        }
        decision => decision,
    }
}

#[inline(always)]
fn judge_new(
    tables: &impl Tables,
    endpoint: &EndpointValue,
    key: &FlowKey,
    packet: &Packet,
    direction: Direction,
) -> Decision {
    if matches!(direction, Direction::Egress) {
        let own = tables.address(&AddressKey { scope: 0, address: key.local });
        if own.is_none_or(|row| row.endpoint != endpoint.endpoint) {
            return Decision::plain(Reason::SpoofedSource);
        }
    }
    let who = peer(tables, endpoint.scope, &key.remote);
    let verdict = verdict(tables, endpoint, key.protocol, direction, who, packet.policy_port());
    if verdict.reason.denies() {
        return verdict;
    }
    let flow = FlowValue {
        last_seen_ns: tables.now_ns(),
        identity: who.identity,
        rule: verdict.rule,
        revision: endpoint.revision,
        direction: direction as u8,
        flags: if who.learned { flow_flags::LEARNED } else { 0 },
        proxy_port: verdict.proxy_port,
    };
    Decision { flow: FlowWrite::New(flow), ..verdict }
}

#[inline(always)]
fn verdict(
    tables: &impl Tables,
    endpoint: &EndpointValue,
    protocol: u8,
    direction: Direction,
    who: Peer,
    port: u16,
) -> Decision {
    let mut decision = Decision { identity: who.identity, ..Decision::plain(Reason::NoPolicy) };
    if !endpoint.enforces(direction) {
        return decision;
    }
    let row = decide(tables, endpoint.policy, direction, who.identity, protocol, port);
    decision.rule = row.rule;
    decision.proxy_port = row.proxy_port;
    decision.reason = match row.verdict {
        policy_verdict::ALLOW | policy_verdict::REDIRECT => Reason::Rule,
        _ if row.rule != 0 => Reason::DenyRule,
        _ if who.local_host && matches!(direction, Direction::Ingress) => Reason::LocalHost,
        _ if who.expired => Reason::NameExpired,
        _ => Reason::DefaultDeny,
    };
    decision
}

/// The key of the packet's flow, the same for both directions.
#[inline(always)]
fn flow_key(endpoint: u32, packet: &Packet, direction: Direction) -> FlowKey {
    let (local, remote, local_port, remote_port) = match direction {
        Direction::Egress => (packet.source, packet.destination, packet.source_port, packet.destination_port),
        Direction::Ingress => (packet.destination, packet.source, packet.destination_port, packet.source_port),
    };
    FlowKey { endpoint, local, remote, local_port, remote_port, protocol: packet.protocol, spare: [0; 3] }
}

impl FlowKey {
    /// The key of the flow of a packet that `endpoint` sent (egress) or received (ingress).
    #[inline(always)]
    pub fn of(endpoint: u32, packet: &Packet, direction: Direction) -> Self {
        flow_key(endpoint, packet, direction)
    }
}

impl FragmentKey {
    /// The key of the fragmented packet.
    #[inline(always)]
    pub fn of(endpoint: u32, packet: &Packet, direction: Direction) -> Self {
        Self {
            endpoint,
            id: packet.fragment_id,
            source: packet.source,
            destination: packet.destination,
            protocol: packet.protocol,
            direction: direction as u8,
            spare: [0; 2],
        }
    }
}
