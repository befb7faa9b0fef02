//! Where the agent is asked: its socket, and by setting a port for metrics alone.

use std::sync::Arc;

use namegate_api::{Backend, MetricsPort, Server};
use namegate_config::settings::Settings;
use tokio::sync::oneshot;

/// Both, bound.
pub(crate) struct Listeners {
    socket: Server,
    metrics: Option<MetricsPort>,
}

impl Listeners {
    /// Binds what the settings name. A second agent ends here, before it touches the kernel.
    pub(crate) fn open(settings: &Settings) -> anyhow::Result<Self> {
        let socket = Server::bind(&settings.socket)?;
        let metrics = settings.metrics.listen.map(MetricsPort::bind).transpose()?;
        Ok(Self { socket, metrics })
    }

    /// Answers until `end` is ready.
    pub(crate) async fn serve(self, gate: impl Backend, end: impl Future<Output = ()>) {
        let gate: Arc<dyn Backend> = Arc::new(gate);
        let (ends, ended) = oneshot::channel::<()>();
        let for_metrics = Arc::clone(&gate);
        let metrics = async {
            if let Some(port) = self.metrics {
                tracing::info!(address = %port.address(), "metrics are served over TCP");
                let ended = async { ended.await.unwrap_or_default() };
                port.serve(for_metrics, ended).await;
            }
        };
        let socket = async {
            self.socket.serve(gate, end).await;
            drop(ends);
        };
        tokio::join!(socket, metrics);
    }
}
