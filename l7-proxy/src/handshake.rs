//! A TLS handshake between client and server, followed until no more names can come. Bytes in, an answer out.
//!
//! A server may answer the first `ClientHello` with a `HelloRetryRequest` and then reads a second one (RFC 8446 §4.1.4). The
//! second one must be consistent with the first, so the server reads no other name than the one that was judged. Older
//! versions renegotiate: [`Legacy`] follows the client's records for as long as such a connection lives, and refuses that.

use crate::{
    hello::{self, Cursor, Gathering, Hello, Malformed, message_length},
    record::{self, ALERT, APPLICATION_DATA, CHANGE_CIPHER_SPEC, HANDSHAKE, HEADER, HEARTBEAT, Header, Record},
};

/// Bytes of a server's first message.
const ANSWER_MAX: usize = 1 << 14;

/// Handshake type.
const SERVER_HELLO: u8 = 2;
/// The random value of a `ServerHello` that is a `HelloRetryRequest` (RFC 8446 §4.1.3).
const RETRY: [u8; 32] = [
    0xcf, 0x21, 0xad, 0x74, 0xe5, 0x9a, 0x61, 0x11, 0xbe, 0x1d, 0x8c, 0x02, 0x1e, 0x65, 0xb8, 0x91, 0xc2, 0xa2, 0x11,
    0x16, 0x7a, 0xbb, 0x8c, 0x5e, 0x07, 0x9e, 0x09, 0xe2, 0xc8, 0xa8, 0x33, 0x9c,
];
/// Extension that holds the version of TLS 1.3, and that version.
const SUPPORTED_VERSIONS: u16 = 43;
const TLS_1_3: [u8; 2] = [3, 4];

/// A `ServerHello`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Answer {
    /// A `HelloRetryRequest`: the client sends another `ClientHello`.
    Retry,
    /// TLS 1.3: the client's later handshake messages are encrypted, and none is a `ClientHello`.
    Current,
    /// An older version: `finished_max` bounds the fragment of the client's encrypted `Finished`, in bytes.
    Older { finished_max: usize },
}

/// Reads a whole message with its type and length.
fn answer(message: &[u8]) -> Result<Answer, Malformed> {
    let mut body = Cursor(message.get(4..).filter(|_| message[0] == SERVER_HELLO).ok_or(Malformed)?);
    body.take(2)?;
    let random = body.take(RETRY.len())?;
    body.vector8()?;
    let suite = body.number16()?;
    body.take(1)?;
    let extensions = if body.0.is_empty() { Vec::new() } else { hello::extensions(&mut body)? };
    let is_current = extensions.iter().any(|extension| *extension == (SUPPORTED_VERSIONS, &TLS_1_3[..]));
    Ok(match (random == RETRY, is_current) {
        (true, _) => Answer::Retry,
        (false, true) => Answer::Current,
        (false, false) => Answer::Older { finished_max: finished_max(suite) },
    })
}

/// The longest fragment of an encrypted `Finished` of 16 bytes (40 in SSL 3). A `ClientHello` with a name has 57 bytes at
/// least, so none fits in beside it: with the overhead of 16 bytes that any suite has, both together are 89.
fn finished_max(suite: u16) -> usize {
    const CBC_SHA384: [u16; 12] =
        [0x00af, 0x00b3, 0x00b7, 0xc024, 0xc026, 0xc028, 0xc02a, 0xc038, 0xc073, 0xc075, 0xc077, 0xc079];
    // An initialisation vector of 16 bytes, one or two blocks, and a MAC of 32 or 48 bytes.
    if CBC_SHA384.contains(&suite) { 96 } else { 80 }
}

/// What a server sends until its `ServerHello` is final.
#[derive(Debug, Default)]
struct Server {
    /// Bytes of a record that is not whole yet.
    rest: Vec<u8>,
    message: Vec<u8>,
    /// It does not speak TLS as far as that can be read: its bytes pass, and nothing follows from them.
    is_unread: bool,
}

impl Server {
    /// Reads more bytes, up to the first answer in them, which is given.
    fn read(&mut self, bytes: &[u8]) -> Option<Answer> {
        if self.is_unread {
            return None;
        }
        self.rest.extend_from_slice(bytes);
        let found = self.read_records();
        self.is_unread = found.is_err();
        if self.is_unread {
            (self.rest, self.message) = (Vec::new(), Vec::new());
        }
        found.unwrap_or_default()
    }

