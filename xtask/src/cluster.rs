//! `cargo xtask cluster`: a real Kubernetes of one node or two, made of this machine's files and Go modules.
//!
//! Each node lives in namespaces of its own and uses the machine for nothing but programs and one folder of the cache.

pub(crate) mod images;
mod network;
mod node;
mod parts;
mod pki;
mod programs;
mod second;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use clap::Subcommand;

use crate::shell;
use images::Image;
use network::{PLACES, Place};
use node::Node;
use parts::Parts;
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
    /// Starts it, unless it runs, and waits until its nodes and its DNS are ready.
    #[command(
        after_help = "Examples:\n  sudo -E cargo xtask cluster up\n  sudo -E cargo xtask cluster up --nodes 2\n  eval \"$(cargo xtask cluster env)\"; kubectl get pods -A"
    )]
    Up {
        /// How many it is to have: the second comes to a cluster that runs, or goes. Without it a cluster that runs stays
        /// as it is, and a new one has one.
        #[arg(long, value_parser = clap::value_parser!(u8).range(1..=2))]
        nodes: Option<u8>,
    },
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
        /// Which node's.
        #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u8).range(1..=2))]
        node: u8,
    },
    /// Ends every process of all nodes at once, as a loss of power does, and starts them again with what is on their disks.
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
        /// Which node's.
        #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u8).range(1..=2))]
        node: u8,
    },
}

/// Does it.
pub(crate) fn run(what: &What) -> Result<ExitCode> {
    match what {
        What::Up { nodes } => {
            up(*nodes)?;
            println!("the cluster is up; next step: eval \"$(cargo xtask cluster env)\"");
        }
        What::Down => down()?,
        What::Status => return status(),
        What::Stop { name, signal, node } => running(*node)?.stop(name, signal)?,
        What::Start { name, proxy_mode, node } => start(&running(*node)?, name, proxy_mode.as_deref())?,
        What::Reboot { without } => reboot(without)?,
        What::Env => println!("export KUBECONFIG='{}'", folder()?.join("kubeconfig").display()),
    }
    Ok(ExitCode::SUCCESS)
}

fn start(node: &Node, name: &str, proxy_mode: Option<&str>) -> Result<()> {
    if let Some(mode) = proxy_mode {
        ensure!(name == KUBE_PROXY, "`--proxy-mode` is for {KUBE_PROXY}");
        node.set_option(name, PROXY_MODE, mode)?;
    }
    node.start_again(name)
}

/// The first node or the second.
fn running(number: u8) -> Result<Node> {
    let folder = folder()?;
    if number == 1 {
        return Node::find(&folder).context("no cluster runs; next step: `cargo xtask cluster up`");
    }
    Node::find(&second::folder(&folder)).context("no second node runs; next step: `cargo xtask cluster up --nodes 2`")
}

/// Builds the programs of a cluster, unless the cache has them.
pub(crate) fn provide() -> Result<()> {
    Programs::provide().map(drop)
}

/// A cluster that runs.
pub(crate) struct Cluster {
    /// The machine that has what the cluster needs once.
    pub(crate) node: Node,
    /// Another one, with pods.
    pub(crate) second: Option<Node>,
    programs: Programs,
    folder: PathBuf,
}

/// Starts the cluster, or finds the one that runs; it has so many nodes then, or as many as it had.
pub(crate) fn up(nodes: Option<u8>) -> Result<Cluster> {
    shell::need_root("namespaces", "cargo xtask cluster up")?;
    let (programs, folder) = (Programs::provide()?, folder()?);
    let mut cluster = match Node::find(&folder) {
        Some(node) => found(node, programs, folder)?,
        None => new(programs, folder)?,
    };
    match (nodes, &cluster.second) {
        (Some(2), None) => cluster.timed("second node ready", Cluster::join)?,
        (Some(1), _) if second::is_recorded(&cluster.folder) => cluster.part()?,
        (None, None) if second::is_recorded(&cluster.folder) => {
            bail!("{} ended; next step: `cargo xtask cluster up --nodes 2`, or 1", PLACES[1].name)
        }
        _ => {}
    }
    Ok(cluster)
}

