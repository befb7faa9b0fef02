//! Elements of `ingress`, `ingressDeny`, `egress` and `egressDeny` of Cilium's policies: peers, ports, requests.

use super::{
    super::{icmp, layer7, ports, resolvers},
    cilium::SELECTOR,
    joined, kubernetes, text,
};
use crate::{
    language::{
        Choice, Field, Item, Refused, Shape, Text, Type, conflict, list, list_of, may, must, unsupported, words_of,
    },
    rule::Entity,
};

/// Keys that name peers, by direction and effect.
pub(crate) const FROM_PEERS: [&str; 4] = ["fromEndpoints", "fromEntities", "fromCIDR", "fromCIDRSet"];
pub(crate) const TO_DENIED_PEERS: [&str; 5] = ["toEndpoints", "toEntities", "toCIDR", "toCIDRSet", "toServices"];
pub(crate) const TO_PEERS: [&str; 6] = ["toEndpoints", "toEntities", "toCIDR", "toCIDRSet", "toServices", "toFQDNs"];

const SELECTORS: Type = list(Item::Object(&SELECTOR));
const ENTITY: Type = list(Item::Text(Text::words(&ENTITIES)));
const TO_ENTITY: Type = list(Item::Text(Text::words(&TO_ENTITIES)));
const PREFIXES: Type = list(Item::Text(text::PREFIX_OR_ADDRESS));
const PREFIX_SETS: Type = list(Item::Object(&CIDR_SET));
const ENDPOINTS: &str = "Endpoints, of the policy's namespace unless the selector names another";
const ENTITIES_ABOUT: &str = "Peers by what they are";
const TO_ENTITIES_ABOUT: &str = "Peers by what they are; `public-resolvers` is Namegate's own word";
const PREFIXES_ABOUT: &str = "Addresses outside the cluster";
const SETS_ABOUT: &str = "Addresses outside the cluster, with holes or by group";
const FROM: [Field; 4] = [
    may(FROM_PEERS[0], SELECTORS, ENDPOINTS),
    may(FROM_PEERS[1], ENTITY, ENTITIES_ABOUT),
    may(FROM_PEERS[2], PREFIXES, PREFIXES_ABOUT),
    may(FROM_PEERS[3], PREFIX_SETS, SETS_ABOUT),
];
const TO_DENIED: [Field; 5] = [
    may(TO_PEERS[0], SELECTORS, ENDPOINTS),
    may(TO_PEERS[1], TO_ENTITY, TO_ENTITIES_ABOUT),
    may(TO_PEERS[2], PREFIXES, PREFIXES_ABOUT),
    may(TO_PEERS[3], PREFIX_SETS, SETS_ABOUT),
    may(TO_PEERS[4], list(Item::Object(&SERVICE)), "Services of Kubernetes"),
];
const TO: [Field; 6] = joined(
    TO_DENIED,
    [may(TO_PEERS[5], list(Item::Object(&FQDN)), "DNS names: an address opens when an endpoint learns it by a name")],
);

const fn before_peers(ports: &'static Shape) -> [Field; 3] {
    [
        may("toPorts", list(Item::Object(ports)), "Ports and limits on requests; left out, every port"),
        may("icmps", list_of(Item::Object(&ICMP), 1, None), "Types of ICMP, instead of ports"),
        may("authentication", Type::Object(&AUTHENTICATION), "Can be switched off only: no peer is authenticated"),
    ]
}

const INGRESS_FIELDS: [Field; 7] = joined(before_peers(&INGRESS_PORTS), FROM);
const INGRESS_DENY_FIELDS: [Field; 7] = joined(before_peers(&DENIED_PORTS), FROM);
const EGRESS_FIELDS: [Field; 9] = joined(before_peers(&EGRESS_PORTS), TO);
const EGRESS_DENY_FIELDS: [Field; 8] = joined(before_peers(&DENIED_PORTS), TO_DENIED);

const GROUPS: &str = "groups of cloud providers are not supported: Namegate asks no cloud provider";
const REQUIRES: &str = "this field is gone since Cilium 1.19; put its labels into the selectors of the other elements";
const NODES: &str = "nodes are not selected by their labels (nor in Cilium, unless a flag is set): name them by \
    the entity `remote-node` or by their prefixes";
