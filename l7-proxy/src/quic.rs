//! The server name in the first packets of QUIC (RFC 9000 §17.2.2, RFC 9001 §5, RFC 9369), from datagrams in any order.
//!
//! Their keys follow from what stands in them. A datagram goes on only if every packet in it belongs to a connection that
//! was let pass: a server then gets no byte of a handshake that was not read here.

use namegate_config::name::Fqdn;

mod attempt;
mod packet;
mod protection;
#[doc(hidden)]
pub mod sealing;
#[cfg(test)]
mod tests;

use attempt::{Attempt, Progress, State};
pub use packet::{Connection, Version};
use packet::{Datagram, Kind, Malformed, Packet};

/// Connections of one flow that are known at a time; none begins beyond them. A connection that gave way to another would
/// no longer be among those whose keys a packet is tried with.
const ATTEMPTS_MAX: usize = 64;
/// Memory of an attempt beside its handshake, bytes: above all its keys.
const ATTEMPT_BYTES: usize = 2 << 10;
/// Bytes of a datagram with an Initial packet: servers drop shorter ones (RFC 9000 §14.1).
const INITIAL_DATAGRAM_BYTES: usize = 1_200;
/// Bytes of the identifier that a client chooses for its server (RFC 9000 §7.2).
const CHOSEN_ID_BYTES: usize = 8;

/// What a datagram says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Heard {
    /// It goes on: it begins no connection, or belongs to one that was let pass.
    Known,
    /// It belongs to a connection of which more is needed.
    Partial(Connection),
    /// It completes what a connection begins with; the name asked for, where there is one that a rule could name.
    /// [`Flight::settle`] says what becomes of it.
    Asks(Connection, Option<Fqdn>),
    /// It completes the second hello of a connection that was let pass, and all that waits of it goes on.
    Completes(Connection),
    /// It belongs to a connection that was refused.
    Refused(Connection),
    /// It is of a version that is not read, and that a server may speak.
    OtherVersion,
    /// It cannot be read, or belongs to no connection that is known: it goes nowhere, as servers drop it too.
    Unread,
}

/// What the datagrams of one flow said so far.
#[derive(Debug, Default)]
pub struct Flight {
    attempts: Vec<Attempt>,
    /// Servers get its datagrams as they come.
    is_observed: bool,
}

impl Flight {
    /// Of datagrams that go on while they are read: a server may have answered a part of a handshake,
    /// and the rest goes to the identifier that it chose. By default datagrams wait until their
    /// connection is judged.
    pub fn observed() -> Self {
        Self { is_observed: true, ..Self::default() }
    }

    /// Reads a datagram of the client. `may_begin` says whether a connection that was not known may begin.
    pub fn read(&mut self, datagram: &[u8], may_begin: impl FnOnce(Connection) -> bool) -> Heard {
        let packets = match Datagram::read(datagram) {
            Ok(Datagram::Short) => return Heard::Known,
            Ok(Datagram::OtherVersion) => return Heard::OtherVersion,
            Ok(Datagram::Long(packets)) => packets,
            Err(Malformed) => return Heard::Unread,
        };
        let mut initials = packets.iter().filter(|packet| packet.kind == Kind::Initial).peekable();
        let Some(first) = initials.peek() else {
            return packets.first().map_or(Heard::Unread, |packet| self.later(packet));
        };
        if datagram.len() < INITIAL_DATAGRAM_BYTES {
            return Heard::Unread;
        }
        match self.owner(first, may_begin) {
            Some(attempt) => read_initials(attempt, initials),
            None => Heard::Unread,
        }
    }

    /// Says whether a connection that asked may pass.
    pub fn settle(&mut self, connection: Connection, passes: bool) {
        if let Some(attempt) = self.attempts.iter_mut().find(|attempt| attempt.connection == connection) {
            attempt.settle(passes);
        }
    }

    /// Whether a connection is known.
    pub fn knows(&self, connection: Connection) -> bool {
        self.attempts.iter().any(|attempt| attempt.connection == connection)
    }

    /// Memory that grows with what the client sends, bytes; no more than [`Flight::bytes_for`] for each datagram.
    pub fn bytes(&self) -> usize {
        self.attempts.iter().map(|attempt| ATTEMPT_BYTES + attempt.bytes()).sum()
    }

