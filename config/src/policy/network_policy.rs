//! NetworkPolicy of networking.k8s.io/v1.

use std::sync::Arc;

use super::{
    cidr,
    draft::{Draft, DraftPeer, DraftPeers},
    object::Context,
    ports::{self, Port},
    selector::{self, Keys},
    shapes::kubernetes as shapes,
};
use crate::{
    diagnostic::Code,
    document::Kind,
    labels::LabelSelector,
    language::Bounds,
    reader::{Object, Value},
    rule::{Direction, Effect, PeerSelector, PortMatch, Ports, RangeInclusive16, Subject, Tier, Transport},
};

/// Protocols as all Kubernetes policies write them.
pub(super) const PROTOCOLS: [(&str, Transport); 3] =
    [("TCP", Transport::Tcp), ("UDP", Transport::Udp), ("SCTP", Transport::Sctp)];
/// Words of `policyTypes`.
pub(super) const POLICY_TYPES: [(&str, Direction); 2] =
    [("Ingress", Direction::Ingress), ("Egress", Direction::Egress)];
/// A port as all Kubernetes policies write it.
pub(super) const NUMBER: Bounds = Bounds(1, 65_535);

/// The rules of a policy. A direction that it covers without an element is one rule that selects nobody.
pub(super) fn policy(context: &mut Context<'_>, value: &Value<'_>) -> Option<Vec<Draft>> {
    let spec = context.reader.shaped(value, &shapes::NETWORK_POLICY_SPEC)?;
    let mut subject = match spec.get("podSelector") {
        Some(selector) => selector::plain(context, &selector, Keys::POD).unwrap_or_default(),
        None => LabelSelector::default(),
    };
    subject.require(selector::in_namespace(context.namespace.as_deref().unwrap_or_default()));
    let subject = Subject::Endpoints(subject);
    let types = policy_types(context, &spec);
    let mut drafts = Vec::new();
    for (key, direction) in [("ingress", Direction::Ingress), ("egress", Direction::Egress)] {
        let section = spec.get(key);
        let items = section.as_ref().and_then(|list| context.reader.list(list)).unwrap_or_default();
        let before = drafts.len();
        for item in &items {
            let (peers, ports) = element(context, item, direction);
            drafts.push(draft(context, item, &subject, direction, peers, ports));
        }
        if types.contains(&direction) {
            if drafts.len() == before {
                let absent = || Value { path: format!("{}.{key}", value.path), ..value.clone() };
                let place = section.unwrap_or_else(absent);
                drafts.push(draft(context, &place, &subject, direction, DraftPeers::Of(Vec::new()), Ports::Any));
            }
        } else if let Some(section) = section {
            drafts.truncate(before);
            let word = match direction {
                Direction::Ingress => "Ingress",
                Direction::Egress => "Egress",
            };
            let problem = if spec.get("policyTypes").is_some() {
                format!("`policyTypes` does not name this direction: `{key}` is not looked at")
            } else {
                format!("an empty list changes nothing without `{word}` in `policyTypes`")
            };
            let found = context.reader.warn(&section, Code::MatchesNothing, problem);
            found.help = Some(format!("add `{word}` to `policyTypes`"));
        }
    }
    Some(drafts)
}

fn draft(
    context: &Context<'_>,
    place: &Value<'_>,
    subject: &Subject,
    direction: Direction,
    peers: DraftPeers,
    ports: Ports,
) -> Draft {
    Draft {
        origin: Arc::new(context.origin(&place.path)),
        subject: subject.clone(),
        direction,
        tier: Tier::Normal,
        effect: Effect::Allow,
        default_deny: true,
        peers,
        ports,
        l7: None,
        binding: context.binding,
        named_only: context.named_only.clone(),
        place: context.reader.place(place),
    }
}

/// The directions that the policy covers. Left out, they are ingress, and egress where it has an element.
fn policy_types(context: &mut Context<'_>, spec: &Object<'_>) -> Vec<Direction> {
    let given = spec.get("policyTypes").and_then(|list| context.reader.list(&list)).unwrap_or_default();
    if !given.is_empty() {
        let types: Vec<_> = given.iter().filter_map(|item| context.reader.choice(item, &POLICY_TYPES)).collect();
        // With a mistake among them nothing is known of the others.
        return if types.len() == given.len() { types } else { POLICY_TYPES.map(|(_, direction)| direction).into() };
    }
    let has_egress =
        spec.get("egress").is_some_and(|egress| matches!(&egress.node.kind, Kind::List(items) if !items.is_empty()));
    if has_egress { vec![Direction::Ingress, Direction::Egress] } else { vec![Direction::Ingress] }
}

