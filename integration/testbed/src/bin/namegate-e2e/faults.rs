//! What holds while a part is away: the API server, its store, the agent, several of them.

use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use namegate_testbed::Protocol;
use serde_json::{Value, json};

use crate::cluster::{Cluster, wait};
use crate::mesh::{Mesh, Probe};
use crate::outside::{Outside, UNNAMED};
use crate::report::Report;
use crate::rollout;

/// How long the API server stays away.
const OUTAGE: Duration = Duration::from_mins(1);
/// How long an agent runs that has not met it.
const ALONE: Duration = Duration::from_secs(5);
/// How long its store does, and how long another one, which is empty, is in its place.
const STORE_OUTAGE: Duration = Duration::from_secs(10);
const STORE_EMPTY: Duration = Duration::from_secs(15);
/// How long a pod is watched that must not start.
const NOT_STARTED: Duration = Duration::from_secs(12);
/// Where no node is.
const NOWHERE: &str = r#"{"spec":{"template":{"spec":{"nodeSelector":{"nowhere":"true"}}}}}"#;
const SOMEWHERE: &str = r#"{"spec":{"template":{"spec":{"nodeSelector":{"nowhere":null}}}}}"#;
const POLICY: &str = "
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: pair, namespace: faults}
spec:
  podSelector: {matchLabels: {pod: a}}
  policyTypes: [Egress]
  egress: [{to: [{podSelector: {matchLabels: {pod: b}}}]}]
";
const MORE: &str = "
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: more, namespace: faults}
spec: {podSelector: {matchLabels: {pod: a}}, policyTypes: [Egress], egress: [{to: [{ipBlock: {cidr: 203.0.113.30/32}}]}]}
";

