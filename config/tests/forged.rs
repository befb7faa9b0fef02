//! Labels that pods, namespaces, nodes and services write under the keys of the system: they stand for nothing derived.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use namegate_config::cases::{Case, Reference, World, run};

const WORLD: &str = r"
name: forged
nodes: [{name: n1, ips: [192.168.20.11], labels: {io.kubernetes.pod.namespace: prod, app: db}}]
namespaces:
- {name: prod, labels: {team: core}}
- name: evil
  labels:
    kubernetes.io/metadata.name: prod
    io.kubernetes.pod.namespace: prod
    io.cilium.k8s.namespace.labels.team: core
    io.cilium.k8s.policy.serviceaccount: admin
pods:
- {name: db, namespace: prod, labels: {app: db}, node: n1, ips: [10.20.0.2]}
- {name: web, namespace: prod, labels: {app: web}, serviceAccount: admin, node: n1, ips: [10.20.0.3]}
- {name: plain, namespace: evil, labels: {app: web}, node: n1, ips: [10.20.0.4]}
- {name: ns, namespace: evil, labels: {app: web, io.kubernetes.pod.namespace: prod}, node: n1, ips: [10.20.0.5]}
- {name: team, namespace: evil, labels: {app: web, io.cilium.k8s.namespace.labels.team: core}, node: n1, ips: [10.20.0.6]}
- {name: account, namespace: evil, labels: {app: web, io.cilium.k8s.policy.serviceaccount: admin}, node: n1, ips: [10.20.0.7]}
- name: all
  namespace: evil
  labels:
    app: web
    world: ''
    io.kubernetes.pod.namespace: prod
    io.cilium.k8s.namespace.labels.team: core
    io.cilium.k8s.namespace.labels.kubernetes.io/metadata.name: prod
    io.cilium.k8s.policy.serviceaccount: admin
    io.cilium.k8s.policy.cluster: other
  node: n1
  ips: [10.20.0.8]
";

/// Pods of `evil`, each with other labels.
const FORGERS: [&str; 5] = ["plain", "ns", "team", "account", "all"];

/// What is wrong, for flows to `prod/db` from everybody in `evil` but those named, under a policy of `prod`.
fn wrong(policy: &str, allowed: &[&str]) -> Vec<String> {
    let world = World::parse("world.yaml", WORLD).unwrap();
    let flow = |name: &&str| {
        let verdict = if allowed.contains(name) { "allow" } else { "deny" };
        format!("  - {{from: evil/{name}, to: prod/db, port: 5432, verdict: {verdict}}}\n")
    };
    let flows: String = FORGERS.iter().map(flow).collect::<Vec<_>>().concat();
    let text = format!("name: c\nworld: forged\npolicies:\n- {policy}\nexpect:\n  flows:\n{flows}");
    let case = Case::parse("case.yaml", &text).unwrap_or_else(|found| panic!("{text}: {found:?}"));
    let errors: Vec<_> = case.steps.iter().flat_map(|step| &step.diagnostics).filter(|one| one.is_error()).collect();
    assert!(errors.is_empty(), "{policy}: {errors:?}");
    let report = run(&case, &world, &mut Reference::default());
    assert_eq!(report.checked, FORGERS.len());
    report.failures.iter().map(|failure| format!("{policy}: {}", failure.check)).collect()
}

fn network_policy(namespace: &str, spec: &str) -> String {
    format!(
        "{{apiVersion: networking.k8s.io/v1, kind: NetworkPolicy, metadata: {{name: p, namespace: {namespace}}}, spec: {spec}}}"
    )
}

fn cilium_policy(namespace: &str, spec: &str) -> String {
    let (kind, place) = match namespace {
        "" => ("CiliumClusterwideNetworkPolicy", String::new()),
        namespace => ("CiliumNetworkPolicy", format!(", namespace: {namespace}")),
    };
    format!("{{apiVersion: cilium.io/v2, kind: {kind}, metadata: {{name: p{place}}}, spec: {spec}}}")
}

