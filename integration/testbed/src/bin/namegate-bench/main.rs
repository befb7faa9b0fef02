//! Measurements side by side on this machine: one world, one load, one leg after the other.
#![forbid(unsafe_code)]

mod config;
mod control;
mod daemon;
mod datapath;
mod dns;
mod l7;
mod leg;
mod load;
mod machine;
mod memory;
mod names;
mod probe;
mod report;

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Result, ensure};
use clap::{Args, Parser, Subcommand, ValueEnum};

use leg::Leg;

/// Measures Namegate beside other programs.
#[derive(Parser)]
#[command(
    after_help = "Examples:\n  sudo -E cargo xtask bench dns\n  sudo -E cargo xtask bench dns --peers namegate,coredns --rounds 5 -o json\n  sudo -E cargo xtask bench l7"
)]
struct Arguments {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
enum Verb {
    /// Questions a second and latency through DNS proxies in front of one authoritative server.
    Dns(Dns),
    /// Requests a second, latency and memory of proxies that read HTTP requests and TLS server names.
    L7(l7::Arguments),
    /// Latency of DNS while policies change, time until a change is enforced, memory, and hostile loads. Prints JSON.
    Control(control::Arguments),
    /// Throughput, new connections and requests a second of a pod through Namegate, nftables and iptables.
    Datapath(datapath::Arguments),
}

/// How to measure DNS.
#[derive(Args)]
pub(crate) struct Dns {
    /// Length of each measurement, seconds.
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u64).range(2..=60))]
    seconds: u64,
    /// How often each leg is measured; every other round goes through the legs backwards.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=100))]
    rounds: u32,
    /// Legs besides the direct one.
    #[arg(long, value_enum, value_delimiter = ',', default_value = "dnsdist,coredns,dnsmasq,unbound,namegate")]
    peers: Vec<Leg>,
    /// CoreDNS's program, if it is not on the path.
    #[arg(long, value_name = "FILE")]
    coredns: Option<PathBuf>,
    /// Form of the output.
    #[arg(short, long, value_enum, default_value = "text")]
    output: Output,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Output {
    /// For people; coloured on a terminal.
    Text,
    /// One JSON object.
    Json,
}

fn main() -> ExitCode {
    let Arguments { verb } = Arguments::parse();
    match run(&verb) {
        Ok(code) => code,
        Err(error) => {
            anstream::eprintln!("\x1b[31merror:\x1b[0m {error:#}");
            ExitCode::from(2)
        }
    }
}

fn run(verb: &Verb) -> Result<ExitCode> {
    let name = match verb {
        Verb::Dns(_) => "dns",
        Verb::L7(_) => "l7",
        Verb::Control(_) => "control",
        Verb::Datapath(_) => "datapath",
    };
    ensure!(
        nix::unistd::geteuid().is_root(),
        "network namespaces need root; next step: `sudo -E cargo xtask bench {name}`"
    );
    match verb {
        Verb::Dns(arguments) => dns::run(arguments),
        Verb::L7(arguments) => l7::run(arguments),
        Verb::Control(arguments) => control::run(arguments),
        Verb::Datapath(arguments) => datapath::run(arguments),
    }
}
