//! Requests and replies of ICMP (RFC 792, RFC 950, RFC 8335) and ICMPv6 (RFC 4443, RFC 4861, RFC 8335).

use crate::protocol;

/// What [`request_of`] gives for a message that is no reply: no request has this type.
pub const NO_REQUEST: u8 = u8::MAX;

/// Whether a message of this type asks for a reply of one other type.
#[inline(always)]
pub const fn is_request(protocol: u8, kind: u8) -> bool {
    match protocol {
        protocol::ICMP => matches!(kind, 8 | 13 | 15 | 17 | 42),
        _ => matches!(kind, 128 | 135 | 160),
    }
}

/// The type of the request that a message of this type answers, or [`NO_REQUEST`].
#[inline(always)]
pub const fn request_of(protocol: u8, kind: u8) -> u8 {
    match (protocol, kind) {
        (protocol::ICMP, 0) => 8,
        (protocol::ICMP, 14 | 16 | 18 | 43) | (protocol::ICMPV6, 129 | 136 | 161) => kind - 1,
        _ => NO_REQUEST,
    }
}

/// Whether request and reply of this type carry an identifier, which stands for their ports.
#[inline(always)]
pub const fn has_identifier(protocol: u8, kind: u8) -> bool {
    match protocol {
        protocol::ICMP => matches!(kind, 0 | 8 | 13..=18 | 42 | 43),
        _ => matches!(kind, 128 | 129 | 160 | 161),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_reply_has_its_request() {
        for (protocol, pairs) in [
            (protocol::ICMP, &[(8, 0), (13, 14), (15, 16), (17, 18), (42, 43)][..]),
            (protocol::ICMPV6, &[(128, 129), (135, 136), (160, 161)][..]),
        ] {
            for kind in 0..=u8::MAX {
                let is_request = pairs.iter().any(|(request, _)| *request == kind);
                assert_eq!(super::is_request(protocol, kind), is_request, "{protocol} {kind}");
                let request =
                    pairs.iter().find(|(_, reply)| *reply == kind).map_or(NO_REQUEST, |(request, _)| *request);
                assert_eq!(request_of(protocol, kind), request, "{protocol} {kind}");
                let in_pair = is_request || request != NO_REQUEST;
                let is_solicitation = protocol == protocol::ICMPV6 && matches!(kind, 135 | 136);
                assert_eq!(has_identifier(protocol, kind), in_pair && !is_solicitation, "{protocol} {kind}");
            }
        }
    }
}
