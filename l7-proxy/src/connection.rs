//! A connection on its thread: the first octets, and who reads the rest.

use std::{
    io,
    net::SocketAddr,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::{Duration, Instant},
};

use namegate_config::name::Fqdn;
use tokio::{
    io::{AsyncRead, AsyncReadExt, ReadBuf},
    sync::watch,
    time::timeout,
};

use crate::{
    account::{Account, Accounts},
    backend::{Access, AccessVerdict, Backend, Named, Question, What},
    bound,
    client::Client,
    counters::{Counters, Outcome},
    delegate::delegate_writes,
    framing::Framing,
    guard::{Asked, Guard, Judgement},
    hello::{Gathering, Hello},
    http::{self, Opened},
    proxy::Config,
    server::Server,
    sniff::{HTTP2, TLS},
    socket,
    standing::{Changes, Standing, Subject},
    tunnel,
};

/// How long a client may say nothing, or take for the head of a request.
pub(crate) const IDLE_MAX: Duration = Duration::from_mins(1);
/// How long the first octets may take once they have begun.
pub(crate) const FIRST_MAX: Duration = Duration::from_secs(10);
/// What all connections share.
#[derive(Debug)]
pub(crate) struct Shared<D> {
    pub(crate) backend: D,
    pub(crate) counters: Arc<Counters>,
    pub(crate) mark: u32,
    port: u16,
    fixed_server: Option<SocketAddr>,
    pub(crate) accounts: Arc<Accounts>,
    pub(crate) changes: Changes,
}

/// A connection that is served.
#[derive(Debug)]
pub(crate) struct Connection<D> {
    pub(crate) shared: Arc<Shared<D>>,
    /// Client and server.
    pub(crate) ends: (SocketAddr, SocketAddr),
    /// When it began.
    pub(crate) began: Instant,
}

impl<D: Backend> Connection<D> {
    pub(crate) fn backend(&self) -> &D {
        &self.shared.backend
    }

    pub(crate) fn count(&self, outcome: Outcome) {
        self.shared.counters.count(outcome);
    }

    /// The limits as they are now. Names in `known` count as if they still opened the address.
    pub(crate) async fn guard(&self, named: Named, known: &Arc<[Fqdn]>) -> Option<Guard> {
        let (client, server) = self.ends;
        let (age, known) = (self.began.elapsed(), Arc::clone(known));
        let question = Question { client, server, age, named, known };
        Some(Guard::from(self.backend().connection_policy(question).await?))
    }

    /// The limits, and the revision they are of.
    pub(crate) async fn guard_and_revision(&self, named: Named) -> Option<(u64, Arc<Guard>)> {
        let revision = self.backend().revision();
        let guard = self.guard(named, &Arc::default()).await?;
        Some((revision, Arc::new(guard)))
    }

    /// Connects to the server; `None` where it does not accept, which is counted.
    pub(crate) async fn connect(&self, account: &Arc<Account>, guard: &Guard) -> Option<Server> {
        let (client, server) = self.ends;
        let source = guard.keeps_source.then(|| client.ip().to_canonical());
        match socket::connect(server, source, self.shared.mark).await {
            Ok(upstream) => Some(Server::new(upstream, account)),
            Err(error) => {
                self.count(Outcome::ServerFailed);
                tracing::debug!(%error, %server, "a server does not accept");
                None
            }
        }
    }

    /// Judges what it asks for under its limits, or under those for its name where that matters.
    pub(crate) async fn judge(
        self: &Arc<Self>,
        (mut revision, any): (u64, &Arc<Guard>),
        subject: Subject,
    ) -> Option<(Standing<D>, Judgement)> {
        let mut guard = Arc::clone(any);
        if any.bound {
            (revision, guard) = self.guard_and_revision(subject.named()).await?;
        }
        let judged = subject.judge(&guard);
        let connection = Arc::clone(self);
        Some((Standing { connection, revision, guard, subject, of_task: None }, judged))
    }

    /// Records what became of a request, or of what the whole connection asks for.
    pub(crate) fn record(&self, judgement: Judgement, verdict: AccessVerdict, what: What) {
        let (client, server) = self.ends;
        let Judgement { direction, rule, mismatch, .. } = judgement;
        self.backend().record(Access { client, server, direction, rule, verdict, mismatch, what });
    }

    /// Counts and records that the connection is denied before it asks for a name.
    pub(crate) fn record_denied(&self, judgement: Judgement) {
        self.count(Outcome::Denied);
        self.record(judgement, AccessVerdict::Denied, What::Tls { server_name: None });
    }
}

impl<D: Backend> Shared<D> {
    pub(crate) fn new(backend: D, counters: Arc<Counters>, config: &Config, port: u16) -> Self {
        let changes = Changes::new(backend.revision());
        let Config { connections_max, connections_per_endpoint_max, bytes_max, .. } = *config;
        let accounts = Accounts::new(connections_max, connections_per_endpoint_max, bytes_max);
        Self { backend, counters, mark: config.mark, port, fixed_server: config.fixed_server, accounts, changes }
    }

    /// Whom a client called; none where that would be the proxy itself.
    fn server(&self, called: SocketAddr) -> Option<SocketAddr> {
        if called.ip().is_loopback() && called.port() == self.port { self.fixed_server } else { Some(called) }
    }
}

