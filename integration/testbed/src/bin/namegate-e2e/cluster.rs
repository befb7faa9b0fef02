//! The cluster as tests see it: `kubectl`, the node's files and namespaces, the agent's socket.

use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use namegate_testbed::Netns;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

/// How long anything may take that only needs time.
const PATIENCE: Duration = Duration::from_secs(90);
/// Between two looks.
const PAUSE: Duration = Duration::from_millis(50);

/// A cluster as seen from one of its nodes.
#[derive(Clone, Debug)]
pub(crate) struct Cluster {
    kubectl: PathBuf,
    kubeconfig: PathBuf,
    /// Where the node's first process is recorded.
    keeper: PathBuf,
    /// `/proc/<first process of the node>/root`.
    root: PathBuf,
    /// The same as seen from its second node, if it has one.
    second: Option<Box<Cluster>>,
}

impl Cluster {
    pub(crate) fn new(kubectl: &Path, kubeconfig: &Path, keeper: &Path) -> Result<Self> {
        let record = std::fs::read_to_string(keeper).with_context(|| format!("reading {}", keeper.display()))?;
        let process: u32 = record.split_whitespace().last().and_then(|word| word.parse().ok()).context("no process")?;
        Ok(Self {
            kubectl: kubectl.to_owned(),
            kubeconfig: kubeconfig.to_owned(),
            keeper: keeper.to_owned(),
            root: format!("/proc/{process}/root").into(),
            second: None,
        })
    }

    /// The same with a second node, recorded there.
    pub(crate) fn with_second(self, keeper: &Path) -> Result<Self> {
        let second = Self::new(&self.kubectl, &self.kubeconfig, keeper)?;
        Ok(Self { second: Some(Box::new(second)), ..self })
    }

    /// As seen from each of its nodes.
    pub(crate) fn nodes(&self) -> impl Iterator<Item = &Self> {
        std::iter::once(self).chain(self.second.as_deref())
    }

    /// Where the cluster keeps what is on its disk.
    pub(crate) fn folder(&self) -> Option<&Path> {
        self.keeper.parent()?.parent()
    }

    /// The same cluster after its node was started again.
    pub(crate) fn after_reboot(&self) -> Result<Self> {
        Self::new(&self.kubectl, &self.kubeconfig, &self.keeper)
    }

    /// A shell command in which `kubectl` means this cluster.
    pub(crate) fn shell(&self, command: &str) -> Command {
        let folder = self.kubectl.parent().unwrap_or(Path::new("/"));
        let path = std::env::var_os("PATH").unwrap_or_default();
        let path = std::iter::once(folder.to_owned()).chain(std::env::split_paths(&path));
        let mut shell = Command::new("sh");
        shell.args(["-c", command]).env("KUBECONFIG", &self.kubeconfig);
        shell.env("PATH", std::env::join_paths(path).unwrap_or_default());
        shell
    }

    /// Runs `kubectl`; gives what it prints, or an error with what it complains of.
    pub(crate) fn kubectl(&self, arguments: &[&str]) -> Result<String> {
        let output = Command::new(&self.kubectl).args(arguments).env("KUBECONFIG", &self.kubeconfig).output();
        told(&format!("kubectl {}", arguments.join(" ")), &output.context("running kubectl")?)
    }

    /// Runs `kubectl` with text on its standard input.
    pub(crate) fn feed(&self, arguments: &[&str], text: &str) -> Result<String> {
        use std::io::Write;
        let mut command = Command::new(&self.kubectl);
        command.args(arguments).env("KUBECONFIG", &self.kubeconfig);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().context("running kubectl")?;
        child.stdin.take().context("kubectl's standard input")?.write_all(text.as_bytes())?;
        told(&format!("kubectl {}", arguments.join(" ")), &child.wait_with_output()?)
    }

    /// What `kubectl get -o json` gives.
    pub(crate) fn get(&self, arguments: &[&str]) -> Result<Value> {
        let text = self.kubectl(&[&["get", "-o", "json"][..], arguments].concat())?;
        serde_json::from_str(&text).with_context(|| format!("reading kubectl get {}", arguments.join(" ")))
    }

    /// Waits until every pod of a namespace is ready.
    pub(crate) fn wait_pods(&self, namespace: &str) -> Result<()> {
        let arguments = ["wait", "--for=condition=Ready", "pod", "--all", "--timeout=120s", "-n", namespace];
        wait(&format!("pods in {namespace}"), || self.kubectl(&arguments).map(Some))?;
        Ok(())
    }

    /// The only pod whose generated name begins so, or one of several.
    pub(crate) fn pod(&self, namespace: &str, prefix: &str) -> Result<String> {
        let pods = self.get(&["pods", "-n", namespace])?;
        let names = pods["items"].as_array().into_iter().flatten().filter_map(|pod| pod["metadata"]["name"].as_str());
        let found = names.filter(|name| name.starts_with(prefix)).map(str::to_owned).next();
        found.with_context(|| format!("{namespace} has no pod {prefix}…"))
    }

