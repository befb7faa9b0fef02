//! The thread that explains records of flows and requests. Each record takes some time, and other tasks do not wait for it.

use std::{
    future::Future,
    io,
    sync::{Arc, Weak},
    thread::{self, JoinHandle},
};

use tokio::{runtime::Builder, sync::oneshot};

use super::memory;

/// The thread; it ends with this.
pub(super) struct RecordsThread {
    /// Its end is what the thread waits for.
    end: Option<oneshot::Sender<()>>,
    /// Held by the thread.
    alive: Weak<()>,
    thread: Option<JoinHandle<()>>,
}

impl RecordsThread {
    /// Runs both readers of records on a thread of their own. It ends where one of them does.
    pub(super) fn start(
        flows: impl Future<Output = anyhow::Result<()>> + Send + 'static,
        requests: impl Future<Output = anyhow::Result<()>> + Send + 'static,
    ) -> io::Result<Self> {
        let (end, ended) = oneshot::channel();
        let held = Arc::new(());
        let alive = Arc::downgrade(&held);
        let runtime = Builder::new_current_thread().enable_all().build()?;
        let work = async move {
            let failed = tokio::select! {
                _ = ended => return,
                result = async { tokio::try_join!(flows, requests, memory::keep_giving_back()) } => result.err(),
            };
            tracing::error!(?failed, "records of flows and requests are not read any more");
        };
        let thread = thread::Builder::new().name("records".to_owned()).spawn(move || {
            runtime.block_on(work);
            drop(held);
        })?;
        Ok(Self { end: Some(end), alive, thread: Some(thread) })
    }

    /// Says whether records are read.
    pub(super) fn pulse(&self) -> impl Fn() -> bool + Send + Sync + use<> {
        let alive = Weak::clone(&self.alive);
        move || alive.strong_count() > 0
    }
}

impl Drop for RecordsThread {
    fn drop(&mut self) {
        drop(self.end.take());
        if let Some(thread) = self.thread.take() {
            // A thread that panicked has said so.
            let _ = thread.join();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{future::pending, time::Duration};

    use super::*;

    #[test]
    fn the_thread_lives_as_long_as_both_readers() {
        let thread = RecordsThread::start(pending(), pending()).unwrap();
        let is_alive = thread.pulse();
        assert!(is_alive());
        drop(thread);
        assert!(!is_alive());
        for (flows, requests) in [(true, false), (false, true)] {
            let end =
                |ends: bool| async move { if ends { Err(anyhow::anyhow!("a ring is gone")) } else { pending().await } };
            let thread = RecordsThread::start(end(flows), end(requests)).unwrap();
            let ends = (0..500).any(|_| {
                thread::sleep(Duration::from_millis(10));
                !thread.pulse()()
            });
            assert!(ends, "flows {flows}, requests {requests}");
        }
    }
}
