//! Whatever the text, reading it ends with documents or diagnostics.

use namegate_config::{
    cases::{Case, World},
    policy::{Catalog, parse, translate},
};
use proptest::prelude::*;

/// Words that come near to policies, so that random text gets far into the readers.
const WORDS: [&str; 48] = [
    "apiVersion: cilium.io/v2\n",
    "apiVersion: networking.k8s.io/v1\n",
    "apiVersion: policy.networking.k8s.io/v1alpha2\n",
    "kind: CiliumNetworkPolicy\n",
    "kind: CiliumClusterwideNetworkPolicy\n",
    "kind: CiliumCIDRGroup\n",
    "kind: NetworkPolicy\n",
    "kind: ClusterNetworkPolicy\n",
    "kind: List\n",
    "metadata: {name: p, namespace: n}\n",
    "metadata: {name: p}\n",
    "spec:\n",
    "specs:\n",
    "items:\n",
    "---\n",
    "  endpointSelector: {}\n",
    "  podSelector: {matchLabels: {a: b}}\n",
    "  nodeSelector: {matchExpressions: [{key: a, operator: In, values: [b]}]}\n",
    "  tier: Admin\n",
    "  priority: 5\n",
    "  subject: {namespaces: {}}\n",
    "  externalCIDRs: [10.1.2.3/8, '::/0']\n",
    "  policyTypes: [Egress]\n",
    "  egress:\n",
    "  ingress:\n",
    "  egressDeny:\n",
    "  - {}\n",
    "  - toPorts:\n",
    "    toPorts:\n",
    "    - ports: [{port: '53', protocol: ANY}]\n",
    "    - ports: [{port: '1', endPort: 70000}]\n",
    "      rules: {dns: [{matchPattern: '*'}]}\n",
    "      rules: {http: [{path: '/a(', headers: ['x y']}]}\n",
    "      serverNames: ['**.io']\n",
    "  - toFQDNs: [{matchName: a.io}]\n",
    "  - toCIDRSet: [{cidr: 10.0.0.0/8, except: [10.0.0.0/8]}]\n",
    "  - toCIDRSet: [{cidrGroupRef: g, except: ['::/0']}]\n",
    "  - toServices: [{k8sServiceSelector: {selector: {}}}]\n",
    "  - toEntities: [world, cluster]\n",
    "  - toEndpoints: [{matchLabels: {'k8s:a': b, 'reserved:host': ''}}]\n",
    "  - icmps: [{fields: [{type: 8}, {type: EchoReply, family: IPv6}]}]\n",
    "  - {action: Accept, to: [{networks: [0.0.0.0/0]}]}\n",
    "  - {action: Pass, from: [{pods: {}}], protocols: [{tcp: {}}]}\n",
    "  - {to: [{ipBlock: {cidr: 0.0.0.0/0}}], ports: [{port: web}]}\n",
    "\u{fc}",
    "\t",
    "null",
    "  enableDefaultDeny: {egress: false}\n",
];

fn words() -> impl Strategy<Value = String> {
    proptest::collection::vec(0..WORDS.len(), 0..24)
        .prop_map(|words| words.into_iter().map(|at| WORDS[at]).collect::<String>())
}

/// Text, and policies with some of it cut out or put in.
fn texts() -> impl Strategy<Value = String> {
    prop_oneof![
        ".{0,200}",
        words(),
        (words(), ".{0,8}", any::<prop::sample::Index>()).prop_map(|(text, noise, at)| {
            let mut at = at.index(text.len() + 1);
            while !text.is_char_boundary(at) {
                at -= 1;
            }
            format!("{}{noise}{}", &text[..at], &text[at..])
        })
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2_000, ..ProptestConfig::default() })]

    #[test]
    fn parsing_and_translating_end(text in texts()) {
        let parsed = parse("x.yaml", &text);
        for found in &parsed.diagnostics {
            prop_assert!(found.line >= 1 && found.column >= 1);
            prop_assert!(found.span().offset() + found.span().len() <= text.len());
            prop_assert!(text.is_char_boundary(found.span().offset()));
        }
        translate(&parsed.documents, &Catalog::default());
    }

    #[test]
    fn reading_cases_and_worlds_ends(text in texts()) {
        let _ = Case::parse("x.yaml", &text).is_ok();
        let _ = World::parse("x.yaml", &text).is_ok();
    }
}
