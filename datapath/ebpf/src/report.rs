//! Counters and records of what became of a packet.

use aya_ebpf::helpers::bpf_ktime_get_boot_ns;
use namegate_abi::{Decision, Direction, EndpointValue, EventRecord, Packet, Reason, Verdict, counter_slot, protocol};

use crate::{
    frame::Frame,
    maps::{COUNTERS, EVENTS},
    rate,
};

/// Counts a packet under its reason.
#[inline(always)]
pub(crate) fn count(frame: Frame, direction: Direction, reason: Reason) {
    add(counter_slot::of(direction, reason), u64::from(frame.packets()), u64::from(frame.octets()));
}

#[inline(always)]
pub(crate) fn add(slot: u32, packets: u64, octets: u64) {
    if let Some(counter) = COUNTERS.get_ptr_mut(slot) {
        // SAFETY: The slot is this CPU's own. Another program that counts can come between on behalf of a socket alone:
        // then a count is lost.
        unsafe {
            (*counter).packets += packets;
            (*counter).octets += octets;
        }
    }
}

/// Sends a record; where the ring is full, or the endpoint has its share of it, counts that instead.
#[inline(always)]
pub(crate) fn tell(
    frame: Frame,
    endpoint: &EndpointValue,
    direction: Direction,
    packet: &Packet,
    outcome: &Decision,
    verdict: Verdict,
) {
    let (source_port, destination_port) = ports(packet);
    send(&EventRecord {
        identity: outcome.identity,
        rule: outcome.rule,
        source: packet.source,
        destination: packet.destination,
        source_port,
        destination_port,
        protocol: packet.protocol,
        tcp_flags: packet.tcp_flags,
        ..record(frame, endpoint, direction, outcome.reason, verdict)
    });
}

/// Sends a record of a packet whose headers say nothing.
#[inline(always)]
pub(crate) fn tell_unreadable(
    frame: Frame,
    endpoint: &EndpointValue,
    direction: Direction,
    reason: Reason,
    verdict: Verdict,
) {
    send(&record(frame, endpoint, direction, reason, verdict));
}

#[inline(always)]
fn record(
    frame: Frame,
    endpoint: &EndpointValue,
    direction: Direction,
    reason: Reason,
    verdict: Verdict,
) -> EventRecord {
    EventRecord {
        // SAFETY: The helper takes nothing and returns a number.
        time_ns: unsafe { bpf_ktime_get_boot_ns() },
        endpoint: endpoint.endpoint,
        length: frame.octets(),
        direction: direction as u8,
        reason: reason as u8,
        verdict: verdict as u8,
        ..EventRecord::default()
    }
}

#[inline(always)]
fn send(record: &EventRecord) {
    if !rate::admits_record(record.endpoint) || EVENTS.output::<EventRecord>(record, 0).is_err() {
        add(counter_slot::EVENTS_LOST, 1, 0);
    }
}

/// Ports, or for ICMP the type, and the type with the code.
#[inline(always)]
fn ports(packet: &Packet) -> (u16, u16) {
    match packet.protocol {
        protocol::ICMP | protocol::ICMPV6 => (packet.icmp >> 8, packet.icmp),
        _ => (packet.source_port, packet.destination_port),
    }
}
