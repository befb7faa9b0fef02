//! Why: the rules that match one side of a flow, which of them decides, and where a default denial comes from.

use std::sync::Arc;

use namegate_config::{
    cases::{Answer, Judge, NotJudged, Place, Question, World},
    peer::Peer,
    reference::{Reason, Verdict},
    rule::{Direction, Effect, Origin, PeerSelector, Peers, Rule, Tier},
};

use crate::judge::{Trial, is_matching};

/// One side of a flow.
#[derive(Clone, Debug)]
pub struct Explained {
    /// Which side it is.
    pub direction: Direction,
    /// Whose side it is.
    pub subject: Place,
    /// The look-up ahead of a flow to a name.
    pub is_lookup: bool,
    /// What the compiled rows say.
    pub verdict: Verdict,
    /// Rules that match, in order.
    pub rules: Vec<Matching>,
    /// Rules that make denial the default, where that decides.
    pub default_deny_by: Vec<Arc<Origin>>,
}

/// A rule that matches.
#[derive(Clone, Debug)]
pub struct Matching {
    /// Where it stands.
    pub origin: Arc<Origin>,
    /// What it does with what matches.
    pub effect: &'static str,
    /// Its tier, by name.
    pub tier: &'static str,
    /// What it has to say in the end.
    pub standing: Standing,
    /// Name patterns by which it selects the peer, each with the name.
    pub names: Vec<(String, String)>,
    /// Whether it limits what is asked inside the flow.
    pub has_limits: bool,
}

/// What a rule that matches comes to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    /// The verdict is its.
    Decides,
    /// It wants the same.
    Agrees,
    /// Another goes before it.
    Loses,
    /// It leaves the decision to the rules behind it.
    PassesOn,
}

impl Standing {
    /// In one word or two.
    pub const fn word(self) -> &'static str {
        match self {
            Self::Decides => "decides",
            Self::Agrees => "agrees",
            Self::Loses => "loses",
            Self::PassesOn => "passes on",
        }
    }
}

/// A judge that notes why.
pub struct Tracer {
    trial: Trial,
    rules: Vec<Rule>,
    /// Every side that was asked, in order.
    pub sides: Vec<Explained>,
}

impl Tracer {
    /// Notes what this judge says.
    pub const fn new(trial: Trial) -> Self {
        Self { trial, rules: Vec::new(), sides: Vec::new() }
    }
}

impl Judge for Tracer {
    fn load(&mut self, world: &World, rules: &[Rule]) -> Result<(), NotJudged> {
        self.rules = rules.to_vec();
        self.trial.load(world, rules)
    }

    fn hear(&mut self, answer: &Answer, now_s: u64) -> Result<(), NotJudged> {
        self.trial.hear(answer, now_s)
    }

    fn verdict(&mut self, question: &Question<'_>) -> Result<Verdict, NotJudged> {
        let verdict = self.trial.verdict(question)?;
        self.sides.push(explain(&self.rules, question, verdict.clone()));
        Ok(verdict)
    }
}

/// Goes through the rules for one question whose answer is known.
fn explain(rules: &[Rule], question: &Question<'_>, verdict: Verdict) -> Explained {
    let matching = rules.iter().filter(|rule| is_matching(rule, question));
    let makes_default = |rule: &&Rule| {
        let selects = rule.direction == question.direction && question.subject.is_selected(&rule.subject);
        selects && rule.tier == Tier::Normal && rule.default_deny
    };
    let mut default_deny_by = Vec::new();
    if verdict.reason == Reason::DefaultDeny {
        default_deny_by.extend(rules.iter().filter(makes_default).map(|rule| Arc::clone(&rule.origin)));
        default_deny_by.dedup();
    }
    Explained {
        direction: question.direction,
        subject: question.place.clone(),
        is_lookup: question.is_lookup,
        rules: matching.map(|rule| Matching::of(rule, question.peer, &verdict)).collect(),
        default_deny_by,
        verdict,
    }
}

impl Matching {
    fn of(rule: &Rule, peer: &Peer, verdict: &Verdict) -> Self {
        let standing = match rule.effect {
            _ if verdict.by.as_ref() == Some(&rule.origin) => Standing::Decides,
            Effect::Pass => Standing::PassesOn,
            Effect::Allow if verdict.allowed => Standing::Agrees,
            Effect::Deny if !verdict.allowed => Standing::Agrees,
            Effect::Allow | Effect::Deny => Standing::Loses,
        };
        Self {
            origin: Arc::clone(&rule.origin),
            effect: match rule.effect {
                Effect::Allow => "allow",
                Effect::Deny => "deny",
                Effect::Pass => "pass",
            },
            tier: match rule.tier {
                Tier::Admin(_) => "admin",
                Tier::Normal => "normal",
                Tier::Baseline(_) => "baseline",
            },
            standing,
            names: names(&rule.peers, peer),
            has_limits: rule.l7.is_some(),
        }
    }
}

/// Patterns of the rule that match a name of the peer.
fn names(peers: &Peers, peer: &Peer) -> Vec<(String, String)> {
    let Peers::Of(selectors) = peers else { return Vec::new() };
    let mut found = Vec::new();
    for selector in selectors {
        let PeerSelector::Name(pattern) = selector else { continue };
        let matching = peer.names.iter().filter(|name| pattern.matches(name));
        found.extend(matching.map(|name| (pattern.as_str().to_owned(), name.to_string())));
    }
    found.sort_unstable();
    found.dedup();
    found
}
