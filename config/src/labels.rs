//! Labels with their sources, and selectors over them.
//!
//! A label is `source:key=value`. A selector key without a source matches any source. Operators follow the Kubernetes
//! API (`LabelSelectorRequirement`): `NotIn` and `DoesNotExist` also match where the key is absent.
//!
//! There are two key spaces. What the system derives (namespace, labels of the namespace, service account, cluster) has the
//! source [`K8S`] and a key of [`is_derived`]. What a user writes under such a key has the source [`WRITTEN`]: only
//! selectors of Kubernetes for own labels see it, and nothing that a pod, a service or a node says of itself stands for
//! a derived label.

use std::{collections::BTreeSet, fmt, sync::Arc};

/// Namespace of a pod, as a label.
pub const POD_NAMESPACE: &str = "io.kubernetes.pod.namespace";
/// Prefix of the labels that a pod has from its namespace.
pub const NAMESPACE_LABELS: &str = "io.cilium.k8s.namespace.labels.";
/// Service account of a pod, as a label.
pub const SERVICE_ACCOUNT: &str = "io.cilium.k8s.policy.serviceaccount";
/// Name of the cluster, as Cilium labels every pod with it.
pub const CLUSTER: &str = "io.cilium.k8s.policy.cluster";
/// Label that Kubernetes gives every namespace: its name.
pub const NAMESPACE_NAME: &str = "kubernetes.io/metadata.name";
/// Source of labels that come from Kubernetes objects.
pub const K8S: &str = "k8s";
/// Source of labels that users wrote under a key of the system. No policy can name it.
pub const WRITTEN: &str = "written";
/// Source of the labels of nodes.
pub const NODE: &str = "node";
/// Source of labels with a fixed meaning (`reserved:world`).
pub const RESERVED: &str = "reserved";

/// Whether the system alone gives labels of source [`K8S`] with this key.
pub fn is_derived(key: &str) -> bool {
    matches!(key, POD_NAMESPACE | SERVICE_ACCOUNT | CLUSTER) || key.starts_with(NAMESPACE_LABELS)
}

/// `source:key=value`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Label {
    /// Key, without the source.
    pub key: Arc<str>,
    /// Source: `k8s`, `reserved`, `node` and the like.
    pub source: Arc<str>,
    /// Value; may be empty.
    pub value: Arc<str>,
}

/// The labels of one endpoint or peer, sorted, each once.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Labels(Vec<Label>);

