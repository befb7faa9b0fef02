//! Records of TLS (RFC 8446 §5.1, RFC 5246 §6.2.1), read from bytes that come in any pieces.

use crate::hello::Malformed;

/// Content types.
pub(crate) const CHANGE_CIPHER_SPEC: u8 = 20;
pub(crate) const ALERT: u8 = 21;
pub(crate) const HANDSHAKE: u8 = 22;
pub(crate) const APPLICATION_DATA: u8 = 23;
pub(crate) const HEARTBEAT: u8 = 24;

/// Bytes of the header of a record.
pub(crate) const HEADER: usize = 5;
/// The longest fragment of a plain record.
pub(crate) const FRAGMENT_MAX: usize = 1 << 14;
/// The longest fragment of an encrypted record; TLS 1.2 has the larger bound.
pub(crate) const CIPHERTEXT_MAX: usize = FRAGMENT_MAX + 2_048;

/// Content type and length of the fragment, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Header {
    pub(crate) kind: u8,
    pub(crate) length: usize,
}

impl Header {
    /// Reads the header of a record that is encrypted only where it holds application data. `Malformed` where no version
    /// of TLS has such a record.
    pub(crate) fn read(header: [u8; HEADER]) -> Result<Self, Malformed> {
        let header = Self::read_encrypted(header)?;
        let is_too_long = header.kind != APPLICATION_DATA && header.length > FRAGMENT_MAX;
        if is_too_long { Err(Malformed) } else { Ok(header) }
    }

    /// Reads the header of any record.
    pub(crate) fn read_encrypted([kind, major, _, high, low]: [u8; HEADER]) -> Result<Self, Malformed> {
        let length = usize::from(u16::from_be_bytes([high, low]));
        let is_record = (CHANGE_CIPHER_SPEC..=HEARTBEAT).contains(&kind) && major == 3;
        if is_record && (1..=CIPHERTEXT_MAX).contains(&length) { Ok(Self { kind, length }) } else { Err(Malformed) }
    }
}

/// A whole record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Record<'b> {
    pub(crate) kind: u8,
    pub(crate) fragment: &'b [u8],
}

impl Record<'_> {
    /// Bytes of the record with its header.
    pub(crate) fn length(&self) -> usize {
        HEADER + self.fragment.len()
    }
}

/// The record that `bytes` begin with; `None` until all of it is there. A header that can not become one of TLS is
/// malformed as soon as that shows.
pub(crate) fn first(bytes: &[u8]) -> Result<Option<Record<'_>>, Malformed> {
    let Some((header, rest)) = bytes.split_first_chunk::<HEADER>() else {
        let is_other = bytes.get(1).is_some_and(|major| *major != 3);
        return if is_other { Err(Malformed) } else { Ok(None) };
    };
    let Header { kind, length } = Header::read(*header)?;
    Ok(rest.get(..length).map(|fragment| Record { kind, fragment }))
}
