//! What is told about policies that are right by themselves: the diagnostics as miette draws them.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{fs, path::Path};

use miette::{GraphicalReportHandler, GraphicalTheme};
use namegate_config::{
    cases::World,
    policy::{Audience, Catalog, lint, parse},
};

fn drawn(text: &str, audience: Option<&Audience>) -> String {
    let parsed = parse("policy.yaml", text);
    assert!(parsed.diagnostics.is_empty(), "{:?}", parsed.diagnostics);
    let handler = GraphicalReportHandler::new_themed(GraphicalTheme::unicode_nocolor()).with_width(100);
    let mut drawn = String::new();
    for found in lint(&parsed.documents, &Catalog::default(), audience) {
        assert!(!found.is_error());
        handler.render_report(&mut drawn, &found).unwrap();
        drawn.push('\n');
    }
    drawn
}

/// A policy of the namespace `empire` with this name and these lines below `spec`.
fn policy(name: &str, spec: &str) -> String {
    format!(
        "---\napiVersion: cilium.io/v2\nkind: CiliumNetworkPolicy\nmetadata: {{name: {name}, namespace: empire}}\n\
         spec:\n  endpointSelector: {{matchLabels: {{class: tie}}}}\n{spec}"
    )
}

const ALLOW: &str = "  egress:
  - toFQDNs: [{matchName: cilium.io}]
    toPorts: [{ports: [{port: '443', protocol: TCP}]}]
  - toCIDRSet: [{cidr: 198.51.100.0/24, except: [198.51.100.128/25]}]
";

#[test]
fn a_rule_that_a_denial_covers() {
    let deny = "  egressDeny:
  - toEntities: [world]
    toPorts: [{ports: [{port: '400', endPort: 500, protocol: TCP}]}]
  - toCIDRSet: [{cidr: 198.51.0.0/16, except: [198.51.100.192/26, 198.51.7.0/24]}]
";
    insta::assert_snapshot!(drawn(&(policy("allow", ALLOW) + &policy("deny", deny)), None));
}

#[test]
fn limits_that_another_rule_lifts() {
    let limited = "  ingress:
  - fromEndpoints: [{matchLabels: {class: xwing, org: rebels}}]
    toPorts:
    - ports: [{port: '80', protocol: TCP}]
      rules: {http: [{method: GET}]}
";
    let free = "  ingress:\n  - fromEndpoints: [{matchExpressions: [{key: class, operator: Exists}]}]\n";
    insta::assert_snapshot!(drawn(&(policy("limited", limited) + &policy("free", free)), None));
}

#[test]
fn a_host_or_path_that_looks_like_plain_text() {
    for (rule, want) in [
        ("host: api.example.com", Some(r"write `api\.example\.com`")),
        ("path: /v1/openapi.json", Some(r"write `/v1/openapi\.json`")),
        (r"host: 'api\.example\.com'", None),
        ("host: '.*.example.com'", None),
        ("host: 'api.example.com(:80)?'", None),
        ("path: /v1./x", None),
        ("path: /v1", None),
        ("method: G.T", None),
    ] {
        let limited = format!(
            "  egress:\n  - toCIDR: [192.0.2.1/32]\n    toPorts:\n    - ports: [{{port: '80', protocol: TCP}}]\n      \
             rules: {{http: [{{{rule}}}]}}\n"
        );
        let drawn = drawn(&policy("limited", &limited), None);
        assert_eq!(!drawn.is_empty(), want.is_some(), "{rule}: {drawn}");
        assert!(want.is_none_or(|want| drawn.contains(want) && drawn.contains("is a regular expression")), "{drawn}");
    }
}

#[test]
fn an_object_that_stands_twice_and_names_that_nobody_has() {
    let long = format!("  egress:\n  - toFQDNs: [{{matchPattern: 'a{}*.io'}}]\n", "b".repeat(63));
    insta::assert_snapshot!(drawn(&(policy("one", ALLOW) + &policy("one", &long)), None));
}

#[test]
fn rules_about_nobody() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../conformance/world-empire.yaml");
    let world = World::parse("world.yaml", &fs::read_to_string(path).unwrap()).unwrap();
    let nodes = "---
apiVersion: cilium.io/v2
kind: CiliumClusterwideNetworkPolicy
metadata: {name: nodes}
spec: {nodeSelector: {matchLabels: {rack: none}}, ingress: [{}]}
";
    let text = policy("nobody", ALLOW) + &policy("somebody", ALLOW).replace("class: tie", "class: tiefighter") + nodes;
    insta::assert_snapshot!(drawn(&text, Some(&world.audience())));
    assert_eq!(drawn(&text, None), "", "nobody is known: nothing is said");
}

/// Each second rule does not cover the first, though it is near.
#[test]
fn what_is_not_certain_is_not_told() {
    for deny in [
        "  egressDeny: [{toFQDNs: [{matchName: cilium.io}]}]",
        "  egressDeny: [{toEntities: [world], toPorts: [{ports: [{port: '443', protocol: UDP}]}]}]",
        "  egressDeny: [{toEntities: [cluster]}]",
        "  egressDeny: [{toCIDR: [198.51.100.0/25]}]",
        "  egressDeny: [{toCIDRSet: [{cidr: 198.51.0.0/16, except: [198.51.100.0/26]}]}]",
        "  ingressDeny: [{fromEntities: [all]}]",
    ] {
        // Names cannot stand in deny rules: such a policy is refused.
        let text = policy("allow", ALLOW) + &policy("deny", deny);
        if !parse("p.yaml", &text).diagnostics.is_empty() {
            continue;
        }
        assert_eq!(drawn(&text, None), "", "{deny}");
    }
    let all = policy("allow", ALLOW);
    for subject in ["class: xwing", "class: tie, org: empire"] {
        let deny = policy("deny", "  egressDeny: [{toEntities: [all]}]").replace("class: tie", subject);
        assert_eq!(drawn(&(all.clone() + &deny), None), "", "{subject}");
    }
    let deny = policy("deny", "  egressDeny: [{toEntities: [all]}]").replace("{matchLabels: {class: tie}}", "{}");
    assert_eq!(drawn(&(all + &deny), None).matches("denies everything that this rule allows").count(), 2);
}
