//! CiliumNetworkPolicy and CiliumClusterwideNetworkPolicy: specs, sections, elements.

use std::sync::Arc;

use super::{
    draft::{Draft, DraftPeers},
    icmp,
    object::{Context, Kind},
    peers, ports,
    ports::PortGroup,
    selector::{self, Condition, Keys},
    shapes::{cilium as shapes, elements},
};
use crate::{
    diagnostic::Code,
    labels::{K8S, LabelSelector, POD_NAMESPACE},
    language::Shape,
    reader::{Object, Value},
    rule::{Direction, Effect, Ports, Subject, Tier},
};

/// Longest `log.value` in characters.
pub(super) const LOG_CHARS_MAX: usize = 32;

/// One section of a spec and what its elements are.
#[derive(Clone, Copy, Debug)]
pub(super) struct Section {
    pub(super) direction: Direction,
    pub(super) effect: Effect,
    /// Whether the subject is a node.
    pub(super) of_node: bool,
}

impl Section {
    /// What its elements may hold.
    fn shape(self) -> &'static Shape {
        match (self.direction, self.effect) {
            (Direction::Ingress, Effect::Deny) => &elements::INGRESS_DENY,
            (Direction::Ingress, _) => &elements::INGRESS,
            (Direction::Egress, Effect::Deny) => &elements::EGRESS_DENY,
            (Direction::Egress, _) => &elements::EGRESS,
        }
    }
}

const SECTIONS: [(&str, Direction, Effect); 4] = [
    ("ingress", Direction::Ingress, Effect::Allow),
    ("ingressDeny", Direction::Ingress, Effect::Deny),
    ("egress", Direction::Egress, Effect::Allow),
    ("egressDeny", Direction::Egress, Effect::Deny),
];

/// The rules of a policy.
pub(super) fn policy(context: &mut Context<'_>, object: &Object<'_>) -> Vec<Draft> {
    let (one, many) = (object.get("spec"), object.get("specs"));
    if one.is_none() && many.is_none() {
        let found = context.reader.wrong_object(object, Code::MissingField, "`spec` or `specs` must be given");
        found.help = Some("`spec` holds one set of rules, `specs` a list of them".to_owned());
    }
    let mut drafts = Vec::new();
    if let Some(spec) = one {
        spec_rules(context, &spec, &mut drafts);
    }
    if let Some(many) = many {
        let specs = context.reader.list(&many).unwrap_or_default();
        if specs.is_empty() && object.get("spec").is_none() {
            context.reader.warn(&many, Code::MatchesNothing, "without an element the policy does nothing");
        }
        for spec in &specs {
            spec_rules(context, spec, &mut drafts);
        }
    }
    drafts
}

fn spec_rules(context: &mut Context<'_>, value: &Value<'_>, drafts: &mut Vec<Draft>) {
    let shape = if context.is_cluster_wide() { &shapes::CLUSTERWIDE_SPEC } else { &shapes::SPEC };
    let Some(spec) = context.reader.shaped(value, shape) else { return };
    let subject = subject(context, value, &spec);
    texts(context, &spec);
    let default_deny = default_deny(context, &spec);
    let mut elements = 0;
    for (key, direction, effect) in SECTIONS {
        let Some(list) = spec.get(key) else { continue };
        let items = context.reader.list(&list);
        if items.as_ref().is_some_and(Vec::is_empty) {
            let problem = "an empty list changes nothing: it does not switch the default denial on";
            let found = context.reader.warn(&list, Code::MatchesNothing, problem);
            found.help = Some(format!("`{key}: [{{}}]` allows nobody and denies by default"));
        }
        let default_deny = match direction {
            Direction::Ingress => default_deny.0,
            Direction::Egress => default_deny.1,
        };
        let section = Section { direction, effect, of_node: matches!(subject, Some(Subject::Nodes(_))) };
        // A list of another type is a mistake already noted.
        elements += items.as_ref().map_or(1, Vec::len);
        for item in items.iter().flatten() {
            for (peers, ports) in element(context, item, section) {
                drafts.push(Draft {
                    origin: Arc::new(context.origin(&item.path)),
                    subject: subject.clone().unwrap_or(Subject::Endpoints(LabelSelector::default())),
                    direction,
                    tier: Tier::Normal,
                    effect,
                    default_deny,
                    peers,
                    ports: ports.ports,
                    l7: ports.l7,
                    binding: context.binding,
                    named_only: context.named_only.clone(),
                    place: context.reader.place(item),
                });
            }
        }
    }
    // A misspelt section is a mistake already noted.
    if elements == 0 && spec.fields().all(|(key, _)| shape.names(key)) {
        let problem = "one of `ingress`, `ingressDeny`, `egress`, `egressDeny` must have an element";
        let found = context.reader.wrong(value, Code::MissingField, problem);
        found.help = Some("`- {}` as the only element denies everything in that direction".to_owned());
    }
}

