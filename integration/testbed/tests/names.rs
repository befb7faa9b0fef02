//! Who a name opens an address for, how denials are told, and how learned names are listed and forgotten.

#[expect(dead_code, reason = "each program of this folder uses its own part")]
mod common;

use common::{ALLOWED_TEST, TIE, XWING, cached_names, echo, egress, flow, ip, namegate, opens, text, world};
use namegate_testbed::proto::rr::RecordType;
use namegate_testbed::{Agent, Options};
use serde_json::{Value, json};

/// The address of google.com in the world of the article.
const GOOGLE: &str = "142.250.74.78";
const NAME: &str = "cdn.allowed.test";

fn options() -> Options {
    Options::default().policies(&egress(ALLOWED_TEST))
}

#[test]
fn an_address_opens_for_the_endpoint_that_asked_and_by_an_allowed_name_only() {
    let world = world(&[TIE, XWING]);
    world.zone().set_addresses(NAME, 60, &[ip(GOOGLE)]);
    let _agent = Agent::start(&world, &options()).unwrap();
    let (tiefighter, xwing) = (world.pod(TIE), world.pod(XWING));

    let google = tiefighter.lookup("google.com", RecordType::A).expect("every name may be asked for");
    assert_eq!(google.addresses, [ip(GOOGLE)]);
    assert!(!opens(tiefighter, echo(GOOGLE)), "google.com is no allowed name");

    tiefighter.lookup(NAME, RecordType::A).unwrap();
    assert!(opens(tiefighter, echo(GOOGLE)), "the same address by an allowed name");
    assert!(!opens(xwing, echo(GOOGLE)), "another pod under the same policy did not ask");
    xwing.lookup(NAME, RecordType::A).unwrap();
    assert!(opens(xwing, echo(GOOGLE)), "now it did");
}

#[test]
fn by_setting_an_address_opens_for_the_node() {
    let world = world(&[TIE, XWING]);
    world.zone().set_addresses(NAME, 60, &[ip(GOOGLE)]);
    let _agent = Agent::start(&world, &options().with(json!({"dns": {"scope": "node"}}))).unwrap();
    assert!(!opens(world.pod(XWING), echo(GOOGLE)));
    world.pod(TIE).lookup(NAME, RecordType::A).unwrap();
    assert!(opens(world.pod(TIE), echo(GOOGLE)));
    assert!(opens(world.pod(XWING), echo(GOOGLE)));
}

#[test]
fn a_denial_is_told_everywhere_with_its_reason() {
    let world = world(&[TIE]);
    let agent = Agent::start(&world, &options()).unwrap();
    let tiefighter = world.pod(TIE);
    assert!(tiefighter.http_get("http://google.com/").timed_out());

    let told = flow(&agent, tiefighter, ip(GOOGLE), "denied");
    assert_eq!((&told["reason"], &told["reason-text"]), (&json!("default-deny"), &json!("no rule allows it")));
    assert_eq!((&told["direction"], &told["protocol"]), (&json!("egress"), &json!("TCP")));
    assert_eq!(told["destination-port"], 80);
    assert_eq!(told["source"], tiefighter.ipv4().to_string());
    assert_eq!(told["endpoint"]["name"], "tiefighter");
    assert!(agent.denials(tiefighter).unwrap().contains(&told));

    let status = agent.json("/v1/status").unwrap();
    assert!(status["denials"].as_array().unwrap().contains(&told), "{status:#}");
    let counted = |counter: &Value| counter["reason"] == "default-deny" && counter["direction"] == "egress";
    assert!(status["counters"].as_array().unwrap().iter().any(counted), "{status:#}");

    let monitor = ["monitor", "--denied", "-e", TIE, "--no-follow", "--last", "1000", "-o", "json"];
    let (code, out, err) = namegate(&agent, &monitor);
    assert_eq!(code, Some(0), "{err}");
    let lines: Vec<Value> = out.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert!(lines.contains(&told), "{out}");
}

