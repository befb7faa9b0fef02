//! The decision: what becomes of a packet, given the tables. The kernel's programs and the host's tests call it alike.
//!
//! Deny precedence, defaults and tiers are settled when rules are compiled, so two look-ups of the policy trie suffice:
//! the peer's identity, then any peer. The rows of an identity are complete: the first hit is the answer.
//!
//! What is marked never to be inlined gives its part of the kernel's stack (512 octets for a packet) back at its end.

use crate::{
    Address, AddressKey, AddressValue, CidrKey, Class, Direction, EndpointValue, FlowKey, FlowValue, FragmentKey,
    FragmentValue, NameRow, Packet, PolicyKey, PolicyValue, Reader, Reason, address_flags, endpoint_flags, flow_flags,
    identity, parse_inner, policy_flags, policy_verdict,
    standing::{is_related, peer_again, stands, verdict_again},
};

const SECOND_NS: u64 = 1_000_000_000;

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

/// What the caller should do with [`Decision::flow`].
#[repr(u8)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FlowWrite {
    /// Nothing.
    None = 0,
    /// A new flow: write it and tell of it.
    New = 1,
    /// A known flow has news: write it.
    Update = 2,
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
    /// Port of the proxy the packet goes through; 0 is none.
    pub proxy_port: u16,
    /// [`policy_flags`] of the row that allowed it.
    pub row_flags: u8,
    /// The packet answers a connection that a proxy of this node opened: it is for that proxy's socket.
    pub answers_proxy: bool,
    /// What to do with `flow`.
    pub write: FlowWrite,
    /// Row of the flow table; zeros where nothing is to be written. Always set: the verifier wants every part of a
    /// verdict to have a value on every path.
    pub flow: FlowValue,
}

impl Decision {
    /// A verdict that needed no rule.
    #[inline(always)]
    pub const fn plain(reason: Reason) -> Self {
        const NO_FLOW: FlowValue =
            FlowValue { last_seen_ns: 0, identity: 0, rule: 0, revision: 0, direction: 0, flags: 0, proxy_port: 0 };
        Self {
            reason,
            identity: 0,
            rule: 0,
            proxy_port: 0,
            row_flags: 0,
            answers_proxy: false,
            write: FlowWrite::None,
            flow: NO_FLOW,
        }
    }
}

/// Who an address belongs to, as one endpoint sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Peer {
    /// Identity for the policy trie.
    pub identity: u32,
    /// It came from a name that the endpoint resolved.
    pub learned: bool,
    /// Where there was such a name and its TTL has ended, the identity it gave; else 0.
    pub ended: u32,
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
            return Peer { identity, learned: false, ended: 0, local_host };
        }
    }
    key.scope = scope;
    let mut ended = 0;
    if let Some(row) = tables.address(&key) {
        match row.at(tables.now_ns()) {
            NameRow::Live(identity) => {
                return Peer { identity, learned: true, ended: 0, local_host: false };
            }
            NameRow::Expired(last) => ended = last,
        }
    }
    let identity = tables.cidr(&CidrKey { address: *address }).unwrap_or(identity::WORLD);
    Peer { identity, learned: false, ended, local_host: false }
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

/// [`judge`], for a caller that has read what an ICMP error quotes. Neighbour discovery passes here: the caller has had it
/// judged by [`crate::discovery`], and gives what that did not let pass another class.
#[inline(always)]
pub fn judge_quoting(
    tables: &impl Tables,
    endpoint: &EndpointValue,
    packet: &Packet,
    quoted: Option<&Packet>,
    direction: Direction,
) -> Decision {
    let related = quoted.is_some_and(|quoted| is_related(tables, endpoint, packet, quoted, direction));
    judge_related(tables, endpoint, packet, related, direction)
}

/// [`judge`], for a caller that has asked [`is_related`] about an ICMP error.
#[inline(always)]
pub fn judge_related(
    tables: &impl Tables,
    endpoint: &EndpointValue,
    packet: &Packet,
    related: bool,
    direction: Direction,
) -> Decision {
    if matches!(packet.class, Class::Neighbour) {
        return Decision::plain(Reason::Neighbour);
    }
    let misplaced = misplaced(tables, endpoint, packet, direction);
    if misplaced.denies() {
        return Decision::plain(misplaced);
    }
    match packet.class {
        Class::Fragment => return later_fragment(tables, endpoint, packet, direction),
        Class::Error if related => return Decision::plain(Reason::Related),
        Class::Error | Class::Plain | Class::Neighbour => {}
    }
    let key = FlowKey::of(endpoint.endpoint, packet, direction);
    match live_flow(tables, &key, packet) {
        Some(flow) => judge_known(tables, endpoint, &key, packet, direction, flow),
        None => judge_new(tables, endpoint, &key, packet, direction),
    }
}

/// The denial of a packet that has no place on the endpoint's link whatever flow it is of, or a reason that is none: a source
/// that is not the endpoint's, a destination that is not, or a role that only a router has.
#[inline(never)]
fn misplaced(tables: &impl Tables, endpoint: &EndpointValue, packet: &Packet, direction: Direction) -> Reason {
    if endpoint.flags & endpoint_flags::NODE != 0 {
        return Reason::NoPolicy;
    }
    match direction {
        Direction::Egress if !is_own(tables, endpoint.endpoint, &packet.source) => Reason::SpoofedSource,
        Direction::Egress if packet.is_of_router() => Reason::ForgedNeighbour,
        Direction::Ingress
            if !packet.destination.is_of_many() && !is_own(tables, endpoint.endpoint, &packet.destination) =>
        {
            Reason::ForeignDestination
        }
        _ => Reason::NoPolicy,
    }
}

