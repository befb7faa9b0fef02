//! New and denied flows: from the kernel's records to what the API tells.

use std::{
    collections::{BTreeMap, VecDeque},
    net::IpAddr,
    sync::{Arc, Mutex, PoisonError},
};

use namegate_abi::{EventRecord, Reason};
use namegate_api::{
    FlowFeed, rfc3339,
    view::{Direction, Flow, FlowEndpoint, FlowPeer, NameMismatch, Tally, Verdict},
};
use namegate_engine::{EndpointId, Engine};
use namegate_loader::Events;
use tokio::sync::broadcast;

use super::{clock, gate::Door};

/// Flows kept for those who ask later.
const RECENT_MAX: usize = 4_096;
/// Flows that a slow reader of the stream may lag behind.
const LAG_MAX: usize = 4_096;
/// Kinds of connections kept that ask for names which did not open their address.
const MISMATCHES_MAX: usize = 512;
/// Records explained in one go.
const BATCH_MAX: usize = 256;

/// The last flows, and those who listen.
#[derive(Debug)]
pub(crate) struct Flows {
    recent: Mutex<Recent>,
    live: broadcast::Sender<Arc<Flow>>,
}

#[derive(Debug, Default)]
struct Recent {
    flows: VecDeque<Arc<Flow>>,
    tallies: BTreeMap<&'static str, u64>,
    mismatches: VecDeque<NameMismatch>,
}

impl Default for Flows {
    fn default() -> Self {
        Self { recent: Mutex::default(), live: broadcast::channel(LAG_MAX).0 }
    }
}

impl Flows {
    /// The last flows and those to come.
    pub(crate) fn feed(&self) -> FlowFeed {
        let recent = self.recent();
        // Subscribed under the lock: no flow is missed or told twice.
        FlowFeed { recent: recent.flows.iter().cloned().collect(), live: self.live.subscribe() }
    }

    /// The last denials, newest first.
    pub(crate) fn denials(&self, count: usize) -> Vec<Flow> {
        let recent = self.recent();
        let denied =
            recent.flows.iter().rev().filter(|flow| matches!(flow.verdict, Verdict::Denied | Verdict::Audited));
        denied.take(count).map(|flow| Flow::clone(flow)).collect()
    }

    /// How many flows had which verdict.
    pub(crate) fn tallies(&self) -> Vec<Tally> {
        let recent = self.recent();
        let count = |verdict: &Verdict| recent.tallies.get(verdict.text()).copied().unwrap_or(0);
        Verdict::ALL.iter().map(|verdict| Tally { what: verdict.text().to_owned(), count: count(verdict) }).collect()
    }

    /// Connections that would not pass where names were enforced, the most recent first.
    pub(crate) fn mismatches(&self) -> Vec<NameMismatch> {
        self.recent().mismatches.iter().rev().cloned().collect()
    }

    /// Keeps flows for those who ask later, and tells those who listen.
    pub(crate) fn tell(&self, flows: Vec<Flow>) {
        let mut recent = self.recent();
        for flow in flows.into_iter().map(Arc::new) {
            *recent.tallies.entry(flow.verdict.text()).or_default() += 1;
            if flow.reason == Reason::NameMismatch.word() && flow.verdict == Verdict::Audited {
                recent.note_mismatch(&flow);
            }
            if recent.flows.len() == RECENT_MAX {
                recent.flows.pop_front();
            }
            recent.flows.push_back(Arc::clone(&flow));
            // Nobody may listen.
            let _ = self.live.send(flow);
        }
    }

