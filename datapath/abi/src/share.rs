//! The share of flows that each endpoint has: how large it is, and which flow gives way to a new one of the same endpoint.
//!
//! An endpoint has as many slots as its share, each held by one of its flows. A new flow looks at a few slots picked at
//! random: it takes one that is free or whose flow is over, else the one whose flow is worth least. Nobody's flow gives
//! way to another endpoint's.

use crate::{FlowValue, flow_flags, protocol};

/// Slots that a new flow looks at. With half of an endpoint's share held by connections, one in 65,000 new flows finds
/// nothing else.
pub const PROBES: u32 = 16;

/// From one slot that is looked at to the next: far, and odd so that a share that is a power of two is walked through whole.
const STRIDE: u32 = 0x9e37_79b1;

/// The slot that is looked at as number `at`; `random` is another for each new flow.
#[inline(always)]
pub const fn probe(random: u32, at: u32, share: u32) -> u32 {
    if share == 0 { 0 } else { random.wrapping_add(at.wrapping_mul(STRIDE)) % share }
}

/// Where the class of a flow stands in what it is worth; below stands when it was seen last.
const CLASS_SHIFT: u32 = 60;
/// The class of connections that end.
const CLOSING: u64 = 1;
/// The class of flows that the other side has not answered in time.
const UNANSWERED: u64 = 2;
/// The class of datagrams, and of connections that open.
const PASSING: u64 = 3;
/// The class of connections that both sides have spoken in.
const CONNECTION: u64 = 4;
/// How long the other side may take to answer: a flow under way is worth as much as one that was answered.
const ANSWER_NS: u64 = 5_000_000_000;
/// A flow that was silent for longer is hardly missed, where it is no connection.
const MISSED_NS: u64 = 10_000_000_000;

/// Whether a flow of this worth is missed when it gives way: a connection, or another that was seen a moment ago.
#[inline(always)]
pub const fn is_loss(worth: u64, now_ns: u64) -> bool {
    let class = worth >> CLASS_SHIFT;
    let last_seen_ns = worth & ((1 << CLASS_SHIFT) - 1);
    class == CONNECTION || (class > CLOSING && now_ns.saturating_sub(last_seen_ns) < MISSED_NS)
}

/// What a flow is worth when another needs its slot: what is over is worth nothing, then come connections that end and what
/// was not answered in time; connections that both sides have spoken in are worth most. Among the like, the one that was
/// silent longest is worth least.
#[inline(always)]
pub fn worth(flow: &FlowValue, protocol: u8, now_ns: u64) -> u64 {
    if !flow.is_alive(protocol, now_ns) {
        return 0;
    }
    let class: u64 = if protocol == protocol::TCP && flow.flags & flow_flags::CLOSING != 0 {
        CLOSING
    } else if protocol == protocol::TCP && flow.flags & flow_flags::REPLIED != 0 {
        CONNECTION
    } else if flow.flags & flow_flags::REPLIED == 0 && now_ns.saturating_sub(flow.last_seen_ns) > ANSWER_NS {
        UNANSWERED
    } else {
        PASSING
    };
    class << CLASS_SHIFT | (flow.last_seen_ns & ((1 << CLASS_SHIFT) - 1))
}

/// The share of each endpoint where `flows` are for all: a power of two, so that it seldom changes with the endpoints, and
/// not more than `each_max`.
pub const fn flow_share(flows: u32, each_max: u32, endpoints: u32) -> u32 {
    let equal = flows / if endpoints == 0 { 1 } else { endpoints };
    let power = if equal == 0 { 1 } else { 1 << equal.ilog2() };
    if power < each_max { power } else { each_max }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn flow(flags: u8, last_seen_s: u64) -> FlowValue {
        FlowValue { flags, last_seen_ns: last_seen_s * 1_000_000_000, ..FlowValue::default() }
    }

    #[test]
    fn what_is_over_goes_first_and_connections_last() {
        const REPLIED: u8 = flow_flags::REPLIED;
        let now_ns = 1_000 * 1_000_000_000;
        let in_order = [
            ("a connection that is over", worth(&flow(REPLIED | flow_flags::CLOSING, 759), protocol::TCP, now_ns)),
            ("one that ends", worth(&flow(REPLIED | flow_flags::CLOSING, 990), protocol::TCP, now_ns)),
            ("a SYN without answer, older", worth(&flow(0, 990), protocol::TCP, now_ns)),
            ("a datagram without answer", worth(&flow(0, 991), protocol::UDP, now_ns)),
            ("datagrams both ways", worth(&flow(REPLIED, 900), protocol::UDP, now_ns)),
            ("a datagram under way", worth(&flow(0, 999), protocol::UDP, now_ns)),
            ("a SYN under way", worth(&flow(0, 1_000), protocol::TCP, now_ns)),
            ("an idle connection", worth(&flow(REPLIED, 100), protocol::TCP, now_ns)),
            ("a busy connection", worth(&flow(REPLIED, 1_000), protocol::TCP, now_ns)),
        ];
        assert_eq!(in_order[0].1, 0);
        for pair in in_order.windows(2) {
            assert!(pair[0].1 < pair[1].1, "{} and {}", pair[0].0, pair[1].0);
        }
    }

    #[test]
    fn what_is_missed_is_a_loss() {
        let now_ns = 1_000 * 1_000_000_000;
        for (what, flags, protocol, last_seen_s, want) in [
            ("a connection", flow_flags::REPLIED, protocol::TCP, 100, true),
            ("one that ends", flow_flags::REPLIED | flow_flags::CLOSING, protocol::TCP, 1_000, false),
            ("a SYN without answer", 0, protocol::TCP, 999, true),
            ("datagrams of a moment ago", flow_flags::REPLIED, protocol::UDP, 991, true),
            ("an old question", flow_flags::REPLIED, protocol::UDP, 990, false),
            ("what is over", 0, protocol::UDP, 1, false),
        ] {
            assert_eq!(is_loss(worth(&flow(flags, last_seen_s), protocol, now_ns), now_ns), want, "{what}");
        }
    }

    #[test]
    fn shares_leave_room_for_every_endpoint() {
        for (flows, each, endpoints, want) in [
            (524_288, 8_192, 0, 8_192),
            (524_288, 8_192, 64, 8_192),
            (524_288, 8_192, 65, 4_096),
            (524_288, 8_192, 250, 2_048),
            (524_288, 1_000, 3, 1_000),
            (1_024, 8_192, 8, 128),
            (4, 8_192, 9, 1),
        ] {
            assert_eq!(flow_share(flows, each, endpoints), want, "{flows} for {endpoints}");
        }
    }

    #[test]
    fn probes_look_at_different_slots() {
        for share in [16, 128, 8_192, 1_000] {
            for random in [0, 7, u32::MAX - 3] {
                for at in 0..PROBES {
                    let slot = probe(random, at, share);
                    assert!(slot < share);
                    // Numbers wrap around once in a while: a share that is no power of two may see a slot twice.
                    let again = (0..at).filter(|other| probe(random, *other, share) == slot).count();
                    assert!(again == 0 || !share.is_power_of_two(), "{share} {random} {at}");
                }
            }
        }
        assert_eq!(probe(9, 3, 0), 0);
    }
}