impl Labels {
    /// The labels of a pod: its own and its namespace's under [`NAMESPACE_LABELS`], with the name of the namespace.
    /// [`NAMESPACE_NAME`] is derived from that name, whatever the namespace's labels say.
    pub fn pod<'a>(
        namespace: &str,
        own: impl IntoIterator<Item = (&'a str, &'a str)>,
        of_namespace: impl IntoIterator<Item = (&'a str, &'a str)>,
        service_account: Option<&str>,
    ) -> Self {
        let mut labels = Self::default();
        for (key, value) in own {
            labels.insert(K8S, key, value);
        }
        for (key, value) in of_namespace.into_iter().filter(|(key, _)| *key != NAMESPACE_NAME) {
            labels.derive(&format!("{NAMESPACE_LABELS}{key}"), value);
        }
        labels.derive(&format!("{NAMESPACE_LABELS}{NAMESPACE_NAME}"), namespace);
        labels.derive(POD_NAMESPACE, namespace);
        if let Some(account) = service_account {
            labels.derive(SERVICE_ACCOUNT, account);
        }
        labels
    }

    /// A peer with one fixed meaning: `world`, `host`, `remote-node`, `health`, `init`, `ingress`, `unmanaged`.
    pub fn reserved(name: &str) -> Self {
        let mut labels = Self::default();
        labels.reserve(name);
        labels
    }

    /// A node: `reserved:host` where it is this one, else `reserved:remote-node`; its own labels with source [`NODE`].
    pub fn node<'a>(local: bool, own: impl IntoIterator<Item = (&'a str, &'a str)>) -> Self {
        let mut labels = Self::reserved(if local { "host" } else { "remote-node" });
        for (key, value) in own {
            labels.insert(NODE, key, value);
        }
        labels
    }

    /// Adds a label that a user wrote; never a derived or a reserved one.
    pub fn insert(&mut self, source: &str, key: &str, value: &str) {
        let is_taken = source == RESERVED || (source == K8S && is_derived(key));
        self.put(if is_taken { WRITTEN } else { source }, key, value);
    }

    /// Adds a label that the system derives from an object of Kubernetes.
    pub fn derive(&mut self, key: &str, value: &str) {
        self.put(K8S, key, value);
    }

    /// Adds `reserved:NAME`.
    pub fn reserve(&mut self, name: &str) {
        self.put(RESERVED, name, "");
    }

    fn put(&mut self, source: &str, key: &str, value: &str) {
        let label = Label { key: key.into(), source: source.into(), value: value.into() };
        if let Err(at) = self.0.binary_search(&label) {
            self.0.insert(at, label);
        }
    }

    /// Whether `reserved:NAME` is among them.
    pub fn is_reserved(&self, name: &str) -> bool {
        self.values(Some(RESERVED), name).next().is_some()
    }

    /// Whether the peer is outside the cluster: neither pod nor node.
    pub fn is_world(&self) -> bool {
        self.is_reserved("world")
    }

    /// The namespace of the pod, where it is one.
    pub fn namespace(&self) -> Option<&str> {
        self.values(Some(K8S), POD_NAMESPACE).next()
    }

    /// Every label, by key.
    pub fn iter(&self) -> impl Iterator<Item = &Label> {
        self.0.iter()
    }

    /// Values of a key; `None` is any source.
    fn values<'a>(&'a self, source: Option<&'a str>, key: &'a str) -> impl Iterator<Item = &'a str> {
        let start = self.0.partition_point(|label| *label.key < *key);
        self.0[start..]
            .iter()
            .take_while(move |label| &*label.key == key)
            .filter(move |label| source.is_none_or(|source| &*label.source == source))
            .map(|label| &*label.value)
    }
}

impl fmt::Display for Labels {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, label) in self.0.iter().enumerate() {
            write!(f, "{}{label}", if at == 0 { "" } else { "," })?;
        }
        Ok(())
    }
}

impl fmt::Display for Label {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let equals = if self.value.is_empty() { "" } else { "=" };
        write!(f, "{}:{}{equals}{}", self.source, self.key, self.value)
    }
}

/// Requirements that must all hold; the empty selector matches everything.
///
/// They are sorted and each stands once. A clone shares them: many rules have the same selectors.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct LabelSelector(Arc<[Requirement]>);

/// One condition on one key.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Requirement {
    /// `None` is any source.
    pub source: Option<String>,
    /// Key, without the source.
    pub key: String,
    /// What must hold.
    pub operator: Operator,
}

/// What a [`Requirement`] asks of its key.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Operator {
    /// One of the values.
    In(BTreeSet<String>),
    /// None of the values, or no such key.
    NotIn(BTreeSet<String>),
    /// Any value.
    Exists,
    /// No such key.
    DoesNotExist,
}

impl LabelSelector {
    /// A selector of these requirements.
    pub fn new(requirements: impl IntoIterator<Item = Requirement>) -> Self {
        let mut requirements: Vec<Requirement> = requirements.into_iter().collect();
        requirements.sort_unstable();
        requirements.dedup();
        Self(requirements.into())
    }

    /// Adds a requirement.
    pub fn require(&mut self, requirement: Requirement) {
        *self = Self::new(self.0.iter().cloned().chain([requirement]));
    }

    /// Whether a clone of it lives.
    pub(crate) fn is_shared(&self) -> bool {
        Arc::strong_count(&self.0) > 1
    }

    /// Whether every requirement holds.
    pub fn matches(&self, labels: &Labels) -> bool {
        self.0.iter().all(|requirement| requirement.matches(labels))
    }

    /// The requirements, sorted.
    pub fn requirements(&self) -> impl Iterator<Item = &Requirement> {
        self.0.iter()
    }
}

