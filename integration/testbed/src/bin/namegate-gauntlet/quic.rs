//! QUIC's first packets (RFC 9000 §17.2.2, RFC 9001 §5, RFC 9369), laid out as a form wants them.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context, Result, anyhow};
use serde::Deserialize;
use tokio::net::UdpSocket;
use tokio::time::timeout;
use tokio_rustls::rustls::crypto::ring::cipher_suite::TLS13_AES_128_GCM_SHA256;
use tokio_rustls::rustls::quic::{Keys, Version};
use tokio_rustls::rustls::{Side, Tls13CipherSuite};

use crate::form::bytes;
use crate::hello::{Content, Hello, short};
use crate::schedule::Share;
use crate::wire::Ask;

/// Numbers of the versions on the wire.
const VERSION_1: u32 = 1;
const VERSION_2: u32 = 0x6b33_43cf;
/// Bytes of a client's datagrams with Initial packets, at least (RFC 9000 §14.1).
const DATAGRAM_BYTES: usize = 1_200;
/// Bytes of what proves a packet.
const PROOF_BYTES: usize = 16;
const CRYPTO: u8 = 6;
/// Between two datagrams, and how long an answer is waited for.
const PAUSE: Duration = Duration::from_millis(30);
const SILENCE: Duration = Duration::from_millis(1_500);

/// Hellos, and datagrams with parts of them.
#[derive(Clone, Debug)]
pub(crate) struct QuicForm {
    pub(crate) hellos: Vec<Hello>,
    pub(crate) datagrams: Vec<Datagram>,
}

/// A datagram as the data has it.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Datagram {
    /// Which of the client's sockets sends it.
    #[serde(default)]
    from: usize,
    /// Bytes that the last packet fills it up to.
    #[serde(default = "whole")]
    size: usize,
    /// Milliseconds before it, beside the usual pause.
    #[serde(default)]
    after_ms: u64,
    packets: Vec<Packet>,
}

/// A packet as the data has it.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Packet {
    /// Which hello it carries.
    hello: usize,
    /// 1 or 2; any other number goes on the wire as it is, under the keys of version 1.
    version: Option<u32>,
    /// A letter for the connection id that the packet is sent to, `a` where none is given.
    id: Option<String>,
    /// The id that its keys come from, where that is another one.
    keys: Option<String>,
    /// A letter for the source's connection id.
    source: Option<String>,
    number: u64,
    /// Bytes that the number is cut to, 1 to 4; 4 where none is given.
    number_bytes: Option<usize>,
    /// Offset and length of each CRYPTO frame; all of the hello in one where it is missing, its rest where 0 is long.
    crypto: Option<Vec<(usize, usize)>>,
    /// The frames stand behind this hello in the stream of messages.
    behind: Option<usize>,
    /// Frames before those, as they stand; characters are bytes.
    frames: String,
    token: String,
    /// Type of the long header, 0 to 3 in the numbers of version 1.
    kind: u8,
    /// The packet as it stands, in place of all that; `{id}` is not filled in. Characters are bytes.
    raw: Option<String>,
}

fn whole() -> usize {
    DATAGRAM_BYTES
}

/// Sends the datagrams and gives how many bytes came back, as text.
pub(crate) async fn exchange(ask: Ask, form: QuicForm) -> Result<Vec<u8>> {
    let hellos = form.hellos.iter().map(|hello| message(hello, &ask.mark)).collect::<Result<Vec<_>>>()?;
    let count = form.datagrams.iter().map(|datagram| datagram.from + 1).max().unwrap_or(1);
    let mut sockets = Vec::new();
    for _ in 0..count {
        sockets.push(socket(ask.to).await?);
    }
    for datagram in &form.datagrams {
        tokio::time::sleep(PAUSE + Duration::from_millis(datagram.after_ms)).await;
        let bytes = datagram.bytes(&hellos, &ask.mark)?;
        // A refusal by ICMP is an answer like silence.
        let _ = sockets.get(datagram.from).context("a socket")?.send(&bytes).await;
    }
    let mut said = 0;
    for socket in &sockets {
        let mut buffer = vec![0; 2_048];
        while let Ok(Ok(count)) = timeout(SILENCE, socket.recv(&mut buffer)).await {
            said += count;
            if said > 4 * DATAGRAM_BYTES {
                break;
            }
        }
    }
    Ok(format!("{said} bytes").into_bytes())
}

async fn socket(to: SocketAddr) -> Result<UdpSocket> {
    let socket = UdpSocket::bind("0.0.0.0:0").await?;
    socket.connect(to).await?;
    Ok(socket)
}

/// Eight bytes for a letter, different for each form.
fn identifier(mark: &str, letter: Option<&str>) -> Vec<u8> {
    let letter = letter.unwrap_or("a");
    format!("{mark:.6}{letter:~>2.2}").into_bytes()
}

