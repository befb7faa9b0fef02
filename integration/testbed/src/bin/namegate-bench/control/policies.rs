//! The texts of the policies.

use std::fmt::Write;

/// Endpoints of this node that are enforced and send nothing.
pub(super) const CROWD: usize = 1_000;
/// Pods elsewhere, each with a label of its own.
pub(super) const IDENTITIES: usize = 1_000;
/// Peers that a policy names, each by a label of its own.
const PEERS: usize = 10;
/// A policy changes between these ports.
pub(super) const PORTS: [u16; 2] = [443, 8443];

/// The policy of the asking pods: cluster DNS, and every name of the zones of this measurement.
pub(super) const ASKING: &str = r#"apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata: {name: asking, namespace: empire}
spec:
  endpointSelector: {matchLabels: {class: tiefighter}}
  egress:
  - toEndpoints:
    - matchLabels: {"k8s:io.kubernetes.pod.namespace": kube-system, "k8s:k8s-app": kube-dns}
    toPorts: [{ports: [{port: "53", protocol: ANY}]}]
  - toFQDNs: [{matchPattern: "*.bench.test"}, {matchPattern: "*.greedy.test"}]
"#;

/// The file of a policy.
pub(super) fn file(at: usize) -> String {
    format!("policy-{at:05}.yaml")
}

/// A policy for one class of the crowd: ten peers on a port, and a name pattern.
pub(super) fn text(at: usize, port: u16) -> String {
    let class = at % CROWD;
    let mut text = format!(
        "apiVersion: cilium.io/v2\nkind: CiliumNetworkPolicy\nmetadata: {{name: policy{at}, namespace: crowd}}\n\
         spec:\n  endpointSelector:\n    matchLabels: {{class: class{class}}}\n  egress:\n  - toEndpoints:\n"
    );
    // Policies of one class name different peers.
    let first = (class + at / CROWD) * PEERS;
    for step in 0..PEERS {
        let _ = writeln!(text, "    - matchLabels: {{app: app{}}}", (first + step) % IDENTITIES);
    }
    let _ = writeln!(text, "    toPorts: [{{ports: [{{port: '{port}', protocol: TCP}}]}}]");
    let _ = writeln!(text, "  - toFQDNs: [{{matchPattern: '*.service{at}.example'}}]");
    text
}

/// So many policies as files.
pub(super) fn files(count: usize) -> Vec<(String, String)> {
    (0..count).map(|at| (file(at), text(at, PORTS[0]))).collect()
}

/// A policy of the asking pods with so many patterns that match none of the learned names.
pub(super) fn patterns(count: usize) -> String {
    let mut text = String::from(
        "apiVersion: cilium.io/v2\nkind: CiliumNetworkPolicy\nmetadata: {name: patterns, namespace: empire}\n\
         spec:\n  endpointSelector: {matchLabels: {class: tiefighter}}\n  egress:\n  - toFQDNs:\n",
    );
    for at in 0..count {
        let _ = writeln!(text, "    - matchPattern: '*.pattern{at}.example'");
    }
    text
}
