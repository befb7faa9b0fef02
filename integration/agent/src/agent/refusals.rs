//! What was refused to single endpoints at their shares of a bound: counted for status and metrics, and a problem for as
//! long as it goes on.

use std::{
    collections::{BTreeMap, HashMap},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use namegate_abi::{FlowLosses, RateValue};
use namegate_api::view::Refused;
use namegate_enforcer::{Reader, View};
use namegate_engine::EndpointId;
use namegate_loader::Meters;

use super::problems::{ProblemKind, Problems};

/// Endpoints and bounds that are counted one by one; what is above is counted without an endpoint.
const COUNTED_MAX: usize = 4_096;
/// How often problems are brought up to date.
const LOOK: Duration = Duration::from_secs(1);
/// A problem ends when nothing was refused for so long.
const QUIET: Duration = Duration::from_secs(3);
/// Before the subjects of the problems that come from here.
const SUBJECT: &str = "share of ";

/// Stands for all clients and servers that are no endpoint of this node, where endpoints take turns.
pub(crate) const OTHERS: u32 = u32::MAX;

/// A bound that endpoints share.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Bound {
    /// Connections of the layer 7 proxy.
    L7Connections,
    /// Bytes that the layer 7 proxy keeps for connections.
    L7Bytes,
    /// Records of requests that wait to be reported.
    RequestRecords,
    /// DNS questions under way.
    DnsPending,
    /// DNS clients over TCP.
    DnsTcpClients,
    /// Truncated answers that are asked for again over TCP.
    DnsRetries,
    /// Sockets to resolvers.
    DnsSockets,
    /// Answers that wait to be installed.
    AnswersWaiting,
    /// Datagrams that wait until the name in them is known.
    HeldDatagrams,
    /// QUIC connections that are remembered, so that each begins once.
    QuicConnections,
    /// Flows with QUIC connections that were let pass by their names.
    NamedFlows,
    /// Connections whose first octets are put together.
    Handshakes,
    /// Copies that the programs make.
    Copies,
    /// Records of flows that the programs make.
    FlowRecords,
    /// Flows that the programs remember.
    Flows,
}

impl Bound {
    /// The word in JSON and metrics. Where it is that of a setting, the setting makes the bound larger.
    pub(crate) const fn text(self) -> &'static str {
        match self {
            Self::L7Connections => "limits.l7Connections",
            Self::L7Bytes => "bytes of requests",
            Self::RequestRecords => "records of requests",
            Self::DnsPending => "dns.pendingMax",
            Self::DnsTcpClients => "dns clients over TCP",
            Self::DnsRetries => "dns questions over TCP",
            Self::DnsSockets => "dns sockets to resolvers",
            Self::AnswersWaiting => "answers that wait",
            Self::HeldDatagrams => "held datagrams",
            Self::QuicConnections => "QUIC connections",
            Self::NamedFlows => "QUIC flows",
            Self::Handshakes => "handshakes",
            Self::Copies => "copies of handshakes",
            Self::FlowRecords => "records of flows",
            Self::Flows => "limits.flowsPerEndpoint",
        }
    }
}

#[derive(Clone, Copy, Debug)]
struct Count {
    count: u64,
    last: Instant,
}

/// Counters by bound and endpoint; endpoint 0 stands for clients that are no endpoint of this node.
#[derive(Debug, Default)]
pub(crate) struct Refusals(Mutex<BTreeMap<(Bound, u32), Count>>);

impl Refusals {
    /// Counts a refusal.
    pub(crate) fn count(&self, bound: Bound, endpoint: u32) {
        self.add(bound, endpoint, 1);
    }

    /// Counts several.
    pub(crate) fn add(&self, bound: Bound, endpoint: u32, count: u64) {
        let (mut counts, now) = (self.lock(), Instant::now());
        let endpoint = if endpoint == OTHERS { 0 } else { endpoint };
        let is_known = counts.contains_key(&(bound, endpoint));
        let endpoint = if is_known || counts.len() < COUNTED_MAX { endpoint } else { 0 };
        let entry = counts.entry((bound, endpoint)).or_insert(Count { count: 0, last: now });
        entry.count += count;
        entry.last = now;
    }

