//! Answers the API's questions from what the enforcer publishes, the state of the policies and the flows.

use std::{
    collections::{BTreeSet, HashMap},
    sync::Arc,
    time::SystemTime,
};

use namegate_abi::NODE_INTERFACE;
use namegate_api::{
    Backend, CacheFilter, FlowFeed, Instruments, Refusal, Reply, rfc3339,
    view::{
        self, CniEndpoint, CniRegistration, Counter, Direction, Endpoint, EndpointCounts, EndpointState, Enforcement,
        Forgotten, FqdnLookup, FqdnNames, Health, LookupSource, NameCounts, Policy, Status,
    },
};
use namegate_config::{endpoints, rule, settings::Settings};
use namegate_dns_proxy::Proxy;
use namegate_enforcer::{EnforcerHandle, Reader};
use namegate_engine::{EndpointId, EndpointView, Lookup};
use namegate_loader::Meters;

use super::{
    asked_names::Checks,
    attachments::programs_of,
    clock::boot_ns,
    enforcer::refusal,
    flows::Flows,
    interfaces,
    kubernetes::Kubernetes,
    policy_state::{PolicyState, SharedPolicyState},
    problems::{ProblemKind, Problems},
    refusals::Refusals,
    requests::L7Backend,
    shown::{counters, fills, interface, names_unread, refused, selectors, shown_lookup, waiting},
};

/// The node itself among the endpoints.
const HOST: &str = "host";
/// Denials in the status.
const DENIALS_SHOWN: usize = 100;

/// Answers the API.
pub(crate) struct ApiBackend {
    pub(crate) settings: Settings,
    pub(crate) enforcer: EnforcerHandle,
    pub(crate) meters: Arc<Meters>,
    pub(crate) refusals: Arc<Refusals>,
    pub(crate) policy_state: Arc<SharedPolicyState>,
    pub(crate) problems: Arc<Problems>,
    pub(crate) flows: Arc<Flows>,
    pub(crate) checks: Arc<Checks>,
    pub(crate) proxy: Arc<Proxy>,
    pub(crate) l7: Arc<namegate_l7_proxy::Proxy>,
    pub(crate) requests: L7Backend,
    pub(crate) instruments: Instruments,
    /// RFC 3339.
    pub(crate) started: String,
    /// Kubernetes, where it is a source.
    pub(crate) kubernetes: Option<Kubernetes>,
}

/// A filter whose endpoint is found.
struct Wanted {
    endpoint: Option<EndpointId>,
    filter: CacheFilter,
}

impl Wanted {
    fn passes(&self, lookup: &Lookup<'_>) -> bool {
        let in_cidr = |cidr: &ipnet::IpNet| lookup.addresses.iter().any(|learned| cidr.contains(&learned.address));
        self.endpoint.is_none_or(|endpoint| endpoint == lookup.endpoint)
            && self.filter.pattern.as_ref().is_none_or(|pattern| pattern.matches(lookup.name))
            && self.filter.cidr.as_ref().is_none_or(in_cidr)
            && self.filter.source != Some(LookupSource::Connection)
    }
}

impl ApiBackend {
    fn reader(&self) -> &Reader {
        self.enforcer.reader()
    }

    fn wanted(&self, filter: CacheFilter) -> Result<Wanted, Refusal> {
        let endpoint = match &filter.endpoint {
            None => None,
            Some(name) => Some(EndpointId(self.find(name.clone())?.id)),
        };
        Ok(Wanted { endpoint, filter })
    }

    fn enforcement(&self, direction: rule::Direction, enforced: bool) -> Enforcement {
        match enforced {
            _ if !self.settings.directions.contains(&direction) => Enforcement::NotAttached,
            false => Enforcement::Disabled,
            true if self.settings.audit => Enforcement::Audit,
            true => Enforcement::Enabled,
        }
    }

    fn directions(&self) -> Vec<Direction> {
        let shown = |direction: &rule::Direction| match direction {
            rule::Direction::Ingress => Direction::Ingress,
            rule::Direction::Egress => Direction::Egress,
        };
        self.settings.directions.iter().map(shown).collect()
    }

