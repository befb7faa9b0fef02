//! The thread that reads files again when they or the machine's interfaces change, and hands the result to the gate.

use std::{
    path::{Path, PathBuf},
    sync::{
        Arc,
        mpsc::{Receiver, RecvTimeoutError, Sender, channel},
    },
    thread::JoinHandle,
    time::Duration,
};

use anyhow::Context;
use namegate_config::{policy::Features, rule::Direction, settings::Settings};
use namegate_engine::Change;
use namegate_loader::links::LinkWatch;
use notify::{
    Event, EventKind, RecommendedWatcher, RecursiveMode, Watcher,
    event::{AccessKind, AccessMode},
};

use super::{
    book::Book,
    files::{Files, Reading},
    gate::{Chain, Door},
    interfaces::{self, Interfaces},
};

/// Changes that come within this time of each other are read together.
const QUIET: Duration = Duration::from_millis(3);
/// Files are read again after this time, even if no change was told of.
const PERIOD: Duration = Duration::from_mins(1);

/// Why the thread wakes.
enum Wake {
    /// A file or an interface has changed.
    Changed,
    /// The agent ends.
    Stop,
}

/// The running thread; the watcher lives as long.
pub(crate) struct Reloader {
    wake: Sender<Wake>,
    thread: JoinHandle<()>,
    _watcher: RecommendedWatcher,
}

/// What the thread works with.
struct Work {
    files: Files,
    door: Door,
    book: Arc<Book>,
    directions: Vec<Direction>,
    last: Option<(Reading, Interfaces)>,
}

impl Reloader {
    /// Reads everything once, waits until the kernel holds it, then goes on by itself.
    pub(crate) fn start(settings: &Settings, features: Features, door: Door, book: Arc<Book>) -> anyhow::Result<Self> {
        let files = Files::new(settings.policies.clone(), settings.endpoints.clone(), &settings.state, features)?;
        let mut work = Work { files, door, book, directions: settings.directions.clone(), last: None };
        let (wake, woken) = channel();
        // Watched before the first reading: no change falls between.
        let watcher = watch(&settings.policies, &settings.endpoints, wake.clone())?;
        work.reload();
        let thread = std::thread::Builder::new().name("files".to_owned()).spawn(move || serve(work, &woken))?;
        Ok(Self { wake, thread, _watcher: watcher })
    }

    /// A function that makes the thread look again.
    pub(crate) fn nudge(&self) -> impl Fn() + Send + 'static {
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
        match woken.recv_timeout(PERIOD) {
            Ok(Wake::Changed) => loop {
                match woken.recv_timeout(QUIET) {
                    Ok(Wake::Changed) => {}
                    Ok(Wake::Stop) => return,
                    Err(_) => break,
                }
            },
            Err(RecvTimeoutError::Timeout) => {}
            Ok(Wake::Stop) | Err(RecvTimeoutError::Disconnected) => return,
        }
        work.reload();
    }
}

impl Work {
    fn reload(&mut self) {
        let reading = self.files.read();
        let interfaces = interfaces::resolve(&reading.endpoints);
        if self.last.as_ref().is_some_and(|(last, seen)| *last == reading && *seen == interfaces) {
            return;
        }
        for found in &reading.diagnostics {
            tracing::warn!(
                file = found.file,
                line = found.line,
                column = found.column,
                field = found.field,
                "{}",
                found.message
            );
        }
        self.book.want(&reading, &interfaces, &self.directions);
        let topology = interfaces::topology(&reading.endpoints, &interfaces);
        let change = Change { rules: Some(reading.rules.clone()), topology: Some(topology) };
        let changed = self.door.ask_blocking(move |gate| {
            let refused: Vec<String> = gate.change(change).iter().map(|error| Chain(error).to_string()).collect();
            (refused, gate.engine().divided())
        });
        match changed {
            Ok((refused, divided)) => self.book.enforced(refused, &divided),
            Err(error) => tracing::error!(%error, "a change could not be handed to the gate"),
        }
        self.last = Some((reading, interfaces));
    }
}

/// Watches the folder of policies and that of the endpoints file.
fn watch(policies: &Path, endpoints: &Path, wake: Sender<Wake>) -> anyhow::Result<RecommendedWatcher> {
    let folder = endpoints.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let (inside, file) = (absolute(policies)?, absolute(folder)?.join(endpoints.file_name().unwrap_or_default()));
    let told = move |event: notify::Result<Event>| {
        let matters = event.as_ref().map_or(true, |event| is_change(event, &inside, &file));
        if matters {
            // The thread may have ended.
            let _ = wake.send(Wake::Changed);
        }
    };
    let mut watcher = notify::recommended_watcher(told).context("watching files")?;
    for folder in [policies, folder] {
        let folder = absolute(folder)?;
        watcher
            .watch(&folder, RecursiveMode::NonRecursive)
            .with_context(|| format!("watching {}; make the folder, or set another", folder.display()))?;
    }
    Ok(watcher)
}

fn absolute(path: &Path) -> anyhow::Result<PathBuf> {
    std::path::absolute(path).with_context(|| format!("reading the path {}", path.display()))
}

/// Reading a file is an event too, and no change.
fn is_change(event: &Event, policies: &Path, endpoints: &Path) -> bool {
    let is_read = matches!(event.kind, EventKind::Access(kind) if kind != AccessKind::Close(AccessMode::Write));
    // A mounted configuration is replaced by moving a link whose name starts with two dots.
    let is_link = |path: &Path| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with(".."));
    !is_read && event.paths.iter().any(|path| path.parent() == Some(policies) || path == endpoints || is_link(path))
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
