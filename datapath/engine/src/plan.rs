//! Which rules select which endpoint, and the selectors that must be in force for them.

use std::{
    collections::{BTreeMap, BTreeSet, HashSet},
    sync::Arc,
};

use namegate_abi::NODE_INTERFACE;
use namegate_config::{
    labels::Labels,
    peer::NamedPort,
    rule::{Direction, Peers, Rule, Subject},
};

use crate::{
    EndpointId, Engine,
    compile::NumberedRule,
    ledger::PolicyContent,
    ports::names,
    selectors::{LabelIndex, Term, TermId, set},
    topology::{self, NODE_KEY},
};

/// What each endpoint of this node, and the node itself, should be judged by.
#[derive(Debug, Default)]
pub(crate) struct Plan {
    /// Interface and policy of each.
    pub(crate) endpoints: BTreeMap<EndpointId, (u32, PolicyContent)>,
    /// Further interfaces of each that has some.
    pub(crate) more_interfaces: BTreeMap<EndpointId, Vec<u32>>,
    /// Rules of each policy, and the ports of the subject that they name.
    pub(crate) policies: BTreeMap<PolicyContent, (Vec<NumberedRule>, Vec<NamedPort>)>,
}

impl Plan {
    fn add(&mut self, id: EndpointId, interface: u32, rules: Vec<NumberedRule>, named_ports: &[NamedPort]) {
        let ports = own_ports(&rules, named_ports);
        let texts = ports.iter().map(|port| Term::Port(port.clone()).to_string()).collect();
        let content: PolicyContent = (set(rules.iter().map(|rule| rule.cookie).collect()), texts);
        if !rules.is_empty() {
            self.policies.entry(content.clone()).or_insert((rules, ports));
        }
        self.endpoints.insert(id, (interface, content));
    }
}

/// Rules of the directions that are guarded, by what their subjects ask for.
#[derive(Debug, Default)]
pub(crate) struct Subjects {
    endpoints: LabelIndex<usize>,
    nodes: LabelIndex<usize>,
}

impl Subjects {
    pub(crate) fn new(rules: &[(u32, Arc<Rule>)], directions: &[Direction]) -> Self {
        let mut subjects = Self::default();
        for (at, (_, rule)) in rules.iter().enumerate().filter(|(_, (_, rule))| directions.contains(&rule.direction)) {
            match &rule.subject {
                Subject::Endpoints(selector) => subjects.endpoints.insert(selector.clone(), at),
                Subject::Nodes(selector) => subjects.nodes.insert(selector.clone(), at),
            }
        }
        subjects
    }
}

impl Engine {
    /// Which rules select which endpoint. This node is one where a rule selects it.
    pub(crate) fn plan(&mut self, peers: &topology::Peers) -> Plan {
        let mut plan = Plan::default();
        for (id, interface, who) in peers.local() {
            plan.add(id, interface, self.selecting(&self.subjects.endpoints, &who.labels), &who.named_ports);
            let more = peers.more_interfaces(who);
            if !more.is_empty() {
                plan.more_interfaces.insert(id, more.to_vec());
            }
        }
        let rules = peers.node().map(|who| self.selecting(&self.subjects.nodes, &who.labels)).unwrap_or_default();
        if !rules.is_empty() {
            let id = EndpointId(self.ledger.endpoint(&NODE_KEY.into()));
            plan.add(id, NODE_INTERFACE, rules, &[]);
        }
        plan
    }

    /// The rules, in order, whose subjects match.
    fn selecting(&self, subjects: &LabelIndex<usize>, labels: &Labels) -> Vec<NumberedRule> {
        let mut selecting = Vec::new();
        subjects.each_match(labels, |at| selecting.push(*at));
        selecting.sort_unstable();
        selecting.dedup();
        let rule = |at: usize| NumberedRule { cookie: self.rules[at].0, rule: Arc::clone(&self.rules[at].1) };
        selecting.into_iter().map(rule).collect()
    }

    /// Selectors of the rules of the plan, and ports of peers that they name.
    pub(crate) fn terms_wanted(&mut self, plan: &Plan, peers: &topology::Peers) -> BTreeMap<TermId, Term> {
        let mut terms = BTreeMap::new();
        let mut port_names = BTreeSet::new();
        let mut seen = HashSet::new();
        for numbered in plan.policies.values().flat_map(|(rules, _)| rules) {
            if !seen.insert(numbered.cookie) {
                continue;
            }
            for term in terms_of(&numbered.rule) {
                let known = if let Term::Peer(selector) = &term { self.terms.peer(selector) } else { None };
                let id = known.unwrap_or_else(|| self.ledger.selector(term.to_string()));
                terms.insert(id, term);
            }
            if numbered.rule.direction == Direction::Egress {
                port_names.extend(names(&numbered.rule.ports).cloned());
            }
        }
        self.add_ports(&mut terms, &port_names, peers);
        terms
    }

    fn add_ports(&mut self, terms: &mut BTreeMap<TermId, Term>, names: &BTreeSet<String>, peers: &topology::Peers) {
        if names.is_empty() {
            return;
        }
        for port in peers.all.iter().flat_map(|who| &who.named_ports).filter(|port| names.contains(&port.name)) {
            let term = Term::Port(port.clone());
            let known = self.terms.port_id(port);
            let id = known.unwrap_or_else(|| self.ledger.selector(term.to_string()));
            terms.insert(id, term);
        }
    }
}

/// The ports of an endpoint that its ingress rules name: part of what makes its policy.
fn own_ports(rules: &[NumberedRule], named: &[NamedPort]) -> Vec<NamedPort> {
    let ingress = rules.iter().filter(|numbered| numbered.rule.direction == Direction::Ingress);
    let wanted: Vec<&String> = ingress.flat_map(|numbered| names(&numbered.rule.ports)).collect();
    let mut ports: Vec<NamedPort> = named.iter().filter(|port| wanted.contains(&&port.name)).cloned().collect();
    ports.sort_unstable();
    ports.dedup();
    ports
}

/// Terms of the peers of a rule.
fn terms_of(rule: &Rule) -> impl Iterator<Item = Term> {
    let selectors = match &rule.peers {
        Peers::Any => &[][..],
        Peers::Of(selectors) => selectors,
    };
    selectors.iter().map(|selector| Term::Peer(selector.clone()))
}
