//! A client of TLS 1.3 (RFC 8446) that sends the hellos of a form, and goes on to a request where a server lets it.
//!
//! Certificates are not checked: what is tested is which name a server takes. One suite and one group are enough.

use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};
use namegate_testbed::client;
use serde::Deserialize;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::form::bytes;
use crate::hello::{Content, Hello};
use crate::schedule::{Schedule, Share};
use crate::wire::{Ask, CONNECT_WITHIN};

const HANDSHAKE: u8 = 22;
const CHANGE_CIPHER: u8 = 20;
const APPLICATION: u8 = 23;
const ALERT: u8 = 21;
const SERVER_HELLO: u8 = 2;
const FINISHED: u8 = 20;
/// The random of a `HelloRetryRequest` begins with this (§4.1.3).
const RETRY: [u8; 4] = [0xcf, 0x21, 0xad, 0x74];
/// How long a server may take with each message.
const PATIENCE: Duration = Duration::from_secs(8);

/// A handshake as the data has it.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct TlsForm {
    pub(crate) first: Hello,
    /// The answer to a `HelloRetryRequest`; the first one with a share where none is given.
    #[serde(default)]
    pub(crate) second: Option<Hello>,
    /// Bytes before everything; characters are bytes.
    #[serde(default)]
    pub(crate) before: String,
    /// Bytes before the second hello.
    #[serde(default)]
    pub(crate) between: String,
    /// Bytes between the records of a hello.
    #[serde(default)]
    pub(crate) amid: String,
    /// Version of the records; characters are bytes.
    #[serde(default)]
    pub(crate) version: Option<String>,
    /// Bytes of a message in each record; all in one where it is 0.
    #[serde(default)]
    pub(crate) record: usize,
    /// Bytes of each write, a moment apart; all at once where it is 0.
    #[serde(default)]
    pub(crate) piece: usize,
}

impl TlsForm {
    /// Fills placeholders in.
    pub(crate) fn map(&self, fill: &dyn Fn(&str) -> String) -> Self {
        Self {
            first: self.first.map(fill),
            second: self.second.as_ref().map(|second| second.map(fill)),
            before: fill(&self.before),
            between: fill(&self.between),
            amid: fill(&self.amid),
            version: self.version.as_deref().map(fill),
            ..self.clone()
        }
    }

    /// A hello in records, whose version is another one after a retry (§5.1).
    fn records(&self, message: &[u8], version: [u8; 2]) -> Vec<u8> {
        let version = self.version.as_deref().map_or(version.to_vec(), bytes);
        let size = if self.record == 0 { message.len() } else { self.record };
        let records = message.chunks(size).map(|part| record(HANDSHAKE, &version, part));
        records.collect::<Vec<_>>().join(&bytes(&self.amid)[..])
    }
}

/// Goes through the handshake, asks, and gives what the server says.
pub(crate) async fn exchange(ask: Ask, form: TlsForm) -> Result<Vec<u8>> {
    let mut stream = client::connect(ask.to, CONNECT_WITHIN).await?;
    stream.set_nodelay(true)?;
    let (share, session) = (Share::new()?, [0x5a; 32]);
    let content = Content { random: [0x3c; 32], session: &session, share: share.public(), ..Content::default() };
    let mut transcript = form.first.message(&content);
    let opening = [bytes(&form.before), form.records(&transcript, [3, 1])].concat();
    send(&mut stream, &opening, form.piece).await?;
    let mut reader = Reader { stream, buffer: Vec::new(), messages: Vec::new() };
    let mut hello = reader.message().await?;
    if hello.get(6..10) == Some(&RETRY[..]) {
        let cookie = extension(&hello, 44).and_then(|cookie| cookie.get(2..)).unwrap_or_default();
        let second = form.second.clone().unwrap_or(Hello { no_share: false, ..form.first.clone() });
        let message = second.message(&Content { cookie, ..content });
        transcript = [Schedule::stand_in(&transcript), hello.clone(), message.clone()].concat();
        let next = [bytes(&form.between), form.records(&message, [3, 3])].concat();
        send(&mut reader.stream, &next, form.piece).await?;
        hello = reader.message().await?;
    }
    transcript.extend(&hello);
    let public = extension(&hello, 51).and_then(|share| share.get(4..)).context("a hello without a share")?;
    let mut schedule = Schedule::new(&share.agree(public)?, &transcript)?;
    loop {
        let message = reader.sealed_message(&mut schedule).await?;
        transcript.extend(&message);
        if message.first() == Some(&FINISHED) {
            break;
        }
    }
    let finished = schedule.finish(&transcript)?;
    reader.stream.write_all(&record(CHANGE_CIPHER, &[3, 3], &[1])).await?;
    reader.stream.write_all(&finished).await?;
    let request = format!("GET /public/{}a HTTP/1.1\r\nHost: {}\r\nConnection: close\r\n\r\n", ask.mark, ask.host);
    reader.stream.write_all(&schedule.seal(request.as_bytes())?).await?;
    let mut said = Vec::new();
    while let Ok((kind, content)) = reader.sealed(&mut schedule).await {
        match kind {
            APPLICATION => said.extend(content),
            ALERT => break,
            _ => {}
        }
    }
    Ok(said)
}

