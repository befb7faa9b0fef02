//! The first packet after an answer: the gate is open before the client holds the address, ten thousand times.

#[expect(dead_code, reason = "each program of this folder uses its own part")]
mod common;

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Instant;

use common::{TIE, denied_packets, egress, world};
use namegate_testbed::dns::Reply;
use namegate_testbed::proto::rr::RecordType;
use namegate_testbed::{Agent, Client, ECHO_PORT, Failure, Options, client};
use serde_json::json;

/// Names, each with an address of its own.
const NAMES: u32 = 10_000;
/// Clients that ask and connect at the same time.
const CLIENTS: u32 = 16;
/// First address of the network for benchmarks (RFC 2544).
const FIRST: u32 = u32::from_be_bytes([198, 18, 0, 1]);

/// What one client saw of one name.
struct Seen {
    number: u32,
    /// When the answer came.
    resolved: Option<Instant>,
    outcome: Result<(), Failure>,
}

fn address(number: u32) -> IpAddr {
    Ipv4Addr::from(FIRST + number).into()
}

async fn visit(client: &Client, number: u32) -> Seen {
    let lookup = match client.lookup_type(&format!("n{number:05}.race.test"), RecordType::A).await {
        Ok(lookup) => lookup,
        Err(failure) => return Seen { number, resolved: None, outcome: Err(failure.into()) },
    };
    let to = SocketAddr::new(lookup.addresses[0], ECHO_PORT);
    let outcome = client::connect(to, client.within).await.map(drop);
    Seen { number, resolved: Some(lookup.received), outcome }
}

async fn visits(client: Client, first: u32) -> Vec<Seen> {
    let mut seen = Vec::new();
    for number in (first..NAMES).step_by(CLIENTS as usize) {
        seen.push(visit(&client, number).await);
    }
    seen
}

#[test]
fn ten_thousand_first_packets_pass() {
    let world = world(&[TIE]);
    world.zone().script(|query| {
        let number = query.name.strip_prefix('n')?.strip_suffix(".race.test")?.parse().ok()?;
        Some(Reply::addresses(query, 60, [address(number)]))
    });
    let options = Options::default()
        .with(json!({"dns": {"namesPerEndpointMax": 2 * NAMES}}))
        .policies(&egress("  - toFQDNs: [{matchPattern: '*.race.test'}]\n"));
    let agent = Agent::start(&world, &options).unwrap();
    let tiefighter = world.pod(TIE);
    assert!(!common::opens(tiefighter, SocketAddr::new(address(0), ECHO_PORT)), "closed before anybody asks");
    let denied_before = denied_packets(&agent);

    let started = Instant::now();
    let tasks: Vec<_> =
        (0..CLIENTS).map(|first| tiefighter.spawn(tiefighter.client(), move |client| visits(client, first))).collect();
    let seen: Vec<_> = tasks.into_iter().flat_map(namegate_testbed::Task::wait).collect();
    println!("{NAMES} names asked and connected to in {:?}", started.elapsed());

    assert_eq!(seen.len(), NAMES as usize);
    let failed = seen.iter().filter_map(|seen| Some((seen.number, seen.outcome.as_ref().err()?)));
    let failed: Vec<_> = failed.collect();
    assert!(failed.is_empty(), "{} failed, the first ones: {:?}", failed.len(), &failed[..failed.len().min(9)]);
    // A dropped first packet is sent again after a second and would pass then: the counters tell.
    assert_eq!(denied_packets(&agent) - denied_before, 0, "{}", agent.json("/v1/status").unwrap()["counters"]);

    let mut accepted = HashMap::new();
    for entry in world.outside_log().all() {
        accepted.entry(entry.local.ip()).or_insert(entry.time);
    }
    let early = seen.iter().filter(|seen| accepted[&address(seen.number)] < seen.resolved.unwrap()).count();
    assert_eq!(early, 0, "accepted outside before the answer was there");
    assert_eq!(accepted.len(), NAMES as usize, "nothing but the addresses of the answers was called");
}
