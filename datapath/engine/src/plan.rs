//! Which rules select which endpoint, and what must be in force for them. Kept from change to change: only endpoints that
//! rules or facts touch are planned again.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use foldhash::HashMap;
use namegate_abi::NODE_INTERFACE;
use namegate_config::{
    peer::NamedPort,
    rule::{Direction, PeerSelector, Peers, Rule},
};

use crate::{
    EndpointId, Engine,
    compile::NumberedRule,
    ledger::PolicyContent,
    ports::names,
    selectors::{Term, TermId, set},
    topology::NODE_KEY,
};

/// What each endpoint of this node, and the node itself, should be judged by.
#[derive(Debug, Default)]
pub(crate) struct Plan {
    pub(crate) endpoints: BTreeMap<EndpointId, Planned>,
    pub(crate) policies: BTreeMap<u32, PlannedPolicy>,
    /// How many policies have a rule, by its number.
    rules: HashMap<u32, usize>,
    /// How many selectors of these rules are the same.
    terms: HashMap<TermId, usize>,
    /// How often these rules name a port of peers.
    port_names: HashMap<String, usize>,
}

/// What one endpoint should be judged by.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Planned {
    pub(crate) interface: u32,
    /// Further interfaces.
    pub(crate) more: Vec<u32>,
    /// Number of the policy; 0 where no rule selects the endpoint.
    pub(crate) policy: u32,
    /// `namespace` of `namespace/name`.
    namespace: Option<Arc<str>>,
}

/// A policy that endpoints should be judged by.
#[derive(Debug)]
pub(crate) struct PlannedPolicy {
    pub(crate) content: PolicyContent,
    pub(crate) rules: Vec<NumberedRule>,
    /// Ports of the subject that the rules name.
    pub(crate) ports: Vec<NamedPort>,
    endpoints: usize,
    /// Endpoints by namespace.
    namespaces: BTreeMap<Arc<str>, usize>,
}

impl PlannedPolicy {
    /// The namespace of all its endpoints; what namespaces share is the cluster's.
    fn tenant(&self) -> Option<&Arc<str>> {
        self.namespaces.keys().next().filter(|_| self.namespaces.len() == 1)
    }
}

impl Engine {
    /// Plans these endpoints again, and this node where `node` says so.
    pub(crate) fn replan(&mut self, endpoints: BTreeSet<EndpointId>, node: bool) {
        for id in endpoints {
            let Some(peer) = self.peers.local_of(id) else {
                self.plan_endpoint(id, None);
                continue;
            };
            let planned = Planned {
                interface: peer.interface.unwrap_or_default(),
                more: self.peers.more_interfaces(peer).to_vec(),
                policy: 0,
                namespace: peer.key.split_once('/').map(|(namespace, _)| namespace.into()),
            };
            self.cache.open(id, &peer.key);
            let labels = Arc::clone(&peer.labels);
            let named_ports = peer.named_ports.clone();
            self.plan_endpoint(id, Some((planned, self.rules.of_endpoint(&labels), &named_ports)));
        }
        if node {
            self.plan_node();
        }
    }

    /// This node is an endpoint where a rule selects it.
    fn plan_node(&mut self) {
        let rules = self.peers.node().map(|peer| self.rules.of_node(&peer.labels)).unwrap_or_default();
        if rules.is_empty() {
            if let Some(id) = self.ledger.endpoints.get(&NODE_KEY.into()) {
                self.plan_endpoint(EndpointId(id), None);
            }
            return;
        }
        let id = EndpointId(self.ledger.endpoint(&NODE_KEY.into()));
        self.cache.open(id, &NODE_KEY.into());
        let planned = Planned { interface: NODE_INTERFACE, ..Planned::default() };
        self.plan_endpoint(id, Some((planned, rules, &[])));
    }

    fn plan_endpoint(&mut self, id: EndpointId, new: Option<(Planned, Vec<NumberedRule>, &[NamedPort])>) {
        let planned = new.map(|(mut planned, rules, named_ports)| {
            planned.policy =
                if rules.is_empty() { 0 } else { self.enter(rules, named_ports, planned.namespace.as_ref()) };
            planned
        });
        let old = match planned.clone() {
            Some(planned) => self.plan.endpoints.insert(id, planned),
            None => self.plan.endpoints.remove(&id),
        };
        if let Some(old) = &old {
            self.leave_policy(old);
        }
        if planned.is_none() && old.is_some() {
            // One that comes with its name is another, also before its rows are gone.
            if let Some(known) = self.cache.endpoints.get(&id) {
                self.ledger.endpoint_left(&Arc::clone(&known.key));
            }
            self.work.gone.insert(id);
        } else if planned != old {
            self.work.gone.remove(&id);
            self.work.point.insert(id);
        }
    }

    /// Counts one endpoint more for the policy of these rules; gives its number.
    fn enter(&mut self, rules: Vec<NumberedRule>, named_ports: &[NamedPort], namespace: Option<&Arc<str>>) -> u32 {
        let ports = own_ports(&rules, named_ports);
        let texts = ports.iter().map(|port| Term::Port(port.clone()).to_string()).collect();
        let content: PolicyContent = (set(rules.iter().map(|rule| rule.cookie).collect()), texts);
        let id = self.ledger.policy(&content);
        if !self.plan.policies.contains_key(&id) {
            for numbered in &rules {
                self.enter_rule(numbered);
            }
            let policy = PlannedPolicy { content, rules, ports, endpoints: 0, namespaces: BTreeMap::new() };
            self.plan.policies.insert(id, policy);
            self.work.retired.remove(&id);
            if !self.policies.contains_key(&id) {
                self.work.install.insert(id);
            }
        }
        if let Some(policy) = self.plan.policies.get_mut(&id) {
            policy.endpoints += 1;
            if let Some(namespace) = namespace {
                *policy.namespaces.entry(Arc::clone(namespace)).or_default() += 1;
            }
            self.mirror.set_tenant(id, policy.tenant());
        }
        id
    }

