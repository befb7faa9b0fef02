//! Packets with a long header, as they stand in a datagram (RFC 9000 §12.2, §17.2; RFC 9369 §3.2).

use rustls::quic;

/// Bytes of a connection identifier at most (RFC 9000 §17.2).
const ID_BYTES_MAX: usize = 20;
/// The bit that tells a long header from a short one.
const LONG: u8 = 0x80;

/// The bytes are not what a client may send.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Malformed;

/// A version that is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Version {
    /// RFC 9000.
    V1,
    /// RFC 9369.
    V2,
}

/// What a packet with a long header is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Initial,
    ZeroRtt,
    Handshake,
    Retry,
}

/// A connection by the identifier that its client chose for the server, before that has chosen one itself. The keys of
/// Initial packets follow from it and from the version (RFC 9001 §5.2). A client chooses another one for each connection,
/// also where it begins again with another version.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Connection {
    length: u8,
    id: [u8; ID_BYTES_MAX],
}

/// A packet with a long header.
#[derive(Clone, Copy, Debug)]
pub(super) struct Packet<'d> {
    pub(super) kind: Kind,
    pub(super) version: Version,
    /// Destination identifier.
    pub(super) connection: Connection,
    /// Identifier that the client chose for itself; it stays for the whole handshake (RFC 9000 §7.2).
    pub(super) source: &'d [u8],
    /// From the first byte to the last.
    pub(super) bytes: &'d [u8],
    /// Where the protected packet number stands in them.
    pub(super) number_at: usize,
}

/// What a datagram holds.
#[derive(Debug)]
pub(super) enum Datagram<'d> {
    /// No long header.
    Short,
    /// Packets of one connection; one with a short header may follow.
    Long(Vec<Packet<'d>>),
    /// A long header of a version that is not read.
    OtherVersion,
}

impl Version {
    const fn read(number: [u8; 4]) -> Option<Self> {
        match number {
            [0, 0, 0, 1] => Some(Self::V1),
            [0x6b, 0x33, 0x43, 0xcf] => Some(Self::V2),
            _ => None,
        }
    }

    const fn kind(self, first: u8) -> Kind {
        const KINDS: [Kind; 4] = [Kind::Initial, Kind::ZeroRtt, Kind::Handshake, Kind::Retry];
        let bits = (first >> 4 & 3) as usize;
        // Version 2 counts from another one.
        match self {
            Self::V1 => KINDS[bits],
            Self::V2 => KINDS[(bits + 3) % 4],
        }
    }

    pub(super) const fn of_keys(self) -> quic::Version {
        match self {
            Self::V1 => quic::Version::V1,
            Self::V2 => quic::Version::V2,
        }
    }
}

impl Connection {
    fn new(id: &[u8]) -> Self {
        let mut bytes = [0; ID_BYTES_MAX];
        bytes[..id.len()].copy_from_slice(id);
        Self { length: u8::try_from(id.len()).unwrap_or_default(), id: bytes }
    }

    pub(super) fn id(&self) -> &[u8] {
        &self.id[..usize::from(self.length)]
    }
}

impl<'d> Datagram<'d> {
    /// Reads the headers. What a server may drop or keep as it likes, such as packets of two connections in one datagram, is
    /// malformed.
    pub(super) fn read(datagram: &'d [u8]) -> Result<Self, Malformed> {
        if datagram.first().is_none_or(|first| first & LONG == 0) {
            return Ok(Self::Short);
        }
        let number = datagram.get(1..5).and_then(|number| number.first_chunk()).ok_or(Malformed)?;
        if Version::read(*number).is_none() {
            return Ok(Self::OtherVersion);
        }
        let mut packets: Vec<Packet<'d>> = Vec::new();
        let mut rest = datagram;
        while rest.first().is_some_and(|first| first & LONG != 0) {
            let (packet, after) = Packet::read(rest)?;
            if packets.first().is_some_and(|first| first.sender() != packet.sender()) {
                return Err(Malformed);
            }
            packets.push(packet);
            rest = after;
        }
        Ok(Self::Long(packets))
    }
}

impl<'d> Packet<'d> {
    /// What all packets of a datagram share.
    const fn sender(&self) -> (Version, Connection, &'d [u8]) {
        (self.version, self.connection, self.source)
    }

    /// The first packet of bytes that begin with a long header, and what follows it.
    fn read(bytes: &'d [u8]) -> Result<(Self, &'d [u8]), Malformed> {
        let mut cursor = Cursor(bytes);
        let head = cursor.take(5)?;
        let version = Version::read([head[1], head[2], head[3], head[4]]).ok_or(Malformed)?;
        let kind = version.kind(head[0]);
        let connection = Connection::new(cursor.id()?);
        let source = cursor.id()?;
        match kind {
            Kind::Initial => {
                cursor.vector()?;
            }
            Kind::ZeroRtt | Kind::Handshake => {}
            // A client sends none.
            Kind::Retry => return Err(Malformed),
        }
        let length = cursor.number()?;
        let number_at = bytes.len() - cursor.0.len();
        cursor.take(usize::try_from(length).map_err(|_| Malformed)?)?;
        let (bytes, after) = bytes.split_at(bytes.len() - cursor.0.len());
        Ok((Self { kind, version, connection, source, bytes, number_at }, after))
    }
}

/// Bytes not read yet.
pub(super) struct Cursor<'o>(pub(super) &'o [u8]);

impl<'o> Cursor<'o> {
    pub(super) fn next(&mut self) -> Option<u8> {
        let (first, rest) = self.0.split_first()?;
        self.0 = rest;
        Some(*first)
    }

    pub(super) fn take(&mut self, length: usize) -> Result<&'o [u8], Malformed> {
        let (taken, rest) = self.0.split_at_checked(length).ok_or(Malformed)?;
        self.0 = rest;
        Ok(taken)
    }

    /// A number of variable length (RFC 9000 §16).
    pub(super) fn number(&mut self) -> Result<u64, Malformed> {
        let first = self.next().ok_or(Malformed)?;
        let rest = self.take((1 << (first >> 6)) - 1)?;
        Ok(rest.iter().fold(u64::from(first & 0x3f), |number, byte| number << 8 | u64::from(*byte)))
    }

    /// Bytes with their number before them.
    pub(super) fn vector(&mut self) -> Result<&'o [u8], Malformed> {
        let length = self.number()?;
        self.take(usize::try_from(length).map_err(|_| Malformed)?)
    }

    fn id(&mut self) -> Result<&'o [u8], Malformed> {
        let length = usize::from(self.next().ok_or(Malformed)?);
        if length > ID_BYTES_MAX { Err(Malformed) } else { self.take(length) }
    }
}
