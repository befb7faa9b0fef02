//! Answers the API's questions from the gate, the book and the flows.

use std::{
    sync::Arc,
    time::{Duration, SystemTime},
};

use namegate_api::{
    CacheFilter, FlowFeed, Gatekeeper, Instruments, Refusal, Reply, rfc3339,
    view::{
        self, CniEndpoint, CniRegistration, Direction, Endpoint, EndpointCounts, EndpointState, Enforcement, Forgotten,
        FqdnLookup, FqdnNames, Health, LookupSource, Policy, Status, Tally,
    },
};
use namegate_config::{endpoints, rule, settings::Settings};
use namegate_dns_proxy::Proxy;
use namegate_engine::{EndpointId, EndpointView, Lookup};

use super::{
    book::Book,
    clock::boot_ns,
    flows::Flows,
    gate::{Door, Gate},
    interfaces,
    kubernetes::Kubernetes,
    openings::Checks,
    problems::{ProblemKind, Problems},
    requests::RequestDesk,
    shown::{Figures, Known, interface, names_unread, selectors, shown_lookup, waiting},
};

/// The node itself among the endpoints.
const HOST: &str = "host";
/// Denials in the status.
const DENIALS_SHOWN: usize = 100;
/// How long a healthy gate may take to answer.
const HEALTH_TIMEOUT: Duration = Duration::from_secs(2);

/// Answers the API.
pub(crate) struct Keeper {
    pub(crate) settings: Settings,
    pub(crate) door: Door,
    pub(crate) book: Arc<Book>,
    pub(crate) problems: Arc<Problems>,
    pub(crate) flows: Arc<Flows>,
    pub(crate) checks: Arc<Checks>,
    pub(crate) proxy: Arc<Proxy>,
    pub(crate) l7: Arc<namegate_l7_proxy::Proxy>,
    pub(crate) requests: RequestDesk,
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

impl Keeper {
    async fn wanted(&self, filter: CacheFilter) -> Result<Wanted, Refusal> {
        let endpoint = match &filter.endpoint {
            None => None,
            Some(name) => Some(EndpointId(self.endpoint(name.clone()).await?.id)),
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
    async fn list(&self) -> Result<Vec<Endpoint>, Refusal> {
        let known = self.door.ask(|gate| Known::of(gate)).await?;
        let page = self.book.page();
        let mut endpoints: Vec<Endpoint> = page
            .ours
            .iter()
            .map(|endpoint| match known.views.get(&*interfaces::key(endpoint)) {
                Some(view) => self.shown(endpoint, view, &known),
                None => waiting(endpoint, page.endpoints.labels(endpoint).iter().map(ToString::to_string).collect()),
            })
            .collect();
        endpoints.extend(known.views.get(HOST).map(|view| self.shown_node(view, &known)));
        endpoints.sort_by(|one, other| (one.id, &one.name).cmp(&(other.id, &other.name)));
        Ok(endpoints)
    }

    fn shown(&self, listed: &endpoints::Endpoint, view: &EndpointView, known: &Known) -> Endpoint {
        Endpoint {
            name: listed.name.clone(),
            namespace: listed.namespace.clone(),
            interface: interface(listed),
            interface_index: Some(view.interface),
            ..self.shown_node(view, known)
        }
    }

    /// What an endpoint shares with the node.
    fn shown_node(&self, view: &EndpointView, known: &Known) -> Endpoint {
        Endpoint {
            id: view.id.0,
            name: view.key.to_string(),
            namespace: String::new(),
            labels: view.labels.iter().map(ToString::to_string).collect(),
            addresses: view.addresses.clone(),
            interface: None,
            interface_index: None,
            state: if view.is_closed || known.failed.contains_key(&view.interface) {
                EndpointState::Failed
            } else {
                EndpointState::Guarded
            },
            ingress: self.enforcement(rule::Direction::Ingress, view.enforced_ingress),
            egress: self.enforcement(rule::Direction::Egress, view.enforced_egress),
            rules: view.rules.iter().map(ToString::to_string).collect(),
            names: known.names.get(&view.id).copied().unwrap_or(0),
        }
    }

    async fn whole_status(&self) -> Result<Status, Refusal> {
        let checks = Arc::clone(&self.checks);
        let (figures, unread) = self.door.ask(move |gate| (Figures::of(gate), checks.unread(gate.engine()))).await?;
        let endpoints = self.list().await?;
        let count = |state| endpoints.iter().filter(|endpoint| endpoint.state == state).count();
        let problems = self.wrong().await;
        let page = self.book.page();
        let dns = self.proxy.tallies();
        let mut requests = self.l7.tallies();
        requests.push(("records_lost", self.requests.lost()));
        Ok(Status {
            problems,
            version: env!("CARGO_PKG_VERSION").to_owned(),
            started: self.started.clone(),
            audit: self.settings.audit,
            directions: self.directions(),
            revision: page.revision,
            endpoints: EndpointCounts {
                guarded: count(EndpointState::Guarded),
                waiting: count(EndpointState::Waiting),
                failed: count(EndpointState::Failed),
            },
            names: figures.names,
            counters: figures.counters,
            maps: figures.maps,
            dns_answers_kept: self.proxy.answers_kept(),
            dns: dns.into_iter().map(|(what, count)| Tally { what: what.to_owned(), count }).collect(),
            requests: requests.into_iter().map(|(what, count)| Tally { what: what.to_owned(), count }).collect(),
            name_checks: self.checks.tallies(figures.openings_lost),
            names_unread: names_unread(&unread, &figures.refused),
            refused: figures.refused,
            mismatches: self.flows.mismatches(),
            denials: self.flows.denials(DENIALS_SHOWN),
            flows: self.flows.tallies(),
            attachments_healed: figures.healed,
            flows_lost: figures.flows_lost,
            kubernetes: self.kubernetes.as_ref().map(Kubernetes::status),
            diagnostics: page.diagnostics(),
        })
    }

    /// What is not well; empty where all is. Health and status say the same.
    async fn wrong(&self) -> Vec<view::Problem> {
        let mut found = Vec::new();
        let failed = self.door.ask(|gate| gate.failed().len());
        match tokio::time::timeout(HEALTH_TIMEOUT, failed).await {
            Ok(Ok(0)) => {}
            Ok(Ok(failed)) => found.push((ProblemKind::Attachment, "", format!("{failed} endpoints are not enforced"))),
            Ok(Err(error)) => found.push((ProblemKind::Lookup, "agent", error.to_string())),
            Err(_) => {
                let message = format!("the kernel's side does not answer within {} s", HEALTH_TIMEOUT.as_secs());
                found.push((ProblemKind::Lookup, "agent", message));
            }
        }
        let page = self.book.page();
        if page.revision.enforced == 0 {
            found.push((ProblemKind::Source, "policies", "no policy has reached the kernel yet".to_owned()));
        }
        drop(page);
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

/// A problem in one line.
fn line(problem: view::Problem) -> String {
    let view::Problem { kind, subject, message, .. } = problem;
    let subject = if subject.is_empty() { subject } else { format!(" {subject}") };
    format!("{kind}{subject}: {message}")
}

impl Gatekeeper for Keeper {
    fn fqdn_cache(&self, filter: CacheFilter) -> Reply<'_, Vec<FqdnLookup>> {
        Box::pin(async move {
            let wanted = self.wanted(filter).await?;
            let list = move |gate: &mut Gate| {
                let lookups = gate.engine().lookups(boot_ns());
                lookups.filter(|lookup| wanted.passes(lookup)).flat_map(|lookup| shown_lookup(&lookup)).collect()
            };
            self.door.ask(list).await
        })
    }

    fn forget(&self, filter: CacheFilter) -> Reply<'_, Forgotten> {
        Box::pin(async move {
            let wanted = self.wanted(filter).await?;
            // First: what is forgotten is not learned again from an answer that was kept.
            self.proxy.forget_answers();
            let gone = self.door.ask(move |gate| gate.forget(&|lookup| wanted.passes(lookup))).await?;
            Ok(Forgotten { names: gone.names, addresses: gone.addresses })
        })
    }

    fn fqdn_names(&self) -> Reply<'_, FqdnNames> {
        Box::pin(async move { Ok(FqdnNames { selectors: self.door.ask(|gate| selectors(gate)).await? }) })
    }

    fn endpoints(&self) -> Reply<'_, Vec<Endpoint>> {
        Box::pin(self.list())
    }

