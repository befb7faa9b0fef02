//! What people see when a file is wrong: the diagnostics as miette draws them.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use miette::{GraphicalReportHandler, GraphicalTheme};
use namegate_config::policy::{Catalog, Parsed, parse, translate};

fn drawn(text: &str) -> String {
    let Parsed { documents, mut diagnostics } = parse("policy.yaml", text);
    diagnostics.extend(translate(&documents, &Catalog::default()).diagnostics);
    assert!(!diagnostics.is_empty());
    let handler = GraphicalReportHandler::new_themed(GraphicalTheme::unicode_nocolor()).with_width(100);
    let mut drawn = String::new();
    for found in &diagnostics {
        handler.render_report(&mut drawn, found).unwrap();
        drawn.push('\n');
    }
    drawn
}

macro_rules! drawn {
    ($($name:ident: $text:literal,)*) => { $(
        #[test]
        fn $name() {
            insta::assert_snapshot!(stringify!($name), drawn($text));
        }
    )* };
}

drawn! {
    a_misspelt_field_opens_nothing: "apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata: {name: names, namespace: empire}
spec:
  endpointSelector: {}
  egress:
  - toEndpoint:
    - matchLabels: {class: deathstar}
    toPorts:
    - ports: [{port: '80', protocol: TCP}]
",
    several_mistakes_are_told_at_once: "apiVersion: cilium.io/v1
kind: CiliumNetworkPolicy
metadata:
  name: Names
spec:
  endpointSelector: {matchLabels: {app: web ui}}
  egress:
  - toFQDNs:
    - matchName: '*.cilium.io'
    toPorts:
    - ports:
      - {port: 443, protocol: tcp}
      - {port: '0100', protocol: TCP}
      - {port: '90', endPort: 80, protocol: TCP}
",
    a_key_that_stands_twice: "apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata: {name: names}
spec:
  endpointSelector: {}
  egress:
  - toCIDR: [10.0.0.0/8]
    toCIDR: [192.0.2.0/24]
",
    broken_yaml_between_good_documents: "apiVersion: cilium.io/v2
kind: CiliumCIDRGroup
metadata: {name: good}
spec: {externalCIDRs: [192.0.2.0/24]}
---
apiVersion: cilium.io/v2
kind: [CiliumNetworkPolicy
---
apiVersion: cilium.io/v2
kind: CiliumNetworkPolicie
metadata: {name: p}
",
    peers_that_exclude_each_other: "apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata: {name: names, namespace: empire}
spec:
  endpointSelector: {}
  egress:
  - toFQDNs: [{matchName: cilium.io}]
    toCIDRSet:
    - cidr: 10.0.0.0/8
      except: [192.168.0.0/16, 10.1.2.3]
",
    what_is_not_supported_says_why: "apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata: {name: tls, namespace: empire}
spec:
  endpointSelector: {}
  ingress:
  - fromEndpoints: [{}]
    authentication: {mode: required}
  egress:
  - toGroups: [{aws: {region: eu-central-1}}]
  - toFQDNs: [{matchName: cilium.io}]
    toPorts:
    - ports: [{port: '443', protocol: TCP}]
      terminatingTLS: {secret: {name: t}}
",
    http_rules_that_cannot_work: "apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata: {name: http, namespace: empire}
spec:
  endpointSelector: {}
  ingress:
  - toPorts:
    - ports: [{port: '80'}]
      rules:
        http:
        - {method: '*', path: '/v1/(.*'}
        - {headers: ['X-Token:42']}
",
    references_to_nothing: "apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata: {name: services, namespace: empire}
spec:
  endpointSelector: {}
  egress:
  - toServices:
    - k8sService: {serviceName: deathstar}
  - toCIDRSet:
    - cidrGroupRef: partners
  - toFQDNs: []
",
    a_network_policy_in_the_manner_of_cilium: "apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: web, namespace: empire}
spec:
  endpointSelector: {}
  podSelector: {}
  policyTypes: [ingress]
  ingress:
  - from: [{}]
    ports: [{port: '80', protocol: TCP}]
",
    an_administrators_policy: "apiVersion: policy.networking.k8s.io/v1alpha2
kind: ClusterNetworkPolicy
metadata: {name: names, namespace: empire}
spec:
  tier: Baseline
  priority: 1001
  subject: {}
  egress:
  - action: Pass
    to: [{domainNames: ['a.*.io']}]
    protocols: [{tcp: {destinationPort: {number: 80, range: {start: 1, end: 2}}}}]
",
}
