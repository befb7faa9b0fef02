//! The node's own sockets: one packet, judged as those of an endpoint are, on its way from or to a socket.
//!
//! The programs see the sockets of every network namespace, and judge those of one: the agent's. They can be interrupted
//! by a packet of another socket, so what the stages hand on lies on the stack and not in memory of the CPU.

use aya_ebpf::programs::SkBuffContext;
use namegate_abi::{
    Claim, Class, Decision, Direction, EndpointValue, FlowKey, FlowWrite, NODE_INTERFACE, Packet, Reason, Verdict,
    discovery_of_node, endpoint_flags, protocol, tcp,
};

use crate::{
    frame::Frame,
    gate::{READ, decide, read, remember},
    maps::{ENDPOINTS, FLOWS, SETTINGS},
    redirect, report,
};

/// Flags of the answer to who asks for a connection.
const OPENED: u8 = tcp::SYN | tcp::ACK;
/// The packet goes on.
const PASS: i32 = 1;
/// It goes no further; who sends it is told (`EPERM`).
const DROP: i32 = 0;
/// The loopback interface has the first index of every namespace (`LOOPBACK_IFINDEX`).
const LOOPBACK: u32 = 1;
/// Type of ICMP's answer to an echo (RFC 792), and of ICMPv6's (RFC 4443).
const ECHO_REPLIES: [(u8, u16); 2] = [(protocol::ICMP, 0), (protocol::ICMPV6, 129)];

/// Cookie of the network namespace whose sockets are judged; the loader writes it.
#[unsafe(no_mangle)]
static NODE_NAMESPACE: u64 = 0;

/// Judges a packet that a socket sent or is about to receive.
#[inline(always)]
pub(crate) fn judge(context: &SkBuffContext, direction: Direction) -> i32 {
    let frame = Frame::new(context);
    // SAFETY: The loader has written it before the program was there. Volatile: the compiler knows the zero above.
    let namespace = unsafe { core::ptr::read_volatile(&raw const NODE_NAMESPACE) };
    if frame.namespace() != namespace || frame.interface() == LOOPBACK {
        return PASS;
    }
    // SAFETY: Rows are replaced, not changed in place, and live until the program ends (RCU).
    let Some(endpoint) = (unsafe { ENDPOINTS.get(NODE_INTERFACE) }) else {
        return PASS;
    };
    let Some(settings) = SETTINGS.get(0) else {
        return DROP; // The map has this one row: never.
    };
    if redirect::is_from_proxy(frame, settings) || redirect::is_proxys(frame.socket_mark(), settings) {
        return PASS;
    }
    let mut packet = Packet::NOTHING_READ;
    let status = read(frame, 0, &mut packet);
    if status != READ {
        return if endpoint.enforces(direction) { refuse_unreadable(frame, endpoint, direction) } else { PASS };
    }
    // A mark has no bits outside its mask.
    blur(&mut packet, (settings.redirect_mark & !settings.mark_mask) as u16);
    if packet.is_discovery() {
        packet.class = if stays_within_link(frame, &packet) { Class::Neighbour } else { Class::Plain };
    }
    let mut outcome = Decision::plain(Reason::Malformed);
    // The kernel gives an ICMP error to the connection that it quotes without asking here. What comes here is for raw
    // sockets, and the rules about ICMP judge it.
    decide(endpoint, &packet, false, direction, &mut outcome);
    if !outcome.reason.denies() && outcome.proxy_port != 0 {
        // No rule for nodes limits requests, since no proxy could read them. One that does is not kept to.
        outcome.reason = Reason::ProxyAbsent;
    }
    let is_connections = matches!(direction, Direction::Egress) && packet.protocol == protocol::TCP;
    if !outcome.reason.denies() {
        report::count(frame, direction, outcome.reason);
        remember(endpoint, &packet, direction, &outcome);
        if matches!(outcome.write, FlowWrite::New) {
            tell(frame, endpoint, direction, &packet, &outcome);
        }
        if is_connections && !matches!(outcome.write, FlowWrite::None) {
            remember_as_sent(frame, endpoint, &mut packet, &outcome);
        }
        return PASS;
    }
    if matches!(direction, Direction::Egress) && is_kernels(&packet) {
        return PASS;
    }
    if is_connections && !packet.opens() && is_known_as_sent(frame, endpoint, &packet) {
        report::count(frame, direction, Reason::Established);
        return PASS;
    }
    report::count(frame, direction, outcome.reason);
    tell(frame, endpoint, direction, &packet, &outcome);
    refused(endpoint)
}

