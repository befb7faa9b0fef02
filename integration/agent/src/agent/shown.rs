//! From what the enforcer publishes to what the API shows.

use std::collections::BTreeMap;

use namegate_abi::map_names;
use namegate_api::{
    rfc3339,
    view::{
        Direction, Endpoint, EndpointCounter, EndpointState, Enforcement, Fill, FqdnLookup, FqdnSelector, LookupSource,
        PacketCounter, Refused, SelectedName,
    },
};
use namegate_config::{endpoints, name::NamePattern};
use namegate_enforcer::{Figures, Reader};
use namegate_engine::{Lookup, RowCount};
use namegate_loader::Meters;

use super::{
    clock::{boot_ns, calendar},
    refusals::{self, Bound},
};

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

/// What was refused: by endpoint where one of them reached its share, else for the node.
pub(super) fn refused(figures: &Figures) -> Vec<Refused> {
    let of_shares = &figures.refused_of_shares;
    let writes = ("rows that the kernel refused", figures.writes_refused);
    let of_node = figures.refused.iter().copied().chain([writes]);
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
pub(super) fn names_unread(unread: &[Refused], refused: &[Refused]) -> Vec<EndpointCounter> {
    let copies = refused.iter().filter(|at| at.bound == Bound::Copies.text());
    let mut counts: BTreeMap<&str, u64> = BTreeMap::new();
    for at in unread.iter().chain(copies) {
        *counts.entry(&at.endpoint).or_default() += at.count;
    }
    counts.into_iter().map(|(endpoint, count)| EndpointCounter { endpoint: endpoint.to_owned(), count }).collect()
}

/// Packets by direction and reason; those that never came are left out.
pub(super) fn counters(meters: &Meters) -> Vec<PacketCounter> {
    let counters = meters.counters().unwrap_or_else(|error| {
        tracing::error!(%error, "reading counters");
        Vec::new()
    });
    counters.into_iter().filter(|(_, _, count)| count.packets > 0).map(shown_counter).collect()
}

fn shown_counter(
    (direction, reason, count): (namegate_abi::Direction, namegate_abi::Reason, namegate_abi::Counter),
) -> PacketCounter {
    PacketCounter {
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

/// How full the maps are.
pub(super) fn fills(figures: &Figures) -> Vec<Fill> {
    let fill = |count: &RowCount| Fill {
        map: count.map.to_owned(),
        rows: count.rows as u64,
        rows_max: count.rows_max as u64,
        setting: setting_for(count.map).to_owned(),
    };
    figures.rows.iter().map(fill).collect()
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

/// Name selectors and what each holds. It takes time for each selector and name.
pub(super) fn selectors(reader: &Reader) -> Vec<FqdnSelector> {
    let selectors = reader.view().name_selectors();
    let patterns: Vec<Option<NamePattern>> = selectors.keys().map(|text| NamePattern::pattern(text).ok()).collect();
    let mut names: Vec<Vec<SelectedName>> = vec![Vec::new(); patterns.len()];
    reader.names().for_each(None, boot_ns(), |lookup| {
        for (pattern, names) in patterns.iter().zip(&mut names) {
            if pattern.as_ref().is_some_and(|pattern| pattern.matches(lookup.name)) {
                names.push(selected(lookup));
            }
        }
    });
    let shown = selectors.into_iter().zip(names).map(|((selector, rules), names)| FqdnSelector {
        names,
        rules: rules.iter().map(ToString::to_string).collect(),
        selector,
    });
    shown.collect()
}

fn selected(lookup: &Lookup<'_>) -> SelectedName {
    SelectedName {
        fqdn: lookup.name.to_string(),
        endpoint_id: lookup.endpoint.0,
        ips: lookup.addresses.iter().map(|learned| learned.address).collect(),
    }
}
