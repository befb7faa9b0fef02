//! From documents to rules: looks up the services and groups of prefixes that they refer to.

use std::{
    borrow::Borrow,
    collections::{BTreeMap, HashSet},
    net::IpAddr,
};

use ipnet::IpNet;

use super::{
    Document,
    draft::{Body, Draft, DraftPeer, DraftPeers, GroupReference, ServiceReference},
};
use crate::{
    diagnostic::Diagnostic,
    labels::{K8S, LabelSelector, Labels, POD_NAMESPACE, Requirement},
    rule::{CidrReach, CidrSelector, PeerSelector, Peers, Rule},
};

/// Source of the labels of CiliumCIDRGroup objects.
pub(super) const CIDR_GROUP: &str = "cidrgroup";

/// Facts that policies refer to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Catalog {
    /// Services, for `toServices`.
    pub services: Vec<Service>,
    /// Groups of prefixes, beside those among the documents.
    pub cidr_groups: Vec<CidrGroup>,
}

/// A Kubernetes service.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Service {
    /// Its name.
    pub name: String,
    /// Its namespace.
    pub namespace: String,
    /// Its own labels.
    pub labels: BTreeMap<String, String>,
    /// Labels of the pods behind it; empty where it has no selector.
    pub selector: BTreeMap<String, String>,
    /// Addresses behind a service without a selector, whoever has them.
    pub backends: Vec<IpAddr>,
}

/// A group of prefixes (CiliumCIDRGroup).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CidrGroup {
    /// Its name.
    pub name: String,
    /// Its labels.
    pub labels: BTreeMap<String, String>,
    /// Its prefixes.
    pub cidrs: Vec<IpNet>,
}

/// Rules, and what became of the references.
#[derive(Clone, Debug, Default)]
pub struct Translated {
    /// In the order of the documents.
    pub rules: Vec<Rule>,
    /// Warnings for references to nothing: they select nobody.
    pub diagnostics: Vec<Diagnostic>,
}

/// Turns documents into rules. Never fails: a reference to nothing selects nobody, with a warning.
pub fn translate<D: Borrow<Document>>(documents: &[D], catalog: &Catalog) -> Translated {
    let mut groups: Vec<&CidrGroup> = catalog.cidr_groups.iter().collect();
    groups.extend(documents.iter().filter_map(|document| match &document.borrow().body {
        Body::CidrGroup(group) => Some(group),
        Body::Rules(_) => None,
    }));
    let mut resolver = Resolver { groups, services: &catalog.services, found: Vec::new() };
    let drafts = documents.iter().flat_map(|document| match &document.borrow().body {
        Body::Rules(drafts) => &drafts[..],
        Body::CidrGroup(_) => &[],
    });
    let rules = drafts.map(|draft| resolver.rule(draft)).collect();
    // Elements with several port lists are several rules with the same peers: one warning is enough.
    let mut seen = HashSet::new();
    let mut diagnostics = resolver.found;
    diagnostics.retain(|found| seen.insert((found.file().to_owned(), found.span().offset(), found.field.clone())));
    Translated { rules, diagnostics }
}

struct Resolver<'a> {
    groups: Vec<&'a CidrGroup>,
    services: &'a [Service],
    found: Vec<Diagnostic>,
}

impl Resolver<'_> {
    fn rule(&mut self, draft: &Draft) -> Rule {
        let peers = match &draft.peers {
            DraftPeers::Any => Peers::Any,
            DraftPeers::Of(peers) => Peers::Of(peers.iter().flat_map(|peer| self.peer(peer)).collect()),
        };
        Rule {
            origin: draft.origin.clone(),
            subject: draft.subject.clone(),
            direction: draft.direction,
            tier: draft.tier,
            effect: draft.effect,
            default_deny: draft.default_deny,
            peers,
            ports: draft.ports.clone(),
            l7: draft.l7.clone(),
            binding: draft.binding,
            named_only: draft.named_only.clone(),
        }
    }

    fn peer(&mut self, peer: &DraftPeer) -> Vec<PeerSelector> {
        let (selectors, dangling) = match peer {
            DraftPeer::Ready(selector) => return vec![selector.clone()],
            DraftPeer::Group { reference, except, dangling } => {
                let groups = self.groups.iter().filter(|group| reference.selects(group));
                (groups.map(|group| group.selectors(except)).collect::<Vec<_>>(), dangling)
            }
            DraftPeer::Service { reference, dangling } => {
                let services = self.services.iter().filter(|service| reference.selects(service));
                (services.map(Service::selectors).collect(), dangling)
            }
        };
        if selectors.is_empty() {
            self.found.push((**dangling).clone());
        }
        selectors.concat()
    }
}

impl GroupReference {
    fn selects(&self, group: &CidrGroup) -> bool {
        match self {
            Self::Name(name) => *name == group.name,
            Self::Labels(selector) => selector.matches(&labels(CIDR_GROUP, &group.labels)),
        }
    }
}

impl ServiceReference {
    fn selects(&self, service: &Service) -> bool {
        match self {
            Self::Name { namespace, name } => *namespace == service.namespace && *name == service.name,
            Self::Labels { namespace, selector } => {
                namespace.as_ref().is_none_or(|namespace| *namespace == service.namespace)
                    && selector.matches(&labels(K8S, &service.labels))
            }
        }
    }
}

fn labels(source: &str, map: &BTreeMap<String, String>) -> Labels {
    let mut labels = Labels::default();
    for (key, value) in map {
        labels.insert(source, key, value);
    }
    labels
}

impl CidrGroup {
    /// Its prefixes less the holes. A prefix that a hole covers is left out.
    fn selectors(&self, except: &[IpNet]) -> Vec<PeerSelector> {
        let uncovered = self.cidrs.iter().filter(|net| !except.iter().any(|hole| hole.contains(*net)));
        uncovered
            .map(|net| {
                let holes = except.iter().copied().filter(|hole| net.contains(hole));
                PeerSelector::Cidr(CidrSelector::new(*net, holes, CidrReach::OutsideCluster))
            })
            .collect()
    }
}

impl Service {
    /// The pods it selects, or the addresses behind it.
    fn selectors(&self) -> Vec<PeerSelector> {
        if self.selector.is_empty() {
            let prefix = |address: &IpAddr| CidrSelector::new((*address).into(), [], CidrReach::Everything);
            return self.backends.iter().map(|address| PeerSelector::Cidr(prefix(address))).collect();
        }
        let mut selector = LabelSelector::default();
        selector.require(Requirement::equals(&format!("{K8S}:{POD_NAMESPACE}"), &self.namespace));
        for (key, value) in &self.selector {
            selector.require(Requirement::equals(&format!("{K8S}:{key}"), value));
        }
        vec![PeerSelector::Labels(selector)]
    }
}
