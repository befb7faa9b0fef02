//! Rules of whole objects, and what objects may hold beside them.

use super::*;
use crate::{
    diagnostic::Code,
    l7::L7,
    rule::{Direction, Effect, Peers, Rule, Subject, Tier},
};

mod refused;

const HEADER: &str = "apiVersion: cilium.io/v2\nkind: CiliumNetworkPolicy\nmetadata: {name: p, namespace: empire}\n";

fn rules(text: &str) -> Vec<Rule> {
    let parsed = parse("p.yaml", text);
    assert!(!parsed.diagnostics.iter().any(Diagnostic::is_error), "{:?}", parsed.diagnostics);
    translate(&parsed.documents, &Catalog::default()).rules
}

/// Origin, peers and whether the default is to deny, of each rule.
fn lines(text: &str) -> Vec<String> {
    let line = |rule: &Rule| {
        let peers = match &rule.peers {
            Peers::Any => "*".to_owned(),
            Peers::Of(peers) => peers.iter().map(ToString::to_string).collect::<Vec<_>>().join(" "),
        };
        let effect = if rule.effect == Effect::Allow { '+' } else { '-' };
        format!("{} {effect} {peers}{}", rule.origin.path, if rule.default_deny { " !" } else { "" })
    };
    rules(text).iter().map(line).collect()
}

fn found(text: &str) -> Vec<String> {
    parse("p.yaml", text).diagnostics.iter().map(|found| format!("{}: {found}", found.line)).collect()
}

#[test]
fn peers_are_in_the_namespace_of_the_policy_unless_they_say_otherwise() {
    let text = |kind: &str, metadata: &str, selector: &str| {
        format!(
            "apiVersion: cilium.io/v2\nkind: {kind}\nmetadata: {metadata}\n\
             spec: {{endpointSelector: {{}}, ingress: [{{fromEndpoints: [{selector}]}}]}}\n"
        )
    };
    for (selector, namespaced, wide) in [
        ("{}", "{k8s:io.kubernetes.pod.namespace=empire}", "{k8s:io.kubernetes.pod.namespace}"),
        (
            "{matchLabels: {app: a}}",
            "{any:app=a, k8s:io.kubernetes.pod.namespace=empire}",
            "{any:app=a, k8s:io.kubernetes.pod.namespace}",
        ),
        ("{matchLabels: {'reserved:host': ''}}", "{reserved:host=}", "{reserved:host=}"),
        (
            "{matchLabels: {'k8s:io.kubernetes.pod.namespace': other}}",
            "{k8s:io.kubernetes.pod.namespace, k8s:io.kubernetes.pod.namespace=other}",
            "{k8s:io.kubernetes.pod.namespace, k8s:io.kubernetes.pod.namespace=other}",
        ),
        (
            "{matchExpressions: [{key: io.cilium.k8s.namespace.labels.team, operator: NotIn, values: [navy]}]}",
            "{k8s:io.cilium.k8s.namespace.labels.team!=navy, k8s:io.kubernetes.pod.namespace}",
            "{k8s:io.cilium.k8s.namespace.labels.team!=navy, k8s:io.kubernetes.pod.namespace}",
        ),
    ] {
        for (kind, metadata, want) in [
            ("CiliumNetworkPolicy", "{name: p, namespace: empire}", namespaced),
            ("CiliumClusterwideNetworkPolicy", "{name: p}", wide),
        ] {
            let got = rules(&text(kind, metadata, selector))[0].peers.clone();
            let Peers::Of(peers) = got else { panic!("{selector}") };
            let mut got: Vec<&str> = Vec::new();
            let printed = peers[0].to_string();
            got.extend(printed.trim_matches(['{', '}']).split(", "));
            let mut want: Vec<&str> = want.trim_matches(['{', '}']).split(", ").collect();
            got.sort_unstable();
            want.sort_unstable();
            assert_eq!(got, want, "{kind} {selector}");
        }
    }
}

