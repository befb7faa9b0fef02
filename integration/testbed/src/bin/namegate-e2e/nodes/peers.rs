//! Pods of the other node that come and go: the first connection to a new one, and the address that one leaves behind.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use anyhow::{Context, Result};
use namegate_testbed::{Failure, Host, Log, client};
use serde_json::json;

use super::Suite;
use super::world::{FAMILIES, NAMESPACE, PORT, WITHIN, pod};
use crate::cluster::{Cluster, wait};
use crate::report::Report;
use crate::services::world::fetch;

/// How many come.
const NEW: usize = 5;
/// How long the first packet may take: TCP sends the second after a second.
const FIRST: Duration = Duration::from_millis(900);

impl Suite<'_> {
    pub(super) fn peers(&self, report: &mut Report) -> Result<()> {
        let cluster = self.clusters[0];
        let mut heard = 0;
        let mut last = Vec::new();
        for number in 0..NEW {
            let name = format!("new-{number}");
            let script = format!("exec busybox httpd -f -p {PORT}");
            let labels = json!({"pod": name, "group": "b"});
            cluster.feed(&["apply", "-f", "-"], &pod(&name, 2, &labels, Some(&script)).to_string())?;
            let addresses = wait(&format!("an address of {name}"), || Ok(cluster.addresses(NAMESPACE, &name).ok()))?;
            heard += usize::from(self.first(&addresses)?);
            last = addresses;
        }
        report.row(
            "a new pod of node 2 that a may call, as soon as it has addresses",
            &format!("{NEW} of {NEW} hear the first packet of a, over IPv4 and IPv6"),
            &format!("{heard} of {NEW}"),
            heard == NEW,
        );
        let names = (0..NEW).map(|number| format!("new-{number}")).collect::<Vec<_>>();
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        cluster.kubectl(&[&["delete", "pod", "-n", NAMESPACE][..], &names].concat())?;
        self.left(report, &last)
    }

    /// Whether the first packet to each address is answered, be it by RST where no program listens yet.
    fn first(&self, addresses: &[IpAddr]) -> Result<bool> {
        let mut heard = true;
        for address in addresses.iter().map(|address| SocketAddr::new(*address, PORT)) {
            let outcome = self.world.netns("a")?.run(async move { client::connect(address, FIRST).await.err() });
            heard &= matches!(outcome, None | Some(Failure::Refused));
        }
        Ok(heard)
    }

    /// Somebody else answers at the addresses of a pod that is gone.
    fn left(&self, report: &mut Report, addresses: &[IpAddr]) -> Result<()> {
        let squatter = Squatter::new(self.clusters[1], addresses)?;
        let node = self.clusters[1].enter_node()?;
        let host = Host { name: "squatter".to_owned(), log: Log::default(), tls: None };
        node.run(async move { host.http(PORT) })?;
        for (family, v6) in FAMILIES {
            let address = addresses.iter().find(|address| address.is_ipv6() == v6);
            let address = SocketAddr::new(*address.with_context(|| format!("an address of {family}"))?, PORT);
            let call = |client| -> Result<bool> {
                Ok(self.world.netns(client)?.run(async move { fetch(address, "/", WITHIN).await.is_some() }))
            };
            wait("whoever is in no policy to get through", || Ok(call("free")?.then_some(())))?;
            let seen = call("a")?;
            let what = format!("the address that a pod of node 2 left behind, {family}");
            let seen = if seen { "free, a get through" } else { "free get through" };
            report.row(&what, "free get through, a do not", seen, seen == "free get through");
        }
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
