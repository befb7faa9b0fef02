//! Connections and requests that were let pass and go on: they end once the rules do not let them pass any more.
//!
//! One task looks for changes of the rules and wakes all that goes on. Each is judged again in its turn, a few at a time
//! with a pause, so that a change with 16,384 tunnels asks no more than a few thousand questions a second.

use std::{
    net::SocketAddr,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::{Duration, Instant},
};

use bytes::Bytes;
use hyper::{
    HeaderMap,
    body::{Body, Frame, SizeHint},
};
use namegate_config::{
    l7::{head::HttpFacts, is_override},
    name::Fqdn,
};
use tokio::{
    sync::{Semaphore, watch},
    time::{interval, sleep},
};

use crate::{
    account::Account,
    backend::{Access, AccessVerdict, Backend, Named, Question, What},
    body::Revoked,
    connection::Shared,
    counted::Counted,
    counters::Outcome,
    guard::{Asked, Guard, Judgement},
    pace, sniff,
};

/// Between two looks for a change.
const LOOK: Duration = Duration::from_millis(200);
/// Judgements at a time, and the pause after each.
const TURNS: usize = 4;
const PAUSE: Duration = Duration::from_millis(1);
/// How often a judgement is tried where the backend has no answer, and the pause between two tries.
const TRIES: u32 = 5;
const RETRY: Duration = Duration::from_secs(1);
/// Bytes of header fields that are kept for a request that goes on. Of one that has more, only those are kept that ask for
/// another method or path, and no condition on a field holds when it is judged again.
const FIELDS_MAX: usize = 8 << 10;
/// The status in the record of a request that was let pass and ended.
const FORBIDDEN: u16 = 403;

/// Changes of the rules, as all that goes on waits for them.
#[derive(Debug)]
pub(crate) struct Changes {
    revision: watch::Sender<u64>,
    turns: Semaphore,
}

impl Changes {
    pub(crate) fn new(revision: u64) -> Self {
        Self { revision: watch::Sender::new(revision), turns: Semaphore::new(TURNS) }
    }
}

/// Looks for changes of the rules until `stop` is closed.
pub(crate) async fn follow<D: Backend>(shared: Arc<Shared<D>>, mut stop: watch::Receiver<()>) {
    let mut look = interval(LOOK);
    loop {
        tokio::select! {
            _ = look.tick() => {}
            _ = stop.changed() => return,
        }
        let now = shared.backend.revision();
        shared.changes.revision.send_if_modified(|seen| std::mem::replace(seen, now) != now);
    }
}

/// What is judged.
#[derive(Debug)]
pub(crate) enum Subject {
    /// A TLS connection that asks for a name.
    Tls(Option<Fqdn>),
    /// A connection of a protocol without names.
    Nameless,
    /// A request, with the fields that rules see.
    Http(HttpFacts, HeaderMap),
}

impl Subject {
    pub(crate) fn request(facts: &HttpFacts, fields: &HeaderMap) -> Self {
        let bytes: usize = fields.iter().map(|(name, value)| name.as_str().len() + value.len()).sum();
        if bytes <= FIELDS_MAX {
            return Self::Http(facts.clone(), fields.clone());
        }
        let overrides = fields.iter().filter(|(name, _)| is_override(name));
        Self::Http(facts.clone(), overrides.map(|(name, value)| (name.clone(), value.clone())).collect())
    }

    /// The name that matters where names are bound.
    pub(crate) fn named(&self) -> Named {
        match self {
            Self::Tls(name) => Named::One(name.clone()),
            Self::Nameless => Named::Nameless,
            Self::Http(facts, _) => Named::One(sniff::name_of(&facts.host)),
        }
    }

    pub(crate) fn asked(&self) -> Asked<'_> {
        match self {
            Self::Tls(name) => Asked::Tls(name.as_ref()),
            Self::Nameless => Asked::Tls(None),
            Self::Http(facts, fields) => Asked::Http(facts, fields),
        }
    }

    fn what(&self, began: Instant) -> What {
        match self {
            Self::Tls(name) => What::Tls { server_name: name.as_ref().map(Fqdn::to_string) },
            Self::Nameless => What::Tls { server_name: None },
            Self::Http(HttpFacts { method, path, host, .. }, _) => {
                let (method, path, host) = (method.clone(), path.clone(), host.clone());
                What::Http { method, path, host, code: FORBIDDEN, latency: began.elapsed() }
            }
        }
    }
}

/// Something that was let pass.
#[derive(Debug)]
pub(crate) struct Standing<D> {
    pub(crate) shared: Arc<Shared<D>>,
    /// Client and server.
    pub(crate) ends: (SocketAddr, SocketAddr),
    /// When the connection began.
    pub(crate) began: Instant,
    /// The revision of the rules that let it pass.
    pub(crate) revision: u64,
    /// Those rules.
    pub(crate) guard: Arc<Guard>,
    pub(crate) subject: Subject,
}

