//! What the proxy keeps for connections has a bound, whatever clients do not read or do not finish, and others go on.
#![expect(clippy::unwrap_used, reason = "a test ends at the first surprise")]

use std::{
    convert::Infallible,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    time::{Duration, Instant},
};

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::{Request, Response, body::Incoming, client::conn::http1, service::service_fn};
use hyper_util::{
    rt::{TokioExecutor, TokioIo},
    server::conn::auto,
};
use namegate_config::{reference::Limits, rule::Direction};
use namegate_l7_proxy::{Access, Backend, Config, ConnectionPolicy, Match, Proxy, Question};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpSocket, TcpStream},
    time::sleep,
};

const WITHIN: Duration = Duration::from_secs(20);
const MEBIBYTE: usize = 1 << 20;
const BYTES_MAX: usize = 16 * MEBIBYTE;
/// What a client of HTTP/2 begins with.
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// Above every buffer on the way.
const BIG: usize = 8 * MEBIBYTE;

#[derive(Clone)]
struct Open;

impl Backend for Open {
    async fn connection_policy(&self, _: Question) -> Option<ConnectionPolicy> {
        let sides = vec![(Direction::Ingress, Limits::Free)];
        let names = std::sync::Arc::default();
        Some(ConnectionPolicy { sides, keeps_source: false, audit: false, bound: false, binding: Match::Good, names })
    }

    fn revision(&self) -> u64 {
        0
    }

    fn record(&self, _: Access) {}
}

async fn answer(request: Request<Incoming>) -> Result<Response<Full<Bytes>>, Infallible> {
    if request.uri().path() == "/big" {
        static BODY: std::sync::LazyLock<Bytes> = std::sync::LazyLock::new(|| vec![b'x'; BIG].into());
        return Ok(Response::new(Full::from(BODY.clone())));
    }
    if request.uri().path() == "/head" {
        let response = (0..12).fold(Response::builder(), |response, _| response.header("x", "x".repeat(4_096)));
        return Ok(response.body(Full::default()).unwrap());
    }
    Ok(Response::new(Full::from("small")))
}

/// A proxy in front of a server, on a thread of its own.
async fn start(connections_max: usize) -> Proxy {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let fixed_server = Some(listener.local_addr().unwrap());
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let server = auto::Builder::new(TokioExecutor::new());
                let _ = server.serve_connection(TokioIo::new(stream), service_fn(answer)).await;
            });
        }
    });
    let config = Config { fixed_server, bytes_max: BYTES_MAX, connections_max, ..Config::default() };
    Proxy::start(&config, Open).unwrap()
}

/// A connection from one of this machine's addresses: each is a client of its own.
async fn try_connect(last: u8, proxy: &Proxy) -> std::io::Result<TcpStream> {
    let socket = TcpSocket::new_v4()?;
    socket.bind(SocketAddr::new(IpAddr::V4(Ipv4Addr::new(127, 0, 0, last)), 0))?;
    socket.connect(SocketAddr::from(([127, 0, 0, 1], proxy.port()))).await
}

async fn connect(last: u8, proxy: &Proxy) -> TcpStream {
    try_connect(last, proxy).await.unwrap()
}

fn counted(proxy: &Proxy, what: &str) -> u64 {
    proxy.counters().iter().find(|(word, _)| *word == what).unwrap().1
}

/// A whole request of another client.
async fn honest(proxy: &Proxy) {
    let stream = connect(200, proxy).await;
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.unwrap();
    tokio::spawn(connection);
    let request = Request::get("/").header("host", "a.test").body(Full::<Bytes>::default()).unwrap();
    let response = sender.send_request(request).await.unwrap();
    assert_eq!(response.into_body().collect().await.unwrap().to_bytes(), "small");
}

/// Waits until connections gave way; what is kept has its bound all the while, and another client is answered.
async fn crowd(proxy: &Proxy) {
    let started = Instant::now();
    while counted(proxy, "gave_way") < 3 {
        assert!(started.elapsed() < WITHIN, "{:?} {:?}", proxy.held(), proxy.counters());
        assert!(proxy.held().1 < BYTES_MAX, "{:?}", proxy.held());
        honest(proxy).await;
        sleep(Duration::from_millis(5)).await;
    }
}

/// Waits until nothing is kept.
async fn empty(proxy: &Proxy) {
    let started = Instant::now();
    while proxy.held() != (0, 0) {
        assert!(started.elapsed() < WITHIN, "{:?}", proxy.held());
        sleep(Duration::from_millis(5)).await;
    }
}

/// A frame of HTTP/2 (RFC 9113 §4.1).
fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
    [&length[1..], &[kind, flags], &stream.to_be_bytes(), payload].concat()
}

#[tokio::test]
async fn responses_that_are_not_read_give_way() {
    let proxy = start(1_000).await;
    // The client's windows are as large as they can be, and it reads nothing.
    let window = (u32::MAX >> 1).to_be_bytes();
    let settings = frame(4, 0, 0, &[&[0, 4][..], &window].concat());
    let wider = frame(8, 0, 0, &((u32::MAX >> 1) - 65_535).to_be_bytes());
    let get = [&[0x82, 0x86, 0x04, 4][..], b"/big", &[0x01, 6], b"a.test"].concat();
    let requests = (0..50).flat_map(|at| frame(1, 5, 2 * at + 1, &get));
    let http2: Vec<u8> = [PREFACE, &settings, &wider].concat().into_iter().chain(requests).collect();
    let mut held = Vec::new();
    for at in 0..120 {
        let mut stream = connect(2, &proxy).await;
        let first = if at % 2 == 0 { &http2[..] } else { b"GET /big HTTP/1.1\r\nHost: a.test\r\n\r\n" };
        let _ = stream.write_all(first).await;
        held.push(stream);
    }
    crowd(&proxy).await;
    drop(held);
    empty(&proxy).await;
    tokio::task::spawn_blocking(move || proxy.stop()).await.unwrap();
}

