//! The other side in elements of Cilium's policies: endpoints, entities, prefixes, names, services.

use super::{
    cidr,
    cilium::Section,
    draft::{DraftPeer, DraftPeers, ServiceReference},
    object::Context,
    resolvers,
    selector::{self, Keys},
    shapes::elements,
};
use crate::{
    diagnostic::{Code, Severity},
    labels::{K8S, LabelSelector, NAMESPACE_LABELS, POD_NAMESPACE, RESERVED, Requirement},
    name::{Fqdn, NamePattern},
    reader::{Object, Value},
    rule::{CidrReach, CidrSelector, Direction, Effect, Entity, PeerSelector},
};

/// Keys that name peers in a section.
fn members(section: Section) -> &'static [&'static str] {
    match (section.direction, section.effect) {
        (Direction::Ingress, _) => &elements::FROM_PEERS,
        (Direction::Egress, Effect::Deny) => &elements::TO_DENIED_PEERS,
        (Direction::Egress, _) => &elements::TO_PEERS,
    }
}

/// Who the element names; `None` where no key names peers.
pub(super) fn peers(context: &mut Context<'_>, object: &Object<'_>, section: Section) -> Option<DraftPeers> {
    let given: Vec<(&str, Value<'_>)> =
        object.fields().filter(|(key, _)| members(section).contains(key)).cloned().collect();
    let mut selected = Vec::new();
    let mut filled: Option<&str> = None;
    for (key, value) in &given {
        if *key == "toFQDNs" {
            context.enforced_for_node(value, section.of_node, "`toFQDNs`");
        }
        let Some(items) = context.reader.list(value) else { continue };
        if items.is_empty() {
            let problem = format!("an empty `{key}` selects nobody");
            let found = context.reader.warn(value, Code::MatchesNothing, problem);
            let prefix = if section.direction == Direction::Ingress { "from" } else { "to" };
            found.help = Some(format!("name peers, or select everybody with `{prefix}Entities: [all]`"));
            continue;
        }
        if let Some(other) = filled {
            let problem = format!("combining `{other}` and `{key}` in one element is not supported");
            context.reader.wrong(value, Code::Conflict, problem).help =
                Some("write two elements: they add up".to_owned());
        }
        filled = Some(key);
        for item in &items {
            selected.extend(member(context, key, item));
        }
    }
    (!given.is_empty()).then_some(DraftPeers::Of(selected))
}

fn member(context: &mut Context<'_>, key: &str, item: &Value<'_>) -> Vec<DraftPeer> {
    let ready = |selector: Option<PeerSelector>| selector.map(DraftPeer::Ready).into_iter().collect();
    match key {
        "fromEndpoints" | "toEndpoints" => ready(endpoints(context, item).map(PeerSelector::Labels)),
        "fromEntities" | "toEntities" => entity(context, key, item),
        "fromCIDR" | "toCIDR" => {
            let net = cidr::prefix(context, item, true);
            ready(net.map(|net| PeerSelector::Cidr(CidrSelector::new(net, [], CidrReach::OutsideCluster))))
        }
        "fromCIDRSet" | "toCIDRSet" => cidr::set(context, item).into_iter().collect(),
        "toFQDNs" => ready(name(context, item).map(PeerSelector::Name)),
        _ => service(context, item).into_iter().collect(),
    }
}

/// Endpoints of the policy's namespace, unless the selector says otherwise. Never the world, unless it is named.
fn endpoints(context: &mut Context<'_>, value: &Value<'_>) -> Option<LabelSelector> {
    let conditions = selector::conditions(context, value, Keys::Endpoint)?;
    let mut selector = LabelSelector::new(conditions.into_iter().map(|condition| condition.requirement));
    let any = |test: fn(&Requirement) -> bool| selector.requirements().any(test);
    if any(|requirement| requirement.source.as_deref() == Some(RESERVED)) {
        return Some(selector);
    }
    let says_where = any(|requirement| {
        let is_of_namespace = requirement.key == POD_NAMESPACE || requirement.key.starts_with(NAMESPACE_LABELS);
        is_of_namespace && requirement.source.as_deref() == Some(K8S)
    });
    match context.namespace.as_deref().filter(|_| !says_where) {
        Some(namespace) => selector.require(selector::in_namespace(namespace)),
        None => selector.require(selector::is_pod()),
    }
    Some(selector)
}

fn entity(context: &mut Context<'_>, key: &str, value: &Value<'_>) -> Vec<DraftPeer> {
    let everything = |net: &str| {
        net.parse().ok().map(|net| PeerSelector::Cidr(CidrSelector::new(net, [], CidrReach::OutsideCluster)))
    };
    let Some(text) = context.reader.text(value) else { return Vec::new() };
    let selector = match text {
        resolvers::WORD if key == "toEntities" => return resolvers::selectors().map(DraftPeer::Ready).collect(),
        resolvers::WORD => {
            let problem = "`public-resolvers` are servers: they can stand in `toEntities` only";
            context.reader.wrong(&value.at_value(), Code::Conflict, problem);
            None
        }
        "world-ipv4" => everything("0.0.0.0/0"),
        "world-ipv6" => everything("::/0"),
        "cluster-mesh" => {
            let found =
                context.reader.wrong(value, Code::Unsupported, "`cluster-mesh`: Namegate knows one cluster only");
            found.help = Some("write `cluster`".to_owned());
            None
        }
        _ => {
            let words = Entity::EVERY.map(|entity| (entity.as_str(), entity));
            context.reader.choice(value, &words).map(PeerSelector::Entity)
        }
    };
    selector.map(DraftPeer::Ready).into_iter().collect()
}

/// `matchName` or `matchPattern`: one of them.
pub(super) fn name(context: &mut Context<'_>, value: &Value<'_>) -> Option<NamePattern> {
    let object = context.reader.shaped(value, &elements::FQDN)?;
    let (place, parsed) = match (object.get("matchName"), object.get("matchPattern")) {
        (Some(name), None) => {
            let text = context.reader.text(&name)?;
            (name, NamePattern::name(text))
        }
        (None, Some(pattern)) => {
            let text = context.reader.text(&pattern)?;
            (pattern, NamePattern::pattern(text))
        }
        (Some(_), Some(second)) => {
            let problem = "`matchName` and `matchPattern` exclude each other in one entry";
            context.reader.wrong(&second, Code::Conflict, problem).help = Some("make two entries".to_owned());
            return None;
        }
        (None, None) => {
            context.reader.wrong(value, Code::MissingField, "`matchName` or `matchPattern` must be given");
            return None;
        }
    };
    checked_pattern(context, &place, parsed)
}

/// Notes what is wrong with a pattern, and warns of one that no name matches.
pub(super) fn checked_pattern(
    context: &mut Context<'_>,
    place: &Value<'_>,
    parsed: Result<NamePattern, crate::name::PatternError>,
) -> Option<NamePattern> {
    let place = place.at_value();
    let pattern = match parsed {
        Ok(pattern) => pattern,
        Err(error) => {
            context.reader.wrong(&place, Code::BadValue, error.to_string());
            return None;
        }
    };
    if let Some(exact) = pattern.exact() {
        if exact.parse::<std::net::IpAddr>().is_ok() {
            let found =
                context.reader.warn(&place, Code::MatchesNothing, "this is an address, no server answers for it");
            found.help = Some(format!("to allow the address, write `toCIDR: [{exact}/32]`"));
        } else if let Err(error) = exact.parse::<Fqdn>() {
            context.reader.warn(&place, Code::MatchesNothing, format!("no name is like this: {error}"));
        }
    }
    Some(pattern)
}

fn service(context: &mut Context<'_>, value: &Value<'_>) -> Option<DraftPeer> {
    let object = context.reader.shaped(value, &elements::SERVICE)?;
    let (reference, place, problem) = match (object.get("k8sService"), object.get("k8sServiceSelector")) {
        (Some(place), None) => {
            let service = context.reader.shaped(&place, &elements::NAMED_SERVICE)?;
            let name = context.reader.required(&service, "serviceName");
            let name = name.and_then(|name| context.reader.filled_text(&name)).map(str::to_owned);
            let namespace = match (service.get("namespace"), context.is_cluster_wide()) {
                (Some(namespace), _) => context.reader.filled_text(&namespace).map(str::to_owned),
                (None, true) => context.reader.required(&service, "namespace").map(|_| String::new()),
                (None, false) => context.namespace.clone(),
            };
            let (namespace, name) = (namespace?, name?);
            let problem = format!("there is no service `{namespace}/{name}`; this entry selects nobody");
            (ServiceReference::Name { namespace, name }, service.get("serviceName").unwrap_or(place), problem)
        }
        (None, Some(place)) => {
            let service = context.reader.shaped(&place, &elements::LABELLED_SERVICES)?;
            let selector = context.reader.required(&service, "selector");
            let selector = selector.and_then(|selector| selector::plain(context, &selector, Keys::POD));
            let namespace = service.get("namespace").and_then(|namespace| context.reader.filled_text(&namespace));
            let reference = ServiceReference::Labels { namespace: namespace.map(str::to_owned), selector: selector? };
            (reference, place, "no service has these labels; this entry selects nobody".to_owned())
        }
        (Some(_), Some(second)) => {
            let problem = "`k8sService` and `k8sServiceSelector` exclude each other in one entry";
            context.reader.wrong(&second, Code::Conflict, problem).help = Some("make two entries".to_owned());
            return None;
        }
        (None, None) => {
            context.reader.wrong(value, Code::MissingField, "`k8sService` or `k8sServiceSelector` must be given");
            return None;
        }
    };
    let dangling = context.reader.prepared(&place, Code::Dangling, problem, Severity::Warning);
    Some(DraftPeer::Service { reference, dangling: Box::new(dangling) })
}
