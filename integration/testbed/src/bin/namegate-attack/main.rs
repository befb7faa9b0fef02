//! One node under attack from all sides at once, while two honest endpoints go on: called by `cargo xtask attack`.

mod author;
mod endpoint;
mod far;
mod flood;
mod ground;
mod honest;
mod neighbour;
mod raw;
mod report;
mod rows;
mod streams;
mod tag;
mod watch;
mod zone;

use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use clap::{Parser, ValueEnum};
use namegate_testbed::proto::rr::RecordType;
use namegate_testbed::{Agent, World};
use nix::sys::resource::{Resource, getrlimit, setrlimit};

use author::Author;
use far::Far;
use flood::End;
use honest::Honest;
use report::Report;
use watch::{Health, Metrics};

/// Descriptors of this process and, by inheritance, of the agent: both ends of every idle connection, and the honest ones.
const DESCRIPTORS: u64 = 4 * streams::MOST as u64 + 4_096;
/// Between two questions to the agent.
const EVERY: Duration = Duration::from_secs(1);
/// Denied flows of an honest endpoint that are reported after a failure.
const EXPLAINED_MAX: usize = 8;
/// Everything is as before this long after the attack.
const RECOVERY: Duration = Duration::from_secs(5);

/// Attacks a node from a pod, from a zone, from a neighbour on the bridge and by policies, all at once.
#[derive(Parser)]
#[command(
    after_help = "Examples:\n  sudo -E cargo xtask attack\n  sudo -E cargo xtask attack --seconds 35 -o json | jq '.rows[] | select(.good == false)'\n\nRates: 3,300 packets a second from the hostile endpoint, 390 frames from the neighbour, 40 questions to the hostile zone, one policy each 1.5 s, up to 4,200 idle connections.\n\nExit status: 0 if every row is as expected, 1 if one is not, 2 if it could not run."
)]
struct Arguments {
    /// How long the attack lasts.
    #[arg(long, default_value_t = 300, value_parser = clap::value_parser!(u64).range(10..=86_400))]
    seconds: u64,
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
    let arguments = Arguments::parse();
    let mut report = Report::new(arguments.output == Output::Json);
    match run(&mut report, Duration::from_secs(arguments.seconds)) {
        Ok(()) => report.finish(),
        Err(error) => {
            anstream::eprintln!("\x1b[31merror:\x1b[0m {error:#}");
            ExitCode::from(2)
        }
    }
}

fn run(report: &mut Report, length: Duration) -> Result<()> {
    ensure!(
        nix::unistd::geteuid().is_root(),
        "network namespaces and eBPF need root; next step: `sudo -E cargo xtask attack`"
    );
    let (_, most) = getrlimit(Resource::RLIMIT_NOFILE)?;
    // Without CAP_SYS_RESOURCE the hard limit stays; with fewer descriptors there are fewer idle connections.
    setrlimit(Resource::RLIMIT_NOFILE, DESCRIPTORS.min(most), most).context("raising the limit of descriptors")?;
    report.progress("building the world");
    let world = ground::world()?;
    let mut agent = Agent::start(&world, &ground::options())?;
    let before = Honest::once(&world)?;
    ensure!(before.words.is_empty(), "before the attack: {}", before.words.join("; "));
    // QUIC to the address of a bound name is held until the name in it is known; without this look-up it is only denied.
    let bound = world.pod(ground::ENDPOINT).lookup(ground::BOUND_NAME, RecordType::A);
    bound.with_context(|| format!("looking up {}", ground::BOUND_NAME))?;
    let seen = attack(report, &world, &agent, length)?;
    rows::judge(report, &seen);
    recover(report, &world, &mut agent)
}