/// Who the spec is about; nothing where it is wrong.
fn subject(context: &mut Context<'_>, value: &Value<'_>, spec: &Object<'_>) -> Option<Subject> {
    match (spec.get("endpointSelector"), spec.get("nodeSelector")) {
        (Some(_), Some(nodes)) => {
            context.reader.wrong(&nodes, Code::Conflict, "`endpointSelector` and `nodeSelector` exclude each other");
            None
        }
        (None, Some(nodes)) => {
            let on = context.features.nodes;
            context.enforced(&nodes, on, "`nodeSelector`");
            selector::plain(context, &nodes, Keys::Node).map(Subject::Nodes)
        }
        (Some(endpoints), None) => {
            let conditions = selector::conditions(context, &endpoints, Keys::Endpoint)?;
            Some(Subject::Endpoints(endpoints_of(context, conditions)))
        }
        (None, None) => {
            let problem = match context.kind {
                Kind::CiliumNetworkPolicy => "`endpointSelector` must be given",
                _ => "`endpointSelector` or `nodeSelector` must be given",
            };
            let found = context.reader.wrong(value, Code::MissingField, problem);
            found.help = Some("`endpointSelector: {}` selects every pod the policy can select".to_owned());
            None
        }
    }
}

/// The subject of a policy of one namespace is always inside it.
fn endpoints_of(context: &mut Context<'_>, conditions: Vec<Condition<'_>>) -> LabelSelector {
    let mut selector = LabelSelector::default();
    let own = context.namespace.as_deref().map(selector::in_namespace);
    for Condition { requirement, place } in conditions {
        let names_namespace = requirement.is_on(K8S, POD_NAMESPACE)
            && own.as_ref().is_some_and(|own| own.operator != requirement.operator);
        if !names_namespace {
            selector.require(requirement);
            continue;
        }
        let namespace = context.namespace.clone().unwrap_or_default();
        if place.path.contains(".matchLabels.k8s:") {
            let problem = format!("a policy applies in its own namespace only: `{namespace}` is used instead");
            context.reader.warn(&place, Code::Overwritten, problem);
            continue;
        }
        if matches!(&requirement.operator, crate::labels::Operator::In(names) if !names.contains(&namespace)) {
            let problem = format!("a policy applies in its own namespace only: no pod of `{namespace}` has this label");
            context.reader.warn(&place, Code::MatchesNothing, problem);
        }
        selector.require(requirement);
    }
    if let Some(own) = own {
        selector.require(own);
    }
    selector
}