    /// Counts one endpoint less.
    fn leave_policy(&mut self, planned: &Planned) {
        let id = planned.policy;
        let Some(policy) = self.plan.policies.get_mut(&id) else { return };
        policy.endpoints -= 1;
        if let Some(namespace) = &planned.namespace
            && let Some(count) = policy.namespaces.get_mut(namespace)
        {
            *count -= 1;
            if *count == 0 {
                policy.namespaces.remove(namespace);
            }
        }
        if policy.endpoints > 0 {
            self.mirror.set_tenant(id, policy.tenant());
            return;
        }
        self.mirror.set_tenant(id, None);
        self.work.install.remove(&id);
        self.uninstalled.remove(&id);
        if let Some(policy) = self.plan.policies.remove(&id) {
            for numbered in &policy.rules {
                self.leave_rule(numbered);
            }
            self.work.retired.insert(id, policy.content);
        }
    }

    fn enter_rule(&mut self, numbered: &NumberedRule) {
        if !count(&mut self.plan.rules, numbered.cookie) {
            return;
        }
        let rule = &numbered.rule;
        for selector in selectors_of(rule) {
            let known = self.terms.peer(selector);
            let id = known.unwrap_or_else(|| self.ledger.selector(selector.to_string()));
            self.enter_term(id, || Term::Peer(selector.clone()));
        }
        if rule.direction == Direction::Egress {
            for name in names(&rule.ports) {
                if count(&mut self.plan.port_names, name.clone()) {
                    self.work.port_names.insert(name.clone());
                }
            }
        }
        self.claim_prefixes(rule);
    }

    fn leave_rule(&mut self, numbered: &NumberedRule) {
        if !discount(&mut self.plan.rules, &numbered.cookie) {
            return;
        }
        let rule = &numbered.rule;
        for selector in selectors_of(rule) {
            if let Some(id) = self.terms.peer(selector) {
                self.leave_term(id);
            }
        }
        if rule.direction == Direction::Egress {
            for name in names(&rule.ports) {
                if discount(&mut self.plan.port_names, name) {
                    self.work.port_names.insert(name.clone());
                }
            }
        }
        self.unclaim_prefixes(rule);
    }

    /// A selector is used once more. A new one is in force at once: identities become finer, and no verdict changes.
    fn enter_term(&mut self, id: TermId, term: impl FnOnce() -> Term) {
        if !count(&mut self.plan.terms, id) {
            return;
        }
        if !self.work.leaving.remove(&id) {
            self.terms.insert(id, term());
            self.work.entered.insert(id);
        }
    }

    fn leave_term(&mut self, id: TermId) {
        if discount(&mut self.plan.terms, &id) {
            self.work.leaving.insert(id);
        }
    }

    /// Puts the ports in force that peers name as rules do, for the names that rules or peers may have now or no longer.
    pub(crate) fn plan_ports(&mut self) {
        for name in std::mem::take(&mut self.work.port_names) {
            let is_named = self.plan.port_names.contains_key(&name);
            let wanted: BTreeSet<NamedPort> =
                if is_named { self.peers.ports_named(&name).cloned().collect() } else { BTreeSet::new() };
            let held: BTreeMap<NamedPort, TermId> =
                self.terms.ports_named(&name).map(|(port, id)| (port.clone(), id)).collect();
            for (_, id) in held.iter().filter(|(port, _)| !wanted.contains(port)) {
                self.leave_term(*id);
            }
            for port in wanted {
                let is_used = |id: &TermId| self.plan.terms.contains_key(id);
                let known = held.get(&port).copied();
                if known.as_ref().is_some_and(is_used) {
                    continue;
                }
                let term = Term::Port(port);
                let id = known.unwrap_or_else(|| self.ledger.selector(term.to_string()));
                self.enter_term(id, || term);
            }
        }
    }
}

/// Counts one more; true for the first.
fn count<K: std::hash::Hash + Eq>(counts: &mut HashMap<K, usize>, key: K) -> bool {
    let number = counts.entry(key).or_default();
    *number += 1;
    *number == 1
}

/// Counts one less; true for the last.
fn discount<Q: std::hash::Hash + Eq + ?Sized, K: std::hash::Hash + Eq + std::borrow::Borrow<Q>>(
    counts: &mut HashMap<K, usize>,
    key: &Q,
) -> bool {
    let Some(number) = counts.get_mut(key) else { return false };
    *number -= 1;
    if *number > 0 {
        return false;
    }
    counts.remove(key);
    true
}

/// The ports of an endpoint that its ingress rules name: part of what makes its policy.
fn own_ports(rules: &[NumberedRule], named: &[NamedPort]) -> Vec<NamedPort> {
    if named.is_empty() {
        return Vec::new();
    }
    let ingress = rules.iter().filter(|numbered| numbered.rule.direction == Direction::Ingress);
    let wanted: Vec<&String> = ingress.flat_map(|numbered| names(&numbered.rule.ports)).collect();
    let mut ports: Vec<NamedPort> = named.iter().filter(|port| wanted.contains(&&port.name)).cloned().collect();
    ports.sort_unstable();
    ports.dedup();
    ports
}

/// Selectors of the peers of a rule.
pub(crate) fn selectors_of(rule: &Rule) -> &[PeerSelector] {
    match &rule.peers {
        Peers::Any => &[],
        Peers::Of(selectors) => selectors,
    }
}
