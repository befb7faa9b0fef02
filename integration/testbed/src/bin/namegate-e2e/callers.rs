//! Deployments of pods that call all the time: where nobody may, and elsewhere.

use std::net::IpAddr;

use serde_json::{Value, json};

use crate::outside::UNNAMED;

/// So many pods with the label `app: <name>`, which call the address that no policy opens from their first instruction on
/// (a shell of one process is in the way) and `server` after it, if there is one. Then a pod is ready once it has reached
/// that.
pub(crate) fn deployment(namespace: &str, name: &str, pods: usize, server: Option<IpAddr>) -> String {
    let call = |address: IpAddr| format!("nc -w 1 {address} 80 </dev/null");
    let also = server.map_or_else(String::new, |server| format!("{} && touch /tmp/reached; ", call(server)));
    let script = format!("while :; do {}; {also}sleep 1; done", call(UNNAMED.into()));
    let ready = server
        .map_or(Value::Null, |_| json!({"exec": {"command": ["test", "-f", "/tmp/reached"]}, "periodSeconds": 1}));
    let labels = json!({"app": name});
    let container = json!({
        "name": "caller", "image": "localhost/tools:1", "imagePullPolicy": "Never",
        "command": ["/bin/sh", "-c", script], "readinessProbe": ready,
    });
    let pod =
        json!({"terminationGracePeriodSeconds": 0, "automountServiceAccountToken": false, "containers": [container]});
    let spec = json!({
        "replicas": pods, "selector": {"matchLabels": labels},
        "template": {"metadata": {"labels": labels}, "spec": pod},
    });
    json!({
        "apiVersion": "apps/v1", "kind": "Deployment",
        "metadata": {"name": name, "namespace": namespace}, "spec": spec,
    })
    .to_string()
}
