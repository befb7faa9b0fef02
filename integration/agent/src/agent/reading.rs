//! What one reading of all sources brings.

use std::{collections::HashMap, sync::Arc};

use namegate_api::view;
use namegate_config::{endpoints::EndpointsFile, rule::Rule};
use namegate_kubernetes::{PolicyObject, Report, Snapshot};

use super::cluster_state::{ClusterState, Interfaces};

/// What a reading brought. What is the same as in the reading before is shared with it, and has the same revision.
#[derive(Clone, Debug, Default)]
pub(crate) struct Reading {
    /// Rules in force. One that has not changed is the same `Arc` as before.
    pub(crate) rules: Arc<[Arc<Rule>]>,
    /// Grows when `rules` change.
    pub(crate) rules_revision: u64,
    /// Endpoints in force.
    pub(crate) endpoints: Arc<EndpointsFile>,
    /// What Kubernetes adds.
    pub(crate) facts: Arc<ClusterState>,
    /// Interfaces of the endpoints.
    pub(crate) interfaces: Arc<Interfaces>,
    /// Grows when `endpoints`, `facts` or `interfaces` change.
    pub(crate) topology_revision: u64,
    /// What is to be said of the policies and endpoints.
    pub(crate) said: Arc<Diagnostics>,
    /// Grows when `said` changes.
    pub(crate) said_revision: u64,
}

/// What is said of policies and endpoints.
#[derive(Clone, Debug, Default)]
pub(crate) struct Diagnostics {
    /// What became of each file and object.
    pub(crate) units: Vec<Arc<UnitState>>,
    /// Mistakes and warnings of all of them, and of the endpoints file.
    pub(crate) found: Arc<[view::Diagnostic]>,
}

impl Diagnostics {
    /// One line for each policy.
    pub(crate) fn documents(&self) -> impl Iterator<Item = &view::Document> {
        self.units.iter().flat_map(|unit| &unit.documents)
    }
}

/// What holds of one file or object.
#[derive(Debug, Default)]
pub(crate) struct UnitState {
    /// One line for each policy in it.
    pub(crate) documents: Vec<view::Document>,
    /// Mistakes and warnings.
    pub(crate) diagnostics: Vec<view::Diagnostic>,
    /// The rules in force.
    pub(crate) rules: Vec<Arc<Rule>>,
}

impl Reading {
    /// Whether nothing differs.
    pub(crate) fn is_same(&self, other: &Self) -> bool {
        let revisions = |one: &Self| [one.rules_revision, one.topology_revision, one.said_revision];
        revisions(self) == revisions(other)
    }

    /// What is to be said of each object. `enforced` is whether the kernel holds the rules.
    pub(crate) fn reports(&self, snapshot: &Snapshot, enforced: bool) -> Vec<Report> {
        let mut found: HashMap<&str, (Vec<String>, Vec<String>)> = HashMap::new();
        for one in &*self.said.found {
            let (mistakes, warnings) = found.entry(&one.file).or_default();
            let list = if one.severity == view::Severity::Error { mistakes } else { warnings };
            let field = if one.field.is_empty() { String::new() } else { format!("`{}`: ", one.field) };
            list.push(format!("{field}{}", one.message));
        }
        let report = |object: &PolicyObject| {
            let (mistakes, warnings) = found.get(&*object.origin).cloned().unwrap_or_default();
            let enforced = enforced && mistakes.is_empty();
            Report { origin: Arc::clone(&object.origin), version: object.version.clone(), mistakes, warnings, enforced }
        };
        snapshot.policies.iter().map(report).collect()
    }
}
