//! A bounded walk over DNS messages (RFC 1035 §4.1): header, names, records. It knows where things are and that they lie
//! inside the message, not what they mean. It copies nothing but names, and ends on every input.

use std::ops::Range;

use namegate_config::name::Fqdn;

/// Octets of a message's header (RFC 1035 §4.1.1).
pub(crate) const HEADER_OCTETS: usize = 12;
/// Octets of a name with its length octets and the root's (RFC 1035 §2.3.4).
const NAME_WIRE_OCTETS_MAX: usize = 255;
/// Compression pointers followed within one name; one for each label that fits is more than any encoder writes.
const POINTERS_MAX: usize = 127;

/// Record types that the checks know (RFC 1035 §3.2.2, 3596, 6891, 9460).
pub(crate) mod kind {
    pub(crate) const A: u16 = 1;
    pub(crate) const CNAME: u16 = 5;
    pub(crate) const AAAA: u16 = 28;
    pub(crate) const OPT: u16 = 41;
    pub(crate) const SVCB: u16 = 64;
    pub(crate) const HTTPS: u16 = 65;
    pub(crate) const IXFR: u16 = 251;
    pub(crate) const AXFR: u16 = 252;
}

/// The class of the Internet (RFC 1035 §3.2.4).
pub(crate) const CLASS_IN: u16 = 1;

/// What is wrong with a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum WireError {
    #[error("the message ends inside a field")]
    Short,
    #[error("a compression pointer leads nowhere, forward or in a circle")]
    Pointer,
    #[error("a label has a reserved type")]
    Label,
    #[error("a name is longer than {NAME_WIRE_OCTETS_MAX} octets")]
    Long,
    #[error("a record's data does not fit its type")]
    Data,
}

/// The twelve octets before the question.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Header {
    pub(crate) id: u16,
    flags: u16,
    pub(crate) questions: u16,
    pub(crate) answers: u16,
    pub(crate) authorities: u16,
    pub(crate) additionals: u16,
}

impl Header {
    pub(crate) fn read(message: &[u8]) -> Result<Self, WireError> {
        Ok(Self {
            id: number(message, 0)?,
            flags: number(message, 2)?,
            questions: number(message, 4)?,
            answers: number(message, 6)?,
            authorities: number(message, 8)?,
            additionals: number(message, 10)?,
        })
    }

    pub(crate) fn is_response(self) -> bool {
        self.flags & 0x8000 != 0
    }

    pub(crate) fn opcode(self) -> u16 {
        self.flags >> 11 & 0xf
    }

    pub(crate) fn is_truncated(self) -> bool {
        self.flags & 0x0200 != 0
    }

    /// The lower four bits of the response code; zero is NOERROR.
    pub(crate) fn rcode(self) -> u16 {
        self.flags & 0xf
    }
}

/// The one question of a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Question {
    pub(crate) kind: u16,
    pub(crate) class: u16,
    /// The octet after it.
    pub(crate) end: usize,
}

impl Question {
    /// Reads the question after the header. Nothing but the header comes before it, so its name is never compressed.
    pub(crate) fn read(message: &[u8]) -> Result<Self, WireError> {
        let name_end = walk_name(message, HEADER_OCTETS, |_| ())?;
        Ok(Self { kind: number(message, name_end)?, class: number(message, name_end + 2)?, end: name_end + 4 })
    }
}

/// Whether two messages ask the same: names compared without case (RFC 4343), type and class exactly.
pub(crate) fn same_question(message: &[u8], other: &[u8], end: usize) -> bool {
    let (Some(one), Some(two)) = (message.get(HEADER_OCTETS..end), other.get(HEADER_OCTETS..end)) else { return false };
    let Some(name_octets) = one.len().checked_sub(4) else { return false };
    one[..name_octets].eq_ignore_ascii_case(&two[..name_octets]) && one[name_octets..] == two[name_octets..]
}

/// A name without compression, lower case, in the form of the wire.
#[derive(Clone, Copy)]
pub(crate) struct Name {
    octets: [u8; NAME_WIRE_OCTETS_MAX],
    len: usize,
}

impl Name {
    /// Reads the name at an octet of the message; also the octet after it.
    pub(crate) fn read(message: &[u8], at: usize) -> Result<(Self, usize), WireError> {
        let mut name = Self { octets: [0; NAME_WIRE_OCTETS_MAX], len: 0 };
        let end = walk_name(message, at, |label| name.push(label))?;
        Ok((name, end))
    }

