//! `cargo xtask cluster`: a real Kubernetes of one node, made of this machine's files and Go modules.
//!
//! It lives in namespaces of its own and uses the machine for nothing but programs and one folder of the cache.

pub(crate) mod images;
mod network;
mod node;
mod parts;
mod pki;
mod programs;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use clap::Subcommand;

use crate::shell;
use images::Image;
use node::Node;
use parts::{NODE_NAME, Parts};
use programs::Programs;
pub(crate) use programs::helm;

/// How long each step of a start may take.
const PATIENCE: Duration = Duration::from_mins(2);
/// Between two looks.
const PAUSE: Duration = Duration::from_millis(200);
/// Everything that runs besides pods.
const DAEMONS: [&str; 7] =
    ["etcd", "containerd", "kube-apiserver", "kube-controller-manager", "kube-scheduler", KUBE_PROXY, "kubelet"];
/// The daemon that sends what is for a service on to a pod, and how it may: the first unless told otherwise.
const KUBE_PROXY: &str = "kube-proxy";
const PROXY_MODES: [&str; 2] = ["nftables", "iptables"];
const PROXY_MODE: &str = "--proxy-mode";
const COREDNS: &str = include_str!("../data/cluster/coredns.yaml");

/// What to do with the cluster.
#[derive(Subcommand)]
pub(crate) enum What {
    /// Starts it, unless it runs, and waits until its node and its DNS are ready.
    #[command(
        after_help = "Examples:\n  sudo -E cargo xtask cluster up\n  eval \"$(cargo xtask cluster env)\"; kubectl get pods -A"
    )]
    Up,
    /// Ends it and removes its state: processes, mounts, links, control groups.
    Down,
    /// Tells what runs. Exit status 1 if it does not run as a whole.
    Status,
    /// Prints what a shell needs for `kubectl`.
    Env,
    /// Ends one daemon, to see what happens without it.
    #[command(after_help = "Example:\n  sudo -E cargo xtask cluster stop kube-apiserver")]
    Stop {
        /// Its name, as `status` shows it.
        #[arg(value_parser = DAEMONS)]
        name: String,
        /// The signal that ends it.
        #[arg(long, default_value = "KILL", value_parser = ["KILL", "TERM"])]
        signal: String,
    },
    /// Ends every process of the node at once, as a loss of power does, and starts it again with what is on its disk.
    #[command(
        after_help = "Examples:\n  sudo -E cargo xtask cluster reboot\n  sudo -E cargo xtask cluster reboot --without kubelet"
    )]
    Reboot {
        /// Daemons that are not started; `start` does that later.
        #[arg(long, value_delimiter = ',', value_parser = DAEMONS)]
        without: Vec<String>,
    },
    /// Starts a daemon that was ended.
    #[command(
        after_help = "Example:\n  sudo -E cargo xtask cluster stop kube-proxy\n  sudo -E cargo xtask cluster start kube-proxy --proxy-mode iptables"
    )]
    Start {
        /// Its name, as `status` shows it.
        #[arg(value_parser = DAEMONS)]
        name: String,
        /// What kube-proxy makes of services, from now on. It removes what it made of them before.
        #[arg(long, value_parser = PROXY_MODES)]
        proxy_mode: Option<String>,
    },
}

/// Does it.
pub(crate) fn run(what: &What) -> Result<ExitCode> {
    match what {
        What::Up => {
            up()?;
            println!("the cluster is up; next step: eval \"$(cargo xtask cluster env)\"");
        }
        What::Down => down()?,
        What::Status => return status(),
        What::Stop { name, signal } => running()?.stop(name, signal)?,
        What::Start { name, proxy_mode } => start(name, proxy_mode.as_deref())?,
        What::Reboot { without } => reboot(without)?,
        What::Env => println!("export KUBECONFIG='{}'", folder()?.join("kubeconfig").display()),
    }
    Ok(ExitCode::SUCCESS)
}

fn start(name: &str, proxy_mode: Option<&str>) -> Result<()> {
    let node = running()?;
    if let Some(mode) = proxy_mode {
        ensure!(name == KUBE_PROXY, "`--proxy-mode` is for {KUBE_PROXY}");
        node.set_option(name, PROXY_MODE, mode)?;
    }
    node.start_again(name)
}

fn running() -> Result<Node> {
    Node::find(&folder()?).context("no cluster runs; next step: `cargo xtask cluster up`")
}

/// Builds the programs of a cluster, unless the cache has them.
pub(crate) fn provide() -> Result<()> {
    Programs::provide().map(drop)
}

/// A cluster that runs.
pub(crate) struct Cluster {
    /// The machine it runs on.
    pub(crate) node: Node,
    programs: Programs,
    folder: PathBuf,
}

/// Starts the cluster, or finds the one that runs.
pub(crate) fn up() -> Result<Cluster> {
    shell::need_root("namespaces", "cargo xtask cluster up")?;
    let (programs, folder) = (Programs::provide()?, folder()?);
    if let Some(node) = Node::find(&folder) {
        let cluster = Cluster { node, programs, folder };
        let dead: Vec<_> = DAEMONS.into_iter().filter(|name| !cluster.node.runs(name)).collect();
        ensure!(dead.is_empty(), "{} ended; next step: `cargo xtask cluster down`", dead.join(", "));
        return Ok(cluster);
    }
    let started = Instant::now();
    clear(&folder)?;
    shell::step("starting a node in namespaces of its own");
    let cluster = Cluster { node: Node::start(&folder)?, programs, folder };
    let outcome = cluster.start();
    if let Err(error) = outcome {
        bail!("{error:#}; logs are in {}, `cargo xtask cluster down` removes it", cluster.folder.join("log").display());
    }
    shell::step(&format!("cluster ready in {} s", started.elapsed().as_secs()));
    Ok(cluster)
}