impl<D: Backend> Standing<D> {
    /// Waits until the rules do not let it pass, or nobody says that they do, and records that.
    pub(crate) async fn revoked(&self) {
        let mut revisions = self.shared.changes.revision.subscribe();
        let mut judged_at = self.revision;
        let mut tries = 0;
        loop {
            if revisions.wait_for(|now| *now > judged_at).await.is_err() {
                return;
            }
            let revision = self.shared.backend.revision();
            match self.judge_in_turn().await {
                Some(judged) if judged.is_ok() => (judged_at, tries) = (revision, 0),
                None if tries + 1 < TRIES => {
                    tries += 1;
                    sleep(RETRY).await;
                }
                judged => {
                    self.record(judged.and_then(Result::err), AccessVerdict::Denied);
                    self.shared.counters.count(Outcome::Revoked);
                    return;
                }
            }
        }
    }

    /// Judges it again when it is its turn: `Err` where it does not pass, `None` where nobody answers. A turn lasts for one
    /// question, so that those who get no answer hold up no others.
    async fn judge_in_turn(&self) -> Option<Result<(), Judgement>> {
        let _turn = self.shared.changes.turns.acquire().await;
        let asked = self.ask().await;
        sleep(PAUSE).await;
        let guard = asked?;
        let judged = guard.judge(self.subject.asked());
        Some(if judged.allowed || guard.audit { Ok(()) } else { Err(judged) })
    }

    /// The rules as they are now. Names that opened the address when it was let pass count further.
    async fn ask(&self) -> Option<Guard> {
        let (client, server) = self.ends;
        let known = Arc::clone(&self.guard.names);
        let of = |named| Question { client, server, age: self.began.elapsed(), named, known: Arc::clone(&known) };
        let any = self.shared.backend.connection_policy(of(Named::Any)).await?;
        let policy =
            if any.bound { self.shared.backend.connection_policy(of(self.subject.named())).await? } else { any };
        Some(Guard::from(policy))
    }

    /// Records what becomes of it at first, and counts that.
    pub(crate) fn record_first(&self, judgement: Judgement, verdict: AccessVerdict) {
        self.shared.counters.count(if verdict == AccessVerdict::Denied { Outcome::Denied } else { Outcome::Allowed });
        self.record(Some(judgement), verdict);
    }

    /// Records what becomes of it, by default with the rule that let it pass.
    pub(crate) fn record(&self, judgement: Option<Judgement>, verdict: AccessVerdict) {
        let judgement = judgement.unwrap_or_else(|| self.guard.judge(self.subject.asked()));
        let Judgement { direction, rule, mismatch, .. } = judgement;
        let (client, server) = self.ends;
        let what = self.subject.what(self.began);
        self.shared.backend.record(Access { client, server, direction, rule, verdict, mismatch, what });
    }
}

/// Has two wait for the same end, of which one may give up before the other.
pub(crate) fn share(account: &Arc<Account>, revoked: Revoked) -> [Revoked; 2] {
    let (end, has_ended) = watch::channel(false);
    pace::spawn(account, async move {
        tokio::select! {
            () = revoked => drop(end.send(true)),
            () = end.closed() => {}
        }
    });
    [has_ended.clone(), has_ended].map(|mut has_ended| -> Revoked {
        Box::pin(async move {
            // Without the task the connection has ended.
            if has_ended.wait_for(|has_ended| *has_ended).await.is_err() {
                std::future::pending::<()>().await;
            }
        })
    })
}

/// The body of a response. It breaks off once its request is revoked.
pub(crate) struct StandingBody {
    body: Counted,
    revoked: Revoked,
}

impl StandingBody {
    pub(crate) fn new(body: Counted, revoked: Revoked) -> Self {
        Self { body, revoked }
    }
}

/// Why a body breaks off.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Broken {
    #[error("reading the response")]
    Server(#[from] hyper::Error),
    #[error("the rules do not allow the request any more")]
    Revoked,
}

impl Body for StandingBody {
    type Data = Bytes;
    type Error = Broken;

    fn poll_frame(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Broken>>> {
        if self.revoked.as_mut().poll(context).is_ready() {
            return Poll::Ready(Some(Err(Broken::Revoked)));
        }
        Pin::new(&mut self.body).poll_frame(context).map_err(Broken::from)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use namegate_config::l7::{HttpRule, RegexText};

    use super::*;

    #[test]
    fn what_asks_for_another_path_or_method_counts_also_beside_long_fields() {
        let text = |text| Some(RegexText::new(text).unwrap());
        let rule = HttpRule { method: text("GET"), path: text("/public"), ..HttpRule::default() };
        let facts = HttpFacts { method: "GET".into(), path: "/public".into(), host: "a.io".into(), websocket: None };
        let long = "x".repeat(FIELDS_MAX);
        for (name, value, want) in [
            ("X-Original-URL", "/admin", false),
            ("X_Rewrite_Url", "/admin", false),
            ("X-HTTP-Method-Override", "DELETE", false),
            ("X-Original-URL", "/public", true),
            ("X-Limit", "1", true),
        ] {
            let fields: HeaderMap = [("cookie", long.as_str()), (name, value)]
                .map(|(name, value)| (name.parse().unwrap(), value.parse().unwrap()))
                .into_iter()
                .collect();
            assert_eq!(rule.matches(&facts, &fields), want, "{name}");
            let subject = Subject::request(&facts, &fields);
            let Asked::Http(facts, kept) = subject.asked() else { panic!("{subject:?}") };
            assert_eq!(rule.matches(facts, kept), want, "{name} is kept");
            assert!(!kept.contains_key("cookie"));
        }
    }
}
