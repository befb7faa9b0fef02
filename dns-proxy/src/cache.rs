//! Answers kept to be given again, with what is left of their TTLs (RFC 1035 §7.4, RFC 2308, RFC 2181 §8). It knows no socket
//! and no clock.
//!
//! An answer is kept for questions that are the same octet by octet but for the ID and the case of the name, to the same
//! resolver. It is kept whole, or not at all: it ends with the first of its records. What its asker alone should have is
//! not kept: answers to questions with EDNS options (client subnet, cookies) or signatures.

use std::{
    collections::hash_map::RandomState,
    hash::BuildHasher,
    net::SocketAddr,
    sync::{Mutex, MutexGuard, PoisonError},
    time::Instant,
};

use lru::LruCache;

use crate::{
    answer::ttl,
    wire::{CLASS_IN, HEADER_OCTETS, Header, Name, Question, Record, kind, number},
};

/// Octets of an answer that is kept; a longer one is asked for each time.
const ANSWER_OCTETS_MAX: usize = 4_096;
/// An answer is kept so long at most, in seconds.
const TTL_MAX_S: u32 = 3_600;
/// The same for one that says that there is no such name or record, in seconds.
const DENIAL_TTL_MAX_S: u32 = 900;
/// Parts with a lock each.
const SHARDS_MAX: usize = 16;
/// No part is smaller than this, where there are several.
const SHARD_ANSWERS_MIN: usize = 64;
/// Flag of OPT by which DNSSEC's records are asked for (RFC 3225 §3).
const DNSSEC_OK: u32 = 0x8000;
/// Octets of an SOA record's data with the shortest names; the last four are the negative TTL (RFC 1035 §3.3.13).
const SOA_OCTETS_MIN: usize = 22;
/// Flag of the header: the server is an authority. A cache is none.
const AUTHORITATIVE: u8 = 0x04;

/// What an answer is kept under.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Key {
    resolver: SocketAddr,
    /// As on the wire, lower case.
    name: Box<[u8]>,
    kind: u16,
    /// Those of the header, as asked.
    flags: u16,
    edns: Edns,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Edns {
    Absent,
    Plain,
    Dnssec,
}

impl Key {
    /// None where the answer to this message is not to be kept.
    pub(crate) fn of(resolver: SocketAddr, message: &[u8]) -> Option<Self> {
        let header = Header::read(message).ok()?;
        let question = Question::read(message).ok()?;
        if header.answers > 0 || header.authorities > 0 || question.class != CLASS_IN || is_meta(question.kind) {
            return None;
        }
        let (edns, end) = match header.additionals {
            0 => (Edns::Absent, question.end),
            1 => edns(message, question.end)?,
            _ => return None,
        };
        let (name, _) = Name::read(message, HEADER_OCTETS).ok()?;
        let flags = number(message, 2).ok()?;
        (end == message.len()).then(|| Self { resolver, name: name.octets().into(), kind: question.kind, flags, edns })
    }
}

/// Pseudo-types, and types of questions that stand for several (RFC 6895 §3.1).
fn is_meta(kind: u16) -> bool {
    matches!(kind, 0 | kind::OPT | 128..=255)
}

/// An OPT record of version 0 without options at an octet of the message, and the octet after it.
fn edns(message: &[u8], at: usize) -> Option<(Edns, usize)> {
    let record = Record::read(message, at).ok()?;
    let is_plain = record.kind == kind::OPT && message[record.owner] == 0 && record.data.is_empty();
    match record.ttl {
        _ if !is_plain => None,
        0 => Some((Edns::Plain, record.data.end)),
        DNSSEC_OK => Some((Edns::Dnssec, record.data.end)),
        _ => None,
    }
}

/// One answer.
#[derive(Debug)]
struct Kept {
    octets: Box<[u8]>,
    /// Where its TTLs stand.
    ttls: Box<[u16]>,
    since: Instant,
    /// Seconds; no TTL of its records is smaller.
    lasts_s: u32,
}

impl Kept {
    /// None where the answer is not to be kept: it is neither an answer nor a denial that says how long it holds, or it
    /// holds for less than two seconds, of which nothing would be left.
    fn of(response: &[u8], now: Instant) -> Option<Self> {
        let header = Header::read(response).ok()?;
        let question = Question::read(response).ok()?;
        if response.len() > ANSWER_OCTETS_MAX || header.is_truncated() {
            return None;
        }
        let records = Records::read(response, header, question)?;
        let is_denial = match header.rcode() {
            0 => !records.has_asked,
            3 => true,
            _ => return None,
        };
        let mut octets: Box<[u8]> = response.into();
        let mut lasts_s = records.least_s;
        if is_denial {
            let (at, soa_s) = records.denial?;
            octets[at..at + 4].copy_from_slice(&soa_s.to_be_bytes());
            lasts_s = lasts_s.min(soa_s).min(DENIAL_TTL_MAX_S);
        }
        lasts_s = lasts_s.min(TTL_MAX_S);
        (lasts_s > 1).then(|| Self { octets, ttls: records.ttls.into(), since: now, lasts_s })
    }

