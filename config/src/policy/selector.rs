//! Label selectors of all kinds of policies.

use std::collections::BTreeSet;

use super::{
    object::Context,
    shapes::{cilium, kubernetes},
};
use crate::{
    diagnostic::Code,
    label_syntax::{key_problem, value_problem},
    labels::{CLUSTER, K8S, LabelSelector, NAMESPACE_LABELS, NODE, Operator, POD_NAMESPACE, RESERVED, Requirement},
    reader::{Object, Value},
    rule::Entity,
};

/// The name of a cluster that has not been given one.
const CLUSTER_NAME: &str = "default";

/// What the keys of a selector mean.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Keys {
    /// Labels of endpoints with optional source, as Cilium writes them.
    Endpoint,
    /// Labels of nodes; a source may be given and is not looked at.
    Node,
    /// Kubernetes labels without source: source and prefix of the key are fixed.
    Plain(&'static str, &'static str),
}

impl Keys {
    /// Own labels of pods.
    pub(super) const POD: Self = Self::Plain(K8S, "");
    /// Labels that pods have from their namespace.
    pub(super) const NAMESPACE: Self = Self::Plain(K8S, NAMESPACE_LABELS);
}

/// An operator of `matchExpressions`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Word {
    In,
    NotIn,
    Exists,
    DoesNotExist,
}

/// The operators as they are written.
pub(super) const WORDS: [(&str, Word); 4] =
    [("In", Word::In), ("NotIn", Word::NotIn), ("Exists", Word::Exists), ("DoesNotExist", Word::DoesNotExist)];

/// A requirement and where it stands.
#[derive(Clone, Debug)]
pub(super) struct Condition<'n> {
    pub(super) requirement: Requirement,
    pub(super) place: Value<'n>,
}

/// The selector as written, without its places.
pub(super) fn plain(context: &mut Context<'_>, value: &Value<'_>, keys: Keys) -> Option<LabelSelector> {
    let conditions = conditions(context, value, keys)?;
    Some(LabelSelector::new(conditions.into_iter().map(|condition| condition.requirement)))
}

/// The requirements of a `LabelSelector`.
pub(super) fn conditions<'n>(context: &mut Context<'_>, value: &Value<'n>, keys: Keys) -> Option<Vec<Condition<'n>>> {
    let shape = if matches!(keys, Keys::Plain(..)) { &kubernetes::SELECTOR } else { &cilium::SELECTOR };
    let object = context.reader.shaped(value, shape)?;
    let mut found = Vec::new();
    if let Some(labels) = object.get("matchLabels").and_then(|labels| context.reader.any_object(&labels)) {
        for (key, value) in labels.fields() {
            let text = context.reader.text(value).filter(|text| check_value(context, value, text));
            let operator = Operator::In(text.into_iter().map(str::to_owned).collect());
            found.extend(requirement(context, value, key, operator, keys));
        }
    }
    if let Some(list) = object.get("matchExpressions").and_then(|list| context.reader.list(&list)) {
        for expression in &list {
            found.extend(self::expression(context, expression, keys));
        }
    }
    Some(found)
}

fn check_value(context: &mut Context<'_>, value: &Value<'_>, text: &str) -> bool {
    let problem = value_problem(text);
    if let Some(problem) = &problem {
        context.reader.wrong(&value.at_value(), Code::BadValue, problem);
    }
    problem.is_none()
}

fn expression<'n>(context: &mut Context<'_>, value: &Value<'n>, keys: Keys) -> Option<Condition<'n>> {
    let shape = if matches!(keys, Keys::Plain(..)) { &kubernetes::EXPRESSION } else { &cilium::EXPRESSION };
    let object = context.reader.shaped(value, shape)?;
    let key = context.reader.required(&object, "key");
    let word = context.reader.required(&object, "operator").and_then(|word| context.reader.choice(&word, &WORDS));
    let values = values(context, &object);
    let place = key?;
    let key = context.reader.filled_text(&place)?;
    let word = word?;
    match (word, object.get("values")) {
        (Word::In | Word::NotIn, _) if values.is_empty() => {
            let place = object.get("values").unwrap_or_else(|| value.clone());
            let found = context.reader.wrong(&place, Code::MissingField, "the operator needs `values`");
            found.help = Some("`values` must name at least one value of the label".to_owned());
            return None;
        }
        (Word::Exists | Word::DoesNotExist, Some(place)) if !values.is_empty() => {
            context.reader.wrong(&place, Code::Conflict, "the operator takes no `values`");
            return None;
        }
        _ => {}
    }
    let operator = match word {
        Word::In => Operator::In(values),
        Word::NotIn => Operator::NotIn(values),
        Word::Exists => Operator::Exists,
        Word::DoesNotExist => Operator::DoesNotExist,
    };
    requirement(context, &place, key, operator, keys)
}

