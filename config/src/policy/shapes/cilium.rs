//! CiliumNetworkPolicy, CiliumClusterwideNetworkPolicy and CiliumCIDRGroup (the schemas of Cilium 1.20).

use super::{
    super::selector,
    CIDR_GROUP_VERSIONS, CILIUM_V2, CLUSTER, CLUSTERWIDE_POLICY, NAMESPACED as NAMESPACED_META,
    elements::{EGRESS, EGRESS_DENY, INGRESS, INGRESS_DENY},
    head, joined, status, text,
};
use crate::language::{Choice, Field, Item, Shape, Text, Type, conflict, list, may, must, words_of};

const POLICY_BODY: [Field; 3] = [
    may("spec", Type::Object(&SPEC), "One set of rules"),
    status(),
    may("specs", list(Item::Object(&SPEC)), "Several sets of rules"),
];
const POLICY_FIELDS: [Field; 6] = joined(head(&CILIUM_V2, &["CiliumNetworkPolicy"], &NAMESPACED_META), POLICY_BODY);
const CLUSTERWIDE_BODY: [Field; 3] = [
    may("spec", Type::Object(&CLUSTERWIDE_SPEC), "One set of rules"),
    status(),
    may("specs", list(Item::Object(&CLUSTERWIDE_SPEC)), "Several sets of rules"),
];
const CLUSTERWIDE_FIELDS: [Field; 6] =
    joined(head(&CILIUM_V2, &["CiliumClusterwideNetworkPolicy"], &CLUSTERWIDE_POLICY), CLUSTERWIDE_BODY);
const GROUP_FIELDS: [Field; 5] = joined(
    head(&CIDR_GROUP_VERSIONS, &["CiliumCIDRGroup"], &CLUSTER),
    [must("spec", Type::Object(&GROUP_SPEC), "The prefixes"), status()],
);

/// The whole object.
pub(crate) static NAMESPACED: Shape = Shape {
    name: "CiliumNetworkPolicy",
    about: "What endpoints of one namespace may send and receive",
    fields: &POLICY_FIELDS,
    refused: &[],
    choices: &[Choice::Some(&["spec", "specs"])],
};
/// The whole object.
pub(crate) static CLUSTERWIDE: Shape = Shape {
    name: "CiliumClusterwideNetworkPolicy",
    about: "What endpoints of all namespaces, or nodes, may send and receive",
    fields: &CLUSTERWIDE_FIELDS,
    refused: &[],
    choices: &[Choice::Some(&["spec", "specs"])],
};
/// The whole object.
pub(crate) static CIDR_GROUP: Shape = Shape {
    name: "CiliumCIDRGroup",
    about: "Prefixes under one name, for `cidrGroupRef` and `cidrGroupSelector`",
    fields: &GROUP_FIELDS,
    refused: &[],
    choices: &[],
};
/// `spec` of a group.
pub(crate) static GROUP_SPEC: Shape = Shape {
    name: "CiliumCIDRGroupSpec",
    about: "Prefixes outside the cluster",
    fields: &[must("externalCIDRs", list(Item::Text(text::PREFIX)), "The prefixes")],
    refused: &[],
    choices: &[],
};

const ENDPOINT_SELECTOR: &str = "Endpoints that the rules are about; `{}` is all that the policy can select";
const SECTIONS: [Field; 8] = [
    may("ingress", list(Item::Object(&INGRESS)), "What may be received; one element that matches is enough"),
    may("ingressDeny", list(Item::Object(&INGRESS_DENY)), "What must not be received, whatever is allowed"),
    may("egress", list(Item::Object(&EGRESS)), "What may be sent; one element that matches is enough"),
    may("egressDeny", list(Item::Object(&EGRESS_DENY)), "What must not be sent, whatever is allowed"),
    may(
        "enableDefaultDeny",
        Type::Object(&DEFAULT_DENY),
        "Whether what no rule allows is denied; `true` where left out",
    ),
    may("labels", list(Item::Object(&RULE_LABEL)), "Labels of the rules themselves: not used"),
    may("description", Type::Text(Text::ANY), "Text for people: not used"),
    may("log", Type::Object(&LOG), "Text for logs: not used"),
];
const SPEC_FIELDS: [Field; 9] =
    joined([must("endpointSelector", Type::Object(&SELECTOR), ENDPOINT_SELECTOR)], SECTIONS);