fn message(hello: &Hello, mark: &str) -> Result<Vec<u8>> {
    let hello = hello.map(&|text| text.replace("{good}", "{id}.good.test").replace("{bad}", "{id}.bad.test"));
    let hello = hello.map(&|text| text.replace("{id}", mark));
    let share = Share::new()?;
    // Limits that let a server go on, and the source's connection id (RFC 9000 §18.2).
    let source = identifier(mark, Some("s"));
    let limits = [0x04, 4, 0x80, 0x10, 0, 0, 0x05, 4, 0x80, 0x10, 0, 0, 0x08, 2, 0x40, 0x64, 0x09, 2, 0x40, 0x64];
    let parameters = [&limits[..], &[0x0f], &short(&source)].concat();
    let length = u16::try_from(parameters.len())?.to_be_bytes();
    let extension = [&[0, 0x39][..], &length, &parameters].concat();
    let content = Content { random: [0x3c; 32], share: share.public(), quic: Some(&extension), ..Content::default() };
    let mut message = hello.message(&content);
    // Every stack of QUIC has AES (RFC 9001 §5.3): beside the suite of the hello.
    let suites = 4 + 2 + 32 + 1;
    message.splice(suites..suites + 4, [0, 4, 0x13, 1, 0x13, 3]);
    let length = u32::try_from(message.len() - 4)? | 1 << 24;
    message.splice(..4, length.to_be_bytes());
    Ok(message)
}

impl Datagram {
    fn bytes(&self, hellos: &[Vec<u8>], mark: &str) -> Result<Vec<u8>> {
        let mut all = Vec::new();
        for (at, packet) in self.packets.iter().enumerate() {
            let is_last = at + 1 == self.packets.len();
            let wanted = if is_last { self.size.saturating_sub(all.len()) } else { 0 };
            all.extend(packet.bytes(hellos, mark, wanted)?);
        }
        Ok(all)
    }
}

impl Packet {
    /// The packet, filled up to a size.
    fn bytes(&self, hellos: &[Vec<u8>], mark: &str, wanted: usize) -> Result<Vec<u8>> {
        if let Some(raw) = &self.raw {
            return Ok(bytes(raw));
        }
        let number_bytes = self.number_bytes.unwrap_or(4).clamp(1, 4);
        let (wire, version) = match self.version {
            None | Some(1) => (VERSION_1, Version::V1),
            Some(2) => (VERSION_2, Version::V2),
            Some(other) => (other, Version::V1),
        };
        let turn = u8::from(wire == VERSION_2);
        let kind = (self.kind + turn) % 4;
        let mut header = vec![0xc0 | kind << 4 | u8::try_from(number_bytes - 1)?];
        header.extend(wire.to_be_bytes());
        header.extend(short(&identifier(mark, self.id.as_deref())));
        header.extend(short(&identifier(mark, Some(self.source.as_deref().unwrap_or("s")))));
        if self.kind == 0 {
            header.extend(short(&bytes(&self.token)));
        }
        let mut payload = self.payload(hellos)?;
        let around = header.len() + 2 + number_bytes + PROOF_BYTES;
        payload.resize(payload.len().max(wanted.saturating_sub(around)).max(4), 0);
        let length = u16::try_from(number_bytes + payload.len() + PROOF_BYTES)?;
        header.extend((length | 0x4000).to_be_bytes());
        let number_at = header.len();
        let number = self.number.to_be_bytes();
        header.extend(&number[8 - number_bytes..]);
        let id = identifier(mark, self.keys.as_deref().or(self.id.as_deref()));
        let keys = keys(&id, version)?;
        let proof = keys.local.packet.encrypt_in_place(self.number, &header, &mut payload)?;
        payload.extend(proof.as_ref());
        let (head, number) = header.split_at_mut(number_at);
        let sample = payload.get(4 - number_bytes..20 - number_bytes).context("too short a packet")?;
        keys.local.header.encrypt_in_place(sample, &mut head[0], number)?;
        Ok([header, payload].concat())
    }

    fn payload(&self, hellos: &[Vec<u8>]) -> Result<Vec<u8>> {
        let mut payload = bytes(&self.frames);
        let whole = vec![(0, 0)];
        let shift = self.behind.and_then(|hello| hellos.get(hello)).map_or(0, Vec::len);
        for &(offset, length) in self.crypto.as_ref().unwrap_or(&whole) {
            let hello = hellos.get(self.hello).ok_or_else(|| anyhow!("no hello {}", self.hello))?;
            let end = if length == 0 { hello.len() } else { hello.len().min(offset + length) };
            let part = hello.get(offset..end).unwrap_or_default();
            payload.push(CRYPTO);
            payload.extend((u16::try_from(offset + shift)? | 0x4000).to_be_bytes());
            payload.extend((u16::try_from(part.len())? | 0x4000).to_be_bytes());
            payload.extend(part);
        }
        Ok(payload)
    }
}

fn keys(id: &[u8], version: Version) -> Result<Keys> {
    let suite = TLS13_AES_128_GCM_SHA256.tls13().and_then(Tls13CipherSuite::quic_suite);
    Ok(suite.context("a suite for QUIC")?.keys(id, Side::Client, version))
}
