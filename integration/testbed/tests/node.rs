//! The node as an endpoint: what policies with a `nodeSelector` do to its own sockets, and to nobody else's.
#![expect(clippy::unwrap_used, reason = "a test ends at the first surprise")]

#[expect(dead_code, reason = "each program of this folder uses its own part")]
mod common;

use std::net::{IpAddr, SocketAddr};

use common::{
    ALLOWED_TEST, SILENT, TIE, WITHIN, denied_packets, echo, egress, endpoint, ip, namegate, opens, revision, settle,
    text, world,
};
use namegate_testbed::proto::rr::RecordType;
use namegate_testbed::{Agent, ECHO_PORT, Failure, Netns, OTHER_ECHO_PORT, Options, World, client};
use serde_json::Value;

/// Inside and outside of what [`SOME`] opens; both families.
const ALLOWED: [&str; 2] = ["198.51.100.9", "2001:db8:1::9"];
const DENIED: [&str; 2] = ["192.0.2.9", "2001:db8:2::9"];

/// One port of each protocol into the node, and some prefixes out of it.
const SOME: &str = "  ingress:
  - fromEntities: [world]
    toPorts: [{ports: [{port: '7', protocol: TCP}, {port: '7007', protocol: UDP}]}]
  egress:
  - toCIDR: [198.51.100.0/24, '2001:db8:1::/48']
    toPorts: [{ports: [{port: '7', protocol: ANY}]}]
";

fn policy(sections: &str) -> String {
    format!(
        "apiVersion: cilium.io/v2\nkind: CiliumClusterwideNetworkPolicy\nmetadata: {{name: node}}\n\
         spec:\n  nodeSelector: {{matchLabels: {{type: ingress-worker}}}}\n{sections}"
    )
}

/// A world whose node serves what the outside serves.
fn served() -> World {
    let world = world(&[TIE]);
    let serve = |host: &namegate_testbed::Host| {
        [ECHO_PORT, OTHER_ECHO_PORT].into_iter().try_for_each(|port| {
            host.echo_tcp(port)?;
            host.echo_udp(port)
        })
    };
    world.serve_node(serve).unwrap();
    world
}

fn addresses(world: &World) -> Vec<IpAddr> {
    world.spec().nodes[0].ips.clone()
}

fn tcp(from: &Netns, to: SocketAddr) -> bool {
    match from.run(async move { client::connect(to, SILENT).await.map(drop) }) {
        Ok(()) => true,
        Err(Failure::Timeout) => false,
        Err(other) => panic!("{} to {to}: {other}", from.name()),
    }
}

fn udp(from: &Netns, to: SocketAddr) -> Result<(), Failure> {
    from.run(async move { client::echo(to, b"a datagram", SILENT).await })
}

/// The newest flow of the node with this other end and verdict.
fn told(agent: &Agent<'_>, peer: IpAddr, verdict: &str) -> Value {
    let found = agent.wait_for("the record of a flow", |agent| {
        let wanted = |flow: &Value| flow["peer"]["address"] == peer.to_string() && flow["verdict"] == verdict;
        Ok(agent.flows("endpoint=host")?.into_iter().rev().find(wanted))
    });
    found.unwrap()
}

