//! One copy of what many rules have in common.

use std::{collections::HashSet, sync::Arc};

use crate::{
    labels::LabelSelector,
    rule::{PeerSelector, Peers, Rule, Subject},
};

/// Selectors to forget are looked for when there are at least so many.
const SWEEP_MIN: usize = 1_024;

/// Gives equal selectors of rules one place in memory. Thousands of policies often select the same few groups of pods.
#[derive(Debug)]
pub struct Interner {
    selectors: HashSet<LabelSelector>,
    /// The number of selectors at which those that no rule has any more are forgotten.
    sweep_at: usize,
}

impl Default for Interner {
    fn default() -> Self {
        Self { selectors: HashSet::new(), sweep_at: SWEEP_MIN }
    }
}

impl Interner {
    /// The rule with its selectors in their shared places.
    pub fn rule(&mut self, mut rule: Rule) -> Arc<Rule> {
        let (Subject::Endpoints(subject) | Subject::Nodes(subject)) = &mut rule.subject;
        self.share(subject);
        if let Peers::Of(peers) = &mut rule.peers {
            for peer in peers.iter_mut() {
                if let PeerSelector::Labels(selector) = peer {
                    self.share(selector);
                }
            }
            peers.shrink_to_fit();
        }
        self.sweep();
        Arc::new(rule)
    }

    fn share(&mut self, selector: &mut LabelSelector) {
        match self.selectors.get(selector) {
            Some(known) => *selector = known.clone(),
            None => drop(self.selectors.insert(selector.clone())),
        }
    }

    /// Forgets selectors that no rule has. Each selector that is added pays for two that are looked at, at most.
    fn sweep(&mut self) {
        if self.selectors.len() < self.sweep_at {
            return;
        }
        self.selectors.retain(LabelSelector::is_shared);
        self.sweep_at = SWEEP_MIN.max(self.selectors.len() * 2);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::{Catalog, parse, translate};

    fn rules(app: &str) -> Vec<Rule> {
        let text = format!(
            "apiVersion: cilium.io/v2\nkind: CiliumNetworkPolicy\nmetadata: {{name: p, namespace: empire}}\nspec:\n  \
             endpointSelector: {{matchLabels: {{app: {app}}}}}\n  egress:\n  - toEndpoints: [{{matchLabels: {{app: {app}}}}}]\n"
        );
        translate(&parse("p.yaml", &text).documents, &Catalog::default()).rules
    }

    fn subject(rule: &Rule) -> *const crate::labels::Requirement {
        let (Subject::Endpoints(selector) | Subject::Nodes(selector)) = &rule.subject;
        std::ptr::from_ref(selector.requirements().next().unwrap())
    }

    #[test]
    fn equal_selectors_have_one_place() {
        let mut interner = Interner::default();
        let [one, other] = [0, 1].map(|_| interner.rule(rules("a").remove(0)));
        assert_eq!(one, other);
        assert_eq!(subject(&one), subject(&other));
        assert_eq!(*one, rules("a").remove(0), "the rule itself stays what it is");
        assert_eq!(interner.selectors.len(), 1, "subject and peer are one selector");
    }

    #[test]
    fn selectors_that_no_rule_has_are_forgotten() {
        let mut interner = Interner::default();
        let kept = interner.rule(rules("kept").remove(0));
        for number in 0..SWEEP_MIN * 3 {
            interner.rule(rules(&format!("a{number}")).remove(0));
        }
        assert!(interner.selectors.len() <= SWEEP_MIN, "{}", interner.selectors.len());
        let again = interner.rule(rules("kept").remove(0));
        assert_eq!(subject(&kept), subject(&again));
    }
}
