//! One packet: judged, remembered, redirected where that is asked, counted and told of.

use aya_ebpf::{
    bindings::tcx_action_base::{TCX_DROP, TCX_NEXT, TCX_PASS},
    programs::TcContext,
};
use namegate_abi::{
    AddressKey, Claim, Class, Decision, Direction, EndpointValue, FlowKey, FlowValue, FlowWrite, FragmentKey, Packet,
    Reason, Settings, Tables, Verdict, address_flags, endpoint_flags, flow_flags, is_related, is_tag, judge_related,
    parse, parse_inner, protocol,
};

use crate::{
    flows,
    frame::{Frame, LINK_OCTETS},
    maps::{ENDPOINTS, Kernel, RESOLVERS, SCRATCH, SETTINGS, Scratch},
    neighbour,
    opening::{self, Held},
    redirect, report,
};

/// Port of DNS (RFC 1035 §4.2).
const DNS_PORT: u16 = 53;

/// Judges a packet that the interface's endpoint sent or is about to receive.
///
/// Each stage is a function of its own in the kernel too, and gives back the stack it used.
#[inline(always)]
pub(crate) fn judge(context: &TcContext, direction: Direction) -> i32 {
    let frame = Frame::new(context);
    // SAFETY: Rows are replaced, not changed in place, and live until the program ends (RCU).
    let Some(endpoint) = (unsafe { ENDPOINTS.get(frame.interface()) }) else {
        return closed(frame, direction);
    };
    let Some(scratch) = SCRATCH.get_ptr_mut(0) else {
        return TCX_DROP; // The map has this one row: never.
    };
    let Some(settings) = SETTINGS.get(0) else {
        return TCX_DROP; // As above.
    };
    // SAFETY: The row is this CPU's own. Its parts are plain numbers, and are written before they are read.
    let Scratch { packet, quoted, outcome, link } = unsafe { &mut *scratch };
    if matches!(direction, Direction::Egress) {
        let port = redirect::sent_back(frame, settings);
        if port != 0 {
            return come_back(frame, settings, packet, port);
        }
    }
    if matches!(direction, Direction::Ingress) && redirect::is_redirected(frame, settings) {
        return astray(frame);
    }
    let status = read(frame, LINK_OCTETS, packet);
    if status == NEIGHBOUR {
        neighbour::read_link(frame, endpoint, direction, link);
        let mut claim = neighbour::judge_arp(frame, endpoint, link, direction);
        if claim == PASSES && matches!(direction, Direction::Egress) {
            claim = neighbour::keep_link(endpoint, link);
        }
        neighbour::describe_arp(frame, packet);
        return resolve(frame, endpoint, packet, direction, claim);
    }
    if status != READ {
        return unreadable(frame, endpoint, direction, status);
    }
    if packet.is_discovery() {
        neighbour::read_link(frame, endpoint, direction, link);
        neighbour::read_head(frame, packet, link);
        let mut claim = neighbour::judge_discovery(frame, endpoint, packet, link, direction);
        if claim == PASSES {
            match direction {
                Direction::Egress => claim = neighbour::keep_link(endpoint, link),
                Direction::Ingress => neighbour::expect_reply(frame, endpoint, packet),
            }
        }
        if claim != Claim::Ordinary as u32 {
            return resolve(frame, endpoint, packet, direction, claim);
        }
        packet.class = Class::Plain;
    }
    let mut related = false;
    if matches!(packet.class, Class::Error) && read_quoted(frame, packet, quoted) {
        related = relates(endpoint, packet, quoted, direction);
    }
    decide(endpoint, packet, related, direction, outcome);
    let mut way = Way::On;
    if !outcome.reason.denies() {
        match direction {
            Direction::Egress => {
                way = leave(frame, settings, endpoint, packet, outcome);
                if matches!(way, Way::On) && outcome.flow.flags & flow_flags::NAME_HELD != 0 {
                    way = wait(frame, settings, endpoint, packet, outcome);
                }
            }
            Direction::Ingress => way = arrive(frame, settings, packet, outcome),
        }
    }
    report::count(frame, direction, outcome.reason);
    if outcome.reason.denies() {
        let (verdict, action) = refused(endpoint);
        report::tell(frame, endpoint, direction, packet, outcome, verdict);
        return action;
    }
    if matches!(direction, Direction::Egress) && matches!(way, Way::On) {
        opening::observe(frame, endpoint, packet, outcome);
    }
    remember(endpoint, packet, direction, outcome);
    if matches!(outcome.write, FlowWrite::New) {
        let verdict = if matches!(way, Way::On) { Verdict::Allowed } else { Verdict::Redirected };
        report::tell(frame, endpoint, direction, packet, outcome, verdict);
    }
    match way {
        Way::On => TCX_NEXT,
        // A packet that has its socket is for no other program.
        Way::Socket => TCX_PASS,
        Way::Back => redirect::back(frame, settings, outcome.proxy_port),
        Way::Agent => TCX_DROP,
    }
}

