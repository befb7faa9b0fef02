//! Flows of UDP with connections that were let pass by the names that they asked for. The kernel holds them, so that they
//! outlast the agent; they are judged again when the rules change, and end where a name of theirs is allowed no more.

use namegate_abi::{FlowKey, NamedFlow, limits};
use namegate_api::view::Flow;
use namegate_config::{name::Fqdn, rule::Binding, shares::Shares};
use namegate_enforcer::Reader;
use namegate_engine::GateError;
use namegate_loader::NamedFlows as Rows;

use super::asked_names::{Check, Checks, Seen, judge};

/// Flows judged again in one turn.
const TURN: usize = 512;
/// How often is looked for flows that the programs have forgotten.
const LOOK_NS: u64 = 30_000_000_000;
/// A row that was written so lately stays: the programs may be about to write its flow.
const YOUNG_NS: u64 = 10_000_000_000;

/// The flows, and how far they are judged.
pub(crate) struct NamedFlows {
    rows: Rows,
    shares: Shares<u32>,
    /// The count of changes of the rules when the last round of judgements began.
    judged_at: Option<u64>,
    /// What is left of that round.
    left: Vec<FlowKey>,
    looked_ns: u64,
}

impl NamedFlows {
    pub(crate) fn new(rows: Rows) -> Self {
        let max = limits::NAMED_FLOWS_MAX as usize;
        let mut shares = Shares::new(max, max);
        rows.keys().iter().for_each(|flow| shares.take_unchecked(flow.endpoint, 1));
        Self { rows, shares, judged_at: None, left: Vec::new(), looked_ns: 0 }
    }

    /// Notes a connection that is let pass, before anything of it goes on; false where its flow has ended, or there is no
    /// room for it.
    pub(super) fn note(&mut self, seen: &Seen) -> Result<bool, GateError> {
        let former = self.rows.get(&seen.flow)?;
        let mut row = former.unwrap_or_else(|| NamedFlow::new(seen.began_ns, seen.rule));
        (row.began_ns, row.rule) = (seen.began_ns, seen.rule);
        if row.ended != 0 || !row.add(seen.asked.as_ref().map_or("", Fqdn::as_str).as_bytes()) {
            return Ok(false);
        }
        if former.is_none() && self.shares.take(seen.flow.endpoint, 1).is_err() {
            return Ok(false);
        }
        let noted = self.rows.put(&seen.flow, &row);
        if let Err(error) = &noted {
            tracing::warn!(%error, "a QUIC connection does not pass: the kernel has no room for its name");
            if former.is_none() {
                self.shares.give(seen.flow.endpoint, 1);
            }
        }
        Ok(noted.is_ok())
    }

    /// Whether nothing of a flow goes on any more.
    pub(super) fn has_ended(&self, flow: &FlowKey) -> Result<bool, GateError> {
        Ok(self.rows.get(flow)?.is_some_and(|row| row.ended != 0))
    }

    /// Whether a connection of a flow was let pass, and the flow goes on.
    pub(super) fn goes_on(&self, flow: &FlowKey) -> Result<bool, GateError> {
        Ok(self.rows.get(flow)?.is_some_and(|row| row.ended == 0))
    }

    /// Judges some flows again where the rules have changed; gives the records of those that end.
    pub(super) fn judge_again(&mut self, reader: &Reader, checks: &Checks) -> Result<Vec<Flow>, GateError> {
        if self.left.is_empty() {
            let changes = reader.changes();
            if self.judged_at.replace(changes) != Some(changes) {
                self.left = self.rows.keys();
            }
        }
        let turn: Vec<FlowKey> = self.left.drain(..self.left.len().min(TURN)).collect();
        let (view, mut ended) = (reader.view(), Vec::new());
        for flow in turn {
            let Some(mut row) = self.rows.get(&flow)?.filter(|row| row.ended == 0) else { continue };
            let refused = row.names().find_map(|name| {
                let asked: Option<Fqdn> = str::from_utf8(name).ok().and_then(|name| name.parse().ok());
                // The name had opened the address when the connection was let pass.
                let known = asked.clone().into_iter().collect();
                judge(&view, &Seen { flow, rule: row.rule, began_ns: row.began_ns, asked, known }, Binding::Enforce)
            });
            let Some(record) = refused else { continue };
            row.ended = 1;
            match self.rows.put(&flow, &row) {
                Ok(()) => {
                    checks.count(Check::Revoked);
                    ended.push(record);
                }
                Err(error) => {
                    tracing::warn!(%error, "a QUIC connection that has lost its rule does not end yet");
                    self.left.push(flow);
                }
            }
        }
        Ok(ended)
    }

    /// Forgets flows that the programs have forgotten.
    pub(super) fn expire(&mut self, now_ns: u64) -> Result<(), GateError> {
        if now_ns.saturating_sub(self.looked_ns) < LOOK_NS {
            return Ok(());
        }
        self.looked_ns = now_ns;
        for flow in self.rows.keys() {
            let is_young = |row: NamedFlow| now_ns.saturating_sub(row.began_ns) < YOUNG_NS;
            if !self.rows.is_alive(&flow, now_ns)? && !self.rows.get(&flow)?.is_some_and(is_young) {
                self.rows.remove(&flow)?;
                self.shares.give(flow.endpoint, 1);
            }
        }
        Ok(())
    }
}
