//! The command line against a running agent: both forms of output, and the exit codes.
#![expect(clippy::unwrap_used, reason = "a test ends at the first surprise")]

#[expect(dead_code, reason = "each program of this folder uses its own part")]
mod common;

use common::{ALLOWED_TEST, TIE, echo, egress, flow, ip, namegate, opens, text, world};
use namegate_testbed::proto::rr::RecordType;
use namegate_testbed::{Agent, Options, World};
use serde_json::{Value, json};

const OPEN: &str = "198.51.100.80";
const SHUT: &str = "198.51.100.81";

/// An agent with one learned name, one allowed and one denied flow.
fn busy(world: &World) -> Agent<'_> {
    world.zone().set_addresses("api.allowed.test", 60, &[ip(OPEN)]);
    let agent = Agent::start(world, &Options::default().policies(&egress(ALLOWED_TEST))).unwrap();
    let tiefighter = world.pod(TIE);
    tiefighter.lookup("api.allowed.test", RecordType::A).unwrap();
    assert!(opens(tiefighter, echo(OPEN)) && !opens(tiefighter, echo(SHUT)));
    flow(&agent, tiefighter, ip(SHUT), "denied");
    agent
}

/// Standard output of a verb that ends well.
fn said(agent: &Agent<'_>, arguments: &[&str]) -> String {
    let (code, out, err) = namegate(agent, arguments);
    assert_eq!((code, err.as_str()), (Some(0), ""), "{arguments:?}");
    assert!(!out.contains('\u{1b}'), "no colour where there is no terminal: {out:?}");
    out
}

fn json_of(agent: &Agent<'_>, arguments: &[&str]) -> Value {
    serde_json::from_str(&said(agent, &[arguments, &["-o", "json"]].concat())).unwrap()
}

#[test]
fn status_shows_what_is_guarded_counted_and_denied() {
    let world = world(&[TIE]);
    let agent = busy(&world);
    let page = said(&agent, &["status"]);
    for part in [
        "enforcing (egress and ingress)",
        "Endpoints  2 guarded, 0 waiting for their interface, 0 failed",
        "Names      1 learned, 1 addresses open",
        "ADDRESSES",
        "limits.policyRows",
        "no rule allows it",
        "empire/tiefighter -> 198.51.100.81 7/TCP",
    ] {
        assert!(page.contains(part), "no `{part}` in\n{page}");
    }
    let status = json_of(&agent, &["status"]);
    assert_eq!(status["endpoints"], json!({"guarded": 2, "waiting": 0, "failed": 0}));
    assert_eq!(status["names"], json!({"names": 1, "addresses": 1}));
    assert_eq!(status["denials"][0]["destination"], SHUT);
    assert_eq!(status["diagnostics"], json!([]));
}

#[test]
fn monitor_tells_flows_in_both_forms() {
    let world = world(&[TIE]);
    let agent = busy(&world);
    let past = ["monitor", "--no-follow", "--last", "100"];
    let lines = said(&agent, &past);
    let denied: Vec<_> = lines.lines().filter(|line| line.contains(SHUT)).collect();
    assert!(!denied.is_empty(), "{lines}");
    let end = "denied     empire/tiefighter -> 198.51.100.81 7/TCP: no rule allows it";
    assert!(denied.iter().all(|line| line.ends_with(end)), "{denied:?}");
    let by_name = "allowed    empire/tiefighter -> api.allowed.test (198.51.100.80) 7/TCP: a rule allows it";
    assert!(lines.contains(by_name), "{lines}");

    let flows = said(&agent, &[&past[..], &["--denied", "--endpoint", TIE, "-o", "json"]].concat());
    let flows: Vec<Value> = flows.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert!(flows.iter().all(|flow| flow["verdict"] == "denied"), "{flows:?}");
    assert!(flows.iter().any(|flow| flow["destination"] == SHUT), "{flows:?}");
    let (code, out, _) = namegate(&agent, &["monitor", "--no-follow", "--last", "9", "-e", "empire/nobody"]);
    assert_eq!((code, out.as_str()), (Some(0), ""), "no flow of an endpoint that never was");
}

