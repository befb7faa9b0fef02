//! A slow and lenient model of a QUIC server: what it would read of a client's handshake.
//!
//! Beside RFC 9000 it takes what some servers take: datagrams of any size, packets of several connections in one datagram,
//! both versions on one connection, whatever source identifier, frames that are not allowed in Initial packets up to the
//! first that it does not know.

use std::collections::{BTreeMap, BTreeSet};

use rustls::{
    Side,
    crypto::ring::cipher_suite::TLS13_AES_128_GCM_SHA256,
    quic::{Keys, Version},
};

/// The identifier that the server chooses for the connection that a client began with `id`.
pub(crate) fn chosen(id: &[u8]) -> Vec<u8> {
    id.iter().map(|byte| !byte).collect()
}

/// What a server knows.
pub(crate) struct Server {
    connections: Vec<Connection>,
    /// Later bytes of one place go before earlier ones.
    last_wins: bool,
}

struct Connection {
    id: Vec<u8>,
    largest: Option<u64>,
    numbers: BTreeSet<u64>,
    handshake: BTreeMap<usize, u8>,
}

impl Server {
    /// A server that lets later bytes of one place go before earlier ones, or not.
    pub(crate) const fn new(last_wins: bool) -> Self {
        Self { connections: Vec::new(), last_wins }
    }

    /// Takes a datagram.
    pub(crate) fn take(&mut self, datagram: &[u8]) {
        let mut rest = datagram;
        while let Some((packet, after)) = split(rest) {
            rest = after;
            if packet.is_initial {
                self.take_initial(&packet);
            }
        }
    }

    fn take_initial(&mut self, packet: &Packet<'_>) {
        let known = self.connections.iter().position(|one| one.id == packet.id || chosen(&one.id) == packet.id);
        let at = known.unwrap_or_else(|| {
            let id = packet.id.to_vec();
            let new = Connection { id, largest: None, numbers: BTreeSet::new(), handshake: BTreeMap::new() };
            self.connections.push(new);
            self.connections.len() - 1
        });
        let connection = &mut self.connections[at];
        let Some((number, payload)) = open(packet, &connection.id, connection.largest) else {
            if known.is_none() {
                self.connections.pop();
            }
            return;
        };
        if !connection.numbers.insert(number) {
            return;
        }
        connection.largest = connection.largest.max(Some(number));
        for (offset, bytes) in crypto_frames(&payload) {
            for (place, byte) in (offset..).zip(bytes) {
                if self.last_wins {
                    connection.handshake.insert(place, *byte);
                } else {
                    connection.handshake.entry(place).or_insert(*byte);
                }
            }
        }
    }

    /// The handshake of each connection as far as it has no gap.
    pub(crate) fn handshakes(&self) -> Vec<Vec<u8>> {
        let whole = |one: &Connection| (0..).map_while(|place| one.handshake.get(&place).copied()).collect();
        self.connections.iter().map(whole).collect()
    }
}

struct Packet<'d> {
    version: Version,
    is_initial: bool,
    id: &'d [u8],
    bytes: &'d [u8],
    number_at: usize,
}

/// The first packet of a datagram's rest and what follows it.
fn split(bytes: &[u8]) -> Option<(Packet<'_>, &[u8])> {
    let first = *bytes.first().filter(|first| **first >= 0x80)?;
    let (version, initial) = match u32::from_be_bytes(*bytes.get(1..5)?.first_chunk()?) {
        1 => (Version::V1, 0),
        0x6b33_43cf => (Version::V2, 1),
        _ => return None,
    };
    let is_initial = first >> 4 & 3 == initial;
    let mut at = 5_usize;
    let mut vector = |length: usize| {
        let vector = bytes.get(at..at.checked_add(length)?)?;
        at += length;
        Some(vector)
    };
    let length = usize::from(vector(1)?[0]);
    let id = vector(length).filter(|id| id.len() <= 20)?;
    let length = usize::from(vector(1)?[0]);
    vector(length).filter(|id| id.len() <= 20)?;
    if is_initial {
        let (length, size) = number(bytes.get(at..)?)?;
        at += size;
        at = at.checked_add(length)?;
    }
    let (length, size) = number(bytes.get(at..)?)?;
    let number_at = at + size;
    let (packet, after) = bytes.split_at_checked(number_at.checked_add(length)?)?;
    Some((Packet { version, is_initial, id, bytes: packet, number_at }, after))
}

