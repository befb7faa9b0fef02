//! The rows of `ENDPOINTS`: which policy judges an endpoint, and since which revision.

use std::{collections::HashSet, sync::Arc};

use namegate_abi::{EndpointValue, NODE_INTERFACE, endpoint_flags};
use namegate_config::rule::Direction;

use crate::{
    EndpointId, Engine, Key, MapOp, Row, engine::Local, ledger::PolicyContent, shortage::Shut, sound::Leaks,
    topology::NODE_KEY,
};

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
    /// Moves each endpoint to its policy. `is_moved` says that addresses of scope 0 are another's now, or nobody's.
    pub(crate) fn switch(&mut self, is_moved: bool, now: u64, ops: &mut Vec<MapOp>) {
        // A gate that another engine filled: flows may have been judged by rows that are no more.
        let doubtful = self.unsure && ops.iter().any(|op| matches!(op, MapOp::Put(Row::Cidr(..))));
        let leaks = self.leaks();
        let vacated = self.point(&leaks, is_moved, doubtful, ops);
        if self.plan.endpoints.values().any(|(interface, _)| *interface == NODE_INTERFACE) {
            let id = EndpointId(self.ledger.endpoint(&NODE_KEY.into()));
            self.cache.open(id, &NODE_KEY.into());
        }
        for (id, _, who) in self.peers.local() {
            self.cache.open(id, &who.key);
        }
        self.leave(vacated, now, ops);
    }

    /// Writes the row of each endpoint: its policy, or what denies everything where that can not be in force. Gives the
    /// interfaces that endpoints have left.
    pub(crate) fn point(&mut self, leaks: &Leaks, is_moved: bool, doubtful: bool, ops: &mut Vec<MapOp>) -> Vec<u32> {
        let mut revision = None;
        let mut moved = None;
        let mut vacated = Vec::new();
        let plan = std::mem::take(&mut self.plan);
        for (&id, (interface, content)) in &plan.endpoints {
            let old = self.local.get(&id).cloned();
            let held = match (&old, self.mirror.rows().get(&Key::Endpoint(*interface))) {
                (Some(old), _) => Some(old.value),
                (None, Some(Row::Endpoint(_, value))) if value.endpoint == id.0 && !doubtful => Some(*value),
                _ => None,
            };
            let mut local = self.local_of(id, *interface, content, leaks);
            let is_shut = |value: &EndpointValue| value.policy == 0 && value.flags & ENFORCED != 0;
            let value = local.value;
            let is_same = |held: &EndpointValue| held.policy == value.policy && is_shut(held) == is_shut(&value);
            local.value.moved = match held {
                Some(_) if is_moved && is_enforced(&local.value) => {
                    *moved.get_or_insert_with(|| self.ledger.next_revision())
                }
                Some(held) => held.moved,
                None => 0,
            };
            local.value.revision = match held.filter(is_same) {
                Some(held) => held.revision,
                None => *revision.get_or_insert_with(|| self.ledger.next_revision()),
            };
            local.more = plan.more_interfaces.get(&id).cloned().unwrap_or_default();
            let all: Vec<u32> = local.interfaces().collect();
            local.unwritten = all.into_iter().filter(|one| !self.write_endpoint(*one, local.value, ops)).collect();
            self.local.insert(id, local);
            vacated.extend(old.iter().flat_map(Local::interfaces));
        }
        self.plan = plan;
        vacated
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
    fn local_of(&mut self, id: EndpointId, interface: u32, content: &PolicyContent, leaks: &Leaks) -> Local {
        let mut value = EndpointValue { endpoint: id.0, scope: self.scope(id), ..EndpointValue::default() };
        if self.settings.audit {
            value.flags |= endpoint_flags::AUDIT;
        }
        let mut local = Local { interface, more: Vec::new(), value, policy: 0, closed: None, unwritten: Vec::new() };
        if !content.0.is_empty() {
            local.policy = self.ledger.policy(content);
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
        if interface == NODE_INTERFACE {
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

    /// Lets go of endpoints that are no longer here, and of interfaces that no endpoint has.
    fn leave(&mut self, mut vacated: Vec<u32>, now: u64, ops: &mut Vec<MapOp>) {
        let gone = self.local.extract_if(.., |id, _| !self.plan.endpoints.contains_key(id));
        vacated.extend(gone.flat_map(|(_, local)| local.interfaces().collect::<Vec<u32>>()));
        let interfaces: HashSet<u32> = self.local.values().flat_map(Local::interfaces).collect();
        for interface in vacated.into_iter().filter(|interface| !interfaces.contains(interface)) {
            self.mirror.delete(Key::Endpoint(interface), ops);
        }
        let forgotten: Vec<EndpointId> =
            self.cache.endpoints.keys().filter(|id| !self.plan.endpoints.contains_key(id)).copied().collect();
        let mut touched = Vec::new();
        for id in forgotten {
            if let Some(key) = self.cache.endpoints.get(&id).map(|known| Arc::clone(&known.key)) {
                self.ledger.endpoint_left(&key);
            }
            self.cache.leave(id, self.scope(id), &mut touched);
            self.refused_of.retain(|(endpoint, _), _| *endpoint != id);
        }
        for row in touched {
            self.rewrite(row, now, ops);
        }
    }
}

/// Whether a policy holds in any direction.
const fn is_enforced(value: &EndpointValue) -> bool {
    value.flags & ENFORCED != 0
}
