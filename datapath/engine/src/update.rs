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
    net::IpAddr,
    sync::Arc,
};

use ipnet::IpNet;
use namegate_abi::{Address, AddressKey, CidrKey, CidrValue, identity};
use namegate_config::{
    labels::Labels,
    peer::NamedPort,
    rule::{Origin, Rule},
    settings::Scope,
};

use crate::{
    Change, EndpointId, Engine, Key, MapOp, Proxies, Row,
    acquire::NoRoom,
    compile::{NumberedRule, Policy},
    engine::Local,
    fronts::Port,
    place::{moves_peers, node_key},
    plan::Subjects,
    selectors::{Set, Term, TermId, Terms, set},
    topology::{Behind, Peers, Who},
};

impl Engine {
    /// Takes new rules and/or a new topology. After every single write a flow that was allowed before and is allowed
    /// after passes, and one denied before and after does not, where rules alone or peers alone change.
    ///
    /// Where a map has no room, endpoints whose rows would let more pass than their rules are closed.
    pub fn update(&mut self, change: Change, now: u64) -> Vec<MapOp> {
        let mut ops = Vec::new();
        self.retry.begin_anew();
        self.renew(change, now, &mut ops);
        if self.is_short() {
            // Both old and new rows stood in the maps: there may be room now.
            self.mirror.is_retry = true;
            self.renew(Change::default(), now, &mut ops);
            self.mirror.is_retry = false;
        }
        self.plan_retry(now);
        ops
    }

    /// The stages.
    pub(crate) fn renew(&mut self, change: Change, now: u64, ops: &mut Vec<MapOp>) {
        if let Some(rules) = change.rules {
            self.number_rules(rules);
        }
        let services = change.topology.as_ref().map(|topology| topology.resolver_services.clone());
        let moved = change.topology.map(|topology| Peers::new(topology, |key| EndpointId(self.ledger.endpoint(key))));
        let current = std::mem::take(&mut self.peers);
        let next = moved.as_ref().unwrap_or(&current);
        self.plan = self.plan(next);
        let plan = std::mem::take(&mut self.plan);
        let wanted = self.terms_wanted(&plan, next);
        self.peers = current;
        self.plan = plan;
        let mut both = wanted.clone();
        both.extend(self.terms.all().iter().map(|(id, term)| (*id, term.clone())));
        self.find_prefixes_above_share();
        let missing = self.unplaced.len();
        self.reindex(both, now, ops);
        let before = ops.len();
        if let Some(peers) = moved {
            self.move_peers(peers, ops);
        }
        let is_moved = moves_peers(&ops[before..]) || self.unplaced.len() < missing;
        self.hide_learned(now, ops);
        if services.is_some() || !self.ready {
            self.trust(services.unwrap_or_default(), ops);
        }
        self.trust_again(ops);
        self.find_tenants();
        self.install(ops);
        self.admit_learned(now, ops);
        self.switch(is_moved, now, ops);
        self.drop_policies(ops);
        self.reindex(wanted, now, ops);
        self.sweep(ops);
        let identities = &self.identities;
        self.terms.fronts.retain(|front| identities.matched_by(front).next().is_some());
        self.ready = true;
        self.settle_doubts(0, ops);
        self.reopen(now, ops);
        self.forget_numbers();
    }

    /// Brings a gate that may hold something else to what it should hold. The writes from `since` on are part of it.
    pub(crate) fn settle_doubts(&mut self, since: usize, ops: &mut Vec<MapOp>) {
        if self.unsure && self.ready {
            self.unsure = false;
            let wanted = self.wanted();
            if !self.mirror.reconcile(&wanted, ops) {
                self.doubt.get_or_insert_default();
            }
            if moves_peers(&ops[since..]) {
                self.look_again(ops);
            }
        }
    }

