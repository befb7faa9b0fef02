//! Virtual addresses of services: a pod calls one, nftables sends it on to a pod, and the policy about that pod decides.
#![expect(clippy::unwrap_used, reason = "a test ends at the first surprise")]

#[expect(dead_code, reason = "each program of this folder uses its own part")]
mod common;

use std::fmt::Write as _;
use std::net::SocketAddr;
use std::process::Command;

use common::{DNS, SILENT, TIE, WITHIN, edit_endpoints, egress, flow, ip, opens, revision, settle, text};
use namegate_testbed::{Agent, ECHO_PORT, Failure, Options, PodSpec, Protocol, Spec, World};
use serde_json::{Value, json};

/// The virtual addresses of the only service.
const FRONT: [&str; 2] = ["10.96.7.7", "fd00:10:96::77"];
/// Ports of the service: in front of the pod that the policy names, of another, and of both.
const OPEN: u16 = 9_000;
const SHUT: u16 = 9_001;
const BOTH: u16 = 9_002;
/// Addresses of the pods behind it.
const DATABASE: [&str; 2] = ["10.244.1.20", "fd00:10:244:1::20"];
const CACHE: [&str; 2] = ["10.244.1.21", "fd00:10:244:1::21"];

const TO_DATABASE: &str = "  - toEndpoints: [{matchLabels: {app: database}}]\n    \
                           toPorts: [{ports: [{port: '7', protocol: ANY}]}]\n";

fn behind() -> World {
    let pod = |name: &str, addresses: [&str; 2]| {
        let pod = PodSpec::new("empire", name, &addresses.map(ip)).label("app", name);
        pod.serves(Protocol::Tcp, ECHO_PORT).serves(Protocol::Udp, ECHO_PORT)
    };
    let spec = Spec::empire().unwrap().only(&[TIE, DNS]);
    let world = World::build(spec.with(pod("database", DATABASE)).with(pod("cache", CACHE))).unwrap();
    // What kube-proxy does.
    let mut rules = String::new();
    for (family, at, open, closed) in [("ip", 0, "", ""), ("ip6", 1, "[", "]")] {
        writeln!(rules, "table {family} front {{ chain pre {{ type nat hook prerouting priority dstnat;").unwrap();
        for (port, target) in [(OPEN, DATABASE[at]), (SHUT, CACHE[at]), (BOTH, DATABASE[at])] {
            for protocol in ["tcp", "udp"] {
                let to = format!("{open}{target}{closed}:{ECHO_PORT}");
                writeln!(rules, "{family} daddr {} {protocol} dport {port} dnat to {to};", FRONT[at]).unwrap();
            }
        }
        rules.push_str("}\n}\n");
    }
    let mut nft = Command::new("nft");
    nft.arg(rules);
    let output = world.node().call(move || nft.output()).expect("the test needs `nft` (nftables)");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    world
}

/// The service; `open` are the pods behind its first port.
fn service(open: &[[&str; 2]]) -> Value {
    let targets = |pods: &[[&str; 2]]| -> Vec<Value> {
        pods.iter().flatten().map(|address| json!({"address": address, "port": ECHO_PORT})).collect()
    };
    let ports = [(OPEN, targets(open)), (SHUT, targets(&[CACHE])), (BOTH, targets(&[DATABASE, CACHE]))];
    let ports: Vec<Value> = ports
        .iter()
        .flat_map(|(port, targets)| {
            ["TCP", "UDP"].map(|protocol| json!({"port": port, "protocol": protocol, "targets": targets}))
        })
        .collect();
    json!([{"name": "front", "namespace": "empire", "addresses": FRONT, "ports": ports}])
}

fn give(agent: &Agent<'_>, services: Value) {
    let before = revision(agent);
    edit_endpoints(agent, |file| file["services"] = services);
    settle(agent, before);
}

fn only_to_database() -> Options {
    let about =
        egress(TO_DATABASE).replace("endpointSelector: {}", "endpointSelector: {matchLabels: {class: tiefighter}}");
    Options::default().policies(&about)
}

