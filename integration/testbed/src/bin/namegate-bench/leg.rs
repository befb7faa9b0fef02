//! The legs: who answers, from which address, how each is started, and what it must leave behind.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use anyhow::{Context, Result, ensure};
use clap::ValueEnum;
use namegate_testbed::{Agent, Netns, Options, World};
use serde::Serialize;
use serde_json::Value;

use crate::config::{self, NFT_SET, WORKERS};
use crate::daemon::{Daemon, find};
use crate::names;

/// Who answers the questions.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Leg {
    /// The authoritative server itself.
    #[value(skip)]
    Direct,
    /// A load balancer for DNS.
    Dnsdist,
    /// The cluster DNS of Kubernetes.
    Coredns,
    /// A forwarder that writes addresses to an nftables set.
    Dnsmasq,
    /// A resolver, forwarding.
    Unbound,
    /// The agent: interception, policy and map writes.
    Namegate,
}

impl Leg {
    /// The name in the report.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Direct => "direct",
            Self::Dnsdist => "dnsdist",
            Self::Coredns => "CoreDNS",
            Self::Dnsmasq => "dnsmasq",
            Self::Unbound => "unbound",
            Self::Namegate => "Namegate",
        }
    }

    /// How it is set up, for the report.
    pub(crate) fn setting(self) -> String {
        match self {
            Self::Direct => format!("nsd itself, {WORKERS} processes, without anything between"),
            Self::Dnsdist => format!("{WORKERS} listeners, {WORKERS} upstream connections, no packet cache"),
            Self::Coredns => format!("forward, {WORKERS} listeners (multisocket), no cache plugin"),
            Self::Dnsmasq => {
                "one thread (it has no more), cache off, each answer written to an nftables set".to_owned()
            }
            Self::Unbound => format!("forward, {WORKERS} threads, answers not cached (forward-no-cache)"),
            Self::Namegate => {
                "questions to nsd intercepted, toFQDNs policy, each answer's address in the kernel's map first"
                    .to_owned()
            }
        }
    }

    /// The program that is run; the agent's is the testbed's to find.
    const fn program(self) -> Option<&'static str> {
        match self {
            Self::Direct | Self::Namegate => None,
            Self::Dnsdist => Some("dnsdist"),
            Self::Coredns => Some("coredns"),
            Self::Dnsmasq => Some("dnsmasq"),
            Self::Unbound => Some("unbound"),
        }
    }

    /// A port of the node for each program: none waits for another's to be free again.
    const fn port(self) -> u16 {
        5_300 + self as u16
    }
}

/// Where the legs run.
pub(crate) struct Site<'a> {
    /// The world with the asking pod and the upstream's.
    pub(crate) world: &'a World,
    /// Files of all programs.
    pub(crate) folder: &'a Path,
    /// The authoritative server.
    pub(crate) upstream: SocketAddr,
    /// The node's own address.
    pub(crate) node: std::net::IpAddr,
    /// CoreDNS's program, where it was given.
    pub(crate) coredns: Option<PathBuf>,
}

/// What a leg wrote to the kernel.
#[derive(Clone, Copy, Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) struct Written {
    /// Addresses that are there after the measurement.
    pub(crate) addresses: u64,
    /// Answers since the leg's start whose addresses were written first, where that is counted.
    pub(crate) answers: Option<u64>,
}

/// A leg that answers.
pub(crate) enum Running<'a> {
    Direct,
    Program(Leg, Daemon),
    Agent(Box<Agent<'a>>),
}

impl<'a> Site<'a> {
    /// The address to ask.
    pub(crate) fn target(&self, leg: Leg) -> SocketAddr {
        match leg {
            Leg::Direct | Leg::Namegate => self.upstream,
            _ => SocketAddr::new(self.node, leg.port()),
        }
    }

    /// Why a leg can't be measured here, if so.
    pub(crate) fn missing(&self, leg: Leg) -> Option<String> {
        let program = leg.program()?;
        self.program(leg).is_none().then(|| format!("there is no `{program}` on this machine"))
    }

