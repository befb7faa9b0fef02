//! HTTP requests of one connection: each is read, judged, and passed on or answered 403.

use std::{
    convert::Infallible,
    net::SocketAddr,
    pin::pin,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Instant,
};

use bytes::Bytes;
use http_body_util::{Either, Full};
use hyper::{
    HeaderMap, Method, Request, Response, StatusCode, Uri, Version,
    body::{Body, Incoming},
    header::{
        CONNECTION, CONTENT_LENGTH, CONTENT_TYPE, EXPECT, HOST, HeaderName, HeaderValue, TE, TRANSFER_ENCODING, UPGRADE,
    },
    http::{request::Parts, uri::PathAndQuery},
    server::conn::{http1, http2},
    service::service_fn,
    upgrade::OnUpgrade,
};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use tokio::{
    net::TcpStream,
    sync::{Mutex, watch},
};

use crate::{
    connection::{IDLE_MAX, Prefixed, Shared},
    desk::{Access, Desk, Fate, Match, Named, Question, What},
    framing::{Doubtful, Framing},
    guard::{Asked, Guard, HttpFacts, Judgement},
    head, sniff,
    splice::{self, SILENCE_MAX},
    standing::{Revoked, Standing, StandingBody, Subject},
    tally::Outcome,
    upstream::{Upstream, UpstreamError},
};

/// Octets of the head of a request.
const HEAD_OCTETS_MAX: u32 = 64 << 10;
/// Header fields of a request.
const FIELDS_MAX: usize = 128;
/// Requests of one HTTP/2 connection at a time.
const STREAMS_MAX: u32 = 128;
/// The body of a denial, as Cilium's proxy has it.
const DENIED: &str = "Access denied\n";
/// Why a request did not pass.
const REASON: HeaderName = HeaderName::from_static("x-namegate-reason");
/// The reason where the host is no name of the server.
pub(crate) const MISMATCH: &str = "the name did not open this address";
/// Fields about one connection (RFC 9110 §7.6.1).
const HOP_BY_HOP: [HeaderName; 7] = [
    CONNECTION,
    TRANSFER_ENCODING,
    UPGRADE,
    TE,
    // The other half of a wish for HTTP/2 (RFC 7540 §3.2.1), also where `Connection` does not name it.
    HeaderName::from_static("http2-settings"),
    HeaderName::from_static("keep-alive"),
    HeaderName::from_static("proxy-connection"),
];

/// A client's connection.
pub(crate) struct Opened {
    /// Client and server.
    pub(crate) ends: (SocketAddr, SocketAddr),
    /// When it began.
    pub(crate) began: Instant,
    /// The connection to the server, where there is one already.
    pub(crate) upstream: Option<TcpStream>,
}

type Reply = Response<Either<StandingBody, Full<Bytes>>>;

/// One client's connection.
struct Session<D> {
    shared: Arc<Shared<D>>,
    client: SocketAddr,
    server: SocketAddr,
    upstream: Upstream,
    /// When the connection began.
    began: Instant,
    /// The limits, and the revision they are of.
    guard: Mutex<(u64, Arc<Guard>)>,
    /// Those of the host asked for last, where it matters.
    of_host: Mutex<Option<(u64, String, Arc<Guard>)>>,
    /// Requests so far.
    asked: AtomicU64,
    doubtful: Doubtful,
}

