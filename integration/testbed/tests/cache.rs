//! Answers that the agent keeps: they reach nobody who may not ask, open for whoever asks, and end with their TTL.
#![expect(clippy::unwrap_used, reason = "a test ends at the first surprise")]

#[expect(dead_code, reason = "each program of this folder uses its own part")]
mod common;

use std::time::{Duration, Instant};

use common::{ALLOWED_TEST, DNS, TIE, XWING, cached_names, echo, egress, first_drop, ip, namegate, opens, world};
use namegate_testbed::dns::{DnsFailure, Lookup, Query, Question, Reply, Transport, ask};
use namegate_testbed::proto::op::{Message, OpCode, ResponseCode};
use namegate_testbed::proto::rr::{Name, RData, Record, RecordType, rdata::SOA};
use namegate_testbed::{Agent, Options, Pod, World};
use serde_json::json;

const NAME: &str = "near.allowed.test";
const ADDRESS: &str = "198.51.100.41";

fn options(policies: &str) -> Options {
    Options::default().policies(policies).with(json!({"dns": {"cacheEntries": 100}}))
}

/// How often the resolver was asked for a name.
fn asked(world: &World, name: &str) -> usize {
    world.zone().asked().iter().filter(|asked| asked.name == name).count()
}

fn lookup(pod: &Pod) -> Lookup {
    pod.lookup(NAME, RecordType::A).unwrap()
}

/// The answer to a question that goes this way, in these letters.
fn answer(pod: &Pod, name: &'static str, transport: Transport) -> Message {
    let reply = pod.run(pod.client(), move |client| async move {
        let question = Question { transport, ..Question::new(client.resolver, name, RecordType::A) };
        ask(&question).await.unwrap()
    });
    Message::from_vec(&reply.octets).unwrap()
}

fn tally(agent: &Agent<'_>, what: &str) -> u64 {
    let status = agent.json("/v1/status").unwrap();
    let tallies = status["dns"].as_array().unwrap();
    tallies.iter().find(|tally| tally["what"] == what).unwrap()["count"].as_u64().unwrap()
}

#[test]
fn a_kept_answer_opens_for_whoever_asks_and_for_nobody_else() {
    let world = world(&[TIE, XWING]);
    world.zone().set_addresses(NAME, 60, &[ip(ADDRESS)]);
    let agent = Agent::start(&world, &options(&egress(ALLOWED_TEST))).unwrap();
    let (tiefighter, xwing) = (world.pod(TIE), world.pod(XWING));
    assert_eq!(lookup(tiefighter).ttl, 60);
    assert!(opens(tiefighter, echo(ADDRESS)) && !opens(xwing, echo(ADDRESS)));

    let kept = lookup(xwing);
    assert!(opens(xwing, echo(ADDRESS)), "the gate held it before the client");
    assert_eq!((kept.addresses, asked(&world, NAME)), (vec![ip(ADDRESS)], 1));
    assert!((50..60).contains(&kept.ttl), "{}", kept.ttl);
    let entries = agent.json("/v1/fqdn/cache/empire%2Fxwing").unwrap();
    assert!(entries[0]["ttl"].as_u64().unwrap() <= u64::from(kept.ttl), "{entries} after {}", kept.ttl);

    for transport in [Transport::Udp, Transport::Tcp] {
        let message = answer(tiefighter, "NeAr.aLLowed.TEST", transport);
        assert_eq!(message.queries[0].name().to_ascii(), "NeAr.aLLowed.TEST.", "{transport:?}");
        assert_eq!(message.answers.len(), 1, "{message}");
    }
    assert_eq!(asked(&world, NAME), 1);
    assert_eq!((tally(&agent, "cache_hit"), tally(&agent, "cache_miss"), tally(&agent, "asked")), (3, 1, 1));
    let metrics = agent.get("/metrics").unwrap().text();
    assert!(metrics.contains("\nnamegate_dns_cache_entries 1\n"), "{metrics}");
    // The other address of the resolver is another resolver.
    let mut client = tiefighter.client();
    client.resolver = (world.pod(DNS).ipv6(), 53).into();
    tiefighter.run(client, |client| async move { client.lookup_type(NAME, RecordType::A).await }).unwrap();
    assert_eq!(asked(&world, NAME), 2);
}

#[test]
fn a_kept_answer_ends_when_the_resolver_said() {
    let world = world(&[TIE, XWING]);
    world.zone().set_addresses(NAME, 4, &[ip(ADDRESS)]);
    let _agent = Agent::start(&world, &options(&egress(ALLOWED_TEST))).unwrap();
    let (tiefighter, xwing) = (world.pod(TIE), world.pod(XWING));
    let first = lookup(tiefighter);
    while first.received.elapsed() < Duration::from_millis(1_200) {
        std::thread::sleep(common::PAUSE);
    }
    let kept = lookup(xwing);
    assert_eq!((kept.ttl, asked(&world, NAME)), (2, 1), "whole seconds, rounded down");
    let dropped = first_drop(xwing, echo(ADDRESS));
    let (earliest, latest) = (kept.received + Duration::from_millis(1_800), first.received + Duration::from_secs(4));
    assert!(dropped >= earliest && dropped < latest + Duration::from_millis(500), "{:?}", dropped - first.received);
    while Instant::now() < latest {
        std::thread::sleep(common::PAUSE);
    }
    assert_eq!((lookup(xwing).ttl, asked(&world, NAME)), (4, 2), "then the resolver is asked again");
    assert!(opens(xwing, echo(ADDRESS)));
}

