//! Answers into address rows, and their end: what costs time per answer depends on its addresses alone.

use std::{net::IpAddr, ops::Bound, sync::Arc};

use namegate_abi::{Address, AddressKey, AddressValue};
use namegate_config::{name::Fqdn, settings::PrivateAnswers};

use crate::{
    Answer, EndpointId, Engine, LedgerEntry, MapOp,
    cache::{Bounds, Heard, LearnedAddress},
    engine::Local,
    selectors::{Set, TermId, set},
};

const SECOND_NS: u64 = 1_000_000_000;
/// Rows that one tick writes anew.
pub(crate) const ROWS_AT_ONCE: usize = 512;

/// A name that an endpoint learned.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lookup<'a> {
    /// The endpoint.
    pub endpoint: EndpointId,
    /// Its `namespace/name`.
    pub endpoint_key: &'a str,
    /// The name.
    pub name: &'a Fqdn,
    /// Its addresses.
    pub addresses: Vec<LearnedAddress>,
    /// TTL of the last answer in seconds, within the bounds of the settings.
    pub ttl_s: u32,
    /// When the last answer came, in nanoseconds of `CLOCK_BOOTTIME`.
    pub learned_ns: u64,
}

/// Why the addresses of an answer are not open, or not all of them. They are opened once there is room.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NotOpen {
    /// Nobody has the endpoint's number any more.
    #[error("the endpoint is not known any more")]
    Unknown,
    /// The answer has more addresses than a name may have.
    #[error("the answer has more addresses than `dns.addressesPerNameMax` allows")]
    TooMany,
    /// A map, or the endpoint's share of it, is full; or the endpoint is closed.
    #[error("there is no room for the addresses of the answer")]
    NoRoom,
}

/// What [`Engine::forget`] removed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Forgotten {
    /// Names of endpoints.
    pub names: usize,
    /// Addresses of these names.
    pub addresses: usize,
}

impl Engine {
    /// Takes one answer and appends the writes that open its addresses. After them the client may have it; not where this
    /// is an error: some of its addresses stay closed.
    pub fn learn(&mut self, answer: &Answer, now: u64, ops: &mut Vec<MapOp>) -> Result<(), NotOpen> {
        self.settle_doubts(ops.len(), ops);
        let Some(known) = self.cache.endpoints.get(&answer.endpoint) else {
            self.refuse("answers of unknown endpoints");
            return Err(NotOpen::Unknown);
        };
        let key = Arc::clone(&known.key);
        let noted = self.wanted_addresses(answer, now);
        if noted.is_empty() {
            return Ok(());
        }
        let max = usize::try_from(self.settings.dns.addresses_per_name_max).unwrap_or(usize::MAX);
        if noted.len() > max {
            self.refuse_of("dns.addressesPerNameMax", answer.endpoint);
            let named = self.terms_of(answer);
            let is_open =
                noted.iter().all(|&(address, _, ends)| self.is_open(answer, &named, address, ends.saturating_sub(1)));
            return if is_open { Ok(()) } else { Err(NotOpen::TooMany) };
        }
        let mut touched = Vec::with_capacity(noted.len());
        let ttl_s = noted.last().map_or(0, |(_, ttl_s, _)| *ttl_s);
        let heard = heard_of(&noted);
        let mut named = Vec::new();
        for name in &answer.names {
            let terms = self.note(answer.endpoint, name, (&heard, ttl_s, now), &mut touched);
            named.extend(terms.iter().flat_map(|terms| terms.iter()));
        }
        let named = set(named);
        self.trim(answer.endpoint, now, &mut touched);
        touched.sort_unstable();
        touched.dedup();
        for row in touched {
            let was_closed = self.cache.rows.get(&row).is_none_or(|opened| opened.value.is_none());
            let was_known = self.unopened.contains(&row) && !self.withheld.contains(&row);
            self.rewrite(row, now, ops);
            if was_closed && !was_known && self.unopened.contains(&row) {
                self.withheld.insert(row);
            }
        }
        let is_open = noted.iter().all(|&(address, ..)| {
            self.stands_open(answer.endpoint, &named, address, now) || self.is_open(answer, &named, address, now)
        });
        if is_open {
            let asked = answer.names.iter().map(|name| name.as_str().into()).collect();
            let entry = LedgerEntry::Learned { endpoint: key, names: asked, addresses: noted, learned_ns: now };
            self.ledger.push(entry);
        }
        if !self.unopened.is_empty() && self.retry_due().is_none() {
            self.plan_retry(now);
        }
        if is_open { Ok(()) } else { Err(NotOpen::NoRoom) }
    }

    /// Addresses that the answer may open, with their TTL within the bounds of the settings, and its end.
    fn wanted_addresses(&mut self, answer: &Answer, now: u64) -> Vec<(IpAddr, u32, u64)> {
        let mut wanted = Vec::with_capacity(answer.addresses.len());
        for &(address, ttl_s) in &answer.addresses {
            let address = address.to_canonical();
            if self.may_open(address) {
                let ttl_s = ttl_s.max(self.settings.dns.min_ttl_s).min(self.settings.dns.max_ttl_s);
                let expires_ns = now.saturating_add(u64::from(ttl_s).saturating_mul(SECOND_NS));
                wanted.push((address, ttl_s, expires_ns));
            }
        }
        wanted
    }

