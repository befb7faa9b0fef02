//! The journal's frames: a length, a checksum and one entry each, in a row.
//!
//! A frame is the length of a document and its CRC-32C (RFC 3720, appendix B.4; both u32, little endian), and the document:
//! a [`LedgerEntry`] in the format of `postcard`. What is read is a prefix of what was written: the first frame that is cut
//! short or damaged ends it.

use crate::LedgerEntry;

/// Form of frames and entries, for the head of a journal: one of another form is begun anew.
pub const JOURNAL_FORM: &str = "crc32c-content";

/// A frame above this, in bytes, is no frame of a journal.
const DOCUMENT_MAX: usize = 16 << 20;
/// Bytes of length and checksum.
const HEAD: usize = 8;

/// What whole frames hold.
#[derive(Debug, Default)]
pub struct Frames {
    /// The entries, in their order.
    pub entries: Vec<LedgerEntry>,
    /// Bytes of the frames that are whole.
    pub whole: usize,
}

/// Why an entry has no frame.
#[derive(Debug, thiserror::Error)]
pub enum FrameError {
    /// The entry has no form in the journal.
    #[error("writing an entry of the journal")]
    Entry(#[source] postcard::Error),
    /// The entry has more bytes than a reader takes.
    #[error("an entry of {0} bytes is too large for the journal ({DOCUMENT_MAX} bytes)")]
    Size(usize),
}

impl Frames {
    /// Reads frames up to the first that is cut short or damaged.
    pub fn read(bytes: &[u8]) -> Self {
        let mut frames = Self::default();
        while let Some((entry, length)) = first(&bytes[frames.whole..]) {
            frames.entries.push(entry);
            frames.whole += length;
        }
        frames
    }
}

/// Appends the frame of an entry.
///
/// # Errors
/// The entry is too large; `bytes` is as before.
pub fn push_frame(bytes: &mut Vec<u8>, entry: &LedgerEntry) -> Result<(), FrameError> {
    let document = postcard::to_stdvec(entry).map_err(FrameError::Entry)?;
    let length = u32::try_from(document.len()).ok().filter(|_| document.len() <= DOCUMENT_MAX);
    let length = length.ok_or(FrameError::Size(document.len()))?;
    bytes.extend(length.to_le_bytes());
    bytes.extend(crc32c::crc32c(&document).to_le_bytes());
    bytes.extend(document);
    Ok(())
}

/// The first frame's entry, and the bytes of the frame.
fn first(bytes: &[u8]) -> Option<(LedgerEntry, usize)> {
    let (head, after) = bytes.split_first_chunk::<HEAD>()?;
    let word = |at: usize| u32::from_le_bytes([head[at], head[at + 1], head[at + 2], head[at + 3]]);
    let length = usize::try_from(word(0)).ok().filter(|length| *length <= DOCUMENT_MAX)?;
    let document = after.get(..length)?;
    if crc32c::crc32c(document) != word(4) {
        return None;
    }
    // Bytes behind the entry would be lost without a word.
    let (entry, rest) = postcard::take_from_bytes(document).ok()?;
    rest.is_empty().then_some((entry, HEAD + length))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_entry_too_large_for_a_reader_is_not_written() {
        let text = "x".repeat(DOCUMENT_MAX).into();
        let mut bytes = vec![7];
        let error = push_frame(&mut bytes, &LedgerEntry::Selector { id: 1, text }).unwrap_err();
        assert!(matches!(error, FrameError::Size(_)), "{error}");
        assert_eq!(bytes, [7]);
    }
}