impl Requirement {
    /// `source:key = value`, with the source part of `key` as in a policy document.
    pub fn equals(key: &str, value: &str) -> Self {
        Self::new(key, Operator::In([value.to_owned()].into()))
    }

    /// A requirement on a key as written in a document: the first `:` ends the source, `any:` is any source.
    pub fn new(key: &str, operator: Operator) -> Self {
        match key.split_once(':') {
            Some(("any", key)) => Self::of(None, key, operator),
            Some((source, key)) => Self::of(Some(source), key, operator),
            None => Self::of(None, key, operator),
        }
    }

    /// A requirement on a key of a source; `None` is any. A key of the system means what the system derives, whoever else
    /// has labels with that key.
    pub fn of(source: Option<&str>, key: &str, operator: Operator) -> Self {
        let source = source.or_else(|| is_derived(key).then_some(K8S));
        Self { source: source.map(str::to_owned), key: key.to_owned(), operator }
    }

    /// A requirement on the labels that users write, as selectors of Kubernetes ask for them.
    pub fn own(key: &str, operator: Operator) -> Self {
        Self::of(Some(if is_derived(key) { WRITTEN } else { K8S }), key, operator)
    }

    /// Whether it asks for this key of this source.
    pub(crate) fn is_on(&self, source: &str, key: &str) -> bool {
        self.source.as_deref() == Some(source) && self.key == key
    }

    /// Whether it holds for these labels.
    pub fn matches(&self, labels: &Labels) -> bool {
        let mut values = labels.values(self.source.as_deref(), &self.key);
        match &self.operator {
            Operator::In(wanted) => values.any(|value| wanted.contains(value)),
            Operator::NotIn(refused) => values.all(|value| !refused.contains(value)),
            Operator::Exists => values.next().is_some(),
            Operator::DoesNotExist => values.next().is_none(),
        }
    }
}

impl fmt::Display for LabelSelector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("{")?;
        for (at, requirement) in self.0.iter().enumerate() {
            write!(f, "{}{requirement}", if at == 0 { "" } else { ", " })?;
        }
        f.write_str("}")
    }
}

