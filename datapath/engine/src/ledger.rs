//! Numbers handed out, and the entries by which a restarted agent hands out the same.
//!
//! Flows and rows in the kernel hold these numbers, so none is ever given to another thing.

use std::{hash::Hash, net::IpAddr, sync::Arc};

use foldhash::HashMap;
use namegate_abi::identity;
use serde::{Deserialize, Serialize};

/// Entries kept for [`crate::Engine::take_ledger`]; more are dropped and counted.
pub(crate) const ENTRIES_MAX: usize = 1 << 20;

/// One fact to keep. Later entries go before earlier ones.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum LedgerEntry {
    /// An endpoint on this node.
    Endpoint {
        /// `namespace/name`.
        key: Arc<str>,
        /// Its number.
        id: u32,
    },
    /// The endpoint is gone: one that comes with its name is another.
    Left {
        /// `namespace/name`.
        key: Arc<str>,
    },
    /// A selector.
    Selector {
        /// Its number.
        id: u32,
        /// Its canonical text.
        text: Arc<str>,
    },
    /// An identity.
    Identity {
        /// Its number.
        id: u32,
        /// Numbers of the selectors it stands for.
        selectors: Vec<u32>,
    },
    /// A rule.
    Rule {
        /// Its number.
        cookie: u32,
        /// What it holds, as 128 bits.
        content: u128,
    },
    /// A set of rules.
    Policy {
        /// Its number.
        id: u32,
        /// Numbers of its rules, and ports of the endpoint that they name.
        content: (Vec<u32>, Vec<String>),
    },
    /// The numbers that come next.
    Next {
        /// Endpoints, selectors, identities, rules, policies; then the revision in force.
        numbers: [u32; 6],
    },
    /// Addresses that an endpoint learned.
    Learned {
        /// `namespace/name`.
        endpoint: Arc<str>,
        /// The asked name, then aliases.
        names: Vec<Arc<str>>,
        /// Address, TTL in seconds, and its end in nanoseconds of `CLOCK_BOOTTIME`.
        addresses: Vec<(IpAddr, u32, u64)>,
        /// When, in nanoseconds of `CLOCK_BOOTTIME`.
        learned_ns: u64,
    },
    /// A name that an endpoint no longer knows.
    Forgotten {
        /// `namespace/name`.
        endpoint: Arc<str>,
        /// The name.
        name: Arc<str>,
    },
}

/// Numbers for one kind of thing.
#[derive(Debug)]
pub(crate) struct Numbers<K> {
    known: HashMap<K, u32>,
    next: u32,
}

impl<K: Hash + Eq> Numbers<K> {
    const fn at(&self) -> u32 {
        self.next
    }

    pub(crate) fn get(&self, key: &K) -> Option<u32> {
        self.known.get(key).copied()
    }

    /// Every thing with its number.
    pub(crate) fn all(&self) -> impl Iterator<Item = (&K, u32)> {
        self.known.iter().map(|(key, number)| (key, *number))
    }

    /// The number of the thing, and whether it is new.
    fn number(&mut self, key: K) -> (u32, bool) {
        let next = &mut self.next;
        let mut new = false;
        let number = *self.known.entry(key).or_insert_with(|| {
            let number = *next;
            *next = next.saturating_add(1);
            new = true;
            number
        });
        (number, new)
    }

    /// Whether the thing has no number and none is left.
    fn is_used_up(&self, key: &K) -> bool {
        self.next == u32::MAX && !self.known.contains_key(key)
    }

    fn note(&mut self, key: K, number: u32) {
        self.pass(number);
        self.known.insert(key, number);
    }

    /// Makes sure that later numbers are larger.
    pub(crate) fn pass(&mut self, number: u32) {
        self.next = self.next.max(number.saturating_add(1));
    }

    pub(crate) fn forget(&mut self, key: &K) {
        self.known.remove(key);
    }

    fn retain(&mut self, keep: impl Fn(u32) -> bool) {
        self.known.retain(|_, number| keep(*number));
    }
}

/// Content of a policy: its rules and the ports of the subject that they name.
pub(crate) type PolicyContent = (Vec<u32>, Vec<String>);

/// Every number handed out.
#[derive(Debug)]
pub(crate) struct Ledger {
    pub(crate) endpoints: Numbers<Arc<str>>,
    pub(crate) selectors: Numbers<Arc<str>>,
    pub(crate) identities: Numbers<Arc<[u32]>>,
    pub(crate) rules: Numbers<u128>,
    pub(crate) policies: Numbers<PolicyContent>,
    pub(crate) revision: u32,
    pending: Vec<LedgerEntry>,
    dropped: u64,
}

impl Default for Ledger {
    fn default() -> Self {
        Self {
            endpoints: Numbers { known: HashMap::default(), next: 1 },
            selectors: Numbers { known: HashMap::default(), next: 1 },
            identities: Numbers { known: HashMap::default(), next: identity::FIRST },
            rules: Numbers { known: HashMap::default(), next: 1 },
            policies: Numbers { known: HashMap::default(), next: 1 },
            revision: 0,
            pending: Vec::new(),
            dropped: 0,
        }
    }
}

impl Ledger {
    pub(crate) fn endpoint(&mut self, key: &Arc<str>) -> u32 {
        let (id, new) = self.endpoints.number(Arc::clone(key));
        if new {
            self.push(LedgerEntry::Endpoint { key: Arc::clone(key), id });
        }
        id
    }

    pub(crate) fn endpoint_left(&mut self, key: &Arc<str>) {
        self.endpoints.forget(key);
        self.push(LedgerEntry::Left { key: Arc::clone(key) });
    }

