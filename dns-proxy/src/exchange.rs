//! One question over TCP to a resolver (RFC 7766): connect, send, read one message. Connections are kept for a while, since
//! a resolver that truncates once does so again.

use std::{
    collections::HashMap,
    io,
    net::SocketAddr,
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpSocket, TcpStream},
};

use crate::socket::Marked;

/// Idle connections kept to one resolver.
const IDLE_PER_RESOLVER_MAX: usize = 16;
/// How long a connection is kept idle; resolvers close after 10 seconds or more.
const IDLE_AGE_MAX: Duration = Duration::from_secs(5);

/// Idle connections of one worker.
#[derive(Debug)]
pub(crate) struct Idle {
    streams: Mutex<HashMap<SocketAddr, Vec<(TcpStream, Instant)>>>,
    /// To all resolvers together.
    all_max: usize,
}

impl Idle {
    pub(crate) fn new(all_max: usize) -> Self {
        Self { streams: Mutex::default(), all_max }
    }

    fn take(&self, resolver: SocketAddr) -> Option<TcpStream> {
        let mut idle = self.streams.lock().unwrap_or_else(PoisonError::into_inner);
        let streams = idle.get_mut(&resolver)?;
        streams.retain(|(_, since)| since.elapsed() < IDLE_AGE_MAX);
        let stream = streams.pop().map(|(stream, _)| stream);
        if streams.is_empty() {
            idle.remove(&resolver);
        }
        stream
    }

    fn give(&self, resolver: SocketAddr, stream: TcpStream) {
        let mut idle = self.streams.lock().unwrap_or_else(PoisonError::into_inner);
        idle.retain(|_, streams| {
            streams.retain(|(_, since)| since.elapsed() < IDLE_AGE_MAX);
            !streams.is_empty()
        });
        let all: usize = idle.values().map(Vec::len).sum();
        let of_resolver = idle.get(&resolver).map_or(0, Vec::len);
        if all < self.all_max && of_resolver < IDLE_PER_RESOLVER_MAX {
            idle.entry(resolver).or_default().push((stream, Instant::now()));
        }
    }
}

/// Sends a question and returns the next message of the resolver. A kept connection may have been closed meanwhile: then
/// the question is asked once more over a new one.
pub(crate) async fn ask(idle: &Idle, marked: Marked, resolver: SocketAddr, question: &[u8]) -> io::Result<Vec<u8>> {
    if let Some(mut kept) = idle.take(resolver)
        && let Ok(answer) = converse(&mut kept, question).await
    {
        idle.give(resolver, kept);
        return Ok(answer);
    }
    let socket = TcpSocket::from_std_stream(marked.tcp_upstream(resolver)?);
    let mut stream = socket.connect(resolver).await?;
    let answer = converse(&mut stream, question).await?;
    idle.give(resolver, stream);
    Ok(answer)
}

async fn converse(stream: &mut TcpStream, question: &[u8]) -> io::Result<Vec<u8>> {
    stream.write_all(&framed(question)?).await?;
    let mut answer = vec![0; usize::from(stream.read_u16().await?)];
    stream.read_exact(&mut answer).await?;
    Ok(answer)
}

/// A message behind its length (RFC 1035 §4.2.2).
pub(crate) fn framed(message: &[u8]) -> io::Result<Vec<u8>> {
    let length = u16::try_from(message.len()).map_err(|_| io::ErrorKind::InvalidInput)?;
    let mut frame = Vec::with_capacity(2 + message.len());
    frame.extend(length.to_be_bytes());
    frame.extend_from_slice(message);
    Ok(frame)
}
