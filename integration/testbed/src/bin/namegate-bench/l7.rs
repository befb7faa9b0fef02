//! The run of `l7`: an origin in a pod, and each kind of work through each leg in each round.

mod leg;
mod load;
mod report;
mod settings;
mod trial;

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use clap::{Args, ValueEnum};
use namegate_testbed::{PodSpec, Protocol, Spec, World};

use crate::Output;
use crate::daemon::{Daemon, find};
use crate::machine::Machine;
use crate::memory;
use leg::{Leg, Site};
use load::Load;
use report::{Measured, Report};

/// The pod that asks where the agent stands between.
pub(crate) const CLIENT: &str = "empire/tiefighter";
/// The pod of the origin.
const ORIGIN: &str = "bench/origin";
/// Its address.
const ORIGIN_ADDRESS: [u8; 4] = [10, 244, 2, 80];
/// Load before each measurement: connections are open and code is warm.
const WARM_UP_S: u64 = 1;
/// How long the machine is watched before anything is measured.
const QUIET_LOOK: Duration = Duration::from_secs(1);
/// Ports of its own for the programs' connections, so that none of theirs is taken, and enough to open many.
const OUTGOING_PORTS: &str = "10000 65535";

/// How to measure proxies for requests.
#[derive(Args)]
pub(crate) struct Arguments {
    /// Length of each load, seconds; each measurement has two.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u64).range(1..=60))]
    seconds: u64,
    /// How often each leg is measured; every other round goes through the legs backwards.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=100))]
    rounds: u32,
    /// Legs besides the direct one.
    #[arg(long, value_enum, value_delimiter = ',', default_value = "nginx,envoy,namegate,agent")]
    peers: Vec<Leg>,
    /// Kinds of work.
    #[arg(long, value_enum, value_delimiter = ',', default_value = "http,tls,connect")]
    works: Vec<Work>,
    /// Envoy's program, if it is not on the path.
    #[arg(long, value_name = "FILE")]
    envoy: Option<PathBuf>,
    /// The proxy's program: the example `alone` of namegate-l7-proxy.
    #[arg(long, value_name = "FILE")]
    proxy: Option<PathBuf>,
    /// Form of the output.
    #[arg(short, long, value_enum, default_value = "text")]
    output: Output,
}

/// What is asked of a leg.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Work {
    /// HTTP/1.1 on open connections, each request judged by method and path.
    Http,
    /// Requests inside of open TLS connections that were judged by their server name.
    Tls,
    /// A new TLS connection for each request.
    Connect,
}

impl Work {
    /// The name in the report.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Http => "http",
            Self::Tls => "tls",
            Self::Connect => "connect",
        }
    }

    /// What it is, for the report.
    pub(crate) const fn title(self) -> &'static str {
        match self {
            Self::Http => "HTTP/1.1, connections stay open, each request judged by method and path",
            Self::Tls => "TLS passed on by server name, connections stay open",
            Self::Connect => "TLS passed on by server name, a new connection for each request",
        }
    }

    /// The port of the origin.
    pub(crate) const fn port(self) -> u16 {
        match self {
            Self::Http => settings::HTTP_PORT,
            Self::Tls | Self::Connect => settings::TLS_PORT,
        }
    }
}

/// Measures and reports. A leg that fails is reported as such, and the others go on.
pub(crate) fn run(arguments: &Arguments) -> Result<ExitCode> {
    for program in ["nginx", "wrk"] {
        ensure!(find(program).is_some(), "there is no `{program}`; next step: `sudo -E cargo xtask bench l7`");
    }
    let world = World::build(spec()?)?;
    for netns in [world.node(), &world.pod(CLIENT).netns] {
        let set = netns.call(|| std::fs::write("/proc/sys/net/ipv4/ip_local_port_range", OUTGOING_PORTS));
        set.context("setting the ports of outgoing connections")?;
    }
    let folder = tempfile::Builder::new().prefix("namegate-bench-").tempdir()?;
    let site = Site {
        world: &world,
        folder: folder.path(),
        origin: IpAddr::from(ORIGIN_ADDRESS),
        envoy: arguments.envoy.clone(),
        proxy: arguments.proxy.clone(),
    };
    let origin = settings::origin(folder.path(), site.origin)?;
    let nginx = find("nginx").context("there is no `nginx`")?;
    let mut origin = Daemon::start(&world.pod(ORIGIN).netns, &nginx, origin, &site.subfolder("origin")?)?;

    let mut report = Report::new(arguments);
    let mut legs = Vec::new();
    for leg in std::iter::once(Leg::Direct).chain(arguments.peers.iter().copied()) {
        report.leg(leg, site.version(leg));
        match site.missing(leg) {
            Some(why) => report.skipped(leg, &why),
            None => legs.push(leg),
        }
    }
    report.begin(&Machine::look(QUIET_LOOK)?);
    for round in 1..=arguments.rounds {
        for work in &arguments.works {
            for leg in &legs {
                origin.check().context("the origin")?;
                match measure(&site, *leg, *work, arguments.seconds) {
                    Ok(measured) => report.measured(round, *work, *leg, measured),
                    Err(error) => report.failed(round, *work, *leg, &format!("{error:#}")),
                }
            }
        }
        legs.reverse();
    }
    Ok(report.finish())
}

/// The article's world, as small as it gets: the asking pod, and a pod for the origin.
fn spec() -> Result<Spec> {
    let (namespace, name) = ORIGIN.split_once('/').context("the origin's namespace")?;
    let origin = PodSpec::new(namespace, name, &[IpAddr::from(ORIGIN_ADDRESS)])
        .label("app", "origin")
        .serves(Protocol::Tcp, settings::HTTP_PORT)
        .serves(Protocol::Tcp, settings::TLS_PORT)
        .bare();
    Ok(Spec::empire()?.only(&[CLIENT]).with(origin))
}

fn measure(site: &Site<'_>, leg: Leg, work: Work, seconds: u64) -> Result<Measured> {
    let (netns, target) = (site.asker(leg), site.target(leg, work));
    let mut running = site.start(leg, work)?;
    trial::wait(netns, target, work, leg != Leg::Direct, || running.check())
        .with_context(|| format!("it does not do its work; {}", running.said()))?;
    let load = |connections, seconds| Load { work, target, connections, seconds }.run(netns, site.folder);
    load(settings::CONNECTIONS, WARM_UP_S)?;
    let busy = load(settings::CONNECTIONS, seconds)?;
    let memory_octets = running.pid().map(memory::peak).transpose()?;
    let alone = load(1, seconds)?;
    running.check()?;
    if busy.requests == 0 || alone.requests == 0 {
        bail!("no request was answered; {}", running.said());
    }
    Ok(Measured { busy, alone, memory_octets })
}

/// An address in the text of settings.
pub(crate) fn loopback(port: u16) -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], port))
}
