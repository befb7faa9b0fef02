//! Flows of real sockets: one ends where its peer's address becomes another's, and one endpoint's take nothing from another's.

#[expect(dead_code, reason = "each program of this folder uses its own part")]
mod common;

use std::net::{SocketAddr, UdpSocket};

use common::{
    ALLOWED_TEST, SILENT, TEST_NETS, TIE, WITHIN, XWING, echo, edit_endpoints, egress, first_drop, ip, opens, revision,
    settle, world,
};
use namegate_testbed::proto::rr::RecordType;
use namegate_testbed::{Agent, Failure, Options};
use serde_json::{Value, json};

const NAMED: [(&str, RecordType); 2] = [("198.51.100.33", RecordType::A), ("2001:db8:7::33", RecordType::AAAA)];
/// Of the same names, and of nobody else in the test.
const STAYS: [&str; 2] = ["198.51.100.34", "2001:db8:7::34"];

#[test]
fn what_a_name_opened_ends_where_another_pod_gets_the_address() {
    let world = world(&[TIE]);
    world.zone().set_addresses("four.allowed.test", 2, &[ip(NAMED[0].0), ip(STAYS[0])]);
    world.zone().set_addresses("six.allowed.test", 2, &[ip(NAMED[1].0), ip(STAYS[1])]);
    let mut agent = Agent::start(&world, &Options::default().policies(&egress(ALLOWED_TEST))).unwrap();
    let tiefighter = world.pod(TIE);
    tiefighter.lookup("four.allowed.test", RecordType::A).unwrap();
    tiefighter.lookup("six.allowed.test", RecordType::AAAA).unwrap();
    let moved = NAMED.map(|(address, _)| tiefighter.open(echo(address), WITHIN).unwrap());
    let stay = STAYS.map(|address| tiefighter.open(echo(address), WITHIN).unwrap());
    for address in NAMED.iter().map(|(address, _)| *address).chain(STAYS) {
        first_drop(tiefighter, echo(address));
    }
    for conversation in moved.iter().chain(&stay) {
        conversation.say(b"after the TTL", WITHIN).unwrap();
    }

    let give = |agent: &Agent<'_>, addresses: &Value| {
        let before = revision(agent);
        edit_endpoints(agent, |file| {
            let other = json!({"name": "other", "namespace": "kube-system", "labels": {}, "addresses": addresses});
            file["endpoints"].as_array_mut().unwrap().push(other);
        });
        settle(agent, before);
    };
    give(&agent, &json!([NAMED[0].0, NAMED[1].0]));
    for conversation in &moved {
        assert_eq!(conversation.say(b"to another tenant", SILENT), Err(Failure::Timeout));
    }
    for conversation in &stay {
        conversation.say(b"to whom it was", WITHIN).expect("no other flow is cut");
    }
    agent.kill().unwrap();
    for conversation in &moved {
        assert_eq!(conversation.say(b"without an agent", SILENT), Err(Failure::Timeout));
    }
    agent.run().unwrap();
    for conversation in &stay {
        conversation.say(b"with the next one", WITHIN).expect("no other flow is cut");
    }
}

#[test]
fn a_flood_of_flows_ends_no_connection_and_is_counted_for_its_endpoint() {
    const PORTS: u16 = 6_000;
    let world = world(&[TIE, XWING]);
    let limits = json!({"limits": {"flows": 4_096, "flowsPerEndpoint": 1_024}});
    let mut agent = Agent::start(&world, &Options::default().with(limits).policies(&egress(TEST_NETS))).unwrap();
    let (hostile, honest) = (world.pod(TIE), world.pod(XWING));
    let theirs = honest.open(echo("198.51.100.7"), WITHIN).unwrap();
    let own = hostile.open(echo("198.51.100.7"), WITHIN).unwrap();
    let flood = move || {
        let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
        for port in 1..=PORTS {
            // A queue that is full for a moment is no failure of the test.
            let _ = socket.send_to(b"x", SocketAddr::new("198.51.100.7".parse().unwrap(), 10_000 + port));
        }
    };
    hostile.netns.call(flood);
    theirs.say(b"of another endpoint", WITHIN).expect("another endpoint's connection goes on");
    own.say(b"of the same endpoint", WITHIN).expect("its own connection goes on");
    assert!(opens(honest, echo("198.51.100.8")), "another endpoint opens new ones");
    let counted = |agent: &Agent<'_>| {
        let found = agent.wait_for("the count of what gave way", |agent| {
            let status = agent.json("/v1/status")?;
            let refused = status["refused"].as_array().cloned().unwrap_or_default();
            let of_flows = |one: &Value| one["bound"] == "limits.flowsPerEndpoint";
            Ok(refused.into_iter().find(of_flows))
        });
        found.unwrap()
    };
    let found = counted(&agent);
    assert_eq!((&found["endpoint"], &found["setting"]), (&json!(TIE), &json!("limits.flowsPerEndpoint")), "{found}");
    assert!(found["count"].as_u64().unwrap() > u64::from(PORTS) / 2, "{found}");
    agent.kill().unwrap();
    hostile.netns.call(flood);
    theirs.say(b"without an agent", WITHIN).expect("another endpoint's connection goes on");
    agent.run().unwrap();
    hostile.netns.call(flood);
    theirs.say(b"with the next one", WITHIN).expect("another endpoint's connection goes on");
    assert_eq!(counted(&agent)["endpoint"], json!(TIE));
}
