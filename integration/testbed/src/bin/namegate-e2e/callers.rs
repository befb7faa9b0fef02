//! Deployments of pods that call all the time: where nobody may, and elsewhere.

use std::net::IpAddr;

use serde_json::{Value, json};

use crate::outside::UNNAMED;

/// Whom such pods call besides.
#[derive(Clone, Copy)]
pub(crate) enum Also {
    /// Nobody.
    Nobody,
    /// This one again and again; a pod is ready once it has reached it.
    Again(IpAddr),
    /// This one first and once: a pod ends with an error where its only call does not get through, or its first packet
    /// had to be sent again.
    First(IpAddr),
}

/// Ends with an error where the kernel of the pod's namespace has sent the first packet of a connection again.
const NONE_REPEATED: &str = r#"
{ read -r names; read -r values; } </proc/net/netstat
at=0
for name in $names; do [ "$name" = TCPSynRetrans ] && break; at=$((at + 1)); done
set -- $values; shift $at
[ "$1" = 0 ] || exit 1
"#;

/// So many pods with the label `app: <name>`, which call the address that no policy opens from their first instruction on
/// (a shell of one process is in the way).
pub(crate) fn deployment(namespace: &str, name: &str, pods: usize, also: Also) -> String {
    let call = |address: IpAddr, seconds: u8| format!("nc -w {seconds} {address} 80 </dev/null");
    let (first, again, ready) = match also {
        Also::Nobody => (String::new(), String::new(), Value::Null),
        Also::Again(server) => {
            let ready = json!({"exec": {"command": ["test", "-f", "/tmp/reached"]}, "periodSeconds": 1});
            (String::new(), format!("{} && touch /tmp/reached; ", call(server, 1)), ready)
        }
        Also::First(server) => (format!("{} || exit 1{NONE_REPEATED}", call(server, 5)), String::new(), Value::Null),
    };
    let script = format!("{first}while :; do {}; {again}sleep 3; done", call(UNNAMED.into(), 1));
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
