//! Learned names: who asked what, which addresses came, until when, and the steps that follow for each address.
//!
//! A time to live ends exactly: an answer heard later can move an end back, never forward. Ended names are kept for a
//! while, to explain denials and to judge long connections again.

mod opened;

use std::{
    cmp::Reverse,
    collections::{BinaryHeap, HashMap},
    net::IpAddr,
    sync::Arc,
};

use lru::LruCache;
use namegate_abi::{Address, AddressKey, AddressValue};
use namegate_config::name::Fqdn;

use crate::{
    EndpointId,
    selectors::{Set, TermId},
};

/// How long a name is remembered after its end, in nanoseconds.
pub(crate) const ENDED_KEPT_NS: u64 = 3_600_000_000_000;
/// Names that one endpoint keeps for one address: see [`Opened::victim`].
pub(crate) const NAMES_PER_ADDRESS_MAX: usize = 256;
/// How often the names of an endpoint at its bound are searched for ended ones.
const SEARCH_NS: u64 = 1_000_000_000;

/// Every learned name.
#[derive(Debug, Default)]
pub(crate) struct Cache {
    pub(crate) endpoints: HashMap<EndpointId, Known>,
    pub(crate) rows: HashMap<AddressKey, Opened>,
    /// Rows that each endpoint accounts for.
    charges: HashMap<EndpointId, usize>,
    due: BinaryHeap<Reverse<(u64, AddressKey)>>,
}

/// What one endpoint learned.
#[derive(Debug)]
pub(crate) struct Known {
    /// `namespace/name`.
    pub(crate) key: Arc<str>,
    pub(crate) names: LruCache<Fqdn, Name>,
    /// Those of them that no selector matches, in the same order.
    plain: LruCache<Fqdn, ()>,
    /// When ended names were searched for.
    searched_ns: u64,
}

impl Known {
    fn remove(&mut self, name: &Fqdn) -> Option<Name> {
        self.plain.pop(name);
        self.names.pop(name)
    }

    /// Removes what is worth least: a name that no selector matches before one that a selector matches, and of these the
    /// one that was heard longest ago.
    fn remove_least(&mut self) -> Option<(Fqdn, Name)> {
        match self.plain.pop_lru() {
            Some((name, ())) => self.names.pop(&name).map(|entry| (name, entry)),
            None => self.names.pop_lru(),
        }
    }

    /// Removes the names whose last address has ended. At most once in a while: it takes time for each name.
    fn remove_ended(&mut self, now: u64) -> Vec<(Fqdn, Name)> {
        if now.saturating_sub(self.searched_ns) < SEARCH_NS {
            return Vec::new();
        }
        self.searched_ns = now;
        let is_over = |entry: &Name| entry.addresses.iter().all(|learned| learned.expires_ns <= now);
        let ended: Vec<Fqdn> =
            self.names.iter().filter(|(_, entry)| is_over(entry)).map(|(name, _)| name.clone()).collect();
        ended.into_iter().filter_map(|name| self.remove(&name).map(|entry| (name, entry))).collect()
    }
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
    /// The endpoint that accounts for the row.
    charged: Option<EndpointId>,
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
    /// Addresses of the same answer: none of them gives way to another.
    pub(crate) beside: &'a [IpAddr],
}

/// The selectors in force until a moment.
pub(crate) type Steps = Vec<(u64, Vec<TermId>)>;

impl Cache {
    /// Begins to remember an endpoint.
    pub(crate) fn open(&mut self, endpoint: EndpointId, key: &Arc<str>) {
        let known = || Known {
            key: Arc::clone(key),
            names: LruCache::unbounded(),
            plain: LruCache::unbounded(),
            searched_ns: 0,
        };
        self.endpoints.entry(endpoint).or_insert_with(known);
    }

    /// Notes an address of a name in `row`; true where a bound was reached. Rows that lost a name to a bound are added to
    /// `touched`.
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
        if terms.is_empty() {
            known.plain.put(heard.name.clone(), ());
        }
        let mut evicted = None;
        if let Some(known) = name.addresses.iter_mut().find(|known| known.address == heard.address.address) {
            known.expires_ns = known.expires_ns.max(expires_ns);
        } else {
            if name.addresses.len() >= addresses_max {
                let others = name.addresses.iter().enumerate().filter(|(_, one)| !heard.beside.contains(&one.address));
                let Some((first, _)) = others.min_by_key(|(_, one)| one.expires_ns) else { return true };
                evicted = Some(name.addresses.swap_remove(first));
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
        let opening =
            Opening { endpoint: heard.endpoint, name: heard.name.clone(), terms, expires_ns: heard.address.expires_ns };
        let own = opened.openings.iter().filter(|opening| opening.endpoint == heard.endpoint).count();
        if own < NAMES_PER_ADDRESS_MAX {
            opened.openings.push(opening);
            return false;
        }
        let gone = match opened.victim(&opening, heard.learned_ns) {
            Some(at) => std::mem::replace(&mut opened.openings[at], opening),
            // Nothing gives way that would close what is open.
            None => opening,
        };
        self.drop_address(row.address, &gone);
        true
    }

    /// Removes names, down to `names_max`: ended ones first, then those that no selector matches, then those that were
    /// heard longest ago.
    pub(crate) fn trim(
        &mut self,
        endpoint: EndpointId,
        names_max: usize,
        (scope, now): (u32, u64),
        touched: &mut Vec<AddressKey>,
    ) -> Vec<Fqdn> {
        let mut gone = Vec::new();
        let Some(known) = self.endpoints.get_mut(&endpoint) else { return Vec::new() };
        if known.names.len() > names_max {
            gone = known.remove_ended(now);
        }
        while known.names.len() > names_max {
            gone.extend(known.remove_least());
        }
        for (name, entry) in &gone {
            self.close_all(scope, endpoint, name, entry, touched);
        }
        gone.into_iter().map(|(name, _)| name).collect()
    }

    /// Removes a name; gives the number of its addresses.
    pub(crate) fn forget(
        &mut self,
        endpoint: EndpointId,
        name: &Fqdn,
        scope: u32,
        touched: &mut Vec<AddressKey>,
    ) -> usize {
        let entry = self.endpoints.get_mut(&endpoint).and_then(|known| known.remove(name));
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
            known.remove(&opening.name);
        }
    }

    /// Looks every name up again, after the selectors changed.
    pub(crate) fn rename(&mut self, terms: impl Fn(&Fqdn) -> Set) {
        let mut seen: HashMap<Fqdn, Set> = HashMap::new();
        for known in self.endpoints.values_mut() {
            for (name, entry) in &mut known.names {
                entry.terms = Arc::clone(seen.entry(name.clone()).or_insert_with(|| terms(name)));
            }
            known.plain.clear();
            for (name, _) in known.names.iter().rev().filter(|(_, entry)| entry.terms.is_empty()) {
                known.plain.put(name.clone(), ());
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
