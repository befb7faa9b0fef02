//! New rules and new topology into ordered writes.
//!
//! Four stages, each of which leaves every verdict but those it is about as it was:
//!
//! 1. The selectors of old and new rules are in force together: identities become finer, no verdict changes.
//! 2. Peers move: each address in one write.
//! 3. Rows of new policies are written while nobody uses them, then each endpoint moves to its policy in one write.
//! 4. Selectors and policies that nobody uses go: identities become coarser, no verdict changes.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    sync::Arc,
};

use namegate_abi::{
    Address, AddressKey, AddressValue, CidrKey, CidrValue, EndpointValue, Step, endpoint_flags, identity,
};
use namegate_config::{
    labels::Labels,
    rule::{Direction, Rule, Subject},
};

use crate::{
    Change, EndpointId, Engine, Key, MapOp, Row,
    compile::{NumberedRule, Policy, names, own_ports, terms_of},
    engine::Local,
    ledger::PolicyContent,
    selectors::{LabelIndex, Set, Term, TermId, Terms, set},
    topology::{Peers, Who},
};

/// What each endpoint of this node should be judged by.
#[derive(Debug, Default)]
struct Plan {
    endpoints: BTreeMap<EndpointId, (u32, PolicyContent)>,
    policies: BTreeMap<PolicyContent, (Vec<NumberedRule>, Vec<namegate_config::peer::NamedPort>)>,
}

impl Engine {
    /// Takes new rules and/or a new topology. After every single write a flow that was allowed before and is allowed
    /// after passes, and one denied before and after does not, where rules alone or peers alone change.
    pub fn update(&mut self, change: Change, now: u64) -> Vec<MapOp> {
        let mut ops = Vec::new();
        if let Some(rules) = change.rules {
            self.number_rules(rules);
        }
        let services = change.topology.as_ref().map(|topology| topology.resolver_services.clone());
        let moved = change.topology.map(|topology| Peers::new(topology, |key| EndpointId(self.ledger.endpoint(key))));
        let current = std::mem::take(&mut self.peers);
        let next = moved.as_ref().unwrap_or(&current);
        let plan = self.plan(next);
        let mut terms = self.terms_wanted(&plan, next);
        self.peers = current;
        terms.extend(self.terms.all().iter().map(|(id, term)| (*id, term.clone())));
        self.reindex(terms, now, &mut ops);
        let narrowed = moved.map(|peers| self.move_peers(peers, &mut ops)).unwrap_or_default();
        if let Some(services) = services {
            self.trust(services, &mut ops);
        }
        self.install(&plan, &mut ops);
        self.switch(&plan, &narrowed, now, &mut ops);
        self.drop_policies(&mut ops);
        let terms = self.terms_in_use();
        self.reindex(terms, now, &mut ops);
        self.sweep(&mut ops);
        self.ready = true;
        self.settle_doubts(&mut ops);
        self.forget_numbers();
        ops
    }

    /// Brings a gate that may hold something else to what it should hold.
    pub(crate) fn settle_doubts(&mut self, ops: &mut Vec<MapOp>) {
        if self.unsure && self.ready {
            self.unsure = false;
            let wanted = self.wanted();
            self.mirror.reconcile(&wanted, ops);
        }
    }

    /// Every row that the kernel should hold.
    pub(crate) fn wanted(&self) -> HashMap<Key, Row> {
        let endpoints = self.local.values().map(|local| Row::Endpoint(local.interface, local.value));
        let placed = self.placed.iter().map(|(address, (value, _))| Row::Address(node_key(*address), *value));
        let learned = self.cache.rows.iter().filter_map(|(key, opened)| Some(Row::Address(*key, opened.value?)));
        let cidrs = self.cidrs.iter().map(|(&(prefix, key), &identity)| Row::Cidr(prefix, key, CidrValue { identity }));
        let policies = self.policies.iter().flat_map(|(id, policy)| policy_rows(*id, policy));
        let resolvers = self.resolvers.iter().map(|address| Row::Resolver((*address).into()));
        let rows = endpoints.chain(placed).chain(learned).chain(cidrs).chain(policies).chain(resolvers);
        rows.map(|row| (row.key(), row)).collect()
    }

    fn number_rules(&mut self, rules: Vec<Rule>) {
        let known: HashMap<&Rule, u32> = self.rules.iter().map(|(cookie, rule)| (&**rule, *cookie)).collect();
        let mut numbered: Vec<(u32, Arc<Rule>)> = Vec::with_capacity(rules.len());
        for rule in rules {
            // The text holds all of the rule: a rule with another content has another number.
            let cookie = known.get(&rule).copied().unwrap_or_else(|| self.ledger.rule(format!("{rule:?}")));
            self.origins.insert(cookie, Arc::clone(&rule.origin));
            numbered.push((cookie, Arc::new(rule)));
        }
        self.rules = numbered;
    }