/// Serves requests until the client or the server is done, or until `stop` is closed and those under way are answered.
pub(crate) async fn serve<D: Desk>(
    shared: Arc<Shared<D>>,
    stream: Prefixed,
    opened: Opened,
    guard: (u64, Arc<Guard>),
    is_http2: bool,
    mut stop: watch::Receiver<()>,
) {
    let Opened { ends: (client, server), began, upstream } = opened;
    let upstream = Upstream::new(server, shared.mark, is_http2, upstream);
    let doubtful = Doubtful::default();
    let stream = if is_http2 { stream } else { stream.framed(Framing::new(doubtful.clone())) };
    let (guard, of_host, asked) = (Mutex::new(guard), Mutex::default(), AtomicU64::new(0));
    let session = Arc::new(Session { shared, client, server, upstream, began, guard, of_host, asked, doubtful });
    let service = service_fn(move |request| {
        let session = Arc::clone(&session);
        async move {
            let is_head = request.method() == Method::HEAD;
            let reply = session.answer(request).await;
            Ok::<_, Infallible>(if is_head { without_body(reply) } else { reply })
        }
    });
    let stream = TokioIo::new(stream);
    let ended = if is_http2 {
        let mut builder = http2::Builder::new(TokioExecutor::new());
        builder.timer(TokioTimer::new()).max_concurrent_streams(STREAMS_MAX);
        builder.max_header_list_size(HEAD_OCTETS_MAX).keep_alive_interval(IDLE_MAX);
        let mut connection = pin!(builder.serve_connection(stream, service));
        tokio::select! {
            ended = connection.as_mut() => ended,
            _ = stop.changed() => {
                connection.as_mut().graceful_shutdown();
                connection.await
            }
        }
    } else {
        let mut builder = http1::Builder::new();
        builder.timer(TokioTimer::new()).header_read_timeout(IDLE_MAX).max_headers(FIELDS_MAX);
        builder.max_buf_size(HEAD_OCTETS_MAX as usize).preserve_header_case(true).half_close(true);
        let mut connection = pin!(builder.serve_connection(stream, service).with_upgrades());
        tokio::select! {
            ended = connection.as_mut() => ended,
            _ = stop.changed() => {
                connection.as_mut().graceful_shutdown();
                connection.await
            }
        }
    };
    if let Err(error) = ended {
        tracing::trace!(%error, %client, %server, "an HTTP connection ended");
    }
}

impl<D: Desk> Session<D> {
    async fn answer(&self, request: Request<Incoming>) -> Reply {
        let began = Instant::now();
        let (mut parts, body) = request.into_parts();
        let number = self.asked.fetch_add(1, Ordering::Relaxed) + 1;
        if self.doubtful.has(number) {
            return self.malformed(head::TWO_ENDS, &parts);
        }
        let host = match head::host(&parts) {
            Ok(host) => host,
            Err(refused) => return self.malformed(refused, &parts),
        };
        let revision = self.shared.desk.revision();
        let Some(guard) = self.guard(&host).await else {
            return plain(StatusCode::SERVICE_UNAVAILABLE, "Unavailable\n", "the rules can not be asked");
        };
        let facts = match head::read(&parts, host, !guard.bound || guard.reads_http()) {
            Ok(facts) => facts,
            Err(refused) => return self.malformed(refused, &parts),
        };
        let judged = guard.judge(Asked::Http(&facts, &parts.headers));
        if !judged.allowed && !guard.audit {
            self.shared.tallies.count(Outcome::Denied);
            let nobody = if judged.mismatch { MISMATCH } else { "no rule allows the flow" };
            let why = judged.rule.as_ref().map_or_else(|| nobody.to_owned(), ToString::to_string);
            let reply = plain(StatusCode::FORBIDDEN, DENIED, &why);
            self.record(facts, judged, Fate::Denied, reply.status(), began);
            return reply;
        }
        self.shared.tallies.count(Outcome::Allowed);
        let fate = if judged.allowed && !judged.mismatch { Fate::Allowed } else { Fate::Audited };
        let mut revoked = self.revoked(Subject::request(&facts, &parts.headers), &guard, revision);
        let from_client = take_upgrade(&mut parts.headers, &mut parts.extensions);
        let source = guard.keeps_source.then(|| self.client.ip().to_canonical());
        let reply = match outgoing(parts, body, &facts) {
            Ok(request) => tokio::select! {
                biased;
                sent = self.upstream.send(request, source) => match sent {
                    Ok(response) => incoming(response, from_client, revoked),
                    Err(error) => self.unanswered(&error),
                },
                () = &mut revoked => plain(StatusCode::FORBIDDEN, DENIED, "the rules have changed"),
            },
            Err(why) => plain(StatusCode::BAD_REQUEST, "Bad request\n", why),
        };
        self.record(facts, judged, fate, reply.status(), began);
        reply
    }

    fn malformed(&self, refused: head::Refused, parts: &Parts) -> Reply {
        self.shared.tallies.count(Outcome::Malformed);
        let mut reply = plain(refused.status, "Bad request\n", refused.why);
        if parts.version < Version::HTTP_2 {
            reply.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
        }
        reply
    }

