//! What the enforcer reports as it happens.

use std::{collections::BTreeMap, time::Duration};

use namegate_engine::EndpointId;

/// A kind of fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum FaultKind {
    /// A row of the kernel's maps was refused, or there is no room for it.
    MapRow,
    /// A bound of the settings is reached.
    Bound,
    /// A look-up of links failed.
    Lookup,
    /// The journal can't be written.
    State,
}

/// Takes the enforcer's reports. It is called on the enforcer's thread and must not block.
pub trait Observer: Send + Sync + 'static {
    /// Something is wrong with `subject`. The message takes the place of what was reported of it before.
    fn raise(&self, kind: FaultKind, subject: &str, message: String);

    /// `subject` is right again.
    fn clear(&self, kind: FaultKind, subject: &str);

    /// These subjects are wrong. All others of the kind that begin with `prefix` are right again.
    fn replace(&self, kind: FaultKind, prefix: &str, now: BTreeMap<String, String>);

    /// The addresses of a batch of answers are in the kernel; `took` is the time since they were handed over.
    fn installed(&self, took: Duration) {
        let _ = took;
    }

    /// As many answers of an endpoint were refused, since too many of its answers wait.
    fn refused(&self, endpoint: EndpointId, count: usize) {
        let _ = (endpoint, count);
    }

    /// What is not enforced changed without a change of policies or endpoints.
    fn enforcement_changed(&self) {}
}
