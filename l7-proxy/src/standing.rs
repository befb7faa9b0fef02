//! Connections and requests that were let pass and go on: they end once the rules do not let them pass any more.
//!
//! One task looks for changes of the rules and wakes all that goes on. Each is judged again in its turn, a few at a time
//! with a pause, so that a change with 16,384 tunnels asks no more than a few thousand questions a second.

use std::{
    net::SocketAddr,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    task::{Context, Poll},
    time::{Duration, Instant},
};

use bytes::Bytes;
use hyper::body::{Body, Frame, SizeHint};
use namegate_config::{l7::head::HttpFacts, name::Fqdn};
use tokio::{
    sync::{Semaphore, watch},
    time::{interval, sleep},
};

use crate::{
    account::Account,
    backend::{AccessVerdict, Backend, Named, What},
    body::Revoked,
    connection::{Connection, Shared},
    counted::Counted,
    counters::Outcome,
    guard::{Asked, Guard, Judgement},
    kept::KeptFields,
    pace, sniff,
    wakers::{OfTask, Wakers},
};

/// Between two looks for a change.
const LOOK: Duration = Duration::from_millis(200);
/// Judgements at a time, and the pause after each.
const TURNS: usize = 4;
const PAUSE: Duration = Duration::from_millis(1);
/// How often a judgement is tried where the backend has no answer, and the pause between two tries.
const TRIES: u32 = 5;
const RETRY: Duration = Duration::from_secs(1);
/// Parts of those who wait, so that threads seldom meet at one lock.
const PARTS: usize = 16;
/// The status in the record of a request that was let pass and ended.
const FORBIDDEN: u16 = 403;

/// Changes of the rules, as all that goes on waits for them.
#[derive(Debug)]
pub(crate) struct Changes {
    revision: AtomicU64,
    waiting: [Arc<Wakers>; PARTS],
    turns: Semaphore,
}

impl Changes {
    pub(crate) fn new(revision: u64) -> Self {
        Self { revision: AtomicU64::new(revision), waiting: Default::default(), turns: Semaphore::new(TURNS) }
    }

    /// Those who wait, of a client's connection.
    pub(crate) fn waiting(&self, client: SocketAddr) -> &Arc<Wakers> {
        &self.waiting[usize::from(client.port()) % PARTS]
    }

    fn see(&self, revision: u64) {
        if self.revision.swap(revision, Ordering::SeqCst) != revision {
            self.waiting.iter().for_each(|waiting| waiting.wake());
        }
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
        shared.changes.see(shared.backend.revision());
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
    Http(Arc<HttpFacts>, KeptFields),
}

impl Subject {
    /// The name that matters where names are bound.
    pub(crate) fn named(&self) -> Named {
        match self {
            Self::Tls(name) => Named::One(name.clone()),
            Self::Nameless => Named::Nameless,
            Self::Http(facts, _) => Named::One(sniff::name_of(&facts.host)),
        }
    }

    pub(crate) fn judge(&self, guard: &Guard) -> Judgement {
        match self {
            Self::Tls(name) => guard.judge(Asked::Tls(name.as_ref())),
            Self::Nameless => guard.judge(Asked::Tls(None)),
            Self::Http(facts, fields) => guard.judge(Asked::Http(facts, &fields.read())),
        }
    }

    fn what(&self, began: Instant) -> What {
        match self {
            Self::Tls(name) => What::Tls { server_name: name.as_ref().map(Fqdn::to_string) },
            Self::Nameless => What::Tls { server_name: None },
            Self::Http(facts, _) => What::http(facts, FORBIDDEN, began.elapsed()),
        }
    }
}

/// Something that was let pass.
#[derive(Debug)]
pub(crate) struct Standing<D> {
    pub(crate) connection: Arc<Connection<D>>,
    /// The revision of the rules that let it pass.
    pub(crate) revision: u64,
    /// Those rules.
    pub(crate) guard: Arc<Guard>,
    pub(crate) subject: Subject,
    /// The task of the connection, where that is the one that waits.
    pub(crate) of_task: Option<Arc<OfTask>>,
}

impl<D: Backend> Standing<D> {
    /// Waits until the rules do not let it pass, or nobody says that they do, and records that.
    pub(crate) async fn revoked(&self) {
        let changes = &self.connection.shared.changes;
        let mut judged_at = self.revision;
        let mut tries = 0;
        loop {
            let is_due = || (changes.revision.load(Ordering::SeqCst) > judged_at).then_some(());
            changes.waiting(self.connection.ends.0).until(self.of_task.as_deref(), is_due).await;
            let revision = self.connection.backend().revision();
            match self.judge_in_turn().await {
                Some(judged) if judged.is_ok() => (judged_at, tries) = (revision, 0),
                None if tries + 1 < TRIES => {
                    tries += 1;
                    sleep(RETRY).await;
                }
                judged => {
                    self.record(judged.and_then(Result::err), AccessVerdict::Denied);
                    self.connection.count(Outcome::Revoked);
                    return;
                }
            }
        }
    }

    /// Judges it again when it is its turn: `Err` where it does not pass, `None` where nobody answers. A turn lasts for one
    /// question, so that those who get no answer hold up no others.
    async fn judge_in_turn(&self) -> Option<Result<(), Judgement>> {
        let _turn = self.connection.shared.changes.turns.acquire().await;
        let asked = self.ask().await;
        sleep(PAUSE).await;
        let guard = asked?;
        let judged = self.subject.judge(&guard);
        Some(if judged.allowed || guard.audit { Ok(()) } else { Err(judged) })
    }

    /// The rules as they are now. Names that opened the address when it was let pass count further.
    async fn ask(&self) -> Option<Guard> {
        let known = &self.guard.names;
        let any = self.connection.guard(Named::Any, known).await?;
        if any.bound { self.connection.guard(self.subject.named(), known).await } else { Some(any) }
    }

    /// Records what becomes of it at first, and counts that.
    pub(crate) fn record_first(&self, judgement: Judgement, verdict: AccessVerdict) {
        let is_denied = verdict == AccessVerdict::Denied;
        self.connection.count(if is_denied { Outcome::Denied } else { Outcome::Allowed });
        self.record(Some(judgement), verdict);
    }

    /// Records what becomes of it, by default with the rule that let it pass.
    pub(crate) fn record(&self, judgement: Option<Judgement>, verdict: AccessVerdict) {
        let judgement = judgement.unwrap_or_else(|| self.subject.judge(&self.guard));
        self.connection.record(judgement, verdict, self.subject.what(self.connection.began));
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
