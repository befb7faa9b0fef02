//! The verdict where several rules match: tiers, denial before allowance, limits on requests, names that bind.

use namegate_abi::{PolicyValue, policy_flags, policy_verdict, protocol::UDP};
use namegate_config::{
    l7::L7,
    rule::{Binding, Effect, Rule, Tier},
};

use super::{NumberedRule, Side};

/// Flows that are settled together, and the rules that match them by names of the peer alone.
#[derive(Clone, Copy)]
pub(super) struct BoundFlows<'a> {
    pub(super) protocol: u8,
    /// The first port of those with the same rules.
    pub(super) port: u16,
    pub(super) by_name: &'a [usize],
}

impl Side {
    /// The verdict where these rules match, some of them by the names of the peer alone. Where the flow would not pass
    /// without those, a connection must ask for a name: a proxy reads it, or the programs copy it out to be looked at.
    pub(super) fn settle_bound(&self, matching: &[usize], flows: BoundFlows<'_>) -> PolicyValue {
        let BoundFlows { protocol, port, by_name } = flows;
        let value = self.settle(matching);
        let depends = |counts: &dyn Fn(&Rule) -> bool| {
            let is_bound = |at: &usize| by_name.contains(at) && counts(&self.rules[*at].rule);
            let others: Vec<usize> = matching.iter().copied().filter(|at| !is_bound(at)).collect();
            others.len() < matching.len() && self.settle(&others).verdict != policy_verdict::ALLOW
        };
        if value.verdict == policy_verdict::ALLOW && depends(&|rule| rule.is_bound(Binding::Enforce)) {
            if protocol != UDP {
                return PolicyValue { verdict: policy_verdict::REDIRECT, proxy_port: self.proxies.l7, ..value };
            }
            let is_required = depends(&|rule| rule.is_bound(Binding::Enforce) && rule.is_named_only(port));
            let required = if is_required { policy_flags::REQUIRE_NAME } else { 0 };
            return PolicyValue { flags: policy_flags::HOLD_NAME | required, ..value };
        }
        if value.verdict == policy_verdict::ALLOW && depends(&|rule| rule.is_bound(Binding::Observe)) {
            return PolicyValue { flags: policy_flags::OBSERVE_NAME, ..value };
        }
        value
    }

    /// The verdict where these rules match, in the order of [`Tier`].
    pub(super) fn settle(&self, matching: &[usize]) -> PolicyValue {
        let rule = |at: &usize| &self.rules[*at];
        if let Some(first) = first_of(matching.iter().map(rule), |tier| match tier {
            Tier::Admin(number) => Some(number),
            _ => None,
        }) && first.rule.effect != Effect::Pass
        {
            return value_of(first);
        }
        let normal = matching.iter().map(rule).filter(|numbered| numbered.rule.tier == Tier::Normal);
        if let Some(deny) = normal.clone().find(|numbered| numbered.rule.effect == Effect::Deny) {
            return value_of(deny);
        }
        let allowing: Vec<&NumberedRule> = normal.filter(|numbered| numbered.rule.effect == Effect::Allow).collect();
        if let Some(value) = self.allowed_by(&allowing) {
            return value;
        }
        if self.default_deny {
            return PolicyValue::default();
        }
        let baseline = first_of(matching.iter().map(rule), |tier| match tier {
            Tier::Baseline(number) => Some(number),
            _ => None,
        });
        baseline.map_or(PolicyValue { verdict: policy_verdict::ALLOW, ..PolicyValue::default() }, value_of)
    }

    /// The verdict of the allow rules that match a flow; the first gives its number.
    ///
    /// One rule without limits on requests lifts those of the others, and where denial is not the default limits deny
    /// nothing. Else a proxy reads the requests; without one nothing passes, for nobody would keep to the limits.
    fn allowed_by(&self, deciders: &[&NumberedRule]) -> Option<PolicyValue> {
        let plain = value_of(deciders.first()?);
        let limits: Option<Vec<&L7>> = deciders.iter().map(|numbered| numbered.rule.l7.as_deref()).collect();
        let Some(limits) = limits.filter(|_| self.default_deny) else { return Some(plain) };
        if limits.iter().all(|l7| matches!(l7, L7::Dns(_))) && self.proxies.dns == 0 {
            // Questions to trusted resolvers go through the DNS proxy whatever the row says.
            return Some(plain);
        }
        let proxy_port = if matches!(limits[0], L7::Dns(_)) { self.proxies.dns } else { self.proxies.l7 };
        Some(PolicyValue { verdict: policy_verdict::REDIRECT, proxy_port, ..plain })
    }
}

/// The rule that decides a tier whose rules stand in order: lowest number, then deny before pass before allow.
fn first_of<'r>(
    rules: impl Iterator<Item = &'r NumberedRule>,
    number: impl Fn(Tier) -> Option<u32>,
) -> Option<&'r NumberedRule> {
    let strictness = |effect| match effect {
        Effect::Deny => 0,
        Effect::Pass => 1,
        Effect::Allow => 2,
    };
    rules
        .filter_map(|numbered| {
            number(numbered.rule.tier).map(|number| ((number, strictness(numbered.rule.effect)), numbered))
        })
        .min_by_key(|(order, _)| *order)
        .map(|(_, numbered)| numbered)
}

/// The verdict of a rule that decides alone, whatever requests it names.
fn value_of(decider: &NumberedRule) -> PolicyValue {
    let verdict = if decider.rule.effect == Effect::Allow { policy_verdict::ALLOW } else { policy_verdict::DENY };
    PolicyValue { verdict, rule: decider.cookie, ..PolicyValue::default() }
}