/// Programs are attached where an endpoint is to be enforced. Without its row everything is denied, address resolution too.
/// An endpoint that leaves is detached before its row is removed.
#[inline(never)]
fn closed(frame: Frame, direction: Direction) -> i32 {
    report::count(frame, direction, Reason::NoEndpoint);
    TCX_DROP
}

/// A packet for a socket of this node is about to leave: it would pass without the proxy that judges it.
#[inline(never)]
fn astray(frame: Frame) -> i32 {
    report::count(frame, Direction::Ingress, Reason::ProxyAbsent);
    TCX_DROP
}

/// Where an allowed packet goes.
#[derive(Clone, Copy)]
enum Way {
    /// To whom it was sent.
    On,
    /// To a socket of this node.
    Socket,
    /// Back in by the same interface, for a socket.
    Back,
    /// Nowhere: the agent has a copy, and sends it on or not.
    Agent,
}

/// The headers were read.
pub(crate) const READ: u32 = u32::MAX;

/// Reads the headers, which begin at `at`, into `packet`; gives [`READ`], or the octet of the reason that decides without
/// them.
#[inline(never)]
pub(crate) fn read(frame: Frame, at: usize, packet: &mut Packet) -> u32 {
    match parse(&frame, frame.ethertype(), at) {
        Ok(headers) => {
            *packet = headers;
            READ
        }
        Err(reason) => reason as u32,
    }
}

/// Reads what an ICMP error quotes into `quoted`; says whether that can be read.
#[inline(never)]
fn read_quoted(frame: Frame, packet: &Packet, quoted: &mut Packet) -> bool {
    match parse_inner(&frame, packet) {
        Ok(headers) => {
            *quoted = headers;
            true
        }
        Err(_) => false,
    }
}

/// Address resolution, which its claim decides on.
#[inline(never)]
fn resolve(frame: Frame, endpoint: &EndpointValue, packet: &Packet, direction: Direction, claim: u32) -> i32 {
    let reason = match claim {
        PASSES => Reason::Neighbour,
        FORM => Reason::NeighbourForm,
        ELSEWHERE => Reason::NeighbourElsewhere,
        _ => Reason::ForgedNeighbour,
    };
    report::count(frame, direction, reason);
    if !reason.denies() {
        return TCX_NEXT;
    }
    let (verdict, action) = refused(endpoint);
    // What a link brings to all is no offence of anybody: it is counted alone.
    if !matches!(reason, Reason::NeighbourElsewhere) {
        report::tell(frame, endpoint, direction, packet, &Decision::plain(reason), verdict);
    }
    action
}

const PASSES: u32 = Claim::Passes as u32;
const FORM: u32 = Claim::Form as u32;
const ELSEWHERE: u32 = Claim::Elsewhere as u32;

/// A packet whose headers say nothing.
#[inline(always)]
fn unreadable(frame: Frame, endpoint: &EndpointValue, direction: Direction, status: u32) -> i32 {
    let reason = match status {
        NOT_IP if is_tag(frame.ethertype()) => Reason::Malformed,
        NOT_IP if !endpoint.enforces(direction) => Reason::NoPolicy,
        NOT_IP => Reason::NotIp,
        _ => Reason::Malformed,
    };
    report::count(frame, direction, reason);
    if !reason.denies() {
        return TCX_NEXT;
    }
    let (verdict, action) = refused(endpoint);
    report::tell_unreadable(frame, endpoint, direction, reason, verdict);
    action
}

const NEIGHBOUR: u32 = Reason::Neighbour as u32;
const NOT_IP: u32 = Reason::NotIp as u32;

/// Whether an ICMP error is about a flow of the endpoint, by the packet that it quotes.
#[inline(never)]
fn relates(endpoint: &EndpointValue, packet: &Packet, quoted: &Packet, direction: Direction) -> bool {
    is_related(&Kernel::now(), endpoint, packet, quoted, direction)
}

/// Judges the packet into `outcome`; `related` is what [`relates`] says of an ICMP error.
#[inline(never)]
pub(crate) fn decide(
    endpoint: &EndpointValue,
    packet: &Packet,
    related: bool,
    direction: Direction,
    outcome: &mut Decision,
) {
    *outcome = judge_related(&Kernel::now(), endpoint, packet, related, direction);
}

/// Writes what later packets are judged by. A row that cannot be written now is written for the next packet.
#[inline(always)]
pub(crate) fn remember(endpoint: &EndpointValue, packet: &Packet, direction: Direction, outcome: &Decision) {
    if !matches!(outcome.write, FlowWrite::None) {
        remember_flow(endpoint, packet, direction, &outcome.flow);
    }
    if packet.fragmented && !matches!(packet.class, Class::Fragment) {
        remember_fragments(endpoint, packet, direction);
    }
}

