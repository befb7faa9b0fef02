//! Policies with mistakes: what the API server refuses, and what the agent says in the object's status and in events.

use anyhow::Result;
use serde_json::Value;

use crate::cluster::{Cluster, wait};
use crate::report::Report;

/// What is wrong with a rule, the rule, words that must be in the refusal of the API server.
const REFUSED: [(&str, &str, &str); 2] = [
    ("a name with a space", "egress: [{toFQDNs: [{matchName: 'a b'}]}]", "matchName"),
    ("a port beyond 65535", "egress: [{toPorts: [{ports: [{port: '70000', protocol: TCP}]}]}]", "port"),
];
/// What is wrong, the rule, words that must be in the message of the condition: what the schema leaves open.
const SAID: [(&str, &str, &str); 2] = [
    ("a field that does not exist", "egress: [{toFQDN: [{matchName: a.example}]}]", "toFQDN"),
    (
        "a regular expression that does not end",
        "ingress: [{toPorts: [{ports: [{port: '80', protocol: TCP}], rules: {http: [{path: '/('}]}}]}]",
        "path",
    ),
];

/// Runs it.
pub(crate) fn run(cluster: &Cluster, report: &mut Report) -> Result<()> {
    Report::chapter("Mistakes in policies");
    for (what, rule, words) in REFUSED {
        let said = match cluster.feed(&["apply", "-f", "-"], &policy(rule)) {
            Ok(_) => "accepted".to_owned(),
            Err(error) => format!("{error:#}"),
        };
        let good = said != "accepted" && said.contains(words);
        report.row(
            &format!("{what}: `{rule}`"),
            &format!("refused by kubectl apply, about {words}"),
            &short(&said),
            good,
        );
    }
    for (what, rule, words) in SAID {
        delete(cluster)?;
        cluster.feed(&["apply", "-f", "-"], &policy(rule))?;
        let message = wait("the status of a policy", || {
            let object = cluster.get(&["ciliumnetworkpolicy", "mistake", "-n", "default"])?;
            let conditions = object["status"]["conditions"].as_array().cloned().unwrap_or_default();
            let accepted = conditions.into_iter().find(|condition| condition["type"] == "Accepted");
            Ok(accepted.map(|condition| format!("{}: {}", text(&condition["status"]), text(&condition["message"]))))
        })?;
        let good = message.starts_with("False") && message.contains(words);
        report.row(&format!("{what}: `{rule}`"), &format!("Accepted=False, about {words}"), &short(&message), good);
        let table = cluster.kubectl(&["get", "ciliumnetworkpolicy", "mistake", "-n", "default", "--no-headers"])?;
        report.row("kubectl get ciliumnetworkpolicy", "False in a column", table.trim(), table.contains("False"));
    }
    delete(cluster)
}

fn delete(cluster: &Cluster) -> Result<()> {
    cluster.kubectl(&["delete", "ciliumnetworkpolicy", "mistake", "-n", "default", "--ignore-not-found"]).map(drop)
}

fn policy(rule: &str) -> String {
    format!(
        "apiVersion: cilium.io/v2\nkind: CiliumNetworkPolicy\nmetadata: {{name: mistake, namespace: default}}\n\
         spec:\n  endpointSelector: {{matchLabels: {{app: nobody}}}}\n  {rule}\n"
    )
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}

fn short(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ").chars().take(160).collect()
}