    fn read_records(&mut self) -> Result<Option<Answer>, Malformed> {
        while let Some(record) = record::first(&self.rest)? {
            let length = record.length();
            match record.kind {
                HANDSHAKE => self.message.extend_from_slice(record.fragment),
                // A warning that the name is unknown comes first (RFC 6066 §3).
                ALERT | CHANGE_CIPHER_SPEC if self.message.is_empty() => {}
                _ => return Err(Malformed),
            }
            self.rest.drain(..length);
            if self.message.len() > ANSWER_MAX + record::FRAGMENT_MAX {
                return Err(Malformed);
            }
            let Some(end) = message_length(&self.message).filter(|end| *end <= self.message.len()) else { continue };
            let found = answer(&self.message[..end])?;
            if found == Answer::Retry && end < self.message.len() {
                return Err(Malformed);
            }
            self.message.clear();
            return Ok(Some(found));
        }
        Ok(None)
    }
}

/// A handshake of which the first `ClientHello` was judged.
#[derive(Debug)]
pub(crate) struct Handshake {
    server: Server,
    /// The first message, with its type and length.
    first: Vec<u8>,
    has_early_data: bool,
    /// Bytes of the client that may not pass yet.
    held: Vec<u8>,
    second: Second,
}

/// The second `ClientHello`.
#[derive(Debug)]
enum Second {
    /// None may come.
    Unasked,
    /// The server asked for it.
    Due(Gathering),
    /// It came.
    Passed,
}

impl Handshake {
    /// Begins with the first message, and what the client sent after it.
    pub(crate) fn new(first: &Gathering, after: Vec<u8>) -> Self {
        let first = first.message().to_vec();
        let has_early_data = hello::offers_early_data(&first);
        Self { server: Server::default(), first, has_early_data, held: after, second: Second::Unasked }
    }

    /// Reads what the server sent; all of it may go to the client. Gives the final answer.
    pub(crate) fn read_server(&mut self, bytes: &[u8]) -> Option<Answer> {
        let found = self.server.read(bytes)?;
        match (found, &self.second) {
            (Answer::Retry, Second::Unasked) => {
                self.second = Second::Due(Gathering::default());
                // An answer to a message that the server can not have got means nothing.
                if self.server.read(&[]).is_some() {
                    self.server.is_unread = true;
                }
                None
            }
            (Answer::Retry, _) | (_, Second::Due(_)) => {
                self.server.is_unread = true;
                None
            }
            (found, _) => Some(found),
        }
    }

    /// Where bytes of the client are to be put before [`Self::take`].
    pub(crate) fn held(&mut self) -> &mut Vec<u8> {
        &mut self.held
    }

    /// Takes out what may go to the server: whole records.
    pub(crate) fn take(&mut self) -> Result<Vec<u8>, Malformed> {
        let mut passed = 0;
        loop {
            let rest = &self.held[passed..];
            if let (Second::Due(second), Some(&HANDSHAKE)) = (&mut self.second, rest.first()) {
                if second.read(rest)? == Hello::Partial {
                    break;
                }
                if !hello::may_follow(&self.first, second.message()) {
                    return Err(Malformed);
                }
                passed += second.length();
                self.second = Second::Passed;
                continue;
            }
            let Some(record) = record::first(rest)? else { break };
            match record {
                Record { kind: CHANGE_CIPHER_SPEC, fragment: [1] } | Record { kind: ALERT, fragment: [_, _] } => {}
                // Encrypted by a key of an earlier connection. The server reads it only where it took the first name.
                Record { kind: APPLICATION_DATA, .. } if self.has_early_data => {}
                _ => return Err(Malformed),
            }
            passed += record.length();
        }
        let after = self.held.split_off(passed);
        Ok(std::mem::replace(&mut self.held, after))
    }

    /// Whether a handshake message of the client has begun that may not pass yet.
    pub(crate) fn holds_message(&self) -> bool {
        self.held.first() == Some(&HANDSHAKE)
    }

    /// Bytes of the client that did not pass.
    pub(crate) fn into_held(self) -> Vec<u8> {
        self.held
    }
}

