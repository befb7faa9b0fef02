//! New rules and new topology into ordered writes: what differs is queued, and the stages of [`crate::work`] write it.

use std::collections::BTreeSet;

use foldhash::HashMap;

use namegate_abi::{CidrValue, identity};
use namegate_config::{rule::Subject, settings::Scope};

use crate::{
    Change, EndpointId, Engine, Key, MapOp, Proxies, Row,
    compile::{NumberedRule, Policy},
    engine::{Local, NODE_SCOPE},
    place::{moves_peers, node_key},
    work::{Budget, Stage},
};

/// A piece of a change.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Step {
    /// The writes of this piece.
    pub ops: Vec<MapOp>,
    /// Whether it was the last one.
    pub is_done: bool,
}

impl Engine {
    /// Takes new rules and/or a new topology. After every single write a flow that was allowed before and is allowed
    /// after passes, and one denied before and after does not, where rules alone or peers alone change.
    ///
    /// Where a map has no room, endpoints whose rows would let more pass than their rules are closed.
    pub fn update(&mut self, change: Change, now: u64) -> Vec<MapOp> {
        let mut ops = Vec::new();
        self.begin(change);
        self.finish(now, &mut ops);
        ops
    }

    /// Begins to take new rules and/or a new topology; [`Engine::step`] gives the writes. A change that has begun before and
    /// is not done yet goes on together with this one.
    pub fn begin(&mut self, change: Change) {
        self.retry.begin_anew();
        let mut endpoints = BTreeSet::new();
        let mut node = !self.ready;
        if let Some(rules) = change.rules {
            self.rulings += 1;
            let changes = self.rules.replace(rules, &self.settings, &mut self.ledger);
            for rule in &changes.touched {
                match &rule.subject {
                    Subject::Endpoints(selector) => {
                        endpoints.extend(self.peers.matching(selector).filter_map(|peer| peer.id));
                    }
                    Subject::Nodes(_) => node = true,
                }
            }
            self.work.rules.join(changes);
        }
        if let Some(topology) = change.topology {
            self.work.resolvers = Some(topology.resolver_services.clone());
            let ledger = &mut self.ledger;
            let changes = self.peers.replace(topology, |key| EndpointId(ledger.endpoint(key)));
            endpoints.extend(changes.locals);
            self.moves += 1;
            self.unshown.extend(&changes.addresses);
            node |= changes.node;
            self.work.port_names.extend(changes.port_names);
            let fronts = changes.addresses.iter().flat_map(|address| self.peers.fronts_of(*address));
            self.work.moved.extend(fronts);
            self.work.moved.extend(changes.addresses);
        }
        self.replan(endpoints, node);
        self.plan_ports();
        self.refine();
        self.queue_missing();
        // What was found out about endpoints that move may be another now.
        self.work.admit = None;
        self.work.pointing = None;
        self.work.is_retry = false;
        self.work.stage = Stage::Refine;
    }

    /// Goes on with a change: gives about so many writes, after which everything that the kernel holds is as it should be,
    /// and answers may be learned. One unit is a row that is looked at, or a write.
    pub fn step(&mut self, units: usize, now: u64) -> Step {
        let mut step = Step::default();
        let mut budget = Budget::new(units, &step.ops);
        step.is_done = self.advance(&mut budget, now, &mut step.ops);
        step
    }

    /// Whether a change has begun and is not done.
    pub fn is_changing(&self) -> bool {
        !self.work.is_done()
    }

    /// Does the rest of a change.
    pub(crate) fn finish(&mut self, now: u64, ops: &mut Vec<MapOp>) {
        while !self.advance(&mut Budget::new(usize::MAX, ops), now, ops) {}
    }

    /// Tries again what found no room.
    pub(crate) fn renew(&mut self, now: u64, ops: &mut Vec<MapOp>) {
        self.queue_missing();
        self.work.is_retry = true;
        self.work.stage = Stage::Refine;
        self.finish(now, ops);
    }

    /// Queues what found no room before.
    fn queue_missing(&mut self) {
        self.work.places.extend(self.unplaced.keys());
        self.work.nets.extend(&self.unprefixed);
        let missing = self.uninstalled.keys().filter(|id| self.plan.policies.contains_key(id));
        self.work.install.extend(missing);
        self.work.point.extend(self.local.iter().filter(|(_, local)| local.is_shut()).map(|(id, _)| *id));
        let prefixes = self.find_prefixes_above_share();
        self.work.nets.extend(prefixes);
    }

    /// The stages, one after the other; true where all is done.
    fn advance(&mut self, budget: &mut Budget, now: u64, ops: &mut Vec<MapOp>) -> bool {
        self.mirror.is_retry = self.work.is_retry;
        let mut goes_on = true;
        while goes_on && !self.work.is_done() {
            goes_on = self.do_stage(budget, now, ops);
        }
        self.mirror.is_retry = false;
        self.work.is_done()
    }

    /// Goes on with a stage, and moves to the next one where nothing is left of it; false where the piece is full.
    fn do_stage(&mut self, budget: &mut Budget, now: u64, ops: &mut Vec<MapOp>) -> bool {
        let is_done = match self.work.stage {
            Stage::Refine | Stage::Coarsen => self.identify(budget, now, ops),
            Stage::Move => self.move_peers(budget, now, ops),
            Stage::Install => self.install(budget, ops),
            Stage::Admit => self.admit_learned(budget, now, ops),
            Stage::Point => self.switch(budget, ops),
            Stage::Leave => self.leave(budget, ops),
            Stage::Drop => self.drop_policies(budget, ops),
            Stage::End | Stage::Done => self.sweep_some(budget, ops) && self.end(now, ops),
        };
        if is_done {
            self.work.stage = self.next_stage(now);
        }
        is_done
    }

