//! `cargo xtask e2e`: Namegate installed on a real Kubernetes as users install it, and tried there.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Output};
use std::thread::{self, JoinHandle};
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use clap::Args;

use crate::cluster::images::Image;
use crate::cluster::{self, Cluster};
use crate::shell;

/// The image that the manifest names, and the one that is made here.
const PUBLISHED: &str = "ghcr.io/namegate/namegate:0.1.0";
const REPOSITORY: &str = "localhost/namegate";
const TAG: &str = "e2e";
const NAMESPACE: &str = "kube-system";
const CHART: &str = "integration/deploy/helm/namegate";
const MANIFEST: &str = "integration/deploy/kubernetes/namegate.yaml";
const CRDS: &str = "integration/deploy/crds";

/// What is tried unless told otherwise, and what else there is.
const SUITES: [&str; 8] = [CHURN, "seed", "faults", "conformance", "mistakes", "labels", "reboot", "race"];
const ALL_SUITES: [&str; 12] = [
    CHURN,
    SCALE,
    "seed",
    "faults",
    "conformance",
    "cyclonus",
    "mistakes",
    "labels",
    "services",
    NODES,
    "reboot",
    "race",
];
/// Stands for all of them.
const ALL: &str = "all";
/// Done on two nodes.
const NODES: &str = "nodes";
/// What can be; all others are done on one.
const ON_TWO: [&str; 5] = ["seed", "conformance", "cyclonus", "mistakes", "labels"];
/// Done with an API server of their own, whose pods are on no node.
const CHURN: &str = "churn";
const SCALE: &str = "scale";
/// Their tests.
const LARGE: &str = "churn::ten_thousand_pods";
const MEASURED: &str = "churn::two_thousand_pods";
const MOODS: &str = "server::";

/// What to try.
#[derive(Args)]
pub(crate) struct E2e {
    /// Parts of the run.
    #[arg(long, value_delimiter = ',', default_values = SUITES, value_parser = ALL_SUITES.into_iter().chain([ALL]).collect::<Vec<_>>())]
    suites: Vec<String>,
    /// What installs Namegate.
    #[arg(long, default_value = "manifest", value_parser = ["manifest", "chart"])]
    by: String,
    /// Pods that start at once in the race.
    #[arg(long, default_value_t = 200)]
    pods: usize,
    /// Only cases of conformance whose name has this text.
    #[arg(long)]
    only: Option<String>,
    /// How many nodes the cluster is to have for the suites seed, conformance, cyclonus, mistakes and labels.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u8).range(1..=2))]
    nodes: u8,
    /// End the cluster afterwards.
    #[arg(long)]
    down: bool,
}

impl E2e {
    /// Runs what is asked for, and tells how long it took.
    pub(crate) fn run(&self) -> Result<ExitCode> {
        shell::need_root("namespaces and eBPF", "cargo xtask e2e")?;
        let started = Instant::now();
        let named: Vec<&str> = self.suites.iter().map(String::as_str).collect();
        let suites = if named.contains(&ALL) { ALL_SUITES.to_vec() } else { named };
        let (apart, suites): (Vec<&str>, Vec<&str>) =
            suites.into_iter().partition(|suite| [CHURN, SCALE].contains(suite));
        // Built first: a build is no part of what is measured. Two compilers leave less of the machine idle than one.
        let programs = thread::scope(|scope| {
            let provided = scope.spawn(cluster::provide);
            let programs = build().and_then(|programs| {
                let tests = apart.is_empty() || shell::run(beside_server(&programs).arg("--no-run"))?.success();
                ensure!(tests, "`cargo test --no-run` failed");
                Ok(programs)
            });
            provided.join().ok().context("the thread that provides Kubernetes")??;
            programs
        })?;
        let measured: Vec<_> = apart.iter().map(|suite| (*suite, measure(&programs, suite))).collect();
        let mut moods = None;
        let seen = self.on_clusters(&programs, suites, &mut || {
            if apart.contains(&CHURN) && moods.is_none() {
                moods = Some(Moods::start(&programs));
            }
        });
        let moods = moods.map(|moods| (MOODS, moods.end()));
        let mut code = seen?;
        for (what, outcome) in measured.into_iter().chain(moods) {
            if let Err(error) = outcome {
                shell::step(&format!("{what}: {error:#}"));
                code = code.max(1);
            }
        }
        shell::step(&format!("took {} s with all it had to build", started.elapsed().as_secs()));
        Ok(ExitCode::from(code))
    }

