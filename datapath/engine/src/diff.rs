//! What the kernel holds, as far as the engine knows, and the writes that lead to what it should hold.

use std::{collections::BTreeMap, sync::Arc};

use foldhash::{HashMap, HashSet};
use namegate_abi::{NODE_INTERFACE, limits, map_names};
use namegate_config::settings::Limits;

use crate::{Key, MapOp, Row};

/// The rows that the kernel holds, and how many it may hold.
#[derive(Debug)]
pub(crate) struct Mirror {
    rows: HashMap<Key, Row>,
    counts: [usize; MAPS],
    sizes: [usize; MAPS],
    /// Rows of `ADDRESSES` that learned addresses leave to endpoints, nodes and services.
    reserve: usize,
    /// Rows of `ADDRESSES` that hold learned addresses.
    learned: usize,
    /// Rows of each policy.
    of_policies: HashMap<u32, usize>,
    /// Policies all of whose endpoints are of one namespace.
    tenants: HashMap<u32, Arc<str>>,
    /// Rows of the policies of each.
    of_tenants: HashMap<Arc<str>, usize>,
    /// Rows that found no room, by map.
    refused: [u64; MAPS],
    /// What is refused was refused and counted before.
    pub(crate) is_retry: bool,
}

const MAPS: usize = 5;
/// Place of `POLICY` among the maps.
const POLICY: usize = 3;

/// Names of the maps in the order of [`map_of`].
const NAMES: [&str; MAPS] =
    [map_names::ENDPOINTS, map_names::ADDRESSES, map_names::CIDRS, map_names::POLICY, map_names::RESOLVERS];

/// Settings that make the maps larger, in the same order; resolvers have a fixed bound.
const SETTINGS: [&str; MAPS] =
    ["limits.endpoints", "limits.addresses", "limits.cidrs", "limits.policyRows", "dns.resolvers"];

const fn map_of(key: &Key) -> usize {
    match key {
        Key::Endpoint(_) => 0,
        Key::Address(_) => 1,
        Key::Cidr(..) => 2,
        Key::Policy(..) => POLICY,
        Key::Resolver(_) => 4,
    }
}

impl Mirror {
    pub(crate) fn new(limits: &Limits) -> Self {
        let sizes = [limits.endpoints, limits.addresses, limits.cidrs, limits.policy_rows, limits::RESOLVERS_MAX];
        let sizes = sizes.map(|size| usize::try_from(size).unwrap_or(usize::MAX));
        Self {
            rows: HashMap::default(),
            counts: [0; MAPS],
            sizes,
            reserve: usize::try_from(limits.reserved_addresses()).unwrap_or(usize::MAX),
            learned: 0,
            of_policies: HashMap::default(),
            tenants: HashMap::default(),
            of_tenants: HashMap::default(),
            refused: [0; MAPS],
            is_retry: false,
        }
    }

    /// Takes what the kernel holds for true.
    pub(crate) fn replace(&mut self, rows: impl IntoIterator<Item = Row>) {
        self.rows = rows.into_iter().map(|row| (row.key(), row)).collect();
        self.counts = [0; MAPS];
        self.learned = 0;
        self.of_policies.clear();
        self.of_tenants.clear();
        let keys: Vec<Key> = self.rows.keys().copied().collect();
        for key in keys {
            self.count(&key, true);
        }
    }

    /// Notes that a row came or went.
    fn count(&mut self, key: &Key, came: bool) {
        let step = |count: &mut usize| if came { *count += 1 } else { *count = count.saturating_sub(1) };
        // The node's own row has a place of its own beside those of `limits.endpoints`.
        if *key != Key::Endpoint(NODE_INTERFACE) {
            step(&mut self.counts[map_of(key)]);
        }
        match key {
            Key::Address(address) if address.scope != 0 => step(&mut self.learned),
            Key::Policy(_, policy) => {
                step(self.of_policies.entry(policy.policy).or_default());
                if let Some(tenant) = self.tenants.get(&policy.policy) {
                    step(self.of_tenants.entry(Arc::clone(tenant)).or_default());
                }
            }
            _ => {}
        }
        if let Key::Policy(_, policy) = key
            && self.of_policies.get(&policy.policy) == Some(&0)
        {
            self.of_policies.remove(&policy.policy);
        }
    }

