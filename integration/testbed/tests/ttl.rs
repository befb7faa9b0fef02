//! A TTL ends to the second, with the agent held, dead or alive, and ends no connection.
#![expect(clippy::unwrap_used, reason = "a test ends at the first surprise")]

#[expect(dead_code, reason = "each program of this folder uses its own part")]
mod common;

use std::time::{Duration, Instant};

use common::{ALLOWED_TEST, TIE, WITHIN, echo, egress, first_drop, flow, ip, opens, world};
use namegate_testbed::proto::rr::RecordType;
use namegate_testbed::{Agent, Options};
use nix::sys::signal::Signal;
use serde_json::json;

const ADDRESS: &str = "198.51.100.33";
/// Before the end of the TTL nothing is dropped; one try takes less than this.
const EARLY: Duration = Duration::from_millis(200);
/// After the end of the TTL nothing new passes.
const LATE: Duration = Duration::from_secs(1);

fn options(dns: &serde_json::Value) -> Options {
    Options::default().with(json!({"dns": dns})).policies(&egress(ALLOWED_TEST))
}

/// Asserts that an answer that came at `received` closes after `seconds`.
fn assert_ends(dropped: Instant, received: Instant, seconds: u64) {
    let end = received + Duration::from_secs(seconds);
    assert!(dropped + EARLY > end, "dropped {:?} before the end", end - dropped);
    assert!(dropped < end + LATE, "open {:?} after the end", dropped - end);
}

/// One answer of three seconds, with `stop` done to the agent once the client has it.
fn three_seconds_without_the_agent(stop: impl FnOnce(&mut Agent<'_>)) {
    let world = world(&[TIE]);
    world.zone().set_addresses("short.allowed.test", 3, &[ip(ADDRESS)]);
    let mut agent = Agent::start(&world, &options(&json!({}))).unwrap();
    let tiefighter = world.pod(TIE);
    let lookup = tiefighter.lookup("short.allowed.test", RecordType::A).unwrap();
    stop(&mut agent);
    let conversation = tiefighter.open(echo(ADDRESS), WITHIN).expect("open as long as the TTL says");
    conversation.say(b"before", WITHIN).unwrap();
    assert_ends(first_drop(tiefighter, echo(ADDRESS)), lookup.received, 3);
    conversation.say(b"after", WITHIN).expect("what is connected stays connected");
    assert!(!opens(tiefighter, echo(ADDRESS)), "what is new does not pass");

    if agent.signal(Signal::SIGCONT).is_ok() {
        let told = flow(&agent, tiefighter, ip(ADDRESS), "denied");
        assert_eq!(told["reason"], "name-expired", "{told}");
    }
}

#[test]
fn a_ttl_ends_while_the_agent_is_held() {
    three_seconds_without_the_agent(|agent| agent.signal(Signal::SIGSTOP).unwrap());
}

#[test]
fn a_ttl_ends_while_the_agent_is_dead() {
    three_seconds_without_the_agent(|agent| agent.kill().unwrap());
}

#[test]
fn short_ttls_are_raised_and_long_ones_cut() {
    let world = world(&[TIE]);
    let (short, long) = ("198.51.100.34", "198.51.100.35");
    world.zone().set_addresses("zero.allowed.test", 0, &[ip(short)]);
    world.zone().set_addresses("day.allowed.test", 86_400, &[ip(long)]);
    let agent = Agent::start(&world, &options(&json!({"minTtl": 2, "maxTtl": 4}))).unwrap();
    let tiefighter = world.pod(TIE);
    let zero = tiefighter.lookup("zero.allowed.test", RecordType::A).unwrap();
    let day = tiefighter.lookup("day.allowed.test", RecordType::A).unwrap();
    assert_eq!((zero.ttl, day.ttl), (0, 86_400), "the client sees what the resolver said");
    assert!(opens(tiefighter, echo(long)));
    assert_ends(first_drop(tiefighter, echo(short)), zero.received, 2);
    assert_ends(first_drop(tiefighter, echo(long)), day.received, 4);
    assert!(common::cached_names(&agent, "").is_empty(), "what has ended is not listed");
}

#[test]
fn a_second_answer_starts_the_ttl_anew() {
    let world = world(&[TIE]);
    world.zone().set_addresses("short.allowed.test", 2, &[ip(ADDRESS)]);
    let _agent = Agent::start(&world, &options(&json!({}))).unwrap();
    let tiefighter = world.pod(TIE);
    let first = tiefighter.lookup("short.allowed.test", RecordType::A).unwrap();
    while first.received.elapsed() < Duration::from_millis(1_500) {
        assert!(opens(tiefighter, echo(ADDRESS)));
        std::thread::sleep(common::PAUSE);
    }
    let second = tiefighter.lookup("short.allowed.test", RecordType::A).unwrap();
    assert_ends(first_drop(tiefighter, echo(ADDRESS)), second.received, 2);
}
