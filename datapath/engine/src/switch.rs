//! The rows of `ENDPOINTS`: which policy judges an endpoint, and since which revision.

use std::sync::Arc;

use namegate_abi::{EndpointValue, NODE_INTERFACE, endpoint_flags};
use namegate_config::rule::Direction;

use crate::{
    EndpointId, Engine, Key, MapOp, Row,
    engine::Local,
    plan::Planned,
    shortage::Shut,
    sound::Leaks,
    work::{Budget, Pointing},
};

use foldhash::HashSet;
/// A policy holds in both directions.
const ENFORCED: u32 = endpoint_flags::ENFORCE_EGRESS | endpoint_flags::ENFORCE_INGRESS;

impl Local {
    /// Whether it is denied everything though its rules might let something pass.
    pub(crate) fn is_shut(&self) -> bool {
        self.closed.is_some() || !self.unwritten.is_empty()
    }

    /// Denies everything from a revision on, since the policy found no room.
    pub(crate) fn close(&mut self, revision: u32) {
        self.closed = Some(Shut::NoRoom("limits.policyRowsPerNamespace"));
        self.value.policy = 0;
        self.value.flags |= ENFORCED;
        self.value.revision = revision;
    }
}

impl Engine {
    /// Moves endpoints to their policies.
    pub(crate) fn switch(&mut self, budget: &mut Budget, ops: &mut Vec<MapOp>) -> bool {
        let mut pointing = self.work.pointing.take().unwrap_or_else(|| self.begin_switch());
        while let Some(id) = self.work.point.pop_first() {
            self.point(id, &mut pointing, ops);
            if !budget.spend(ops) {
                self.work.pointing = Some(pointing);
                return false;
            }
        }
        self.work.is_moved = false;
        self.work.has_put_prefix = false;
        self.vacate(ops);
        true
    }

    fn begin_switch(&mut self) -> Pointing {
        // A gate that another engine filled: flows may have been judged by rows that are no more.
        let is_doubtful = self.unsure && self.work.has_put_prefix;
        let leaks = self.leaks();
        let pointing = Pointing { leaks, is_moved: self.work.is_moved, is_doubtful, ..Pointing::default() };
        if pointing.is_moved || !pointing.leaks.is_empty() || self.doubt.is_some() || self.unsure {
            self.work.point.extend(self.plan.endpoints.keys());
        }
        pointing
    }

    /// Writes the row of every endpoint.
    pub(crate) fn point_all(&mut self, leaks: Leaks, is_moved: bool, is_doubtful: bool, ops: &mut Vec<MapOp>) {
        let mut pointing = Pointing { leaks, is_moved, is_doubtful, ..Pointing::default() };
        for id in self.plan.endpoints.keys().copied().collect::<Vec<EndpointId>>() {
            self.point(id, &mut pointing, ops);
        }
    }

    /// Writes the row of an endpoint: its policy, or what denies everything where that can not be in force.
    fn point(&mut self, id: EndpointId, how: &mut Pointing, ops: &mut Vec<MapOp>) {
        let Some(planned) = self.plan.endpoints.get(&id).cloned() else { return };
        let old = self.local.get(&id).cloned();
        let held = match (&old, self.mirror.rows().get(&Key::Endpoint(planned.interface))) {
            (Some(old), _) => Some(old.value),
            (None, Some(Row::Endpoint(_, value))) if value.endpoint == id.0 && !how.is_doubtful => Some(*value),
            _ => None,
        };
        let mut local = self.local_of(id, &planned, &how.leaks);
        let is_shut = |value: &EndpointValue| value.policy == 0 && value.flags & ENFORCED != 0;
        let value = local.value;
        let is_same = |held: &EndpointValue| held.policy == value.policy && is_shut(held) == is_shut(&value);
        local.value.moved = match held {
            Some(_) if how.is_moved && is_enforced(&local.value) => {
                *how.moved.get_or_insert_with(|| self.ledger.next_revision())
            }
            Some(held) => held.moved,
            None => 0,
        };
        local.value.revision = match held.filter(is_same) {
            Some(held) => held.revision,
            None => *how.revision.get_or_insert_with(|| self.ledger.next_revision()),
        };
        let all: Vec<u32> = local.interfaces().collect();
        local.unwritten = all.iter().copied().filter(|one| !self.write_endpoint(*one, local.value, ops)).collect();
        self.local.insert(id, local);
        self.work.vacated.extend(old.iter().flat_map(Local::interfaces).filter(|interface| !all.contains(interface)));
    }

    /// Has flows of enforced endpoints looked at again whose peer may be another.
    pub(crate) fn look_again(&mut self, ops: &mut Vec<MapOp>) {
        let moved = self.ledger.next_revision();
        for local in self.local.values_mut().filter(|local| is_enforced(&local.value)) {
            local.value.moved = moved;
            for interface in local.written() {
                self.mirror.put(Row::Endpoint(interface, local.value), ops);
            }
        }
    }

