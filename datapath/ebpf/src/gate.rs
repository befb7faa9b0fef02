//! One packet: judged, remembered, redirected where that is asked, counted and told of.

use aya_ebpf::{
    bindings::tcx_action_base::{TCX_DROP, TCX_NEXT, TCX_PASS},
    programs::TcContext,
};
use namegate_abi::{
    Class, Direction, EndpointValue, FlowKey, FlowWrite, FragmentKey, FragmentValue, Packet, Reason, Tables, Verdict,
    endpoint_flags, judge_quoting, parse, parse_inner, protocol,
};

use crate::{
    frame::{Frame, LINK_OCTETS},
    maps::{ENDPOINTS, FLOWS, FRAGMENTS, Kernel, Outcome, RESOLVERS, SCRATCH, SETTINGS, Scratch, Write},
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
        return TCX_NEXT;
    };
    let Some(scratch) = SCRATCH.get_ptr_mut(0) else {
        return TCX_DROP; // The map has this one row: never.
    };
    // SAFETY: The row is this CPU's own. Its parts are plain numbers, and are written before they are read.
    let Scratch { packet, quoted, outcome } = unsafe { &mut *scratch };
    let status = read(frame, packet);
    if status != READ {
        return unreadable(frame, endpoint, direction, status);
    }
    let mut quotes = false;
    if matches!(packet.class, Class::Error) {
        quotes = read_quoted(frame, packet, quoted);
    }
    if quotes {
        decide(endpoint, packet, Some(quoted), direction, outcome);
    } else {
        decide(endpoint, packet, None, direction, outcome);
    }
    let mut redirected = false;
    if !outcome.reason.denies() {
        match redirect(frame, endpoint, packet, direction, outcome.proxy_port) {
            Ok(done) => redirected = done,
            Err(reason) => outcome.reason = reason,
        }
    }
    report::count(frame, direction, outcome.reason);
    if outcome.reason.denies() {
        let (verdict, action) = refused(endpoint);
        report::tell(frame, endpoint, direction, packet, outcome, verdict);
        return action;
    }
    remember(endpoint, packet, direction, outcome);
    if matches!(outcome.write, Write::New) {
        let verdict = if redirected { Verdict::Redirected } else { Verdict::Allowed };
        report::tell(frame, endpoint, direction, packet, outcome, verdict);
    }
    // A packet that has its socket is for no other program.
    if redirected { TCX_PASS } else { TCX_NEXT }
}

/// The headers were read.
const READ: u32 = u32::MAX;

/// Reads the headers into `packet`; gives [`READ`], or the octet of the reason that decides without them.
#[inline(never)]
fn read(frame: Frame, packet: &mut Packet) -> u32 {
    match parse(&frame, frame.ethertype(), LINK_OCTETS) {
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

/// A packet whose headers say nothing.
#[inline(always)]
fn unreadable(frame: Frame, endpoint: &EndpointValue, direction: Direction, status: u32) -> i32 {
    let reason = match status {
        NEIGHBOUR => Reason::Neighbour,
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

/// Judges the packet into `outcome`.
#[inline(never)]
fn decide(
    endpoint: &EndpointValue,
    packet: &Packet,
    quoted: Option<&Packet>,
    direction: Direction,
    outcome: &mut Outcome,
) {
    let decision = judge_quoting(&Kernel::now(), endpoint, packet, quoted, direction);
    outcome.reason = decision.reason;
    outcome.identity = decision.identity;
    outcome.rule = decision.rule;
    outcome.proxy_port = decision.proxy_port;
    outcome.write = Write::None;
    match decision.flow {
        FlowWrite::None => {}
        FlowWrite::New(flow) => {
            outcome.write = Write::New;
            outcome.flow = flow;
        }
        FlowWrite::Update(flow) => {
            outcome.write = Write::Update;
            outcome.flow = flow;
        }
    }
}

/// Writes what later packets are judged by. A row that cannot be written now is written for the next packet.
#[inline(never)]
fn remember(endpoint: &EndpointValue, packet: &Packet, direction: Direction, outcome: &Outcome) {
    if !matches!(outcome.write, Write::None) {
        let _ = FLOWS.insert(FlowKey::of(endpoint.endpoint, packet, direction), outcome.flow, 0);
    }
    if packet.fragmented && !matches!(packet.class, Class::Fragment) {
        let row = FragmentValue::allowed_at(Kernel::now().now_ns());
        let _ = FRAGMENTS.insert(FragmentKey::of(endpoint.endpoint, packet, direction), row, 0);
    }
}

/// What becomes of a denied packet.
#[inline(always)]
fn refused(endpoint: &EndpointValue) -> (Verdict, i32) {
    if endpoint.flags & endpoint_flags::AUDIT != 0 { (Verdict::Audited, TCX_NEXT) } else { (Verdict::Denied, TCX_DROP) }
}

/// Hands the packet to a proxy where a rule or the observation of DNS asks for it; says whether that was done.
///
/// A rule's proxy that is absent is a denial. An absent DNS proxy is not: names go on being resolved while the agent
/// restarts, and nothing is learned from them. Sockets can be given to what an endpoint sends alone.
#[inline(always)]
fn redirect(
    frame: Frame,
    endpoint: &EndpointValue,
    packet: &Packet,
    direction: Direction,
    proxy_port: u16,
) -> Result<bool, Reason> {
    if matches!(direction, Direction::Ingress) {
        return if proxy_port == 0 { Ok(false) } else { Err(Reason::ProxyAbsent) };
    }
    let observed = proxy_port == 0 && is_question(endpoint, packet);
    if proxy_port == 0 && !observed {
        return Ok(false);
    }
    let Some(settings) = SETTINGS.get(0) else {
        return if observed { Ok(false) } else { Err(Reason::ProxyAbsent) };
    };
    let port = if observed { settings.dns_port } else { proxy_port };
    let done = port != 0 && redirect::to_proxy(frame, settings, packet, port);
    if done || observed { Ok(done) } else { Err(Reason::ProxyAbsent) }
}

/// Whether the packet goes to a resolver whose answers are heard.
#[inline(always)]
fn is_question(endpoint: &EndpointValue, packet: &Packet) -> bool {
    endpoint.flags & endpoint_flags::OBSERVE_DNS != 0
        && packet.destination_port == DNS_PORT
        && matches!(packet.protocol, protocol::TCP | protocol::UDP)
        && matches!(packet.class, Class::Plain)
        && RESOLVERS.get_ptr(packet.destination).is_some()
}