/// What came of the attack.
struct Seen {
    honest: honest::Counter,
    far: far::Counts,
    sent: Vec<(&'static str, u64)>,
    idle: Vec<(&'static str, usize, usize)>,
    zone: (u64, u64),
    policies: u64,
    grown: Metrics,
    health: Health,
}

fn attack(report: &mut Report, world: &World, agent: &Agent<'_>, length: Duration) -> Result<Seen> {
    let metrics = Metrics::of(agent)?;
    let far = Far::start(world)?;
    let (end, honest_end) = (End::default(), End::default());
    let honest = Honest::start(world, &honest_end)?;
    let (packets, packets_thread) = flood::start(endpoint::floods(world)?, &end);
    let (frames, frames_thread) = flood::start(neighbour::floods(world)?, &end);
    let idle = streams::start(world, &end);
    let zone = zone::start(world, &end);
    let author = Author::start(&agent.path("policies"), &end);

    let (began, mut health, mut explained) = (Instant::now(), Health::default(), 0);
    while began.elapsed() < length {
        health.ask(agent);
        let (tally, counts) = (honest.tally(), far.counts());
        if tally.words.len() > explained {
            explained = tally.words.len();
            explain(report, world, agent);
        }
        let denied: u64 = counts.denied.values().sum();
        report.progress(&format!(
            "{} of {} s · honest: {} look-ups, {} connections, {} requests, {} failed · {denied} denied packets at the \
             far side · {} MB",
            began.elapsed().as_secs(),
            length.as_secs(),
            tally.lookups.done,
            tally.connections.done,
            tally.requests.done,
            rows::failed(&tally),
            health.memory >> 20,
        ));
        std::thread::sleep(EVERY);
    }
    honest_end.set();
    let honest = honest.finish();
    end.set();
    for thread in [packets_thread, frames_thread] {
        let _ = thread.join(); // A panic was shown when it happened.
    }
    let policies = author.written.load(std::sync::atomic::Ordering::Relaxed);
    drop(author);
    let ended = Instant::now();
    let grown = Metrics::of(agent).map(|now| now.since(&metrics));
    std::thread::sleep(RECOVERY.saturating_sub(ended.elapsed()));
    let load = |count: &std::sync::atomic::AtomicUsize| count.load(std::sync::atomic::Ordering::Relaxed);
    let number = |count: &std::sync::atomic::AtomicU64| count.load(std::sync::atomic::Ordering::Relaxed);
    Ok(Seen {
        honest,
        far: far.counts(),
        sent: packets.all().into_iter().chain(frames.all()).collect(),
        idle: idle.iter().map(|kind| (kind.name, load(&kind.opened), load(&kind.refused))).collect(),
        zone: (number(&zone.asked), number(&zone.answered)),
        policies,
        grown: grown?,
        health,
    })
}

/// Notes what the agent knows about an honest act that has just failed: denied flows, and the names of the cache.
fn explain(report: &mut Report, world: &World, agent: &Agent<'_>) {
    for key in [ground::ALPHA, ground::BETA] {
        let denials = agent.denials(world.pod(key)).unwrap_or_default();
        for flow in denials.iter().filter(|flow| flow["reason"] != "l7").take(EXPLAINED_MAX) {
            report.note(format!("denied to {key}: {flow}"));
        }
        let cache =
            agent.json(&format!("/v1/fqdn/cache/{}?matchpattern={}", key.replace('/', "%2F"), ground::TLS_NAME));
        report.note(format!(
            "cache of {key}: {}",
            cache.map_or_else(|error| error.to_string(), |cache| cache.to_string())
        ));
    }
}

/// Whether everything is as before, once the attack is over.
fn recover(report: &mut Report, world: &World, agent: &mut Agent<'_>) -> Result<()> {
    let health = agent.get("/v1/healthz")?;
    let problems = agent.json("/v1/status")?["problems"].clone();
    let listed = problems.as_array().map_or(0, Vec::len);
    let good = health.status == 200 && listed == 0;
    report.row("health, 5 s later", "200, no problem", &format!("{}, {listed} problems", health.status), good);
    if !good {
        report.note(format!("still wrong: {problems}"));
        report.note(health.text());
    }
    let after = Honest::once(world)?;
    let failed = rows::failed(&after);
    report.row("a round of each honest endpoint, 5 s later", "0 failed", &format!("{failed} failed"), failed == 0);
    for word in after.words {
        report.note(format!("afterwards: {word}"));
    }
    let revision = agent.policy()?["revision"].clone();
    let is_settled = revision["wanted"] == revision["enforced"];
    report.row("policies, 5 s later", "wanted and enforced the same", &revision.to_string(), is_settled);
    let log = agent.log();
    let panics = log.lines().filter(|line| line.contains("panicked")).count();
    report.row("panics of the agent", "0", &panics.to_string(), panics == 0);
    if std::env::var_os("NAMEGATE_ATTACK_LOG").is_some() {
        eprintln!("{log}");
    }
    agent.terminate()
}