#[test]
fn an_absent_list_and_an_empty_one_differ() {
    for (spec, want) in [
        ("egress: [{}]", &["spec.egress[0] +  !"][..]),
        ("egressDeny: [{}]", &["spec.egressDeny[0] -  !"]),
        ("egress: [{toEndpoints: []}]", &["spec.egress[0] +  !"]),
        ("egress: [{toFQDNs: [], toPorts: [{ports: [{port: '1'}]}]}]", &["spec.egress[0] +  !"]),
        ("egress: [{toPorts: []}]", &["spec.egress[0] +  !"]),
        ("egress: [{toPorts: [{ports: [{port: '1'}]}]}]", &["spec.egress[0] + * !"]),
        ("egress: [{toEntities: [all], toPorts: []}]", &["spec.egress[0] + entity all !"]),
        ("egress: [], ingress: [{}]", &["spec.ingress[0] +  !"]),
        (
            "enableDefaultDeny: {egress: false}, egress: [{}], ingress: [{}]",
            &["spec.ingress[0] +  !", "spec.egress[0] + "],
        ),
    ] {
        assert_eq!(lines(&format!("{HEADER}spec: {{endpointSelector: {{}}, {spec}}}\n")), want, "{spec}");
    }
}

#[test]
fn ports_with_different_limits_are_different_rules() {
    let text = format!(
        "{HEADER}spec:
  endpointSelector: {{}}
  egress:
  - toEntities: [world]
    toPorts:
    - {{ports: [{{port: '53', protocol: ANY}}], rules: {{dns: [{{matchPattern: '*.io'}}]}}}}
    - {{ports: [{{port: '80', protocol: TCP}}], rules: {{http: [{{}}]}}}}
    - {{ports: [{{port: '443'}}], serverNames: [a.io]}}
    - {{ports: [{{port: '1', endPort: 9, protocol: UDP}}]}}
    - {{ports: [{{port: DNS, protocol: UDP}}]}}
"
    );
    let rules = rules(&text);
    let kinds: Vec<String> = rules.iter().map(|rule| format!("{:?} {:?}", rule.l7.as_deref(), rule.ports)).collect();
    let numbers = |protocol: &str, start: u16, end: u16| {
        format!("Numbers {{ protocol: {protocol}, ports: RangeInclusive16 {{ start: {start}, end: {end} }} }}")
    };
    assert_eq!(rules.len(), 4);
    assert!(matches!(rules[0].l7.as_deref(), Some(L7::Dns(_))), "{kinds:?}");
    assert!(kinds[0].ends_with(&format!("Of([{}, {}])", numbers("Tcp", 53, 53), numbers("Udp", 53, 53))), "{kinds:?}");
    assert!(kinds[2].ends_with(&format!("Of([{}])", numbers("Tcp", 443, 443))), "{kinds:?}");
    let named = "Named { protocol: Some(Udp), name: \"dns\" }";
    assert_eq!(kinds[3], format!("None Of([{}, {named}])", numbers("Udp", 1, 9)));
}

#[test]
fn what_kubectl_writes_is_accepted() {
    let text = "
apiVersion: v1
kind: List
metadata: {resourceVersion: ''}
items:
- apiVersion: networking.k8s.io/v1
  kind: NetworkPolicy
  metadata:
    annotations: {kubectl.kubernetes.io/last-applied-configuration: '{}'}
    creationTimestamp: null
    generation: 1
    labels: {a: b}
    managedFields: [{manager: kubectl, operation: Update, fieldsV1: {'f:spec': {}}}]
    name: deny
    ownerReferences: [{apiVersion: v1, kind: Pod, name: x, uid: y}]
    resourceVersion: '12'
    uid: 3ad7d5c8
  spec: {podSelector: {}, policyTypes: [Ingress, Egress]}
  status: {conditions: []}
- {apiVersion: cilium.io/v2, kind: Secret, metadata: {name: s}}
";
    let parsed = parse("list.yaml", text);
    assert_eq!(found(text), ["20: `items[1].kind`: objects of kind `Secret` are not read"], "{:?}", parsed.diagnostics);
    let document = &parsed.documents[0];
    assert_eq!(
        (document.namespace.as_deref(), &*document.name, &*document.api_version),
        (Some("default"), "deny", "networking.k8s.io/v1")
    );
    let paths: Vec<String> =
        translate(&parsed.documents, &Catalog::default()).rules.iter().map(|rule| rule.origin.to_string()).collect();
    assert_eq!(paths, ["default/deny spec.ingress", "default/deny spec.egress"]);
}

