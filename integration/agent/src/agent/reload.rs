//! The thread that reads files and Kubernetes again when they or the machine's interfaces change, and hands the result to
//! the gate.

use std::{
    collections::{BTreeMap, HashSet},
    sync::{
        Arc,
        mpsc::{Receiver, RecvTimeoutError, Sender, channel},
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

use anyhow::Context;
use namegate_api::view::Diagnostic;
use namegate_config::{policy::Features, rule::Direction, settings::Settings};
use namegate_engine::{Change, DividedPort};
use namegate_loader::links::LinkWatch;

use super::{
    attachments::Attachments,
    book::Book,
    cluster::Cluster,
    file_watch::FileWatch,
    files::UNREADABLE,
    gate::{Door, Gate},
    interfaces::{self, Interfaces},
    problems::{ProblemKind, Problems},
    sources::{Reading, Sources},
};

/// Changes that come within this time of each other are read together.
const QUIET: Duration = Duration::from_millis(3);
/// The same, where changes do not end.
const QUIET_MAX: Duration = Duration::from_millis(20);
/// Files are read again after this time, even if no change was told of.
const PERIOD: Duration = Duration::from_mins(1);
/// The same, where something could not be read or looked up.
const RETRY: Duration = Duration::from_secs(1);

/// Why the thread wakes.
pub(crate) enum Wake {
    /// A file, an interface or something in Kubernetes has changed.
    Changed,
    /// The agent ends.
    Stop,
}

/// The running thread.
pub(crate) struct Reloader {
    wake: Sender<Wake>,
    thread: JoinHandle<()>,
}

/// What the thread works with.
struct Work {
    sources: Sources,
    watch: FileWatch,
    door: Door,
    book: Arc<Book>,
    problems: Arc<Problems>,
    directions: Vec<Direction>,
    last: Option<(Arc<Reading>, Interfaces)>,
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
        door: Door,
        book: Arc<Book>,
        problems: Arc<Problems>,
        cluster: Option<Cluster>,
    ) -> anyhow::Result<Self> {
        let asked = |error| anyhow::anyhow!("asking what the kernel holds: {error}");
        let known = door.ask_blocking(|gate| (gate.known_interfaces(), gate.datapath().inspector())).map_err(asked)?;
        let (interfaces, inspector) = known;
        let mut sources = Sources::new(settings, features, cluster, &problems);
        sources.begin(interfaces);
        let (wake, woken) = channel();
        // Watched before each reading: no change falls between.
        let watch = FileWatch::new(sources.paths(), wake.clone())?;
        let mut work = Work {
            sources,
            watch,
            attachments: Attachments::new(inspector, door.clone(), Arc::clone(&problems), Arc::clone(&book)),
            next: Instant::now(),
            door,
            book,
            problems,
            directions: settings.directions.clone(),
            last: None,
            told: interfaces::Told::default(),
            guarded: HashSet::new(),
            refused: Vec::new(),
            reported: false,
            closed: BTreeMap::new(),
        };
        work.reload();
        work.attachments.inspect(work.sources.found());
        let thread = std::thread::Builder::new().name("files".to_owned()).spawn(move || serve(work, &woken))?;
        Ok(Self { wake, thread })
    }

    /// A function that makes the thread look again.
    pub(crate) fn nudge(&self) -> impl Fn() + Clone + Send + Sync + 'static {
        let wake = self.wake.clone();
        // The thread may have ended.
        move || drop(wake.send(Wake::Changed))
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
        match woken.recv_timeout(work.sleep()) {
            Ok(Wake::Changed) => {
                let until = Instant::now() + QUIET_MAX;
                while let left = until.saturating_duration_since(Instant::now()).min(QUIET)
                    && !left.is_zero()
                {
                    match woken.recv_timeout(left) {
                        Ok(Wake::Changed) => {}
                        Ok(Wake::Stop) => return,
                        Err(_) => break,
                    }
                }
            }
            Err(RecvTimeoutError::Timeout) if !work.is_due() => {
                work.inspect();
                continue;
            }
            Err(RecvTimeoutError::Timeout) => {}
            Ok(Wake::Stop) | Err(RecvTimeoutError::Disconnected) => return,
        }
        work.reload();
        work.inspect();
    }
}

impl Work {
    /// When everything should be read without a reason.
    fn next(&mut self) -> Instant {
        let again = self.sources.cluster().and_then(|cluster| cluster.again());
        again.map_or(self.next, |again| again.min(self.next))
    }

    fn is_due(&mut self) -> bool {
        self.next() <= Instant::now()
    }

    /// How long until something is to be done without a reason.
    fn sleep(&mut self) -> Duration {
        self.next().min(self.attachments.next()).saturating_duration_since(Instant::now())
    }

    fn reload(&mut self) {
        let start = Instant::now();
        self.watch.refresh();
        let is_whole = self.read_and_carry_out(start) && self.watch.is_whole() && !self.sources.is_behind();
        self.next = Instant::now() + if is_whole { PERIOD } else { RETRY };
    }

