//! The record of what a connection begins with, for whoever looks for a name in it.

use core::mem::{offset_of, size_of};

use crate::FlowKey;

/// Octets of a packet's payload that are copied at most.
pub const OPENING_OCTETS_MAX: usize = 4_096;
/// The same for packets that wait with the agent.
pub const HELD_OCTETS_MAX: usize = 16_384;
/// Packets with a payload that are copied of one flow at most.
pub const OPENINGS_PER_FLOW: u8 = 4;

/// What stands before the octets of the payload. 72 octets, no holes.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct OpeningRecord {
    /// `CLOCK_BOOTTIME`, nanoseconds.
    pub time_ns: u64,
    /// The flow.
    pub flow: FlowKey,
    /// Rule that allowed it.
    pub rule: u32,
    /// TCP: sequence number of the first octet of the payload; 0 for UDP.
    pub sequence: u32,
    /// Octets of the payload, more than follow where they are above the bound.
    pub length: u32,
    /// UDP: octets of each of the datagrams that the kernel carries in one packet; 0 is one datagram.
    pub segment: u16,
    /// [`opening_flags`].
    pub flags: u8,
    /// Zero.
    pub spare: [u8; 5],
}
const _: () = assert!(size_of::<OpeningRecord>() == 72 && offset_of!(OpeningRecord, spare) == 67);

/// Bits of [`OpeningRecord::flags`].
pub mod opening_flags {
    /// The packet was dropped: it waits with the agent.
    pub const HELD: u8 = 1;
}

/// Whether a datagram that begins with these octets can begin a QUIC connection for some server: a long header
/// (RFC 9000 §17.2) of version 1, version 2 (RFC 9369), a draft, or one of those before the standard.
#[inline(always)]
pub const fn begins_quic(head: [u8; 5]) -> bool {
    if head[0] & 0x80 == 0 {
        return false;
    }
    match [head[1], head[2], head[3]] {
        [0, 0, 0] => head[4] == 1,
        [0x6b, 0x33, 0x43] => head[4] == 0xcf,
        // Drafts; those of Meta; those of Google: `Q` or `T` and digits.
        [0xff, 0, 0] | [0xfa, 0xce, 0xb0] | [b'Q' | b'T', b'0'..=b'9', b'0'..=b'9'] => true,
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_headers_of_versions_that_servers_speak_are_told_from_other_datagrams() {
        for (head, want) in [
            ([0xc0, 0, 0, 0, 1], true),
            ([0x80, 0, 0, 0, 1], true),
            ([0xd3, 0x6b, 0x33, 0x43, 0xcf], true),
            ([0xc0, 0xff, 0, 0, 29], true),
            ([0xc0, b'Q', b'0', b'5', b'0'], true),
            ([0x40, 0, 0, 0, 1], false),
            ([0xc0, 0, 0, 0, 0], false),
            ([0xc0, 0x1a, 0x2a, 0x3a, 0x4a], false),
            ([0x80, 0x60, 0x12, 0x34, 0], false),
        ] {
            assert_eq!(begins_quic(head), want, "{head:x?}");
        }
    }
}
