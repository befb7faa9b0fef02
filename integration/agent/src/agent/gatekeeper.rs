//! Answers the API's questions from the gate, the book and the flows.

use std::{
    collections::{BTreeSet, HashMap},
    sync::Arc,
    time::Duration,
};

use namegate_abi::map_names;
use namegate_api::{
    CacheFilter, FlowFeed, Gatekeeper, Instruments, Refusal, Reply, rfc3339,
    view::{
        Counter, Direction, Endpoint, EndpointCounts, EndpointState, Enforcement, Fill, Forgotten, FqdnLookup,
        FqdnNames, FqdnSelector, Health, LookupSource, NameCounts, Policy, Refused, SelectedName, Status, Tally,
    },
};
use namegate_config::{endpoints, name::NamePattern, rule, settings::Settings};
use namegate_dns_proxy::Proxy;
use namegate_engine::{EndpointId, EndpointView, Lookup, RowCount};

use super::{
    book::Book,
    clock::{boot_ns, calendar},
    flows::Flows,
    gate::{Door, Gate},
    interfaces,
    requests::RequestDesk,
};

/// Denials in the status.
const DENIALS_SHOWN: usize = 100;
/// How long a healthy gate may take to answer.
const HEALTH_TIMEOUT: Duration = Duration::from_secs(2);

/// Answers the API.
pub(crate) struct Keeper {
    pub(crate) settings: Settings,
    pub(crate) door: Door,
    pub(crate) book: Arc<Book>,
    pub(crate) flows: Arc<Flows>,
    pub(crate) proxy: Arc<Proxy>,
    pub(crate) l7: Arc<namegate_l7_proxy::Proxy>,
    pub(crate) requests: RequestDesk,
    pub(crate) instruments: Instruments,
    /// RFC 3339.
    pub(crate) started: String,
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

    /// Every endpoint of the file that is to be guarded, with what the engine knows of it.
    async fn list(&self) -> Result<Vec<Endpoint>, Refusal> {
        let known = self.door.ask(|gate| Known::of(gate)).await?;
        let page = self.book.page();
        let listed = page.endpoints.endpoints.iter().filter(|endpoint| endpoint.attachment.is_some());
        let mut endpoints: Vec<Endpoint> = listed
            .map(|endpoint| match known.views.get(&*interfaces::key(endpoint)) {
                Some(view) => self.shown(endpoint, view, &known),
                None => waiting(endpoint, page.endpoints.labels(endpoint).iter().map(ToString::to_string).collect()),
            })
            .collect();
        endpoints.sort_by(|one, other| (one.id, &one.name).cmp(&(other.id, &other.name)));
        Ok(endpoints)
    }

    fn shown(&self, listed: &endpoints::Endpoint, view: &EndpointView, known: &Known) -> Endpoint {
        Endpoint {
            id: view.id.0,
            name: listed.name.clone(),
            namespace: listed.namespace.clone(),
            labels: view.labels.iter().map(ToString::to_string).collect(),
            addresses: view.addresses.clone(),
            interface: interface(listed),
            interface_index: Some(view.interface),
            state: if known.failed.contains(&view.interface) { EndpointState::Failed } else { EndpointState::Guarded },
            ingress: self.enforcement(rule::Direction::Ingress, view.enforced_ingress),
            egress: self.enforcement(rule::Direction::Egress, view.enforced_egress),
            rules: view.rules.iter().map(ToString::to_string).collect(),
            names: known.names.get(&view.id).copied().unwrap_or(0),
        }
    }

    async fn whole_status(&self) -> Result<Status, Refusal> {
        let figures = self.door.ask(Figures::of).await?;
        let endpoints = self.list().await?;
        let count = |state| endpoints.iter().filter(|endpoint| endpoint.state == state).count();
        let page = self.book.page();
        let dns = self.proxy.tallies();
        let mut requests = self.l7.tallies();
        requests.push(("records_lost", self.requests.lost()));
        Ok(Status {
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
            refused: figures.refused,
            dns: dns.into_iter().map(|(what, count)| Tally { what: what.to_owned(), count }).collect(),
            requests: requests.into_iter().map(|(what, count)| Tally { what: what.to_owned(), count }).collect(),
            denials: self.flows.denials(DENIALS_SHOWN),
            flows: self.flows.tallies(),
            flows_lost: figures.flows_lost,
            diagnostics: page.diagnostics.clone(),
        })
    }

