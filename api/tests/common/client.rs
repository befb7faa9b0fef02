//! HTTP over a unix socket, one connection a request.

use std::path::Path;

use http_body_util::{BodyExt, Full};
use hyper::{Request, body::Bytes, body::Incoming, client::conn::http1};
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::net::UnixStream;

/// A response read to its end.
pub(crate) struct Response {
    pub(crate) status: u16,
    pub(crate) content_type: String,
    pub(crate) body: String,
}

async fn open(
    socket: &Path,
    method: &str,
    path: &str,
    headers: &[(&str, &str)],
    body: String,
) -> hyper::Response<Incoming> {
    let stream = UnixStream::connect(socket).await.unwrap();
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.unwrap();
    tokio::spawn(connection);
    let mut request = Request::builder().method(method).uri(path).header("host", "namegate");
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    sender.send_request(request.body(Full::<Bytes>::from(body)).unwrap()).await.unwrap()
}

pub(crate) async fn request(
    socket: &Path,
    method: &str,
    path: &str,
    headers: &[(&str, &str)],
    body: String,
) -> Response {
    let response = open(socket, method, path, headers, body).await;
    let status = response.status().as_u16();
    let content_type =
        response.headers().get("content-type").map(|kind| kind.to_str().unwrap().to_owned()).unwrap_or_default();
    let body = response.into_body().collect().await.unwrap().to_bytes();
    Response { status, content_type, body: String::from_utf8(body.to_vec()).unwrap() }
}

/// Lines of a stream that goes on.
pub(crate) struct Lines {
    body: Incoming,
    pending: Vec<u8>,
}

pub(crate) async fn stream(socket: &Path, path: &str) -> Lines {
    let response = open(socket, "GET", path, &[], String::new()).await;
    assert_eq!(response.status(), 200);
    Lines { body: response.into_body(), pending: Vec::new() }
}

impl Lines {
    pub(crate) async fn line(&mut self) -> Value {
        loop {
            if let Some(end) = self.pending.iter().position(|&octet| octet == b'\n') {
                let line: Vec<u8> = self.pending.drain(..=end).collect();
                return serde_json::from_slice(&line).unwrap();
            }
            let frame = self.body.frame().await.expect("the stream goes on").unwrap();
            self.pending.extend_from_slice(frame.data_ref().unwrap());
        }
    }
}
