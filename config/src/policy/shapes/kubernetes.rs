//! NetworkPolicy of networking.k8s.io, ClusterNetworkPolicy of policy.networking.k8s.io, and selectors of Kubernetes.

use super::{
    super::{cluster_policy, network_policy},
    CLUSTER, NAMESPACED, NETWORKING_V1, POLICY_V1ALPHA2,
    cilium::OPERATORS,
    head, joined, status, text,
};
use crate::language::{Choice, Field, Item, Shape, Text, Type, list, list_of, may, must, words_of};

const NETWORK_POLICY_FIELDS: [Field; 5] = joined(
    head(&NETWORKING_V1, &["NetworkPolicy"], &NAMESPACED),
    [must("spec", Type::Object(&NETWORK_POLICY_SPEC), "The rules"), status()],
);
const CLUSTER_POLICY_FIELDS: [Field; 5] = joined(
    head(&POLICY_V1ALPHA2, &["ClusterNetworkPolicy"], &CLUSTER),
    [must("spec", Type::Object(&CLUSTER_POLICY_SPEC), "The rules"), status()],
);

/// The whole object.
pub(crate) static NETWORK_POLICY: Shape = Shape {
    name: "NetworkPolicy",
    about: "What pods of one namespace may send and receive",
    fields: &NETWORK_POLICY_FIELDS,
    refused: &[],
    choices: &[],
};
/// The whole object.
pub(crate) static CLUSTER_POLICY: Shape = Shape {
    name: "ClusterNetworkPolicy",
    about: "Administrators' rules, before or after all others",
    fields: &CLUSTER_POLICY_FIELDS,
    refused: &[],
    choices: &[],
};

/// `metav1.LabelSelector`.
pub(crate) static SELECTOR: Shape = Shape {
    name: "LabelSelector",
    about: "Labels, all of which must be there; `{}` selects everything",
    fields: &[
        may(
            "matchLabels",
            Type::Labels { keys: text::LABEL_KEY, values: text::LABEL_VALUE },
            "Labels with these values",
        ),
        may("matchExpressions", list(Item::Object(&EXPRESSION)), "Conditions on labels"),
    ],
    refused: &[],
    choices: &[],
};
/// A condition of such a selector.
pub(crate) static EXPRESSION: Shape = Shape {
    name: "LabelExpression",
    about: "A condition on one label",
    fields: &[
        must("key", Type::Text(text::LABEL_KEY), "Key of the label"),
        must("operator", Type::Text(Text::words(&OPERATORS)), "`In` and `NotIn` need `values`, the others take none"),
        may("values", list(Item::Text(text::LABEL_VALUE)), "Values of the label"),
    ],
    refused: &[],
    choices: &[],
};

