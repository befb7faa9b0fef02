//! Label selectors: from the text of a policy to whom they match.

use std::collections::HashSet;

use arbitrary::{Arbitrary, Unstructured};
use namegate_config::{
    labels::{LabelSelector, Labels},
    policy::{Catalog, parse, translate},
    rule::{PeerSelector, Peers, Subject},
};
use serde_json::{Map, Value, json};

const NAMESPACE: &str = "io.kubernetes.pod.namespace";
/// Keys as they are written; the last ones are mistakes.
const KEYS: [&str; 14] = [
    "a",
    "b",
    "c.io/d",
    "io.kubernetes.pod.namespace",
    "io.cilium.k8s.namespace.labels.a",
    "k8s:a",
    "any:a",
    "node:a",
    "reserved:host",
    "k8s:io.kubernetes.pod.namespace",
    "-a",
    "x:a",
    "reserved:nobody",
    "",
];
/// How many of [`KEYS`] a policy of Cilium may have, and how many one of Kubernetes.
const CILIUM_KEYS: usize = 10;
const KUBERNETES_KEYS: usize = 5;
/// Values; the last one is a mistake.
const VALUES: [&str; 5] = ["", "x", "y.z", "n", "-"];
const RIGHT_VALUES: usize = 4;
/// Where labels come from; what the last one names is derived by the system.
const SOURCES: [&str; 4] = ["k8s", "node", "reserved", "system"];
const LABEL_KEYS: [&str; 6] = ["a", "b", "c.io/d", "host", NAMESPACE, "io.cilium.k8s.namespace.labels.a"];
/// Of labels, requirements and values.
const COUNT_MAX: usize = 6;

#[derive(Arbitrary, Clone, Copy, Debug, PartialEq)]
enum Place {
    PeerOfCluster,
    PeerOfNamespace,
    SubjectOfCluster,
    PeerOfKubernetes,
    SubjectOfKubernetes,
}

#[derive(Arbitrary, Clone, Copy, Debug, PartialEq)]
enum Word {
    In,
    NotIn,
    Exists,
    DoesNotExist,
}

/// Numbers stand for texts of the tables above.
#[derive(Arbitrary, Debug)]
struct Input {
    place: Place,
    equal: Vec<(u8, u8)>,
    expressions: Vec<(u8, Word, Vec<u8>)>,
    peers: Vec<Vec<(u8, u8, u8)>>,
}

/// One requirement as it is written.
#[derive(Clone, Debug)]
struct Requirement {
    key: usize,
    word: Word,
    values: Vec<usize>,
}

/// Requirements, where they stand in a policy, and labels of peers.
///
/// # Panics
/// A selector is taken with a mistake in it, or refused without; or it matches another peer than the rules of Kubernetes
/// say.
pub fn selector(data: &[u8]) {
    let Ok(mut input) = Input::arbitrary(&mut Unstructured::new(data)) else { return };
    input.equal.truncate(COUNT_MAX);
    input.expressions.truncate(COUNT_MAX);
    let at = |number: u8, count: usize| usize::from(number) % count;
    let equal = input.equal.iter().map(|(key, value)| Requirement {
        key: at(*key, KEYS.len()),
        word: Word::In,
        values: vec![at(*value, VALUES.len())],
    });
    let expressions = input.expressions.iter().map(|(key, word, values)| Requirement {
        key: at(*key, KEYS.len()),
        word: *word,
        values: values.iter().take(COUNT_MAX).map(|value| at(*value, VALUES.len())).collect(),
    });
    let (equal, expressions): (Vec<_>, Vec<_>) = (equal.collect(), expressions.collect());
    let policy = input.place.policy(&written(&equal, &expressions));
    let read = read(input.place, &policy.1);
    let all = [equal.clone(), expressions].concat();
    let repeated = equal.iter().map(|one| one.key).collect::<HashSet<_>>().len() != equal.len();
    let is_right = !repeated && all.iter().all(|requirement| requirement.is_right(input.place));
    assert_eq!(read.is_some(), is_right, "{}: {read:?}", policy.1);
    let Some(read) = read else { return };
    for peer in input.peers.iter().take(COUNT_MAX) {
        let labels: Vec<(&str, &str, &str)> = peer
            .iter()
            .take(COUNT_MAX)
            .map(|(source, key, value)| {
                let key = LABEL_KEYS[at(*key, LABEL_KEYS.len())];
                (SOURCES[at(*source, SOURCES.len())], key, VALUES[at(*value, RIGHT_VALUES)])
            })
            .collect();
        let mut given = Labels::default();
        for (source, key, value) in &labels {
            match *source {
                "system" if is_of_system(key) => given.derive(key, value),
                "reserved" => given.reserve(key),
                source => given.insert(source, key, value),
            }
        }
        let meant: Vec<_> = labels.into_iter().map(meaning).collect();
        let want = input.place.selects(&all, &meant);
        assert_eq!(read.matches(&given), want, "{} {given}", policy.1);
    }
}

