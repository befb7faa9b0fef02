//! Packet protection of Initial packets (RFC 9001 §5) and their numbers (RFC 9000 §A.3).

use std::sync::LazyLock;

use rustls::{
    Side,
    crypto::ring::cipher_suite::TLS13_AES_128_GCM_SHA256,
    quic::{Keys, Suite},
};

use super::packet::{Connection, Packet, Version};

/// Bytes of a sample for header protection (RFC 9001 §5.4.2).
pub(super) const SAMPLE_BYTES: usize = 16;
/// Bytes of a packet number at most, which stand before the sample.
const NUMBER_BYTES_MAX: usize = 4;

pub(super) static SUITE: LazyLock<Option<Suite>> =
    LazyLock::new(|| TLS13_AES_128_GCM_SHA256.tls13().and_then(rustls::Tls13CipherSuite::quic_suite));

/// The keys of Initial packets that follow from an identifier, as a server has them.
pub(super) fn keys(connection: &Connection, version: Version) -> Option<Keys> {
    SUITE.as_ref().map(|suite| suite.keys(connection.id(), Side::Server, version.of_keys()))
}

/// A packet without its protection.
pub(super) struct Opened {
    pub(super) number: u64,
    pub(super) payload: Vec<u8>,
}

/// Takes the protection off; `None` where these are not its keys. `largest` is the largest number that was opened with them.
pub(super) fn open(keys: &Keys, packet: &Packet<'_>, largest: Option<u64>) -> Option<Opened> {
    let mut bytes = packet.bytes.to_vec();
    let (head, protected) = bytes.split_at_mut_checked(packet.number_at)?;
    let sample = protected.get(NUMBER_BYTES_MAX..NUMBER_BYTES_MAX + SAMPLE_BYTES)?.to_vec();
    let (first, _) = head.split_first_mut()?;
    keys.remote.header.decrypt_in_place(&sample, first, protected.get_mut(..NUMBER_BYTES_MAX)?).ok()?;
    let length = usize::from(*first & 3) + 1;
    let (number_bytes, payload) = protected.split_at_mut_checked(length)?;
    let truncated = number_bytes.iter().fold(0, |number, byte| number << 8 | u64::from(*byte));
    let number = expand(truncated, length, largest);
    let header = [&*head, &*number_bytes].concat();
    let payload = keys.remote.packet.decrypt_in_place(number, &header, payload).ok()?.to_vec();
    Some(Opened { number, payload })
}

/// The whole of a number of which `length` bytes were sent (RFC 9000 §A.3).
fn expand(truncated: u64, length: usize, largest: Option<u64>) -> u64 {
    let window = 1_u64 << (8 * length);
    let half = window / 2;
    let expected = largest.map_or(0, |largest| largest + 1);
    let candidate = expected & !(window - 1) | truncated;
    if candidate + half <= expected && candidate < (1 << 62) - window {
        candidate + window
    } else if candidate > expected + half && candidate >= window {
        candidate - window
    } else {
        candidate
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_expanded_to_the_nearest() {
        for (truncated, length, largest, want) in [
            (0x9b32, 2, Some(0xa82f_30ea), 0xa82f_9b32), // The example of the RFC.
            (0, 1, None, 0),
            (0xff, 1, None, 0xff),
            (0, 1, Some(0xff), 0x100),
            (0xff, 1, Some(0x100), 0xff),
            (0x80, 1, Some(0xff), 0x180),
            (0x81, 1, Some(0xff), 0x81),
            (0x80, 1, Some(0x100), 0x180),
            (3, 1, Some(0x4_0000), 0x4_0003),
            (u64::from(u32::MAX), 4, Some(1 << 32), u64::from(u32::MAX)),
            (1, 4, Some((1 << 62) - 2), (1 << 62) - (1 << 32) + 1),
        ] {
            assert_eq!(expand(truncated, length, largest), want, "{truncated:x} after {largest:x?}");
        }
    }
}
