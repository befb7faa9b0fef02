//! Compiles the rules that select an endpoint: for each peer identity the complete verdicts, deny settled here.
//!
//! A policy is a set of rules and never changes: other rules are another policy with another number. So a row, once
//! written, is right for as long as it stands, and an endpoint moves to new rules in one write.

mod settle;

use std::{collections::BTreeMap, sync::Arc};

use foldhash::HashMap;
use namegate_abi::{
    PolicyValue,
    protocol::{TCP, UDP},
};
use namegate_config::{
    peer::NamedPort,
    rule::{Binding, Direction, Peers, PortSet, Ports, Rule, Tier},
};

use self::settle::BoundFlows;
use crate::{
    Proxies,
    fronts::{Front, Port},
    ports::{Function, Piece, PortRow, names, spans_of},
    selectors::{TermId, Terms},
};

/// A rule and the number that rows carry.
#[derive(Clone, Debug)]
pub(crate) struct NumberedRule {
    pub(crate) cookie: u32,
    pub(crate) rule: Arc<Rule>,
}

/// Both directions of one set of rules.
#[derive(Debug)]
pub(crate) struct Policy {
    sides: [Side; 2],
}

/// What a policy says about one kind of peer.
#[derive(Debug)]
pub(crate) struct Template {
    /// For every protocol and port.
    pub(crate) function: Function,
    /// The same as rows above those of any peer.
    pub(crate) rows: Vec<PortRow>,
    /// Ports of a virtual address whose targets are judged differently.
    divided: Vec<Port>,
}

impl Template {
    /// `below` is what holds for any peer.
    fn new(function: Function, below: &Function) -> Self {
        let rows = function.rows(below);
        Self { function, rows, divided: Vec::new() }
    }
}

/// One direction.
#[derive(Debug)]
struct Side {
    direction: Direction,
    rules: Vec<NumberedRule>,
    /// Whether a rule makes denial the default.
    default_deny: bool,
    /// Rules for every peer, in order.
    any: Vec<usize>,
    /// Rules for some peers, by what selects them.
    by_term: HashMap<TermId, Vec<usize>>,
    /// Rules for every peer with a port that the peer names.
    any_named: Vec<usize>,
    /// Names of ports that are looked up at the peer.
    port_names: Vec<String>,
    proxies: Proxies,
    /// Ports that the subject names: what ingress rules mean.
    own_ports: Vec<NamedPort>,
    /// For peers that no rule selects.
    rest: Arc<Template>,
    /// Compiled kinds of peers.
    templates: HashMap<Kind, Arc<Template>>,
    /// Identities with rows of their own.
    identities: BTreeMap<u32, Arc<Template>>,
}

/// What tells peers apart for one direction of a policy.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
struct Kind {
    rules: Vec<usize>,
    /// Those of them that select the peer by its names alone.
    by_name: Vec<usize>,
    ports: Vec<NamedPort>,
}

const DIRECTIONS: [Direction; 2] = [Direction::Ingress, Direction::Egress];

impl Policy {
    /// Compiles the rules for peers that none of them selects; others follow by [`Policy::admit`].
    pub(crate) fn new(rules: &[NumberedRule], own_ports: &[NamedPort], proxies: Proxies, terms: &Terms) -> Self {
        let side = |direction| {
            let rules = rules.iter().filter(|numbered| numbered.rule.direction == direction).cloned().collect();
            Side::new(direction, rules, own_ports, proxies, terms)
        };
        Self { sides: DIRECTIONS.map(side) }
    }

    /// Rules of the policy.
    pub(crate) fn rules(&self) -> impl Iterator<Item = &NumberedRule> {
        self.sides.iter().flat_map(|side| &side.rules)
    }

    /// Ports of the subject that its ingress rules name.
    pub(crate) fn own_ports(&self) -> &[NamedPort] {
        self.sides.iter().find(|side| side.direction == Direction::Ingress).map_or(&[], |side| &side.own_ports)
    }

    /// Whether a rule selects the endpoint in this direction.
    pub(crate) fn enforces(&self, direction: Direction) -> bool {
        self.sides.iter().any(|side| side.direction == direction && !side.rules.is_empty())
    }

    /// Selectors that its rules use.
    pub(crate) fn terms(&self) -> impl Iterator<Item = TermId> {
        self.sides.iter().flat_map(|side| side.by_term.keys().copied())
    }

    /// Names of peers' ports that its rules use.
    pub(crate) fn port_names(&self) -> impl Iterator<Item = &str> {
        self.sides.iter().flat_map(|side| side.port_names.iter().map(String::as_str))
    }

