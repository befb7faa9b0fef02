//! The rows of `ENDPOINTS`: which policy judges an endpoint, and since which revision.

use std::{collections::HashSet, sync::Arc};

use namegate_abi::{EndpointValue, NODE_INTERFACE, endpoint_flags};
use namegate_config::rule::Direction;

use crate::{
    EndpointId, Engine, Key, MapOp, Row, engine::Local, ledger::PolicyContent, plan::Plan, topology::NODE_KEY,
};

impl Engine {
    /// Moves each endpoint to its policy. `is_moved` says that addresses of scope 0 are another's now, or nobody's.
    pub(crate) fn switch(&mut self, plan: &Plan, is_moved: bool, now: u64, ops: &mut Vec<MapOp>) {
        // A gate that another engine filled: flows may have been judged by rows that are no more.
        let doubtful = self.unsure && ops.iter().any(|op| matches!(op, MapOp::Put(Row::Cidr(..))));
        let mut revision = None;
        let mut moved = None;
        let mut vacated = Vec::new();
        for (&id, (interface, content)) in &plan.endpoints {
            let old = self.local.get(&id).map(|local| (local.interface, local.value));
            let held = match (old, self.mirror.rows().get(&Key::Endpoint(*interface))) {
                (Some((_, value)), _) => Some(value),
                (None, Some(Row::Endpoint(_, value))) if value.endpoint == id.0 && !doubtful => Some(*value),
                _ => None,
            };
            let mut value = self.endpoint_value(id, content, old.map(|(_, value)| value));
            if *interface == NODE_INTERFACE {
                // Its questions go to its resolvers as they are: no program meets them on the way.
                value.flags = (value.flags | endpoint_flags::NODE) & !endpoint_flags::OBSERVE_DNS;
                self.cache.open(id, &NODE_KEY.into());
            }
            value.moved = match held {
                Some(_) if is_moved && is_enforced(&value) => *moved.get_or_insert_with(|| self.ledger.next_revision()),
                Some(held) => held.moved,
                None => 0,
            };
            let same = held.filter(|held| held.policy == value.policy);
            value.revision = match same {
                Some(held) => held.revision,
                None => *revision.get_or_insert_with(|| self.ledger.next_revision()),
            };
            let wanted_more = plan.more_interfaces.get(&id).map_or(&[][..], Vec::as_slice);
            if self.mirror.put(Row::Endpoint(*interface, value), ops) {
                // One that finds no room stays closed.
                let put = |more: &u32| self.mirror.put(Row::Endpoint(*more, value), ops);
                let more = wanted_more.iter().copied().filter(put).collect();
                let former = self.local.insert(id, Local { interface: *interface, more, value });
                vacated.extend(former.into_iter().flat_map(|former| former.more));
            }
            vacated.extend(old.map(|(interface, _)| interface).filter(|old| old != interface));
        }
        for (id, _, who) in self.peers.local() {
            self.cache.open(id, &who.key);
        }
        self.leave(plan, vacated, now, ops);
    }

    /// Has flows of enforced endpoints looked at again whose peer may be another.
    pub(crate) fn look_again(&mut self, ops: &mut Vec<MapOp>) {
        let moved = self.ledger.next_revision();
        for local in self.local.values_mut().filter(|local| is_enforced(&local.value)) {
            let value = EndpointValue { moved, ..local.value };
            if self.mirror.put(Row::Endpoint(local.interface, value), ops) {
                local.value = value;
            }
        }
    }

    /// What should stand for an endpoint; it stays with its old policy where the new one found no room.
    fn endpoint_value(&mut self, id: EndpointId, content: &PolicyContent, old: Option<EndpointValue>) -> EndpointValue {
        let mut value = EndpointValue { endpoint: id.0, scope: self.scope(id), ..EndpointValue::default() };
        if self.settings.audit {
            value.flags |= endpoint_flags::AUDIT;
        }
        if content.0.is_empty() {
            return value;
        }
        let policy = self.ledger.policy(content);
        let Some(compiled) = self.policies.get(&policy) else {
            // Nothing to stay with: enforced without rows, which denies everything.
            let enforced = endpoint_flags::ENFORCE_EGRESS | endpoint_flags::ENFORCE_INGRESS;
            value.flags |= enforced | endpoint_flags::OBSERVE_DNS;
            return old.filter(|old| old.policy != 0).unwrap_or(value);
        };
        value.policy = policy;
        if compiled.enforces(Direction::Ingress) {
            value.flags |= endpoint_flags::ENFORCE_INGRESS;
        }
        if compiled.enforces(Direction::Egress) {
            value.flags |= endpoint_flags::ENFORCE_EGRESS | endpoint_flags::OBSERVE_DNS;
        }
        value
    }

    /// Lets go of endpoints that are no longer here, and of interfaces that no endpoint has.
    fn leave(&mut self, plan: &Plan, mut vacated: Vec<u32>, now: u64, ops: &mut Vec<MapOp>) {
        let gone = self.local.extract_if(.., |id, _| !plan.endpoints.contains_key(id));
        vacated.extend(gone.flat_map(|(_, local)| local.interfaces().collect::<Vec<u32>>()));
        let interfaces: HashSet<u32> = self.local.values().flat_map(Local::interfaces).collect();
        for interface in vacated.into_iter().filter(|interface| !interfaces.contains(interface)) {
            self.mirror.delete(Key::Endpoint(interface), ops);
        }
        let forgotten: Vec<EndpointId> =
            self.cache.endpoints.keys().filter(|id| !plan.endpoints.contains_key(id)).copied().collect();
        let mut touched = Vec::new();
        for id in forgotten {
            if let Some(key) = self.cache.endpoints.get(&id).map(|known| Arc::clone(&known.key)) {
                self.ledger.endpoint_left(&key);
            }
            self.cache.leave(id, self.scope(id), &mut touched);
        }
        for row in touched {
            self.rewrite(row, now, ops);
        }
    }
}

/// Whether a policy holds in any direction.
const fn is_enforced(value: &EndpointValue) -> bool {
    value.flags & (endpoint_flags::ENFORCE_INGRESS | endpoint_flags::ENFORCE_EGRESS) != 0
}
