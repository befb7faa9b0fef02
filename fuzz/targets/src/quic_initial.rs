//! The first packets of QUIC: octets as they come, and the same octets as the content of a packet that a client sealed.

use namegate_l7_proxy::{
    hello::{self, Hello},
    quic::{Flight, Heard},
};
use rustls::{Side, crypto::ring::cipher_suite::TLS13_AES_128_GCM_SHA256, quic::Version};

/// Identifier that the keys follow from.
const ID: [u8; 8] = [7; 8];
/// Octets of the content: a datagram has no more.
const CONTENT_MAX: usize = 16_000;

/// Datagrams.
///
/// # Panics
/// A datagram that begins no connection is not told from one that does; a message in one frame is read otherwise than
/// without QUIC; or a message in two frames, the later first, is read otherwise than in one.
pub fn quic_initial(data: &[u8]) {
    let heard = Flight::default().read(data);
    if data.first().is_none_or(|head| head & 0x80 == 0) {
        assert_eq!(heard, Heard::Known, "a short header");
    }
    let data = &data[..data.len().min(CONTENT_MAX)];
    let _ = Flight::default().read(&sealed(data));
    let whole = Flight::default().read(&sealed(&frame(0, data)));
    assert_eq!(whole, want(data));
    let (early, late) = data.split_at(data.len() / 2);
    if early.is_empty() || whole == Heard::Refused {
        return;
    }
    let mut flight = Flight::default();
    assert_eq!(flight.read(&sealed(&frame(early.len(), late))), Heard::Partial, "nothing at the beginning");
    assert_eq!(flight.read(&sealed(&frame(0, early))), whole);
}

/// What the message says where nothing is around it.
fn want(message: &[u8]) -> Heard {
    match hello::read_message(message, true) {
        Ok(Hello::Partial) => Heard::Partial,
        Ok(Hello::Whole(name)) => Heard::Asks(name),
        Err(hello::Malformed) => Heard::Refused,
    }
}

fn number(number: usize) -> [u8; 4] {
    (u32::try_from(number).unwrap_or(0) | 0x8000_0000).to_be_bytes()
}

fn frame(offset: usize, octets: &[u8]) -> Vec<u8> {
    [&[6][..], &number(offset), &number(octets.len()), octets].concat()
}

/// An Initial packet with this content, filled up to where a server takes it.
fn sealed(content: &[u8]) -> Vec<u8> {
    let mut payload = content.to_vec();
    payload.resize(payload.len().max(1_200), 0);
    let mut header = [&[0xc3, 0, 0, 0, 1, 8][..], &ID, &[0, 0], &number(4 + payload.len() + 16)].concat();
    let number_at = header.len();
    header.extend([0; 4]);
    let suite = TLS13_AES_128_GCM_SHA256.tls13().and_then(rustls::Tls13CipherSuite::quic_suite);
    let Some(suite) = suite else { return Vec::new() };
    let keys = suite.keys(&ID, Side::Client, Version::V1);
    let Ok(tag) = keys.local.packet.encrypt_in_place(0, &header, &mut payload) else { return Vec::new() };
    payload.extend(tag.as_ref());
    let (head, number) = header.split_at_mut(number_at);
    let hidden = keys.local.header.encrypt_in_place(&payload[..16], &mut head[0], number);
    assert!(hidden.is_ok(), "a sample of another length");
    header.extend(payload);
    header
}
