//! What found no room in the kernel's maps, or was refused there: the engine closes it and tries it again, and it is listed
//! here for log, health, status and Kubernetes.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use namegate_engine::{GateError, MapWriter, Shortage, ShortageKind};

use crate::{FaultKind, Programs, writer::Enforcer};

/// For how long answers that were refused are a problem: the client may ask again.
const WITHHELD_FOR: Duration = Duration::from_secs(3);
/// How often answers alone renew the list: it takes time for each address.
const PACE: Duration = Duration::from_millis(500);

/// What is not enforced.
#[derive(Debug, Default)]
pub(crate) struct Shortages {
    /// Writes that the kernel refused, ever.
    pub(crate) writes: u64,
    /// The last of them.
    last: Option<String>,
    /// What keeps rules from being enforced now, by subject.
    unenforced: BTreeMap<String, String>,
    /// Endpoints that are closed, and why.
    pub(crate) closed: BTreeMap<String, String>,
    reported: Option<Instant>,
    /// When an answer was refused last.
    pub(crate) refused: Option<Instant>,
    is_unreported: bool,
    was_short: bool,
}

impl Shortages {
    /// What keeps rules from being enforced now.
    pub(crate) fn unenforced(&self) -> Vec<String> {
        self.unenforced.iter().map(|(subject, message)| format!("{subject}: {message}")).collect()
    }

    /// How long until the list should be renewed, where something waits for that.
    pub(crate) fn unreported_for(&self) -> Option<Duration> {
        self.is_unreported.then_some(PACE)
    }

    /// Counts writes that the kernel refused, and logs the first of them where it is another than before.
    pub(crate) fn note(&mut self, errors: &[GateError]) {
        let Some(first) = errors.first() else { return };
        self.writes += errors.len() as u64;
        let message = in_one_line(first);
        if self.last.as_ref() != Some(&message) {
            tracing::error!(error = message, "the kernel refused a row; it is tried again");
        }
        self.last = Some(message);
    }

    fn message(&self, short: &Shortage) -> String {
        match &self.last {
            Some(last) if short.kind == ShortageKind::Rows && short.setting.is_empty() => {
                format!("{}: {last}", short.message)
            }
            _ => short.message.clone(),
        }
    }
}

impl<K: MapWriter + Programs> Enforcer<K> {
    /// Renews the list of what is not as it should be, and publishes it where it is another.
    pub(crate) fn report_shortages(&mut self) {
        let is_short = self.engine.is_short();
        self.shortages.is_unreported = false;
        if !is_short && !self.shortages.was_short {
            return;
        }
        self.shortages.was_short = is_short;
        self.shortages.reported = Some(Instant::now());
        let found = self.engine.shortages();
        // An endpoint without room does not have these addresses: it is a problem as long as answers are refused.
        let is_refusing = self.shortages.refused.is_some_and(|at| at.elapsed() < WITHHELD_FOR);
        self.shortages.is_unreported = is_refusing && is_short;
        let of = |kinds: &[ShortageKind]| -> BTreeMap<String, String> {
            let chosen = found.iter().filter(|short| kinds.contains(&short.kind));
            chosen.map(|short| (subject(short), self.shortages.message(short))).collect()
        };
        let unenforced = of(&[ShortageKind::Rows, ShortageKind::Share, ShortageKind::Closed]);
        self.observer.replace(FaultKind::MapRow, "map ", of(&[ShortageKind::Rows]));
        self.observer.replace(FaultKind::MapRow, "endpoint ", of(&[ShortageKind::Closed]));
        let mut names = of(&[ShortageKind::Names]);
        if is_refusing {
            names.extend(of(&[ShortageKind::Withheld]));
        }
        self.observer.replace(FaultKind::Bound, "endpoint ", names);
        self.observer.replace(FaultKind::Bound, "namespace ", of(&[ShortageKind::Share]));
        let closed = found.iter().filter(|short| short.kind == ShortageKind::Closed);
        self.shortages.closed = closed.map(|short| (short.subject.clone(), short.message.clone())).collect();
        let is_changed = self.shortages.unenforced != unenforced;
        self.shortages.unenforced = unenforced;
        self.publish_enforcement();
        if is_changed {
            self.observer.enforcement_changed();
        }
    }

    /// The same after answers, at most once in a while.
    pub(crate) fn report_some_shortages(&mut self) {
        if self.shortages.reported.is_none_or(|at| at.elapsed() >= PACE) {
            self.report_shortages();
        } else {
            self.shortages.is_unreported = self.engine.is_short() || self.shortages.was_short;
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

/// An error with its causes.
fn in_one_line(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(Some(error), |error| error.source());
    causes.map(ToString::to_string).collect::<Vec<_>>().join(": ")
}
