//! The limits of one connection, asked for each request.

use std::sync::Arc;

use hyper::HeaderMap;
use namegate_config::{
    l7::{L7, head::HttpFacts},
    name::Fqdn,
    reference::Limits,
    rule::{Direction, Origin, Rule},
};

use crate::backend::{AccessVerdict, ConnectionPolicy, Match};

/// What is judged.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Asked<'r> {
    Http(&'r HttpFacts, &'r HeaderMap),
    Tls(Option<&'r Fqdn>),
}

/// What the rules say about a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Judgement {
    pub(crate) allowed: bool,
    /// The side whose rules decided.
    pub(crate) direction: Direction,
    /// The rule that decided.
    pub(crate) rule: Option<Arc<Origin>>,
    /// The name that was asked for did not open the address: that decided.
    pub(crate) mismatch: bool,
}

impl Judgement {
    /// What becomes of it; denials pass in audit mode.
    pub(crate) fn verdict(&self, audit: bool) -> AccessVerdict {
        match (self.allowed, audit) {
            (true, _) if !self.mismatch => AccessVerdict::Allowed,
            (true, _) | (false, true) => AccessVerdict::Audited,
            (false, false) => AccessVerdict::Denied,
        }
    }
}

/// The limits of one connection, from both ends.
#[derive(Debug)]
pub(crate) struct Guard {
    sides: Vec<(Direction, Limits)>,
    pub(crate) keeps_source: bool,
    pub(crate) audit: bool,
    /// It matters for which name a connection asks.
    pub(crate) bound: bool,
    /// What that name means.
    pub(crate) binding: Match,
    /// Names that open the server's address.
    pub(crate) names: Arc<[Fqdn]>,
}

impl From<ConnectionPolicy> for Guard {
    fn from(policy: ConnectionPolicy) -> Self {
        let ConnectionPolicy { sides, keeps_source, audit, bound, binding, names } = policy;
        Self { sides, keeps_source, audit, bound, binding, names }
    }
}

/// Whether one rule lets the request pass.
fn allows(rule: &Rule, asked: Asked<'_>) -> bool {
    let Some(limits) = &rule.l7 else { return false };
    match asked {
        Asked::Http(facts, fields) => limits.allows_http(facts, fields),
        Asked::Tls(name) => name.is_some_and(|name| limits.allows_server_name(name)),
    }
}

impl Guard {
    /// Whether every end lets the request pass; the first that does not decides.
    pub(crate) fn judge(&self, asked: Asked<'_>) -> Judgement {
        let observed = self.binding == Match::Observed;
        let mut passed = Judgement { allowed: true, direction: Direction::Egress, rule: None, mismatch: observed };
        for (direction, side) in &self.sides {
            let direction = *direction;
            match side {
                Limits::Free => {}
                Limits::Closed(rule) => {
                    let mismatch = self.binding == Match::Refused && direction == Direction::Egress;
                    return Judgement { allowed: false, direction, rule: rule.clone(), mismatch };
                }
                Limits::Rules(rules) => {
                    let Some(rule) = rules.iter().find(|rule| allows(rule, asked)) else {
                        let rule = rules.first().map(|rule| Arc::clone(&rule.origin));
                        return Judgement { allowed: false, direction, rule, mismatch: false };
                    };
                    passed = Judgement { rule: Some(Arc::clone(&rule.origin)), direction, ..passed };
                }
            }
        }
        passed
    }

    /// Whether nothing is asked of requests beside their name.
    pub(crate) fn is_free(&self) -> bool {
        self.sides.iter().all(|(_, limits)| matches!(limits, Limits::Free))
    }

    /// Whether a rule has conditions on HTTP requests.
    pub(crate) fn reads_http(&self) -> bool {
        self.rules().any(|limits| matches!(limits, L7::Http(_)))
    }

    /// Whether a rule demands a header field.
    pub(crate) fn demands_fields(&self) -> bool {
        self.rules()
            .any(|limits| matches!(limits, L7::Http(rules) if rules.iter().any(|rule| !rule.headers.is_empty())))
    }

    /// Whether some rule lets TLS through by its server name.
    pub(crate) fn takes_tls(&self) -> bool {
        self.takes(|limits| matches!(limits, L7::ServerNames(_)))
    }

