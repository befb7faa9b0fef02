//! Where the layer 7 proxy asks for limits, and what becomes of its records.

use std::{
    net::IpAddr,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, SystemTime},
};

use namegate_config::{
    fair_ring::FairRing,
    name::Fqdn,
    reference::{self, Limits},
    rule::{self, Binding},
};
use namegate_enforcer::{Reader, View};
use namegate_engine::NamesAt;
use namegate_l7_proxy::{Access, Backend, ConnectionPolicy, Match, Named, Question};
use tokio::sync::Notify;

use super::{
    clock::boot_ns,
    flows::{self, EXPLAINED_AT_ONCE, Flows, KeptRequest},
    memory,
    refusals::{Bound, OTHERS, Refusals},
};

/// Records that wait to be reported; the oldest of an endpoint that has its share are lost and counted.
const RECORDS_MAX: usize = 4_096;
/// Records told in one go.
const BATCH_MAX: usize = 1_024;
/// Pause between two batches: what comes within it is told in one go.
const GATHER: Duration = Duration::from_millis(5);
/// Names kept for a connection that was let pass.
const OPENING_NAMES_MAX: usize = 16;
/// IANA protocol number of TCP.
const TCP: u8 = 6;

/// The backend of the agent.
#[derive(Clone)]
pub(crate) struct L7Backend {
    reader: Reader,
    refusals: Arc<Refusals>,
    /// Denials are recorded only.
    audit: bool,
    records: Arc<Records>,
    lost: Arc<AtomicU64>,
}

/// Records that wait to be reported.
pub(crate) struct Records {
    waiting: Mutex<FairRing<(SystemTime, Access)>>,
    arrived: Notify,
}

impl Records {
    /// Adds a record; gives the endpoint that lost one for it.
    fn push(&self, endpoint: u32, record: (SystemTime, Access)) -> Option<u32> {
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        let was_empty = waiting.is_empty();
        let lost = waiting.push(endpoint, record);
        drop(waiting);
        // The task that takes records out takes all of them before it waits again.
        if was_empty {
            self.arrived.notify_one();
        }
        lost.map(|(endpoint, _)| endpoint)
    }

    /// Waits for records and takes out some.
    async fn next(&self) -> Vec<(SystemTime, Access)> {
        loop {
            let taken: Vec<_> = {
                let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
                std::iter::from_fn(|| waiting.pop()).take(BATCH_MAX).collect()
            };
            if !taken.is_empty() {
                return taken;
            }
            self.arrived.notified().await;
        }
    }
}

impl L7Backend {
    /// A backend, and the records that it takes.
    pub(crate) fn new(reader: Reader, refusals: Arc<Refusals>, audit: bool) -> (Self, Arc<Records>) {
        let waiting = Mutex::new(FairRing::new(RECORDS_MAX));
        let records = Arc::new(Records { waiting, arrived: Notify::new() });
        (Self { reader, refusals, audit, records: Arc::clone(&records), lost: Arc::default() }, records)
    }

    /// The endpoint that is the cause of a connection: the one that calls, else the one that is called.
    fn cause(&self, client: IpAddr, server: IpAddr) -> u32 {
        let view = self.reader.view();
        let found = view.endpoint_by_address(client).or_else(|| view.endpoint_by_address(server));
        found.map_or(OTHERS, |endpoint| endpoint.0)
    }

    /// Records that were lost before the agent could report them.
    pub(crate) fn lost(&self) -> u64 {
        self.lost.load(Ordering::Relaxed)
    }
}

impl Backend for L7Backend {
    fn tidy(&self) {
        memory::give_back();
    }

    async fn connection_policy(&self, question: Question) -> Option<ConnectionPolicy> {
        connection_policy(&self.reader.view(), self.audit, &question)
    }

    fn revision(&self) -> u64 {
        self.reader.changes()
    }

    fn record(&self, access: Access) {
        let cause = self.cause(access.client.ip(), access.server.ip());
        if let Some(endpoint) = self.records.push(cause, (SystemTime::now(), access)) {
            self.lost.fetch_add(1, Ordering::Relaxed);
            self.refusals.count(Bound::RequestRecords, endpoint);
        }
    }

    fn endpoint(&self, address: IpAddr) -> Option<u32> {
        self.reader.view().endpoint_by_address(address).map(|endpoint| endpoint.0)
    }

    fn refused(&self, endpoint: Option<u32>) {
        self.refusals.count(Bound::L7Connections, endpoint.unwrap_or(0));
    }

    fn relieved(&self, endpoint: Option<u32>) {
        self.refusals.count(Bound::L7Bytes, endpoint.unwrap_or(0));
    }
}