/// Runs it. `xtask` ends and starts daemons of the cluster.
pub(crate) fn run(cluster: &Cluster, report: &mut Report, outside: &Outside, xtask: &Path) -> Result<()> {
    Report::chapter("Faults");
    let mesh = Mesh::build(cluster, &world())?;
    cluster.change("NetworkPolicy faults/pair", true, || cluster.feed(&["apply", "-f", "-"], POLICY).map(drop))?;
    let faults = Faults { cluster, mesh, xtask };
    faults.row(report, "before", || Ok(()))?;
    faults.server_away(report)?;
    faults.store_lost(report)?;
    faults.changes_after(report)?;
    faults.row(report, "after kill -9 of the agent", || faults.kill_agent())?;
    faults.new_pod(report)?;
    rollout::run(cluster, report, outside, faults.b()?)?;
    faults.pods_without_agent(report)?;
    faults.pods_without_guard(report)?;
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
        let allowed = self.mesh.probes("faults/a", "faults/b", Protocol::Tcp, 80)?;
        let denied = [Probe::new("faults/a", SocketAddr::new(UNNAMED.into(), 80))];
        let through = self.mesh.call(allowed.iter());
        Ok((through.iter().all(|through| *through), self.mesh.call(denied.iter()).contains(&true)))
    }

    /// The API server is away, and then the agent is killed too and comes back without it.
    fn server_away(&self, report: &mut Report) -> Result<()> {
        self.daemon("stop", "kube-apiserver")?;
        self.row(report, "while the API server is away, 60 s", || self.until(Instant::now() + OUTAGE))?;
        self.row(report, "after kill -9 of the agent, the API server still away", || {
            self.kill_agent()?;
            wait("the agent to come back without the API server", || Ok(self.cluster.agent("/v1/status")))?;
            self.until(Instant::now() + ALONE)
        })?;
        self.row(report, "after the API server is back", || {
            self.daemon("start", "kube-apiserver")?;
            wait("the API server", || Ok(self.cluster.kubectl(&["get", "--raw", "/readyz"]).ok())).map(drop)
        })
    }

    /// etcd is away, comes back without anything in it, and at last with what it had, as from a backup.
    fn store_lost(&self, report: &mut Report) -> Result<()> {
        let folder = self.cluster.folder().context("the cluster has a folder")?;
        let (store, kept) = (folder.join("etcd"), folder.join("etcd.kept"));
        // It would end the pods that nobody knows any more.
        self.daemon("stop", "kubelet")?;
        self.daemon("stop", "etcd")?;
        self.row(report, "while etcd is away, 10 s", || self.until(Instant::now() + STORE_OUTAGE))?;
        let restart = |from: &Path, to: &Path| -> Result<()> {
            std::fs::rename(from, to).with_context(|| format!("moving {}", from.display()))?;
            self.daemon("start", "etcd")?;
            self.daemon("stop", "kube-apiserver")?;
            self.daemon("start", "kube-apiserver")?;
            wait("the API server", || Ok(self.cluster.kubectl(&["get", "--raw", "/readyz"]).ok()))?;
            Ok(())
        };
        restart(&store, &kept)?;
        let empty = self.cluster.kubectl(&["get", "pods", "-A", "-o", "name"]).is_ok_and(|pods| pods.is_empty());
        self.row(report, "while etcd is there without its data, 15 s", || {
            ensure!(empty, "the API server knows pods");
            self.until(Instant::now() + STORE_EMPTY)?;
            ensure!(self.is_refused(), "the status does not say that the API server refuses the agent");
            Ok(())
        })?;
        self.daemon("stop", "etcd")?;
        std::fs::remove_dir_all(&store).with_context(|| format!("removing {}", store.display()))?;
        restart(&kept, &store)?;
        self.daemon("start", "kubelet")?;
        // Those that decide by what they have seen are started anew after a backup was played back.
        for daemon in ["kube-scheduler", "kube-controller-manager"] {
            self.daemon("stop", daemon)?;
            self.daemon("start", daemon)?;
        }
        self.row(report, "after etcd has its data again", || {
            wait("the agent to follow pods again", || Ok((!self.is_refused()).then_some(())))
        })
    }

    /// Whether the agent says that it cannot follow pods.
    fn is_refused(&self) -> bool {
        let status = self.cluster.agent("/v1/status").unwrap_or_default();
        let mut sources = status["kubernetes"]["sources"].as_array().into_iter().flatten();
        sources.any(|source| source["kind"] == "Pod" && source["state"] == "failing")
    }

    /// What is changed once everything is back takes effect.
    fn changes_after(&self, report: &mut Report) -> Result<()> {
        let policy = "NetworkPolicy faults/more";
        let feed = |verb: &str| self.cluster.feed(&[verb, "-f", "-"], MORE).map(drop);
        self.cluster.change(policy, true, || feed("apply"))?;
        let (_, with) = self.calls()?;
        self.cluster.change(policy, false, || feed("delete"))?;
        let (_, without) = self.calls()?;
        let seen = format!("with it a calls out: {}, without it: {}", word(with), word(without));
        report.row(
            "a policy applied and deleted after that",
            "with it a calls out: allowed, without it: denied",
            &seen,
            with && !without,
        );
        Ok(())
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

    /// A pod that is made while the agent restarts waits for it, and is guarded.
    fn new_pod(&self, report: &mut Report) -> Result<()> {
        self.cluster.kill_agent()?;
        self.make("late")?;
        self.cluster.wait_pods("faults")?;
        self.guarded(report, "a pod made while the agent restarts", "late")
    }

    /// CNI is called while there is no agent: pods end, none starts, and those that wait start guarded afterwards.
    fn pods_without_agent(&self, report: &mut Report) -> Result<()> {
        self.patch(NOWHERE)?;
        let seen = self.without_agent();
        // Whatever was seen, the next run needs the agent.
        self.patch(SOMEWHERE)?;
        let (ended, phase, held) = seen?;
        let seen = format!("it ends: {}, the other is {phase}", if ended { "yes" } else { "no" });
        let expected = "it ends: yes, the other is \"Pending\"";
        let what = "one pod deleted, another made while no agent is there";
        report.row(what, expected, &seen, ended && phase == "Pending");
        self.row(report, "meanwhile", || {
            ensure!(held == (true, false), "a calls b: {}, a calls out: {}", word(held.0), word(held.1));
            wait("the agent to come back", || Ok(self.cluster.agent("/v1/healthz"))).map(drop)
        })?;
        self.cluster.wait_pods("faults")?;
        self.guarded(report, "the pod that waited for the agent", "waits")
    }

    /// Whether a pod ended, what phase a new one is in, and which calls pass.
    fn without_agent(&self) -> Result<(bool, Value, (bool, bool))> {
        self.agent_gone()?;
        let ended = self.cluster.kubectl(&["delete", "pod", "late", "-n", "faults", "--timeout=60s"]).is_ok();
        self.make("waits")?;
        std::thread::sleep(NOT_STARTED);
        let phase = self.cluster.get(&["pod", "waits", "-n", "faults"])?["status"]["phase"].clone();
        Ok((ended, phase, self.calls()?))
    }

    /// CNI is called while there is no agent, and pods may start all the same: they are guarded once it is back.
    fn pods_without_guard(&self, report: &mut Report) -> Result<()> {
        let seen = self.on_agent_down("allow").and_then(|()| self.unguarded(report));
        // Whatever was seen, the next run needs the agent and its default.
        self.on_agent_down("deny")?;
        self.patch(SOMEWHERE)?;
        seen?;
        wait("the agent to come back", || Ok(self.cluster.agent("/v1/healthz")))?;
        self.guarded(report, "the same pod, the agent is back", "early")
    }

    /// A pod that starts while there is no agent.
    fn unguarded(&self, report: &mut Report) -> Result<()> {
        self.patch(NOWHERE)?;
        self.agent_gone()?;
        self.make("early")?;
        self.cluster.wait_pods("faults")?;
        let (open, out) = self.open("early")?;
        let seen = format!("it starts and calls b: {}, it calls out: {}", word(open), word(out));
        let expected = "it starts and calls b: allowed, it calls out: allowed";
        report.row("onAgentDown: allow, a pod made while no agent is there", expected, &seen, open && out);
        Ok(())
    }

    /// Sets what becomes of new pods without an agent, as the value `cni.onAgentDown` of the chart does.
    fn on_agent_down(&self, rule: &str) -> Result<()> {
        const FLAG: &str = "--on-agent-down=";
        let set = self.cluster.get(&["ds/namegate", "-n", "kube-system"])?;
        let containers = set["spec"]["template"]["spec"]["initContainers"].as_array();
        let install = containers.into_iter().flatten().find(|one| one["name"] == "install-cni");
        let mut command = install.context("a container install-cni")?["command"].clone();
        let words = command.as_array_mut().into_iter().flatten();
        let flag = words.filter(|word| word.as_str().is_some_and(|word| word.starts_with(FLAG))).last();
        *flag.context("install-cni says what happens without an agent")? = format!("{FLAG}{rule}").into();
        let install = json!({"name": "install-cni", "command": command});
        self.patch(&json!({"spec": {"template": {"spec": {"initContainers": [install]}}}}).to_string())?;
        let rollout = ["rollout", "status", "ds/namegate", "-n", "kube-system", "--timeout=180s"];
        self.cluster.kubectl(&rollout).context("the agent with another setting").map(drop)
    }

    fn agent_gone(&self) -> Result<()> {
        let agents = ["get", "pods", "-n", "kube-system", "-l", "app.kubernetes.io/name=namegate", "-o", "name"];
        wait("the agent to be gone", || Ok(self.cluster.kubectl(&agents)?.is_empty().then_some(())))
    }

    fn patch(&self, patch: &str) -> Result<()> {
        self.cluster.kubectl(&["patch", "ds/namegate", "-n", "kube-system", "-p", patch]).map(drop)
    }

    /// Makes a pod that the policy `pair` selects.
    fn make(&self, name: &str) -> Result<()> {
        let pod = json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": {"name": name, "namespace": "faults", "labels": {"pod": "a"}},
            "spec": {"terminationGracePeriodSeconds": 0, "containers": [
                {"name": "c", "image": "localhost/tools:1", "imagePullPolicy": "Never"},
            ]},
        });
        self.cluster.feed(&["apply", "-f", "-"], &pod.to_string()).map(drop)
    }

    fn guarded(&self, report: &mut Report, what: &str, pod: &str) -> Result<()> {
        let (open, closed) = self.open(pod)?;
        let seen = format!("it calls b: {}, it calls out: {}", word(open), word(closed));
        report.row(what, "it calls b: allowed, it calls out: denied", &seen, open && !closed);
        Ok(())
    }

    /// Whether a pod reaches b, and what no policy opens.
    fn open(&self, pod: &str) -> Result<(bool, bool)> {
        let calls = |target: &str| {
            let command = format!("nc -w 2 {target} 80 </dev/null");
            self.cluster.kubectl(&["exec", pod, "-n", "faults", "--", "sh", "-c", &command]).is_ok()
        };
        Ok((calls(&self.b()?.to_string()), calls(&UNNAMED.to_string())))
    }

    fn b(&self) -> Result<IpAddr> {
        self.mesh.ipv4("faults/b").context("b has an IPv4 address")
    }

    fn daemon(&self, verb: &str, name: &str) -> Result<()> {
        let status = Command::new(self.xtask).args(["cluster", verb, name]).status();
        ensure!(status.context("running xtask")?.success(), "`xtask cluster {verb} {name}` failed");
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