impl Cluster {
    /// `kubectl` as the cluster's administrator.
    pub(crate) fn kubectl(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(&self.programs.kubectl);
        command.args(arguments).env("KUBECONFIG", self.folder.join("kubeconfig"));
        command
    }

    /// The program `kubectl`.
    pub(crate) fn program(&self) -> &Path {
        &self.programs.kubectl
    }

    /// The folder of its state.
    pub(crate) fn folder(&self) -> &Path {
        &self.folder
    }

    /// Hands an image to the container runtime.
    pub(crate) fn import(&self, image: &Image) -> Result<()> {
        let archive = self.folder.join("image.tar");
        image.write(&archive)?;
        self.node.output("ctr", &["--namespace", "k8s.io", "images", "import", &archive.to_string_lossy()])?;
        fs::remove_file(&archive)?;
        Ok(())
    }

    /// Applies manifests.
    pub(crate) fn apply(&self, manifests: &str) -> Result<()> {
        shell::feed(&mut self.kubectl(&["apply", "-f", "-"]), manifests)
    }

    fn start(&self) -> Result<()> {
        let parts = Parts { node: &self.node, programs: &self.programs, folder: &self.folder };
        network::make(&self.node)?;
        let pki = parts.configure()?;
        shell::step("starting etcd, containerd and the API server");
        parts.containerd()?;
        parts.etcd()?;
        parts.apiserver(&self.folder.join("pki"))?;
        self.wait("containerd", || self.node.output("ctr", &["version"]).is_ok())?;
        self.images()?;
        self.wait("kube-apiserver", || shell::output(&mut self.kubectl(&["get", "--raw", "/readyz"])).is_ok())?;
        shell::step("starting controllers, scheduler, kube-proxy and kubelet");
        parts.rest(&pki)?;
        self.apply(COREDNS)?;
        let ready = ["get", "node", NODE_NAME, "-o", "jsonpath={.status.conditions[?(@.type==\"Ready\")].status}"];
        self.wait("kubelet", || shell::output(&mut self.kubectl(&ready)).is_ok_and(|status| status == "True"))?;
        shell::step("waiting for the cluster's DNS");
        let rollout = ["rollout", "status", "deployment/kube-dns", "-n", "kube-system", "--timeout=120s"];
        shell::output(&mut self.kubectl(&rollout)).map(drop)
    }

    fn images(&self) -> Result<()> {
        let forever = ["/bin/sleep", "1000000000"];
        let tool = |name: &str| shell::find(name).with_context(|| format!("{name} is not installed"));
        let (curl, wget) = (tool("curl")?, tool("wget")?);
        self.import(&Image::new("localhost/pause:1", &forever).busybox()?)?;
        let tools = |name: &str, entrypoint: &[&str]| -> Result<Image> {
            let image = Image::new(name, entrypoint).busybox()?;
            image.program(&curl, "usr/bin/curl")?.program(&wget, "usr/bin/wget")
        };
        self.import(&tools("localhost/tools:1", &forever)?)?;
        self.import(&tools("localhost/coredns:1", &["/coredns"])?.program(&self.programs.coredns, "coredns")?)
    }

    /// Waits until a daemon serves; says why it does not.
    fn wait(&self, name: &str, ready: impl Fn() -> bool) -> Result<()> {
        let started = Instant::now();
        while !ready() {
            if started.elapsed() > PATIENCE || (started.elapsed() > Duration::from_secs(1) && !self.node.runs(name)) {
                bail!("{name} does not serve:\n{}", self.node.said(name));
            }
            std::thread::sleep(PAUSE);
        }
        Ok(())
    }
}

/// Processes, mounts, links and all that the kernel knew of the node are gone after it.
fn reboot(without: &[String]) -> Result<()> {
    shell::need_root("namespaces", "cargo xtask cluster reboot")?;
    running()?;
    let folder = folder()?;
    Node::end(&folder)?;
    let cluster = Cluster { node: Node::start(&folder)?, programs: Programs::provide()?, folder };
    network::make(&cluster.node)?;
    for name in DAEMONS.into_iter().filter(|name| !without.iter().any(|left_out| left_out == name)) {
        cluster.node.start_again(name)?;
    }
    if without.iter().any(|name| name == "kube-apiserver" || name == "etcd") {
        return Ok(());
    }
    cluster.wait("kube-apiserver", || shell::output(&mut cluster.kubectl(&["get", "--raw", "/readyz"])).is_ok())
}

/// Ends the cluster, whatever is left of it.
fn down() -> Result<()> {
    shell::need_root("namespaces", "cargo xtask cluster down")?;
    let folder = folder()?;
    Node::end(&folder)?;
    clear(&folder)?;
    println!("the cluster is down");
    Ok(())
}

fn status() -> Result<ExitCode> {
    let folder = folder()?;
    let Some(node) = Node::find(&folder) else {
        println!("no cluster runs");
        return Ok(ExitCode::FAILURE);
    };
    let dead = DAEMONS.iter().filter(|name| !node.runs(name)).count();
    for name in DAEMONS {
        println!("{name:24} {}", if node.runs(name) { "runs" } else { "ended" });
    }
    println!("state and logs: {}", folder.display());
    Ok(if dead == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Where the state lies: one cluster at a time.
fn folder() -> Result<PathBuf> {
    Ok(shell::cache()?.join("cluster"))
}

fn clear(folder: &Path) -> Result<()> {
    if folder.exists() {
        fs::remove_dir_all(folder).with_context(|| format!("removing {}", folder.display()))?;
    }
    Ok(())
}