    /// Each suite on a cluster of as many nodes as it is for; gives the exit status. `beside` begins what runs meanwhile.
    fn on_clusters(&self, programs: &Path, suites: Vec<&str>, beside: &mut dyn FnMut()) -> Result<u8> {
        let any = !suites.is_empty();
        let on_two = |suite: &&str| *suite == NODES || (self.nodes == 2 && ON_TWO.contains(suite));
        let (two, one): (Vec<&str>, Vec<&str>) = suites.into_iter().partition(on_two);
        let mut code = 0;
        for (nodes, suites) in [(1, one), (2, two)].into_iter().filter(|(_, suites)| !suites.is_empty()) {
            let cluster = self.install(programs, nodes)?;
            beside();
            code = code.max(self.run_on(&cluster, programs, &suites)?);
        }
        beside();
        if self.down && any {
            cluster::run(&cluster::What::Down)?;
        }
        Ok(code)
    }

    /// Brings a cluster of so many nodes up with Namegate on it.
    fn install(&self, programs: &Path, nodes: u8) -> Result<Cluster> {
        let cluster = cluster::up(Some(nodes))?;
        prepare(&cluster, programs)?;
        let daemons = ["get", "daemonset/namegate", "-n", NAMESPACE, "--ignore-not-found", "--output", "name"];
        let was_there = !shell::output(&mut cluster.kubectl(&daemons))?.is_empty();
        if self.by == "chart" {
            by_chart(&cluster)?;
        } else {
            by_manifest(&cluster)?;
        }
        wait_for_agent(&cluster, was_there)?;
        Ok(cluster)
    }

    /// Runs suites; gives the exit status.
    fn run_on(&self, cluster: &Cluster, programs: &Path, suites: &[&str]) -> Result<u8> {
        let mut e2e = Command::new(programs.join("namegate-e2e"));
        e2e.arg("--kubectl").arg(cluster.program()).arg("--kubeconfig").arg(cluster.folder().join("kubeconfig"));
        e2e.arg("--keeper").arg(cluster.node.record()).args(["--suites", &suites.join(",")]);
        e2e.args(["--pods", &self.pods.to_string()]).arg("--xtask").arg(std::env::current_exe()?);
        if let Some(second) = &cluster.second {
            e2e.arg("--second").arg(second.record());
        }
        if let Some(only) = &self.only {
            e2e.args(["--only", only]);
        }
        let status = shell::run(&mut e2e)?;
        Ok(status.code().and_then(|code| u8::try_from(code).ok()).unwrap_or(2))
    }
}

/// The source of Kubernetes beside an API server of its own that has moods. Its tests wait most of the time: other suites
/// run meanwhile.
struct Moods(JoinHandle<io::Result<Output>>);

impl Moods {
    fn start(programs: &Path) -> Self {
        shell::step("trying the moods of an API server meanwhile");
        let mut cargo = beside_server(programs);
        cargo.args(["--", "--test-threads", "2", MOODS]);
        Self(thread::spawn(move || cargo.output()))
    }

    /// Waits for their end, and shows what they said.
    fn end(self) -> Result<()> {
        let output = self.0.join().ok().context("the thread that waits for cargo")?.context("running cargo")?;
        print!("{}", String::from_utf8_lossy(&output.stdout));
        ensure!(output.status.success(), "`cargo test {MOODS}` failed\n{}", String::from_utf8_lossy(&output.stderr));
        Ok(())
    }
}

/// The source of Kubernetes beside an API server whose pods and policies change.
fn measure(programs: &Path, suite: &str) -> Result<()> {
    let (what, test) = if suite == SCALE { ("10,000 pods", LARGE) } else { ("2,000 pods", MEASURED) };
    shell::step(&format!("{what} and 200 policies on an API server"));
    ensure!(
        shell::run(beside_server(programs).args(["--", "--nocapture", test]))?.success(),
        "`cargo test {test}` failed"
    );
    Ok(())
}

