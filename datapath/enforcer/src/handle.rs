//! How other threads reach the enforcer.

use std::{
    fmt,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::{Duration, Instant},
};

use namegate_abi::Settings;
use namegate_engine::{Answer, Change, Forgotten, GateError, Lookup, Proxies};
use tokio::sync::oneshot;

use crate::{
    Enforcement, NotDone, NotInstalled, Observer, Reader,
    inbox::{Inbox, Next, Refused, Turn},
    view::Published,
};

/// One result for each answer, in their order.
pub(crate) type Installed = Vec<Result<(), NotInstalled>>;

/// Answers of one endpoint to be installed.
pub(crate) struct Learn {
    pub(crate) answers: Vec<Answer>,
    /// Results of the first of them: those that are done.
    pub(crate) results: Installed,
    pub(crate) since: Instant,
    pub(crate) done: oneshot::Sender<Installed>,
}

/// Picks learned names.
pub(crate) type Wanted = Box<dyn Fn(&Lookup<'_>) -> bool + Send>;

/// Where the outcome of a request goes.
pub(crate) type Done<T> = oneshot::Sender<Result<T, NotDone>>;

/// Everything but answers that the enforcer is asked to do.
pub(crate) enum Request {
    Apply(Change, Done<Arc<Enforcement>>),
    Forget(Wanted, Done<Forgotten>),
    SetProxies(Proxies, Done<()>),
    Configure(Settings, Done<Result<(), GateError>>),
    AttachAgain(Done<()>),
    Repair(Repair, Done<()>),
}

/// What another tool took away.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Repair {
    /// Programs of these interfaces.
    pub interfaces: Vec<u32>,
    /// Programs of the node's own sockets.
    pub node: bool,
    /// Pins of maps.
    pub maps: bool,
}

type Requests = Inbox<Learn, Request>;

/// How the enforcer is reached. Cheap to clone.
#[derive(Clone)]
pub struct EnforcerHandle {
    inbox: Arc<Requests>,
    reader: Reader,
    observer: Arc<dyn Observer>,
}

/// The inbox as the enforcer's thread has it. With its end, however it comes, nothing waits any more.
pub(crate) struct Served {
    inbox: Arc<Requests>,
    published: Arc<Published>,
}

impl Served {
    /// Waits for the next request, at most this long.
    pub(crate) fn next(&self, patience: Duration) -> Next<Learn, Request> {
        self.inbox.next(patience)
    }

    /// The next answers, where some wait.
    pub(crate) fn next_answers(&self) -> Option<Turn<Learn>> {
        self.inbox.next_answers()
    }

    /// Ends a turn of an endpoint that took this long; what is left of its answers waits for the next one.
    pub(crate) fn end_turn(&self, endpoint: u32, took: Duration, rest: Option<Learn>) {
        if let Some(answers) = rest {
            self.inbox.put_back(Turn { endpoint, answers });
        }
        self.inbox.charge(endpoint, took);
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        self.published.stop();
        self.inbox.close();
    }
}

impl EnforcerHandle {
    pub(crate) fn new(published: Arc<Published>, observer: Arc<dyn Observer>) -> Self {
        Self { inbox: Arc::default(), reader: Reader(published), observer }
    }

    /// The other side: the thread's.
    pub(crate) fn served(&self) -> Served {
        Served { inbox: Arc::clone(&self.inbox), published: Arc::clone(&self.reader.0) }
    }

    /// Ends the thread after what waits.
    pub(crate) fn stop(&self) {
        self.inbox.stop();
    }

    /// What the enforcer publishes.
    pub fn reader(&self) -> &Reader {
        &self.reader
    }

    /// Hands over answers of one endpoint. They are refused where too many of its answers wait. One result for each, in
    /// their order; when it comes, the kernel holds the addresses of those that are `Ok`.
    pub async fn learn(&self, answers: Vec<Answer>) -> Installed {
        let count = answers.len();
        let Some(endpoint) = answers.first().map(|answer| answer.endpoint) else { return Vec::new() };
        let (done, installed) = oneshot::channel();
        let learn = Learn { answers, results: Vec::with_capacity(count), since: Instant::now(), done };
        match self.inbox.answers(endpoint.0, learn) {
            Err((Refused::Full(_), _)) => {
                self.observer.refused(endpoint, count);
                vec![Err(NotInstalled::Full); count]
            }
            Err((Refused::Closed, _)) => vec![Err(NotInstalled::Stopped); count],
            Ok(()) => installed.await.unwrap_or_else(|_| vec![Err(NotInstalled::Stopped); count]),
        }
    }

    /// Makes the kernel agree with new rules or endpoints.
    pub fn apply(&self, change: Change) -> Reply<Arc<Enforcement>> {
        self.ask(|done| Request::Apply(change, done))
    }

    /// Forgets names, and closes what only they had opened.
    pub fn forget(&self, wanted: impl Fn(&Lookup<'_>) -> bool + Send + 'static) -> Reply<Forgotten> {
        let (done, reply) = oneshot::channel();
        if let Err((Refused::Full(_), Request::Forget(_, done))) =
            self.inbox.request(Request::Forget(Box::new(wanted), done))
        {
            // The caller may not wait for it any more.
            let _ = done.send(Err(NotDone::Busy));
        }
        Reply(reply)
    }

    /// Sends what rules limit to these proxies from now on.
    pub fn set_proxies(&self, proxies: Proxies) -> Reply<()> {
        self.ask(|done| Request::SetProxies(proxies, done))
    }

    /// Writes the settings that the programs read.
    pub fn configure(&self, settings: Settings) -> Reply<Result<(), GateError>> {
        self.ask(|done| Request::Configure(settings, done))
    }

    /// Tries once more to attach what could not be attached.
    pub fn attach_again(&self) -> Reply<()> {
        self.ask(Request::AttachAgain)
    }

    /// Puts back what another tool took away.
    pub fn repair(&self, repair: Repair) -> Reply<()> {
        self.ask(|done| Request::Repair(repair, done))
    }

    /// For parts of the agent that ask one thing at a time: only the end of the thread refuses them.
    fn ask<T>(&self, request: impl FnOnce(Done<T>) -> Request) -> Reply<T> {
        let (done, reply) = oneshot::channel();
        // Where it is refused, its end is what the reply says.
        let _ = self.inbox.own_request(request(done));
        Reply(reply)
    }
}

impl fmt::Debug for EnforcerHandle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("EnforcerHandle").finish_non_exhaustive()
    }
}

/// The outcome of a request. The enforcer carries it out also if the caller does not wait.
#[derive(Debug)]
#[must_use = "a request may be refused"]
pub struct Reply<T>(oneshot::Receiver<Result<T, NotDone>>);

impl<T> Reply<T> {
    /// Waits on a thread that may block.
    pub fn wait(self) -> Result<T, NotDone> {
        self.0.blocking_recv().unwrap_or(Err(NotDone::Stopped))
    }
}

impl<T> Future for Reply<T> {
    type Output = Result<T, NotDone>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        Pin::new(&mut self.0).poll(context).map(|outcome| outcome.unwrap_or(Err(NotDone::Stopped)))
    }
}