    fn endpoint(&self, name: String) -> Reply<'_, Endpoint> {
        Box::pin(async move {
            let mut found: Vec<_> = self.list().await?.into_iter().filter(|one| one.is_called(&name)).collect();
            match found.len() {
                0 => Err(Refusal::NoSuchEndpoint(name)),
                1 => Ok(found.remove(0)),
                _ => Err(Refusal::Ambiguous(name)),
            }
        })
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
            let page = self.book.page();
            Ok(Policy {
                revision: page.revision,
                directory: self.settings.policies.iter().map(|path| path.display().to_string()).collect(),
                documents: page.said.documents.clone(),
                diagnostics: page.diagnostics(),
                not_enforced: page.not_enforced.clone(),
            })
        })
    }

    fn status(&self) -> Reply<'_, Status> {
        Box::pin(self.whole_status())
    }

    fn health(&self) -> Reply<'_, Health> {
        Box::pin(async move {
            let wrong = self.wrong().await;
            // These are about single endpoints and namespaces: the agent takes others.
            let theirs = [ProblemKind::Bound, ProblemKind::Attachment].map(ProblemKind::text);
            let ready = wrong.iter().all(|problem| theirs.contains(&&*problem.kind));
            Ok(Health { healthy: wrong.is_empty(), ready, problems: wrong.into_iter().map(line).collect() })
        })
    }

    fn flows(&self) -> FlowFeed {
        self.flows.feed()
    }

    fn instruments(&self) -> &Instruments {
        &self.instruments
    }
}
