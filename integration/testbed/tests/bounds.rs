//! Bounds of the kernel's maps and of names: what finds no room is closed, said everywhere, and made up for.
#![expect(clippy::unwrap_used, reason = "a test ends at the first surprise")]

#[expect(dead_code, reason = "each program of this folder uses its own part")]
mod common;

use std::fmt::Write as _;
use std::net::IpAddr;

use common::{ALLOWED_TEST, DNS, TIE, XWING, document, echo, egress, endpoint, ip, opens, world};
use namegate_testbed::dns::{ClientReply, Question, Transport, ask};
use namegate_testbed::proto::op::{Message, ResponseCode};
use namegate_testbed::proto::rr::RecordType;
use namegate_testbed::{Agent, Options, Pod};
use serde_json::{Value, json};

/// An address that the policies of these tests deny, or never open.
const DENIED: &str = "203.0.113.2";
/// One that they allow.
const ALLOWED: &str = "198.51.100.1";

/// Puts policies in place without waiting for the kernel to hold them.
fn put_policies(agent: &Agent<'_>, text: &str) {
    let (path, beside) = (agent.path("policies/policies.yaml"), agent.path("policies/.new"));
    std::fs::write(&beside, text).unwrap();
    std::fs::rename(beside, path).unwrap();
}

/// Waits until the agent is not healthy, and says so with each of these words.
fn unwell(agent: &Agent<'_>, words: &[&str]) {
    let found = agent.wait_for("a problem in health", |agent| {
        let health = agent.get("/v1/healthz")?;
        Ok((health.status == 503 && words.iter().all(|word| health.text().contains(word))).then_some(()))
    });
    found.unwrap_or_else(|error| panic!("{words:?}: {error}: {}", agent.get("/v1/healthz").unwrap().text()));
    let status = agent.json("/v1/status").unwrap();
    let problems = status["problems"].to_string();
    assert!(words.iter().all(|word| problems.contains(word)), "{problems}");
}

fn well(agent: &Agent<'_>) {
    let healed = agent.wait_for("health", |agent| Ok((agent.get("/v1/healthz")?.status == 200).then_some(())));
    healed.unwrap_or_else(|error| panic!("{error}: {}", agent.get("/v1/healthz").unwrap().text()));
}

fn is_behind(agent: &Agent<'_>) -> bool {
    let revision = agent.policy().unwrap()["revision"].clone();
    revision["enforced"].as_u64() < revision["wanted"].as_u64()
}

fn refused(agent: &Agent<'_>, bound: &str, endpoint: &str) -> u64 {
    let status = agent.json("/v1/status").unwrap();
    let all = status["refused"].as_array().unwrap();
    let of = |one: &&Value| one["bound"] == bound && one["endpoint"].as_str().unwrap_or_default() == endpoint;
    all.iter().find(of).map_or(0, |one| one["count"].as_u64().unwrap())
}

/// The answer to a question with EDNS: its code, its addresses, and its octets as text.
fn answer(pod: &Pod, name: &str, kind: RecordType, transport: Transport) -> (ResponseCode, usize, String) {
    let name = name.to_owned();
    let reply: ClientReply = pod.run(pod.client(), move |client| async move {
        let mut question = Question::new(client.resolver, &name, kind);
        question.edns = Some(1232);
        question.transport = transport;
        ask(&question).await.unwrap()
    });
    let message = Message::from_vec(&reply.octets).unwrap();
    let text = String::from_utf8_lossy(&reply.octets).into_owned();
    (message.metadata.response_code, message.answers.len(), text)
}

/// A policy with more rows than a small map has: every second port.
fn many_ports() -> String {
    let mut elements = String::from("  - toCIDR: [198.51.100.0/24]\n    toPorts:\n");
    for first in (0..120).step_by(30) {
        let ports: Vec<String> =
            (first..first + 30).map(|at| format!("{{port: '{}', protocol: TCP}}", 1_001 + at * 2)).collect();
        writeln!(elements, "    - ports: [{}]", ports.join(", ")).unwrap();
    }
    egress(&elements)
}

#[test]
fn an_endpoint_whose_policy_finds_no_room_is_closed() {
    let world = world(&[TIE, XWING]);
    let wide = egress("  - toCIDR: [198.51.100.0/24]\n");
    let options = Options::default().policies(&wide).with(json!({"limits": {"policyRows": 60}}));
    let agent = Agent::start(&world, &options).unwrap();
    let tiefighter = world.pod(TIE);
    assert!(opens(tiefighter, echo(ALLOWED)));

    put_policies(&agent, &many_ports());
    unwell(&agent, &["POLICY", "limits.policyRows", TIE]);
    assert!(!opens(tiefighter, echo(ALLOWED)), "what the old policy allowed is not allowed any more");
    assert!(is_behind(&agent));
    assert_eq!(endpoint(&agent, TIE)["state"], "failed");

    agent.apply(&wide).unwrap();
    well(&agent);
    assert!(opens(tiefighter, echo(ALLOWED)) && !is_behind(&agent));
}

