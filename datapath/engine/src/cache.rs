//! Learned names: who asked what, which addresses came, until when, and the steps that follow for each address.
//!
//! A time to live ends exactly: an answer heard later can move an end back, never forward. Ended names are kept for a
//! while, to explain denials and to judge long connections again.

mod known;
mod opened;

use std::{
    cmp::Reverse,
    collections::{BTreeSet, BinaryHeap, hash_map::Entry},
    net::IpAddr,
    ops::RangeInclusive,
    sync::Arc,
};

use foldhash::HashMap;
use namegate_abi::{Address, AddressKey, AddressValue};
use namegate_config::name::Fqdn;

pub(crate) use known::{Known, Name};
pub(crate) use opened::Opening;

use crate::{
    EndpointId, NameChange,
    feed::NameFeed,
    names::{NameId, Names},
    selectors::TermId,
};

/// How long a name is remembered after its end, in nanoseconds.
pub(crate) const ENDED_KEPT_NS: u64 = 3_600_000_000_000;
/// Names that one endpoint keeps for one address: see [`Opened::victim`].
pub(crate) const NAMES_PER_ADDRESS_MAX: usize = 256;

/// Every learned name.
#[derive(Debug, Default)]
pub(crate) struct Cache {
    pub(crate) names: Names,
    pub(crate) endpoints: HashMap<EndpointId, Known>,
    pub(crate) rows: HashMap<AddressKey, Opened>,
    /// Address and scope of each row.
    places: BTreeSet<(Address, u32)>,
    /// Rows that each endpoint accounts for.
    charges: HashMap<EndpointId, usize>,
    due: BinaryHeap<Reverse<(u64, AddressKey)>>,
    /// What readers beside the engine follow.
    pub(crate) feed: NameFeed,
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
    /// By endpoint, then by name.
    pub(crate) openings: Vec<Opening>,
    /// The row, where there is one.
    pub(crate) value: Option<AddressValue>,
    /// The endpoint that accounts for the row.
    charged: Option<EndpointId>,
    /// When the row is looked at again.
    due_ns: Option<u64>,
}

/// Addresses of one answer: sorted, each once.
pub(crate) type Heard = [(Address, u64)];

/// How many names and bytes one endpoint may keep.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Bounds {
    pub(crate) names: usize,
    pub(crate) bytes: usize,
}

/// Names that gave way to others.
#[derive(Debug, Default)]
pub(crate) struct Trimmed {
    /// At the bound of names.
    pub(crate) of_names: Vec<Fqdn>,
    /// At the bound of bytes.
    pub(crate) of_bytes: Vec<Fqdn>,
}

/// The selectors in force until a moment.
pub(crate) type Steps = Vec<(u64, Vec<TermId>)>;

impl Cache {
    /// Begins to remember an endpoint.
    pub(crate) fn open(&mut self, endpoint: EndpointId, key: &Arc<str>) {
        if let Entry::Vacant(vacant) = self.endpoints.entry(endpoint) {
            vacant.insert(Known::new(Arc::clone(key)));
            self.feed.note(|| NameChange::Arrived { endpoint, key: Arc::clone(key) });
        }
    }

    /// Notes the addresses of a name in the rows of `scope`; true where a bound was reached. Rows that may say something
    /// else now are added to `touched`.
    pub(crate) fn hear(
        &mut self,
        (scope, endpoint): (u32, EndpointId),
        name: NameId,
        (heard, ttl_s, learned_ns): (&Heard, u32, u64),
        addresses_max: usize,
        touched: &mut Vec<AddressKey>,
    ) -> bool {
        let is_plain = self.names.terms(name).is_empty();
        let Some(known) = self.endpoints.get_mut(&endpoint) else { return false };
        let evicted = known.hear(name, is_plain, heard, (ttl_s, learned_ns), addresses_max);
        for address in &evicted {
            let key = AddressKey { scope, address: *address };
            self.close(key, endpoint, name);
            touched.push(key);
        }
        self.note_heard(endpoint, name, heard);
        let mut at_bound = !evicted.is_empty();
        for &(address, expires_ns) in heard {
            let row = AddressKey { scope, address };
            touched.push(row);
            at_bound |= self.open_row(row, Opening { endpoint, name, expires_ns }, learned_ns);
        }
        at_bound
    }

    /// Notes addresses of a name for readers, with the ends that they have by now.
    fn note_heard(&mut self, endpoint: EndpointId, name: NameId, heard: &Heard) {
        let Some(known) = self.endpoints.get(&endpoint) else { return };
        let Some(entry) = known.name(name) else { return };
        for (address, _) in heard {
            let Ok(at) = entry.addresses.binary_search_by_key(address, |(address, _)| *address) else { continue };
            let (address, expires_ns) = entry.addresses[at];
            self.feed.note(|| NameChange::Learned {
                endpoint,
                id: name,
                name: self.names.name(name).clone(),
                address: LearnedAddress { address: address.to_ip(), expires_ns },
                ttl_s: entry.ttl_s,
                learned_ns: entry.learned_ns,
            });
        }
    }

    /// True where another name of the address gave way.
    fn open_row(&mut self, row: AddressKey, opening: Opening, now: u64) -> bool {
        let opened = self.rows.entry(row).or_insert_with(|| {
            self.places.insert((row.address, row.scope));
            Opened::default()
        });
        let at = match opened.find(opening.endpoint, opening.name) {
            Ok(at) => {
                let known = &mut opened.openings[at];
                known.expires_ns = known.expires_ns.max(opening.expires_ns);
                return false;
            }
            Err(at) => at,
        };
        if opened.of_endpoint(opening.endpoint).len() < NAMES_PER_ADDRESS_MAX {
            opened.openings.insert(at, opening);
            return false;
        }
        let gone = match opened.victim(&opening, now, &self.names) {
            Some(victim) => {
                let gone = opened.openings.remove(victim);
                let at = if victim < at { at - 1 } else { at };
                opened.openings.insert(at, opening);
                gone
            }
            // Nothing gives way that would close what is open.
            None => opening,
        };
        self.drop_address(row.address, &gone);
        true
    }

