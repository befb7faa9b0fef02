//! Developer commands. Each installs what it needs and is missing, says so, and then does its work.

mod attack;
mod bench;
mod clients;
mod cluster;
mod deny;
mod e2e;
mod ebpf;
mod flood;
mod fuzz;
mod gauntlet;
mod go;
mod h2spec;
mod shell;
mod test;

use std::ffi::OsString;
use std::process::ExitCode;

use anyhow::Result;
use clap::{Parser, Subcommand};

/// Developer commands of Namegate.
#[derive(Parser)]
#[command(
    name = "cargo xtask",
    after_help = "Examples:\n  sudo -E cargo xtask demo\n  sudo -E cargo xtask test\n  cargo xtask help demo"
)]
struct Arguments {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
enum Verb {
    /// Shows the gate at work: the seed article's policies and tests on network namespaces.
    #[command(
        after_help = "Examples:\n  sudo -E cargo xtask demo\n  sudo -E cargo xtask demo -o json > demo.json\n\nExit status: 0 if every row is as the article says, 1 if one is not, 2 if the demo could not run."
    )]
    Demo {
        /// Form of the output.
        #[arg(short, long, default_value = "text", value_parser = ["text", "json"])]
        output: String,
    },
    /// Runs every check and every test: format, lints, unit, documentation and real-kernel tests.
    #[command(
        after_help = "Examples:\n  sudo -E cargo xtask test\n  sudo -E cargo xtask test -- race   # tests whose name holds `race`"
    )]
    Test {
        /// Arguments for the test programs.
        #[arg(last = true)]
        arguments: Vec<OsString>,
    },
    /// Attacks a node from a pod, a zone, a neighbour and by policies at once, while two honest endpoints go on.
    #[command(
        after_help = "Examples:\n  sudo -E cargo xtask attack                # five minutes\n  sudo -E cargo xtask attack --seconds 35\n  sudo -E cargo xtask attack -o json > attack.json\n\nExit status: 0 if every row is as expected, 1 if one is not, 2 if it could not run."
    )]
    Attack(attack::Attack),
    /// Floods the layer 7 proxy from one endpoint in all known ways, while another endpoint makes steady requests.
    #[command(
        after_help = "Examples:\n  sudo -E cargo xtask flood                 # 60 s each\n  sudo -E cargo xtask flood --seconds 10 --only ping\n  sudo -E cargo xtask flood -o json > flood.json\n\nExit status: 0 if no honest request is refused and the agent's memory keeps its bounds, 1 if not, 2 if it could not run."
    )]
    Flood(flood::Flood),
    /// Measures Namegate beside other programs, in one run on this machine.
    Bench {
        #[command(subcommand)]
        what: bench::What,
    },
    /// A real Kubernetes of one node on this machine: etcd, API server, kubelet, containerd, kube-proxy, CoreDNS.
    Cluster {
        #[command(subcommand)]
        what: cluster::What,
    },
    /// Installs Namegate on that cluster and tries it: the seed article's commands word for word, and more.
    #[command(
        after_help = "Examples:\n  sudo -E cargo xtask e2e\n  sudo -E cargo xtask e2e --suites seed --down\n\nExit status: 0 if everything is as expected, 1 if something is not, 2 if it could not run."
    )]
    E2e(e2e::E2e),
    /// Feeds made-up input to the readers of policies, settings, DNS messages and packets.
    #[command(
        after_help = "Examples:\n  cargo xtask fuzz                          # everything, 10 minutes each\n  cargo xtask fuzz policy_yaml --seconds 60\n  cargo xtask fuzz --store                  # keep what is new below fuzz/corpus\n\nExit status: 0 if nothing was found, 1 if a target failed."
    )]
    Fuzz(fuzz::Fuzz),
    /// Tries real clients against two names of one address: curl, OpenSSL, Go, Python, rustls, Chromium.
    #[command(
        after_help = "Examples:\n  sudo -E cargo xtask clients\n  sudo -E cargo xtask clients --only chromium\n\nExit status: 0 if every cell of the table is as it must be, 1 if one is not, 2 if it could not run."
    )]
    Clients(clients::Clients),
    /// Plays hundreds of odd requests and handshakes against real servers, and compares what they saw with the records.
    #[command(
        after_help = "Examples:\n  sudo -E cargo xtask gauntlet\n  sudo -E cargo xtask gauntlet --short --only 'HTTP/2'\n  sudo -E cargo xtask gauntlet --table        # for docs/layer7.md\n  sudo -E cargo xtask gauntlet -o json > gauntlet.json\n\nExit status: 0 if every form ended as it must, 1 if one did not, 2 if it could not run."
    )]
    Gauntlet(gauntlet::Gauntlet),
    /// Tests the HTTP/2 side of the proxy with h2spec.
    #[command(
        after_help = "Examples:\n  cargo xtask h2spec\n  cargo xtask h2spec http2/5.1 hpack\n\nExit status: 0 if all tests passed, 1 if one failed."
    )]
    H2spec(h2spec::H2spec),
    /// Builds the eBPF object that the agent carries. Building the agent itself needs stable Rust alone.
    #[command(
        after_help = "Examples:\n  sudo -E cargo xtask ebpf           # write datapath/loader/ebpf/namegate.bpf.o\n  sudo -E cargo xtask ebpf --check   # compare with the committed one\n\nExit status: 0 if the object is what its source gives or was built with other versions, 1 if not."
    )]
    Ebpf {
        /// Compare with the committed object and write nothing beside it.
        #[arg(long)]
        check: bool,
    },
}

fn main() -> Result<ExitCode> {
    if let Some(result) = ebpf::as_rustc() {
        return result;
    }
    match Arguments::parse().verb {
        Verb::Attack(arguments) => attack::run(&arguments),
        Verb::Flood(arguments) => flood::run(&arguments),
        Verb::Bench { what } => bench::run(&what),
        Verb::Clients(arguments) => clients::run(&arguments),
        Verb::Gauntlet(arguments) => gauntlet::run(&arguments),
        Verb::H2spec(arguments) => h2spec::run(&arguments),
        Verb::Cluster { what } => cluster::run(&what),
        Verb::E2e(arguments) => arguments.run(),
        Verb::Fuzz(arguments) => fuzz::run(&arguments),
        Verb::Ebpf { check } => ebpf::run(check),
        Verb::Demo { output } => demo(&output),
        Verb::Test { arguments } => test::run(&arguments),
    }
}

/// Builds the agent and the demo, optimised, and runs the demo.
fn demo(output: &str) -> Result<ExitCode> {
    shell::need_root("network namespaces and eBPF", "cargo xtask demo")?;
    shell::install_missing(&shell::TOOLS)?;
    shell::step("building the agent and the demo; the first time takes minutes");
    let packages = ["--package", "namegate", "--package", "namegate-testbed"];
    let build = ["build", "--profile", "demo", "--bin", "namegate", "--bin", "namegate-demo"];
    shell::cargo(&[&build, &packages[..]].concat())?;
    let folder = shell::target().join("demo");
    let mut demo = std::process::Command::new(folder.join("namegate-demo"));
    demo.args(["--output", output]).env("NAMEGATE_BIN", folder.join("namegate"));
    let status = shell::run(&mut demo)?;
    Ok(ExitCode::from(status.code().and_then(|code| u8::try_from(code).ok()).unwrap_or(2)))
}
