//! What connections begin with, copied by the kernel: the name that each asks for is held against those that opened its
//! address. Nothing waits for it but the datagrams that are in [`super::quic_hold`].

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use namegate_abi::{
    DTLS_HEAD_BYTES, OPENINGS_PER_FLOW, OpeningRecord, is_dtls, is_dtls_handshake, opening_flags, protocol,
};
use namegate_api::view::Flow;
use namegate_config::{name::Fqdn, rule::Binding};
use namegate_enforcer::{Reader, View};
use namegate_l7_proxy::{
    quic::{Flight, Heard},
    sniff::{self, FirstHost, OPENING_OCTETS_MAX},
};
use namegate_loader::{Opening, Openings};

use super::{
    asked_names::{Check, Checks, Seen, datagrams, is_quic, judge},
    clock,
    fair_cache::FairCache,
    flows::Flows,
    named_flows::NamedFlows,
    quic_hold::{Judging, Waiting},
    refusals::{Bound, Refusals},
};

/// Connections that are gathered at a time; of an endpoint that has its share, the one not seen for longest gives way.
const GATHERED_MAX: usize = 4_096;
/// How often is looked for datagrams that have waited too long.
const LOOK: Duration = Duration::from_secs(1);
/// Copies looked at in one go.
const BATCH_MAX: usize = 256;
/// A connection that has said nothing for so long goes on without a name, or not at all: that it gives way is no loss.
const SILENT_NS: u64 = 10_000_000_000;
/// After this long the ports of a UDP flow are another's.
const UDP_IDLE_NS: u64 = 120_000_000_000;

/// What the first bytes of a flow come to.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Found {
    /// Not enough of them.
    Partial,
    /// A protocol without names.
    Nameless,
    /// The name asked for.
    Asked(Option<Fqdn>),
}

/// Whether a datagram begins with a record of DTLS, or a message of a handshake stands anywhere in it.
fn is_of_dtls(datagram: &[u8]) -> bool {
    let mut places = datagram.windows(DTLS_HEAD_BYTES);
    datagram.first_chunk().is_some_and(|head| is_dtls(*head))
        || places.any(|place| place.first_chunk().is_some_and(|head| is_dtls_handshake(*head)))
}

/// One connection's first bytes, from segments in any order.
#[derive(Debug)]
struct Gathered {
    began_ns: u64,
    /// When its last copy was made.
    heard_ns: u64,
    /// Sequence number of the first octet.
    base: u32,
    bytes: Vec<u8>,
    /// Segments after a gap.
    ahead: BTreeMap<u32, Vec<u8>>,
    segments: u8,
    /// UDP: what its datagrams said.
    flight: Flight,
    done: bool,
}

impl Gathered {
    fn new(opening: &Opening) -> Self {
        Self {
            began_ns: opening.record.time_ns,
            heard_ns: opening.record.time_ns,
            base: opening.record.sequence,
            bytes: Vec::new(),
            ahead: BTreeMap::new(),
            segments: 0,
            flight: Flight::observed(),
            done: false,
        }
    }

    /// Gives back the memory of what was read.
    fn forget(&mut self) {
        self.bytes = Vec::new();
        self.ahead = BTreeMap::new();
        self.flight = Flight::observed();
    }

    /// Whether the packet can be one of this connection: its ports may have been used again.
    fn fits(&self, record: &OpeningRecord) -> bool {
        match record.flow.protocol {
            protocol::TCP => (record.sequence.wrapping_sub(self.base) as usize) < OPENING_OCTETS_MAX,
            _ => record.time_ns.saturating_sub(self.began_ns) < UDP_IDLE_NS,
        }
    }

    /// Hears what datagrams say.
    fn hear(&mut self, opening: &Opening) -> Found {
        self.segments += 1;
        let mut found = Found::Partial;
        for datagram in datagrams(opening) {
            if is_of_dtls(datagram) {
                return Found::Asked(None);
            }
            if !is_quic(datagram) {
                if self.segments == 1 {
                    return Found::Nameless;
                }
                continue;
            }
            match self.flight.read(datagram, |_| true) {
                Heard::Asks(_, name) => found = Found::Asked(name),
                Heard::OtherVersion | Heard::Refused(_) => return Found::Asked(None),
                Heard::Known | Heard::Partial(_) | Heard::Completes(_) | Heard::Unread => {}
            }
        }
        found
    }

