//! The server name in the first packets of QUIC (RFC 9000 §17.2.2, RFC 9001 §5, RFC 9369), from datagrams in any order.
//!
//! Their keys follow from what stands in them. Nothing of a connection is read beyond its first message.

use std::{fmt, sync::LazyLock};

use namegate_config::name::Fqdn;
use rustls::{
    Side,
    crypto::ring::cipher_suite::TLS13_AES_128_GCM_SHA256,
    quic::{Keys, Suite, Version},
};

use crate::hello::{self, Hello};

/// Octets of a first message.
const HELLO_OCTETS_MAX: usize = 16 << 10;
/// Connections of one flow that are known at a time; the oldest gives way.
const ATTEMPTS_MAX: usize = 4;
/// Octets of a connection identifier (RFC 9000 §17.2).
const ID_OCTETS_MAX: usize = 20;
/// Octets of a sample for header protection (RFC 9001 §5.4.2).
const SAMPLE_OCTETS: usize = 16;

/// What a datagram says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Heard {
    /// Nothing new: it begins no connection, or one that was let pass.
    Known,
    /// It begins a connection, and more datagrams are needed.
    Partial,
    /// It completes what a new connection begins with; the name asked for, where there is one that a rule could name.
    /// [`Flight::settle`] says what becomes of it.
    Asks(Option<Fqdn>),
    /// It belongs to a connection that was refused, or cannot be read.
    Refused,
}

/// What the datagrams of one flow said so far.
#[derive(Debug, Default)]
pub struct Flight {
    attempts: Vec<Attempt>,
}

/// A connection that a client begins.
struct Attempt {
    /// Identifier that the client chose for the server: the keys follow from it.
    id: Vec<u8>,
    keys: Keys,
    /// The first message, with gaps.
    octets: Vec<Option<u8>>,
    state: State,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Gathering,
    Asked,
    Passed,
    Refused,
}

impl fmt::Debug for Attempt {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Attempt").field("id", &self.id).field("state", &self.state).finish_non_exhaustive()
    }
}

/// The octets are not what a client may send.
struct Malformed;

/// A packet with a long header.
struct Packet<'d> {
    version: Version,
    is_initial: bool,
    id: &'d [u8],
    /// From the first octet to the last.
    octets: &'d [u8],
    /// Where the protected packet number stands in them.
    number_at: usize,
}

static SUITE: LazyLock<Option<Suite>> =
    LazyLock::new(|| TLS13_AES_128_GCM_SHA256.tls13().and_then(rustls::Tls13CipherSuite::quic_suite));

impl Flight {
    /// Reads a datagram of the client.
    pub fn read(&mut self, datagram: &[u8]) -> Heard {
        let mut rest = datagram;
        let mut first_id: Option<&[u8]> = None;
        let mut heard = Heard::Known;
        while let [head, ..] = rest
            && head & 0x80 != 0
        {
            let Ok((packet, after)) = packet(rest) else { return Heard::Refused };
            // What a datagram carries is of one connection (RFC 9000 §12.2).
            if *first_id.get_or_insert(packet.id) != packet.id {
                return Heard::Refused;
            }
            if packet.is_initial {
                match self.initial(&packet) {
                    Ok(Heard::Known) => {}
                    Ok(Heard::Partial) if heard != Heard::Known => {}
                    Ok(Heard::Refused) | Err(Malformed) => return Heard::Refused,
                    Ok(news) => heard = news,
                }
            }
            rest = after;
        }
        heard
    }

    /// Says whether the connection that asked last may pass.
    pub fn settle(&mut self, passes: bool) {
        for attempt in self.attempts.iter_mut().filter(|attempt| attempt.state == State::Asked) {
            attempt.state = if passes { State::Passed } else { State::Refused };
        }
    }

    fn initial(&mut self, packet: &Packet<'_>) -> Result<Heard, Malformed> {
        if let Some(known) = self.attempts.iter().position(|attempt| attempt.id == packet.id) {
            return match open(&self.attempts[known].keys, packet) {
                Some(payload) => self.attempts[known].take(&payload),
                None => Ok(Heard::Known),
            };
        }
        let keys = keys(packet.version, packet.id).ok_or(Malformed)?;
        if let Some(payload) = open(&keys, packet) {
            if self.attempts.len() == ATTEMPTS_MAX {
                self.attempts.remove(0);
            }
            let attempt = Attempt { id: packet.id.to_vec(), keys, octets: Vec::new(), state: State::Gathering };
            self.attempts.push(attempt);
            return self.attempts.last_mut().map_or(Err(Malformed), |attempt| attempt.take(&payload));
        }
        // The server has chosen another identifier; the keys stay.
        for attempt in &mut self.attempts {
            if let Some(payload) = open(&attempt.keys, packet) {
                return attempt.take(&payload);
            }
        }
        // Neither does a server have keys for it that begin a connection.
        Ok(Heard::Known)
    }
}

