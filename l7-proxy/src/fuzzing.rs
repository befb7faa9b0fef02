//! Private readers within reach of fuzzing. No part of the API of this crate.

use crate::{
    handshake::Handshake,
    hello::{Gathering, Hello},
};

/// A server's `HelloRetryRequest` without extensions (RFC 8446 §4.1.4).
const RETRY: &[u8] = b"\x16\x03\x03\0\x2a\x02\0\0\x26\x03\x03\xcf\x21\xad\x74\xe5\x9a\x61\x11\xbe\x1d\x8c\x02\x1e\x65\
    \xb8\x91\xc2\xa2\x11\x16\x7a\xbb\x8c\x5e\x07\x9e\x09\xe2\xc8\xa8\x33\x9c\0\x13\x01\0";

/// What of a client's pieces goes to the server after the `ClientHello` `first` and a `HelloRetryRequest`.
///
/// # Panics
/// `first` is no whole message of fewer than 16,385 bytes.
pub fn after_retry<'p>(first: &[u8], pieces: impl Iterator<Item = &'p [u8]>) -> Vec<u8> {
    let length = u16::try_from(first.len()).unwrap_or_default().to_be_bytes();
    let mut gathering = Gathering::default();
    let found = gathering.read(&[&[22, 3, 1, length[0], length[1]], first].concat());
    assert!(matches!(found, Ok(Hello::Whole(_))), "no whole message");
    let mut handshake = Handshake::new(&gathering, Vec::new());
    assert_eq!(handshake.read_server(RETRY), None);
    let mut passed = Vec::new();
    for piece in pieces {
        handshake.held().extend_from_slice(piece);
        match handshake.take() {
            Ok(bytes) => passed.extend(bytes),
            Err(_) => break,
        }
    }
    passed
}