#[inline(never)]
fn remember_flow(endpoint: &EndpointValue, packet: &Packet, direction: Direction, flow: &FlowValue) {
    flows::store(&FlowKey::of(endpoint.endpoint, packet, direction), flow);
}

#[inline(never)]
fn remember_fragments(endpoint: &EndpointValue, packet: &Packet, direction: Direction) {
    flows::store_fragments(&FragmentKey::of(endpoint.endpoint, packet, direction));
}

/// What becomes of a denied packet.
#[inline(always)]
fn refused(endpoint: &EndpointValue) -> (Verdict, i32) {
    if endpoint.flags & endpoint_flags::AUDIT != 0 { (Verdict::Audited, TCX_NEXT) } else { (Verdict::Denied, TCX_DROP) }
}

/// Hands what an endpoint sent to a proxy: where a rule or the observation of DNS asks for it, and where it answers one.
///
/// A rule's proxy that is absent is a denial, written to `outcome`. An absent DNS proxy is not: names go on being resolved
/// while the agent restarts, and nothing is learned from them.
#[inline(always)]
fn leave(frame: Frame, settings: &Settings, endpoint: &EndpointValue, packet: &Packet, outcome: &mut Decision) -> Way {
    if outcome.proxy_port != 0 || outcome.answers_proxy {
        // A reply has no port here: it is for the connection it belongs to, and for no listener.
        if redirect::to_proxy(frame, settings, packet, outcome.proxy_port) {
            return Way::Socket;
        }
        outcome.reason = Reason::ProxyAbsent;
        return Way::On;
    }
    if settings.dns_port != 0
        && is_question(endpoint, packet)
        && redirect::to_proxy(frame, settings, packet, settings.dns_port)
    {
        return Way::Socket;
    }
    Way::On
}

/// Lets a datagram that may begin a connection wait with the agent, or writes to `outcome` why it can not.
#[inline(always)]
fn wait(frame: Frame, settings: &Settings, endpoint: &EndpointValue, packet: &Packet, outcome: &mut Decision) -> Way {
    match opening::hold(frame, settings, endpoint, packet, outcome) {
        Held::No => {}
        Held::Yes => return Way::Agent,
        Held::Refused => outcome.reason = Reason::NameMismatch,
        Held::Alone => outcome.reason = Reason::ProxyAbsent,
    }
    Way::On
}

/// Sends what is about to reach an endpoint, and belongs to a rule's proxy, back to get its socket. What the proxy itself
/// sends goes on, and its replies will be the proxy's.
#[inline(always)]
fn arrive(frame: Frame, settings: &Settings, packet: &Packet, outcome: &mut Decision) -> Way {
    if redirect::is_from_proxy(frame, settings) {
        // What it sends over UDP has the node's own address: replies need no help. So has what it sent to a service and
        // was translated; its socket has other addresses than the replies then, which are translated back in the node.
        if packet.protocol == protocol::TCP && matches!(outcome.write, FlowWrite::New) && !is_of_node(packet) {
            outcome.flow.flags |= flow_flags::PROXIED;
        }
        return Way::On;
    }
    if outcome.proxy_port == 0 {
        return Way::On;
    }
    if packet.protocol == protocol::TCP && redirect::has_proxy(frame, settings, packet, outcome.proxy_port) {
        return Way::Back;
    }
    outcome.reason = Reason::ProxyAbsent;
    Way::On
}

/// Whether a packet has an address of this node for its source.
#[inline(never)]
fn is_of_node(packet: &Packet) -> bool {
    let key = AddressKey { scope: 0, address: packet.source };
    Kernel::now().address(&key).is_some_and(|row| row.flags & address_flags::LOCAL_HOST != 0)
}

/// Gives a packet that was sent back its socket. It was judged, counted and told of when it was about to leave.
#[inline(always)]
fn come_back(frame: Frame, settings: &Settings, packet: &mut Packet, port: u16) -> i32 {
    if read(frame, LINK_OCTETS, packet) == READ
        && redirect::to_proxy(frame, settings, packet, port)
        && redirect::let_back(frame)
    {
        return TCX_PASS;
    }
    report::count(frame, Direction::Ingress, Reason::ProxyAbsent);
    TCX_DROP
}

/// Whether the packet goes to a resolver whose answers are heard.
#[inline(never)]
fn is_question(endpoint: &EndpointValue, packet: &Packet) -> bool {
    endpoint.flags & endpoint_flags::OBSERVE_DNS != 0
        && packet.destination_port == DNS_PORT
        && matches!(packet.protocol, protocol::TCP | protocol::UDP)
        && matches!(packet.class, Class::Plain)
        && RESOLVERS.get_ptr(packet.destination).is_some()
}
