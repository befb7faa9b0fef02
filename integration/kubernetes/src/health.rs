//! How each watch is, for those who ask.

use std::{
    collections::BTreeMap,
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

use crate::{backoff, follow::Failure, row::Kind};

/// A failure that was not followed by another for so long is over, once the server answers.
const OVER: Duration = Duration::from_secs(3).saturating_add(backoff::MAX);

/// One kind of objects and how it is followed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Source {
    /// The kind, as written in manifests.
    pub kind: &'static str,
    /// Whether it is followed.
    pub state: SourceState,
    /// Why not, in words.
    pub problem: Option<String>,
}

/// Whether a kind is followed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum SourceState {
    /// Not heard of yet.
    #[default]
    Listing,
    /// Followed.
    Watching,
    /// The server does not have the kind; it is looked for again.
    Absent,
    /// Not followed for now; what was known last stays in force.
    Failing,
}

#[derive(Clone, Debug, Default)]
struct State {
    state: SourceState,
    failure: Option<(Failure, Instant)>,
}

/// The state of every watch.
#[derive(Debug, Default)]
pub(crate) struct Health(Mutex<BTreeMap<Kind, State>>);

impl Health {
    /// A kind is followed or absent.
    pub(crate) fn well(&self, kind: Kind, state: SourceState) {
        let mut states = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let former = states.insert(kind, State { state, failure: None });
        if former.is_some_and(|former| former.state == SourceState::Failing) {
            tracing::info!(kind = kind.name(), "the API server is heard again");
        }
    }

    /// A kind is not followed for now.
    pub(crate) fn fails(&self, kind: Kind, failure: Failure) {
        let mut states = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let state = states.entry(kind).or_default();
        if state.state != SourceState::Failing {
            tracing::warn!(
                kind = kind.name(),
                problem = failure.problem,
                "not followed; what was known stays in force"
            );
        }
        *state = State { state: SourceState::Failing, failure: Some((failure, Instant::now())) };
    }

    /// Whether a look at the server could tell that a failure is over.
    pub(crate) fn is_in_doubt(&self) -> bool {
        let states = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        states.values().any(State::may_be_over)
    }

    /// The server has answered: a watch that has been quiet since its failure goes on.
    pub(crate) fn answered(&self) {
        let mut states = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        for state in states.values_mut().filter(|state| state.may_be_over()) {
            *state = State { state: SourceState::Watching, failure: None };
        }
    }

    /// Every kind.
    pub(crate) fn sources(&self) -> Vec<Source> {
        let states = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let source = |kind: Kind| {
            let state = states.get(&kind).cloned().unwrap_or_default();
            let problem = state.failure.map(|(failure, _)| failure.problem);
            Source { kind: kind.name(), state: state.state, problem }
        };
        Kind::ALL.into_iter().map(source).collect()
    }
}

impl State {
    fn may_be_over(&self) -> bool {
        let quiet = |(_, at): &(Failure, Instant)| at.elapsed() > OVER;
        self.state == SourceState::Failing && self.failure.as_ref().is_some_and(quiet)
    }
}
