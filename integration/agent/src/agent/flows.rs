//! New and denied flows: from the kernel's records to the API.
//!
//! The programs write a record for each new or denied flow. Most records are never looked at, so the work for one is small:
//! records are read in batches, counted, and kept as they are. They are explained (rules, names and endpoints put in the
//! place of numbers) where a reader of the stream waits for them, or when the history is asked for. The same holds for
//! requests that the layer 7 proxy records.

mod explain;
mod explain_request;
mod kept_request;
mod mismatches;

use std::{
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use namegate_abi::{EventRecord, Reason};
use namegate_api::{
    FlowFeed, FlowHub, FlowReader,
    view::{Counter, Flow, NameMismatch, Verdict},
};
use namegate_config::fair_ring::{FairRing, pick_fairly};
use namegate_enforcer::Reader;
use namegate_loader::Events;

use explain::explain;
use mismatches::Mismatches;

pub(crate) use explain::{NAMES_MAX, endpoint, protocol};
pub(crate) use explain_request::{ends, explain as explain_request, mismatch_text};
pub(crate) use kept_request::KeptRequest;

/// Flows kept for those who ask later; those of one endpoint may be half of them.
const RECENT_MAX: usize = 8_192;
/// Flows that a slow reader of the stream may lag behind.
const LAG_MAX: usize = 8_192;
/// Records handled in one go.
const BATCH_MAX: usize = 256;
/// How long records gather before they are read. The first of them wakes the reader, the others do not.
const GATHER: Duration = Duration::from_millis(20);
/// Records of a batch that are explained although no reader waits for them: at an ordinary rate the history says what held
/// when the packet was judged. Records of a flood are explained by what is known when a client of the API asks.
pub(crate) const EXPLAINED_AT_ONCE: usize = 32;

/// The last flows, and those who listen.
#[derive(Debug)]
pub(crate) struct Flows {
    recent: Mutex<Recent>,
    live: FlowHub,
    /// By [`slot`].
    counts: [AtomicU64; Verdict::ALL.len()],
}

#[derive(Debug)]
struct Recent {
    /// By endpoint, denials apart: neither pushes the others out.
    flows: FairRing<Entry>,
    mismatches: Mismatches,
}

/// A flow of the history.
#[derive(Clone, Debug)]
enum Entry {
    /// As the kernel wrote it.
    Record(EventRecord),
    /// As the proxy recorded it.
    Request(KeptRequest),
    Explained(Packed),
}

/// An explained flow in one piece of memory. A flow has a dozen texts: thousands of flows, kept for long, would leave each
/// page that a flood has taken with a few of them, and the page could not go back to the system.
#[derive(Clone, Debug)]
struct Packed {
    endpoint: u32,
    verdict: Verdict,
    json: Box<[u8]>,
}

impl Packed {
    /// `None` where the flow has no form in JSON, which no flow is without.
    fn new(flow: &Flow) -> Option<Self> {
        let json = serde_json::to_vec(flow).ok()?.into_boxed_slice();
        Some(Self { endpoint: flow.endpoint.id, verdict: flow.verdict, json })
    }

    fn unpack(&self) -> Option<Flow> {
        serde_json::from_slice(&self.json).ok()
    }
}

impl Entry {
    fn verdict(&self) -> Verdict {
        match self {
            Self::Record(record) => explain::verdict(record),
            Self::Request(request) => explain_request::verdict(request.verdict),
            Self::Explained(flow) => flow.verdict,
        }
    }

    fn endpoint(&self) -> u32 {
        match self {
            Self::Record(record) => record.endpoint,
            Self::Request(request) => request.endpoint,
            Self::Explained(flow) => flow.endpoint,
        }
    }

    /// Whose share of the history it is: an endpoint's denials, or its other flows.
    fn lane(&self) -> u32 {
        self.endpoint() << 1 | u32::from(is_denial(self.verdict()))
    }
}

impl Default for Flows {
    fn default() -> Self {
        let recent = Recent { flows: FairRing::new(RECENT_MAX), mismatches: Mismatches::default() };
        Self { recent: Mutex::new(recent), live: FlowHub::new(LAG_MAX), counts: Default::default() }
    }
}

impl Flows {
    /// The last flows if `past` says so, and those to come.
    pub(crate) fn feed(&self, past: bool, reader: &Reader) -> FlowFeed {
        let (entries, live) = self.subscribe(past);
        FlowFeed { recent: explained(&entries, reader).into_iter().map(Arc::new).collect(), live }
    }

    fn subscribe(&self, past: bool) -> (Vec<Entry>, FlowReader) {
        let recent = self.recent();
        let entries = if past { recent.flows.iter().map(|(_, entry)| entry.clone()).collect() } else { Vec::new() };
        // Under the lock: no flow is missed or reported twice.
        (entries, self.live.subscribe())
    }

    /// The last denials, newest first; where there are more, the newest of each endpoint go before its older ones.
    pub(crate) fn denials(&self, count: usize, reader: &Reader) -> Vec<Flow> {
        explained(&self.last_denials(count), reader)
    }

    fn last_denials(&self, count: usize) -> Vec<Entry> {
        let recent = self.recent();
        let newest_first = recent.flows.iter().rev().map(|(_, entry)| entry);
        let denied = newest_first.filter(|entry| is_denial(entry.verdict()));
        pick_fairly(denied, count, |entry| entry.endpoint()).into_iter().cloned().collect()
    }

    /// How many flows had which verdict.
    pub(crate) fn counters(&self) -> Vec<Counter> {
        let count = |verdict: &Verdict| self.counts[slot(*verdict)].load(Ordering::Relaxed);
        Verdict::ALL.iter().map(|verdict| Counter { what: verdict.text().to_owned(), count: count(verdict) }).collect()
    }

    /// Connections that would not pass where names were enforced, the most recent first.
    pub(crate) fn mismatches(&self) -> Vec<NameMismatch> {
        self.recent().mismatches.list()
    }

    /// Keeps flows for those who ask later, and tells those who listen.
    pub(crate) fn tell(&self, flows: Vec<Flow>) {
        let mut recent = self.recent();
        for flow in flows.into_iter().map(Arc::new) {
            self.counts[slot(flow.verdict)].fetch_add(1, Ordering::Relaxed);
            if flow.reason == Reason::NameMismatch.word() && flow.verdict == Verdict::Audited {
                recent.mismatches.add(&flow);
            }
            self.live.send(&flow);
            if let Some(packed) = Packed::new(&flow) {
                recent.keep(Entry::Explained(packed));
            }
        }
    }

    /// Whether a reader waits for flows.
    pub(crate) fn is_read(&self) -> bool {
        self.live.readers() > 0
    }

    /// Keeps records that no reader waits for.
    fn keep(&self, records: impl IntoIterator<Item = Entry>) {
        let mut recent = self.recent();
        for record in records {
            self.counts[slot(record.verdict())].fetch_add(1, Ordering::Relaxed);
            recent.keep(record);
        }
    }

    /// Keeps requests that no reader waits for.
    pub(crate) fn keep_requests(&self, requests: Vec<KeptRequest>) {
        self.keep(requests.into_iter().map(Entry::Request));
    }

    fn recent(&self) -> MutexGuard<'_, Recent> {
        self.recent.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Recent {
    fn keep(&mut self, entry: Entry) {
        self.flows.push(entry.lane(), entry);
    }
}

/// Where a verdict is counted.
const fn slot(verdict: Verdict) -> usize {
    verdict as usize
}

fn is_denial(verdict: Verdict) -> bool {
    matches!(verdict, Verdict::Denied | Verdict::Audited)
}

/// Puts flows in the place of records.
fn explained(entries: &[Entry], reader: &Reader) -> Vec<Flow> {
    let view = reader.view();
    let flow = |entry: &Entry| match entry {
        Entry::Record(record) => Some(explain(&view, record)),
        Entry::Request(request) => {
            let (time, access) = request.read();
            Some(explain_request::explain(&view, time, access))
        }
        Entry::Explained(flow) => flow.unpack(),
    };
    entries.iter().filter_map(flow).collect()
}

/// Reads records in batches, until the task is ended.
pub(crate) async fn follow(events: Events, reader: Reader, flows: Arc<Flows>) -> anyhow::Result<()> {
    let mut events = events.into_async()?;
    let mut batch = Vec::with_capacity(BATCH_MAX);
    loop {
        let mut ready = events.readable_mut().await?;
        tokio::time::sleep(GATHER).await;
        loop {
            let source = ready.get_inner_mut();
            batch.clear();
            batch.extend(std::iter::from_fn(|| source.next()).take(BATCH_MAX));
            if batch.is_empty() {
                break;
            }
            take_in(&batch, &reader, &flows);
            // Records of requests have their turn.
            tokio::task::yield_now().await;
        }
        ready.clear_ready();
    }
}

/// Counts and keeps a batch of records, and explains those that somebody waits for.
fn take_in(batch: &[EventRecord], reader: &Reader, flows: &Flows) {
    let wanted = if flows.is_read() { batch.len() } else { batch.len().min(EXPLAINED_AT_ONCE) };
    let (at_once, later) = batch.split_at(wanted);
    let view = reader.view();
    flows.tell(at_once.iter().map(|record| explain(&view, record)).collect());
    flows.keep(later.iter().copied().map(Entry::Record));
}

#[cfg(test)]
mod tests {
    use std::net::{IpAddr, Ipv4Addr};

    use namegate_api::view::{Direction, FlowEndpoint, FlowPeer, HttpRequest};

    use super::{mismatches::MISMATCHES_MAX, *};

    const HOSTILE: u32 = 1;
    const HONEST: u32 = 2;

    fn flow(endpoint: u32, port: u16, verdict: Verdict, reason: &str) -> Flow {
        let address: IpAddr = Ipv4Addr::new(192, 0, 2, 1).into();
        Flow {
            time: String::new(),
            verdict,
            direction: Direction::Egress,
            endpoint: FlowEndpoint { id: endpoint, namespace: "shop".into(), name: endpoint.to_string() },
            peer: FlowPeer { address, name: None, fqdns: Vec::new(), identity: 0 },
            source: address,
            source_port: 1,
            destination: address,
            destination_port: port,
            protocol: "TCP".to_owned(),
            rule: None,
            reason: reason.to_owned(),
            reason_text: String::new(),
            tcp_flags: 0,
            length: 0,
            http: None,
            server_name: None,
        }
    }

    fn record(endpoint: u32, port: u16, verdict: namegate_abi::Verdict) -> EventRecord {
        EventRecord { endpoint, destination_port: port, verdict: verdict as u8, ..EventRecord::default() }
    }

    fn port(entry: &Entry) -> u16 {
        match entry {
            Entry::Record(record) => record.destination_port,
            Entry::Request(request) => request.read().1.server.port(),
            Entry::Explained(flow) => flow.unpack().unwrap().destination_port,
        }
    }

    fn ports(of: u32, entries: &[Entry]) -> Vec<u16> {
        entries.iter().filter(|entry| entry.endpoint() == of).map(port).collect()
    }

    #[test]
    fn denials_of_one_endpoint_hide_none_of_another() {
        let flows = Flows::default();
        flows.tell((1..4).map(|port| flow(HONEST, port, Verdict::Denied, "default-deny")).collect());
        flows.tell((0..20_000).map(|port| flow(HOSTILE, port, Verdict::Denied, "default-deny")).collect());
        let shown = flows.last_denials(100);
        assert_eq!((shown.len(), ports(HONEST, &shown)), (100, vec![3, 2, 1]));
        assert_eq!(ports(HOSTILE, &shown)[0], 19_999, "newest first");
        let (kept, _) = flows.subscribe(true);
        assert_eq!(ports(HONEST, &kept), [1, 2, 3]);
        assert!(kept.len() > RECENT_MAX / 2 - 4 && kept.len() <= RECENT_MAX);
    }

    #[test]
    fn what_is_kept_is_what_was_told() {
        let http = HttpRequest {
            method: "GET".to_owned(),
            path: "/ä\"\n".to_owned(),
            host: "a.test".to_owned(),
            code: 200,
            latency_ms: 0.001,
        };
        let whole = Flow {
            rule: Some("shop spec.egress[0]".to_owned()),
            http: Some(http),
            server_name: Some("a.test".to_owned()),
            ..flow(HONEST, 7, Verdict::Denied, "l7")
        };
        for told in [whole, flow(HONEST, 8, Verdict::Allowed, "rule")] {
            assert_eq!(Packed::new(&told).unwrap().unpack(), Some(told));
        }
    }

    #[test]
    fn allowed_flows_of_an_endpoint_do_not_push_out_its_denials() {
        let flows = Flows::default();
        flows.tell(vec![flow(HOSTILE, 7, Verdict::Denied, "default-deny")]);
        flows.tell((0..20_000).map(|port| flow(HOSTILE, port, Verdict::Allowed, "rule")).collect());
        assert_eq!(ports(HOSTILE, &flows.last_denials(100)), [7]);
    }

    #[test]
    fn records_are_counted_and_kept_without_an_explanation() {
        let flows = Flows::default();
        flows.keep([
            Entry::Record(record(HONEST, 1, namegate_abi::Verdict::Denied)),
            Entry::Record(record(HONEST, 2, namegate_abi::Verdict::Allowed)),
        ]);
        let flood = (0..20_000).map(|port| record(HOSTILE, port, namegate_abi::Verdict::Denied));
        flows.keep(flood.map(Entry::Record));
        let shown = flows.last_denials(100);
        assert_eq!((shown.len(), ports(HONEST, &shown)), (100, vec![1]));
        assert!(shown.iter().all(|entry| matches!(entry, Entry::Record(_))));
        let (kept, _) = flows.subscribe(true);
        assert_eq!(ports(HONEST, &kept), [1, 2]);
        let counts: Vec<_> = flows.counters().into_iter().map(|counters| (counters.what, counters.count)).collect();
        let want = [("allowed", 1), ("denied", 20_001), ("audited", 0), ("redirected", 0)];
        assert_eq!(counts, want.map(|(what, count)| (what.to_owned(), count)));
    }

    #[test]
    fn a_reader_of_what_is_to_come_gets_nothing_of_the_past() {
        let flows = Flows::default();
        flows.keep([Entry::Record(record(HONEST, 1, namegate_abi::Verdict::Denied))]);
        let (past, _reader) = flows.subscribe(false);
        assert!(past.is_empty());
        assert_eq!(flows.live.readers(), 1, "its flows are explained as they come");
    }

    #[test]
    fn mismatches_of_one_endpoint_hide_none_of_another() {
        let flows = Flows::default();
        let mismatch = |endpoint, port| flow(endpoint, port, Verdict::Audited, Reason::NameMismatch.word());
        flows.tell(vec![mismatch(HONEST, 1), mismatch(HONEST, 1)]);
        flows.tell((0..5_000).map(|port| mismatch(HOSTILE, port)).collect());
        let shown = flows.mismatches();
        assert!(shown.len() <= MISMATCHES_MAX);
        assert_eq!(shown.iter().find(|one| one.endpoint == "shop/2").map(|one| one.count), Some(2));
        assert_eq!(shown[0].port, 4_999, "the most recent first");
    }
}
