//! Flows of UDP with connections that were let pass by the names that they asked for. The kernel holds them, so that they
//! outlast the agent; they are judged again when the rules change, and end where a name of theirs is allowed no more.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use namegate_abi::{FlowKey, NamedFlow, limits, map_names};
use namegate_config::{name::Fqdn, rule::Binding, shares::Shares};
use namegate_enforcer::Reader;
use namegate_engine::GateError;
use namegate_loader::NamedFlows as Rows;

use super::{
    asked_names::{Check, Checks, Judged, Seen, judge},
    clock::boot_ns,
    flows::Flows,
    problems::{ProblemKind, Problems},
};

/// Between two looks for changes of the rules.
const LOOK: Duration = Duration::from_millis(200);
/// Judgements in one go, by time, and the pause after them.
const TURN: Duration = Duration::from_millis(1);
const PAUSE: Duration = Duration::from_millis(1);
/// How often is looked for flows that the programs have forgotten.
const SWEEP_NS: u64 = 30_000_000_000;
/// A row goes when the programs have not known its flow for so long.
const ABSENT_NS: u64 = 120_000_000_000;

/// The flows, for those who let connections pass and for the one who judges them again.
#[derive(Clone)]
pub(crate) struct NamedFlows(Arc<Mutex<Table>>);

struct Table {
    rows: Rows,
    shares: Shares<u32>,
}

impl NamedFlows {
    pub(crate) fn new(rows: Rows) -> Self {
        let max = limits::NAMED_FLOWS_MAX as usize;
        let mut shares = Shares::new(max, max);
        rows.keys().iter().for_each(|flow| shares.take_unchecked(flow.endpoint, 1));
        Self(Arc::new(Mutex::new(Table { rows, shares })))
    }

    fn lock(&self) -> MutexGuard<'_, Table> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes a connection that is let pass, before anything of it goes on; false where its flow has ended, or there is no
    /// room for it.
    pub(super) fn note(&self, seen: &Seen) -> bool {
        let noted = self.lock().note(seen);
        noted.unwrap_or_else(|error| {
            tracing::warn!(%error, "a QUIC connection does not pass: its name can not be noted in the kernel");
            false
        })
    }

    /// What becomes of a flow: `None` where no connection of it was let pass, and false where it has ended. What the kernel
    /// does not say has ended.
    pub(super) fn goes_on(&self, flow: &FlowKey) -> Option<bool> {
        match self.lock().rows.get(flow) {
            Ok(row) => row.map(|row| row.ended == 0),
            Err(error) => {
                tracing::warn!(%error, "whether a QUIC connection goes on is not known");
                Some(false)
            }
        }
    }
}

impl Table {
    fn note(&mut self, seen: &Seen) -> Result<bool, GateError> {
        let former = self.rows.get(&seen.flow)?;
        let mut row = former.unwrap_or_else(|| NamedFlow::new(seen.began_ns, seen.rule));
        (row.began_ns, row.rule) = (seen.began_ns, seen.rule);
        if row.ended != 0 || !row.add(seen.asked.as_ref().map_or("", Fqdn::as_str).as_bytes()) {
            return Ok(false);
        }
        let is_new = former.is_none();
        if is_new && self.shares.take(seen.flow.endpoint, 1).is_err() {
            return Ok(false);
        }
        let written = self.rows.put(&seen.flow, &row);
        if written.is_err() && is_new {
            self.shares.give(seen.flow.endpoint, 1);
        }
        written.map(|()| true)
    }

    /// Ends a flow, with the names that it has by now.
    fn end(&mut self, flow: &FlowKey) -> Result<(), GateError> {
        let Some(mut row) = self.rows.get(flow)? else { return Ok(()) };
        row.ended = 1;
        self.rows.put(flow, &row)
    }

    fn remove(&mut self, flow: &FlowKey) -> Result<(), GateError> {
        self.rows.remove(flow)?;
        self.shares.give(flow.endpoint, 1);
        Ok(())
    }
}

/// Judges the flows again when the rules change, and forgets those that the programs have forgotten.
pub(crate) struct Judge {
    pub(crate) named: NamedFlows,
    pub(crate) reader: Reader,
    pub(crate) checks: Arc<Checks>,
    pub(crate) flows: Arc<Flows>,
    pub(crate) problems: Arc<Problems>,
}