#[test]
fn learned_names_are_listed_named_and_cleaned() {
    let world = world(&[TIE]);
    let agent = busy(&world);
    let table = said(&agent, &["fqdn", "cache", "list"]);
    let mut lines = table.lines();
    let head: Vec<_> = lines.next().unwrap().split_whitespace().collect();
    assert_eq!(head, ["Endpoint", "Source", "FQDN", "TTL", "ExpirationTime", "IPs"]);
    let row: Vec<_> = lines.next().unwrap().split_whitespace().collect();
    assert_eq!((&row[..4], row[5]), (&["empire/tiefighter", "lookup", "api.allowed.test", "60"][..], OPEN));
    assert_eq!(json_of(&agent, &["fqdn", "cache", "list", "-p", "*.allowed.test"])[0]["ips"], json!([OPEN]));
    assert_eq!(json_of(&agent, &["fqdn", "cache", "list", "--cidr", "203.0.113.0/24"]), json!([]));

    let names = said(&agent, &["fqdn", "cache", "names"]);
    assert!(names.contains("*.allowed.test") && names.contains("api.allowed.test"), "{names}");
    let selectors = json_of(&agent, &["fqdn", "cache", "names"]);
    assert_eq!(text(&selectors["selectors"][0]["rules"][0]), "empire/dns-and-more spec.egress[1]");

    let (code, _, err) = namegate(&agent, &["fqdn", "cache", "clean"]);
    assert_eq!(code, Some(2), "without a terminal it must be said");
    assert!(err.contains("--yes"), "{err}");
    assert_eq!(said(&agent, &["fqdn", "cache", "clean", "--yes"]), "forgot 1 names with 1 addresses\n");
    assert_eq!(said(&agent, &["fqdn", "cache", "clean"]), "nothing to forget\n");
    assert!(!opens(world.pod(TIE), echo(OPEN)), "closed at once");
    let (code, _, err) = namegate(&agent, &["fqdn", "cache", "list", "-e", "empire/nobody"]);
    assert_eq!(code, Some(2));
    assert!(err.contains("empire/nobody"), "{err}");
}

#[test]
fn policies_are_validated_without_an_agent() {
    let world = world(&[TIE]);
    let agent = Agent::start(&world, &Options::default()).unwrap();
    let write = |name: &str, text: &str| {
        let path = agent.path(name);
        std::fs::write(&path, text).unwrap();
        path.to_str().unwrap().to_owned()
    };
    let good = write("good.yaml", &egress(ALLOWED_TEST));
    let bad = write("bad.yaml", &egress("  - toFQDN: [{matchName: cilium.io}]\n"));
    let absent = agent.path("absent.yaml").to_str().unwrap().to_owned();
    for (files, want, part) in [
        (&[&good][..], 0, "1 documents without a mistake, 0 errors"),
        (&[&bad], 1, "toFQDN"),
        (&[&good, &bad], 1, "bad.yaml"),
        (&[&absent], 2, "absent.yaml"),
    ] {
        let files: Vec<&str> = files.iter().map(|file| file.as_str()).collect();
        let (code, out, err) = namegate(&agent, &[&["policy", "validate"], &files[..]].concat());
        assert_eq!(code, Some(want), "{files:?}: {out}{err}");
        assert!(out.contains(part) || err.contains(part), "{files:?}: no `{part}` in {out}{err}");
    }
    let (_, out, _) = namegate(&agent, &["policy", "validate", "-o", "json", &bad]);
    let found: Value = serde_json::from_str(&out).unwrap();
    assert_eq!(found["diagnostics"][0]["line"], 8, "{found:#}");
    let (_, out, _) = namegate(&agent, &["policy", "validate", "-o", "sarif", &bad]);
    let found: Value = serde_json::from_str(&out).unwrap();
    assert_eq!(found["runs"][0]["results"][0]["level"], "error", "{found:#}");
}

#[test]
fn metrics_and_the_description_of_the_api_are_served() {
    let world = world(&[TIE]);
    let agent = busy(&world);
    let metrics = agent.get("/metrics").unwrap().text();
    for line in ["namegate_fqdn_names 1", "namegate_endpoints{state=\"guarded\"} 2", "# EOF"] {
        assert!(metrics.lines().any(|one| one == line), "no `{line}` in\n{metrics}");
    }
    assert!(metrics.contains("namegate_packets_total{"), "{metrics}");
    let document = agent.json("/v1/openapi.json").unwrap();
    assert!(document["paths"]["/v1/fqdn/cache"]["delete"].is_object(), "{document:#}");
}
