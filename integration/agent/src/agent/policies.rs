//! All policies that are in force, and the rules that they come to. A unit that has not changed is not looked at again,
//! unless it refers to a service or a group of prefixes that has.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::{Arc, LazyLock},
};

use namegate_api::view;
use namegate_config::{
    intern::Interner,
    labels::{LabelSelector, Operator, RESERVED, Requirement},
    policy::{self, Catalog, CidrGroup, Service},
    rule::{Direction, Effect, Origin, Peers, Ports, Rule, Subject, Tier},
};

use super::{
    cluster_state::UNKNOWN,
    reading::{Diagnostics, UnitState},
    unit::{Body, Unit, shown, shown_without_line},
};

/// Which file or object: files come first.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum UnitKey {
    /// Name of a file in the folder of policies.
    File(Arc<str>),
    /// Origin of an object of the API server.
    Object(Arc<str>),
}

/// Every unit, and what all of them come to.
#[derive(Debug, Default)]
pub(crate) struct Policies {
    units: BTreeMap<UnitKey, Entry>,
    /// Units that are new or changed since the last [`Policies::settle`].
    changed: BTreeSet<UnitKey>,
    /// A unit has gone since then.
    is_fewer: bool,
    /// Units with policies that refer to services or groups.
    referring: BTreeSet<UnitKey>,
    /// Units with groups.
    grouping: BTreeSet<UnitKey>,
    /// Copies of what many rules have in common.
    pub(crate) interner: Interner,
    /// What references were looked up in last.
    catalog: Catalog,
    /// What is said of the endpoints file and the folder.
    others: Vec<view::Diagnostic>,
    /// That has changed since the last [`Policies::settle`].
    has_others: bool,
    settled: Settled,
}

/// A unit and what it came to last.
#[derive(Debug)]
struct Entry {
    unit: Unit,
    state: Arc<UnitState>,
}

/// What all units come to.
#[derive(Clone, Debug, Default)]
pub(crate) struct Settled {
    pub(crate) rules: Arc<[Arc<Rule>]>,
    /// Grows when the rules change.
    pub(crate) rules_revision: u64,
    pub(crate) said: Arc<Diagnostics>,
    /// Grows when anything that is said changes.
    pub(crate) said_revision: u64,
    /// Whether unknown endpoints are closed.
    is_closed: bool,
}

/// What differs from what was settled last.
#[derive(Debug, Default)]
struct Difference {
    rules: bool,
    documents: bool,
    diagnostics: bool,
}

impl Policies {
    /// Puts a unit in the place of the one with its key.
    pub(crate) fn put(&mut self, key: &UnitKey, unit: Unit) {
        let is_in = |set: &mut BTreeSet<UnitKey>, is_wanted: bool| {
            if is_wanted {
                set.insert(key.clone())
            } else {
                set.remove(key)
            };
        };
        is_in(&mut self.referring, unit.loaded().iter().any(|one| matches!(one.body, Body::Refers(_))));
        is_in(&mut self.grouping, unit.loaded().iter().any(|one| matches!(one.body, Body::Group(_))));
        match self.units.get_mut(key) {
            Some(entry) if entry.unit.is_same(&unit) => return,
            Some(entry) => entry.unit = unit,
            None => drop(self.units.insert(key.clone(), Entry { unit, state: Arc::default() })),
        }
        self.changed.insert(key.clone());
    }

    /// Takes a unit out.
    pub(crate) fn remove(&mut self, key: &UnitKey) {
        if self.units.remove(key).is_some() {
            self.is_fewer = true;
            for set in [&mut self.changed, &mut self.referring, &mut self.grouping] {
                set.remove(key);
            }
        }
    }

    /// What is said of the endpoints file and the folder from now on.
    pub(crate) fn say(&mut self, others: Vec<view::Diagnostic>) {
        self.has_others |= self.others != others;
        self.others = others;
    }

    /// What all units come to with these services. `is_closed` is whether there are unknown endpoints.
    pub(crate) fn settle(&mut self, services: impl IntoIterator<Item = Service>, is_closed: bool) -> &Settled {
        let catalog = Catalog { services: services.into_iter().collect(), cidr_groups: self.groups() };
        let changed = self.catalog.differences(&catalog);
        self.catalog = catalog;
        self.settle_with(&changed, is_closed)
    }

