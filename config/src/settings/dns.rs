//! Settings about DNS: whom to trust, what answers open, and what becomes of questions that are not to be asked.

use std::{collections::BTreeMap, net::IpAddr};

use super::{numbers, word};
use crate::{
    diagnostic::Code,
    document::Kind,
    labels::{K8S, LabelSelector, POD_NAMESPACE, Requirement},
    name::Fqdn,
    reader::{Object, Reader, Value},
    rule::{Binding, PortSet, RangeInclusive16},
};

/// Settings of the DNS proxy and of what its answers open.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Dns {
    /// Addresses of trusted resolvers.
    pub resolvers: Vec<IpAddr>,
    /// Endpoints of [`Dns::resolver_namespace`] with these labels are trusted resolvers too; with no labels, none is.
    pub resolver_labels: BTreeMap<String, String>,
    /// Namespace of the trusted resolvers.
    pub resolver_namespace: String,
    /// Shorter TTLs are raised to this, in seconds.
    pub min_ttl_s: u32,
    /// Longer TTLs are cut to this, in seconds.
    pub max_ttl_s: u32,
    /// Whether a name opens an address of private space outside the cluster (RFC 1918, RFC 4193, RFC 6598).
    pub private_answers: PrivateAnswers,
    /// Who a learned address opens for.
    pub scope: Scope,
    /// How a question that rules forbid is answered.
    pub refusal: Refusal,
    /// What becomes of questions that look like a tunnel's.
    pub tunnelling: Tunnelling,
    /// Different names below one parent that an endpoint may ask for in a minute, where they look like data.
    pub tunnelling_names_per_minute: u32,
    /// Names below these are not counted.
    pub tunnelling_except: Vec<Fqdn>,
    /// Whether an opened address is for connections to its names alone, where the policy does not say.
    pub name_binding: Binding,
    /// Ports where a bound connection must ask for a name, where the policy does not say: protocols without names pass on
    /// the others.
    pub named_ports: PortSet,
    /// Addresses kept for one name and endpoint.
    pub addresses_per_name_max: u32,
    /// Names kept for one endpoint.
    pub names_per_endpoint_max: u32,
    /// How long an upstream may take to answer, in milliseconds.
    pub upstream_timeout_ms: u32,
    /// Answers kept to be given again; 0 keeps none.
    pub cache_entries: u32,
    /// Questions under way in one thread of the proxy.
    pub pending_max: u32,
    /// Of them, those of one endpoint.
    pub pending_per_endpoint_max: u32,
    /// Threads of the proxy; 0 is one per core.
    pub workers: u32,
}

/// What becomes of private addresses in answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PrivateAnswers {
    /// They open like others.
    Allow,
    /// They open nothing.
    Deny,
}

/// Who an address opens for, once it is learned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope {
    /// The endpoint that asked.
    Endpoint,
    /// Every endpoint of the node.
    Node,
}

/// The answer to a question that rules forbid.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// REFUSED: some clients ask the next resolver of their list, all see that it is not the name's fault.
    Refused,
    /// NXDOMAIN, as if there were no such name (RFC 2308).
    Nxdomain,
}

impl Refusal {
    /// As settings say it.
    pub(crate) const WORDS: [(&str, Self); 2] = [("refused", Self::Refused), ("nxdomain", Self::Nxdomain)];
}

/// What becomes of questions that look like a tunnel's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tunnelling {
    /// The proxy does not look for them.
    Off,
    /// The proxy counts and reports them.
    Observe,
    /// They are refused too.
    Enforce,
}

impl Tunnelling {
    /// As settings say it.
    pub(crate) const WORDS: [(&str, Self); 3] =
        [("off", Self::Off), ("observe", Self::Observe), ("enforce", Self::Enforce)];
}

impl Dns {
    /// Selects the endpoints whose DNS answers are trusted.
    pub fn resolver_selector(&self) -> Option<LabelSelector> {
        if self.resolver_labels.is_empty() {
            return None;
        }
        let mut selector = LabelSelector::default();
        for (key, value) in &self.resolver_labels {
            selector.require(Requirement::equals(&format!("{K8S}:{key}"), value));
        }
        selector.require(Requirement::equals(&format!("{K8S}:{POD_NAMESPACE}"), &self.resolver_namespace));
        Some(selector)
    }
}

impl Default for Dns {
    fn default() -> Self {
        Self {
            resolvers: Vec::new(),
            resolver_labels: [("k8s-app".to_owned(), "kube-dns".to_owned())].into(),
            resolver_namespace: "kube-system".to_owned(),
            min_ttl_s: 1,
            max_ttl_s: 86_400,
            private_answers: PrivateAnswers::Allow,
            scope: Scope::Endpoint,
            refusal: Refusal::Refused,
            tunnelling: Tunnelling::Observe,
            tunnelling_names_per_minute: 200,
            tunnelling_except: "cluster.local".parse().into_iter().collect(),
            name_binding: Binding::Observe,
            named_ports: [80, 443, 8_080, 8_443]
                .map(|port| RangeInclusive16 { start: port, end: port })
                .into_iter()
                .collect(),
            addresses_per_name_max: 1_000,
            names_per_endpoint_max: 10_000,
            upstream_timeout_ms: 5_000,
            cache_entries: 0,
            pending_max: 16_384,
            pending_per_endpoint_max: 4_096,
            workers: 0,
        }
    }
}

