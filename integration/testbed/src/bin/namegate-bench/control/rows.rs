//! The rows.

use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use namegate_testbed::{Agent, Options, PodSpec};
use serde_json::{Value, json};

use super::change::{self, Change, Enforced};
use super::ground::Fixture;
use super::policies::{CROWD, IDENTITIES};
use super::{figures, greedy, learning, policies};
use crate::memory;
use crate::names::{self, NAMES};
use crate::probe::{Latency, Probe};

/// Questions a second of the asking pod.
const RATE: u32 = 2_000;
/// The same beside a pod that asks for much.
const HONEST_RATE: u32 = 500;
/// Load that does not count: every name is learned.
const WARM_UP: Duration = Duration::from_secs(4);
/// How long an agent may take until it is ready.
const START_PATIENCE: Duration = Duration::from_mins(3);
const PATTERNS: usize = 2_000;
const MANY_NAMES: u16 = 10_000;
const MANY_ENDPOINTS: u8 = 100;
/// How long names live that must outlive a row.
const LONG_TTL_S: u32 = 3_600;
/// When memory is read of an agent that has nothing to do.
const IDLE: Duration = Duration::from_secs(5);

/// So many policies, of which one changes each second.
pub(super) fn policies(count: usize, load: Duration) -> Result<Value> {
    let ground = Fixture::build(Vec::new(), CROWD)?;
    ground.set_names(NAMES, LONG_TTL_S);
    let options = Options { files: policies::files(count), ..ground.options(IDENTITIES) };
    let (agent, start) = start_agent(&ground, &options)?;
    probe(&ground, WARM_UP, RATE, NAMES)?;
    let quiet = probe(&ground, load, RATE, NAMES)?;
    let next = |number: usize| {
        let at = number % count.min(CROWD);
        let port = policies::PORTS[(number / count.min(CROWD) + 1) % 2];
        let interface = ground.index(&Fixture::crowd_interface(at % CROWD))?;
        Ok(Change { file: policies::file(at), text: policies::text(at, port), interface })
    };
    let (changing, enforced) = while_changing(&agent, next, || probe(&ground, load, RATE, NAMES))?;
    Ok(json!({
        "policies": count, "endpoints": CROWD, "start_s": start.as_secs_f64(), "quiet": quiet, "changing": changing,
        "enforced": enforced.object(), "agent": figures::read(&agent)?,
    }))
}

/// A pod that asks for 260 names of 1,000 addresses, beside an honest one.
pub(super) fn addresses(load: Duration) -> Result<Value> {
    let pod = PodSpec::new("empire", "greedy", &[IpAddr::from([10, 244, 3, 9])]).label("class", "tiefighter").bare();
    let ground = Fixture::build(vec![pod], 0)?;
    ground.set_names(NAMES, LONG_TTL_S);
    greedy::serve(ground.world.zone());
    let (agent, _) = start_agent(&ground, &ground.options(0))?;
    probe(&ground, WARM_UP, HONEST_RATE, NAMES)?;
    let quiet = probe(&ground, load, HONEST_RATE, NAMES)?;
    let stop = AtomicBool::new(false);
    let counts = greedy::Counts::default();
    let honest = std::thread::scope(|scope| {
        scope.spawn(|| greedy::ask(&ground.world.pod("empire/greedy").netns, ground.resolver, &stop, &counts));
        let honest = probe(&ground, load, HONEST_RATE, NAMES);
        stop.store(true, Ordering::Relaxed);
        honest
    })?;
    let greedy = json!({
        "answers": counts.answers.load(Ordering::Relaxed), "refused": counts.refused.load(Ordering::Relaxed),
    });
    Ok(json!({"quiet": quiet, "changing": honest, "greedy": greedy, "agent": figures::read(&agent)?}))
}

/// Many patterns and learned names; each second one more pattern, or one less.
pub(super) fn patterns(load: Duration) -> Result<Value> {
    const FILE: &str = "patterns.yaml";
    let ground = Fixture::build(Vec::new(), 0)?;
    ground.set_names(MANY_NAMES, LONG_TTL_S);
    let files = vec![(FILE.to_owned(), policies::patterns(PATTERNS))];
    let (agent, _) = start_agent(&ground, &Options { files, ..ground.options(0) })?;
    learning::learn(&ground.client().netns, ground.resolver, 0..MANY_NAMES)?;
    let quiet = probe(&ground, load, RATE, MANY_NAMES)?;
    let interface = ground.index(&ground.client().interface)?;
    let next = |number: usize| {
        let text = policies::patterns(PATTERNS + 1 - number % 2);
        Ok(Change { file: FILE.to_owned(), text, interface })
    };
    let (changing, enforced) = while_changing(&agent, next, || probe(&ground, load, RATE, MANY_NAMES))?;
    Ok(json!({
        "patterns": PATTERNS, "names": MANY_NAMES, "quiet": quiet, "changing": changing,
        "enforced": enforced.object(), "agent": figures::read(&agent)?,
    }))
}

