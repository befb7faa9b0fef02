//! Runs cases: both sides of every flow, look-ups with their TTL, services as the pods behind them.

use std::{fmt, net::IpAddr, sync::Arc};

use super::{
    Answer, Case, Check, Family, Place,
    world::{Side, SideKind, World},
};
use crate::{
    l7::Request,
    name::Fqdn,
    peer::Peer,
    policy::translate,
    question::QueryType,
    reference::{Flow, Reason, SubjectFacts, Verdict, verdict, verdict_l7},
    rule::{Direction, Rule},
};

/// The service that pods look names up at.
pub(super) const RESOLVER: &str = "kube-system/kube-dns";
const RESOLVER_FLOW: Flow = Flow { protocol: 17, port: 53 };

/// Something that decides flows.
pub trait Judge {
    /// A step begins: this is the cluster, and these rules are in force from now on. Its clock starts at zero.
    fn load(&mut self, world: &World, rules: &[Rule]) -> Result<(), NotJudged>;

    /// The clock stands at `now_s` seconds since the step began. An answer of DNS has come, at [`Answer::at_s`].
    fn hear(&mut self, answer: &Answer, now_s: u64) -> Result<(), NotJudged>;

    /// Decides one side of a flow.
    fn verdict(&mut self, question: &Question<'_>) -> Result<Verdict, NotJudged>;
}

/// Why there is no verdict: the judge could not.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NotJudged(pub String);

impl fmt::Display for NotJudged {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// One side of a flow.
#[derive(Clone, Copy, Debug)]
pub struct Question<'a> {
    /// Whose rules are asked.
    pub subject: SubjectFacts<'a>,
    /// How cases name the subject.
    pub place: &'a Place,
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
    /// Whether the flow is the look-up that a client makes ahead of a flow to a name.
    pub is_lookup: bool,
    /// Seconds since the step began.
    pub now_s: u64,
}

/// The evaluator of [`crate::reference`].
#[derive(Clone, Debug, Default)]
pub struct Reference {
    rules: Vec<Rule>,
}

impl Judge for Reference {
    fn load(&mut self, _: &World, rules: &[Rule]) -> Result<(), NotJudged> {
        self.rules = rules.to_vec();
        Ok(())
    }

    /// The names of a peer are part of the question.
    fn hear(&mut self, _: &Answer, _: u64) -> Result<(), NotJudged> {
        Ok(())
    }

    fn verdict(&mut self, question: &Question<'_>) -> Result<Verdict, NotJudged> {
        let Question { subject, peer, direction, flow, .. } = question;
        Ok(match question.request {
            Some(request) => verdict_l7(&self.rules, subject, peer, *direction, *flow, request),
            None => verdict(&self.rules, subject, peer, *direction, *flow),
        })
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
    /// What each side said, in the order in which they were asked: a look-up first, egress before ingress.
    pub sides: Vec<(Direction, Verdict)>,
}

/// A flow that was judged.
#[derive(Clone, Copy, Debug)]
pub struct Seen<'a> {
    /// Number of the step, from 0.
    pub step: usize,
    /// The flow.
    pub check: &'a Check,
    /// What became of it.
    pub got: &'a Outcome,
    /// See [`Failure::sides`].
    pub sides: &'a [(Direction, Verdict)],
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
        /// How it shows: `drop`, `http-403`, `http-400`, `dns-refused`, `tls-reset`.
        how: &'static str,
    },
    /// It cannot be asked: nobody is there.
    Impossible(&'static str),
    /// The judge gave no verdict.
    NotJudged(NotJudged),
}

impl Outcome {
    /// Whether the check wants this.
    pub fn is_as_wanted(&self, check: &Check) -> bool {
        match self {
            Self::Allowed => check.allowed,
            Self::Denied { how, .. } => !check.allowed && check.how.as_deref().is_none_or(|wanted| wanted == *how),
            Self::Impossible(_) | Self::NotJudged(_) => false,
        }
    }
}

/// Runs every step of a case.
pub fn run(case: &Case, world: &World, judge: &mut dyn Judge) -> Report {
    let mut report = Report::default();
    run_each(case, world, judge, &mut |Seen { step, check, got, sides }| {
        report.checked += 1;
        if !got.is_as_wanted(check) {
            report.failures.push(Failure { step, check: check.clone(), got: got.clone(), sides: sides.to_vec() });
        }
    });
    report
}

/// The same; `see` is given every flow.
pub fn run_each(case: &Case, world: &World, judge: &mut dyn Judge, see: &mut dyn FnMut(Seen<'_>)) {
    for (number, step) in case.steps.iter().enumerate() {
        let world = world.changed(&step.changes);
        let loaded = judge.load(&world, &translate(&step.documents, &world.catalog()).rules);
        let mut answers: Vec<Answer> = step.answers.clone();
        answers.sort_by_key(|answer| std::cmp::Reverse(answer.at_s));
        let mut state =
            State { world: &world, judge, now_s: 0, learned: Vec::new(), to_come: answers, sides: Vec::new() };
        for check in &step.checks {
            state.sides.clear();
            let got = loaded.clone().and_then(|()| state.outcome(check)).unwrap_or_else(Outcome::NotJudged);
            see(Seen { step: number, check, got: &got, sides: &state.sides });
        }
    }
}

struct State<'a> {
    world: &'a World,
    judge: &'a mut dyn Judge,
    now_s: u64,
    /// Answers that have come.
    learned: Vec<Answer>,
    /// Answers that come later, the next one last.
    to_come: Vec<Answer>,
    /// What each side of the check said.
    sides: Vec<(Direction, Verdict)>,
}

/// What is asked about two ends.
#[derive(Clone, Copy)]
struct Asked<'a> {
    flow: Flow,
    request: Option<&'a Request>,
    is_lookup: bool,
}

