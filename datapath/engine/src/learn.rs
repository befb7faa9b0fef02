//! Answers into address rows, and their end: what costs time per answer depends on its addresses alone.

use std::net::IpAddr;

use namegate_abi::{Address, AddressKey, AddressValue, STEPS_MAX, Step};
use namegate_config::{name::Fqdn, settings::PrivateAnswers};

use crate::{
    Answer, EndpointId, Engine, Key, LedgerEntry, MapOp, Row,
    cache::{ENDED_KEPT_NS, Heard, LearnedAddress, Steps},
    selectors::{TermId, set},
};

const SECOND_NS: u64 = 1_000_000_000;

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
        let key = std::sync::Arc::clone(&known.key);
        let noted = self.wanted_addresses(answer, now);
        if noted.is_empty() {
            return Ok(());
        }
        let max = usize::try_from(self.settings.dns.addresses_per_name_max).unwrap_or(usize::MAX);
        if noted.len() > max {
            self.refuse_of("dns.addressesPerNameMax", answer.endpoint);
            let is_open = noted.iter().all(|&(address, _, ends)| self.is_open(answer, address, ends.saturating_sub(1)));
            return if is_open { Ok(()) } else { Err(NotOpen::TooMany) };
        }
        let mut touched = Vec::with_capacity(noted.len());
        let beside: Vec<IpAddr> = noted.iter().map(|(address, ..)| *address).collect();
        for &(address, ttl_s, expires_ns) in &noted {
            let address = LearnedAddress { address, expires_ns };
            for name in &answer.names {
                let heard = Heard { endpoint: answer.endpoint, name, address, ttl_s, learned_ns: now, beside: &beside };
                self.note(heard, &mut touched);
            }
        }
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
        let is_open = noted.iter().all(|&(address, ..)| self.is_open(answer, address, now));
        if is_open {
            let names = answer.names.iter().map(|name| name.as_str().into()).collect();
            self.ledger.push(LedgerEntry::Learned { endpoint: key, names, addresses: noted, learned_ns: now });
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
    fn is_open(&mut self, answer: &Answer, address: IpAddr, at: u64) -> bool {
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
        proper.extend(answer.names.iter().flat_map(|name| self.terms.of_name(name)));
        let proper = set(proper);
        if proper.iter().all(|term| actual.binary_search(term).is_ok()) {
            return true;
        }
        let compiled = self.policies.get_mut(&local.policy);
        compiled.is_none_or(|compiled| !compiled.is_narrowed(&proper, &actual, &self.terms))
    }

    /// Whether an answer may open the address at all.
    fn may_open(&mut self, address: IpAddr) -> bool {
        let place = Address::from(address);
        if self.peers.owners.contains_key(&place) || self.peers.fronts.contains_key(&place) {
            self.refuse("answers with addresses of pods and nodes");
            return false;
        }
        if self.settings.dns.private_answers == PrivateAnswers::Deny && is_private(address) {
            self.refuse("dns.privateAnswers");
            return false;
        }
        true
    }

    /// Notes one name and address in the cache.
    pub(crate) fn note(&mut self, heard: Heard<'_>, touched: &mut Vec<AddressKey>) {
        let row = AddressKey { scope: self.scope(heard.endpoint), address: heard.address.address.into() };
        let max = usize::try_from(self.settings.dns.addresses_per_name_max).unwrap_or(usize::MAX);
        let terms = || set(self.terms.of_name(heard.name)).into();
        if self.cache.hear(row, heard, max, terms, touched) {
            self.refuse_of("dns.addressesPerNameMax", heard.endpoint);
        }
        touched.push(row);
    }

    /// Brings an endpoint back to the bound of names.
    pub(crate) fn trim(&mut self, endpoint: EndpointId, now: u64, touched: &mut Vec<AddressKey>) {
        let max = usize::try_from(self.settings.dns.names_per_endpoint_max).unwrap_or(usize::MAX);
        let gone = self.cache.trim(endpoint, max, (self.scope(endpoint), now), touched);
        let key = self.cache.endpoints.get(&endpoint).map(|known| std::sync::Arc::clone(&known.key));
        for (name, key) in gone.iter().zip(std::iter::repeat(key)) {
            self.refuse_of("dns.namesPerEndpointMax", endpoint);
            if let Some(endpoint) = key {
                self.ledger.push(LedgerEntry::Forgotten { endpoint, name: name.as_str().into() });
            }
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
            forgotten.addresses += self.cache.forget(endpoint, &name, self.scope(endpoint), &mut touched);
            if let Some(known) = self.cache.endpoints.get(&endpoint) {
                let endpoint = std::sync::Arc::clone(&known.key);
                self.ledger.push(LedgerEntry::Forgotten { endpoint, name: name.as_str().into() });
            }
        }
        for row in touched {
            self.rewrite(row, now, &mut ops);
        }
        self.sweep(&mut ops);
        self.retry.note(&ops);
        (forgotten, ops)
    }

    /// Writes rows anew whose steps have ended, and collects what ended long ago.
    pub fn tick(&mut self, now: u64) -> Vec<MapOp> {
        let mut ops = Vec::new();
        self.settle_doubts(0, &mut ops);
        while let Some(row) = self.cache.pop_due(now) {
            if self.is_crowded(row) {
                self.cache.collect(row, now, 0);
            }
            self.rewrite(row, now, &mut ops);
        }
        self.sweep(&mut ops);
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
    fn address_share(&self) -> usize {
        usize::try_from(self.settings.limits.endpoint_addresses()).unwrap_or(usize::MAX)
    }

    /// When [`Engine::tick`] has something to do, in nanoseconds of `CLOCK_BOOTTIME`.
    pub fn next_tick(&self) -> Option<u64> {
        if self.unsure && self.ready {
            return Some(0);
        }
        self.cache.next_due().into_iter().chain(self.retry_due()).min()
    }

    /// Tries to open the learned addresses that found no room.
    pub(crate) fn reopen(&mut self, now: u64, ops: &mut Vec<MapOp>) {
        for row in self.unopened.clone() {
            self.rewrite(row, now, ops);
        }
    }

    /// Learned names with the addresses for which `keep` holds.
    pub(crate) fn every_lookup(&self, keep: impl Fn(&LearnedAddress) -> bool) -> impl Iterator<Item = Lookup<'_>> {
        self.cache.endpoints.iter().flat_map(|(id, known)| known.names.iter().map(move |entry| (id, known, entry))).map(
            move |(id, known, (name, entry))| Lookup {
                endpoint: *id,
                endpoint_key: &known.key,
                name,
                addresses: entry.addresses.iter().filter(|address| keep(address)).copied().collect(),
                ttl_s: entry.ttl_s,
                learned_ns: entry.learned_ns,
            },
        )
    }

    /// Makes the row of a learned address say what its names say.
    pub(crate) fn rewrite(&mut self, row: AddressKey, now: u64, ops: &mut Vec<MapOp>) {
        self.cache.collect(row, now, ENDED_KEPT_NS);
        let was_withheld = self.withheld.remove(&row);
        self.unopened.remove(&row);
        let Some(opened) = self.cache.rows.get(&row) else { return };
        let old = opened.value;
        let base = self.outside(row.address.to_ip());
        let steps = if self.hidden.contains(&row.address) { Steps::new() } else { opened.steps(&base, now) };
        let lives = steps.last().is_some_and(|(ends, _)| *ends > now);
        let (value, is_whole) = self.value_of(row.scope, steps, &base, old, ops);
        let written = value.filter(|value| self.open(row, *value, ops));
        if written.is_none() {
            self.release(value);
            self.mirror.delete(Key::Address(row), ops);
            self.cache.uncharge(row);
        }
        self.release(old);
        self.set_value(row, written);
        if lives && !(is_whole && written.is_some()) {
            self.unopened.insert(row);
            if was_withheld {
                self.withheld.insert(row);
            }
        }
        if self.cache.rows.get(&row).is_some_and(|opened| opened.openings.is_empty()) {
            self.cache.rows.remove(&row);
        }
        self.cache.schedule(row, now);
    }

    /// Writes a row, where the map and the share of an endpoint have room.
    fn open(&mut self, row: AddressKey, value: AddressValue, ops: &mut Vec<MapOp>) -> bool {
        // An endpoint has at most as much as it leaves free: others find room whatever it does.
        let share = self.address_share().min(self.mirror.free_for_learned());
        if let Err(endpoint) = self.cache.charge(row, share) {
            if let Some(endpoint) = endpoint {
                self.refuse_of("limits.addressesPerEndpoint", endpoint);
            }
            return false;
        }
        self.mirror.put(Row::Address(row, value), ops)
    }

    fn set_value(&mut self, row: AddressKey, value: Option<AddressValue>) {
        if let Some(opened) = self.cache.rows.get_mut(&row) {
            opened.value = value;
        }
    }

    /// The row of these steps, and whether it says all of them. Where an identity finds no room, the step keeps one that the
    /// row has already and that opens less; without such a one nothing is opened.
    fn value_of(
        &mut self,
        scope: u32,
        steps: Steps,
        base: &[TermId],
        old: Option<AddressValue>,
        ops: &mut Vec<MapOp>,
    ) -> (Option<AddressValue>, bool) {
        let mut is_whole = true;
        if steps.is_empty() {
            return (None, is_whole);
        }
        let mut value = AddressValue { steps: [Step::default(); STEPS_MAX], endpoint: 0, flags: 0 };
        for (step, (expires_ns, terms)) in value.steps.iter_mut().zip(steps) {
            let found = self.acquire(&terms, scope, ops).or_else(|| {
                is_whole = false;
                self.part_of(&terms, base, old)
            });
            let Some(identity) = found else {
                self.release(Some(value));
                return (None, false);
            };
            *step = Step { expires_ns, identity, spare: 0 };
        }
        (Some(value), is_whole)
    }

    /// An identity of the row that stands for fewer names of the same address.
    fn part_of(&mut self, terms: &[TermId], base: &[TermId], old: Option<AddressValue>) -> Option<u32> {
        let is_part = |part: &[TermId], whole: &[TermId]| part.iter().all(|term| whole.binary_search(term).is_ok());
        let sets = old.iter().flat_map(|value| &value.steps).filter_map(|step| self.identities.set_of(step.identity));
        let fitting = sets.filter(|set| is_part(set, terms) && is_part(base, set));
        let best = fitting.max_by_key(|set| set.len()).map(std::sync::Arc::clone)?;
        self.identities.reuse(&best)
    }

    /// Ends the use of the identities of a row.
    pub(crate) fn release(&mut self, value: Option<AddressValue>) {
        for step in value.iter().flat_map(|value| &value.steps) {
            self.identities.release(step.identity);
        }
    }

    /// What matches an address outside the cluster whose name nobody asked.
    pub(crate) fn outside(&self, address: IpAddr) -> Vec<u32> {
        let mut terms = self.terms.of_address(address, true);
        terms.extend(self.identities.world().iter());
        set(terms)
    }
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