#[test]
fn the_policy_about_the_pod_behind_decides() {
    let world = behind();
    let agent = Agent::start(&world, &only_to_database()).unwrap();
    let tiefighter = world.pod(TIE);
    let at = |front: &str, port| SocketAddr::new(ip(front), port);
    assert!(!opens(tiefighter, at(FRONT[0], OPEN)), "nobody knows the service");
    give(&agent, service(&[DATABASE]));
    for front in FRONT {
        assert!(opens(tiefighter, at(front, OPEN)), "TCP to {front}");
        tiefighter.echo(at(front, OPEN), 100, WITHIN).unwrap_or_else(|failure| panic!("UDP to {front}: {failure}"));
        for port in [SHUT, BOTH] {
            assert!(!opens(tiefighter, at(front, port)), "TCP to {front} {port}");
            assert_eq!(tiefighter.echo(at(front, port), 100, SILENT), Err(Failure::Timeout), "UDP to {front} {port}");
        }
        let told = flow(&agent, tiefighter, ip(front), "denied");
        assert_eq!(
            (&told["reason"], &told["peer"]["name"]),
            (&json!("default-deny"), &json!("empire/front")),
            "{told}"
        );
        let told = flow(&agent, tiefighter, ip(front), "allowed");
        assert_eq!(text(&told["rule"]), "empire/dns-and-more spec.egress[1]", "{told}");
    }
    let policy = agent.policy().unwrap();
    let warnings: Vec<String> =
        policy["diagnostics"].as_array().unwrap().iter().map(|found| text(&found["message"])).collect();
    let both = |protocol: &str| {
        let told = |found: &String| found.contains("empire/front") && found.contains(&format!("{BOTH}/{protocol}"));
        warnings.iter().filter(|found| told(found) && found.contains(TIE)).count()
    };
    assert_eq!((both("TCP"), both("UDP")), (1, 1), "{warnings:?}");
}

#[test]
fn targets_that_change_are_followed_and_survive_the_agent() {
    let world = behind();
    let mut agent = Agent::start(&world, &only_to_database()).unwrap();
    let tiefighter = world.pod(TIE);
    let open = SocketAddr::new(ip(FRONT[0]), OPEN);
    give(&agent, service(&[DATABASE]));
    let conversation = tiefighter.open(open, WITHIN).unwrap();
    conversation.say(b"through the front", WITHIN).unwrap();
    agent.kill().unwrap();
    conversation.say(b"without an agent", WITHIN).unwrap();
    assert!(opens(tiefighter, open) && !opens(tiefighter, SocketAddr::new(ip(FRONT[0]), SHUT)));
    agent.run().unwrap();
    conversation.say(b"with the next one", WITHIN).unwrap();

    give(&agent, service(&[CACHE]));
    assert!(!opens(tiefighter, open), "another is behind it");
    assert_eq!(conversation.say(b"to another", SILENT), Err(Failure::Timeout));
    give(&agent, service(&[]));
    assert!(!opens(tiefighter, open), "nobody is behind it");
    give(&agent, service(&[DATABASE]));
    assert!(opens(tiefighter, open));
    give(&agent, json!([]));
    assert!(!opens(tiefighter, open), "the service is gone");
}

#[test]
fn a_policy_that_names_the_service_opens_who_is_behind_it() {
    let world = behind();
    let named = egress("  - toServices: [{k8sService: {serviceName: front, namespace: empire}}]\n");
    let agent = Agent::start(&world, &Options::default().policies(&named)).unwrap();
    let tiefighter = world.pod(TIE);
    give(&agent, service(&[DATABASE]));
    for port in [OPEN, SHUT, BOTH] {
        assert!(opens(tiefighter, SocketAddr::new(ip(FRONT[0]), port)), "{port}");
    }
    assert!(opens(tiefighter, SocketAddr::new(ip(CACHE[0]), ECHO_PORT)), "directly too");
}