    /// Addresses of a pod.
    pub(crate) fn addresses(&self, namespace: &str, pod: &str) -> Result<Vec<IpAddr>> {
        let pod = self.get(&["pod", pod, "-n", namespace])?;
        let addresses = pod["status"]["podIPs"].as_array().into_iter().flatten();
        let addresses: Option<Vec<_>> = addresses.map(|entry| entry["ip"].as_str()?.parse().ok()).collect();
        addresses.filter(|found| !found.is_empty()).context("the pod has no address yet")
    }

    /// Enters a network namespace of a node by the name of its file below `/run/netns`.
    pub(crate) fn enter(&self, name: &str) -> Result<Netns> {
        let mut files = self.nodes().map(|node| node.root.join("run/netns").join(name));
        let file = files.find(|file| file.exists()).with_context(|| format!("no node has the network {name}"))?;
        Netns::enter_at(name, &file)
    }

    /// Enters the network of the node.
    pub(crate) fn enter_node(&self) -> Result<Netns> {
        Netns::enter_at("node", &self.root.with_file_name("ns").join("net"))
    }

    /// Runs a program in the network of the node; gives what it prints, or an error with what it complains of.
    pub(crate) fn in_node(&self, command: &[&str]) -> Result<String> {
        let network = self.root.with_file_name("ns").join("net");
        let output =
            Command::new("nsenter").arg(format!("--net={}", network.display())).arg("--").args(command).output();
        told(&command.join(" "), &output.context("running nsenter (util-linux)")?)
    }

    /// A resource of the agent; `None` while it does not answer with 200.
    pub(crate) fn agent(&self, path: &str) -> Option<Value> {
        let socket = self.root.join("run/namegate/namegate.sock");
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().ok()?;
        let response = runtime.block_on(namegate_testbed::agent::request(&socket, "GET", path)).ok()?;
        if response.status == 200 { serde_json::from_slice(&response.body).ok() } else { None }
    }

    /// `kill -9` of the agent; the kubelet starts it again.
    pub(crate) fn kill_agent(&self) -> Result<()> {
        let network = std::fs::read_link(self.root.with_file_name("ns").join("net"))?;
        let ours = |process: &Path| {
            let command = std::fs::read(process.join("cmdline")).unwrap_or_default();
            let inside = std::fs::read_link(process.join("ns/net")).is_ok_and(|found| found == network);
            inside && command.starts_with(b"/namegate\0agent\0")
        };
        let agent = std::fs::read_dir("/proc")?.flatten().map(|entry| entry.path()).find(|path| ours(path));
        let agent = agent.context("no agent runs")?;
        let process = agent.file_name().and_then(|name| name.to_str()?.parse().ok()).context("a process number")?;
        kill(Pid::from_raw(process), Signal::SIGKILL).context("killing the agent")?;
        wait("the agent's end", || Ok((!agent.exists()).then_some(())))
    }

    /// Does something after which a policy (`KIND NAMESPACE/NAME`) is there or not, and waits until each agent has read it
    /// and enforces what it has read. Gives the time it took.
    pub(crate) fn change(&self, policy: &str, there: bool, act: impl FnOnce() -> Result<()>) -> Result<Duration> {
        act()?;
        let started = Instant::now();
        wait(&format!("{policy} to be {}", if there { "enforced" } else { "gone" }), || {
            Ok(self.nodes().all(|node| node.enforced(&[(policy, there)])).then(|| started.elapsed()))
        })
    }

    /// Whether the agent has read that these policies are there or not, and enforces what it has read.
    pub(crate) fn enforced(&self, policies: &[(&str, bool)]) -> bool {
        let Some(read) = self.agent("/v1/policy") else { return false };
        let documents: Vec<&Value> = read["documents"].as_array().into_iter().flatten().collect();
        let is_so = |(policy, there): &(&str, bool)| documents.iter().any(|one| one["file"] == *policy) == *there;
        read["revision"]["wanted"] == read["revision"]["enforced"] && policies.iter().all(is_so)
    }
}

/// Asks again and again until there is an answer; the last error if there is none in time.
pub(crate) fn wait<T>(what: &str, mut check: impl FnMut() -> Result<Option<T>>) -> Result<T> {
    let started = Instant::now();
    loop {
        let late = started.elapsed() > PATIENCE;
        match check() {
            Ok(Some(value)) => return Ok(value),
            Err(error) if late => return Err(error.context(format!("waited {PATIENCE:?} for {what}"))),
            Ok(None) if late => bail!("waited {PATIENCE:?} for {what}"),
            _ => std::thread::sleep(PAUSE),
        }
    }
}

fn told(command: &str, output: &Output) -> Result<String> {
    ensure!(output.status.success(), "`{command}`: {}", String::from_utf8_lossy(&output.stderr).trim());
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}
