//! The server name in the first message of TLS (RFC 8446 §4.1.2, RFC 6066 §3), from records that come in any pieces; and
//! whether a second one asks for the same.

use std::net::IpAddr;

use namegate_config::name::Fqdn;

use crate::record::{self, HANDSHAKE};

/// Octets that are gathered before the message counts as malformed.
pub const HELLO_OCTETS_MAX: usize = 64 << 10;

/// Handshake type.
const CLIENT_HELLO: u8 = 1;
/// Extension, and the only type of name in it.
const SERVER_NAME: u16 = 0;
const HOST_NAME: u8 = 0;
/// Extensions that a second `ClientHello` may change, add or leave out (RFC 8446 §4.1.2). An encrypted `ClientHello` is
/// encrypted anew (RFC 9849 §6.1.5), and counts by its outer name.
const MAY_CHANGE: [u16; 6] = [PADDING, PRE_SHARED_KEY, EARLY_DATA, COOKIE, KEY_SHARE, ENCRYPTED_CLIENT_HELLO];
const PADDING: u16 = 21;
const PRE_SHARED_KEY: u16 = 41;
const EARLY_DATA: u16 = 42;
const COOKIE: u16 = 44;
const KEY_SHARE: u16 = 51;
const ENCRYPTED_CLIENT_HELLO: u16 = 0xfe0d;

/// What the octets hold so far.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Hello {
    /// More are needed.
    Partial,
    /// The name asked for; `None` where there is none, or none that a rule could name.
    Whole(Option<Fqdn>),
}

/// The octets are no `ClientHello`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not the first message of TLS")]
pub struct Malformed;

/// Reads what came so far.
pub fn read(octets: &[u8]) -> Result<Hello, Malformed> {
    Gathering::default().read(octets)
}

/// Puts a `ClientHello` together from its records.
#[derive(Clone, Debug, Default)]
pub struct Gathering {
    message: Vec<u8>,
    /// Bytes of the records that were read.
    at: usize,
}

impl Gathering {
    /// Reads what came so far. `bytes` begin with those of the last call, which are not read again.
    ///
    /// The message must end where its last record ends (RFC 8446 §5.1): what followed it in there would be read by the
    /// server after its answer.
    pub fn read(&mut self, bytes: &[u8]) -> Result<Hello, Malformed> {
        while !is_whole(&self.message) {
            let rest = bytes.get(self.at..).unwrap_or_default();
            // Known before the record is whole.
            if rest.first().is_some_and(|kind| *kind != HANDSHAKE) {
                return Err(Malformed);
            }
            let Some(record) = record::first(rest)? else {
                let is_longer = bytes.len() < HELLO_OCTETS_MAX;
                return read_message(&self.message, is_longer);
            };
            self.message.extend_from_slice(record.fragment);
            self.at += record.length();
        }
        read_whole(&self.message)
    }

    /// The message, with its type and length.
    pub fn message(&self) -> &[u8] {
        &self.message
    }

    /// Bytes of the records that hold it.
    pub fn length(&self) -> usize {
        self.at
    }
}

/// A message that nothing follows.
fn read_whole(message: &[u8]) -> Result<Hello, Malformed> {
    if message_length(message).is_some_and(|length| length < message.len()) {
        return Err(Malformed);
    }
    read_message(message, false)
}

/// Bytes of the message that `bytes` begin with, its type and length included.
pub(crate) fn message_length(bytes: &[u8]) -> Option<usize> {
    let &[_, high, middle, low] = bytes.first_chunk::<4>()?;
    Some(4 + (usize::from(high) << 16 | usize::from(middle) << 8 | usize::from(low)))
}

fn is_whole(message: &[u8]) -> bool {
    message_length(message).is_some_and(|length| length <= message.len())
}

