//! Learned names: who asked what, which addresses came, until when, and the steps that follow for each address.
//!
//! A time to live ends exactly: an answer heard later can move an end back, never forward. Ended names are kept for a
//! while, to explain denials and to judge long connections again.

use std::{
    cmp::Reverse,
    collections::{BinaryHeap, HashMap},
    net::IpAddr,
    sync::Arc,
};

use lru::LruCache;
use namegate_abi::{Address, AddressKey, AddressValue, STEPS_MAX};
use namegate_config::name::Fqdn;

use crate::{
    EndpointId,
    selectors::{Set, TermId},
};

/// How long a name is remembered after its end, in nanoseconds.
pub(crate) const ENDED_KEPT_NS: u64 = 3_600_000_000_000;
/// Names kept for one address of one scope; the one that ends first gives way.
pub(crate) const NAMES_PER_ADDRESS_MAX: usize = 256;

/// Every learned name.
#[derive(Debug, Default)]
pub(crate) struct Cache {
    pub(crate) endpoints: HashMap<EndpointId, Known>,
    pub(crate) rows: HashMap<AddressKey, Opened>,
    due: BinaryHeap<Reverse<(u64, AddressKey)>>,
}

/// What one endpoint learned.
#[derive(Debug)]
pub(crate) struct Known {
    /// `namespace/name`.
    pub(crate) key: Arc<str>,
    pub(crate) names: LruCache<Fqdn, Name>,
}

/// What one endpoint learned for a name.
#[derive(Clone, Debug)]
pub(crate) struct Name {
    pub(crate) addresses: Vec<LearnedAddress>,
    pub(crate) ttl_s: u32,
    pub(crate) learned_ns: u64,
    /// Selectors that match the name.
    terms: Set,
}

/// An address of a name, and when its TTL ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LearnedAddress {
    /// The address.
    pub address: IpAddr,
    /// `CLOCK_BOOTTIME` nanoseconds.
    pub expires_ns: u64,
}

/// The names behind one row of `ADDRESSES`.
#[derive(Debug, Default)]
pub(crate) struct Opened {
    pub(crate) openings: Vec<Opening>,
    /// The row, where there is one.
    pub(crate) value: Option<AddressValue>,
    /// When the row is looked at again.
    due_ns: Option<u64>,
}

/// A name that an endpoint learned, as seen from the address.
#[derive(Clone, Debug)]
pub(crate) struct Opening {
    pub(crate) endpoint: EndpointId,
    pub(crate) name: Fqdn,
    terms: Set,
    pub(crate) expires_ns: u64,
}

/// An answer for one name and address.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Heard<'a> {
    pub(crate) endpoint: EndpointId,
    pub(crate) name: &'a Fqdn,
    pub(crate) address: LearnedAddress,
    pub(crate) ttl_s: u32,
    pub(crate) learned_ns: u64,
}

/// The selectors in force until a moment.
pub(crate) type Steps = Vec<(u64, Vec<TermId>)>;

impl Cache {
    /// Begins to remember an endpoint.
    pub(crate) fn open(&mut self, endpoint: EndpointId, key: &Arc<str>) {
        let known = || Known { key: Arc::clone(key), names: LruCache::unbounded() };
        self.endpoints.entry(endpoint).or_insert_with(known);
    }

