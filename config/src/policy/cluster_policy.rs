//! ClusterNetworkPolicy of policy.networking.k8s.io/v1alpha2: administrators' rules before and after all others.

use std::sync::Arc;

use super::{
    cidr,
    draft::{Draft, DraftPeer, DraftPeers},
    network_policy::{NUMBER, number},
    object::Context,
    peers,
    ports::{self, Port},
    selector::{self, Keys},
    shapes::kubernetes as shapes,
};
use crate::{
    diagnostic::Code,
    labels::{LabelSelector, RESERVED},
    language::Bounds,
    name::NamePattern,
    reader::{Object, Value},
    rule::{
        CidrReach, CidrSelector, Direction, Effect, Entity, PeerSelector, PortMatch, Ports, RangeInclusive16, Subject,
        Tier, Transport,
    },
};

/// Most rules in one direction of one policy.
pub(super) const RULES_MAX: usize = 100;
/// `priority`.
pub(super) const PRIORITY: Bounds = Bounds(0, 1_000);
/// Steps between two priorities in [`Tier`]; more than [`RULES_MAX`].
const PRIORITY_STEP: u32 = 1_000;
/// What a priority and a place make a tier of.
type InTier = fn(u32) -> Tier;
/// Words of `tier`.
pub(super) const TIERS: [(&str, InTier); 2] = [("Admin", Tier::Admin), ("Baseline", Tier::Baseline)];
/// Words of `action`.
pub(super) const ACTIONS: [(&str, Effect); 3] =
    [("Accept", Effect::Allow), ("Deny", Effect::Deny), ("Pass", Effect::Pass)];

/// The rules of a policy.
pub(super) fn policy(context: &mut Context<'_>, value: &Value<'_>) -> Option<Vec<Draft>> {
    let spec = context.reader.shaped(value, &shapes::CLUSTER_POLICY_SPEC)?;
    let tier = context.reader.required(&spec, "tier").and_then(|tier| context.reader.choice(&tier, &TIERS));
    let priority = context.reader.required(&spec, "priority");
    let priority = priority.and_then(|priority| context.reader.integer(&priority, PRIORITY.range()));
    let subject = context.reader.required(&spec, "subject").and_then(|subject| self::subject(context, &subject));
    let mut drafts = Vec::new();
    let mut rules = 0;
    for (key, direction) in [("ingress", Direction::Ingress), ("egress", Direction::Egress)] {
        let Some(list) = spec.get(key) else { continue };
        let items = context.reader.list(&list).unwrap_or_default();
        if items.len() > RULES_MAX {
            let problem = format!("at most {RULES_MAX} rules can stand here, these are {}", items.len());
            context.reader.wrong(&list, Code::BadValue, problem);
        }
        rules += items.len();
        for (place, item) in (0..).zip(items.iter().take(RULES_MAX)) {
            let Some((effect, peers, ports)) = rule(context, item, direction) else { continue };
            let Some(tier) = tier.map(|tier| tier(priority.unwrap_or_default() * PRIORITY_STEP + place)) else {
                continue;
            };
            if effect == Effect::Pass && matches!(tier, Tier::Baseline(_)) {
                let problem = "after the baseline tier comes nothing to pass to";
                context.reader.wrong(item, Code::Conflict, problem).help = Some("write `Accept` or `Deny`".to_owned());
            }
            drafts.push(Draft {
                origin: Arc::new(context.origin(&item.path)),
                subject: subject.clone().unwrap_or(Subject::Endpoints(LabelSelector::default())),
                direction,
                tier,
                effect,
                default_deny: false,
                peers: DraftPeers::Of(peers),
                ports,
                l7: None,
                binding: context.binding,
                named_only: context.named_only.clone(),
                place: context.reader.place(item),
            });
        }
    }
    if rules == 0 {
        context.reader.warn(
            value,
            Code::MatchesNothing,
            "without `ingress` and `egress` rules the policy does nothing",
        );
    }
    Some(drafts)
}

