//! HTTP/2 with prior knowledge through the proxy: bodies and trailers both ways, many requests on one connection.
#![expect(clippy::unwrap_used, reason = "a test ends at the first surprise")]

use std::{convert::Infallible, sync::Arc};

use bytes::Bytes;
use futures_util::stream;
use http_body_util::{BodyExt, StreamBody};
use hyper::{
    HeaderMap, Method, Request, Response, StatusCode,
    body::{Frame, Incoming},
    client::conn::http2,
    service::service_fn,
};
use hyper_util::rt::{TokioExecutor, TokioIo};
use namegate_config::{
    l7::{HttpRule, L7, RegexText},
    labels::LabelSelector,
    reference::Limits,
    rule::{Direction, Effect, Origin, Peers, Ports, Rule, Subject, Tier},
};
use namegate_l7_proxy::{Access, Backend, Config, ConnectionPolicy, Match, Proxy, Question};
use tokio::net::{TcpListener, TcpStream};

/// Lets paths below `/open` pass.
#[derive(Clone)]
struct Open(Arc<Rule>);

impl Open {
    fn new() -> Self {
        let rule = HttpRule { path: Some(RegexText::new("/open.*").unwrap()), ..HttpRule::default() };
        Self(Arc::new(Rule {
            origin: Arc::new(Origin { kind: "cnp".into(), namespace: None, name: "b".into(), path: String::new() }),
            subject: Subject::Endpoints(LabelSelector::default()),
            direction: Direction::Egress,
            tier: Tier::Normal,
            effect: Effect::Allow,
            default_deny: true,
            peers: Peers::Any,
            ports: Ports::Any,
            l7: Some(Arc::new(L7::Http(vec![rule]))),
            binding: None,
            named_only: None,
        }))
    }
}

impl Backend for Open {
    async fn connection_policy(&self, _: Question) -> Option<ConnectionPolicy> {
        let sides = vec![(Direction::Egress, Limits::Rules(vec![Arc::clone(&self.0)]))];
        Some(ConnectionPolicy {
            sides,
            keeps_source: false,
            audit: false,
            bound: false,
            binding: Match::Good,
            names: Arc::default(),
        })
    }

    fn revision(&self) -> u64 {
        0
    }

    fn record(&self, _: Access) {}
}

type Frames = StreamBody<stream::Iter<std::vec::IntoIter<Result<Frame<Bytes>, Infallible>>>>;

/// Octets, and a trailer that holds their number.
fn body(octets: Bytes) -> Frames {
    let mut trailers = HeaderMap::new();
    trailers.insert("x-length", octets.len().into());
    StreamBody::new(stream::iter(vec![Ok(Frame::data(octets)), Ok(Frame::trailers(trailers))]))
}

/// Sends the body back, if its trailer is true.
async fn echo(request: Request<Incoming>) -> Result<Response<Frames>, Infallible> {
    let target = request.uri().to_string();
    let mut response = Response::builder().header("x-target", &target);
    if target.ends_with("/many") {
        response = (0..200).fold(response, |response, _| response.header("x", "y"));
    }
    let whole = request.into_body().collect().await.unwrap();
    let length = whole.trailers().and_then(|trailers| trailers.get("x-length")).unwrap().to_str().unwrap().to_owned();
    let octets = whole.to_bytes();
    assert_eq!(length, octets.len().to_string());
    Ok(response.body(body(octets)).unwrap())
}

async fn serve(listener: TcpListener) {
    while let Ok((stream, _)) = listener.accept().await {
        let server = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
        tokio::spawn(server.serve_connection(TokioIo::new(stream), service_fn(echo)));
    }
}

/// A proxy in front of a server, and a client's connection to it.
async fn connected() -> (Proxy, http2::SendRequest<Frames>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let config = Config { fixed_server: Some(listener.local_addr().unwrap()), ..Config::default() };
    tokio::spawn(serve(listener));
    let proxy = Proxy::start(&config, Open::new()).unwrap();
    let stream = TcpStream::connect(("127.0.0.1", proxy.port())).await.unwrap();
    let (sender, connection) = http2::Builder::new(TokioExecutor::new()).handshake(TokioIo::new(stream)).await.unwrap();
    tokio::spawn(connection);
    (proxy, sender)
}

/// The client takes octets of a body for a broken stream.
#[tokio::test]
async fn a_denial_of_head_has_no_body() {
    let (proxy, mut sender) = connected().await;
    for (method, octets) in [(Method::HEAD, 0), (Method::GET, 14)] {
        let request = Request::builder().method(method.clone()).uri("http://a.io/shut").body(body(Bytes::new()));
        let response = sender.send_request(request.unwrap()).await.unwrap();
        assert_eq!(response.status(), StatusCode::FORBIDDEN, "{method}");
        assert_eq!(response.headers()["content-length"], "14", "{method}");
        assert_eq!(response.into_body().collect().await.unwrap().to_bytes().len(), octets, "{method}");
    }
    tokio::task::spawn_blocking(move || proxy.stop()).await.unwrap();
}

#[tokio::test]
async fn bodies_and_trailers_pass_and_each_stream_is_judged() {
    let (proxy, sender) = connected().await;
    let asking = (0..20_usize).map(|number| {
        let mut sender = sender.clone();
        tokio::spawn(async move {
            let path = if number % 2 == 0 { format!("/x/../open/{number}") } else { format!("/open/../shut/{number}") };
            let octets = Bytes::from(vec![7; number * 10_000]);
            let uri = format!("http://a.io{path}");
            let response = sender.send_request(Request::post(uri).body(body(octets.clone())).unwrap()).await.unwrap();
            if number % 2 == 1 {
                assert_eq!(response.status(), StatusCode::FORBIDDEN);
                return;
            }
            assert_eq!(response.headers()["x-target"], format!("http://a.io/open/{number}"));
            let whole = response.into_body().collect().await.unwrap();
            assert_eq!(whole.trailers().unwrap()["x-length"], octets.len().to_string());
            assert_eq!(whole.to_bytes(), octets);
        })
    });
    for asked in asking.collect::<Vec<_>>() {
        asked.await.unwrap();
    }
    tokio::task::spawn_blocking(move || proxy.stop()).await.unwrap();
}

/// Each field takes far more than its octets: 64 KiB of short ones would take megabytes.
#[tokio::test]
async fn heads_with_too_many_fields_are_refused_both_ways() {
    let (proxy, mut sender) = connected().await;
    let count = |word: &str| proxy.counters().into_iter().find(|(known, _)| *known == word).unwrap().1;
    for (path, fields, want) in [
        ("/open", 100, StatusCode::OK),
        ("/open", 129, StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE),
        ("/open/many", 0, StatusCode::BAD_GATEWAY),
        ("/open", 0, StatusCode::OK),
    ] {
        let request = Request::post(format!("http://a.io{path}"));
        let request = (0..fields).fold(request, |request, _| request.header("x", "y"));
        let response = sender.send_request(request.body(body(Bytes::new())).unwrap()).await.unwrap();
        assert_eq!(response.status(), want, "{path} {fields}");
    }
    assert_eq!((count("malformed"), count("server_failed")), (1, 1));
    tokio::task::spawn_blocking(move || proxy.stop()).await.unwrap();
}