    /// Every endpoint that is to be guarded, with what the engine knows of it; and the node itself, where a rule selects it.
    fn list(&self) -> Vec<Endpoint> {
        let enforcement = self.reader().enforcement();
        let views = self.reader().view().endpoints();
        let views: HashMap<Arc<str>, EndpointView> =
            views.into_iter().map(|view| (Arc::clone(&view.key), view)).collect();
        let state = self.policy_state.read();
        let mut endpoints: Vec<Endpoint> = state
            .ours
            .iter()
            .map(|endpoint| match views.get(&*interfaces::key(endpoint)) {
                Some(view) => self.shown(endpoint, (view, interfaces_of(&state, view)), &enforcement),
                None => waiting(endpoint, state.endpoints.labels(endpoint).iter().map(ToString::to_string).collect()),
            })
            .collect();
        let of_node = |view: &EndpointView| self.shown_node(view, &BTreeSet::from([view.interface]), &enforcement);
        endpoints.extend(views.get(HOST).map(of_node));
        endpoints.sort_by(|one, other| (one.id, &one.name).cmp(&(other.id, &other.name)));
        endpoints
    }

    fn shown(
        &self,
        listed: &endpoints::Endpoint,
        (view, interfaces): (&EndpointView, BTreeSet<u32>),
        enforcement: &namegate_enforcer::Enforcement,
    ) -> Endpoint {
        Endpoint {
            name: listed.name.clone(),
            namespace: listed.namespace.clone(),
            interface: interface(listed),
            interface_index: Some(view.interface),
            ..self.shown_node(view, &interfaces, enforcement)
        }
    }

    /// What an endpoint shares with the node.
    fn shown_node(
        &self,
        view: &EndpointView,
        interfaces: &BTreeSet<u32>,
        enforcement: &namegate_enforcer::Enforcement,
    ) -> Endpoint {
        let is_broken = |interface| {
            let subject = programs_of(Some(&*view.key), interface);
            self.problems.is_raised(ProblemKind::Attachment, &subject)
        };
        Endpoint {
            id: view.id.0,
            name: view.key.to_string(),
            namespace: String::new(),
            labels: view.labels.iter().map(ToString::to_string).collect(),
            addresses: view.addresses.clone(),
            interface: None,
            interface_index: None,
            state: state(view.is_closed, interfaces, enforcement, is_broken),
            ingress: self.enforcement(rule::Direction::Ingress, view.enforced_ingress),
            egress: self.enforcement(rule::Direction::Egress, view.enforced_egress),
            rules: view.rules.iter().map(ToString::to_string).collect(),
            names: self.reader().names().count(view.id, boot_ns()).names,
        }
    }

    /// One endpoint, by id, `namespace/name` or a name that only one has.
    fn find(&self, name: String) -> Result<Endpoint, Refusal> {
        let mut found: Vec<_> = self.list().into_iter().filter(|one| one.is_called(&name)).collect();
        match found.len() {
            0 => Err(Refusal::NoSuchEndpoint(name)),
            1 => Ok(found.remove(0)),
            _ => Err(Refusal::Ambiguous(name)),
        }
    }

    fn whole_status(&self) -> Status {
        let figures = self.reader().figures();
        let names = self.reader().names().count_all(boot_ns());
        let mut refused = refused(&figures);
        refused.extend(self.refusals.shown(&self.reader().view()));
        let unread = self.checks.unread(&self.reader().view());
        let endpoints = self.list();
        let count = |state| endpoints.iter().filter(|endpoint| endpoint.state == state).count();
        let problems = self.wrong();
        let state = self.policy_state.read();
        let dns = self.proxy.counters();
        let mut requests = self.l7.counters();
        requests.push(("records_lost", self.requests.lost()));
        Status {
            problems,
            version: env!("CARGO_PKG_VERSION").to_owned(),
            started: self.started.clone(),
            audit: self.settings.audit,
            directions: self.directions(),
            revision: state.revision,
            endpoints: EndpointCounts {
                guarded: count(EndpointState::Guarded),
                waiting: count(EndpointState::Waiting),
                failed: count(EndpointState::Failed),
            },
            names: NameCounts { names: names.names, addresses: names.addresses },
            counters: counters(&self.meters),
            maps: fills(&figures),
            dns_answers_kept: self.proxy.answers_kept(),
            dns: dns.into_iter().map(|(what, count)| Counter { what: what.to_owned(), count }).collect(),
            requests: requests.into_iter().map(|(what, count)| Counter { what: what.to_owned(), count }).collect(),
            name_checks: self.checks.counters(self.meters.openings_lost().unwrap_or(0)),
            names_unread: names_unread(&unread, &refused),
            refused,
            mismatches: self.flows.mismatches(),
            denials: self.flows.denials(DENIALS_SHOWN, self.reader()),
            flows: self.flows.counters(),
            attachments_healed: self.reader().enforcement().healed,
            flows_lost: self.meters.events_lost().unwrap_or(0),
            kubernetes: self.kubernetes.as_ref().map(Kubernetes::status),
            diagnostics: state.diagnostics(),
        }
    }