/// Serves one connection to its end.
pub(crate) async fn serve<D: Backend>(
    shared: &Arc<Shared<D>>,
    mut stream: Client,
    client: SocketAddr,
    stop: watch::Receiver<()>,
) -> io::Result<()> {
    stream.tune()?;
    let Some(server) = shared.server(stream.local_addr()?) else {
        socket::reset(stream);
        return Ok(());
    };
    let (shared, ends) = (Arc::clone(shared), (client, server));
    let connection = Arc::new(Connection { shared, ends, began: Instant::now() });
    let Some(mut guarded) = connection.guard_and_revision(Named::Any).await else {
        socket::reset(stream);
        return Ok(());
    };
    if guarded.1.bound && guarded.1.is_free() {
        return bound::serve(&connection, stream, guarded, stop).await;
    }
    let mut first = Vec::new();
    timeout(IDLE_MAX, stream.read_buf(&mut first)).await??;
    let Some(&octet) = first.first() else { return Ok(()) };
    if guarded.0 != connection.backend().revision() {
        let Some(now) = connection.guard_and_revision(Named::Any).await else {
            socket::reset(stream);
            return Ok(());
        };
        guarded = now;
    }
    let guard = &guarded.1;
    if octet == TLS && (guard.takes_tls() || guard.audit) {
        return tls(&connection, stream, first, (guarded.0, guard)).await;
    }
    if !guard.takes_http() && !guard.audit {
        connection.record_denied(guard.judge(Asked::Tls(None)));
        socket::reset(stream);
        return Ok(());
    }
    while first.len() < HTTP2.len() && HTTP2.starts_with(&first) {
        if timeout(FIRST_MAX, stream.read_buf(&mut first)).await?? == 0 {
            return Ok(());
        }
    }
    let is_http2 = first.starts_with(HTTP2);
    let opened = Opened { connection, upstream: None };
    http::serve(opened, Prefixed::new(first, stream), guarded, is_http2, stop).await;
    Ok(())
}

/// Reads the server name, and lets the connection pass where a rule allows it. Else the client gets a reset.
async fn tls<D: Backend>(
    connection: &Arc<Connection<D>>,
    mut stream: Client,
    mut first: Vec<u8>,
    guarded: (u64, &Arc<Guard>),
) -> io::Result<()> {
    let mut hello = Gathering::default();
    let reading = async {
        loop {
            match hello.read(&first) {
                Ok(Hello::Whole(name)) => return Ok(name),
                Ok(Hello::Partial) => {}
                Err(_) => return Err(io::Error::from(io::ErrorKind::InvalidData)),
            }
            if stream.read_buf(&mut first).await? == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        }
    };
    let read = timeout(FIRST_MAX, reading).await;
    let is_read = matches!(read, Ok(Ok(_)));
    let name = match read {
        Ok(Ok(name)) => name,
        _ if guarded.1.audit => None,
        _ => {
            connection.count(Outcome::Malformed);
            socket::reset(stream);
            return Ok(());
        }
    };
    let Some((standing, judged)) = connection.judge(guarded, Subject::Tls(name)).await else {
        socket::reset(stream);
        return Ok(());
    };
    let verdict = judged.verdict(standing.guard.audit);
    standing.record_first(judged, verdict);
    if verdict == AccessVerdict::Denied {
        socket::reset(stream);
        return Ok(());
    }
    let Some(upstream) = connection.connect(stream.account(), &standing.guard).await else {
        socket::reset(stream);
        return Ok(());
    };
    if is_read {
        return tunnel::tls(standing, (stream, upstream), (hello, first)).await;
    }
    tunnel::unread(&standing, Prefixed::new(first, stream), upstream, None).await;
    Ok(())
}

/// A stream of which the first octets were read already.
pub(crate) struct Prefixed {
    first: Vec<u8>,
    at: usize,
    stream: Client,
    framing: Option<Framing>,
}

impl Prefixed {
    pub(crate) fn new(first: Vec<u8>, stream: Client) -> Self {
        Self { first, at: 0, stream, framing: None }
    }

    /// The client's connection.
    pub(crate) fn client(&self) -> &Client {
        &self.stream
    }

    /// Shows all that is read to `framing` first.
    pub(crate) fn framed(mut self, framing: Framing) -> Self {
        self.framing = Some(framing);
        self
    }

    fn take(&mut self, context: &mut Context<'_>, into: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let left = &self.first[self.at..];
        if left.is_empty() {
            return Pin::new(&mut self.stream).poll_read(context, into);
        }
        let count = left.len().min(into.remaining());
        into.put_slice(&left[..count]);
        self.at += count;
        if self.at == self.first.len() {
            (self.first, self.at) = (Vec::new(), 0);
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncRead for Prefixed {
    fn poll_read(mut self: Pin<&mut Self>, context: &mut Context<'_>, into: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = into.filled().len();
        let polled = Self::take(&mut self, context, into);
        if let Some(framing) = &mut self.framing {
            framing.feed(&into.filled()[before..]);
        }
        polled
    }
}

delegate_writes!([] Prefixed);
