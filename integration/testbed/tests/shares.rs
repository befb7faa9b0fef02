//! What one pod uses up, another still has: connections, descriptors, records of flows, through the real agent.
#![expect(clippy::unwrap_used, reason = "a test ends at the first surprise")]

#[expect(dead_code, reason = "each program of this folder uses its own part")]
mod common;

use std::net::{SocketAddr, UdpSocket};
use std::time::Instant;

use common::{TIE, WITHIN, XWING, document, egress, ip, opens, text, world};
use namegate_testbed::proto::rr::RecordType;
use namegate_testbed::{Agent, Options, Pod, Visit, World, client};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::signal::Signal;
use serde_json::Value;
use tokio::net::TcpStream;

/// One host of both families under limits on requests, and one without.
const LIMITED: [&str; 2] = ["142.250.74.78", "2a00:1450:400f:80d::200e"];
const FREE: &str = "198.51.100.20";
/// Denied to all.
const DENIED: &str = "203.0.113.99";

fn limited(elements: &str) -> String {
    egress(&format!(
        "  - toCIDR: [{}/32, '{}/128']\n    toPorts:\n    - ports: [{{port: '80', protocol: TCP}}]\n      rules: \
         {{http: [{{path: '/.*'}}]}}\n{elements}",
        LIMITED[0], LIMITED[1]
    ))
}

/// Opens as many connections under limits as wanted, of both families, and keeps them; those that are refused count too.
fn hold(pod: &Pod, wanted: usize) -> Vec<TcpStream> {
    let to = LIMITED.map(|address| SocketAddr::new(ip(address), 80));
    pod.netns.run(async move {
        let mut held = Vec::new();
        for at in 0..wanted {
            held.extend(client::connect(to[at % 2], WITHIN).await);
        }
        held
    })
}

fn get(pod: &Pod, url: &str) -> Visit {
    let (mut client, url) = (pod.client(), url.to_owned());
    client.within = WITHIN;
    pod.run(client, move |client| async move { client.get(&url).await })
}

fn urls() -> [String; 2] {
    [format!("http://{}/", LIMITED[0]), format!("http://[{}]/", LIMITED[1])]
}

/// What was refused to a pod at a bound.
fn refused(agent: &Agent<'_>, bound: &str, pod: &str) -> u64 {
    let status = agent.json("/v1/status").unwrap();
    let rows = status["refused"].as_array().unwrap();
    let row = rows.iter().find(|row| row["bound"] == bound && row["endpoint"] == pod);
    row.map_or(0, |row| row["count"].as_u64().unwrap())
}

/// Waits until the problems of health are, or are not, about what is refused at a share.
fn wait_health(agent: &Agent<'_>, about: &str, wanted: bool) {
    let seen = agent.wait_for("the health", |agent| {
        let health: Value = serde_json::from_slice(&agent.get("/v1/healthz")?.body)?;
        let problems = health["problems"].as_array().unwrap();
        let is_told = problems.iter().any(|problem| text(problem).contains(about));
        Ok((is_told == wanted).then_some(()))
    });
    seen.unwrap();
}

fn raise_own_limit() {
    let (_, most) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
    setrlimit(Resource::RLIMIT_NOFILE, most, most).unwrap();
}

#[test]
fn a_pod_of_two_families_leaves_connections_to_others() {
    raise_own_limit();
    let world = world(&[TIE, XWING]);
    let agent = Agent::start(&world, &Options::default().policies(&limited(""))).unwrap();
    let (hostile, honest) = (world.pod(TIE), world.pod(XWING));
    let held = hold(hostile, 16_384);
    for url in urls() {
        assert_eq!(get(honest, &url).status(), Some(200), "{url}: {:#}", agent.json("/v1/status").unwrap()["requests"]);
    }
    assert!(refused(&agent, "limits.l7Connections", TIE) > 0);
    assert_eq!(refused(&agent, "limits.l7Connections", XWING), 0);
    let metrics = agent.get("/metrics").unwrap().text();
    let counted = "namegate_refused_total{bound=\"limits.l7Connections\",endpoint=\"empire/tiefighter\"} ";
    assert!(metrics.contains(counted), "{metrics}");
    drop(held);
    let again = |_: &Agent<'_>| Ok((get(hostile, &urls()[0]).status() == Some(200)).then_some(()));
    agent.wait_for("places", again).unwrap();
    wait_health(&agent, "limits.l7Connections", false);
}

