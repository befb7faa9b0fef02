//! Limits compiled once and asked for each request.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
};

use hyper::HeaderMap;
use namegate_config::{
    l7::{HeaderMatch, HttpRule, L7, RegexText},
    name::{Fqdn, NamePattern},
    reference::Limits,
    rule::{Direction, Origin},
};
use regex::Regex;

use crate::desk::{Demand, Fate, Match};

/// Sets of limits whose compiled form is kept.
const KEPT_MAX: usize = 4_096;

/// An HTTP request as rules see it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct HttpFacts {
    /// Method.
    pub(crate) method: String,
    /// Normalised path, and query.
    pub(crate) path: String,
    /// Host, with the port where one was sent.
    pub(crate) host: String,
}

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
    pub(crate) fn fate(&self, audit: bool) -> Fate {
        match (self.allowed, audit) {
            (true, _) if !self.mismatch => Fate::Allowed,
            (true, _) | (false, true) => Fate::Audited,
            (false, false) => Fate::Denied,
        }
    }
}

/// The limits of one connection, from both ends.
#[derive(Debug)]
pub(crate) struct Guard {
    sides: Vec<(Direction, Side)>,
    pub(crate) keeps_source: bool,
    pub(crate) audit: bool,
    /// It matters for which name a connection asks.
    pub(crate) bound: bool,
    /// What that name means.
    pub(crate) binding: Match,
    /// Names that open the server's address.
    pub(crate) names: Arc<[Fqdn]>,
}

#[derive(Debug)]
enum Side {
    Free,
    Closed(Option<Arc<Origin>>),
    Rules(Vec<(Arc<Origin>, Arc<Compiled>)>),
}

#[derive(Debug)]
enum Compiled {
    Http(Vec<Http>),
    ServerNames(Vec<NamePattern>),
    /// Not for what this proxy reads.
    Other,
}

#[derive(Debug)]
struct Http {
    method: Option<Regex>,
    path: Option<Regex>,
    host: Option<Regex>,
    headers: Vec<HeaderMatch>,
}

/// Compiled limits, shared by all connections.
#[derive(Debug, Default)]
pub(crate) struct Compiler(Mutex<HashMap<Arc<L7>, Arc<Compiled>>>);

impl Compiler {
    pub(crate) fn guard(&self, demand: Demand) -> Guard {
        let sides = demand.sides.into_iter().map(|(direction, limits)| (direction, self.side(limits))).collect();
        let Demand { keeps_source, audit, bound, binding, names, .. } = demand;
        Guard { sides, keeps_source, audit, bound, binding, names }
    }

    fn side(&self, limits: Limits) -> Side {
        match limits {
            Limits::Free => Side::Free,
            Limits::Closed(rule) => Side::Closed(rule),
            Limits::Rules(rules) => {
                let limited = rules.iter().filter_map(|rule| Some((Arc::clone(&rule.origin), rule.l7.as_ref()?)));
                Side::Rules(limited.map(|(origin, l7)| (origin, self.compiled(l7))).collect())
            }
        }
    }

    fn compiled(&self, l7: &Arc<L7>) -> Arc<Compiled> {
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(compiled) = kept.get(l7) {
            return Arc::clone(compiled);
        }
        if kept.len() >= KEPT_MAX {
            kept.clear();
        }
        let compiled = Arc::new(Compiled::of(l7));
        kept.insert(Arc::clone(l7), Arc::clone(&compiled));
        compiled
    }
}

impl Compiled {
    fn of(l7: &L7) -> Self {
        match l7 {
            L7::Http(rules) => Self::Http(rules.iter().filter_map(Http::of).collect()),
            L7::ServerNames(patterns) => Self::ServerNames(patterns.clone()),
            L7::Dns(_) => Self::Other,
        }
    }

    fn allows(&self, asked: Asked<'_>) -> bool {
        match (self, asked) {
            (Self::Http(rules), Asked::Http(facts, fields)) => rules.iter().any(|rule| rule.allows(facts, fields)),
            (Self::ServerNames(patterns), Asked::Tls(Some(name))) => patterns.iter().any(|one| one.matches(name)),
            _ => false,
        }
    }
}