type Judged = Result<Outcome, NotJudged>;

impl State<'_> {
    fn outcome(&mut self, check: &Check) -> Judged {
        self.now_s = check.at_s.unwrap_or(self.now_s);
        while let Some(answer) = self.to_come.pop_if(|answer| answer.at_s <= self.now_s) {
            self.hear(answer)?;
        }
        let Some(source) = self.world.side(&check.from, check.family) else {
            return Ok(Outcome::Impossible("there is no such source"));
        };
        let asked = Asked { flow: check.flow, request: check.request.as_ref(), is_lookup: false };
        match &check.to {
            Place::Name(name) => self.by_name(&source, name, check.family, asked),
            Place::Service(key) => self.by_service(&source, key, check.family, asked),
            Place::Address(address) => self.by_address(&source, *address, asked),
            place => match self.world.side(place, check.family) {
                Some(target) => self.pair(&source, &target, asked),
                None => Ok(Outcome::Impossible("there is no such destination")),
            },
        }
    }

    fn hear(&mut self, answer: Answer) -> Result<(), NotJudged> {
        self.judge.hear(&answer, self.now_s)?;
        self.learned.push(answer);
        Ok(())
    }

    /// Looks the name up as the client would, then connects to the first address.
    fn by_name(&mut self, source: &Side, name: &Fqdn, family: Family, asked: Asked<'_>) -> Judged {
        let kind = match family {
            Family::V4 => QueryType::A,
            Family::V6 => QueryType::AAAA,
        };
        let question = Request::Dns { name: name.clone(), kind };
        let lookup = Asked { flow: RESOLVER_FLOW, request: Some(&question), is_lookup: true };
        let looked_up = self.by_service(source, RESOLVER, family, lookup)?;
        if looked_up != Outcome::Allowed {
            return Ok(looked_up);
        }
        let resolved = self.world.resolve(name, family);
        let Some(address) = resolved.addresses.first().copied() else {
            return Ok(Outcome::Impossible("the name has no address"));
        };
        self.hear(Answer {
            at_s: self.now_s,
            by: source.place.clone(),
            names: resolved.names,
            addresses: resolved.addresses,
            ttl_s: resolved.ttl_s,
        })?;
        self.by_address(source, address, asked)
    }

    fn by_address(&mut self, source: &Side, address: IpAddr, asked: Asked<'_>) -> Judged {
        if let Some(service) = self.world.service_at(address) {
            let key = format!("{}/{}", service.namespace, service.name);
            return self.by_service(source, &key, Family::of(address), asked);
        }
        self.pair(source, &self.world.at(address), asked)
    }

    /// Every pod behind the service must be decided alike.
    fn by_service(&mut self, source: &Side, key: &str, family: Family, asked: Asked<'_>) -> Judged {
        let is_it = |service: &&super::Service| key.split_once('/') == Some((&service.namespace, &service.name));
        let Some(service) = self.world.services.iter().find(is_it) else {
            return Ok(Outcome::Impossible("there is no such service"));
        };
        let mut outcomes = Vec::new();
        for (target, port) in self.world.backends(service, asked.flow.protocol, asked.flow.port, family) {
            let behind = Asked { flow: Flow { port, ..asked.flow }, ..asked };
            outcomes.push(self.pair(source, &target, behind)?);
        }
        let allowed = outcomes.iter().filter(|outcome| **outcome == Outcome::Allowed).count();
        Ok(match outcomes.pop() {
            None => Outcome::Impossible("nobody is behind the service"),
            Some(_) if allowed != 0 && allowed != outcomes.len() + 1 => {
                Outcome::Impossible("the pods behind the service are decided differently")
            }
            Some(outcome) => outcome,
        })
    }

    /// Both sides; a pod reaches itself. The first denial stands.
    fn pair(&mut self, source: &Side, target: &Side, asked: Asked<'_>) -> Judged {
        if source.place == target.place {
            return Ok(Outcome::Allowed);
        }
        let mut denied = None;
        for (direction, subject, other) in [(Direction::Egress, source, target), (Direction::Ingress, target, source)] {
            if subject.kind == SideKind::World {
                continue;
            }
            let verdict = self.side(direction, subject, other, asked)?;
            if !verdict.allowed {
                let how = how(verdict.reason, asked.request);
                denied = denied.or(Some(Outcome::Denied { direction, verdict, how }));
            }
        }
        Ok(denied.unwrap_or(Outcome::Allowed))
    }

    fn side(
        &mut self,
        direction: Direction,
        subject: &Side,
        other: &Side,
        asked: Asked<'_>,
    ) -> Result<Verdict, NotJudged> {
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
        let verdict = self.judge.verdict(&Question {
            subject: facts,
            place: &subject.place,
            address: subject.address,
            peer: &peer,
            direction,
            flow: asked.flow,
            request: asked.request,
            is_lookup: asked.is_lookup,
            now_s: self.now_s,
        })?;
        self.sides.push((direction, verdict.clone()));
        Ok(verdict)
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
        Some(request @ Request::Http { .. }) if reason == Reason::L7 => {
            if request.head().is_ok() {
                "http-403"
            } else {
                "http-400"
            }
        }
        Some(Request::Dns { .. }) if reason == Reason::L7 => "dns-refused",
        Some(Request::Tls { .. }) if reason == Reason::L7 => "tls-reset",
        _ => "drop",
    }
}
