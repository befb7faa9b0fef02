//! Policies of another project's suite against real pods: every pod calls every other, and the table of who got through
//! is compared with the one that the suite expects.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use crate::cluster::{Cluster, wait};
use crate::mesh::{Mesh, Probe};
use crate::report::Report;

/// How long the cluster may take until a table is as expected.
const PATIENCE: Duration = Duration::from_secs(10);
/// Differences that are shown of one table.
const SHOWN: usize = 3;

/// Cases of one source, on the world that they share.
pub(crate) struct Source {
    title: &'static str,
    folder: &'static str,
}

/// Kubernetes' own end-to-end tests for network policies.
pub(crate) const KUBERNETES: Source =
    Source { title: "Network policies of Kubernetes' own end-to-end tests", folder: "k8s-e2e" };
/// The generated cases of cyclonus.
pub(crate) const CYCLONUS: Source = Source { title: "Network policies that cyclonus generates", folder: "cyclonus" };

/// Runs every case of a source.
pub(crate) fn run(
    cluster: &Cluster,
    report: &mut Report,
    source: &Source,
    root: &Path,
    only: Option<&str>,
) -> Result<()> {
    Report::chapter(source.title);
    let world = read(&root.join("world-netpol.yaml"))?;
    let mesh = Mesh::build(cluster, &world)?;
    Report::note(&format!("{} pods, each calls each by address and by service, IPv4 and IPv6", mesh.len()));
    let mut state = State { world: &world, policies: BTreeSet::new(), changed: BTreeSet::new() };
    let mut skipped = 0;
    for path in cases(&root.join("cases").join(source.folder))? {
        let case = read(&path)?;
        let name = case["name"].as_str().context("a case has a name")?;
        if only.is_some_and(|only| !name.contains(only)) {
            continue;
        }
        if !fits(&world, &case) {
            skipped += 1;
            continue;
        }
        match play(cluster, &mesh, &mut state, &case) {
            Ok(played) => report.row(name, "every verdict", &played.text(), played.wrong.is_empty()),
            Err(error) => report.row(name, "every verdict", &format!("{error:#}"), false),
        }
    }
    if skipped > 0 {
        Report::note(&format!(
            "{skipped} cases left out: they add pods, or name prefixes of addresses that are others here"
        ));
    }
    state.apply(cluster, &json!({}), &[])?;
    mesh.take_down(cluster)
}

/// Whether a case can be played where pods have other addresses than in the world's file.
fn fits(world: &Value, case: &Value) -> bool {
    let text = case.to_string();
    let of_a_pod = |prefix: &str| {
        let pods = world["pods"].as_array().into_iter().flatten();
        let mut addresses = pods.filter_map(|pod| pod["ips"][0].as_str());
        addresses.any(|address| prefix.strip_suffix("/32") == Some(address))
    };
    let mut prefixes = Vec::new();
    collect(case, &mut prefixes);
    let known = |prefix: &&str| prefix.starts_with("0.0.0.0/") || of_a_pod(prefix);
    prefixes.iter().all(known) && !text.contains("\"add_pods\"") && !text.contains("\"add_namespaces\"")
}

/// Every prefix of an `ipBlock`.
fn collect<'a>(value: &'a Value, prefixes: &mut Vec<&'a str>) {
    match value {
        Value::Object(fields) => {
            if let Some(block) = fields.get("ipBlock") {
                let except = block["except"].as_array().into_iter().flatten();
                prefixes.extend(std::iter::once(&block["cidr"]).chain(except).filter_map(Value::as_str));
            }
            fields.values().for_each(|value| collect(value, prefixes));
        }
        Value::Array(values) => values.iter().for_each(|value| collect(value, prefixes)),
        _ => {}
    }
}

/// What one case came to.
#[derive(Default)]
struct Played {
    verdicts: usize,
    wrong: Vec<String>,
}

