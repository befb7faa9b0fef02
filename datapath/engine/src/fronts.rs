//! Virtual addresses: who is behind each port, and the verdicts that follow from theirs.
//!
//! An endpoint's packet is judged before it is sent on to a target, and the choice of the target is not Namegate's. So a
//! port is as open as the least open of its targets.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    fmt,
};

use namegate_abi::{PolicyValue, policy_verdict};

use crate::{
    ports::Function,
    terms::{Set, TermId},
};

/// Protocol number and port.
pub(crate) type Port = (u8, u16);

/// Who is behind the ports of an address: what matches each target, and the target's port.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Front {
    ports: BTreeMap<Port, Vec<(Set, u16)>>,
}

impl Front {
    /// Targets that are matched alike count once.
    pub(crate) fn new(ports: impl IntoIterator<Item = (Port, Vec<(Set, u16)>)>) -> Self {
        let sorted = |(port, mut targets): (Port, Vec<(Set, u16)>)| {
            targets.sort_unstable();
            targets.dedup();
            (port, targets)
        };
        Self { ports: ports.into_iter().map(sorted).collect() }
    }

    /// Gives the ports the verdicts of who is behind them; says for which ports these differ.
    pub(crate) fn cover(
        &self,
        function: &mut Function,
        mut value: impl FnMut(&[TermId], u8, u16) -> PolicyValue,
    ) -> Vec<Port> {
        let mut divided = Vec::new();
        for (&(protocol, port), targets) in &self.ports {
            let values: Vec<PolicyValue> = targets.iter().map(|(set, at)| value(set, protocol, *at)).collect();
            let (together, is_divided) = together(&values);
            function.put(protocol, port, together);
            divided.extend(is_divided.then_some((protocol, port)));
        }
        divided
    }
}

/// Canonical: equal fronts print the same text. Selectors stand with their numbers.
impl fmt::Display for Front {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("front")?;
        for ((protocol, port), targets) in &self.ports {
            write!(f, " {protocol}/{port}")?;
            for (set, port) in targets {
                write!(f, ">{port}:")?;
                for (at, term) in set.iter().enumerate() {
                    write!(f, "{}{term}", if at == 0 { "" } else { "," })?;
                }
            }
        }
        Ok(())
    }
}

/// Fronts in use, each with a number of the same row as those of selectors: it stands in the set of the address.
#[derive(Debug, Default)]
pub(crate) struct Fronts {
    by_id: BTreeMap<TermId, Front>,
    /// How many addresses have each.
    uses: HashMap<TermId, usize>,
    /// Those that may have no use any more.
    unused: BTreeSet<TermId>,
}

impl Fronts {
    pub(crate) fn insert(&mut self, id: TermId, front: Front) {
        self.by_id.insert(id, front);
    }

    /// One more address has the front.
    pub(crate) fn hold(&mut self, id: TermId) {
        *self.uses.entry(id).or_default() += 1;
    }

    /// One address less has it.
    pub(crate) fn release(&mut self, id: TermId) {
        if let Some(uses) = self.uses.get_mut(&id) {
            *uses -= 1;
            if *uses == 0 {
                self.uses.remove(&id);
                self.unused.insert(id);
            }
        }
    }

    /// Notes that an identity that stood for a front is gone.
    pub(crate) fn doubt(&mut self, set: &[TermId]) {
        self.unused.extend(set.iter().filter(|id| self.by_id.contains_key(id) && !self.uses.contains_key(id)));
    }

    /// Fronts that no address has.
    pub(crate) fn take_unused(&mut self) -> Vec<TermId> {
        let unused = std::mem::take(&mut self.unused);
        unused.into_iter().filter(|id| !self.uses.contains_key(id)).collect()
    }

    pub(crate) fn remove(&mut self, id: TermId) -> Option<Front> {
        self.by_id.remove(&id)
    }

    /// The front in a set, if there is one.
    pub(crate) fn of(&self, set: &[TermId]) -> Option<&Front> {
        if self.by_id.is_empty() { None } else { set.iter().find_map(|id| self.by_id.get(id)) }
    }

    pub(crate) fn has(&self, id: TermId) -> bool {
        self.by_id.contains_key(&id)
    }

    pub(crate) fn ids(&self) -> impl Iterator<Item = TermId> {
        self.by_id.keys().copied()
    }
}

/// One verdict for all targets of a port, of which a packet reaches any; and whether some of them may be reached and
/// others not. Without a target nobody is reached.
pub(crate) fn together(targets: &[PolicyValue]) -> (PolicyValue, bool) {
    let is_denied = |value: &&PolicyValue| value.verdict == policy_verdict::DENY;
    // A rule that denies says more than the default.
    if let Some(denied) = targets.iter().filter(is_denied).max_by_key(|value| value.rule != 0) {
        return (*denied, !targets.iter().all(|value| is_denied(&value)));
    }
    let mut proxied = targets.iter().filter(|value| value.verdict == policy_verdict::REDIRECT);
    let Some(limited) = proxied.next() else {
        return (targets.first().copied().unwrap_or_default(), false);
    };
    // Two proxies cannot read one flow.
    if proxied.any(|other| other.proxy_port != limited.proxy_port) {
        return (PolicyValue::default(), true);
    }
    (*limited, false)
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn value(verdict: u8, proxy_port: u16, rule: u32) -> PolicyValue {
        PolicyValue { verdict, flags: 0, proxy_port, rule }
    }

    #[test]
    fn the_strictest_target_decides() {
        const ALLOW: PolicyValue = value(policy_verdict::ALLOW, 0, 1);
        const ALSO: PolicyValue = value(policy_verdict::ALLOW, 0, 2);
        const LIMITED: PolicyValue = value(policy_verdict::REDIRECT, 9, 3);
        const ELSEWHERE: PolicyValue = value(policy_verdict::REDIRECT, 8, 4);
        const DENY: PolicyValue = value(policy_verdict::DENY, 0, 5);
        const NOBODY: PolicyValue = value(policy_verdict::DENY, 0, 0);
        for (targets, want) in [
            (&[][..], (NOBODY, false)),
            (&[ALLOW], (ALLOW, false)),
            (&[ALSO, ALLOW], (ALSO, false)),
            (&[ALLOW, LIMITED], (LIMITED, false)),
            (&[LIMITED, ELSEWHERE], (NOBODY, true)),
            (&[NOBODY, DENY], (DENY, false)),
            (&[LIMITED, NOBODY, ALLOW], (NOBODY, true)),
            (&[ALLOW, DENY, NOBODY], (DENY, true)),
        ] {
            assert_eq!(together(targets), want, "{targets:?}");
        }
    }

    #[test]
    fn fronts_print_one_canonical_text() {
        let targets = |order: [usize; 3]| {
            order.map(|at| [(vec![3, 7].into(), 80), (vec![].into(), 81), (vec![3, 7].into(), 80)][at].clone()).into()
        };
        let front = Front::new([((17, 53), vec![]), ((6, 80), targets([0, 1, 2]))]);
        assert_eq!(front, Front::new([((6, 80), targets([1, 2, 0])), ((17, 53), vec![])]));
        assert_eq!(front.to_string(), "front 6/80>81:>80:3,7 17/53");
    }
}
