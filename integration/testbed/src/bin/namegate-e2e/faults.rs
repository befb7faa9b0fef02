//! What holds while a part is away: the API server, the agent, both.

use std::net::SocketAddr;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use crate::cluster::{Cluster, wait};
use crate::mesh::{Mesh, Probe};
use crate::outside::UNNAMED;
use crate::report::Report;

/// How long the API server stays away.
const OUTAGE: Duration = Duration::from_mins(1);
const POLICY: &str = "
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: pair, namespace: faults}
spec:
  podSelector: {matchLabels: {pod: a}}
  policyTypes: [Egress]
  egress: [{to: [{podSelector: {matchLabels: {pod: b}}}]}]
";

/// Runs it. `xtask` ends and starts daemons of the cluster.
pub(crate) fn run(cluster: &Cluster, report: &mut Report, xtask: &Path) -> Result<()> {
    Report::chapter("Faults");
    let mesh = Mesh::build(cluster, &world())?;
    cluster.change("NetworkPolicy faults/pair", true, || cluster.feed(&["apply", "-f", "-"], POLICY).map(drop))?;
    let faults = Faults { cluster, mesh, xtask };
    faults.row(report, "before", || Ok(()))?;
    faults.row(report, "while the API server is away, 60 s", || faults.without_api_server())?;
    faults.row(report, "after kill -9 of the agent", || faults.kill_agent())?;
    faults.row(report, "after kill -9 of the agent while the API server is away", || faults.kill_both())?;
    faults.new_pod(report)?;
    faults.mesh.take_down(cluster)
}

struct Faults<'a> {
    cluster: &'a Cluster,
    mesh: Mesh,
    xtask: &'a Path,
}

impl Faults<'_> {
    fn row(&self, report: &mut Report, what: &str, act: impl FnOnce() -> Result<()>) -> Result<()> {
        let outcome = act().and_then(|()| self.calls());
        let (seen, good) = match outcome {
            Ok((open, closed)) => {
                (format!("a calls b: {}, a calls out: {}", word(open), word(closed)), open && !closed)
            }
            Err(error) => (format!("{error:#}"), false),
        };
        report.row(what, "a calls b: allowed, a calls out: denied", &seen, good);
        wait("the agent to be well", || Ok(self.cluster.agent("/v1/healthz"))).map(drop)
    }

    /// Whether every allowed call gets through, and whether any denied one does.
    fn calls(&self) -> Result<(bool, bool)> {
        let allowed = self.mesh.probes("faults/a", "faults/b", false, 80)?;
        let denied = [Probe::new("faults/a", SocketAddr::new(UNNAMED.into(), 80))];
        let through = self.mesh.call(allowed.iter());
        Ok((through.iter().all(|through| *through), self.mesh.call(denied.iter()).contains(&true)))
    }

    fn without_api_server(&self) -> Result<()> {
        self.daemon("stop")?;
        let started = Instant::now();
        let outcome = self.until(started + OUTAGE);
        self.daemon("start")?;
        wait("the API server", || Ok(self.cluster.kubectl(&["get", "--raw", "/readyz"]).ok()))?;
        outcome
    }

    /// Looks again and again that nothing changes.
    fn until(&self, end: Instant) -> Result<()> {
        while Instant::now() < end {
            let (open, closed) = self.calls()?;
            ensure!(open && !closed, "a calls b: {}, a calls out: {}", word(open), word(closed));
        }
        Ok(())
    }

    fn kill_agent(&self) -> Result<()> {
        self.cluster.kill_agent()?;
        self.until(Instant::now() + Duration::from_secs(3))
    }

    fn kill_both(&self) -> Result<()> {
        self.daemon("stop")?;
        let outcome = self.kill_agent();
        let back = wait("the agent to come back without the API server", || Ok(self.cluster.agent("/v1/status")));
        let held = self.until(Instant::now() + Duration::from_secs(5));
        self.daemon("start")?;
        wait("the API server", || Ok(self.cluster.kubectl(&["get", "--raw", "/readyz"]).ok()))?;
        outcome.and(back.map(drop)).and(held)
    }

    /// A pod that is made while the agent is away waits for it, and is guarded.
    fn new_pod(&self, report: &mut Report) -> Result<()> {
        self.cluster.kubectl(&["label", "pod", "b", "-n", "faults", "late=no", "--overwrite"])?;
        self.cluster.kill_agent()?;
        let pod = json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": {"name": "late", "namespace": "faults", "labels": {"pod": "a"}},
            "spec": {"terminationGracePeriodSeconds": 0, "containers": [
                {"name": "c", "image": "localhost/tools:1", "imagePullPolicy": "Never"},
            ]},
        });
        self.cluster.feed(&["apply", "-f", "-"], &pod.to_string())?;
        self.cluster.wait_pods("faults")?;
        let calls = |target: &str| {
            let command = format!("nc -w 2 {target} 80 </dev/null");
            self.cluster.kubectl(&["exec", "late", "-n", "faults", "--", "sh", "-c", &command]).is_ok()
        };
        let b = self.mesh.ipv4("faults/b").context("b has an IPv4 address")?.to_string();
        let (open, closed) = (calls(&b), calls(&UNNAMED.to_string()));
        let seen = format!("it calls b: {}, it calls out: {}", word(open), word(closed));
        report.row(
            "a pod made while the agent restarts",
            "it calls b: allowed, it calls out: denied",
            &seen,
            open && !closed,
        );
        Ok(())
    }

    fn daemon(&self, verb: &str) -> Result<()> {
        let status = Command::new(self.xtask).args(["cluster", verb, "kube-apiserver"]).status();
        ensure!(status.context("running xtask")?.success(), "`xtask cluster {verb} kube-apiserver` failed");
        Ok(())
    }
}

fn word(through: bool) -> &'static str {
    if through { "allowed" } else { "denied" }
}

fn world() -> Value {
    let pod = |name: &str| json!({"name": name, "namespace": "faults", "labels": {"pod": name}});
    json!({"namespaces": [{"name": "faults", "labels": {}}], "pods": [pod("a"), pod("b")]})
}