    /// Which rules select which endpoint.
    fn plan(&self, peers: &Peers) -> Plan {
        let mut subjects = LabelIndex::default();
        for (at, (_, rule)) in self.rules.iter().enumerate() {
            // Node subjects are host endpoints: none is enforced.
            if let Subject::Endpoints(selector) = &rule.subject
                && self.settings.directions.contains(&rule.direction)
            {
                subjects.insert(selector.clone(), at);
            }
        }
        let mut plan = Plan::default();
        for (id, interface, who) in peers.local() {
            let mut selecting = Vec::new();
            subjects.each_match(&who.labels, |at| selecting.push(*at));
            selecting.sort_unstable();
            selecting.dedup();
            let rule = |at: &usize| NumberedRule { cookie: self.rules[*at].0, rule: Arc::clone(&self.rules[*at].1) };
            let rules: Vec<NumberedRule> = selecting.iter().map(rule).collect();
            let ports = own_ports(&rules, &who.named_ports);
            let texts = ports.iter().map(|port| Term::Port(port.clone()).to_string()).collect();
            let content: PolicyContent = (set(rules.iter().map(|rule| rule.cookie).collect()), texts);
            if !rules.is_empty() {
                plan.policies.entry(content.clone()).or_insert((rules, ports));
            }
            plan.endpoints.insert(id, (interface, content));
        }
        plan
    }

