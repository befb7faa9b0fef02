//! What connections begin with, copied by the kernel: the name that each asks for is held against those that opened its
//! address. Nothing waits for it but the datagrams that are in [`super::held`].

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use namegate_abi::{FlowKey, OPENINGS_PER_FLOW, OpeningRecord, Reason, begins_quic, is_dtls, opening_flags, protocol};
use namegate_api::{
    rfc3339,
    view::{Direction, Flow, FlowPeer, Refused, Tally, Verdict},
};
use namegate_config::{
    name::Fqdn,
    reference::{self, Limits},
    rule::{self, Binding},
};
use namegate_engine::Engine;
use namegate_l7_proxy::{
    quic::{Flight, Heard},
    sniff::{self, FirstHost, OPENING_OCTETS_MAX},
};
use namegate_loader::{Opening, Openings};

use super::{
    clock,
    fair_cache::FairCache,
    flows::{self, Flows},
    gate::Door,
    held::Waiting,
    refusals::{Bound, Refusals},
    requests::mismatch_text,
};

/// Connections that are gathered at a time; of an endpoint that has its share, the one not seen for longest gives way.
const GATHERED_MAX: usize = 4_096;
/// How often is looked for datagrams that have waited too long.
const LOOK: Duration = Duration::from_secs(1);
/// Copies looked at in one go.
const BATCH_MAX: usize = 256;
/// After this long the ports of a UDP flow are another's.
const UDP_IDLE_NS: u64 = 120_000_000_000;

/// What became of connections, counted.
#[derive(Debug, Default)]
pub(crate) struct Checks {
    counts: [AtomicU64; WORDS.len()],
    /// Those without a name that could be looked at, by endpoint.
    unread: Refusals,
}

/// What is counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Check {
    Matched,
    Mismatched,
    Nameless,
    Unread,
    Refused,
}

const WORDS: [&str; 5] = ["matched", "mismatched", "nameless", "unread", "refused"];

/// The datagrams that a packet carried.
pub(super) fn datagrams(opening: &Opening) -> impl Iterator<Item = &[u8]> {
    let each = match usize::from(opening.record.segment) {
        0 => opening.octets.len(),
        segment => segment,
    };
    opening.octets.chunks(each.max(1))
}

/// Whether a datagram can begin a connection of QUIC.
pub(super) fn is_quic(datagram: &[u8]) -> bool {
    datagram.first_chunk().is_some_and(|head| begins_quic(*head))
}

impl Checks {
    pub(super) fn count(&self, check: Check) {
        self.counts[check as usize].fetch_add(1, Ordering::Relaxed);
    }

    /// Counts a connection of an endpoint that could not be looked at.
    pub(super) fn count_unread(&self, endpoint: u32) {
        self.count(Check::Unread);
        self.unread.count(Bound::Handshakes, endpoint);
    }

    /// Connections that could not be looked at, by endpoint.
    pub(super) fn unread(&self, engine: &Engine) -> Vec<Refused> {
        self.unread.shown(engine)
    }

    /// Every word with its count, always in the same order; `lost` are copies that the kernel could not hand over.
    pub(crate) fn tallies(&self, lost: u64) -> Vec<Tally> {
        let counts = WORDS.into_iter().zip(&self.counts).map(|(word, count)| (word, count.load(Ordering::Relaxed)));
        counts.chain([("lost", lost)]).map(|(what, count)| Tally { what: what.to_owned(), count }).collect()
    }
}

/// A connection that asks for something.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Seen {
    pub(super) flow: FlowKey,
    pub(super) rule: u32,
    pub(super) began_ns: u64,
    pub(super) asked: Option<Fqdn>,
}

/// What the first octets of a flow come to.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Found {
    /// Not enough of them.
    Partial,
    /// A protocol without names.
    Nameless,
    /// The name asked for.
    Asked(Option<Fqdn>),
}

/// One connection's first octets, from segments in any order.
#[derive(Debug)]
struct Gathered {
    began_ns: u64,
    /// Sequence number of the first octet.
    base: u32,
    octets: Vec<u8>,
    /// Segments after a gap.
    ahead: BTreeMap<u32, Vec<u8>>,
    segments: u8,
    /// UDP: what its datagrams said.
    flight: Flight,
    done: bool,
}