#[test]
fn a_denial_whose_prefix_finds_no_room_stays_a_denial() {
    let world = world(&[TIE, XWING]);
    let open = document("open", "  endpointSelector: {}\n  egress:\n  - toEntities: [world]\n");
    let limits = json!({"limits": {"cidrs": 2, "cidrsPerNamespace": 100}});
    let agent = Agent::start(&world, &Options::default().policies(&open).with(limits)).unwrap();
    let tiefighter = world.pod(TIE);
    assert!(opens(tiefighter, echo(DENIED)));

    let denials = "  egressDeny:\n  - toCIDR: [192.0.2.0/25, 192.0.2.128/25, 203.0.113.0/24, 203.0.113.2/32]\n";
    put_policies(&agent, &format!("{open}{denials}"));
    unwell(&agent, &["CIDRS", "limits.cidrs", TIE]);
    assert!(!opens(tiefighter, echo(DENIED)));
    assert!(is_behind(&agent));

    agent.apply(&format!("{open}  egressDeny:\n  - toCIDR: [203.0.113.0/24]\n")).unwrap();
    well(&agent);
    assert!(opens(tiefighter, echo(ALLOWED)) && !opens(tiefighter, echo(DENIED)));
}

#[test]
fn a_pod_without_a_row_is_not_the_world() {
    let world = world(&[TIE, XWING]);
    let open = document("open", "  endpointSelector: {}\n  egress:\n  - toEntities: [world]\n");
    let without = || Options { unknown: vec![XWING.to_owned()], ..Options::default() }.policies(&open);
    let rows = {
        let agent = Agent::start(&world, &without()).unwrap();
        let status = agent.json("/v1/status").unwrap();
        let maps = status["maps"].as_array().unwrap();
        maps.iter().find(|map| map["map"] == "ADDRESSES").unwrap()["rows"].as_u64().unwrap()
    };
    let agent = Agent::start(&world, &without().with(json!({"limits": {"addresses": rows + 1}}))).unwrap();
    let (tiefighter, xwing) = (world.pod(TIE), world.pod(XWING));
    assert!(opens(tiefighter, echo(ALLOWED)));

    // It has two addresses, and there is room for one.
    agent.write_endpoints(&Options::default()).unwrap();
    unwell(&agent, &["ADDRESSES", "limits.addresses", TIE, XWING]);
    for address in [xwing.ipv4(), xwing.ipv6()] {
        assert!(!opens(tiefighter, std::net::SocketAddr::new(address, 7)), "{address} is no address of the world");
    }
    agent.write_endpoints(&without()).unwrap();
    well(&agent);
    assert!(opens(tiefighter, echo(ALLOWED)));
}

#[test]
fn an_endpoint_beyond_the_limit_is_closed() {
    let world = world(&[TIE, XWING]);
    let others = |unknown: &[&str]| {
        let unknown = unknown.iter().map(|pod| (*pod).to_owned()).collect();
        Options { unknown, unguarded: vec![DNS.to_owned()], ..Options::default() }
    };
    let without = others(&[XWING]).with(json!({"limits": {"endpoints": 1}}));
    let agent = Agent::start(&world, &without).unwrap();
    let (tiefighter, xwing) = (world.pod(TIE), world.pod(XWING));
    assert!(opens(tiefighter, echo(ALLOWED)) && opens(xwing, echo(ALLOWED)), "no rule selects them");

    agent.write_endpoints(&others(&[])).unwrap();
    unwell(&agent, &["ENDPOINTS", "limits.endpoints", XWING]);
    assert!(opens(tiefighter, echo(ALLOWED)) && !opens(xwing, echo(ALLOWED)));
    assert_eq!(endpoint(&agent, XWING)["state"], "failed");

    agent.write_endpoints(&others(&[TIE])).unwrap();
    well(&agent);
    assert!(opens(xwing, echo(ALLOWED)));
}