async fn send(stream: &mut TcpStream, bytes: &[u8], piece: usize) -> Result<()> {
    let size = if piece == 0 { bytes.len() } else { piece };
    for part in bytes.chunks(size) {
        stream.write_all(part).await?;
        if piece != 0 {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }
    Ok(())
}

/// The content of an extension of a `ServerHello` (§4.1.3).
fn extension(hello: &[u8], wanted: u16) -> Option<&[u8]> {
    let session = usize::from(*hello.get(38)?);
    let mut rest = hello.get(39 + session + 5..)?;
    while let [a, b, c, d, more @ ..] = rest {
        let length = usize::from(u16::from_be_bytes([*c, *d]));
        if u16::from_be_bytes([*a, *b]) == wanted {
            return more.get(..length);
        }
        rest = more.get(length..)?;
    }
    None
}

fn record(kind: u8, version: &[u8], content: &[u8]) -> Vec<u8> {
    let length = u16::try_from(content.len()).unwrap_or(u16::MAX);
    [&[kind][..], version, &length.to_be_bytes(), content].concat()
}

struct Reader {
    stream: TcpStream,
    buffer: Vec<u8>,
    /// Handshake messages, not all of them whole.
    messages: Vec<u8>,
}

impl Reader {
    /// Type and content of the next record.
    async fn record(&mut self) -> Result<(u8, Vec<u8>)> {
        loop {
            if let [kind, _, _, high, low, rest @ ..] = &self.buffer[..] {
                let (kind, length) = (*kind, usize::from(u16::from_be_bytes([*high, *low])));
                if let Some(content) = rest.get(..length) {
                    let content = content.to_vec();
                    self.buffer.drain(..5 + length);
                    return Ok((kind, content));
                }
            }
            let count = timeout(PATIENCE, self.stream.read_buf(&mut self.buffer)).await??;
            if count == 0 {
                bail!("the connection ended");
            }
        }
    }

    /// The next whole message of those that came.
    fn whole(&mut self) -> Option<Vec<u8>> {
        let [_, high, middle, low, rest @ ..] = &self.messages[..] else { return None };
        let length = usize::from(*high) << 16 | usize::from(*middle) << 8 | usize::from(*low);
        (rest.len() >= length).then(|| self.messages.drain(..4 + length).collect())
    }

    /// The next `ServerHello` in clear text.
    async fn message(&mut self) -> Result<Vec<u8>> {
        loop {
            match self.whole() {
                Some(message) if message.first() == Some(&SERVER_HELLO) && message.len() > 40 => return Ok(message),
                Some(_) => bail!("another message than a ServerHello"),
                None => {}
            }
            match self.record().await? {
                (HANDSHAKE, content) => self.messages.extend(content),
                (CHANGE_CIPHER, _) => {}
                (kind, content) => bail!("a record of type {kind}: {content:02x?}"),
            }
        }
    }

    /// Type and content of the next record under keys.
    async fn sealed(&mut self, schedule: &mut Schedule) -> Result<(u8, Vec<u8>)> {
        loop {
            match self.record().await? {
                (APPLICATION, content) => return schedule.open(content),
                (CHANGE_CIPHER, _) => {}
                (kind, content) => return Err(anyhow!("a record of type {kind}: {content:02x?}")),
            }
        }
    }

    async fn sealed_message(&mut self, schedule: &mut Schedule) -> Result<Vec<u8>> {
        loop {
            if let Some(message) = self.whole() {
                return Ok(message);
            }
            match self.sealed(schedule).await? {
                (HANDSHAKE, content) => self.messages.extend(content),
                (kind, _) => bail!("a sealed record of type {kind}"),
            }
        }
    }
}