/// Whether neighbour discovery passes without a rule.
#[inline(never)]
fn stays_within_link(frame: Frame, packet: &Packet) -> bool {
    matches!(discovery_of_node(&frame, packet, 0, frame.octets() as usize), Claim::Passes)
}

/// Remembers a connection by what its socket sees too: between it and here addresses are translated for what leaves, and
/// for nothing that comes. Not so for datagrams: a socket sends them to others than it is connected with.
#[inline(never)]
fn remember_as_sent(frame: Frame, endpoint: &EndpointValue, packet: &mut Packet, outcome: &Decision) {
    frame.as_sent(packet);
    remember(endpoint, packet, Direction::Egress, outcome);
}

/// Whether the connection is known by what its socket sees, and its addresses were translated on the way here.
#[inline(never)]
fn is_known_as_sent(frame: Frame, endpoint: &EndpointValue, packet: &Packet) -> bool {
    let mut sent = *packet;
    frame.as_sent(&mut sent);
    let key = FlowKey::of(endpoint.endpoint, &sent, Direction::Egress);
    // SAFETY: Rows are replaced, not changed in place, and live until the program ends (RCU).
    unsafe { FLOWS.get(key) }.is_some_and(|flow| flow.revision == endpoint.current())
}

/// Changes nothing, since `zero` is 0, which the verifier does not know: it would look at what follows once for each way
/// of reading the headers, and loading the programs would take seconds.
#[inline(always)]
fn blur(packet: &mut Packet, zero: u16) {
    let octet = zero as u8;
    packet.class = match packet.class as u8 ^ octet {
        PLAIN => Class::Plain,
        ERROR => Class::Error,
        FRAGMENT => Class::Fragment,
        _ => Class::Neighbour,
    };
    packet.protocol ^= octet;
    packet.tcp_flags ^= octet;
    packet.icmp ^= zero;
    packet.source_port ^= zero;
    packet.destination_port ^= zero;
    packet.fragment_id ^= u32::from(zero);
    packet.fragmented ^= octet != 0;
    packet.transport_at ^= usize::from(zero);
    let mut at = 0;
    while at < 16 {
        packet.source.0[at] ^= octet;
        packet.destination.0[at] ^= octet;
        at += 1;
    }
}

const PLAIN: u8 = Class::Plain as u8;
const ERROR: u8 = Class::Error as u8;
const FRAGMENT: u8 = Class::Fragment as u8;

/// What the kernel answers by itself: to who asks for a connection that may be, and where no socket has the packet with
/// resets, echoes and errors. None is a program's to send.
#[inline(always)]
fn is_kernels(packet: &Packet) -> bool {
    let kind = packet.icmp >> 8;
    matches!(packet.class, Class::Error)
        || (packet.protocol == protocol::TCP && packet.tcp_flags & tcp::RST != 0)
        || (packet.protocol == protocol::TCP && packet.tcp_flags & OPENED == OPENED)
        || ECHO_REPLIES.contains(&(packet.protocol, kind))
}

/// Refuses a packet whose headers say nothing.
#[inline(always)]
fn refuse_unreadable(frame: Frame, endpoint: &EndpointValue, direction: Direction) -> i32 {
    report::count(frame, direction, Reason::Malformed);
    let verdict = if refused(endpoint) == PASS { Verdict::Audited } else { Verdict::Denied };
    report::tell_unreadable(frame, endpoint, direction, Reason::Malformed, verdict);
    refused(endpoint)
}

/// What becomes of a denied packet.
#[inline(always)]
fn refused(endpoint: &EndpointValue) -> i32 {
    if endpoint.flags & endpoint_flags::AUDIT != 0 { PASS } else { DROP }
}

/// Tells of the packet; gives the stack that the record takes back.
#[inline(never)]
fn tell(frame: Frame, endpoint: &EndpointValue, direction: Direction, packet: &Packet, outcome: &Decision) {
    let verdict = match (outcome.reason.denies(), endpoint.flags & endpoint_flags::AUDIT != 0) {
        (false, _) => Verdict::Allowed,
        (true, true) => Verdict::Audited,
        (true, false) => Verdict::Denied,
    };
    report::tell(frame, endpoint, direction, packet, outcome, verdict);
}
