//! Copies what a connection begins with: the agent looks for the name that it asks for.

use core::ffi::c_void;

use aya_ebpf::helpers::{bpf_ktime_get_boot_ns, bpf_loop, bpf_skb_load_bytes};
use namegate_abi::{
    Class, DTLS_HANDSHAKE, DTLS_HEAD_BYTES, Decision, Direction, EndpointValue, FlowKey, FlowWrite,
    HELD_OCTETS_MAX, OPENING_OCTETS_MAX, OPENINGS_PER_FLOW, OpeningRecord, Packet, Reader, Settings,
    begins_quic, counter_slot, flow_flags, is_dtls, is_dtls_handshake, opening_flags, protocol,
};

use crate::{
    frame::Frame,
    maps::{COPY, NAMED_FLOWS, OPENINGS},
    rate, redirect, report,
};

/// Octets of a UDP header.
const UDP_OCTETS: u32 = 8;
/// Datagrams in a frame (`UDP_MAX_SEGMENTS`).
const SEGMENTS_MAX: u32 = 128;

/// A record with its octets.
#[repr(C)]
pub(crate) struct Copy {
    record: OpeningRecord,
    octets: [u8; HELD_OCTETS_MAX],
}

/// Copies the payload of a packet whose flow wants it, and notes that in the flow.
#[inline(always)]
pub(crate) fn observe(frame: Frame, endpoint: &EndpointValue, packet: &Packet, outcome: &mut Decision) {
    if outcome.flow.flags & flow_flags::NAME_WANTED == 0 || !matches!(packet.class, Class::Plain) {
        return;
    }
    if !copy(frame, endpoint, packet, outcome.rule, 0) {
        return;
    }
    let copies = (outcome.flow.flags >> flow_flags::COPIES_SHIFT) + 1;
    outcome.flow.flags &= (1 << flow_flags::COPIES_SHIFT) - 1;
    if copies < OPENINGS_PER_FLOW {
        outcome.flow.flags |= copies << flow_flags::COPIES_SHIFT;
    } else {
        outcome.flow.flags &= !flow_flags::NAME_WANTED;
    }
    if matches!(outcome.write, FlowWrite::None) {
        outcome.write = FlowWrite::Update;
    }
}

/// What becomes of a packet whose flow's names are looked at before it goes on.
#[derive(Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Held {
    /// It begins no connection, and may be what it is: it goes on.
    No,
    /// The agent has it.
    Yes,
    /// It can not be looked at, or belongs to no connection that was let pass.
    Refused,
    /// Nobody looks at it.
    Alone,
}

/// Hands a datagram that may begin a connection to the agent.
#[inline(never)]
pub(crate) fn hold(
    frame: Frame,
    settings: &Settings,
    endpoint: &EndpointValue,
    packet: &Packet,
    outcome: &Decision,
) -> Held {
    if packet.protocol != protocol::UDP || !matches!(packet.class, Class::Plain) {
        return Held::No;
    }
    // The octets that tell may stand in a later part.
    if packet.fragmented {
        return Held::Refused;
    }
    let payload_at = packet.transport_at as u32 + UDP_OCTETS;
    if has_dtls_handshake(frame, payload_at) {
        return Held::Refused;
    }
    match begins(frame, payload_at) {
        Held::Yes => {}
        Held::No if !belongs(endpoint, packet, outcome.flow.flags) => return Held::Refused,
        other => return other,
    }
    if settings.names_port == 0 || !redirect::has_proxy(frame, settings, packet, settings.names_port) {
        return Held::Alone;
    }
    copy(frame, endpoint, packet, outcome.rule, opening_flags::HELD);
    Held::Yes
}

/// Whether a packet that begins nothing may go on: with a connection of its flow that was let pass, and goes on itself, or
/// as what has no name where that passes.
#[inline(never)]
fn belongs(endpoint: &EndpointValue, packet: &Packet, flags: u8) -> bool {
    let key = FlowKey::of(endpoint.endpoint, packet, Direction::Egress);
    // SAFETY: The agent replaces rows as a whole, and they live until the program ends (RCU).
    match unsafe { NAMED_FLOWS.get(key) } {
        Some(named) => named.ended == 0,
        None => flags & flow_flags::NAME_REQUIRED == 0,
    }
}

/// A look for messages of a handshake, piece by piece.
#[repr(C)]
struct Search {
    frame: Frame,
    at: u32,
    /// 1 where one was found: the verifier must see that it is no other number.
    found: u32,
}

/// Bytes of a payload that are looked through in one step, and those at the end that only the next step looks through.
const PIECE_BYTES: usize = 64;
const PIECE_AND_NEXT: usize = PIECE_BYTES + DTLS_HEAD_BYTES - 1;

/// Whether a message of a handshake of DTLS stands anywhere in the datagrams of a frame: the name in a hello is not read.
#[inline(never)]
fn has_dtls_handshake(frame: Frame, at: u32) -> bool {
    let length = frame.octets().saturating_sub(at);
    let pieces = length.div_ceil(PIECE_BYTES as u32);
    let mut search = Search { frame, at, found: 0 };
    // SAFETY: The kernel calls the function with the number of the step and this pointer, which lives until it returns.
    let steps = unsafe {
        bpf_loop(pieces, look_through as *mut c_void, (&raw mut search).cast(), 0)
    };
    // What can not be looked through is not let pass.
    search.found != 0 || steps < 0
}