impl Http {
    /// `None` where an expression does not compile: what can not be read allows nothing.
    fn of(rule: &HttpRule) -> Option<Self> {
        let compile = |text: &Option<RegexText>| match text {
            None => Some(None),
            Some(text) => text.compile().map(Some),
        };
        let HttpRule { method, path, host, headers } = rule;
        Some(Self { method: compile(method)?, path: compile(path)?, host: compile(host)?, headers: headers.clone() })
    }

    fn allows(&self, facts: &HttpFacts, fields: &HeaderMap) -> bool {
        let holds = |regex: &Option<Regex>, text: &str| regex.as_ref().is_none_or(|regex| regex.is_match(text));
        holds(&self.method, &facts.method)
            && holds(&self.path, &facts.path)
            && holds(&self.host, &facts.host)
            && self.headers.iter().all(|wanted| {
                fields
                    .iter()
                    .any(|(name, value)| wanted.matches(name.as_str(), &String::from_utf8_lossy(value.as_bytes())))
            })
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
                Side::Free => {}
                Side::Closed(rule) => {
                    let mismatch = self.binding == Match::Refused && direction == Direction::Egress;
                    return Judgement { allowed: false, direction, rule: rule.clone(), mismatch };
                }
                Side::Rules(rules) => {
                    let Some((origin, _)) = rules.iter().find(|(_, limits)| limits.allows(asked)) else {
                        let rule = rules.first().map(|(origin, _)| Arc::clone(origin));
                        return Judgement { allowed: false, direction, rule, mismatch: false };
                    };
                    passed = Judgement { rule: Some(Arc::clone(origin)), direction, ..passed };
                }
            }
        }
        passed
    }

    /// Whether nothing is asked of requests beside their name.
    pub(crate) fn is_free(&self) -> bool {
        self.sides.iter().all(|(_, side)| matches!(side, Side::Free))
    }

    /// Whether a rule has conditions on HTTP requests.
    pub(crate) fn reads_http(&self) -> bool {
        let reads = |rules: &[(Arc<Origin>, Arc<Compiled>)]| {
            rules.iter().any(|(_, limits)| matches!(**limits, Compiled::Http(_)))
        };
        self.sides.iter().any(|(_, side)| matches!(side, Side::Rules(rules) if reads(rules)))
    }

    /// Whether some rule lets TLS through by its server name.
    pub(crate) fn takes_tls(&self) -> bool {
        self.sides.iter().all(|(_, side)| match side {
            Side::Free => true,
            Side::Closed(_) => false,
            Side::Rules(rules) => rules.iter().any(|(_, limits)| matches!(**limits, Compiled::ServerNames(_))),
        })
    }

    /// Whether some rule reads HTTP.
    pub(crate) fn takes_http(&self) -> bool {
        self.sides.iter().all(|(_, side)| match side {
            Side::Free => true,
            Side::Closed(_) => false,
            Side::Rules(rules) => rules.iter().any(|(_, limits)| matches!(**limits, Compiled::Http(_))),
        })
    }
}

#[cfg(test)]
mod tests {
    use namegate_config::{
        l7::Request,
        rule::{Effect, Peers, Ports, Rule, Subject, Tier},
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
        HttpFacts { method: method.into(), path: path.into(), host: host.into() }
    }

    fn fields(token: &str) -> HeaderMap {
        [("x-token".parse().unwrap(), token.parse().unwrap())].into_iter().collect()
    }

    #[test]
    fn compiled_rules_say_what_the_rules_say() {
        let rule = get("/a|/b.*");
        let compiled = Http::of(&rule).unwrap();
        let mut allowed = 0;
        for method in ["GET", "get", "POST"] {
            for path in ["/a", "/ab", "/b?x", "/"] {
                for host in ["a.io", "A.io:80", "a.io:81", ""] {
                    for token in ["42", "4"] {
                        let facts = facts(method, path, host);
                        let HttpFacts { method, path, host } = facts.clone();
                        let headers = vec![("X-Token".to_owned(), token.to_owned())];
                        let want = rule.matches(&Request::Http { method, path, host, headers });
                        assert_eq!(compiled.allows(&facts, &fields(token)), want, "{facts:?}");
                        allowed += u32::from(want);
                    }
                }
            }
        }
        assert_eq!(allowed, 4);
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
            let guard = Compiler::default().guard(Demand {
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