/// Whether an address is one of the endpoint's.
#[inline(always)]
pub(crate) fn is_own(tables: &impl Tables, endpoint: u32, address: &Address) -> bool {
    let key = AddressKey { scope: 0, address: *address };
    tables.address(&key).is_some_and(|row| row.endpoint == endpoint)
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

/// The flow of the packet, unless it has been silent for too long or the packet opens a connection anew.
#[inline(always)]
fn live_flow(tables: &impl Tables, key: &FlowKey, packet: &Packet) -> Option<FlowValue> {
    if packet.opens() {
        return None;
    }
    let flow = tables.flow(key)?;
    flow.is_alive(key.protocol, tables.now_ns()).then_some(flow)
}

/// Judges a packet of a flow that was allowed before. A flow that does not stand as it was judged is judged again: its own
/// direction and port and, where a name opened it that has ended since, as if it had not.
#[inline(always)]
fn judge_known(
    tables: &impl Tables,
    endpoint: &EndpointValue,
    key: &FlowKey,
    packet: &Packet,
    direction: Direction,
    flow: FlowValue,
) -> Decision {
    let mut news = flow;
    if !stands(tables, endpoint, &key.remote, &flow) {
        let who = peer_again(tables, endpoint, &key.remote, &flow);
        let verdict = verdict_again(tables, endpoint, key, &flow, who);
        if verdict.reason.denies() {
            return verdict;
        }
        news.identity = who.identity;
        news.rule = verdict.rule;
        news.flags = flags_again(flow.flags, names_wanted(endpoint, verdict.row_flags)) | learned(who);
        // A connection with a proxy can not go on past it.
        if verdict.proxy_port != 0 {
            news.proxy_port = verdict.proxy_port;
        }
    }
    news.revision = endpoint.current();
    let forward = flow.direction == direction as u8;
    // Where only one direction is judged, the opener's own acknowledgement shows that the other side has spoken.
    if !forward || packet.acknowledges() {
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
    // Where anything else differs, so does the revision.
    let is_same = (news.revision, news.flags, news.last_seen_ns) == (flow.revision, flow.flags, flow.last_seen_ns);
    Decision {
        reason: if forward { Reason::Established } else { Reason::Reply },
        identity: news.identity,
        rule: news.rule,
        proxy_port: if forward { news.proxy_port } else { 0 },
        row_flags: 0,
        answers_proxy: !forward
            && matches!(direction, Direction::Egress)
            && (news.proxy_port != 0 || news.flags & flow_flags::PROXIED != 0),
        write: if is_same { FlowWrite::None } else { FlowWrite::Update },
        flow: news,
    }
}

/// What stays of the flags of a flow that is judged again, with what its row asks of names now. What was not copied at the
/// beginning of a flow is not copied later.
#[inline(always)]
const fn flags_again(flags: u8, wanted: u8) -> u8 {
    let held = wanted & !flow_flags::NAME_WANTED;
    let former = if (held | flags) & flow_flags::NAME_HELD != 0 { flow_flags::NAMES } else { 0 };
    flags & !(former | flow_flags::LEARNED) | held
}

#[inline(always)]
fn judge_new(
    tables: &impl Tables,
    endpoint: &EndpointValue,
    key: &FlowKey,
    packet: &Packet,
    direction: Direction,
) -> Decision {
    let who = peer(tables, endpoint.scope, &key.remote);
    let verdict = verdict(tables, endpoint, key.protocol, direction, who, packet.policy_port());
    // A reply without a request begins nothing: under its request's key it would let requests pass.
    if verdict.reason.denies() || packet.is_icmp_reply() {
        return verdict;
    }
    let wanted = names_wanted(endpoint, verdict.row_flags);
    let flow = FlowValue {
        last_seen_ns: tables.now_ns(),
        identity: who.identity,
        rule: verdict.rule,
        revision: endpoint.current(),
        direction: direction as u8,
        flags: learned(who) | wanted,
        proxy_port: verdict.proxy_port,
    };
    Decision { write: FlowWrite::New, flow, ..verdict }
}

/// The flag of a flow that a name opened.
#[inline(always)]
fn learned(who: Peer) -> u8 {
    if who.learned { flow_flags::LEARNED } else { 0 }
}

/// What a row asks of the names in a flow. Where nothing is to be dropped, nothing waits.
#[inline(always)]
fn names_wanted(endpoint: &EndpointValue, row_flags: u8) -> u8 {
    let audit = endpoint.flags & endpoint_flags::AUDIT != 0;
    if audit && row_flags & policy_flags::HOLD_NAME != 0 {
        return flow_flags::NAME_WANTED;
    }
    (row_flags & policy_flags::NAMES) << flow_flags::NAMES_SHIFT
}

#[inline(always)]
pub(crate) fn verdict(
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
    decision.row_flags = row.flags;
    let from_host =
        who.local_host && matches!(direction, Direction::Ingress) && endpoint.flags & endpoint_flags::NODE == 0;
    decision.reason = match row.verdict {
        policy_verdict::ALLOW => Reason::Rule,
        policy_verdict::REDIRECT if from_host => {
            // What the node asks its endpoints is not limited.
            decision.proxy_port = 0;
            Reason::Rule
        }
        policy_verdict::REDIRECT if row.proxy_port != 0 => Reason::Rule,
        policy_verdict::REDIRECT => Reason::ProxyAbsent,
        _ if row.rule != 0 => Reason::DenyRule,
        // An endpoint whose policy can not be in force is closed to the node too: a rule might say so.
        _ if from_host && endpoint.policy != 0 => Reason::LocalHost,
        _ if who.ended != 0 => Reason::NameExpired,
        _ => Reason::DefaultDeny,
    };
    decision
}

#[cfg(test)]
mod tests {
    extern crate std;
    use core::net::IpAddr;
    use std::{collections::BTreeMap, vec, vec::Vec};

    use super::*;
    use crate::{CidrValue, Step, endpoint_flags, protocol, tcp};

    /// Identity, prefix length, protocol, port, verdict.
    type Rule = (u32, u32, u8, u16, u8);
    type Change<'a> = &'a dyn Fn(&mut World);

    const ENDPOINT: u32 = 7;
    const POLICY: u32 = 70;
    const SCOPE: u32 = 700;
    const POD: &str = "10.0.0.7";
    const PEER: &str = "198.51.100.7";
    const NAMED: u32 = 300;
    const POD_V6: &str = "fd00::7";
    const PEER_V6: &str = "2001:db8::7";

    /// The maps, as the kernel has them; tries are searched the slow way.
    #[derive(Default)]
    struct World {
        now_ns: u64,
        addresses: BTreeMap<AddressKey, AddressValue>,
        cidrs: BTreeMap<(u32, CidrKey), CidrValue>,
        policy: BTreeMap<(u32, PolicyKey), PolicyValue>,
        flows: BTreeMap<FlowKey, FlowValue>,
        fragments: BTreeMap<FragmentKey, FragmentValue>,
    }

    fn covers(prefix: u32, row: &[u8], asked: &[u8]) -> bool {
        (0..prefix as usize).all(|bit| (row[bit / 8] ^ asked[bit / 8]) & (0x80 >> (bit % 8)) == 0)
    }

    fn octets(key: &PolicyKey) -> [u8; 12] {
        let (policy, identity) = (key.policy.to_ne_bytes(), key.identity.to_ne_bytes());
        let tail = [key.direction, key.protocol, key.port_be[0], key.port_be[1]];
        core::array::from_fn(|at| [policy, identity, tail][at / 4][at % 4])
    }

    impl Tables for World {
        fn now_ns(&self) -> u64 {
            self.now_ns
        }

        fn address(&self, key: &AddressKey) -> Option<&AddressValue> {
            self.addresses.get(key)
        }

        fn cidr(&self, key: &CidrKey) -> Option<u32> {
            let hits = self.cidrs.iter().filter(|((prefix, row), _)| covers(*prefix, &row.address.0, &key.address.0));
            hits.max_by_key(|((prefix, _), _)| *prefix).map(|(_, value)| value.identity)
        }

        fn policy(&self, key: &PolicyKey) -> Option<PolicyValue> {
            let hits = self.policy.iter().filter(|((prefix, row), _)| covers(*prefix, &octets(row), &octets(key)));
            hits.max_by_key(|((prefix, _), _)| *prefix).map(|(_, value)| *value)
        }

        fn flow(&self, key: &FlowKey) -> Option<FlowValue> {
            self.flows.get(key).copied()
        }

        fn fragment(&self, key: &FragmentKey) -> Option<FragmentValue> {
            self.fragments.get(key).copied()
        }
    }

    /// No packet quotes another here, but those of [`Quote`].
    struct Nothing;

    impl Reader for Nothing {
        fn load<const N: usize>(&self, _: usize) -> Option<[u8; N]> {
            None
        }
    }

    struct Quote(Vec<u8>);

    impl Reader for Quote {
        fn load<const N: usize>(&self, offset: usize) -> Option<[u8; N]> {
            self.0.get(offset..offset + N)?.try_into().ok()
        }
    }

    fn address(text: &str) -> Address {
        text.parse::<IpAddr>().unwrap().into()
    }

    /// A second on the clock.
    const fn at(seconds: u64) -> u64 {
        seconds * SECOND_NS
    }

    const ENDPOINT_ROW: EndpointValue = EndpointValue {
        endpoint: ENDPOINT,
        policy: POLICY,
        scope: SCOPE,
        revision: 1,
        flags: endpoint_flags::ENFORCE_EGRESS | endpoint_flags::ENFORCE_INGRESS,
        moved: 0,
    };

    fn revision(revision: u32) -> EndpointValue {
        EndpointValue { revision, ..ENDPOINT_ROW }
    }

    fn packet(source: &str, destination: &str, protocol: u8, source_port: u16, destination_port: u16) -> Packet {
        Packet {
            source: address(source),
            destination: address(destination),
            source_port,
            destination_port,
            icmp: 0,
            protocol,
            tcp_flags: if protocol == protocol::TCP { tcp::ACK } else { 0 },
            class: Class::Plain,
            fragmented: false,
            fragment_id: 0,
            transport_at: 20,
        }
    }

    fn udp_out() -> Packet {
        packet(POD, PEER, protocol::UDP, 4_000, 53)
    }

    fn tcp_out(flags: u8) -> Packet {
        Packet { tcp_flags: flags, ..packet(POD, PEER, protocol::TCP, 4_000, 443) }
    }

    fn answer_to(packet: &Packet) -> Packet {
        Packet {
            source: packet.destination,
            destination: packet.source,
            source_port: packet.destination_port,
            destination_port: packet.source_port,
            ..*packet
        }
    }

    impl World {
        /// An endpoint at second 1 000, whose peer has a name until second 1 060 that is open on every port.
        fn new() -> Self {
            let mut world = Self { now_ns: at(1_000), ..Self::default() };
            world.node(POD, 256, ENDPOINT);
            world.learn(PEER, &[(at(1_060), NAMED)]);
            world.rule(Direction::Egress, NAMED, PolicyKey::PEER_BITS, 0, 0, policy_verdict::ALLOW);
            world
        }

        fn node(&mut self, ip: &str, identity: u32, endpoint: u32) -> &mut AddressValue {
            let key = AddressKey { scope: 0, address: address(ip) };
            self.addresses.insert(key, AddressValue { steps: steps(&[(0, identity)]), endpoint, flags: 0 });
            self.addresses.get_mut(&key).unwrap()
        }

        fn learn(&mut self, ip: &str, given: &[(u64, u32)]) {
            let key = AddressKey { scope: SCOPE, address: address(ip) };
            self.addresses.insert(key, AddressValue { steps: steps(given), endpoint: 0, flags: 0 });
        }

        /// A rule whose cookie is its identity and one.
        fn rule(&mut self, direction: Direction, identity: u32, prefix: u32, protocol: u8, port: u16, verdict: u8) {
            let key = PolicyKey::new(POLICY, direction, identity, protocol, port);
            self.policy.insert((prefix, key), PolicyValue { verdict, flags: 0, proxy_port: 0, rule: identity + 1 });
        }

        fn judge(&self, endpoint: &EndpointValue, packet: &Packet, direction: Direction) -> Decision {
            judge(self, &Nothing, endpoint, packet, direction)
        }

        /// Judges, and writes what the kernel would write.
        fn pass(&mut self, endpoint: &EndpointValue, packet: &Packet, direction: Direction) -> Decision {
            let decision = self.judge(endpoint, packet, direction);
            if decision.write != FlowWrite::None {
                self.flows.insert(FlowKey::of(endpoint.endpoint, packet, direction), decision.flow);
            }
            if packet.fragmented && !decision.reason.denies() {
                let key = FragmentKey::of(endpoint.endpoint, packet, direction);
                self.fragments.insert(key, FragmentValue::allowed_at(self.now_ns));
            }
            decision
        }

        fn reason(&mut self, packet: &Packet, direction: Direction) -> Reason {
            self.pass(&ENDPOINT_ROW, packet, direction).reason
        }
    }

    fn steps(given: &[(u64, u32)]) -> [Step; 4] {
        let mut steps = [Step::default(); 4];
        for (step, (expires_ns, identity)) in steps.iter_mut().zip(given) {
            *step = Step { expires_ns: *expires_ns, identity: *identity, spare: 0 };
        }
        steps
    }

    #[test]
    fn a_new_flow_is_judged_once_and_its_packets_both_ways_are_known() {
        for first in [udp_out(), tcp_out(tcp::SYN)] {
            let mut world = World::new();
            let decision = world.pass(&ENDPOINT_ROW, &first, Direction::Egress);
            assert_eq!((decision.reason, decision.identity, decision.rule), (Reason::Rule, NAMED, NAMED + 1));
            assert_eq!((decision.write, decision.flow.flags), (FlowWrite::New, flow_flags::LEARNED));
            let answer = Packet { tcp_flags: first.tcp_flags | tcp::ACK, ..answer_to(&first) };
            assert_eq!(world.reason(&answer, Direction::Ingress), Reason::Reply);
            let next = Packet { tcp_flags: first.tcp_flags & !tcp::SYN, ..first };
            assert_eq!(world.reason(&next, Direction::Egress), Reason::Established);
            assert_eq!(world.judge(&ENDPOINT_ROW, &next, Direction::Egress).write, FlowWrite::None, "nothing new");
        }
    }

    #[test]
    fn a_row_says_that_the_beginning_of_its_new_flows_is_copied() {
        let mut world = World::new();
        for row in world.policy.values_mut() {
            row.flags = policy_flags::OBSERVE_NAME;
        }
        let first = tcp_out(tcp::SYN);
        let decision = world.pass(&ENDPOINT_ROW, &first, Direction::Egress);
        assert_eq!(decision.flow.flags, flow_flags::LEARNED | flow_flags::NAME_WANTED);
        let next = Packet { tcp_flags: tcp::ACK, ..first };
        let decision = world.pass(&ENDPOINT_ROW, &next, Direction::Egress);
        assert_eq!(decision.flow.flags & flow_flags::NAME_WANTED, flow_flags::NAME_WANTED);
        world.flows.values_mut().for_each(|flow| flow.flags &= !flow_flags::NAME_WANTED);
        let mut later = EndpointValue { revision: ENDPOINT_ROW.revision + 1, ..ENDPOINT_ROW };
        let decision = world.pass(&later, &next, Direction::Egress);
        assert_eq!(decision.flow.flags & flow_flags::NAME_WANTED, 0, "not again under new rules");
        let required = policy_flags::HOLD_NAME | policy_flags::REQUIRE_NAME;
        world.flows.values_mut().for_each(|flow| flow.flags |= flow_flags::NAME_WANTED | 3 << flow_flags::COPIES_SHIFT);
        for (row_flags, want) in [
            (policy_flags::HOLD_NAME, flow_flags::NAME_HELD),
            (required, flow_flags::NAME_HELD | flow_flags::NAME_REQUIRED),
            (policy_flags::HOLD_NAME, flow_flags::NAME_HELD),
            (0, 0),
        ] {
            world.policy.values_mut().for_each(|row| row.flags = row_flags);
            later.revision += 1;
            let flags = world.pass(&later, &next, Direction::Egress).flow.flags;
            assert_eq!(flags & flow_flags::NAMES, want, "as the rules say now");
        }
        world.policy.values_mut().for_each(|row| row.flags = policy_flags::HOLD_NAME);
        let audited = EndpointValue { flags: later.flags | endpoint_flags::AUDIT, ..later };
        let decision = world.pass(&audited, &udp_out(), Direction::Egress);
        assert_eq!(decision.flow.flags, flow_flags::LEARNED | flow_flags::NAME_WANTED, "nothing waits in audit mode");
    }

    /// Requests towards the endpoint's port 80 go to a proxy on `proxy_port`.
    fn limited(proxy_port: u16) -> World {
        let mut world = World::new();
        world.node(PEER, 256, 0);
        let key = PolicyKey::new(POLICY, Direction::Ingress, 256, protocol::TCP, 80);
        let value = PolicyValue { verdict: policy_verdict::REDIRECT, flags: 0, proxy_port, rule: 4 };
        world.policy.insert((PolicyKey::PROTOCOL_BITS + 16, key), value);
        world
    }

    #[test]
    fn a_redirect_to_nowhere_is_a_denial_and_the_node_is_not_read() {
        let first = Packet { tcp_flags: tcp::SYN, ..packet(PEER, POD, protocol::TCP, 4_000, 80) };
        let mut world = limited(0);
        let decision = world.pass(&ENDPOINT_ROW, &first, Direction::Ingress);
        assert_eq!((decision.reason, decision.rule), (Reason::ProxyAbsent, 4));
        let mut world = limited(9_000);
        let decision = world.pass(&ENDPOINT_ROW, &first, Direction::Ingress);
        assert_eq!((decision.reason, decision.proxy_port), (Reason::Rule, 9_000));
        world.node(PEER, 256, 0).flags = address_flags::LOCAL_HOST;
        let decision = world.pass(&ENDPOINT_ROW, &first, Direction::Ingress);
        assert_eq!((decision.reason, decision.proxy_port), (Reason::Rule, 0));
    }

    #[test]
    fn what_answers_a_proxy_is_for_the_proxy() {
        let first = Packet { tcp_flags: tcp::SYN, ..packet(PEER, POD, protocol::TCP, 4_000, 80) };
        let answer = Packet { tcp_flags: tcp::SYN | tcp::ACK, ..answer_to(&first) };
        for (what, proxy_port, flags, want) in [
            ("an unlimited flow", 0, 0, false),
            ("a limited flow", 9_000, 0, true),
            ("an unlimited flow that a proxy opened", 0, flow_flags::PROXIED, true),
        ] {
            let mut world = limited(9_000);
            world.pass(&ENDPOINT_ROW, &first, Direction::Ingress);
            let flow = world.flows.values_mut().next().unwrap();
            (flow.proxy_port, flow.flags) = (proxy_port, flags);
            let decision = world.judge(&ENDPOINT_ROW, &answer, Direction::Egress);
            assert_eq!(
                (decision.reason, decision.answers_proxy, decision.proxy_port),
                (Reason::Reply, want, 0),
                "{what}"
            );
        }
        // The endpoint's own limited flow: replies come from the proxy, and are the endpoint's.
        let mut world = World::new();
        let key = PolicyKey::new(POLICY, Direction::Egress, NAMED, protocol::TCP, 443);
        let value = PolicyValue { verdict: policy_verdict::REDIRECT, flags: 0, proxy_port: 9_000, rule: 4 };
        world.policy.insert((PolicyKey::PROTOCOL_BITS + 16, key), value);
        let first = tcp_out(tcp::SYN);
        assert_eq!(world.pass(&ENDPOINT_ROW, &first, Direction::Egress).proxy_port, 9_000);
        let decision = world.judge(&ENDPOINT_ROW, &answer_to(&tcp_out(tcp::ACK)), Direction::Ingress);
        assert_eq!((decision.reason, decision.answers_proxy, decision.proxy_port), (Reason::Reply, false, 0));
    }

    #[test]
    fn a_connection_with_a_proxy_stays_with_it_under_new_rules() {
        let first = Packet { tcp_flags: tcp::SYN, ..packet(PEER, POD, protocol::TCP, 4_000, 80) };
        let next = Packet { tcp_flags: tcp::ACK, ..first };
        for (what, verdict, proxy_port, want) in [
            ("lifted", policy_verdict::ALLOW, 0, (Reason::Established, 9_000)),
            ("another proxy", policy_verdict::REDIRECT, 9_001, (Reason::Established, 9_001)),
            ("denied", policy_verdict::DENY, 0, (Reason::DenyRule, 0)),
        ] {
            let mut world = limited(9_000);
            world.pass(&ENDPOINT_ROW, &first, Direction::Ingress);
            for row in world.policy.values_mut().filter(|row| row.rule == 4) {
                (row.verdict, row.proxy_port) = (verdict, proxy_port);
            }
            let decision = world.pass(&revision(2), &next, Direction::Ingress);
            assert_eq!((decision.reason, decision.proxy_port), want, "{what}");
        }
    }

    #[test]
    fn an_answer_without_a_question_is_judged_by_itself() {
        let mut world = World::new();
        assert_eq!(world.reason(&answer_to(&udp_out()), Direction::Ingress), Reason::DefaultDeny);
    }

    #[test]
    fn the_narrowest_row_of_the_peer_decides_then_that_of_any_peer() {
        let (allow, deny) = (policy_verdict::ALLOW, policy_verdict::DENY);
        let (peer, proto, port) = (PolicyKey::PEER_BITS, PolicyKey::PROTOCOL_BITS, PolicyKey::PROTOCOL_BITS + 16);
        let tcp = protocol::TCP;
        let cases: [(&str, &[Rule], Reason); 8] = [
            ("no row", &[], Reason::DefaultDeny),
            ("any peer", &[(0, port, tcp, 443, allow)], Reason::Rule),
            ("another port", &[(0, port, tcp, 80, allow)], Reason::DefaultDeny),
            ("another protocol", &[(0, proto, protocol::UDP, 0, allow)], Reason::DefaultDeny),
            ("ports 440 to 447", &[(0, proto + 13, tcp, 440, allow)], Reason::Rule),
            ("port over peer", &[(256, peer, 0, 0, allow), (256, port, tcp, 443, deny)], Reason::DenyRule),
            ("peer over any", &[(256, peer, 0, 0, deny), (0, port, tcp, 443, allow)], Reason::DenyRule),
            ("own rows first", &[(0, port, tcp, 443, deny), (256, peer, 0, 0, allow)], Reason::Rule),
        ];
        for (what, rules, want) in cases {
            let mut world = World::new();
            world.policy.clear();
            world.node(PEER, 256, 0);
            for &(identity, prefix, protocol, port, verdict) in rules {
                world.rule(Direction::Egress, identity, prefix, protocol, port, verdict);
            }
            assert_eq!(world.reason(&tcp_out(tcp::SYN), Direction::Egress), want, "{what}");
        }
    }

    #[test]
    fn who_a_peer_is() {
        let mut world = World::new();
        world.node("10.0.0.9", 257, 9);
        world.learn("10.0.0.9", &[(0, NAMED)]);
        world.learn("198.51.100.8", &[(at(900), NAMED)]);
        world.learn("198.51.100.9", &[(at(1_001), 301), (at(1_002), NAMED)]);
        for (length, prefix, identity) in [(96 + 24, "198.51.100.0", 310), (96 + 30, "198.51.100.8", 311)] {
            world.cidrs.insert((length, CidrKey { address: address(prefix) }), CidrValue { identity });
        }
        let named = |identity, learned, ended| Peer { identity, learned, ended, local_host: false };
        for (ip, want) in [
            (PEER, named(NAMED, true, 0)),
            ("10.0.0.9", named(257, false, 0)),
            ("198.51.100.8", named(311, false, NAMED)),
            ("198.51.100.9", named(301, true, 0)),
            ("198.51.100.77", named(310, false, 0)),
            ("2001:db8::1", named(identity::WORLD, false, 0)),
        ] {
            assert_eq!(peer(&world, SCOPE, &address(ip)), want, "{ip}");
        }
        assert_eq!(peer(&world, SCOPE + 1, &address(PEER)), named(310, false, 0), "another endpoint's name");
    }

    #[test]
    fn a_connection_outlives_the_ttl_that_opened_it() {
        let mut world = World::new();
        world.reason(&tcp_out(tcp::SYN), Direction::Egress);
        world.now_ns = at(1_060);
        assert_eq!(world.reason(&tcp_out(tcp::ACK), Direction::Egress), Reason::Established);
        assert_eq!(world.reason(&tcp_out(tcp::SYN), Direction::Egress), Reason::NameExpired, "a new one does not");
        let other = Packet { source_port: 4_001, ..tcp_out(tcp::SYN) };
        assert_eq!(world.reason(&other, Direction::Egress), Reason::NameExpired);
    }

    #[test]
    fn another_revision_judges_flows_again() {
        let keep = |_: &mut World| {};
        let expire = |world: &mut World| world.now_ns = at(1_060);
        let deny = |world: &mut World| world.policy.clear();
        let forget = |world: &mut World| world.addresses.retain(|key, _| key.scope == 0);
        let pod = |world: &mut World| {
            world.node(PEER, 257, 0);
        };
        let cases: [(&str, Change<'_>, Reason); 5] = [
            ("the same rules", &keep, Reason::Established),
            ("the same rules after the TTL", &expire, Reason::Established),
            ("no rules", &deny, Reason::DefaultDeny),
            ("the name was taken back", &forget, Reason::DefaultDeny),
            ("the address is a pod's now", &pod, Reason::DefaultDeny),
        ];
        for (what, change, want) in cases {
            let mut world = World::new();
            world.reason(&tcp_out(tcp::SYN), Direction::Egress);
            change(&mut world);
            let decision = world.pass(&revision(2), &tcp_out(tcp::ACK), Direction::Egress);
            assert_eq!(decision.reason, want, "{what}");
            if !want.denies() {
                assert_eq!((decision.write, decision.flow.revision), (FlowWrite::Update, 2), "{what}");
                let next = world.judge(&revision(2), &tcp_out(tcp::ACK), Direction::Egress);
                assert_eq!(next.write, FlowWrite::None, "{what}: judged once");
            }
        }
    }

    #[test]
    fn a_reply_under_another_revision_is_judged_as_its_flow_was() {
        let mut world = World::new();
        world.reason(&tcp_out(tcp::SYN), Direction::Egress);
        let reply = answer_to(&tcp_out(tcp::ACK));
        let decision = world.pass(&revision(2), &reply, Direction::Ingress);
        assert_eq!((decision.reason, decision.rule), (Reason::Reply, NAMED + 1));
        world.policy.clear();
        assert_eq!(world.judge(&revision(3), &reply, Direction::Ingress).reason, Reason::DefaultDeny);
    }

    #[test]
    fn silence_ends_a_flow() {
        let minutes = |minutes: u64| minutes * 60 * SECOND_NS;
        for (what, first, answered, closed, idle_ns) in [
            ("UDP", udp_out(), true, false, minutes(2)),
            ("TCP opening", tcp_out(tcp::SYN), false, false, minutes(1)),
            ("TCP", tcp_out(tcp::SYN), true, false, minutes(360)),
            ("TCP closing", tcp_out(tcp::SYN), true, true, minutes(4)),
        ] {
            let mut world = World::new();
            world.reason(&first, Direction::Egress);
            if answered {
                let answer = Packet { tcp_flags: tcp::ACK, ..answer_to(&first) };
                world.reason(&answer, Direction::Ingress);
            }
            let next = Packet { tcp_flags: first.tcp_flags & !tcp::SYN | tcp::ACK, ..first };
            if closed {
                world.reason(&Packet { tcp_flags: tcp::FIN | tcp::ACK, ..next }, Direction::Egress);
            }
            world.now_ns += idle_ns;
            assert_eq!(world.judge(&ENDPOINT_ROW, &next, Direction::Egress).reason, Reason::Established, "{what}");
            world.now_ns += 1;
            assert_eq!(world.judge(&ENDPOINT_ROW, &next, Direction::Egress).reason, Reason::NameExpired, "{what}");
        }
    }

    #[test]
    fn a_connection_whose_answers_are_not_seen_is_known_by_its_acknowledgements() {
        let mut world = World::new();
        world.reason(&tcp_out(tcp::SYN), Direction::Egress);
        world.reason(&tcp_out(tcp::ACK), Direction::Egress);
        world.now_ns += 5 * 3_600 * SECOND_NS;
        assert_eq!(world.reason(&tcp_out(tcp::ACK), Direction::Egress), Reason::Established);
    }

    #[test]
    fn a_flow_of_an_ended_name_is_judged_by_what_the_name_means_now() {
        let mut world = World::new();
        world.reason(&tcp_out(tcp::SYN), Direction::Egress);
        // Another rule selects the name too: its identity has another number, and the old one no rows.
        world.policy.clear();
        world.learn(PEER, &[(at(1_030), 301)]);
        world.rule(Direction::Egress, 301, PolicyKey::PEER_BITS, 0, 0, policy_verdict::ALLOW);
        world.now_ns = at(1_031);
        let decision = world.pass(&revision(2), &tcp_out(tcp::ACK), Direction::Egress);
        assert_eq!((decision.reason, decision.identity), (Reason::Established, 301));
        assert_eq!(world.reason(&tcp_out(tcp::SYN), Direction::Egress), Reason::NameExpired, "a new one is not");
    }

    #[test]
    fn the_last_packet_is_noted_once_a_second() {
        let mut world = World::new();
        world.reason(&udp_out(), Direction::Egress);
        for (after_ns, noted) in [(1, false), (SECOND_NS, false), (SECOND_NS + 1, true)] {
            world.now_ns = at(1_000) + after_ns;
            let decision = world.judge(&ENDPOINT_ROW, &udp_out(), Direction::Egress);
            assert_eq!(decision.write == FlowWrite::Update, noted, "{after_ns} ns");
        }
    }

    /// An IPv4 header and ports.
    fn quoted(source: [u8; 4], destination: [u8; 4]) -> Quote {
        let mut octets = vec![0; 28];
        octets.extend([0x45, 0, 0, 28, 0, 0, 0, 0, 64, protocol::UDP, 0, 0]);
        octets.extend(source);
        octets.extend(destination);
        octets.extend([4_000_u16.to_be_bytes(), 53_u16.to_be_bytes()].concat());
        Quote(octets)
    }

    #[test]
    fn an_icmp_error_passes_with_the_flow_it_is_about() {
        let (pod, peer) = ([10, 0, 0, 7], [198, 51, 100, 7]);
        let error = Packet { icmp: 3 << 8 | 3, class: Class::Error, ..packet("192.0.2.1", POD, protocol::ICMP, 0, 0) };
        for (what, quote, known, want) in [
            ("of the flow", quoted(pod, peer), true, Reason::Related),
            ("of no flow", quoted(pod, peer), false, Reason::DefaultDeny),
            ("the wrong way round", quoted(peer, pod), true, Reason::DefaultDeny),
            ("of another", quoted(pod, [198, 51, 100, 8]), true, Reason::DefaultDeny),
            ("cut short", Quote(vec![0; 40]), true, Reason::DefaultDeny),
        ] {
            let mut world = World::new();
            if known {
                world.reason(&udp_out(), Direction::Egress);
            }
            let decision = judge(&world, &quote, &ENDPOINT_ROW, &error, Direction::Ingress);
            assert_eq!(decision.reason, want, "{what}");
        }
    }

    /// An ICMP error of either family.
    fn error(source: &str, destination: &str) -> Packet {
        let (protocol, icmp) = if source.contains(':') { (protocol::ICMPV6, 0x0104) } else { (protocol::ICMP, 0x0303) };
        Packet { icmp, class: Class::Error, ..packet(source, destination, protocol, 0, 0) }
    }

    #[test]
    fn an_icmp_error_fits_the_packet_that_it_quotes() {
        const ROUTER: &str = "192.0.2.1";
        let (sent, received) = (udp_out(), answer_to(&udp_out()));
        let other = "198.51.100.8";
        let opened = tcp_out(tcp::SYN);
        let (into, out) = (Direction::Ingress, Direction::Egress);
        let part = Packet { class: Class::Fragment, source_port: 0, destination_port: 0, ..sent };
        let nested = Packet { class: Class::Error, source_port: 0, destination_port: 0, ..sent };
        let first = Packet { fragmented: true, fragment_id: 9, ..sent };
        for (what, outer, quoted, direction, want) in [
            ("of the peer", error(PEER, POD), sent, into, Reason::Related),
            ("of a router", error(ROUTER, POD), sent, into, Reason::Related),
            ("about a first packet", error(ROUTER, POD), opened, into, Reason::Related),
            ("about a first fragment", error(ROUTER, POD), first, into, Reason::Related),
            ("for another address", error(ROUTER, "10.0.0.8"), sent, into, Reason::ForeignDestination),
            ("for everybody on the link", error(ROUTER, "224.0.0.1"), sent, into, Reason::DefaultDeny),
            ("about a later fragment", error(ROUTER, POD), part, into, Reason::DefaultDeny),
            ("about an error", error(ROUTER, POD), nested, into, Reason::DefaultDeny),
            ("about what came in, coming in", error(ROUTER, POD), received, into, Reason::DefaultDeny),
            ("about what came in", error(POD, PEER), received, out, Reason::Related),
            ("to another than its sender", error(POD, other), received, out, Reason::DefaultDeny),
            ("from another's address", error("10.0.0.8", PEER), received, out, Reason::SpoofedSource),
            ("from a router", error(ROUTER, PEER), received, out, Reason::SpoofedSource),
            ("about what went out, going out", error(POD, PEER), sent, out, Reason::NameExpired),
        ] {
            let mut world = World::new();
            assert_eq!(world.reason(&sent, out), Reason::Rule);
            assert_eq!(world.reason(&opened, out), Reason::Rule);
            // Nothing else opens a thing.
            world.policy.clear();
            world.learn(PEER, &[(at(900), NAMED)]);
            let decision = judge_quoting(&world, &ENDPOINT_ROW, &outer, Some(&quoted), direction);
            assert_eq!(decision.reason, want, "{what}");
        }
    }

    #[test]
    fn an_icmp_error_passes_no_longer_than_its_flow() {
        let sent = udp_out();
        let reset = tcp_out(tcp::ACK);
        let related = |world: &World, endpoint: &EndpointValue, quoted: &Packet| {
            judge_quoting(world, endpoint, &error(PEER, POD), Some(quoted), Direction::Ingress).reason
        };
        let opened = || {
            let mut world = World::new();
            world.reason(&sent, Direction::Egress);
            world.reason(&tcp_out(tcp::SYN), Direction::Egress);
            world
        };
        let mut world = opened();
        world.now_ns += 60 * SECOND_NS;
        assert_eq!(related(&world, &ENDPOINT_ROW, &reset), Reason::Related, "TCP that opens: a minute");
        world.now_ns += 1;
        assert_eq!(related(&world, &ENDPOINT_ROW, &reset), Reason::NameExpired, "TCP that opens: silent for too long");
        world.now_ns += 60 * SECOND_NS - 1;
        assert_eq!(related(&world, &ENDPOINT_ROW, &sent), Reason::Related, "UDP: two minutes");
        world.now_ns += 1;
        assert_eq!(related(&world, &ENDPOINT_ROW, &sent), Reason::NameExpired, "UDP: silent for too long");
        let mut world = opened();
        world.now_ns = at(1_060);
        assert_eq!(related(&world, &revision(2), &sent), Reason::Related, "a rule that stays, after the TTL");
        world.policy.clear();
        assert_eq!(related(&world, &revision(2), &sent), Reason::NameExpired, "a rule that is gone");
        let mut world = World::new();
        let key = PolicyKey::new(POLICY, Direction::Ingress, identity::ANY, protocol::TCP, 80);
        let value = PolicyValue { verdict: policy_verdict::ALLOW, flags: 0, proxy_port: 0, rule: 4 };
        world.policy.insert((PolicyKey::PROTOCOL_BITS + 16, key), value);
        let request = Packet { tcp_flags: tcp::SYN, ..packet(PEER, POD, protocol::TCP, 4_000, 80) };
        world.reason(&request, Direction::Ingress);
        let unreachable = |world: &World, endpoint: &EndpointValue| {
            judge_quoting(world, endpoint, &error(POD, PEER), Some(&request), Direction::Egress).reason
        };
        world.policy.retain(|_, row| row.rule == 4);
        assert_eq!(unreachable(&world, &revision(2)), Reason::Related, "about what came in under a rule that stays");
        world.policy.clear();
        assert_eq!(
            unreachable(&world, &revision(2)),
            Reason::DefaultDeny,
            "about what came in under a rule that is gone"
        );
    }

    #[test]
    fn an_error_about_an_echo_is_of_its_flow() {
        for (own, peer, protocol, request, reply) in
            [(POD, PEER, protocol::ICMP, 8 << 8, 0), ("fd00::7", "2001:db8::7", protocol::ICMPV6, 128 << 8, 129 << 8)]
        {
            let mut world = World::new();
            world.node(own, 256, ENDPOINT);
            world.policy.clear();
            world.rule(Direction::Egress, 0, PolicyKey::PROTOCOL_BITS + 8, protocol, request, policy_verdict::ALLOW);
            let echo = Packet { icmp: request, ..packet(own, peer, protocol, 77, 77) };
            assert_eq!(world.reason(&echo, Direction::Egress), Reason::Rule);
            for endpoint in [ENDPOINT_ROW, revision(2)] {
                let about_the_echo =
                    judge_quoting(&world, &endpoint, &error(peer, own), Some(&echo), Direction::Ingress);
                assert_eq!(about_the_echo.reason, Reason::Related, "{own}");
                let back = Packet { icmp: reply, ..answer_to(&echo) };
                let about_the_reply =
                    judge_quoting(&world, &endpoint, &error(own, peer), Some(&back), Direction::Egress);
                assert_eq!(about_the_reply.reason, Reason::Related, "{own}");
            }
        }
    }

    #[test]
    fn icmp_is_looked_up_by_type_and_its_reply_is_known() {
        let mut world = World::new();
        world.policy.clear();
        let prefix = PolicyKey::PROTOCOL_BITS + 8;
        world.rule(Direction::Egress, NAMED, prefix, protocol::ICMP, 8 << 8, policy_verdict::ALLOW);
        let echo = Packet { icmp: 8 << 8, ..packet(POD, PEER, protocol::ICMP, 77, 77) };
        assert_eq!(world.reason(&echo, Direction::Egress), Reason::Rule);
        let reply = Packet { icmp: 0, ..answer_to(&echo) };
        assert_eq!(world.reason(&reply, Direction::Ingress), Reason::Reply);
        let again = world.pass(&revision(2), &reply, Direction::Ingress);
        assert_eq!(again.reason, Reason::Reply, "judged again as an echo request");
        let timestamp = Packet { icmp: 13 << 8, source_port: 0, destination_port: 0, ..echo };
        assert_eq!(world.reason(&timestamp, Direction::Egress), Reason::DefaultDeny);
    }

    /// A message of ICMP from the endpoint, of this type.
    fn icmp_out(protocol: u8, kind: u8, id: u16) -> Packet {
        let (source, destination) = if protocol == protocol::ICMP { (POD, PEER) } else { (POD_V6, PEER_V6) };
        Packet { icmp: u16::from(kind) << 8, ..packet(source, destination, protocol, id, id) }
    }

    /// Whatever flows there are, each type of ICMP needs its own rule, in both families.
    #[test]
    fn no_icmp_rides_on_the_flow_of_another_type() {
        let prefix = PolicyKey::PROTOCOL_BITS + 8;
        for (protocol, request, reply) in [
            (protocol::ICMP, 8, 0),
            (protocol::ICMP, 13, 14),
            (protocol::ICMP, 42, 43),
            (protocol::ICMPV6, 128, 129),
            (protocol::ICMPV6, 160, 161),
        ] {
            let mut world = World::new();
            world.node(POD_V6, 256, ENDPOINT);
            world.learn(PEER_V6, &[(0, NAMED)]);
            world.policy.clear();
            world.rule(Direction::Egress, NAMED, prefix, protocol, u16::from(request) << 8, policy_verdict::ALLOW);
            let first = icmp_out(protocol, request, 0);
            assert_eq!(world.reason(&first, Direction::Egress), Reason::Rule);
            assert_eq!(world.reason(&first, Direction::Egress), Reason::Established);
            for revision in [1, 2] {
                for kind in 0..=u8::MAX {
                    let row = EndpointValue { revision, ..ENDPOINT_ROW };
                    let out = icmp_out(protocol, kind, 0);
                    let passes = !world.judge(&row, &out, Direction::Egress).reason.denies();
                    assert_eq!(passes, kind == request, "{protocol}: type {kind} out, revision {revision}");
                    let back = Packet { icmp: out.icmp, ..answer_to(&out) };
                    let passes = !world.judge(&row, &back, Direction::Ingress).reason.denies();
                    assert_eq!(passes, kind == reply, "{protocol}: type {kind} back, revision {revision}");
                }
                let coded = Packet { icmp: first.icmp | 1, ..first };
                let row = EndpointValue { revision, ..ENDPOINT_ROW };
                let passes = !world.judge(&row, &coded, Direction::Egress).reason.denies();
                assert!(passes, "the rule is about every code");
            }
            let other = icmp_out(protocol, reply, 1);
            assert_eq!(world.reason(&answer_to(&other), Direction::Ingress), Reason::DefaultDeny, "another identifier");
        }
    }

    #[test]
    fn a_reply_that_answers_nothing_opens_nothing() {
        let prefix = PolicyKey::PROTOCOL_BITS + 8;
        let mut world = World::new();
        world.policy.clear();
        world.rule(Direction::Egress, NAMED, prefix, protocol::ICMP, 0, policy_verdict::ALLOW);
        let reply = icmp_out(protocol::ICMP, 0, 7);
        assert_eq!(world.reason(&reply, Direction::Egress), Reason::Rule);
        assert!(world.flows.is_empty(), "{:?}", world.flows);
        let request = Packet { icmp: 8 << 8, ..answer_to(&reply) };
        assert_eq!(world.reason(&request, Direction::Ingress), Reason::DefaultDeny);
        // One code of a type that has no reply is no other code's flow.
        world.rule(
            Direction::Egress,
            NAMED,
            PolicyKey::PROTOCOL_BITS + 16,
            protocol::ICMP,
            40 << 8,
            policy_verdict::ALLOW,
        );
        let alone = icmp_out(protocol::ICMP, 40, 0);
        assert_eq!(world.reason(&alone, Direction::Egress), Reason::Rule);
        assert_eq!(world.reason(&alone, Direction::Egress), Reason::Established);
        assert_eq!(world.reason(&Packet { icmp: 40 << 8 | 1, ..alone }, Direction::Egress), Reason::DefaultDeny);
        assert_eq!(world.reason(&answer_to(&alone), Direction::Ingress), Reason::DefaultDeny);
    }

    /// A flow that is known from before says nothing about whose the endpoint's side of it is.
    #[test]
    fn the_endpoints_side_of_a_known_flow_must_be_its_own() {
        for (what, owner) in [("nobody's", None), ("another endpoint's", Some(ENDPOINT + 1))] {
            let mut world = World::new();
            world.rule(Direction::Ingress, NAMED, PolicyKey::PEER_BITS, 0, 0, policy_verdict::ALLOW);
            let inwards = answer_to(&Packet { source_port: 80, ..udp_out() });
            world.reason(&udp_out(), Direction::Egress);
            world.reason(&inwards, Direction::Ingress);
            let key = AddressKey { scope: 0, address: address(POD) };
            match owner {
                Some(endpoint) => world.addresses.get_mut(&key).unwrap().endpoint = endpoint,
                None => drop(world.addresses.remove(&key)),
            }
            let spoofed = Reason::SpoofedSource;
            assert_eq!(world.reason(&udp_out(), Direction::Egress), spoofed, "{what}: established");
            assert_eq!(world.reason(&answer_to(&inwards), Direction::Egress), spoofed, "{what}: a reply");
            let later = Packet { class: Class::Fragment, ..udp_out() };
            assert_eq!(world.reason(&later, Direction::Egress), spoofed, "{what}: a later fragment");
        }
    }

    #[test]
    fn what_arrives_is_for_the_endpoint_or_for_many() {
        let mut world = World::new();
        world.node("10.0.0.8", 257, ENDPOINT + 1);
        let open = EndpointValue { flags: 0, ..ENDPOINT_ROW };
        for (destination, passes) in [
            (POD, true),
            ("10.0.0.8", false),
            ("10.0.0.9", false),
            ("127.0.0.1", false),
            ("10.0.0.255", false),
            ("255.255.255.255", true),
            ("224.0.0.251", true),
            ("239.255.255.250", true),
            ("ff02::fb", true),
            ("ff0e::1", true),
            ("fe80::7", false),
            ("::1", false),
        ] {
            let packet = packet("10.0.0.8", destination, protocol::UDP, 1, 2);
            let decision = world.judge(&open, &packet, Direction::Ingress);
            let want = if passes { Reason::NoPolicy } else { Reason::ForeignDestination };
            assert_eq!(decision.reason, want, "{destination}");
        }
        let node = EndpointValue { flags: open.flags | endpoint_flags::NODE, ..open };
        let to_bridge = packet(PEER, "172.17.0.1", protocol::UDP, 1, 2);
        assert_eq!(world.judge(&node, &to_bridge, Direction::Ingress).reason, Reason::NoPolicy);
    }

    #[test]
    fn an_endpoint_is_no_router() {
        let mut world = World::new();
        world.node(POD_V6, 256, ENDPOINT);
        let open = EndpointValue { flags: 0, ..ENDPOINT_ROW };
        let node = EndpointValue { flags: endpoint_flags::NODE, ..ENDPOINT_ROW };
        for (protocol, kind) in [
            (protocol::ICMP, 5),
            (protocol::ICMP, 9),
            (protocol::ICMPV6, 130),
            (protocol::ICMPV6, 134),
            (protocol::ICMPV6, 137),
        ] {
            let packet = icmp_out(protocol, kind, 0);
            let reason = world.judge(&open, &packet, Direction::Egress).reason;
            assert_eq!(reason, Reason::ForgedNeighbour, "{protocol} {kind}");
            assert_eq!(world.judge(&node, &packet, Direction::Egress).reason, Reason::NoPolicy, "{protocol} {kind}");
        }
    }

    #[test]
    fn an_expired_name_is_the_reason_only_where_nothing_else_decides() {
        for (what, cidr, rule, want) in [
            ("nothing else", None, None, Reason::NameExpired),
            ("a prefix that is open", Some(310), Some((310, policy_verdict::ALLOW)), Reason::Rule),
            ("a prefix that is not", Some(310), None, Reason::NameExpired),
            ("a deny rule", None, Some((identity::WORLD, policy_verdict::DENY)), Reason::DenyRule),
        ] {
            let mut world = World::new();
            world.now_ns = at(1_060);
            if let Some(identity) = cidr {
                world.cidrs.insert((120, CidrKey { address: address("198.51.100.0") }), CidrValue { identity });
            }
            if let Some((identity, verdict)) = rule {
                world.rule(Direction::Egress, identity, PolicyKey::PEER_BITS, 0, 0, verdict);
            }
            assert_eq!(world.reason(&udp_out(), Direction::Egress), want, "{what}");
        }
    }

    #[test]
    fn a_source_must_be_the_endpoints_own() {
        let mut world = World::new();
        world.node("10.0.0.8", 257, ENDPOINT + 1);
        world.learn("10.0.0.9", &[(0, NAMED)]);
        for (source, want) in [
            (POD, Reason::Rule),
            ("10.0.0.8", Reason::SpoofedSource),
            ("10.0.0.9", Reason::SpoofedSource),
            ("0.0.0.0", Reason::SpoofedSource),
            ("::", Reason::SpoofedSource),
        ] {
            let packet = Packet { source: address(source), ..udp_out() };
            assert_eq!(world.reason(&packet, Direction::Egress), want, "{source}");
            let open = EndpointValue { flags: 0, ..ENDPOINT_ROW };
            assert_eq!(world.judge(&open, &packet, Direction::Egress).reason.denies(), want.denies(), "{source}");
        }
    }

    #[test]
    fn every_source_is_the_nodes_own_and_it_is_judged_as_a_peer_like_others() {
        let mut world = World::new();
        world.node("10.0.0.1", 1, 0).flags = address_flags::LOCAL_HOST;
        let node = EndpointValue { flags: ENDPOINT_ROW.flags | endpoint_flags::NODE, ..ENDPOINT_ROW };
        for source in ["10.0.0.1", "172.17.0.1", POD] {
            let packet = Packet { source: address(source), ..udp_out() };
            assert_eq!(world.judge(&node, &packet, Direction::Egress).reason, Reason::Rule, "{source}");
        }
        let from_itself = packet("10.0.0.1", "172.17.0.1", protocol::TCP, 4_000, 80);
        assert_eq!(world.judge(&node, &from_itself, Direction::Ingress).reason, Reason::DefaultDeny);
    }

    #[test]
    fn later_fragments_follow_their_first_for_a_while() {
        let first = Packet { fragmented: true, fragment_id: 9, ..udp_out() };
        let later = Packet { class: Class::Fragment, source_port: 0, destination_port: 0, ..first };
        let mut world = World::new();
        assert_eq!(world.reason(&later, Direction::Egress), Reason::FragmentAlone, "before its first");
        world.reason(&first, Direction::Egress);
        for (what, fragment, want) in [
            ("of the same packet", later, Reason::Fragment),
            ("of another", Packet { fragment_id: 10, ..later }, Reason::FragmentAlone),
            ("of another protocol", Packet { protocol: protocol::TCP, ..later }, Reason::FragmentAlone),
            ("to another", Packet { destination: address("198.51.100.8"), ..later }, Reason::FragmentAlone),
        ] {
            assert_eq!(world.reason(&fragment, Direction::Egress), want, "{what}");
        }
        world.now_ns += FragmentValue::LIFE_NS;
        assert_eq!(world.reason(&later, Direction::Egress), Reason::FragmentAlone, "too late");
        let open = EndpointValue { flags: 0, ..ENDPOINT_ROW };
        assert_eq!(world.judge(&open, &later, Direction::Egress).reason, Reason::NoPolicy);
    }

    #[test]
    fn the_node_reaches_its_endpoints_unless_a_rule_denies_it() {
        let from_node = packet("10.0.0.1", POD, protocol::TCP, 4_000, 80);
        let mut world = World::new();
        world.node("10.0.0.1", 1, 0).flags = address_flags::LOCAL_HOST;
        assert_eq!(world.reason(&from_node, Direction::Ingress), Reason::LocalHost);
        let to_node = Packet { tcp_flags: tcp::SYN, ..packet(POD, "10.0.0.1", protocol::TCP, 4_001, 80) };
        assert_eq!(world.reason(&to_node, Direction::Egress), Reason::DefaultDeny, "not the other way");
        let mut world = World::new();
        world.node("10.0.0.1", 1, 0).flags = address_flags::LOCAL_HOST;
        world.rule(Direction::Ingress, 1, PolicyKey::PEER_BITS, 0, 0, policy_verdict::DENY);
        assert_eq!(world.reason(&from_node, Direction::Ingress), Reason::DenyRule);
    }

    #[test]
    fn a_proxy_is_remembered_for_what_the_endpoint_sends() {
        let mut world = World::new();
        let key = PolicyKey::new(POLICY, Direction::Egress, NAMED, 0, 0);
        let row = PolicyValue { verdict: policy_verdict::REDIRECT, flags: 0, proxy_port: 10_000, rule: 4 };
        world.policy.insert((PolicyKey::PEER_BITS, key), row);
        let mut port = |endpoint: &EndpointValue, packet: &Packet, direction| {
            let decision = world.pass(endpoint, packet, direction);
            assert!(!decision.reason.denies());
            decision.proxy_port
        };
        assert_eq!(port(&ENDPOINT_ROW, &tcp_out(tcp::SYN), Direction::Egress), 10_000);
        assert_eq!(port(&ENDPOINT_ROW, &answer_to(&tcp_out(tcp::ACK)), Direction::Ingress), 0, "from the proxy");
        assert_eq!(port(&ENDPOINT_ROW, &tcp_out(tcp::ACK), Direction::Egress), 10_000);
        world.policy.insert((PolicyKey::PEER_BITS, key), PolicyValue { proxy_port: 10_001, ..row });
        let moved = world.pass(&revision(2), &tcp_out(tcp::ACK), Direction::Egress);
        assert_eq!((moved.reason, moved.proxy_port), (Reason::Established, 10_001), "the proxy moved");
    }

    #[test]
    fn neighbours_and_unenforced_directions_pass() {
        let mut world = World::new();
        world.policy.clear();
        let neighbour = Packet { class: Class::Neighbour, ..packet("fe80::1", "ff02::1", protocol::ICMPV6, 0, 0) };
        assert_eq!(world.reason(&neighbour, Direction::Egress), Reason::Neighbour);
        let egress = EndpointValue { flags: endpoint_flags::ENFORCE_EGRESS, ..ENDPOINT_ROW };
        let incoming = packet(PEER, POD, protocol::UDP, 1, 2);
        assert_eq!(world.judge(&egress, &incoming, Direction::Ingress).reason, Reason::NoPolicy);
        assert_eq!(world.judge(&egress, &udp_out(), Direction::Egress).reason, Reason::DefaultDeny);
    }

    #[test]
    fn audit_is_for_those_who_act_not_for_the_verdict() {
        let mut world = World::new();
        world.policy.clear();
        let audited = EndpointValue { flags: ENDPOINT_ROW.flags | endpoint_flags::AUDIT, ..ENDPOINT_ROW };
        let decision = world.judge(&ENDPOINT_ROW, &udp_out(), Direction::Egress);
        assert_eq!(decision.reason, Reason::DefaultDeny);
        assert_eq!(world.judge(&audited, &udp_out(), Direction::Egress), decision);
    }

    proptest::proptest! {
        #[test]
        fn a_denial_never_leaves_a_flow(
            port: u16, source_port: u16, tcp_flags: u8, now_s in 900_u64..1_200, egress: bool, enforced: bool,
        ) {
            let mut world = World::new();
            world.rule(Direction::Egress, NAMED, PolicyKey::PROTOCOL_BITS + 1, protocol::TCP, 0x8000, policy_verdict::DENY);
            world.now_ns = at(now_s);
            let packet = Packet { destination_port: port, source_port, tcp_flags, ..tcp_out(0) };
            let endpoint = EndpointValue { flags: if enforced { ENDPOINT_ROW.flags } else { 0 }, ..ENDPOINT_ROW };
            let direction = if egress { Direction::Egress } else { Direction::Ingress };
            let decision = world.pass(&endpoint, &packet, direction);
            proptest::prop_assert_eq!(world.flows.is_empty(), decision.reason.denies());
        }
    }
}