    /// Writes it with what is left of its TTLs in whole seconds, rounded down. False where nothing is left.
    fn write(&self, now: Instant, out: &mut Vec<u8>) -> bool {
        let age = now.saturating_duration_since(self.since);
        let age_s = u32::try_from(age.as_secs()).unwrap_or(u32::MAX).saturating_add(u32::from(age.subsec_nanos() > 0));
        if age_s >= self.lasts_s {
            return false;
        }
        out.clear();
        out.extend_from_slice(&self.octets);
        out[2] &= !AUTHORITATIVE;
        for at in self.ttls.iter().map(|at| usize::from(*at)) {
            if let Some(octets) = out[at..].first_chunk_mut() {
                *octets = u32::from_be_bytes(*octets).saturating_sub(age_s).to_be_bytes();
            }
        }
        true
    }
}

/// What one pass over the records of an answer found.
struct Records {
    ttls: Vec<u16>,
    /// The smallest TTL, in seconds.
    least_s: u32,
    /// A record of the asked type is in the answer section.
    has_asked: bool,
    /// Where the TTL of the SOA record in the authority section stands, and how long it lets a denial hold: the smaller
    /// of its TTL and its last field (RFC 2308 §5).
    denial: Option<(usize, u32)>,
}

impl Records {
    /// None where a record is not to be kept, or octets follow after the last.
    fn read(response: &[u8], header: Header, question: Question) -> Option<Self> {
        let mut found = Self { ttls: Vec::new(), least_s: u32::MAX, has_asked: false, denial: None };
        let (answers, authorities) = (u32::from(header.answers), u32::from(header.authorities));
        let mut at = question.end;
        for place in 0..answers + authorities + u32::from(header.additionals) {
            let record = Record::read(response, at).ok()?;
            at = record.data.end;
            match record.kind {
                // Without options, and with nothing that the header does not say.
                kind::OPT if record.data.is_empty() && record.ttl & !DNSSEC_OK == 0 => continue,
                kind::OPT | kind::TSIG | kind::SIG => return None,
                _ => {}
            }
            let (ttl_s, ttl_at) = (ttl(record.ttl), record.data.start - 6);
            if place < answers {
                found.has_asked |= record.kind == question.kind;
            } else if place < answers + authorities && record.kind == kind::SOA && record.data.len() >= SOA_OCTETS_MIN {
                let minimum = response[..record.data.end].last_chunk().map(|octets| u32::from_be_bytes(*octets))?;
                found.denial = found.denial.or(Some((ttl_at, ttl_s.min(ttl(minimum)))));
            }
            found.ttls.push(u16::try_from(ttl_at).ok()?);
            found.least_s = found.least_s.min(ttl_s);
        }
        (at == response.len()).then_some(found)
    }
}

type Shard = LruCache<Key, Kept, RandomState>;

/// The answers; the workers share them.
#[derive(Debug)]
pub(crate) struct Cache {
    shards: Box<[Mutex<Shard>]>,
    shard_answers_max: usize,
    hasher: RandomState,
}

impl Cache {
    /// Keeps so many answers at most; the one not asked for longest makes room.
    pub(crate) fn new(answers_max: usize) -> Self {
        let shards = (answers_max / SHARD_ANSWERS_MIN).clamp(1, SHARDS_MAX);
        let shard = || Mutex::new(Shard::unbounded_with_hasher(RandomState::new()));
        Self {
            shards: std::iter::repeat_with(shard).take(shards).collect(),
            shard_answers_max: answers_max / shards,
            hasher: RandomState::new(),
        }
    }

    /// Writes the answer that is kept under this key with what is left of its TTLs; false where there is none.
    pub(crate) fn recall(&self, key: &Key, now: Instant, out: &mut Vec<u8>) -> bool {
        let mut shard = self.shard(key);
        let Some(kept) = shard.get(key) else { return false };
        let is_fresh = kept.write(now, out);
        if !is_fresh {
            shard.pop(key);
        }
        is_fresh
    }

    /// Keeps an answer, where it may be kept; returns how many others made room.
    pub(crate) fn keep(&self, key: Key, response: &[u8], now: Instant) -> u64 {
        let Some(kept) = Kept::of(response, now) else { return 0 };
        let mut shard = self.shard(&key);
        shard.put(key, kept);
        let mut evicted = 0;
        while shard.len() > self.shard_answers_max {
            shard.pop_lru();
            evicted += 1;
        }
        evicted
    }

    /// Answers that are kept, those that have ended and were not asked for since among them.
    pub(crate) fn len(&self) -> usize {
        self.shards.iter().map(|shard| shard.lock().unwrap_or_else(PoisonError::into_inner).len()).sum()
    }

    /// Drops all answers.
    pub(crate) fn clear(&self) {
        for shard in &self.shards {
            shard.lock().unwrap_or_else(PoisonError::into_inner).clear();
        }
    }

    fn shard(&self, key: &Key) -> MutexGuard<'_, Shard> {
        let place = usize::try_from(self.hasher.hash_one(key)).unwrap_or_default() % self.shards.len();
        self.shards[place].lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests;
