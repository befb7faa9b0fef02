//! The real agent, started on the node of a world as a user would start it, and talked to over its socket.

mod api;
mod binary;
mod files;
mod pins;

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tempfile::TempDir;

use crate::pod::Pod;
use crate::world::World;

pub use api::{Response, request};
pub(crate) use pins::PINS;

/// How long the agent may take until it says that it is ready, and until a change holds.
const PATIENCE: Duration = Duration::from_secs(20);
/// Between two questions to an agent that is not there yet.
const PAUSE: Duration = Duration::from_millis(2);

/// Deviations from the usual setting-up.
#[derive(Default)]
pub struct Options {
    /// Keys of `namegate.yaml` besides the paths, as JSON.
    pub settings: serde_json::Map<String, serde_json::Value>,
    /// Pods (`namespace/name`) that the endpoints file leaves out altogether.
    pub unknown: Vec<String>,
    /// Pods that are known by labels and addresses, and not guarded.
    pub unguarded: Vec<String>,
    /// Text of `policies/policies.yaml` at the start.
    pub policies: String,
    /// Further files of the folder of policies at the start: name and text.
    pub files: Vec<(String, String)>,
    /// Further endpoints of the endpoints file, in its form.
    pub endpoints: Vec<serde_json::Value>,
    /// How many files the agent's process may open (`RLIMIT_NOFILE`, hard and soft); `None` is as many as this process.
    pub descriptors: Option<u64>,
}

impl Options {
    /// Adds settings: a JSON object whose keys are those of `namegate.yaml`.
    #[must_use]
    pub fn with(mut self, settings: serde_json::Value) -> Self {
        if let serde_json::Value::Object(settings) = settings {
            self.settings.extend(settings);
        }
        self
    }

    /// Policies that are there from the start.
    #[must_use]
    pub fn policies(mut self, text: &str) -> Self {
        text.clone_into(&mut self.policies);
        self
    }
}

/// What came of a policy change.
#[derive(Clone, Debug)]
pub struct Applied {
    /// Revision that the kernel holds.
    pub revision: u64,
    /// `GET /v1/policy` after the change.
    pub policy: serde_json::Value,
    /// From the file's renaming to the answer that says so.
    pub took: Duration,
}

impl Applied {
    /// Mistakes that the agent found, as `line:column message`.
    pub fn mistakes(&self) -> Vec<String> {
        let found = self.policy["diagnostics"].as_array().into_iter().flatten();
        let errors = found.filter(|found| found["severity"] == "error");
        let text = |found: &serde_json::Value| {
            format!("{}:{} {}", found["line"], found["column"], found["message"].as_str().unwrap_or_default())
        };
        errors.map(text).collect()
    }
}

/// An agent on the node of a world. Dropping it ends it and removes its pinned maps.
pub struct Agent<'a> {
    world: &'a World,
    folder: TempDir,
    binary: PathBuf,
    pins: PathBuf,
    descriptors: Option<u64>,
    child: Option<Child>,
}

impl<'a> Agent<'a> {
    /// Writes the agent's files, starts it and waits until it is ready.
    pub fn start(world: &'a World, options: &Options) -> Result<Self> {
        let mut agent = Self::start_unready(world, options)?;
        agent.wait_ready()?;
        Ok(agent)
    }

    /// Writes the agent's files and starts it.
    pub fn start_unready(world: &'a World, options: &Options) -> Result<Self> {
        let mut agent = Self::prepare(world, options)?;
        agent.launch()?;
        Ok(agent)
    }

    /// Writes the agent's files, and starts nothing.
    pub fn prepare(world: &'a World, options: &Options) -> Result<Self> {
        let binary = binary::find()?;
        let pins = pins::folder(world.id())?;
        let folder = tempfile::Builder::new().prefix("namegate-").tempdir()?;
        files::write(folder.path(), &pins, world, options)?;
        Ok(Self { world, folder, binary, pins, descriptors: options.descriptors, child: None })
    }

    /// Starts the agent again after it ended, and waits until it is ready.
    pub fn run(&mut self) -> Result<()> {
        self.launch()?;
        self.wait_ready()
    }

