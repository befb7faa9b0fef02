//! From documents to rules: looks up the services and groups of prefixes that they refer to.

use std::{
    borrow::Borrow,
    collections::{BTreeMap, HashSet},
    hash::Hash,
    net::IpAddr,
};

use ipnet::IpNet;

use super::{
    Document,
    draft::{Body, CidrGroup, Draft, DraftPeer, DraftPeers, GroupReference, ServiceReference},
};
use crate::{
    diagnostic::Diagnostic,
    labels::{K8S, LabelSelector, Labels, Operator, POD_NAMESPACE, Requirement},
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

impl Catalog {
    /// What one of the two has and the other has not.
    #[must_use]
    pub fn differences(&self, other: &Self) -> Self {
        Self {
            services: differences(&self.services, &other.services),
            cidr_groups: differences(&self.cidr_groups, &other.cidr_groups),
        }
    }

    /// Whether there are no facts.
    pub fn is_empty(&self) -> bool {
        self.services.is_empty() && self.cidr_groups.is_empty()
    }
}

fn differences<T: Clone + Eq + Hash>(one: &[T], other: &[T]) -> Vec<T> {
    let (of_one, of_other): (HashSet<&T>, HashSet<&T>) = (one.iter().collect(), other.iter().collect());
    of_one.symmetric_difference(&of_other).map(|fact| (*fact).clone()).collect()
}

/// A Kubernetes service.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
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

impl Document {
    /// Whether its rules depend on nothing but itself.
    pub fn is_self_contained(&self) -> bool {
        self.references().next().is_none()
    }

    /// Whether one of its references selects one of these facts.
    pub fn refers_to(&self, facts: &Catalog) -> bool {
        self.references().any(|peer| match peer {
            DraftPeer::Ready(_) => false,
            DraftPeer::Group { reference, .. } => facts.cidr_groups.iter().any(|group| reference.selects(group)),
            DraftPeer::Service { reference, .. } => facts.services.iter().any(|service| reference.selects(service)),
        })
    }

    /// The group of prefixes that it is, where it is one.
    pub fn cidr_group(&self) -> Option<&CidrGroup> {
        match &self.body {
            Body::CidrGroup(group) => Some(group),
            Body::Rules(_) => None,
        }
    }

    fn references(&self) -> impl Iterator<Item = &DraftPeer> {
        let drafts = match &self.body {
            Body::Rules(drafts) => &drafts[..],
            Body::CidrGroup(_) => &[],
        };
        let peers = drafts.iter().flat_map(|draft| match &draft.peers {
            DraftPeers::Any => &[][..],
            DraftPeers::Of(peers) => peers,
        });
        peers.filter(|peer| !matches!(peer, DraftPeer::Ready(_)))
    }
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
            selector.require(Requirement::own(key, Operator::In([value.clone()].into())));
        }
        vec![PeerSelector::Labels(selector)]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::parse;

    /// A policy of `shop` with these peers.
    fn document(peers: &str) -> Document {
        let text = format!(
            "apiVersion: cilium.io/v2\nkind: CiliumNetworkPolicy\nmetadata: {{name: p, namespace: shop}}\n\
             spec: {{endpointSelector: {{}}, egress: [{peers}]}}\n"
        );
        let mut parsed = parse("p.yaml", &text);
        assert!(parsed.diagnostics.is_empty(), "{:?}", parsed.diagnostics);
        parsed.documents.remove(0)
    }

    #[test]
    fn a_document_is_concerned_by_what_it_refers_to_alone() {
        let service = |name: &str| Service { name: name.into(), namespace: "shop".into(), ..Service::default() };
        let group = |name: &str| CidrGroup { name: name.into(), ..CidrGroup::default() };
        let before = Catalog { services: vec![service("db"), service("web")], cidr_groups: vec![group("a")] };
        let moved = Service { backends: vec!["192.0.2.1".parse().unwrap()], ..service("db") };
        let after = Catalog { services: vec![service("web"), moved], cidr_groups: vec![group("a"), group("b")] };
        let changed = before.differences(&after);
        assert_eq!((changed.services.len(), changed.cidr_groups.len()), (2, 1));
        assert!(before.differences(&before.clone()).is_empty());
        for (peers, self_contained, concerned) in [
            ("{toEntities: [world]}", true, false),
            ("{toServices: [{k8sService: {serviceName: db, namespace: shop}}]}", false, true),
            ("{toServices: [{k8sService: {serviceName: web, namespace: shop}}]}", false, false),
            ("{toServices: [{k8sService: {serviceName: absent, namespace: shop}}]}", false, false),
            ("{toCIDRSet: [{cidrGroupRef: b}]}", false, true),
            ("{toCIDRSet: [{cidrGroupRef: a}]}", false, false),
        ] {
            let document = document(peers);
            assert_eq!(document.is_self_contained(), self_contained, "{peers}");
            assert_eq!(document.refers_to(&changed), concerned, "{peers}");
        }
    }
}
