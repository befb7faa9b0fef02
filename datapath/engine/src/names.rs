//! Learned names, each once: which selectors match it, and which endpoints know it.

use std::{cmp::Ordering, collections::BTreeMap, sync::Arc};

use foldhash::{HashMap, HashSet};
use namegate_config::name::{Fqdn, NamePattern};
use slab::Slab;

use crate::{EndpointId, selectors::Set};

/// Number of a learned name.
pub type NameId = u32;

/// Every learned name.
#[derive(Debug, Default)]
pub(crate) struct Names {
    entries: Slab<Entry>,
    /// To find a name.
    by_name: HashMap<Fqdn, NameId>,
    /// To find the names under a domain.
    in_order: BTreeMap<FromRight, NameId>,
    /// Sets of selectors that match names, each once: equal sets are the same `Arc`.
    sets: HashSet<Set>,
}

#[derive(Debug)]
struct Entry {
    name: Fqdn,
    terms: Set,
    /// Endpoints that know it, sorted.
    endpoints: Vec<EndpointId>,
}

/// A name in the order of its labels from the right: names under a domain stand in a row.
#[derive(Clone, Debug, PartialEq, Eq)]
struct FromRight(Fqdn);

impl Ord for FromRight {
    fn cmp(&self, other: &Self) -> Ordering {
        self.bytes().cmp(other.bytes())
    }
}

impl FromRight {
    /// The bytes from the right. A dot is smaller than any character of a label, so that a label ends before a longer one.
    fn bytes(&self) -> impl Iterator<Item = u8> {
        self.0.as_str().bytes().rev().map(|byte| if byte == b'.' { 0 } else { byte })
    }
}

impl PartialOrd for FromRight {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Names {
    /// The number of a name that some endpoint knows.
    pub(crate) fn get(&self, name: &Fqdn) -> Option<NameId> {
        self.by_name.get(name).copied()
    }

    /// The name that a number stands for.
    pub(crate) fn name(&self, id: NameId) -> &Fqdn {
        &self.entries[index(id)].name
    }

    /// The name, where some endpoint still knows it.
    pub(crate) fn find(&self, id: NameId) -> Option<&Fqdn> {
        self.entries.get(index(id)).map(|entry| &entry.name)
    }

    /// Selectors that match a name; equal sets are the same `Arc`.
    pub(crate) fn terms(&self, id: NameId) -> &Set {
        &self.entries[index(id)].terms
    }

    /// Endpoints that know a name.
    pub(crate) fn endpoints(&self, id: NameId) -> &[EndpointId] {
        &self.entries[index(id)].endpoints
    }

    /// The number of a name that an endpoint knows from now on; `terms` finds the selectors that match it.
    pub(crate) fn know(&mut self, name: &Fqdn, endpoint: EndpointId, terms: impl FnOnce() -> Vec<u32>) -> NameId {
        let id = self.get(name).unwrap_or_else(|| {
            let terms = self.shared(terms());
            let entry = Entry { name: name.clone(), terms, endpoints: Vec::new() };
            let id = u32::try_from(self.entries.insert(entry)).unwrap_or(u32::MAX);
            self.by_name.insert(name.clone(), id);
            self.in_order.insert(FromRight(name.clone()), id);
            id
        });
        let endpoints = &mut self.entries[index(id)].endpoints;
        if let Err(at) = endpoints.binary_search(&endpoint) {
            endpoints.insert(at, endpoint);
        }
        id
    }

    /// An endpoint knows the name no longer.
    pub(crate) fn forget(&mut self, id: NameId, endpoint: EndpointId) {
        let entry = &mut self.entries[index(id)];
        entry.endpoints.retain(|known| *known != endpoint);
        if entry.endpoints.is_empty() {
            let entry = self.entries.remove(index(id));
            self.by_name.remove(&entry.name);
            self.in_order.remove(&FromRight(entry.name));
            self.drop_set(&entry.terms);
        }
    }

    /// Names that the pattern may match: those that end with its fixed labels.
    pub(crate) fn under(&self, pattern: &NamePattern) -> Vec<NameId> {
        let fixed = pattern.fixed_labels();
        // Not only a pattern that ends with a star: one may be longer than any name, and matches none then.
        let Ok(domain) = fixed.parse::<Fqdn>() else { return self.in_order.values().copied().collect() };
        let is_under = |name: &Fqdn| {
            let rest = name.as_str().strip_suffix(fixed);
            rest.is_some_and(|rest| rest.is_empty() || rest.ends_with('.'))
        };
        let names = self.in_order.range(FromRight(domain)..).take_while(|(name, _)| is_under(&name.0));
        names.map(|(_, id)| *id).collect()
    }

    /// Notes the selectors that match a name now; false where these are the same as before.
    pub(crate) fn set_terms(&mut self, id: NameId, terms: Vec<u32>) -> bool {
        if **self.terms(id) == *terms {
            return false;
        }
        let terms = self.shared(terms);
        let old = std::mem::replace(&mut self.entries[index(id)].terms, terms);
        self.drop_set(&old);
        true
    }

    fn shared(&mut self, terms: Vec<u32>) -> Set {
        if let Some(known) = self.sets.get(&*terms) {
            return Arc::clone(known);
        }
        let set: Set = terms.into();
        self.sets.insert(Arc::clone(&set));
        set
    }

    /// Forgets a set that no name has: then this reference and the one of the table are all there are.
    fn drop_set(&mut self, set: &Set) {
        const OWN: usize = 2;
        if Arc::strong_count(set) <= OWN {
            self.sets.remove(set);
        }
    }
}

const fn index(id: NameId) -> usize {
    id as usize
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_under_a_domain_stand_in_a_row() {
        let mut names = Names::default();
        let all = ["a.io", "b.a.io", "c.b.a.io", "ab.io", "a-b.io", "a.org", "io", "x.a-b.io", "."];
        for name in all {
            names.know(&name.parse().unwrap(), EndpointId(1), Vec::new);
        }
        for (pattern, want) in [
            ("*.a.io", &["a.io", "b.a.io", "c.b.a.io"][..]),
            ("**.io", &["io", "a.io", "b.a.io", "c.b.a.io", "a-b.io", "x.a-b.io", "ab.io"]),
            ("a*.org", &["a.org"]),
            ("a-b.io", &["a-b.io", "x.a-b.io"]),
            ("*", &all),
            ("*.net", &[]),
        ] {
            let pattern = NamePattern::pattern(pattern).unwrap();
            let mut got: Vec<&str> = names.under(&pattern).iter().map(|id| names.name(*id).as_str()).collect();
            let mut want: Vec<&str> = want.iter().map(|name| name.trim_end_matches('.')).collect();
            got.sort_unstable();
            want.sort_unstable();
            assert_eq!(got, want, "{pattern}");
        }
        for name in all {
            let id = names.get(&name.parse().unwrap()).unwrap();
            names.forget(id, EndpointId(1));
        }
        assert!(
            names.by_name.is_empty() && names.in_order.is_empty() && names.sets.is_empty() && names.entries.is_empty()
        );
    }
}
