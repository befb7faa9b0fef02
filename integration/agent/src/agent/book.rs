//! What was read from the files and how far the kernel is, for those who ask.

use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard};

use namegate_api::view::{Diagnostic, Document, Revision, Severity, Unenforced};
use namegate_config::{
    endpoints::EndpointsFile,
    rule::{Direction, Rule, Transport},
};
use namegate_engine::DividedPort;

use super::{
    interfaces::Interfaces,
    sources::{Facts, Reading},
};

/// The state of the files.
#[derive(Debug, Default)]
pub(crate) struct Book(RwLock<Page>);

/// One reading, and how far it is carried out.
#[derive(Clone, Debug, Default)]
pub(crate) struct Page {
    /// How far the kernel is.
    pub(crate) revision: Revision,
    /// Policy objects.
    pub(crate) documents: Vec<Document>,
    /// Mistakes and warnings.
    pub(crate) diagnostics: Vec<Diagnostic>,
    /// Rules that hold nothing back.
    pub(crate) not_enforced: Vec<Unenforced>,
    /// Endpoints in force.
    pub(crate) endpoints: Arc<EndpointsFile>,
    /// What Kubernetes adds.
    pub(crate) facts: Arc<Facts>,
    /// Their interfaces.
    pub(crate) interfaces: Interfaces,
    /// Rows of the last change that the kernel refused.
    pub(crate) refused: Vec<String>,
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
        page.documents.clone_from(&reading.documents);
        page.diagnostics.clone_from(&reading.diagnostics);
        page.not_enforced = not_enforced(&reading.rules, directions);
        page.endpoints = Arc::clone(&reading.endpoints);
        page.facts = Arc::clone(&reading.facts);
        page.interfaces.clone_from(interfaces);
    }

    /// Notes that the kernel holds the last reading, less the rows that it refused; with the ports of services that are
    /// shut to somebody because of some of their targets.
    pub(crate) fn enforced(&self, refused: Vec<String>, divided: &[DividedPort]) {
        let mut page = self.0.write().unwrap_or_else(PoisonError::into_inner);
        page.diagnostics.extend(divided.iter().map(shut));
        page.revision.enforced = page.revision.wanted;
        page.refused = refused;
    }
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