    /// The same where no service has changed.
    pub(crate) fn settle_again(&mut self, is_closed: bool) -> &Settled {
        let groups = self.groups();
        if groups == self.catalog.cidr_groups {
            return self.settle_with(&Catalog::default(), is_closed);
        }
        let services = std::mem::take(&mut self.catalog.services);
        let former = std::mem::take(&mut self.catalog.cidr_groups);
        let of_groups = |cidr_groups: Vec<CidrGroup>| Catalog { services: Vec::new(), cidr_groups };
        let changed = of_groups(former).differences(&of_groups(groups.clone()));
        self.catalog = Catalog { services, cidr_groups: groups };
        self.settle_with(&changed, is_closed)
    }

    fn settle_with(&mut self, facts: &Catalog, is_closed: bool) -> &Settled {
        let is_fewer = std::mem::take(&mut self.is_fewer);
        let mut difference = Difference {
            rules: is_fewer || is_closed != self.settled.is_closed,
            documents: is_fewer,
            diagnostics: is_fewer || std::mem::take(&mut self.has_others),
        };
        let mut keys = std::mem::take(&mut self.changed);
        if !facts.is_empty() {
            keys.extend(self.referring.iter().filter(|key| self.is_concerned(key, facts)).cloned());
        }
        for key in &keys {
            self.renew(key, &mut difference);
        }
        self.settled.is_closed = is_closed;
        self.publish(&difference);
        &self.settled
    }

    fn groups(&self) -> Vec<CidrGroup> {
        let units = self.grouping.iter().filter_map(|key| self.units.get(key));
        let bodies = units.flat_map(|entry| entry.unit.loaded()).map(|one| &one.body);
        bodies.filter_map(|body| if let Body::Group(group) = body { Some(group.clone()) } else { None }).collect()
    }

    fn is_concerned(&self, key: &UnitKey, facts: &Catalog) -> bool {
        let loaded = self.units.get(key).map(|entry| entry.unit.loaded()).unwrap_or_default();
        loaded.iter().any(|one| matches!(&one.body, Body::Refers(document) if document.refers_to(facts)))
    }

    /// Looks up what the policies of a unit come to now.
    fn renew(&mut self, key: &UnitKey, difference: &mut Difference) {
        let Some(entry) = self.units.get_mut(key) else { return };
        let mut state = UnitState { diagnostics: entry.unit.diagnostics.clone(), ..UnitState::default() };
        let former = Former::new(&entry.state.rules);
        for one in entry.unit.loaded() {
            let before = state.rules.len();
            match &one.body {
                Body::Rules(rules) => state.rules.extend(rules.iter().map(|rule| former.or(rule))),
                Body::Group(_) => {}
                Body::Refers(document) => {
                    let translated = policy::translate(&[&**document], &self.catalog);
                    let shown = if matches!(key, UnitKey::File(_)) { shown } else { shown_without_line };
                    state.diagnostics.extend(translated.diagnostics.iter().map(shown));
                    let rules = translated.rules.into_iter().map(|rule| self.interner.rule(rule));
                    state.rules.extend(rules.map(|rule| former.or(&rule)));
                }
            }
            state.documents.push(entry.unit.line(one, state.rules.len() - before));
        }
        if entry.unit.good.is_none() {
            state.documents.push(entry.unit.refused_line());
        }
        let is_same = |(one, other): (&Arc<Rule>, &Arc<Rule>)| Arc::ptr_eq(one, other);
        difference.rules |=
            state.rules.len() != entry.state.rules.len() || !state.rules.iter().zip(&entry.state.rules).all(is_same);
        difference.documents |= state.documents != entry.state.documents;
        difference.diagnostics |= state.diagnostics != entry.state.diagnostics;
        entry.state = Arc::new(state);
    }

    fn publish(&mut self, difference: &Difference) {
        let states = || self.units.values().map(|entry| &entry.state);
        let settled = &mut self.settled;
        if difference.rules {
            let closed = CLOSED.iter().filter(|_| settled.is_closed);
            settled.rules = states().flat_map(|state| &state.rules).chain(closed).cloned().collect();
            settled.rules_revision += 1;
        }
        if !difference.diagnostics && !difference.documents && !difference.rules {
            return;
        }
        let found = if difference.diagnostics {
            states().flat_map(|state| &state.diagnostics).chain(&self.others).cloned().collect()
        } else {
            Arc::clone(&settled.said.found)
        };
        settled.said = Arc::new(Diagnostics { units: states().cloned().collect(), found });
        settled.said_revision += 1;
    }
}

