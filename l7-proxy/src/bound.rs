//! Connections that may speak any protocol, and must ask for a name that opened the server's address where theirs has names.
//!
//! The server is called at once, and what it says goes to the client as it comes: only what the client says waits until it
//! is known for what it is.

use std::{io, net::SocketAddr, sync::Arc};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    sync::watch,
    time::{Instant, timeout_at},
};

use crate::{
    client::Client,
    connection::{FIRST_MAX, Prefixed, Shared, record_tls},
    desk::{Desk, Fate},
    guard::{Asked, Guard},
    hello::Malformed,
    http::{self, Opened},
    sniff::{self, Opening},
    socket,
    tally::Outcome,
};

/// Octets of a server passed on at a time while the client has not said what it speaks.
const CHUNK_OCTETS: usize = 16 << 10;

/// What a client begins with.
struct Beginning {
    octets: Vec<u8>,
    opening: Result<Opening, Malformed>,
    /// The server has spoken first.
    answered: bool,
}

/// Serves a connection to its end.
pub(crate) async fn serve<D: Desk>(
    shared: &Arc<Shared<D>>,
    mut stream: Client,
    mut opened: Opened,
    guarded: (u64, Arc<Guard>),
    stop: watch::Receiver<()>,
) -> io::Result<()> {
    let (client, server) = opened.ends;
    let source = guarded.1.keeps_source.then(|| client.ip().to_canonical());
    let mut upstream = match socket::connect(server, source, shared.mark).await {
        Ok(upstream) => upstream,
        Err(error) => {
            shared.tallies.count(Outcome::ServerFailed);
            tracing::debug!(%error, %server, "a server does not accept");
            socket::reset(stream);
            return Ok(());
        }
    };
    let Beginning { octets, opening, answered } = listen(&mut stream, &mut upstream).await?;
    match opening {
        Ok(Opening::Tls(name)) => {
            let named = shared.guard_of(&guarded.1, opened.ends, opened.began, name.as_ref()).await;
            let Some(guard) = named else {
                socket::reset(stream);
                return Ok(());
            };
            let judged = guard.judge(Asked::Tls(name.as_ref()));
            let (shown, passes) = (name.map(|name| name.to_string()), judged.allowed || guard.audit);
            let fate = match (passes, judged.allowed && !judged.mismatch) {
                (_, true) => Fate::Allowed,
                (true, false) => Fate::Audited,
                (false, false) => Fate::Denied,
            };
            record_tls(shared, opened.ends, judged, fate, shown);
            if !passes {
                socket::reset(stream);
                return Ok(());
            }
        }
        // A server of HTTP does not speak first.
        Ok(kind @ (Opening::Http | Opening::Http2)) if !answered => {
            opened.upstream = Some(upstream);
            let stream = Prefixed::new(octets, stream);
            http::serve(Arc::clone(shared), stream, opened, guarded, kind == Opening::Http2, stop).await;
            return Ok(());
        }
        Ok(Opening::Other) => {}
        // Silence to its end.
        Ok(Opening::Partial) if octets.is_empty() => {}
        _ if guarded.1.audit => {}
        _ => {
            unread(shared, opened.ends, &guarded.1);
            socket::reset(stream);
            return Ok(());
        }
    }
    stream.account().pass();
    let mut stream = Prefixed::new(octets, stream);
    // Either side may break off.
    let _ = tokio::io::copy_bidirectional(&mut stream, &mut upstream).await;
    Ok(())
}

/// Reads what the client begins with until it is known for what it is, it ends, or it takes too long.
async fn listen(stream: &mut Client, upstream: &mut TcpStream) -> io::Result<Beginning> {
    let mut beginning = Beginning { octets: Vec::new(), opening: Ok(Opening::Partial), answered: false };
    let mut answer = Vec::with_capacity(CHUNK_OCTETS);
    let mut deadline = None;
    loop {
        let late = async {
            match deadline {
                Some(deadline) => timeout_at(deadline, std::future::pending()).await.unwrap_or(()),
                // Nothing has been said: a client may listen for as long as it likes.
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            read = stream.read_buf(&mut beginning.octets) => {
                if read? == 0 {
                    return Ok(beginning);
                }
                beginning.opening = sniff::read(&beginning.octets);
                if beginning.opening != Ok(Opening::Partial) {
                    return Ok(beginning);
                }
                deadline.get_or_insert_with(|| Instant::now() + FIRST_MAX);
            }
            read = upstream.read_buf(&mut answer) => {
                if read? == 0 {
                    stream.shutdown().await?;
                    return Err(io::ErrorKind::UnexpectedEof.into());
                }
                beginning.answered = true;
                stream.write_all(&answer).await?;
                answer.clear();
            }
            () = late => return Ok(beginning),
        }
    }
}

/// Tells of a beginning that is none of a known protocol, and could become one.
fn unread<D: Desk>(shared: &Shared<D>, ends: (SocketAddr, SocketAddr), guard: &Guard) {
    shared.tallies.count(Outcome::Malformed);
    let mut judged = guard.judge(Asked::Tls(None));
    (judged.allowed, judged.mismatch) = (false, true);
    record_tls(shared, ends, judged, Fate::Denied, None);
}