    /// What is not well; empty where all is.
    async fn problems(&self) -> Vec<String> {
        let mut problems = Vec::new();
        match tokio::time::timeout(HEALTH_TIMEOUT, self.door.ask(|gate| gate.failed().len())).await {
            Ok(Ok(0)) => {}
            Ok(Ok(failed)) => problems.push(format!("{failed} endpoints could not be guarded: see `namegate status`")),
            Ok(Err(error)) => problems.push(error.to_string()),
            Err(_) => problems.push(format!("the gate does not answer within {} s", HEALTH_TIMEOUT.as_secs())),
        }
        let page = self.book.page();
        if page.revision.enforced == 0 {
            problems.push("no policy has reached the kernel yet".to_owned());
        }
        problems.extend(page.refused.iter().map(|refused| format!("the kernel refused a row: {refused}")));
        problems
    }
}

/// What the gate's thread knows of endpoints.
struct Known {
    views: HashMap<Arc<str>, EndpointView>,
    failed: BTreeSet<u32>,
    /// Learned names that live.
    names: HashMap<EndpointId, usize>,
}

impl Known {
    fn of(gate: &Gate) -> Self {
        let mut names: HashMap<EndpointId, usize> = HashMap::new();
        for lookup in gate.engine().lookups(boot_ns()) {
            *names.entry(lookup.endpoint).or_default() += 1;
        }
        let views = gate.engine().endpoints().into_iter().map(|view| (Arc::clone(&view.key), view)).collect();
        Self { views, failed: gate.failed().clone(), names }
    }
}

/// Interface or network namespace, as the file names it.
fn interface(listed: &endpoints::Endpoint) -> Option<String> {
    listed.attachment.as_ref().map(|attachment| match attachment {
        endpoints::Attachment::Interface(name) => name.clone(),
        endpoints::Attachment::Netns(path) => path.display().to_string(),
    })
}

/// An endpoint whose interface is not there yet: it has no number so far.
fn waiting(listed: &endpoints::Endpoint, labels: Vec<String>) -> Endpoint {
    Endpoint {
        id: 0,
        name: listed.name.clone(),
        namespace: listed.namespace.clone(),
        labels,
        addresses: listed.addresses.clone(),
        interface: interface(listed),
        interface_index: None,
        state: EndpointState::Waiting,
        ingress: Enforcement::Disabled,
        egress: Enforcement::Disabled,
        rules: Vec::new(),
        names: 0,
    }
}

/// What the gate's thread gives for a status.
struct Figures {
    names: NameCounts,
    counters: Vec<Counter>,
    maps: Vec<Fill>,
    refused: Vec<Refused>,
    flows_lost: u64,
}

impl Figures {
    fn of(gate: &mut Gate) -> Self {
        let now = boot_ns();
        let mut names = NameCounts::default();
        for lookup in gate.engine().lookups(now) {
            names.names += 1;
            names.addresses += lookup.addresses.len();
        }
        let told = gate.engine().refused().into_iter().chain([("rows that the kernel refused", gate.refused_writes())]);
        let refused = told.filter(|(_, count)| *count > 0).map(|(bound, count)| Refused {
            bound: bound.to_owned(),
            count,
            setting: setting_of(bound).to_owned(),
        });
        let refused = refused.collect();
        let counters = gate.datapath().counters().unwrap_or_else(|error| {
            tracing::error!(%error, "reading counters");
            Vec::new()
        });
        Self {
            names,
            counters: counters.into_iter().filter(|(_, _, count)| count.packets > 0).map(shown_counter).collect(),
            maps: fills(gate),
            refused,
            flows_lost: gate.datapath().events_lost().unwrap_or(0),
        }
    }
}

