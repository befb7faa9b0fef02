//! The legs: what stands between the client and the server, and how each is set up.

use std::io::Write as _;
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use clap::ValueEnum;
use namegate_testbed::{Agent, Netns, Options, World};
use serde_json::json;

use super::check;
use super::iptables::Chain;
use super::nftables::Table;
use super::rules::Rules;
use crate::daemon::find;

/// How long the agent may take until it enforces every rule.
const PATIENCE: Duration = Duration::from_mins(2);
const PAUSE: Duration = Duration::from_millis(20);
/// How long connection tracking remembers a connection that was reset: its table is the machine's, and would be full.
const TRACKED: (&str, &str) = ("/proc/sys/net/netfilter/nf_conntrack_tcp_timeout_close", "1");

/// What judges the client's packets.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Leg {
    /// Nothing: the pairs of virtual interfaces alone.
    #[value(skip)]
    Bare,
    /// An nftables set on the node.
    Nftables,
    /// iptables with an ipset on the node.
    Ipset,
    /// Namegate, with its agent.
    Namegate,
    /// Namegate, after its agent has ended.
    Stopped,
}

impl Leg {
    /// The name in the result.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Bare => "bare",
            Self::Nftables => "nftables",
            Self::Ipset => "ipset",
            Self::Namegate => "namegate",
            Self::Stopped => "stopped",
        }
    }
}

/// Where a leg runs, and what it allows.
pub(crate) struct Site<'a> {
    pub(crate) world: &'a World,
    pub(crate) folder: &'a Path,
    pub(crate) leg: Leg,
    pub(crate) rules: Rules,
}

/// A leg that judges. Dropping it takes it down.
#[expect(dead_code, reason = "what a leg holds is there to be dropped")]
pub(crate) enum Running<'a> {
    Bare,
    Nftables(Table<'a>),
    Ipset(Chain<'a>),
    Agent(Box<Agent<'a>>),
}

impl<'a> Site<'a> {
    /// Sets the leg up, and tries that it allows what the rules allow and nothing else.
    pub(crate) fn start(&self) -> Result<Running<'a>> {
        let node = self.world.node();
        let running = match self.leg {
            Leg::Bare => Running::Bare,
            Leg::Nftables => Running::Nftables(Table::add(node, &self.rules)?),
            Leg::Ipset => Running::Ipset(Chain::add(node, &self.rules)?),
            Leg::Namegate => Running::Agent(Box::new(self.agent()?)),
            Leg::Stopped => {
                let mut agent = self.agent()?;
                agent.terminate()?;
                Running::Agent(Box::new(agent))
            }
        };
        if matches!(self.leg, Leg::Nftables | Leg::Ipset) {
            node.call(|| std::fs::write(TRACKED.0, TRACKED.1)).with_context(|| format!("writing {}", TRACKED.0))?;
        }
        check(self)?;
        Ok(running)
    }

    /// The agent with every rule in force.
    fn agent(&self) -> Result<Agent<'a>> {
        let agent = Agent::start(self.world, &Options::default())?;
        self.add_endpoints(&agent)?;
        let mistakes = agent.apply(&self.rules.policy())?.mistakes();
        ensure!(mistakes.is_empty(), "the agent refused the policy: {}", mistakes.join("; "));
        let started = Instant::now();
        while check(self).is_err() {
            if started.elapsed() > PATIENCE {
                bail!("the agent does not enforce the policy within {PATIENCE:?}:\n{}", agent.log());
            }
            std::thread::sleep(PAUSE);
        }
        Ok(agent)
    }

    /// Adds pods elsewhere to the agent's endpoints.
    fn add_endpoints(&self, agent: &Agent<'_>) -> Result<()> {
        let added = self.rules.endpoints();
        if added.is_empty() {
            return Ok(());
        }
        let path = agent.path("endpoints.yaml");
        let mut file: serde_json::Value = serde_json::from_str(&std::fs::read_to_string(&path)?)?;
        let endpoints = file["endpoints"].as_array_mut().context("the endpoints file has a list of endpoints")?;
        endpoints.extend(added);
        file["namespaces"] = json!([{"name": "bench", "labels": {}}]);
        let beside = agent.path("endpoints.new");
        std::fs::write(&beside, file.to_string())?;
        std::fs::rename(beside, path).context("replacing the endpoints file")
    }
}

/// Runs a program in a namespace and waits for it.
pub(super) fn run(netns: &Netns, program: &str, arguments: &[&str]) -> Result<Output> {
    fill(netns, program, arguments, String::new())
}

/// The same with a text for its standard input.
pub(super) fn fill(netns: &Netns, program: &str, arguments: &[&str], input: String) -> Result<Output> {
    let path = find(program).with_context(|| format!("there is no `{program}` on this machine"))?;
    let mut command = Command::new(path);
    command.args(arguments).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let output = netns.call(move || {
        let mut child = command.spawn()?;
        if let Some(mut stdin) = child.stdin.take() {
            stdin.write_all(input.as_bytes())?;
        }
        child.wait_with_output()
    });
    output.with_context(|| format!("running `{program}`"))
}
