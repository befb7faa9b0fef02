//! Real clients in an endpoint: two names on one address, of which a policy allows one. Called by `cargo xtask clients`.

mod program;
mod protocol;
mod report;
mod server;
mod trial;

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Result, ensure};
use clap::Parser;
use namegate_testbed::{Agent, Options, Spec, World};
use serde_json::json;

use program::{Places, Program};
use report::{Report, Row};
use server::Server;
use trial::{Binding, Trial};

/// The pod that the clients run in, and the resolver.
const PODS: [&str; 2] = ["empire/tiefighter", "kube-system/coredns-1"];
/// One address with two names, and which of them is allowed.
const SHARED: &str = "192.0.2.80";
const GOOD: &str = "good.shared.test";
const BAD: &str = "bad.shared.test";
/// Seconds that answers of the resolver hold.
const TTL: u32 = 3_600;

/// Opens cluster DNS, and the address by one of its names.
const POLICY: &str = "apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata: {name: good, namespace: empire}
spec:
  endpointSelector: {}
  egress:
  - toEndpoints: [{matchLabels: {'k8s:io.kubernetes.pod.namespace': kube-system, 'k8s:k8s-app': kube-dns}}]
  - toFQDNs: [{matchName: good.shared.test}]
";

/// Tries real clients against names that share an address. Needs root.
#[derive(Parser)]
struct Arguments {
    /// The server in Go.
    #[arg(long)]
    server: PathBuf,
    #[command(flatten)]
    places: Places,
    /// Only clients whose name has this text.
    #[arg(long)]
    only: Option<String>,
}

fn main() -> ExitCode {
    match run(&Arguments::parse()) {
        Ok(report) => report.finish(),
        Err(error) => {
            anstream::eprintln!("\x1b[31merror:\x1b[0m {error:#}");
            ExitCode::from(2)
        }
    }
}

fn run(arguments: &Arguments) -> Result<Report> {
    let only = arguments.only.as_deref().unwrap_or_default().to_lowercase();
    let mut programs = Program::all(&arguments.places)?;
    programs.retain(|program| program.name.to_lowercase().contains(&only));
    ensure!(!programs.is_empty(), "no client's name has `{only}`");
    let world = World::build(Spec::empire()?.only(&PODS))?;
    for name in [GOOD, BAD] {
        world.zone().set_addresses(name, TTL, &[SHARED.parse()?]);
    }
    let server = Server::start(&world, &arguments.server)?;
    let trial = Trial::new(&world, &server)?;
    let mut rows: Vec<Row> = programs.iter().flat_map(Row::of).collect();
    for binding in [Binding::Enforce, Binding::Observe] {
        let options = Options::default().policies(POLICY).with(json!({"dns": {"nameBinding": binding.word()}}));
        let agent = Agent::start(&world, &options)?;
        for row in &mut rows {
            eprintln!("{}: {}, {}", binding.word(), row.program.name, row.protocol.title());
            for name in [GOOD, BAD] {
                let cell = trial.run(&agent, binding, row.program, row.protocol, name)?;
                row.add(cell);
            }
        }
    }
    Ok(Report::of(&rows, &programs))
}