/// Also such as have no body.
#[tokio::test]
async fn heads_of_responses_that_are_not_read_give_way() {
    let proxy = start(1_000).await;
    let get = [&[0x82, 0x86, 0x04, 5][..], b"/head", &[0x01, 6], b"a.test"].concat();
    let requests = (0..100).flat_map(|at| frame(1, 5, 2 * at + 1, &get));
    let http2: Vec<u8> = [PREFACE, &frame(4, 0, 0, &[])].concat().into_iter().chain(requests).collect();
    let mut held = Vec::new();
    // What their requests take is less than a holder may have.
    for _ in 0..8 {
        let mut stream = connect(2, &proxy).await;
        let _ = stream.write_all(&http2).await;
        held.push(stream);
    }
    crowd(&proxy).await;
    drop(held);
    empty(&proxy).await;
    tokio::task::spawn_blocking(move || proxy.stop()).await.unwrap();
}

/// The kernel keeps what a closed connection could not send for as long as its client reads nothing, on no account of
/// ours: what gives way is reset.
#[tokio::test]
async fn a_connection_that_gives_way_leaves_nothing_to_be_sent() {
    let proxy = start(1_000).await;
    let mut held = Vec::new();
    for _ in 0..120 {
        let mut stream = connect(2, &proxy).await;
        let _ = stream.write_all(b"GET /big HTTP/1.1\r\nHost: a.test\r\n\r\n").await;
        held.push(stream);
    }
    crowd(&proxy).await;
    let started = Instant::now();
    let mut resets = 0;
    while resets < counted(&proxy, "gave_way") {
        assert!(started.elapsed() < WITHIN, "{resets} resets, {:?}", proxy.counters());
        // The error of a socket is given once.
        resets += held.iter().filter(|stream| matches!(stream.take_error(), Ok(Some(_)))).count() as u64;
        sleep(Duration::from_millis(5)).await;
    }
    drop(held);
    empty(&proxy).await;
    tokio::task::spawn_blocking(move || proxy.stop()).await.unwrap();
}

#[tokio::test]
async fn heads_that_never_end_give_way() {
    let proxy = start(1_000).await;
    let mut held = Vec::new();
    for at in 0..400 {
        let mut stream = connect(2, &proxy).await;
        // Parts of heads of HTTP/1, of HTTP/2 and of TLS.
        let beginning = match at % 3 {
            0 => [&b"GET / HTTP/1.1\r\nX-Slow: "[..], &vec![b'a'; 60_000]].concat(),
            1 => {
                let open = frame(1, 0, 1, &[b'a'; 0x3fff]);
                [PREFACE, &frame(4, 0, 0, &[]), &open[..open.len() - 9]].concat()
            }
            _ => [&[0x16, 3, 1, 0x3f, 0xff, 1, 0, 0xff, 0xff], &[0; 0x3f00][..]].concat(),
        };
        // Some are closed already.
        let _ = stream.write_all(&beginning).await;
        held.push(stream);
    }
    crowd(&proxy).await;
    drop(held);
    empty(&proxy).await;
    tokio::task::spawn_blocking(move || proxy.stop()).await.unwrap();
}

/// A tunnel is a connection as long as it lives: else a client could have as many as it likes.
#[tokio::test]
async fn tunnels_keep_their_places() {
    // The example of RFC 6455 §1.3.
    const UPGRADE: &[u8] = b"GET / HTTP/1.1\r\nHost: a.test\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\
        Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n";
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let fixed_server = Some(listener.local_addr().unwrap());
    tokio::spawn(async move {
        let mut held = Vec::new();
        while let Ok((mut stream, _)) = listener.accept().await {
            let mut request = [0; 1_024];
            assert!(stream.read(&mut request).await.unwrap() > 0);
            let answer = b"HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\
                Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\nfirst";
            stream.write_all(answer).await.unwrap();
            held.push(stream);
        }
    });
    // One client has at most one of two.
    let proxy = Proxy::start(&Config { fixed_server, connections_max: 2, ..Config::default() }, Open).unwrap();
    let mut tunnel = connect(2, &proxy).await;
    tunnel.write_all(UPGRADE).await.unwrap();
    let mut answer = Vec::new();
    while !answer.ends_with(b"first") {
        assert!(tunnel.read_buf(&mut answer).await.unwrap() > 0);
    }
    // The task of the HTTP connection has ended.
    sleep(Duration::from_millis(200)).await;
    // A connection, and a buffer for each way.
    assert_eq!(proxy.held(), (1, 25 << 10));
    // It is reset, maybe before the client knows that it is open.
    if let Ok(mut second) = try_connect(2, &proxy).await {
        let _ = second.write_all(UPGRADE).await;
        let read = second.read(&mut [0; 16]).await;
        assert!(!matches!(read, Ok(1..)), "a second connection is served: {read:?}");
    }
    assert_eq!(counted(&proxy, "connections_full"), 1);
    drop(tunnel);
    tokio::task::spawn_blocking(move || proxy.stop()).await.unwrap();
}
