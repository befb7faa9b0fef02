//! Which rows that are missing would let more pass than the rules do.
//!
//! An address without its row counts as what stands above it: a shorter prefix, or the world. Where a policy would let
//! more pass that way, it must not be in force. The comparison is the one that judges changes of peers.

use std::{collections::BTreeSet, sync::Arc};

use foldhash::{HashMap, HashSet};
use namegate_abi::{Address, AddressKey, AddressValue, CidrKey, Step, identity};

use crate::{
    Engine, Key, Row,
    place::node_key,
    selectors::{Set, TermId},
    update::policy_rows,
};

/// What must not be in force.
#[derive(Debug, Default)]
pub(crate) struct Leaks {
    /// Policies.
    pub(crate) policies: HashSet<u32>,
    /// Scopes of learned addresses.
    pub(crate) scopes: HashSet<u32>,
    /// Every policy: a row stands for something that is no longer known.
    pub(crate) all: bool,
}

/// What an address counts as, and what matches it; `None` is not known.
type Pair = (Option<Set>, Set);

impl Leaks {
    /// Whether everything may be in force.
    pub(crate) fn is_empty(&self) -> bool {
        self.policies.is_empty() && self.scopes.is_empty() && !self.all
    }

    pub(crate) fn join(&mut self, other: Self) {
        self.policies.extend(other.policies);
        self.scopes.extend(other.scopes);
        self.all |= other.all;
    }
}

impl Engine {
    /// What would let more pass than the rules do. After a refused write every row is compared, else those that found no
    /// room.
    pub(crate) fn leaks(&mut self) -> Leaks {
        let pairs = self.deviations();
        let mut leaks = Leaks { all: pairs.iter().any(|(actual, _)| actual.is_none()), ..Leaks::default() };
        let known: HashSet<(Set, Set)> =
            pairs.into_iter().filter_map(|(actual, proper)| Some((actual?, proper))).collect();
        leaks.policies = self.narrowed_by(&known);
        if self.doubt.is_some() {
            let broken = self.broken_policies();
            leaks.policies.extend(broken);
            self.leaking_scopes(&mut leaks);
        }
        leaks
    }

    /// Policies under which a flow that passes with the first selectors of a pair might not pass with the second.
    pub(crate) fn narrowed_by(&mut self, pairs: &HashSet<(Set, Set)>) -> HashSet<u32> {
        let mut narrowed = HashSet::default();
        for (old, new) in pairs {
            let differing = |one: &Set, other: &Set| -> Vec<TermId> {
                one.iter().filter(|term| other.binary_search(term).is_err()).copied().collect()
            };
            let terms = [differing(old, new), differing(new, old)].concat();
            for policy in self.users_of(&terms) {
                let compiled = self.policies.get_mut(&policy).filter(|_| !narrowed.contains(&policy));
                if compiled.is_some_and(|compiled| compiled.is_narrowed(old, new, &self.terms)) {
                    narrowed.insert(policy);
                }
            }
        }
        narrowed
    }

    fn deviations(&self) -> HashSet<Pair> {
        if self.doubt.is_none() && self.unplaced.is_empty() && self.unprefixed.is_empty() {
            return HashSet::default();
        }
        let lengths: BTreeSet<u32> = match &self.doubt {
            None => self.cidrs.keys().map(|(prefix, _)| *prefix).collect(),
            Some(_) => self.mirror.rows().keys().filter_map(length_of).collect(),
        };
        let mut pairs = HashSet::default();
        for (address, proper) in &self.unplaced {
            pairs.insert((self.actual(*address, &lengths), Arc::clone(proper)));
        }
        for (prefix, key) in &self.unprefixed {
            let proper = self.nets.get(&(*prefix, *key)).map(Arc::clone);
            pairs.extend(proper.map(|proper| (self.actual_of_prefix(*prefix, *key, &lengths), proper)));
        }
        if self.doubt.is_some() {
            self.all_deviations(&lengths, &mut pairs);
        }
        pairs.retain(|(actual, proper)| actual.as_ref() != Some(proper));
        pairs
    }

    /// Compares every row of addresses of the cluster and of prefixes.
    fn all_deviations(&self, lengths: &BTreeSet<u32>, pairs: &mut HashSet<Pair>) {
        let rows = self.mirror.rows();
        for (address, (value, proper)) in &self.placed {
            let key = node_key(*address);
            if rows.get(&Key::Address(key)) != Some(&Row::Address(key, *value)) {
                pairs.insert((self.actual(*address, lengths), Arc::clone(proper)));
            }
        }
        for ((prefix, key), proper) in &self.nets {
            let held = match rows.get(&Key::Cidr(*prefix, *key)) {
                Some(Row::Cidr(_, _, value)) => Some(&value.identity),
                _ => None,
            };
            if held.is_none() || held != self.cidrs.get(&(*prefix, *key)) {
                pairs.insert((self.actual_of_prefix(*prefix, *key, lengths), Arc::clone(proper)));
            }
        }
        for row in rows.values() {
            match row {
                Row::Address(key, value) if key.scope == 0 => {
                    let is_known = self.placed.contains_key(&key.address) || self.unplaced.contains_key(&key.address);
                    if !is_known {
                        let proper: Set = self.outside(key.address.to_ip()).into();
                        pairs.insert((self.set_of_step(&value.steps[0]), proper));
                    }
                }
                Row::Cidr(prefix, key, value) if !self.nets.contains_key(&(*prefix, *key)) => {
                    let wider = (0..*prefix).rev().find_map(|bits| self.nets.get(&(bits, masked(key.address, bits))));
                    let proper = wider.unwrap_or(self.identities.world());
                    pairs.insert((self.identities.set_of(value.identity).map(Arc::clone), Arc::clone(proper)));
                }
                _ => {}
            }
        }
    }

