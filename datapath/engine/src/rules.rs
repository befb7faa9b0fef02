//! The rules in force: their numbers, their order, and whom they select.

use std::{
    collections::{BTreeSet, HashMap, VecDeque},
    sync::Arc,
};

use namegate_config::{
    labels::Labels,
    rule::{Direction, Origin, Rule, Subject},
    settings::Settings,
};
use slab::Slab;

use crate::{compile::NumberedRule, content::content_of, label_index::LabelIndex, ledger::Ledger, listed::Listed};

/// Origins of rules no longer in force that are kept for records of old flows.
const OLD_ORIGINS_MAX: usize = 65_536;

/// Every rule in force.
#[derive(Debug, Default)]
pub(crate) struct Rules {
    listed: Listed<Rule>,
    entries: Slab<Entry>,
    by_content: HashMap<u128, u32>,
    /// Rules of the directions that are guarded, by what their subjects ask for.
    of_endpoints: LabelIndex<u32>,
    of_nodes: LabelIndex<u32>,
    origins: HashMap<u32, Arc<Origin>>,
    /// Numbers of rules that went, the first one first.
    old: VecDeque<u32>,
}

/// A rule with its number.
#[derive(Debug)]
struct Entry {
    numbered: NumberedRule,
    content: u128,
    /// Where it stands in the list.
    place: usize,
    /// How often it stands there.
    listed: usize,
}

/// Rules that came and went.
#[derive(Debug, Default)]
pub(crate) struct RuleChanges {
    /// Rules that are selected by others, or by nobody any more.
    pub(crate) touched: Vec<Arc<Rule>>,
    gone: Vec<u32>,
}

impl RuleChanges {
    /// Adds later changes.
    pub(crate) fn join(&mut self, later: Self) {
        self.gone.extend(later.gone);
    }
}

impl Rules {
    /// Takes every rule, in order. [`Rules::forget`] must follow once no policy has those that went.
    pub(crate) fn replace(&mut self, new: Vec<Arc<Rule>>, settings: &Settings, ledger: &mut Ledger) -> RuleChanges {
        let part = self.listed.replace(new);
        let mut changes = RuleChanges::default();
        let mut slots = Vec::with_capacity(part.things.len());
        for (rule, known) in part.things {
            let slot = known.unwrap_or_else(|| self.number(&rule, settings, ledger));
            let entry = &mut self.entries[index(slot)];
            entry.listed += 1;
            if entry.listed == 1 {
                changes.touched.push(Arc::clone(&entry.numbered.rule));
                self.select(slot, &settings.directions);
            }
            slots.push(slot);
        }
        for slot in &part.before {
            let entry = &mut self.entries[index(*slot)];
            entry.listed -= 1;
            if entry.listed == 0 {
                changes.touched.push(Arc::clone(&entry.numbered.rule));
                changes.gone.push(*slot);
                self.deselect(*slot);
            }
        }
        let end = part.start + slots.len();
        let is_shifted = self.listed.set(part.start, part.before.len(), slots);
        self.place(part.start..if is_shifted { self.listed.slots().len() } else { end });
        changes
    }

    /// The slot of a rule; a new one gets a number.
    fn number(&mut self, rule: &Arc<Rule>, settings: &Settings, ledger: &mut Ledger) -> u32 {
        let rule = in_force(rule, settings);
        let content = content_of(&*rule);
        if let Some(slot) = self.by_content.get(&content) {
            return *slot;
        }
        let cookie = ledger.rule(content);
        self.origins.insert(cookie, Arc::clone(&rule.origin));
        let entry = Entry { numbered: NumberedRule { cookie, rule }, content, place: 0, listed: 0 };
        let slot = u32::try_from(self.entries.insert(entry)).unwrap_or(u32::MAX);
        self.by_content.insert(content, slot);
        slot
    }

    /// Notes where the rules of a part of the list stand. Of one that stands there twice the first place counts.
    fn place(&mut self, part: std::ops::Range<usize>) {
        let slots = self.listed.slots();
        let stands_twice = slots[part.clone()].iter().any(|slot| self.entries[index(*slot)].listed > 1);
        let part = if stands_twice { 0..slots.len() } else { part };
        for at in part.rev() {
            self.entries[index(slots[at])].place = at;
        }
    }

