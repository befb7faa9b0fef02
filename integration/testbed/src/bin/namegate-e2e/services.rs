//! Services of Kubernetes: who reaches one is who may reach the pods behind it, whatever kube-proxy makes of services.

pub(crate) mod world;

use std::collections::BTreeSet;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::json;

use crate::cluster::{Cluster, wait};
use crate::report::Report;
use world::{At, CLAIMED, NAMESPACE, WITHIN, World, fetch, server};

/// How kube-proxy may send packets on. The first is that of the cluster.
const MODES: [&str; 2] = ["nftables", "iptables"];
/// Where kube-proxy says which of them it has, in the node's network.
const PROXY: &str = "127.0.0.1:10249";
/// A port that it opens on every address of the node.
const HEALTH: u16 = 10256;
/// Connections of one client to a service that keeps it with one pod.
const CONNECTIONS: usize = 30;
/// How long it may take until another pod behind a service is judged.
const SOON: Duration = Duration::from_secs(1);
/// How long a call may take that is made again and again.
const GLANCE: Duration = Duration::from_millis(300);

/// What is called, who gets through, who does not.
type Row = (&'static str, At, &'static [&'static str], &'static [&'static str]);

const ROWS: [Row; 21] = [
    ("an external address of an ExternalName service", outside(41), &["free"], &["label", "both"]),
    ("an external address of a headless service", outside(42), &["free"], &["label", "both"]),
    ("an external address of another proxy's service", outside(43), &["free"], &["label", "both"]),
    ("a balancer's address with ipMode: Proxy", outside(44), &["free"], &["label", "both"]),
    ("an external address that kube-proxy sends on", outside(45), &["free", "label", "both"], &["other"]),
    ("a pod's address that a service with other pods claims", At::Pod(CLAIMED), &["free", "both"], &["label", "other"]),
    (
        "ClusterIP, port 80 to 8080",
        At::Service("web"),
        &["free", "label", "both", "service", "named"],
        &["port", "other", "node"],
    ),
    (
        "ClusterIP over IPv6",
        At::Service6("web"),
        &["free", "label", "both", "service", "named"],
        &["port", "other", "node"],
    ),
    ("targetPort by its name", At::Service("named"), &["free", "label", "named"], &["port", "other"]),
    ("targetPort by its name over IPv6", At::Service6("named"), &["free", "label", "named"], &["port", "other"]),
    ("headless, addresses from DNS", At::Name("headless", 8080), &["free", "label", "named"], &["port", "other"]),
    ("NodePort at the node's address", At::NodePort("web"), &["free", "label", "service"], &["port", "other", "node"]),
    ("NodePort over IPv6", At::NodePort6("web"), &["free", "label", "service"], &["port", "other", "node"]),
    ("a port of the node itself", At::Node(HEALTH), &["free", "node"], &["label", "service"]),
    ("ExternalName that a rule allows", At::Name("far", 80), &["free", "name"], &["label", "node"]),
    ("ExternalName that no rule allows", At::Name("farther", 80), &["free"], &["name", "label"]),
    ("internalTrafficPolicy: Local", At::Service("near"), &["free", "label"], &["port", "other"]),
    ("ClusterIP of a pod that lets one client in", At::Service("guarded"), &["label"], &["free", "port", "other"]),
    (
        "externalTrafficPolicy: Local, the same pod",
        At::NodePort("guarded"),
        &["label"],
        &["free", "port", "other", "node"],
    ),
    (
        "externalTrafficPolicy: Cluster, the same pod",
        At::NodePort("masqueraded"),
        &["free", "label", "other"],
        &["port", "node"],
    ),
    ("two pods behind it, one allowed", At::Service("mixed"), &["free", "both"], &["label", "other"]),
];

/// An address outside.
const fn outside(last: u8) -> At {
    At::Outside(Ipv4Addr::new(203, 0, 113, last))
}

/// Runs it. `xtask` ends and starts kube-proxy.
pub(crate) fn run(cluster: &Cluster, report: &mut Report, xtask: &Path) -> Result<()> {
    Report::chapter("Services");
    let world = World::build(cluster)?;
    let mut proxy = Proxy { xtask, mode: MODES[0] };
    for mode in MODES {
        Report::chapter(&format!("Services, kube-proxy with {mode}"));
        proxy.set(mode)?;
        let suite = Suite { cluster, world: &world };
        suite.mode(report, mode)?;
        suite.rows(report)?;
        suite.warning(report)?;
        suite.affinity(report)?;
        suite.limits(report)?;
        suite.replaced(report, mode)?;
    }
    drop(proxy);
    cluster.kubectl(&["delete", "namespace", NAMESPACE, "--wait=false"]).map(drop)
}

/// kube-proxy, which has its first mode again afterwards, whatever happens.
struct Proxy<'a> {
    xtask: &'a Path,
    mode: &'static str,
}

impl Proxy<'_> {
    fn set(&mut self, mode: &'static str) -> Result<()> {
        if self.mode == mode {
            return Ok(());
        }
        self.mode = mode;
        // It may have ended by itself.
        let _ = self.cluster(&["stop", "kube-proxy"]);
        self.cluster(&["start", "kube-proxy", "--proxy-mode", mode])
    }

    fn cluster(&self, arguments: &[&str]) -> Result<()> {
        let status = Command::new(self.xtask).arg("cluster").args(arguments).status().context("running xtask")?;
        ensure!(status.success(), "`xtask cluster {}` failed", arguments.join(" "));
        Ok(())
    }
}

impl Drop for Proxy<'_> {
    fn drop(&mut self) {
        if let Err(error) = self.set(MODES[0]) {
            Report::note(&format!("kube-proxy is not as it was: {error:#}"));
        }
    }
}

