//! Initial packets as a client seals them, for tests and fuzzing.

use rustls::{Side, quic::DirectionalKeys};

use super::{
    packet::Version,
    protection::{SAMPLE_BYTES, SUITE},
};

/// Bytes of a tag (RFC 9001 §5.3).
const TAG_BYTES: usize = 16;

/// How a packet is sealed.
#[derive(Clone, Copy, Debug)]
pub struct Sealing<'a> {
    /// Version in the header.
    pub version: Version,
    /// Version that the keys follow from.
    pub keys_version: Version,
    /// Destination identifier.
    pub id: &'a [u8],
    /// Identifier that the keys follow from.
    pub keys_id: &'a [u8],
    /// Source identifier.
    pub source: &'a [u8],
    /// Number of the packet.
    pub number: u64,
    /// Bytes of it that are sent.
    pub number_bytes: usize,
    /// Bytes of the packet at least.
    pub fills: usize,
}

impl<'a> Sealing<'a> {
    /// The first packet of a connection.
    pub const fn of(version: Version, id: &'a [u8]) -> Self {
        Self { version, keys_version: version, id, keys_id: id, source: &[], number: 0, number_bytes: 4, fills: 1_200 }
    }

    /// The same with another number, of which so many bytes are sent.
    #[must_use]
    pub const fn numbered(self, number: u64, number_bytes: usize) -> Self {
        Self { number, number_bytes, ..self }
    }

    /// An Initial packet with these frames.
    ///
    /// # Panics
    /// A length does not fit its field.
    #[expect(clippy::unwrap_used, reason = "a test ends at the first surprise")]
    pub fn seal(self, payload: &[u8]) -> Vec<u8> {
        let (kind, version) = match self.version {
            Version::V1 => (0xc0, [0, 0, 0, 1]),
            Version::V2 => (0xd0, [0x6b, 0x33, 0x43, 0xcf]),
        };
        let mut header = vec![kind | u8::try_from(self.number_bytes - 1).unwrap()];
        header.extend(version);
        for id in [self.id, self.source] {
            header.push(u8::try_from(id.len()).unwrap());
            header.extend(id);
        }
        header.push(0); // No token.
        let number_at = header.len() + varint(0).len();
        let mut payload = payload.to_vec();
        let least = self.fills.saturating_sub(number_at + self.number_bytes + TAG_BYTES);
        payload.resize(payload.len().max(least), 0);
        header.extend(varint(self.number_bytes + payload.len() + TAG_BYTES));
        header.extend(&self.number.to_be_bytes()[8 - self.number_bytes..]);
        let DirectionalKeys { header: header_key, packet } = self.keys();
        let tag = packet.encrypt_in_place(self.number, &header, &mut payload).unwrap();
        payload.extend(tag.as_ref());
        let (head, number) = header.split_at_mut(number_at);
        let sample = &payload[4 - self.number_bytes..][..SAMPLE_BYTES];
        header_key.encrypt_in_place(sample, &mut head[0], number).unwrap();
        header.extend(payload);
        header
    }

    #[expect(clippy::unwrap_used, reason = "a test ends at the first surprise")]
    fn keys(&self) -> DirectionalKeys {
        SUITE.as_ref().unwrap().keys(self.keys_id, Side::Client, self.keys_version.of_keys()).local
    }
}

/// A number in two bytes, as RFC 9000 §16 writes it.
///
/// # Panics
/// It needs more.
#[expect(clippy::unwrap_used, reason = "a test ends at the first surprise")]
pub fn varint(number: usize) -> [u8; 2] {
    (u16::try_from(number).ok().filter(|number| *number < 0x4000).unwrap() | 0x4000).to_be_bytes()
}

/// A CRYPTO frame.
pub fn crypto(offset: usize, bytes: &[u8]) -> Vec<u8> {
    [&[6][..], &varint(offset), &varint(bytes.len()), bytes].concat()
}