fn element(context: &mut Context<'_>, value: &Value<'_>, direction: Direction) -> (DraftPeers, Ports) {
    let (key, shape) = match direction {
        Direction::Ingress => ("from", &shapes::FROM),
        Direction::Egress => ("to", &shapes::TO),
    };
    let Some(object) = context.reader.shaped(value, shape) else { return (DraftPeers::Any, Ports::Any) };
    let items = object.get(key).and_then(|list| context.reader.list(&list)).unwrap_or_default();
    let peers = items.iter().filter_map(|item| peer(context, item)).collect();
    let peers = if items.is_empty() { DraftPeers::Any } else { DraftPeers::Of(peers) };
    let items = object.get("ports").and_then(|list| context.reader.list(&list)).unwrap_or_default();
    let ports = items.iter().filter_map(|item| port(context, item)).collect();
    (peers, if items.is_empty() { Ports::Any } else { Ports::Of(ports) })
}

fn peer(context: &mut Context<'_>, value: &Value<'_>) -> Option<DraftPeer> {
    let object = context.reader.shaped(value, &shapes::PEER)?;
    let (pods, namespaces) = (object.get("podSelector"), object.get("namespaceSelector"));
    if let Some(block) = object.get("ipBlock") {
        if pods.is_some() || namespaces.is_some() {
            let problem = "`ipBlock` excludes `podSelector` and `namespaceSelector` in one peer";
            context.reader.wrong(&block, Code::Conflict, problem).help = Some("make two peers".to_owned());
        }
        return cidr::ip_block(context, &block);
    }
    if pods.is_none() && namespaces.is_none() {
        let problem = "`podSelector`, `namespaceSelector` or `ipBlock` must be given";
        let found = context.reader.wrong(value, Code::MissingField, problem);
        found.help = Some("to select everybody, leave the list of peers out".to_owned());
        return None;
    }
    let mut selector = LabelSelector::default();
    for (value, keys) in [(&pods, Keys::POD), (&namespaces, Keys::NAMESPACE)] {
        for condition in value.as_ref().and_then(|value| selector::conditions(context, value, keys)).iter().flatten() {
            selector.require(condition.requirement.clone());
        }
    }
    selector.require(match (&namespaces, context.namespace.as_deref()) {
        (None, Some(namespace)) => selector::in_namespace(namespace),
        _ => selector::is_pod(),
    });
    Some(DraftPeer::Ready(PeerSelector::Labels(selector)))
}

fn port(context: &mut Context<'_>, value: &Value<'_>) -> Option<PortMatch> {
    let object = context.reader.shaped(value, &shapes::NETWORK_PORT)?;
    let protocol = match object.get("protocol") {
        Some(protocol) => context.reader.choice(&protocol, &PROTOCOLS),
        None => Some(Transport::Tcp),
    };
    let end = object.get("endPort");
    let Some(place) = object.get("port") else {
        if let Some(end) = end {
            context.reader.wrong(&end, Code::Conflict, "`endPort` needs `port`");
        }
        return Some(PortMatch::Numbers { protocol: protocol?, ports: RangeInclusive16::ALL });
    };
    let port = match &place.node.kind {
        Kind::Text(text) if !text.is_empty() && text.bytes().all(|octet| octet.is_ascii_digit()) => {
            let found = context.reader.wrong(
                &place.at_value(),
                Code::WrongType,
                "text is the name of a port, this is a number",
            );
            found.help = Some(format!("write `port: {text}` without quotes"));
            None
        }
        Kind::Text(text) => ports::named(context, &place.at_value(), text),
        _ => number(context, &place).map(|port| Port::Numbers(RangeInclusive16 { start: port, end: port })),
    };
    let port = match end {
        None => port?,
        Some(end) => {
            let last = context.reader.integer(&end, NUMBER.range())?;
            ports::range(context, &port?, last, &end)?
        }
    };
    Some(match port {
        Port::Numbers(ports) => PortMatch::Numbers { protocol: protocol?, ports },
        Port::Named(name) => PortMatch::Named { protocol: Some(protocol?), name },
    })
}

/// A port as a number.
pub(super) fn number(context: &mut Context<'_>, value: &Value<'_>) -> Option<u16> {
    context.reader.integer(value, NUMBER.range()).and_then(|number| u16::try_from(number).ok())
}