impl Judge {
    /// Follows the rules, until the task is ended.
    pub(crate) async fn follow(self) -> anyhow::Result<()> {
        let mut look = tokio::time::interval(LOOK);
        let mut judged_at = None;
        let mut undecided = Vec::new();
        let mut absent = HashMap::new();
        let mut swept_ns = 0;
        loop {
            look.tick().await;
            let changes = self.reader.changes();
            let round =
                if judged_at.replace(changes) == Some(changes) { undecided } else { self.named.lock().rows.keys() };
            undecided = self.judge_all(round).await;
            let now_ns = boot_ns();
            if now_ns.saturating_sub(swept_ns) > SWEEP_NS {
                swept_ns = now_ns;
                if let Err(error) = self.sweep(&mut absent, now_ns).await {
                    tracing::warn!(%error, "flows of QUIC connections that are over are not forgotten");
                }
            }
        }
    }

    /// Judges flows; gives those of which nothing can be said yet. A flow that should end and does not, since the kernel
    /// refuses the row, is a problem until it has ended.
    async fn judge_all(&self, flows: Vec<FlowKey>) -> Vec<FlowKey> {
        let mut undecided = Vec::new();
        let mut began = Instant::now();
        let mut refused = None;
        for flow in flows {
            match self.judge(&flow, &mut began).await {
                Ok(true) => {}
                Ok(false) => undecided.push(flow),
                Err(error) => {
                    refused = Some(error);
                    undecided.push(flow);
                }
            }
        }
        match refused {
            Some(error) => self.problems.raise(
                ProblemKind::MapRow,
                map_names::NAMED_FLOWS,
                format!("QUIC connections may pass whose rule has gone, until this succeeds: {error}"),
            ),
            None => self.problems.clear(ProblemKind::MapRow, map_names::NAMED_FLOWS),
        }
        undecided
    }

    /// Judges a flow by each of its names, and ends it where one is allowed no more; false where the rules let nothing of it
    /// pass for now, whatever its name: another name may open its address later.
    async fn judge(&self, flow: &FlowKey, began: &mut Instant) -> Result<bool, GateError> {
        let Some(row) = self.named.lock().rows.get(flow)?.filter(|row| row.ended == 0) else { return Ok(true) };
        let mut is_decided = true;
        for name in row.names() {
            if began.elapsed() > TURN {
                tokio::time::sleep(PAUSE).await;
                *began = Instant::now();
            }
            let asked: Option<Fqdn> = str::from_utf8(name).ok().and_then(|name| name.parse().ok());
            // The name had opened the address when the connection was let pass.
            let known = asked.clone().into_iter().collect();
            let seen = Seen { flow: *flow, rule: row.rule, began_ns: row.began_ns, asked, known };
            let view = self.reader.view();
            if view.endpoint_by_address(flow.local.to_ip()).is_none_or(|endpoint| endpoint.0 != flow.endpoint) {
                // It has gone, and its address may be another's: the programs have no rules for it.
                return Ok(true);
            }
            match judge(&view, &seen, Binding::Enforce) {
                Judged::Passes => {}
                Judged::Closed => is_decided = false,
                Judged::Refused(record) => {
                    drop(view);
                    self.named.lock().end(flow)?;
                    self.checks.count(Check::Revoked);
                    self.flows.tell(vec![*record]);
                    return Ok(true);
                }
            }
        }
        Ok(is_decided)
    }

    /// Forgets flows that the programs have not known for a while; `absent` has those that they do not know, and since when.
    async fn sweep(&self, absent: &mut HashMap<FlowKey, u64>, now_ns: u64) -> Result<(), GateError> {
        let keys = self.named.lock().rows.keys();
        let mut still_absent = HashMap::new();
        for (at, flow) in keys.into_iter().enumerate() {
            if at % 64 == 63 {
                tokio::task::yield_now().await;
            }
            let mut table = self.named.lock();
            if table.rows.is_remembered(&flow, now_ns)? {
                continue;
            }
            let since_ns = absent.get(&flow).copied().unwrap_or(now_ns);
            if now_ns.saturating_sub(since_ns) >= ABSENT_NS {
                table.remove(&flow)?;
            } else {
                still_absent.insert(flow, since_ns);
            }
        }
        *absent = still_absent;
        Ok(())
    }
}