#[test]
fn learned_names_are_listed_and_forgotten_at_once() {
    let world = world(&[TIE, XWING]);
    let (one, two) = ("198.51.100.1", "203.0.113.2");
    world.zone().set_addresses("one.allowed.test", 60, &[ip(one)]);
    world.zone().set_addresses("two.allowed.test", 60, &[ip(two)]);
    let agent = Agent::start(&world, &options()).unwrap();
    let (tiefighter, xwing) = (world.pod(TIE), world.pod(XWING));
    for (pod, name) in [(tiefighter, "one.allowed.test"), (tiefighter, "two.allowed.test"), (xwing, "one.allowed.test")]
    {
        pod.lookup(name, RecordType::A).unwrap();
    }

    for (query, want) in [
        ("", &["one.allowed.test", "two.allowed.test"][..]),
        ("?matchpattern=ONE.allowed.test.", &["one.allowed.test"]),
        ("?matchpattern=%2A.allowed.test&cidr=203.0.113.0/24", &["two.allowed.test"]),
        ("?matchpattern=nobody.asked.test", &[]),
        ("?source=connection", &[]),
        ("/empire%2Fxwing", &["one.allowed.test"]),
        ("/xwing?cidr=203.0.113.2", &[]),
    ] {
        assert_eq!(cached_names(&agent, query), want, "{query}");
    }
    for (path, status) in [
        ("/v1/fqdn/cache/nobody", 404),
        ("/v1/fqdn/cache?matchpattern=a..b", 400),
        ("/v1/fqdn/cache?cidr=one.allowed.test", 400),
        ("/v1/fqdn/cache?pattern=one.allowed.test", 400),
    ] {
        assert_eq!(agent.get(path).unwrap().status, status, "{path}");
    }

    assert!(opens(tiefighter, echo(one)) && opens(tiefighter, echo(two)) && opens(xwing, echo(one)));
    let (code, out, err) =
        namegate(&agent, &["fqdn", "cache", "clean", "-e", TIE, "-p", "one.allowed.test", "--yes", "-o", "json"]);
    assert_eq!(code, Some(0), "{err}");
    assert_eq!(serde_json::from_str::<Value>(&out).unwrap(), json!({"names": 1, "addresses": 1}));
    assert!(!opens(tiefighter, echo(one)), "closed at once");
    assert!(opens(tiefighter, echo(two)) && opens(xwing, echo(one)), "nothing else is closed");

    let gone = agent.delete("/v1/fqdn/cache?matchpattern=%2A.allowed.test").unwrap();
    assert_eq!((gone.status, gone.text().trim()), (200, r#"{"names":2,"addresses":2}"#));
    assert!(!opens(tiefighter, echo(two)) && !opens(xwing, echo(one)));
    assert!(cached_names(&agent, "").is_empty());
    tiefighter.lookup("one.allowed.test", RecordType::A).unwrap();
    assert!(opens(tiefighter, echo(one)), "a new answer opens again");
}

#[test]
fn an_entry_tells_what_cilium_tells() {
    let world = world(&[TIE]);
    world.zone().set_addresses("one.allowed.test", 60, &[ip("198.51.100.1"), ip("198.51.100.2")]);
    let agent = Agent::start(&world, &options()).unwrap();
    world.pod(TIE).lookup("One.Allowed.test", RecordType::A).unwrap();
    let entries = agent.json("/v1/fqdn/cache").unwrap();
    let entry = &entries[0];
    assert_eq!(text(&entry["fqdn"]), "one.allowed.test");
    assert_eq!(entry["ips"].as_array().unwrap().len(), 2);
    assert_eq!((&entry["ttl"], &entry["source"]), (&json!(60), &json!("lookup")));
    assert_eq!(entry["endpoint-id"], common::endpoint(&agent, TIE)["id"]);
    assert!(text(&entry["expiration-time"]) > text(&entry["lookup-time"]), "{entry}");

    let names = agent.json("/v1/fqdn/names").unwrap();
    assert_eq!(names["selectors"][0]["selector"], "*.allowed.test");
    assert_eq!(names["selectors"][0]["names"][0]["fqdn"], "one.allowed.test");
}

#[test]
fn an_address_of_a_pod_is_never_opened_by_a_name() {
    let world = world(&[TIE, XWING]);
    let options = options();
    let xwing = world.pod(XWING).ipv4();
    world.zone().set_addresses("rebind.allowed.test", 60, &[xwing]);
    let agent = Agent::start(&world, &options).unwrap();
    let visit = world.pod(TIE).http_get("http://rebind.allowed.test/");
    assert!(visit.timed_out(), "{:?}", visit.outcome);
    assert_eq!(visit.address, Some(xwing));
    let told = flow(&agent, world.pod(TIE), xwing, "denied");
    assert_eq!(told["peer"]["name"], XWING);
    let node = world.spec().nodes[0].ips[0];
    world.zone().set_addresses("node.allowed.test", 60, &[node]);
    assert!(world.pod(TIE).http_get("http://node.allowed.test/").timed_out(), "nor one of the node");
}