fn subject(context: &mut Context<'_>, value: &Value<'_>) -> Option<Subject> {
    let object = context.reader.shaped(value, &shapes::SUBJECT)?;
    let place = exactly_one(context, value, &object)?;
    pods(context, &place).map(Subject::Endpoints)
}

/// The only field of an object that takes exactly one of some.
fn exactly_one<'n>(context: &mut Context<'_>, value: &Value<'n>, object: &Object<'n>) -> Option<Value<'n>> {
    let keys = object.shape()?.one_of();
    let given: Vec<Value<'_>> = keys.iter().filter_map(|key| object.get(key)).collect();
    let list = keys.iter().map(|key| format!("`{key}`")).collect::<Vec<_>>().join(", ");
    match &given[..] {
        [one] => Some(one.clone()),
        [] => {
            context.reader.wrong(value, Code::MissingField, format!("one of {list} must be given"));
            None
        }
        [_, second, ..] => {
            context.reader.wrong(second, Code::Conflict, format!("only one of {list} can stand here"));
            None
        }
    }
}

/// `namespaces` (every pod in them) or `pods`.
fn pods(context: &mut Context<'_>, value: &Value<'_>) -> Option<LabelSelector> {
    let mut selector = LabelSelector::new([selector::is_pod()]);
    if value.path.ends_with(".namespaces") {
        for condition in selector::conditions(context, value, Keys::NAMESPACE)? {
            selector.require(condition.requirement);
        }
        return Some(selector);
    }
    let object = context.reader.shaped(value, &shapes::NAMESPACED_PODS)?;
    for (key, keys) in [("namespaceSelector", Keys::NAMESPACE), ("podSelector", Keys::POD)] {
        let Some(value) = context.reader.required(&object, key) else { continue };
        for condition in selector::conditions(context, &value, keys).unwrap_or_default() {
            selector.require(condition.requirement);
        }
    }
    Some(selector)
}

fn rule(context: &mut Context<'_>, value: &Value<'_>, direction: Direction) -> Option<(Effect, Vec<DraftPeer>, Ports)> {
    let (key, shape) = match direction {
        Direction::Ingress => ("from", &shapes::CLUSTER_FROM),
        Direction::Egress => ("to", &shapes::CLUSTER_TO),
    };
    let object = context.reader.shaped(value, shape)?;
    if let Some(name) = object.get("name") {
        context.reader.text(&name);
    }
    let effect = context.reader.required(&object, "action").and_then(|action| context.reader.choice(&action, &ACTIONS));
    let list = context.reader.required(&object, key);
    let items = list.as_ref().and_then(|list| context.reader.list(list));
    if let (Some(list), Some([])) = (&list, items.as_deref()) {
        context.reader.wrong(list, Code::BadValue, "must name at least one peer");
    }
    let mut selected = Vec::new();
    for item in items.iter().flatten() {
        selected.extend(peer(context, item, direction, effect));
    }
    let ports = match object.get("protocols").and_then(|list| context.reader.list(&list)) {
        Some(items) if !items.is_empty() => {
            Ports::Of(items.iter().filter_map(|item| protocol(context, item)).collect())
        }
        _ => Ports::Any,
    };
    Some((effect?, selected, ports))
}

