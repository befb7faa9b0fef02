//! What was read from the files and how far the kernel is, for those who ask.

use std::{
    collections::HashSet,
    sync::{Arc, PoisonError, RwLock, RwLockReadGuard},
};

use namegate_api::view::{Diagnostic, Document, Revision, Severity, Unenforced};
use namegate_config::{
    endpoints::{Endpoint, EndpointsFile},
    rule::{Direction, Rule, Transport},
};
use namegate_engine::DividedPort;

use super::{
    cluster_state::{ClusterState, Interfaces},
    reading::{Diagnostics, Reading},
};

/// The state of the files.
#[derive(Debug, Default)]
pub(crate) struct SharedPolicyState(RwLock<PolicyState>);

/// One reading, and how far it is carried out.
#[derive(Clone, Debug, Default)]
pub(crate) struct PolicyState {
    /// How far the kernel is.
    pub(crate) revision: Revision,
    /// What is said of the policies and endpoints.
    pub(crate) said: Arc<Diagnostics>,
    /// What the kernel's side adds to the warnings.
    pub(crate) divided: Vec<Diagnostic>,
    /// Rules that hold nothing back.
    pub(crate) not_enforced: Vec<Unenforced>,
    /// Endpoints in force.
    pub(crate) endpoints: Arc<EndpointsFile>,
    /// Those of them that are to be guarded here.
    pub(crate) ours: Vec<Arc<Endpoint>>,
    /// What Kubernetes adds.
    pub(crate) facts: Arc<ClusterState>,
    /// Revision of what `ours` was made of.
    topology_revision: u64,
    /// Their interfaces.
    pub(crate) interfaces: Arc<Interfaces>,
}

impl PolicyState {
    /// Mistakes and warnings.
    pub(crate) fn diagnostics(&self) -> Vec<Diagnostic> {
        self.said.found.iter().chain(&self.divided).cloned().collect()
    }

    /// One line for each policy.
    pub(crate) fn documents(&self) -> Vec<Document> {
        self.said.documents().cloned().collect()
    }
}

impl SharedPolicyState {
    /// The state as it is now.
    pub(crate) fn read(&self) -> RwLockReadGuard<'_, PolicyState> {
        self.0.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes a reading that the kernel does not hold yet.
    pub(crate) fn want(&self, reading: &Reading, directions: &[Direction]) {
        let mut state = self.0.write().unwrap_or_else(PoisonError::into_inner);
        state.revision.wanted += 1;
        state.said = Arc::clone(&reading.said);
        state.divided.clear();
        state.not_enforced = not_enforced(&reading.rules, directions);
        if state.topology_revision != reading.topology_revision {
            state.ours = ours(reading);
            state.topology_revision = reading.topology_revision;
        }
        state.endpoints = Arc::clone(&reading.endpoints);
        state.facts = Arc::clone(&reading.facts);
        state.interfaces = Arc::clone(&reading.interfaces);
    }