    /// Says whether everything could be read and looked up.
    fn read_and_carry_out(&mut self, start: Instant) -> bool {
        const READING: &str = "reading";
        let reading = match self.sources.read() {
            Ok(Some(reading)) => Arc::new(reading),
            Ok(None) => return true,
            Err(error) => {
                self.problems.raise(ProblemKind::Lookup, READING, format!("all stays as it is: {error}"));
                return false;
            }
        };
        self.problems.clear(ProblemKind::Lookup, READING);
        self.sources.raise(&reading, &self.problems);
        let interfaces = self.sources.found().interfaces.clone();
        let read = start.elapsed();
        if self.last.as_ref().is_none_or(|(last, seen)| *last != reading || *seen != interfaces) {
            self.carry_out(&reading, &interfaces);
        } else {
            self.look_again();
        }
        let is_whole = self.say_what_failed();
        let found = self.sources.found().clone();
        if let Some(cluster) = self.sources.cluster() {
            cluster.tell(&reading.facts, &found, &self.guarded, &self.closed);
        }
        self.report(&reading);
        tracing::debug!(?read, whole = ?start.elapsed(), "read again");
        self.last = Some((reading, interfaces));
        is_whole
    }

    /// Looks after the programs; what could not be attached before may be by now.
    fn inspect(&mut self) {
        self.attachments.inspect_if_due(self.sources.found());
        if self.is_enforced() != self.reported
            && let Some((reading, _)) = &self.last
        {
            self.report(&Arc::clone(reading));
        }
        if !self.is_guarded()
            && let Ok(Ok(guarded)) = self.door.ask_blocking(|gate| gate.guarded())
            && guarded != self.guarded
        {
            self.guarded = guarded;
            self.reload();
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
    fn say_what_failed(&self) -> bool {
        let found = self.sources.found();
        let of_endpoints = |messages: &BTreeMap<String, String>| -> Vec<(String, String)> {
            messages.iter().map(|(key, message)| (format!("endpoint {key}"), message.clone())).collect()
        };
        let of_sources = self.sources.failed().iter();
        let of_sources = of_sources.map(|(subject, message)| (format!("machine {subject}"), message.clone()));
        let unreadable = self.book.page().said.diagnostics.clone();
        let is_file = |found: &&Diagnostic| found.code == UNREADABLE;
        let files =
            unreadable.iter().filter(is_file).map(|found| (format!("file {}", found.file), found.message.clone()));
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
        let mut interfaces = self.last.iter().flat_map(|(_, interfaces)| interfaces.values()).flatten();
        self.refused.is_empty() && interfaces.all(|index| self.guarded.contains(index))
    }

    /// What differs from the last reading; everything where not all of that was carried out.
    fn change(&mut self, reading: &Reading, interfaces: &Interfaces) -> Change {
        let is_guarded =
            || self.refused.is_empty() && interfaces.values().flatten().all(|index| self.guarded.contains(index));
        let (rules, topology) = match &self.last {
            Some((last, seen)) if is_guarded() => {
                let same = last.endpoints == reading.endpoints && last.facts == reading.facts && seen == interfaces;
                (last.rules != reading.rules, !same)
            }
            _ => (true, true),
        };
        let whole = || interfaces::topology(&reading.endpoints, &reading.facts, interfaces, &mut self.told);
        Change { rules: rules.then(|| reading.rules.to_vec()), topology: topology.then(whole) }
    }

    fn note(&mut self, found: Outcome) {
        self.guarded = found.guarded;
        self.refused = found.refused;
        self.closed = found.closed;
        self.book.enforced(self.refused.is_empty(), &found.divided);
    }

    /// Notes what has become of the last change meanwhile: rows may have found room, or been lost.
    fn look_again(&mut self) {
        let refused = self.refused.clone();
        let found = self.door.ask_blocking(move |gate| {
            let now = gate.room.unenforced();
            (now != refused).then(|| Outcome::of(gate, now))
        });
        // Without an answer the agent ends.
        if let Ok(Some(found)) = found {
            self.note(found);
        }
    }

    fn carry_out(&mut self, reading: &Reading, interfaces: &Interfaces) {
        let last = self.last.as_ref().map(|(last, _)| &**last);
        if last.is_none_or(|last| last.said.diagnostics != reading.said.diagnostics) {
            tell(&reading.said.diagnostics);
        }
        self.book.want(reading, interfaces, &self.directions);
        let change = self.change(reading, interfaces);
        let changed = self.door.ask_blocking(move |gate| {
            let refused = gate.change(change);
            Outcome::of(gate, refused)
        });
        match changed {
            Ok(found) => {
                self.problems.clear(ProblemKind::Source, "change");
                self.note(found);
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

/// How far the kernel is.
struct Outcome {
    refused: Vec<String>,
    closed: BTreeMap<String, String>,
    guarded: HashSet<u32>,
    divided: Vec<DividedPort>,
}

impl Outcome {
    fn of(gate: &Gate, refused: Vec<String>) -> Self {
        let divided = gate.engine().divided();
        Self { refused, closed: gate.room.closed().clone(), guarded: gate.guarded().unwrap_or_default(), divided }
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
pub(crate) async fn follow_links(nudge: impl Fn(), problems: Arc<Problems>) {
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