    fn select(&mut self, slot: u32, directions: &[Direction]) {
        let rule = &self.entries[index(slot)].numbered.rule;
        if directions.contains(&rule.direction) {
            match &rule.subject {
                Subject::Endpoints(selector) => self.of_endpoints.insert(selector, slot),
                Subject::Nodes(selector) => self.of_nodes.insert(selector, slot),
            }
        }
    }

    fn deselect(&mut self, slot: u32) {
        match &self.entries[index(slot)].numbered.rule.subject {
            Subject::Endpoints(selector) => self.of_endpoints.remove(selector, slot),
            Subject::Nodes(selector) => self.of_nodes.remove(selector, slot),
        }
    }

    /// Forgets the numbers of rules that went and did not come back.
    pub(crate) fn forget(&mut self, changes: RuleChanges, ledger: &mut Ledger) {
        for slot in changes.gone.into_iter().collect::<BTreeSet<u32>>() {
            if self.entries.get(index(slot)).is_none_or(|entry| entry.listed > 0) {
                continue;
            }
            let entry = self.entries.remove(index(slot));
            self.by_content.remove(&entry.content);
            ledger.rules.forget(&entry.content);
            self.old.push_back(entry.numbered.cookie);
        }
        while self.old.len() > OLD_ORIGINS_MAX {
            let oldest = self.old.pop_front();
            oldest.map(|cookie| self.origins.remove(&cookie));
        }
    }

    /// The rules, in order, whose subjects match an endpoint.
    pub(crate) fn of_endpoint(&self, labels: &Labels) -> Vec<NumberedRule> {
        self.selecting(&self.of_endpoints, labels)
    }

    /// The same for this node.
    pub(crate) fn of_node(&self, labels: &Labels) -> Vec<NumberedRule> {
        self.selecting(&self.of_nodes, labels)
    }

    fn selecting(&self, subjects: &LabelIndex<u32>, labels: &Labels) -> Vec<NumberedRule> {
        let mut selecting = Vec::new();
        subjects.each_match(labels, |slot| selecting.push((self.entries[index(slot)].place, slot)));
        selecting.sort_unstable();
        selecting.dedup();
        selecting.into_iter().map(|(_, slot)| self.entries[index(slot)].numbered.clone()).collect()
    }

    /// Every rule, in order.
    pub(crate) fn iter(&self) -> impl Iterator<Item = &Arc<Rule>> {
        self.listed.slots().iter().map(|slot| &self.entries[index(*slot)].numbered.rule)
    }

    /// Where a rule stands, also some time after it is gone.
    pub(crate) fn origin(&self, cookie: u32) -> Option<&Arc<Origin>> {
        self.origins.get(&cookie)
    }

    /// Where rules stand, by their numbers.
    pub(crate) const fn origins(&self) -> &HashMap<u32, Arc<Origin>> {
        &self.origins
    }

    /// The numbers of the rules in force.
    pub(crate) fn numbers(&self) -> BTreeSet<u32> {
        self.entries.iter().map(|(_, entry)| entry.numbered.cookie).collect()
    }
}

/// The rule as it counts under the settings. They are part of it: under others it is another rule, and its flows are judged
/// again.
fn in_force(rule: &Arc<Rule>, settings: &Settings) -> Arc<Rule> {
    let binding = rule.binding.or(Some(settings.dns.name_binding)).filter(|_| rule.may_bind());
    let is_same = binding == rule.binding && binding.is_some() == rule.named_only.is_some();
    if is_same {
        return Arc::clone(rule);
    }
    let mut own = Rule::clone(rule);
    own.binding = binding;
    own.named_only =
        own.named_only.take().or_else(|| Some(settings.dns.named_ports.clone())).filter(|_| binding.is_some());
    Arc::new(own)
}

const fn index(slot: u32) -> usize {
    slot as usize
}