/// Reads the message without records around it; `more` says whether more of it may come.
pub fn read_message(message: &[u8], more: bool) -> Result<Hello, Malformed> {
    let Some((&[kind, high, middle, low], body)) = message.split_first_chunk::<4>() else {
        return if message.first().is_none_or(|kind| *kind == CLIENT_HELLO) && more {
            Ok(Hello::Partial)
        } else {
            Err(Malformed)
        };
    };
    let length = usize::from(high) << 16 | usize::from(middle) << 8 | usize::from(low);
    if kind != CLIENT_HELLO || length > HELLO_OCTETS_MAX {
        return Err(Malformed);
    }
    match body.get(..length) {
        Some(body) => server_name(body).map(Hello::Whole),
        None if more => Ok(Hello::Partial),
        None => Err(Malformed),
    }
}

/// The parts of a `ClientHello` (RFC 8446 §4.1.2).
struct Parts<'m> {
    version_and_random: &'m [u8],
    session: &'m [u8],
    suites: &'m [u8],
    compression: &'m [u8],
    /// Type and content, in their order; empty in TLS 1.2 without extensions.
    extensions: Vec<(u16, &'m [u8])>,
}

impl<'m> Parts<'m> {
    /// Reads the message without its type and length.
    fn read(body: &'m [u8]) -> Result<Self, Malformed> {
        let mut body = Cursor(body);
        let version_and_random = body.take(2 + 32)?;
        let (session, suites, compression) = (body.vector8()?, body.vector16()?, body.vector8()?);
        if session.len() > 32 || suites.is_empty() || suites.len() % 2 != 0 || compression.is_empty() {
            return Err(Malformed);
        }
        let extensions = if body.0.is_empty() { Vec::new() } else { extensions(&mut body)? };
        Ok(Self { version_and_random, session, suites, compression, extensions })
    }

    /// Reads a message with its type and length, which nothing follows.
    fn of(message: &'m [u8]) -> Result<Self, Malformed> {
        let is_whole = message.first() == Some(&CLIENT_HELLO) && message_length(message) == Some(message.len());
        let body = message.get(4..).filter(|_| is_whole).ok_or(Malformed)?;
        Self::read(body)
    }

    fn has(&self, wanted: u16) -> bool {
        self.extensions.iter().any(|(kind, _)| *kind == wanted)
    }

    /// The extensions that must stay as they are, in one order.
    fn lasting(&self) -> Vec<(u16, &'m [u8])> {
        let mut lasting = self.extensions.clone();
        lasting.retain(|(kind, _)| !MAY_CHANGE.contains(kind));
        lasting.sort_unstable();
        lasting
    }
}

/// The extensions at the end of a message.
pub(crate) fn extensions<'m>(message: &mut Cursor<'m>) -> Result<Vec<(u16, &'m [u8])>, Malformed> {
    let mut rest = Cursor(message.vector16()?);
    if !message.0.is_empty() {
        return Err(Malformed);
    }
    let mut extensions = Vec::new();
    while !rest.0.is_empty() {
        extensions.push((rest.number16()?, rest.vector16()?));
    }
    Ok(extensions)
}

fn server_name(body: &[u8]) -> Result<Option<Fqdn>, Malformed> {
    let parts = Parts::read(body)?;
    let mut found = None;
    for (_, data) in parts.extensions.iter().filter(|(kind, _)| *kind == SERVER_NAME) {
        if found.replace(host_name(data)?).is_some() {
            return Err(Malformed);
        }
    }
    Ok(found.flatten())
}

/// Whether a whole `ClientHello` offers early data (RFC 8446 §4.2.10).
pub(crate) fn offers_early_data(message: &[u8]) -> bool {
    Parts::of(message).is_ok_and(|parts| parts.has(EARLY_DATA))
}

/// Whether `second` may follow `first` after a `HelloRetryRequest` (RFC 8446 §4.1.2): both are whole messages with type and
/// length. Such a message asks for the same name.
pub fn may_follow(first: &[u8], second: &[u8]) -> bool {
    let (Ok(first), Ok(second)) = (Parts::of(first), Parts::of(second)) else { return false };
    !second.has(EARLY_DATA)
        && first.version_and_random == second.version_and_random
        && first.session == second.session
        && first.suites == second.suites
        && first.compression == second.compression
        && first.lasting() == second.lasting()
}