    pub(crate) fn selector(&mut self, text: String) -> u32 {
        let text: Arc<str> = text.into();
        let (id, new) = self.selectors.number(Arc::clone(&text));
        if new {
            self.push(LedgerEntry::Selector { id, text });
        }
        id
    }

    /// The identity of a set of selectors; `None` where no number is left.
    pub(crate) fn identity(&mut self, selectors: &Arc<[u32]>) -> Option<u32> {
        if self.identities.is_used_up(selectors) {
            return None;
        }
        let (id, new) = self.identities.number(Arc::clone(selectors));
        if new {
            self.push(LedgerEntry::Identity { id, selectors: selectors.to_vec() });
        }
        Some(id)
    }

    pub(crate) fn rule(&mut self, content: u128) -> u32 {
        let (cookie, new) = self.rules.number(content);
        if new {
            self.push(LedgerEntry::Rule { cookie, content });
        }
        cookie
    }

    pub(crate) fn policy(&mut self, content: &PolicyContent) -> u32 {
        let (id, new) = self.policies.number(content.clone());
        if new {
            self.push(LedgerEntry::Policy { id, content: content.clone() });
        }
        id
    }

    /// A revision that no flow has.
    pub(crate) fn next_revision(&mut self) -> u32 {
        self.revision = self.revision.wrapping_add(1);
        self.push(self.next());
        self.revision
    }

    pub(crate) fn push(&mut self, entry: LedgerEntry) {
        if self.pending.len() < ENTRIES_MAX {
            self.pending.push(entry);
        } else {
            self.dropped += 1;
        }
    }

    pub(crate) fn take(&mut self) -> Vec<LedgerEntry> {
        std::mem::take(&mut self.pending)
    }

    /// Entries that were not kept.
    pub(crate) const fn dropped(&self) -> u64 {
        self.dropped
    }

    const fn next(&self) -> LedgerEntry {
        let numbers = [
            self.endpoints.at(),
            self.selectors.at(),
            self.identities.at(),
            self.rules.at(),
            self.policies.at(),
            self.revision,
        ];
        LedgerEntry::Next { numbers }
    }

    /// Takes one entry; answers are for the caller.
    pub(crate) fn note(&mut self, entry: LedgerEntry) -> Option<LedgerEntry> {
        match entry {
            LedgerEntry::Endpoint { key, id } => self.endpoints.note(key, id),
            LedgerEntry::Left { ref key } => {
                self.endpoints.forget(key);
                return Some(entry);
            }
            LedgerEntry::Selector { id, text } => self.selectors.note(text, id),
            LedgerEntry::Identity { id, selectors } => self.identities.note(selectors.into(), id),
            LedgerEntry::Rule { cookie, content } => self.rules.note(content, cookie),
            LedgerEntry::Policy { id, content } => self.policies.note(content, id),
            LedgerEntry::Next { numbers: [endpoint, selector, identity, rule, policy, revision] } => {
                self.endpoints.pass(endpoint.saturating_sub(1));
                self.selectors.pass(selector.saturating_sub(1));
                self.identities.pass(identity.saturating_sub(1));
                self.rules.pass(rule.saturating_sub(1));
                self.policies.pass(policy.saturating_sub(1));
                self.revision = self.revision.max(revision);
            }
            LedgerEntry::Learned { .. } | LedgerEntry::Forgotten { .. } => return Some(entry),
        }
        None
    }

    /// Forgets the numbers of what is not in use.
    pub(crate) fn retain(&mut self, in_use: &InUse<'_>) {
        self.endpoints.retain(in_use.endpoint);
        self.selectors.retain(in_use.selector);
        self.identities.retain(in_use.identity);
        self.rules.retain(in_use.rule);
        self.policies.retain(in_use.policy);
    }

    /// Entries that lead to the numbers known now, each number in order.
    pub(crate) fn snapshot(&self) -> Vec<LedgerEntry> {
        fn sorted<K: Clone>(numbers: &Numbers<K>) -> Vec<(u32, K)> {
            let mut all: Vec<(u32, K)> = numbers.known.iter().map(|(key, id)| (*id, key.clone())).collect();
            all.sort_unstable_by_key(|(id, _)| *id);
            all
        }
        let endpoints = sorted(&self.endpoints).into_iter().map(|(id, key)| LedgerEntry::Endpoint { key, id });
        let selectors = sorted(&self.selectors).into_iter().map(|(id, text)| LedgerEntry::Selector { id, text });
        let identities = sorted(&self.identities)
            .into_iter()
            .map(|(id, selectors)| LedgerEntry::Identity { id, selectors: selectors.to_vec() });
        let rules = sorted(&self.rules).into_iter().map(|(cookie, content)| LedgerEntry::Rule { cookie, content });
        let policies = sorted(&self.policies).into_iter().map(|(id, content)| LedgerEntry::Policy { id, content });
        let numbers = endpoints.chain(selectors).chain(identities).chain(rules).chain(policies);
        numbers.chain(std::iter::once(self.next())).collect()
    }
}

/// Which numbers stand for something in force.
pub(crate) struct InUse<'a> {
    pub(crate) endpoint: &'a dyn Fn(u32) -> bool,
    pub(crate) selector: &'a dyn Fn(u32) -> bool,
    pub(crate) identity: &'a dyn Fn(u32) -> bool,
    pub(crate) rule: &'a dyn Fn(u32) -> bool,
    pub(crate) policy: &'a dyn Fn(u32) -> bool,
}
