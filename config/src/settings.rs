//! The agent's settings file, `namegate.yaml`. Parsing reads text alone and never looks at the machine.
//!
//! Every key has a default but `policies` and `endpoints`, which are needed without `kubernetes`. Unknown keys are refused;
//! all mistakes are reported at once.

mod metrics;
mod questions;

use std::{collections::BTreeMap, net::IpAddr, path::PathBuf};

use crate::{
    diagnostic::{Code, Diagnostic, Source, Span},
    document::{Node, read},
    label_syntax::name_problem,
    labels::{K8S, LabelSelector, POD_NAMESPACE, Requirement},
    name::Fqdn,
    reader::{Object, Reader, Value},
    rule::{Binding, Direction},
};

pub use metrics::Metrics;
pub use questions::{Refusal, Tunnelling};

/// Everything the agent can be told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// Directory of policies: `*.yaml`, `*.yml`, `*.json`.
    pub policies: Option<PathBuf>,
    /// The endpoints file, see [`crate::endpoints`].
    pub endpoints: Option<PathBuf>,
    /// Kubernetes as a source of both, beside the files or in their place.
    pub kubernetes: Option<Kubernetes>,
    /// Unix socket of the REST API.
    pub socket: PathBuf,
    /// Directory of the journal; should not outlive the boot.
    pub state: PathBuf,
    /// Directory below a bpf file system where maps and programs are pinned.
    pub pins: PathBuf,
    /// Enforced directions; at least one.
    pub directions: Vec<Direction>,
    /// Drop nothing and record what would be denied.
    pub audit: bool,
    /// Where metrics are served besides the socket.
    pub metrics: Metrics,
    /// The DNS proxy.
    pub dns: Dns,
    /// Sizes of the kernel's maps, in rows.
    pub limits: Limits,
}

/// Where the API server is, and which node this is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Kubernetes {
    /// Name of this node; `None` is what the environment says (`NODE_NAME`).
    pub node: Option<String>,
    /// A kubeconfig; `None` is the account of the pod that the agent runs in, else what `KUBECONFIG` says.
    pub kubeconfig: Option<PathBuf>,
}

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
    /// Addresses kept for one name and endpoint.
    pub addresses_per_name_max: u32,
    /// Names kept for one endpoint.
    pub names_per_endpoint_max: u32,
    /// How long an upstream may take to answer, in milliseconds.
    pub upstream_timeout_ms: u32,
    /// Answers kept to be given again; 0 keeps none.
    pub cache_entries: u32,
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

/// Rows of the kernel's maps. A full map refuses new rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Addresses of pods, nodes and learned names.
    pub addresses: u32,
    /// Compiled rules.
    pub policy_rows: u32,
    /// Prefixes.
    pub cidrs: u32,
    /// Flows remembered; the oldest gives way.
    pub flows: u32,
    /// Enforced endpoints.
    pub endpoints: u32,
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
            addresses_per_name_max: 1_000,
            names_per_endpoint_max: 10_000,
            upstream_timeout_ms: 5_000,
            cache_entries: 0,
            workers: 0,
        }
    }
}

impl Default for Limits {
    fn default() -> Self {
        Self { addresses: 262_144, policy_rows: 262_144, cidrs: 65_536, flows: 131_072, endpoints: 4_096 }
    }
}

/// Reads the settings file; `file_name` stands in the diagnostics.
pub fn parse(file_name: &str, text: &str) -> Result<Settings, Vec<Diagnostic>> {
    let source = Source::new(file_name, text);
    let node = one_document(&source)?;
    let mut reader = Reader::new(&source);
    let settings = settings(&mut reader, &Value::root(&node));
    match (settings, reader.finish()) {
        (Some(settings), found) if found.is_empty() => Ok(settings),
        (_, found) => Err(found),
    }
}

/// The only document of a file.
pub(crate) fn one_document(source: &Source) -> Result<Node, Vec<Diagnostic>> {
    let mut documents = read(source);
    if documents.len() > 1 {
        let span = documents[1].as_ref().map(Node::mark).unwrap_or_default();
        return Err(vec![source.error(
            span,
            Code::Conflict,
            "",
            "the file must hold one document, here starts a second",
        )]);
    }
    match documents.pop() {
        Some(document) => document.map_err(|error| vec![error]),
        None => Err(vec![source.error(Span::default(), Code::MissingField, "", "the file is empty")]),
    }
}

