//! Replies that the proxy writes itself: errors with their reason (RFC 8914), and the short form of a reply that is too
//! long. They are made in place of a message with the same header and question, so the client's own octets go back.

use crate::wire::{CLASS_IN, HEADER_OCTETS, kind};

/// Response codes (RFC 1035 §4.1.1).
pub(crate) const NOERROR: u8 = 0;
pub(crate) const FORMERR: u8 = 1;
pub(crate) const SERVFAIL: u8 = 2;
pub(crate) const NXDOMAIN: u8 = 3;
pub(crate) const NOTIMP: u8 = 4;
pub(crate) const REFUSED: u8 = 5;

/// How long a client may remember that a name is not there, in seconds: rules may change.
const NEGATIVE_TTL_S: u32 = 5;
/// Octets of the text of an extended error; more is cut off, so that header, question, records and text fit the 512 octets
/// that every client takes.
const TEXT_OCTETS_MAX: usize = 160;

/// UDP payload that the proxy says it can take, in octets (RFC 9715 §3.1 names 1400 at most; 1232 fits every IPv6 path).
const EDNS_OCTETS: u16 = 1232;
/// Option code of an extended error (RFC 8914 §2).
const EXTENDED_ERROR: u16 = 15;

/// An extended error: its number (RFC 8914 §5.2) and words for people.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ExtendedError {
    pub(crate) code: u16,
    pub(crate) text: String,
}

impl ExtendedError {
    pub(crate) fn other(text: &impl ToString) -> Self {
        Self { code: 0, text: text.to_string() }
    }

    pub(crate) fn blocked(text: &str) -> Self {
        Self { code: 15, text: text.to_owned() }
    }

    pub(crate) fn prohibited(text: &str) -> Self {
        Self { code: 18, text: text.to_owned() }
    }

    pub(crate) fn no_reachable_authority(text: &str) -> Self {
        Self { code: 22, text: text.to_owned() }
    }

    pub(crate) fn network_error(text: &str) -> Self {
        Self { code: 23, text: text.to_owned() }
    }
}

/// Turns a message whose question ends at `question_end` into an error reply. Without EDNS in the question there is no
/// place for the extended error (RFC 6891 §7).
pub(crate) fn make_error(
    message: &mut Vec<u8>,
    question_end: usize,
    edns: bool,
    rcode: u8,
    why: Option<&ExtendedError>,
) {
    make_bare(message, question_end, rcode);
    if edns {
        append_opt(message, why);
    }
}

/// Turns a message into the reply that there is no such name, or with `NOERROR` no such record of it: with the SOA record
/// that lets it be remembered for a short time (RFC 2308 §2 and §5).
pub(crate) fn make_negative(
    message: &mut Vec<u8>,
    question_end: usize,
    edns: bool,
    rcode: u8,
    why: Option<&ExtendedError>,
) {
    make_bare(message, question_end, rcode);
    append_soa(message);
    if edns {
        append_opt(message, why);
    }
}

/// Turns a message into a truncated reply without records: the client asks again over TCP (RFC 2181 §9).
pub(crate) fn make_truncated(message: &mut Vec<u8>, question_end: usize, edns: bool) {
    make_bare(message, question_end, 0);
    message[2] |= 0x02;
    if edns {
        append_opt(message, None);
    }
}

/// Header and question: QR set, opcode and RD kept, AA and TC clear, RA set.
fn make_bare(message: &mut Vec<u8>, question_end: usize, rcode: u8) {
    message.truncate(question_end.max(HEADER_OCTETS));
    message[2] = 0x80 | message[2] & 0x79;
    message[3] = 0x80 | message[3] & 0x10 | rcode;
    let questions = u8::from(question_end > HEADER_OCTETS);
    message[4..HEADER_OCTETS].copy_from_slice(&[0, questions, 0, 0, 0, 0, 0, 0]);
}

/// A zone of nobody above the question's name: the root is its server and its owner.
fn append_soa(message: &mut Vec<u8>) {
    let first = message.get(HEADER_OCTETS).copied().map_or(0, u16::from);
    // What follows the first label stands in the question; the root's octet where the name has one label.
    let parent = if first == 0 { 12 } else { 13 + first };
    message[9] = 1;
    message.extend((0xc000 | parent).to_be_bytes());
    message.extend([kind::SOA, CLASS_IN].into_iter().flat_map(u16::to_be_bytes));
    message.extend(NEGATIVE_TTL_S.to_be_bytes());
    message.extend(22_u16.to_be_bytes());
    message.extend([0, 0]);
    // Serial, refresh, retry, expire; the last is the negative TTL.
    message.extend([1, 3_600, 600, 86_400, NEGATIVE_TTL_S].into_iter().flat_map(u32::to_be_bytes));
}

fn append_opt(message: &mut Vec<u8>, why: Option<&ExtendedError>) {
    message[11] = 1;
    message.push(0);
    message.extend(kind::OPT.to_be_bytes());
    message.extend(EDNS_OCTETS.to_be_bytes());
    message.extend([0; 4]);
    let text = why.map_or("", |error| error.text.as_str());
    let text = &text[..text.floor_char_boundary(TEXT_OCTETS_MAX)];
    let text_octets = u16::try_from(text.len()).unwrap_or(0);
    match why {
        None => message.extend([0; 2]),
        Some(error) => {
            for field in [text_octets + 6, EXTENDED_ERROR, text_octets + 2, error.code] {
                message.extend(field.to_be_bytes());
            }
            message.extend(&text.as_bytes()[..usize::from(text_octets)]);
        }
    }
}
