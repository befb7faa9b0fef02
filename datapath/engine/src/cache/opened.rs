//! One row of learned addresses: what it should say, which name gives way at its bound, and which endpoint accounts for it.

use std::{collections::BTreeMap, ops::Range, sync::Arc};

use namegate_abi::{AddressKey, STEPS_MAX};

use super::{Cache, Opened, Steps};
use crate::{
    EndpointId,
    names::{NameId, Names},
    selectors::{Set, TermId, set},
};

/// A name that an endpoint learned, as seen from the address.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Opening {
    pub(crate) endpoint: EndpointId,
    pub(crate) name: NameId,
    pub(crate) expires_ns: u64,
}

impl Cache {
    /// Finds an endpoint that accounts for the row, if one of those that opened it has less than `max`.
    pub(crate) fn charge(&mut self, row: AddressKey, max: usize) -> Result<(), Option<EndpointId>> {
        let Some(opened) = self.rows.get_mut(&row) else { return Err(None) };
        if opened.charged.is_some_and(|id| !opened.of_endpoint(id).is_empty()) {
            return Ok(());
        }
        let names = &self.names;
        let used = opened.openings.iter().filter(|opening| !names.terms(opening.name).is_empty());
        let mut openers = used.map(|opening| opening.endpoint);
        let first = openers.clone().next();
        let has_room = |id: &EndpointId| self.charges.get(id).is_none_or(|count| *count < max);
        // A row that stands goes on, though the one who accounted for it has gone.
        let found = openers.find(has_room).or(opened.charged.and(first));
        let id = found.ok_or(first)?;
        let before = opened.charged.replace(id);
        *self.charges.entry(id).or_default() += 1;
        self.discharge(before);
        Ok(())
    }

    /// Nobody accounts for the row any more.
    pub(crate) fn uncharge(&mut self, row: AddressKey) {
        let charged = self.rows.get_mut(&row).and_then(|opened| opened.charged.take());
        self.discharge(charged);
    }

    fn discharge(&mut self, charged: Option<EndpointId>) {
        let Some(id) = charged else { return };
        if let Some(count) = self.charges.get_mut(&id) {
            *count = count.saturating_sub(1);
            if *count == 0 {
                self.charges.remove(&id);
            }
        }
    }

    /// Rows that an endpoint accounts for.
    pub(crate) fn charged(&self, endpoint: EndpointId) -> usize {
        self.charges.get(&endpoint).copied().unwrap_or(0)
    }
}

impl Opened {
    /// Where the name of an endpoint stands, or should stand.
    pub(super) fn find(&self, endpoint: EndpointId, name: NameId) -> Result<usize, usize> {
        self.openings.binary_search_by_key(&(endpoint, name), |opening| (opening.endpoint, opening.name))
    }

    /// Where the names of an endpoint stand.
    pub(super) fn of_endpoint(&self, endpoint: EndpointId) -> Range<usize> {
        let start = self.openings.partition_point(|opening| opening.endpoint < endpoint);
        start..start + self.openings[start..].partition_point(|opening| opening.endpoint == endpoint)
    }

    /// The name of the same endpoint that gives way to a new one: one that has ended, one that no selector matches, or one
    /// beside which another with the same selectors ends later. None where each of them opens something of its own.
    pub(super) fn victim(&self, new: &Opening, now: u64, names: &Names) -> Option<usize> {
        let own = || self.of_endpoint(new.endpoint).map(|at| (at, &self.openings[at]));
        let ended = own().find(|(_, opening)| opening.expires_ns <= now);
        let plain = || own().find(|(_, opening)| names.terms(opening.name).is_empty());
        let found = ended.or_else(plain).map(|(at, _)| at);
        let terms = names.terms(new.name);
        if found.is_some() || terms.is_empty() {
            return found;
        }
        let is_shorter =
            |opening: &Opening| Arc::ptr_eq(names.terms(opening.name), terms) && opening.expires_ns <= new.expires_ns;
        if let Some((at, _)) = own().find(|(_, opening)| is_shorter(opening)) {
            return Some(at);
        }
        // Beside one with the same selectors that ends later, the one that ends first gives way.
        let mut sorted: Vec<(*const TermId, u64, usize)> =
            own().map(|(at, opening)| (names.terms(opening.name).as_ptr(), opening.expires_ns, at)).collect();
        sorted.sort_unstable();
        sorted.windows(2).find(|pair| pair[0].0 == pair[1].0).map(|pair| pair[0].2)
    }

    /// What the row should say from `now` on; nothing where no selector matches a name of it.
    ///
    /// More than [`STEPS_MAX`] ends: the first ones are exact, the last step has what outlives all. Nothing is open longer
    /// than its TTL, and the row is written anew when its first step has ended.
    pub(crate) fn steps(&self, base: &[TermId], names: &Names, now: u64) -> Steps {
        let sets = self.sets(names);
        let Some(last) = sets.iter().map(|(_, ends)| *ends).max() else { return Steps::new() };
        if let [(terms, _)] = sets[..] {
            return vec![(last, set(terms.iter().chain(base).copied().collect()))];
        }
        // Where all have ended, the row says what ended last.
        let from = if last > now { now + 1 } else { last };
        let mut ends: BTreeMap<TermId, u64> = BTreeMap::new();
        for (terms, end) in sets.into_iter().filter(|(_, end)| *end >= from) {
            for term in terms.iter().filter(|term| base.binary_search(term).is_err()) {
                let known = ends.entry(*term).or_default();
                *known = (*known).max(end);
            }
        }
        let mut moments: Vec<u64> = ends.values().copied().chain(std::iter::once(last)).collect();
        moments.sort_unstable();
        moments.dedup();
        if moments.len() > STEPS_MAX {
            moments.drain(STEPS_MAX - 1..moments.len() - 1);
        }
        let at = |moment: u64| {
            let alive = ends.iter().filter(|(_, end)| **end >= moment).map(|(term, _)| *term);
            (moment, set(alive.chain(base.iter().copied()).collect()))
        };
        moments.into_iter().map(at).collect()
    }

    /// The sets of selectors that match names of the row, each with the last end. Most names of a row share few sets.
    fn sets<'n>(&self, names: &'n Names) -> Vec<(&'n Set, u64)> {
        let mut sets: Vec<(&Set, u64)> = Vec::new();
        for opening in &self.openings {
            let terms = names.terms(opening.name);
            if terms.is_empty() {
                continue;
            }
            match sets.binary_search_by_key(&terms.as_ptr(), |(known, _)| known.as_ptr()) {
                Ok(at) => sets[at].1 = sets[at].1.max(opening.expires_ns),
                Err(at) => sets.insert(at, (terms, opening.expires_ns)),
            }
        }
        sets
    }
}