/// The records of a client in a version before TLS 1.3, from the server's `ServerHello` on.
///
/// Its handshake messages in the clear are none but those of RFC 5246 §7.3, and after `ChangeCipherSpec` one record with
/// `Finished` follows. Any other handshake message would begin a renegotiation, whose name can not be read.
#[derive(Debug)]
pub(crate) struct Legacy {
    stage: Stage,
    finished_max: usize,
    /// The header of the record under way, as far as it came.
    header: Vec<u8>,
    kind: u8,
    /// Bytes of its fragment that have not come.
    left: usize,
}

/// How far the client is.
#[derive(Debug)]
enum Stage {
    /// In the clear: the header of a message as far as it came, and bytes of the message that have not come.
    Clear { header: Vec<u8>, left: usize },
    /// After `ChangeCipherSpec`.
    Changed,
    /// After `Finished`.
    Finished,
}

impl Legacy {
    /// Of `finished_max` see [`Answer::Older`].
    pub(crate) fn new(finished_max: usize) -> Self {
        let stage = Stage::Clear { header: Vec::new(), left: 0 };
        Self { stage, finished_max, header: Vec::new(), kind: 0, left: 0 }
    }

    /// Reads the next bytes, before the server gets them.
    pub(crate) fn read(&mut self, mut bytes: &[u8]) -> Result<(), Malformed> {
        while !bytes.is_empty() {
            if self.left == 0 {
                let count = bytes.len().min(HEADER - self.header.len());
                self.header.extend_from_slice(&bytes[..count]);
                bytes = &bytes[count..];
                let is_handshake = self.header[0] == HANDSHAKE;
                if is_handshake && matches!(self.stage, Stage::Finished) {
                    return Err(Malformed);
                }
                if let Ok(header) = <[u8; HEADER]>::try_from(&self.header[..]) {
                    let Header { kind, length } = Header::read_encrypted(header)?;
                    (self.kind, self.left) = (kind, length);
                    self.header.clear();
                    self.begin()?;
                }
                continue;
            }
            let (fragment, rest) = bytes.split_at(bytes.len().min(self.left));
            self.left -= fragment.len();
            bytes = rest;
            if let (HANDSHAKE, Stage::Clear { header, left }) = (self.kind, &mut self.stage) {
                read_clear(fragment, header, left)?;
            } else if self.left == 0 {
                self.end();
            }
        }
        Ok(())
    }

    /// A record begins.
    fn begin(&mut self) -> Result<(), Malformed> {
        let is_right = match (self.kind, &self.stage) {
            (HANDSHAKE, Stage::Clear { .. }) | (ALERT, _) | (APPLICATION_DATA | HEARTBEAT, Stage::Finished) => true,
            (CHANGE_CIPHER_SPEC, Stage::Clear { header, left }) => self.left == 1 && header.is_empty() && *left == 0,
            (HANDSHAKE, Stage::Changed) => self.left <= self.finished_max,
            _ => false,
        };
        if is_right { Ok(()) } else { Err(Malformed) }
    }

    /// A record ends.
    fn end(&mut self) {
        match (self.kind, &self.stage) {
            (CHANGE_CIPHER_SPEC, _) => self.stage = Stage::Changed,
            (HANDSHAKE, Stage::Changed) => self.stage = Stage::Finished,
            _ => {}
        }
    }
}

/// Reads messages in the clear, of which `header` and `left` are what is known of the one under way.
fn read_clear(mut fragment: &[u8], header: &mut Vec<u8>, left: &mut usize) -> Result<(), Malformed> {
    /// Certificate, `CertificateVerify`, `ClientKeyExchange`.
    const OF_CLIENTS: [u8; 3] = [11, 15, 16];
    while let Some(kind) = fragment.first() {
        if *left > 0 {
            let count = fragment.len().min(*left);
            *left -= count;
            fragment = &fragment[count..];
            continue;
        }
        if header.is_empty() && !OF_CLIENTS.contains(kind) {
            return Err(Malformed);
        }
        let count = fragment.len().min(4 - header.len());
        header.extend_from_slice(&fragment[..count]);
        fragment = &fragment[count..];
        if let Some(length) = message_length(header) {
            *left = length - 4;
            header.clear();
        }
    }
    Ok(())
}
