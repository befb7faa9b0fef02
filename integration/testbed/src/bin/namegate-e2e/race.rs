//! Many pods that start at once, each calling out with its first instruction, where nothing may go out.

use anyhow::{Context, Result};

use crate::callers::deployment;
use crate::cluster::{Cluster, wait};
use crate::outside::Outside;
use crate::report::Report;

const POLICY: &str = "
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: deny, namespace: race}
spec: {podSelector: {}, policyTypes: [Egress]}
";

/// Runs it with so many pods.
pub(crate) fn run(cluster: &Cluster, report: &mut Report, outside: &Outside, pods: usize) -> Result<()> {
    Report::chapter("The first packet of a pod");
    cluster.kubectl(&["delete", "namespace", "race", "--ignore-not-found"])?;
    cluster.kubectl(&["create", "namespace", "race"])?;
    cluster.change("NetworkPolicy race/deny", true, || cluster.feed(&["apply", "-f", "-"], POLICY).map(drop))?;
    let (before, calls) = (outside.callers().len(), outside.calls().len());
    cluster.feed(&["apply", "-f", "-"], &deployment("race", "race", pods, None))?;
    let rollout = ["rollout", "status", "deployment/race", "-n", "race", "--timeout=900s"];
    cluster.kubectl(&rollout).context("starting the pods")?;
    let escaped = outside.calls().len() - calls;
    let words = format!("{pods} pods started, {escaped} got through");
    report.row("pods under default deny that call out at once", "nobody gets through", &words, escaped == 0);
    // That they really call shows when they may.
    cluster.kubectl(&["delete", "networkpolicy", "deny", "-n", "race"])?;
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
