//! What waits, for how long, and what of it goes on.

use namegate_l7_proxy::quic::{
    Version,
    sealing::{Sealing, crypto},
};

use super::*;

fn flow(endpoint: u32, port: u16) -> FlowKey {
    FlowKey { endpoint, local_port: port, ..FlowKey::default() }
}

const HOSTILE: u32 = 1;
const HONEST: u32 = 2;
const SECOND_NS: u64 = 1_000_000_000;

fn id(number: u32) -> [u8; 8] {
    [number.to_be_bytes(), [7; 4]].concat().try_into().unwrap()
}

/// Begins a connection, and does not say its name.
fn partial(number: u32) -> Vec<u8> {
    Sealing::of(Version::V1, &id(number)).seal(&crypto(0, &[1]))
}

/// What becomes of a datagram of a silent client: whether it waits.
fn waits(waiting: &mut Waiting, flow: &FlowKey, datagram: &[u8], now_ns: u64) -> bool {
    match waiting.read(flow, datagram, now_ns) {
        Ok(Heard::Partial(connection)) => waiting.hold(flow, connection, datagram, now_ns),
        _ => false,
    }
}

/// How many datagrams wait of a flow.
fn held(waiting: &Waiting, flow: FlowKey) -> Option<usize> {
    waiting.flows.peek(&flow).map(|line| line.held.len())
}

#[test]
fn what_waits_of_one_connection_goes_on_with_no_other() {
    let (mut waiting, flow) = (Waiting::new(0), flow(HONEST, 1));
    let (one, other) = (partial(1), partial(2));
    let mut connections = Vec::new();
    for datagram in [&one, &other, &one] {
        let Ok(Heard::Partial(connection)) = waiting.read(&flow, datagram, 0) else { panic!("it waits") };
        assert!(waiting.hold(&flow, connection, datagram, 0));
        connections.push(connection);
    }
    assert_eq!(waiting.settle(&flow, connections[1], true), [other]);
    assert_eq!(waiting.settle(&flow, connections[0], false), [one.clone(), one], "and these are dropped");
    assert_eq!(waiting.flows.peek(&flow).map(Line::held_octets), Some(0));
}

#[test]
fn a_connection_begins_once_on_all_flows() {
    let mut waiting = Waiting::new(0);
    assert!(waits(&mut waiting, &flow(1, 1), &partial(1), 0));
    for other in [flow(1, 2), flow(2, 1)] {
        assert_eq!(waiting.read(&other, &partial(1), 0), Ok(Heard::Unread), "on another flow");
    }
    // Others do not push it out of what is known of its flow: beyond the bound none begins.
    let mut begins = |number| matches!(waiting.read(&flow(1, 1), &partial(number), 0), Ok(Heard::Partial(_)));
    assert_eq!((2..100).filter(|number| begins(*number)).last(), Some(64));
    assert!(begins(1), "it is known");
    // Other flows push out its flow.
    (1..5_000).for_each(|port| drop(waiting.read(&flow(1, port), &[0xc0, 0, 0, 0, 1], 0)));
    assert!(!waiting.flows.contains(&flow(1, 1)));
    assert_eq!(waiting.read(&flow(1, 1), &partial(1), 0), Ok(Heard::Unread), "its flow was forgotten");
    let checks = Checks::default();
    for second in 1..=130 {
        waiting.expire(second * SECOND_NS, &checks);
    }
    assert!(waits(&mut waiting, &flow(1, 1), &partial(1), 130 * SECOND_NS), "two minutes later");
}

#[test]
fn what_waits_has_bounds() {
    let mut waiting = Waiting::new(0);
    let filled = |number| Sealing { fills: 16 << 10, ..Sealing::of(Version::V1, &id(number)) }.seal(&crypto(0, &[1]));
    let datagram = filled(0);
    assert!((0..4).all(|_| waits(&mut waiting, &flow(1, 1), &datagram, 0)));
    assert!(!waits(&mut waiting, &flow(1, 1), &datagram, 0), "of one flow");
    for endpoint in 1..=64 {
        for port in 2..=32 {
            waits(&mut waiting, &flow(endpoint, port), &filled(endpoint << 8 | u32::from(port)), 0);
        }
    }
    assert!(waiting.octets.all() <= OCTETS_MAX && waiting.octets.all() > OCTETS_MAX / 2, "of all");
    let kept: usize = waiting.flows.iter_mut().map(|(_, line)| line.octets).sum();
    assert_eq!(waiting.octets.all(), kept);
}

#[test]
fn a_flood_of_one_endpoint_leaves_room_and_ends() {
    let (mut waiting, checks) = (Waiting::new(0), Checks::default());
    assert!(waits(&mut waiting, &flow(HONEST, 1), &partial(1), 0));
    let mut refused = 0;
    for number in 0..18_240_u32 {
        let port = u16::try_from(number % 500).unwrap();
        refused += u32::from(!waits(&mut waiting, &flow(HOSTILE, port), &partial(2 + number), 0));
    }
    assert!(refused > 0);
    for number in 0..20 {
        assert!(
            waits(&mut waiting, &flow(HONEST, 2), &partial(1 << 20 | number), 2 * SECOND_NS),
            "{:?}",
            waiting.octets
        );
    }
    waiting.expire(WAIT_MAX_NS, &checks);
    assert_eq!(held(&waiting, flow(HONEST, 1)), Some(1), "what waited is there");
    waiting.expire(WAIT_MAX_NS + SECOND_NS, &checks);
    assert_eq!(held(&waiting, flow(HONEST, 1)), Some(0), "what has waited too long is gone");
    assert_eq!(held(&waiting, flow(HONEST, 2)), Some(20));
    waiting.expire(IDLE_MAX_NS + 3 * SECOND_NS, &checks);
    assert_eq!(waiting.octets.all(), 0);
}

#[test]
fn what_has_waited_too_long_does_not_go_on() {
    let (mut waiting, flow) = (Waiting::new(0), flow(HONEST, 1));
    let datagram = partial(1);
    assert!(waits(&mut waiting, &flow, &datagram, 0));
    let Ok(Heard::Partial(connection)) = waiting.read(&flow, &datagram, WAIT_MAX_NS + 1) else { panic!("it waits") };
    assert!(waiting.hold(&flow, connection, &datagram, WAIT_MAX_NS + 1));
    assert_eq!(waiting.settle(&flow, connection, true), [datagram]);
}
