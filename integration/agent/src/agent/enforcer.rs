//! The enforcer as the agent runs it: on the kernel's maps and programs, with reports to the list of problems.

use std::{
    collections::BTreeMap,
    sync::{Arc, OnceLock},
    time::Duration,
};

use namegate_abi::Settings as KernelSettings;
use namegate_api::{Instruments, Refusal};
use namegate_config::rule;
use namegate_enforcer::{FaultKind, NotDone, Observer, ProgramError, Programs};
use namegate_engine::{EndpointId, GateError, MapOp, MapWriter, Row};
use namegate_loader::{Datapath, Directions, LoadError};

use super::{
    problems::{ProblemKind, Problems},
    refusals::{Bound, Refusals},
};

/// The kernel's maps, and its programs in the directions of the settings.
pub(crate) struct Kernel {
    pub(crate) datapath: Datapath,
    pub(crate) directions: Directions,
}

impl MapWriter for Kernel {
    fn write(&mut self, op: &MapOp) -> Result<(), GateError> {
        self.datapath.write(op)
    }

    fn rows(&self) -> Result<Vec<Row>, GateError> {
        self.datapath.rows()
    }
}

impl Programs for Kernel {
    fn attached(&self) -> Result<Vec<u32>, ProgramError> {
        done(self.datapath.attached())
    }

    fn attach(&mut self, interface: u32) -> Result<(), ProgramError> {
        done(self.datapath.attach(interface, self.directions))
    }

    fn detach(&mut self, interface: u32) -> Result<(), ProgramError> {
        done(self.datapath.detach(interface))
    }

    fn attach_node(&mut self, is_wanted: bool) -> Result<(), ProgramError> {
        done(if is_wanted { self.datapath.guard_node(self.directions) } else { self.datapath.release_node() })
    }

    fn pin_maps_again(&mut self) -> Result<usize, ProgramError> {
        done(self.datapath.pin_maps_again().map(|pinned| pinned.len()))
    }

    fn configure(&mut self, settings: &KernelSettings) -> Result<(), GateError> {
        self.datapath.set(settings)
    }
}

/// What the loader did, as the enforcer understands it.
fn done<T>(result: Result<T, LoadError>) -> Result<T, ProgramError> {
    result.map_err(|error| ProgramError { message: Chain(&error).to_string(), is_gone: error.is_gone() })
}

/// Where the enforcer's reports go.
#[derive(Default)]
pub(crate) struct Reports {
    pub(crate) problems: Arc<Problems>,
    pub(crate) refusals: Arc<Refusals>,
    pub(crate) instruments: Instruments,
    /// Called when what is not enforced changes without a change of policies or endpoints.
    nudge: OnceLock<Box<dyn Fn() + Send + Sync>>,
}

impl Reports {
    /// Calls `nudge` when what is not enforced changes without a change of policies or endpoints.
    pub(crate) fn follow(&self, nudge: impl Fn() + Send + Sync + 'static) {
        let nudge = self.nudge.get_or_init(|| Box::new(nudge));
        // It may have changed already.
        nudge();
    }
}

impl Observer for Reports {
    fn raise(&self, kind: FaultKind, subject: &str, message: String) {
        self.problems.raise(problem(kind), subject, message);
    }

    fn clear(&self, kind: FaultKind, subject: &str) {
        self.problems.clear(problem(kind), subject);
    }

    fn replace(&self, kind: FaultKind, prefix: &str, now: BTreeMap<String, String>) {
        self.problems.replace(problem(kind), prefix, now);
    }

    fn installed(&self, took: Duration) {
        self.instruments.answer_installed(took);
    }

    fn refused(&self, endpoint: EndpointId, count: usize) {
        self.refusals.add(Bound::AnswersWaiting, endpoint.0, count as u64);
    }

    fn enforcement_changed(&self) {
        if let Some(nudge) = self.nudge.get() {
            nudge();
        }
    }
}

const fn problem(kind: FaultKind) -> ProblemKind {
    match kind {
        FaultKind::MapRow => ProblemKind::MapRow,
        FaultKind::Bound => ProblemKind::Bound,
        FaultKind::Lookup => ProblemKind::Lookup,
        FaultKind::State => ProblemKind::State,
    }
}

/// What the API answers where the enforcer did not do something.
pub(crate) fn refusal(error: NotDone) -> Refusal {
    Refusal::Unavailable(error.to_string())
}

/// An error with its causes in one line.
pub(crate) struct Chain<'a>(pub(crate) &'a dyn std::error::Error);

impl std::fmt::Display for Chain<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}", self.0)?;
        let mut cause = self.0.source();
        while let Some(error) = cause {
            write!(f, ": {error}")?;
            cause = error.source();
        }
        Ok(())
    }
}

/// Which programs a setting asks for.
pub(crate) fn directions(of: &[rule::Direction]) -> Directions {
    match of {
        [rule::Direction::Egress] => Directions::Egress,
        [rule::Direction::Ingress] => Directions::Ingress,
        _ => Directions::Both,
    }
}

/// Whether an error asks for root or another kernel, for the exit's last line.
pub(crate) fn load_error(error: LoadError) -> anyhow::Error {
    anyhow::Error::new(error).context("loading the eBPF programs")
}
