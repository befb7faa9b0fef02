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
/// (RFC 9000 §17.2) of version 1, version 2 (RFC 9369), a draft, or one of those before the standard. The fixed bit may be
/// unset (RFC 9287).
#[inline(always)]
pub const fn begins_quic(head: [u8; 5]) -> bool {
    if head[0] & 0x80 == 0 {
        return false;
    }
    match [head[1], head[2], head[3]] {
        [0, 0, 0] => head[4] == 1,
        [0x6b, 0x33, 0x43] => head[4] == 0xcf,
        // Drafts of version 2; that of Microsoft's tests.
        [0x70, 0x9a, 0x50] => head[4] == 0xc4,
        [0xab, 0xcd, 0] => head[4] == 0,
        // Drafts; those of Meta, of picoquic, and of Google: `Q` or `T` and digits.
        [0xff, 0 | 2, 0] | [0xfa, 0xce, _] | [b'P', b'C', b'Q'] | [b'Q' | b'T', b'0'..=b'9', b'0'..=b'9'] => true,
        _ => false,
    }
}

/// Whether a datagram that begins with these octets is of DTLS before keys are agreed on, or of DTLS 1.2 at any time: a
/// record of a known type with a version of DTLS (RFC 6347 §4.1, RFC 9147 §4, RFC 9146 §4), of which a server skips those
/// that it cannot read and takes the hello in the next. Of the version of a first record, servers read the first byte alone.
#[inline(always)]
pub const fn is_dtls(head: [u8; 5]) -> bool {
    matches!(head[0], 20..=26) && head[1] == 0xfe
}

/// The type of a record with messages of a handshake.
pub const DTLS_HANDSHAKE: u8 = 22;
/// Bytes that [`is_dtls_handshake`] looks at.
pub const DTLS_HEAD_BYTES: usize = 25;

/// Whether a record of DTLS with a message of a handshake that begins may begin with these bytes, wherever in a
/// datagram they stand: type 22, epoch 0, a length that servers take (RFC 6347 §4.1), and either a version of DTLS or a
/// `ClientHello` of less than 64 KiB (§4.2.2).
///
/// Servers step over what they cannot read and take the hello behind it: OpenSSL by the 13 bytes of a header. Mbed TLS
/// and `GnuTLS` take a hello in a record of other versions too. One of 2^34 places in random bytes looks like that.
#[inline(always)]
pub const fn is_dtls_handshake(head: [u8; DTLS_HEAD_BYTES]) -> bool {
    if !matches!(head, [DTLS_HANDSHAKE, _, _, 0, 0, _, _, _, _, _, _, 0..=0x40, ..]) {
        return false;
    }
    // The message: its type, and the high bytes of its length, of the offset of this part and of the length of it.
    head[1] == 0xfe || (head[13] == 1 && head[14] == 0 && head[19] == 0 && head[22] == 0)
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
            ([0xc0, b'P', b'C', b'Q', b'1'], true),
            ([0xc0, 0xfa, 0xce, 0xb0, 2], true),
            ([0xc0, 0x70, 0x9a, 0x50, 0xc4], true),
            ([0xc0, 0xff, 2, 0, 0], true),
            ([0x40, 0, 0, 0, 1], false),
            ([0xc0, 0, 0, 0, 0], false),
            ([0xc0, 0x1a, 0x2a, 0x3a, 0x4a], false),
            ([0x80, 0x60, 0x12, 0x34, 0], false),
        ] {
            assert_eq!(begins_quic(head), want, "{head:x?}");
        }
    }

    #[test]
    fn messages_of_a_handshake_are_found_by_their_record() {
        let mut hello = [9; DTLS_HEAD_BYTES];
        hello[..12].copy_from_slice(&[22, 0xfe, 0xff, 0, 0, 0, 0, 0, 0, 0, 1, 0]);
        assert!(is_dtls_handshake(hello));
        for (at, byte, want) in [
            (0, 23, false),
            (1, 3, false),
            (2, 0, true),
            (4, 1, false),
            (5, 9, true),
            (11, 0x40, true),
            (11, 0x41, false),
        ] {
            let mut head = hello;
            head[at] = byte;
            assert_eq!(is_dtls_handshake(head), want, "{head:x?}");
        }
        (hello[13], hello[14], hello[19], hello[22]) = (1, 0, 0, 0);
        for version in [[0, 0], [1, 0], [3, 3], [0xff, 0xff]] {
            [hello[1], hello[2]] = version;
            assert!(is_dtls_handshake(hello), "{version:x?}");
            for at in [13, 14, 19, 22] {
                let mut other = hello;
                other[at] = 2;
                assert!(!is_dtls_handshake(other), "{version:x?}: another byte {at}");
            }
        }
    }

    #[test]
    fn records_of_dtls_are_told_from_other_datagrams() {
        for (head, want) in [
            ([22, 0xfe, 0xff, 0, 0], true),
            ([22, 0xfe, 0xfd, 0, 0], true),
            ([20, 0xfe, 0xfd, 0, 1], true),
            ([25, 0xfe, 0xfd, 0, 1], true),
            ([22, 0xfe, 0, 0, 0], true),
            ([22, 3, 1, 0, 0], false),
            ([0x24, 0x01, 0, 0, 0], false),
            ([0xc0, 0xfe, 0xff, 0, 0], false),
        ] {
            assert_eq!(is_dtls(head), want, "{head:x?}");
        }
    }
}
