//! A client's message as a question, or why it is none.

use crate::{
    counters::Outcome,
    reply::{FORMERR, NOTIMP},
    wire::{HEADER_OCTETS, Header, Question, Record, WireError, kind},
};

/// A client that says nothing else takes this many octets over UDP (RFC 1035 §4.2.1).
pub(crate) const UDP_OCTETS: usize = 512;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Transport {
    Udp,
    Tcp,
}

/// The facts of the client's question that are needed to the end.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Asked {
    pub(crate) question: Question,
    pub(crate) has_edns: bool,
    /// Octets that a reply may have.
    pub(crate) reply_octets_max: usize,
}

/// A question that is answered at once; its octets up to `question_end` go back.
pub(crate) struct BadQuery {
    pub(crate) rcode: u8,
    pub(crate) outcome: Outcome,
    pub(crate) question_end: usize,
}

impl BadQuery {
    fn malformed(question_end: usize) -> Self {
        Self { rcode: FORMERR, outcome: Outcome::BadQuery, question_end }
    }

    fn not_implemented(question_end: usize) -> Self {
        Self { rcode: NOTIMP, outcome: Outcome::NotImplemented, question_end }
    }
}

pub(crate) fn read_query(message: &[u8], header: Header, transport: Transport) -> Result<Asked, BadQuery> {
    if header.opcode() != 0 {
        return Err(BadQuery::not_implemented(HEADER_OCTETS));
    }
    let question = Question::read(message).ok().filter(|_| header.questions == 1);
    let question = question.ok_or(BadQuery::malformed(HEADER_OCTETS))?;
    // A zone is not one message (RFC 5936 §2.2).
    if matches!(question.kind, kind::AXFR | kind::IXFR) {
        return Err(BadQuery::not_implemented(question.end));
    }
    let edns_octets = edns_octets(message, header, question.end).map_err(|_| BadQuery::malformed(question.end))?;
    let reply_octets_max = match transport {
        Transport::Udp => edns_octets.map_or(UDP_OCTETS, |octets| usize::from(octets).max(UDP_OCTETS)),
        Transport::Tcp => usize::from(u16::MAX),
    };
    Ok(Asked { question, has_edns: edns_octets.is_some(), reply_octets_max })
}

/// The payload size that the OPT record of a question names (RFC 6891 §6.1.2).
fn edns_octets(message: &[u8], header: Header, question_end: usize) -> Result<Option<u16>, WireError> {
    let (mut at, mut octets) = (question_end, None);
    for _ in 0..u32::from(header.answers) + u32::from(header.authorities) + u32::from(header.additionals) {
        let record = Record::read(message, at)?;
        at = record.data.end;
        if record.kind == kind::OPT {
            octets = Some(record.class);
        }
    }
    Ok(octets)
}