impl Attempt {
    /// Takes the frames of a packet (RFC 9000 §12.4).
    fn take(&mut self, payload: &[u8]) -> Result<Heard, Malformed> {
        let mut frames = Cursor(payload);
        while let Some(kind) = frames.next() {
            match kind {
                // PADDING, PING.
                0 | 1 => {}
                // ACK, and with counts of congestion.
                2 | 3 => {
                    frames.number()?;
                    frames.number()?;
                    let ranges = frames.number()?;
                    frames.number()?;
                    for _ in 0..ranges {
                        frames.number()?;
                        frames.number()?;
                    }
                    for _ in 0..if kind == 3 { 3 } else { 0 } {
                        frames.number()?;
                    }
                }
                6 => {
                    let (offset, length) = (frames.number()?, frames.number()?);
                    let octets = frames.take(usize::try_from(length).map_err(|_| Malformed)?)?;
                    self.place(usize::try_from(offset).map_err(|_| Malformed)?, octets)?;
                }
                // CONNECTION_CLOSE ends the packet.
                0x1c => break,
                _ => return Err(Malformed),
            }
        }
        match self.state {
            State::Passed => Ok(Heard::Known),
            State::Refused => Ok(Heard::Refused),
            State::Asked => Ok(Heard::Partial),
            State::Gathering => self.message(),
        }
    }

    /// Notes octets of the first message. Others than before in one place can be read in two ways.
    fn place(&mut self, offset: usize, octets: &[u8]) -> Result<(), Malformed> {
        let end = offset.checked_add(octets.len()).ok_or(Malformed)?;
        if self.state == State::Gathering {
            if end > HELLO_OCTETS_MAX {
                return Err(Malformed);
            }
            self.octets.resize(self.octets.len().max(end), None);
        }
        for (place, octet) in self.octets.iter_mut().skip(offset).zip(octets) {
            if *place.get_or_insert(*octet) != *octet {
                return Err(Malformed);
            }
        }
        Ok(())
    }

    fn message(&mut self) -> Result<Heard, Malformed> {
        let octets: Vec<u8> = self.octets.iter().map_while(|octet| *octet).collect();
        match hello::read_message(&octets, octets.len() < HELLO_OCTETS_MAX) {
            Ok(Hello::Partial) => Ok(Heard::Partial),
            Ok(Hello::Whole(name)) => {
                self.state = State::Asked;
                Ok(Heard::Asks(name))
            }
            Err(hello::Malformed) => Err(Malformed),
        }
    }
}

fn keys(version: Version, id: &[u8]) -> Option<Keys> {
    SUITE.as_ref().map(|suite| suite.keys(id, Side::Server, version))
}

/// Takes the protection off; `None` where these are not its keys.
fn open(keys: &Keys, packet: &Packet<'_>) -> Option<Vec<u8>> {
    let mut octets = packet.octets.to_vec();
    let (head, payload) = octets.split_at_mut_checked(packet.number_at)?;
    let sample = payload.get(4..4 + SAMPLE_OCTETS)?.to_vec();
    let (first, _) = head.split_first_mut()?;
    keys.remote.header.decrypt_in_place(&sample, first, payload.get_mut(..4)?).ok()?;
    let number_octets = usize::from(*first & 3) + 1;
    let number = payload.get(..number_octets)?.iter().fold(0, |number, octet| number << 8 | u64::from(*octet));
    let header = [&*head, payload.get(..number_octets)?].concat();
    let payload = payload.get_mut(number_octets..)?;
    keys.remote.packet.decrypt_in_place(number, &header, payload).ok().map(<[u8]>::to_vec)
}

/// The first packet of octets that begin with a long header, and what follows it.
fn packet(octets: &[u8]) -> Result<(Packet<'_>, &[u8]), Malformed> {
    let mut cursor = Cursor(octets);
    let head = cursor.take(5)?;
    let (version, initial, retry) = match [head[1], head[2], head[3], head[4]] {
        [0, 0, 0, 1] => (Version::V1, 0, 3),
        [0x6b, 0x33, 0x43, 0xcf] => (Version::V2, 1, 0),
        _ => return Err(Malformed),
    };
    let kind = head[0] >> 4 & 3;
    let id = cursor.id()?;
    cursor.id()?;
    if kind == retry {
        // A client sends none, and nothing can follow it.
        return Ok((Packet { version, is_initial: false, id, octets, number_at: 0 }, &[]));
    }
    if kind == initial {
        let token = cursor.number()?;
        cursor.take(usize::try_from(token).map_err(|_| Malformed)?)?;
    }
    let length = cursor.number()?;
    let number_at = octets.len() - cursor.0.len();
    cursor.take(usize::try_from(length).map_err(|_| Malformed)?)?;
    let (octets, after) = octets.split_at(octets.len() - cursor.0.len());
    Ok((Packet { version, is_initial: kind == initial, id, octets, number_at }, after))
}