/// Looks through one piece; gives 1 to end the search.
extern "C" fn look_through(step: u32, search: *mut Search) -> i64 {
    // SAFETY: As its caller says.
    let Some(search) = (unsafe { search.as_mut() }) else { return 1 };
    let at = search.at + step * PIECE_BYTES as u32;
    // Behind the end stands what is no length of a record.
    let mut piece = [0xff; PIECE_AND_NEXT];
    // Unknown to the compiler, so that the verifier sees the bounds just here.
    let left = core::hint::black_box(search.frame.octets().wrapping_sub(at));
    let length = left.min(PIECE_AND_NEXT as u32);
    if length == 0 {
        return 1;
    }
    // SAFETY: The helper writes `length` bytes, which there is room for, or fails.
    if unsafe { bpf_skb_load_bytes(search.frame.raw().cast(), at, piece.as_mut_ptr().cast(), length) } != 0 {
        search.found = 1;
        return 1;
    }
    for start in 0..PIECE_BYTES {
        if piece[start] == DTLS_HANDSHAKE && piece[start + 3] == 0 && piece[start + 4] == 0 {
            let mut head = [0; DTLS_HEAD_BYTES];
            head.copy_from_slice(&piece[start..start + DTLS_HEAD_BYTES]);
            if is_dtls_handshake(head) {
                search.found = 1;
                return 1;
            }
        }
    }
    0
}

/// What the datagrams of a frame begin with: no datagram of DTLS goes on.
#[inline(always)]
fn begins(frame: Frame, at: u32) -> Held {
    let segment = u32::from(frame.segment());
    let mut at = at;
    let mut begins = Held::No;
    for _ in 0..SEGMENTS_MAX {
        let Some(head) = frame.load::<5>(at as usize) else { return begins };
        if is_dtls(head) {
            return Held::Refused;
        }
        if begins_quic(head) {
            begins = Held::Yes;
        }
        if segment == 0 {
            return begins;
        }
        at += segment;
    }
    Held::Refused
}

/// Sends the payload to the agent; false where there is none. One that finds the ring full, or comes too fast, is counted.
#[inline(never)]
fn copy(frame: Frame, endpoint: &EndpointValue, packet: &Packet, rule: u32, flags: u8) -> bool {
    let Some((at, sequence)) = payload(frame, packet) else { return false };
    let length = frame.octets().wrapping_sub(at);
    if length == 0 || length > 1 << 20 {
        return false;
    }
    let Some(slot) = COPY.get_ptr_mut(0) else { return false };
    // SAFETY: The row is this CPU's own. Its parts are plain numbers.
    let slot = unsafe { &mut *slot };
    // SAFETY: The helper takes nothing and returns a number.
    let time_ns = unsafe { bpf_ktime_get_boot_ns() };
    slot.record = OpeningRecord {
        time_ns,
        flow: FlowKey::of(endpoint.endpoint, packet, Direction::Egress),
        rule,
        sequence,
        length,
        segment: if packet.protocol == protocol::UDP { frame.segment() } else { 0 },
        flags,
        spare: [0; 5],
    };
    // Unknown to the compiler, so that the verifier sees the bounds just here.
    let octets_max = if flags & opening_flags::HELD != 0 { HELD_OCTETS_MAX } else { OPENING_OCTETS_MAX };
    let wanted = core::hint::black_box(length.min(octets_max as u32));
    if wanted == 0 || wanted > HELD_OCTETS_MAX as u32 {
        return false;
    }
    // SAFETY: The helper writes `wanted` octets, which there is room for, or fails.
    let status = unsafe { bpf_skb_load_bytes(frame.raw().cast(), at, slot.octets.as_mut_ptr().cast(), wanted) };
    let whole = size_of::<OpeningRecord>() + wanted as usize;
    // SAFETY: As many octets of the row.
    let octets = unsafe { core::slice::from_raw_parts(core::ptr::from_ref(slot).cast::<u8>(), whole) };
    if status != 0 || !rate::admits_copy(endpoint.endpoint, time_ns, whole as u32) || OPENINGS.output::<[u8]>(octets, 0).is_err() {
        report::add(counter_slot::OPENINGS_LOST, 1, 0);
    }
    true
}

/// Where the payload starts, and its sequence number.
#[inline(always)]
fn payload(frame: Frame, packet: &Packet) -> Option<(u32, u32)> {
    if packet.protocol == protocol::UDP {
        return Some((packet.transport_at as u32 + UDP_OCTETS, 0));
    }
    if packet.protocol != protocol::TCP {
        return None;
    }
    let header = frame.load::<16>(packet.transport_at)?;
    let octets = u32::from(header[12] >> 4) * 4;
    // SYN has a number of its own.
    let opens = u32::from(packet.opens());
    let sequence = u32::from_be_bytes([header[4], header[5], header[6], header[7]]).wrapping_add(opens);
    Some((packet.transport_at as u32 + octets, sequence))
}