/// Whether ingress and egress deny by default.
fn default_deny(context: &mut Context<'_>, spec: &Object<'_>) -> (bool, bool) {
    let Some(value) = spec.get("enableDefaultDeny") else { return (true, true) };
    let Some(object) = context.reader.shaped(&value, &shapes::DEFAULT_DENY) else { return (true, true) };
    let mut read = |key: &str, sections: [&str; 2]| {
        let Some(value) = object.get(key) else { return true };
        let flag = context.reader.boolean(&value).unwrap_or(true);
        if flag && sections.iter().all(|section| spec.get(section).is_none()) {
            let problem = format!("without an `{key}` section this denies nothing");
            let found = context.reader.warn(&value, Code::MatchesNothing, problem);
            found.help = Some(format!("add `{key}: [{{}}]` to deny by default"));
        }
        flag
    };
    (read("ingress", ["ingress", "ingressDeny"]), read("egress", ["egress", "egressDeny"]))
}

/// Fields for people: checked, not used.
fn texts(context: &mut Context<'_>, spec: &Object<'_>) {
    if let Some(description) = spec.get("description") {
        context.reader.text(&description);
    }
    for label in spec.get("labels").and_then(|labels| context.reader.list(&labels)).iter().flatten() {
        let Some(object) = context.reader.shaped(label, &shapes::RULE_LABEL) else { continue };
        context.reader.required(&object, "key");
        for (_, value) in object.fields() {
            context.reader.text(value);
        }
    }
    let Some(log) = spec.get("log").and_then(|log| context.reader.shaped(&log, &shapes::LOG)) else { return };
    let Some(value) = log.get("value") else { return };
    let Some(text) = context.reader.text(&value) else { return };
    if text.chars().count() > LOG_CHARS_MAX || text.chars().any(char::is_control) {
        let problem = format!("takes at most {LOG_CHARS_MAX} printable characters");
        context.reader.wrong(&value.at_value(), Code::BadValue, problem);
    }
}

/// Peers and ports of one element, once for each of its layer 7 limits.
fn element(context: &mut Context<'_>, value: &Value<'_>, section: Section) -> Vec<(DraftPeers, PortGroup)> {
    let Some(object) = context.reader.shaped(value, section.shape()) else { return Vec::new() };
    authentication(context, &object);
    let named = peers::peers(context, &object, section);
    let (to_ports, icmps) = (object.get("toPorts"), object.get("icmps"));
    if let (Some(_), Some(icmps)) = (&to_ports, &icmps) {
        let found =
            context.reader.wrong(icmps, Code::Conflict, "`icmps` and `toPorts` exclude each other in one element");
        found.help = Some("write two elements: they add up".to_owned());
    }
    let mut groups = match (&to_ports, &icmps) {
        (Some(list), _) => ports::to_ports(context, list, section),
        (None, Some(list)) => Some(vec![PortGroup { ports: Ports::Of(icmp::icmps(context, list)), l7: None }]),
        (None, None) => None,
    };
    if to_ports.is_some() && groups.is_none() && named.is_none() {
        let list = to_ports.unwrap_or_else(|| value.clone());
        context.reader.warn(
            &list,
            Code::MatchesNothing,
            "neither peers nor ports are named: the element selects nothing",
        );
    }
    // An element without peers and ports selects nobody; it switches the default denial on.
    let peers = named.unwrap_or(match &groups {
        Some(_) => DraftPeers::Any,
        None => DraftPeers::Of(Vec::new()),
    });
    let groups = groups.take().unwrap_or_else(|| vec![PortGroup { ports: Ports::Any, l7: None }]);
    groups.into_iter().map(|group| (peers.clone(), group)).collect()
}

fn authentication(context: &mut Context<'_>, object: &Object<'_>) {
    let Some(value) = object.get("authentication") else { return };
    let Some(mode) = context.reader.shaped(&value, &elements::AUTHENTICATION) else { return };
    let Some(mode) = context.reader.required(&mode, "mode") else { return };
    match context.reader.text(&mode) {
        None | Some("disabled") => {}
        Some(text) => {
            let problem = format!("Namegate authenticates no peers: `{text}` cannot be honoured");
            let found = context.reader.wrong(&mode.at_value(), Code::Unsupported, problem);
            found.help = Some("leave `authentication` out, or write `mode: disabled`".to_owned());
        }
    }
}
