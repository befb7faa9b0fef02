//! The port for metrics, before a stand-in for the gate.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

#[expect(dead_code, unused_imports, reason = "each program of this folder uses its own part")]
mod common;

use std::{net::SocketAddr, sync::Arc, time::Duration};

use common::StandIn;
use namegate_api::{MetricsPort, PortError};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpSocket, TcpStream},
    sync::oneshot,
    task::JoinHandle,
    time::timeout,
};

/// Longer than anything may take.
const PATIENCE: Duration = Duration::from_secs(30);

struct World {
    address: SocketAddr,
    stop: oneshot::Sender<()>,
    serving: JoinHandle<()>,
}

impl World {
    fn start() -> Self {
        let port = MetricsPort::bind(([127, 0, 0, 1], 0).into()).unwrap();
        let (address, (stop, stopped)) = (port.address(), oneshot::channel::<()>());
        let serving = tokio::spawn(port.serve(Arc::new(StandIn::default()), async {
            let _ = stopped.await;
        }));
        Self { address, stop, serving }
    }

    /// Sends octets and reads until the port closes the connection.
    async fn send(&self, octets: &[u8]) -> String {
        let mut stream = TcpStream::connect(self.address).await.unwrap();
        stream.write_all(octets).await.unwrap();
        rest(stream).await
    }

    async fn request(&self, method: &str, path: &str) -> String {
        self.send(format!("{method} {path} HTTP/1.1\r\nhost: node\r\n\r\n").as_bytes()).await
    }
}

/// What comes until the end, also where that is a reset.
async fn rest(mut stream: TcpStream) -> String {
    let mut octets = Vec::new();
    let _ = timeout(PATIENCE, stream.read_to_end(&mut octets)).await.expect("the connection ends");
    String::from_utf8(octets).unwrap()
}

fn status(response: &str) -> &str {
    response.split(' ').nth(1).unwrap_or("nothing")
}

#[tokio::test]
async fn metrics_and_nothing_else_are_served() {
    let world = World::start();
    let response = world.request("GET", "/metrics").await;
    assert_eq!(status(&response), "200");
    assert!(response.contains("\r\nconnection: close\r\n"), "{response}");
    assert!(response.contains("\r\ncontent-type: application/openmetrics-text; version=1.0.0"), "{response}");
    assert!(response.contains("\nnamegate_endpoints{state=\"guarded\"} 1\n"), "{response}");
    assert!(response.ends_with("# EOF\n"), "{response}");
    let document = serde_json::to_value(namegate_api::openapi()).unwrap();
    let paths = document["paths"].as_object().unwrap().keys().map(String::as_str);
    for path in paths.chain(["/", "/metrics/", "/Metrics", "//metrics", "/v1/openapi.json", "/v1/../metrics"]) {
        if path == "/metrics" {
            continue;
        }
        for method in ["GET", "DELETE", "PUT"] {
            let response = world.request(method, path).await;
            assert_eq!(status(&response), "404", "{method} {path}");
            assert!(response.contains("this port has `/metrics` alone"), "{response}");
        }
    }
    for method in ["DELETE", "PUT", "POST", "PATCH", "OPTIONS", "TRACE", "NONSENSE"] {
        assert_eq!(status(&world.request(method, "/metrics").await), "405", "{method}");
    }
    assert_eq!(status(&world.request("GET", "/metrics?name=x").await), "400");
}

#[tokio::test]
async fn bad_requests_harm_nobody() {
    let world = World::start();
    let long = format!("GET /metrics HTTP/1.1\r\nhost: x\r\nx: {}\r\n\r\n", "y".repeat(1 << 20));
    for (octets, want) in [
        (&b"\0\x01\x02\xff\r\n\r\n"[..], "400"),
        (b"GET /metrics\r\n\r\n", "400"),
        (b"GET /metrics HTTP/3.0\r\n\r\n", "400"),
        (b"GET /metrics HTTP/1.1\r\ncontent-length: 70000\r\n\r\n", "413"),
        (b"GET /metrics HTTP/1.1\r\ncontent-length: x\r\n\r\n", "400"),
        (b"\x16\x03\x01\x02\0\x01\0\x01\xfc\x03\x03", "400"),
        // HTTP/2 without a word before.
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", "nothing"),
    ] {
        assert_eq!(status(&world.send(octets).await), want, "{:?}", String::from_utf8_lossy(octets));
    }
    // The writing may fail before all is sent.
    let mut stream = TcpStream::connect(world.address).await.unwrap();
    let _ = stream.write_all(long.as_bytes()).await;
    drop(stream);
    assert_eq!(status(&world.request("GET", "/metrics").await), "200");
}

/// A connection from another address of this machine.
async fn connect_from(own: [u8; 4], to: SocketAddr) -> TcpStream {
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind((own, 0).into()).unwrap();
    socket.connect(to).await.unwrap()
}

/// Whether the other side keeps a connection that was given nothing.
async fn is_kept(stream: &mut TcpStream) -> bool {
    let mut octet = [0];
    tokio::select! {
        biased;
        _ = stream.read(&mut octet) => false,
        () = tokio::task::yield_now() => true,
    }
}

#[tokio::test]
async fn who_is_silent_takes_no_place_of_others_and_is_let_go() {
    let world = World::start();
    let mut silent = Vec::new();
    for at in 0..40 {
        let mut stream = connect_from([127, 0, 0, 2], world.address).await;
        if at % 2 == 0 {
            // Those beyond the client's share are closed at once.
            let _ = stream.write_all(b"GET /metr").await;
        }
        silent.push(stream);
    }
    assert_eq!(status(&world.request("GET", "/metrics").await), "200");
    let mut kept = 0;
    for stream in &mut silent {
        kept += usize::from(is_kept(stream).await);
    }
    assert_eq!(kept, 8, "half of the places, and others did not have to wait for them");
    for stream in silent {
        assert!(["nothing", "408"].contains(&status(&rest(stream).await)));
    }
    assert_eq!(status(&world.request("GET", "/metrics").await), "200");
}

#[tokio::test]
async fn one_connection_has_one_request() {
    let world = World::start();
    let one = "GET /metrics HTTP/1.1\r\nhost: node\r\n\r\n";
    let responses = world.send(one.repeat(50).as_bytes()).await;
    assert_eq!(responses.matches("HTTP/1.1 200").count(), 1);
}

#[tokio::test]
async fn a_taken_port_is_told_with_what_to_do() {
    let world = World::start();
    let error = MetricsPort::bind(world.address).unwrap_err();
    assert!(matches!(error, PortError::InUse(address) if address == world.address));
    assert!(error.to_string().contains("another `metrics.listen`"), "{error}");
    // RFC 5737: nobody has it.
    let error = MetricsPort::bind(([203, 0, 113, 1], 9960).into()).unwrap_err();
    assert!(matches!(error, PortError::Listen { .. }), "{error}");
    world.stop.send(()).unwrap();
    world.serving.await.unwrap();
    MetricsPort::bind(world.address).unwrap();
}
