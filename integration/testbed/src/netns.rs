//! One network namespace with a thread of its own: sockets and child processes made there belong to it.
//!
//! `setns(2)` changes the calling thread only, so each namespace keeps one thread with a single-threaded runtime, and
//! work is sent to it. Nothing in this file knows what the namespace is for.

use std::fs::File;
use std::future::Future;
use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::thread::JoinHandle;

use anyhow::{Context, Result};
use nix::sched::{CloneFlags, setns};
use tokio::runtime::{Builder, Handle};
use tokio::sync::oneshot;

/// A named network namespace, entered. Dropping it stops its tasks; the name stays.
#[derive(Debug)]
pub struct Netns {
    name: String,
    handle: Handle,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Netns {
    /// Enters a namespace that `ip netns add` made.
    pub fn enter(name: &str) -> Result<Self> {
        Self::enter_at(name, &Self::path_of(name))
    }

    /// Enters the namespace that a file stands for.
    pub fn enter_at(name: &str, path: &Path) -> Result<Self> {
        let (ready, entered) = mpsc::channel();
        let (stop, stopped) = oneshot::channel();
        let path = path.to_owned();
        let thread = std::thread::Builder::new()
            .name(name.to_owned())
            .spawn(move || serve(&path, &ready, stopped))
            .context("starting the thread of a namespace")?;
        let handle = entered.recv().context("the thread of a namespace ended")??;
        Ok(Self { name: name.to_owned(), handle, stop: Some(stop), thread: Some(thread) })
    }

    /// The name that `ip netns` shows.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The file that stands for the namespace.
    pub fn path(&self) -> PathBuf {
        Self::path_of(&self.name)
    }

    /// Where `ip netns` keeps the file of a namespace.
    pub fn path_of(name: &str) -> PathBuf {
        PathBuf::from("/run/netns").join(name)
    }

    /// Starts a future on the namespace's thread.
    pub fn spawn<T, F>(&self, future: F) -> Task<T>
    where
        T: Send + 'static,
        F: Future<Output = T> + Send + 'static,
    {
        Task { handle: self.handle.clone(), join: self.handle.spawn(future) }
    }

    /// Runs a future on the namespace's thread and waits for it. Not for use on a thread of a runtime.
    pub fn run<T, F>(&self, future: F) -> T
    where
        T: Send + 'static,
        F: Future<Output = T> + Send + 'static,
    {
        self.spawn(future).wait()
    }

    /// Runs a function on the namespace's thread and waits for it. The tasks of the namespace stand still meanwhile.
    pub fn call<T, F>(&self, function: F) -> T
    where
        T: Send + 'static,
        F: FnOnce() -> T + Send + 'static,
    {
        self.run(async move { function() })
    }
}

impl Drop for Netns {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join(); // A panic of a task was shown when it happened.
        }
    }
}

/// Work under way in a namespace.
#[derive(Debug)]
pub struct Task<T> {
    handle: Handle,
    join: tokio::task::JoinHandle<T>,
}

impl<T> Task<T> {
    /// Waits for the result.
    ///
    /// # Panics
    ///
    /// Where the work panicked, with its message, and where the namespace was taken down before its end.
    pub fn wait(self) -> T {
        match self.handle.block_on(self.join) {
            Ok(value) => value,
            Err(error) if error.is_panic() => std::panic::resume_unwind(error.into_panic()),
            Err(error) => panic!("the namespace was taken down under its work: {error}"),
        }
    }

    /// Ends the work where it stands.
    pub fn stop(self) {
        self.join.abort();
    }

    /// Whether the work has ended.
    pub fn is_finished(&self) -> bool {
        self.join.is_finished()
    }
}

fn serve(path: &Path, ready: &mpsc::Sender<Result<Handle>>, stopped: oneshot::Receiver<()>) {
    let runtime = File::open(path)
        .with_context(|| format!("opening the namespace {}", path.display()))
        .and_then(|file| setns(file, CloneFlags::CLONE_NEWNET).context("entering a network namespace needs root"))
        .and_then(|()| Builder::new_current_thread().enable_all().build().context("building a runtime"));
    match runtime {
        Ok(runtime) => {
            let _ = ready.send(Ok(runtime.handle().clone())); // The caller waits for exactly this.
            let _ = runtime.block_on(stopped); // An error says that the owner has gone: the same end.
        }
        Err(error) => drop(ready.send(Err(error))),
    }
}
