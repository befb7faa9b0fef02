//! From what the gate's thread knows to what the API shows.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
};

use namegate_abi::map_names;
use namegate_api::{
    rfc3339,
    view::{
        Counter, Direction, Endpoint, EndpointState, EndpointTally, Enforcement, Fill, FqdnLookup, FqdnSelector,
        LookupSource, NameCounts, Refused, SelectedName,
    },
};
use namegate_config::{endpoints, name::NamePattern};
use namegate_engine::{EndpointId, EndpointView, Lookup, RowCount};

use super::{
    clock::{boot_ns, calendar},
    gate::Gate,
    refusals::{self, Bound},
};

/// What the gate's thread knows of endpoints.
pub(super) struct Known {
    pub(super) views: HashMap<Arc<str>, EndpointView>,
    pub(super) failed: BTreeMap<u32, String>,
    /// Learned names that live.
    pub(super) names: HashMap<EndpointId, usize>,
}

impl Known {
    pub(super) fn of(gate: &Gate) -> Self {
        let mut names: HashMap<EndpointId, usize> = HashMap::new();
        for lookup in gate.engine().lookups(boot_ns()) {
            *names.entry(lookup.endpoint).or_default() += 1;
        }
        let views = gate.engine().endpoints().into_iter().map(|view| (Arc::clone(&view.key), view)).collect();
        Self { views, failed: gate.failed().clone(), names }
    }
}

/// Interface or network namespace, as the file names it.
pub(super) fn interface(listed: &endpoints::Endpoint) -> Option<String> {
    listed.attachment.as_ref().map(|attachment| match attachment {
        endpoints::Attachment::Interface(name) => name.clone(),
        endpoints::Attachment::Netns(path) => path.display().to_string(),
    })
}

/// An endpoint whose interface is not there yet: it has no number so far.
pub(super) fn waiting(listed: &endpoints::Endpoint, labels: Vec<String>) -> Endpoint {
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
pub(super) struct Figures {
    pub(super) names: NameCounts,
    pub(super) counters: Vec<Counter>,
    pub(super) maps: Vec<Fill>,
    pub(super) refused: Vec<Refused>,
    pub(super) healed: u64,
    pub(super) flows_lost: u64,
    pub(super) openings_lost: u64,
}

impl Figures {
    pub(super) fn of(gate: &mut Gate) -> Self {
        let now = boot_ns();
        let mut names = NameCounts::default();
        for lookup in gate.engine().lookups(now) {
            names.names += 1;
            names.addresses += lookup.addresses.len();
        }
        let refused = refused(gate).into_iter().chain(gate.refusals().shown(gate.engine())).collect();
        let counters = gate.datapath().counters().unwrap_or_else(|error| {
            tracing::error!(%error, "reading counters");
            Vec::new()
        });
        Self {
            names,
            counters: counters.into_iter().filter(|(_, _, count)| count.packets > 0).map(shown_counter).collect(),
            maps: fills(gate),
            refused,
            healed: gate.healed(),
            flows_lost: gate.datapath().events_lost().unwrap_or(0),
            openings_lost: gate.datapath().openings_lost().unwrap_or(0),
        }
    }
}

/// What was refused: by endpoint where one of them reached its share, else for the node.
fn refused(gate: &Gate) -> Vec<Refused> {
    let of_shares = gate.engine().refused_of_shares();
    let writes = ("rows that the kernel refused", gate.room.writes());
    let of_node = gate.engine().refused().into_iter().chain([writes]);
    let shares = |bound: &str| of_shares.iter().filter(|(_, of, _)| *of == bound).map(|(.., count)| count).sum();
    // What is counted for an endpoint is not counted for the node too.
    let of_node = of_node.map(|(bound, count)| ("".into(), bound, count.saturating_sub(shares(bound))));
    let all = of_node.chain(of_shares.iter().cloned()).filter(|(.., count)| *count > 0);
    let shown = all.map(|(endpoint, bound, count)| Refused {
        bound: bound.to_owned(),
        endpoint: endpoint.to_string(),
        count,
        setting: refusals::setting_of(bound).to_owned(),
    });
    shown.collect()
}

/// Connections whose name was not looked at, by endpoint: those that the agent could not read, and copies that the programs
/// did not make.
pub(super) fn names_unread(unread: &[Refused], refused: &[Refused]) -> Vec<EndpointTally> {
    let copies = refused.iter().filter(|at| at.bound == Bound::Copies.text());
    let mut counts: BTreeMap<&str, u64> = BTreeMap::new();
    for at in unread.iter().chain(copies) {
        *counts.entry(&at.endpoint).or_default() += at.count;
    }
    counts.into_iter().map(|(endpoint, count)| EndpointTally { endpoint: endpoint.to_owned(), count }).collect()
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
pub(super) fn shown_lookup(lookup: &Lookup<'_>) -> Vec<FqdnLookup> {
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
pub(super) fn selectors(gate: &Gate) -> Vec<FqdnSelector> {
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