#[test]
fn an_answer_without_room_is_servfail_and_opens_later() {
    let world = world(&[TIE, XWING]);
    let far = ["198.51.100.1", "198.51.100.2", "198.51.100.3"];
    for (at, address) in far.iter().enumerate() {
        world.zone().set_addresses(&format!("n{at}.allowed.test"), 600, &[ip(address)]);
    }
    let limits = json!({"limits": {"addressesPerEndpoint": 2}});
    let agent = Agent::start(&world, &Options::default().policies(&egress(ALLOWED_TEST)).with(limits)).unwrap();
    let (tiefighter, xwing) = (world.pod(TIE), world.pod(XWING));
    for name in ["n0.allowed.test", "n1.allowed.test"] {
        assert_eq!(answer(tiefighter, name, RecordType::A, Transport::Udp).0, ResponseCode::NoError);
    }
    for transport in [Transport::Udp, Transport::Tcp] {
        let (code, records, text) = answer(tiefighter, "n2.allowed.test", RecordType::A, transport);
        assert_eq!((code, records), (ResponseCode::ServFail, 0));
        assert!(text.contains("no room"), "{text}");
    }
    unwell(&agent, &[TIE, "limits.addressesPerEndpoint"]);
    assert!(!opens(tiefighter, echo(far[2])) && opens(tiefighter, echo(far[0])));
    assert!(refused(&agent, "limits.addressesPerEndpoint", TIE) > 0);
    let metrics = agent.get("/metrics").unwrap().text();
    let line = format!("namegate_refused_total{{bound=\"limits.addressesPerEndpoint\",endpoint=\"{TIE}\"}}");
    assert!(metrics.contains(&line), "{metrics}");

    // The other pod has its own share.
    assert_eq!(answer(xwing, "n2.allowed.test", RecordType::A, Transport::Udp).0, ResponseCode::NoError);
    assert!(opens(xwing, echo(far[2])));

    assert_eq!(agent.delete("/v1/fqdn/cache/empire%2Ftiefighter?matchpattern=n0.allowed.test").unwrap().status, 200);
    well(&agent);
    assert!(opens(tiefighter, echo(far[2])) && !opens(tiefighter, echo(far[0])));
}

#[test]
fn an_answer_with_more_addresses_than_the_bound_is_servfail() {
    let world = world(&[TIE]);
    let v4: Vec<IpAddr> = (1..=6).map(|at| ip(&format!("198.51.100.{at}"))).collect();
    let v6: Vec<IpAddr> = (1..=6).map(|at| ip(&format!("2001:db8::{at}"))).collect();
    world.zone().set_addresses("four.allowed.test", 60, &v4);
    world.zone().set_addresses("six.allowed.test", 60, &v6);
    world.zone().set_addresses("free.test", 60, &v4);
    let settings = json!({"dns": {"addressesPerNameMax": 5, "cacheEntries": 100}});
    let agent = Agent::start(&world, &Options::default().policies(&egress(ALLOWED_TEST)).with(settings)).unwrap();
    let tiefighter = world.pod(TIE);
    // Twice: the second answer may be a kept one.
    for transport in [Transport::Udp, Transport::Tcp, Transport::Udp, Transport::Tcp] {
        for (name, kind) in [("four.allowed.test", RecordType::A), ("six.allowed.test", RecordType::AAAA)] {
            let (code, records, text) = answer(tiefighter, name, kind, transport);
            assert_eq!((code, records), (ResponseCode::ServFail, 0), "{name} {transport:?}");
            assert!(text.contains("more addresses than `dns.addressesPerNameMax`"), "{text}");
        }
        let (code, records, _) = answer(tiefighter, "free.test", RecordType::A, transport);
        assert_eq!((code, records), (ResponseCode::NoError, 6), "no rule is about this name");
    }
    assert!(!opens(tiefighter, echo("198.51.100.1")));
    assert!(refused(&agent, "dns.addressesPerNameMax", TIE) > 0);
}

#[test]
fn names_that_no_rule_selects_close_no_allowed_one() {
    let world = world(&[TIE]);
    world.zone().set_addresses("a.allowed.test", 600, &[ip(ALLOWED)]);
    for at in 0..40 {
        world.zone().set_addresses(&format!("n{at}.other.test"), 600, &[ip(ALLOWED)]);
    }
    let settings = json!({"dns": {"namesPerEndpointMax": 5}});
    let _agent = Agent::start(&world, &Options::default().policies(&egress(ALLOWED_TEST)).with(settings)).unwrap();
    let tiefighter = world.pod(TIE);
    tiefighter.lookup("a.allowed.test", RecordType::A).unwrap();
    for at in 0..40 {
        tiefighter.lookup(&format!("n{at}.other.test"), RecordType::A).unwrap();
    }
    assert!(opens(tiefighter, echo(ALLOWED)));
}
