//! What was read from the files and how far the kernel is, for those who ask.

use std::{
    collections::HashSet,
    sync::{Arc, PoisonError, RwLock, RwLockReadGuard},
};

use namegate_api::view::{Diagnostic, Revision, Severity, Unenforced};
use namegate_config::{
    endpoints::{Endpoint, EndpointsFile},
    rule::{Direction, Rule, Transport},
};
use namegate_engine::DividedPort;

use super::{
    interfaces::Interfaces,
    sources::{Facts, Reading, Said},
};

/// The state of the files.
#[derive(Debug, Default)]
pub(crate) struct Book(RwLock<Page>);

/// One reading, and how far it is carried out.
#[derive(Clone, Debug, Default)]
pub(crate) struct Page {
    /// How far the kernel is.
    pub(crate) revision: Revision,
    /// What is said of the policies and endpoints.
    pub(crate) said: Arc<Said>,
    /// What the kernel's side adds to the warnings.
    pub(crate) divided: Vec<Diagnostic>,
    /// Rules that hold nothing back.
    pub(crate) not_enforced: Vec<Unenforced>,
    /// Endpoints in force.
    pub(crate) endpoints: Arc<EndpointsFile>,
    /// Those of them that are to be guarded here.
    pub(crate) ours: Vec<Arc<Endpoint>>,
    /// What Kubernetes adds.
    pub(crate) facts: Arc<Facts>,
    /// Their interfaces.
    pub(crate) interfaces: Interfaces,
}

impl Page {
    /// Mistakes and warnings.
    pub(crate) fn diagnostics(&self) -> Vec<Diagnostic> {
        self.said.diagnostics.iter().chain(&self.divided).cloned().collect()
    }
}

impl Book {
    /// The page as it is now.
    pub(crate) fn page(&self) -> RwLockReadGuard<'_, Page> {
        self.0.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes a reading that the kernel does not hold yet.
    pub(crate) fn want(&self, reading: &Reading, interfaces: &Interfaces, directions: &[Direction]) {
        let mut page = self.0.write().unwrap_or_else(PoisonError::into_inner);
        page.revision.wanted += 1;
        page.said = Arc::clone(&reading.said);
        page.divided.clear();
        page.not_enforced = not_enforced(&reading.rules, directions);
        if page.facts != reading.facts || !Arc::ptr_eq(&page.endpoints, &reading.endpoints) {
            page.ours = ours(reading);
        }
        page.endpoints = Arc::clone(&reading.endpoints);
        page.facts = Arc::clone(&reading.facts);
        page.interfaces.clone_from(interfaces);
    }

    /// Notes how far the kernel holds the last reading: all of it where `is_whole`; with the ports of services that are shut
    /// to somebody because of some of their targets.
    pub(crate) fn enforced(&self, is_whole: bool, divided: &[DividedPort]) {
        let mut page = self.0.write().unwrap_or_else(PoisonError::into_inner);
        page.divided = divided.iter().map(shut).collect();
        page.revision.enforced = if is_whole {
            page.revision.wanted
        } else {
            // Not any more, where it was.
            page.revision.enforced.min(page.revision.wanted.saturating_sub(1))
        };
    }
}

/// Endpoints with an interface, and pods of this node that wait for theirs.
fn ours(reading: &Reading) -> Vec<Arc<Endpoint>> {
    let local: HashSet<(&str, &str)> = reading.facts.local.iter().filter_map(|key| key.split_once('/')).collect();
    let is_ours = |endpoint: &&Arc<Endpoint>| {
        endpoint.attachment.is_some() || local.contains(&(&*endpoint.namespace, &*endpoint.name))
    };
    reading.endpoints.endpoints.iter().filter(is_ours).cloned().collect()
}

/// A warning about a port of a service.
fn shut(one: &DividedPort) -> Diagnostic {
    const NAMED_MAX: usize = 5;
    let protocol = Transport::ALL.into_iter().find(|transport| transport.number() == one.protocol);
    let named: Vec<&str> = one.endpoints.iter().take(NAMED_MAX).map(|key| &**key).collect();
    let more = match one.endpoints.len().saturating_sub(NAMED_MAX) {
        0 => String::new(),
        more => format!(" and {more} more"),
    };
    let (service, port, protocol) = (&one.service, one.port, protocol.map_or("", Transport::as_str));
    let who = named.join(", ");
    Diagnostic {
        file: String::new(),
        line: 0,
        column: 0,
        severity: Severity::Warning,
        code: "namegate::divided-service".to_owned(),
        field: String::new(),
        message: format!(
            "service {service} {port}/{protocol} is shut to {who}{more}: of its targets some may be reached, others not"
        ),
        help: Some("let policies treat all that are behind the service alike".to_owned()),
    }
}

/// Rules of a direction that the agent does not guard.
fn not_enforced(rules: &[Rule], directions: &[Direction]) -> Vec<Unenforced> {
    let word = |direction| match direction {
        Direction::Ingress => "ingress",
        Direction::Egress => "egress",
    };
    let left_out = rules.iter().filter(|rule| !directions.contains(&rule.direction));
    let told = left_out.map(|rule| Unenforced {
        rule: rule.origin.to_string(),
        reason: format!("the setting `directions` leaves {} out", word(rule.direction)),
    });
    told.collect()
}
