//! The tables of the language: every kind of object, and what all kinds share. See [`crate::language`].

pub(super) mod cilium;
pub(crate) mod elements;
pub(super) mod kubernetes;
pub(crate) mod text;

use super::object::Kind;
use crate::language::{Field, Item, Refused, Shape, Text, Type, conflict, list, may, must};

/// A kind of object, its versions and its form.
pub(crate) struct KindEntry {
    pub(in crate::policy) kind: Kind,
    pub(crate) name: &'static str,
    /// Values of `apiVersion` that are read; the last one is the oldest.
    pub(crate) versions: &'static [&'static str],
    pub(crate) is_namespaced: bool,
    pub(crate) shape: &'static Shape,
}

/// Every kind that is read, by itself or in a list.
pub(crate) const KINDS: [KindEntry; 5] = [
    KindEntry {
        kind: Kind::CiliumNetworkPolicy,
        name: "CiliumNetworkPolicy",
        versions: &CILIUM_V2,
        is_namespaced: true,
        shape: &cilium::NAMESPACED,
    },
    KindEntry {
        kind: Kind::CiliumClusterwideNetworkPolicy,
        name: "CiliumClusterwideNetworkPolicy",
        versions: &CILIUM_V2,
        is_namespaced: false,
        shape: &cilium::CLUSTERWIDE,
    },
    KindEntry {
        kind: Kind::CiliumCidrGroup,
        name: "CiliumCIDRGroup",
        versions: &CIDR_GROUP_VERSIONS,
        is_namespaced: false,
        shape: &cilium::CIDR_GROUP,
    },
    KindEntry {
        kind: Kind::NetworkPolicy,
        name: "NetworkPolicy",
        versions: &NETWORKING_V1,
        is_namespaced: true,
        shape: &kubernetes::NETWORK_POLICY,
    },
    KindEntry {
        kind: Kind::ClusterNetworkPolicy,
        name: "ClusterNetworkPolicy",
        versions: &POLICY_V1ALPHA2,
        is_namespaced: false,
        shape: &kubernetes::CLUSTER_POLICY,
    },
];

const CILIUM_V2: [&str; 1] = ["cilium.io/v2"];
const CIDR_GROUP_VERSIONS: [&str; 2] = ["cilium.io/v2", "cilium.io/v2alpha1"];
const NETWORKING_V1: [&str; 1] = ["networking.k8s.io/v1"];
const POLICY_V1ALPHA2: [&str; 1] = ["policy.networking.k8s.io/v1alpha2"];

/// The entry of a kind.
pub(super) fn entry(kind: Kind) -> &'static KindEntry {
    const TABLE: &[KindEntry; 5] = &KINDS;
    TABLE.iter().find(|entry| entry.kind == kind).unwrap_or(&TABLE[0])
}

/// Kinds of lists.
pub(super) const LISTS: [&str; 6] = [
    "List",
    "CiliumNetworkPolicyList",
    "CiliumClusterwideNetworkPolicyList",
    "CiliumCIDRGroupList",
    "NetworkPolicyList",
    "ClusterNetworkPolicyList",
];

/// A list of objects, as `kubectl get -o yaml` prints it.
pub(crate) static LIST: Shape = Shape {
    name: "List",
    about: "Objects, as `kubectl get -o yaml` prints several",
    fields: &[
        may("apiVersion", Type::Text(Text::ANY), "Not looked at"),
        must("kind", Type::Text(Text::words(&LISTS)), "`List`, or the name of a kind and `List`"),
        may("metadata", Type::Anything, "Not looked at"),
        must("items", list(Item::Anything), "The objects"),
    ],
    refused: &[],
    choices: &[],
};

const API_VERSION: &str = "Version of the kind";
const KIND: &str = "Name of the kind";
const METADATA: &str = "Name, namespace and labels of the object";
const STATUS: &str = "Written by the agent, not read";

/// The first fields of every object.
const fn head(
    versions: &'static [&'static str],
    kinds: &'static [&'static str],
    metadata: &'static Shape,
) -> [Field; 3] {
    [
        must("apiVersion", Type::Text(Text::words(versions)), API_VERSION),
        must("kind", Type::Text(Text::words(kinds)), KIND),
        must("metadata", Type::Object(metadata), METADATA),
    ]
}

const fn status() -> Field {
    may("status", Type::Anything, STATUS)
}

const NAME: Field = must("name", Type::Text(text::NAME), "Name of the object");
const NAMESPACE: Field = may("namespace", Type::Text(text::NAME), "Namespace of the object; left out it is `default`");
const LABELS: Field = may(
    "labels",
    Type::Labels { keys: Text::ANY, values: Text::ANY },
    "Labels; CiliumCIDRGroups are selected by theirs",
);

const fn written(name: &'static str) -> Field {
    may(name, Type::Anything, "Not looked at")
}

/// Fields of `metav1.ObjectMeta` that are not looked at.
const OTHERS: [Field; 12] = [
    written("annotations"),
    written("uid"),
    written("resourceVersion"),
    written("generation"),
    written("creationTimestamp"),
    written("deletionTimestamp"),
    written("deletionGracePeriodSeconds"),
    written("ownerReferences"),
    written("finalizers"),
    written("managedFields"),
    written("selfLink"),
    written("generateName"),
];

/// Two tables one after the other.
const fn joined<const A: usize, const B: usize, const N: usize>(first: [Field; A], then: [Field; B]) -> [Field; N] {
    assert!(A + B == N, "the length is the sum");
    let mut all = [NAME; N];
    let mut at = 0;
    while at < N {
        all[at] = if at < A { first[at] } else { then[at - A] };
        at += 1;
    }
    all
}

const NAMESPACED_FIELDS: [Field; 15] = joined([NAME, NAMESPACE, LABELS], OTHERS);
const CLUSTER_FIELDS: [Field; 14] = joined([NAME, LABELS], OTHERS);
const NO_NAMESPACE: Refused = conflict("namespace", "this kind belongs to the whole cluster and has no namespace");

static NAMESPACED: Shape = Shape {
    name: "NamespacedMeta",
    about: "What `metav1.ObjectMeta` has, for objects of one namespace",
    fields: &NAMESPACED_FIELDS,
    refused: &[],
    choices: &[],
};
static CLUSTER: Shape = Shape {
    name: "ClusterMeta",
    about: "What `metav1.ObjectMeta` has, for objects of the whole cluster",
    fields: &CLUSTER_FIELDS,
    refused: &[NO_NAMESPACE],
    choices: &[],
};
static CLUSTERWIDE_POLICY: Shape = Shape {
    name: "ClusterMeta",
    refused: &[NO_NAMESPACE.help("write `kind: CiliumNetworkPolicy` for a policy of one namespace")],
    about: "What `metav1.ObjectMeta` has, for objects of the whole cluster",
    fields: &CLUSTER_FIELDS,
    choices: &[],
};
