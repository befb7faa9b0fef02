//! Asks the agent over its unix socket, in HTTP/1.0: an answer ends where the connection does.

use std::fmt;
use std::io::{self, Read, Write};
use std::net::IpAddr;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

/// How long one answer may take. The agent answers when the kernel enforces.
const ANSWER_WITHIN: Duration = Duration::from_secs(30);
/// Between two attempts to reach an agent that is starting.
const PAUSE: Duration = Duration::from_millis(50);
/// The longest answer that is read.
const ANSWER_OCTETS_MAX: u64 = 16 << 20;
/// Characters of an unreadable answer that are shown.
const SHOWN_MAX: usize = 200;

/// What the agent is told of a container.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Endpoint {
    pub(crate) namespace: String,
    pub(crate) pod: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) uid: Option<String>,
    /// The node's side of the pod's link.
    pub(crate) interface: String,
    pub(crate) addresses: Vec<IpAddr>,
    pub(crate) netns: PathBuf,
}

/// A container that the agent knows.
#[derive(Clone, Debug, Deserialize)]
pub(crate) struct Known {
    #[serde(rename = "container-id")]
    pub(crate) container: String,
}

/// Why the agent did not do it.
#[derive(Debug)]
pub(crate) enum Failure {
    /// Nobody answers.
    Away(io::Error),
    /// It says no.
    Refused { status: u16, reason: String },
}

impl fmt::Display for Failure {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Away(error) => write!(formatter, "no agent answers: {error}"),
            Self::Refused { status, reason } => write!(formatter, "the agent answers {status}: {reason}"),
        }
    }
}

/// The agent of this node.
pub(crate) struct Agent<'a> {
    socket: &'a Path,
    wait: Duration,
}

impl<'a> Agent<'a> {
    /// An agent that may take `wait` to be there.
    pub(crate) fn new(socket: &'a Path, wait: Duration) -> Self {
        Self { socket, wait }
    }

    /// Has a container guarded; when this returns, it is.
    pub(crate) fn add(&self, container: &str, endpoint: &Endpoint) -> Result<(), Failure> {
        let body = serde_json::to_vec(endpoint).map_err(|error| Failure::Away(error.into()))?;
        self.ask("PUT", &format!("/v1/cni/{container}"), &body).map(drop)
    }

    /// Lets go of a container; one that is not known is gone already.
    pub(crate) fn remove(&self, container: &str) -> Result<(), Failure> {
        match self.ask("DELETE", &format!("/v1/cni/{container}"), &[]) {
            Ok(_) | Err(Failure::Refused { status: 404, .. }) => Ok(()),
            Err(failure) => Err(failure),
        }
    }

    /// The containers that it knows.
    pub(crate) fn list(&self) -> Result<Vec<Known>, Failure> {
        let body = self.ask("GET", "/v1/cni", &[])?;
        serde_json::from_slice(&body).map_err(|error| unreadable(&format!("its list cannot be read: {error}")))
    }

    /// Whether it says that it is ready; its words where not.
    pub(crate) fn health(&self) -> Result<(), Failure> {
        self.ask("GET", "/v1/readyz", &[]).map(drop)
    }

    fn ask(&self, method: &str, path: &str, body: &[u8]) -> Result<Vec<u8>, Failure> {
        let mut stream = self.connect().map_err(Failure::Away)?;
        exchange(&mut stream, method, path, body).map_err(Failure::Away).and_then(|answer| answered(&answer))
    }

    /// Connects, and tries again while there is no socket or nobody behind it.
    fn connect(&self) -> io::Result<UnixStream> {
        let started = Instant::now();
        loop {
            match UnixStream::connect(self.socket) {
                Err(_) if started.elapsed() < self.wait => std::thread::sleep(PAUSE),
                connected => return connected,
            }
        }
    }
}

fn exchange(stream: &mut UnixStream, method: &str, path: &str, body: &[u8]) -> io::Result<Vec<u8>> {
    stream.set_read_timeout(Some(ANSWER_WITHIN))?;
    stream.set_write_timeout(Some(ANSWER_WITHIN))?;
    let head = format!(
        "{method} {path} HTTP/1.0\r\nHost: namegate\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n",
        body.len()
    );
    stream.write_all(&[head.as_bytes(), body].concat())?;
    let mut answer = Vec::new();
    Read::take(&mut *stream, ANSWER_OCTETS_MAX).read_to_end(&mut answer)?;
    Ok(answer)
}

/// The body of an answer that says yes.
fn answered(answer: &[u8]) -> Result<Vec<u8>, Failure> {
    if answer.is_empty() {
        return Err(Failure::Away(io::ErrorKind::UnexpectedEof.into()));
    }
    let end = answer.windows(4).position(|octets| octets == b"\r\n\r\n");
    let (head, body) = end.map(|end| (&answer[..end], &answer[end + 4..])).ok_or_else(|| unreadable("no HTTP"))?;
    let head = String::from_utf8_lossy(head);
    let status =
        head.strip_prefix("HTTP/1.").and_then(|rest| rest.split(' ').nth(1)).and_then(|code| code.parse().ok());
    let status: u16 = status.ok_or_else(|| unreadable("no HTTP status"))?;
    if (200..300).contains(&status) {
        Ok(body.to_vec())
    } else {
        Err(Failure::Refused { status, reason: reason(body) })
    }
}

fn unreadable(what: &str) -> Failure {
    Failure::Away(io::Error::new(io::ErrorKind::InvalidData, what.to_owned()))
}

/// The words of a problem document (RFC 9457) or of a health report, or the beginning of what else came.
fn reason(body: &[u8]) -> String {
    let problem: Option<serde_json::Value> = serde_json::from_slice(body).ok();
    let words = problem.as_ref().and_then(|problem| problem["detail"].as_str().or_else(|| problem["title"].as_str()));
    words.map_or_else(|| String::from_utf8_lossy(body).chars().take(SHOWN_MAX).collect(), str::to_owned)
}