    /// What is not well; empty where all is. Health and status say the same.
    fn wrong(&self) -> Vec<view::Problem> {
        let mut found = Vec::new();
        let failed = self.reader().enforcement().failed.len();
        if failed > 0 {
            found.push((ProblemKind::Attachment, "", format!("{failed} endpoints are not enforced")));
        }
        if let Some(stall) = self.reader().stall(boot_ns()) {
            found.push((ProblemKind::Lookup, "agent", stall.to_string()));
        }
        let state = self.policy_state.read();
        if state.revision.enforced == 0 {
            found.push((ProblemKind::Source, "policies", "no policy has reached the kernel yet".to_owned()));
        }
        drop(state);
        let now = rfc3339(SystemTime::now());
        let shown = |(kind, subject, message): (ProblemKind, &str, String)| view::Problem {
            kind: kind.text().to_owned(),
            subject: subject.to_owned(),
            message,
            since: now.clone(),
        };
        let mut problems = self.problems.list();
        problems.extend(found.into_iter().map(shown));
        problems
    }
}

/// Every interface of an endpoint: the one that the kernel knows, and those that were found last.
fn interfaces_of(state: &PolicyState, view: &EndpointView) -> BTreeSet<u32> {
    let found = state.interfaces.get(&*view.key).into_iter().flatten();
    found.copied().chain([view.interface]).collect()
}

/// Whether an endpoint is enforced on all of its interfaces. Its rows are published before its programs are attached:
/// until then it waits. `is_broken` says whose programs are not where they were put.
fn state(
    is_closed: bool,
    interfaces: &BTreeSet<u32>,
    enforcement: &namegate_enforcer::Enforcement,
    is_broken: impl Fn(u32) -> bool,
) -> EndpointState {
    let has_failed = |interface: &u32| {
        enforcement.failed.contains_key(interface) || enforcement.rowless.contains(interface) || is_broken(*interface)
    };
    let is_judged = |interface: &u32| match *interface {
        NODE_INTERFACE => enforcement.selects_node,
        _ => enforcement.judged.contains(interface),
    };
    if is_closed || interfaces.iter().any(has_failed) {
        EndpointState::Failed
    } else if interfaces.iter().all(is_judged) {
        EndpointState::Guarded
    } else {
        EndpointState::Waiting
    }
}

/// A problem in one line.
fn line(problem: view::Problem) -> String {
    let view::Problem { kind, subject, message, .. } = problem;
    let subject = if subject.is_empty() { subject } else { format!(" {subject}") };
    format!("{kind}{subject}: {message}")
}

