//! The agent's settings file, `namegate.yaml`. Parsing reads text alone and never looks at the machine.
//!
//! Every key has a default but `policies` and `endpoints`, which are needed without `kubernetes`. Unknown keys are refused;
//! all mistakes are reported at once.

mod dns;
mod metrics;

use std::path::PathBuf;

use crate::{
    diagnostic::{Code, Diagnostic, Source, Span},
    document::{Node, read},
    label_syntax::name_problem,
    reader::{Object, Reader, Value},
    rule::Direction,
};

pub use dns::{Dns, PrivateAnswers, Refusal, Scope, Tunnelling};
pub use metrics::Metrics;

/// All settings of the agent.
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

/// Rows of the kernel's maps. A full map refuses new rows.
///
/// The shares and the reserve are `None` where they follow from the size of the map.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Addresses of pods, nodes and learned names.
    pub addresses: u32,
    /// Compiled rules.
    pub policy_rows: u32,
    /// Prefixes.
    pub cidrs: u32,
    /// Flows remembered.
    pub flows: u32,
    /// Of them, those of one endpoint at most; fewer where all endpoints could not have as many.
    pub flows_per_endpoint: u32,
    /// Enforced endpoints.
    pub endpoints: u32,
    /// Connections of the layer 7 proxy at a time: no rows.
    pub l7_connections: u32,
    /// Of them, those of one endpoint.
    pub l7_connections_per_endpoint: u32,
    /// Rows of `addresses` that learned addresses leave to endpoints, nodes and services.
    pub addresses_reserved: Option<u32>,
    /// Learned addresses that one endpoint may have.
    pub addresses_per_endpoint: Option<u32>,
    /// Bytes that the names of one endpoint, and their addresses, may take.
    pub learned_bytes_per_endpoint: u32,
    /// Prefixes that the policies of one namespace may have.
    pub cidrs_per_namespace: Option<u32>,
    /// Rows for compiled rules that the endpoints of one namespace may have.
    pub policy_rows_per_namespace: Option<u32>,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            addresses: 262_144,
            policy_rows: 262_144,
            cidrs: 65_536,
            flows: 1_048_576,
            flows_per_endpoint: 65_536,
            endpoints: 4_096,
            l7_connections: 16_384,
            l7_connections_per_endpoint: 4_096,
            addresses_reserved: None,
            addresses_per_endpoint: None,
            learned_bytes_per_endpoint: 16 << 20,
            cidrs_per_namespace: None,
            policy_rows_per_namespace: None,
        }
    }
}

impl Limits {
    /// Rows that learned addresses leave free: a quarter where nothing else is set.
    pub fn reserved_addresses(&self) -> u32 {
        self.addresses_reserved.unwrap_or(self.addresses / 4)
    }

    /// Learned addresses of one endpoint: an eighth of what is not reserved where nothing else is set.
    pub fn endpoint_addresses(&self) -> u32 {
        let learned = self.addresses.saturating_sub(self.reserved_addresses());
        self.addresses_per_endpoint.unwrap_or_else(|| share(learned, 8))
    }

    /// Prefixes of one namespace: a quarter where nothing else is set.
    pub fn namespace_cidrs(&self) -> u32 {
        self.cidrs_per_namespace.unwrap_or_else(|| share(self.cidrs, 4))
    }

    /// Policy rows of one namespace: a quarter where nothing else is set.
    pub fn namespace_policy_rows(&self) -> u32 {
        self.policy_rows_per_namespace.unwrap_or_else(|| share(self.policy_rows, 4))
    }
}

