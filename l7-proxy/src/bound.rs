//! Connections that may speak any protocol, and must ask for a name that opened the server's address where theirs has names.
//!
//! The server is called at once. Where protocols without names pass, what it says first goes to the client as it comes:
//! only what the client says waits until it is known for what it is.

use std::{io, sync::Arc};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    sync::watch,
    time::{Instant, timeout_at},
};

use crate::{
    backend::{AccessVerdict, Backend},
    client::Client,
    connection::{Connection, FIRST_MAX, Prefixed},
    counters::Outcome,
    guard::{Asked, Guard},
    hello::Malformed,
    http::{self, Opened},
    server::Server,
    sniff::{Opening, Sniffer},
    socket,
    standing::{Standing, Subject},
    tunnel,
};

/// Octets of a server passed on at a time while the client has not said what it speaks.
const CHUNK_OCTETS: usize = 16 << 10;

/// What a client begins with.
struct Beginning {
    octets: Vec<u8>,
    sniffer: Sniffer,
    opening: Result<Opening, Malformed>,
    /// By when it must be known.
    deadline: Option<Instant>,
    /// The server has spoken first.
    answered: bool,
}

/// Serves a connection to its end.
pub(crate) async fn serve<D: Backend>(
    connection: &Arc<Connection<D>>,
    mut stream: Client,
    guarded: (u64, Arc<Guard>),
    stop: watch::Receiver<()>,
) -> io::Result<()> {
    let Some(mut upstream) = connection.connect(stream.account(), &guarded.1).await else {
        socket::reset(stream);
        return Ok(());
    };
    let judge = |subject| judge(connection, &guarded, subject);
    let mut beginning = Beginning::default();
    let mut nameless = None;
    if !beginning.listen(&mut stream, &mut upstream).await? {
        let Some(standing) = judge(Subject::Nameless).await else {
            socket::reset(stream);
            return Ok(());
        };
        beginning.answered = true;
        tokio::select! {
            heard = beginning.listen(&mut stream, &mut upstream) => heard?,
            () = standing.revoked() => {
                socket::reset(stream);
                return Ok(());
            }
        };
        nameless = Some(standing);
    }
    let Beginning { octets, sniffer, opening, answered, .. } = beginning;
    match opening {
        Ok(Opening::Tls(name)) => match judge(Subject::Tls(name)).await {
            Some(standing) => return tunnel::tls(standing, (stream, upstream), (sniffer.into_hello(), octets)).await,
            None => socket::reset(stream),
        },
        // A server of HTTP does not speak first.
        Ok(kind @ (Opening::Http | Opening::Http2)) if !answered => {
            let opened = Opened { connection: Arc::clone(connection), upstream: Some(upstream) };
            let stream = Prefixed::new(octets, stream);
            http::serve(opened, stream, guarded, kind == Opening::Http2, stop).await;
        }
        // Silence to its end asks for nothing: where that may not pass, no refusal is recorded.
        Ok(Opening::Partial) if octets.is_empty() && nameless.is_none() => {
            if let Some((standing, judged)) = connection.judge((guarded.0, &guarded.1), Subject::Nameless).await
                && judged.verdict(standing.guard.audit) != AccessVerdict::Denied
            {
                tunnel::nameless(&standing, Prefixed::new(octets, stream), upstream).await;
            }
        }
        kind => {
            let is_unread = !matches!(kind, Ok(Opening::Other)) && !octets.is_empty();
            if is_unread && !guarded.1.audit {
                refuse_unread(connection, &guarded.1, stream);
                return Ok(());
            }
            if nameless.is_none() {
                nameless = judge(Subject::Nameless).await;
            }
            match nameless {
                Some(standing) => tunnel::nameless(&standing, Prefixed::new(octets, stream), upstream).await,
                None => socket::reset(stream),
            }
        }
    }
    Ok(())
}

/// Judges what a connection asks for, and records it. `None` where it may not pass.
async fn judge<D: Backend>(
    connection: &Arc<Connection<D>>,
    (revision, any): &(u64, Arc<Guard>),
    subject: Subject,
) -> Option<Standing<D>> {
    let (standing, judged) = connection.judge((*revision, any), subject).await?;
    let verdict = judged.verdict(standing.guard.audit);
    // What asks for no name, and need not, is no request.
    if verdict != AccessVerdict::Allowed || !matches!(standing.subject, Subject::Nameless) {
        standing.record_first(judged, verdict);
    }
    (verdict != AccessVerdict::Denied).then_some(standing)
}

impl Default for Beginning {
    fn default() -> Self {
        Self {
            octets: Vec::new(),
            sniffer: Sniffer::default(),
            opening: Ok(Opening::Partial),
            deadline: None,
            answered: false,
        }
    }
}

impl Beginning {
    /// Reads what the client begins with until it is known for what it is, it ends, or it takes too long. Gives `false`
    /// where the server speaks before: only after that was judged, which `answered` says, its words are passed on.
    async fn listen(&mut self, stream: &mut Client, upstream: &mut Server) -> io::Result<bool> {
        let mut answer = Vec::with_capacity(CHUNK_OCTETS);
        loop {
            let deadline = self.deadline;
            let late = async {
                match deadline {
                    Some(deadline) => timeout_at(deadline, std::future::pending()).await.unwrap_or(()),
                    // Nothing has been said: a client may listen for as long as it likes.
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                read = stream.read_buf(&mut self.octets) => {
                    if read? == 0 {
                        return Ok(true);
                    }
                    self.opening = self.sniffer.read(&self.octets);
                    if self.opening != Ok(Opening::Partial) {
                        return Ok(true);
                    }
                    self.deadline.get_or_insert_with(|| Instant::now() + FIRST_MAX);
                }
                read = hear(upstream, &mut answer, self.answered) => {
                    if read? == 0 {
                        stream.shutdown().await?;
                        return Err(io::ErrorKind::UnexpectedEof.into());
                    }
                    if !self.answered {
                        return Ok(false);
                    }
                    stream.write_all(&answer).await?;
                    answer.clear();
                }
                () = late => return Ok(true),
            }
        }
    }
}

/// Waits for a server's bytes, and takes them where they may pass. Gives how many there are.
async fn hear(upstream: &mut Server, answer: &mut Vec<u8>, passes: bool) -> io::Result<usize> {
    if passes { upstream.read_buf(answer).await } else { upstream.peek(&mut [0]).await }
}

/// Records a beginning that is none of a known protocol, and could become one; ends the connection.
fn refuse_unread<D: Backend>(connection: &Connection<D>, guard: &Guard, stream: Client) {
    connection.count(Outcome::Malformed);
    let mut judged = guard.judge(Asked::Tls(None));
    (judged.allowed, judged.mismatch) = (false, true);
    connection.record_denied(judged);
    socket::reset(stream);
}
