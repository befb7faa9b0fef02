//! Pods that come and go: how soon the other node's agent knows a new one, and the address that one leaves behind.

use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use anyhow::Result;
use namegate_testbed::{Failure, Host, Log, Task, client};
use serde_json::json;

use super::Suite;
use super::world::{NAMESPACE, PORT, To, WITHIN, pod};
use crate::cluster::{Cluster, wait};
use crate::report::Report;
use crate::services::world::fetch;

/// How many come.
const NEW: usize = 5;
/// How long one call may take: a denied one is silent.
const GLANCE: Duration = Duration::from_millis(100);
/// How long it may take until an agent of another node has heard of a pod, or of its end.
const SOON: Duration = Duration::from_secs(1);
/// Tries of a new pod, a second each: a node hears of its addresses when the kubelet of the other has told them.
const TRIES: usize = 3;

impl Suite<'_> {
    pub(super) fn peers(&self, report: &mut Report) -> Result<()> {
        let cluster = self.clusters[0];
        let (mut took, mut last) = (Vec::new(), Vec::new());
        for number in 0..NEW {
            let name = format!("new-{number}");
            let script = format!("exec busybox httpd -f -p {PORT}");
            let labels = json!({"pod": name, "group": "b"});
            cluster.feed(&["apply", "-f", "-"], &pod(&name, 2, &labels, Some(&script)).to_string())?;
            last = wait(&format!("an address of {name}"), || Ok(cluster.addresses(NAMESPACE, &name).ok()))?;
            took.push(self.heard(&last)?);
        }
        let millis: Vec<String> = took.iter().map(|took| took.as_millis().to_string()).collect();
        report.row(
            &format!("{NEW} new pods of node 2 that a may call, over IPv4 and IPv6"),
            &format!("they hear a within {} ms of the API server's first word of their addresses", SOON.as_millis()),
            &format!("after {} ms", millis.join(", ")),
            took.iter().all(|took| *took <= SOON),
        );
        self.calls_at_once(report)?;
        let names = (0..NEW).map(|number| format!("new-{number}")).collect::<Vec<_>>();
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        cluster.kubectl(&[&["delete", "pod", "-n", NAMESPACE][..], &names].concat())?;
        self.left(report, &last)
    }

    /// How long it takes until a call to each address is answered, be it by RST where no program listens yet.
    fn heard(&self, addresses: &[IpAddr]) -> Result<Duration> {
        let started = Instant::now();
        for address in addresses.iter().map(|address| SocketAddr::new(*address, PORT)) {
            wait(&format!("an answer of {address}"), || {
                let outcome = self.world.netns("a")?.run(async move { client::connect(address, GLANCE).await.err() });
                Ok(matches!(outcome, None | Some(Failure::Refused)).then_some(()))
            })?;
        }
        Ok(started.elapsed())
    }

    /// A new pod of node 1 calls one of node 2 that lets it in, with its first instruction.
    fn calls_at_once(&self, report: &mut Report) -> Result<()> {
        let b = self.world.address(To::Pod("b"), false)?.ip();
        let script = format!(
            "n=1; until nc -w 1 {b} {PORT} </dev/null; do n=$((n+1)); done; echo $n >/tmp/tries; exec sleep 1000000"
        );
        let cluster = self.clusters[0];
        let labels = json!({"pod": "a"});
        cluster.feed(&["apply", "-f", "-"], &pod("caller-at-once", 1, &labels, Some(&script)).to_string())?;
        let read = ["exec", "-n", NAMESPACE, "caller-at-once", "--", "cat", "/tmp/tries"];
        let tries = wait("the new pod to reach b", || Ok(cluster.kubectl(&read).ok()))?;
        let tries = tries.trim();
        report.row(
            "a new pod of node 1, which the pod of node 2 lets in, calls it with its first instruction",
            &format!("one of {TRIES} tries gets through, of a second each"),
            &format!("try {tries}"),
            tries.parse().is_ok_and(|tries: usize| tries <= TRIES),
        );
        Ok(())
    }

    /// Somebody else answers at the addresses of a pod that is gone.
    fn left(&self, report: &mut Report, addresses: &[IpAddr]) -> Result<()> {
        let gone = Instant::now();
        let squatter = Squatter::new(self.clusters[1], addresses)?;
        let node = self.clusters[1].enter_node()?;
        let host = Host { name: "squatter".to_owned(), log: Log::default(), tls: None };
        node.run(async move { host.http(PORT) })?;
        let reaches = |client: &str, within| -> Result<usize> {
            let call = |address: &IpAddr| {
                let address = SocketAddr::new(*address, PORT);
                Ok(self.world.netns(client)?.spawn(async move { fetch(address, "/", within).await.is_some() }))
            };
            let calls: Vec<Task<bool>> = addresses.iter().map(call).collect::<Result<_>>()?;
            Ok(calls.into_iter().map(Task::wait).filter(|through| *through).count())
        };
        let closed = wait("the addresses to be closed", || {
            let began = gone.elapsed();
            Ok((reaches("a", GLANCE)? == 0).then_some(began))
        })?;
        let (free, a) = (reaches("free", WITHIN)?, reaches("a", WITHIN)?);
        report.row(
            "the IPv4 and the IPv6 address that a pod of node 2 left behind, held by another",
            &format!("free reaches 2, a reaches 0 after {} ms at most", SOON.as_millis()),
            &format!("free reaches {free}, a reaches {a} after {} ms", closed.as_millis()),
            (free, a) == (2, 0) && closed <= SOON,
        );
        drop(node);
        drop(squatter);
        Ok(())
    }
}

/// Addresses of pods that a node holds itself, until the end.
struct Squatter<'a>(&'a Cluster, &'a [IpAddr]);

impl<'a> Squatter<'a> {
    fn new(cluster: &'a Cluster, addresses: &'a [IpAddr]) -> Result<Self> {
        let squatter = Self(cluster, addresses);
        squatter.each("add")?;
        Ok(squatter)
    }

    fn each(&self, verb: &str) -> Result<()> {
        self.1.iter().try_for_each(|address| {
            let text = address.to_string();
            self.0.in_node(&["ip", "addr", verb, &text, "dev", "lo"]).map(drop)
        })
    }
}

impl Drop for Squatter<'_> {
    fn drop(&mut self) {
        if let Err(error) = self.each("del") {
            Report::note(&format!("an address of a pod stays with the node: {error:#}"));
        }
    }
}
