//! `cargo xtask e2e`: Namegate installed on a real Kubernetes as users install it, and tried there.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use anyhow::{Context, Result, ensure};
use clap::Args;

use crate::cluster::images::Image;
use crate::cluster::{self, Cluster};
use crate::shell;

/// The image that the manifest names, and the one that is made here.
const PUBLISHED: &str = "ghcr.io/namegate/namegate:0.1.0";
const LOCAL: &str = "localhost/namegate:e2e";
const MANIFEST: &str = "integration/deploy/kubernetes/namegate.yaml";
const CRDS: &str = "integration/deploy/crds";

const SUITES: [&str; 5] = ["seed", "conformance", "race", "mistakes", "faults"];

/// What to try.
#[derive(Args)]
pub(crate) struct E2e {
    /// Parts of the run.
    #[arg(long, value_delimiter = ',', default_values = SUITES, value_parser = SUITES)]
    suites: Vec<String>,
    /// Pods that start at once in the race.
    #[arg(long, default_value_t = 200)]
    pods: usize,
    /// Only cases of conformance whose name has this text.
    #[arg(long)]
    only: Option<String>,
    /// End the cluster afterwards.
    #[arg(long)]
    down: bool,
}

impl E2e {
    /// Brings everything up and runs it.
    pub(crate) fn run(&self) -> Result<ExitCode> {
        shell::need_root("namespaces and eBPF", "cargo xtask e2e")?;
        let cluster = cluster::up()?;
        let programs = build()?;
        install(&cluster, &programs)?;
        let mut e2e = Command::new(programs.join("namegate-e2e"));
        e2e.arg("--kubectl").arg(cluster.program()).arg("--kubeconfig").arg(cluster.folder().join("kubeconfig"));
        e2e.args(["--keeper", &cluster.node.keeper().to_string(), "--suites", &self.suites.join(",")]);
        e2e.args(["--pods", &self.pods.to_string()]).arg("--xtask").arg(std::env::current_exe()?);
        if let Some(only) = &self.only {
            e2e.args(["--only", only]);
        }
        let status = shell::run(&mut e2e)?;
        if self.down {
            cluster::run(&cluster::What::Down)?;
        }
        Ok(ExitCode::from(status.code().and_then(|code| u8::try_from(code).ok()).unwrap_or(2)))
    }
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

/// Installs the manifests with the image that was just built, and waits for the agent.
fn install(cluster: &Cluster, programs: &Path) -> Result<()> {
    shell::step("installing Namegate: CRDs, image, manifest");
    let mut image = Image::new(LOCAL, &["/namegate"]);
    for name in ["namegate", "namegate-cni"] {
        image = image.program(&programs.join(name), name)?;
    }
    cluster.import(&image)?;
    let crds = shell::root().join(CRDS);
    if crds.is_dir() {
        shell::output(&mut cluster.kubectl(&["apply", "--server-side", "-f", &crds.to_string_lossy()]))?;
    }
    let manifest = fs::read_to_string(shell::root().join(MANIFEST)).with_context(|| format!("reading {MANIFEST}"))?;
    ensure!(manifest.contains(PUBLISHED), "{MANIFEST} does not name the image {PUBLISHED}");
    cluster.apply(&manifest.replace(PUBLISHED, LOCAL).replace("IfNotPresent", "Never"))?;
    // The image has the same name each time: pods of an older one go on with it.
    shell::output(&mut cluster.kubectl(&["rollout", "restart", "daemonset/namegate", "-n", "kube-system"]))?;
    shell::step("waiting for the agent");
    let rollout = ["rollout", "status", "daemonset/namegate", "-n", "kube-system", "--timeout=180s"];
    shell::output(&mut cluster.kubectl(&rollout)).map(drop)
}
