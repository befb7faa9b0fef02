//! The seed article: its four policies word for word, and each of its `kubectl exec` tests as an act in a world.

use std::net::IpAddr;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use serde_json::Value;

use crate::agent::{Agent, Applied};
use crate::client::{Failure, Visit};
use crate::spec::Spec;
use crate::world::World;

/// The namespace that the article's commands name (`-n empire`).
pub const NAMESPACE: &str = "empire";
/// Waiting time of each client: a drop is silent, so it takes this long to see one.
const WITHIN: Duration = Duration::from_millis(1500);
/// How long the record of a flow may take from the kernel to the agent's API.
const RECORD_WITHIN: Duration = Duration::from_millis(500);
/// The pod that the article's name of it stands for, in `conformance/world-empire.yaml`.
const TIEFIGHTER: &str = "empire/tiefighter";
const KUBE_DNS: &str = "kube-system/coredns-1";
const PROMETHEUS: &str = "monitoring/prometheus-core";

/// One policy of the article with the tests that follow it.
#[derive(Clone, Copy, Debug)]
pub struct Chapter {
    /// The article's heading, shortened.
    pub title: &'static str,
    /// The policy, word for word.
    pub policy: &'static str,
    /// Its tests.
    pub tests: &'static [Test],
}

/// One `kubectl exec` of the article.
#[derive(Clone, Copy, Debug)]
pub struct Test {
    /// The command; addresses and generated pod names are those of the world.
    pub command: &'static str,
    /// Where it runs: `namespace/name`.
    pub pod: &'static str,
    /// What it asks for.
    pub url: &'static str,
    /// Whether the article sees an answer.
    pub allowed: bool,
}

/// What a test showed.
#[derive(Clone, Debug)]
pub struct Row {
    /// The test.
    pub test: Test,
    /// How it compares with the article.
    pub verdict: Verdict,
    /// What the client saw.
    pub seen: String,
    /// The agent's record of the flow that decided, as `GET /v1/flows` has it.
    pub flow: Option<Value>,
    /// From the resolver's answer leaving kube-dns until the client has it: the gate is open by then.
    pub answer_to_enforced: Option<Duration>,
}

/// How a row compares with the article.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// As the article says.
    AsSaid,
    /// Not as the article says.
    Differs,
}

const fn test(command: &'static str, pod: &'static str, url: &'static str, allowed: bool) -> Test {
    Test { command, pod, url, allowed }
}

/// The article's policies and tests, in its order.
pub const CHAPTERS: [Chapter; 4] = [
    Chapter {
        title: "Allowing all traffic within a namespace while blocking inter-namespace traffic",
        policy: include_str!("../data/seed/1-within-namespace.yaml"),
        tests: &[
            test(
                "kubectl exec tiefighter -n empire -- curl -sL 10.244.1.12/v1",
                TIEFIGHTER,
                "http://10.244.1.12/v1",
                true,
            ),
            test(
                "kubectl exec -it coredns-1 -n kube-system -- wget 10.244.1.12/v1",
                KUBE_DNS,
                "http://10.244.1.12/v1",
                false,
            ),
            test(
                "kubectl exec -it tiefighter -n empire -- curl deathstar.empire.svc.cluster.local/v1",
                TIEFIGHTER,
                "http://deathstar.empire.svc.cluster.local/v1",
                false,
            ),
        ],
    },
    Chapter {
        title: "Allowing select egress to outside the namespace, for example, kube-dns",
        policy: include_str!("../data/seed/2-kube-dns.yaml"),
        tests: &[
            test(
                "kubectl exec -it tiefighter -n empire -- curl deathstar.empire.svc.cluster.local/v1",
                TIEFIGHTER,
                "http://deathstar.empire.svc.cluster.local/v1",
                true,
            ),
            test(
                "kubectl exec -it tiefighter -n empire -- curl -sL kubernetes-dashboard.kube-system.svc.cluster.local/version",
                TIEFIGHTER,
                "http://kubernetes-dashboard.kube-system.svc.cluster.local/version",
                false,
            ),
        ],
    },
    Chapter {
        title: "Allowing select ingress from other namespaces",
        policy: include_str!("../data/seed/3-prometheus-metrics.yaml"),
        tests: &[
            test(
                "kubectl exec -it prometheus-core -n monitoring -- wget -O metrics deathstar.empire.svc.cluster.local:8080/metrics",
                PROMETHEUS,
                "http://deathstar.empire.svc.cluster.local:8080/metrics",
                true,
            ),
            test(
                "kubectl exec -it prometheus-core -n monitoring -- wget -O random_get deathstar.empire.svc.cluster.local:80/v1",
                PROMETHEUS,
                "http://deathstar.empire.svc.cluster.local:80/v1",
                false,
            ),
        ],
    },
    Chapter {
        title: "Allowing select egress to outside the cluster",
        policy: include_str!("../data/seed/4-cilium-io.yaml"),
        tests: &[
            test("kubectl exec -it tiefighter -n empire -- curl -sL cilium.io", TIEFIGHTER, "http://cilium.io/", true),
            test(
                "kubectl exec -it tiefighter -n empire -- curl -sL google.com",
                TIEFIGHTER,
                "http://google.com/",
                false,
            ),
        ],
    },
];

