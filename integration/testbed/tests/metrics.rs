//! Metrics over TCP, as a collector in the network asks for them.

#[expect(dead_code, reason = "each program of this folder uses its own part")]
mod common;

use std::net::TcpListener;

use common::{TIE, world};
use namegate_testbed::{Agent, Options};
use serde_json::json;

const PORT: u16 = 9_960;

fn options(listen: &str) -> Options {
    Options::default().with(json!({"metrics": {"listen": listen}}))
}

#[test]
fn a_pod_reads_metrics_and_nothing_else() {
    let world = world(&[TIE]);
    let agent = Agent::start(&world, &options("[::]:9960")).unwrap();
    let tiefighter = world.pod(TIE);
    for address in &world.spec().nodes[0].ips {
        let host = if address.is_ipv6() { format!("[{address}]") } else { address.to_string() };
        let page = tiefighter.http_get(&format!("http://{host}:{PORT}/metrics")).outcome.unwrap();
        assert_eq!(page.status, 200);
        assert!(page.body.contains("\nnamegate_endpoints{state=\"guarded\"} 2\n"), "{}", page.body);
        for path in ["v1/status", "v1/fqdn/cache", "v1/healthz", ""] {
            assert_eq!(tiefighter.http_get(&format!("http://{host}:{PORT}/{path}")).status(), Some(404), "{path}");
        }
    }
    assert!(agent.log().contains("metrics are served over TCP"), "{}", agent.log());
}

#[test]
fn without_the_setting_there_is_no_port() {
    let world = world(&[TIE]);
    let _agent = Agent::start(&world, &options("off")).unwrap();
    let node = world.node();
    let refused = node.call(|| std::net::TcpStream::connect(("127.0.0.1", PORT)).unwrap_err());
    assert_eq!(refused.kind(), std::io::ErrorKind::ConnectionRefused);
}

#[test]
fn a_taken_port_ends_the_agent_before_it_touches_anything() {
    let world = world(&[TIE]);
    let taken = world.node().call(|| TcpListener::bind(("0.0.0.0", PORT)).unwrap());
    let Err(error) = Agent::start(&world, &options("0.0.0.0:9960")) else { panic!("the agent runs") };
    let told = format!("{error:#}");
    assert!(told.contains("another program listens on 0.0.0.0:9960 already"), "{told}");
    assert!(told.contains("set another `metrics.listen`"), "{told}");
    drop(taken);
    Agent::start(&world, &options("0.0.0.0:9960")).unwrap();
}