    /// Whether an address is as open for the endpoint as the names of the answer make it.
    fn is_open(&mut self, answer: &Answer, named: &[TermId], address: IpAddr, at: u64) -> bool {
        let Some(local) = self.local.get(&answer.endpoint) else { return true };
        if self.settings.audit || local.policy == 0 {
            return true;
        }
        if local.is_shut() {
            return false;
        }
        let row = AddressKey { scope: self.scope(answer.endpoint), address: address.into() };
        let actual = self.learned_set(row, at);
        let mut proper = self.outside(address);
        proper.extend(named);
        let proper = set(proper);
        if proper.iter().all(|term| actual.binary_search(term).is_ok()) {
            return true;
        }
        let compiled = self.policies.get_mut(&local.policy);
        compiled.is_none_or(|compiled| !compiled.is_narrowed(&proper, &actual, &self.terms))
    }

    /// Selectors that match a name of the answer.
    fn terms_of(&self, answer: &Answer) -> Vec<TermId> {
        set(answer.names.iter().flat_map(|name| self.terms.of_name(name)).collect())
    }

    /// Whether an answer may open the address at all.
    fn may_open(&mut self, address: IpAddr) -> bool {
        let place = Address::from(address);
        if self.peers.has(place) {
            self.refuse("answers with addresses of pods and nodes");
            return false;
        }
        if self.settings.dns.private_answers == PrivateAnswers::Deny && is_private(address) {
            self.refuse("dns.privateAnswers");
            return false;
        }
        true
    }

    /// Whether the row of an address that was just heard says all of its names, or none of them opens anything. Quicker than
    /// [`Engine::is_open`].
    fn stands_open(&self, endpoint: EndpointId, named: &[TermId], address: IpAddr, now: u64) -> bool {
        let is_shut = self.local.get(&endpoint).is_none_or(Local::is_shut);
        if is_shut || self.doubt.is_some() {
            return false;
        }
        let row = AddressKey { scope: self.scope(endpoint), address: address.into() };
        let value = || self.cache.rows.get(&row).and_then(|opened| opened.value);
        let is_live = |value: AddressValue| value.steps.iter().any(|step| step.expires_ns > now);
        named.is_empty() || (!self.unopened.contains(&row) && value().is_some_and(is_live))
    }

    /// Notes the addresses of one name in the cache. Gives the selectors that match it; none where the endpoint is not known.
    pub(crate) fn note(
        &mut self,
        endpoint: EndpointId,
        name: &Fqdn,
        heard: (&Heard, u32, u64),
        touched: &mut Vec<AddressKey>,
    ) -> Option<Set> {
        if !self.cache.endpoints.contains_key(&endpoint) {
            return None;
        }
        let max = usize::try_from(self.settings.dns.addresses_per_name_max).unwrap_or(usize::MAX);
        let scope = self.scope(endpoint);
        let name = self.cache.names.know(name, endpoint, || self.terms.of_name(name));
        let terms = Arc::clone(self.cache.names.terms(name));
        if self.cache.hear((scope, endpoint), name, heard, max, touched) {
            self.refuse_of("dns.addressesPerNameMax", endpoint);
        }
        Some(terms)
    }

    /// Brings an endpoint back to its bounds.
    pub(crate) fn trim(&mut self, endpoint: EndpointId, now: u64, touched: &mut Vec<AddressKey>) {
        let bounds = Bounds {
            names: usize::try_from(self.settings.dns.names_per_endpoint_max).unwrap_or(usize::MAX),
            bytes: usize::try_from(self.settings.limits.learned_bytes_per_endpoint).unwrap_or(usize::MAX),
        };
        let trimmed = self.cache.trim(endpoint, bounds, (self.scope(endpoint), now), touched);
        let Some(key) = self.cache.endpoints.get(&endpoint).map(|known| Arc::clone(&known.key)) else { return };
        let of_names = trimmed.of_names.iter().map(|name| ("dns.namesPerEndpointMax", name));
        let of_bytes = trimmed.of_bytes.iter().map(|name| ("limits.learnedBytesPerEndpoint", name));
        for (setting, name) in of_names.chain(of_bytes) {
            self.refuse_of(setting, endpoint);
            self.ledger.push(LedgerEntry::Forgotten { endpoint: Arc::clone(&key), name: name.as_str().into() });
        }
    }