impl fmt::Display for Requirement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let source = self.source.as_deref().unwrap_or("any");
        let key = &self.key;
        let list = |values: &BTreeSet<String>| values.iter().cloned().collect::<Vec<_>>().join("|");
        match &self.operator {
            Operator::In(values) => write!(f, "{source}:{key}={}", list(values)),
            Operator::NotIn(values) => write!(f, "{source}:{key}!={}", list(values)),
            Operator::Exists => write!(f, "{source}:{key}"),
            Operator::DoesNotExist => write!(f, "!{source}:{key}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tiefighter() -> Labels {
        Labels::pod("empire", [("class", "tiefighter"), ("org", "empire")], [("team", "navy")], Some("default"))
    }

    #[test]
    fn requirements_follow_the_kubernetes_operators() {
        let set = |values: &[&str]| values.iter().map(|&v| v.to_owned()).collect::<BTreeSet<_>>();
        for (key, operator, want) in [
            ("class", Operator::In(set(&["tiefighter"])), true),
            ("k8s:class", Operator::In(set(&["tiefighter", "xwing"])), true),
            ("any:class", Operator::In(set(&["tiefighter"])), true),
            ("reserved:class", Operator::In(set(&["tiefighter"])), false),
            ("class", Operator::In(set(&["xwing"])), false),
            ("class", Operator::NotIn(set(&["xwing"])), true),
            ("class", Operator::NotIn(set(&["tiefighter"])), false),
            ("absent", Operator::NotIn(set(&["x"])), true),
            ("org", Operator::Exists, true),
            ("absent", Operator::Exists, false),
            ("absent", Operator::DoesNotExist, true),
            ("org", Operator::DoesNotExist, false),
            ("k8s:io.kubernetes.pod.namespace", Operator::In(set(&["empire"])), true),
            ("io.cilium.k8s.namespace.labels.team", Operator::In(set(&["navy"])), true),
            ("io.cilium.k8s.policy.serviceaccount", Operator::In(set(&["default"])), true),
        ] {
            let requirement = Requirement::new(key, operator);
            assert_eq!(requirement.matches(&tiefighter()), want, "{requirement}");
        }
    }

    /// What a pod of `evil` and its namespace write, to be taken for a pod of `prod`.
    fn forger() -> Labels {
        let own = [
            ("app", "web"),
            (POD_NAMESPACE, "prod"),
            ("io.cilium.k8s.namespace.labels.team", "core"),
            ("io.cilium.k8s.namespace.labels.kubernetes.io/metadata.name", "prod"),
            (SERVICE_ACCOUNT, "admin"),
            (CLUSTER, "other"),
        ];
        let of_namespace = [
            (NAMESPACE_NAME, "prod"),
            (POD_NAMESPACE, "prod"),
            (SERVICE_ACCOUNT, "admin"),
            ("io.cilium.k8s.namespace.labels.team", "core"),
        ];
        Labels::pod("evil", own, of_namespace, None)
    }

    #[test]
    fn what_a_user_writes_never_stands_for_what_is_derived() {
        let forger = forger();
        assert_eq!(forger.namespace(), Some("evil"));
        let set = |value: &str| -> BTreeSet<String> { [value.to_owned()].into() };
        for source in ["", "k8s:", "any:"] {
            for (key, value) in [
                (POD_NAMESPACE, "prod"),
                ("io.cilium.k8s.namespace.labels.team", "core"),
                ("io.cilium.k8s.namespace.labels.kubernetes.io/metadata.name", "prod"),
                (SERVICE_ACCOUNT, "admin"),
                (CLUSTER, "other"),
            ] {
                let is = |operator| Requirement::new(&format!("{source}{key}"), operator).matches(&forger);
                assert!(!is(Operator::In(set(value))), "{source}{key}={value}");
                assert!(is(Operator::NotIn(set(value))), "{source}{key}!={value}");
            }
            let is = |key: &str, operator| Requirement::new(&format!("{source}{key}"), operator).matches(&forger);
            assert!(is(POD_NAMESPACE, Operator::In(set("evil"))), "{source}");
            assert!(!is(SERVICE_ACCOUNT, Operator::Exists) && is(SERVICE_ACCOUNT, Operator::DoesNotExist), "{source}");
            assert!(!is("io.cilium.k8s.namespace.labels.team", Operator::Exists), "{source}");
        }
        let mut labels = Labels::default();
        labels.insert(RESERVED, "world", "");
        labels.insert(NODE, POD_NAMESPACE, "prod");
        assert!(!labels.is_world() && labels.namespace().is_none());
        assert!(!Requirement::new(POD_NAMESPACE, Operator::Exists).matches(&labels));
    }

    /// A selector of Kubernetes for own labels finds what the pod has written, as the API server's does.
    #[test]
    fn own_labels_are_found_under_every_key() {
        let is =
            |key: &str, value: &str| Requirement::own(key, Operator::In([value.to_owned()].into())).matches(&forger());
        assert!(is("app", "web") && is(POD_NAMESPACE, "prod") && is(SERVICE_ACCOUNT, "admin"));
        assert!(!is(POD_NAMESPACE, "evil"));
        let absent = Requirement::own(POD_NAMESPACE, Operator::DoesNotExist);
        assert!(absent.matches(&tiefighter()) && !absent.matches(&forger()));
        let (own, derived) =
            (Requirement::own(POD_NAMESPACE, Operator::Exists), Requirement::of(None, POD_NAMESPACE, Operator::Exists));
        assert_ne!(own.to_string(), derived.to_string(), "one text would be one identity");
    }

    #[test]
    fn the_empty_selector_matches_everything() {
        assert!(LabelSelector::default().matches(&tiefighter()));
        assert!(LabelSelector::default().matches(&Labels::reserved("world")));
    }

    #[test]
    fn selectors_print_one_canonical_text() {
        let selector =
            LabelSelector::new([Requirement::equals("k8s:org", "empire"), Requirement::new("class", Operator::Exists)]);
        assert_eq!(selector.to_string(), "{any:class, k8s:org=empire}");
    }
}