const FROM_GROUPS: Refused = unsupported("fromGroups", GROUPS);
const TO_GROUPS: Refused = unsupported("toGroups", GROUPS);
const FROM_REQUIRES: Refused = unsupported("fromRequires", REQUIRES);
const TO_REQUIRES: Refused = unsupported("toRequires", REQUIRES);
const FROM_NODES: Refused = unsupported("fromNodes", NODES);
const TO_NODES: Refused = unsupported("toNodes", NODES);
const NO_CLIENT_NAMES: &[Refused] = &[
    FROM_GROUPS,
    TO_GROUPS,
    FROM_REQUIRES,
    TO_REQUIRES,
    FROM_NODES,
    TO_NODES,
    unsupported("fromFQDNs", "names select destinations only: a client cannot be known by a DNS name"),
    unsupported("toFQDNs", "names select destinations only: write the element under `egress`"),
];

const PORTS_OR_ICMPS: Choice = Choice::AtMostOne(&["toPorts", "icmps"]);

/// An element of `ingress`.
pub(crate) static INGRESS: Shape = Shape {
    name: "IngressElement",
    about: "What may be received: from these peers, at these ports",
    fields: &INGRESS_FIELDS,
    refused: NO_CLIENT_NAMES,
    choices: &[PORTS_OR_ICMPS, Choice::AtMostOneFilled(&FROM_PEERS)],
};
/// An element of `ingressDeny`.
pub(crate) static INGRESS_DENY: Shape = Shape {
    name: "IngressDenyElement",
    about: "What must not be received: from these peers, at these ports",
    fields: &INGRESS_DENY_FIELDS,
    refused: NO_CLIENT_NAMES,
    choices: &[PORTS_OR_ICMPS, Choice::AtMostOneFilled(&FROM_PEERS)],
};
/// An element of `egress`.
pub(crate) static EGRESS: Shape = Shape {
    name: "EgressElement",
    about: "What may be sent: to these peers, to these ports",
    fields: &EGRESS_FIELDS,
    refused: &[FROM_GROUPS, TO_GROUPS, FROM_REQUIRES, TO_REQUIRES, FROM_NODES, TO_NODES],
    choices: &[PORTS_OR_ICMPS, Choice::AtMostOneFilled(&TO_PEERS)],
};
/// An element of `egressDeny`.
pub(crate) static EGRESS_DENY: Shape = Shape {
    name: "EgressDenyElement",
    about: "What must not be sent: to these peers, to these ports",
    fields: &EGRESS_DENY_FIELDS,
    refused: &[
        FROM_GROUPS,
        TO_GROUPS,
        FROM_REQUIRES,
        TO_REQUIRES,
        FROM_NODES,
        TO_NODES,
        unsupported("toFQDNs", "a denial cannot name DNS names: it would not hold before the name is looked up"),
    ],
    choices: &[PORTS_OR_ICMPS, Choice::AtMostOneFilled(&TO_DENIED_PEERS)],
};
/// `authentication`.
pub(crate) static AUTHENTICATION: Shape = Shape {
    name: "Authentication",
    about: "Authentication of peers",
    fields: &[must("mode", Type::Text(Text::words(&["disabled"])), "The one mode")],
    refused: &[],
    choices: &[],
};

/// Words for peers: entities, and the world by family.
const ENTITIES: [&str; 13] = {
    let mut words = ["world-ipv4", "world-ipv6", "", "", "", "", "", "", "", "", "", "", ""];
    let mut at = 0;
    while at < Entity::EVERY.len() {
        words[at + 2] = Entity::EVERY[at].as_str();
        at += 1;
    }
    words
};

/// The same, and a word of Namegate's own for servers.
const TO_ENTITIES: [&str; 14] = {
    let mut words = [resolvers::WORD; 14];
    let mut at = 0;
    while at < ENTITIES.len() {
        words[at] = ENTITIES[at];
        at += 1;
    }
    words
};