fn beside_server(programs: &Path) -> Command {
    let mut cargo = shell::cargo_command();
    cargo.args(["test", "--package", "namegate-kubernetes", "--features", "cluster", "--test", "cluster"]);
    cargo.env("NAMEGATE_BIN", programs.join("namegate")).current_dir(shell::root());
    cargo
}

/// Builds the programs; those of the image are static. Gives their folder.
fn build() -> Result<PathBuf> {
    shell::step("building the agent, the CNI plugin and the tests");
    for package in ["namegate", "namegate-cni"] {
        shell::cargo(&["rustc", "--package", package, "--bin", package, "--", "-C", "target-feature=+crt-static"])?;
    }
    shell::cargo(&["build", "--package", "namegate-testbed", "--bin", "namegate-e2e"])?;
    Ok(shell::target().join("debug"))
}

/// Hands the image that was just built to the cluster, and the definitions of policies.
fn prepare(cluster: &Cluster, programs: &Path) -> Result<()> {
    shell::step("making the image; applying the CRDs");
    let mut image = Image::new(&format!("{REPOSITORY}:{TAG}"), &["/namegate"]);
    for name in ["namegate", "namegate-cni"] {
        image = image.program(&programs.join(name), name)?;
    }
    cluster.import(&image)?;
    let crds = shell::root().join(CRDS);
    shell::output(&mut cluster.kubectl(&["apply", "--server-side", "-f", &crds.to_string_lossy()])).map(drop)
}

fn by_manifest(cluster: &Cluster) -> Result<()> {
    shell::step(&format!("installing {MANIFEST}"));
    let manifest = fs::read_to_string(shell::root().join(MANIFEST)).with_context(|| format!("reading {MANIFEST}"))?;
    ensure!(manifest.contains(PUBLISHED), "{MANIFEST} does not name the image {PUBLISHED}");
    if is_by_chart(cluster)? {
        helm(cluster, &["uninstall", "namegate", "--wait"])?;
    }
    cluster.apply(&manifest.replace(PUBLISHED, &format!("{REPOSITORY}:{TAG}")).replace("IfNotPresent", "Never"))
}

fn by_chart(cluster: &Cluster) -> Result<()> {
    shell::step(&format!("installing {CHART}"));
    if !is_by_chart(cluster)? {
        let manifest = shell::root().join(MANIFEST);
        shell::output(&mut cluster.kubectl(&["delete", "--ignore-not-found", "-f", &manifest.to_string_lossy()]))?;
    }
    let image = format!("image.repository={REPOSITORY},image.tag={TAG},image.pullPolicy=Never");
    let chart = shell::root().join(CHART);
    helm(cluster, &["upgrade", "--install", "namegate", &chart.to_string_lossy(), "--set", &image])
}

/// Whether helm has installed what is there: it keeps a secret about it.
fn is_by_chart(cluster: &Cluster) -> Result<bool> {
    let secrets =
        ["get", "secret", "--namespace", NAMESPACE, "--selector", "owner=helm,name=namegate", "--output", "name"];
    Ok(!shell::output(&mut cluster.kubectl(&secrets))?.is_empty())
}

fn helm(cluster: &Cluster, arguments: &[&str]) -> Result<()> {
    let mut helm = Command::new(cluster::helm()?);
    helm.args(arguments).args(["--namespace", NAMESPACE]).env("KUBECONFIG", cluster.folder().join("kubeconfig"));
    shell::output(&mut helm).map(drop)
}

fn wait_for_agent(cluster: &Cluster, was_there: bool) -> Result<()> {
    shell::step("waiting for the agent");
    if was_there {
        // The image has the same name each time: pods of an older one would go on with it.
        shell::output(&mut cluster.kubectl(&["rollout", "restart", "daemonset/namegate", "-n", NAMESPACE]))?;
    }
    let rollout = ["rollout", "status", "daemonset/namegate", "-n", NAMESPACE, "--timeout=180s"];
    shell::output(&mut cluster.kubectl(&rollout)).map(drop)
}