fn values(context: &mut Context<'_>, object: &Object<'_>) -> BTreeSet<String> {
    let Some(list) = object.get("values").and_then(|values| context.reader.list(&values)) else {
        return BTreeSet::new();
    };
    let mut values = BTreeSet::new();
    for item in &list {
        let text = context.reader.text(item).filter(|text| check_value(context, item, text));
        values.extend(text.map(str::to_owned));
    }
    values
}

fn requirement<'n>(
    context: &mut Context<'_>,
    place: &Value<'n>,
    written: &str,
    operator: Operator,
    keys: Keys,
) -> Option<Condition<'n>> {
    let (source, key) = match written.split_once(':') {
        Some((source, key)) if !matches!(keys, Keys::Plain(..)) => (Some(source), key),
        _ => (None, written),
    };
    if let Some(problem) = key_problem(key) {
        context.reader.wrong(place, Code::BadValue, problem);
        return None;
    }
    let (source, key) = match keys {
        Keys::POD => {
            return Some(Condition { requirement: Requirement::own(key, operator), place: place.clone() });
        }
        Keys::Plain(source, prefix) => (Some(source), format!("{prefix}{key}")),
        _ => (known_source(context, place, source, key)?, key.to_owned()),
    };
    let source = if keys == Keys::Node && source == Some(K8S) { Some(NODE) } else { source };
    if key == CLUSTER && source != Some(RESERVED) && keys == Keys::Endpoint {
        return of_cluster(operator).map(|requirement| Condition { requirement, place: place.clone() });
    }
    Some(Condition { requirement: Requirement::of(source, &key, operator), place: place.clone() })
}

/// The source that a requirement asks for; an inner `None` is any.
#[expect(clippy::option_option, reason = "outer: whether the source is known")]
fn known_source<'k>(
    context: &mut Context<'_>,
    place: &Value<'_>,
    source: Option<&'k str>,
    key: &str,
) -> Option<Option<&'k str>> {
    const UNSUPPORTED: [&str; 8] = ["cidr", "cidrgroup", "fqdn", "cni", "unspec", "gen", "directory", "container"];
    match source {
        None | Some("any") => Some(None),
        Some(RESERVED) => {
            if Entity::EVERY.iter().any(|entity| entity.as_str() == key) {
                return Some(source);
            }
            let words: Vec<&str> = Entity::EVERY.iter().map(|entity| entity.as_str()).collect();
            let found = context.reader.wrong(place, Code::BadValue, format!("there is no reserved label `{key}`"));
            found.help = Some(format!("one of {}", words.join(", ")));
            None
        }
        Some(K8S | NODE) => Some(source),
        Some(unknown) => {
            let code = if UNSUPPORTED.contains(&unknown) { Code::Unsupported } else { Code::BadValue };
            let problem = format!("labels of source `{unknown}` cannot be selected");
            let found = context.reader.wrong(place, code, problem);
            found.help = Some("a key may start with `k8s:`, `node:`, `reserved:` or `any:`".to_owned());
            None
        }
    }
}

/// A requirement on the name of the cluster: there is one cluster, so it holds or nothing does.
fn of_cluster(operator: Operator) -> Option<Requirement> {
    let holds = match operator {
        Operator::In(names) => names.contains(CLUSTER_NAME),
        Operator::NotIn(names) => !names.contains(CLUSTER_NAME),
        Operator::Exists => true,
        Operator::DoesNotExist => false,
    };
    (!holds).then(|| exists(K8S, CLUSTER))
}

/// Whether the label is there, with source `k8s`.
pub(super) fn exists(source: &str, key: &str) -> Requirement {
    Requirement::of(Some(source), key, Operator::Exists)
}

/// Pods of one namespace.
pub(super) fn in_namespace(namespace: &str) -> Requirement {
    Requirement::equals(&format!("{K8S}:{POD_NAMESPACE}"), namespace)
}

/// Any pod.
pub(super) fn is_pod() -> Requirement {
    exists(K8S, POD_NAMESPACE)
}