/// The world of the article: its application, the cluster's own pods, cilium.io and google.com.
pub fn world() -> Result<World> {
    let mut spec = Spec::empire()?;
    let pods = ["deathstar-1", "kubernetes-dashboard"].map(|name| spec.pods.iter().any(|pod| pod.name == name));
    anyhow::ensure!(pods == [true, true], "world-empire.yaml has lost a pod of the article");
    // One pod behind the service: the article's address of "the deathstar pod" then is what the name leads to.
    spec.pods.retain(|pod| pod.name != "deathstar-2" && pod.name != "coredns-2");
    World::build(spec)
}

/// What `kubectl create -n NAMESPACE -f -` hands to the API server: the namespace is filled in, nothing else changes.
pub fn kubectl_create(namespace: &str, policy: &str) -> String {
    policy.replacen("metadata:\n", &format!("metadata:\n  namespace: {namespace}\n"), 1)
}

/// Gives a chapter's policy to the agent in place of the one before.
pub fn apply(agent: &Agent<'_>, chapter: &Chapter) -> Result<Applied> {
    agent.apply(&kubectl_create(NAMESPACE, chapter.policy))
}

/// Runs a test without asking any agent.
pub fn act(world: &World, test: &Test) -> Visit {
    let pod = world.pod(test.pod);
    let mut client = pod.client();
    (client.within, client.dns_within) = (WITHIN, WITHIN);
    let url = test.url;
    pod.run(client, move |client| async move { client.get(url).await })
}

/// Runs a test and compares.
pub fn run(world: &World, agent: &Agent<'_>, test: &Test) -> Result<Row> {
    let (started, before) = (Instant::now(), agent.flows("")?.len());
    let visit = act(world, test);
    let verdict = match visit.status() {
        Some(200) if test.allowed => Verdict::AsSaid,
        None if !test.allowed && dropped(&visit) => Verdict::AsSaid,
        _ => Verdict::Differs,
    };
    let flow = decisive(agent, before, visit.status().is_some(), visit.address)?;
    let host = test.url.trim_start_matches("http://").split(['/', ':']).next().context("a host in the URL")?;
    let answered = world.zone().answered(host).filter(|answered| *answered > started);
    let answer_to_enforced = visit.resolved.zip(answered).map(|(resolved, answered)| resolved - answered);
    Ok(Row { test: *test, verdict, seen: seen(&visit), flow, answer_to_enforced })
}

/// The article's `^C`: nothing came back, from the host or already from the resolver.
fn dropped(visit: &Visit) -> bool {
    matches!(visit.outcome, Err(Failure::Timeout | Failure::Dns(crate::dns::DnsFailure::Timeout)))
}

fn seen(visit: &Visit) -> String {
    match &visit.outcome {
        Ok(page) => format!("HTTP {}", page.status),
        Err(Failure::Dns(failure)) => format!("name not resolved: {failure}"),
        Err(failure) => format!("no connection: {failure}"),
    }
}

/// The newest flow since `before` that tells why: of the right verdict, and towards the address that was called.
fn decisive(agent: &Agent<'_>, before: usize, allowed: bool, address: Option<IpAddr>) -> Result<Option<Value>> {
    let wanted = if allowed { "allowed" } else { "denied" };
    let deadline = Instant::now() + RECORD_WITHIN;
    loop {
        let flows = agent.flows("")?;
        let mut fresh = flows.get(before.min(flows.len())..).unwrap_or_default().iter().rev();
        let to = |flow: &Value| address.is_none_or(|address| flow["destination"] == address.to_string());
        let found = fresh.find(|flow| flow["verdict"] == wanted && to(flow) && has_reason(flow));
        if found.is_some() || Instant::now() > deadline {
            return Ok(found.cloned());
        }
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// Without a policy there is nothing to tell of.
fn has_reason(flow: &Value) -> bool {
    flow["reason"] != "no-policy"
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_policies_are_the_articles_words() {
        for chapter in CHAPTERS {
            let (provenance, policy) = chapter.policy.split_once('\n').unwrap();
            assert!(provenance.starts_with("# Word for word"), "{provenance}");
            assert!(policy.starts_with("apiVersion: \"cilium.io/v2\"\nkind: CiliumNetworkPolicy\n"), "{policy}");
        }
        assert!(CHAPTERS[3].policy.ends_with("    - toFQDNs:\n        - matchName: \"cilium.io\"\n"));
    }

    #[test]
    fn kubectl_fills_in_the_namespace_and_nothing_else() {
        let created = kubectl_create("empire", CHAPTERS[0].policy);
        assert_eq!(created.replace("  namespace: empire\n", ""), CHAPTERS[0].policy);
        assert!(created.contains("metadata:\n  namespace: empire\n  name: \"allow-within-namespace\"\n"));
    }
}
