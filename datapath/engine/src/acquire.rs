//! Identities for rows: each has its rows in the policies that judge it before an address or prefix may name it.

use std::sync::Arc;

use namegate_config::rule::Direction;

use crate::{
    EndpointId, Engine, MapOp, Row,
    engine::NODE_SCOPE,
    identities::Gone,
    selectors::{Set, TermId},
};

use foldhash::HashMap;
/// Why rows of policies find no room.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum NoRoom {
    /// The map is full.
    Map,
    /// The namespace of this policy has its share.
    Share(u32),
}

impl Engine {
    /// Uses the identity of a set once more, for the policies of a scope. New ones get their rows in these policies first;
    /// `None` where these find no room.
    pub(crate) fn acquire(&mut self, set: &[TermId], scope: u32, ops: &mut Vec<MapOp>) -> Option<u32> {
        if let Some(id) = self.identities.reuse(set) {
            let is_sure = self.doubt.is_none() && self.judges(scope).is_none();
            if is_sure || self.admit(id, set, scope, ops) {
                return Some(id);
            }
            self.identities.release(id);
            return None;
        }
        let set: Set = set.into();
        let Some(id) = self.ledger.identity(&set) else {
            self.refuse("identities");
            return None;
        };
        self.identities.begin(id, &set);
        if self.admit(id, &set, scope, ops) {
            return Some(id);
        }
        // Another row must not find it: it has no rows.
        self.identities.forget(id);
        self.ledger.identities.forget(&set);
        None
    }

    /// The only policies that judge the addresses of a scope: that of its endpoint, and the one that this moves to. `None`
    /// where every policy might.
    fn judges(&self, scope: u32) -> Option<[u32; 2]> {
        let is_shared = scope == 0 || scope == NODE_SCOPE;
        let id = EndpointId(scope);
        let held = || self.local.get(&id).map_or(0, |local| local.policy);
        let planned = || self.plan.endpoints.get(&id).map_or(0, |planned| planned.policy);
        (!is_shared).then(|| [held(), planned()])
    }

    /// Writes the rows of an identity in use into the policies that judge it in a scope; false where there is no room.
    fn admit(&mut self, id: u32, set: &[TermId], scope: u32, ops: &mut Vec<MapOp>) -> bool {
        if let Some([held, planned]) = self.judges(scope) {
            let policies = if held == planned { &[held][..] } else { &[held, planned] };
            return self.admit_to(id, set, policies, ops).is_ok();
        }
        loop {
            match self.admit_to(id, set, &self.users_of(set), ops) {
                Ok(()) => return true,
                Err(NoRoom::Map) => return false,
                // Others need the row: who has more than its share goes without a policy, which closes it.
                Err(NoRoom::Share(policy)) => self.evict(policy, ops),
            }
        }
    }

    /// Takes a policy out of force and closes its endpoints.
    fn evict(&mut self, policy: u32, ops: &mut Vec<MapOp>) {
        let mut revision = None;
        for local in self.local.values_mut().filter(|local| local.policy == policy && local.closed.is_none()) {
            local.close(*revision.get_or_insert_with(|| self.ledger.next_revision()));
            for interface in local.written() {
                self.mirror.put(Row::Endpoint(interface, local.value), ops);
            }
        }
        self.uninstall(policy, "limits.policyRowsPerNamespace", ops);
    }

    /// The same for these policies.
    pub(crate) fn admit_to(
        &mut self,
        id: u32,
        set: &[TermId],
        policies: &[u32],
        ops: &mut Vec<MapOp>,
    ) -> Result<(), NoRoom> {
        let mut added = Vec::new();
        let mut rows: Vec<(u32, Vec<Row>)> = Vec::new();
        for policy in policies {
            let Some(compiled) = self.policies.get_mut(policy) else { continue };
            if !compiled.has(id) {
                compiled.admit(id, set, &self.terms);
                added.push(*policy);
            } else if self.doubt.is_none() {
                continue;
            }
            let of_policy = compiled.rows_of(id).map(|(direction, row)| row.of(*policy, id, direction));
            rows.push((*policy, of_policy.collect()));
        }
        if let Err(why) = self.has_room_for(&rows) {
            for policy in added {
                if let Some(compiled) = self.policies.get_mut(&policy) {
                    compiled.dismiss(id);
                }
            }
            return Err(why);
        }
        for row in rows.into_iter().flat_map(|(_, rows)| rows) {
            self.mirror.put(row, ops);
        }
        for policy in added {
            if self.policies.get(&policy).is_some_and(|compiled| compiled.has(id)) {
                self.identities.hold(id, policy);
            }
        }
        Ok(())
    }

    /// Whether the map, and the shares of namespaces, have room for rows of these policies.
    pub(crate) fn has_room_for(&mut self, rows: &[(u32, Vec<Row>)]) -> Result<(), NoRoom> {
        let mut of_tenants: HashMap<Arc<str>, (usize, u32)> = HashMap::default();
        for (policy, rows) in rows {
            let new = self.mirror.new_rows(rows);
            if let Some(tenant) = self.mirror.tenant(*policy).filter(|_| new > 0) {
                let entry = of_tenants.entry(Arc::clone(tenant)).or_insert((0, *policy));
                entry.0 += new;
            }
        }
        for (tenant, (new, policy)) in of_tenants {
            if self.mirror.rows_of_tenant(&tenant) + new > self.policy_share() {
                self.refuse_in("limits.policyRowsPerNamespace", &tenant);
                return Err(NoRoom::Share(policy));
            }
        }
        let all: Vec<Row> = rows.iter().flat_map(|(_, rows)| rows).copied().collect();
        if self.mirror.has_room(&all) { Ok(()) } else { Err(NoRoom::Map) }
    }

    /// Policies with rules that look at one of the selectors; all that judge egress, where one stands for a front.
    pub(crate) fn users_of(&self, set: &[TermId]) -> Vec<u32> {
        let mut users = Vec::new();
        if self.terms.fronts.of(set).is_some() {
            // Who is behind a port is another's matter, and at another port.
            let judging = self.policies.iter().filter(|(_, policy)| policy.enforces(Direction::Egress));
            users.extend(judging.map(|(id, _)| *id));
        }
        for term in set {
            users.extend(self.users.get(term).into_iter().flatten());
            if let Some(port) = self.terms.port(*term) {
                users.extend(self.port_users.get(&port.name).into_iter().flatten());
            }
        }
        users.sort_unstable();
        users.dedup();
        users
    }

    /// Removes the rows of some identities that nothing names any more; true where these were all.
    pub(crate) fn sweep(&mut self, most: usize, ops: &mut Vec<MapOp>) -> bool {
        for Gone { id, set, holders } in self.identities.sweep(most) {
            for policy in holders {
                let Some(compiled) = self.policies.get_mut(&policy) else { continue };
                for (direction, row) in compiled.rows_of(id) {
                    self.mirror.delete(row.of(policy, id, direction).key(), ops);
                }
                compiled.dismiss(id);
            }
            self.ledger.identities.forget(&set);
            self.terms.fronts.doubt(&set);
        }
        self.forget_fronts();
        !self.identities.has_idle()
    }
}
