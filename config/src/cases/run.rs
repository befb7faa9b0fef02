//! Runs cases: both sides of every flow, look-ups with their TTL, services as the pods behind them.

use std::{net::IpAddr, sync::Arc};

use super::{
    Answer, Case, Check, Family, Place,
    world::{Side, SideKind, World},
};
use crate::{
    l7::Request,
    name::Fqdn,
    peer::Peer,
    policy::translate,
    reference::{Flow, Reason, SubjectFacts, Verdict, verdict, verdict_l7},
    rule::{Direction, Rule},
};

/// The service that pods look names up at.
const RESOLVER: &str = "kube-system/kube-dns";
const RESOLVER_FLOW: Flow = Flow { protocol: 17, port: 53 };

/// Something that decides flows.
pub trait Judge {
    /// These rules are in force from now on.
    fn load(&mut self, rules: &[Rule]);

    /// Decides one side of a flow.
    fn verdict(&mut self, question: &Question<'_>) -> Verdict;
}

/// One side of a flow.
#[derive(Clone, Copy, Debug)]
pub struct Question<'a> {
    /// Whose rules are asked.
    pub subject: SubjectFacts<'a>,
    /// The address of the subject.
    pub address: IpAddr,
    /// The other side.
    pub peer: &'a Peer,
    /// Egress where the subject starts the flow.
    pub direction: Direction,
    /// Protocol and destination port.
    pub flow: Flow,
    /// What is asked inside the flow.
    pub request: Option<&'a Request>,
}

/// The evaluator of [`crate::reference`].
#[derive(Clone, Debug, Default)]
pub struct Reference {
    rules: Vec<Rule>,
}

impl Judge for Reference {
    fn load(&mut self, rules: &[Rule]) {
        self.rules = rules.to_vec();
    }

    fn verdict(&mut self, question: &Question<'_>) -> Verdict {
        let Question { subject, peer, direction, flow, .. } = question;
        match question.request {
            Some(request) => verdict_l7(&self.rules, subject, peer, *direction, *flow, request),
            None => verdict(&self.rules, subject, peer, *direction, *flow),
        }
    }
}

/// What became of a case.
#[derive(Clone, Debug, Default)]
pub struct Report {
    /// Flows that were asked.
    pub checked: usize,
    /// Those that were decided otherwise than expected.
    pub failures: Vec<Failure>,
}

/// A flow that was decided otherwise than expected.
#[derive(Clone, Debug)]
pub struct Failure {
    /// Number of the step, from 0.
    pub step: usize,
    /// The flow.
    pub check: Check,
    /// What came out.
    pub got: Outcome,
}

/// What became of a flow.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Both sides let it pass.
    Allowed,
    /// A side denies it.
    Denied {
        /// Which side.
        direction: Direction,
        /// Why.
        verdict: Verdict,
        /// How it shows: `drop`, `http-403`, `dns-refused`, `tls-reset`.
        how: &'static str,
    },
    /// It cannot be asked: nobody is there.
    Impossible(&'static str),
}

/// Runs every step of a case.
pub fn run(case: &Case, world: &World, judge: &mut dyn Judge) -> Report {
    let mut report = Report::default();
    for (step_number, step) in case.steps.iter().enumerate() {
        let world = world.changed(&step.changes);
        judge.load(&translate(&step.documents, &world.catalog()).rules);
        let mut state = State { world: &world, judge, now_s: 0, learned: step.answers.clone() };
        for check in &step.checks {
            report.checked += 1;
            let got = state.outcome(check);
            let as_wanted = match &got {
                Outcome::Allowed => check.allowed,
                Outcome::Denied { how, .. } => {
                    !check.allowed && check.how.as_deref().is_none_or(|wanted| wanted == *how)
                }
                Outcome::Impossible(_) => false,
            };
            if !as_wanted {
                report.failures.push(Failure { step: step_number, check: check.clone(), got });
            }
        }
    }
    report
}

struct State<'a> {
    world: &'a World,
    judge: &'a mut dyn Judge,
    now_s: u64,
    learned: Vec<Answer>,
}

