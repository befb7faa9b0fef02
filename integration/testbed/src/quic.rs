//! QUIC connections that begin and never go on: an Initial packet with the first half of a `ClientHello`.

use tokio_rustls::rustls::crypto::ring::cipher_suite::TLS13_AES_128_GCM_SHA256;
use tokio_rustls::rustls::quic::Version;
use tokio_rustls::rustls::{Side, Tls13CipherSuite};

/// A client's first datagram is at least this long, bytes (RFC 9000 §14.1).
const PAYLOAD_BYTES: usize = 1_200;
/// Bytes of the packet number, and of what proves the packet.
const NUMBER_BYTES: usize = 4;
const PROOF_BYTES: usize = 16;

/// The datagram of the connection with this number. Its source identifier is `source`: at most 20 bytes.
pub fn unfinished(number: u64, source: &[u8]) -> Vec<u8> {
    let id = number.to_be_bytes();
    let hello = [1, 0, 1, 0xfc, 3, 3, 0x5a, 0x5a];
    let mut payload = [&[6, 0][..], &[8], &hello].concat();
    payload.resize(PAYLOAD_BYTES, 0);

    let mut header = [&[0xc3, 0, 0, 0, 1, 8][..], &id].concat();
    header.push(u8::try_from(source.len()).unwrap_or(20));
    header.extend(source);
    header.push(0);
    let length = u16::try_from(NUMBER_BYTES + PAYLOAD_BYTES + PROOF_BYTES).unwrap_or(0);
    header.extend((length | 0x4000).to_be_bytes());
    let number_at = header.len();
    header.extend([0; NUMBER_BYTES]);

    let suite = TLS13_AES_128_GCM_SHA256.tls13().and_then(Tls13CipherSuite::quic_suite);
    let Some(suite) = suite else { return Vec::new() };
    let keys = suite.keys(&id, Side::Client, Version::V1);
    let Ok(proof) = keys.local.packet.encrypt_in_place(0, &header, &mut payload) else { return Vec::new() };
    payload.extend(proof.as_ref());
    let (head, number) = header.split_at_mut(number_at);
    // A sample of another length can't be: it is cut to sixteen bytes here.
    let _ = keys.local.header.encrypt_in_place(&payload[..16], &mut head[0], number);
    [header, payload].concat()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_datagram_carries_its_source() {
        let datagram = unfinished(7, b"source");
        assert!(datagram.len() > PAYLOAD_BYTES && datagram[0] & 0xf0 == 0xc0);
        assert!(datagram.windows(6).any(|window| window == b"source"));
    }
}