    /// Starts what the leg needs besides the authoritative server.
    pub(crate) fn start(&self, leg: Leg) -> Result<Running<'a>> {
        let (listen, upstream) = (self.target(leg), self.upstream);
        let arguments = match leg {
            Leg::Direct => return Ok(Running::Direct),
            Leg::Namegate => {
                let agent = Agent::start(self.world, &Options::default())?;
                let mistakes = agent.apply(config::POLICY)?.mistakes();
                ensure!(mistakes.is_empty(), "the agent refused the policy: {}", mistakes.join("; "));
                return Ok(Running::Agent(Box::new(agent)));
            }
            Leg::Dnsdist => config::dnsdist(self.folder, listen, upstream)?,
            Leg::Coredns => config::coredns(self.folder, listen, upstream)?,
            Leg::Unbound => config::unbound(self.folder, listen, upstream)?,
            Leg::Dnsmasq => {
                let table = config::write(self.folder, "table.nft", &config::nft_table())?;
                let table = table.to_string_lossy();
                let made = run(self.world.node(), "nft", &["-f", &table])?;
                ensure!(made.status.success(), "`nft` refused: {}", String::from_utf8_lossy(&made.stderr));
                config::dnsmasq(listen, upstream)
            }
        };
        let program = self.program(leg).context("its program is not there")?;
        Ok(Running::Program(leg, Daemon::start(self.world.node(), &program, arguments, self.folder)?))
    }

    fn program(&self, leg: Leg) -> Option<PathBuf> {
        match (leg, &self.coredns) {
            (Leg::Coredns, Some(given)) => Some(given.clone()),
            _ => find(leg.program()?),
        }
    }

    /// What the program calls its version.
    pub(crate) fn version(&self, leg: Leg) -> Option<String> {
        let (program, argument) = match leg {
            Leg::Direct => (find("nsd")?, "-v"),
            Leg::Namegate => return None,
            Leg::Coredns => (self.program(leg)?, "-version"),
            Leg::Unbound => (self.program(leg)?, "-V"),
            Leg::Dnsdist | Leg::Dnsmasq => (self.program(leg)?, "--version"),
        };
        let output = Command::new(program).arg(argument).stdin(Stdio::null()).output().ok()?;
        let said = [output.stdout, output.stderr].concat();
        version_in(&String::from_utf8_lossy(&said))
    }
}

impl Running<'_> {
    /// An error with what the program said, if it has ended.
    pub(crate) fn check(&mut self) -> Result<()> {
        match self {
            Self::Program(_, daemon) => daemon.check(),
            Self::Direct | Self::Agent(_) => Ok(()),
        }
    }

    /// What was written down, where that can be read.
    pub(crate) fn said(&self) -> String {
        match self {
            Self::Direct => String::new(),
            Self::Program(_, daemon) => daemon.said(),
            Self::Agent(agent) => agent.log(),
        }
    }

    /// What the leg wrote to the kernel, for those that do.
    pub(crate) fn written(&self, site: &Site<'_>) -> Result<Option<Written>> {
        match self {
            Self::Program(Leg::Dnsmasq, _) => {
                let [family, table, set] = NFT_SET;
                let listed = run(site.world.node(), "nft", &["--json", "list", "set", family, table, set])?;
                let listed: Value = serde_json::from_slice(&listed.stdout).context("reading the nftables set")?;
                Ok(Some(Written { addresses: elements(&listed), answers: None }))
            }
            Self::Agent(agent) => {
                let metrics = agent.get("/metrics")?.text();
                let addresses = metric(&metrics, "namegate_fqdn_addresses")?;
                let answers = metric(&metrics, "namegate_dns_messages_total{outcome=\"installed\"}")?;
                Ok(Some(Written { addresses, answers: Some(answers) }))
            }
            Self::Direct | Self::Program(..) => Ok(None),
        }
    }
}

impl Written {
    /// Refuses figures of a leg that did not do its work for each of so many answers.
    pub(crate) fn check(&self, answers: u64) -> Result<()> {
        let addresses = answers.min(u64::from(names::NAMES));
        ensure!(self.addresses >= addresses, "{} addresses in the kernel, not {addresses}", self.addresses);
        let installed = self.answers.unwrap_or(answers);
        ensure!(installed >= answers, "{installed} answers were installed, not {answers}");
        Ok(())
    }
}