#[test]
fn a_name_that_rules_forbid_is_not_answered_from_the_cache() {
    let world = world(&[TIE, XWING]);
    world.zone().set_addresses(NAME, 60, &[ip(ADDRESS)]);
    let policy = |class: &str, pattern: &str| {
        let spec = format!(
            "  endpointSelector: {{matchLabels: {{class: {class}}}}}\n  egress:\n  - toEndpoints: [{{matchLabels: \
             {{'k8s:io.kubernetes.pod.namespace': kube-system}}}}]\n    toPorts:\n    - ports: [{{port: '53', protocol: \
             ANY}}]\n      rules: {{dns: [{{matchPattern: '{pattern}'}}]}}\n{ALLOWED_TEST}"
        );
        common::document(class, &spec)
    };
    let policies = format!("{}---\n{}", policy("tiefighter", "*.allowed.test"), policy("xwing", "*.io"));
    let agent = Agent::start(&world, &options(&policies)).unwrap();
    let (tiefighter, xwing) = (world.pod(TIE), world.pod(XWING));
    lookup(tiefighter);
    for transport in [Transport::Udp, Transport::Tcp] {
        let refused = answer(xwing, NAME, transport);
        assert_eq!((refused.metadata.response_code, refused.answers.len()), (ResponseCode::Refused, 0), "{refused}");
    }
    assert!(!opens(xwing, echo(ADDRESS)) && opens(tiefighter, echo(ADDRESS)));
    assert_eq!((asked(&world, NAME), tally(&agent, "cache_hit"), tally(&agent, "forbidden")), (1, 0, 2));
    // A change holds for the next question.
    agent.apply(&policies.replace("'*.io'", "'*'")).unwrap();
    assert_eq!(lookup(xwing).addresses, [ip(ADDRESS)]);
    assert!(opens(xwing, echo(ADDRESS)));
    assert_eq!((asked(&world, NAME), tally(&agent, "cache_hit")), (1, 1));
}

/// The name does not exist, and does not for so many seconds.
fn denial(query: &Query, ttl: u32, minimum: u32) -> Reply {
    let zone = Name::from_ascii("allowed.test.").unwrap();
    let soa = SOA::new(zone.clone(), zone.clone(), 1, 2, 3, 4, minimum);
    let mut message = Message::response(query.message.metadata.id, OpCode::Query);
    message.metadata.response_code = ResponseCode::NXDomain;
    message.add_queries(query.message.queries.iter().cloned());
    message.add_authority(Record::from_rdata(zone, ttl, RData::SOA(soa)));
    Reply::octets(message.to_vec().unwrap())
}

#[test]
fn denials_are_kept_as_long_as_they_say() {
    let world = world(&[TIE, XWING]);
    world.zone().script(|query| match query.name.as_str() {
        "none.allowed.test" => Some(denial(query, 300, 30)),
        "never.allowed.test" => Some(denial(query, 300, 0)),
        _ => None,
    });
    let agent = Agent::start(&world, &options(&egress(ALLOWED_TEST))).unwrap();
    // The table of the resolver denies without SOA.
    for (name, want) in [("none.allowed.test", 1), ("never.allowed.test", 4), ("nowhere.allowed.test", 4)] {
        for pod in [TIE, XWING, TIE, XWING] {
            let failed = world.pod(pod).lookup(name, RecordType::A).map(|_| ());
            assert_eq!(failed, Err(DnsFailure::Code(ResponseCode::NXDomain)), "{name}");
        }
        assert_eq!(asked(&world, name), want, "{name}");
    }
    let message = answer(world.pod(TIE), "none.allowed.test", Transport::Udp);
    assert!((20..30).contains(&message.authorities[0].ttl), "{message}");
    // Other types of the name are other questions.
    let _ = world.pod(TIE).lookup("none.allowed.test", RecordType::AAAA);
    assert_eq!(asked(&world, "none.allowed.test"), 2);
    assert!(cached_names(&agent, "").is_empty());
}

#[test]
fn what_is_forgotten_is_asked_for_again() {
    let world = world(&[TIE]);
    world.zone().set_addresses(NAME, 60, &[ip(ADDRESS)]);
    let agent = Agent::start(&world, &options(&egress(ALLOWED_TEST))).unwrap();
    let tiefighter = world.pod(TIE);
    lookup(tiefighter);
    let other = "198.51.100.42";
    world.zone().set_addresses(NAME, 60, &[ip(other)]);
    assert_eq!(lookup(tiefighter).addresses, [ip(ADDRESS)]);
    let (code, out, err) = namegate(&agent, &["fqdn", "cache", "clean", "--yes"]);
    assert_eq!((code, out.as_str()), (Some(0), "forgot 1 names with 1 addresses\n"), "{err}");
    assert!(!opens(tiefighter, echo(ADDRESS)));
    assert_eq!(lookup(tiefighter).addresses, [ip(other)]);
    assert!(opens(tiefighter, echo(other)) && !opens(tiefighter, echo(ADDRESS)));
}
