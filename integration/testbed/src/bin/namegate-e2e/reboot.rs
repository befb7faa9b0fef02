//! The node loses its power: what the kernel knew is gone, pods start again from what is on the disk.

use std::net::IpAddr;
use std::path::Path;
use std::process::Command;
use std::time::Instant;

use anyhow::{Context, Result, ensure};

use crate::callers::{Also, deployment};
use crate::cluster::{Cluster, wait};
use crate::outside::Outside;
use crate::report::Report;

/// Pods that call all the time.
const PODS: usize = 10;
const POLICY: &str = "
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: deny, namespace: reboot}
spec: {podSelector: {matchLabels: {app: denied}}, policyTypes: [Egress]}
";

/// Runs it. `outside` ends with the node.
pub(crate) fn run(cluster: &Cluster, report: &mut Report, outside: Outside, xtask: &Path) -> Result<()> {
    Report::chapter("The node loses its power");
    cluster.kubectl(&["delete", "namespace", "reboot", "--ignore-not-found"])?;
    cluster.kubectl(&["create", "namespace", "reboot"])?;
    cluster.change("NetworkPolicy reboot/deny", true, || cluster.feed(&["apply", "-f", "-"], POLICY).map(drop))?;
    // The second may call: that it does shows that pods run and servers are there.
    for (name, pods) in [("denied", PODS), ("free", 1)] {
        cluster.feed(&["apply", "-f", "-"], &deployment("reboot", name, pods, Also::Nobody))?;
        let rollout = format!("deployment/{name}");
        cluster.kubectl(&["rollout", "status", &rollout, "-n", "reboot", "--timeout=180s"])?;
    }
    drop(outside);
    let call = |arguments: &[&str]| -> Result<()> {
        let status = Command::new(xtask).arg("cluster").args(arguments).status().context("running xtask")?;
        ensure!(status.success(), "`xtask cluster {}` failed", arguments.join(" "));
        Ok(())
    };
    // No pod starts before somebody looks.
    call(&["reboot", "--without", "kubelet"])?;
    let started = Instant::now();
    let cluster = &cluster.after_reboot()?;
    let outside = Outside::start(cluster)?;
    call(&["start", "kubelet"])?;
    wait("the agent to be well", || Ok(cluster.agent("/v1/healthz")))?;
    let well = started.elapsed().as_secs();
    let restarted = wait("every pod to run again", || Ok(running(cluster)?.then_some(())));
    let free = wait("the pod that may call", || Ok((!outside.callers().is_empty()).then_some(())));
    // What was denied so far goes on to be.
    let escaped = escaped(cluster, &outside)?;
    let seen = format!(
        "{} run again, the agent after {well} s, {escaped} got through, the one that may {}",
        if restarted.is_ok() { "all" } else { "not all" },
        if free.is_ok() { "too" } else { "did not" }
    );
    report.row(
        &format!("{PODS} pods under default deny, one without a policy"),
        "all run again, nobody gets through but the one that may",
        &seen,
        restarted.is_ok() && free.is_ok() && escaped == 0,
    );
    // Its pods call until they are gone.
    cluster.kubectl(&["delete", "namespace", "reboot"]).map(drop)
}

/// Whether every container was started anew and runs.
fn running(cluster: &Cluster) -> Result<bool> {
    let pods = cluster.get(&["pods", "-n", "reboot"])?;
    let mut statuses = pods["items"].as_array().into_iter().flatten().map(|pod| &pod["status"]["containerStatuses"][0]);
    Ok(statuses.all(|status| status["restartCount"] != 0 && status["ready"] == true))
}

/// How many of those got through that may not: every caller that is not the free pod.
fn escaped(cluster: &Cluster, outside: &Outside) -> Result<usize> {
    let free = cluster.pod("reboot", "free")?;
    let free: Vec<IpAddr> = cluster.addresses("reboot", &free)?;
    Ok(outside.callers().iter().filter(|caller| !free.contains(caller)).count())
}