const KEYS: [&str; 11] = [
    "policies",
    "endpoints",
    "kubernetes",
    "socket",
    "state",
    "pins",
    "directions",
    "audit",
    "metrics",
    "dns",
    "limits",
];

fn settings(reader: &mut Reader<'_>, root: &Value<'_>) -> Option<Settings> {
    let object = reader.object(root, &KEYS)?;
    let in_kubernetes = object.get("kubernetes");
    let kubernetes = in_kubernetes.as_ref().and_then(|value| kubernetes(reader, value));
    let mut source = |key| {
        let value = if in_kubernetes.is_some() { object.get(key) } else { reader.required(&object, key) };
        value.and_then(|value| path(reader, &value))
    };
    let (policies, endpoints) = (source("policies"), source("endpoints"));
    let mut path_or = |key, default: &str| match object.get(key) {
        Some(value) => path(reader, &value),
        None => Some(default.into()),
    };
    let socket = path_or("socket", "/run/namegate/namegate.sock");
    let state = path_or("state", "/run/namegate");
    let pins = path_or("pins", "/sys/fs/bpf/namegate");
    let directions = match object.get("directions") {
        Some(value) => directions(reader, &value),
        None => Some(vec![Direction::Egress, Direction::Ingress]),
    };
    let audit = object.get("audit").map_or(Some(false), |value| reader.boolean(&value));
    let metrics = object.get("metrics").map_or(Some(Metrics::default()), |value| metrics::read(reader, &value));
    let dns = object.get("dns").map_or_else(|| Some(Dns::default()), |value| dns(reader, &value));
    let limits = object.get("limits").map_or_else(|| Some(Limits::default()), |value| limits(reader, &value));
    Some(Settings {
        policies,
        endpoints,
        kubernetes,
        socket: socket?,
        state: state?,
        pins: pins?,
        directions: directions?,
        audit: audit?,
        metrics: metrics?,
        dns: dns?,
        limits: limits?,
    })
}

fn kubernetes(reader: &mut Reader<'_>, value: &Value<'_>) -> Option<Kubernetes> {
    let object = reader.object(value, &["node", "kubeconfig"])?;
    let node = object.get("node").and_then(|value| {
        let name = reader.filled_text(&value)?;
        if let Some(problem) = name_problem(name) {
            reader.wrong(&value.at_value(), Code::BadValue, problem);
        }
        Some(name.to_owned())
    });
    Some(Kubernetes { node, kubeconfig: object.get("kubeconfig").and_then(|value| path(reader, &value)) })
}

/// A path; a relative one is the agent's to resolve.
fn path(reader: &mut Reader<'_>, value: &Value<'_>) -> Option<PathBuf> {
    reader.filled_text(value).map(PathBuf::from)
}

fn directions(reader: &mut Reader<'_>, value: &Value<'_>) -> Option<Vec<Direction>> {
    const WORDS: [(&str, Direction); 2] = [("egress", Direction::Egress), ("ingress", Direction::Ingress)];
    let items = reader.list(value)?;
    let mut directions = Vec::new();
    for item in &items {
        let direction = reader.choice(item, &WORDS)?;
        if directions.contains(&direction) {
            reader.wrong(item, Code::Conflict, "the direction stands twice");
        }
        directions.push(direction);
    }
    if directions.is_empty() {
        let found = reader.wrong(value, Code::BadValue, "at least one direction must be enforced");
        found.help = Some("to enforce nothing, set `audit: true`".to_owned());
        return None;
    }
    Some(directions)
}

const DNS_KEYS: [&str; 17] = [
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
    "addressesPerNameMax",
    "namesPerEndpointMax",
    "upstreamTimeoutMs",
    "cacheEntries",
    "workers",
];