    /// Every row that the kernel should hold.
    pub(crate) fn wanted(&self) -> HashMap<Key, Row> {
        let rows_of = |local: &Local| {
            let value = local.value;
            local.written().map(move |interface| Row::Endpoint(interface, value)).collect::<Vec<Row>>()
        };
        let endpoints = self.local.values().flat_map(rows_of);
        let placed = self.placed.iter().map(|(address, (value, _))| Row::Address(node_key(*address), *value));
        let learned = self.cache.rows.iter().filter_map(|(key, opened)| Some(Row::Address(*key, opened.value?)));
        let cidrs = self.cidrs.iter().map(|(&(prefix, key), &identity)| Row::Cidr(prefix, key, CidrValue { identity }));
        let policies = self.policies.iter().flat_map(|(id, policy)| policy_rows(*id, policy));
        let resolvers = self.resolvers.iter().map(|address| Row::Resolver((*address).into()));
        let rows = endpoints.chain(placed).chain(learned).chain(cidrs).chain(policies).chain(resolvers);
        rows.map(|row| (row.key(), row)).collect()
    }

    fn number_rules(&mut self, rules: Vec<Rule>) {
        let mut known: HashMap<&Origin, Vec<&(u32, Arc<Rule>)>> = HashMap::new();
        for numbered in &self.rules {
            known.entry(&*numbered.1.origin).or_default().push(numbered);
        }
        let mut numbered: Vec<(u32, Arc<Rule>)> = Vec::with_capacity(rules.len());
        for mut rule in rules {
            // Part of the rule: under another setting it is another rule, and its flows are judged again.
            rule.binding = rule.binding.or(Some(self.settings.dns.name_binding)).filter(|_| rule.may_bind());
            let named_ports = || self.settings.dns.named_ports.clone();
            rule.named_only = rule.named_only.take().or_else(|| Some(named_ports())).filter(|_| rule.binding.is_some());
            // The text holds all of the rule: a rule with another content has another number.
            let same = known.get(&*rule.origin).into_iter().flatten().find(|(_, known)| **known == rule);
            let (cookie, rule) = match same {
                Some((cookie, known)) => (*cookie, Arc::clone(known)),
                None => (self.ledger.rule(format!("{rule:?}")), Arc::new(rule)),
            };
            self.origins.insert(cookie, Arc::clone(&rule.origin));
            numbered.push((cookie, rule));
        }
        self.subjects = Subjects::new(&numbered, &self.settings.directions);
        self.rules = numbered;
    }

    /// Puts these selectors in force and gives every address and prefix its identity under them.
    fn reindex(&mut self, terms: BTreeMap<TermId, Term>, now: u64, ops: &mut Vec<MapOp>) {
        if self.ready && terms.keys().eq(self.terms.all().keys()) {
            self.place_missing(ops);
            self.write_prefixes(self.unprefixed.clone(), ops);
            return;
        }
        let old = self.terms.all();
        let more = terms.iter().filter(|(id, _)| !old.contains_key(id)).map(|(id, term)| (*id, term.clone())).collect();
        let gone: Vec<TermId> = old.keys().filter(|id| !terms.contains_key(id)).copied().collect();
        let fronts = std::mem::take(&mut self.terms.fronts);
        self.terms = Terms::new(terms);
        self.terms.fronts = fronts;
        let world = set(self.terms.of_peer(&Labels::reserved("world"), &[]));
        let is_same_world = *world == **self.identities.world();
        self.identities.set_world(world.into());
        self.place_again(&Terms::new(more), &gone, is_same_world, ops);
        self.reindex_prefixes(ops);
        self.cache.rename(|name| set(self.terms.of_name(name)).into());
        let rows: Vec<AddressKey> = self.cache.rows.keys().copied().collect();
        for row in rows {
            self.rewrite(row, now, ops);
        }
    }

    fn reindex_prefixes(&mut self, ops: &mut Vec<MapOp>) {
        let mut nets = BTreeMap::new();
        for (net, mut terms) in self.terms.prefixes() {
            terms.extend(self.identities.world().iter());
            nets.insert(prefix_of(net), set(terms).into());
        }
        self.nets = nets;
        self.write_prefixes(self.nets.keys().copied().collect(), ops);
        self.unprefixed.retain(|key| self.nets.contains_key(key));
        let gone: Vec<(u32, CidrKey)> =
            self.cidrs.keys().filter(|key| !self.nets.contains_key(*key)).copied().collect();
        for key in gone {
            self.mirror.delete(Key::Cidr(key.0, key.1), ops);
            if let Some(old) = self.cidrs.remove(&key) {
                self.identities.release(old);
            }
        }
    }

