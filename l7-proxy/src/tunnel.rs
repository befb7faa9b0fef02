//! Connections that are judged once: a TLS handshake is followed to its end, then bytes pass both ways unread.

use std::{
    io,
    pin::Pin,
    task::{Context, Poll},
};

use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWriteExt, ReadBuf, copy_bidirectional},
    time::timeout,
};

use crate::{
    backend::{AccessVerdict, Backend},
    client::Client,
    connection::{IDLE_MAX, Prefixed},
    counters::Outcome,
    delegate::delegate_writes,
    handshake::{Answer, Handshake, Legacy},
    hello::{Gathering, Malformed},
    server::Server,
    sniff::FirstLine,
    socket,
    splice::{self, SILENCE_MAX},
    standing::Standing,
};

/// Bytes of a server passed on at a time while its answer is read.
const CHUNK: usize = 16 << 10;

/// How a handshake went on.
enum Followed {
    /// The server's answer is final. The client's next bytes were read already.
    Final(Answer, Vec<u8>),
    /// One side has ended.
    Ended,
    /// The client sent what must not follow its first message; those bytes.
    Refused(Vec<u8>),
}

/// Follows the handshake that the first message begins, and passes bytes until one side ends or the rules change. `first`
/// are the client's bytes, the message first.
pub(crate) async fn tls<D: Backend>(
    standing: Standing<D>,
    (mut client, mut server): (Client, Server),
    (gathering, mut first): (Gathering, Vec<u8>),
) -> io::Result<()> {
    let after = first.split_off(gathering.length());
    server.write_all(&first).await?;
    drop(first);
    let handshake = Handshake::new(&gathering, after);
    drop(gathering);
    let (rest, legacy) = match timeout(IDLE_MAX, follow(&mut client, &mut server, handshake)).await?? {
        Followed::Final(Answer::Older { finished_max }, rest) => (rest, Some(Legacy::new(finished_max))),
        Followed::Final(_, rest) => (rest, None),
        Followed::Ended => return Ok(()),
        Followed::Refused(rest) if passes_inconsistent(&standing) => (rest, None),
        Followed::Refused(_) => {
            reset(&client, &server);
            return Ok(());
        }
    };
    unread(&standing, Prefixed::new(rest, client), server, legacy).await;
    Ok(())
}

/// Passes bytes of a TLS connection until one side ends, both are silent, or the rules change.
pub(crate) async fn unread<D: Backend>(
    standing: &Standing<D>,
    client: Prefixed,
    mut server: Server,
    legacy: Option<Legacy>,
) {
    let watch = legacy.map(Watch::Legacy);
    let _buffers = client.client().account().pass();
    let mut client = Watched { stream: client, watch, standing };
    let is_refused = tokio::select! {
        passed = splice::both(&mut client, &mut server, SILENCE_MAX) => is_refusal(&passed),
        () = standing.revoked() => true,
    };
    if is_refused {
        reset(client.stream.client(), &server);
    }
}

/// Passes bytes of a protocol without names until one side ends or the rules change.
pub(crate) async fn nameless<D: Backend>(standing: &Standing<D>, client: Prefixed, mut server: Server) {
    let watch = Some(Watch::FirstLine(FirstLine::default()));
    let _buffers = client.client().account().pass();
    let mut client = Watched { stream: client, watch, standing };
    let is_refused = tokio::select! {
        // Both may be silent for as long as they like.
        passed = copy_bidirectional(&mut client, &mut server) => is_refusal(&passed),
        () = standing.revoked() => true,
    };
    if is_refused {
        reset(client.stream.client(), &server);
    }
}

/// Whether a client's bytes were refused; else either side may break off.
fn is_refusal<T>(passed: &io::Result<T>) -> bool {
    passed.as_ref().is_err_and(|error| error.kind() == io::ErrorKind::InvalidData)
}

/// Passes a handshake on, message by message.
async fn follow(client: &mut Client, server: &mut Server, mut handshake: Handshake) -> io::Result<Followed> {
    let mut answer = Vec::with_capacity(CHUNK);
    loop {
        match handshake.take() {
            Ok(bytes) => server.write_all(&bytes).await?,
            Err(Malformed) => return Ok(Followed::Refused(handshake.into_held())),
        }
        tokio::select! {
            read = client.read_buf(handshake.held()) => {
                if read? == 0 {
                    // Nothing more can come. The beginning of a record is dropped.
                    return Ok(Followed::Final(Answer::Current, Vec::new()));
                }
            }
            read = server.read_buf(&mut answer) => {
                if read? == 0 {
                    client.shutdown().await?;
                    return Ok(Followed::Ended);
                }
                let found = handshake.read_server(&answer);
                client.write_all(&answer).await?;
                answer.clear();
                match found {
                    Some(_) if handshake.holds_message() => return Ok(Followed::Refused(handshake.into_held())),
                    Some(answer) => return Ok(Followed::Final(answer, handshake.into_held())),
                    None => {}
                }
            }
        }
    }
}

/// Records that a handshake goes on otherwise than its first message allows. Gives whether it may: denials are recorded
/// only in audit mode.
fn passes_inconsistent<D: Backend>(standing: &Standing<D>) -> bool {
    standing.connection.count(Outcome::Inconsistent);
    let is_audited = standing.guard.audit;
    standing.record(None, if is_audited { AccessVerdict::Audited } else { AccessVerdict::Denied });
    is_audited
}

fn reset(client: &Client, server: &Server) {
    socket::reset(client);
    socket::reset(server);
}

/// What is watched of a client's bytes while they pass.
enum Watch {
    /// Records of a version of TLS that could renegotiate.
    Legacy(Legacy),
    /// The first line of a protocol without names.
    FirstLine(FirstLine),
}

impl Watch {
    fn read(&mut self, bytes: &[u8]) -> Result<(), Malformed> {
        match self {
            Self::Legacy(legacy) => legacy.read(bytes),
            Self::FirstLine(line) => line.read(bytes),
        }
    }
}

/// A client whose bytes may be watched.
struct Watched<'s, D> {
    stream: Prefixed,
    watch: Option<Watch>,
    standing: &'s Standing<D>,
}

impl<D: Backend> AsyncRead for Watched<'_, D> {
    fn poll_read(mut self: Pin<&mut Self>, context: &mut Context<'_>, into: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = into.filled().len();
        let polled = Pin::new(&mut self.stream).poll_read(context, into);
        let bytes = &into.filled()[before..];
        let is_inconsistent = self.watch.as_mut().is_some_and(|watch| watch.read(bytes).is_err());
        if is_inconsistent {
            self.watch = None;
            if !passes_inconsistent(self.standing) {
                return Poll::Ready(Err(io::ErrorKind::InvalidData.into()));
            }
        }
        polled
    }
}

delegate_writes!([D: Backend] Watched<'_, D>);
