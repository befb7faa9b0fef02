//! Two nodes with an agent each: policies between their pods, services and hosts, and what holds while an agent is away.

mod away;
mod peers;
mod world;

use std::collections::BTreeSet;

use anyhow::{Context, Result};
use namegate_testbed::Task;

use crate::cluster::{Cluster, wait};
use crate::outside::UNNAMED;
use crate::report::Report;
use crate::services::world::{fetch, look_up};
use world::{FAMILIES, NAMESPACE, To, WITHIN, World};

const POLICIES: &str = include_str!("../../../data/cluster/nodes-policies.yaml");
/// The same in the agents' words.
const DOCUMENTS: [&str; 2] = ["CiliumNetworkPolicy nodes/across", "NetworkPolicy nodes/only-a"];
/// Connections to a service with a pod of each node behind it.
const CONNECTIONS: usize = 30;

/// What is called, who gets through, who does not. Clients are on the first node, all but `back`.
type Row = (&'static str, To, &'static [&'static str], &'static [&'static str]);

const ROWS: [Row; 10] = [
    ("egress by labels, a pod of node 2; its ingress by labels", To::Pod("b"), &["a"], &["free", "none"]),
    ("another pod of node 2", To::Pod("c"), &["free"], &["a", "none"]),
    ("ClusterIP, a pod of each node behind it", To::Service("mixed"), &["free", "both"], &["one", "none"]),
    ("ClusterIP of a pod of node 2 that lets one client in", To::Service("door"), &["caller"], &["free", "one"]),
    (
        "NodePort of node 1, the same pod: it sees node 1, which it does not let in",
        To::NodePort(1, "door"),
        &[],
        &["caller", "free", "one"],
    ),
    (
        "NodePort of node 1, a pod of node 2 that lets `remote-node` in",
        To::NodePort(1, "gate"),
        &["caller", "free"],
        &["one", "none"],
    ),
    (
        "NodePort of node 2, its own pod: it sees its own node",
        To::NodePort(2, "door"),
        &["caller", "free"],
        &["one", "none"],
    ),
    ("the other way, a pod of node 1", To::Pod("near"), &["back", "free"], &["a", "none"]),
    ("a port of node 2 itself", To::Node(2), &["remote", "free"], &["host", "none"]),
    ("a port of node 1 itself", To::Node(1), &["host", "free"], &["remote", "none"]),
];

/// Both nodes with their pods.
struct Suite<'a> {
    /// As each node's agent sees it.
    clusters: [&'a Cluster; 2],
    world: World,
}

/// Runs it.
pub(crate) fn run(first: &Cluster, report: &mut Report) -> Result<()> {
    Report::chapter("Two nodes");
    let second = first.nodes().nth(1);
    let second = second.context("the cluster has one node; next step: `cargo xtask cluster up --nodes 2`")?;
    let suite = Suite { clusters: [first, second], world: World::build(first)? };
    wait("every call to get through without a policy", || {
        let open = |(_, to, may, may_not): Row| suite.through(to, may, may_not).map(|seen| all(&seen, may, may_not));
        ROWS.into_iter().try_fold(true, |good, row| Ok(good && open(row)?)).map(|good| good.then_some(()))
    })?;
    Report::note("without a policy every call gets through");
    first.change(DOCUMENTS[0], true, || first.feed(&["apply", "-f", "-"], POLICIES).map(drop))?;
    first.change(DOCUMENTS[1], true, || Ok(()))?;
    suite.rows(report, "", &ROWS)?;
    suite.spread(report)?;
    suite.limits(report)?;
    suite.names(report)?;
    suite.peers(report)?;
    suite.upgrade(report)?;
    suite.away(report)?;
    first.kubectl(&["delete", "namespace", NAMESPACE, "--wait=false"]).map(drop)
}

/// Whether every client got through in both families.
fn all(seen: &[Vec<&'static str>; 2], may: &[&str], may_not: &[&str]) -> bool {
    seen.iter().all(|through| through.len() == may.len() + may_not.len())
}

impl Suite<'_> {
    /// Who of these gets through to somebody, in each family.
    fn through(&self, to: To, may: &[&'static str], may_not: &[&'static str]) -> Result<[Vec<&'static str>; 2]> {
        let clients = || may.iter().chain(may_not).copied();
        let calls = |v6| clients().map(move |client| self.world.call(client, to, v6)).collect::<Result<Vec<_>>>();
        // All are under way before the first is waited for.
        let families = [calls(false)?, calls(true)?];
        let seen = families
            .map(|calls| clients().zip(calls).filter_map(|(client, call)| call.wait().map(|_| client)).collect());
        Ok(seen)
    }

    /// Who gets through to what.
    fn rows(&self, report: &mut Report, when: &str, rows: &[Row]) -> Result<()> {
        for (what, to, may, may_not) in rows.iter().copied() {
            let seen = self.through(to, may, may_not)?;
            let list = |names: &[&str]| if names.is_empty() { "nobody".to_owned() } else { names.join(", ") };
            let words =
                FAMILIES.into_iter().zip(&seen).map(|((family, _), through)| format!("{family}: {}", list(through)));
            let words: Vec<String> = words.collect();
            let expected = format!("{} get through, {} do not", list(may), list(may_not));
            let good = seen.iter().all(|through| through == may);
            report.row(&format!("{when}{what}"), &expected, &words.join("; "), good);
        }
        Ok(())
    }

    /// Connections to a service end at the pods of both nodes.
    fn spread(&self, report: &mut Report) -> Result<()> {
        for (family, v6) in FAMILIES {
            let calls = (0..CONNECTIONS).map(|_| self.world.call("both", To::Service("mixed"), v6));
            let calls: Vec<_> = calls.collect::<Result<_>>()?;
            let pods: Vec<String> = calls.into_iter().filter_map(Task::wait).collect();
            let (count, kinds) = (pods.len(), pods.into_iter().collect::<BTreeSet<_>>());
            let kinds: Vec<&str> = kinds.iter().map(String::as_str).collect();
            report.row(
                &format!("{CONNECTIONS} connections to a pod of each node, {family}"),
                &format!("{CONNECTIONS} get through, to far, near"),
                &format!("{count} get through, to {}", kinds.join(", ")),
                count == CONNECTIONS && kinds == ["far", "near"],
            );
        }
        Ok(())
    }

    /// Limits on requests of a client. Its proxy calls a pod of another node with the node's address.
    fn limits(&self, report: &mut Report) -> Result<()> {
        for (family, v6) in FAMILIES {
            let ask = |to, page| -> Result<String> {
                let said = self.world.ask("limited", To::Pod(to), v6, page)?.wait();
                Ok(said.unwrap_or_else(|| "nothing".to_owned()))
            };
            let seen = [ask("gate", "/")?, ask("gate", "/other")?, ask("door", "/")?];
            report.row(
                &format!("rules.http of a client of node 1, pods of node 2, {family}"),
                "one that lets `remote-node` in: a page that the rule names is its own, another is not; one that lets in the \
                 client alone: nothing, it sees node 1",
                &format!("{}, {}; {}", seen[0], seen[1], seen[2]),
                seen[0] == "gate" && seen[1] != "gate" && seen[1] != "nothing" && seen[2] == "nothing",
            );
        }
        Ok(())
    }

    /// A pod of node 2 asks the cluster's DNS, which runs on node 1.
    fn names(&self, report: &mut Report) -> Result<()> {
        let dns = self.clusters[0].get(&["pods", "-n", "kube-system", "-l", "k8s-app=kube-dns"])?;
        let node = dns["items"][0]["spec"]["nodeName"].as_str().unwrap_or("no node").to_owned();
        let visit = |name: &'static str| -> Result<bool> {
            let task = self.world.netns("names")?.spawn(async move {
                let addresses = look_up(name, 80, WITHIN).await?;
                fetch(*addresses.first()?, "/", WITHIN).await
            });
            Ok(task.wait().is_some())
        };
        let unnamed = (UNNAMED, 80).into();
        let allowed = visit("cilium.io")?;
        let denied = [
            visit("google.com")?,
            self.world.netns("names")?.run(async move { fetch(unnamed, "/", WITHIN).await.is_some() }),
        ];
        let word = |through: bool| if through { "allowed" } else { "denied" };
        report.row(
            "toFQDNs of a pod of node 2",
            "DNS runs on node1; cilium.io: allowed, google.com: denied, an address without a name: denied",
            &format!(
                "DNS runs on {node}; cilium.io: {}, google.com: {}, an address without a name: {}",
                word(allowed),
                word(denied[0]),
                word(denied[1])
            ),
            node == "node1" && allowed && denied == [false; 2],
        );
        Ok(())
    }
}