/// An entry of `toCIDRSet` and `fromCIDRSet`.
pub(crate) static CIDR_SET: Shape = Shape {
    name: "CIDRSet",
    about: "A prefix, or a CiliumCIDRGroup",
    fields: &[
        may("cidr", Type::Text(text::PREFIX), "The prefix"),
        may("cidrGroupRef", Type::Text(Text::FILLED), "Name of a CiliumCIDRGroup"),
        may("cidrGroupSelector", Type::Object(&kubernetes::SELECTOR), "CiliumCIDRGroups by their labels"),
        may("except", list(Item::Text(text::PREFIX)), "Holes: prefixes inside, which are not selected"),
    ],
    refused: &[],
    choices: &[Choice::One(&["cidr", "cidrGroupRef", "cidrGroupSelector"])],
};
/// An entry of `toFQDNs` and `rules.dns`.
pub(crate) static FQDN: Shape = Shape {
    name: "NameSelector",
    about: "A DNS name, or a pattern of names",
    fields: &[
        may("matchName", Type::Text(text::DNS_NAME), "One name"),
        may(
            "matchPattern",
            Type::Text(text::DNS_PATTERN),
            "`*` stands for characters of one label, a leading `**.` for labels",
        ),
    ],
    refused: &[],
    choices: &[Choice::One(&["matchName", "matchPattern"])],
};
/// An entry of `toServices`.
pub(crate) static SERVICE: Shape = Shape {
    name: "ServiceSelector",
    about: "Services of Kubernetes",
    fields: &[
        may("k8sService", Type::Object(&NAMED_SERVICE), "One service"),
        may("k8sServiceSelector", Type::Object(&LABELLED_SERVICES), "Services by their labels"),
    ],
    refused: &[],
    choices: &[Choice::One(&["k8sService", "k8sServiceSelector"])],
};
/// `k8sService`.
pub(crate) static NAMED_SERVICE: Shape = Shape {
    name: "NamedService",
    about: "A service by its name",
    fields: &[
        must("serviceName", Type::Text(Text::FILLED), "Its name"),
        may("namespace", Type::Text(Text::FILLED), "Its namespace; must be given in a policy of the whole cluster"),
    ],
    refused: &[],
    choices: &[],
};
/// `k8sServiceSelector`.
pub(crate) static LABELLED_SERVICES: Shape = Shape {
    name: "LabelledServices",
    about: "Services by their labels",
    fields: &[
        must("selector", Type::Object(&kubernetes::SELECTOR), "Labels of the services"),
        may("namespace", Type::Text(Text::FILLED), "Their namespace; left out, every one"),
    ],
    refused: &[],
    choices: &[],
};

const TLS: &str = "Namegate does not terminate TLS: what is inside stays unseen";
const TERMINATING: Refused = unsupported("terminatingTLS", TLS);
const ORIGINATING: Refused = unsupported("originatingTLS", TLS);
const LISTENER: Refused = unsupported("listener", "Namegate runs no Envoy listeners to redirect to");
const NO_L7: &str = "a denial takes ports only: it cannot look at requests";
const PORTS: Field = may(
    "ports",
    list_of(Item::Object(&PORT), 0, Some(ports::PORTS_MAX)),
    "Ports, each with its protocol; without one nothing matches",
);
const SERVER_NAMES: Field =
    may("serverNames", list_of(Item::Text(text::DNS_PATTERN), 1, None), "Names that TLS clients may ask for");
const ONE_LIMIT: Choice = Choice::AtMostOne(&["rules", "serverNames"]);

/// An element of `toPorts` under `ingress`.
pub(crate) static INGRESS_PORTS: Shape = Shape {
    name: "IngressPorts",
    about: "Ports, and limits on requests to them",
    fields: &[PORTS, may("rules", Type::Object(&INGRESS_LIMITS), "Limits on requests"), SERVER_NAMES],
    refused: &[TERMINATING, ORIGINATING, LISTENER],
    choices: &[ONE_LIMIT],
};
/// An element of `toPorts` under `egress`.
pub(crate) static EGRESS_PORTS: Shape = Shape {
    name: "EgressPorts",
    about: "Ports, and limits on requests to them",
    fields: &[PORTS, may("rules", Type::Object(&EGRESS_LIMITS), "Limits on requests"), SERVER_NAMES],
    refused: &[TERMINATING, ORIGINATING, LISTENER],
    choices: &[ONE_LIMIT],
};
/// An element of `toPorts` under the denials.
pub(crate) static DENIED_PORTS: Shape = Shape {
    name: "DeniedPorts",
    about: "Ports",
    fields: &[PORTS],
    refused: &[unsupported("rules", NO_L7), unsupported("serverNames", NO_L7), TERMINATING, ORIGINATING, LISTENER],
    choices: &[],
};
const PROTOCOLS: [&str; 4] = words_of(&ports::PROTOCOLS);
/// An element of `ports`.
pub(crate) static PORT: Shape = Shape {
    name: "Port",
    about: "A port or a range of them",
    fields: &[
        must("port", Type::Text(text::PORT), "A number from 0 to 65535 as text, or a name; \"0\" is every port"),
        may("endPort", Type::Integer(ports::END), "Last port of a range that starts at `port`"),
        may("protocol", Type::Text(Text::words(&PROTOCOLS)), "Left out it is `ANY`"),
    ],
    refused: &[],
    choices: &[],
};