    fn add(&mut self, sequence: u32, bytes: Vec<u8>) {
        self.segments += 1;
        self.ahead.insert(sequence.wrapping_sub(self.base), bytes);
        while let Some(entry) = self.ahead.first_entry()
            && *entry.key() as usize <= self.bytes.len()
        {
            let at = *entry.key() as usize;
            let bytes = entry.remove();
            // A part of it may have come before.
            self.bytes.extend(bytes.get(self.bytes.len() - at..).unwrap_or_default());
        }
    }

    fn found(&self) -> Found {
        let host = |is_http2| match sniff::first_host(&self.bytes, is_http2) {
            FirstHost::Partial => Found::Partial,
            FirstHost::Whole(name) => Found::Asked(name),
            FirstHost::Malformed => Found::Asked(None),
        };
        match sniff::read(&self.bytes) {
            Ok(sniff::Opening::Partial) => Found::Partial,
            Ok(sniff::Opening::Other) => Found::Nameless,
            Ok(sniff::Opening::Tls(name)) => Found::Asked(name),
            Ok(sniff::Opening::Http) => host(false),
            Ok(sniff::Opening::Http2) => host(true),
            Err(_) => Found::Asked(None),
        }
    }
}

/// Reads copies as they come, until the task is ended.
pub(crate) async fn follow(
    (openings, named): (Openings, NamedFlows),
    (reader, refusals): (Reader, Arc<Refusals>),
    flows: Arc<Flows>,
    checks: Arc<Checks>,
    mark: u32,
) -> anyhow::Result<()> {
    let mut openings = openings.into_async()?;
    let mut gathered = FairCache::new(GATHERED_MAX);
    let mut waiting = Waiting::new(mark);
    let mut look = tokio::time::interval(LOOK);
    loop {
        let mut ready = tokio::select! {
            ready = openings.readable_mut() => ready?,
            _ = look.tick() => {
                waiting.expire(clock::boot_ns(), &checks);
                continue;
            }
        };
        loop {
            let source = ready.get_inner_mut();
            let batch: Vec<Opening> = std::iter::from_fn(|| source.next()).take(BATCH_MAX).collect();
            if batch.is_empty() {
                break;
            }
            let mut seen = Vec::new();
            for opening in batch {
                if opening.record.flags & opening_flags::HELD != 0 {
                    let judging = Judging { reader: &reader, named: &named, checks: &checks, refusals: &refusals };
                    let told = waiting.take(&opening, judging);
                    flows.tell(told.into_iter().collect());
                } else {
                    seen.extend(take(&mut gathered, opening, &checks, &refusals));
                }
            }
            if seen.is_empty() {
                continue;
            }
            let judged = judge_all(&reader.view(), &seen);
            for one in &judged {
                checks.count(if one.is_some() { Check::Mismatched } else { Check::Matched });
            }
            flows.tell(judged.into_iter().flatten().collect());
        }
        ready.clear_ready();
    }
}

/// The records of connections that would not pass where names were enforced.
fn judge_all(view: &View<'_>, seen: &[Seen]) -> Vec<Option<Flow>> {
    seen.iter().map(|one| judge(view, one, Binding::Observe).refused()).collect()
}