/// A part of a map, not less than what an ordinary tenant needs as far as the map has it.
fn share(rows: u32, part: u32) -> u32 {
    const SHARE_MIN: u32 = 1_024;
    (rows / part).max(SHARE_MIN.min(rows))
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
    let dns = object.get("dns").map_or_else(|| Some(Dns::default()), |value| dns::read(reader, &value));
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

fn word<T: Copy>(reader: &mut Reader<'_>, object: &Object<'_>, key: &str, chosen: &mut T, words: &[(&str, T)]) {
    if let Some(given) = object.get(key).and_then(|value| reader.choice(&value, words)) {
        *chosen = given;
    }
}

fn limits(reader: &mut Reader<'_>, value: &Value<'_>) -> Option<Limits> {
    const ROWS_MAX: u32 = 1 << 24;
    const CONNECTIONS_MAX: u32 = 1 << 20;
    const SHARES: [&str; 4] =
        ["addressesReserved", "addressesPerEndpoint", "cidrsPerNamespace", "policyRowsPerNamespace"];
    /// A name with the default of addresses finds room.
    const BYTES_MIN: u32 = 1 << 20;
    const BYTES_MAX: u32 = 1 << 30;
    const KEYS: [&str; 9] = [
        "addresses",
        "policyRows",
        "cidrs",
        "flows",
        "flowsPerEndpoint",
        "endpoints",
        "l7Connections",
        "l7ConnectionsPerEndpoint",
        "learnedBytesPerEndpoint",
    ];
    let object = reader.object(value, &[&KEYS[..], &SHARES].concat())?;
    let mut limits = Limits::default();
    numbers(
        reader,
        &object,
        [
            ("addresses", &mut limits.addresses, 1..=ROWS_MAX),
            ("policyRows", &mut limits.policy_rows, 1..=ROWS_MAX),
            ("cidrs", &mut limits.cidrs, 1..=ROWS_MAX),
            ("flows", &mut limits.flows, 1..=ROWS_MAX),
            ("flowsPerEndpoint", &mut limits.flows_per_endpoint, 1..=ROWS_MAX),
            ("endpoints", &mut limits.endpoints, 1..=65_536),
            ("l7Connections", &mut limits.l7_connections, 1..=CONNECTIONS_MAX),
            ("l7ConnectionsPerEndpoint", &mut limits.l7_connections_per_endpoint, 1..=CONNECTIONS_MAX),
            ("learnedBytesPerEndpoint", &mut limits.learned_bytes_per_endpoint, BYTES_MIN..=BYTES_MAX),
        ],
    );
    let mut shares = SHARES.map(|key| {
        let least = u32::from(key != "addressesReserved");
        object.get(key).and_then(|value| reader.integer(&value, least..=ROWS_MAX))
    });
    limits.addresses_reserved = shares[0].take();
    limits.addresses_per_endpoint = shares[1].take();
    limits.cidrs_per_namespace = shares[2].take();
    limits.policy_rows_per_namespace = shares[3].take();
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
    use std::collections::BTreeMap;

    use super::*;
    use crate::rule::Binding;

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
  namedPorts: [443, 8000-8999]
  addressesPerNameMax: 10
  namesPerEndpointMax: 20
  upstreamTimeoutMs: 30
  cacheEntries: 40
  pendingMax: 60
  pendingPerEndpointMax: 50
  workers: 2
limits:
  addresses: 1
  policyRows: 2
  cidrs: 3
  flows: 4
  flowsPerEndpoint: 8
  endpoints: 5
  l7Connections: 6
  l7ConnectionsPerEndpoint: 7
  addressesReserved: 8
  addressesPerEndpoint: 9
  learnedBytesPerEndpoint: 2097152
  cidrsPerNamespace: 10
  policyRowsPerNamespace: 11
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
            named_ports: "443,8000-8999".parse().unwrap(),
            addresses_per_name_max: 10,
            names_per_endpoint_max: 20,
            upstream_timeout_ms: 30,
            cache_entries: 40,
            pending_max: 60,
            pending_per_endpoint_max: 50,
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
            limits: Limits {
                addresses: 1,
                policy_rows: 2,
                cidrs: 3,
                flows: 4,
                flows_per_endpoint: 8,
                endpoints: 5,
                l7_connections: 6,
                l7_connections_per_endpoint: 7,
                addresses_reserved: Some(8),
                addresses_per_endpoint: Some(9),
                learned_bytes_per_endpoint: 2 << 20,
                cidrs_per_namespace: Some(10),
                policy_rows_per_namespace: Some(11),
            },
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
    fn resolvers_are_addresses_that_an_endpoint_can_ask() {
        for (address, want) in [
            ("0.0.0.0", "is no address of a machine, and no resolver that an endpoint asks"),
            ("'::'", "is no address of a machine"),
            ("127.0.0.53", "is an address of the machine that asks"),
            ("'::1'", "is an address of the machine that asks"),
            ("224.0.0.251", "is the address of a group"),
            ("'ff02::fb'", "is the address of a group"),
            ("255.255.255.255", "is the address of everybody on a network"),
            ("'::ffff:192.0.2.53'", "is an IPv4 address in another form"),
        ] {
            let found = mistakes(&format!("policies: p\nendpoints: e\ndns: {{resolvers: [{address}]}}\n"));
            assert!(found.len() == 1 && found[0].contains(want), "{address}: {found:?}");
        }
        let link_local = parse("s.yaml", "policies: p\nendpoints: e\ndns: {resolvers: [169.254.20.10]}\n");
        assert_eq!(link_local.unwrap().dns.resolvers.len(), 1, "a resolver that each node has for itself");
    }

    #[test]
    fn one_document_is_wanted() {
        assert_eq!(mistakes(""), ["1:1 the file is empty"]);
        assert_eq!(mistakes("a: 1\n---\nb: 2\n"), ["3:1 the file must hold one document, here starts a second"]);
        assert_eq!(mistakes("[]"), ["1:1 a mapping is wanted here, this is a list"]);
    }
}