fn dns(reader: &mut Reader<'_>, value: &Value<'_>) -> Option<Dns> {
    /// A week: longer TTLs are cut by resolvers too (RFC 8767 §4).
    const TTL_MAX_S: u32 = 604_800;
    let object = reader.object(value, &DNS_KEYS)?;
    let mut dns = Dns::default();
    if let Some(value) = object.get("resolvers") {
        let items = reader.list(&value).unwrap_or_default();
        dns.resolvers = items.iter().filter_map(|item| reader.parsed(item)).collect();
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
            ("cacheEntries", &mut dns.cache_entries, 0..=1_000_000),
            ("workers", &mut dns.workers, 0..=1_024),
        ],
    );
    if let Some(value) = object.get("tunnellingExcept") {
        let items = reader.list(&value).unwrap_or_default();
        dns.tunnelling_except = items.iter().filter_map(|item| reader.parsed(item)).collect();
    }
    words_of_dns(reader, &object, &mut dns);
    if dns.min_ttl_s > dns.max_ttl_s {
        let place = object.get("minTtl").or_else(|| object.get("maxTtl")).unwrap_or_else(|| value.clone());
        let problem = format!("minTtl ({}) is above maxTtl ({})", dns.min_ttl_s, dns.max_ttl_s);
        reader.wrong(&place, Code::Conflict, problem);
    }
    Some(dns)
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

fn word<T: Copy>(reader: &mut Reader<'_>, object: &Object<'_>, key: &str, chosen: &mut T, words: &[(&str, T)]) {
    if let Some(given) = object.get(key).and_then(|value| reader.choice(&value, words)) {
        *chosen = given;
    }
}

fn limits(reader: &mut Reader<'_>, value: &Value<'_>) -> Option<Limits> {
    const ROWS_MAX: u32 = 1 << 24;
    let object = reader.object(value, &["addresses", "policyRows", "cidrs", "flows", "endpoints"])?;
    let mut limits = Limits::default();
    numbers(
        reader,
        &object,
        [
            ("addresses", &mut limits.addresses, 1..=ROWS_MAX),
            ("policyRows", &mut limits.policy_rows, 1..=ROWS_MAX),
            ("cidrs", &mut limits.cidrs, 1..=ROWS_MAX),
            ("flows", &mut limits.flows, 1..=ROWS_MAX),
            ("endpoints", &mut limits.endpoints, 1..=65_536),
        ],
    );
    Some(limits)
}