/// Each selector is of pods that `evil` has none of.
#[test]
fn no_pod_is_taken_for_one_of_another_namespace() {
    let mut found = Vec::new();
    for peer in [
        "{podSelector: {}}",
        "{namespaceSelector: {matchLabels: {team: core}}}",
        "{namespaceSelector: {matchExpressions: [{key: team, operator: Exists}]}}",
        "{namespaceSelector: {matchLabels: {kubernetes.io/metadata.name: prod}}, podSelector: {matchLabels: {app: web}}}",
    ] {
        let spec = format!("{{podSelector: {{matchLabels: {{app: db}}}}, ingress: [{{from: [{peer}]}}]}}");
        found.extend(wrong(&network_policy("prod", &spec), &[]));
    }
    for (namespace, selector) in [
        ("prod", "{}"),
        ("prod", "{matchLabels: {app: web}}"),
        ("prod", "{matchLabels: {io.kubernetes.pod.namespace: prod}}"),
        ("prod", "{matchLabels: {'k8s:io.kubernetes.pod.namespace': prod}}"),
        ("prod", "{matchLabels: {'any:io.kubernetes.pod.namespace': prod}}"),
        ("prod", "{matchExpressions: [{key: io.kubernetes.pod.namespace, operator: In, values: [prod, other]}]}"),
        ("prod", "{matchExpressions: [{key: io.kubernetes.pod.namespace, operator: NotIn, values: [evil]}]}"),
        ("prod", "{matchLabels: {io.cilium.k8s.namespace.labels.team: core}}"),
        ("prod", "{matchLabels: {'k8s:io.cilium.k8s.namespace.labels.team': core}}"),
        ("prod", "{matchLabels: {io.cilium.k8s.namespace.labels.kubernetes.io/metadata.name: prod}}"),
        ("", "{matchLabels: {io.kubernetes.pod.namespace: prod}}"),
        ("", "{matchLabels: {io.cilium.k8s.policy.serviceaccount: admin}}"),
        ("", "{matchLabels: {'any:io.cilium.k8s.policy.serviceaccount': admin}}"),
        ("", "{matchExpressions: [{key: io.cilium.k8s.policy.serviceaccount, operator: NotIn, values: [default]}]}"),
        ("", "{matchLabels: {io.cilium.k8s.policy.cluster: other}}"),
        ("", "{matchLabels: {'reserved:world': ''}}"),
    ] {
        let spec =
            format!("{{endpointSelector: {{matchLabels: {{app: db}}}}, ingress: [{{fromEndpoints: [{selector}]}}]}}");
        found.extend(wrong(&cilium_policy(namespace, &spec), &[]));
    }
    assert!(found.is_empty(), "{}", found.join("\n"));
}

/// Each policy denies everything to all pods of `evil`, beside one of `prod` that opens everything for its own.
#[test]
fn no_pod_leaves_its_namespaces_policies_or_enters_those_of_another() {
    let mut found = Vec::new();
    let open = network_policy("prod", "{podSelector: {}, policyTypes: [Egress], egress: [{}]}");
    for closed in [
        network_policy("evil", "{podSelector: {}, policyTypes: [Egress]}"),
        cilium_policy("evil", "{endpointSelector: {}, egress: [{}]}"),
        cilium_policy("", "{endpointSelector: {matchLabels: {io.kubernetes.pod.namespace: evil}}, egress: [{}]}"),
        cilium_policy(
            "",
            "{endpointSelector: {matchExpressions: [{key: io.kubernetes.pod.namespace, operator: NotIn, values: [prod]}]}, egress: [{}]}",
        ),
        cilium_policy(
            "",
            "{endpointSelector: {matchExpressions: [{key: io.cilium.k8s.namespace.labels.team, operator: DoesNotExist}]}, egress: [{}]}",
        ),
        network_policy("evil", "{podSelector: {matchLabels: {app: web}}, policyTypes: [Egress]}"),
    ] {
        found.extend(wrong(&format!("{closed}\n- {open}"), &[]));
    }
    assert!(found.is_empty(), "{}", found.join("\n"));
}

/// A selector of Kubernetes for own labels finds what pods write, and the namespace beside it.
#[test]
fn own_labels_are_own_labels_under_every_key() {
    let from = |peer: &str| {
        let spec = format!("{{podSelector: {{matchLabels: {{app: db}}}}, ingress: [{{from: [{peer}]}}]}}");
        network_policy("prod", &spec)
    };
    let everywhere = |pods: &str| from(&format!("{{namespaceSelector: {{}}, podSelector: {pods}}}"));
    let mut found = wrong(&everywhere("{matchLabels: {io.kubernetes.pod.namespace: prod}}"), &["ns", "all"]);
    let absent = "{matchExpressions: [{key: io.kubernetes.pod.namespace, operator: DoesNotExist}]}";
    found.extend(wrong(&everywhere(absent), &["plain", "team", "account"]));
    found.extend(wrong(&from("{podSelector: {matchLabels: {io.kubernetes.pod.namespace: prod}}}"), &[]));
    assert!(found.is_empty(), "{}", found.join("\n"));
}
