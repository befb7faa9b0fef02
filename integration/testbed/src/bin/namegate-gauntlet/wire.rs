//! Sending a form over TCP and reading what comes back.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::Result;
use namegate_testbed::client;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::timeout;

/// How long a connection may take to come about.
pub(crate) const CONNECT_WITHIN: Duration = Duration::from_secs(10);
/// Between two pieces.
const PAUSE: Duration = Duration::from_millis(30);
/// Silence after which an answer counts as whole; an honest form waits longer.
const SILENCE: Duration = Duration::from_millis(900);
const HONEST_SILENCE: Duration = Duration::from_secs(6);
/// Bytes of answers that are kept.
const ANSWER_BYTES_MAX: usize = 256 << 10;

/// Bytes that there is room for before each reading.
const READ_BYTES: usize = 16 << 10;

/// Whom a form is sent to, and how it is marked.
#[derive(Clone, Debug)]
pub(crate) struct Ask {
    pub(crate) to: SocketAddr,
    pub(crate) mark: String,
    /// `Host` of requests inside of TLS.
    pub(crate) host: String,
    /// How many answers must come, for an honest form.
    pub(crate) answers: usize,
}

/// Sends the pieces and gives all that comes back until the other side is done or silent.
pub(crate) async fn exchange(ask: Ask, pieces: Vec<Vec<u8>>) -> Result<Vec<u8>> {
    let mut stream = client::connect(ask.to, CONNECT_WITHIN).await?;
    stream.set_nodelay(true)?;
    let mut said = Vec::new();
    let mut is_over = false;
    for (at, piece) in pieces.iter().enumerate() {
        if at > 0 {
            is_over = is_over || read(&mut stream, &mut said, PAUSE).await;
        }
        // An end is shown by what comes back.
        is_over = is_over || stream.write_all(piece).await.is_err();
    }
    while !is_over && said.len() < ANSWER_BYTES_MAX {
        let missing = ask.answers.saturating_sub(count(&said));
        let before = said.len();
        let silence = if missing > 0 { HONEST_SILENCE } else { SILENCE };
        is_over = read(&mut stream, &mut said, silence).await || said.len() == before;
        is_over = is_over || (ask.answers > 0 && count(&said) >= ask.answers);
    }
    Ok(said)
}

/// Reads once; whether the other side is done.
async fn read(stream: &mut tokio::net::TcpStream, said: &mut Vec<u8>, within: Duration) -> bool {
    said.reserve(READ_BYTES);
    match timeout(within, stream.read_buf(said)).await {
        Ok(Ok(0) | Err(_)) => true,
        Ok(Ok(_)) | Err(_) => false,
    }
}

/// How many answers of servers came whole: each says once, in a line, what the server saw.
fn count(said: &[u8]) -> usize {
    let whole = said.iter().rposition(|byte| *byte == b'\n').unwrap_or(0);
    said[..whole].windows(SAW.len()).filter(|window| *window == SAW).count()
}

const SAW: &[u8] = b"saw GET /";
