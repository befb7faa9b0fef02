//! The journal's frames: what is read of a damaged journal is a prefix of what was written.

use namegate_engine::{Frames, LedgerEntry, push_frame};

/// Entries of a journal that the target writes itself.
const ENTRIES_MAX: usize = 8;
/// Bytes of length and checksum.
const HEAD: usize = 8;

/// Whether to read the rest as it is, what to write otherwise, and how to damage it.
///
/// # Panics
/// Frames are read that a slow reader does not find, or other entries than were written before the damage.
pub fn journal(data: &[u8]) {
    let Some((choice, rest)) = data.split_first() else { return };
    if choice & 1 == 0 {
        let frames = Frames::read(rest);
        let ends = whole_frames(rest);
        assert!(frames.entries.len() <= ends.len(), "a frame without its checksum was read");
        let last = frames.entries.len().checked_sub(1).map_or(0, |at| ends[at]);
        assert_eq!(frames.whole, last, "bytes of the frames that were read");
        return;
    }
    let written = entries(rest);
    let mut bytes = Vec::new();
    let mut ends = Vec::new();
    for entry in &written {
        push_frame(&mut bytes, entry).unwrap_or_else(|error| panic!("{entry:?}: {error}"));
        ends.push(bytes.len());
    }
    assert_eq!(whole_frames(&bytes), ends, "what was written");
    let at = usize::from(*rest.last().unwrap_or(&0)) * bytes.len() / 256;
    if choice & 2 == 0 {
        bytes.truncate(at);
    } else if let Some(byte) = bytes.get_mut(at) {
        *byte ^= choice | 1;
    }
    let before = ends.iter().filter(|end| **end <= at).count();
    let frames = Frames::read(&bytes);
    assert_eq!(frames.entries, written[..before], "damage at {at} of {}", bytes.len());
    assert_eq!(frames.whole, before.checked_sub(1).map_or(0, |last| ends[last]));
}

/// Entries of several kinds, from bytes.
fn entries(bytes: &[u8]) -> Vec<LedgerEntry> {
    let entry = |part: &[u8]| {
        let id = u32::from(part[0]);
        let text = String::from_utf8_lossy(&part[1..]).into_owned();
        match part[0] % 4 {
            0 => LedgerEntry::Endpoint { key: text.into(), id },
            1 => LedgerEntry::Left { key: text.into() },
            2 => LedgerEntry::Selector { id, text: text.into() },
            _ => LedgerEntry::Identity { id, selectors: part.iter().map(|byte| u32::from(*byte)).collect() },
        }
    };
    bytes.chunks(bytes.len() / ENTRIES_MAX + 1).take(ENTRIES_MAX).map(entry).collect()
}

/// Ends of the frames whose checksum is right, read bit by bit.
fn whole_frames(bytes: &[u8]) -> Vec<usize> {
    let mut ends = Vec::new();
    let mut at = 0;
    loop {
        let word = |from: usize| {
            let bytes = bytes.get(from..from + 4)?;
            Some(bytes.iter().rev().fold(0_u64, |sum, byte| sum << 8 | u64::from(*byte)))
        };
        let (Some(length), Some(sum)) = (word(at), word(at + 4)) else { return ends };
        let document = usize::try_from(length).ok().and_then(|length| bytes.get(at + HEAD..at + HEAD + length));
        let Some(document) = document else { return ends };
        if u64::from(crc32c(document)) != sum {
            return ends;
        }
        at += HEAD + document.len();
        ends.push(at);
    }
}

/// CRC-32C without a table (RFC 3720, appendix B.4).
fn crc32c(bytes: &[u8]) -> u32 {
    const POLYNOMIAL: u32 = 0x82f6_3b78;
    let mut sum = u32::MAX;
    for byte in bytes {
        sum ^= u32::from(*byte);
        for _ in 0..8 {
            sum = if sum & 1 == 1 { sum >> 1 ^ POLYNOMIAL } else { sum >> 1 };
        }
    }
    !sum
}