const CLUSTERWIDE_SPEC_FIELDS: [Field; 10] = joined(
    [
        may("endpointSelector", Type::Object(&SELECTOR), ENDPOINT_SELECTOR),
        may("nodeSelector", Type::Object(&SELECTOR), "Nodes that the rules are about, instead of endpoints"),
    ],
    SECTIONS,
);
const SOME_SECTION: Choice = Choice::SomeFilled(&["ingress", "ingressDeny", "egress", "egressDeny"]);

/// `spec` of a policy of one namespace.
pub(crate) static SPEC: Shape = Shape {
    name: "Rules",
    about: "Rules of one subject",
    fields: &SPEC_FIELDS,
    refused: &[conflict("nodeSelector", "only a CiliumClusterwideNetworkPolicy can select nodes")],
    choices: &[SOME_SECTION],
};
/// `spec` of a policy of all namespaces.
pub(crate) static CLUSTERWIDE_SPEC: Shape = Shape {
    name: "ClusterwideRules",
    about: "Rules of one subject",
    fields: &CLUSTERWIDE_SPEC_FIELDS,
    refused: &[],
    choices: &[Choice::One(&["endpointSelector", "nodeSelector"]), SOME_SECTION],
};
/// `enableDefaultDeny`.
pub(crate) static DEFAULT_DENY: Shape = Shape {
    name: "DefaultDeny",
    about: "Whether what no rule allows is denied, by direction",
    fields: &[may("ingress", Type::Flag, "For what is received"), may("egress", Type::Flag, "For what is sent")],
    refused: &[],
    choices: &[],
};
/// An element of `labels`.
pub(crate) static RULE_LABEL: Shape = Shape {
    name: "RuleLabel",
    about: "A label of a rule",
    fields: &[
        must("key", Type::Text(Text::ANY), "Key"),
        may("value", Type::Text(Text::ANY), "Value"),
        may("source", Type::Text(Text::ANY), "Source"),
    ],
    refused: &[],
    choices: &[],
};
/// `log`.
pub(crate) static LOG: Shape = Shape {
    name: "Log",
    about: "Text for logs",
    fields: &[may("value", Type::Text(text::LOG), "The text")],
    refused: &[],
    choices: &[],
};

pub(super) const OPERATORS: [&str; 4] = words_of(&selector::WORDS);

/// A selector whose keys may have a source.
pub(crate) static SELECTOR: Shape = Shape {
    name: "EndpointSelector",
    about: "Labels, all of which must be there; keys may start with `k8s:`, `node:`, `reserved:` or `any:`",
    fields: &[
        may(
            "matchLabels",
            Type::Labels { keys: text::SOURCED_KEY, values: text::LABEL_VALUE },
            "Labels with these values",
        ),
        may("matchExpressions", list(Item::Object(&EXPRESSION)), "Conditions on labels"),
    ],
    refused: &[],
    choices: &[],
};
/// A condition of such a selector.
pub(crate) static EXPRESSION: Shape = Shape {
    name: "EndpointExpression",
    about: "A condition on one label",
    fields: &[
        must("key", Type::Text(text::SOURCED_KEY), "Key of the label"),
        must("operator", Type::Text(Text::words(&OPERATORS)), "`In` and `NotIn` need `values`, the others take none"),
        may("values", list(Item::Text(text::LABEL_VALUE)), "Values of the label"),
    ],
    refused: &[],
    choices: &[],
};