    /// Rows for any peer.
    pub(crate) fn rows_of_any(&self) -> impl Iterator<Item = (Direction, &PortRow)> {
        self.sides.iter().flat_map(|side| side.rest.rows.iter().map(|row| (side.direction, row)))
    }

    /// Rows of an identity that was admitted.
    pub(crate) fn rows_of(&self, identity: u32) -> impl Iterator<Item = (Direction, &PortRow)> {
        self.sides.iter().flat_map(move |side| {
            let template = side.identities.get(&identity);
            template.into_iter().flat_map(|template| template.rows.iter().map(|row| (side.direction, row)))
        })
    }

    /// Identities with rows.
    pub(crate) fn identities(&self) -> impl Iterator<Item = u32> {
        self.sides.iter().flat_map(|side| side.identities.keys().copied())
    }

    /// Identities of virtual addresses, each with a port whose targets are judged differently.
    pub(crate) fn divided(&self) -> impl Iterator<Item = (u32, Port)> {
        let all = self.sides.iter().flat_map(|side| &side.identities);
        all.flat_map(|(identity, template)| template.divided.iter().map(|port| (*identity, *port)))
    }

    /// Whether an identity has rows of its own.
    pub(crate) fn has(&self, identity: u32) -> bool {
        self.sides.iter().any(|side| side.identities.contains_key(&identity))
    }

    /// Compiles the rows of an identity, where it has any.
    pub(crate) fn admit(&mut self, identity: u32, set: &[TermId], terms: &Terms) {
        for side in &mut self.sides {
            let template = side.template(set, terms);
            if let Some(template) = template.filter(|one| !one.rows.is_empty() || !one.divided.is_empty()) {
                side.identities.insert(identity, template);
            }
        }
    }

    /// Forgets an identity.
    pub(crate) fn dismiss(&mut self, identity: u32) {
        for side in &mut self.sides {
            side.identities.remove(&identity);
        }
    }

    /// Whether a flow that passes with a peer of the old selectors might not pass with one of the new.
    pub(crate) fn is_narrowed(&mut self, old: &[TermId], new: &[TermId], terms: &Terms) -> bool {
        self.sides.iter_mut().any(|side| {
            let [old, new] = [old, new].map(|set| side.template(set, terms).unwrap_or_else(|| Arc::clone(&side.rest)));
            old.function.is_narrowed_by(&new.function)
        })
    }
}

impl Side {
    fn new(
        direction: Direction,
        rules: Vec<NumberedRule>,
        own_ports: &[NamedPort],
        proxies: Proxies,
        terms: &Terms,
    ) -> Self {
        let default_deny =
            rules.iter().any(|numbered| numbered.rule.tier == Tier::Normal && numbered.rule.default_deny);
        let none = Function::constant(PolicyValue::default());
        let mut side = Self {
            direction,
            rules: Vec::new(),
            default_deny,
            any: Vec::new(),
            by_term: HashMap::default(),
            any_named: Vec::new(),
            port_names: Vec::new(),
            proxies,
            own_ports: if direction == Direction::Ingress { own_ports.to_vec() } else { Vec::new() },
            rest: Arc::new(Template::new(none.clone(), &none)),
            templates: HashMap::default(),
            identities: BTreeMap::new(),
        };
        for (at, numbered) in rules.iter().enumerate() {
            side.sort_in(at, &numbered.rule, terms);
        }
        side.port_names.sort_unstable();
        side.port_names.dedup();
        side.rules = rules;
        if !side.rules.is_empty() {
            side.rest = Arc::new(Template::new(side.function(&Kind::default()), &none));
        }
        side
    }

    fn sort_in(&mut self, at: usize, rule: &Rule, terms: &Terms) {
        let named: Vec<&String> =
            if self.direction == Direction::Egress { names(&rule.ports).collect() } else { vec![] };
        match &rule.peers {
            Peers::Any => {
                self.any.push(at);
                if !named.is_empty() {
                    self.any_named.push(at);
                }
            }
            Peers::Of(selectors) => {
                for term in selectors.iter().filter_map(|selector| terms.peer(selector)) {
                    let rules = self.by_term.entry(term).or_default();
                    if rules.last() != Some(&at) {
                        rules.push(at);
                    }
                }
            }
        }
        self.port_names.extend(named.into_iter().cloned());
    }

    /// What the policy says about a peer with these selectors; `None` is the same as about any peer.
    fn template(&mut self, set: &[TermId], terms: &Terms) -> Option<Arc<Template>> {
        let is_judged = self.direction == Direction::Egress && !self.rules.is_empty();
        match terms.fronts.of(set).filter(|_| is_judged) {
            Some(front) => Some(Arc::new(self.in_front(front, set, terms))),
            None => self.of_peer(set, terms),
        }
    }