    /// Gives these prefixes their rows; those that find no room are noted.
    fn write_prefixes(&mut self, keys: BTreeSet<(u32, CidrKey)>, ops: &mut Vec<MapOp>) {
        for (prefix, key) in keys {
            let Some(terms) = self.nets.get(&(prefix, key)).map(Arc::clone) else { continue };
            if self.write_prefix(prefix, key, &terms, ops) {
                self.unprefixed.remove(&(prefix, key));
            } else {
                self.unprefixed.insert((prefix, key));
            }
        }
    }

    fn write_prefix(&mut self, prefix: u32, key: CidrKey, terms: &[TermId], ops: &mut Vec<MapOp>) -> bool {
        if let Some(namespace) = self.above_share.get(&(prefix, key)).map(Arc::clone) {
            self.refuse_in("limits.cidrsPerNamespace", &namespace);
            return false;
        }
        let Some(identity) = self.acquire(terms, 0, ops) else { return false };
        if !self.mirror.put(Row::Cidr(prefix, key, CidrValue { identity }), ops) {
            self.identities.release(identity);
            return false;
        }
        if let Some(old) = self.cidrs.insert((prefix, key), identity) {
            self.identities.release(old);
        }
        true
    }

    /// Trusts the resolvers of the settings, of the topology and at these addresses.
    fn trust(&mut self, services: Vec<IpAddr>, ops: &mut Vec<MapOp>) {
        let selector = self.settings.dns.resolver_selector();
        let is_resolver = |who: &&Who| selector.as_ref().is_some_and(|selector| selector.matches(&who.labels));
        let pods = self.peers.all.iter().filter(is_resolver).flat_map(|who| &who.addresses);
        let all = self.settings.dns.resolvers.iter().chain(pods).copied().chain(services);
        let mut wanted: BTreeSet<IpAddr> = all.map(|address| address.to_canonical()).collect();
        wanted.extend(self.in_front_of(&wanted));
        let old = std::mem::replace(&mut self.resolvers, wanted.iter().copied().collect());
        self.unresolved.clone_from(&wanted);
        self.trust_again(ops);
        for address in old.into_iter().filter(|address| !wanted.contains(address)) {
            self.mirror.delete(Key::Resolver(address.into()), ops);
        }
    }

    /// Writes the rows of trusted resolvers that are missing.
    fn trust_again(&mut self, ops: &mut Vec<MapOp>) {
        let mirror = &mut self.mirror;
        self.unresolved.retain(|address| !mirror.put(Row::Resolver((*address).into()), ops));
    }

    /// Addresses behind whose port of DNS are these resolvers, and nobody else.
    fn in_front_of(&self, resolvers: &BTreeSet<IpAddr>) -> Vec<IpAddr> {
        const DNS_PORT: u16 = 53;
        let is_trusted = |behind: &Behind| {
            let mut targets = behind.targets.iter();
            !behind.targets.is_empty() && targets.all(|target| resolvers.contains(&target.address.to_canonical()))
        };
        let of_dns = |ports: &BTreeMap<Port, Behind>| {
            let mut asked = ports.iter().filter(|((_, port), _)| *port == DNS_PORT).peekable();
            asked.peek().is_some() && asked.all(|(_, behind)| is_trusted(behind))
        };
        let found = self.peers.fronts.iter().filter(|(_, ports)| of_dns(ports));
        found.map(|(address, _)| address.to_ip()).collect()
    }