    /// Starts the agent without waiting.
    pub fn launch(&mut self) -> Result<()> {
        let log = File::options().create(true).append(true).open(self.path("agent.log"))?;
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "KILL", "--"]);
        if let Some(descriptors) = self.descriptors {
            command.args(["prlimit", &format!("--nofile={descriptors}:{descriptors}"), "--"]);
        }
        command.arg(&self.binary);
        command.args(["agent", "--config"]).arg(self.path("namegate.yaml"));
        command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        let spawned = self.world.node().call(move || command.spawn());
        self.child = Some(spawned.context("starting the agent by `setpriv` (util-linux)")?);
        Ok(())
    }

    /// Waits until the agent says that it is healthy.
    pub fn wait_ready(&mut self) -> Result<()> {
        self.wait_ready_within(PATIENCE)
    }

    /// The same, with another waiting time.
    pub fn wait_ready_within(&mut self, patience: Duration) -> Result<()> {
        let started = Instant::now();
        loop {
            if let Some(status) = self.child.as_mut().map(Child::try_wait).transpose()?.flatten() {
                bail!("the agent ended with {status}:\n{}", self.log());
            }
            match self.get("/v1/healthz") {
                Ok(response) if response.status == 200 => return Ok(()),
                answer if started.elapsed() > patience => {
                    bail!("the agent is not ready after {patience:?} ({answer:?}):\n{}", self.log())
                }
                _ => std::thread::sleep(PAUSE),
            }
        }
    }

    /// Replaces the policies and waits until the kernel holds the new ones, or until the agent refused them.
    pub fn apply(&self, text: &str) -> Result<Applied> {
        let before = self.policy()?;
        let started = Instant::now();
        files::replace(&self.path("policies/policies.yaml"), text)?;
        self.wait_for("the policies to be read", |agent| {
            let policy = agent.policy()?;
            let settled = policy["revision"]["wanted"] == policy["revision"]["enforced"];
            let revision = policy["revision"]["enforced"].as_u64().unwrap_or(0);
            let took = started.elapsed();
            Ok((settled && policy != before).then_some(Applied { revision, policy, took }))
        })
    }

    /// Puts a file into the folder of policies, in place of the one with its name, without waiting.
    pub fn write_policy(&self, name: &str, text: &str) -> Result<()> {
        files::replace(&self.path("policies").join(name), text)
    }

    /// Writes the endpoints file anew, without the pods of `options.unknown`.
    pub fn write_endpoints(&self, options: &Options) -> Result<()> {
        files::replace(&self.path("endpoints.yaml"), &files::endpoints(self.world, options)?)
    }

    /// Asks again and again until `check` gives something.
    pub fn wait_for<T>(&self, what: &str, check: impl Fn(&Self) -> Result<Option<T>>) -> Result<T> {
        let started = Instant::now();
        loop {
            if let Some(value) = check(self)? {
                return Ok(value);
            }
            if started.elapsed() > PATIENCE {
                bail!("waited {PATIENCE:?} for {what}:\n{}", self.log());
            }
            std::thread::sleep(PAUSE);
        }
    }

    /// `GET /v1/policy`.
    pub fn policy(&self) -> Result<serde_json::Value> {
        self.json("/v1/policy")
    }

    /// Flows that the agent tells of so far, oldest first; `query` as `GET /v1/flows` takes it (`denied=true`).
    pub fn flows(&self, query: &str) -> Result<Vec<serde_json::Value>> {
        let response = self.get(&format!("/v1/flows?follow=false&last=1000&{query}"))?;
        response.text().lines().map(|line| serde_json::from_str(line).context("reading a flow")).collect()
    }

    /// A GET whose answer is JSON with status 200.
    pub fn json(&self, path: &str) -> Result<serde_json::Value> {
        let response = self.get(path)?;
        if response.status != 200 {
            bail!("GET {path} gave {}: {}", response.status, response.text());
        }
        serde_json::from_slice(&response.body).with_context(|| format!("reading the answer to GET {path}"))
    }

    /// A GET over the agent's socket.
    pub fn get(&self, path: &str) -> Result<Response> {
        self.request("GET", path)
    }

    /// A DELETE over the agent's socket.
    pub fn delete(&self, path: &str) -> Result<Response> {
        self.request("DELETE", path)
    }

    fn request(&self, method: &str, path: &str) -> Result<Response> {
        let (socket, method, path) = (self.socket(), method.to_owned(), path.to_owned());
        self.world.node().run(async move { request(&socket, &method, &path).await })
    }

    /// Runs `namegate` with these arguments on the node and waits for it; exit code 124 is that it did not end in time.
    pub fn cli(&self, arguments: &[&str]) -> Result<Output> {
        let mut command = Command::new("timeout");
        command.arg(PATIENCE.as_secs().to_string()).arg(&self.binary).args(arguments);
        self.world.node().call(move || command.output().context("running `namegate`"))
    }

    /// The binary that runs.
    pub fn binary(&self) -> &Path {
        &self.binary
    }

    /// The agent's socket.
    pub fn socket(&self) -> PathBuf {
        self.path("namegate.sock")
    }

    /// A file of the agent's folder: `namegate.yaml`, `endpoints.yaml`, `policies/`, `agent.log`.
    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Where the agent pins its maps.
    pub fn pins(&self) -> &Path {
        &self.pins
    }

    /// What the agent wrote so far.
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.path("agent.log")).unwrap_or_default()
    }

    /// `kill -9`, and waits for the end.
    pub fn kill(&mut self) -> Result<()> {
        self.signal(Signal::SIGKILL)?;
        self.wait_end()
    }

    /// Asks the agent to end (`SIGTERM`), and waits until it has.
    pub fn terminate(&mut self) -> Result<()> {
        self.signal(Signal::SIGTERM)?;
        self.wait_end()
    }

    /// Sends a signal: `SIGSTOP` and `SIGCONT` hold the agent for a while.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        let child = self.child.as_ref().context("the agent does not run")?;
        let pid = i32::try_from(child.id()).context("a process number")?;
        kill(Pid::from_raw(pid), signal).with_context(|| format!("sending {signal} to the agent"))
    }

    /// The number of the agent's process, while it runs.
    pub fn pid(&self) -> Option<u32> {
        self.child.as_ref().map(Child::id)
    }

    fn wait_end(&mut self) -> Result<()> {
        let mut child = self.child.take().context("the agent does not run")?;
        child.wait().context("waiting for the agent's end")?;
        Ok(())
    }

    /// Flows of the agent that were denied for this pod.
    pub fn denials(&self, pod: &Pod) -> Result<Vec<serde_json::Value>> {
        self.flows(&format!("denied=true&endpoint={}", pod.spec.key().replace('/', "%2F")))
    }
}

impl Drop for Agent<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("--- the agent's log\n{}---", self.log());
        }
        if let Some(mut child) = self.child.take() {
            let _ = child.kill(); // It may have ended by itself.
            let _ = child.wait();
        }
        pins::remove(&self.pins);
    }
}