/// The setting that a bound is named after, where it is.
fn setting_of(bound: &str) -> &str {
    if bound.starts_with("dns.") || bound.starts_with("limits.") { bound } else { "" }
}

fn shown_counter(
    (direction, reason, count): (namegate_abi::Direction, namegate_abi::Reason, namegate_abi::Counter),
) -> Counter {
    Counter {
        direction: match direction {
            namegate_abi::Direction::Ingress => Direction::Ingress,
            namegate_abi::Direction::Egress => Direction::Egress,
        },
        reason: reason.word().to_owned(),
        text: reason.text().to_owned(),
        denied: reason.denies(),
        packets: count.packets,
        octets: count.octets,
    }
}

fn fills(gate: &Gate) -> Vec<Fill> {
    let counts = gate.engine().row_counts().into_iter();
    let fill = |count: RowCount| Fill {
        map: count.map.to_owned(),
        rows: count.rows as u64,
        rows_max: count.rows_max as u64,
        setting: setting_for(count.map).to_owned(),
    };
    counts.map(fill).collect()
}

/// The setting that makes a map larger.
fn setting_for(map: &str) -> &'static str {
    match map {
        map_names::ADDRESSES => "limits.addresses",
        map_names::CIDRS => "limits.cidrs",
        map_names::ENDPOINTS => "limits.endpoints",
        map_names::POLICY => "limits.policyRows",
        _ => "",
    }
}

/// Entries of a name: one for each moment at which addresses end.
fn shown_lookup(lookup: &Lookup<'_>) -> Vec<FqdnLookup> {
    let mut ends: Vec<u64> = lookup.addresses.iter().map(|learned| learned.expires_ns).collect();
    ends.sort_unstable();
    ends.dedup();
    let entry = |end: u64| FqdnLookup {
        fqdn: lookup.name.to_string(),
        ips: lookup.addresses.iter().filter(|one| one.expires_ns == end).map(|one| one.address).collect(),
        ttl: end.saturating_sub(lookup.learned_ns).div_ceil(1_000_000_000),
        lookup_time: rfc3339(calendar(lookup.learned_ns)),
        expiration_time: rfc3339(calendar(end)),
        endpoint_id: lookup.endpoint.0,
        source: LookupSource::Lookup,
    };
    ends.into_iter().map(entry).collect()
}

/// Name selectors and what each holds.
fn selectors(gate: &Gate) -> Vec<FqdnSelector> {
    let lookups: Vec<Lookup<'_>> = gate.engine().lookups(boot_ns()).collect();
    let selectors = gate.engine().name_selectors().into_iter().map(|(text, rules)| {
        let pattern = NamePattern::pattern(&text).ok();
        let is_held = |lookup: &&Lookup<'_>| pattern.as_ref().is_some_and(|pattern| pattern.matches(lookup.name));
        FqdnSelector {
            names: lookups.iter().filter(is_held).map(selected).collect(),
            rules: rules.iter().map(ToString::to_string).collect(),
            selector: text,
        }
    });
    selectors.collect()
}

fn selected(lookup: &Lookup<'_>) -> SelectedName {
    SelectedName {
        fqdn: lookup.name.to_string(),
        endpoint_id: lookup.endpoint.0,
        ips: lookup.addresses.iter().map(|learned| learned.address).collect(),
    }
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

    fn policy(&self) -> Reply<'_, Policy> {
        Box::pin(async move {
            let page = self.book.page();
            Ok(Policy {
                revision: page.revision,
                directory: self.settings.policies.display().to_string(),
                documents: page.documents.clone(),
                diagnostics: page.diagnostics.clone(),
                not_enforced: page.not_enforced.clone(),
            })
        })
    }

    fn status(&self) -> Reply<'_, Status> {
        Box::pin(self.whole_status())
    }

    fn health(&self) -> Reply<'_, Health> {
        Box::pin(async move {
            let problems = self.problems().await;
            Ok(Health { healthy: problems.is_empty(), problems })
        })
    }

    fn flows(&self) -> FlowFeed {
        self.flows.feed()
    }

    fn instruments(&self) -> &Instruments {
        &self.instruments
    }
}