/// Replaces the defaults of the numbers that are given.
fn numbers<const N: usize>(
    reader: &mut Reader<'_>,
    object: &Object<'_>,
    fields: [(&str, &mut u32, std::ops::RangeInclusive<u32>); N],
) {
    for (key, number, bounds) in fields {
        if let Some(given) = object.get(key).and_then(|value| reader.integer(&value, bounds)) {
            *number = given;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mistakes(text: &str) -> Vec<String> {
        let found = parse("namegate.yaml", text).unwrap_err();
        found.iter().map(|found| format!("{}:{} {found}", found.line, found.column)).collect()
    }

    #[test]
    fn two_keys_are_enough() {
        let settings = parse("namegate.yaml", "policies: p\nendpoints: e.yaml\n").unwrap();
        assert_eq!(settings.socket, PathBuf::from("/run/namegate/namegate.sock"));
        assert_eq!(settings.directions, [Direction::Egress, Direction::Ingress]);
        assert_eq!(settings.dns, Dns::default());
        assert_eq!(
            settings.dns.resolver_selector().unwrap().to_string(),
            "{k8s:io.kubernetes.pod.namespace=kube-system, k8s:k8s-app=kube-dns}"
        );
    }

    #[test]
    fn kubernetes_takes_the_place_of_files() {
        let settings = parse("namegate.yaml", "kubernetes: {}\n").unwrap();
        assert_eq!((settings.policies, settings.endpoints), (None, None));
        assert_eq!(settings.kubernetes, Some(Kubernetes::default()));
        let settings = parse("namegate.yaml", "kubernetes: {}\npolicies: p\n").unwrap();
        assert_eq!(settings.policies, Some("p".into()));
        assert_eq!(
            mistakes("kubernetes: {node: A_B, kubeconfig: ''}\npolicies: ''\n"),
            [
                "1:20 `kubernetes.node`: `A_B` is not a name: lower case letters, digits, `-` and `.`, at most 253",
                "1:37 `kubernetes.kubeconfig`: must not be empty",
                "2:11 `policies`: must not be empty",
            ]
        );
    }

    const EVERY_KEY: &str = "
policies: /p
endpoints: /e.yaml
kubernetes: {node: node1, kubeconfig: /k}
socket: /s
state: /st
pins: /pi
directions: [egress]
audit: true
metrics: {listen: '[::1]:9960'}
dns:
  resolvers: [192.0.2.53, '2001:db8::53']
  resolverLabels: {}
  resolverNamespace: dns
  minTtl: 5
  maxTtl: 60
  privateAnswers: deny
  scope: node
  refusal: nxdomain
  tunnelling: enforce
  tunnellingNamesPerMinute: 40
  tunnellingExcept: [internal.example]
  nameBinding: enforce
  addressesPerNameMax: 10
  namesPerEndpointMax: 20
  upstreamTimeoutMs: 30
  cacheEntries: 40
  workers: 2
limits: {addresses: 1, policyRows: 2, cidrs: 3, flows: 4, endpoints: 5}
";

    #[test]
    fn every_key_is_read() {
        let settings = parse("namegate.yaml", EVERY_KEY).unwrap();
        let dns = Dns {
            resolvers: vec!["192.0.2.53".parse().unwrap(), "2001:db8::53".parse().unwrap()],
            resolver_labels: BTreeMap::new(),
            resolver_namespace: "dns".into(),
            min_ttl_s: 5,
            max_ttl_s: 60,
            private_answers: PrivateAnswers::Deny,
            scope: Scope::Node,
            refusal: Refusal::Nxdomain,
            tunnelling: Tunnelling::Enforce,
            tunnelling_names_per_minute: 40,
            tunnelling_except: vec!["internal.example".parse().unwrap()],
            name_binding: Binding::Enforce,
            addresses_per_name_max: 10,
            names_per_endpoint_max: 20,
            upstream_timeout_ms: 30,
            cache_entries: 40,
            workers: 2,
        };
        assert_eq!(dns.resolver_selector(), None);
        let want = Settings {
            policies: Some("/p".into()),
            endpoints: Some("/e.yaml".into()),
            kubernetes: Some(Kubernetes { node: Some("node1".into()), kubeconfig: Some("/k".into()) }),
            socket: "/s".into(),
            state: "/st".into(),
            pins: "/pi".into(),
            directions: vec![Direction::Egress],
            audit: true,
            metrics: Metrics { listen: Some("[::1]:9960".parse().unwrap()) },
            dns,
            limits: Limits { addresses: 1, policy_rows: 2, cidrs: 3, flows: 4, endpoints: 5 },
        };
        assert_eq!(settings, want);
    }

    #[test]
    fn all_mistakes_are_reported_at_once() {
        let text = "
policys: /p
endpoints: ''
directions: []
audit: yes
dns:
  resolvers: [dns.example]
  minTtl: 10
  maxTtl: 5
  scope: Node
  refusal: servfail
limits: {flows: -1}
";
        assert_eq!(
            mistakes(text),
            [
                "2:1 `policys`: there is no such field",
                "2:1 `policies`: must be given",
                "3:12 `endpoints`: must not be empty",
                "4:1 `directions`: at least one direction must be enforced",
                "5:8 `audit`: `true` or `false` is wanted here, this is text",
                "7:15 `dns.resolvers[0]`: `dns.example`: invalid IP address syntax",
                "10:10 `dns.scope`: `Node` is none of the words this field takes",
                "11:12 `dns.refusal`: `servfail` is none of the words this field takes",
                "8:3 `dns.minTtl`: minTtl (10) is above maxTtl (5)",
                "12:17 `limits.flows`: -1 is not within 1 and 16777216",
            ]
        );
    }

    #[test]
    fn one_document_is_wanted() {
        assert_eq!(mistakes(""), ["1:1 the file is empty"]);
        assert_eq!(mistakes("a: 1\n---\nb: 2\n"), ["3:1 the file must hold one document, here starts a second"]);
        assert_eq!(mistakes("[]"), ["1:1 a mapping is wanted here, this is a list"]);
    }
}