struct Suite<'a> {
    cluster: &'a Cluster,
    world: &'a World,
}

impl Suite<'_> {
    /// Waits until kube-proxy has made its rules, and only those of this mode are there.
    fn mode(&self, report: &mut Report, mode: &str) -> Result<()> {
        let (node, address): (_, SocketAddr) = (self.cluster.enter_node()?, PROXY.parse()?);
        let said = wait(&format!("kube-proxy with {mode}"), || {
            let said = node.run(async move { fetch(address, "/proxyMode", GLANCE).await });
            Ok(said.filter(|said| said == mode))
        })?;
        for at in [At::NodePort("web"), At::NodePort6("web")] {
            wait("kube-proxy's rules", || Ok(self.world.call("free", at)?.wait()))?;
        }
        let table = self.cluster.in_node(&["nft", "list", "table", "ip", "kube-proxy"]).is_ok();
        let rules = self.cluster.in_node(&["iptables-save", "-t", "nat"])?;
        let chains = rules.lines().filter(|line| line.starts_with("-A KUBE-SVC-")).count();
        let seen = format!(
            "{said}, {} table of nftables, {chains} rules of iptables for services",
            if table { "a" } else { "no" }
        );
        let expected = if mode == MODES[0] {
            "nftables, a table of nftables, 0 rules of iptables for services"
        } else {
            "iptables, no table of nftables, rules of iptables for services"
        };
        let good = if mode == MODES[0] { table && chains == 0 } else { !table && chains > 0 };
        report.row("what kube-proxy has made", expected, &seen, good);
        Ok(())
    }

    /// Who gets through to what.
    fn rows(&self, report: &mut Report) -> Result<()> {
        let mut tasks = Vec::new();
        for (_, at, may, may_not) in ROWS {
            let calls = may.iter().chain(may_not).map(|client| Ok((*client, self.world.call(client, at)?)));
            tasks.push(calls.collect::<Result<Vec<_>>>()?);
        }
        for ((what, _, may, may_not), calls) in ROWS.into_iter().zip(tasks) {
            let through = calls.into_iter().filter_map(|(client, call)| call.wait().map(|_| client));
            let through: Vec<&str> = through.collect();
            let expected = format!("{} get through, {} do not", may.join(", "), may_not.join(", "));
            report.row(what, &expected, &format!("{} get through", through.join(", ")), through == may);
        }
        Ok(())
    }

    /// A service that leads to some who may be reached and others who may not is told.
    fn warning(&self, report: &mut Report) -> Result<()> {
        let status = self.cluster.agent("/v1/status").context("the agent does not answer")?;
        let found = status["diagnostics"].as_array().into_iter().flatten().find(|one| {
            one["code"] == "namegate::divided-service"
                && one["message"].as_str().is_some_and(|message| message.contains("services/mixed 80/TCP"))
        });
        let seen = found.map_or("nothing", |one| one["message"].as_str().unwrap_or_default());
        let good =
            ["client-label", "client-other"].iter().all(|who| seen.contains(who)) && !seen.contains("client-both");
        report.row("what `namegate status` says of it", "it is shut to client-label and client-other", seen, good);
        Ok(())
    }

    /// Many connections of one client end at one pod where the service says so.
    fn affinity(&self, report: &mut Report) -> Result<()> {
        let many = |client: &str, name: &'static str| -> Result<(usize, usize)> {
            let calls = (0..CONNECTIONS).map(|_| self.world.call(client, At::Service(name)));
            let calls: Vec<_> = calls.collect::<Result<_>>()?;
            let pods: Vec<String> = calls.into_iter().filter_map(namegate_testbed::Task::wait).collect();
            Ok((pods.len(), pods.into_iter().collect::<BTreeSet<_>>().len()))
        };
        for (what, client, name, want) in [
            ("sessionAffinity: ClientIP, a client that may", "label", "sticky", (CONNECTIONS, 1)),
            ("the same client at a service without it", "label", "web", (CONNECTIONS, 2)),
            ("sessionAffinity: ClientIP, a client that may not", "other", "sticky", (0, 0)),
        ] {
            let words = |(through, pods)| format!("{through} of {CONNECTIONS} get through, to {pods} pods");
            let seen = many(client, name)?;
            report.row(what, &words(want), &words(seen), seen == want);
        }
        Ok(())
    }

    /// Limits on requests hold on each way to a pod.
    fn limits(&self, report: &mut Report) -> Result<()> {
        for (what, at) in [
            ("rules.http, ClusterIP", At::Service("web")),
            ("rules.http, ClusterIP over IPv6", At::Service6("web")),
            ("rules.http, NodePort at the node's address", At::NodePort("web")),
            ("rules.http, headless", At::Name("headless", 8080)),
        ] {
            let ask = |client, page| self.world.ask(client, at, page, WITHIN);
            let asked = [ask("free", "/index.html")?, ask("limited", "/")?, ask("limited", "/index.html")?];
            let said = asked.map(|page| page.wait().unwrap_or_else(|| "nothing".to_owned()));
            let good = said.each_ref().map(|line| line.starts_with("web-")) == [true, true, false];
            let seen = format!("{}; it gets {}, then {}", said[0], said[1], said[2]);
            let expected = "another client gets both pages; it gets the one, not the other";
            report.row(what, expected, &seen, good && said[2] != "nothing");
        }
        // The proxy's connection comes from the node, which every pod lets in.
        let said = self.world.call("limited", At::Service("guarded"))?.wait();
        let seen = said.as_deref().unwrap_or("nothing");
        let what = "rules.http, ClusterIP of a pod that does not let the client in";
        report.row(what, "it gets nothing", &format!("it gets {seen}"), said.is_none());
        Ok(())
    }

    /// The pod behind a service is replaced by others, which are judged as they are.
    fn replaced(&self, report: &mut Report, mode: &str) -> Result<()> {
        let mut before: Option<String> = None;
        for (number, (app, open)) in [("web", true), ("other", false), ("web", true)].into_iter().enumerate() {
            if let Some(before) = &before {
                self.cluster.kubectl(&["delete", "pod", before, "-n", NAMESPACE, "--wait=false"])?;
            }
            let pod = format!("turn-{mode}-{number}");
            let labels = json!({"app": app, "turn": "here"});
            self.cluster.feed(&["apply", "-f", "-"], &server(&pod, &labels).to_string())?;
            let verb = if before.is_some() { "replaced by another" } else { "made" };
            self.judged(report, &format!("the pod behind a service is {verb}, app={app}"), &pod, open)?;
            before = Some(pod);
        }
        let last = before.context("a pod was made")?;
        for (selector, app, pod, open) in [
            (r#"{"app":"other","turn":null}"#, "other", "other", false),
            (r#"{"app":null,"turn":"here"}"#, "web", last.as_str(), true),
        ] {
            let patch = format!(r#"{{"spec":{{"selector":{selector}}}}}"#);
            self.cluster.kubectl(&["patch", "service", "turning", "-n", NAMESPACE, "-p", &patch])?;
            self.judged(report, &format!("the service is turned to a pod that runs, app={app}"), pod, open)?;
        }
        self.cluster.kubectl(&["delete", "pod", &last, "-n", NAMESPACE, "--wait=false"]).map(drop)
    }

    /// Waits until a pod answers for the service `turning`; sees how long after that the client `label` is judged by it.
    fn judged(&self, report: &mut Report, what: &str, pod: &str, open: bool) -> Result<()> {
        let call = |client| -> Result<_> { Ok(self.world.ask(client, At::Service("turning"), "/", GLANCE)?.wait()) };
        wait(&format!("an answer of {pod}"), || Ok(call("free")?.filter(|said| said == pod)))?;
        let answers = Instant::now();
        let after = wait("the new pod to be judged", || {
            let began = answers.elapsed();
            Ok((call("label")?.is_some() == open).then_some(began))
        })?;
        let word = if open { "allowed" } else { "denied" };
        report.row(
            what,
            &format!("{word} within {} ms of its first answer to others", SOON.as_millis()),
            &format!("{word} after {} ms", after.as_millis()),
            after <= SOON,
        );
        Ok(())
    }
}
