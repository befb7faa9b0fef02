//! Policies that are refused: of parts that are switched off, and those that would open too much.

use super::*;

#[test]
fn parts_that_are_switched_off_are_refused_by_name() {
    let text = format!(
        "{HEADER}spec:
  endpointSelector: {{}}
  egress:
  - toPorts:
    - {{ports: [{{port: '53', protocol: UDP}}], rules: {{dns: [{{matchPattern: '*'}}]}}}}
    - {{ports: [{{port: '80', protocol: TCP}}], rules: {{http: [{{}}]}}}}
    - {{ports: [{{port: '443', protocol: TCP}}], serverNames: [a.io]}}
"
    );
    let on = Features::default();
    for (features, want) in [
        (on, &[][..]),
        (Features { dns: false, ..on }, &["`spec.egress[0].toPorts[0].rules.dns`: `rules.dns` is not enforced yet"]),
        (Features { http: false, ..on }, &["`spec.egress[0].toPorts[1].rules.http`: `rules.http` is not enforced yet"]),
        (
            Features { server_names: false, ..on },
            &["`spec.egress[0].toPorts[2].serverNames`: `serverNames` is not enforced yet"],
        ),
    ] {
        let parsed = parse_with("p.yaml", &text, &features);
        let found: Vec<String> = parsed.diagnostics.iter().map(ToString::to_string).collect();
        assert_eq!(found, want);
        assert_eq!(parsed.documents.is_empty(), !want.is_empty());
    }
}

#[test]
fn policies_for_nodes_can_be_switched_off() {
    let text = "apiVersion: cilium.io/v2
kind: CiliumClusterwideNetworkPolicy
metadata: {name: p}
spec: {nodeSelector: {}, ingress: [{}]}
";
    assert_eq!(parse("p.yaml", text).documents.len(), 1);
    let parsed = parse_with("p.yaml", text, &Features { nodes: false, ..Features::default() });
    let found: Vec<String> = parsed.diagnostics.iter().map(ToString::to_string).collect();
    assert_eq!(found, ["`spec.nodeSelector`: `nodeSelector` is not enforced yet"]);
    assert!(parsed.documents.is_empty());
}

#[test]
fn names_in_policies_for_nodes_can_be_switched_off() {
    let text = "apiVersion: cilium.io/v2
kind: CiliumClusterwideNetworkPolicy
metadata: {name: p}
spec:
  nodeSelector: {}
  egress:
  - toFQDNs: [{matchName: a.io}]
  - toEntities: [world]
    toPorts: [{ports: [{port: '53', protocol: UDP}], rules: {dns: [{matchPattern: '*'}]}}]
";
    assert_eq!(parse("p.yaml", text).documents.len(), 1);
    let features = Features { node_names: false, ..Features::default() };
    let parsed = parse_with("p.yaml", text, &features);
    let found: Vec<String> = parsed.diagnostics.iter().map(ToString::to_string).collect();
    let want = ["egress[0].toFQDNs`: `toFQDNs`", "egress[1].toPorts[0].rules.dns`: `rules.dns`"];
    let why = "is not enforced for the node: what it asks itself is not heard";
    assert_eq!(found, want.map(|start| format!("`spec.{start} {why}")));
    assert!(parsed.documents.is_empty());
    let endpoints = text.replace("nodeSelector", "endpointSelector");
    assert_eq!(parse_with("p.yaml", &endpoints, &features).documents.len(), 1);
}

#[test]
fn what_would_open_too_much_is_refused() {
    for (element, want) in [
        ("egress: [{toPorts: [{ports: [{port: '90', endPort: 80}]}]}]", "the range ends at 80, below its start 90"),
        ("egress: [{toPorts: [{ports: [{port: '080'}]}]}]", "`080` has leading zeros; Cilium reads it as octal"),
        ("egress: [{toPorts: [{ports: [{port: '0', endPort: 80}]}]}]", "port \"0\" is every port already"),
        ("egress: [{toPorts: [{ports: [{port: web, endPort: 80}]}]}]", "`endPort` needs a number as `port`"),
        (
            "egress: [{toPorts: [{ports: [{port: '53', protocol: GRE}]}]}]",
            "`GRE` cannot be selected: only TCP, UDP, SCTP and ICMP can",
        ),
        ("egress: [{icmps: [{fields: [{type: 256}]}]}]", "256 is not within 0 and 255"),
        ("egress: [{icmps: []}]", "must name at least one type"),
        ("egress: null", "a list is wanted here, this is null"),
        ("egress: [null]", "a mapping is wanted here, this is null"),
        ("egress: [{toEndpoints: null}]", "a list is wanted here, this is null"),
        ("egress: [{toEntities: [cluster-mesh]}]", "`cluster-mesh`: Namegate knows one cluster only"),
        ("egress: [{toEndpoints: [{matchLabels: {'cidr:a': b}}]}]", "labels of source `cidr` cannot be selected"),
        ("egress: [{toCIDR: [010.0.0.0/8]}]", "`010.0.0.0/8` is not a prefix"),
        ("egress: [{toCIDRSet: [{cidr: 10.0.0.0/08}]}]", "`10.0.0.0/08` is not a prefix"),
        ("egress: [{toEndpoints: [{matchLabels: {'reserved:wrld': ''}}]}]", "there is no reserved label `wrld`"),
        ("egress: [{toServices: [{}]}]", "`k8sService` or `k8sServiceSelector` must be given"),
        (
            "egressDeny: [{toFQDNs: [{matchName: a.io}]}]",
            "a denial cannot name DNS names: it would not hold before the name is looked up",
        ),
        ("egress: [{toCIDR: ['::ffff:10.0.0.0/104']}]", "an IPv4-mapped prefix selects no packet"),
        (
            "egress: [{toPorts: [{ports: [{port: '80', protocol: TCP}], rules: {kafka: []}}]}]",
            "this field is gone since Cilium 1.20, and Namegate has no parser for it",
        ),
        ("egress: [{toPorts: [{ports: [], rules: {dns: [{matchPattern: '*'}]}}]}]", "`rules` needs `ports`"),
        (
            "egress: [{toPorts: [{ports: [{port: '443', protocol: UDP}], serverNames: [a.io]}]}]",
            "`serverNames` are read from TLS over TCP",
        ),
        ("enableDefaultDeny: {egres: true}, egress: [{}]", "there is no such field"),
        ("log: {value: text\twith a tab}, egress: [{}]", "takes at most 32 printable characters"),
    ] {
        let parsed = parse("p.yaml", &format!("{HEADER}spec: {{endpointSelector: {{}}, {element}}}\n"));
        let errors: Vec<&str> = parsed.diagnostics.iter().filter(|f| f.is_error()).map(|f| &*f.problem).collect();
        assert_eq!(errors, [want], "{element}");
        assert!(parsed.documents.is_empty());
    }
}