/// A number of variable length, and how many bytes it takes.
fn number(bytes: &[u8]) -> Option<(usize, usize)> {
    let size = 1_usize << (bytes.first()? >> 6);
    let whole = bytes.get(..size)?.iter().fold(0_u64, |number, byte| number << 8 | u64::from(*byte));
    let value = whole & (u64::MAX >> (64 - 8 * size + 2));
    Some((usize::try_from(value).ok()?, size))
}

fn open(packet: &Packet<'_>, id: &[u8], largest: Option<u64>) -> Option<(u64, Vec<u8>)> {
    let suite = TLS13_AES_128_GCM_SHA256.tls13()?.quic_suite()?;
    let keys: Keys = suite.keys(id, Side::Server, packet.version);
    let mut bytes = packet.bytes.to_vec();
    let sample = bytes.get(packet.number_at + 4..packet.number_at + 20)?.to_vec();
    let (head, rest) = bytes.split_at_mut(packet.number_at);
    keys.remote.header.decrypt_in_place(&sample, &mut head[0], &mut rest[..4]).ok()?;
    let length = usize::from(head[0] & 3) + 1;
    let truncated = rest[..length].iter().fold(0_u64, |number, byte| number << 8 | u64::from(*byte));
    let number = nearest(truncated, 1 << (8 * length), largest.map_or(0, |largest| largest + 1));
    let (header, payload) = bytes.split_at_mut(packet.number_at + length);
    let payload = keys.remote.packet.decrypt_in_place(number, header, payload).ok()?;
    Some((number, payload.to_vec()))
}

/// The number with this end that is nearest to the expected one; of two, the larger.
fn nearest(truncated: u64, window: u64, expected: u64) -> u64 {
    let base = expected - expected % window + truncated;
    let candidates = [base.checked_add(window), Some(base), base.checked_sub(window)];
    let all = candidates.into_iter().flatten().filter(|number| *number < 1 << 62);
    all.min_by_key(|number| number.abs_diff(expected)).unwrap_or(truncated)
}

/// Offset and bytes of each CRYPTO frame up to the first frame that is not known.
fn crypto_frames(payload: &[u8]) -> Vec<(usize, &[u8])> {
    let (mut found, mut rest) = (Vec::new(), payload);
    while let Some(frame) = frame(&mut rest) {
        found.push(frame);
    }
    found
}

/// Offset and bytes of one frame; it has none where it is no CRYPTO frame.
fn frame<'p>(rest: &mut &'p [u8]) -> Option<(usize, &'p [u8])> {
    let mut next = || {
        let (value, size) = number(rest)?;
        *rest = &rest[size..];
        Some(value)
    };
    match next()? {
        0 | 1 => Some((0, &[])),
        kind @ (2 | 3) => {
            next()?;
            next()?;
            let ranges = next()?;
            let counts = if kind == 3 { 3 } else { 0 };
            for _ in 0..ranges.checked_mul(2)?.checked_add(1 + counts)? {
                next()?;
            }
            Some((0, &[]))
        }
        6 => {
            let offset = next()?;
            let length = next()?;
            let (bytes, after) = rest.split_at_checked(length)?;
            *rest = after;
            Some((offset, bytes))
        }
        0x1c => {
            next()?;
            next()?;
            let length = next()?;
            *rest = rest.get(length..)?;
            Some((0, &[]))
        }
        _ => None,
    }
}