    /// The limits as they are now, for requests to this host where that matters.
    async fn guard(&self, host: &str) -> Option<Arc<Guard>> {
        let revision = self.shared.desk.revision();
        let mut held = self.guard.lock().await;
        if held.0 != revision {
            *held = (revision, self.ask(Named::Any).await?);
        }
        let any = Arc::clone(&held.1);
        drop(held);
        if !any.bound {
            return Some(any);
        }
        let mut held = self.of_host.lock().await;
        if let Some((at, of, guard)) = &*held
            && (*at, of.as_str()) == (revision, host)
        {
            return Some(Arc::clone(guard));
        }
        let guard = self.ask(Named::One(sniff::name_of(host))).await?;
        // A name that is refused may be looked up before the next request.
        if guard.binding == Match::Good {
            *held = Some((revision, host.to_owned(), Arc::clone(&guard)));
        }
        Some(guard)
    }

    async fn ask(&self, named: Named) -> Option<Arc<Guard>> {
        let Self { client, server, began, .. } = *self;
        let question = Question { client, server, age: began.elapsed(), named, known: Arc::default() };
        let demand = self.shared.desk.demand(question).await?;
        Some(Arc::new(self.shared.compiler.guard(demand)))
    }

    /// Resolves once the rules do not let a request pass any more that they let pass at `revision`.
    fn revoked(&self, subject: Subject, guard: &Arc<Guard>, revision: u64) -> Revoked {
        let (shared, guard) = (Arc::clone(&self.shared), Arc::clone(guard));
        let (ends, began) = ((self.client, self.server), self.began);
        let standing = Standing { shared, ends, began, revision, guard, subject };
        Box::pin(async move { standing.revoked().await })
    }

    fn unanswered(&self, error: &UpstreamError) -> Reply {
        self.shared.tallies.count(Outcome::ServerFailed);
        tracing::debug!(error = ?error, server = %self.server, "no response");
        match error {
            UpstreamError::Connect(error) if error.kind() == std::io::ErrorKind::TimedOut => {
                plain(StatusCode::GATEWAY_TIMEOUT, "Gateway timeout\n", "the server does not accept the connection")
            }
            UpstreamError::Connect(_) => {
                plain(StatusCode::BAD_GATEWAY, "Bad gateway\n", "the server refuses the connection")
            }
            UpstreamError::Talk(_) => plain(StatusCode::BAD_GATEWAY, "Bad gateway\n", "the server broke off"),
        }
    }

    fn record(&self, facts: HttpFacts, judged: Judgement, fate: Fate, status: StatusCode, began: Instant) {
        let Judgement { direction, rule, mismatch, .. } = judged;
        let HttpFacts { method, path, host } = facts;
        let what = What::Http { method, path, host, code: status.as_u16(), latency: began.elapsed() };
        let Self { client, server, .. } = *self;
        self.shared.desk.record(Access { client, server, direction, rule, fate, mismatch, what });
    }
}

/// A reply to `HEAD`: the octets that another method would get are counted, not sent (RFC 9110 §9.3.2). Servers send
/// none; clients of HTTP/2 take any for an error.
fn without_body(mut reply: Reply) -> Reply {
    if let Either::Right(own) = reply.body_mut() {
        let octets = own.size_hint().lower();
        *own = Full::default();
        reply.headers_mut().insert(CONTENT_LENGTH, octets.into());
    }
    reply
}

/// A reply of the proxy's own.
fn plain(status: StatusCode, body: &'static str, why: &str) -> Reply {
    let mut reply = Response::new(Either::Right(Full::from(body)));
    *reply.status_mut() = status;
    reply.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("text/plain"));
    if let Ok(why) = HeaderValue::from_str(why) {
        reply.headers_mut().insert(REASON, why);
    }
    reply
}

/// The client's half of a change to WebSocket, where it asks for that. Other changes are not passed on: what follows them
/// could be requests that nobody reads (HTTP/2).
fn take_upgrade(headers: &mut HeaderMap, extensions: &mut hyper::http::Extensions) -> Option<OnUpgrade> {
    let is_websocket = headers.get(UPGRADE).is_some_and(|value| value.as_bytes().eq_ignore_ascii_case(b"websocket"))
        && headers.get_all(UPGRADE).iter().count() == 1
        && has_token(headers, "upgrade");
    let upgrade = extensions.remove::<OnUpgrade>().filter(|_| is_websocket);
    if upgrade.is_none() {
        headers.remove(UPGRADE);
    }
    upgrade
}