    /// Whether there is room for a row that is not there yet.
    fn fits(&self, key: &Key) -> bool {
        let map = map_of(key);
        match key {
            Key::Endpoint(NODE_INTERFACE) => true,
            Key::Address(address) if address.scope != 0 => {
                self.counts[map] < self.sizes[map] && self.learned + self.reserve < self.sizes[map]
            }
            _ => self.counts[map] < self.sizes[map],
        }
    }

    /// Notes the namespace of all endpoints of a policy. Rows of policies that are about to go count for none.
    pub(crate) fn set_tenant(&mut self, policy: u32, tenant: Option<&Arc<str>>) {
        if self.tenants.get(&policy) == tenant {
            return;
        }
        let rows = self.of_policies.get(&policy).copied().unwrap_or(0);
        let old = match tenant {
            Some(tenant) => {
                *self.of_tenants.entry(Arc::clone(tenant)).or_default() += rows;
                self.tenants.insert(policy, Arc::clone(tenant))
            }
            None => self.tenants.remove(&policy),
        };
        if let Some(old) = old
            && let Some(count) = self.of_tenants.get_mut(&old)
        {
            *count = count.saturating_sub(rows);
            if *count == 0 {
                self.of_tenants.remove(&old);
            }
        }
    }

    /// The namespace of all endpoints of a policy.
    pub(crate) fn tenant(&self, policy: u32) -> Option<&Arc<str>> {
        self.tenants.get(&policy)
    }

    /// Rows of the policies of a namespace.
    pub(crate) fn rows_of_tenant(&self, tenant: &str) -> usize {
        self.of_tenants.get(tenant).copied().unwrap_or(0)
    }

    pub(crate) const fn rows(&self) -> &HashMap<Key, Row> {
        &self.rows
    }

    /// Writes the row where the kernel holds another. False where the map is full: the row is refused.
    pub(crate) fn put(&mut self, row: Row, ops: &mut Vec<MapOp>) -> bool {
        let key = row.key();
        match self.rows.get_mut(&key) {
            Some(held) if *held == row => return true,
            Some(held) => *held = row,
            None => {
                if !self.fits(&key) {
                    self.refused[map_of(&key)] += u64::from(!self.is_retry);
                    return false;
                }
                self.count(&key, true);
                self.rows.insert(key, row);
            }
        }
        ops.push(MapOp::Put(row));
        true
    }

    /// Removes the row where the kernel holds one.
    pub(crate) fn delete(&mut self, key: Key, ops: &mut Vec<MapOp>) {
        if self.rows.remove(&key).is_some() {
            self.count(&key, false);
            ops.push(MapOp::Delete(key));
        }
    }

    /// Whether `POLICY` has room for the rows that it does not hold yet; counts them as refused where not.
    pub(crate) fn has_room(&mut self, rows: &[Row]) -> bool {
        let new = self.new_rows(rows);
        let fits = self.counts[POLICY] + new <= self.sizes[POLICY];
        if !fits && !self.is_retry {
            self.refused[POLICY] += new as u64;
        }
        fits
    }

    /// How many of the rows are not there yet.
    pub(crate) fn new_rows(&self, rows: &[Row]) -> usize {
        rows.iter().filter(|row| !self.rows.contains_key(&row.key())).count()
    }

    /// Writes what differs from `wanted`, and removes the rest; false where a row found no room.
    pub(crate) fn reconcile(&mut self, wanted: &HashMap<Key, Row>, ops: &mut Vec<MapOp>) -> bool {
        let mut whole = true;
        for op in diff(&self.rows, wanted) {
            match op {
                MapOp::Put(row) => whole &= self.put(row, ops),
                MapOp::Delete(key) => self.delete(key, ops),
            }
        }
        whole
    }

    /// Rows per map: name, rows held, rows at most.
    pub(crate) fn counts(&self) -> impl Iterator<Item = (&'static str, usize, usize)> {
        (0..MAPS).map(|map| (NAMES[map], self.counts[map], self.sizes[map]))
    }

    /// Rows that found no room: setting and count.
    pub(crate) fn refused(&self) -> impl Iterator<Item = (&'static str, u64)> {
        (0..MAPS).map(|map| (SETTINGS[map], self.refused[map]))
    }

