//! What was refused to single endpoints at their shares of a bound: counted for status and metrics, and a problem for as
//! long as it goes on.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use namegate_api::view::Refused;
use namegate_engine::{EndpointId, Engine};

use super::{
    gate::{Door, Gate},
    problems::{ProblemKind, Problems},
};

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
    /// Questions of the layer 7 proxy and of held datagrams that wait for the enforcer.
    QuestionsWaiting,
    /// Datagrams that wait until the name in them is known.
    HeldDatagrams,
    /// Connections whose first octets are put together.
    Handshakes,
    /// Copies that the programs make.
    Copies,
    /// Records of flows that the programs make.
    FlowRecords,
}

impl Bound {
    /// The word in JSON and metrics. Where it is that of a setting, the setting makes the bound larger.
    pub(crate) const fn text(self) -> &'static str {
        match self {
            Self::L7Connections => "limits.l7Connections",
            Self::RequestRecords => "records of requests",
            Self::DnsPending => "dns.pendingMax",
            Self::DnsTcpClients => "dns clients over TCP",
            Self::DnsRetries => "dns questions over TCP",
            Self::DnsSockets => "dns sockets to resolvers",
            Self::AnswersWaiting => "answers that wait",
            Self::QuestionsWaiting => "questions that wait",
            Self::HeldDatagrams => "held datagrams",
            Self::Handshakes => "handshakes",
            Self::Copies => "copies of handshakes",
            Self::FlowRecords => "records of flows",
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
    pub(crate) fn shown(&self, engine: &Engine) -> Vec<Refused> {
        let shown = |(&(bound, endpoint), count): (&(Bound, u32), &Count)| Refused {
            bound: bound.text().to_owned(),
            endpoint: name(engine, endpoint),
            count: count.count,
            setting: setting_of(bound.text()).to_owned(),
        };
        self.lock().iter().map(shown).collect()
    }

    /// Bounds at which an endpoint was refused something a moment ago.
    fn ongoing(&self, now: Instant) -> Vec<(Bound, u32)> {
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
pub(super) fn name(engine: &Engine, endpoint: u32) -> String {
    match (endpoint, engine.endpoint_key(EndpointId(endpoint))) {
        (0, _) => String::new(),
        (_, Some(key)) => key.to_owned(),
        (_, None) => endpoint.to_string(),
    }
}

/// Keeps the problems in step with what is refused, until the task is ended.
pub(crate) async fn follow(refusals: Arc<Refusals>, problems: Arc<Problems>, door: Door) {
    let mut is_quiet = true;
    loop {
        tokio::time::sleep(LOOK).await;
        let ongoing = refusals.ongoing(Instant::now());
        if ongoing.is_empty() && is_quiet {
            continue;
        }
        is_quiet = ongoing.is_empty();
        let named = door.ask_always(move |gate: &mut Gate| {
            let named = ongoing.iter().map(|(bound, endpoint)| (bound.text(), name(gate.engine(), *endpoint)));
            named.collect::<Vec<_>>()
        });
        let Ok(named) = named.await else { return };
        let now = named.into_iter().map(|(bound, endpoint)| {
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