    /// Notes an address of a name in `row`. Rows that lost a name to a bound are added to `touched`.
    pub(crate) fn hear(
        &mut self,
        row: AddressKey,
        heard: Heard<'_>,
        addresses_max: usize,
        terms: impl FnOnce() -> Set,
        touched: &mut Vec<AddressKey>,
    ) -> bool {
        let Some(known) = self.endpoints.get_mut(&heard.endpoint) else { return false };
        let name = known.names.get_or_insert_mut_ref(heard.name, || Name {
            addresses: Vec::new(),
            ttl_s: 0,
            learned_ns: 0,
            terms: terms(),
        });
        name.ttl_s = heard.ttl_s;
        name.learned_ns = heard.learned_ns;
        let expires_ns = heard.address.expires_ns;
        let terms = Arc::clone(&name.terms);
        let mut evicted = None;
        if let Some(known) = name.addresses.iter_mut().find(|known| known.address == heard.address.address) {
            known.expires_ns = known.expires_ns.max(expires_ns);
        } else {
            if name.addresses.len() >= addresses_max {
                let first = name.addresses.iter().enumerate().min_by_key(|(_, one)| one.expires_ns);
                evicted = first.map(|(at, _)| at).map(|at| name.addresses.swap_remove(at));
            }
            name.addresses.push(heard.address);
        }
        let at_bound = evicted.is_some();
        if let Some(evicted) = evicted {
            let key = AddressKey { scope: row.scope, address: evicted.address.into() };
            self.close(key, heard.endpoint, heard.name);
            touched.push(key);
        }
        self.open_row(row, heard, terms) || at_bound
    }

    /// True where another name of the address gave way.
    fn open_row(&mut self, row: AddressKey, heard: Heard<'_>, terms: Set) -> bool {
        let opened = self.rows.entry(row).or_default();
        let same = |opening: &&mut Opening| opening.endpoint == heard.endpoint && opening.name == *heard.name;
        if let Some(opening) = opened.openings.iter_mut().find(same) {
            opening.expires_ns = opening.expires_ns.max(heard.address.expires_ns);
            return false;
        }
        let mut evicted = None;
        if opened.openings.len() >= NAMES_PER_ADDRESS_MAX {
            let first = opened.openings.iter().enumerate().min_by_key(|(_, one)| one.expires_ns);
            evicted = first.map(|(at, _)| at).map(|at| opened.openings.swap_remove(at));
        }
        opened.openings.push(Opening {
            endpoint: heard.endpoint,
            name: heard.name.clone(),
            terms,
            expires_ns: heard.address.expires_ns,
        });
        if let Some(opening) = &evicted {
            self.drop_address(row.address, opening);
        }
        evicted.is_some()
    }

    /// Removes the names that were heard longest ago, down to `names_max`; gives their number.
    pub(crate) fn trim(
        &mut self,
        endpoint: EndpointId,
        names_max: usize,
        scope: u32,
        touched: &mut Vec<AddressKey>,
    ) -> Vec<Fqdn> {
        let mut gone = Vec::new();
        while let Some(known) = self.endpoints.get_mut(&endpoint).filter(|known| known.names.len() > names_max) {
            let Some((name, entry)) = known.names.pop_lru() else { break };
            self.close_all(scope, endpoint, &name, &entry, touched);
            gone.push(name);
        }
        gone
    }

    /// Removes a name; gives the number of its addresses.
    pub(crate) fn forget(
        &mut self,
        endpoint: EndpointId,
        name: &Fqdn,
        scope: u32,
        touched: &mut Vec<AddressKey>,
    ) -> usize {
        let entry = self.endpoints.get_mut(&endpoint).and_then(|known| known.names.pop(name));
        let Some(entry) = entry else { return 0 };
        self.close_all(scope, endpoint, name, &entry, touched);
        entry.addresses.len()
    }

    /// Removes everything that an endpoint learned.
    pub(crate) fn leave(&mut self, endpoint: EndpointId, scope: u32, touched: &mut Vec<AddressKey>) {
        let Some(known) = self.endpoints.remove(&endpoint) else { return };
        for (name, entry) in &known.names {
            self.close_all(scope, endpoint, name, entry, touched);
        }
    }

    fn close_all(&mut self, scope: u32, who: EndpointId, name: &Fqdn, entry: &Name, touched: &mut Vec<AddressKey>) {
        for learned in &entry.addresses {
            let key = AddressKey { scope, address: learned.address.into() };
            self.close(key, who, name);
            touched.push(key);
        }
    }

    fn close(&mut self, row: AddressKey, endpoint: EndpointId, name: &Fqdn) {
        if let Some(opened) = self.rows.get_mut(&row) {
            opened.openings.retain(|opening| opening.endpoint != endpoint || opening.name != *name);
        }
    }