/// The limits of both ends. A server on this node sees its client's address, and so do the rules for it. `None` where
/// neither end is known: the programs hand over connections of endpoints alone, so this one has only just come, and no
/// request of it passes before the rules for it are published.
fn connection_policy(view: &View<'_>, audit: bool, question: &Question) -> Option<ConnectionPolicy> {
    let Question { client, server, age, named, known } = question;
    let flow = reference::Flow { protocol: TCP, port: server.port() };
    let (client, server, now) = (client.ip().to_canonical(), server.ip().to_canonical(), boot_ns());
    let since = now.saturating_sub(u64::try_from(age.as_nanos()).unwrap_or(u64::MAX));
    view.endpoint_by_address(client).or_else(|| view.endpoint_by_address(server))?;
    let (since, now) = (NamesAt { at: since, known }, NamesAt { at: now, known });
    let limits = view.limits();
    let whole = limits.limits(client, server, rule::Direction::Egress, flow, now);
    let closes = |limits: &Limits| matches!(limits, Limits::Closed(_)) && !matches!(whole, Limits::Closed(_));
    let asking = |binding| match named {
        Named::Any => None,
        Named::One(name) => Some(limits.limits_asking(client, server, flow, name.as_ref(), binding, since)),
        Named::Nameless => Some(limits.limits_nameless(client, server, flow, binding, since)),
    };
    let (egress, bound, binding) = match asking(Binding::Enforce) {
        None => (whole, limits.is_bound(client, server, flow, Binding::Observe, since), Match::Good),
        Some(enforced) => {
            let binding = if closes(&enforced) {
                Match::Refused
            } else if asking(Binding::Observe).is_some_and(|observed| closes(&observed)) {
                Match::Observed
            } else {
                Match::Good
            };
            (enforced, true, binding)
        }
    };
    let ingress = limits.limits(server, client, rule::Direction::Ingress, flow, now);
    let sides = vec![(rule::Direction::Egress, egress), (rule::Direction::Ingress, ingress)];
    let keeps_source = view.endpoint_by_address(server).is_some();
    let names = opening_names(view, (client, server), named, since);
    Some(ConnectionPolicy { sides, keeps_source, audit, bound, binding, names })
}

/// Names that open the server's address for the client. Where the connection asks for one of them, that one is enough.
fn opening_names(
    view: &View<'_>,
    (client, server): (IpAddr, IpAddr),
    wanted: &Named,
    NamesAt { at, known }: NamesAt<'_>,
) -> Arc<[Fqdn]> {
    let endpoint = view.endpoint_by_address(client);
    let found = endpoint.into_iter().flat_map(|endpoint| view.names_of(endpoint, server, at));
    let alive = found.filter(|known| !known.ended).map(|known| known.name);
    let mut names: Vec<Fqdn> = alive.chain(known.iter().cloned()).collect();
    if let Named::One(Some(asked)) = wanted
        && names.contains(asked)
    {
        return [asked.clone()].into();
    }
    names.truncate(OPENING_NAMES_MAX);
    names.into()
}

/// Reports requests as they come, until the task is ended.
pub(crate) async fn follow(records: Arc<Records>, reader: Reader, flows: Arc<Flows>) -> anyhow::Result<()> {
    loop {
        let taken = records.next().await;
        take_in(taken, &reader.view(), &flows);
        tokio::time::sleep(GATHER).await;
    }
}

type Record = (SystemTime, Access);

/// Counts and keeps a batch of records.
fn take_in(batch: Vec<Record>, view: &View<'_>, flows: &Flows) {
    let (at_once, later) = divide(batch, flows.is_read());
    flows.tell(at_once.into_iter().map(|(time, access)| flows::explain_request(view, time, access)).collect());
    let kept = later.into_iter().map(|(time, access)| {
        let (_, own, _) = flows::ends(&access);
        KeptRequest::new(view.endpoint_by_address(own).map_or(0, |endpoint| endpoint.0), time, access)
    });
    flows.keep_requests(kept.collect());
}

/// The records that are explained at once: all where somebody waits for them, else the first, and those that are counted by
/// what they mean. Then those that are kept as they are.
fn divide(batch: Vec<Record>, is_read: bool) -> (Vec<Record>, Vec<Record>) {
    let mut at_once = batch;
    let mut later = at_once.split_off(if is_read { at_once.len() } else { at_once.len().min(EXPLAINED_AT_ONCE) });
    at_once.extend(later.extract_if(.., |(_, access)| access.mismatch));
    (at_once, later)
}

#[cfg(test)]
mod tests {
    use namegate_l7_proxy::{AccessVerdict, What};

    use super::*;

    #[test]
    fn few_records_are_explained_where_no_reader_waits() {
        let record = |port: u16| {
            let access = Access {
                client: ([10, 0, 0, 1], port).into(),
                server: ([10, 0, 0, 2], 443).into(),
                direction: rule::Direction::Egress,
                rule: None,
                verdict: AccessVerdict::Allowed,
                mismatch: port == 90,
                what: What::Tls { server_name: None },
            };
            (SystemTime::UNIX_EPOCH, access)
        };
        let ports = |records: Vec<Record>| records.iter().map(|(_, access)| access.client.port()).collect::<Vec<_>>();
        let (at_once, later) = divide((0..100).map(record).collect(), false);
        assert_eq!(ports(at_once), (0..32).chain([90]).collect::<Vec<_>>());
        assert_eq!(ports(later), (32..90).chain(91..100).collect::<Vec<_>>());
        let (at_once, later) = divide((0..100).map(record).collect(), true);
        assert_eq!((at_once.len(), later.len()), (100, 0));
    }
}
