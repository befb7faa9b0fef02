//! What policies do to packets: the seed article, directions, audit, mistakes, live changes, and every kind of packet.
#![expect(clippy::unwrap_used, reason = "a test ends at the first surprise")]

#[expect(dead_code, reason = "each program of this folder uses its own part")]
mod common;

use std::net::SocketAddr;
use std::process::Command;

use common::{
    SILENT, TEST_NETS, TIE, WITHIN, XWING, document, echo, edit_endpoints, egress, endpoint, entry, flow, ip, opens,
    revision, settle, text, world,
};
use namegate_testbed::seed::{self, CHAPTERS, Verdict};
use namegate_testbed::{Agent, ECHO_PORT, Failure, OTHER_ECHO_PORT, Options, World};
use serde_json::json;

const DEATHSTAR: &str = "empire/deathstar-1";
const STRANGER: &str = "default/stranger";
/// Inside and outside of [`TEST_NETS`].
const ALLOWED: &str = "198.51.100.9";
const ALSO_ALLOWED: &str = "203.0.113.9";
const DENIED: &str = "192.0.2.9";

fn with(policies: &str) -> Options {
    Options::default().policies(policies)
}

/// Lets in only what its namespace sends.
fn within_namespace() -> String {
    document("within", "  endpointSelector: {}\n  ingress:\n  - fromEndpoints: [{}]\n")
}

#[test]
fn the_seed_article_is_as_it_says() {
    let world = seed::world().unwrap();
    let agent = Agent::start(&world, &Options::default()).unwrap();
    for test in CHAPTERS.iter().flat_map(|chapter| chapter.tests) {
        let visit = seed::act(&world, test);
        assert_eq!(visit.status(), Some(200), "without a policy: `{}` {:?}", test.command, visit.outcome);
    }
    for chapter in &CHAPTERS {
        let mistakes = seed::apply(&agent, chapter).unwrap().mistakes();
        assert!(mistakes.is_empty(), "{}: {mistakes:?}", chapter.title);
        for test in chapter.tests {
            let row = seed::run(&world, &agent, test).unwrap();
            assert_eq!(row.verdict, Verdict::AsSaid, "{}: {row:#?}", chapter.title);
            assert!(row.flow.is_some(), "`{}`: no flow tells why", test.command);
        }
    }
}

#[test]
fn a_direction_that_is_left_out_is_not_guarded_and_that_is_told() {
    let world = world(&[DEATHSTAR, STRANGER]);
    let options = with(&within_namespace()).with(json!({"directions": ["egress"]}));
    let agent = Agent::start(&world, &options).unwrap();
    assert!(opens(world.pod(STRANGER), SocketAddr::new(world.pod(DEATHSTAR).ipv4(), 80)));
    let shown = endpoint(&agent, DEATHSTAR);
    assert_eq!((&shown["ingress"], &shown["egress"]), (&json!("not-attached"), &json!("disabled")));
    let policy = agent.policy().unwrap();
    let not_enforced = policy["not-enforced"].as_array().unwrap();
    assert_eq!(not_enforced.len(), 1, "{policy:#}");
    assert!(text(&not_enforced[0]["rule"]).contains("empire/within"), "{policy:#}");
    assert!(text(&not_enforced[0]["reason"]).contains("directions"), "{policy:#}");
}

#[test]
fn audit_drops_nothing_and_tells_everything() {
    let world = world(&[TIE]);
    let agent = Agent::start(&world, &with(&egress(TEST_NETS)).with(json!({"audit": true}))).unwrap();
    let tiefighter = world.pod(TIE);
    assert!(opens(tiefighter, echo(DENIED)) && opens(tiefighter, echo(ALLOWED)));
    tiefighter.ping(ip(DENIED), 56, WITHIN).unwrap();
    let told = flow(&agent, tiefighter, ip(DENIED), "audited");
    assert_eq!(told["reason"], "default-deny", "{told}");
    assert_eq!(agent.denials(tiefighter).unwrap().iter().filter(|flow| flow["verdict"] == "denied").count(), 0);
    assert_eq!(endpoint(&agent, TIE)["egress"], "audit");
    assert_eq!(agent.json("/v1/status").unwrap()["audit"], true);
}