#[test]
fn some_ports_are_open_and_no_others() {
    let world = served();
    let agent = Agent::start(&world, &Options::default().policies(&policy(SOME))).unwrap();
    let (node, outside) = (world.node(), world.outside());
    for address in addresses(&world) {
        let [own, other] = [ECHO_PORT, OTHER_ECHO_PORT].map(|port| SocketAddr::new(address, port));
        assert!(tcp(outside, own) && !tcp(outside, other), "TCP into {address}");
        udp(outside, other).unwrap_or_else(|failure| panic!("UDP into {other}: {failure}"));
        assert_eq!(udp(outside, own), Err(Failure::Timeout), "UDP into {own}");
        assert!(tcp(node, other), "the node reaches itself at {other}");
        assert!(!opens(world.pod(TIE), own), "no rule names pods: {own}");
        // The kernel's own answers are no socket's.
        world.pod(TIE).ping(address, 56, WITHIN).expect("the node answers a ping");
    }
    for (allowed, denied) in ALLOWED.into_iter().zip(DENIED) {
        assert!(tcp(node, echo(allowed)) && !tcp(node, echo(denied)), "TCP out of the node");
        assert!(!tcp(node, SocketAddr::new(ip(allowed), OTHER_ECHO_PORT)), "another port");
        udp(node, echo(allowed)).unwrap_or_else(|failure| panic!("UDP to {allowed}: {failure}"));
        let refused = udp(node, echo(denied)).unwrap_err();
        assert!(refused.to_string().contains("not permitted"), "who sends is told at once: {refused}");
        assert!(opens(world.pod(TIE), echo(denied)), "the policy is about nobody else");

        let flow = told(&agent, ip(denied), "denied");
        assert_eq!((&flow["direction"], &flow["reason"]), (&"egress".into(), &"default-deny".into()), "{flow}");
        let flow = told(&agent, ip(allowed), "allowed");
        assert_eq!(text(&flow["rule"]), "node spec.egress[0]", "{flow}");
    }
    let shown = endpoint(&agent, "host");
    assert_eq!((&shown["ingress"], &shown["egress"]), (&"enabled".into(), &"enabled".into()), "{shown}");
    assert_eq!((&shown["state"], &shown["namespace"]), (&"guarded".into(), &"".into()), "{shown}");
    let labels: Vec<String> = shown["labels"].as_array().unwrap().iter().map(text).collect();
    assert!(labels.contains(&"reserved:host".to_owned()), "{labels:?}");
    let (code, lines, err) = namegate(&agent, &["monitor", "--endpoint", "host", "--no-follow", "--last", "1000"]);
    assert_eq!(code, Some(0), "{err}");
    assert!(lines.contains(" host -> 198.51.100.9 7/TCP: a rule allows it (node spec.egress[0])"), "{lines}");
}

#[test]
fn deny_beats_allow_and_replies_pass() {
    let world = served();
    let sections = "  ingress:\n  - fromEntities: [all]\n  ingressDeny:\n  - fromEntities: [world]\n    \
                    toPorts: [{ports: [{port: '7007', protocol: TCP}]}]\n";
    let agent = Agent::start(&world, &Options::default().policies(&policy(sections))).unwrap();
    for address in addresses(&world) {
        let [own, other] = [ECHO_PORT, OTHER_ECHO_PORT].map(|port| SocketAddr::new(address, port));
        assert!(tcp(world.outside(), own) && !tcp(world.outside(), other), "{address}");
        assert!(opens(world.pod(TIE), other), "the denial is about the world: {other}");
    }
    let flow = agent.flows("endpoint=host&denied=true").unwrap().pop().unwrap();
    assert_eq!((&flow["reason"], &flow["rule"]), (&"deny-rule".into(), &"node spec.ingressDeny[0]".into()), "{flow}");
    // Nothing holds for what the node sends; the answers come in past the rules of ingress.
    for to in ALLOWED {
        assert!(tcp(world.node(), echo(to)));
        udp(world.node(), echo(to)).unwrap();
    }
    assert_eq!(endpoint(&agent, "host")["egress"], "disabled");
}

/// The node translates where its own connections go, and those that come to it.
#[test]
fn connections_that_the_node_translates_are_judged_by_where_they_go() {
    let world = served();
    let rules = format!(
        "table ip front {{\n chain out {{ type nat hook output priority -100;\n \
         ip daddr 10.96.9.9 tcp dport 9000 dnat to {}:7;\n ip daddr 10.96.9.9 tcp dport 9001 dnat to {}:7;\n }}\n \
         chain pre {{ type nat hook prerouting priority dstnat;\n tcp dport 9007 dnat to {}:7;\n }}\n }}\n",
        ALLOWED[0],
        DENIED[0],
        addresses(&world)[0]
    );
    let mut nft = std::process::Command::new("nft");
    nft.arg(rules);
    let output = world.node().call(move || nft.output()).expect("the test needs `nft` (nftables)");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    // The node has no way to the virtual address but by the translation.
    let mut route = std::process::Command::new("ip");
    route.args(["route", "replace", "10.96.9.9/32", "dev", world.uplink()]);
    assert!(world.node().call(move || route.status()).unwrap().success());
    let agent = Agent::start(&world, &Options::default().policies(&policy(SOME))).unwrap();
    let said = |port: u16| {
        let to = SocketAddr::new(ip("10.96.9.9"), port);
        world.node().run(async move {
            use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
            let mut stream = client::connect(to, SILENT).await?;
            let mut back = [0; 5];
            let exchange = async {
                stream.write_all(b"hello").await?;
                stream.read_exact(&mut back).await
            };
            let done = tokio::time::timeout(WITHIN, exchange).await.map_err(|_| Failure::Timeout)?;
            done.map(drop).map_err(|error| Failure::Other(error.to_string()))
        })
    };
    assert_eq!(said(9_000), Ok(()), "answers come from the virtual address");
    assert_eq!(said(9_001), Err(Failure::Timeout), "to where nothing is allowed");
    assert_eq!(told(&agent, ip(DENIED[0]), "denied")["reason"], "default-deny");
    let own = SocketAddr::new(addresses(&world)[0], 9_007);
    assert!(tcp(world.outside(), own), "a port that leads to an open one");
}