/// Connections to the resolver that say nothing.
fn hold_dns(world: &World, pod: &Pod, wanted: usize) -> Vec<TcpStream> {
    let resolver = SocketAddr::new(world.pod(common::DNS).ipv4(), 53);
    pod.netns.run(async move {
        let mut held = Vec::new();
        for _ in 0..wanted {
            held.extend(client::connect(resolver, WITHIN).await);
        }
        held
    })
}

#[test]
fn few_descriptors_are_enough_for_policies_dns_and_other_pods() {
    for descriptors in [256, 512] {
        let world = world(&[TIE, XWING]);
        let free = format!("  - toCIDR: [{FREE}/32]\n");
        let options = Options { descriptors: Some(descriptors), ..Options::default().policies(&limited(&free)) };
        let agent = Agent::start(&world, &options).unwrap();
        let (hostile, honest) = (world.pod(TIE), world.pod(XWING));
        let free = SocketAddr::new(ip(FREE), 80);
        assert!(opens(honest, free));
        let held = (hold(hostile, 300), hold_dns(&world, hostile, 300));

        // Policies are read and attached programs stay, whatever the pod holds.
        let applied = agent.apply(&limited("")).unwrap();
        assert!(applied.mistakes().is_empty(), "{:?}", applied.mistakes());
        assert!(!opens(honest, free) && !opens(hostile, free), "{descriptors}: the new policy holds");
        let status = agent.json("/v1/status").unwrap();
        assert_eq!(status["endpoints"]["guarded"], 3, "{status:#}");
        // DNS, new policies about new interfaces' look-ups, the API and the other pod's requests go on.
        for _ in 0..3 {
            assert!(honest.lookup("cilium.io", RecordType::A).is_ok(), "{descriptors}: DNS");
            for url in urls() {
                assert_eq!(get(honest, &url).status(), Some(200), "{descriptors}: {url}");
            }
        }
        assert!(refused(&agent, "limits.l7Connections", TIE) > 0);
        assert!(refused(&agent, "dns clients over TCP", TIE) > 0);
        assert!(!agent.log().contains("Too many open files"), "{descriptors}: {}", agent.log());
        assert!(agent.log().contains("fewer connections than `limits.l7Connections` fit"), "{}", agent.log());
        drop(held);
    }
}

#[test]
fn hardly_any_descriptors_are_a_problem() {
    let world = world(&[TIE]);
    let options = Options { descriptors: Some(150), ..Options::default().policies(&limited("")) };
    let started = Agent::start(&world, &options);
    let Err(error) = started else { panic!("the agent is healthy") };
    let told = format!("{error:#}");
    assert!(told.contains("raise RLIMIT_NOFILE") && told.contains("descriptors"), "{told}");
}

/// Sends datagrams that are denied, as fast as it goes.
fn flood(pod: &Pod, datagrams: u32) {
    let to = SocketAddr::new(ip(DENIED), 9);
    pod.netns.call(move || {
        let socket = UdpSocket::bind(("0.0.0.0", 0)).unwrap();
        for _ in 0..datagrams {
            // A full queue of the interface is no matter.
            let _ = socket.send_to(b"flood", to);
        }
    });
}

#[test]
fn denials_of_one_pod_hide_none_of_another() {
    let world = world(&[TIE, XWING]);
    let rest = document("default-deny", "  endpointSelector: {}\n  egress: [{toCIDR: [192.0.2.1/32]}]\n");
    let agent = Agent::start(&world, &Options::default().policies(&rest)).unwrap();
    let (hostile, honest) = (world.pod(TIE), world.pod(XWING));
    // The ring must hold the record of the other pod until the agent reads it.
    agent.signal(Signal::SIGSTOP).unwrap();
    let began = Instant::now();
    flood(hostile, 150_000);
    flood(honest, 1);
    let flooded = began.elapsed();
    agent.signal(Signal::SIGCONT).unwrap();
    let told = agent.wait_for("the denial", |agent| {
        let denials = agent.json("/v1/status")?["denials"].clone();
        let denials = denials.as_array().unwrap();
        Ok(denials.iter().any(|flow| flow["endpoint"]["name"] == "xwing").then_some(denials.len()))
    });
    assert!(told.unwrap() > 1, "{flooded:?}");
    // Flows that came while the agent ran are shared too.
    flood(hostile, 20_000);
    flood(honest, 1);
    flood(hostile, 20_000);
    let (_, shown, _) = common::namegate(&agent, &["status"]);
    assert!(shown.contains("empire/xwing"), "{shown}");
    agent.wait_for("the count", |agent| Ok((refused(agent, "records of flows", TIE) > 0).then_some(()))).unwrap();
    assert_eq!(refused(&agent, "records of flows", XWING), 0);
    wait_health(&agent, "records of flows", false);
}
