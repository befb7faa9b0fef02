//! What the API asks: who is here, what was learned, which rule a number means, and how full everything is.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    sync::Arc,
};

use namegate_abi::{Address, AddressKey, NODE_INTERFACE};
use namegate_config::{
    labels::Labels,
    name::Fqdn,
    peer::NamedPort,
    rule::{Origin, PeerSelector, Peers, Rule},
};

use crate::{EndpointId, Engine, Key, Lookup, PolicyView, Row};

/// An endpoint of this node.
#[derive(Clone, Debug)]
pub struct EndpointView {
    /// Its number.
    pub id: EndpointId,
    /// `namespace/name`; `host` for the node itself.
    pub key: Arc<str>,
    /// Its labels.
    pub labels: Arc<Labels>,
    /// Its addresses.
    pub addresses: Vec<IpAddr>,
    /// Ports it names.
    pub named_ports: Vec<NamedPort>,
    /// Index of the host-side interface; [`NODE_INTERFACE`] for the node itself.
    pub interface: u32,
    /// The policy that should judge it; 0 is none.
    pub policy: u32,
    /// It is denied everything: its policy is not whole, or has no room.
    pub is_closed: bool,
    /// Revision under which its flows are judged.
    pub revision: u32,
    /// Where the rules that judge it stand.
    pub rules: Vec<Arc<Origin>>,
    /// Whether a policy holds for traffic to it.
    pub enforced_ingress: bool,
    /// Whether a policy holds for traffic from it.
    pub enforced_egress: bool,
}

/// A name behind an address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KnownName {
    /// The name.
    pub name: Fqdn,
    /// When its TTL ends, in nanoseconds of `CLOCK_BOOTTIME`.
    pub expires_ns: u64,
    /// Whether it has ended.
    pub ended: bool,
}

/// A port of a service of which some targets may be reached, and others not: none is.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct DividedPort {
    /// `namespace/name` of the service.
    pub service: Arc<str>,
    /// IANA protocol number.
    pub protocol: u8,
    /// The port.
    pub port: u16,
    /// Endpoints that are kept from it.
    pub endpoints: Vec<Arc<str>>,
}

/// Rows of one map.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RowCount {
    /// Name of the map.
    pub map: &'static str,
    /// Rows in it.
    pub rows: usize,
    /// Rows it can hold.
    pub rows_max: usize,
}