    /// Removes names, down to the bounds: ended ones first, then those that no selector matches, then those that were
    /// heard longest ago.
    pub(crate) fn trim(
        &mut self,
        endpoint: EndpointId,
        bounds: Bounds,
        (scope, now): (u32, u64),
        touched: &mut Vec<AddressKey>,
    ) -> Trimmed {
        let mut trimmed = Trimmed::default();
        while let Some(known) = self.endpoints.get_mut(&endpoint) {
            let is_of_names = known.len() > bounds.names;
            if !is_of_names && known.bytes() <= bounds.bytes {
                break;
            }
            let Some(name) = known.least(now) else { break };
            let gone = self.names.name(name).clone();
            self.forget(endpoint, name, scope, touched);
            if is_of_names { &mut trimmed.of_names } else { &mut trimmed.of_bytes }.push(gone);
        }
        trimmed
    }

    /// Removes a name; gives the number of its addresses.
    pub(crate) fn forget(
        &mut self,
        endpoint: EndpointId,
        name: NameId,
        scope: u32,
        touched: &mut Vec<AddressKey>,
    ) -> usize {
        let gone = self.endpoints.get_mut(&endpoint).and_then(|known| known.remove(name));
        let Some(addresses) = gone else { return 0 };
        for (address, _) in &addresses {
            let key = AddressKey { scope, address: *address };
            self.close(key, endpoint, name);
            touched.push(key);
        }
        self.names.forget(name, endpoint);
        addresses.len()
    }

    /// Removes everything that an endpoint learned.
    pub(crate) fn leave(&mut self, endpoint: EndpointId, scope: u32, touched: &mut Vec<AddressKey>) {
        while let Some(name) = self.name_of(endpoint) {
            self.forget(endpoint, name, scope, touched);
        }
        self.forget_endpoint(endpoint);
    }

    /// Forgets an endpoint that knows no name.
    pub(crate) fn forget_endpoint(&mut self, endpoint: EndpointId) {
        if self.endpoints.remove(&endpoint).is_some() {
            self.feed.note(|| NameChange::Left { endpoint });
        }
    }

    /// A name that an endpoint knows.
    pub(crate) fn name_of(&self, endpoint: EndpointId) -> Option<NameId> {
        self.endpoints.get(&endpoint)?.names().next().map(|(name, _)| name)
    }

    fn close(&mut self, row: AddressKey, endpoint: EndpointId, name: NameId) {
        self.note_closed(endpoint, name, row.address);
        if let Some(opened) = self.rows.get_mut(&row)
            && let Ok(at) = opened.find(endpoint, name)
        {
            opened.openings.remove(at);
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

    fn note_closed(&mut self, endpoint: EndpointId, name: NameId, address: Address) {
        self.feed.note(|| NameChange::Closed { endpoint, id: name, address: address.to_ip() });
    }

    fn drop_address(&mut self, address: Address, opening: &Opening) {
        self.note_closed(opening.endpoint, opening.name, address);
        let Some(known) = self.endpoints.get_mut(&opening.endpoint) else { return };
        if known.drop_address(opening.name, address) {
            self.names.forget(opening.name, opening.endpoint);
        }
    }

    /// Notes the selectors that match a name now. Rows that may say something else are added to `touched`; `scope` gives
    /// that of an endpoint.
    pub(crate) fn set_terms(
        &mut self,
        name: NameId,
        terms: Vec<TermId>,
        scope: impl Fn(EndpointId) -> u32,
        touched: &mut impl Extend<AddressKey>,
    ) {
        let is_plain = terms.is_empty();
        if !self.names.set_terms(name, terms) {
            return;
        }
        for endpoint in self.names.endpoints(name) {
            let Some(known) = self.endpoints.get_mut(endpoint) else { continue };
            known.set_plain(name, is_plain);
            let scope = scope(*endpoint);
            touched.extend(known.addresses(name).iter().map(|(address, _)| AddressKey { scope, address: *address }));
        }
    }

    /// Rows of the addresses in a range.
    pub(crate) fn rows_in(&self, range: RangeInclusive<Address>) -> Vec<AddressKey> {
        let rows = self.places.range((*range.start(), 0)..=(*range.end(), u32::MAX));
        rows.map(|&(address, scope)| AddressKey { scope, address }).collect()
    }

    /// Rows in which an endpoint has a name.
    pub(crate) fn rows_of(&self, endpoint: EndpointId, scope: u32) -> Vec<AddressKey> {
        let names = self.endpoints.get(&endpoint).into_iter().flat_map(Known::names);
        let addresses = names.flat_map(|(_, name)| &name.addresses);
        let mut rows: Vec<AddressKey> = addresses.map(|(address, _)| AddressKey { scope, address: *address }).collect();
        rows.sort_unstable();
        rows.dedup();
        rows
    }

    /// Notes what the row says, and when it must be looked at again. One that no name has opened is forgotten.
    pub(crate) fn settle(&mut self, row: AddressKey, value: Option<AddressValue>, now: u64) {
        let Some(opened) = self.rows.get_mut(&row) else { return };
        opened.value = value;
        let due = opened.openings.iter().map(|opening| match opening.expires_ns {
            ends if ends > now => ends,
            ended => ended.saturating_add(ENDED_KEPT_NS),
        });
        let Some(due) = due.min() else {
            self.rows.remove(&row);
            self.places.remove(&(row.address, row.scope));
            return;
        };
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