/// The rules that a unit had: one that is still the same stays where it is.
struct Former<'a>(HashMap<&'a Origin, Vec<&'a Arc<Rule>>>);

impl<'a> Former<'a> {
    fn new(rules: &'a [Arc<Rule>]) -> Self {
        let mut former: HashMap<&Origin, Vec<&Arc<Rule>>> = HashMap::new();
        for rule in rules {
            former.entry(&*rule.origin).or_default().push(rule);
        }
        Self(former)
    }

    fn or(&self, rule: &Arc<Rule>) -> Arc<Rule> {
        let same = self.0.get(&*rule.origin).into_iter().flatten().copied().find(|former| *former == rule);
        Arc::clone(same.unwrap_or(rule))
    }
}

/// Rules that close unknown endpoints.
static CLOSED: LazyLock<[Arc<Rule>; 2]> = LazyLock::new(|| {
    [Direction::Ingress, Direction::Egress].map(|direction| {
        Arc::new(Rule {
            origin: Arc::new(Origin {
                kind: "Namegate".to_owned(),
                namespace: None,
                name: "unknown-pod".to_owned(),
                path: if direction == Direction::Ingress { "ingress" } else { "egress" }.to_owned(),
            }),
            subject: Subject::Endpoints(LabelSelector::new([Requirement::of(
                Some(RESERVED),
                UNKNOWN,
                Operator::Exists,
            )])),
            direction,
            tier: Tier::Admin(0),
            effect: Effect::Deny,
            default_deny: true,
            peers: Peers::Any,
            ports: Ports::Any,
            l7: None,
            binding: None,
            named_only: None,
        })
    })
});

#[cfg(test)]
mod tests {
    use super::*;
    use crate::agent::unit::load;

    fn unit(policies: &mut Policies, name: &str, text: &str) -> Unit {
        let parsed = policy::parse(name, text);
        let diagnostics = parsed.diagnostics.iter().map(shown).collect();
        let good = load(parsed, &mut policies.interner);
        Unit { name: name.into(), is_current: good.is_some(), good, diagnostics }
    }

    /// Puts a file with these policies of `shop`, each with the peers of its two rules.
    fn put(policies: &mut Policies, file: &str, documents: &[(&str, [&str; 2])]) {
        let document = |(name, [one, other]): &(&str, [&str; 2])| {
            format!(
                "apiVersion: cilium.io/v2\nkind: CiliumNetworkPolicy\nmetadata: {{name: {name}, namespace: shop}}\n\
                 spec: {{endpointSelector: {{}}, egress: [{{{one}}}, {{{other}}}]}}\n"
            )
        };
        let text = documents.iter().map(document).collect::<Vec<_>>().join("---\n");
        let unit = unit(policies, file, &text);
        assert!(unit.good.is_some(), "{:?}", unit.diagnostics);
        policies.put(&UnitKey::File(file.into()), unit);
    }

    fn service(name: &str, backend: &str) -> Service {
        let backends = vec![backend.parse().unwrap()];
        Service { name: name.into(), namespace: "shop".into(), backends, ..Service::default() }
    }

    /// Which rules are where they were.
    fn same(before: &[Arc<Rule>], after: &[Arc<Rule>]) -> Vec<bool> {
        after.iter().map(|rule| before.iter().any(|former| Arc::ptr_eq(former, rule))).collect()
    }

    const WORLD: &str = "toEntities: [world]";
    const HOST: &str = "toEntities: [host]";
    const DATABASE: &str = "toServices: [{k8sService: {serviceName: db, namespace: shop}}]";

    #[test]
    fn a_rule_that_stays_is_the_same_also_in_a_file_that_changes() {
        let mut policies = Policies::default();
        put(&mut policies, "a.yaml", &[("a", [WORLD, HOST])]);
        put(&mut policies, "b.yaml", &[("b", [WORLD, WORLD]), ("c", [WORLD, HOST])]);
        let before = policies.settle([], false).clone();
        put(&mut policies, "b.yaml", &[("b", [WORLD, HOST]), ("c", [WORLD, HOST])]);
        let after = policies.settle_again(false).clone();
        assert_eq!(same(&before.rules, &after.rules), [true, true, true, false, true, true]);
        assert_eq!(after.rules_revision, before.rules_revision + 1);
        put(&mut policies, "b.yaml", &[("b", [WORLD, HOST]), ("c", [WORLD, HOST])]);
        let again = policies.settle_again(false);
        assert_eq!(again.rules_revision, after.rules_revision, "the same content once more");
        assert!(Arc::ptr_eq(&again.rules, &after.rules));
        policies.remove(&UnitKey::File("a.yaml".into()));
        assert_eq!(same(&after.rules, &policies.settle_again(false).rules), [true; 4]);
    }