impl Backend for ApiBackend {
    fn fqdn_cache(&self, filter: CacheFilter) -> Reply<'_, Vec<FqdnLookup>> {
        Box::pin(async move {
            let wanted = self.wanted(filter)?;
            let mut found = Vec::new();
            self.reader().names().for_each(wanted.endpoint, boot_ns(), |lookup| {
                if wanted.passes(lookup) {
                    found.extend(shown_lookup(lookup));
                }
            });
            Ok(found)
        })
    }

    fn forget(&self, filter: CacheFilter) -> Reply<'_, Forgotten> {
        Box::pin(async move {
            let wanted = self.wanted(filter)?;
            // First: what is forgotten is not learned again from an answer that was kept.
            self.proxy.forget_answers();
            let gone = self.enforcer.forget(move |lookup| wanted.passes(lookup)).await.map_err(refusal)?;
            Ok(Forgotten { names: gone.names, addresses: gone.addresses })
        })
    }

    fn fqdn_names(&self) -> Reply<'_, FqdnNames> {
        let reader = self.reader().clone();
        Box::pin(async move {
            // Every name is held against every pattern: nobody else waits for that.
            let listed = tokio::task::spawn_blocking(move || selectors(&reader)).await;
            let selectors = listed.map_err(|error| Refusal::Unavailable(error.to_string()))?;
            Ok(FqdnNames { selectors })
        })
    }

    fn endpoints(&self) -> Reply<'_, Vec<Endpoint>> {
        Box::pin(async { Ok(self.list()) })
    }

    fn endpoint(&self, name: String) -> Reply<'_, Endpoint> {
        Box::pin(async move { self.find(name) })
    }

    fn cni(&self) -> Reply<'_, Vec<CniEndpoint>> {
        Box::pin(async { Ok(self.kubernetes.as_ref().map(Kubernetes::networks).unwrap_or_default()) })
    }

    fn register(&self, container: String, registration: CniRegistration) -> Reply<'_, CniEndpoint> {
        Box::pin(async move {
            let missing = || Refusal::NotGuarded("the setting `kubernetes` is missing".to_owned());
            self.kubernetes.as_ref().ok_or_else(missing)?.register(container, registration).await
        })
    }

    fn unregister(&self, container: String) -> Reply<'_, ()> {
        Box::pin(async move {
            if let Some(kubernetes) = &self.kubernetes {
                kubernetes.unregister(&container);
            }
            Ok(())
        })
    }

    fn policy(&self) -> Reply<'_, Policy> {
        Box::pin(async move {
            let state = self.policy_state.read();
            Ok(Policy {
                revision: state.revision,
                directory: self.settings.policies.iter().map(|path| path.display().to_string()).collect(),
                documents: state.documents(),
                diagnostics: state.diagnostics(),
                not_enforced: state.not_enforced.clone(),
            })
        })
    }

    fn status(&self) -> Reply<'_, Status> {
        Box::pin(async { Ok(self.whole_status()) })
    }

    fn health(&self) -> Reply<'_, Health> {
        Box::pin(async move {
            let wrong = self.wrong();
            // These are about single endpoints and namespaces: the agent takes others.
            let theirs = [ProblemKind::Bound, ProblemKind::Attachment].map(ProblemKind::text);
            let ready = wrong.iter().all(|problem| theirs.contains(&&*problem.kind));
            Ok(Health { healthy: wrong.is_empty(), ready, problems: wrong.into_iter().map(line).collect() })
        })
    }

    fn flows(&self, past: bool) -> Reply<'_, FlowFeed> {
        Box::pin(async move { Ok(self.flows.feed(past, self.reader())) })
    }

    fn instruments(&self) -> &Instruments {
        &self.instruments
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FIRST: u32 = 7;
    const FURTHER: u32 = 8;

    /// The state of an endpoint with two interfaces, both of them judged but for what `change` does.
    fn state_after(change: impl FnOnce(&mut namegate_enforcer::Enforcement)) -> EndpointState {
        let mut enforcement = namegate_enforcer::Enforcement {
            judged: [FIRST, FURTHER].into(),
            ..namegate_enforcer::Enforcement::default()
        };
        change(&mut enforcement);
        state(false, &BTreeSet::from([FIRST, FURTHER]), &enforcement, |_| false)
    }

    #[test]
    fn an_endpoint_is_as_its_worst_interface() {
        assert_eq!(state_after(|_| ()), EndpointState::Guarded);
        for interface in [FIRST, FURTHER] {
            let waits = state_after(|now| now.judged.retain(|judged| *judged != interface));
            assert_eq!(waits, EndpointState::Waiting, "{interface}");
            let failed = state_after(|now| drop(now.failed.insert(interface, "EPERM".to_owned())));
            assert_eq!(failed, EndpointState::Failed, "{interface}");
            let rowless = state_after(|now| {
                now.judged.remove(&interface);
                now.rowless.insert(interface);
            });
            assert_eq!(rowless, EndpointState::Failed, "{interface}");
        }
        // A failure counts more than an interface that waits.
        let both = state_after(|now| {
            now.judged.remove(&FIRST);
            now.failed.insert(FURTHER, "EPERM".to_owned());
        });
        assert_eq!(both, EndpointState::Failed);
    }

    #[test]
    fn an_endpoint_that_is_closed_or_whose_programs_were_taken_away_has_failed() {
        let enforcement =
            namegate_enforcer::Enforcement { judged: [FIRST].into(), ..namegate_enforcer::Enforcement::default() };
        let of_first = BTreeSet::from([FIRST]);
        assert_eq!(state(false, &of_first, &enforcement, |_| false), EndpointState::Guarded);
        assert_eq!(state(true, &of_first, &enforcement, |_| false), EndpointState::Failed);
        assert_eq!(state(false, &of_first, &enforcement, |interface| interface == FIRST), EndpointState::Failed);
    }

    #[test]
    fn the_node_is_enforced_where_a_rule_selects_it() {
        let of_node = BTreeSet::from([NODE_INTERFACE]);
        let mut enforcement = namegate_enforcer::Enforcement::default();
        assert_eq!(state(false, &of_node, &enforcement, |_| false), EndpointState::Waiting);
        enforcement.selects_node = true;
        assert_eq!(state(false, &of_node, &enforcement, |_| false), EndpointState::Guarded);
    }
}