/// The value of a metric without a unit.
fn metric(metrics: &str, name: &str) -> Result<u64> {
    let value = metrics.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    let value = value.with_context(|| format!("the agent has no metric `{name}`"))?;
    value.trim().parse().with_context(|| format!("reading `{name}`"))
}

/// Runs a program in a namespace and waits for it.
fn run(netns: &Netns, program: &str, arguments: &[&str]) -> Result<Output> {
    let path = find(program).with_context(|| format!("there is no `{program}` on this machine"))?;
    let mut command = Command::new(path);
    command.args(arguments).stdin(Stdio::null());
    netns.call(move || command.output()).with_context(|| format!("running `{program}`"))
}

/// Elements of the set that `nft --json list set` shows.
fn elements(listed: &Value) -> u64 {
    let objects = listed["nftables"].as_array().into_iter().flatten();
    objects.filter_map(|object| object["set"]["elem"].as_array()).map(|elements| elements.len() as u64).sum()
}

/// The first word that looks like a version: two dots or more, or one, between digits.
pub(crate) fn version_in(said: &str) -> Option<String> {
    let numeric = |word: &&str| {
        let parts: Vec<_> = word.split('.').collect();
        parts.len() > 1 && parts.iter().all(|part| part.chars().next().is_some_and(|first| first.is_ascii_digit()))
    };
    let words = said.split(|letter: char| letter.is_whitespace() || [',', '/'].contains(&letter));
    words.map(|word| word.split_once("CoreDNS-").map_or(word, |(_, version)| version)).find(numeric).map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn versions_are_found_in_what_programs_say() {
        for (said, want) in [
            ("NSD version 4.6.1\nWritten by NLnet Labs.", Some("4.6.1")),
            ("dnsdist 1.7.3 (Lua 5.1.4 [LuaJIT 2.1.0-beta3])", Some("1.7.3")),
            ("CoreDNS-1.14.7\nlinux/amd64, go1.26.4,", Some("1.14.7")),
            ("Dnsmasq version 2.90  Copyright (c) 2000-2024", Some("2.90")),
            ("Version 1.17.1\n", Some("1.17.1")),
            ("nginx version: nginx/1.22.1", Some("1.22.1")),
            ("envoy  version: 6eb0d2/1.39.3/Clean/RELEASE/BoringSSL", Some("1.39.3")),
            ("unknown option", None),
        ] {
            assert_eq!(version_in(said).as_deref(), want, "{said}");
        }
    }

    #[test]
    fn a_leg_that_left_work_out_is_found_out() {
        let all = u64::from(names::NAMES);
        for (addresses, answers, asked, want) in [
            (all, None, 9 * all, true),
            (all - 1, None, 9 * all, false),
            (all, Some(9 * all), 9 * all, true),
            (all, Some(9 * all - 1), 9 * all, false),
            (10, Some(10), 10, true),
            (0, Some(0), 10, false),
        ] {
            let checked = Written { addresses, answers }.check(asked);
            assert_eq!(checked.is_ok(), want, "{addresses} {answers:?} of {asked}: {checked:?}");
        }
    }

    #[test]
    fn metrics_are_read_by_their_whole_name() {
        let text = "# TYPE a gauge\na_max 7\na 5\nb{c=\"d\"} 6\n";
        assert_eq!([metric(text, "a").unwrap(), metric(text, "b{c=\"d\"}").unwrap()], [5, 6]);
        assert!(metric(text, "b").is_err());
    }

    #[test]
    fn elements_of_an_nftables_set_are_counted() {
        let listed =
            |elements: Value| json!({"nftables": [{"metainfo": {}}, {"set": {"name": "names", "elem": elements}}]});
        assert_eq!(elements(&listed(json!(["20.0.0.1", "20.0.0.2"]))), 2);
        assert_eq!(elements(&json!({"nftables": [{"set": {"name": "names"}}]})), 0, "an empty set has no `elem`");
    }
}