#[test]
fn a_bad_policy_file_leaves_the_last_good_state() {
    let world = world(&[TIE]);
    let agent = Agent::start(&world, &with(&egress(TEST_NETS))).unwrap();
    let tiefighter = world.pod(TIE);
    let bad = document("dns-and-more", "  endpointSelector: {}\n  egres:\n  - toCIDR: [192.0.2.0/24]\n");
    let applied = agent.apply(&bad).unwrap();
    let mistakes = applied.mistakes();
    assert_eq!(mistakes.len(), 1, "{mistakes:?}");
    assert!(mistakes[0].starts_with("6:3 "), "line and column of `egres`: {mistakes:?}");
    assert!(applied.policy["documents"][0]["state"] == "kept-former", "{:#}", applied.policy);
    assert!(opens(tiefighter, echo(ALLOWED)) && !opens(tiefighter, echo(DENIED)), "the former rules hold");

    let mended = agent.apply(&bad.replace("egres:", "egress:")).unwrap();
    assert_eq!(mended.mistakes(), Vec::<String>::new());
    assert!(opens(tiefighter, echo(DENIED)) && !opens(tiefighter, echo(ALLOWED)), "the new rules hold");
}

#[test]
fn deny_beats_allow_whatever_the_order() {
    let world = world(&[TIE]);
    let deny = "  egressDeny:\n  - toCIDR: [198.51.100.9/32]\n";
    let agent = Agent::start(&world, &with(&format!("{}{deny}", egress(TEST_NETS)))).unwrap();
    let tiefighter = world.pod(TIE);
    assert!(!opens(tiefighter, echo(ALLOWED)) && opens(tiefighter, echo("198.51.100.10")));
    let told = flow(&agent, tiefighter, ip(ALLOWED), "denied");
    assert_eq!(told["reason"], "deny-rule");
    assert_eq!(text(&told["rule"]), "empire/dns-and-more spec.egressDeny[0]");

    let world_denied = "  egressDeny:\n  - toEntities: [world]\n";
    agent.apply(&format!("{}{world_denied}", egress(TEST_NETS))).unwrap();
    assert!(!opens(tiefighter, echo("198.51.100.10")), "the wider denial covers the narrower allowance");
}

#[test]
fn a_policy_change_ends_what_it_denies_and_nothing_else() {
    let world = world(&[TIE]);
    let agent = Agent::start(&world, &with(&egress(TEST_NETS))).unwrap();
    let tiefighter = world.pod(TIE);
    let ends = tiefighter.open(echo(ALLOWED), WITHIN).unwrap();
    let goes_on = tiefighter.open(echo(ALSO_ALLOWED), WITHIN).unwrap();
    ends.say(b"one", WITHIN).unwrap();
    goes_on.say(b"one", WITHIN).unwrap();
    agent.apply(&egress("  - toCIDR: [203.0.113.0/24]\n")).unwrap();
    assert_eq!(ends.say(b"two", SILENT), Err(Failure::Timeout));
    goes_on.say(b"two", WITHIN).unwrap();
    agent.apply(&egress(TEST_NETS)).unwrap();
    goes_on.say(b"three", WITHIN).unwrap();
}

#[test]
fn a_policy_that_goes_away_opens_again() {
    let world = world(&[TIE]);
    let agent = Agent::start(&world, &with(&egress(""))).unwrap();
    let tiefighter = world.pod(TIE);
    assert!(!opens(tiefighter, echo(ALLOWED)));
    let before = revision(&agent);
    std::fs::remove_file(agent.path("policies/policies.yaml")).unwrap();
    settle(&agent, before);
    assert!(opens(tiefighter, echo(ALLOWED)));
    assert_eq!(endpoint(&agent, TIE)["egress"], "disabled");
}

#[test]
fn pings_fragments_and_both_families_are_judged_alike() {
    let world = world(&[TIE]);
    let nets = "  - toCIDR: [198.51.100.0/24, '2001:db8:1::/48']\n";
    let _agent = Agent::start(&world, &with(&egress(nets))).unwrap();
    let tiefighter = world.pod(TIE);
    for (open, shut) in [(ALLOWED, DENIED), ("2001:db8:1::9", "2001:db8:2::9")] {
        for octets in [56, 4_000] {
            tiefighter.ping(ip(open), octets, WITHIN).unwrap_or_else(|failure| panic!("{open} {octets}: {failure}"));
            assert_eq!(tiefighter.ping(ip(shut), octets, SILENT), Err(Failure::Timeout), "{shut} {octets}");
        }
        for octets in [100, 6_000] {
            let sent = tiefighter.echo(echo(open), octets, WITHIN);
            sent.unwrap_or_else(|failure| panic!("{open} UDP {octets}: {failure}"));
            assert_eq!(tiefighter.echo(echo(shut), octets, SILENT), Err(Failure::Timeout), "{shut} UDP {octets}");
        }
        assert!(opens(tiefighter, echo(open)) && !opens(tiefighter, echo(shut)));
    }
}