const HTTP: Type = list(Item::Object(&REQUEST));
const HTTP_ABOUT: &str = "HTTP requests that pass; one element that matches is enough";
const GONE: &str = "this field is gone since Cilium 1.20, and Namegate has no parser for it";
const KAFKA: Refused = unsupported("kafka", GONE);
const L7PROTO: Refused = unsupported("l7proto", GONE);
const L7: Refused = unsupported("l7", GONE);

/// `rules` under `ingress`.
pub(crate) static INGRESS_LIMITS: Shape = Shape {
    name: "IngressLimits",
    about: "Limits on requests",
    fields: &[must("http", HTTP, HTTP_ABOUT)],
    refused: &[conflict("dns", "`dns` rules limit what is asked: they stand under `egress` only"), KAFKA, L7PROTO, L7],
    choices: &[],
};
/// `rules` under `egress`.
pub(crate) static EGRESS_LIMITS: Shape = Shape {
    name: "EgressLimits",
    about: "Limits on requests",
    fields: &[may("http", HTTP, HTTP_ABOUT), may("dns", list(Item::Object(&FQDN)), "Names that may be asked for")],
    refused: &[KAFKA, L7PROTO, L7],
    choices: &[Choice::One(&["http", "dns"])],
};
/// An element of `http`.
pub(crate) static REQUEST: Shape = Shape {
    name: "HTTPRequest",
    about: "An HTTP request: everything that is given must match",
    fields: &[
        may("method", Type::Text(Text::ANY), "Regular expression of the whole method"),
        may("path", Type::Text(Text::ANY), "Regular expression of the whole path"),
        may("host", Type::Text(Text::ANY), "Regular expression of the whole host, letter case ignored"),
        may("headers", list(Item::Text(text::HEADER)), "Headers that must be there: `Name: value`, or a name"),
        may("headerMatches", list(Item::Object(&HEADER_MATCH)), "The same by fields"),
    ],
    refused: &[],
    choices: &[],
};
/// An element of `headerMatches`.
pub(crate) static HEADER_MATCH: Shape = Shape {
    name: "HeaderMatch",
    about: "A header that must be there",
    fields: &[
        must("name", Type::Text(text::HEADER_NAME), "Its name"),
        may("value", Type::Text(Text::ANY), "Its value; left out, any"),
    ],
    refused: &[
        unsupported("secret", "header values cannot be taken from a secret: Namegate reads no secrets"),
        unsupported("mismatch", layer7::NO_CHANGES).help("leave `mismatch` out"),
    ],
    choices: &[],
};

const V4_TYPES: [&str; 15] = words_of(&icmp::V4);
const V6_TYPES: [&str; 27] = words_of(&icmp::V6);
/// Names of both families.
const TYPES: [&str; 42] = {
    let mut words = [""; 42];
    let mut at = 0;
    while at < words.len() {
        words[at] = if at < V4_TYPES.len() { V4_TYPES[at] } else { V6_TYPES[at - V4_TYPES.len()] };
        at += 1;
    }
    words
};
const FAMILIES: [&str; 2] = words_of(&icmp::FAMILIES);
const ICMP_TEXT: Text = Text { words: &TYPES, pattern: Some(text::ICMP_NUMBER), min: 1, max: None };

/// An element of `icmps`.
pub(crate) static ICMP: Shape = Shape {
    name: "ICMP",
    about: "Types of ICMP",
    fields: &[must("fields", list_of(Item::Object(&ICMP_TYPE), 1, Some(icmp::FIELDS_MAX)), "The types")],
    refused: &[],
    choices: &[],
};
/// An element of `fields`.
pub(crate) static ICMP_TYPE: Shape = Shape {
    name: "ICMPType",
    about: "A type of ICMP",
    fields: &[
        may("family", Type::Text(Text::words(&FAMILIES)), "Left out it is `IPv4`"),
        must("type", Type::IntegerOrText(icmp::NUMBER, ICMP_TEXT), "Number or name of the type"),
    ],
    refused: &[],
    choices: &[],
};
