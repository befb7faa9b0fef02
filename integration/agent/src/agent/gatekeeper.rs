//! Answers the API's questions from the gate, the book and the flows.

use std::{collections::HashMap, net::IpAddr, sync::Arc, time::Duration};

use namegate_api::{
    CacheFilter, FlowFeed, Gatekeeper, Instruments, Refusal, Reply, rfc3339,
    view::{
        Counter, Direction, Endpoint, EndpointCounts, EndpointState, Enforcement, Fill, Forgotten, FqdnLookup,
        FqdnNames, FqdnSelector, Health, LookupSource, NameCounts, Policy, Refused, SelectedName, Status, Tally,
    },
};
use namegate_config::{rule, settings::Settings};
use namegate_dns_proxy::Proxy;
use namegate_engine::{EndpointId, Lookup};

use super::{
    book::Book,
    clock::{boot_ns, calendar},
    flows::Flows,
    gate::{Door, Gate},
    interfaces,
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
    fn passes(&self, lookup: &Lookup) -> bool {
        let in_cidr = |cidr: &ipnet::IpNet| lookup.addresses.iter().any(|(address, _)| cidr.contains(address));
        self.endpoint.is_none_or(|endpoint| endpoint == lookup.endpoint)
            && self.filter.pattern.as_ref().is_none_or(|pattern| pattern.matches(&lookup.name))
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
        let (views, failed) = self.door.ask(|gate| (gate.engine().endpoints(boot_ns()), gate.failed().clone())).await?;
        let mut views: HashMap<String, _> = views.into_iter().map(|view| (view.key.clone(), view)).collect();
        let page = self.book.page();
        let mut endpoints = Vec::new();
        for listed in page.endpoints.endpoints.iter().filter(|endpoint| endpoint.attachment.is_some()) {
            let Some(view) = views.remove(&interfaces::key(listed)) else { continue };
            let interface = listed.attachment.as_ref().map(|attachment| match attachment {
                namegate_config::endpoints::Attachment::Interface(name) => name.clone(),
                namegate_config::endpoints::Attachment::Netns(path) => path.display().to_string(),
            });
            endpoints.push(Endpoint {
                id: view.id.0,
                name: listed.name.clone(),
                namespace: listed.namespace.clone(),
                labels: view.labels.iter().map(ToString::to_string).collect(),
                addresses: view.addresses,
                interface,
                interface_index: view.interface,
                state: match view.interface {
                    None => EndpointState::Waiting,
                    Some(index) if failed.contains(&index) => EndpointState::Failed,
                    Some(_) => EndpointState::Guarded,
                },
                ingress: self.enforcement(rule::Direction::Ingress, view.enforced_ingress),
                egress: self.enforcement(rule::Direction::Egress, view.enforced_egress),
                rules: view.rules.iter().map(ToString::to_string).collect(),
                names: view.names,
            });
        }
        endpoints.sort_by_key(|endpoint| endpoint.id);
        Ok(endpoints)
    }

    async fn whole_status(&self) -> Result<Status, Refusal> {
        let settings = self.settings.clone();
        let figures = self.door.ask(move |gate| Figures::of(gate, &settings)).await?;
        let endpoints = self.list().await?;
        let count = |state| endpoints.iter().filter(|endpoint| endpoint.state == state).count();
        let page = self.book.page();
        let dns = self.proxy.tallies();
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

/// What the gate's thread gives for a status.
struct Figures {
    names: NameCounts,
    counters: Vec<Counter>,
    maps: Vec<Fill>,
    refused: Vec<Refused>,
    flows_lost: u64,
}

impl Figures {
    fn of(gate: &mut Gate, settings: &Settings) -> Self {
        let now = boot_ns();
        let mut names = NameCounts::default();
        for lookup in gate.engine().lookups(now) {
            names.names += 1;
            names.addresses += lookup.addresses.len();
        }
        let refused_writes = gate.refused_writes();
        let mut refused: Vec<Refused> = gate.engine().refused().into_iter().map(shown_refusal).collect();
        refused.push(Refused { bound: "map-rows".to_owned(), count: refused_writes, setting: "limits".to_owned() });
        let counters = gate.datapath().counters().unwrap_or_else(|error| {
            tracing::error!(%error, "reading counters");
            Vec::new()
        });
        Self {
            names,
            counters: counters.into_iter().filter(|(_, _, count)| count.packets > 0).map(shown_counter).collect(),
            maps: fills(gate, settings),
            refused,
            flows_lost: gate.datapath().events_lost().unwrap_or(0),
        }
    }
}

fn shown_refusal(refused: namegate_engine::Refused) -> Refused {
    Refused { bound: refused.bound.to_owned(), count: refused.count, setting: refused.setting.to_owned() }
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

fn fills(gate: &Gate, settings: &Settings) -> Vec<Fill> {
    let rows = gate.engine().row_counts();
    let limits = settings.limits;
    let fill = |map: &str, rows: u64, rows_max: u32, setting: &str| Fill {
        map: map.to_owned(),
        rows,
        rows_max: rows_max.into(),
        setting: setting.to_owned(),
    };
    vec![
        fill("ADDRESSES", rows.addresses, limits.addresses, "limits.addresses"),
        fill("CIDRS", rows.cidrs, limits.cidrs, "limits.cidrs"),
        fill("ENDPOINTS", rows.endpoints, limits.endpoints, "limits.endpoints"),
        fill("POLICY", rows.policy, limits.policy_rows, "limits.policyRows"),
    ]
}

fn shown_lookup(lookup: &Lookup) -> FqdnLookup {
    let ends = lookup.addresses.iter().map(|(_, expires_ns)| *expires_ns).max().unwrap_or(lookup.learned_ns);
    FqdnLookup {
        fqdn: lookup.name.to_string(),
        ips: lookup.addresses.iter().map(|(address, _)| *address).collect(),
        ttl: (ends - lookup.learned_ns.min(ends)).div_ceil(1_000_000_000),
        lookup_time: rfc3339(calendar(lookup.learned_ns)),
        expiration_time: rfc3339(calendar(ends)),
        endpoint_id: lookup.endpoint.0,
        source: LookupSource::Lookup,
    }
}

/// A name whose addresses end at different times gives one entry for each end.
fn by_end(lookup: Lookup) -> Vec<Lookup> {
    let mut parts: Vec<Lookup> = Vec::new();
    for (address, expires_ns) in &lookup.addresses {
        match parts.iter_mut().find(|part| part.addresses[0].1 == *expires_ns) {
            Some(part) => part.addresses.push((*address, *expires_ns)),
            None => parts.push(Lookup { addresses: vec![(*address, *expires_ns)], ..lookup.clone() }),
        }
    }
    parts
}

impl Gatekeeper for Keeper {
    fn fqdn_cache(&self, filter: CacheFilter) -> Reply<'_, Vec<FqdnLookup>> {
        Box::pin(async move {
            let wanted = self.wanted(filter).await?;
            let lookups = self.door.ask(|gate| gate.engine().lookups(boot_ns()).collect::<Vec<_>>()).await?;
            let passing = lookups.into_iter().filter(|lookup| wanted.passes(lookup)).flat_map(by_end);
            Ok(passing.map(|lookup| shown_lookup(&lookup)).collect())
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
        Box::pin(async move {
            let (selectors, lookups) = self
                .door
                .ask(|gate| (gate.engine().name_selectors(), gate.engine().lookups(boot_ns()).collect::<Vec<_>>()))
                .await?;
            let selectors = selectors.into_iter().map(|selector| FqdnSelector {
                names: lookups
                    .iter()
                    .filter(|lookup| selector.pattern.matches(&lookup.name))
                    .map(|lookup| SelectedName {
                        fqdn: lookup.name.to_string(),
                        endpoint_id: lookup.endpoint.0,
                        ips: lookup.addresses.iter().map(|(address, _): &(IpAddr, u64)| *address).collect(),
                    })
                    .collect(),
                selector: selector.pattern.to_string(),
                rules: selector.rules.iter().map(ToString::to_string).collect(),
            });
            Ok(FqdnNames { selectors: selectors.collect() })
        })
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