fn has_token(headers: &HeaderMap, token: &str) -> bool {
    let values = headers.get_all(CONNECTION).iter().filter_map(|value| value.to_str().ok());
    values.flat_map(|value| value.split(',')).any(|one| one.trim().eq_ignore_ascii_case(token))
}

/// Removes the fields about one connection, and those that `Connection` names.
fn strip(headers: &mut HeaderMap) {
    let named: Vec<HeaderName> = headers
        .get_all(CONNECTION)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .filter_map(|name| name.trim().parse().ok())
        .collect();
    for name in named.iter().chain(&HOP_BY_HOP) {
        headers.remove(name);
    }
}

/// The request as the server gets it: with the path that was judged.
fn outgoing(mut parts: Parts, body: Incoming, facts: &HttpFacts) -> Result<Request<Incoming>, &'static str> {
    let takes_trailers = parts.headers.get(TE).is_some_and(|value| value.as_bytes().eq_ignore_ascii_case(b"trailers"));
    let upgrade = parts.headers.get(UPGRADE).cloned();
    let is_chunked = parts.headers.contains_key(TRANSFER_ENCODING);
    strip(&mut parts.headers);
    // The proxy has said "100 Continue" itself when the body is read.
    parts.headers.remove(EXPECT);
    if takes_trailers {
        parts.headers.insert(TE, HeaderValue::from_static("trailers"));
    }
    let is_http2 = parts.version >= Version::HTTP_2;
    let is_as_it_came = |target: &&PathAndQuery| target.as_str() == facts.path;
    let mut target = match parts.uri.path_and_query().filter(is_as_it_came) {
        Some(target) => Uri::builder().path_and_query(target.clone()),
        None => Uri::builder().path_and_query(facts.path.as_str()),
    };
    if is_http2 {
        target = target.scheme(parts.uri.scheme_str().unwrap_or("http")).authority(facts.host.as_str());
        parts.headers.remove(HOST);
    } else {
        let is_as_judged = parts.headers.get(HOST).is_some_and(|host| host.as_bytes() == facts.host.as_bytes());
        if !is_as_judged && !facts.host.is_empty() {
            parts.headers.insert(HOST, HeaderValue::from_str(&facts.host).map_err(|_| "Host is no authority")?);
        }
        if is_chunked {
            // Told, hyper passes trailers on too.
            parts.headers.insert(TRANSFER_ENCODING, HeaderValue::from_static("chunked"));
        }
        if let Some(upgrade) = upgrade {
            parts.headers.insert(UPGRADE, upgrade);
            parts.headers.insert(CONNECTION, HeaderValue::from_static("upgrade"));
        }
        parts.version = Version::HTTP_11;
    }
    parts.uri = target.build().map_err(|_| "the request target is not a path")?;
    Ok(Request::from_parts(parts, body))
}

/// The response as the client gets it. After "101 Switching Protocols" octets go both ways as they come. It ends once
/// `revoked` resolves.
fn incoming(mut response: Response<Incoming>, from_client: Option<OnUpgrade>, revoked: Revoked) -> Reply {
    let is_switching = response.status() == StatusCode::SWITCHING_PROTOCOLS;
    if is_switching {
        let Some(client) = from_client else {
            return plain(StatusCode::BAD_GATEWAY, "Bad gateway\n", "the server changed to another protocol unasked");
        };
        let server = hyper::upgrade::on(&mut response);
        tokio::spawn(async move {
            if let (Ok(client), Ok(server)) = tokio::join!(client, server) {
                tokio::select! {
                    // Either side may break off.
                    _ = splice::both(TokioIo::new(client), TokioIo::new(server), SILENCE_MAX) => {}
                    () = revoked => {}
                }
            }
        });
        return response.map(|body| Either::Left(StandingBody::new(body, Box::pin(std::future::pending()))));
    }
    strip(response.headers_mut());
    response.map(|body| Either::Left(StandingBody::new(body, revoked)))
}
