//! Many pods that start at once, each calling out with its first instruction: most may not, some may.

use anyhow::{Context, Result};

use crate::callers::{Also, deployment};
use crate::cluster::{Cluster, wait};
use crate::outside::{OPENED, Outside};
use crate::report::Report;

/// One of so many pods may call.
const SHARE: usize = 4;
const POLICY: &str = "
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: deny, namespace: race}
spec: {podSelector: {}, policyTypes: [Egress]}
";
/// Opens one address to some.
const ALLOW: &str = "
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: allow, namespace: race}
spec:
  podSelector: {matchLabels: {app: allowed}}
  policyTypes: [Egress]
  egress: [{to: [{ipBlock: {cidr: 203.0.113.31/32}}]}]
";

/// Runs it with so many pods.
pub(crate) fn run(cluster: &Cluster, report: &mut Report, outside: &Outside, pods: usize) -> Result<()> {
    Report::chapter("The first packet of a pod");
    cluster.kubectl(&["delete", "namespace", "race", "--ignore-not-found"])?;
    cluster.kubectl(&["create", "namespace", "race"])?;
    for (name, policy) in [("deny", POLICY), ("allow", ALLOW)] {
        let document = format!("NetworkPolicy race/{name}");
        cluster.change(&document, true, || cluster.feed(&["apply", "-f", "-"], policy).map(drop))?;
    }
    let (before, calls, opened) = (outside.callers().len(), outside.calls().len(), outside.calls_of(OPENED).len());
    let some = pods / SHARE;
    let both = [("race", pods - some, Also::Nobody), ("allowed", some, Also::First(OPENED.into()))];
    for (name, pods, also) in both {
        cluster.feed(&["apply", "-f", "-"], &deployment("race", name, pods, also))?;
    }
    let started = both.map(|(name, ..)| {
        let rollout = format!("deployment/{name}");
        cluster.kubectl(&["rollout", "status", &rollout, "-n", "race", "--timeout=300s"]).context("starting the pods")
    });
    let reached = wait("every pod that may to get through", || {
        Ok((outside.calls_of(OPENED).len() - opened >= some).then_some(()))
    });
    let escaped = outside.calls().split_off(calls);
    let who = if escaped.is_empty() {
        String::new()
    } else {
        format!(": calls of {escaped:?}, the pods are {}", addresses(cluster)?)
    };
    let running = if started[0].is_ok() { pods - some } else { 0 };
    let words = format!("{running} pods started, {} got through{who}", escaped.len());
    let good = escaped.is_empty() && started[0].is_ok();
    report.row("pods under default deny that call out at once", "nobody gets through", &words, good);
    let (through, restarts) = (outside.calls_of(OPENED).len() - opened, restarts(cluster)?);
    report.row(
        "others among them, which may call one address, once",
        "each gets through with its first packet",
        &format!("{through} calls of {some} got through, {restarts} pods had to try again"),
        reached.is_ok() && started[1].is_ok() && through == some && restarts == 0,
    );
    // That they really call shows when they may.
    cluster.kubectl(&["delete", "networkpolicy", "deny", "allow", "-n", "race"])?;
    let through = wait("every pod to get through", || {
        let through = outside.callers().len() - before;
        Ok((through >= pods).then_some(through))
    });
    let seen = outside.callers().len() - before;
    report.row(
        "the same pods without the policy",
        "all get through",
        &format!("{seen} of {pods} got through"),
        through.is_ok(),
    );
    cluster.kubectl(&["delete", "namespace", "race", "--wait=false"]).map(drop)
}

/// Where pods are, of all namespaces.
fn addresses(cluster: &Cluster) -> Result<String> {
    let columns = "custom-columns=A:.metadata.namespace,B:.metadata.name,C:.status.podIP";
    let pods = cluster.kubectl(&["get", "pods", "-A", "--no-headers", "-o", columns])?;
    Ok(pods.lines().map(|line| line.split_whitespace().collect::<Vec<_>>().join(" ")).collect::<Vec<_>>().join(", "))
}

/// How often containers were started again.
fn restarts(cluster: &Cluster) -> Result<u64> {
    let pods = cluster.get(&["pods", "-n", "race"])?;
    let pods = pods["items"].as_array().into_iter().flatten();
    Ok(pods.filter_map(|pod| pod["status"]["containerStatuses"][0]["restartCount"].as_u64()).sum())
}