    /// What was refused so far, with the names of the endpoints.
    pub(crate) fn shown(&self, view: &View<'_>) -> Vec<Refused> {
        let shown = |(&(bound, endpoint), count): (&(Bound, u32), &Count)| Refused {
            bound: bound.text().to_owned(),
            endpoint: name(view, endpoint),
            count: count.count,
            setting: setting_of(bound.text()).to_owned(),
        };
        self.lock().iter().map(shown).collect()
    }

    /// Bounds at which an endpoint was refused something a moment ago.
    pub(super) fn ongoing(&self, now: Instant) -> Vec<(Bound, u32)> {
        let counts = self.lock();
        let recent = counts.iter().filter(|(_, count)| now.saturating_duration_since(count.last) < QUIET);
        recent.map(|(key, _)| *key).collect()
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<(Bound, u32), Count>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The setting that a bound is named after, where it is.
pub(super) fn setting_of(bound: &str) -> &str {
    let is_setting = |prefix| bound.strip_prefix(prefix).is_some_and(|key: &str| !key.contains(' '));
    if is_setting("dns.") || is_setting("limits.") { bound } else { "" }
}

/// `namespace/name`; the number where the endpoint is gone, nothing where the client is no endpoint.
pub(super) fn name(view: &View<'_>, endpoint: u32) -> String {
    match (endpoint, view.endpoint_key(EndpointId(endpoint))) {
        (0, _) => String::new(),
        (_, Some(key)) => key.to_owned(),
        (_, None) => endpoint.to_string(),
    }
}

/// Counts what the programs kept from endpoints since the last look. The first look counts nothing: an earlier agent did.
fn count_lost(refusals: &Refusals, seen: &mut Option<HashMap<u32, (u64, u64)>>, rates: &[(u32, RateValue)]) {
    let lost = |(endpoint, rate): &(u32, RateValue)| (*endpoint, (rate.copies_lost, rate.records_lost));
    let now: HashMap<u32, (u64, u64)> = rates.iter().map(lost).collect();
    let Some(before) = seen.replace(now) else { return };
    for (endpoint, rate) in rates {
        let (copies, records) = before.get(endpoint).copied().unwrap_or_default();
        // A row that was made anew counts from 0 again.
        let more = |now: u64, before: u64| if now >= before { now - before } else { now };
        for (bound, count) in
            [(Bound::Copies, more(rate.copies_lost, copies)), (Bound::FlowRecords, more(rate.records_lost, records))]
        {
            if count > 0 {
                refusals.add(bound, *endpoint, count);
            }
        }
    }
}

/// What the programs counted of each endpoint's flows, as it was seen last.
#[derive(Debug, Default)]
struct FlowCounts(Option<BTreeMap<u32, u64>>);

impl FlowCounts {
    /// Counts what came since. What an earlier agent left is no news.
    fn follow(&mut self, refusals: &Refusals, losses: &[(u32, FlowLosses)]) {
        let totals = losses.iter().map(|(endpoint, lost)| (*endpoint, lost.evicted + lost.refused)).collect();
        let Some(seen) = self.0.replace(totals) else { return };
        for (endpoint, total) in self.0.iter().flatten() {
            let before = seen.get(endpoint).copied().unwrap_or(0);
            if *total > before {
                refusals.add(Bound::Flows, *endpoint, total - before);
            }
        }
    }
}

/// Keeps the problems in step with what is refused, until the task is ended.
pub(crate) async fn follow(
    refusals: Arc<Refusals>,
    problems: Arc<Problems>,
    reader: Reader,
    meters: Arc<Meters>,
) -> anyhow::Result<()> {
    let mut is_quiet = true;
    let mut seen = None;
    let mut flows = FlowCounts::default();
    loop {
        // The first look is before anything is refused under this agent.
        match meters.flow_losses() {
            Ok(losses) => flows.follow(&refusals, &losses),
            Err(error) => {
                tracing::error!(%error, "reading what endpoints lost of their flows; the next second tries again");
            }
        }
        count_lost(&refusals, &mut seen, &meters.rates());
        tokio::time::sleep(LOOK).await;
        let ongoing = refusals.ongoing(Instant::now());
        if ongoing.is_empty() && is_quiet {
            continue;
        }
        is_quiet = ongoing.is_empty();
        let now = ongoing.into_iter().map(|(bound, endpoint)| {
            let (bound, endpoint) = (bound.text(), name(&reader.view(), endpoint));
            let who = if endpoint.is_empty() { "a client that is no endpoint" } else { &endpoint };
            (format!("{SUBJECT}{bound}: {who}"), format!("{who} has its share of `{bound}` and is refused more"))
        });
        problems.replace(ProblemKind::Bound, SUBJECT, now);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_is_counted_for_its_endpoint_and_ends_as_a_problem() {
        let refusals = Refusals::default();
        refusals.count(Bound::DnsPending, 7);
        refusals.add(Bound::DnsPending, 7, 2);
        refusals.count(Bound::L7Connections, 0);
        let now = Instant::now();
        assert_eq!(refusals.ongoing(now), [(Bound::L7Connections, 0), (Bound::DnsPending, 7)]);
        assert_eq!(refusals.ongoing(now + QUIET), []);
        let counts: Vec<u64> = refusals.lock().values().map(|count| count.count).collect();
        assert_eq!(counts, [1, 3]);
    }

    #[test]
    fn what_the_programs_lost_is_counted_once() {
        let refusals = Refusals::default();
        let mut seen = None;
        let rate = |copies_lost, records_lost| (7, RateValue { copies_lost, records_lost, ..RateValue::default() });
        for (copies, records) in [(5, 5), (5, 8), (6, 8), (2, 8)] {
            count_lost(&refusals, &mut seen, &[rate(copies, records)]);
        }
        let counts: Vec<_> = refusals.lock().iter().map(|(key, count)| (*key, count.count)).collect();
        assert_eq!(counts, [((Bound::Copies, 7), 3), ((Bound::FlowRecords, 7), 3)]);
    }

    #[test]
    fn what_endpoints_lose_of_their_flows_is_counted_once() {
        let refusals = Refusals::default();
        let mut flows = FlowCounts::default();
        let lost = |evicted, refused| FlowLosses { evicted, refused };
        flows.follow(&refusals, &[(7, lost(100, 1))]);
        assert_eq!(refusals.ongoing(Instant::now()), [], "of an earlier agent");
        flows.follow(&refusals, &[(7, lost(105, 2)), (8, lost(0, 3))]);
        flows.follow(&refusals, &[(7, lost(105, 2)), (8, lost(0, 3))]);
        flows.follow(&refusals, &[(8, lost(0, 3))]);
        let counts: Vec<_> = refusals.lock().iter().map(|(key, count)| (*key, count.count)).collect();
        assert_eq!(counts, [((Bound::Flows, 7), 6), ((Bound::Flows, 8), 3)]);
    }

    #[test]
    fn very_many_endpoints_are_counted_together() {
        let refusals = Refusals::default();
        for endpoint in 1..10_000 {
            refusals.count(Bound::Copies, endpoint);
        }
        assert_eq!(refusals.lock().len(), COUNTED_MAX + 1);
        assert_eq!(refusals.lock().values().map(|count| count.count).sum::<u64>(), 9_999);
    }

    #[test]
    fn bounds_that_are_settings_name_them() {
        assert_eq!(setting_of(Bound::DnsPending.text()), "dns.pendingMax");
        assert_eq!(setting_of(Bound::DnsTcpClients.text()), "");
    }
}
