//! Answers into address rows, and their end: what costs time per answer depends on its addresses alone.

use std::net::IpAddr;

use namegate_abi::{Address, AddressKey, AddressValue, STEPS_MAX, Step};
use namegate_config::{name::Fqdn, settings::PrivateAnswers};

use crate::{
    Answer, EndpointId, Engine, Key, LedgerEntry, MapOp, Row,
    cache::{ENDED_KEPT_NS, Heard, LearnedAddress, Steps},
    selectors::set,
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

/// What [`Engine::forget`] removed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Forgotten {
    /// Names of endpoints.
    pub names: usize,
    /// Addresses of these names.
    pub addresses: usize,
}

impl Engine {
    /// Takes one answer and appends the writes that open its addresses. After them the client may have it.
    pub fn learn(&mut self, answer: &Answer, now: u64, ops: &mut Vec<MapOp>) {
        self.settle_doubts(ops.len(), ops);
        let Some(known) = self.cache.endpoints.get(&answer.endpoint) else {
            self.refuse("answers of unknown endpoints");
            return;
        };
        let key = std::sync::Arc::clone(&known.key);
        let mut touched = Vec::with_capacity(answer.addresses.len());
        let mut noted = Vec::with_capacity(answer.addresses.len());
        for &(address, ttl_s) in &answer.addresses {
            let address = address.to_canonical();
            if !self.may_open(address) {
                continue;
            }
            let ttl_s = ttl_s.max(self.settings.dns.min_ttl_s).min(self.settings.dns.max_ttl_s);
            let expires_ns = now.saturating_add(u64::from(ttl_s).saturating_mul(SECOND_NS));
            let learned = LearnedAddress { address, expires_ns };
            for name in &answer.names {
                let heard = Heard { endpoint: answer.endpoint, name, address: learned, ttl_s, learned_ns: now };
                self.note(heard, &mut touched);
            }
            noted.push((address, ttl_s, expires_ns));
        }
        if noted.is_empty() {
            return;
        }
        self.trim(answer.endpoint, &mut touched);
        touched.sort_unstable();
        touched.dedup();
        for row in touched {
            self.rewrite(row, now, ops);
        }
        let names = answer.names.iter().map(|name| name.as_str().into()).collect();
        self.ledger.push(LedgerEntry::Learned { endpoint: key, names, addresses: noted, learned_ns: now });
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
            self.refuse("dns.addressesPerNameMax");
        }
        touched.push(row);
    }

    /// Brings an endpoint back to the bound of names.
    pub(crate) fn trim(&mut self, endpoint: EndpointId, touched: &mut Vec<AddressKey>) {
        let max = usize::try_from(self.settings.dns.names_per_endpoint_max).unwrap_or(usize::MAX);
        let gone = self.cache.trim(endpoint, max, self.scope(endpoint), touched);
        let key = self.cache.endpoints.get(&endpoint).map(|known| std::sync::Arc::clone(&known.key));
        for (name, key) in gone.iter().zip(std::iter::repeat(key)) {
            self.refuse("dns.namesPerEndpointMax");
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
        (forgotten, ops)
    }

    /// Writes rows anew whose steps have ended, and collects what ended long ago.
    pub fn tick(&mut self, now: u64) -> Vec<MapOp> {
        let mut ops = Vec::new();
        self.settle_doubts(0, &mut ops);
        while let Some(row) = self.cache.pop_due(now) {
            let (rows, size) = self.mirror.address_rows();
            if rows > size / 2 {
                self.cache.collect(row, now, 0);
            }
            self.rewrite(row, now, &mut ops);
        }
        self.sweep(&mut ops);
        ops
    }

    /// When [`Engine::tick`] has something to do, in nanoseconds of `CLOCK_BOOTTIME`.
    pub fn next_tick(&self) -> Option<u64> {
        if self.unsure && self.ready { Some(0) } else { self.cache.next_due() }
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
        let Some(opened) = self.cache.rows.get(&row) else { return };
        let old = opened.value;
        let steps = opened.steps(&self.outside(row.address.to_ip()), now);
        let new = self.value_of(steps, ops);
        if new == old {
            self.release(new);
        } else if let Some(value) = new {
            let written = self.mirror.put(Row::Address(row, value), ops);
            self.release(if written { old } else { new });
            self.set_value(row, if written { new } else { None });
        } else {
            self.mirror.delete(Key::Address(row), ops);
            self.release(old);
            self.set_value(row, None);
        }
        if self.cache.rows.get(&row).is_some_and(|opened| opened.openings.is_empty()) {
            self.cache.rows.remove(&row);
        }
        self.cache.schedule(row, now);
    }

    fn set_value(&mut self, row: AddressKey, value: Option<AddressValue>) {
        if let Some(opened) = self.cache.rows.get_mut(&row) {
            opened.value = value;
        }
    }

    /// The row of these steps. `None` where there are none, or an identity finds no room: then nothing is opened.
    fn value_of(&mut self, steps: Steps, ops: &mut Vec<MapOp>) -> Option<AddressValue> {
        if steps.is_empty() {
            return None;
        }
        let mut value = AddressValue { steps: [Step::default(); STEPS_MAX], endpoint: 0, flags: 0 };
        for (step, (expires_ns, terms)) in value.steps.iter_mut().zip(steps) {
            let Some(identity) = self.acquire(&terms, ops) else {
                self.release(Some(value));
                return None;
            };
            *step = Step { expires_ns, identity, spare: 0 };
        }
        Some(value)
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