/// Octets not read yet.
struct Cursor<'o>(&'o [u8]);

impl<'o> Cursor<'o> {
    fn next(&mut self) -> Option<u8> {
        let (first, rest) = self.0.split_first()?;
        self.0 = rest;
        Some(*first)
    }

    fn take(&mut self, length: usize) -> Result<&'o [u8], Malformed> {
        let (taken, rest) = self.0.split_at_checked(length).ok_or(Malformed)?;
        self.0 = rest;
        Ok(taken)
    }

    /// A number of variable length (RFC 9000 §16).
    fn number(&mut self) -> Result<u64, Malformed> {
        let first = self.next().ok_or(Malformed)?;
        let rest = self.take((1 << (first >> 6)) - 1)?;
        Ok(rest.iter().fold(u64::from(first & 0x3f), |number, octet| number << 8 | u64::from(*octet)))
    }

    fn id(&mut self) -> Result<&'o [u8], Malformed> {
        let length = usize::from(self.next().ok_or(Malformed)?);
        if length > ID_OCTETS_MAX { Err(Malformed) } else { self.take(length) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// RFC 9001 §A.1 and RFC 9369 §A.1.
    const ID: [u8; 8] = [0x83, 0x94, 0xc8, 0xf0, 0x3e, 0x51, 0x57, 0x08];
    /// The first message of RFC 9001 §A.2 and RFC 9369 §A.2.
    const HELLO: &str = "010000ed0303ebf8fa56f12939b9584a3896472ec40bb863cfd3e86804fe3a47f06a2b69484c000004130113020\
        10000c000000010000e00000b6578616d706c652e636f6dff01000100000a00080006001d0017001800100007000504616c706e0005000501\
        00000000003300260024001d00209370b2c9caa47fbabaf4559fedba753de171fa71f50f1ce15d43e994ec74d748002b0003020304000d001\
        0000e0403050306030203080408050806002d00020101001c00024001003900320408ffffffffffffffff05048000ffff07048000ffff0801\
        100104800075300901100f088394c8f03e51570806048000ffff";

    fn octets(hex: &str) -> Vec<u8> {
        let digits: Vec<u8> = hex.chars().map(|digit| u8::try_from(digit.to_digit(16).unwrap()).unwrap()).collect();
        digits.chunks(2).map(|pair| pair[0] << 4 | pair[1]).collect()
    }

    fn hello() -> Vec<u8> {
        octets(HELLO)
    }

    fn varint(number: usize) -> [u8; 2] {
        (u16::try_from(number).unwrap() | 0x4000).to_be_bytes()
    }

    fn crypto(offset: usize, octets: &[u8]) -> Vec<u8> {
        [&[6][..], &varint(offset), &varint(octets.len()), octets].concat()
    }

    /// An Initial packet with a number of four octets.
    fn seal(version: Version, id: &[u8], keys_of: &[u8], number: u32, payload: &[u8]) -> Vec<u8> {
        let (first, version_octets) = match version {
            Version::V2 => (0xd3, [0x6b, 0x33, 0x43, 0xcf]),
            _ => (0xc3, [0, 0, 0, 1]),
        };
        let keys = SUITE.as_ref().unwrap().keys(keys_of, Side::Client, version);
        let mut header = vec![first];
        header.extend(version_octets);
        header.push(u8::try_from(id.len()).unwrap());
        header.extend(id);
        header.extend([0, 0]);
        header.extend(varint(4 + payload.len() + 16));
        let number_at = header.len();
        header.extend(number.to_be_bytes());
        let mut payload = payload.to_vec();
        let tag = keys.local.packet.encrypt_in_place(number.into(), &header, &mut payload).unwrap();
        payload.extend(tag.as_ref());
        let (head, number) = header.split_at_mut(number_at);
        keys.local.header.encrypt_in_place(&payload[..SAMPLE_OCTETS], &mut head[0], number).unwrap();
        header.extend(payload);
        header
    }

    fn sealed(payload: &[u8]) -> Vec<u8> {
        seal(Version::V1, &ID, &ID, 0, payload)
    }

    fn example() -> Heard {
        Heard::Asks(Some("example.com".parse().unwrap()))
    }

    #[test]
    fn the_vectors_of_both_versions_are_read() {
        for (version, begins, tag) in [
            (
                Version::V1,
                "c000000001088394c8f03e5157080000449e7b9aec34d1b1c98dd7689fb8ec11d242b123dc9bd8bab936b47d92ec356c",
                "e221af44860018ab0856972e194cd934",
            ),
            (
                Version::V2,
                "d76b3343cf088394c8f03e5157080000449ea0c95e82ffe67b6abcdb4298b485dd04de806071bf03dceebfa162e75d6c",
                "a18b2faa745b6fe189cf772a9f84cbfc",
            ),
        ] {
            // The vectors write the offset in one octet.
            let mut payload = [&[6, 0][..], &varint(hello().len()), &hello()].concat();
            payload.resize(1_162, 0);
            let packet = seal(version, &ID, &ID, 2, &payload);
            assert_eq!(packet.len(), 1_200);
            assert!(packet.starts_with(&octets(begins)) && packet.ends_with(&octets(tag)), "{version:?}");
            let mut flight = Flight::default();
            assert_eq!(flight.read(&packet), example(), "{version:?}");
            flight.settle(true);
            assert_eq!(flight.read(&packet), Heard::Known, "sent again");
        }
    }

    #[test]
    fn frames_come_in_any_order_and_split() {
        let hello = hello();
        for at in 1..hello.len() {
            let (early, late) = (crypto(0, &hello[..at]), crypto(at, &hello[at..]));
            let mut flight = Flight::default();
            assert_eq!(flight.read(&sealed(&late)), Heard::Partial, "{at}");
            let (mut one, two) = (sealed(&[&[1, 0][..], &early].concat()), sealed(&[1]));
            one.extend(two);
            assert_eq!(flight.read(&one), example(), "{at}");
            assert_eq!(flight.read(&one), Heard::Partial, "not settled");
            flight.settle(false);
            assert_eq!(flight.read(&one), Heard::Refused, "{at}");
        }
        let acknowledged = [&[2, 0, 0, 1, 0, 0, 0, 3, 1, 0, 0, 0, 1, 2, 3][..], &crypto(0, &hello)].concat();
        assert_eq!(Flight::default().read(&sealed(&acknowledged)), example());
    }

    #[test]
    fn what_could_hide_another_name_is_refused() {
        let hello = hello();
        let mut changed = hello.clone();
        changed[70] ^= 1;
        let mut flight = Flight::default();
        assert_eq!(flight.read(&sealed(&crypto(0, &hello))), example());
        flight.settle(true);
        assert_eq!(flight.read(&sealed(&crypto(0, &changed))), Heard::Refused, "the same connection, another message");
        let later = seal(Version::V1, &[7; 8], &ID, 1, &[2, 0, 0, 0, 0]);
        assert_eq!(flight.read(&later), Heard::Known, "the server's identifier, the same keys");
        assert_eq!(flight.read(&seal(Version::V1, &[9; 8], &[9; 8], 0, &crypto(0, &hello))), example(), "a second one");
        let twice = [crypto(0, &hello[..80]), crypto(60, &changed[60..])].concat();
        assert_eq!(Flight::default().read(&sealed(&twice)), Heard::Refused);
        let two = [sealed(&crypto(0, &hello)), seal(Version::V1, &[9; 8], &[9; 8], 0, &crypto(0, &changed))].concat();
        assert_eq!(Flight::default().read(&two), Heard::Refused, "two connections in a datagram");
        for (payload, what) in [
            (vec![8, 0], "a frame of later packets"),
            (crypto(HELLO_OCTETS_MAX - 1, b"ab"), "past the bound"),
            (crypto(0, &[2, 0, 0, 0]), "another message"),
            (vec![6, 0, 9, 1], "cut short"),
        ] {
            assert_eq!(Flight::default().read(&sealed(&payload)), Heard::Refused, "{what}");
        }
        let mut draft = sealed(&crypto(0, &hello));
        draft[1..5].copy_from_slice(&[0xff, 0, 0, 29]);
        assert_eq!(Flight::default().read(&draft), Heard::Refused, "a version that is not read");
    }

    /// A packet of the handshake may stand first: what follows it is read all the same.
    #[test]
    fn packets_that_stand_together_are_all_read() {
        let handshake = [&[0xe0, 0, 0, 0, 1, 8][..], &ID, &[0], &varint(20), &[0; 20]].concat();
        let both = [handshake.clone(), sealed(&crypto(0, &hello()))].concat();
        assert_eq!(Flight::default().read(&both), example());
        assert_eq!(Flight::default().read(&handshake), Heard::Known);
        assert_eq!(Flight::default().read(&[0x40; 30]), Heard::Known, "a short header");
        assert_eq!(Flight::default().read(&[]), Heard::Known);
        let packet = sealed(&crypto(0, &hello()));
        for at in 1..packet.len() {
            assert_eq!(Flight::default().read(&packet[..at]), Heard::Refused, "cut after {at}");
        }
    }
}