    fn recent(&self) -> std::sync::MutexGuard<'_, Recent> {
        self.recent.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Recent {
    /// Adds to the entry of the same endpoint, address and name; the one seen longest ago gives way.
    fn note_mismatch(&mut self, flow: &Flow) {
        let FlowEndpoint { namespace, name, .. } = &flow.endpoint;
        let asked = flow.server_name.clone().or_else(|| flow.http.as_ref().map(|http| http.host.clone()));
        let mut new = NameMismatch {
            endpoint: format!("{namespace}/{name}"),
            address: flow.destination,
            port: flow.destination_port,
            protocol: flow.protocol.clone(),
            asked,
            names: flow.peer.fqdns.clone(),
            count: 1,
            last: flow.time.clone(),
        };
        let of =
            |one: &NameMismatch| (one.endpoint.clone(), one.address, one.port, one.protocol.clone(), one.asked.clone());
        if let Some(known) = self.mismatches.iter().position(|known| of(known) == of(&new)) {
            new.count += self.mismatches.remove(known).map_or(0, |known| known.count);
        } else if self.mismatches.len() == MISMATCHES_MAX {
            self.mismatches.pop_front();
        }
        self.mismatches.push_back(new);
    }
}

/// Reads records as they come, until the gate stops.
pub(crate) async fn follow(events: Events, door: Door, flows: Arc<Flows>) -> anyhow::Result<()> {
    let mut events = events.into_async()?;
    loop {
        let mut ready = events.readable_mut().await?;
        loop {
            let source = ready.get_inner_mut();
            let batch: Vec<EventRecord> = std::iter::from_fn(|| source.next()).take(BATCH_MAX).collect();
            if batch.is_empty() {
                break;
            }
            let explained =
                door.ask(move |gate| batch.iter().map(|record| explain(gate.engine(), record)).collect::<Vec<Flow>>());
            match explained.await {
                Ok(batch) => flows.tell(batch),
                Err(_) => return Ok(()),
            }
        }
        ready.clear_ready();
    }
}

/// A record with everything that is known about it.
fn explain(engine: &Engine, record: &EventRecord) -> Flow {
    let (source, destination) = (record.source.to_ip(), record.destination.to_ip());
    let direction = namegate_abi::Direction::from_octet(record.direction);
    let (shown_direction, peer) = match direction {
        namegate_abi::Direction::Ingress => (Direction::Ingress, source),
        namegate_abi::Direction::Egress => (Direction::Egress, destination),
    };
    let reason = Reason::from_octet(record.reason);
    Flow {
        time: rfc3339(clock::calendar(record.time_ns)),
        verdict: verdict(namegate_abi::Verdict::from_octet(record.verdict)),
        direction: shown_direction,
        endpoint: endpoint(engine, record.endpoint),
        peer: FlowPeer {
            address: peer,
            name: engine.peer_key(peer).map(str::to_owned),
            fqdns: names(engine, record, peer),
            identity: record.identity,
        },
        source,
        source_port: record.source_port,
        destination,
        destination_port: record.destination_port,
        protocol: protocol(record.protocol),
        rule: engine.origin(record.rule).map(ToString::to_string),
        reason: reason.map_or("unknown", Reason::word).to_owned(),
        reason_text: reason.map_or("a reason this version does not know", Reason::text).to_owned(),
        tcp_flags: record.tcp_flags,
        length: record.length,
        http: None,
        server_name: None,
    }
}

/// The endpoint; both parts of its name are empty where it is gone.
pub(crate) fn endpoint(engine: &Engine, id: u32) -> FlowEndpoint {
    let key = engine.endpoint_key(EndpointId(id)).unwrap_or_default();
    let (namespace, name) = key.split_once('/').unwrap_or(("", key));
    FlowEndpoint { id, namespace: namespace.to_owned(), name: name.to_owned() }
}

/// Names by which the endpoint learned the address, those whose TTL has ended lately too.
fn names(engine: &Engine, record: &EventRecord, peer: IpAddr) -> Vec<String> {
    let names = engine.names_of(EndpointId(record.endpoint), peer, record.time_ns);
    names.into_iter().map(|known| known.name.to_string()).collect()
}

fn verdict(verdict: namegate_abi::Verdict) -> Verdict {
    match verdict {
        namegate_abi::Verdict::Denied => Verdict::Denied,
        namegate_abi::Verdict::Allowed => Verdict::Allowed,
        namegate_abi::Verdict::Audited => Verdict::Audited,
        namegate_abi::Verdict::Redirected => Verdict::Redirected,
    }
}

pub(crate) fn protocol(number: u8) -> String {
    match number {
        1 => "ICMP".to_owned(),
        6 => "TCP".to_owned(),
        17 => "UDP".to_owned(),
        58 => "ICMPv6".to_owned(),
        132 => "SCTP".to_owned(),
        other => other.to_string(),
    }
}