    fn of_peer(&mut self, set: &[TermId], terms: &Terms) -> Option<Arc<Template>> {
        let kind = self.kind(set, terms)?;
        if let Some(known) = self.templates.get(&kind) {
            return Some(Arc::clone(known));
        }
        let template = Arc::new(Template::new(self.function(&kind), &self.rest.function));
        self.templates.insert(kind, Arc::clone(&template));
        Some(template)
    }

    /// What the policy says about an address with others behind its ports; its other ports are its own.
    fn in_front(&mut self, front: &Front, set: &[TermId], terms: &Terms) -> Template {
        let mut of_set = |set: &[TermId]| self.of_peer(set, terms).unwrap_or_else(|| Arc::clone(&self.rest));
        let mut function = of_set(set).function.clone();
        let divided = front.cover(&mut function, |set, protocol, port| of_set(set).function.at(protocol, port));
        Template { divided, ..Template::new(function, &self.rest.function) }
    }

    fn kind(&self, set: &[TermId], terms: &Terms) -> Option<Kind> {
        let mut kind = Kind::default();
        let mut otherwise = Vec::new();
        for term in set {
            let rules = self.by_term.get(term).into_iter().flatten();
            let selected = if terms.is_name(*term) { &mut kind.by_name } else { &mut otherwise };
            selected.extend(rules.clone());
            kind.rules.extend(rules);
            if let Some(port) = terms.port(*term).filter(|port| self.port_names.contains(&port.name)) {
                kind.ports.push(port.clone());
            }
        }
        if !kind.ports.is_empty() {
            kind.rules.extend(&self.any_named);
        }
        if kind.rules.is_empty() {
            return None;
        }
        kind.rules.sort_unstable();
        kind.rules.dedup();
        kind.by_name.retain(|at| !otherwise.contains(at) && self.rules[*at].rule.is_bound(Binding::Observe));
        kind.by_name.sort_unstable();
        kind.by_name.dedup();
        kind.ports.sort_unstable();
        Some(kind)
    }

    /// The verdicts of the rules for every peer and those of the kind.
    fn function(&self, kind: &Kind) -> Function {
        let ports = if self.direction == Direction::Ingress { &self.own_ports } else { &kind.ports };
        let mut everywhere = Vec::new();
        let mut spans: BTreeMap<u8, Vec<(u16, u16, usize)>> = BTreeMap::new();
        let mut rules: Vec<usize> = self.any.iter().chain(&kind.rules).copied().collect();
        rules.sort_unstable();
        rules.dedup();
        for at in rules {
            match &self.rules[at].rule.ports {
                Ports::Any => everywhere.push(at),
                Ports::Of(alternatives) => {
                    for (protocol, start, end) in alternatives.iter().flat_map(|one| spans_of(one, ports)) {
                        spans.entry(protocol).or_default().push((start, end, at));
                    }
                }
            }
        }
        let mut function = Function::constant(self.settle(&everywhere));
        if everywhere.iter().any(|at| kind.by_name.contains(at)) {
            for protocol in [TCP, UDP] {
                spans.entry(protocol).or_default();
            }
        }
        for (protocol, spans) in spans {
            let by_name = if [TCP, UDP].contains(&protocol) { &kind.by_name[..] } else { &[] };
            function.set(protocol, self.pieces(&everywhere, &spans, BoundFlows { protocol, port: 0, by_name }));
        }
        function
    }

    fn pieces(&self, everywhere: &[usize], spans: &[(u16, u16, usize)], flows: BoundFlows<'_>) -> Vec<Piece> {
        let named_only = flows.by_name.iter().filter_map(|at| self.rules[*at].rule.named_only.as_ref());
        let named_only = named_only.flat_map(PortSet::ranges).map(|range| (range.start, range.end));
        let spanned = spans.iter().map(|&(start, end, _)| (start, end));
        let mut cuts: Vec<u16> = spanned
            .chain(named_only.filter(|_| flows.protocol == UDP))
            .flat_map(|(start, end)| [Some(start), end.checked_add(1)])
            .flatten()
            .collect();
        cuts.push(0);
        cuts.sort_unstable();
        cuts.dedup();
        let mut pieces = Vec::with_capacity(cuts.len());
        let mut matching = Vec::new();
        for start in cuts {
            matching.clear();
            matching.extend_from_slice(everywhere);
            matching.extend(spans.iter().filter(|span| (span.0..=span.1).contains(&start)).map(|span| span.2));
            matching.sort_unstable();
            matching.dedup();
            pieces.push(Piece { start, value: self.settle_bound(&matching, BoundFlows { port: start, ..flows }) });
        }
        pieces
    }
}