fn peer(context: &mut Context<'_>, value: &Value<'_>, direction: Direction, effect: Option<Effect>) -> Vec<DraftPeer> {
    let shape = match direction {
        Direction::Ingress => &shapes::CLUSTER_FROM_PEER,
        Direction::Egress => &shapes::CLUSTER_TO_PEER,
    };
    let Some(object) = context.reader.shaped(value, shape) else { return Vec::new() };
    let Some(place) = exactly_one(context, value, &object) else { return Vec::new() };
    let is = |key: &str| object.fields().any(|(given, _)| *given == key);
    let selectors = if is("nodes") {
        nodes(context, &place)
    } else if is("networks") {
        let items = context.reader.list(&place).unwrap_or_default();
        let nets = items.iter().filter_map(|item| cidr::prefix(context, item, false));
        nets.map(|net| PeerSelector::Cidr(CidrSelector::new(net, [], CidrReach::Everything))).collect()
    } else if is("domainNames") {
        if effect.is_some_and(|effect| effect != Effect::Allow) {
            let problem = "names can be accepted only: a denial would not hold before the name is looked up";
            context.reader.wrong(&place, Code::Conflict, problem);
        }
        let items = context.reader.list(&place).unwrap_or_default();
        items.iter().filter_map(|item| domain_name(context, item)).map(PeerSelector::Name).collect()
    } else {
        pods(context, &place).map(PeerSelector::Labels).into_iter().collect()
    };
    selectors.into_iter().map(DraftPeer::Ready).collect()
}

/// This node and others.
fn nodes(context: &mut Context<'_>, value: &Value<'_>) -> Vec<PeerSelector> {
    let Some(selector) = selector::plain(context, value, Keys::Plain(crate::labels::NODE, "")) else {
        return Vec::new();
    };
    let kinds = [Entity::Host, Entity::RemoteNode];
    let of = |entity: Entity| {
        let mut selector = selector.clone();
        selector.require(selector::exists(RESERVED, entity.as_str()));
        PeerSelector::Labels(selector)
    };
    kinds.map(of).into()
}

/// A name; a star at its start stands for one or more labels (NPEP-133), other than in CiliumNetworkPolicy.
fn domain_name(context: &mut Context<'_>, value: &Value<'_>) -> Option<NamePattern> {
    let text = context.reader.filled_text(value)?;
    let (bare, parsed) = match text.strip_prefix("*.") {
        Some(rest) => (rest, NamePattern::pattern(&format!("**.{rest}"))),
        None => (text, NamePattern::pattern(text)),
    };
    if bare.contains('*') || bare.is_empty() {
        let problem = "a star can stand at the start only, as `*.example.com`";
        context.reader.wrong(&value.at_value(), Code::BadValue, problem);
        return None;
    }
    peers::checked_pattern(context, value, parsed)
}

fn protocol(context: &mut Context<'_>, value: &Value<'_>) -> Option<PortMatch> {
    let object = context.reader.shaped(value, &shapes::PROTOCOL)?;
    let place = exactly_one(context, value, &object)?;
    if object.get("destinationNamedPort").is_some() {
        let text = context.reader.filled_text(&place)?;
        return match ports::named(context, &place.at_value(), text)? {
            Port::Named(name) => Some(PortMatch::Named { protocol: None, name }),
            Port::Numbers(_) => None,
        };
    }
    let transports = shapes::PROTOCOL.one_of().iter().zip(Transport::ALL);
    let protocol = transports.into_iter().find(|(key, _)| object.get(key).is_some())?.1;
    let limits = context.reader.shaped(&place, &shapes::PORT_LIMIT)?;
    let ports = match limits.get("destinationPort") {
        Some(port) => destination_port(context, &port)?,
        None => RangeInclusive16::ALL,
    };
    Some(PortMatch::Numbers { protocol, ports })
}

fn destination_port(context: &mut Context<'_>, value: &Value<'_>) -> Option<RangeInclusive16> {
    let object = context.reader.shaped(value, &shapes::DESTINATION_PORT)?;
    let place = exactly_one(context, value, &object)?;
    if object.get("number").is_some() {
        return number(context, &place).map(|port| RangeInclusive16 { start: port, end: port });
    }
    let range = context.reader.shaped(&place, &shapes::RANGE)?;
    let start = context.reader.required(&range, "start").and_then(|start| number(context, &start));
    let end = context.reader.required(&range, "end")?;
    let last = context.reader.integer(&end, NUMBER.range());
    let start = start?;
    match ports::range(context, &Port::Numbers(RangeInclusive16 { start, end: start }), last?, &end)? {
        Port::Numbers(ports) => Some(ports),
        Port::Named(_) => None,
    }
}
