//! The thread that explains records of flows and requests. Each record takes some time, and other tasks do not wait for it.

use std::{future::Future, io, thread};

use tokio::{runtime::Builder, sync::oneshot};

use super::memory;

/// The thread, for as long as this lives.
pub(super) struct RecordsThread {
    /// Its end is what the thread waits for.
    _alive: oneshot::Sender<()>,
}

impl RecordsThread {
    /// Runs both readers of records on a thread of their own.
    pub(super) fn start(
        flows: impl Future<Output = anyhow::Result<()>> + Send + 'static,
        requests: impl Future<Output = ()> + Send + 'static,
    ) -> io::Result<Self> {
        let (alive, ended) = oneshot::channel();
        let runtime = Builder::new_current_thread().enable_all().build()?;
        let flows = async move {
            if let Err(error) = flows.await {
                tracing::error!(%error, "records of flows are not read any more");
            }
        };
        let work = async move {
            tokio::select! {
                _ = ended => {}
                _ = async { tokio::join!(flows, requests, memory::keep_giving_back()) } => {}
            }
        };
        thread::Builder::new().name("records".to_owned()).spawn(move || runtime.block_on(work))?;
        Ok(Self { _alive: alive })
    }
}
