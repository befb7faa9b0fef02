//! `cargo xtask bench`: installs or builds the programs that Namegate is measured beside, then measures.

mod chart;
mod control;
mod datapath;
mod figures;
mod l7;
mod policy;

use std::path::PathBuf;
use std::process::{Command, ExitCode};

use anyhow::Result;
use clap::{Args, Subcommand};

use crate::go;
use crate::shell::{self, Tool};

/// The peers of the DNS measurement, Namegate's own leg among them.
const PEERS: [&str; 5] = ["dnsdist", "coredns", "dnsmasq", "unbound", "namegate"];
/// What every DNS measurement is made with: the authoritative server and the load.
const DNS_TOOLS: [Tool; 2] = [Tool { program: "nsd", package: "nsd" }, Tool { program: "dnsperf", package: "dnsperf" }];

/// What to measure.
#[derive(Subcommand)]
pub(crate) enum What {
    /// Questions a second and latency: nsd alone, dnsdist, CoreDNS, dnsmasq with nftables sets, unbound, Namegate.
    #[command(
        after_help = "Examples:\n  sudo -E cargo xtask bench dns\n  sudo -E cargo xtask bench dns --peers namegate,coredns --rounds 5\n  sudo -E cargo xtask bench dns -o json > dns.json\n\nExit status: 0 if each leg was measured or skipped, 1 if one failed, 2 if nothing could be measured."
    )]
    Dns(Dns),
    /// Requests a second, latency and memory: the origin alone, nginx, Envoy, Namegate's proxy, the whole agent.
    #[command(
        after_help = "Examples:\n  sudo -E cargo xtask bench l7\n  sudo -E cargo xtask bench l7 --peers envoy,namegate --works http --rounds 5\n  sudo -E cargo xtask bench l7 -o json > l7.json\n\nExit status: 0 if each leg was measured or skipped, 1 if one failed, 2 if nothing could be measured."
    )]
    L7(l7::L7),
    /// Throughput, new connections, requests and the cost of one packet: bare, nftables, iptables with ipset, Namegate.
    #[command(
        after_help = "Examples:\n  sudo -E cargo xtask bench datapath\n  sudo -E cargo xtask bench datapath --peers nftables,namegate --sizes many --rounds 5\n  sudo -E cargo xtask bench datapath -o json > datapath.json\n\nExit status: 0 if each leg was measured, 1 if one failed, 2 if nothing could be measured."
    )]
    Datapath(datapath::Datapath),
    /// How policies grow: time from text to rows, one change, rows of the kernel and memory.
    #[command(
        after_help = "Examples:\n  cargo xtask bench policy\n  cargo xtask bench policy --rounds 5 --write\n  cargo xtask bench policy -o json > policy.json"
    )]
    Policy(policy::Policy),
    /// Latency of DNS while policies change, time until a change is enforced, memory, start, and hostile loads.
    #[command(
        after_help = "Examples:\n  sudo -E cargo xtask bench control\n  sudo -E cargo xtask bench control --rows policies-12000,idle --seconds 5\n  sudo -E cargo xtask bench control --write\n  sudo -E cargo xtask bench control -o json > control.json\n\nExit status: 0 if every row was measured, 1 if one failed, 2 if nothing could be measured."
    )]
    Control(control::Control),
}

/// Handed on to `namegate-bench dns`.
#[derive(Args)]
pub(crate) struct Dns {
    /// Length of each measurement, seconds.
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u64).range(2..=60))]
    seconds: u64,
    /// How often each leg is measured.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=100))]
    rounds: u32,
    /// Legs besides the direct one.
    #[arg(long, value_delimiter = ',', default_values = PEERS, value_parser = PEERS)]
    peers: Vec<String>,
    /// Form of the output.
    #[arg(short, long, default_value = "text", value_parser = ["text", "json"])]
    output: String,
}

/// Measures.
pub(crate) fn run(what: &What) -> Result<ExitCode> {
    match what {
        What::Dns(dns) => dns.run(),
        What::L7(l7) => l7.run(),
        What::Datapath(datapath) => datapath.run(),
        What::Policy(policy) => policy.run(),
        What::Control(control) => control.run(),
    }
}

impl Dns {
    fn run(&self) -> Result<ExitCode> {
        shell::need_root("network namespaces and eBPF", "cargo xtask bench dns")?;
        shell::install_missing(&shell::TOOLS)?;
        shell::install_missing(&DNS_TOOLS)?;
        for peer in &self.peers {
            shell::install_missing(&packaged(peer))?;
        }
        let coredns = if self.has("coredns") { coredns_or_say_why() } else { None };
        shell::step("building the measurement (release); the first time takes minutes");
        let mut packages = vec!["build", "--release", "--bins", "--package", "namegate-testbed"];
        if self.has("namegate") {
            packages.extend(["--package", "namegate"]);
        }
        shell::cargo(&packages)?;
        let folder = shell::target().join("release");
        let mut bench = Command::new(folder.join("namegate-bench"));
        bench.args(["dns", "--seconds", &self.seconds.to_string(), "--rounds", &self.rounds.to_string()]);
        bench.args(["--peers", &self.peers.join(","), "--output", &self.output]);
        if let Some(program) = coredns {
            bench.arg("--coredns").arg(program);
        }
        let status = shell::run(bench.env("NAMEGATE_BIN", folder.join("namegate")))?;
        Ok(ExitCode::from(status.code().and_then(|code| u8::try_from(code).ok()).unwrap_or(2)))
    }

    fn has(&self, peer: &str) -> bool {
        self.peers.iter().any(|given| given == peer)
    }
}

/// Programs of a peer that Debian has.
fn packaged(peer: &str) -> Vec<Tool> {
    match peer {
        "dnsdist" => vec![Tool { program: "dnsdist", package: "dnsdist" }],
        "unbound" => vec![Tool { program: "unbound", package: "unbound" }],
        "dnsmasq" => {
            vec![Tool { program: "dnsmasq", package: "dnsmasq-base" }, Tool { program: "nft", package: "nftables" }]
        }
        _ => Vec::new(),
    }
}

/// CoreDNS's program. Without it its leg is skipped, unless there is one on the path.
fn coredns_or_say_why() -> Option<PathBuf> {
    go::coredns(go::For::Speed)
        .inspect_err(|error| shell::step(&format!("CoreDNS can't be built, its leg is skipped: {error:#}")))
        .ok()
}
