//! Requests that servers read in different ways, through the real agent: what is judged is what the server gets, and the
//! model of `policy trace` says the same.
#![expect(clippy::unwrap_used, reason = "a test ends at the first surprise")]

#[expect(dead_code, reason = "each program of this folder uses its own part")]
mod common;

use std::net::SocketAddr;

use common::{TIE, WITHIN, egress, ip, namegate, world};
use namegate_testbed::{Agent, Options, Pod, client};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

const SERVER: &str = "192.0.2.73";

/// Limits on what goes to the server.
fn limited(rules: &str) -> String {
    egress(&format!(
        "  - toCIDR: [{SERVER}/32]\n    toPorts:\n    - ports: [{{port: '80', protocol: TCP}}]\n      \
         rules: {{http: [{{{rules}}}]}}\n"
    ))
}

/// Sends octets, says that no more come, and gives the status of the first answer.
fn ask(pod: &Pod, octets: &[u8]) -> String {
    let octets = octets.to_vec();
    pod.netns.run(async move {
        let mut stream = client::connect(SocketAddr::new(ip(SERVER), 80), WITHIN).await.unwrap();
        stream.write_all(&octets).await.unwrap();
        let mut heard = Vec::new();
        // The end may come by a reset.
        let _ = tokio::time::timeout(WITHIN, stream.read_to_end(&mut heard)).await;
        String::from_utf8_lossy(&heard).split(' ').nth(1).unwrap_or_default().to_owned()
    })
}

#[test]
fn the_proxy_and_the_model_read_paths_alike() {
    let world = world(&[TIE]);
    let policy = limited("path: '/v1|/public/.*'");
    let agent = Agent::start(&world, &Options::default().policies(&policy)).unwrap();
    let file = agent.path("limited.yaml");
    std::fs::write(&file, &policy).unwrap();
    let config = agent.path("namegate.yaml");
    for (path, want) in [
        ("/v1", "200"),
        ("/public/../admin", "403"),
        ("/public/%2e%2e/admin", "403"),
        ("/public;x=/admin", "403"),
        ("/v1;v=1", "403"),
        ("/public/..;/admin", "400"),
        ("/public/..;x=1/admin", "400"),
        ("/public/%2e%2e;/admin", "400"),
        ("/public/..%3b/admin", "400"),
        ("/public/;/../admin", "400"),
        ("/public/%252e%252e/admin", "400"),
        ("/public/%c0%ae%c0%ae/admin", "400"),
        ("/public/%2e%2e%2fadmin", "400"),
        ("/public/x%3f", "400"),
        ("/public/#/../admin", "400"),
        ("/public/é", "400"),
        ("/x/..//%76%31", "200"),
    ] {
        let request = format!("GET {path} HTTP/1.1\r\nHost: a.io\r\nConnection: close\r\n\r\n");
        assert_eq!(ask(world.pod(TIE), request.as_bytes()), want, "{path}");
        let (config, file, http) = (config.to_str().unwrap(), file.to_str().unwrap(), format!("GET {path}"));
        let trace = ["policy", "trace", "--from", TIE, "--to", SERVER, "--config", config, "--policies", file];
        let (code, out, err) = namegate(&agent, &[&trace[..], &["--http", &http]].concat());
        assert_eq!(code, Some(i32::from(want != "200")), "{path}: {out}{err}");
        assert_eq!(out.contains("note: the proxy answers 400"), want == "400", "{path}: {out}");
    }
}

#[test]
fn a_demanded_field_is_one_that_the_server_gets() {
    let world = world(&[TIE]);
    let _agent = Agent::start(&world, &Options::default().policies(&limited("headers: ['X-Limit 1']"))).unwrap();
    for (fields, want) in [
        ("X-Limit: 1\r\n", "200"),
        ("", "403"),
        ("X-Limit: 1\r\nConnection: close, X-Limit\r\n", "403"),
        ("X-Limit: 1\r\nX-Limit: 2\r\n", "403"),
        ("X-Limit: 1\r\nX_Limit: 2\r\n", "403"),
        ("X-Limit: 1\r\nConnection: Host\r\n", "400"),
        ("X-Limit:\r\n 1\r\n", "400"),
    ] {
        let request = format!("GET /v1 HTTP/1.1\r\nHost: a.io\r\n{fields}\r\n");
        let closing = request.replace("Host", "X-Last: 1\r\nHost");
        assert_eq!(ask(world.pod(TIE), closing.as_bytes()), want, "{fields:?}");
    }
}

/// h2 writes a line with each acknowledgement of a PING that was not sent.
#[test]
fn a_client_writes_no_flood_into_the_log() {
    let world = world(&[TIE]);
    let agent = Agent::start(&world, &Options::default().policies(&limited("path: /v1"))).unwrap();
    let mut octets = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0".to_vec();
    for _ in 0..3_000 {
        octets.extend(b"\0\0\x08\x06\x01\0\0\0\0unasked!");
    }
    // What ends the connection: a frame of data on stream 0.
    octets.extend(b"\0\0\x01\0\0\0\0\0\0x");
    ask(world.pod(TIE), &octets);
    let log = agent.log();
    let lines = log.lines().filter(|line| line.contains("PING")).count();
    assert!((1..=100).contains(&lines), "{lines} lines");
}
