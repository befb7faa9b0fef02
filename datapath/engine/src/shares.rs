//! Shares of namespaces: what the policies of one may take of the rows that all need.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::Arc,
};

use namegate_abi::{AddressKey, CidrKey};
use namegate_config::rule::{PeerSelector, Peers, Rule};

use crate::{Engine, MapOp, engine::NODE_SCOPE, update::prefix_of};

impl Engine {
    /// Rows that the policies of a namespace have now. Those that are about to go do not count.
    pub(crate) fn policy_rows_in(&self, tenant: &Arc<str>) -> usize {
        let own = self.tenants.iter().filter(|(_, namespace)| *namespace == tenant);
        own.map(|(policy, _)| self.mirror.rows_of_policy(*policy)).sum()
    }

    /// Rows that the policies of one namespace may have.
    pub(crate) fn policy_share(&self) -> usize {
        let limits = &self.settings.limits;
        share_of(limits.namespace_policy_rows(), limits.policy_rows)
    }

    /// Finds out which namespace each policy of the plan belongs to.
    pub(crate) fn find_tenants(&mut self) {
        let mut tenants: HashMap<u32, Option<Arc<str>>> = HashMap::new();
        for (id, _, who) in self.peers.local() {
            let Some((_, content)) = self.plan.endpoints.get(&id) else { continue };
            let Some((namespace, _)) = who.key.split_once('/') else { continue };
            let policy = self.ledger.policy(content);
            let tenant = tenants.entry(policy).or_insert_with(|| Some(namespace.into()));
            if tenant.as_deref() != Some(namespace) {
                // What namespaces share is the cluster's.
                *tenant = None;
            }
        }
        self.tenants = tenants.into_iter().filter_map(|(policy, tenant)| Some((policy, tenant?))).collect();
    }

    /// Finds the prefixes above the shares of namespaces. What another namespace within its share asks for too, or a policy
    /// of the cluster, is within.
    pub(crate) fn find_prefixes_above_share(&mut self) {
        let share = share_of(self.settings.limits.namespace_cidrs(), self.settings.limits.cidrs);
        let mut wanted: BTreeMap<Option<&str>, BTreeSet<(u32, CidrKey)>> = BTreeMap::new();
        for numbered in self.plan.policies.values().flat_map(|(rules, _)| rules) {
            let namespace = numbered.rule.origin.namespace.as_deref();
            wanted.entry(namespace).or_default().extend(edges(&numbered.rule));
        }
        let mut above: BTreeMap<(u32, CidrKey), Arc<str>> = BTreeMap::new();
        let mut granted: BTreeSet<(u32, CidrKey)> = BTreeSet::new();
        for (namespace, keys) in &wanted {
            let Some(namespace) = namespace.filter(|_| keys.len() > share) else {
                granted.extend(keys);
                continue;
            };
            // Those that are there stay.
            let is_held = |key: &&(u32, CidrKey)| self.cidrs.contains_key(*key);
            let held = keys.iter().filter(is_held);
            let new = keys.iter().filter(|key| !is_held(key));
            let mut ordered = held.chain(new);
            granted.extend(ordered.by_ref().take(share));
            above.extend(ordered.map(|key| (*key, namespace.into())));
        }
        above.retain(|key, _| !granted.contains(key));
        self.above_share = above;
    }

    /// Gives the learned addresses of endpoints that are about to move to another policy their rows in that one. What finds
    /// no room is closed.
    pub(crate) fn admit_learned(&mut self, now: u64, ops: &mut Vec<MapOp>) {
        let mut moving: HashMap<u32, u32> = HashMap::new();
        for (id, (_, content)) in &self.plan.endpoints {
            let policy = if content.0.is_empty() { 0 } else { self.ledger.policy(content) };
            if self.local.get(id).is_none_or(|local| local.policy != policy) && self.policies.contains_key(&policy) {
                moving.insert(self.scope(*id), policy);
            }
        }
        moving.remove(&NODE_SCOPE);
        if moving.is_empty() {
            return;
        }
        let rows: Vec<(AddressKey, u32)> =
            self.cache.rows.keys().filter_map(|key| Some((*key, *moving.get(&key.scope)?))).collect();
        for (key, policy) in rows {
            let Some(value) = self.cache.rows.get(&key).and_then(|opened| opened.value) else { continue };
            let mut has_room = true;
            for step in value.steps.iter().filter(|step| step.identity != 0) {
                if let Some(set) = self.identities.set_of(step.identity).map(Arc::clone) {
                    has_room &= self.admit_to(step.identity, &set, &[policy], ops).is_ok();
                }
            }
            if !has_room {
                self.hidden.insert(key.address);
                self.rewrite(key, now, ops);
                self.hidden.remove(&key.address);
                self.unopened.insert(key);
            }
        }
    }
}

/// A share as rows; where it is the whole map, the map alone is the bound.
fn share_of(share: u32, whole: u32) -> usize {
    if share >= whole { usize::MAX } else { usize::try_from(share).unwrap_or(usize::MAX) }
}

/// Prefixes at which selectors of a rule begin or end to match.
fn edges(rule: &Rule) -> impl Iterator<Item = (u32, CidrKey)> {
    let selectors = match &rule.peers {
        Peers::Any => &[][..],
        Peers::Of(selectors) => selectors,
    };
    let nets = selectors.iter().filter_map(|selector| match selector {
        PeerSelector::Cidr(cidr) => Some(std::iter::once(&cidr.net).chain(&cidr.except)),
        _ => None,
    });
    nets.flatten().map(|net| prefix_of(net.trunc()))
}
