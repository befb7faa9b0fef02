//! A connection that a client begins: the bytes of its handshake, and what became of it.

use std::fmt;

use namegate_config::name::Fqdn;
use rustls::quic::Keys;

use super::{
    packet::{Connection, Cursor, Malformed, Packet, Version},
    protection::{self, Opened},
};
use crate::hello::{self, Hello};

/// Bytes of all messages of one handshake that a client sends in Initial packets.
pub(super) const STREAM_BYTES_MAX: usize = 16 << 10;
/// Bytes of the head of a handshake message (RFC 8446 §4).
const HEAD_BYTES: usize = 4;

/// A connection that a client begins.
pub(super) struct Attempt {
    pub(super) connection: Connection,
    pub(super) version: Version,
    /// Identifier that the client chose for itself.
    pub(super) source: Vec<u8>,
    keys: Keys,
    /// The largest number of its packets so far.
    largest: Option<u64>,
    /// What CRYPTO frames carried, with gaps.
    stream: Vec<Option<u8>>,
    state: State,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum State {
    /// Its first message is not whole, or not judged.
    Gathering,
    /// It may pass, with this many bytes of its handshake.
    Passed(usize),
    Refused,
}

/// What the bytes so far come to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Progress {
    /// All there is was judged before.
    Nothing,
    Partial,
    Asks(Option<Fqdn>),
    /// A second hello is whole, and asks for the same as the first.
    Repeats,
    Refused,
}

impl fmt::Debug for Attempt {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("Attempt")
            .field("connection", &self.connection)
            .field("state", &self.state)
            .finish_non_exhaustive()
    }
}

impl Attempt {
    /// The connection that a packet begins; `None` where it does not open with the keys that follow from its identifier.
    pub(super) fn begin(packet: &Packet<'_>) -> Option<Self> {
        let keys = protection::keys(&packet.connection, packet.version)?;
        protection::open(&keys, packet, None)?;
        let (version, connection, source) = (packet.version, packet.connection, packet.source.to_vec());
        Some(Self { connection, version, source, keys, largest: None, stream: Vec::new(), state: State::Gathering })
    }

    /// Takes the protection off a packet of this connection. A client that changes to the other version with its server
    /// keeps the identifier that its keys follow from (RFC 9369 §4.1), and goes on counting packets.
    pub(super) fn open(&self, packet: &Packet<'_>) -> Option<Opened> {
        if packet.version == self.version {
            return protection::open(&self.keys, packet, self.largest);
        }
        protection::open(&protection::keys(&self.connection, packet.version)?, packet, self.largest)
    }

    /// Takes the frames of a packet (RFC 9000 §12.4, §17.2.2).
    pub(super) fn take(&mut self, opened: &Opened) -> Result<(), Malformed> {
        self.largest = self.largest.max(Some(opened.number));
        let mut frames = Cursor(&opened.payload);
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
                    let offset = usize::try_from(frames.number()?).map_err(|_| Malformed)?;
                    self.place(offset, frames.vector()?)?;
                }
                // CONNECTION_CLOSE. Some servers read what follows it.
                0x1c => {
                    frames.number()?;
                    frames.number()?;
                    frames.vector()?;
                }
                _ => return Err(Malformed),
            }
        }
        Ok(())
    }

    /// Notes bytes of the handshake. Others than before in one place can be read in two ways.
    fn place(&mut self, offset: usize, bytes: &[u8]) -> Result<(), Malformed> {
        let end = offset.checked_add(bytes.len()).filter(|end| *end <= STREAM_BYTES_MAX).ok_or(Malformed)?;
        if bytes.is_empty() {
            return Ok(());
        }
        self.stream.resize(self.stream.len().max(end), None);
        for (place, byte) in self.stream[offset..end].iter_mut().zip(bytes) {
            if *place.get_or_insert(*byte) != *byte {
                return Err(Malformed);
            }
        }
        Ok(())
    }

    /// What the bytes so far come to. A client sends one hello, and a second one where its server has asked for it by a
    /// `HelloRetryRequest`: whatever else stands in these packets is refused.
    pub(super) fn progress(&self) -> Progress {
        match self.state {
            State::Refused => return Progress::Refused,
            State::Passed(judged) if judged == self.stream.len() => return Progress::Nothing,
            State::Gathering | State::Passed(_) => {}
        }
        let bytes: Vec<u8> = self.stream.iter().map_while(|byte| *byte).collect();
        let is_whole = bytes.len() == self.stream.len();
        let Split { message: first, rest } = match split(&bytes) {
            Ok(Some(split)) => split,
            Ok(None) => return Progress::Partial,
            Err(Malformed) => return Progress::Refused,
        };
        let repeats = match split(rest) {
            Ok(Some(Split { message: second, rest: [] })) if is_whole && hello::may_follow(first, second) => true,
            Ok(None) if is_whole && rest.is_empty() => false,
            Ok(None) => return Progress::Partial,
            Ok(Some(_)) | Err(Malformed) => return Progress::Refused,
        };
        match (self.state, hello::read_message(first, false)) {
            (State::Passed(_), _) if repeats => Progress::Repeats,
            (State::Gathering, Ok(Hello::Whole(name))) => Progress::Asks(name),
            _ => Progress::Refused,
        }
    }

    /// Says whether all bytes so far may pass.
    pub(super) fn settle(&mut self, passes: bool) {
        self.state = if passes { State::Passed(self.stream.len()) } else { State::Refused };
    }

    pub(super) const fn state(&self) -> State {
        self.state
    }

    /// Memory that grows with what the client sends, bytes.
    pub(super) fn bytes(&self) -> usize {
        size_of::<Option<u8>>() * self.stream.len()
    }
}

/// A message with its head, and what follows it.
struct Split<'b> {
    message: &'b [u8],
    rest: &'b [u8],
}

/// Takes the first message off; `None` where it is not whole.
fn split(bytes: &[u8]) -> Result<Option<Split<'_>>, Malformed> {
    match hello::read_message(bytes, true) {
        Ok(Hello::Partial) => Ok(None),
        Ok(Hello::Whole(_)) => {
            let length = bytes[1..HEAD_BYTES].iter().fold(0, |length, byte| length << 8 | usize::from(*byte));
            Ok(bytes.split_at_checked(HEAD_BYTES + length).map(|(message, rest)| Split { message, rest }))
        }
        Err(hello::Malformed) => Err(Malformed),
    }
}