impl Played {
    fn text(&self) -> String {
        if self.wrong.is_empty() {
            return format!("{} verdicts", self.verdicts);
        }
        let shown = self.wrong.iter().take(SHOWN).cloned().collect::<Vec<_>>().join(", ");
        format!("{} of {} verdicts differ: {shown}", self.wrong.len(), self.verdicts)
    }
}

fn play(cluster: &Cluster, mesh: &Mesh, state: &mut State<'_>, case: &Value) -> Result<Played> {
    let whole = [case.clone()];
    let steps = case["steps"].as_array().map_or(&whole[..], Vec::as_slice);
    let mut played = Played::default();
    for step in steps {
        let policies = real(mesh, state.world, &step["policies"])?;
        state.apply(cluster, &step["world_changes"], &policies)?;
        let mut expected = expected(mesh, &step["expect"]["matrix"])?;
        // The suite's prefixes are of the family it was recorded with.
        if step["policies"].to_string().contains("ipBlock") {
            expected.retain(|(probe, _)| probe.is_ipv4());
        }
        played.verdicts += expected.len();
        let started = Instant::now();
        loop {
            let seen = mesh.call(expected.iter().map(|(probe, _)| probe));
            let wrong = expected.iter().zip(&seen).filter(|((_, allowed), seen)| allowed != *seen);
            let wrong: Vec<String> = wrong.map(|((probe, _), seen)| Mesh::words(probe, *seen)).collect();
            if wrong.is_empty() || started.elapsed() > PATIENCE {
                played.wrong.extend(wrong);
                break;
            }
        }
    }
    Ok(played)
}

/// Policies with the real address of a pod in the place of the one that the world's file gives it.
fn real(mesh: &Mesh, world: &Value, policies: &Value) -> Result<Vec<Value>> {
    let mut text = if policies.is_null() { "[]".to_owned() } else { policies.to_string() };
    for pod in world["pods"].as_array().into_iter().flatten() {
        let name =
            format!("{}/{}", pod["namespace"].as_str().unwrap_or_default(), pod["name"].as_str().unwrap_or_default());
        if let (Some(theirs), Some(ours)) = (pod["ips"][0].as_str(), mesh.ipv4(&name)) {
            text = text.replace(&format!("\"{theirs}/32\""), &format!("\"{ours}/32\""));
        }
    }
    serde_json::from_str(&text).context("policies with real addresses")
}

/// Every call that a matrix makes a claim about, with whether it gets through.
fn expected(mesh: &Mesh, matrix: &Value) -> Result<Vec<(Probe, bool)>> {
    let words = |list: &Value| -> Vec<String> {
        list.as_array().into_iter().flatten().filter_map(Value::as_str).map(str::to_owned).collect()
    };
    let to = words(&matrix["to"]);
    let mut expected = Vec::new();
    for table in matrix["tables"].as_array().context("a matrix has tables")? {
        for probe in words(&table["probes"]) {
            let (protocol, port) = probe.split_once('/').context("a probe is PROTOCOL/PORT")?;
            let (protocol, port) = (serde_json::from_value(protocol.into())?, port.parse()?);
            for from in mesh.names() {
                let row = table["rows"][from].as_str().map_or_else(|| ".".repeat(to.len()), str::to_owned);
                ensure!(row.len() == to.len(), "the row of {from} has another length than its head");
                for (to, mark) in to.iter().zip(row.chars()).filter(|(to, mark)| *mark != '-' && *to != from) {
                    expected
                        .extend(mesh.probes(from, to, protocol, port)?.into_iter().map(|probe| (probe, mark == '.')));
                }
            }
        }
    }
    Ok(expected)
}

/// What of the cluster is not as the world's file says.
struct State<'a> {
    world: &'a Value,
    /// Kind, namespace and name.
    policies: BTreeSet<(String, String, String)>,
    /// Kind, namespace and name of what has other labels.
    changed: BTreeSet<(String, String, String)>,
}

