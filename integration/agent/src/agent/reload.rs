//! The thread that reads files and Kubernetes again when they or the machine's interfaces change, and hands the result to
//! the gate.

use std::{
    collections::{BTreeMap, HashSet},
    sync::{
        Arc, Weak,
        mpsc::{Receiver, RecvTimeoutError, Sender, channel},
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

use anyhow::Context;
use namegate_api::view::Diagnostic;
use namegate_config::{policy::Features, rule::Direction, settings::Settings};
use namegate_enforcer::{Enforcement, EnforcerHandle};
use namegate_engine::Change;
use namegate_loader::{Inspector, links::LinkWatch};

use super::{
    attachments::Attachments,
    cluster::Cluster,
    cluster_state::Interfaces,
    enforcer::directions,
    file_watch::FileWatch,
    interfaces,
    policy_state::SharedPolicyState,
    problems::{ProblemKind, Problems},
    reading::Reading,
    sources::Sources,
    touched::{Cause, Touched},
    unit::UNREADABLE,
    wake::{Wake, gather},
};

/// The agent reads files again after this time, even if the file watch reported no change.
const PERIOD: Duration = Duration::from_mins(1);
/// The same, where something could not be read or looked up.
const RETRY: Duration = Duration::from_secs(1);

/// The running thread.
pub(crate) struct Reloader {
    wake: Sender<Wake>,
    /// Held by the thread.
    alive: Weak<()>,
    thread: JoinHandle<()>,
}

/// What the kernel held before the first reading, and what looks after its programs.
pub(crate) struct Held {
    /// Interfaces by `namespace/name`.
    pub(crate) interfaces: Interfaces,
    pub(crate) inspector: Inspector,
}

/// What the thread works with.
struct Work {
    sources: Sources,
    watch: FileWatch,
    enforcer: EnforcerHandle,
    policy_state: Arc<SharedPolicyState>,
    problems: Arc<Problems>,
    directions: Vec<Direction>,
    last: Option<Arc<Reading>>,
    told: interfaces::Told,
    /// Interfaces whose packets are judged, after the last change.
    guarded: HashSet<u32>,
    /// What keeps the last change from being enforced.
    refused: Vec<String>,
    /// What the last report to Kubernetes says: whether this node enforces all that was read.
    reported: bool,
    /// Endpoints that are closed, and why.
    closed: BTreeMap<String, String>,
    /// Where programs should be, and whether they are.
    attachments: Attachments,
    /// When everything is read again without a reason.
    next: Instant,
}

impl Reloader {
    /// Reads everything once, waits until the kernel holds it, then goes on by itself.
    pub(crate) fn start(
        settings: &Settings,
        features: Features,
        (enforcer, kernel): (EnforcerHandle, Held),
        policy_state: Arc<SharedPolicyState>,
        problems: Arc<Problems>,
        cluster: Option<Cluster>,
    ) -> anyhow::Result<Self> {
        let Held { interfaces, inspector } = kernel;
        let mut sources = Sources::new(settings, features, cluster, &problems);
        sources.begin(interfaces);
        let (wake, woken) = channel();
        let held = Arc::new(());
        let alive = Arc::downgrade(&held);
        // Watched before each reading: no change falls between.
        let watch = FileWatch::new(sources.paths(), wake.clone())?;
        let mut work = Work {
            sources,
            watch,
            attachments: Attachments::new(
                inspector,
                (enforcer.clone(), directions(&settings.directions)),
                Arc::clone(&problems),
                Arc::clone(&policy_state),
            ),
            next: Instant::now(),
            enforcer,
            policy_state,
            problems,
            directions: settings.directions.clone(),
            last: None,
            told: interfaces::Told::default(),
            guarded: HashSet::new(),
            refused: Vec::new(),
            reported: false,
            closed: BTreeMap::new(),
        };
        work.reload(Touched::everything());
        work.attachments.inspect(work.sources.found());
        let thread = std::thread::Builder::new().name("files".to_owned()).spawn(move || {
            serve(work, &woken);
            drop(held);
        })?;
        Ok(Self { wake, alive, thread })
    }

    /// A function that makes the thread look for this again.
    pub(crate) fn nudge(&self, cause: Cause) -> impl Fn() + Clone + Send + Sync + 'static {
        let wake = self.wake.clone();
        // Interfaces come and go in several steps; the other causes are gathered where they come from.
        let is_complete = cause != Cause::Machine;
        // The thread may have ended.
        move || drop(wake.send(Wake::Changed { causes: vec![cause.clone()], is_complete }))
    }

    /// Says whether the thread lives.
    pub(crate) fn pulse(&self) -> impl Fn() -> bool + Send + Sync + use<> {
        let alive = Weak::clone(&self.alive);
        move || alive.strong_count() > 0
    }

    /// Ends the thread.
    pub(crate) fn stop(self) {
        // It may have ended by itself.
        let _ = self.wake.send(Wake::Stop);
        if self.thread.join().is_err() {
            tracing::error!("the thread that reads files panicked");
        }
    }
}

fn serve(mut work: Work, woken: &Receiver<Wake>) {
    loop {
        let touched = match woken.recv_timeout(work.sleep()) {
            Ok(wake) => match gather(wake, woken) {
                Some(touched) => touched,
                None => return,
            },
            Err(RecvTimeoutError::Timeout) if work.is_due() => Touched::everything(),
            Err(RecvTimeoutError::Timeout) => {
                work.inspect();
                continue;
            }
            Err(RecvTimeoutError::Disconnected) => return,
        };
        work.reload(touched);
        work.inspect();
    }
}

impl Work {
    /// When everything should be read without a reason.
    fn next(&self) -> Instant {
        let again = self.sources.again();
        again.map_or(self.next, |again| again.min(self.next))
    }

    fn is_due(&self) -> bool {
        self.next() <= Instant::now()
    }

    /// How long until something is to be done without a reason.
    fn sleep(&self) -> Duration {
        self.next().min(self.attachments.next()).saturating_duration_since(Instant::now())
    }

    fn reload(&mut self, touched: Touched) {
        let start = Instant::now();
        let touched = if self.watch.refresh() { Touched::everything() } else { touched };
        let is_whole = self.read_and_carry_out(&touched, start) && self.watch.is_whole() && !self.sources.is_behind();
        let next = Instant::now() + if is_whole { PERIOD } else { RETRY };
        self.next = if touched.is_everything() { next } else { self.next.min(next) };
    }

    /// Says whether everything could be read and looked up.
    fn read_and_carry_out(&mut self, touched: &Touched, start: Instant) -> bool {
        const READING: &str = "reading";
        let reading = match self.sources.read(touched) {
            Ok(Some(reading)) => Arc::new(reading),
            Ok(None) => return true,
            Err(error) => {
                self.problems.raise(ProblemKind::Lookup, READING, format!("all stays as it is: {error}"));
                return false;
            }
        };
        self.problems.clear(ProblemKind::Lookup, READING);
        let read = start.elapsed();
        if self.last.as_ref().is_some_and(|last| last.is_same(&reading)) {
            self.look_again();
        } else {
            self.sources.raise(&reading, &self.problems);
            self.carry_out(&reading);
        }
        let is_whole = self.say_what_failed(&reading);
        self.sources.tell(&reading.facts, &self.guarded, &self.closed);
        self.report(&reading);
        tracing::debug!(?read, whole = ?start.elapsed(), "read again");
        self.last = Some(reading);
        is_whole
    }

    /// Looks after the programs; what could not be attached before may be by now.
    fn inspect(&mut self) {
        self.attachments.inspect_if_due(self.sources.found());
        if self.is_enforced() != self.reported
            && let Some(reading) = &self.last
        {
            self.report(&Arc::clone(reading));
        }
        let now = self.enforcer.reader().enforcement();
        if !self.is_guarded() && now.judged != self.guarded {
            self.guarded.clone_from(&now.judged);
            self.reload(Touched::default());
        }
    }

    /// Reports to Kubernetes what became of each object of a reading.
    fn report(&mut self, reading: &Arc<Reading>) {
        self.reported = self.is_enforced();
        self.sources.report(reading, self.reported);
    }

    /// Whether this node enforces all that was read.
    fn is_enforced(&self) -> bool {
        self.refused.is_empty() && !self.problems.hinder_enforcement()
    }

    /// Raises what could not be looked up; says whether that is nothing.
    fn say_what_failed(&self, reading: &Reading) -> bool {
        let found = self.sources.found();
        let of_endpoints = |messages: &BTreeMap<String, String>| -> Vec<(String, String)> {
            messages.iter().map(|(key, message)| (format!("endpoint {key}"), message.clone())).collect()
        };
        let of_sources = self.sources.failed().iter();
        let of_sources = of_sources.map(|(subject, message)| (format!("machine {subject}"), message.clone()));
        let files = reading.said.found.iter().filter(|found| found.code == UNREADABLE);
        let files = files.map(|found| (format!("file {}", found.file), found.message.clone()));
        let files: Vec<(String, String)> = files.collect();
        let is_whole = found.failed.is_empty() && self.sources.failed().is_empty() && files.is_empty();
        self.problems.replace(ProblemKind::Lookup, "endpoint ", of_endpoints(&found.failed));
        self.problems.replace(ProblemKind::Lookup, "machine ", of_sources);
        self.problems.replace(ProblemKind::Lookup, "file ", files);
        self.problems.replace(ProblemKind::Interference, "endpoint ", of_endpoints(&found.displaced));
        is_whole
    }

    /// Whether the last change was carried out as a whole.
    fn is_guarded(&self) -> bool {
        self.last.as_ref().is_none_or(|last| self.guards(last))
    }

    /// Whether the kernel holds all of a reading.
    fn guards(&self, reading: &Reading) -> bool {
        self.refused.is_empty() && reading.interfaces.values().flatten().all(|index| self.guarded.contains(index))
    }

    /// What differs from the last reading; everything where not all of that was carried out.
    fn change(&mut self, reading: &Reading) -> Change {
        let last = self.last.as_ref().filter(|_| self.guards(reading));
        let rules = last.is_none_or(|last| last.rules_revision != reading.rules_revision);
        let topology = last.is_none_or(|last| last.topology_revision != reading.topology_revision);
        let whole = || interfaces::topology(&reading.endpoints, &reading.facts, &reading.interfaces, &mut self.told);
        Change { rules: rules.then(|| reading.rules.to_vec()), topology: topology.then(whole) }
    }

    fn note(&mut self, now: &Enforcement) {
        self.guarded.clone_from(&now.judged);
        self.refused.clone_from(&now.unenforced);
        self.closed.clone_from(&now.closed);
        self.policy_state.enforced(self.refused.is_empty(), &now.divided);
    }

    /// Notes what has become of the last change meanwhile: rows may have found room, or been lost.
    fn look_again(&mut self) {
        let now = self.enforcer.reader().enforcement();
        if now.unenforced != self.refused {
            self.note(&now);
        }
    }

    fn carry_out(&mut self, reading: &Reading) {
        let last = self.last.as_ref();
        if last.is_none_or(|last| !Arc::ptr_eq(&last.said.found, &reading.said.found)) {
            tell(&reading.said.found);
        }
        self.policy_state.want(reading, &self.directions);
        let change = self.change(reading);
        match self.enforcer.apply(change).wait() {
            Ok(now) => {
                self.problems.clear(ProblemKind::Source, "change");
                self.note(&now);
            }
            Err(error) => {
                self.guarded.clear();
                let message = format!("the last change of policies or endpoints is not enforced: {error}");
                self.refused = vec![message.clone()];
                self.problems.raise(ProblemKind::Source, "change", message);
            }
        }
    }
}

/// Writes mistakes and warnings to the log.
fn tell(diagnostics: &[Diagnostic]) {
    for found in diagnostics {
        let Diagnostic { file, line, column, field, message, .. } = found;
        tracing::warn!(file, line, column, field, "{message}");
    }
}

/// Calls `nudge` whenever an interface or an address comes or goes. Where that cannot be followed it is tried again, and
/// things are looked at again each time.
pub(crate) async fn follow_links(nudge: impl Fn(), problems: Arc<Problems>) -> anyhow::Result<()> {
    const SUBJECT: &str = "machine interfaces (netlink)";
    loop {
        if let Err(error) = follow_links_once(&nudge, &problems, SUBJECT).await {
            let message = format!("changes of interfaces are seen late: {error:#}");
            problems.raise(ProblemKind::Interference, SUBJECT, message);
        }
        tokio::time::sleep(RETRY).await;
        nudge();
    }
}

async fn follow_links_once(nudge: &impl Fn(), problems: &Problems, subject: &str) -> anyhow::Result<()> {
    let watch = LinkWatch::new().context("watching interfaces")?;
    let mut watch = watch.into_async()?;
    problems.clear(ProblemKind::Interference, subject);
    nudge();
    loop {
        let mut ready = watch.readable_mut().await?;
        let mut seen = false;
        while ready.get_inner_mut().next()?.is_some() {
            seen = true;
        }
        ready.clear_ready();
        if seen {
            nudge();
        }
    }
}