    /// Whether some rule reads HTTP.
    pub(crate) fn takes_http(&self) -> bool {
        self.takes(|limits| matches!(limits, L7::Http(_)))
    }

    /// What the rules of all sides demand.
    fn rules(&self) -> impl Iterator<Item = &L7> {
        self.sides
            .iter()
            .flat_map(|(_, limits)| match limits {
                Limits::Rules(rules) => &rules[..],
                Limits::Free | Limits::Closed(_) => &[],
            })
            .filter_map(|rule| rule.l7.as_deref())
    }

    /// Whether every side lets something pass, or has a rule of this kind.
    fn takes(&self, is_kind: impl Fn(&L7) -> bool) -> bool {
        self.sides.iter().all(|(_, limits)| match limits {
            Limits::Free => true,
            Limits::Closed(_) => false,
            Limits::Rules(rules) => rules.iter().any(|rule| rule.l7.as_deref().is_some_and(&is_kind)),
        })
    }
}

#[cfg(test)]
mod tests {
    use namegate_config::{
        l7::{HeaderMatch, HttpRule, RegexText},
        name::NamePattern,
        rule::{Effect, Peers, Ports, Subject, Tier},
    };

    use super::*;

    fn rule(name: &str, l7: L7) -> Arc<Rule> {
        Arc::new(Rule {
            origin: Arc::new(Origin { kind: "cnp".into(), namespace: None, name: name.into(), path: String::new() }),
            subject: Subject::Endpoints(namegate_config::labels::LabelSelector::default()),
            direction: Direction::Egress,
            tier: Tier::Normal,
            effect: Effect::Allow,
            default_deny: true,
            peers: Peers::Any,
            ports: Ports::Any,
            l7: Some(Arc::new(l7)),
            binding: None,
            named_only: None,
        })
    }

    fn get(path: &str) -> HttpRule {
        HttpRule {
            method: Some(RegexText::new("GET").unwrap()),
            path: Some(RegexText::new(path).unwrap()),
            host: Some(RegexText::ignoring_case(r"a\.io(:80)?").unwrap()),
            headers: vec![HeaderMatch { name: "x-token".into(), value: Some("42".into()) }],
        }
    }

    fn facts(method: &str, path: &str, host: &str) -> HttpFacts {
        HttpFacts { method: method.into(), path: path.into(), host: host.into(), websocket: None }
    }

    fn fields(token: &str) -> HeaderMap {
        [("x-token".parse().unwrap(), token.parse().unwrap())].into_iter().collect()
    }

    #[test]
    fn both_ends_must_let_a_request_pass() {
        let (a, b) = (rule("a", L7::Http(vec![get("/a")])), rule("b", L7::Http(vec![get("/b")])));
        let names = rule("names", L7::ServerNames(vec![NamePattern::pattern("*.io").unwrap()]));
        let (ask, fields) = (facts("GET", "/a", "a.io"), fields("42"));
        for (egress, ingress, http, tls, decider) in [
            (Limits::Free, Limits::Free, true, true, None),
            (Limits::Rules(vec![Arc::clone(&a)]), Limits::Free, true, false, Some("a")),
            (Limits::Rules(vec![Arc::clone(&b), Arc::clone(&a)]), Limits::Free, true, false, Some("a")),
            (Limits::Rules(vec![Arc::clone(&a)]), Limits::Rules(vec![Arc::clone(&b)]), false, false, Some("b")),
            (Limits::Rules(vec![Arc::clone(&a)]), Limits::Closed(None), false, false, None),
            (Limits::Rules(vec![names, a]), Limits::Free, true, true, Some("a")),
        ] {
            let sides = vec![(Direction::Egress, egress), (Direction::Ingress, ingress)];
            let guard = Guard::from(ConnectionPolicy {
                sides,
                keeps_source: false,
                audit: false,
                bound: false,
                binding: Match::Good,
                names: Arc::default(),
            });
            let judged = guard.judge(Asked::Http(&ask, &fields));
            assert_eq!((judged.allowed, judged.rule.as_ref().map(|rule| &*rule.name)), (http, decider), "{guard:?}");
            assert_eq!(guard.judge(Asked::Tls(Some(&"x.io".parse().unwrap()))).allowed, tls, "{guard:?}");
            assert_eq!(guard.takes_tls(), tls);
        }
    }
}