impl Gathered {
    fn new(opening: &Opening) -> Self {
        let (began_ns, base) = (opening.record.time_ns, opening.record.sequence);
        let (octets, ahead, flight) = (Vec::new(), BTreeMap::new(), Flight::default());
        Self { began_ns, base, octets, ahead, segments: 0, flight, done: false }
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
            if datagram.first_chunk().is_some_and(|head| is_dtls(*head)) {
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

    fn add(&mut self, sequence: u32, octets: Vec<u8>) {
        self.segments += 1;
        self.ahead.insert(sequence.wrapping_sub(self.base), octets);
        while let Some(entry) = self.ahead.first_entry()
            && *entry.key() as usize <= self.octets.len()
        {
            let (at, octets) = (*entry.key() as usize, entry.remove());
            // A part of it may have come before.
            self.octets.extend(octets.get(self.octets.len() - at..).unwrap_or_default());
        }
    }

    fn found(&self) -> Found {
        let host = |is_http2| match sniff::first_host(&self.octets, is_http2) {
            FirstHost::Partial => Found::Partial,
            FirstHost::Whole(name) => Found::Asked(name),
            FirstHost::Malformed => Found::Asked(None),
        };
        match sniff::read(&self.octets) {
            Ok(sniff::Opening::Partial) => Found::Partial,
            Ok(sniff::Opening::Other) => Found::Nameless,
            Ok(sniff::Opening::Tls(name)) => Found::Asked(name),
            Ok(sniff::Opening::Http) => host(false),
            Ok(sniff::Opening::Http2) => host(true),
            Err(_) => Found::Asked(None),
        }
    }
}

/// Reads copies as they come, until the gate stops.
pub(crate) async fn follow(
    openings: Openings,
    door: Door,
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
                    let told = waiting.take(opening, &door, &checks).await;
                    flows.tell(told.into_iter().collect());
                } else {
                    seen.extend(take(&mut gathered, opening, &checks, door.refusals()));
                }
            }
            if seen.is_empty() {
                continue;
            }
            let of_one = |engine: &Engine, one: &Seen| judge(engine, one, Binding::Observe);
            let judged =
                door.ask_always(move |gate| seen.iter().map(|one| of_one(gate.engine(), one)).collect::<Vec<_>>());
            let Ok(judged) = judged.await else { return Ok(()) };
            for one in &judged {
                checks.count(if one.is_some() { Check::Mismatched } else { Check::Matched });
            }
            flows.tell(judged.into_iter().flatten().collect());
        }
        ready.clear_ready();
    }
}

/// Adds a copy to what is known of its connection; gives that once it is known what it asks for.
fn take(gathered: &mut FairCache<Gathered>, opening: Opening, checks: &Checks, refusals: &Refusals) -> Option<Seen> {
    let record = opening.record;
    if !gathered.contains(&record.flow)
        && let Some((gone, state)) = gathered.push(record.flow, Gathered::new(&opening))
        && !state.done
    {
        checks.count_unread(gone.endpoint);
        refusals.count(Bound::Handshakes, gone.endpoint);
    }
    let known = gathered.get_mut(&record.flow)?;
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
        (known.octets, known.ahead, known.flight) = (Vec::new(), BTreeMap::new(), Flight::default());
    }
    match found {
        Found::Asked(asked) => {
            return Some(Seen { flow: record.flow, rule: record.rule, began_ns: known.began_ns, asked });
        }
        Found::Nameless => checks.count(Check::Nameless),
        Found::Partial if known.done => checks.count_unread(record.flow.endpoint),
        Found::Partial => {}
    }
    None
}

/// The record of a connection that does not pass where names are bound this strictly.
pub(super) fn judge(engine: &Engine, seen: &Seen, binding: Binding) -> Option<Flow> {
    let Seen { flow, rule, began_ns, asked } = seen;
    let (own, peer) = (flow.local.to_ip(), flow.remote.to_ip());
    let judged = reference::Flow { protocol: flow.protocol, port: flow.remote_port };
    let asking = engine.limits_asking(own, peer, judged, asked.as_ref(), binding, *began_ns);
    let whole = engine.limits(own, peer, rule::Direction::Egress, judged, *began_ns);
    if !matches!(asking, Limits::Closed(_)) || matches!(whole, Limits::Closed(_)) {
        return None;
    }
    let openers = engine.openers(own, peer, judged, binding, *began_ns);
    let fqdns: Vec<String> = openers.iter().map(ToString::to_string).collect();
    let asked = asked.as_ref().map(ToString::to_string);
    Some(Flow {
        time: rfc3339(clock::calendar(*began_ns)),
        verdict: if binding == Binding::Enforce { Verdict::Denied } else { Verdict::Audited },
        direction: Direction::Egress,
        endpoint: flows::endpoint(engine, flow.endpoint),
        reason_text: mismatch_text(asked.as_deref(), &fqdns),
        peer: FlowPeer { address: peer, name: None, fqdns, identity: 0 },
        source: own,
        source_port: flow.local_port,
        destination: peer,
        destination_port: flow.remote_port,
        protocol: flows::protocol(flow.protocol),
        rule: engine.origin(*rule).map(ToString::to_string),
        reason: Reason::NameMismatch.word().to_owned(),
        tcp_flags: 0,
        length: 0,
        http: None,
        server_name: asked,
    })
}

#[cfg(test)]
mod tests {
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
    fn what_is_never_whole_is_counted_and_forgotten() {
        let checks = Checks::default();
        let mut gathered = FairCache::new(GATHERED_MAX);
        for (port, octets) in [(1, &b"GET /"[..]), (2, b"\0\x01")] {
            for at in 0..u32::from(OPENINGS_PER_FLOW) {
                let seen = take(&mut gathered, opening(port, at * 5, octets), &checks, &Refusals::default());
                assert_eq!(seen, None);
            }
        }
        let counts: Vec<u64> = checks.tallies(3).into_iter().map(|tally| tally.count).collect();
        assert_eq!(counts, [0, 0, 1, 1, 0, 3]);
        assert!(gathered.values().all(|one| one.done && one.octets.is_empty() && one.ahead.is_empty()));
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