    /// The most by which [`Flight::bytes`] grows with a datagram.
    pub const fn bytes_for() -> usize {
        ATTEMPT_BYTES + 2 * attempt::STREAM_BYTES_MAX
    }

    /// The connection that an Initial packet belongs to, by the keys that open it.
    ///
    /// Those of the identifier in it are a new connection's for every server that does not know the
    /// identifier. A server that knows it chose it itself, and has the keys of a connection of which it
    /// got a packet. A packet made to open with the keys of two connections (AES-GCM does not commit to
    /// its key) belongs to none, and neither does one that begins a connection again in another version,
    /// which a server might take for a part of the first.
    fn owner(&mut self, packet: &Packet<'_>, may_begin: impl FnOnce(Connection) -> bool) -> Option<&mut Attempt> {
        let is_own = |attempt: &Attempt| attempt.connection == packet.connection;
        let is_same = |attempt: &Attempt| attempt.version == packet.version && attempt.source == packet.source;
        let follows = |attempt: &Attempt| {
            let reached_server = self.is_observed || matches!(attempt.state(), State::Passed(_));
            let may_follow = reached_server && !is_own(attempt) && attempt.source == packet.source;
            may_follow && attempt.open(packet).is_some()
        };
        let mut others = (0..self.attempts.len()).filter(|at| follows(&self.attempts[*at]));
        let (other, another) = (others.next(), others.next());
        let known = self.attempts.iter().position(is_own);
        let at = match (known, other, another) {
            (_, _, Some(_)) => return None,
            (Some(own), None, _) if is_same(&self.attempts[own]) => own,
            (Some(own), Some(other), _) if self.attempts[own].open(packet).is_none() => other,
            (Some(_), ..) => return None,
            (None, other, _) => match (Attempt::begin(packet), other) {
                (Some(_), Some(_)) | (None, None) => return None,
                (None, Some(other)) => other,
                (Some(attempt), None) => {
                    let is_full = self.attempts.len() >= ATTEMPTS_MAX;
                    let is_short = packet.connection.id().len() < CHOSEN_ID_BYTES;
                    if is_full || is_short || !may_begin(packet.connection) {
                        return None;
                    }
                    self.attempts.push(attempt);
                    self.attempts.len() - 1
                }
            },
        };
        self.attempts.get_mut(at)
    }

    /// What a packet says that begins nothing: its keys are those of a connection under way, which only the client and its
    /// server have. It goes where that connection goes: by the identifier that the client chose for its server, then by the
    /// one that it chose for itself.
    fn later(&self, packet: &Packet<'_>) -> Heard {
        let of_client = || self.attempts.iter().filter(|attempt| attempt.source == packet.source);
        if let Some(attempt) = of_client().find(|attempt| attempt.connection == packet.connection) {
            return match attempt.state() {
                State::Gathering => Heard::Partial(attempt.connection),
                State::Passed(_) => Heard::Known,
                State::Refused => Heard::Refused(attempt.connection),
            };
        }
        let passed = of_client().any(|attempt| matches!(attempt.state(), State::Passed(_)));
        if passed { Heard::Known } else { Heard::Unread }
    }
}

/// Reads the Initial packets of one datagram, all of one connection.
fn read_initials<'p, 'd: 'p>(attempt: &mut Attempt, packets: impl Iterator<Item = &'p Packet<'d>>) -> Heard {
    let connection = attempt.connection;
    if attempt.state() == State::Refused {
        return Heard::Refused(connection);
    }
    for packet in packets {
        let Some(opened) = attempt.open(packet) else { return Heard::Unread };
        if attempt.take(&opened).is_err() {
            return Heard::Asks(connection, None);
        }
    }
    match attempt.progress() {
        Progress::Nothing => Heard::Known,
        Progress::Partial => Heard::Partial(connection),
        Progress::Asks(name) => Heard::Asks(connection, name),
        Progress::Refused => Heard::Asks(connection, None),
        Progress::Repeats => {
            attempt.settle(true);
            Heard::Completes(connection)
        }
    }
}