/// Adds a copy to what is known of its connection; gives that once it is known what it asks for.
fn take(gathered: &mut FairCache<Gathered>, opening: Opening, checks: &Checks, refusals: &Refusals) -> Option<Seen> {
    let record = opening.record;
    if !gathered.contains(&record.flow)
        && let Some((gone, state)) = gathered.push(record.flow, Gathered::new(&opening))
        && !state.done
    {
        checks.count_unread(gone.endpoint);
        if record.time_ns.saturating_sub(state.heard_ns) < SILENT_NS {
            refusals.count(Bound::Handshakes, gone.endpoint);
        }
    }
    let known = gathered.get_mut(&record.flow)?;
    known.heard_ns = record.time_ns;
    if !known.fits(&record) {
        *known = Gathered::new(&opening);
    }
    if known.done {
        return None;
    }
    let found = match record.flow.protocol {
        protocol::TCP => {
            known.add(record.sequence, opening.octets);
            known.found()
        }
        _ => known.hear(&opening),
    };
    known.done = found != Found::Partial || known.segments >= OPENINGS_PER_FLOW;
    if known.done {
        known.forget();
    }
    match found {
        Found::Asked(asked) => {
            return Some(Seen {
                flow: record.flow,
                rule: record.rule,
                began_ns: known.began_ns,
                asked,
                known: Vec::new(),
            });
        }
        Found::Nameless => checks.count(Check::Nameless),
        Found::Partial if known.done => checks.count_unread(record.flow.endpoint),
        Found::Partial => {}
    }
    None
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use namegate_abi::FlowKey;

    use super::*;

    fn opening(port: u16, sequence: u32, octets: &[u8]) -> Opening {
        let flow = FlowKey { local_port: port, protocol: protocol::TCP, ..FlowKey::default() };
        Opening { record: OpeningRecord { flow, sequence, ..OpeningRecord::default() }, octets: octets.to_vec() }
    }

    const HEAD: &[u8] = b"GET / HTTP/1.1\r\nHost: a.io\r\n\r\n";

    #[test]
    fn segments_in_any_order_are_put_together_once() {
        let checks = Checks::default();
        let mut gathered = FairCache::new(GATHERED_MAX);
        let mut take = |sequence: u32, from: usize, to: usize| {
            let seen = take(
                &mut gathered,
                opening(1, sequence.wrapping_add(u32::try_from(from).unwrap()), &HEAD[from..to]),
                &checks,
                &Refusals::default(),
            );
            seen.map(|seen| seen.asked.map(|name| name.to_string()))
        };
        let name = Some(Some("a.io".to_owned()));
        // The numbers go round.
        let base = u32::MAX - 8;
        assert_eq!(take(base, 0, 6), None);
        assert_eq!(take(base, 20, HEAD.len()), None);
        assert_eq!(take(base, 3, 21), name, "the gap is filled, and more");
        assert_eq!(take(base, 0, HEAD.len()), None, "told once");
        assert_eq!(take(base.wrapping_add(100_000), 0, HEAD.len()), name, "the same ports again");
    }

    #[test]
    fn what_gives_way_is_refused_where_it_was_still_heard() {
        for (after_ns, is_refused) in [(SILENT_NS - 1, true), (SILENT_NS, false)] {
            let (checks, refusals) = (Checks::default(), Refusals::default());
            let mut gathered = FairCache::new(1);
            for (port, time_ns) in [(1, 0), (2, after_ns)] {
                let mut opening = opening(port, 0, b"GET /");
                opening.record.time_ns = time_ns;
                assert_eq!(take(&mut gathered, opening, &checks, &refusals), None);
            }
            assert_eq!(gathered.len(), 1);
            assert_eq!(!refusals.ongoing(Instant::now()).is_empty(), is_refused, "after {after_ns} ns");
        }
    }

    #[test]
    fn what_is_never_whole_is_counted_and_forgotten() {
        let checks = Checks::default();
        let mut gathered = FairCache::new(GATHERED_MAX);
        for (port, octets) in [(1, &b"GET /"[..]), (2, b"\0\x01")] {
            for at in 0..u32::from(OPENINGS_PER_FLOW) {
                let seen = take(&mut gathered, opening(port, at * 5, octets), &checks, &Refusals::default());
                assert_eq!(seen, None);
            }
        }
        let counts: Vec<u64> = checks.counters(3).into_iter().map(|counters| counters.count).collect();
        assert_eq!(counts, [0, 0, 1, 1, 0, 0, 3]);
        assert!(gathered.values().all(|one| one.done && one.bytes.is_empty() && one.ahead.is_empty()));
    }

    #[test]
    fn handshakes_of_one_endpoint_that_never_end_leave_those_of_another() {
        let (checks, refusals) = (Checks::default(), Refusals::default());
        let mut gathered = FairCache::new(GATHERED_MAX);
        let of = |endpoint, port, at: usize, end| {
            let mut opening = opening(port, u32::try_from(at).unwrap(), &HEAD[at..end]);
            opening.record.flow.endpoint = endpoint;
            opening
        };
        assert_eq!(take(&mut gathered, of(2, 1, 0, 9), &checks, &refusals), None);
        for port in 0..10_000 {
            assert_eq!(take(&mut gathered, of(1, port, 0, 9), &checks, &refusals), None);
        }
        let seen = take(&mut gathered, of(2, 1, 9, HEAD.len()), &checks, &refusals);
        assert!(seen.is_some_and(|seen| seen.asked.is_some()), "the honest endpoint's name is found");
        assert!(gathered.len() <= GATHERED_MAX);
    }
}