    /// Writes the rows of policies that are not in use yet. One that finds no room is left out: its endpoints are closed.
    fn install(&mut self, ops: &mut Vec<MapOp>) {
        self.uninstalled.clear();
        let plan = std::mem::take(&mut self.plan);
        for (content, (rules, ports)) in &plan.policies {
            let id = self.ledger.policy(content);
            if self.policies.contains_key(&id) {
                continue;
            }
            let policy = self.compile(rules, ports, false);
            let rows = [(id, policy_rows(id, &policy).collect::<Vec<Row>>())];
            if let Err(why) = self.has_room_for(&rows) {
                let of_share = matches!(why, NoRoom::Share(_));
                let setting = if of_share { "limits.policyRowsPerNamespace" } else { "limits.policyRows" };
                self.uninstalled.insert(id, setting);
                continue;
            }
            let [(_, rows)] = rows;
            for row in rows {
                self.mirror.put(row, ops);
            }
            for identity in policy.identities().collect::<BTreeSet<u32>>() {
                self.identities.hold(identity, id);
            }
            self.policies.insert(id, policy);
        }
        self.plan = plan;
        self.list_users();
    }

    /// Compiles a policy for the identities in use; those of learned addresses with `all`, or where endpoints share them.
    /// Else [`Engine::admit_learned`] follows.
    fn compile(&self, rules: &[NumberedRule], ports: &[NamedPort], all: bool) -> Policy {
        let shares = self.settings.dns.scope == Scope::Node;
        let mut policy = Policy::new(rules, ports, self.proxies, &self.terms);
        let named = policy.port_names().flat_map(|name| self.terms.ports_named(name));
        let terms: BTreeSet<TermId> = policy.terms().chain(named).chain(self.terms.fronts.ids()).collect();
        let matched = terms.iter().flat_map(|term| self.identities.matched_by(*term));
        let identities: BTreeSet<u32> = matched.chain(std::iter::once(identity::WORLD)).collect();
        for identity in identities {
            let is_own = |set: &Set| all || shares || !set.iter().any(|term| self.terms.is_name(*term));
            if let Some(set) = self.identities.set_of(identity).filter(|set| is_own(set)) {
                policy.admit(identity, set, &self.terms);
            }
        }
        policy
    }

    /// Sends requests that rules limit to these proxies from now on. Flows under way stay as they are: call it before the
    /// first [`Engine::update`] where the ports are known.
    pub fn set_proxies(&mut self, proxies: Proxies) -> Vec<MapOp> {
        let mut ops = Vec::new();
        if self.proxies == proxies {
            return ops;
        }
        self.proxies = proxies;
        let policies = std::mem::take(&mut self.policies);
        for (id, old) in policies {
            let rules: Vec<NumberedRule> = old.rules().cloned().collect();
            let policy = self.compile(&rules, old.own_ports(), true);
            for identity in policy.identities().collect::<BTreeSet<u32>>() {
                self.identities.hold(identity, id);
            }
            self.policies.insert(id, policy);
        }
        self.unsure = true;
        self.settle_doubts(0, &mut ops);
        if self.is_short() {
            let leaks = self.leaks();
            self.point(&leaks, false, false, &mut ops);
            self.retry.come_at_once();
        }
        ops
    }

    pub(crate) fn list_users(&mut self) {
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

    /// Removes policies that no endpoint has.
    fn drop_policies(&mut self, ops: &mut Vec<MapOp>) {
        let used: HashSet<u32> = self.local.values().map(|local| local.policy).collect();
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

/// Key of the row of a prefix.
pub(crate) fn prefix_of(net: IpNet) -> (u32, CidrKey) {
    let bits = u32::from(net.prefix_len());
    let prefix = if net.addr().is_ipv4() { bits + Address::V4_PREFIX_BITS } else { bits };
    (prefix, CidrKey { address: net.network().into() })
}

/// Every row of a policy.
pub(crate) fn policy_rows(id: u32, policy: &Policy) -> impl Iterator<Item = Row> {
    let any = policy.rows_of_any().map(move |(direction, row)| row.of(id, identity::ANY, direction));
    let identities: BTreeSet<u32> = policy.identities().collect();
    let rest = identities.into_iter().flat_map(move |identity| {
        policy.rows_of(identity).map(move |(direction, row)| row.of(id, identity, direction))
    });
    any.chain(rest)
}