    /// Writes a row; false where the endpoint is left without one, which denies everything too.
    fn write_endpoint(&mut self, interface: u32, value: EndpointValue, ops: &mut Vec<MapOp>) -> bool {
        let key = Key::Endpoint(interface);
        let doubt = self.doubt.as_ref();
        let is_blind = doubt.is_some_and(|doubt| doubt.is_blind);
        let refuses = doubt.is_some_and(|doubt| doubt.failing.iter().any(|key| matches!(key, Key::Endpoint(_))));
        let row = Row::Endpoint(interface, value);
        if is_blind {
            // What stands there is not known: it is written, or removed, whatever it is.
            self.mirror.delete(key, &mut Vec::new());
        }
        // The node has no interface that could be denied without a row.
        if refuses && interface != NODE_INTERFACE && self.mirror.rows().get(&key) != Some(&row) {
            self.mirror.delete(key, ops);
            if is_blind {
                ops.push(MapOp::Delete(key));
            }
            return false;
        }
        self.mirror.put(row, ops)
    }

    /// What should stand for an endpoint. Without its whole policy it is enforced without rows, which denies everything.
    fn local_of(&self, id: EndpointId, planned: &Planned, leaks: &Leaks) -> Local {
        let mut value = EndpointValue { endpoint: id.0, scope: self.scope(id), ..EndpointValue::default() };
        if self.settings.audit {
            value.flags |= endpoint_flags::AUDIT;
        }
        let mut local = Local {
            interface: planned.interface,
            more: planned.more.clone(),
            value,
            policy: planned.policy,
            closed: None,
            unwritten: Vec::new(),
        };
        if local.policy != 0 {
            local.closed = self.why_closed(&local, leaks);
            match self.policies.get(&local.policy).filter(|_| local.closed.is_none()) {
                Some(compiled) => {
                    value.policy = local.policy;
                    if compiled.enforces(Direction::Ingress) {
                        value.flags |= endpoint_flags::ENFORCE_INGRESS;
                    }
                    if compiled.enforces(Direction::Egress) {
                        value.flags |= endpoint_flags::ENFORCE_EGRESS | endpoint_flags::OBSERVE_DNS;
                    }
                }
                None => value.flags |= ENFORCED | endpoint_flags::OBSERVE_DNS,
            }
        }
        if planned.interface == NODE_INTERFACE {
            // Its questions go to its resolvers as they are: no program meets them on the way.
            value.flags = (value.flags | endpoint_flags::NODE) & !endpoint_flags::OBSERVE_DNS;
        }
        local.value = value;
        local
    }

    fn why_closed(&self, local: &Local, leaks: &Leaks) -> Option<Shut> {
        if !self.policies.contains_key(&local.policy) {
            return Some(Shut::NoRoom(self.uninstalled.get(&local.policy).copied().unwrap_or("limits.policyRows")));
        }
        let leaking = leaks.all || leaks.policies.contains(&local.policy) || leaks.scopes.contains(&local.value.scope);
        leaking.then_some(Shut::Leaking)
    }

    /// Lets go of the interfaces that no endpoint has any more: those of endpoints that are gone, and these.
    fn vacate(&mut self, ops: &mut Vec<MapOp>) {
        let mut vacated = std::mem::take(&mut self.work.vacated);
        if !self.ready {
            self.miss_restored();
        }
        for id in &self.work.gone {
            vacated.extend(self.local.remove(id).iter().flat_map(Local::interfaces));
        }
        if vacated.is_empty() {
            return;
        }
        let interfaces: HashSet<u32> = self.local.values().flat_map(Local::interfaces).collect();
        for interface in vacated.into_iter().filter(|interface| !interfaces.contains(interface)) {
            self.mirror.delete(Key::Endpoint(interface), ops);
        }
    }

    /// Endpoints from before a restart that did not come back are gone.
    fn miss_restored(&mut self) {
        let known = self.cache.endpoints.iter().map(|(id, known)| (*id, Arc::clone(&known.key)));
        let gone: Vec<(EndpointId, Arc<str>)> = known.filter(|(id, _)| !self.plan.endpoints.contains_key(id)).collect();
        for (id, key) in gone {
            if self.ledger.endpoints.get(&key) == Some(id.0) {
                self.ledger.endpoint_left(&key);
            }
            self.work.gone.insert(id);
        }
    }

    /// Forgets the names of endpoints that are gone. Their rows follow: no program looks them up.
    pub(crate) fn leave(&mut self, budget: &mut Budget, ops: &[MapOp]) -> bool {
        let mut touched = Vec::new();
        while let Some(&id) = self.work.gone.first() {
            if let Some(name) = self.cache.name_of(id) {
                self.cache.forget(id, name, self.scope(id), &mut touched);
            } else {
                self.cache.forget_endpoint(id);
                self.refused_of.retain(|(endpoint, _), _| *endpoint != id);
                self.work.gone.pop_first();
            }
            self.work.rows.extend(touched.drain(..));
            if !budget.spend(ops) {
                return false;
            }
        }
        true
    }
}

/// Whether a policy holds in any direction.
const fn is_enforced(value: &EndpointValue) -> bool {
    value.flags & ENFORCED != 0
}