    #[test]
    fn a_service_that_changes_concerns_the_policies_that_refer_to_it() {
        let mut policies = Policies::default();
        put(&mut policies, "a.yaml", &[("a", [WORLD, DATABASE])]);
        put(&mut policies, "b.yaml", &[("b", [WORLD, HOST])]);
        let absent = policies.settle([], false).clone();
        assert_eq!(absent.said.found.len(), 1, "the service is not there: {:?}", absent.said.found);
        let there = policies.settle([service("db", "192.0.2.1")], false).clone();
        assert_eq!(same(&absent.rules, &there.rules), [true, false, true, true]);
        assert!(there.said.found.is_empty());
        let other = policies.settle([service("db", "192.0.2.1"), service("web", "192.0.2.2")], false).clone();
        assert_eq!(other.rules_revision, there.rules_revision, "nobody refers to it");
        let moved = policies.settle([service("db", "192.0.2.9")], false).clone();
        assert_eq!(same(&there.rules, &moved.rules), [true, false, true, true]);
    }

    #[test]
    fn a_group_in_another_file_concerns_the_policies_that_refer_to_it() {
        const GROUP: &str = "apiVersion: cilium.io/v2\nkind: CiliumCIDRGroup\nmetadata: {name: g}\n\
                             spec: {externalCIDRs: [192.0.2.0/24]}\n";
        let mut policies = Policies::default();
        put(&mut policies, "a.yaml", &[("a", ["toCIDRSet: [{cidrGroupRef: g}]", WORLD])]);
        let peers = |settled: &Settled| match &settled.rules[0].peers {
            Peers::Of(peers) => peers.len(),
            Peers::Any => usize::MAX,
        };
        assert_eq!(peers(policies.settle([], false)), 0);
        let group = unit(&mut policies, "g.yaml", GROUP);
        policies.put(&UnitKey::File("g.yaml".into()), group);
        assert_eq!(peers(policies.settle_again(false)), 1);
        policies.remove(&UnitKey::File("g.yaml".into()));
        assert_eq!(peers(policies.settle_again(false)), 0);
        assert_eq!(policies.settle_again(false).said.found.len(), 1);
    }

    #[test]
    fn unknown_endpoints_are_closed_while_there_are_any() {
        let mut policies = Policies::default();
        put(&mut policies, "a.yaml", &[("a", [WORLD, HOST])]);
        let open = policies.settle([], false).clone();
        let closed = policies.settle_again(true).clone();
        assert_eq!((open.rules.len(), closed.rules.len()), (2, 4));
        assert_eq!(policies.settle_again(true).rules_revision, closed.rules_revision);
        assert_eq!(policies.settle_again(false).rules.len(), 2);
    }

    #[test]
    fn lines_count_the_rules_of_their_policy() {
        let mut policies = Policies::default();
        put(&mut policies, "a.yaml", &[("a", [WORLD, DATABASE]), ("b", [WORLD, HOST])]);
        let refused = unit(&mut policies, "x.yaml", "nonsense");
        policies.put(&UnitKey::File("x.yaml".into()), refused);
        let said = Arc::clone(&policies.settle([], false).said);
        let lines: Vec<_> = said.documents().map(|one| (one.name.as_deref(), one.rules)).collect();
        assert_eq!(lines, [(Some("a"), 2), (Some("b"), 2), (None, 0)]);
    }

    #[test]
    fn what_is_said_of_the_endpoints_file_changes_what_is_said_and_no_rule() {
        let mut policies = Policies::default();
        put(&mut policies, "a.yaml", &[("a", [WORLD, HOST])]);
        let before = policies.settle([], false).clone();
        let found = crate::agent::unit::unreadable(std::path::Path::new("e.yaml"), &std::io::Error::other("no"));
        policies.say(vec![found.clone()]);
        let after = policies.settle_again(false).clone();
        assert_eq!((&*after.said.found, after.rules_revision), (&[found][..], before.rules_revision));
        assert!(after.said_revision > before.said_revision);
        policies.say(Vec::new());
        assert!(policies.settle_again(false).said.found.is_empty());
    }
}