impl State<'_> {
    fn outcome(&mut self, check: &Check) -> Outcome {
        self.now_s = check.at_s.unwrap_or(self.now_s);
        let Some(source) = self.world.side(&check.from, check.family) else {
            return Outcome::Impossible("there is no such source");
        };
        let request = check.request.as_ref();
        match &check.to {
            Place::Name(name) => self.by_name(&source, name, check),
            Place::Service(key) => self.by_service(&source, key, check.family, check.flow, request),
            Place::Address(address) => self.by_address(&source, *address, check.flow, request),
            place => match self.world.side(place, check.family) {
                Some(target) => self.pair(&source, &target, check.flow, request),
                None => Outcome::Impossible("there is no such destination"),
            },
        }
    }

    /// Looks the name up as the client would, then connects to the first address.
    fn by_name(&mut self, source: &Side, name: &Fqdn, check: &Check) -> Outcome {
        let question = Request::Dns { name: name.clone() };
        let asked = self.by_service(source, RESOLVER, check.family, RESOLVER_FLOW, Some(&question));
        if asked != Outcome::Allowed {
            return asked;
        }
        let resolved = self.world.resolve(name, check.family);
        let Some(address) = resolved.addresses.first().copied() else {
            return Outcome::Impossible("the name has no address");
        };
        self.learned.push(Answer {
            at_s: self.now_s,
            by: source.place.clone(),
            names: resolved.names,
            addresses: resolved.addresses,
            ttl_s: resolved.ttl_s,
        });
        self.by_address(source, address, check.flow, check.request.as_ref())
    }

    fn by_address(&mut self, source: &Side, address: IpAddr, flow: Flow, request: Option<&Request>) -> Outcome {
        if let Some(service) = self.world.service_at(address) {
            let key = format!("{}/{}", service.namespace, service.name);
            return self.by_service(source, &key, Family::of(address), flow, request);
        }
        self.pair(source, &self.world.at(address), flow, request)
    }

    /// Every pod behind the service must be decided alike.
    fn by_service(
        &mut self,
        source: &Side,
        key: &str,
        family: Family,
        flow: Flow,
        request: Option<&Request>,
    ) -> Outcome {
        let is_it = |service: &&super::Service| key.split_once('/') == Some((&service.namespace, &service.name));
        let Some(service) = self.world.services.iter().find(is_it) else {
            return Outcome::Impossible("there is no such service");
        };
        let mut outcomes = Vec::new();
        for (target, port) in self.world.backends(service, flow.protocol, flow.port, family) {
            outcomes.push(self.pair(source, &target, Flow { port, ..flow }, request));
        }
        let allowed = outcomes.iter().filter(|outcome| **outcome == Outcome::Allowed).count();
        match outcomes.pop() {
            None => Outcome::Impossible("nobody is behind the service"),
            Some(_) if allowed != 0 && allowed != outcomes.len() + 1 => {
                Outcome::Impossible("the pods behind the service are decided differently")
            }
            Some(outcome) => outcome,
        }
    }

    /// Both sides; a pod reaches itself.
    fn pair(&mut self, source: &Side, target: &Side, flow: Flow, request: Option<&Request>) -> Outcome {
        if source.place == target.place {
            return Outcome::Allowed;
        }
        for (direction, subject, other) in [(Direction::Egress, source, target), (Direction::Ingress, target, source)] {
            if subject.kind == SideKind::World {
                continue;
            }
            let labels = subject.labels_from(subject.node());
            let peer = Peer {
                labels: Arc::new(other.labels_from(subject.node())),
                address: other.address,
                names: self.names(subject, other.address),
                named_ports: Arc::clone(&other.named_ports),
            };
            let facts = SubjectFacts {
                labels: &labels,
                is_node: matches!(subject.kind, SideKind::Host(_)),
                named_ports: &subject.named_ports,
            };
            let question = Question { subject: facts, address: subject.address, peer: &peer, direction, flow, request };
            let verdict = self.judge.verdict(&question);
            if !verdict.allowed {
                let how = how(verdict.reason, request);
                return Outcome::Denied { direction, verdict, how };
            }
        }
        Outcome::Allowed
    }

    /// Names by which the subject knows an address now.
    fn names(&self, subject: &Side, address: IpAddr) -> Vec<Fqdn> {
        let is_known = |answer: &&Answer| {
            answer.by == subject.place
                && answer.addresses.contains(&address)
                && (answer.at_s..answer.at_s.saturating_add(answer.ttl_s)).contains(&self.now_s)
        };
        self.learned.iter().filter(is_known).flat_map(|answer| answer.names.iter().cloned()).collect()
    }
}

/// How a denial shows.
fn how(reason: Reason, request: Option<&Request>) -> &'static str {
    match request {
        Some(Request::Http { .. }) if reason == Reason::L7 => "http-403",
        Some(Request::Dns { .. }) if reason == Reason::L7 => "dns-refused",
        Some(Request::Tls { .. }) if reason == Reason::L7 => "tls-reset",
        _ => "drop",
    }
}
