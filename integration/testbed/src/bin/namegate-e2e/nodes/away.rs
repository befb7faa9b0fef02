//! Agents that are replaced one after the other, and one that is away: what holds, and what the status of policies says.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use namegate_testbed::{Task, client};
use serde_json::{Value, json};

use super::world::{NAMESPACE, To, WITHIN, name_of};
use super::{ROWS, Suite};
use crate::cluster::wait;
use crate::report::Report;

/// Policies that change while an agent is away: which node tells of one depends on its uid.
const POLICIES: usize = 6;
/// Between two calls.
const PAUSE: Duration = Duration::from_millis(20);
/// How long a call may take that must not get through.
const DENIED: Duration = Duration::from_millis(300);
/// The label of the node that keeps its agent.
const LABEL: &str = "namegate-e2e";
const HERE: &str = r#"{"spec":{"template":{"spec":{"nodeSelector":{"namegate-e2e":"here"}}}}}"#;
const EVERYWHERE: &str = r#"{"spec":{"template":{"spec":{"nodeSelector":{"namegate-e2e":null}}}}}"#;

/// Calls of one client, again and again.
#[derive(Clone, Copy, Debug, Default)]
struct Calls {
    made: usize,
    through: usize,
    slowest: Duration,
}

impl Suite<'_> {
    /// Both agents are replaced, one after the other, while pods of node 1 call those of node 2.
    pub(super) fn upgrade(&self, report: &mut Report) -> Result<()> {
        let stop = Arc::new(AtomicBool::new(false));
        let mut calls = Vec::new();
        for (who, to, may) in [("a", "b", true), ("a", "c", false), ("free", "b", false)] {
            for v6 in [false, true] {
                let address = self.world.address(To::Pod(to), v6)?;
                let within = if may { WITHIN } else { DENIED };
                calls.push((may, self.world.netns(who)?.spawn(again(address, within, Arc::clone(&stop)))));
            }
        }
        let started = Instant::now();
        let rollout = self.rollout(&["restart"]).and_then(|()| self.rollout(&["status", "--timeout=180s"]));
        let took = started.elapsed().as_secs();
        stop.store(true, Ordering::Relaxed);
        let (allowed, denied): (Vec<_>, Vec<_>) = calls.into_iter().partition(|(may, _)| *may);
        let (allowed, denied) = (sum(allowed), sum(denied));
        rollout?;
        report.row(
            "both agents replaced one after the other while a calls b, and a calls c, and free calls b",
            "all of a's calls to b get through at the first packet, none of the others",
            &format!(
                "{} of {} in {took} s, the slowest after {} ms; {} of {} others",
                allowed.through,
                allowed.made,
                allowed.slowest.as_millis(),
                denied.through,
                denied.made
            ),
            allowed.made > 0
                && allowed.through == allowed.made
                && allowed.slowest < Duration::from_secs(1)
                && denied.made > 0
                && denied.through == 0,
        );
        Ok(())
    }

    /// Node 2 has no agent for a while.
    pub(super) fn away(&self, report: &mut Report) -> Result<()> {
        let cluster = self.clusters[0];
        self.apply("one.example")?;
        self.told(report, "the status of policies", "enforced on 2 of 2 nodes");
        cluster.kubectl(&["label", "node", &name_of(1), &format!("{LABEL}=here"), "--overwrite"])?;
        let seen = self.without(report);
        // Whatever was seen, the next run needs both.
        self.patch(EVERYWHERE)?;
        cluster.kubectl(&["label", "node", &name_of(1), &format!("{LABEL}-")])?;
        seen?;
        self.rollout(&["status", "--timeout=180s"])?;
        self.told(report, "the same, the agent of node 2 is back", "enforced on 2 of 2 nodes");
        self.rows(report, "the agent of node 2 is back; ", &ROWS[..4])
    }

    /// Takes the agent of node 2 away and looks.
    fn without(&self, report: &mut Report) -> Result<()> {
        self.patch(HERE)?;
        self.rollout(&["status", "--timeout=180s"])?;
        wait("the agent of node 2 to be gone", || Ok((self.agents()? == [name_of(1)]).then_some(())))?;
        self.rows(report, "no agent on node 2; ", &ROWS[..7])?;
        self.apply("another.example")?;
        self.told(report, "the status of policies changed meanwhile", "enforced on 1 of 2 nodes");
        Ok(())
    }

    /// Applies policies that say something new.
    fn apply(&self, name: &str) -> Result<()> {
        let policy = |number| {
            json!({
                "apiVersion": "cilium.io/v2", "kind": "CiliumNetworkPolicy",
                "metadata": {"name": policy_name(number), "namespace": NAMESPACE},
                "spec": {
                    "endpointSelector": {"matchLabels": {"pod": "far"}},
                    "egress": [{"toFQDNs": [{"matchName": name}]}],
                },
            })
        };
        let items: Vec<Value> = (0..POLICIES).map(policy).collect();
        let list = json!({"apiVersion": "v1", "kind": "List", "items": items});
        self.clusters[0].feed(&["apply", "-f", "-"], &list.to_string()).map(drop)
    }

    /// Waits until the status of each policy says so.
    fn told(&self, report: &mut Report, what: &str, expected: &str) {
        let mut seen = Vec::new();
        let outcome = wait(expected, || {
            seen = (0..POLICIES).map(|number| self.enforced(number)).collect::<Result<Vec<_>>>()?;
            Ok(seen.iter().all(|said| said == expected).then_some(()))
        });
        let right = seen.iter().filter(|said| *said == expected).count();
        let other =
            seen.iter().find(|said| *said != expected).map_or(String::new(), |said| format!(", others {said:?}"));
        let words = format!("{right} of {POLICIES} say {expected:?}{other}");
        report.row(what, &format!("{POLICIES} of {POLICIES} say {expected:?}"), &words, outcome.is_ok());
    }

    fn enforced(&self, number: usize) -> Result<String> {
        let object = self.clusters[0].get(&["ciliumnetworkpolicy", &policy_name(number), "-n", NAMESPACE])?;
        let conditions = object["status"]["conditions"].as_array();
        let one = conditions.into_iter().flatten().find(|condition| condition["type"] == "Enforced");
        Ok(one.and_then(|one| one["message"].as_str()).unwrap_or("nothing").to_owned())
    }

    /// Names of the nodes with an agent, even one that is about to end.
    fn agents(&self) -> Result<Vec<String>> {
        let pods = self.clusters[0].get(&["pods", "-n", "kube-system", "-l", "app.kubernetes.io/name=namegate"])?;
        let pods = pods["items"].as_array().context("a list of pods")?;
        Ok(pods.iter().filter_map(|pod| pod["spec"]["nodeName"].as_str().map(str::to_owned)).collect())
    }

    fn rollout(&self, verb: &[&str]) -> Result<()> {
        let (first, rest) = verb.split_first().context("a verb")?;
        let set = ["rollout", first, "daemonset/namegate", "-n", "kube-system"];
        self.clusters[0].kubectl(&[&set[..], rest].concat()).map(drop)
    }

    fn patch(&self, patch: &str) -> Result<()> {
        self.clusters[0].kubectl(&["patch", "daemonset/namegate", "-n", "kube-system", "-p", patch]).map(drop)
    }
}

fn policy_name(number: usize) -> String {
    format!("told-{number}")
}

/// Calls until it is told to stop.
async fn again(address: SocketAddr, within: Duration, stop: Arc<AtomicBool>) -> Calls {
    let mut calls = Calls::default();
    while !stop.load(Ordering::Relaxed) {
        let started = Instant::now();
        calls.made += 1;
        if client::connect(address, within).await.is_ok() {
            calls.through += 1;
            calls.slowest = calls.slowest.max(started.elapsed());
        }
        tokio::time::sleep(PAUSE).await;
    }
    calls
}

fn sum(tasks: Vec<(bool, Task<Calls>)>) -> Calls {
    let add = |sum: Calls, (_, task): (bool, Task<Calls>)| {
        let one = task.wait();
        Calls { made: sum.made + one.made, through: sum.through + one.through, slowest: sum.slowest.max(one.slowest) }
    };
    tasks.into_iter().fold(Calls::default(), add)
}