    /// Notes how far the kernel holds the last reading: all of it where `is_whole`; with the ports of services that are shut
    /// to somebody because of some of their targets.
    pub(crate) fn enforced(&self, is_whole: bool, divided: &[DividedPort]) {
        let mut state = self.0.write().unwrap_or_else(PoisonError::into_inner);
        state.divided = divided.iter().map(shut).collect();
        state.revision.enforced = if is_whole {
            state.revision.wanted
        } else {
            // Not any more, where it was.
            state.revision.enforced.min(state.revision.wanted.saturating_sub(1))
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
fn not_enforced(rules: &[Arc<Rule>], directions: &[Direction]) -> Vec<Unenforced> {
    let word = |direction| match direction {
        Direction::Ingress => "ingress",
        Direction::Egress => "egress",
    };
    if [Direction::Ingress, Direction::Egress].iter().all(|direction| directions.contains(direction)) {
        return Vec::new();
    }
    let left_out = rules.iter().filter(|rule| !directions.contains(&rule.direction));
    let told = left_out.map(|rule| Unenforced {
        rule: rule.origin.to_string(),
        reason: format!("the setting `directions` leaves {} out", word(rule.direction)),
    });
    told.collect()
}

#[cfg(test)]
mod tests {
    use namegate_config::{
        endpoints,
        policy::{self, Catalog},
    };

    use super::*;

    /// A reading of one policy for both directions, and of endpoints of which one has an interface.
    fn reading(topology_revision: u64) -> Reading {
        let policy = "apiVersion: cilium.io/v2\nkind: CiliumNetworkPolicy\nmetadata: {name: p, namespace: shop}\n\
                      spec: {endpointSelector: {}, egress: [{}], ingress: [{}]}\n";
        let rules = policy::translate(&policy::parse("p.yaml", policy).documents, &Catalog::default()).rules;
        let endpoints = "endpoints:\n- {name: web, namespace: shop, interface: veth1, addresses: [10.20.0.2]}\n\
                         - {name: db, namespace: shop, addresses: [10.20.0.3]}\n\
                         - {name: soon, namespace: shop, addresses: [10.20.0.4]}\n";
        Reading {
            rules: rules.into_iter().map(Arc::new).collect(),
            endpoints: Arc::new(endpoints::parse("e.yaml", endpoints).unwrap()),
            facts: Arc::new(ClusterState { local: ["shop/soon".to_owned()].into(), ..ClusterState::default() }),
            topology_revision,
            ..Reading::default()
        }
    }

    fn ours(policy_state: &SharedPolicyState) -> Vec<String> {
        policy_state.read().ours.iter().map(|endpoint| endpoint.name.clone()).collect()
    }

    #[test]
    fn a_reading_is_enforced_when_the_kernel_holds_all_of_it() {
        let policy_state = SharedPolicyState::default();
        let revision = || (policy_state.read().revision.wanted, policy_state.read().revision.enforced);
        policy_state.want(&reading(1), &[Direction::Ingress, Direction::Egress]);
        assert_eq!(revision(), (1, 0));
        policy_state.enforced(true, &[]);
        assert_eq!(revision(), (1, 1));
        policy_state.enforced(false, &[]);
        assert_eq!(revision(), (1, 0), "rows can be lost again");
        policy_state.want(&reading(1), &[Direction::Ingress, Direction::Egress]);
        policy_state.enforced(true, &[]);
        assert_eq!(revision(), (2, 2));
    }

    #[test]
    fn endpoints_of_this_node_have_an_interface_or_wait_for_one() {
        let policy_state = SharedPolicyState::default();
        policy_state.want(&reading(1), &[]);
        assert_eq!(ours(&policy_state), ["web", "soon"]);
        policy_state.want(&Reading { topology_revision: 1, ..Reading::default() }, &[]);
        assert_eq!(ours(&policy_state), ["web", "soon"], "the same revision");
        policy_state.want(&Reading { topology_revision: 2, ..Reading::default() }, &[]);
        assert!(ours(&policy_state).is_empty());
    }

    #[test]
    fn rules_of_a_direction_that_is_left_out_are_named() {
        let policy_state = SharedPolicyState::default();
        policy_state.want(&reading(1), &[Direction::Egress]);
        let left_out: Vec<String> = policy_state.read().not_enforced.iter().map(|one| one.rule.clone()).collect();
        assert_eq!(left_out, ["shop/p spec.ingress[0]"]);
        policy_state.want(&reading(1), &[Direction::Egress, Direction::Ingress]);
        assert!(policy_state.read().not_enforced.is_empty());
    }

    #[test]
    fn a_port_that_is_shut_for_some_is_a_warning_until_the_next_reading() {
        let policy_state = SharedPolicyState::default();
        let endpoints = (0..7).map(|at| format!("shop/web{at}").into()).collect();
        let divided = DividedPort { service: "shop/db".into(), port: 5432, protocol: 6, endpoints };
        policy_state.enforced(true, &[divided]);
        let warnings = policy_state.read().diagnostics();
        assert!(warnings[0].message.contains("shop/db 5432/TCP") && warnings[0].message.contains("and 2 more"));
        policy_state.want(&reading(1), &[]);
        assert!(policy_state.read().diagnostics().is_empty());
    }
}
