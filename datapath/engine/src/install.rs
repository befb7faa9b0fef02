//! Policies that come and go: their rows are written before anybody uses them, and removed after.

use std::collections::{BTreeSet, VecDeque};

use namegate_abi::identity;
use namegate_config::settings::Scope;

use crate::{
    Engine, MapOp, Row,
    acquire::NoRoom,
    compile::Policy,
    selectors::{Set, TermId},
    update::policy_rows,
    work::Budget,
};

impl Engine {
    /// Whether endpoints share what they learn.
    pub(crate) fn shares_names(&self) -> bool {
        self.settings.dns.scope == Scope::Node
    }

    /// Writes the rows of policies that are not in use yet. One that finds no room is left out: its endpoints are closed.
    pub(crate) fn install(&mut self, budget: &mut Budget, ops: &mut Vec<MapOp>) -> bool {
        loop {
            if let Some((id, identities)) = self.work.installing.take()
                && !self.install_for(id, identities, budget, ops)
            {
                return false;
            }
            let Some(id) = self.work.install.pop_first() else { return true };
            self.begin_install(id, ops);
            if !budget.spend(ops) {
                return false;
            }
        }
    }

    /// Writes the rows for any peer, and lists whom else the policy has to judge.
    fn begin_install(&mut self, id: u32, ops: &mut Vec<MapOp>) {
        self.uninstalled.remove(&id);
        let Some(planned) = self.plan.policies.get(&id).filter(|_| !self.policies.contains_key(&id)) else { return };
        let policy = Policy::new(&planned.rules, &planned.ports, self.proxies, &self.terms);
        let rows = [(id, policy_rows(id, &policy).collect::<Vec<Row>>())];
        if let Err(why) = self.has_room_for(&rows) {
            self.uninstalled.insert(id, setting_of(why));
            return;
        }
        let [(_, rows)] = rows;
        for row in rows {
            self.mirror.put(row, ops);
        }
        self.list(id, &policy);
        let identities = self.judged_by(&policy, self.shares_names());
        self.policies.insert(id, policy);
        self.work.installing = Some((id, identities.into()));
    }

    /// Writes the rows for these identities.
    fn install_for(
        &mut self,
        id: u32,
        mut identities: VecDeque<u32>,
        budget: &mut Budget,
        ops: &mut Vec<MapOp>,
    ) -> bool {
        while let Some(identity) = identities.pop_front() {
            let Some(set) = self.identities.set_of(identity).cloned() else { continue };
            if let Err(why) = self.admit_to(identity, &set, &[id], ops) {
                self.uninstall(id, setting_of(why), ops);
                return true;
            }
            if !budget.spend(ops) {
                self.work.installing = Some((id, identities));
                return false;
            }
        }
        true
    }

    /// Identities in use that a policy has to judge; those of learned addresses with `all`. Else [`Engine::admit_learned`]
    /// follows.
    pub(crate) fn judged_by(&self, policy: &Policy, all: bool) -> Vec<u32> {
        let named = policy.port_names().flat_map(|name| self.terms.ports_named(name)).map(|(_, id)| id);
        let terms: BTreeSet<TermId> = policy.terms().chain(named).chain(self.terms.fronts.ids()).collect();
        let matched = terms.iter().flat_map(|term| self.identities.matched_by(*term));
        let identities: BTreeSet<u32> = matched.chain(std::iter::once(identity::WORLD)).collect();
        let is_own = |set: &Set| all || !set.iter().any(|term| self.terms.is_name(*term));
        identities.into_iter().filter(|id| self.identities.set_of(*id).is_some_and(is_own)).collect()
    }

    /// Takes a policy out of force that has no room.
    pub(crate) fn uninstall(&mut self, id: u32, setting: &'static str, ops: &mut Vec<MapOp>) {
        if let Some(policy) = self.remove_policy(id) {
            for row in policy_rows(id, &policy) {
                self.mirror.delete(row.key(), ops);
            }
        }
        if self.plan.policies.contains_key(&id) {
            self.uninstalled.insert(id, setting);
        }
    }

    /// Removes policies that no endpoint should have, and then their rows.
    pub(crate) fn drop_policies(&mut self, budget: &mut Budget, ops: &mut Vec<MapOp>) -> bool {
        loop {
            while let Some(key) = self.work.deletes.pop_front() {
                self.mirror.delete(key, ops);
                if !budget.spend(ops) {
                    return false;
                }
            }
            let Some((id, content)) = self.work.retired.pop_first() else { return true };
            self.ledger.policies.forget(&content);
            if let Some(policy) = self.remove_policy(id) {
                self.work.deletes.extend(policy_rows(id, &policy).map(|row| row.key()));
            }
        }
    }

    fn remove_policy(&mut self, id: u32) -> Option<Policy> {
        let policy = self.policies.remove(&id)?;
        self.unlist(id, &policy);
        self.forget_holder(id, &policy);
        Some(policy)
    }

    /// Identities have no rows in the policy any more.
    pub(crate) fn forget_holder(&mut self, id: u32, policy: &Policy) {
        for identity in policy.identities().collect::<BTreeSet<u32>>() {
            self.identities.let_go(identity, id);
        }
    }

    /// Notes which selectors, and which names of peers' ports, a policy uses.
    fn list(&mut self, id: u32, policy: &Policy) {
        for term in policy.terms() {
            self.users.entry(term).or_default().insert(id);
        }
        for name in policy.port_names() {
            self.port_users.entry(name.to_owned()).or_default().insert(id);
        }
    }

    fn unlist(&mut self, id: u32, policy: &Policy) {
        for term in policy.terms() {
            if let Some(users) = self.users.get_mut(&term) {
                users.remove(&id);
                if users.is_empty() {
                    self.users.remove(&term);
                }
            }
        }
        for name in policy.port_names() {
            if let Some(users) = self.port_users.get_mut(name) {
                users.remove(&id);
                if users.is_empty() {
                    self.port_users.remove(name);
                }
            }
        }
    }
}

/// The setting that makes room.
const fn setting_of(why: NoRoom) -> &'static str {
    match why {
        NoRoom::Share(_) => "limits.policyRowsPerNamespace",
        NoRoom::Map => "limits.policyRows",
    }
}
