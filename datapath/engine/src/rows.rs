//! The rows of learned addresses: what each should say, and what it says where there is no room.

use std::{net::IpAddr, sync::Arc};

use namegate_abi::{AddressKey, AddressValue, STEPS_MAX, Step};

use crate::{
    Engine, Key, MapOp, Row,
    cache::{ENDED_KEPT_NS, Steps},
    selectors::{TermId, set},
};

impl Engine {
    /// Makes the row of a learned address say what its names say.
    pub(crate) fn rewrite(&mut self, row: AddressKey, now: u64, ops: &mut Vec<MapOp>) {
        self.cache.collect(row, now, ENDED_KEPT_NS);
        let was_withheld = self.withheld.remove(&row);
        self.unopened.remove(&row);
        let Some(opened) = self.cache.rows.get(&row) else { return };
        let old = opened.value;
        let base = self.outside(row.address.to_ip());
        let steps =
            if self.hidden.contains(&row.address) { Steps::new() } else { opened.steps(&base, &self.cache.names, now) };
        let lives = steps.last().is_some_and(|(ends, _)| *ends > now);
        let (value, is_whole) = self.value_of(row.scope, steps, &base, old, ops);
        let written = value.filter(|value| self.open(row, *value, ops));
        if written.is_none() {
            self.release(value);
            self.mirror.delete(Key::Address(row), ops);
            self.cache.uncharge(row);
        }
        self.release(old);
        if lives && !(is_whole && written.is_some()) {
            self.unopened.insert(row);
            if was_withheld {
                self.withheld.insert(row);
            }
        }
        self.cache.settle(row, written, now);
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
        let best = fitting.max_by_key(|set| set.len()).map(Arc::clone)?;
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
