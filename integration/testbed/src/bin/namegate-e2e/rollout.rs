//! A rollout of a Deployment while the agent is killed again and again: every new pod is guarded, and none is in want.

use std::net::IpAddr;
use std::time::Duration;

use anyhow::{Context, Result};

use crate::callers::{Also, deployment};
use crate::cluster::{Cluster, wait};
use crate::outside::Outside;
use crate::report::Report;

/// Pods of the Deployment.
const PODS: usize = 12;
/// How often the agent is killed, and how long it may run in between.
const KILLS: usize = 3;
const PAUSE: Duration = Duration::from_secs(2);
const POLICY: &str = "
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: rollout, namespace: faults}
spec:
  podSelector: {matchLabels: {app: rollout}}
  policyTypes: [Egress]
  egress: [{to: [{podSelector: {matchLabels: {pod: b}}}]}]
";

/// Runs it; pods may call `server`.
pub(crate) fn run(cluster: &Cluster, report: &mut Report, outside: &Outside, server: IpAddr) -> Result<()> {
    let apply = |text: &str| cluster.feed(&["apply", "-f", "-"], text).map(drop);
    let rollout =
        |verb: &[&str]| cluster.kubectl(&[&["rollout"][..], verb, &["deployment/rollout", "-n", "faults"]].concat());
    cluster.change("NetworkPolicy faults/rollout", true, || apply(POLICY))?;
    apply(&deployment("faults", "rollout", PODS, Also::Again(server)))?;
    rollout(&["status", "--timeout=180s"]).context("starting the pods")?;
    let before = outside.calls().len();
    rollout(&["restart"])?;
    for _ in 0..KILLS {
        wait("the agent to be well", || Ok(cluster.agent("/v1/healthz")))?;
        cluster.kill_agent()?;
        std::thread::sleep(PAUSE);
    }
    let done = rollout(&["status", "--timeout=180s"]);
    let escaped = outside.calls().len() - before;
    let reached = if done.is_ok() { "all" } else { "not all" };
    report.row(
        &format!("{PODS} pods replaced while the agent is killed {KILLS} times"),
        "all reach b, 0 get out",
        &format!("{reached} reach b, {escaped} get out"),
        done.is_ok() && escaped == 0,
    );
    wait("the agent to be well", || Ok(cluster.agent("/v1/healthz")))?;
    cluster.kubectl(&["delete", "deployment", "rollout", "-n", "faults"]).map(drop)
}