fn is_of_system(key: &str) -> bool {
    key == NAMESPACE || key.starts_with("io.cilium.k8s.namespace.labels.")
}

/// A label as selectors see it: what a user writes under a key of the system is apart from what the system gives.
fn meaning<'l>((source, key, value): (&'l str, &'l str, &'l str)) -> (&'l str, &'l str, &'l str) {
    match source {
        "system" if is_of_system(key) => ("k8s", key, value),
        "k8s" if is_of_system(key) => ("written", key, value),
        "reserved" => ("reserved", key, ""),
        _ => (source, key, value),
    }
}

/// A `LabelSelector`. A map of JSON has a key once, so `matchLabels` is put together by hand.
fn written(equal: &[Requirement], expressions: &[Requirement]) -> String {
    let pair = |one: &Requirement| format!("{}: {}", json!(KEYS[one.key]), json!(VALUES[one.values[0]]));
    let labels: Vec<String> = equal.iter().map(pair).collect();
    let expressions: Vec<Value> = expressions
        .iter()
        .map(|one| {
            let mut map = Map::new();
            map.insert("key".to_owned(), KEYS[one.key].into());
            map.insert("operator".to_owned(), format!("{:?}", one.word).into());
            if !one.values.is_empty() {
                map.insert("values".to_owned(), one.values.iter().map(|value| VALUES[*value]).collect());
            }
            map.into()
        })
        .collect();
    format!("{{\"matchLabels\": {{{}}}, \"matchExpressions\": {}}}", labels.join(", "), json!(expressions))
}

fn read(place: Place, policy: &str) -> Option<LabelSelector> {
    let parsed = parse("p.yaml", policy);
    let rules = translate(&parsed.documents, &Catalog::default()).rules;
    let rule = rules.first()?;
    if place.is_subject() {
        let Subject::Endpoints(selector) = &rule.subject else { panic!("{policy}: {rule:?}") };
        return Some(selector.clone());
    }
    let Peers::Of(peers) = &rule.peers else { panic!("{policy}: {rule:?}") };
    let [PeerSelector::Labels(selector)] = &peers[..] else { panic!("{policy}: {rule:?}") };
    Some(selector.clone())
}

impl Place {
    fn is_subject(self) -> bool {
        matches!(self, Self::SubjectOfCluster | Self::SubjectOfKubernetes)
    }

    fn is_kubernetes(self) -> bool {
        matches!(self, Self::PeerOfKubernetes | Self::SubjectOfKubernetes)
    }