/// The cluster that runs, all of it.
fn found(node: Node, programs: Programs, folder: PathBuf) -> Result<Cluster> {
    let cluster = Cluster { node, second: Node::find(&second::folder(&folder)), programs, folder };
    let dead: Vec<_> = cluster.daemons().filter(|(node, _, name)| !node.runs(name)).collect();
    let dead: Vec<_> = dead.into_iter().map(|(_, place, name)| format!("{name} of {}", place.name)).collect();
    ensure!(dead.is_empty(), "{} ended; next step: `cargo xtask cluster down`", dead.join(", "));
    Ok(cluster)
}

/// One of one node.
fn new(programs: Programs, folder: PathBuf) -> Result<Cluster> {
    clear(&folder)?;
    shell::step("starting a node in namespaces of its own");
    let mut cluster = Cluster { node: Node::start(&folder)?, second: None, programs, folder };
    cluster.timed("cluster ready", |cluster| cluster.start())?;
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

    /// Hands an image to the container runtime of each node.
    pub(crate) fn import(&self, image: &Image) -> Result<()> {
        self.nodes().try_for_each(|(node, _)| self.import_to(node, image))
    }

    fn import_to(&self, node: &Node, image: &Image) -> Result<()> {
        let archive = self.folder.join("image.tar");
        image.write(&archive)?;
        node.output("ctr", &["--namespace", "k8s.io", "images", "import", &archive.to_string_lossy()])?;
        fs::remove_file(&archive)?;
        Ok(())
    }

    /// Its nodes, each with its place.
    fn nodes(&self) -> impl Iterator<Item = (&Node, &'static Place)> {
        std::iter::once(&self.node).chain(&self.second).zip(&PLACES)
    }

    /// What runs on each besides pods.
    fn daemons(&self) -> impl Iterator<Item = (&Node, &'static Place, &'static str)> {
        let of = |place: &Place| if place.name == PLACES[0].name { &DAEMONS[..] } else { &second::DAEMONS[..] };
        self.nodes().flat_map(move |(node, place)| of(place).iter().map(move |name| (node, place, *name)))
    }

    /// Does something that takes a while; says how long, or where to look why it failed.
    fn timed(&mut self, what: &str, act: impl FnOnce(&mut Self) -> Result<()>) -> Result<()> {
        let started = Instant::now();
        if let Err(error) = act(self) {
            let log = self.folder.display();
            bail!("{error:#}; logs are in {log}/**/log, `cargo xtask cluster down` removes it");
        }
        shell::step(&format!("{what} in {} s", started.elapsed().as_secs()));
        Ok(())
    }

    /// Applies manifests.
    pub(crate) fn apply(&self, manifests: &str) -> Result<()> {
        shell::feed(&mut self.kubectl(&["apply", "-f", "-"]), manifests)
    }

    fn parts<'a>(&'a self, node: &'a Node, place: &'static Place) -> Parts<'a> {
        Parts { node, place, programs: &self.programs, folder: &self.folder }
    }

    fn start(&self) -> Result<()> {
        let parts = self.parts(&self.node, &PLACES[0]);
        network::make(&self.node)?;
        let pki = parts.found()?;
        parts.configure(&pki)?;
        shell::step("starting etcd, containerd and the API server");
        parts.containerd()?;
        parts.etcd()?;
        parts.apiserver(&pki)?;
        self.runtime(&self.node)?;
        let ready = || shell::output(&mut self.kubectl(&["get", "--raw", "/readyz"])).is_ok();
        wait(&self.node, "kube-apiserver", ready)?;
        shell::step("starting controllers, scheduler, kube-proxy and kubelet");
        parts.controllers(&pki)?;
        parts.agents()?;
        self.apply(COREDNS)?;
        self.kubelet(&self.node, &PLACES[0])?;
        shell::step("waiting for the cluster's DNS");
        let rollout = ["rollout", "status", "deployment/kube-dns", "-n", "kube-system", "--timeout=120s"];
        shell::output(&mut self.kubectl(&rollout)).map(drop)
    }

    /// Waits for a node's container runtime, and gives it what every cluster has.
    fn runtime(&self, node: &Node) -> Result<()> {
        wait(node, "containerd", || node.output("ctr", &["version"]).is_ok())?;
        self.images(node)
    }

    /// Waits until a node may have pods.
    fn kubelet(&self, node: &Node, place: &Place) -> Result<()> {
        let ready = ["get", "node", place.name, "-o", "jsonpath={.status.conditions[?(@.type==\"Ready\")].status}"];
        wait(node, "kubelet", || shell::output(&mut self.kubectl(&ready)).is_ok_and(|status| status == "True"))
    }

    fn images(&self, node: &Node) -> Result<()> {
        let forever = ["/bin/sleep", "1000000000"];
        let tool = |name: &str| shell::find(name).with_context(|| format!("{name} is not installed"));
        let (curl, wget) = (tool("curl")?, tool("wget")?);
        self.import_to(node, &Image::new("localhost/pause:1", &forever).busybox()?)?;
        let tools = |name: &str, entrypoint: &[&str]| -> Result<Image> {
            let image = Image::new(name, entrypoint).busybox()?;
            image.program(&curl, "usr/bin/curl")?.program(&wget, "usr/bin/wget")
        };
        self.import_to(node, &tools("localhost/tools:1", &forever)?)?;
        let coredns = tools("localhost/coredns:1", &["/coredns"])?;
        self.import_to(node, &coredns.program(&self.programs.coredns, "coredns")?)
    }
}

