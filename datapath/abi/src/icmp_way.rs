//! Values of [`crate::FlowKey::icmp_way`]: which flows of ICMP are one.

use crate::Direction;

/// The flow is not of ICMP.
pub const NONE: u8 = 0;
/// Requests that the endpoint receives, and its replies.
pub const ASKED: u8 = 1;
/// Requests that the endpoint sends, and the replies to it.
pub const ASKS: u8 = 2;
/// Messages without a reply that the endpoint receives.
pub const RECEIVES: u8 = 3;
/// Messages without a reply that the endpoint sends.
pub const SENDS: u8 = 4;

/// Requests that go in this direction.
#[inline(always)]
pub const fn of_request(direction: Direction) -> u8 {
    match direction {
        Direction::Ingress => ASKED,
        Direction::Egress => ASKS,
    }
}

/// Messages without a reply that go in this direction.
#[inline(always)]
pub const fn alone(direction: Direction) -> u8 {
    match direction {
        Direction::Ingress => RECEIVES,
        Direction::Egress => SENDS,
    }
}