impl Engine {
    /// Names whose TTL has not ended, with the addresses that live.
    pub fn lookups(&self, now: u64) -> impl Iterator<Item = Lookup<'_>> {
        self.every_lookup(move |address| address.expires_ns > now).filter(|lookup| !lookup.addresses.is_empty())
    }

    /// Endpoints of this node, by number; with the node itself, as `host`, where a rule selects it.
    pub fn endpoints(&self) -> Vec<EndpointView> {
        self.policy_view(&PolicyView::default()).endpoints()
    }

    /// Interfaces with a row in `ENDPOINTS`, and the endpoint of each, as `namespace/name` where its number is known.
    pub fn interfaces(&self) -> BTreeMap<u32, Option<Arc<str>>> {
        let keys: BTreeMap<u32, &Arc<str>> = self.ledger.endpoints.all().map(|(key, id)| (id, key)).collect();
        let rows = self.mirror.rows().values().filter_map(|row| match row {
            Row::Endpoint(interface, value) => Some((*interface, keys.get(&value.endpoint).map(|key| Arc::clone(key)))),
            _ => None,
        });
        rows.collect()
    }

    /// Whether an interface has its row in `ENDPOINTS`; one with programs and without a row is closed.
    pub fn has_interface(&self, interface: u32) -> bool {
        self.mirror.rows().contains_key(&Key::Endpoint(interface))
    }

    /// The number of this node as an endpoint, where a rule selects it.
    pub fn node_id(&self) -> Option<EndpointId> {
        self.local.iter().find(|(_, local)| local.interface == NODE_INTERFACE).map(|(id, _)| *id)
    }

    /// The endpoint of this node that has the address.
    pub fn endpoint_by_address(&self, address: IpAddr) -> Option<EndpointId> {
        self.peers.owner(address.to_canonical().into()).and_then(|who| who.id)
    }

    /// `namespace/name` of an endpoint of this node.
    pub fn endpoint_key(&self, endpoint: EndpointId) -> Option<&str> {
        self.cache.endpoints.get(&endpoint).map(|known| &*known.key)
    }

    /// Addresses of trusted resolvers, sorted.
    pub fn resolvers(&self) -> &[IpAddr] {
        &self.resolvers
    }

    /// Where the rule stands that rows and flows name by this number, also some time after it is gone.
    pub fn origin(&self, rule_cookie: u32) -> Option<&Arc<Origin>> {
        self.rules.origin(rule_cookie)
    }

    /// Names under which the endpoint learned the address; ended ones too, for an hour.
    pub fn names_of(&self, endpoint: EndpointId, address: IpAddr, now: u64) -> Vec<KnownName> {
        let key = AddressKey { scope: self.scope(endpoint), address: address.to_canonical().into() };
        let openings = self.cache.rows.get(&key).into_iter().flat_map(|opened| &opened.openings);
        openings
            .filter(|opening| opening.endpoint == endpoint || key.scope != endpoint.0)
            .map(|opening| KnownName {
                name: self.cache.names.name(opening.name).clone(),
                expires_ns: opening.expires_ns,
                ended: opening.expires_ns <= now,
            })
            .collect()
    }

    /// `namespace/name` of the pod, or the name of the node, that has the address; or of the service with this one.
    pub fn peer_key(&self, address: IpAddr) -> Option<&str> {
        let address = Address::from(address.to_canonical());
        let service = || Some(&*self.peers.front(address)?.values().next()?.service);
        self.peers.owner(address).map(|who| &*who.key).or_else(service)
    }

    /// Ports of services of which some targets may be reached by an endpoint, and others not.
    pub fn divided(&self) -> Vec<DividedPort> {
        let mut found: BTreeMap<(Arc<str>, u8, u16), BTreeSet<Arc<str>>> = BTreeMap::new();
        for (id, policy) in &self.policies {
            for (identity, (protocol, port)) in policy.divided() {
                let addresses = self.placed.iter().filter(|(_, (value, _))| value.steps[0].identity == identity);
                let behind = addresses.filter_map(|(address, _)| self.peers.behind(address.to_ip(), (protocol, port)));
                for service in behind.map(|behind| Arc::clone(&behind.service)) {
                    let judged = self.local.iter().filter(|(_, local)| local.policy == *id);
                    let keys = judged.filter_map(|(id, _)| self.cache.endpoints.get(id));
                    found
                        .entry((service, protocol, port))
                        .or_default()
                        .extend(keys.map(|known| Arc::clone(&known.key)));
                }
            }
        }
        let shown = |((service, protocol, port), endpoints): (_, BTreeSet<_>)| DividedPort {
            service,
            protocol,
            port,
            endpoints: endpoints.into_iter().collect(),
        };
        found.into_iter().map(shown).collect()
    }

    /// What was refused at bounds and by settings: what, and how often.
    pub fn refused(&self) -> Vec<(&'static str, u64)> {
        let rows = self.mirror.refused();
        let own = [("addresses claimed twice", self.peers.conflicts()), ("ledger entries", self.ledger.dropped())];
        let counted = self.refused.iter().map(|(what, count)| (*what, *count));
        counted.chain(rows).chain(own).filter(|(_, count)| *count > 0).collect()
    }

    /// What was refused at the shares of single endpoints, by `namespace/name`, and of namespaces: what, and how often.
    pub fn refused_of_shares(&self) -> Vec<(Arc<str>, &'static str, u64)> {
        let of_endpoint = |((endpoint, what), count): (&(EndpointId, &'static str), &u64)| {
            Some((Arc::clone(&self.cache.endpoints.get(endpoint)?.key), *what, *count))
        };
        let of_endpoints = self.refused_of.iter().filter_map(of_endpoint);
        let of_namespaces =
            self.refused_in.iter().map(|((namespace, what), count)| (Arc::clone(namespace), *what, *count));
        of_endpoints.chain(of_namespaces).collect()
    }

    /// The revision of the last change.
    pub const fn revision(&self) -> u32 {
        self.ledger.revision
    }

    /// How full the maps are.
    pub fn row_counts(&self) -> Vec<RowCount> {
        self.mirror.counts().map(|(map, rows, rows_max)| RowCount { map, rows, rows_max }).collect()
    }

    /// Every row that the kernel should hold, sorted.
    pub fn rows(&self) -> Vec<Row> {
        let mut rows: Vec<Row> = self.wanted().into_values().collect();
        rows.sort_unstable();
        rows
    }

    /// Identities in use.
    pub fn identity_count(&self) -> usize {
        self.identities.len()
    }
}

/// Where rules stand, each place once.
pub(crate) fn origins_of(rules: &[Arc<Rule>]) -> Vec<Arc<Origin>> {
    let mut origins: Vec<Arc<Origin>> = rules.iter().map(|rule| Arc::clone(&rule.origin)).collect();
    origins.sort_unstable();
    origins.dedup();
    origins
}

/// Name patterns of rules, with the rules that have them.
pub(crate) fn name_selectors(rules: &[Arc<Rule>]) -> BTreeMap<String, Vec<Arc<Origin>>> {
    let mut selectors: BTreeMap<String, Vec<Arc<Origin>>> = BTreeMap::new();
    for rule in rules {
        let Peers::Of(peers) = &rule.peers else { continue };
        for peer in peers {
            if let PeerSelector::Name(pattern) = peer {
                selectors.entry(pattern.as_str().to_owned()).or_default().push(Arc::clone(&rule.origin));
            }
        }
    }
    selectors
}