#[test]
fn ports_protocols_and_icmp_types_are_told_apart() {
    let world = world(&[TIE]);
    let to = "toCIDR: [198.51.100.0/24]";
    let elements = format!(
        "  - {to}\n    toPorts: [{{ports: [{{port: '{ECHO_PORT}', protocol: TCP}}]}}]\n\
        \x20 - {to}\n    toPorts: [{{ports: [{{port: '7000', endPort: 7010, protocol: UDP}}]}}]\n\
        \x20 - toCIDR: [203.0.113.0/24]\n    icmps: [{{fields: [{{type: 8, family: IPv4}}]}}]\n"
    );
    let _agent = Agent::start(&world, &with(&egress(&elements))).unwrap();
    let tiefighter = world.pod(TIE);
    let other = SocketAddr::new(ip(ALLOWED), OTHER_ECHO_PORT);
    assert!(opens(tiefighter, echo(ALLOWED)) && !opens(tiefighter, other), "TCP by port");
    tiefighter.echo(other, 100, WITHIN).expect("UDP by range");
    assert_eq!(tiefighter.echo(echo(ALLOWED), 100, SILENT), Err(Failure::Timeout), "UDP outside the range");
    tiefighter.ping(ip(ALSO_ALLOWED), 56, WITHIN).expect("ICMP by type");
    assert_eq!(tiefighter.ping(ip(ALLOWED), 56, SILENT), Err(Failure::Timeout), "a port rule opens no ICMP");
    assert!(!opens(tiefighter, echo(ALSO_ALLOWED)), "an ICMP rule opens no port");
}

#[test]
fn holes_of_a_prefix_stay_shut() {
    let world = world(&[TIE]);
    let elements = "  - toCIDRSet: [{cidr: 198.51.100.0/24, except: [198.51.100.128/25, 198.51.100.9/32]}]\n";
    let _agent = Agent::start(&world, &with(&egress(elements))).unwrap();
    for (address, open) in [
        ("198.51.100.8", true),
        ("198.51.100.9", false),
        ("198.51.100.127", true),
        ("198.51.100.128", false),
        ("198.51.100.255", false),
        ("198.51.101.1", false),
    ] {
        assert_eq!(opens(world.pod(TIE), echo(address)), open, "{address}");
    }
}

#[test]
fn ingress_is_judged_by_namespace() {
    let world = world(&[TIE, DEATHSTAR, STRANGER]);
    let agent = Agent::start(&world, &with(&within_namespace())).unwrap();
    let deathstar = world.pod(DEATHSTAR);
    for to in [SocketAddr::new(deathstar.ipv4(), 80), SocketAddr::new(deathstar.ipv6(), 80)] {
        assert!(opens(world.pod(TIE), to), "of the same namespace");
        assert!(!opens(world.pod(STRANGER), to), "of another namespace");
        let call = move || async move { namegate_testbed::client::connect(to, SILENT).await.map(drop) };
        world.node().run(call()).expect("the node reaches its own pods");
        assert_eq!(world.outside().run(call()), Err(Failure::Timeout), "nobody from outside");
        let told = flow(&agent, deathstar, to.ip(), "denied");
        assert_eq!((&told["direction"], &told["reason"]), (&json!("ingress"), &json!("default-deny")));
    }
    assert_eq!(deathstar.log.all().iter().filter(|entry| entry.peer.ip() == world.pod(STRANGER).ipv4()).count(), 0);
}

#[test]
fn a_pod_that_is_added_later_is_guarded_from_then_on() {
    let world = world(&[TIE, XWING]);
    let mut options = with(&egress(TEST_NETS));
    options.unknown.push(XWING.to_owned());
    let agent = Agent::start(&world, &options).unwrap();
    let (tiefighter, xwing) = (world.pod(TIE), world.pod(XWING));
    assert!(opens(xwing, echo(DENIED)), "nobody knows it");
    assert!(!opens(tiefighter, echo(DENIED)));
    let before = revision(&agent);
    options.unknown.clear();
    agent.write_endpoints(&options).unwrap();
    settle(&agent, before);
    assert!(!opens(xwing, echo(DENIED)) && opens(xwing, echo(ALLOWED)));

    let before = revision(&agent);
    options.unknown.push(XWING.to_owned());
    agent.write_endpoints(&options).unwrap();
    settle(&agent, before);
    assert!(opens(xwing, echo(DENIED)), "let go again");
    assert!(!opens(tiefighter, echo(DENIED)));
}

