//! The handbook is true: every example and every YAML block of a page is read, and the table of settings is the code's.
#![expect(clippy::unwrap_used, reason = "a test ends at the first surprise")]

use std::path::{Path, PathBuf};

use namegate_config::endpoints::{self, Attachment};
use namegate_config::policy::{self, Catalog};
use namegate_config::rule::Binding;
use namegate_config::settings::{
    self, Dns, Kubernetes, Limits, Metrics, PrivateAnswers, Refusal, Scope, Settings, Tunnelling,
};

/// Pages with YAML blocks or links.
const PAGES: [&str; 15] = [
    "README.md",
    "CONTRIBUTING.md",
    "SECURITY.md",
    "ARCHITECTURE.md",
    "CHANGELOG.md",
    "docs/api.md",
    "docs/benchmarks.md",
    "docs/compatibility.md",
    "docs/kubernetes.md",
    "docs/layer7.md",
    "docs/metrics.md",
    "docs/operations.md",
    "docs/policy.md",
    "docs/settings.md",
    "docs/threat-model.md",
];

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

fn page(name: &str) -> String {
    std::fs::read_to_string(root().join(name)).unwrap_or_else(|error| panic!("{name}: {error}"))
}

/// Reads a policy file as the agent does; nothing may be wrong or doubtful.
fn read_policy(name: &str, text: &str) -> usize {
    let parsed = policy::parse(name, text);
    let translated = policy::translate(&parsed.documents, &Catalog::default());
    let found: Vec<_> = parsed.diagnostics.iter().chain(&translated.diagnostics).map(ToString::to_string).collect();
    assert!(found.is_empty(), "{name}: {found:?}");
    assert!(!translated.rules.is_empty(), "{name} holds no rule");
    translated.rules.len()
}

fn read_settings(name: &str, text: &str) -> Settings {
    settings::parse(name, text).unwrap_or_else(|mistakes| panic!("{name}: {mistakes:#?}"))
}

fn read_endpoints(name: &str, text: &str) -> endpoints::EndpointsFile {
    endpoints::parse(name, text).unwrap_or_else(|mistakes| panic!("{name}: {mistakes:#?}"))
}

#[test]
fn the_examples_are_read_and_belong_together() {
    let settings = read_settings("examples/namegate.yaml", &page("examples/namegate.yaml"));
    let folder = root().join("examples").join(settings.policies.unwrap());
    let endpoints = read_endpoints("examples/endpoints.yaml", &page("examples/endpoints.yaml"));
    assert_eq!(settings.endpoints.as_deref(), Some(Path::new("endpoints.yaml")));
    let guarded: Vec<_> = endpoints.endpoints.iter().filter_map(|endpoint| endpoint.attachment.clone()).collect();
    let want = [Attachment::Interface("veth-web".into()), Attachment::Netns("/run/netns/worker".into())];
    assert_eq!(guarded, want, "one of each kind");

    let mut rules = 0;
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        rules += read_policy(&path.display().to_string(), &std::fs::read_to_string(&path).unwrap());
    }
    assert!(rules >= 7, "{rules} rules in all");
}

/// The blocks of a page that are fenced as YAML: name of the file in the first line, and the text.
fn yaml_blocks(page: &str) -> impl Iterator<Item = (&str, &str)> {
    let blocks = page.split("\n```yaml\n").skip(1).map(|rest| rest.split_once("\n```").unwrap().0);
    blocks.map(|block| {
        let first = block.lines().next().unwrap();
        (first.strip_prefix("# ").unwrap_or_else(|| panic!("`{first}` does not name a file")), block)
    })
}

#[test]
fn every_yaml_block_of_a_page_is_read() {
    let mut count = 0;
    for name in PAGES {
        for (file, text) in yaml_blocks(&page(name)) {
            let label = format!("{name}: {file}");
            match file {
                "namegate.yaml" => drop(read_settings(&label, text)),
                "endpoints.yaml" => drop(read_endpoints(&label, text)),
                policy if policy.starts_with("policies/") => drop(read_policy(&label, text)),
                other => panic!("{name}: nobody reads `{other}`"),
            }
            count += 1;
        }
    }
    assert!(count >= 5, "{count} blocks");
}

#[test]
fn every_link_within_the_handbook_leads_somewhere() {
    for name in PAGES {
        let folder = root().join(name).parent().unwrap().to_owned();
        let text = page(name);
        let targets = text.split("](").skip(1).filter_map(|rest| rest.split_once(')')).map(|(target, _)| target);
        for target in targets.filter(|target| !target.starts_with("http")) {
            let (file, heading) = target.split_once('#').unwrap_or((target, ""));
            let path = if file.is_empty() { root().join(name) } else { folder.join(file) };
            assert!(path.exists(), "{name} leads to {target}");
            if !heading.is_empty() {
                let text = std::fs::read_to_string(path).unwrap();
                let mut headings = text.lines().filter(|line| line.starts_with('#')).map(anchor);
                assert!(headings.any(|anchor| anchor == heading), "{name} leads to {target}");
            }
        }
    }
}