    /// `walk_name` has checked that label and root fit.
    fn push(&mut self, label: &[u8]) {
        let start = self.len + 1;
        self.octets[self.len] = u8::try_from(label.len()).unwrap_or(u8::MAX);
        self.octets[start..start + label.len()].copy_from_slice(label);
        self.octets[start..start + label.len()].make_ascii_lowercase();
        self.len = start + label.len();
    }

    /// Whether the name at an octet of the message is this one.
    pub(crate) fn is_at(&self, message: &[u8], at: usize) -> Result<bool, WireError> {
        let mut rest = &self.octets[..self.len];
        let mut same = true;
        walk_name(message, at, |label| {
            same = same
                && rest.first().is_some_and(|len| usize::from(*len) == label.len())
                && rest[1..=label.len()].eq_ignore_ascii_case(label);
            rest = if same { &rest[1 + label.len()..] } else { &[] };
        })?;
        Ok(same && rest.is_empty())
    }

    /// The name, where every label is representable; a dot inside a label is not a separator (RFC 2181 §11).
    pub(crate) fn fqdn(&self) -> Option<Fqdn> {
        let mut text = String::with_capacity(self.len + 1);
        let mut rest = &self.octets[..self.len];
        while let Some((len, after)) = rest.split_first() {
            let (label, after) = after.split_at_checked(usize::from(*len))?;
            if label.contains(&b'.') {
                return None;
            }
            text.push_str(str::from_utf8(label).ok()?);
            text.push('.');
            rest = after;
        }
        if text.is_empty() {
            text.push('.');
        }
        text.parse().ok()
    }
}

/// Calls `each` with the labels of the name at an octet; returns the octet after the name as it stands there.
///
/// A pointer leads to an octet before the run of labels it ends (RFC 1035 §4.1.4: "a prior occurrence"), so runs move
/// down and no walk is endless.
pub(crate) fn walk_name(message: &[u8], at: usize, mut each: impl FnMut(&[u8])) -> Result<usize, WireError> {
    let (mut position, mut run, mut end) = (at, at, None);
    let (mut octets, mut pointers) = (1, 0);
    loop {
        let first = *message.get(position).ok_or(WireError::Short)?;
        match first {
            0 => return Ok(end.unwrap_or(position + 1)),
            1..=63 => {
                let start = position + 1;
                position = start + usize::from(first);
                let label = message.get(start..position).ok_or(WireError::Short)?;
                octets += 1 + label.len();
                if octets > NAME_WIRE_OCTETS_MAX {
                    return Err(WireError::Long);
                }
                each(label);
            }
            64..=191 => return Err(WireError::Label),
            192.. => {
                let target = usize::from(number(message, position)? & 0x3fff);
                pointers += 1;
                if target >= run || target < HEADER_OCTETS || pointers > POINTERS_MAX {
                    return Err(WireError::Pointer);
                }
                end = end.or(Some(position + 2));
                (position, run) = (target, target);
            }
        }
    }
}

/// One resource record (RFC 1035 §4.1.3).
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Record {
    /// The octet where its owner's name starts.
    pub(crate) owner: usize,
    pub(crate) kind: u16,
    pub(crate) class: u16,
    /// As on the wire.
    pub(crate) ttl: u32,
    /// Where its data lies in the message.
    pub(crate) data: Range<usize>,
}

impl Record {
    /// Reads the record at an octet; the next one starts where its data ends.
    pub(crate) fn read(message: &[u8], owner: usize) -> Result<Self, WireError> {
        let at = walk_name(message, owner, |_| ())?;
        let data = at + 10..at + 10 + usize::from(number(message, at + 8)?);
        if data.end > message.len() {
            return Err(WireError::Short);
        }
        let ttl = u32::from(number(message, at + 4)?) << 16 | u32::from(number(message, at + 6)?);
        Ok(Self { owner, kind: number(message, at)?, class: number(message, at + 2)?, ttl, data })
    }
}

/// The 16-bit number at an octet, in network order.
pub(crate) fn number(message: &[u8], at: usize) -> Result<u16, WireError> {
    let octets = message.get(at..).and_then(<[u8]>::first_chunk).ok_or(WireError::Short)?;
    Ok(u16::from_be_bytes(*octets))
}
