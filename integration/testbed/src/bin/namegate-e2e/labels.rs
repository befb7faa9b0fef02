//! Labels that pods write under keys of the system: nobody is taken for a pod of another namespace or account.

use std::net::{IpAddr, SocketAddr};

use anyhow::{Context, Result};
use serde_json::Value;

use crate::cluster::Cluster;
use crate::mesh::{Mesh, Probe};
use crate::outside::UNNAMED;
use crate::report::Report;

const WORLD: &str = include_str!("../../../data/cluster/labels.yaml");
const POLICIES: &str = include_str!("../../../data/cluster/labels-policies.yaml");
/// The policies in the agent's words.
const DOCUMENTS: [&str; 5] = [
    "NetworkPolicy labels-prod/same",
    "NetworkPolicy labels-prod/team",
    "CiliumNetworkPolicy labels-prod/account",
    "NetworkPolicy labels-prod/open",
    "NetworkPolicy labels-evil/closed",
];
const PORT: u16 = 80;

/// Whom a row is about: a pod, or an address outside.
#[derive(Clone, Copy)]
enum To {
    Pod(&'static str),
    Outside,
}

/// What is called, by whom, and who of them may.
type Row = (&'static str, To, &'static [&'static str], &'static [&'static str]);

const ROWS: [Row; 4] = [
    (
        "pods of the namespace may, by podSelector",
        To::Pod("labels-prod/same"),
        &["labels-prod/web", "labels-evil/plain", "labels-evil/forged-namespace", "labels-evil/forged-all"],
        &["labels-prod/web"],
    ),
    (
        "pods of a team's namespaces may, by namespaceSelector",
        To::Pod("labels-prod/team"),
        &["labels-prod/web", "labels-evil/plain", "labels-evil/forged-team", "labels-evil/forged-all"],
        &["labels-prod/web"],
    ),
    (
        "pods of a service account may, and none has it",
        To::Pod("labels-prod/account"),
        &["labels-prod/web", "labels-evil/plain", "labels-evil/forged-account", "labels-evil/forged-all"],
        &[],
    ),
    (
        "a namespace's denial, beside a policy of another that opens everything",
        To::Outside,
        &["labels-evil/plain", "labels-evil/shut", "labels-evil/forged-all"],
        &["labels-evil/plain"],
    ),
];

/// Runs it.
pub(crate) fn run(cluster: &Cluster, report: &mut Report) -> Result<()> {
    Report::chapter("Labels that pods write under keys of the system");
    let world: Value = serde_saphyr::from_str(WORLD).context("reading the world of labels")?;
    let mesh = Mesh::build(cluster, &world)?;
    cluster.feed(&["apply", "-f", "-"], POLICIES)?;
    for document in DOCUMENTS {
        cluster.change(document, true, || Ok(()))?;
    }
    for (what, to, callers, may) in ROWS {
        let address = match to {
            To::Pod(name) => mesh.ipv4(name).with_context(|| format!("an address of {name}"))?,
            To::Outside => IpAddr::from(UNNAMED),
        };
        let probes: Vec<Probe> = callers.iter().map(|from| Probe::new(from, SocketAddr::new(address, PORT))).collect();
        let seen = callers.iter().zip(mesh.call(probes.iter())).filter(|(_, through)| *through).map(|(from, _)| *from);
        let seen: Vec<&str> = seen.collect();
        let words = |who: &[&str]| if who.is_empty() { "nobody".to_owned() } else { who.join(", ") };
        let expected = format!("of {}, {} gets through", callers.join(", "), words(may));
        report.row(what, &expected, &format!("{} gets through", words(&seen)), seen == may);
    }
    mesh.take_down(cluster)
}
