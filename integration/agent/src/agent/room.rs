//! What found no room in the kernel's maps, or was refused there: it is closed by the engine, tried again, and listed here for
//! log, health, status and Kubernetes.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use namegate_dns_proxy::NotInstalled;
use namegate_engine::{Answer, GateError, MapOp, NotOpen, Shortage, ShortageKind, carry_out, tick_out};

use super::{
    clock::boot_ns,
    gate::{Chain, Gate},
    problems::ProblemKind,
};

/// For how long answers that were refused are a problem: the client may ask again.
const WITHHELD_FOR: Duration = Duration::from_secs(3);
/// How often answers alone renew the list: it takes time for each address.
const PACE: Duration = Duration::from_millis(500);

/// What is not enforced, and who is to hear of a change.
#[derive(Default)]
pub(crate) struct Room {
    /// Writes that the kernel refused, ever.
    writes: u64,
    /// The last of them.
    last: Option<String>,
    /// What keeps rules from being enforced now, by subject.
    unenforced: BTreeMap<String, String>,
    /// Endpoints that are closed, and why.
    closed: BTreeMap<String, String>,
    reported: Option<Instant>,
    /// When an answer was refused last.
    refused: Option<Instant>,
    is_unreported: bool,
    was_short: bool,
    /// Called when what is not enforced changes.
    nudge: Option<Box<dyn Fn() + Send>>,
}

impl Room {
    /// Writes that the kernel refused, ever.
    pub(crate) fn writes(&self) -> u64 {
        self.writes
    }

    /// What keeps rules from being enforced now.
    pub(crate) fn unenforced(&self) -> Vec<String> {
        self.unenforced.iter().map(|(subject, message)| format!("{subject}: {message}")).collect()
    }

    /// Endpoints that are closed, by `namespace/name`, and why.
    pub(crate) fn closed(&self) -> &BTreeMap<String, String> {
        &self.closed
    }

    /// Calls `nudge` when what is not enforced changes without a change of policies or endpoints.
    pub(crate) fn follow(&mut self, nudge: impl Fn() + Send + 'static) {
        // It may have changed already.
        nudge();
        self.nudge = Some(Box::new(nudge));
    }

    /// How long until the list should be renewed, where something waits for that.
    pub(crate) fn unreported_for(&self) -> Option<Duration> {
        self.is_unreported.then_some(PACE)
    }
}

impl Gate {
    /// Carries writes out; what is open because one is refused is closed.
    pub(super) fn write(&mut self, ops: &[MapOp]) -> Vec<GateError> {
        let errors = carry_out(&mut self.engine, &mut self.datapath, ops, boot_ns());
        self.note(&errors);
        errors
    }

    /// Does what is due, and tries again what found no room.
    pub(super) fn tick(&mut self) {
        let errors = tick_out(&mut self.engine, &mut self.datapath, boot_ns());
        self.note(&errors);
        self.keep();
        self.report_shortages();
    }

    fn note(&mut self, errors: &[GateError]) {
        let Some(first) = errors.first() else { return };
        self.room.writes += errors.len() as u64;
        let message = Chain(first).to_string();
        if self.room.last.as_ref() != Some(&message) {
            tracing::error!(error = message, "the kernel refused a row; it is tried again");
        }
        self.room.last = Some(message);
    }

    /// Installs answers: one result for each.
    pub(super) fn learn(&mut self, answers: &[Answer]) -> Vec<Result<(), NotInstalled>> {
        let now = boot_ns();
        let mut ops = Vec::new();
        let mut results = Vec::with_capacity(answers.len());
        for answer in answers {
            ops.clear();
            let learned = self.engine.learn(answer, now, &mut ops);
            let errors = self.write(&ops);
            if learned == Err(NotOpen::NoRoom) {
                self.room.refused = Some(Instant::now());
            }
            results.push(match errors.first() {
                Some(GateError::Full { .. }) => Err(NotInstalled::Full),
                Some(GateError::Access { .. }) => Err(NotInstalled::Write),
                None => learned.map_err(not_installed),
            });
        }
        results
    }

    /// Renews the list of what is not as it should be.
    pub(super) fn report_shortages(&mut self) {
        let is_short = self.engine.is_short();
        self.room.is_unreported = false;
        if !is_short && !self.room.was_short {
            return;
        }
        self.room.was_short = is_short;
        self.room.reported = Some(Instant::now());
        let shortages = self.engine.shortages();
        // An endpoint without room does not have these addresses: it is a problem as long as answers are refused.
        let is_refusing = self.room.refused.is_some_and(|at| at.elapsed() < WITHHELD_FOR);
        self.room.is_unreported = is_refusing && is_short;
        let of = |kinds: &[ShortageKind]| -> BTreeMap<String, String> {
            let chosen = shortages.iter().filter(|short| kinds.contains(&short.kind));
            chosen.map(|short| (subject(short), self.room.message(short))).collect()
        };
        let unenforced = of(&[ShortageKind::Rows, ShortageKind::Share, ShortageKind::Closed]);
        self.problems.replace(ProblemKind::MapRow, "map ", of(&[ShortageKind::Rows]));
        self.problems.replace(ProblemKind::MapRow, "endpoint ", of(&[ShortageKind::Closed]));
        let mut names = of(&[ShortageKind::Names]);
        if is_refusing {
            names.extend(of(&[ShortageKind::Withheld]));
        }
        self.problems.replace(ProblemKind::Bound, "endpoint ", names);
        self.problems.replace(ProblemKind::Bound, "namespace ", of(&[ShortageKind::Share]));
        let closed = shortages.iter().filter(|short| short.kind == ShortageKind::Closed);
        self.room.closed = closed.map(|short| (short.subject.clone(), short.message.clone())).collect();
        let is_changed = self.room.unenforced != unenforced;
        self.room.unenforced = unenforced;
        if let Some(nudge) = self.room.nudge.as_ref().filter(|_| is_changed) {
            nudge();
        }
    }

    /// The same after answers, at most once in a while.
    pub(super) fn report_some_shortages(&mut self) {
        if self.room.reported.is_none_or(|at| at.elapsed() >= PACE) {
            self.report_shortages();
        } else {
            self.room.is_unreported = self.engine.is_short() || self.room.was_short;
        }
    }
}

impl Room {
    fn message(&self, short: &Shortage) -> String {
        match &self.last {
            Some(last) if short.kind == ShortageKind::Rows && short.setting.is_empty() => {
                format!("{}: {last}", short.message)
            }
            _ => short.message.clone(),
        }
    }
}

fn subject(short: &Shortage) -> String {
    match short.kind {
        ShortageKind::Rows => format!("map {}", short.subject),
        ShortageKind::Share => format!("namespace {}", short.subject),
        ShortageKind::Closed | ShortageKind::Names | ShortageKind::Withheld => format!("endpoint {}", short.subject),
    }
}

fn not_installed(why: NotOpen) -> NotInstalled {
    match why {
        NotOpen::Unknown => NotInstalled::Unknown,
        NotOpen::TooMany => NotInstalled::TooMany,
        NotOpen::NoRoom => NotInstalled::Full,
    }
}