impl State<'_> {
    /// Makes the policies and labels of the cluster those of a step.
    fn apply(&mut self, cluster: &Cluster, changes: &Value, policies: &[Value]) -> Result<()> {
        let wanted: BTreeSet<_> = policies.iter().map(key).collect();
        let gone: Vec<_> = self.policies.difference(&wanted).cloned().collect();
        // At the same time: the result is the same, and each `kubectl` takes a while to start.
        std::thread::scope(|scope| {
            let delete = |(kind, namespace, name): &(String, String, String)| {
                cluster.kubectl(&["delete", kind, name, "-n", namespace, "--ignore-not-found", "--wait=false"])
            };
            let deleted: Vec<_> = gone.iter().map(|key| scope.spawn(move || delete(key))).collect();
            if !policies.is_empty() {
                let list = json!({"apiVersion": "v1", "kind": "List", "items": policies});
                cluster.feed(&["apply", "-f", "-"], &list.to_string())?;
            }
            deleted.into_iter().try_for_each(|thread| thread.join().expect("kubectl is called").map(drop))
        })?;
        let mut relabelled = BTreeSet::new();
        for (kind, entries) in [("namespace", &changes["namespaces"]), ("pod", &changes["pods"])] {
            for (key, entry) in entries.as_object().into_iter().flatten() {
                let (namespace, name) = key.split_once('/').unwrap_or(("default", key));
                label(cluster, kind, namespace, name, &entry["labels"])?;
                relabelled.insert((kind.to_owned(), namespace.to_owned(), name.to_owned()));
            }
        }
        for (kind, namespace, name) in self.changed.difference(&relabelled) {
            label(cluster, kind, namespace, name, &self.labels(kind, namespace, name)?)?;
        }
        self.changed = relabelled;
        // A table that is asked for before is asked for again.
        let document = |(kind, namespace, name): &_| format!("{kind} {namespace}/{name}");
        let documents = wanted.iter().map(|key| (document(key), true));
        let documents: Vec<(String, bool)> = documents.chain(gone.iter().map(|key| (document(key), false))).collect();
        let documents: Vec<(&str, bool)> = documents.iter().map(|(name, there)| (&**name, *there)).collect();
        self.policies = wanted;
        wait("the policies of a case", || Ok(cluster.enforced(&documents).then_some(())))
    }

    /// The labels of the world's file.
    fn labels(&self, kind: &str, namespace: &str, name: &str) -> Result<Value> {
        let list = if kind == "pod" { &self.world["pods"] } else { &self.world["namespaces"] };
        let is_it = |entry: &&Value| entry["name"] == name && (kind != "pod" || entry["namespace"] == namespace);
        let found = list.as_array().into_iter().flatten().find(is_it);
        Ok(found.with_context(|| format!("the world has no {kind} {name}"))?["labels"].clone())
    }
}

fn label(cluster: &Cluster, kind: &str, namespace: &str, name: &str, labels: &Value) -> Result<()> {
    let patch = json!([{"op": "replace", "path": "/metadata/labels", "value": labels}]).to_string();
    cluster.kubectl(&["patch", kind, name, "-n", namespace, "--type=json", "-p", &patch]).map(drop)
}

fn key(policy: &Value) -> (String, String, String) {
    let text = |value: &Value| value.as_str().unwrap_or("default").to_owned();
    (text(&policy["kind"]), text(&policy["metadata"]["namespace"]), text(&policy["metadata"]["name"]))
}

fn cases(folder: &Path) -> Result<Vec<PathBuf>> {
    let entries = std::fs::read_dir(folder).with_context(|| format!("reading {}", folder.display()))?;
    let mut paths: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).collect();
    paths.retain(|path| path.extension().is_some_and(|ending| ending == "yaml"));
    paths.sort();
    Ok(paths)
}

fn read(path: &Path) -> Result<Value> {
    let text = std::fs::read_to_string(path).with_context(|| format!("reading {}", path.display()))?;
    // `y` is a namespace here and no truth value.
    let options = serde_saphyr::options! { strict_booleans: true };
    serde_saphyr::from_str_with_options(&text, options).with_context(|| format!("reading {}", path.display()))
}