#[test]
fn directions_of_a_network_policy_follow_the_api_server() {
    for (spec, want) in [
        ("{}", &["spec.ingress +  !"][..]),
        ("{egress: []}", &["spec.ingress +  !"]),
        ("{egress: [{}]}", &["spec.ingress +  !", "spec.egress[0] + * !"]),
        ("{policyTypes: [Egress]}", &["spec.egress +  !"]),
        ("{policyTypes: [Egress], ingress: [{}]}", &["spec.egress +  !"]),
        ("{ingress: [{from: [], ports: []}]}", &["spec.ingress[0] + * !"]),
        (
            "{ingress: [{from: [{ipBlock: {cidr: 10.0.0.0/8, except: [10.1.0.0/16]}}]}]}",
            &["spec.ingress[0] + ipBlock 10.0.0.0/8 except 10.1.0.0/16 !"],
        ),
        (
            "{ingress: [{from: [{podSelector: {}}]}]}",
            &["spec.ingress[0] + {k8s:io.kubernetes.pod.namespace=default} !"],
        ),
        ("{ingress: [{from: [{namespaceSelector: {}}]}]}", &["spec.ingress[0] + {k8s:io.kubernetes.pod.namespace} !"]),
    ] {
        let text =
            format!("apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {{name: p}}\nspec: {spec}\n");
        assert_eq!(lines(&text), want, "{spec}");
    }
}

#[test]
fn tiers_number_rules_in_their_order() {
    let text = "
apiVersion: policy.networking.k8s.io/v1alpha2
kind: ClusterNetworkPolicy
metadata: {name: p}
spec:
  tier: Admin
  priority: 7
  subject: {pods: {namespaceSelector: {matchLabels: {a: b}}, podSelector: {}}}
  egress:
  - {action: Accept, to: [{domainNames: ['*.cilium.io']}]}
  - {action: Pass, to: [{nodes: {}}]}
  - {action: Deny, to: [{networks: [0.0.0.0/0]}], protocols: [{destinationNamedPort: web}]}
";
    let rules = rules(text);
    let tiers: Vec<(Tier, Effect)> = rules.iter().map(|rule| (rule.tier, rule.effect)).collect();
    assert_eq!(
        tiers,
        [(Tier::Admin(7000), Effect::Allow), (Tier::Admin(7001), Effect::Pass), (Tier::Admin(7002), Effect::Deny)]
    );
    let Subject::Endpoints(subject) = &rules[0].subject else { panic!() };
    assert_eq!(subject.to_string(), "{k8s:io.cilium.k8s.namespace.labels.a=b, k8s:io.kubernetes.pod.namespace}");
    let printed: Vec<String> = rules
        .iter()
        .map(|rule| match &rule.peers {
            Peers::Of(peers) => peers.iter().map(ToString::to_string).collect::<Vec<_>>().join(" "),
            Peers::Any => String::new(),
        })
        .collect();
    assert_eq!(printed, ["name **.cilium.io", "{reserved:host} {reserved:remote-node}", "ipBlock 0.0.0.0/0"]);
    assert!(rules.iter().all(|rule| !rule.default_deny && rule.direction == Direction::Egress));
}