    /// Selectors of the rules of the plan, and ports of peers that they name.
    fn terms_wanted(&mut self, plan: &Plan, peers: &Peers) -> BTreeMap<TermId, Term> {
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

    fn add_ports(&mut self, terms: &mut BTreeMap<TermId, Term>, names: &BTreeSet<String>, peers: &Peers) {
        for port in peers.all.iter().flat_map(|who| &who.named_ports).filter(|port| names.contains(&port.name)) {
            let term = Term::Port(port.clone());
            let known = self.terms.port_id(port);
            let id = known.unwrap_or_else(|| self.ledger.selector(term.to_string()));
            terms.insert(id, term);
        }
    }

    /// Selectors that the policies in use look at.
    fn terms_in_use(&mut self) -> BTreeMap<TermId, Term> {
        let used: BTreeSet<TermId> = self.policies.values().flat_map(Policy::terms).collect();
        let names: BTreeSet<String> = self.policies.values().flat_map(Policy::port_names).map(str::to_owned).collect();
        let all = self.terms.all();
        let mut terms = used.iter().filter_map(|id| all.get(id).map(|term| (*id, term.clone()))).collect();
        let peers = std::mem::take(&mut self.peers);
        self.add_ports(&mut terms, &names, &peers);
        self.peers = peers;
        terms
    }

    /// Puts these selectors in force and gives every address and prefix its identity under them.
    fn reindex(&mut self, terms: BTreeMap<TermId, Term>, now: u64, ops: &mut Vec<MapOp>) {
        if self.ready && terms.keys().eq(self.terms.all().keys()) {
            return;
        }
        self.terms = Terms::new(terms);
        let world = set(self.terms.of_peer(&Labels::reserved("world"), &[]));
        self.identities.set_world(world.into());
        let peers = std::mem::take(&mut self.peers);
        self.place_all(&peers, ops);
        self.peers = peers;
        self.reindex_prefixes(ops);
        self.cache.rename(|name| set(self.terms.of_name(name)).into());
        let rows: Vec<AddressKey> = self.cache.rows.keys().copied().collect();
        for row in rows {
            self.rewrite(row, now, ops);
        }
    }

    fn reindex_prefixes(&mut self, ops: &mut Vec<MapOp>) {
        let mut wanted = BTreeMap::new();
        for (net, mut terms) in self.terms.prefixes() {
            terms.extend(self.identities.world().iter());
            let bits = u32::from(net.prefix_len());
            let prefix = if net.addr().is_ipv4() { bits + Address::V4_PREFIX_BITS } else { bits };
            wanted.insert((prefix, CidrKey { address: net.network().into() }), set(terms));
        }
        for (&(prefix, key), terms) in &wanted {
            let Some(identity) = self.acquire(terms, ops) else { continue };
            let old = self.cidrs.get(&(prefix, key)).copied();
            if old == Some(identity) || !self.mirror.put(Row::Cidr(prefix, key, CidrValue { identity }), ops) {
                self.identities.release(identity);
                continue;
            }
            self.cidrs.insert((prefix, key), identity);
            old.into_iter().for_each(|old| self.identities.release(old));
        }
        let gone: Vec<(u32, CidrKey)> = self.cidrs.keys().filter(|key| !wanted.contains_key(*key)).copied().collect();
        for key in gone {
            self.mirror.delete(Key::Cidr(key.0, key.1), ops);
            self.cidrs.remove(&key).into_iter().for_each(|old| self.identities.release(old));
        }
    }

    /// Gives the addresses of these peers their rows; returns old and new selectors of those that were matched by others.
    fn place_all(&mut self, peers: &Peers, ops: &mut Vec<MapOp>) -> HashSet<(Set, Set)> {
        let mut moved = HashSet::new();
        let of_labels: Vec<Vec<TermId>> =
            peers.all.iter().map(|who| self.terms.of_peer(&who.labels, &who.named_ports)).collect();
        let mut owners: Vec<(Address, usize)> = peers.owners.iter().map(|(address, at)| (*address, *at)).collect();
        owners.sort_unstable();
        for (address, at) in owners {
            let who = &peers.all[at];
            let mut terms = of_labels[at].clone();
            terms.extend(self.terms.of_address(address.to_ip(), who.labels.is_world()));
            let new: Set = set(terms).into();
            let old = self.placed.get(&address).map(|(_, set)| Arc::clone(set));
            if self.place(address, who, &new, ops) && old.as_ref() != Some(&new) {
                let old = old.unwrap_or_else(|| self.outside(address.to_ip()).into());
                moved.insert((old, new));
            }
        }
        moved
    }

    /// Gives an address of the cluster its row; false where there is no room.
    fn place(&mut self, address: Address, who: &Who, set: &Set, ops: &mut Vec<MapOp>) -> bool {
        let Some(identity) = self.acquire(set, ops) else { return false };
        let mut value = AddressValue {
            endpoint: who.id.map_or(0, |id| id.0),
            flags: if who.local_host { namegate_abi::address_flags::LOCAL_HOST } else { 0 },
            ..AddressValue::default()
        };
        value.steps[0] = Step { expires_ns: 0, identity, spare: 0 };
        if !self.mirror.put(Row::Address(node_key(address), value), ops) {
            self.identities.release(identity);
            return false;
        }
        let old = self.placed.insert(address, (value, Arc::clone(set)));
        self.release(old.map(|(value, _)| value));
        true
    }

    /// Moves to a new topology; returns the policies under which a flow that passed might not pass now.
    fn move_peers(&mut self, peers: Peers, ops: &mut Vec<MapOp>) -> HashSet<u32> {
        let mut moved = self.place_all(&peers, ops);
        let gone: Vec<Address> =
            self.placed.keys().filter(|address| !peers.owners.contains_key(*address)).copied().collect();
        for address in gone {
            self.mirror.delete(Key::Address(node_key(address)), ops);
            if let Some((value, old)) = self.placed.remove(&address) {
                self.release(Some(value));
                moved.insert((old, self.outside(address.to_ip()).into()));
            }
        }
        self.peers = peers;
        let mut narrowed = HashSet::new();
        for (old, new) in moved {
            let differing = |one: &Set, other: &Set| -> Vec<TermId> {
                one.iter().filter(|term| other.binary_search(term).is_err()).copied().collect()
            };
            let terms = [differing(&old, &new), differing(&new, &old)].concat();
            for policy in self.users_of(&terms) {
                let compiled = self.policies.get_mut(&policy).filter(|_| !narrowed.contains(&policy));
                if compiled.is_some_and(|compiled| compiled.is_narrowed(&old, &new, &self.terms)) {
                    narrowed.insert(policy);
                }
            }
        }
        narrowed
    }

    /// Trusts the resolvers of the settings, of the topology and at these addresses.
    fn trust(&mut self, services: Vec<std::net::IpAddr>, ops: &mut Vec<MapOp>) {
        let selector = self.settings.dns.resolver_selector();
        let is_resolver = |who: &&Who| selector.as_ref().is_some_and(|selector| selector.matches(&who.labels));
        let pods = self.peers.all.iter().filter(is_resolver).flat_map(|who| &who.addresses);
        let all = self.settings.dns.resolvers.iter().chain(pods).copied().chain(services);
        let wanted: BTreeSet<std::net::IpAddr> = all.map(|address| address.to_canonical()).collect();
        let old = std::mem::replace(&mut self.resolvers, wanted.iter().copied().collect());
        for address in &wanted {
            self.mirror.put(Row::Resolver((*address).into()), ops);
        }
        for address in old.into_iter().filter(|address| !wanted.contains(address)) {
            self.mirror.delete(Key::Resolver(address.into()), ops);
        }
    }

    /// Writes the rows of policies that are not in use yet. One that finds no room is left out.
    fn install(&mut self, plan: &Plan, ops: &mut Vec<MapOp>) {
        for (content, (rules, ports)) in &plan.policies {
            let id = self.ledger.policy(content);
            if self.policies.contains_key(&id) {
                continue;
            }
            let mut policy = Policy::new(rules, ports, &self.terms);
            let named = policy.port_names().flat_map(|name| self.terms.ports_named(name));
            let terms: BTreeSet<TermId> = policy.terms().chain(named).collect();
            let matched = terms.iter().flat_map(|term| self.identities.matched_by(*term));
            let identities: BTreeSet<u32> = matched.chain(std::iter::once(identity::WORLD)).collect();
            for identity in identities {
                if let Some(set) = self.identities.set_of(identity) {
                    policy.admit(identity, set, &self.terms);
                }
            }
            let rows: Vec<Row> = policy_rows(id, &policy).collect();
            if !self.mirror.has_room(&rows) {
                continue;
            }
            for row in rows {
                self.mirror.put(row, ops);
            }
            for identity in policy.identities().collect::<BTreeSet<u32>>() {
                self.identities.hold(identity, id);
            }
            self.policies.insert(id, policy);
        }
        self.list_users();
    }

    fn list_users(&mut self) {
        self.users.clear();
        self.port_users.clear();
        for (id, policy) in &self.policies {
            for term in policy.terms() {
                self.users.entry(term).or_default().push(*id);
            }
            for name in policy.port_names() {
                self.port_users.entry(name.to_owned()).or_default().push(*id);
            }
        }
    }

    /// Moves each endpoint to its policy.
    fn switch(&mut self, plan: &Plan, narrowed: &HashSet<u32>, now: u64, ops: &mut Vec<MapOp>) {
        // A gate that another engine filled: flows may have been judged by rows that are no more.
        let doubtful = self.unsure
            && ops
                .iter()
                .any(|op| matches!(op, MapOp::Put(Row::Address(AddressKey { scope: 0, .. }, _) | Row::Cidr(..))));
        let mut revision = None;
        let mut vacated = Vec::new();
        for (&id, (interface, content)) in &plan.endpoints {
            let old = self.local.get(&id).map(|local| (local.interface, local.value));
            let held = match (old, self.mirror.rows().get(&Key::Endpoint(*interface))) {
                (Some((_, value)), _) => Some(value),
                (None, Some(Row::Endpoint(_, value))) if value.endpoint == id.0 && !doubtful => Some(*value),
                _ => None,
            };
            let mut value = self.endpoint_value(id, content, old.map(|(_, value)| value));
            let same = held.filter(|held| held.policy == value.policy && !narrowed.contains(&held.policy));
            value.revision = match same {
                Some(held) => held.revision,
                None => *revision.get_or_insert_with(|| self.ledger.next_revision()),
            };
            if self.mirror.put(Row::Endpoint(*interface, value), ops) {
                self.local.insert(id, Local { interface: *interface, value });
            }
            vacated.extend(old.map(|(interface, _)| interface).filter(|old| old != interface));
        }
        for (id, _, who) in self.peers.local() {
            self.cache.open(id, &who.key);
        }
        self.leave(plan, vacated, now, ops);
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
        vacated.extend(gone.map(|(_, local)| local.interface));
        let interfaces: HashSet<u32> = self.local.values().map(|local| local.interface).collect();
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

    /// Removes policies that no endpoint has.
    fn drop_policies(&mut self, ops: &mut Vec<MapOp>) {
        let used: HashSet<u32> = self.local.values().map(|local| local.value.policy).collect();
        let unused: Vec<u32> = self.policies.keys().filter(|id| !used.contains(id)).copied().collect();
        for id in unused {
            let Some(policy) = self.policies.remove(&id) else { continue };
            for row in policy_rows(id, &policy) {
                self.mirror.delete(row.key(), ops);
            }
        }
        self.list_users();
    }
}

const fn node_key(address: Address) -> AddressKey {
    AddressKey { scope: 0, address }
}

/// Every row of a policy.
fn policy_rows(id: u32, policy: &Policy) -> impl Iterator<Item = Row> {
    let any = policy.rows_of_any().map(move |(direction, row)| row.of(id, identity::ANY, direction));
    let identities: BTreeSet<u32> = policy.identities().collect();
    let rest = identities.into_iter().flat_map(move |identity| {
        policy.rows_of(identity).map(move |(direction, row)| row.of(id, identity, direction))
    });
    any.chain(rest)
}
