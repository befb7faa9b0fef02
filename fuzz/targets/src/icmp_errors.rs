//! ICMP errors about a known flow: which of them pass without a rule.

use namegate_abi::{Address, Class, Direction, FlowKey, FlowValue, Packet, Reason, judge, parse};

use crate::link::{Bytes, ENDPOINT, Link, NOW_NS, OWN_V4, OWN_V6, REMOTE_V4, REMOTE_V6, REVISION, ROW, mutate};

/// Ports of the flow.
const LOCAL_PORT: u16 = 40_000;
const REMOTE_PORT: u16 = 53;
/// A flow that is as old as this has ended.
const LONG_NS: u64 = 600_000_000_000;

/// Family, direction and age of the flow in the first byte; changes of an honest error in the rest.
///
/// # Panics
/// An error passes that is not about the flow, is not between its two ends, or comes after its end; or an honest one does
/// not pass.
pub fn icmp_errors(data: &[u8]) {
    let Some((first, changes)) = data.split_first() else { return };
    let (is_v6, leaves, is_old, is_ours) = (first & 1 != 0, first & 2 != 0, first & 4 != 0, first & 8 == 0);
    let direction = if leaves { Direction::Egress } else { Direction::Ingress };
    let error = mutate(honest(is_v6, leaves), changes);
    let mut link = Link::new();
    let flow = FlowValue {
        last_seen_ns: if is_old { NOW_NS - LONG_NS } else { NOW_NS },
        revision: REVISION,
        direction: Direction::Egress as u8,
        ..FlowValue::default()
    };
    link.flow = is_ours.then(|| (key(is_v6), flow));

    let ethertype = if is_v6 { 0x86dd } else { 0x0800 };
    let Ok(packet) = parse(&Bytes(&error), ethertype, 0) else { return };
    let reason = judge(&link, &Bytes(&error), &ROW, &packet, direction).reason;
    let passes = packet.class == Class::Error && reason == Reason::Related;
    if changes.is_empty() {
        assert_eq!(passes, is_ours && !is_old, "an honest error: {reason:?}");
    }
    if passes {
        assert!(is_ours && !is_old, "no such flow is alive");
        check(&error, is_v6, leaves);
    } else if reason == Reason::Related {
        panic!("{:?} is related to nothing", packet.class);
    }
}

/// The flow from the endpoint to the host.
fn key(is_v6: bool) -> FlowKey {
    let address = |v4, v6| if is_v6 { Address(v6) } else { Address::from_v4(v4) };
    let first = Packet {
        source: address(OWN_V4, OWN_V6),
        destination: address(REMOTE_V4, REMOTE_V6),
        source_port: LOCAL_PORT,
        destination_port: REMOTE_PORT,
        icmp: 0,
        protocol: 17,
        tcp_flags: 0,
        class: Class::Plain,
        fragmented: false,
        fragment_id: 0,
        transport_at: 0,
    };
    FlowKey::of(ENDPOINT, &first, Direction::Egress)
}

/// Port unreachable about a datagram of the flow: of the host's answer where the endpoint sends it, else of its question.
fn honest(is_v6: bool, leaves: bool) -> Vec<u8> {
    let (local, remote) = (LOCAL_PORT.to_be_bytes(), REMOTE_PORT.to_be_bytes());
    let ports = if leaves { [remote, local] } else { [local, remote] }.concat();
    let datagram = [&ports[..], &[0, 8, 0, 0]].concat();
    let quoted = header(is_v6, !leaves, 17, &datagram);
    let start: &[u8] = if is_v6 { &[1, 4, 0, 0, 0, 0, 0, 0] } else { &[3, 3, 0, 0, 0, 0, 0, 0] };
    header(is_v6, leaves, if is_v6 { 58 } else { 1 }, &[start, &quoted].concat())
}

fn header(is_v6: bool, from_endpoint: bool, protocol: u8, payload: &[u8]) -> Vec<u8> {
    let length = u16::try_from(payload.len()).unwrap_or(0);
    if is_v6 {
        let ends = if from_endpoint { [OWN_V6, REMOTE_V6] } else { [REMOTE_V6, OWN_V6] };
        let head = [&[0x60, 0, 0, 0][..], &length.to_be_bytes(), &[protocol, 64]].concat();
        return [head, ends.concat(), payload.to_vec()].concat();
    }
    let ends = if from_endpoint { [OWN_V4, REMOTE_V4] } else { [REMOTE_V4, OWN_V4] };
    let head = [&[0x45, 0][..], &(length + 20).to_be_bytes(), &[0, 0, 0, 0, 64, protocol, 0, 0]].concat();
    [head, ends.concat(), payload.to_vec()].concat()
}

/// The bytes say that the error goes to the sender of a packet of the flow, and comes from where it may.
fn check(error: &[u8], is_v6: bool, leaves: bool) {
    let outer = Headers::read(error, is_v6);
    let kind = outer.payload[0];
    let is_error = if is_v6 {
        outer.protocol == 58 && (1..=4).contains(&kind)
    } else {
        outer.protocol == 1 && [3, 11, 12].contains(&kind)
    };
    assert!(is_error, "type {kind} is no error");
    let quoted = Headers::read(&outer.payload[8..], is_v6);
    assert!(!quoted.is_later, "about a later fragment");
    assert_eq!(outer.to, quoted.from, "it goes to another than the sender of what it quotes");
    let (own, remote): (&[u8], &[u8]) = if is_v6 { (&OWN_V6, &REMOTE_V6) } else { (&OWN_V4, &REMOTE_V4) };
    let own_end = if leaves { &outer.from } else { &outer.to };
    assert_eq!(own_end, own, "the endpoint's end is not its own");
    let (from, to) = if leaves { (remote, own) } else { (own, remote) };
    assert_eq!((&quoted.from[..], &quoted.to[..], quoted.protocol), (from, to, 17), "not of the flow");
    let ports = [
        u16::from_be_bytes([quoted.payload[0], quoted.payload[1]]),
        u16::from_be_bytes([quoted.payload[2], quoted.payload[3]]),
    ];
    let want = if leaves { [REMOTE_PORT, LOCAL_PORT] } else { [LOCAL_PORT, REMOTE_PORT] };
    assert_eq!(ports, want, "other ports");
}

/// One header of IP after the other, as the RFCs say.
struct Headers {
    from: Vec<u8>,
    to: Vec<u8>,
    protocol: u8,
    payload: Vec<u8>,
    is_later: bool,
}

impl Headers {
    fn read(packet: &[u8], is_v6: bool) -> Self {
        if !is_v6 {
            let length = usize::from(packet[0] & 15) * 4;
            let offset = u16::from_be_bytes([packet[6], packet[7]]) & 0x1fff;
            let (from, to) = (packet[12..16].to_vec(), packet[16..20].to_vec());
            return Self { from, to, protocol: packet[9], payload: packet[length..].to_vec(), is_later: offset > 0 };
        }
        let (from, to) = (packet[8..24].to_vec(), packet[24..40].to_vec());
        let (mut protocol, mut rest, mut is_later) = (packet[6], &packet[40..], false);
        while [0, 43, 44, 51, 60].contains(&protocol) {
            let length = match protocol {
                44 => 8,
                51 => (usize::from(rest[1]) + 2) * 4,
                _ => (usize::from(rest[1]) + 1) * 8,
            };
            is_later |= protocol == 44 && u16::from_be_bytes([rest[2], rest[3]]) >= 8;
            protocol = rest[0];
            rest = &rest[length..];
        }
        Self { from, to, protocol, payload: rest.to_vec(), is_later }
    }
}
