//! The run of `datapath`: one pod that talks through the node to a server, and each kind of work through each leg.

mod iptables;
mod leg;
mod load;
mod nftables;
mod rules;

use std::net::{Ipv4Addr, SocketAddr};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use clap::{Args, ValueEnum};
use namegate_testbed::{PodSpec, Spec, World};
use serde_json::{Value, json};

use crate::daemon::find;
use crate::machine::Machine;
use crate::report::{DIM, PLAIN, RED};
use leg::{Leg, Site};
use load::Load;
use rules::{Rules, Size};

/// The pod that asks. The server stands outside of the cluster, under every address that rules name.
pub(crate) const CLIENT: &str = "bench/client";
const CLIENT_ADDRESS: [u8; 4] = [10, 244, 1, 80];
/// How long the machine is watched before anything is measured.
const QUIET_LOOK: Duration = Duration::from_secs(1);
/// Ports of its own for the client's connections, so that it does not run out of them.
const OUTGOING_PORTS: &str = "10000 65535";
/// Load before each measurement: code and caches are warm.
const WARM_UP: Duration = Duration::from_millis(500);

/// How to measure the path of packets.
#[derive(Args)]
pub(crate) struct Arguments {
    /// Length of each load, seconds.
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u64).range(1..=60))]
    seconds: u64,
    /// How often each leg is measured; every other round goes through the legs backwards.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=100))]
    rounds: u32,
    /// Legs besides the bare one.
    #[arg(long, value_enum, value_delimiter = ',', default_value = "nftables,ipset,namegate,stopped")]
    peers: Vec<Leg>,
    /// Sets of rules.
    #[arg(long, value_enum, value_delimiter = ',', default_value = "few,many,addresses")]
    sizes: Vec<Size>,
    /// Kinds of load.
    #[arg(long, value_enum, value_delimiter = ',', default_value = "throughput,connections,requests")]
    works: Vec<Work>,
}

/// What passes through a leg.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Work {
    /// One stream of bytes as fast as it goes.
    Throughput,
    /// Connections that are opened and closed again.
    Connections,
    /// Requests of one byte and their answers, on connections that stay open.
    Requests,
}

impl Work {
    /// The name in the result.
    const fn name(self) -> &'static str {
        match self {
            Self::Throughput => "throughput",
            Self::Connections => "connections",
            Self::Requests => "requests",
        }
    }
}

/// Rates of one kind of work through one leg.
struct Row {
    leg: Leg,
    size: Size,
    work: Work,
    rates: Vec<f64>,
    trouble: Option<String>,
}

