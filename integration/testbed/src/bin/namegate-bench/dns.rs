//! The run: the world, the authoritative server, and each leg in each round.

use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use namegate_testbed::{Pod, PodSpec, Protocol, Spec, World};

use crate::daemon::{Daemon, find};
use crate::leg::{Leg, Running, Site};
use crate::load::{Counted, Load};
use crate::machine::Machine;
use crate::probe::{Latency, Probe, RATE};
use crate::report::{Measured, Report};
use crate::{Dns, config, names};

/// The pod that asks.
const CLIENT: &str = "empire/tiefighter";
/// The pod that stands for cluster DNS.
const UPSTREAM: &str = "kube-system/nsd";
/// Its address.
const UPSTREAM_ADDRESS: [u8; 4] = [10, 244, 2, 53];
const DNS_PORT: u16 = 53;
/// How long a leg may take until it answers.
const PATIENCE: Duration = Duration::from_secs(15);
/// Between two questions to a leg that does not answer yet.
const PAUSE: Duration = Duration::from_millis(20);
/// Load before each measurement: caches of sockets and of code are warm, and every name was learned once.
const WARM_UP_S: u64 = 1;
/// How long the machine is watched before anything is measured.
const QUIET_LOOK: Duration = Duration::from_secs(1);
/// The probe leaves out the load's beginning and end.
const MARGIN: Duration = Duration::from_millis(250);

/// Measures and reports. A leg that fails is reported as such, and the others go on.
pub(crate) fn run(arguments: &Dns) -> Result<ExitCode> {
    for program in ["nsd", "dnsperf"] {
        ensure!(find(program).is_some(), "there is no `{program}`; next step: `sudo -E cargo xtask bench dns`");
    }
    let world = World::build(spec()?)?;
    let folder = tempfile::Builder::new().prefix("namegate-bench-").tempdir()?;
    let questions = Path::new(&config::write(folder.path(), "questions", &names::questions())?).to_owned();
    let upstream = SocketAddr::from((UPSTREAM_ADDRESS, DNS_PORT));
    let node = world.spec().nodes.first().and_then(|node| node.ips.iter().copied().find(IpAddr::is_ipv4));
    let node = node.context("the node has no IPv4 address")?;
    let site = Site { world: &world, folder: folder.path(), upstream, node, coredns: arguments.coredns.clone() };
    let nsd = find("nsd").context("there is no `nsd`")?;
    let server = config::nsd(folder.path(), upstream)?;
    let mut server = Daemon::start(&world.pod(UPSTREAM).netns, &nsd, server, folder.path())?;

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
        for leg in &legs {
            server.check().context("the authoritative server")?;
            match measure(&site, *leg, &questions, arguments.seconds) {
                Ok(measured) => report.measured(round, *leg, measured),
                Err(error) => report.failed(round, *leg, &format!("{error:#}")),
            }
        }
        legs.reverse();
    }
    Ok(report.finish())
}

/// The article's world, as small as it gets: the asking pod, and a pod for the authoritative server.
fn spec() -> Result<Spec> {
    let upstream = PodSpec::new("kube-system", "nsd", &[IpAddr::from(UPSTREAM_ADDRESS)])
        .label("k8s-app", "kube-dns")
        .serves(Protocol::Udp, DNS_PORT)
        .serves(Protocol::Tcp, DNS_PORT)
        .bare();
    Ok(Spec::empire()?.only(&[CLIENT]).with(upstream))
}

fn measure(site: &Site<'_>, leg: Leg, questions: &Path, seconds: u64) -> Result<Measured> {
    let (pod, target) = (site.world.pod(CLIENT), site.target(leg));
    let mut running = site.start(leg)?;
    wait_for_answers(pod, target, &mut running)?;
    Load::start(&pod.netns, target, questions, WARM_UP_S)?.finish()?;
    let (counted, latency) = ask(pod, target, questions, seconds)?;
    running.check()?;
    let written = running.written(site)?;
    if let Some(written) = written {
        written.check(counted.completed).with_context(|| format!("it did not do its work; {}", running.said()))?;
    }
    Ok(Measured { counted, latency, written })
}

/// Load and probe at once.
fn ask(pod: &Pod, target: SocketAddr, questions: &Path, seconds: u64) -> Result<(Counted, Latency)> {
    let probe = Probe::open(&pod.netns, target)?;
    let load = Load::start(&pod.netns, target, questions, seconds)?;
    std::thread::sleep(MARGIN);
    let latency = probe.run(Duration::from_secs(seconds).saturating_sub(2 * MARGIN), RATE);
    let counted = load.finish();
    Ok((counted?, latency?))
}

fn wait_for_answers(pod: &Pod, target: SocketAddr, running: &mut Running<'_>) -> Result<()> {
    let (probe, started) = (Probe::open(&pod.netns, target)?, Instant::now());
    while !probe.ask_once() {
        running.check()?;
        if started.elapsed() > PATIENCE {
            bail!("no answer from {target} within {PATIENCE:?}: {}", running.said());
        }
        std::thread::sleep(PAUSE);
    }
    Ok(())
}