/// The anchor that code hosts give a heading.
fn anchor(heading: &str) -> String {
    let words = heading.trim_start_matches('#').trim().to_lowercase().replace(' ', "-");
    words.chars().filter(|c| c.is_alphanumeric() || "-_".contains(*c)).collect()
}

/// First column and second column of the table under a heading, without code marks.
fn table(page: &str, heading: &str) -> Vec<(String, String)> {
    let (_, rest) = page.split_once(&format!("\n## {heading}\n")).unwrap();
    let section = rest.split("\n## ").next().unwrap();
    let rows = section.lines().filter(|line| line.starts_with("| `")).map(|line| {
        let cells: Vec<_> = line.trim_matches('|').split(" | ").map(|cell| cell.trim().replace('`', "")).collect();
        (cells[0].clone(), cells[1].clone())
    });
    rows.collect()
}

/// Every key of the settings with its default. A new field does not compile until it is listed here, and on the page.
fn defaults(settings: &Settings) -> Vec<(&'static str, String)> {
    let Settings {
        policies: _,
        endpoints: _,
        kubernetes,
        socket,
        state,
        pins,
        directions,
        audit,
        metrics: Metrics { listen },
        dns,
        limits,
    } = settings;
    assert_eq!(*kubernetes, None);
    let Kubernetes { node: None, kubeconfig: None } = Kubernetes::default() else {
        panic!("defaults of the environment")
    };
    let mut rows = vec![
        ("policies", "required".to_owned()),
        ("endpoints", "required".to_owned()),
        ("kubernetes.node", "environment".to_owned()),
        ("kubernetes.kubeconfig", "environment".to_owned()),
        ("socket", socket.display().to_string()),
        ("state", state.display().to_string()),
        ("pins", pins.display().to_string()),
        ("directions", format!("{directions:?}").to_lowercase()),
        ("audit", audit.to_string()),
        ("metrics.listen", listen.map_or_else(|| "off".to_owned(), |address| address.to_string())),
    ];
    rows.extend(defaults_of_dns(dns));
    rows.extend(defaults_of_limits(limits));
    rows
}

fn defaults_of_limits(limits: &Limits) -> Vec<(&'static str, String)> {
    let Limits {
        addresses,
        policy_rows,
        cidrs,
        flows,
        flows_per_endpoint,
        endpoints,
        l7_connections,
        l7_connections_per_endpoint,
        addresses_reserved: None,
        addresses_per_endpoint: None,
        learned_bytes_per_endpoint,
        cidrs_per_namespace: None,
        policy_rows_per_namespace: None,
    } = limits
    else {
        panic!("shares that follow from the size of the map")
    };
    vec![
        ("limits.addresses", addresses.to_string()),
        ("limits.policyRows", policy_rows.to_string()),
        ("limits.cidrs", cidrs.to_string()),
        ("limits.flows", flows.to_string()),
        ("limits.flowsPerEndpoint", flows_per_endpoint.to_string()),
        ("limits.endpoints", endpoints.to_string()),
        ("limits.addressesReserved", "quarter".to_owned()),
        ("limits.addressesPerEndpoint", "eighth".to_owned()),
        ("limits.learnedBytesPerEndpoint", learned_bytes_per_endpoint.to_string()),
        ("limits.cidrsPerNamespace", "quarter".to_owned()),
        ("limits.policyRowsPerNamespace", "quarter".to_owned()),
        ("limits.l7Connections", l7_connections.to_string()),
        ("limits.l7ConnectionsPerEndpoint", l7_connections_per_endpoint.to_string()),
    ]
}