    /// Rows of `ADDRESSES` that are free for learned addresses.
    pub(crate) const fn free_for_learned(&self) -> usize {
        let of_map = self.sizes[1].saturating_sub(self.counts[1]);
        let of_part = self.sizes[1].saturating_sub(self.reserve).saturating_sub(self.learned);
        if of_map < of_part { of_map } else { of_part }
    }

    /// Rows of learned and other addresses, and the most there can be.
    pub(crate) const fn address_rows(&self) -> (usize, usize) {
        (self.counts[1], self.sizes[1])
    }
}

/// Leads from old to new rows. Policy rows come before addresses and prefixes that need them, endpoints come last;
/// removals follow in the opposite order. In a trie rows of the longest prefix are written first and removed last.
pub(crate) fn diff(old: &HashMap<Key, Row>, new: &HashMap<Key, Row>) -> Vec<MapOp> {
    let mut puts: BTreeMap<(usize, Key), Row> = BTreeMap::new();
    for (key, row) in new {
        if old.get(key) != Some(row) {
            puts.insert((place(key), *key), *row);
        }
    }
    let gone: HashSet<&Key> = old.keys().filter(|key| !new.contains_key(*key)).collect();
    let mut gone: Vec<Key> = gone.into_iter().copied().collect();
    gone.sort_unstable_by_key(|key| (std::cmp::Reverse(place(key)), *key));
    puts.into_values().map(MapOp::Put).chain(gone.into_iter().map(MapOp::Delete)).collect()
}

/// Place of a write among others.
fn place(key: &Key) -> usize {
    const PREFIXES: usize = 256;
    let longest_first = |prefix: u32| PREFIXES - 1 - usize::try_from(prefix).unwrap_or(0).min(PREFIXES - 1);
    match key {
        Key::Policy(prefix, policy) => {
            let any = usize::from(policy.identity == namegate_abi::identity::ANY);
            any * PREFIXES + longest_first(*prefix)
        }
        Key::Address(_) => 2 * PREFIXES,
        Key::Cidr(prefix, _) => 2 * PREFIXES + 1 + longest_first(*prefix),
        Key::Resolver(_) => 4 * PREFIXES,
        Key::Endpoint(_) => 4 * PREFIXES + 1,
    }
}

#[cfg(test)]
mod tests {
    use namegate_abi::{Address, AddressKey, AddressValue, CidrKey, CidrValue, EndpointValue, PolicyKey, PolicyValue};
    use proptest::prelude::*;

    use super::*;

    fn rows() -> impl Strategy<Value = HashMap<Key, Row>> {
        let address = |last| Address::from_v4([192, 0, 2, last]);
        let row = prop_oneof![
            (0..4_u32, 0..3_u32)
                .prop_map(|(at, policy)| Row::Endpoint(at, EndpointValue { policy, ..EndpointValue::default() })),
            (0..3_u32, 0..4_u8, 0..3_u32).prop_map(move |(scope, last, endpoint)| {
                let value = AddressValue { endpoint, ..AddressValue::default() };
                Row::Address(AddressKey { scope, address: address(last) }, value)
            }),
            (96..129_u32, 0..3_u32).prop_map(move |(prefix, identity)| Row::Cidr(
                prefix,
                CidrKey { address: address(0) },
                CidrValue { identity }
            )),
            (72..97_u32, 0..3_u32, 0..3_u32).prop_map(|(prefix, identity, rule)| {
                let key = PolicyKey { identity, ..PolicyKey::default() };
                Row::Policy(prefix, key, PolicyValue { rule, ..PolicyValue::default() })
            }),
            (0..4_u8).prop_map(move |last| Row::Resolver(address(last))),
        ];
        proptest::collection::vec(row, 0..20).prop_map(|rows| rows.into_iter().map(|row| (row.key(), row)).collect())
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 1_000, failure_persistence: None, ..ProptestConfig::default() })]
        #[test]
        fn diff_leads_from_old_to_new(old in rows(), new in rows()) {
            let mut kernel = old.clone();
            let mut removing = false;
            for op in diff(&old, &new) {
                match op {
                    MapOp::Put(row) => {
                        prop_assert!(!removing, "additions come first");
                        prop_assert_ne!(kernel.insert(row.key(), row), Some(row), "no write without need");
                    }
                    MapOp::Delete(key) => {
                        removing = true;
                        prop_assert!(kernel.remove(&key).is_some());
                    }
                }
            }
            prop_assert_eq!(kernel, new);
        }
    }
}