#[test]
fn labels_that_change_bring_other_rules() {
    let world = world(&[TIE]);
    let rebels = document(
        "rebels",
        "  endpointSelector: {matchLabels: {org: alliance}}\n  egress:\n  - toCIDR: [192.0.2.0/24]\n",
    );
    let empire = document(
        "empire",
        "  endpointSelector: {matchLabels: {org: empire}}\n  egress:\n  - toCIDR: [198.51.100.0/24]\n",
    );
    let agent = Agent::start(&world, &with(&format!("{rebels}---\n{empire}"))).unwrap();
    let tiefighter = world.pod(TIE);
    let conversation = tiefighter.open(echo(ALLOWED), WITHIN).unwrap();
    assert!(!opens(tiefighter, echo(DENIED)));
    let before = revision(&agent);
    edit_endpoints(&agent, |file| entry(file, TIE)["labels"]["org"] = json!("alliance"));
    settle(&agent, before);
    assert!(opens(tiefighter, echo(DENIED)) && !opens(tiefighter, echo(ALLOWED)));
    assert_eq!(conversation.say(b"of another side", SILENT), Err(Failure::Timeout));

    let before = agent.policy().unwrap();
    edit_endpoints(&agent, |file| entry(file, TIE)["adresses"] = json!([]));
    let refused = agent.wait_for("the mistake to be told", |agent| {
        let policy = agent.policy()?;
        Ok((policy["diagnostics"] != before["diagnostics"]).then_some(policy))
    });
    let found = refused.unwrap()["diagnostics"][0].clone();
    assert!(text(&found["field"]).ends_with("adresses") && found["line"] == 1, "{found}");
    assert!(opens(tiefighter, echo(DENIED)), "the last good file holds");
}

/// Renames an interface of the node, which may stay up meanwhile.
fn rename(world: &World, from: &str, to: &str) {
    let mut ip = Command::new("ip");
    ip.args(["link", "set", "dev", from, "name", to]);
    let status = world.node().call(move || ip.status()).unwrap();
    assert!(status.success(), "renaming {from} to {to}");
}

#[test]
fn an_interface_that_comes_later_is_guarded_when_it_is_there() {
    let world = world(&[TIE, XWING]);
    let (interface, aside) = (world.pod(XWING).interface.clone(), "ng-aside");
    rename(&world, &interface, aside);
    let agent = Agent::start(&world, &with(&egress(TEST_NETS))).unwrap();
    let xwing = world.pod(XWING);
    let shown = endpoint(&agent, XWING);
    assert_eq!((&shown["state"], &shown["interface-index"]), (&json!("waiting"), &json!(null)));
    assert_eq!(agent.json("/v1/status").unwrap()["endpoints"]["waiting"], 1);
    assert!(opens(xwing, echo(DENIED)), "nothing to attach to");

    rename(&world, aside, &interface);
    let guarded = agent
        .wait_for("the endpoint to be guarded", |_| Ok((endpoint(&agent, XWING)["state"] == "guarded").then_some(())));
    guarded.unwrap();
    assert!(!opens(xwing, echo(DENIED)) && opens(xwing, echo(ALLOWED)));
}

#[test]
fn a_pod_may_not_send_from_an_address_of_another() {
    let world = world(&[TIE, XWING]);
    let agent = Agent::start(&world, &with(&egress(TEST_NETS))).unwrap();
    let (tiefighter, other) = (world.pod(TIE), world.pod(XWING).ipv4());
    // It knows its gateway's link address, and asks for it under no other address.
    assert!(opens(tiefighter, echo(ALSO_ALLOWED)));
    tiefighter.exec("ip", &["addr", "add", &format!("{other}/32"), "dev", "lo"]).unwrap();
    let sent = tiefighter.netns.run(async move {
        let socket = tokio::net::UdpSocket::bind(SocketAddr::new(other, 0)).await?;
        socket.send_to(b"as another", echo(ALLOWED)).await
    });
    sent.unwrap();
    let told = flow(&agent, tiefighter, ip(ALLOWED), "denied");
    assert_eq!(told["reason"], "spoofed-source", "{told}");
    assert_eq!(world.outside_log().count(ip(ALLOWED)), 0);
}