    fn next_stage(&mut self, now: u64) -> Stage {
        match self.work.stage {
            Stage::Refine => Stage::Move,
            Stage::Move => Stage::Install,
            Stage::Install => Stage::Admit,
            Stage::Admit => Stage::Point,
            Stage::Point => Stage::Leave,
            Stage::Leave => Stage::Drop,
            Stage::Drop => {
                self.coarsen();
                Stage::Coarsen
            }
            Stage::Coarsen => Stage::End,
            Stage::End if self.is_short() && !self.work.is_retry => {
                // Both old and new rows stood in the maps: there may be room now.
                self.queue_missing();
                self.work.is_retry = true;
                Stage::Refine
            }
            Stage::End | Stage::Done => {
                self.plan_retry(now);
                Stage::Done
            }
        }
    }

    /// Removes the rows of identities that nothing names any more.
    fn sweep_some(&mut self, budget: &mut Budget, ops: &mut Vec<MapOp>) -> bool {
        const AT_ONCE: usize = 16;
        while !self.sweep(AT_ONCE, ops) {
            if !budget.spend(ops) {
                return false;
            }
        }
        true
    }

    /// The last stage: numbers of what is no longer in force are forgotten.
    fn end(&mut self, now: u64, ops: &mut Vec<MapOp>) -> bool {
        let rules = std::mem::take(&mut self.work.rules);
        self.rules.forget(rules, &mut self.ledger);
        if !self.ready {
            self.forget_restored();
        }
        self.ready = true;
        self.settle_doubts(0, ops);
        self.reopen(now, ops);
        true
    }

    /// Brings a gate that may hold something else to what it should hold. The writes from `since` on are part of it.
    pub(crate) fn settle_doubts(&mut self, since: usize, ops: &mut Vec<MapOp>) {
        if self.unsure && self.ready {
            self.unsure = false;
            let wanted = self.wanted();
            if !self.mirror.reconcile(&wanted, ops) {
                self.doubt.get_or_insert_default();
            }
            if moves_peers(&ops[since..]) {
                self.look_again(ops);
            }
        }
    }

    /// Every row that the kernel should hold.
    pub(crate) fn wanted(&self) -> HashMap<Key, Row> {
        let rows_of = |local: &Local| {
            let value = local.value;
            local.written().map(move |interface| Row::Endpoint(interface, value)).collect::<Vec<Row>>()
        };
        let endpoints = self.local.values().flat_map(rows_of);
        let placed = self.placed.iter().map(|(address, (value, _))| Row::Address(node_key(*address), *value));
        let learned = self.cache.rows.iter().filter_map(|(key, opened)| Some(Row::Address(*key, opened.value?)));
        let cidrs = self.cidrs.iter().map(|(&(prefix, key), &identity)| Row::Cidr(prefix, key, CidrValue { identity }));
        let policies = self.policies.iter().flat_map(|(id, policy)| policy_rows(*id, policy));
        let resolvers = self.resolvers.iter().map(|address| Row::Resolver((*address).into()));
        let rows = endpoints.chain(placed).chain(learned).chain(cidrs).chain(policies).chain(resolvers);
        rows.map(|row| (row.key(), row)).collect()
    }

    /// Sends requests that rules limit to these proxies from now on. Flows under way stay as they are: call it before the
    /// first [`Engine::update`] where the ports are known.
    pub fn set_proxies(&mut self, proxies: Proxies) -> Vec<MapOp> {
        let mut ops = Vec::new();
        if self.proxies == proxies {
            return ops;
        }
        self.finish(0, &mut ops);
        self.proxies = proxies;
        for (id, old) in std::mem::take(&mut self.policies) {
            let rules: Vec<NumberedRule> = old.rules().cloned().collect();
            let mut policy = Policy::new(&rules, old.own_ports(), self.proxies, &self.terms);
            self.forget_holder(id, &old);
            for identity in self.judged_by(&policy, true) {
                if let Some(set) = self.identities.set_of(identity) {
                    policy.admit(identity, set, &self.terms);
                }
            }
            for identity in policy.identities().collect::<BTreeSet<u32>>() {
                self.identities.hold(identity, id);
            }
            self.policies.insert(id, policy);
        }
        self.unsure = true;
        self.settle_doubts(0, &mut ops);
        if self.is_short() {
            let leaks = self.leaks();
            self.point_all(leaks, false, false, &mut ops);
            self.retry.come_at_once();
        }
        ops
    }
}

/// The scope of what an endpoint learns.
pub(crate) const fn scope_of(scope: Scope, endpoint: EndpointId) -> u32 {
    match scope {
        Scope::Endpoint => endpoint.0,
        Scope::Node => NODE_SCOPE,
    }
}

/// Every row of a policy.
pub(crate) fn policy_rows(id: u32, policy: &Policy) -> impl Iterator<Item = Row> {
    let any = policy.rows_of_any().map(move |(direction, row)| row.of(id, identity::ANY, direction));
    let identities: BTreeSet<u32> = policy.identities().collect();
    let rest = identities.into_iter().flat_map(move |identity| {
        policy.rows_of(identity).map(move |(direction, row)| row.of(id, identity, direction))
    });
    any.chain(rest)
}