#[test]
fn the_death_of_the_agent_opens_nothing() {
    let world = served();
    let mut agent = Agent::start(&world, &Options::default().policies(&policy(SOME))).unwrap();
    let judged = |world: &World| {
        let address = addresses(world)[0];
        let [own, other] = [ECHO_PORT, OTHER_ECHO_PORT].map(|port| SocketAddr::new(address, port));
        let outside = (tcp(world.outside(), own), tcp(world.outside(), other));
        (outside, tcp(world.node(), echo(ALLOWED[0])), tcp(world.node(), echo(DENIED[0])))
    };
    let want = ((true, false), true, false);
    assert_eq!(judged(&world), want);
    agent.kill().unwrap();
    assert_eq!(judged(&world), want, "without an agent");
    agent.run().unwrap();
    assert_eq!(judged(&world), want, "with the next one");
    let links = || std::fs::read_dir(agent.pins().join("links")).unwrap().flatten().map(|file| file.file_name());
    assert_eq!(links().filter(|name| name.to_string_lossy().starts_with("0-")).count(), 2);

    let before = revision(&agent);
    std::fs::remove_file(agent.path("policies/policies.yaml")).unwrap();
    settle(&agent, before);
    assert_eq!(judged(&world), ((true, true), true, true), "without a policy");
    assert_eq!(links().filter(|name| name.to_string_lossy().starts_with("0-")).count(), 0, "taken off");
    assert_eq!(agent.get("/v1/endpoint/host").unwrap().status, 404);
}

#[test]
fn a_node_that_no_rule_selects_is_left_alone() {
    let world = served();
    let other = policy(SOME).replace("ingress-worker", "worker");
    let agent = Agent::start(&world, &Options::default().policies(&other)).unwrap();
    assert!(tcp(world.node(), echo(DENIED[0])));
    assert_eq!(agent.get("/v1/endpoint/host").unwrap().status, 404);
    assert_eq!(denied_packets(&agent), 0);
}

/// The node may send nothing. The proxies may: what they carry is the endpoints'.
#[test]
fn what_the_proxies_send_is_not_the_nodes() {
    let world = served();
    world.zone().set_addresses("api.allowed.test", 600, &[ip(DENIED[0])]);
    let policies = format!("{}---\n{}", policy("  egress: [{}]\n  ingress: [{}]\n"), egress(ALLOWED_TEST));
    let agent = Agent::start(&world, &Options::default().policies(&policies)).unwrap();
    assert!(!tcp(world.node(), echo(DENIED[0])));
    let tiefighter = world.pod(TIE);
    assert!(!opens(tiefighter, echo(DENIED[0])));
    let answer = tiefighter.lookup("api.allowed.test", RecordType::A).unwrap();
    assert_eq!(answer.addresses, [ip(DENIED[0])]);
    tiefighter.connect(echo(DENIED[0]), WITHIN).expect("the name was heard");
    drop(agent);
}

#[test]
fn names_in_a_policy_for_nodes_are_refused() {
    let world = world(&[TIE]);
    let agent = Agent::start(&world, &Options::default()).unwrap();
    let applied = agent.apply(&policy("  egress:\n  - toFQDNs: [{matchName: a.io}]\n")).unwrap();
    let mistakes = applied.mistakes();
    assert_eq!(mistakes.len(), 1, "{mistakes:?}");
    assert!(mistakes[0].contains("`toFQDNs` is not enforced for the node"), "{mistakes:?}");
}

#[test]
fn audit_tells_and_drops_nothing() {
    let world = served();
    let audit = Options::default().policies(&policy(SOME)).with(serde_json::json!({"audit": true}));
    let agent = Agent::start(&world, &audit).unwrap();
    assert!(tcp(world.node(), echo(DENIED[0])));
    assert_eq!(told(&agent, ip(DENIED[0]), "audited")["reason"], "default-deny");
    assert_eq!(endpoint(&agent, "host")["egress"], "audit");
}