/// The one host name of the extension.
fn host_name(data: &[u8]) -> Result<Option<Fqdn>, Malformed> {
    let mut data = Cursor(data);
    let mut list = Cursor(data.vector16()?);
    let kind = list.take(1)?[0];
    let name = list.vector16()?;
    if kind != HOST_NAME || !list.0.is_empty() || !data.0.is_empty() {
        return Err(Malformed);
    }
    let text = std::str::from_utf8(name).map_err(|_| Malformed)?;
    // An address is no name (RFC 6066 §3), and neither is the root.
    let is_name = text.parse::<IpAddr>().is_err();
    Ok(text.parse::<Fqdn>().ok().filter(|name| is_name && !name.as_str().is_empty()))
}

/// Octets not read yet.
pub(crate) struct Cursor<'o>(pub(crate) &'o [u8]);

impl<'o> Cursor<'o> {
    pub(crate) fn take(&mut self, length: usize) -> Result<&'o [u8], Malformed> {
        let (taken, rest) = self.0.split_at_checked(length).ok_or(Malformed)?;
        self.0 = rest;
        Ok(taken)
    }

    pub(crate) fn number16(&mut self) -> Result<u16, Malformed> {
        self.take(2).map(|octets| u16::from_be_bytes([octets[0], octets[1]]))
    }

    pub(crate) fn vector8(&mut self) -> Result<&'o [u8], Malformed> {
        let length = usize::from(self.take(1)?[0]);
        self.take(length)
    }

    pub(crate) fn vector16(&mut self) -> Result<&'o [u8], Malformed> {
        let length = usize::from(self.number16()?);
        self.take(length)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn vector16(octets: &[u8]) -> Vec<u8> {
        let mut vector = u16::try_from(octets.len()).unwrap().to_be_bytes().to_vec();
        vector.extend(octets);
        vector
    }

    fn extension(kind: u16, data: &[u8]) -> Vec<u8> {
        [&kind.to_be_bytes()[..], &vector16(data)].concat()
    }

    fn sni(name: &[u8]) -> Vec<u8> {
        extension(0, &vector16(&[&[0][..], &vector16(name)].concat()))
    }

    fn body(extensions: Option<&[u8]>) -> Vec<u8> {
        let mut body = vec![3, 3];
        body.extend([7; 32]);
        body.extend([0]); // session
        body.extend(vector16(&[0x1a, 0x1a, 0x13, 0x01])); // GREASE, AES
        body.extend([1, 0]);
        body.extend(extensions.map(vector16).unwrap_or_default());
        body
    }

    fn message(body: &[u8]) -> Vec<u8> {
        let length = u32::try_from(body.len()).unwrap().to_be_bytes();
        [&[1][..], &length[1..], body].concat()
    }

    fn records(message: &[u8], fragment: usize) -> Vec<u8> {
        message.chunks(fragment).flat_map(|part| [&[22, 3, 1][..], &vector16(part)].concat()).collect()
    }

    fn hello(extensions: &[u8]) -> Vec<u8> {
        records(&message(&body(Some(extensions))), 4_096)
    }

    fn name(text: &str) -> Hello {
        Hello::Whole(Some(text.parse().unwrap()))
    }

    #[test]
    fn names_are_read_and_what_is_none_is_not() {
        let grease = extension(0x3a3a, &[0]);
        let long = "a".repeat(64) + ".io";
        for (what, octets, want) in [
            ("plain", hello(&sni(b"cilium.io")), Ok(name("cilium.io"))),
            ("upper case", hello(&sni(b"CILIUM.io")), Ok(name("cilium.io"))),
            ("final dot", hello(&sni(b"cilium.io.")), Ok(name("cilium.io"))),
            ("GREASE before", hello(&[grease.clone(), sni(b"cilium.io")].concat()), Ok(name("cilium.io"))),
            ("GREASE after", hello(&[sni(b"cilium.io"), grease.clone()].concat()), Ok(name("cilium.io"))),
            ("no name", hello(&grease), Ok(Hello::Whole(None))),
            ("empty extensions", hello(&[]), Ok(Hello::Whole(None))),
            ("no extensions", records(&message(&body(None)), 4_096), Ok(Hello::Whole(None))),
            ("IPv4 literal", hello(&sni(b"192.0.2.1")), Ok(Hello::Whole(None))),
            ("IPv6 literal", hello(&sni(b"2001:db8::1")), Ok(Hello::Whole(None))),
            ("root", hello(&sni(b".")), Ok(Hello::Whole(None))),
            ("long label", hello(&sni(long.as_bytes())), Ok(Hello::Whole(None))),
            ("inner NUL", hello(&sni(b"cilium.io\0.evil.io")), Ok(Hello::Whole(None))),
            ("empty name", hello(&sni(b"")), Ok(Hello::Whole(None))),
            ("not UTF-8", hello(&sni(b"\xff.io")), Err(Malformed)),
            ("twice", hello(&[sni(b"a.io"), sni(b"b.io")].concat()), Err(Malformed)),
            ("two names", hello(&extension(0, &vector16(b"\0\0\x01a\0\0\x01b"))), Err(Malformed)),
            ("another type of name", hello(&extension(0, &vector16(b"\x01\0\x01a"))), Err(Malformed)),
            ("empty list", hello(&extension(0, &[0, 0])), Err(Malformed)),
            ("octets after the list", hello(&extension(0, b"\0\x04\0\0\x01a!")), Err(Malformed)),
            (
                "octets after the extensions",
                records(&message(&[body(Some(&sni(b"a.io"))), vec![0]].concat()), 4_096),
                Err(Malformed),
            ),
            (
                "odd suites",
                records(&message(&[&[3, 3][..], &[7; 32], &[0], &[0, 1, 1], &[1, 0]].concat()), 99),
                Err(Malformed),
            ),
            (
                "no suites",
                records(&message(&[&[3, 3][..], &[7; 32], &[0], &[0, 0], &[1, 0]].concat()), 99),
                Err(Malformed),
            ),
            (
                "long session",
                records(&message(&[&[3, 3][..], &[7; 32], &[33], &[0; 33], &[0, 2, 1, 1], &[1, 0]].concat()), 99),
                Err(Malformed),
            ),
            ("another handshake", records(&[2, 0, 0, 1, 0], 99), Err(Malformed)),
            ("an alert", vec![21, 3, 1, 0, 2, 1, 0], Err(Malformed)),
            ("HTTP", b"GET / HTTP/1.1\r\n\r\n".to_vec(), Err(Malformed)),
            ("SSL 2", vec![0x80, 0x2e, 1, 3, 1], Err(Malformed)),
            ("an empty record", vec![22, 3, 1, 0, 0], Err(Malformed)),
            ("a record too long", vec![22, 3, 1, 0x40, 1], Err(Malformed)),
            ("a message too long", records(&[1, 1, 0, 1, 0], 99), Err(Malformed)),
            ("nothing", vec![], Ok(Hello::Partial)),
        ] {
            assert_eq!(read(&octets), want, "{what}");
        }
    }

    #[test]
    fn any_pieces_give_the_same() {
        let whole = message(&body(Some(&[extension(0x2a2a, &[0; 40]), sni(b"cilium.io")].concat())));
        for fragment in 1..=whole.len() {
            assert_eq!(read(&records(&whole, fragment)), Ok(name("cilium.io")), "records of {fragment}");
        }
        let octets = records(&whole, 50);
        for length in 0..octets.len() {
            assert_eq!(read(&octets[..length]), Ok(Hello::Partial), "{length}");
        }
        // What the client sends at once after it changes nothing.
        assert_eq!(read(&[&octets[..], &[20, 3, 3, 0, 1, 1]].concat()), Ok(name("cilium.io")));
    }

    #[test]
    fn a_record_between_the_parts_is_no_hello() {
        let whole = message(&body(Some(&sni(b"cilium.io"))));
        let octets = [&records(&whole[..20], 99)[..], &[21, 3, 3, 0, 2, 1, 0], &records(&whole[20..], 99)].concat();
        assert_eq!(read(&octets), Err(Malformed));
    }

    #[test]
    fn changed_octets_never_panic() {
        let octets = hello(&sni(b"cilium.io"));
        for at in 0..octets.len() {
            for octet in [0, 1, 0x7f, 0xff] {
                let mut changed = octets.clone();
                changed[at] = octet;
                let _ = read(&changed);
                let _ = read(&changed[..at]);
            }
        }
    }
}
