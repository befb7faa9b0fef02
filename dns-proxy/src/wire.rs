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

/// Record types that the checks know (RFC 1035 §3.2.2, 2931, 3596, 6891, 8945, 9460).
pub(crate) mod kind {
    pub(crate) const A: u16 = 1;
    pub(crate) const CNAME: u16 = 5;
    pub(crate) const SOA: u16 = 6;
    pub(crate) const SIG: u16 = 24;
    pub(crate) const AAAA: u16 = 28;
    pub(crate) const OPT: u16 = 41;
    pub(crate) const SVCB: u16 = 64;
    pub(crate) const HTTPS: u16 = 65;
    pub(crate) const TSIG: u16 = 250;
    pub(crate) const IXFR: u16 = 251;
    pub(crate) const AXFR: u16 = 252;
}

/// The class of the Internet (RFC 1035 §3.2.4).
pub(crate) const CLASS_IN: u16 = 1;

/// What is wrong with a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum WireError {
    /// It ends too early.
    #[error("the message ends inside a field")]
    Short,
    /// A pointer that no encoder writes.
    #[error("a compression pointer leads nowhere, forward or in a circle")]
    Pointer,
    /// Neither a label nor a pointer.
    #[error("a label has a reserved type")]
    Label,
    /// More than RFC 1035 allows.
    #[error("a name is longer than {NAME_WIRE_OCTETS_MAX} octets")]
    Long,
    /// An address of another length, an alias that ends early or late, service parameters that are cut off.
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

    /// Lower case, as on the wire, without the root's octet.
    pub(crate) fn octets(&self) -> &[u8] {
        &self.octets[..self.len]
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

#[cfg(test)]
mod tests {
    use hickory_proto::{
        op::{Message, Query},
        rr::{self, RData, RecordType, rdata},
    };
    use proptest::prelude::*;

    use super::*;

    fn names() -> impl Strategy<Value = rr::Name> {
        let labels = prop::collection::vec(prop::collection::vec(any::<u8>(), 1..=20), 0..6);
        labels.prop_map(|labels| rr::Name::from_labels(labels).unwrap())
    }

    fn records() -> impl Strategy<Value = rr::Record> {
        let data = prop_oneof![
            any::<[u8; 4]>().prop_map(|octets| RData::A(rdata::A(octets.into()))),
            any::<[u8; 16]>().prop_map(|octets| RData::AAAA(rdata::AAAA(octets.into()))),
            names().prop_map(|name| RData::CNAME(rdata::CNAME(name))),
            prop::collection::vec(any::<u8>(), 0..40).prop_map(|text| RData::TXT(rdata::TXT::from_bytes(vec![&text]))),
        ];
        (names(), any::<u32>(), data).prop_map(|(name, ttl, data)| rr::Record::from_rdata(name, ttl, data))
    }

    fn messages() -> impl Strategy<Value = Message> {
        (any::<u16>(), names(), prop::collection::vec(records(), 0..8)).prop_map(|(id, name, records)| {
            let mut message = Message::query();
            message.metadata.id = id;
            message.add_query(Query::query(name, RecordType::A));
            message.add_answers(records);
            message
        })
    }

    fn name_of(name: &rr::Name) -> Vec<u8> {
        let label = |label: &[u8]| [&[u8::try_from(label.len()).unwrap()], label].concat();
        name.iter().flat_map(label).collect::<Vec<_>>().to_ascii_lowercase()
    }

    proptest! {
        #[test]
        fn reads_what_another_wrote(message in messages()) {
            let octets = message.to_vec().unwrap();
            let header = Header::read(&octets).unwrap();
            prop_assert_eq!((header.id, header.questions), (message.metadata.id, 1));
            let question = Question::read(&octets).unwrap();
            let asked = Name::read(&octets, HEADER_OCTETS).unwrap().0;
            prop_assert_eq!(&asked.octets[..asked.len], name_of(message.queries[0].name()));
            prop_assert!(asked.is_at(&octets, HEADER_OCTETS).unwrap());
            let mut at = question.end;
            for want in &message.answers {
                let record = Record::read(&octets, at).unwrap();
                let owner = Name::read(&octets, record.owner).unwrap().0;
                prop_assert_eq!(&owner.octets[..owner.len], name_of(&want.name));
                prop_assert_eq!(owner.is_at(&octets, HEADER_OCTETS).unwrap(), name_of(&want.name) == name_of(message.queries[0].name()));
                prop_assert_eq!((record.kind, record.ttl), (u16::from(want.record_type()), want.ttl));
                if let RData::A(address) = &want.data {
                    prop_assert_eq!(&octets[record.data.clone()], address.0.octets());
                }
                at = record.data.end;
            }
            prop_assert_eq!((at, header.answers), (octets.len(), u16::try_from(message.answers.len()).unwrap()));
        }

        #[test]
        fn ends_on_every_input(mut octets in prop::collection::vec(any::<u8>(), 0..600), pointers in any::<bool>()) {
            if pointers {
                octets.iter_mut().step_by(2).for_each(|octet| *octet |= 0xc0);
            }
            for at in 0..octets.len() {
                if let Ok((name, end)) = Name::read(&octets, at) {
                    prop_assert!(end <= octets.len() && name.len < NAME_WIRE_OCTETS_MAX);
                    prop_assert!(name.is_at(&octets, at).unwrap());
                }
                if let Ok(record) = Record::read(&octets, at) {
                    prop_assert!(record.data.end <= octets.len());
                }
            }
        }

        #[test]
        fn damage_is_seen_or_harmless(message in messages(), at in any::<prop::sample::Index>(), octet in any::<u8>()) {
            let mut octets = message.to_vec().unwrap();
            let at = at.index(octets.len());
            octets[at] = octet;
            if let (Ok(header), Ok(question)) = (Header::read(&octets), Question::read(&octets)) {
                let _ = crate::answer::read(&octets, header, question);
            }
        }
    }

    #[test]
    fn refuses_names_that_lead_astray() {
        let at = HEADER_OCTETS;
        let long = [63_u8; 64].repeat(4);
        for (octets, want) in [
            (&[0][..], Ok(13)),
            (&[1, b'a', 0], Ok(15)),
            (&[1, b'a'], Err(WireError::Short)),
            (&[2, b'a', 0], Err(WireError::Short)),
            (&[0xc0, 12], Err(WireError::Pointer)),
            (&[0xc0, 14, 0], Err(WireError::Pointer)),
            (&[0xc0, 0], Err(WireError::Pointer)),
            (&[1, b'a', 0xc0, 12], Err(WireError::Pointer)),
            (&[0xc0], Err(WireError::Short)),
            (&[0x40, 0], Err(WireError::Label)),
            (&[0x80, 0], Err(WireError::Label)),
            (&long, Err(WireError::Long)),
        ] {
            let message = [&[0; HEADER_OCTETS], octets].concat();
            assert_eq!(walk_name(&message, at, |_| ()), want, "{octets:02x?}");
        }
    }

    #[test]
    fn pointers_are_followed_a_bounded_number_of_times() {
        for (hops, want) in [(POINTERS_MAX, true), (POINTERS_MAX + 1, false)] {
            let mut message = vec![0; HEADER_OCTETS + 2];
            for hop in 0..hops {
                let target = u16::try_from(if hop == 0 { HEADER_OCTETS } else { message.len() - 2 }).unwrap();
                message.extend((0xc000 | target).to_be_bytes());
            }
            assert_eq!(walk_name(&message, message.len() - 2, |_| ()).is_ok(), want, "{hops} hops");
        }
    }

    #[test]
    fn questions_are_compared_without_case_but_their_type_exactly() {
        // 0x41 and 0x61 are one letter in two cases, and two types.
        let question = |name: &[u8; 3], kind: u8| [&[0; HEADER_OCTETS][..], &[3], name, &[0, 0, kind, 0, 1]].concat();
        let asked = question(b"abc", 0x41);
        let end = asked.len();
        assert!(same_question(&asked, &question(b"aBC", 0x41), end));
        assert!(!same_question(&asked, &question(b"abd", 0x41), end));
        assert!(!same_question(&asked, &question(b"abc", 0x61), end));
        assert!(!same_question(&asked, &asked[..end - 1], end));
    }
}