#[test]
fn references_are_looked_up() {
    let text = "
apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata: {name: p, namespace: empire}
spec:
  endpointSelector: {}
  egress:
  - toServices: [{k8sService: {serviceName: web}}, {k8sServiceSelector: {selector: {matchLabels: {env: x}}}}]
    toPorts: [{ports: [{port: '80'}]}]
  - toCIDRSet: [{cidrGroupRef: g, except: [10.1.0.0/16, 192.0.0.0/8]}]
  - toCIDRSet: [{cidrGroupSelector: {matchLabels: {no: such}}}]
---
apiVersion: cilium.io/v2alpha1
kind: CiliumCIDRGroup
metadata: {name: g, labels: {a: b}}
spec: {externalCIDRs: [10.0.0.0/8, 192.0.2.0/24]}
";
    let parsed = parse("p.yaml", text);
    assert!(parsed.diagnostics.is_empty());
    let map = |key: &str, value: &str| [(key.to_owned(), value.to_owned())].into();
    let catalog = Catalog {
        services: vec![
            Service {
                name: "web".into(),
                namespace: "empire".into(),
                selector: map("app", "web"),
                ..Service::default()
            },
            Service {
                name: "db".into(),
                namespace: "other".into(),
                labels: map("env", "x"),
                backends: vec!["198.51.100.7".parse().unwrap()],
                ..Service::default()
            },
        ],
        cidr_groups: vec![],
    };
    let translated = translate(&parsed.documents, &catalog);
    let printed: Vec<String> = translated
        .rules
        .iter()
        .map(|rule| match &rule.peers {
            Peers::Of(peers) => peers.iter().map(ToString::to_string).collect::<Vec<_>>().join(" "),
            Peers::Any => "*".to_owned(),
        })
        .collect();
    assert_eq!(
        printed,
        [
            "{k8s:app=web, k8s:io.kubernetes.pod.namespace=empire} ipBlock 198.51.100.7/32",
            "cidr 10.0.0.0/8 except 10.1.0.0/16",
            "",
        ]
    );
    let dangling: Vec<(usize, Code)> = translated.diagnostics.iter().map(|found| (found.line, found.code)).collect();
    assert_eq!(dangling, [(11, Code::Dangling)]);
    assert_eq!(translate(&parsed.documents[..1], &Catalog::default()).diagnostics.len(), 4);
}

/// What is found out about an object of an API server is what is found out about its text.
#[test]
fn an_object_is_read_as_its_text_is() {
    let object = |spec: &str| {
        let text = format!(
            r#"{{"apiVersion": "cilium.io/v2", "kind": "CiliumNetworkPolicy",
            "metadata": {{"name": "p", "namespace": "shop"}}, "spec": {spec}}}"#
        );
        serde_json::from_str::<serde_json::Value>(&text).unwrap()
    };
    for spec in [
        r#"{"endpointSelector": {}, "egress": [{"toEntities": ["world"]}, {"toFQDNs": [{"matchName": "a.example"}]}]}"#,
        r#"{"endpointSelector": {}, "egress": [{"toServices": [{"k8sService": {"serviceName": "a"}}]}]}"#,
        r#"{"endpointSelektor": {}, "egress": [{"toEntities": ["worlds"]}], "ingress": 3}"#,
        r#"{"endpointSelector": {"matchLabels": {"a": 1, "b": true, "d": null, "e": -7}}}"#,
        r#"{"endpointSelector": {}, "egress": [{"toPorts": [{"ports": [{"port": 80}]}], "toCIDR": ["x", "10.0.0.0/8"]}]}"#,
        r#"{"endpointSelector": {}, "egress": [{"toCIDR": ["192.0.2.1/24"]}, {"icmps": []}, {"unknown": {"a": [1]}}]}"#,
        "null",
        "[]",
    ] {
        let object = object(spec);
        let of_object = parse_object("CiliumNetworkPolicy shop/p", &object, &Features::default());
        let of_text = parse_with("CiliumNetworkPolicy shop/p", &object.to_string(), &Features::default());
        let found = |parsed: &Parsed| {
            let shown = |one: &Diagnostic| format!("{:?} {:?} {one} {:?}", one.severity, one.code, one.help);
            parsed.diagnostics.iter().map(shown).collect::<Vec<_>>()
        };
        assert_eq!(found(&of_object), found(&of_text), "{spec}");
        let rules = |parsed: &Parsed| translate(&parsed.documents, &Catalog::default()).rules;
        assert_eq!(rules(&of_object), rules(&of_text), "{spec}");
    }
}