/// Many endpoints that learned many names; how long DNS waits for an agent that starts again.
pub(super) fn restart() -> Result<Value> {
    let pod = |at: u8| PodSpec::new("empire", &format!("asking{at}"), &[IpAddr::from([10, 244, 8, at])]);
    let pods = (1..=MANY_ENDPOINTS).map(|at| pod(at).label("class", "tiefighter").bare());
    let ground = Fixture::build(pods.collect(), 0)?;
    ground.set_names(MANY_NAMES, LONG_TTL_S);
    let (mut agent, _) = start_agent(&ground, &ground.options(0))?;
    for at in 1..=MANY_ENDPOINTS {
        let pod = ground.world.pod(&format!("empire/asking{at}"));
        learning::learn(&pod.netns, ground.resolver, 0..MANY_NAMES).with_context(|| format!("endpoint {at}"))?;
    }
    let figures = figures::read(&agent)?;
    agent.terminate()?;
    let is_proxied = notice_proxied(&ground);
    let started = Instant::now();
    agent.launch()?;
    let probe = Probe::open(&ground.client().netns, ground.resolver)?;
    while !(probe.ask_once() && is_proxied.load(Ordering::Relaxed)) {
        ensure!(started.elapsed() < START_PATIENCE, "no answer through the agent: {}", agent.log());
        std::thread::sleep(Duration::from_millis(2));
    }
    let answers = started.elapsed();
    agent.wait_ready_within(START_PATIENCE)?;
    let ready = started.elapsed();
    Ok(json!({
        "endpoints": MANY_ENDPOINTS, "names": MANY_NAMES, "answers_s": answers.as_secs_f64(),
        "ready_s": ready.as_secs_f64(), "agent": figures,
    }))
}

/// The first start, of a node with the usual number of endpoints. The kernel waits for a grace period of RCU at each
/// attachment of a program, so a thousand new endpoints would show nothing else.
pub(super) fn start() -> Result<Value> {
    const POLICIES: usize = 10_000;
    const MANY_IDENTITIES: usize = 100_000;
    const ENDPOINTS: usize = 100;
    let ground = Fixture::build(Vec::new(), ENDPOINTS)?;
    let options = Options { files: policies::files(POLICIES), ..ground.options(MANY_IDENTITIES) };
    let (agent, start) = start_agent(&ground, &options)?;
    Ok(json!({
        "policies": POLICIES, "identities": MANY_IDENTITIES, "endpoints": ENDPOINTS, "start_s": start.as_secs_f64(),
        "agent": figures::read(&agent)?,
    }))
}

/// An agent with nothing to do.
pub(super) fn idle() -> Result<Value> {
    let ground = Fixture::build(Vec::new(), 0)?;
    let agent = Agent::start(&ground.world, &Options::default())?;
    std::thread::sleep(IDLE);
    let pid = agent.pid().context("the agent does not run")?;
    Ok(json!({"agent": {"memory_bytes": memory::proportional(pid)?, "peak_bytes": memory::peak(pid)?}}))
}

/// An agent, and how long it took from its start to being ready.
fn start_agent<'a>(ground: &'a Fixture, options: &Options) -> Result<(Agent<'a>, Duration)> {
    let mut agent = Agent::prepare(&ground.world, options)?;
    let started = Instant::now();
    agent.launch()?;
    agent.wait_ready_within(START_PATIENCE)?;
    let took = started.elapsed();
    let refused = agent.json("/v1/policy")?;
    let mistakes = refused["diagnostics"].as_array().map_or(0, Vec::len);
    ensure!(mistakes == 0, "the agent finds {mistakes} mistakes: {}", refused["diagnostics"][0]);
    Ok((agent, took))
}

fn probe(ground: &Fixture, length: Duration, rate: u32, names: u16) -> Result<Latency> {
    Probe::open(&ground.client().netns, ground.resolver)?.of_names(names).run(length, rate)
}

/// A measurement while one policy a second changes.
fn while_changing<T>(
    agent: &Agent<'_>,
    next: impl Fn(usize) -> Result<Change> + Sync,
    measure: impl FnOnce() -> Result<T>,
) -> Result<(T, Enforced)> {
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let changing = scope.spawn(|| change::keep_changing(agent, &stop, &next));
        let measured = measure();
        stop.store(true, Ordering::Relaxed);
        let enforced = changing.join().map_err(|_| anyhow::anyhow!("the thread that changes policies panicked"))??;
        Ok((measured?, enforced))
    })
}

/// Becomes true with the first question that comes from another address than the pod's: the agent's own.
fn notice_proxied(ground: &Fixture) -> Arc<AtomicBool> {
    let is_proxied = Arc::new(AtomicBool::new(false));
    let (noticed, pod) = (Arc::clone(&is_proxied), ground.client().ipv4());
    ground.world.zone().script(move |query| {
        let is_others = query.from.ip() != pod && query.from.ip() != IpAddr::V4(Ipv4Addr::LOCALHOST);
        noticed.fetch_or(is_others && query.name == names::name(0), Ordering::Relaxed);
        None
    });
    is_proxied
}