    fn set_of_step(&self, step: &Step) -> Option<Set> {
        self.identities.set_of(step.identity).map(Arc::clone)
    }

    /// What an address of the cluster counts as.
    fn actual(&self, address: Address, lengths: &BTreeSet<u32>) -> Option<Set> {
        match self.mirror.rows().get(&Key::Address(node_key(address))) {
            Some(Row::Address(_, value)) => self.set_of_step(&value.steps[0]),
            _ => self.actual_of_prefix(128, CidrKey { address }, lengths),
        }
    }

    /// What the addresses of a prefix count as.
    fn actual_of_prefix(&self, prefix: u32, key: CidrKey, lengths: &BTreeSet<u32>) -> Option<Set> {
        for &bits in lengths.range(..=prefix).rev() {
            let wider = masked(key.address, bits);
            if let Some(Row::Cidr(_, _, value)) = self.mirror.rows().get(&Key::Cidr(bits, wider)) {
                return self.identities.set_of(value.identity).map(Arc::clone);
            }
        }
        Some(Arc::clone(self.identities.world()))
    }

    /// Policies of which the kernel holds other rows than it should, for peers that rows name.
    fn broken_policies(&self) -> HashSet<u32> {
        let rows = self.mirror.rows();
        let mut named: HashSet<u32> = HashSet::from_iter([identity::ANY, identity::WORLD]);
        for row in rows.values() {
            match row {
                Row::Address(_, value) => named.extend(value.steps.iter().map(|step| step.identity)),
                Row::Cidr(_, _, value) => _ = named.insert(value.identity),
                _ => {}
            }
        }
        let wanted: HashMap<Key, Row> = self
            .policies
            .iter()
            .flat_map(|(id, policy)| policy_rows(*id, policy))
            .map(|row| (row.key(), row))
            .collect();
        let lacks = wanted.iter().filter(|(key, row)| rows.get(*key) != Some(*row)).map(|(key, _)| key);
        let more = rows.keys().filter(|key| !wanted.contains_key(*key));
        let mut broken = HashSet::default();
        for key in lacks.chain(more) {
            if let Key::Policy(_, key) = key
                && named.contains(&key.identity)
            {
                broken.insert(key.policy);
            }
        }
        broken
    }

    /// Scopes in which a learned address is open that should not be.
    fn leaking_scopes(&mut self, leaks: &mut Leaks) {
        let mut pairs: Vec<(u32, Set, Set)> = Vec::new();
        for row in self.mirror.rows().values() {
            let Row::Address(key, value) = row else { continue };
            let wanted = self.cache.rows.get(key).and_then(|opened| opened.value);
            if key.scope == 0 || wanted.as_ref() == Some(value) {
                continue;
            }
            let base: Set = self.outside(key.address.to_ip()).into();
            for step in value.steps.iter().filter(|step| step.identity != 0) {
                // Sets become smaller with time: the last moment of the step is the strictest.
                let proper = wanted.and_then(|wanted| self.set_at(&wanted, step.expires_ns.saturating_sub(1)));
                match self.set_of_step(step) {
                    Some(actual) => pairs.push((key.scope, actual, proper.unwrap_or_else(|| Arc::clone(&base)))),
                    None => _ = leaks.scopes.insert(key.scope),
                }
            }
        }
        for (scope, actual, proper) in pairs {
            let narrowed = self.narrowed_by(&HashSet::from_iter([(actual, proper)]));
            let of_scope = self.local.values().filter(|local| local.value.scope == scope);
            if of_scope.into_iter().any(|local| narrowed.contains(&local.policy)) {
                leaks.scopes.insert(scope);
            }
        }
    }

    /// What matches a learned address at a moment; `None` after its last step.
    pub(crate) fn set_at(&self, value: &AddressValue, at: u64) -> Option<Set> {
        let live = value.steps.iter().find(|step| step.identity != 0 && step.expires_ns > at)?;
        self.set_of_step(live)
    }

    /// What the kernel takes a learned address for at a moment.
    pub(crate) fn learned_set(&self, key: AddressKey, at: u64) -> Set {
        let held = match self.mirror.rows().get(&Key::Address(key)) {
            Some(Row::Address(_, value)) => self.set_at(value, at),
            _ => None,
        };
        held.unwrap_or_else(|| self.outside(key.address.to_ip()).into())
    }
}

fn length_of(key: &Key) -> Option<u32> {
    match key {
        Key::Cidr(prefix, _) => Some(*prefix),
        _ => None,
    }
}

/// Key of the prefix of `bits` around an address.
fn masked(address: Address, bits: u32) -> CidrKey {
    let mask = u128::MAX.checked_shl(128_u32.saturating_sub(bits)).unwrap_or(0);
    CidrKey { address: Address((u128::from_be_bytes(address.0) & mask).to_be_bytes()) }
}