const KEYS: [&str; 20] = [
    "resolvers",
    "resolverLabels",
    "resolverNamespace",
    "minTtl",
    "maxTtl",
    "privateAnswers",
    "scope",
    "refusal",
    "tunnelling",
    "tunnellingNamesPerMinute",
    "tunnellingExcept",
    "nameBinding",
    "namedPorts",
    "addressesPerNameMax",
    "namesPerEndpointMax",
    "upstreamTimeoutMs",
    "cacheEntries",
    "pendingMax",
    "pendingPerEndpointMax",
    "workers",
];

/// Reads the part of the settings that is about DNS.
pub(super) fn read(reader: &mut Reader<'_>, value: &Value<'_>) -> Option<Dns> {
    /// A week: longer TTLs are cut by resolvers too (RFC 8767 §4).
    const TTL_MAX_S: u32 = 604_800;
    /// Each waits for an answer at one of a few sockets under a number of 16 bits of its own.
    const PENDING_MAX: u32 = 32_768;
    let object = reader.object(value, &KEYS)?;
    let mut dns = Dns::default();
    if let Some(value) = object.get("resolvers") {
        let items = reader.list(&value).unwrap_or_default();
        dns.resolvers = items.iter().filter_map(|item| resolver(reader, item)).collect();
    }
    if let Some(value) = object.get("resolverLabels") {
        let labels = reader.text_map(&value);
        dns.resolver_labels = labels.into_iter().map(|(key, value)| (key.to_owned(), value.to_owned())).collect();
    }
    if let Some(namespace) = object.get("resolverNamespace").and_then(|value| reader.filled_text(&value)) {
        namespace.clone_into(&mut dns.resolver_namespace);
    }
    numbers(
        reader,
        &object,
        [
            ("minTtl", &mut dns.min_ttl_s, 0..=TTL_MAX_S),
            ("maxTtl", &mut dns.max_ttl_s, 1..=TTL_MAX_S),
            ("addressesPerNameMax", &mut dns.addresses_per_name_max, 1..=65_536),
            ("namesPerEndpointMax", &mut dns.names_per_endpoint_max, 1..=1_000_000),
            ("tunnellingNamesPerMinute", &mut dns.tunnelling_names_per_minute, 10..=1_000),
            ("upstreamTimeoutMs", &mut dns.upstream_timeout_ms, 1..=60_000),
            ("pendingMax", &mut dns.pending_max, 1..=PENDING_MAX),
            ("pendingPerEndpointMax", &mut dns.pending_per_endpoint_max, 1..=PENDING_MAX),
            ("cacheEntries", &mut dns.cache_entries, 0..=1_000_000),
            ("workers", &mut dns.workers, 0..=1_024),
        ],
    );
    if let Some(value) = object.get("tunnellingExcept") {
        let items = reader.list(&value).unwrap_or_default();
        dns.tunnelling_except = items.iter().filter_map(|item| reader.parsed(item)).collect();
    }
    if let Some(value) = object.get("namedPorts") {
        let items = reader.list(&value).unwrap_or_default();
        dns.named_ports = items.iter().filter_map(|item| ports(reader, item)).collect();
    }
    words_of_dns(reader, &object, &mut dns);
    if dns.min_ttl_s > dns.max_ttl_s {
        let place = object.get("minTtl").or_else(|| object.get("maxTtl")).unwrap_or_else(|| value.clone());
        let problem = format!("minTtl ({}) is above maxTtl ({})", dns.min_ttl_s, dns.max_ttl_s);
        reader.wrong(&place, Code::Conflict, problem);
    }
    Some(dns)
}

/// A port, or the first and the last of a range as text.
fn ports(reader: &mut Reader<'_>, value: &Value<'_>) -> Option<RangeInclusive16> {
    if matches!(value.node.kind, Kind::Text(_)) {
        return reader.parsed(value);
    }
    let port = reader.integer(value, 1..=u32::from(u16::MAX)).and_then(|port| u16::try_from(port).ok())?;
    Some(RangeInclusive16 { start: port, end: port })
}

/// The address of a resolver that an endpoint can ask.
fn resolver(reader: &mut Reader<'_>, value: &Value<'_>) -> Option<IpAddr> {
    let address: IpAddr = reader.parsed(value)?;
    let kind = match address.to_canonical() {
        address if address.is_unspecified() => "no address of a machine",
        address if address.is_multicast() => "the address of a group",
        IpAddr::V4(address) if address.is_broadcast() => "the address of everybody on a network",
        address if address.is_loopback() => "an address of the machine that asks",
        IpAddr::V4(mapped) if address.is_ipv6() => {
            reader.wrong(value, Code::BadValue, format!("`{address}` is an IPv4 address in another form")).help =
                Some(format!("write `{mapped}`"));
            return None;
        }
        _ => return Some(address),
    };
    reader.wrong(value, Code::BadValue, format!("`{address}` is {kind}, and no resolver that an endpoint asks")).help =
        Some("write the address that stands in the endpoints' `resolv.conf`".to_owned());
    None
}

/// Replaces the defaults of the words that are given.
fn words_of_dns(reader: &mut Reader<'_>, object: &Object<'_>, dns: &mut Dns) {
    const PRIVATE: [(&str, PrivateAnswers); 2] = [("allow", PrivateAnswers::Allow), ("deny", PrivateAnswers::Deny)];
    const SCOPES: [(&str, Scope); 2] = [("endpoint", Scope::Endpoint), ("node", Scope::Node)];
    word(reader, object, "privateAnswers", &mut dns.private_answers, &PRIVATE);
    word(reader, object, "scope", &mut dns.scope, &SCOPES);
    word(reader, object, "refusal", &mut dns.refusal, &Refusal::WORDS);
    word(reader, object, "nameBinding", &mut dns.name_binding, &Binding::WORDS);
    word(reader, object, "tunnelling", &mut dns.tunnelling, &Tunnelling::WORDS);
}