/// Waits until a daemon of a node serves; says why it does not.
fn wait(node: &Node, name: &str, ready: impl Fn() -> bool) -> Result<()> {
    let started = Instant::now();
    while !ready() {
        if started.elapsed() > PATIENCE || (started.elapsed() > Duration::from_secs(1) && !node.runs(name)) {
            bail!("{name} does not serve:\n{}", node.said(name));
        }
        std::thread::sleep(PAUSE);
    }
    Ok(())
}

/// Processes, mounts, links and all that the kernel knew of the nodes are gone after it.
fn reboot(without: &[String]) -> Result<()> {
    shell::need_root("namespaces", "cargo xtask cluster reboot")?;
    running(1)?;
    let folder = folder()?;
    let second = second::end(&folder)?;
    Node::end(&folder)?;
    network::unlink(&folder);
    let (node, programs) = (Node::start(&folder)?, Programs::provide()?);
    network::make(&node)?;
    let mut cluster = Cluster { node, second: None, programs, folder };
    if second {
        cluster.restart_second()?;
    }
    let left_out = |name: &str| without.iter().any(|left_out| left_out == name);
    for (node, _, name) in cluster.daemons().filter(|(.., name)| !left_out(name)) {
        // The kubelet ends where the container runtime does not answer.
        if name == "kubelet" && !left_out("containerd") {
            wait(node, "containerd", || node.output("ctr", &["version"]).is_ok())?;
        }
        node.start_again(name)?;
    }
    if left_out("kube-apiserver") || left_out("etcd") {
        return Ok(());
    }
    wait(&cluster.node, "kube-apiserver", || shell::output(&mut cluster.kubectl(&["get", "--raw", "/readyz"])).is_ok())
}

/// Ends the cluster, whatever is left of it.
fn down() -> Result<()> {
    shell::need_root("namespaces", "cargo xtask cluster down")?;
    let folder = folder()?;
    second::end(&folder)?;
    Node::end(&folder)?;
    network::unlink(&folder);
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
    let mut dead = show("", &node, &DAEMONS);
    match Node::find(&second::folder(&folder)) {
        Some(node) => dead += show("node2 ", &node, &second::DAEMONS),
        None if second::is_recorded(&folder) => {
            println!("{:24} ended", "node2");
            dead += 1;
        }
        None => {}
    }
    println!("state and logs: {}", folder.display());
    Ok(if dead == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// A line for each daemon; gives how many have ended.
fn show(whose: &str, node: &Node, names: &[&str]) -> usize {
    let line = |name: &&str| {
        let runs = node.runs(name);
        println!("{:24} {}", format!("{whose}{name}"), if runs { "runs" } else { "ended" });
        usize::from(!runs)
    };
    names.iter().map(line).sum()
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