/// Measures, and prints one JSON object. A leg that fails is reported as such, and the others go on.
pub(crate) fn run(arguments: &Arguments) -> Result<ExitCode> {
    ensure!(find("iperf3").is_some(), "there is no `iperf3`; next step: `sudo -E cargo xtask bench datapath`");
    let world = World::build(spec()?)?;
    let set = world.pod(CLIENT).netns.call(|| std::fs::write("/proc/sys/net/ipv4/ip_local_port_range", OUTGOING_PORTS));
    set.context("setting the ports of outgoing connections")?;
    let folder = tempfile::Builder::new().prefix("namegate-bench-").tempdir()?;
    let machine = Machine::look(QUIET_LOOK)?;
    let mut legs = legs(arguments);
    let mut rows = Vec::new();
    for round in 1..=arguments.rounds {
        for (leg, size) in &legs {
            let site = Site { world: &world, folder: folder.path(), leg: *leg, rules: Rules::of(*size) };
            let measured = measure(&site, arguments);
            if let Err(error) = &measured {
                say(&format!("  round {round}  {:<10}{:<10}{RED}failed{PLAIN}: {error:#}", leg.name(), size.name()));
            }
            note(&mut rows, (*leg, *size), arguments, round, &measured);
        }
        legs.reverse();
    }
    println!("{:#}", object(arguments, &machine, &rows));
    Ok(if rows.iter().any(|row| row.trouble.is_some()) { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

/// The client's pod alone. Everything else is outside, where the servers are this program's.
fn spec() -> Result<Spec> {
    let yaml = "{name: datapath, podCIDRs: [10.244.0.0/16], nodes: [{name: node, ips: [192.168.20.11]}]}";
    let (namespace, name) = CLIENT.split_once('/').context("the client's namespace")?;
    let client = PodSpec::new(namespace, name, &[Ipv4Addr::from(CLIENT_ADDRESS).into()]).label("app", name).bare();
    Ok(Spec { bare_outside: true, ..Spec::parse(yaml)?.with(client) })
}

/// Every leg with every set of rules; the bare one has no rules.
fn legs(arguments: &Arguments) -> Vec<(Leg, Size)> {
    let peers = arguments.sizes.iter().flat_map(|size| arguments.peers.iter().map(|leg| (*leg, *size)));
    std::iter::once((Leg::Bare, Size::Few)).chain(peers).collect()
}

/// The rate of each kind of work through one leg.
fn measure(site: &Site<'_>, arguments: &Arguments) -> Result<Vec<f64>> {
    let _running = site.start()?;
    let rate = |work: &Work| {
        let load = |length| Load { world: site.world, folder: site.folder, target: site.rules.target(), length };
        if *work != Work::Throughput {
            load(WARM_UP).run(*work)?;
        }
        load(Duration::from_secs(arguments.seconds)).run(*work).with_context(|| work.name().to_owned())
    };
    arguments.works.iter().map(rate).collect()
}

fn note(rows: &mut Vec<Row>, (leg, size): (Leg, Size), arguments: &Arguments, round: u32, measured: &Result<Vec<f64>>) {
    for (at, work) in arguments.works.iter().enumerate() {
        let is_row = |row: &Row| (row.leg, row.size, row.work) == (leg, size, *work);
        let place = rows.iter().position(is_row).unwrap_or_else(|| {
            rows.push(Row { leg, size, work: *work, rates: Vec::new(), trouble: None });
            rows.len() - 1
        });
        match measured {
            Ok(rates) => {
                say(&format!(
                    "{DIM}  round {round}  {:<10}{:<10}{:<12}{:>14.0}{PLAIN}",
                    leg.name(),
                    size.name(),
                    work.name(),
                    rates[at]
                ));
                rows[place].rates.push(rates[at]);
            }
            Err(error) => rows[place].trouble = Some(format!("failed in round {round}: {error:#}")),
        }
    }
}

fn object(arguments: &Arguments, machine: &Machine, rows: &[Row]) -> Value {
    let shown = |row: &Row| {
        json!({
            "leg": row.leg.name(), "rules": row.size.name(), "work": row.work.name(),
            "rates": row.rates, "trouble": row.trouble,
        })
    };
    json!({
        "machine": {
            "cores": machine.cores, "kernel": machine.kernel, "busy-percent-before": machine.busy_percent,
        },
        "seconds": arguments.seconds, "rounds": arguments.rounds,
        "rows": rows.iter().map(shown).collect::<Vec<_>>(),
    })
}

fn say(text: &str) {
    anstream::eprintln!("{text}");
}

/// An address in the text of rules.
pub(crate) fn element((address, port): (Ipv4Addr, u16), separator: &str) -> String {
    format!("{address}{separator}{port}")
}

/// A connection to the target comes about, and one to a port without a rule does not.
pub(crate) fn check(site: &Site<'_>) -> Result<()> {
    let (target, forbidden) = (site.rules.target(), site.rules.forbidden());
    let pod = site.world.pod(CLIENT);
    let _servers = load::listen(site.world, &[target.port(), forbidden.port()])?;
    let connects = |to: SocketAddr, within| pod.connect(to, within).is_ok();
    ensure!(connects(target, load::PATIENCE), "no connection to {target}, which a rule allows");
    let passes = connects(forbidden, Duration::from_millis(300));
    ensure!(passes == (site.leg == Leg::Bare), "a connection to {forbidden}, which no rule allows, comes about");
    Ok(())
}
