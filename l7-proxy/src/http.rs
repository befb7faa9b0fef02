//! HTTP requests of one connection: each is read, judged, and passed on or answered 403.

mod passed;

use std::{
    convert::Infallible,
    net::IpAddr,
    pin::pin,
    sync::{
        Arc, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Instant,
};

use http_body_util::Either;
use hyper::{
    Method, Request, Response, StatusCode, Version,
    body::Incoming,
    header::HeaderValue,
    http::request::Parts,
    server::conn::{http1, http2},
    service::service_fn,
    upgrade::OnUpgrade,
};
use hyper_util::rt::{TokioIo, TokioTimer};
use namegate_config::l7::head::{self, HttpFacts, Refused};
use passed::Passed;
use tokio::sync::{Mutex, watch};

use crate::{
    account::Charge,
    backend::{AccessVerdict, Backend, Match, Named, What},
    body::{FromClient, RequestBody, Revoked},
    client::ConnectionPermit,
    connection::{Connection, IDLE_MAX, Prefixed, Shared},
    counted::{Counted, FIELDS_MAX, WINDOW_BYTES, bytes_of, bytes_of_request, charge_until_written},
    counters::Outcome,
    framing::{Doubtful, Framing},
    guard::{Asked, Guard, Judgement},
    kept::KeptFields,
    pace::{self, Executor},
    reply,
    server::Server,
    sniff,
    splice::{self, SILENCE_MAX},
    standing::{self, Standing, StandingBody, Subject},
    turn,
    upstream::{BoxedRequest, CONNECTION_WINDOW_BYTES, SEND_BYTES, Upstream, UpstreamError},
    wakers::OfTask,
    websocket,
};

/// Octets of the head of a request.
const HEAD_OCTETS_MAX: u32 = 64 << 10;
/// Requests of one HTTP/2 connection at a time.
const STREAMS_MAX: u32 = 100;
/// Bytes of a connection of HTTP/1, of both sides: buffers and tasks, as they were measured with what the allocator adds.
const HTTP1_BYTES: usize = (48 << 10) + HTTP1_REQUEST_BYTES;
/// Those of them that are for the request under way: it is counted where it has more.
const HTTP1_REQUEST_BYTES: usize = 8 << 10;
/// The same of HTTP/2.
const HTTP2_BYTES: usize = 64 << 10;
/// The request has more fields. Each takes far more room than its octets.
const TOO_MANY_FIELDS: Refused =
    Refused { status: StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE, why: "the request has too many header fields" };
/// The reason where the host is no name of the server.
const MISMATCH: &str = "the name did not open this address";

/// A client's connection.
pub(crate) struct Opened<D> {
    pub(crate) connection: Arc<Connection<D>>,
    /// The connection to the server, where there is one already.
    pub(crate) upstream: Option<Server>,
}

type Reply = reply::Reply<StandingBody>;

/// One client's connection.
struct Session<D> {
    connection: Arc<Connection<D>>,
    upstream: Upstream,
    permit: Arc<ConnectionPermit>,
    /// The limits, and the revision they are of.
    guard: Mutex<(u64, Arc<Guard>)>,
    /// Those of the host asked for last, where it matters.
    of_host: Mutex<Option<(u64, String, Arc<Guard>)>>,
    /// Requests so far.
    asked: AtomicU64,
    doubtful: Doubtful,
    /// For the head of the last response over HTTP/1: hyper writes it before it reads the next request.
    written: std::sync::Mutex<Option<Charge>>,
    /// The task of a connection of HTTP/1; each request of HTTP/2 has its own.
    task: Option<Arc<OfTask>>,
}

/// Serves requests until the client or the server is done, or until `stop` is closed and those under way are answered.
pub(crate) async fn serve<D: Backend>(
    opened: Opened<D>,
    stream: Prefixed,
    guard: (u64, Arc<Guard>),
    is_http2: bool,
    mut stop: watch::Receiver<()>,
) {
    let permit = Arc::clone(stream.client().permit());
    let account = Arc::clone(permit.account());
    let ends = opened.connection.ends;
    let _charge = account.charge(if is_http2 { HTTP2_BYTES } else { HTTP1_BYTES });
    let doubtful = Doubtful::default();
    let stream = if is_http2 { stream } else { stream.framed(Framing::new(doubtful.clone())) };
    let session = Arc::new(Session::new(permit, opened, guard, (is_http2, doubtful)));
    let service = service_fn(move |request: Request<Incoming>| {
        let session = Arc::clone(&session);
        // Before its task has had a turn: many heads may come at once.
        let account = session.permit.account();
        account.progress();
        let bytes = bytes_of_request(request.headers(), request.uri());
        let counted_before = if is_http2 { 0 } else { HTTP1_REQUEST_BYTES };
        let charge = account.charge(bytes.saturating_sub(counted_before));
        async move {
            let is_head = request.method() == Method::HEAD;
            let unanswered = session.permit.account().asked();
            let reply = session.answer(request, charge).await;
            unanswered.answered();
            Ok::<_, Infallible>(if is_head { reply::without_body(reply) } else { reply })
        }
    });
    let stream = TokioIo::new(stream);
    let ended = if is_http2 {
        let mut builder = http2::Builder::new(Executor(account));
        builder.timer(TokioTimer::new()).max_concurrent_streams(STREAMS_MAX).max_send_buf_size(SEND_BYTES);
        builder.initial_stream_window_size(WINDOW_BYTES).initial_connection_window_size(CONNECTION_WINDOW_BYTES);
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
        tracing::trace!(%error, ?ends, "an HTTP connection ended");
    }
}

impl<D: Backend> Session<D> {
    fn new(
        permit: Arc<ConnectionPermit>,
        Opened { connection, upstream }: Opened<D>,
        guard: (u64, Arc<Guard>),
        (is_http2, doubtful): (bool, Doubtful),
    ) -> Self {
        let (client, server) = connection.ends;
        let Shared { mark, changes, .. } = &*connection.shared;
        Self {
            upstream: Upstream::new((server, *mark), is_http2, permit.account(), upstream),
            permit,
            guard: Mutex::new(guard),
            of_host: Mutex::default(),
            asked: AtomicU64::new(0),
            doubtful,
            written: std::sync::Mutex::default(),
            task: (!is_http2).then(|| Arc::new(OfTask::new(changes.waiting(client)))),
            connection,
        }
    }

    /// Over HTTP/1, a request that is answered before its body has ended is the last of its connection: hyper would read
    /// the next head at the body's end although the response still waits to be written.
    async fn answer(&self, request: Request<Incoming>, charge: Charge) -> Reply {
        let (parts, body) = request.into_parts();
        let (version, charge) = (parts.version, Arc::new(charge));
        let body = FromClient::new(Counted::new(body, self.permit.account(), Arc::clone(&charge)));
        let state = body.state().clone();
        let mut reply = self.judge(parts, body, charge).await;
        if version < Version::HTTP_2 && !state.is_whole() {
            reply::close(&mut reply);
        }
        reply
    }

    async fn judge(&self, mut parts: Parts, body: RequestBody, charge: Arc<Charge>) -> Reply {
        let began = turn::now();
        let version = parts.version;
        let number = self.asked.fetch_add(1, Ordering::Relaxed) + 1;
        if let Some(refused) = self.doubtful.refuses(number) {
            return self.malformed(refused, version);
        }
        if parts.headers.len() > FIELDS_MAX {
            return self.malformed(TOO_MANY_FIELDS, version);
        }
        self.permit.account().room().await;
        let host = match head::host(&parts) {
            Ok(host) => host,
            Err(refused) => return self.malformed(refused, version),
        };
        let revision = self.connection.backend().revision();
        let Some(guard) = self.guard(&host).await else {
            return reply::unavailable("the rules can not be asked");
        };
        // From here on `parts` are what the server gets.
        let facts = match head::read(&mut parts, host, !guard.bound || guard.reads_http()) {
            Ok(facts) => Arc::new(facts),
            Err(refused) => return self.malformed(refused, version),
        };
        let judged = guard.judge(Asked::Http(&facts, &parts.headers));
        if !judged.allowed && !guard.audit {
            self.connection.count(Outcome::Denied);
            let nobody = if judged.mismatch { MISMATCH } else { "no rule allows the flow" };
            let why = judged.rule.as_ref().map_or_else(|| nobody.to_owned(), ToString::to_string);
            let reply = reply::denied(&why);
            self.record(&facts, judged, AccessVerdict::Denied, reply.status().as_u16(), began);
            return reply;
        }
        self.connection.count(Outcome::Allowed);
        let verdict = if judged.allowed && !judged.mismatch { AccessVerdict::Allowed } else { AccessVerdict::Audited };
        let has_body = !body.state().is_whole();
        let subject = Subject::Http(Arc::clone(&facts), KeptFields::new(&parts.headers));
        let of_task = self.task.clone().filter(|_| !has_body);
        let mut revoked = self.revoked(subject, &guard, revision, of_task);
        let mut of_body = None;
        if has_body {
            let [one, other] = standing::share(self.permit.account(), revoked);
            (revoked, of_body) = (one, Some(other));
        }
        let body = body.standing(of_body, !guard.demands_fields());
        let websocket = facts.websocket.clone();
        let source = guard.keeps_source.then(|| self.connection.ends.0.ip().to_canonical());
        let passed = Passed::new(self, (facts, judged, verdict), began);
        // In a box: each future around it is moved as a whole when it begins.
        let request = Box::new(Request::from_parts(parts, body));
        let passing = Box::pin(self.pass_on(request, (websocket, source), revoked, charge));
        let reply = passing.await;
        passed.answered(reply.status());
        reply
    }

    /// Gives the server's answer to a request, or that of the proxy in its place.
    async fn pass_on(
        &self,
        mut request: BoxedRequest,
        (websocket, source): (Option<HeaderValue>, Option<IpAddr>),
        mut revoked: Revoked,
        charge: Arc<Charge>,
    ) -> Reply {
        let (account, version) = (self.permit.account(), request.version());
        let from_client = request.extensions_mut().remove::<OnUpgrade>().zip(websocket);
        let body = request.body().state().clone();
        tokio::select! {
            biased;
            // What the server says to a body that broke off for that is no answer.
            () = &mut revoked => reply::denied("the rules have changed"),
            sent = self.upstream.send(request, source) => match sent {
                Ok(response) if response.headers().len() > FIELDS_MAX => {
                    self.connection.count(Outcome::ServerFailed);
                    reply::bad_gateway("the response has too many header fields")
                }
                Ok(response) => {
                    let response = response.map(|body| Counted::new(body, account, charge));
                    self.incoming(response, from_client, revoked)
                }
                Err(_) if body.is_broken() => self.malformed(head::BROKEN_BODY, version),
                Err(error) => self.unanswered(&error),
            },
        }
    }

    fn malformed(&self, refused: Refused, version: Version) -> Reply {
        self.connection.count(Outcome::Malformed);
        reply::malformed(refused, version)
    }

    /// The limits as they are now, for requests to this host where that matters.
    async fn guard(&self, host: &str) -> Option<Arc<Guard>> {
        let revision = self.connection.backend().revision();
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
        self.connection.guard(named, &Arc::default()).await.map(Arc::new)
    }

    /// The response as the client gets it. After "101 Switching Protocols" octets go both ways as they come.
    fn incoming(
        &self,
        mut response: Response<Counted>,
        from_client: Option<(OnUpgrade, HeaderValue)>,
        revoked: Revoked,
    ) -> Reply {
        if response.status() != StatusCode::SWITCHING_PROTOCOLS {
            head::strip(response.headers_mut());
            let account = self.permit.account();
            let bytes = bytes_of(response.headers());
            if response.version() < Version::HTTP_2 {
                let mut written = self.written.lock().unwrap_or_else(PoisonError::into_inner);
                written.get_or_insert_with(|| account.charge(0)).resize(bytes);
            } else {
                charge_until_written(response.headers_mut(), account.charge(bytes));
            }
            return response.map(|body| Either::Left(StandingBody::new(body, revoked)));
        }
        let asked = from_client.filter(|(_, key)| websocket::is_accepted(key, response.headers()));
        let Some((client, _)) = asked else {
            self.connection.count(Outcome::ServerFailed);
            return reply::bad_gateway("the server changed to another protocol unasked");
        };
        let server = hyper::upgrade::on(&mut response);
        let account = Arc::clone(self.permit.account());
        let buffers = account.pass();
        pace::spawn(&account, async move {
            let _buffers = buffers;
            let passing = async {
                if let (Ok(client), Ok(server)) = tokio::join!(client, server) {
                    // Either side may break off.
                    let _ = splice::both(TokioIo::new(client), TokioIo::new(server), SILENCE_MAX).await;
                }
            };
            tokio::select! {
                () = passing => {}
                () = revoked => {}
            }
        });
        response.map(|body| Either::Left(StandingBody::new(body, Box::pin(std::future::pending()))))
    }

    /// Resolves once the rules do not let a request pass any more that they let pass at `revision`.
    fn revoked(&self, subject: Subject, guard: &Arc<Guard>, revision: u64, of_task: Option<Arc<OfTask>>) -> Revoked {
        let (connection, guard) = (Arc::clone(&self.connection), Arc::clone(guard));
        let standing = Standing { connection, revision, guard, subject, of_task };
        Box::pin(async move { standing.revoked().await })
    }

    fn unanswered(&self, error: &UpstreamError) -> Reply {
        self.connection.count(Outcome::ServerFailed);
        tracing::debug!(error = ?error, server = %self.connection.ends.1, "no response");
        reply::unanswered(error)
    }

    fn record(&self, facts: &Arc<HttpFacts>, judged: Judgement, verdict: AccessVerdict, code: u16, began: Instant) {
        self.connection.record(judged, verdict, What::http(facts, code, began.elapsed()));
    }
}
