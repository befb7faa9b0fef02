//! Shares of namespaces: what the policies of one may take of the rows that all need.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    sync::Arc,
};

use namegate_config::rule::{PeerSelector, Rule};

use crate::{
    Engine, MapOp,
    identify::prefix_of,
    plan::selectors_of,
    work::{Budget, NetKey},
};

/// Prefixes that rules ask for, by namespace; those of cluster-wide rules under none.
#[derive(Debug, Default)]
pub(crate) struct PrefixClaims {
    wanted: BTreeMap<Option<Arc<str>>, BTreeMap<NetKey, usize>>,
    /// Something changed since prefixes above the shares were searched for.
    is_changed: bool,
}

impl Engine {
    /// Rows that the policies of one namespace may have.
    pub(crate) fn policy_share(&self) -> usize {
        let limits = &self.settings.limits;
        share_of(limits.namespace_policy_rows(), limits.policy_rows)
    }

    /// Notes the prefixes of a rule that came.
    pub(crate) fn claim_prefixes(&mut self, rule: &Rule) {
        for key in edges(rule) {
            let namespace = rule.origin.namespace.as_deref().map(Arc::from);
            *self.prefix_claims.wanted.entry(namespace).or_default().entry(key).or_default() += 1;
            self.prefix_claims.is_changed = true;
        }
    }

    /// Notes the prefixes of a rule that went.
    pub(crate) fn unclaim_prefixes(&mut self, rule: &Rule) {
        for key in edges(rule) {
            let namespace: Option<Arc<str>> = rule.origin.namespace.as_deref().map(Arc::from);
            self.prefix_claims.is_changed = true;
            let Some(keys) = self.prefix_claims.wanted.get_mut(&namespace) else { continue };
            let Some(count) = keys.get_mut(&key) else { continue };
            *count -= 1;
            if *count == 0 {
                keys.remove(&key);
            }
            if keys.is_empty() {
                self.prefix_claims.wanted.remove(&namespace);
            }
        }
    }

    /// Finds the prefixes above the shares of namespaces. What another namespace within its share asks for too, or a policy
    /// of the cluster, is within. Gives those of which this is another than before.
    pub(crate) fn find_prefixes_above_share(&mut self) -> Vec<NetKey> {
        if !std::mem::take(&mut self.prefix_claims.is_changed) {
            return Vec::new();
        }
        let share = share_of(self.settings.limits.namespace_cidrs(), self.settings.limits.cidrs);
        let wanted = &self.prefix_claims.wanted;
        let is_above =
            |namespace: &Option<Arc<str>>, keys: &BTreeMap<NetKey, usize>| namespace.is_some() && keys.len() > share;
        if self.above_share.is_empty() && !wanted.iter().any(|(namespace, keys)| is_above(namespace, keys)) {
            return Vec::new();
        }
        let mut above: BTreeMap<NetKey, Arc<str>> = BTreeMap::new();
        let mut granted: BTreeSet<NetKey> = BTreeSet::new();
        for (namespace, keys) in wanted {
            let Some(namespace) = namespace.as_ref().filter(|_| keys.len() > share) else {
                granted.extend(keys.keys());
                continue;
            };
            // Those that are there stay.
            let is_held = |key: &&NetKey| self.cidrs.contains_key(*key);
            let held = keys.keys().filter(is_held);
            let new = keys.keys().filter(|key| !is_held(key));
            let mut ordered = held.chain(new);
            granted.extend(ordered.by_ref().take(share));
            above.extend(ordered.map(|key| (*key, Arc::clone(namespace))));
        }
        above.retain(|key, _| !granted.contains(key));
        let old = std::mem::replace(&mut self.above_share, above);
        let all = old.keys().chain(self.above_share.keys());
        all.filter(|key| old.get(*key) != self.above_share.get(*key)).copied().collect()
    }

    /// Gives the learned addresses of endpoints that are about to move to another policy their rows in that one. What finds
    /// no room is closed.
    pub(crate) fn admit_learned(&mut self, budget: &mut Budget, now: u64, ops: &mut Vec<MapOp>) -> bool {
        let mut queue = self.work.admit.take().unwrap_or_else(|| self.learned_of_moving());
        while let Some((row, policy)) = queue.pop_front() {
            let value = self.cache.rows.get(&row).and_then(|opened| opened.value);
            let mut has_room = true;
            for step in value.iter().flat_map(|value| &value.steps).filter(|step| step.identity != 0) {
                if let Some(set) = self.identities.set_of(step.identity).map(Arc::clone) {
                    has_room &= self.admit_to(step.identity, &set, &[policy], ops).is_ok();
                }
            }
            if !has_room {
                let is_new = self.hidden.insert(row.address);
                self.rewrite(row, now, ops);
                if is_new {
                    self.hidden.remove(&row.address);
                }
                self.unopened.insert(row);
            }
            if !budget.spend(ops) {
                self.work.admit = Some(queue);
                return false;
            }
        }
        true
    }

    /// Learned addresses of endpoints that move to a policy that is there.
    fn learned_of_moving(&self) -> VecDeque<(namegate_abi::AddressKey, u32)> {
        let mut queue = VecDeque::new();
        if self.shares_names() {
            return queue;
        }
        for id in &self.work.point {
            let Some(planned) = self.plan.endpoints.get(id) else { continue };
            let moves = self.local.get(id).is_none_or(|local| local.policy != planned.policy || local.closed.is_some());
            if moves && self.policies.contains_key(&planned.policy) {
                queue.extend(self.cache.rows_of(*id, self.scope(*id)).into_iter().map(|row| (row, planned.policy)));
            }
        }
        queue
    }
}

/// A share as rows; where it is the whole map, the map alone is the bound.
fn share_of(share: u32, whole: u32) -> usize {
    if share >= whole { usize::MAX } else { usize::try_from(share).unwrap_or(usize::MAX) }
}

/// Prefixes at which selectors of a rule begin or end to match.
fn edges(rule: &Rule) -> impl Iterator<Item = NetKey> {
    let nets = selectors_of(rule).iter().filter_map(|selector| match selector {
        PeerSelector::Cidr(cidr) => Some(std::iter::once(&cidr.net).chain(&cidr.except)),
        _ => None,
    });
    nets.flatten().map(|net| prefix_of(net.trunc()))
}