    /// Forgets the names that `wanted` picks, and closes what only they had opened. Flows under way live on.
    pub fn forget(&mut self, wanted: &dyn Fn(&Lookup<'_>) -> bool, now: u64) -> (Forgotten, Vec<MapOp>) {
        let mut ops = Vec::new();
        self.settle_doubts(0, &mut ops);
        let all = self.every_lookup(|_| true);
        let picked: Vec<(EndpointId, Fqdn)> =
            all.filter(wanted).map(|lookup| (lookup.endpoint, lookup.name.clone())).collect();
        let mut forgotten = Forgotten { names: picked.len(), addresses: 0 };
        let mut touched = Vec::new();
        for (endpoint, name) in picked {
            let Some(id) = self.cache.names.get(&name) else { continue };
            forgotten.addresses += self.cache.forget(endpoint, id, self.scope(endpoint), &mut touched);
            if let Some(known) = self.cache.endpoints.get(&endpoint) {
                let endpoint = Arc::clone(&known.key);
                self.ledger.push(LedgerEntry::Forgotten { endpoint, name: name.as_str().into() });
            }
        }
        for row in touched {
            self.rewrite(row, now, &mut ops);
        }
        self.sweep(ROWS_AT_ONCE, &mut ops);
        self.retry.note(&ops);
        (forgotten, ops)
    }

    /// Writes rows anew whose steps have ended, and collects what ended long ago: some of them, where many have.
    /// [`Engine::next_tick`] is in the past then.
    pub fn tick(&mut self, now: u64) -> Vec<MapOp> {
        let mut ops = Vec::new();
        self.settle_doubts(0, &mut ops);
        for _ in 0..ROWS_AT_ONCE {
            let Some(row) = self.cache.pop_due(now) else { break };
            if self.is_crowded(row) {
                self.cache.collect(row, now, 0);
            }
            self.rewrite(row, now, &mut ops);
        }
        self.sweep(ROWS_AT_ONCE, &mut ops);
        self.retry.note(&ops);
        self.try_again(now, &mut ops);
        ops
    }

    /// Whether ended names of a row are forgotten at once: the map, or the share of who opened it, is half full.
    fn is_crowded(&self, row: AddressKey) -> bool {
        let (rows, size) = self.mirror.address_rows();
        let share = self.address_share();
        let openings = self.cache.rows.get(&row).into_iter().flat_map(|opened| &opened.openings);
        rows > size / 2 || openings.into_iter().any(|opening| self.cache.charged(opening.endpoint) > share / 2)
    }

    /// Learned addresses that one endpoint may have.
    pub(crate) fn address_share(&self) -> usize {
        usize::try_from(self.settings.limits.endpoint_addresses()).unwrap_or(usize::MAX)
    }

    /// When [`Engine::tick`] has something to do, in nanoseconds of `CLOCK_BOOTTIME`.
    pub fn next_tick(&self) -> Option<u64> {
        if self.unsure && self.ready {
            return Some(0);
        }
        self.cache.next_due().into_iter().chain(self.retry_due()).min()
    }

    /// Tries to open learned addresses that found no room; true where these were all.
    pub(crate) fn reopen(&mut self, now: u64, ops: &mut Vec<MapOp>) -> bool {
        let from = self.reopened.take().map_or(Bound::Unbounded, Bound::Excluded);
        let some: Vec<AddressKey> = self.unopened.range((from, Bound::Unbounded)).take(ROWS_AT_ONCE).copied().collect();
        for row in &some {
            self.rewrite(*row, now, ops);
        }
        self.reopened = some.get(ROWS_AT_ONCE - 1).copied();
        self.reopened.is_none()
    }

    /// Learned names with the addresses for which `keep` holds.
    pub(crate) fn every_lookup(&self, keep: impl Fn(&LearnedAddress) -> bool) -> impl Iterator<Item = Lookup<'_>> {
        let names = self.cache.endpoints.iter().flat_map(|(id, known)| known.names().map(move |one| (id, known, one)));
        let address = |&(address, expires_ns): &(Address, u64)| LearnedAddress { address: address.to_ip(), expires_ns };
        names.map(move |(id, known, (name, entry))| Lookup {
            endpoint: *id,
            endpoint_key: &known.key,
            name: self.cache.names.name(name),
            addresses: entry.addresses.iter().map(address).filter(|address| keep(address)).collect(),
            ttl_s: entry.ttl_s,
            learned_ns: entry.learned_ns,
        })
    }
}

/// Addresses and their ends, sorted, each once.
pub(crate) fn heard_of(noted: &[(IpAddr, u32, u64)]) -> Vec<(Address, u64)> {
    let mut heard: Vec<(Address, u64)> =
        noted.iter().map(|&(address, _, expires_ns)| (address.to_canonical().into(), expires_ns)).collect();
    heard.sort_unstable_by_key(|(address, expires_ns)| (*address, std::cmp::Reverse(*expires_ns)));
    heard.dedup_by_key(|(address, _)| *address);
    heard
}

/// RFC 1918, RFC 6598 and RFC 4193.
fn is_private(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(v4) => v4.is_private() || (v4.octets()[0] == 100 && v4.octets()[1] & 0xc0 == 64),
        IpAddr::V6(v6) => v6.is_unique_local(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn private_space_is_told_by_its_prefixes() {
        for (text, want) in [
            ("10.0.0.1", true),
            ("172.31.255.255", true),
            ("172.32.0.0", false),
            ("192.168.0.1", true),
            ("100.64.0.1", true),
            ("100.128.0.1", false),
            ("fd00::1", true),
            ("fe80::1", false),
            ("192.0.2.1", false),
        ] {
            assert_eq!(is_private(text.parse().unwrap()), want, "{text}");
        }
    }
}
