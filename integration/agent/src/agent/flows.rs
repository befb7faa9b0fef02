//! New and denied flows: from the kernel's records to what the API tells.

use std::{
    collections::{BTreeMap, VecDeque},
    net::IpAddr,
    sync::{Arc, Mutex, PoisonError},
};

use namegate_abi::{EventRecord, Reason};
use namegate_api::{
    FlowFeed, FlowHub, rfc3339,
    view::{Direction, Flow, FlowEndpoint, FlowPeer, NameMismatch, Tally, Verdict},
};
use namegate_config::fair_ring::{FairRing, pick_fairly};
use namegate_engine::{EndpointId, Engine};
use namegate_loader::Events;

use super::{clock, gate::Door};

/// Flows kept for those who ask later; those of one endpoint may be half of them.
const RECENT_MAX: usize = 8_192;
/// Flows that a slow reader of the stream may lag behind.
const LAG_MAX: usize = 8_192;
/// Kinds of connections kept that ask for names which did not open their address.
const MISMATCHES_MAX: usize = 512;
/// Records explained in one go.
const BATCH_MAX: usize = 256;

/// The last flows, and those who listen.
#[derive(Debug)]
pub(crate) struct Flows {
    recent: Mutex<Recent>,
    live: FlowHub,
}

#[derive(Debug)]
struct Recent {
    /// By endpoint, denials apart: neither pushes the others out.
    flows: FairRing<Arc<Flow>>,
    tallies: BTreeMap<&'static str, u64>,
    /// With the numbers of their endpoints.
    mismatches: VecDeque<(u32, NameMismatch)>,
}

impl Default for Flows {
    fn default() -> Self {
        let recent = Recent { flows: FairRing::new(RECENT_MAX), tallies: BTreeMap::new(), mismatches: VecDeque::new() };
        Self { recent: Mutex::new(recent), live: FlowHub::new(LAG_MAX) }
    }
}

impl Flows {
    /// The last flows and those to come.
    pub(crate) fn feed(&self) -> FlowFeed {
        let recent = self.recent();
        // Subscribed under the lock: no flow is missed or told twice.
        FlowFeed {
            recent: recent.flows.iter().map(|(_, flow)| Arc::clone(flow)).collect(),
            live: self.live.subscribe(),
        }
    }

    /// The last denials, newest first; where there are more, the newest of each endpoint go before its older ones.
    pub(crate) fn denials(&self, count: usize) -> Vec<Flow> {
        let recent = self.recent();
        let newest_first = recent.flows.iter().rev().map(|(_, flow)| flow);
        let denied = newest_first.filter(|flow| is_denial(flow.verdict));
        let picked = pick_fairly(denied, count, |flow| flow.endpoint.id);
        picked.into_iter().map(|flow| Flow::clone(flow)).collect()
    }

    /// How many flows had which verdict.
    pub(crate) fn tallies(&self) -> Vec<Tally> {
        let recent = self.recent();
        let count = |verdict: &Verdict| recent.tallies.get(verdict.text()).copied().unwrap_or(0);
        Verdict::ALL.iter().map(|verdict| Tally { what: verdict.text().to_owned(), count: count(verdict) }).collect()
    }

    /// Connections that would not pass where names were enforced, the most recent first.
    pub(crate) fn mismatches(&self) -> Vec<NameMismatch> {
        self.recent().mismatches.iter().rev().map(|(_, mismatch)| mismatch.clone()).collect()
    }

    /// Keeps flows for those who ask later, and tells those who listen.
    pub(crate) fn tell(&self, flows: Vec<Flow>) {
        let mut recent = self.recent();
        for flow in flows.into_iter().map(Arc::new) {
            *recent.tallies.entry(flow.verdict.text()).or_default() += 1;
            if flow.reason == Reason::NameMismatch.word() && flow.verdict == Verdict::Audited {
                recent.note_mismatch(&flow);
            }
            recent.flows.push(lane(&flow), Arc::clone(&flow));
            self.live.send(&flow);
        }
    }

    fn recent(&self) -> std::sync::MutexGuard<'_, Recent> {
        self.recent.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Whose share of the history a flow is: an endpoint's denials, or its other flows.
fn lane(flow: &Flow) -> u32 {
    flow.endpoint.id << 1 | u32::from(is_denial(flow.verdict))
}

fn is_denial(verdict: Verdict) -> bool {
    matches!(verdict, Verdict::Denied | Verdict::Audited)
}

impl Recent {
    /// Adds to the entry of the same endpoint, address and name; of an endpoint that has its share, the one seen longest ago
    /// gives way.
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
        let is_known = |(_, known): &(u32, NameMismatch)| of(known) == of(&new);
        let known = self.mismatches.iter().position(is_known);
        new.count += known.and_then(|known| self.mismatches.remove(known)).map_or(0, |(_, known)| known.count);
        self.make_room_for_mismatch(flow.endpoint.id);
        self.mismatches.push_back((flow.endpoint.id, new));
    }

    fn make_room_for_mismatch(&mut self, endpoint: u32) {
        let mut counts: BTreeMap<u32, usize> = BTreeMap::new();
        for (owner, _) in &self.mismatches {
            *counts.entry(*owner).or_default() += 1;
        }
        let own = counts.get(&endpoint).copied().unwrap_or(0);
        if own < MISMATCHES_MAX - self.mismatches.len() {
            return;
        }
        let most = counts.iter().max_by_key(|(_, count)| **count).map(|(owner, _)| *owner);
        let victim = if own > 0 { Some(endpoint) } else { most };
        if let Some(oldest) = self.mismatches.iter().position(|(owner, _)| Some(*owner) == victim) {
            self.mismatches.remove(oldest);
        }
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
            let explained = door.ask_always(move |gate| {
                batch.iter().map(|record| explain(gate.engine(), record)).collect::<Vec<Flow>>()
            });
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

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;

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

    fn ports(of: u32, flows: &[Flow]) -> Vec<u16> {
        flows.iter().filter(|flow| flow.endpoint.id == of).map(|flow| flow.destination_port).collect()
    }

    #[test]
    fn denials_of_one_endpoint_hide_none_of_another() {
        let flows = Flows::default();
        flows.tell((1..4).map(|port| flow(HONEST, port, Verdict::Denied, "default-deny")).collect());
        flows.tell((0..20_000).map(|port| flow(HOSTILE, port, Verdict::Denied, "default-deny")).collect());
        let shown = flows.denials(100);
        assert_eq!((shown.len(), ports(HONEST, &shown)), (100, vec![3, 2, 1]));
        assert_eq!(ports(HOSTILE, &shown)[0], 19_999, "newest first");
        let kept: Vec<Flow> = flows.feed().recent.iter().map(|flow| Flow::clone(flow)).collect();
        assert_eq!(ports(HONEST, &kept), [1, 2, 3]);
        assert!(kept.len() > RECENT_MAX / 2 - 4 && kept.len() <= RECENT_MAX);
    }

    #[test]
    fn allowed_flows_of_an_endpoint_do_not_push_out_its_denials() {
        let flows = Flows::default();
        flows.tell(vec![flow(HOSTILE, 7, Verdict::Denied, "default-deny")]);
        flows.tell((0..20_000).map(|port| flow(HOSTILE, port, Verdict::Allowed, "rule")).collect());
        assert_eq!(ports(HOSTILE, &flows.denials(100)), [7]);
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
