//! One row of learned addresses: what it should say, which name gives way at its bound, and which endpoint accounts for it.

use std::collections::HashMap;

use namegate_abi::{AddressKey, STEPS_MAX};

use super::{Cache, Opened, Opening, Steps};
use crate::{
    EndpointId,
    selectors::{Set, TermId},
};

impl Cache {
    /// Finds an endpoint that accounts for the row, if one of those that opened it has less than `max`.
    pub(crate) fn charge(&mut self, row: AddressKey, max: usize) -> Result<(), Option<EndpointId>> {
        let Some(opened) = self.rows.get_mut(&row) else { return Err(None) };
        let is_there = |id: &EndpointId| opened.openings.iter().any(|opening| opening.endpoint == *id);
        if opened.charged.is_some_and(|id| is_there(&id)) {
            return Ok(());
        }
        let mut openers = opened.openings.iter().filter(|opening| !opening.terms.is_empty()).map(|one| one.endpoint);
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
        if let Some(count) = charged.and_then(|id| self.charges.get_mut(&id)) {
            *count = count.saturating_sub(1);
        }
        self.charges.retain(|id, count| *count > 0 || charged != Some(*id));
    }

    /// Rows that an endpoint accounts for.
    pub(crate) fn charged(&self, endpoint: EndpointId) -> usize {
        self.charges.get(&endpoint).copied().unwrap_or(0)
    }
}

impl Opened {
    /// The name of the same endpoint that gives way to a new one: one that has ended, one that no selector matches, or one
    /// beside which another with the same selectors ends later. None where each of them opens something of its own.
    pub(super) fn victim(&self, new: &Opening, now: u64) -> Option<usize> {
        let own = || self.openings.iter().enumerate().filter(|(_, opening)| opening.endpoint == new.endpoint);
        let ended = own().find(|(_, opening)| opening.expires_ns <= now);
        let plain = || own().find(|(_, opening)| opening.terms.is_empty());
        let found = ended.or_else(plain).map(|(at, _)| at);
        if found.is_some() || new.terms.is_empty() {
            return found;
        }
        let mut latest: HashMap<&Set, usize> = HashMap::new();
        for (at, opening) in own() {
            if opening.terms == new.terms && opening.expires_ns <= new.expires_ns {
                return Some(at);
            }
            if let Some(other) = latest.insert(&opening.terms, at) {
                let sooner = self.openings[other].expires_ns <= opening.expires_ns;
                return Some(if sooner { other } else { at });
            }
        }
        None
    }

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