    /// A policy around the selector: its kind and text.
    fn policy(self, selector: &str) -> (&'static str, String) {
        let (kind, spec) = match self {
            Self::PeerOfCluster => (
                "CiliumClusterwideNetworkPolicy",
                format!("{{endpointSelector: {{}}, egress: [{{toEndpoints: [{selector}]}}]}}"),
            ),
            Self::PeerOfNamespace => {
                ("CiliumNetworkPolicy", format!("{{endpointSelector: {{}}, egress: [{{toEndpoints: [{selector}]}}]}}"))
            }
            Self::SubjectOfCluster => {
                ("CiliumClusterwideNetworkPolicy", format!("{{endpointSelector: {selector}, egress: [{{}}]}}"))
            }
            Self::PeerOfKubernetes => {
                ("NetworkPolicy", format!("{{podSelector: {{}}, ingress: [{{from: [{{podSelector: {selector}}}]}}]}}"))
            }
            Self::SubjectOfKubernetes => ("NetworkPolicy", format!("{{podSelector: {selector}, ingress: [{{}}]}}")),
        };
        let version = if self.is_kubernetes() { "networking.k8s.io/v1" } else { "cilium.io/v2" };
        let namespace = if kind == "CiliumClusterwideNetworkPolicy" { "" } else { ", namespace: n" };
        (kind, format!("apiVersion: {version}\nkind: {kind}\nmetadata: {{name: p{namespace}}}\nspec: {spec}\n"))
    }

    /// The rules as they are told.
    fn selects(self, requirements: &[Requirement], labels: &[(&str, &str, &str)]) -> bool {
        let holds = requirements.iter().all(|requirement| requirement.holds(self, labels));
        let keys: Vec<(Option<&str>, &str)> = requirements.iter().map(|requirement| requirement.key(self)).collect();
        let is_pod = labels.iter().any(|label| label.0 == "k8s" && label.1 == NAMESPACE);
        let in_namespace = labels.contains(&("k8s", NAMESPACE, "n"));
        let names_reserved = keys.iter().any(|(source, _)| *source == Some("reserved"));
        let says_where =
            keys.iter().any(|(_, key)| *key == NAMESPACE || key.starts_with("io.cilium.k8s.namespace.labels."));
        holds
            && match self {
                Self::SubjectOfCluster => true,
                Self::PeerOfKubernetes | Self::SubjectOfKubernetes => in_namespace,
                _ if names_reserved => true,
                Self::PeerOfCluster => is_pod,
                Self::PeerOfNamespace if says_where => is_pod,
                Self::PeerOfNamespace => in_namespace,
            }
    }
}

impl Requirement {
    fn is_right(&self, place: Place) -> bool {
        let keys = if place.is_kubernetes() { KUBERNETES_KEYS } else { CILIUM_KEYS };
        let wants_values = matches!(self.word, Word::In | Word::NotIn);
        self.key < keys
            && self.values.iter().all(|value| *value < RIGHT_VALUES)
            && wants_values != self.values.is_empty()
    }

    /// Source, where one is asked for, and key.
    fn key(&self, place: Place) -> (Option<&'static str>, &'static str) {
        match KEYS[self.key].split_once(':') {
            Some(("any", key)) => (None, key),
            Some((source, key)) => (Some(source), key),
            None if place.is_kubernetes() && is_of_system(KEYS[self.key]) => (Some("written"), KEYS[self.key]),
            None if place.is_kubernetes() || is_of_system(KEYS[self.key]) => (Some("k8s"), KEYS[self.key]),
            None => (None, KEYS[self.key]),
        }
    }

    fn holds(&self, place: Place, labels: &[(&str, &str, &str)]) -> bool {
        let (source, key) = self.key(place);
        let found = labels.iter().filter(|label| label.1 == key && source.is_none_or(|source| source == label.0));
        let (mut is_there, mut is_listed) = (false, false);
        for (_, _, value) in found {
            is_there = true;
            is_listed |= self.values.iter().any(|listed| VALUES[*listed] == *value);
        }
        match self.word {
            Word::In => is_listed,
            Word::NotIn => !is_listed,
            Word::Exists => is_there,
            Word::DoesNotExist => !is_there,
        }
    }
}
