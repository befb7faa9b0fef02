//! The thread that reads files and Kubernetes again when they or the machine's interfaces change, and hands the result to
//! the gate.

use std::{
    collections::HashSet,
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
use namegate_engine::Change;
use namegate_loader::links::LinkWatch;

use super::{
    absent::Absent,
    book::Book,
    cluster::Cluster,
    file_watch::FileWatch,
    gate::{Chain, Door},
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
/// The same while something could not be read or written.
const UNWELL: Duration = Duration::from_secs(1);

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
    absent: Absent,
    door: Door,
    book: Arc<Book>,
    problems: Arc<Problems>,
    directions: Vec<Direction>,
    last: Option<(Arc<Reading>, Interfaces)>,
    told: interfaces::Told,
    /// Interfaces whose packets are judged, after the last change.
    guarded: HashSet<u32>,
    /// A row of the last change that the kernel refused.
    refused: Option<String>,
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
        let sources = Sources::new(settings, features, cluster, &problems);
        let (wake, woken) = channel();
        // Watched before each reading: no change falls between.
        let watch = FileWatch::new(sources.paths(), wake.clone())?;
        let mut work = Work {
            sources,
            watch,
            absent: Absent::default(),
            door,
            book,
            problems,
            directions: settings.directions.clone(),
            last: None,
            told: interfaces::Told::default(),
            guarded: HashSet::new(),
            refused: None,
        };
        work.reload();
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
            Err(RecvTimeoutError::Timeout) => {}
            Ok(Wake::Stop) | Err(RecvTimeoutError::Disconnected) => return,
        }
        work.reload();
    }
}

impl Work {
    /// How long until things should be looked at without a reason.
    fn sleep(&mut self) -> Duration {
        let again = self.sources.cluster().and_then(|cluster| cluster.again());
        let again = again.map(|again| again.saturating_duration_since(Instant::now()));
        let is_well = self.watch.is_whole() && !self.sources.is_behind();
        let period = if is_well { PERIOD } else { UNWELL };
        again.into_iter().chain(self.absent.due_in()).fold(period, Duration::min)
    }

    fn reload(&mut self) {
        let start = Instant::now();
        self.watch.refresh();
        let Some(reading) = self.sources.read().map(Arc::new) else { return };
        self.sources.raise(&reading, &self.problems);
        let interfaces = interfaces::resolve(&reading.endpoints);
        self.absent.look(&reading, &interfaces, &self.problems);
        let read = start.elapsed();
        if self.last.as_ref().is_none_or(|(last, seen)| *last != reading || *seen != interfaces) {
            self.carry_out(&reading, &interfaces);
        }
        if let Some(cluster) = self.sources.cluster() {
            cluster.tell(&reading.facts, &interfaces, &self.guarded, self.refused.as_ref());
        }
        self.sources.report(&reading, self.refused.is_none());
        tracing::debug!(?read, whole = ?start.elapsed(), "read again");
        self.last = Some((reading, interfaces));
    }

    /// What differs from the last reading; everything where not all of that was carried out.
    fn change(&mut self, reading: &Reading, interfaces: &Interfaces) -> Change {
        let is_guarded = || self.refused.is_none() && interfaces.values().all(|index| self.guarded.contains(index));
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

    fn carry_out(&mut self, reading: &Reading, interfaces: &Interfaces) {
        let last = self.last.as_ref().map(|(last, _)| &**last);
        if last.is_none_or(|last| last.said.diagnostics != reading.said.diagnostics) {
            tell(&reading.said.diagnostics);
        }
        self.book.want(reading, interfaces, &self.directions);
        let change = self.change(reading, interfaces);
        let changed = self.door.ask_blocking(move |gate| {
            let refused = gate.change(change).iter().map(|error| Chain(error).to_string()).collect::<Vec<_>>();
            (refused, gate.guarded(), gate.engine().divided())
        });
        match changed {
            Ok((refused, guarded, divided)) => {
                self.problems.clear(ProblemKind::Source, "change");
                self.guarded = guarded;
                self.refused = refused.first().cloned();
                self.book.enforced(refused, &divided);
            }
            Err(error) => {
                self.guarded.clear();
                let message = format!("the last change of policies or endpoints is not enforced: {error}");
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

/// Calls `nudge` whenever an interface comes or goes.
pub(crate) async fn follow_links(nudge: impl Fn()) -> anyhow::Result<()> {
    let watch = LinkWatch::new().context("watching interfaces")?;
    let mut watch = watch.into_async()?;
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