    /// Drops names of the row that ended at least `kept_ns` ago.
    pub(crate) fn collect(&mut self, row: AddressKey, now: u64, kept_ns: u64) {
        let Some(opened) = self.rows.get_mut(&row) else { return };
        let over = |opening: &mut Opening| opening.expires_ns.saturating_add(kept_ns) <= now;
        let gone: Vec<Opening> = opened.openings.extract_if(.., over).collect();
        for opening in &gone {
            self.drop_address(row.address, opening);
        }
    }

    fn drop_address(&mut self, address: Address, opening: &Opening) {
        let Some(known) = self.endpoints.get_mut(&opening.endpoint) else { return };
        let Some(name) = known.names.peek_mut(&opening.name) else { return };
        let ip = address.to_ip();
        name.addresses.retain(|learned| learned.address != ip);
        if name.addresses.is_empty() {
            known.names.pop(&opening.name);
        }
    }

    /// Looks every name up again, after the selectors changed.
    pub(crate) fn rename(&mut self, terms: impl Fn(&Fqdn) -> Set) {
        let mut seen: HashMap<Fqdn, Set> = HashMap::new();
        for known in self.endpoints.values_mut() {
            for (name, entry) in &mut known.names {
                entry.terms = Arc::clone(seen.entry(name.clone()).or_insert_with(|| terms(name)));
            }
        }
        for opening in self.rows.values_mut().flat_map(|opened| &mut opened.openings) {
            if let Some(terms) = seen.get(&opening.name) {
                opening.terms = Arc::clone(terms);
            }
        }
    }

    /// Notes when the row must be looked at again.
    pub(crate) fn schedule(&mut self, row: AddressKey, now: u64) {
        let Some(opened) = self.rows.get_mut(&row) else { return };
        let due = opened.openings.iter().map(|opening| match opening.expires_ns {
            ends if ends > now => ends,
            ended => ended.saturating_add(ENDED_KEPT_NS),
        });
        let Some(due) = due.min() else { return };
        if opened.due_ns.is_none_or(|known| known > due || known <= now) {
            opened.due_ns = Some(due);
            self.due.push(Reverse((due, row)));
        }
    }

    /// The next row that is due at `now`.
    pub(crate) fn pop_due(&mut self, now: u64) -> Option<AddressKey> {
        while let Some(&Reverse((due, row))) = self.due.peek() {
            if due > now {
                return None;
            }
            self.due.pop();
            if let Some(opened) = self.rows.get_mut(&row).filter(|opened| opened.due_ns == Some(due)) {
                opened.due_ns = None;
                return Some(row);
            }
        }
        None
    }

    /// When [`Cache::pop_due`] will have something, at the earliest.
    pub(crate) fn next_due(&self) -> Option<u64> {
        self.due.peek().map(|Reverse((due, _))| *due)
    }
}

impl Opened {
    /// What the row should say from `now` on; nothing where no selector matches a name of it.
    ///
    /// More than [`STEPS_MAX`] ends: the first ones are exact, the last step has what outlives all. Nothing is open longer
    /// than its TTL, and the row is written anew when its first step has ended.
    pub(crate) fn steps(&self, base: &[TermId], now: u64) -> Steps {
        let named = || self.openings.iter().filter(|opening| !opening.terms.is_empty());
        let mut ends: Vec<u64> = named().map(|opening| opening.expires_ns).filter(|ends| *ends > now).collect();
        if ends.is_empty() {
            ends.extend(named().map(|opening| opening.expires_ns).max());
        }
        ends.sort_unstable();
        ends.dedup();
        let mut steps: Steps = Vec::with_capacity(ends.len());
        for end in ends {
            let alive = named().filter(|opening| opening.expires_ns >= end);
            let terms = alive.flat_map(|opening| opening.terms.iter()).chain(base).copied().collect();
            let set = crate::selectors::set(terms);
            match steps.last_mut() {
                Some((last, same)) if *same == set => *last = end,
                _ => steps.push((end, set)),
            }
        }
        if steps.len() > STEPS_MAX {
            steps.drain(STEPS_MAX - 1..steps.len() - 1);
        }
        steps
    }
}