const POLICY_TYPES: [&str; 2] = words_of(&network_policy::POLICY_TYPES);
/// `spec` of NetworkPolicy.
pub(crate) static NETWORK_POLICY_SPEC: Shape = Shape {
    name: "NetworkPolicySpec",
    about: "Rules of one subject",
    fields: &[
        may(
            "podSelector",
            Type::Object(&SELECTOR),
            "Pods that the rules are about; left out, every pod of the namespace",
        ),
        may(
            "policyTypes",
            list(Item::Text(Text::words(&POLICY_TYPES))),
            "Directions that are covered; left out, ingress, and egress where it has an element",
        ),
        may("ingress", list(Item::Object(&FROM)), "What may be received"),
        may("egress", list(Item::Object(&TO)), "What may be sent"),
    ],
    refused: &[],
    choices: &[],
};
const NETWORK_PORTS: Field = may("ports", list(Item::Object(&NETWORK_PORT)), "Ports; left out, every port");
/// An element of `ingress`.
pub(crate) static FROM: Shape = Shape {
    name: "NetworkPolicyIngress",
    about: "What may be received",
    fields: &[may("from", list(Item::Object(&PEER)), "Peers; left out, everybody"), NETWORK_PORTS],
    refused: &[],
    choices: &[],
};
/// An element of `egress`.
pub(crate) static TO: Shape = Shape {
    name: "NetworkPolicyEgress",
    about: "What may be sent",
    fields: &[may("to", list(Item::Object(&PEER)), "Peers; left out, everybody"), NETWORK_PORTS],
    refused: &[],
    choices: &[],
};
/// A peer of NetworkPolicy.
pub(crate) static PEER: Shape = Shape {
    name: "NetworkPolicyPeer",
    about: "Pods by their labels and those of their namespaces, or addresses",
    fields: &[
        may("podSelector", Type::Object(&SELECTOR), "Pods"),
        may("namespaceSelector", Type::Object(&SELECTOR), "Namespaces; left out, that of the policy"),
        may("ipBlock", Type::Object(&IP_BLOCK), "Addresses"),
    ],
    refused: &[],
    choices: &[
        Choice::Some(&["podSelector", "namespaceSelector", "ipBlock"]),
        Choice::AtMostOne(&["ipBlock", "podSelector"]),
        Choice::AtMostOne(&["ipBlock", "namespaceSelector"]),
    ],
};
/// `ipBlock`.
pub(crate) static IP_BLOCK: Shape = Shape {
    name: "IPBlock",
    about: "Addresses, inside the cluster too",
    fields: &[
        must("cidr", Type::Text(text::PREFIX), "The prefix"),
        may("except", list(Item::Text(text::PREFIX)), "Holes: prefixes inside, which are not selected"),
    ],
    refused: &[],
    choices: &[],
};
const PROTOCOLS: [&str; 3] = words_of(&network_policy::PROTOCOLS);
/// An element of `ports`.
pub(crate) static NETWORK_PORT: Shape = Shape {
    name: "NetworkPolicyPort",
    about: "A port or a range of them",
    fields: &[
        may("protocol", Type::Text(Text::words(&PROTOCOLS)), "Left out it is `TCP`"),
        may(
            "port",
            Type::IntegerOrText(network_policy::NUMBER, text::PORT_NAME),
            "A number, or a name; left out, every port",
        ),
        may("endPort", Type::Integer(network_policy::NUMBER), "Last port of a range that starts at `port`"),
    ],
    refused: &[],
    choices: &[Choice::Needs("endPort", "port")],
};

const TIERS: [&str; 2] = words_of(&cluster_policy::TIERS);
const ACTIONS: [&str; 3] = words_of(&cluster_policy::ACTIONS);
const RULES_MAX: Option<usize> = Some(cluster_policy::RULES_MAX);
/// `spec` of ClusterNetworkPolicy.
pub(crate) static CLUSTER_POLICY_SPEC: Shape = Shape {
    name: "ClusterNetworkPolicySpec",
    about: "Rules of one subject, in order",
    fields: &[
        must("tier", Type::Text(Text::words(&TIERS)), "Before all other policies, or after them"),
        must("priority", Type::Integer(cluster_policy::PRIORITY), "Lower numbers are looked at first"),
        must("subject", Type::Object(&SUBJECT), "Pods that the rules are about"),
        may(
            "ingress",
            list_of(Item::Object(&CLUSTER_FROM), 0, RULES_MAX),
            "Rules for what is received, the first that matches counts",
        ),
        may(
            "egress",
            list_of(Item::Object(&CLUSTER_TO), 0, RULES_MAX),
            "Rules for what is sent, the first that matches counts",
        ),
    ],
    refused: &[],
    choices: &[],
};
const NAMESPACES: Field = may("namespaces", Type::Object(&SELECTOR), "Every pod of these namespaces");
const PODS: Field = may("pods", Type::Object(&NAMESPACED_PODS), "Pods of namespaces");
/// `subject`.
pub(crate) static SUBJECT: Shape = Shape {
    name: "ClusterNetworkPolicySubject",
    about: "Pods",
    fields: &[NAMESPACES, PODS],
    refused: &[],
    choices: &[Choice::One(&["namespaces", "pods"])],
};
/// `pods`.
pub(crate) static NAMESPACED_PODS: Shape = Shape {
    name: "NamespacedPods",
    about: "Pods by their labels and those of their namespaces",
    fields: &[
        must("namespaceSelector", Type::Object(&SELECTOR), "Namespaces"),
        must("podSelector", Type::Object(&SELECTOR), "Pods"),
    ],
    refused: &[],
    choices: &[],
};
const RULE_NAME: Field = may("name", Type::Text(Text::ANY), "Text for people");
const ACTION: Field = must("action", Type::Text(Text::words(&ACTIONS)), "What becomes of the flow");
const PROTOCOL_LIST: Field =
    may("protocols", list(Item::Object(&PROTOCOL)), "Protocols and ports; left out, every one");
