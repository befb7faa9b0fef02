//! Asks the agent's API over its unix socket.

use std::path::{Path, PathBuf};

use anyhow::{Context, anyhow, bail};
use http_body_util::{BodyExt, Empty};
use hyper::{
    Method, Request, Response,
    body::{Bytes, Incoming},
    client::conn::http1,
    header,
};
use hyper_util::rt::TokioIo;
use namegate_api::{PROBLEM_JSON, Problem};
use serde::de::DeserializeOwned;
use tokio::net::UnixStream;

/// One agent.
#[derive(Debug)]
pub(crate) struct Client {
    socket: PathBuf,
}

impl Client {
    pub(crate) fn new(socket: PathBuf) -> Self {
        Self { socket }
    }

    /// The socket asked.
    pub(crate) fn socket(&self) -> &Path {
        &self.socket
    }

    /// Reads a resource.
    pub(crate) async fn get<T: DeserializeOwned>(&self, path: &str) -> anyhow::Result<T> {
        self.read(Method::GET, path).await
    }

    /// Removes a resource.
    pub(crate) async fn delete<T: DeserializeOwned>(&self, path: &str) -> anyhow::Result<T> {
        self.read(Method::DELETE, path).await
    }

    async fn read<T: DeserializeOwned>(&self, method: Method, path: &str) -> anyhow::Result<T> {
        let body = self.send(method, path).await?.into_body().collect().await.with_context(|| self.cut())?.to_bytes();
        serde_json::from_slice(&body).with_context(|| {
            format!("{} answered `{path}` in a form this version does not know", self.socket.display())
        })
    }

    /// A resource that comes line by line.
    pub(crate) async fn lines(&self, path: &str) -> anyhow::Result<Lines> {
        Ok(Lines { body: self.send(Method::GET, path).await?.into_body(), pending: Vec::new(), cut: self.cut() })
    }

    async fn send(&self, method: Method, path: &str) -> anyhow::Result<Response<Incoming>> {
        let stream = UnixStream::connect(&self.socket).await.with_context(|| self.nobody())?;
        let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.with_context(|| self.cut())?;
        // Its errors reach the sender and the body too.
        tokio::spawn(connection);
        let request = Request::builder().method(method).uri(path).header(header::HOST, "namegate");
        let response = sender.send_request(request.body(Empty::<Bytes>::new())?).await.with_context(|| self.cut())?;
        if response.status().is_success() {
            return Ok(response);
        }
        Err(refusal(response).await)
    }

    fn nobody(&self) -> String {
        format!(
            "no agent answers on {}; start it with `namegate agent --config namegate.yaml`, or name its socket with \
             `--socket`",
            self.socket.display()
        )
    }

    fn cut(&self) -> String {
        format!("the agent on {} ended the connection; its log says why", self.socket.display())
    }
}

/// The error that a response tells of.
async fn refusal(response: Response<Incoming>) -> anyhow::Error {
    let status = response.status();
    let told = response.headers().get(header::CONTENT_TYPE).is_some_and(|kind| kind == PROBLEM_JSON);
    let Ok(body) = response.into_body().collect().await else { return anyhow!("the agent answered {status}") };
    match serde_json::from_slice::<Problem>(&body.to_bytes()) {
        Ok(problem) if told => anyhow!(problem.detail),
        _ => anyhow!("the agent answered {status}"),
    }
}

/// Lines as they come.
#[derive(Debug)]
pub(crate) struct Lines {
    body: Incoming,
    pending: Vec<u8>,
    cut: String,
}

impl Lines {
    /// The next line, without its end; `None` after the last.
    pub(crate) async fn next(&mut self) -> anyhow::Result<Option<String>> {
        loop {
            if let Some(end) = self.pending.iter().position(|&octet| octet == b'\n') {
                let mut line: Vec<u8> = self.pending.drain(..=end).collect();
                line.pop();
                return Ok(Some(String::from_utf8(line)?));
            }
            match self.body.frame().await {
                Some(frame) => {
                    let frame = frame.with_context(|| self.cut.clone())?;
                    self.pending.extend_from_slice(frame.data_ref().map_or(&[], |data| data));
                }
                None if self.pending.is_empty() => return Ok(None),
                None => bail!("{}", self.cut),
            }
        }
    }
}

/// A path with a query of the parameters that are given, percent-encoded.
pub(crate) fn path(path: &str, parameters: &[(&str, Option<String>)]) -> String {
    let given = parameters.iter().filter_map(|(name, value)| Some(format!("{name}={}", encode(value.as_ref()?))));
    let query: Vec<String> = given.collect();
    if query.is_empty() { path.to_owned() } else { format!("{path}?{}", query.join("&")) }
}

/// Percent-encodes everything but unreserved characters (RFC 3986 §2.3).
pub(crate) fn encode(text: &str) -> String {
    let octets = text.bytes().map(|octet| match octet {
        b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => char::from(octet).to_string(),
        octet => format!("%{octet:02X}"),
    });
    octets.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn queries_are_encoded() {
        let got = path("/v1/x", &[("a", Some("*.cilium.io".into())), ("b", None), ("c", Some("10.0.0.0/8&d".into()))]);
        assert_eq!(got, "/v1/x?a=%2A.cilium.io&c=10.0.0.0%2F8%26d");
        assert_eq!(path("/v1/x", &[("a", None)]), "/v1/x");
    }
}