fn defaults_of_dns(dns: &Dns) -> Vec<(&'static str, String)> {
    let Dns {
        resolvers,
        resolver_labels,
        resolver_namespace,
        min_ttl_s,
        max_ttl_s,
        private_answers,
        scope,
        refusal,
        tunnelling,
        tunnelling_names_per_minute,
        tunnelling_except,
        name_binding,
        named_ports,
        addresses_per_name_max,
        names_per_endpoint_max,
        upstream_timeout_ms,
        cache_entries,
        pending_max,
        pending_per_endpoint_max,
        workers,
    } = dns;
    let labels: Vec<_> = resolver_labels.iter().map(|(key, value)| format!("{key}: {value}")).collect();
    let private_answers = if *private_answers == PrivateAnswers::Allow { "allow" } else { "deny" };
    let scope = if *scope == Scope::Endpoint { "endpoint" } else { "node" };
    let refusal = match refusal {
        Refusal::Refused => "refused",
        Refusal::Nxdomain => "nxdomain",
    };
    let name_binding = Binding::WORDS.iter().find(|(_, binding)| binding == name_binding).unwrap().0;
    let tunnelling = match tunnelling {
        Tunnelling::Off => "off",
        Tunnelling::Observe => "observe",
        Tunnelling::Enforce => "enforce",
    };
    let except: Vec<_> = tunnelling_except.iter().map(ToString::to_string).collect();
    vec![
        ("dns.resolvers", format!("{resolvers:?}")),
        ("dns.resolverLabels", format!("{{{}}}", labels.join(", "))),
        ("dns.resolverNamespace", resolver_namespace.clone()),
        ("dns.minTtl", min_ttl_s.to_string()),
        ("dns.maxTtl", max_ttl_s.to_string()),
        ("dns.privateAnswers", private_answers.to_owned()),
        ("dns.scope", scope.to_owned()),
        ("dns.refusal", refusal.to_owned()),
        ("dns.tunnelling", tunnelling.to_owned()),
        ("dns.tunnellingNamesPerMinute", tunnelling_names_per_minute.to_string()),
        ("dns.tunnellingExcept", format!("[{}]", except.join(", "))),
        ("dns.nameBinding", name_binding.to_owned()),
        ("dns.namedPorts", format!("[{}]", named_ports.to_string().replace(',', ", "))),
        ("dns.addressesPerNameMax", addresses_per_name_max.to_string()),
        ("dns.namesPerEndpointMax", names_per_endpoint_max.to_string()),
        ("dns.upstreamTimeoutMs", upstream_timeout_ms.to_string()),
        ("dns.cacheEntries", cache_entries.to_string()),
        ("dns.pendingMax", pending_max.to_string()),
        ("dns.pendingPerEndpointMax", pending_per_endpoint_max.to_string()),
        ("dns.workers", workers.to_string()),
    ]
}

#[test]
fn the_page_of_settings_has_every_key_with_its_default() {
    let settings = read_settings("two keys", "policies: p\nendpoints: e.yaml\n");
    let want: Vec<_> = defaults(&settings).into_iter().map(|(key, value)| (key.to_owned(), value)).collect();
    assert_eq!(table(&page("docs/settings.md"), "namegate.yaml"), want);
}

#[test]
fn the_defaults_of_the_page_are_what_the_file_takes() {
    for (key, default) in table(&page("docs/settings.md"), "namegate.yaml") {
        let line = match key.split_once('.') {
            _ if ["required", "environment", "quarter", "eighth"].contains(&default.as_str()) => continue,
            Some((group, key)) => format!("{group}: {{{key}: {default}}}\n"),
            None => format!("{key}: {default}\n"),
        };
        let bare = "policies: p\nendpoints: e.yaml\n";
        assert_eq!(read_settings(&key, &format!("{bare}{line}")), read_settings("two keys", bare), "{key}");
    }
}

#[test]
fn the_page_of_settings_has_every_key_of_the_endpoints_file() {
    let every_key = "
host: {addresses: [192.0.2.1], labels: {a: b}}
nodes: [{name: n, addresses: [192.0.2.2], labels: {a: b}}]
namespaces: [{name: n, labels: {a: b}}]
endpoints:
- {name: a, namespace: n, labels: {a: b}, serviceAccount: s, interface: i, addresses: [192.0.2.3],
   ports: [{name: p, port: 1, protocol: UDP}]}
- {name: b, namespace: n, netns: /n, addresses: [192.0.2.4]}
services:
- {name: s, namespace: n, labels: {a: b}, selector: {a: b}, addresses: [192.0.2.5],
   ports: [{name: p, port: 1, protocol: UDP, nodePort: 30001, targets: [{address: 192.0.2.3, port: 2}]}]}
";
    read_endpoints("every key", every_key);
    let rows = table(&page("docs/settings.md"), "endpoints.yaml");
    let last_words: Vec<_> = rows.iter().map(|(key, _)| key.rsplit(['.', ']']).next().unwrap()).collect();
    let keys = every_key.split(|c: char| !c.is_alphabetic() && c != ':').filter_map(|word| word.strip_suffix(':'));
    for key in keys
        .filter(|key| !["a", "host", "nodes", "namespaces", "endpoints", "services", "ports", "targets"].contains(key))
    {
        assert!(last_words.contains(&key), "`{key}` is not on the page");
    }
    assert_eq!(rows.len(), 28);
}