/// An element of `ingress`.
pub(crate) static CLUSTER_FROM: Shape = Shape {
    name: "ClusterNetworkPolicyIngress",
    about: "A rule for what is received",
    fields: &[
        RULE_NAME,
        ACTION,
        must("from", list_of(Item::Object(&CLUSTER_FROM_PEER), 1, None), "Peers"),
        PROTOCOL_LIST,
    ],
    refused: &[],
    choices: &[],
};
/// An element of `egress`.
pub(crate) static CLUSTER_TO: Shape = Shape {
    name: "ClusterNetworkPolicyEgress",
    about: "A rule for what is sent",
    fields: &[RULE_NAME, ACTION, must("to", list_of(Item::Object(&CLUSTER_TO_PEER), 1, None), "Peers"), PROTOCOL_LIST],
    refused: &[],
    choices: &[],
};
/// An element of `from`.
pub(crate) static CLUSTER_FROM_PEER: Shape = Shape {
    name: "ClusterNetworkPolicyIngressPeer",
    about: "Pods",
    fields: &[NAMESPACES, PODS],
    refused: &[],
    choices: &[Choice::One(&["namespaces", "pods"])],
};
/// An element of `to`.
pub(crate) static CLUSTER_TO_PEER: Shape = Shape {
    name: "ClusterNetworkPolicyEgressPeer",
    about: "Pods, nodes, addresses or names",
    fields: &[
        NAMESPACES,
        PODS,
        may("nodes", Type::Object(&SELECTOR), "Nodes by their labels"),
        may("networks", list(Item::Text(text::PREFIX)), "Addresses, inside the cluster too"),
        may(
            "domainNames",
            list(Item::Text(text::DOMAIN_NAME)),
            "DNS names, with `action: Accept` only; a leading `*.` stands for one or more labels",
        ),
    ],
    refused: &[],
    choices: &[Choice::One(&["namespaces", "pods", "nodes", "networks", "domainNames"])],
};
/// An element of `protocols`.
pub(crate) static PROTOCOL: Shape = Shape {
    name: "ClusterNetworkPolicyProtocol",
    about: "A protocol with its ports, or the name of a port",
    fields: &[
        may("tcp", Type::Object(&PORT_LIMIT), "TCP"),
        may("udp", Type::Object(&PORT_LIMIT), "UDP"),
        may("sctp", Type::Object(&PORT_LIMIT), "SCTP"),
        may("destinationNamedPort", Type::Text(text::PORT_NAME), "Name of a port of the destination's"),
    ],
    refused: &[],
    choices: &[Choice::One(&["tcp", "udp", "sctp", "destinationNamedPort"])],
};
/// `tcp`, `udp`, `sctp`.
pub(crate) static PORT_LIMIT: Shape = Shape {
    name: "DestinationPortLimit",
    about: "Ports of one protocol; `{}` is every one",
    fields: &[may("destinationPort", Type::Object(&DESTINATION_PORT), "The ports")],
    refused: &[],
    choices: &[],
};
/// `destinationPort`.
pub(crate) static DESTINATION_PORT: Shape = Shape {
    name: "DestinationPort",
    about: "A port or a range of them",
    fields: &[
        may("number", Type::Integer(network_policy::NUMBER), "One port"),
        may("range", Type::Object(&RANGE), "Several ports"),
    ],
    refused: &[],
    choices: &[Choice::One(&["number", "range"])],
};
/// `range`.
pub(crate) static RANGE: Shape = Shape {
    name: "PortRange",
    about: "Ports from `start` to `end`, both included",
    fields: &[
        must("start", Type::Integer(network_policy::NUMBER), "First port"),
        must("end", Type::Integer(network_policy::NUMBER), "Last port"),
    ],
    refused: &[],
    choices: &[],
};
