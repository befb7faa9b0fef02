//! Metrics alone, over TCP: for a collector that cannot reach the socket. Every client that reaches the port may read
//! them; there is nothing else here, and nothing to change.

use std::{
    io,
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use axum::{
    Router,
    extract::{Request, State},
    http::{Method, Uri},
    middleware,
    response::{IntoResponse, Response},
    routing::get,
};
use tokio::{
    net::TcpListener,
    sync::{Mutex, Semaphore},
};

use crate::{
    accept::{self, ServeOptions},
    backend::Backend,
    limits,
    problem::Problem,
    routes::without_parameters,
    scrape,
};

/// Connections at once; more wait in the queue of the port.
const CONNECTIONS_MAX: usize = 16;
/// Time for a request and its answer.
const CONNECTION_MAX: Duration = Duration::from_secs(20);
/// The figures are gathered anew at most once in this time, however many ask.
const FIGURES_AGE_MAX: Duration = Duration::from_secs(1);

/// Why the port is not served.
#[derive(Debug, thiserror::Error)]
pub enum PortError {
    /// Somebody listens there already.
    #[error("another program listens on {0} already; end it, or set another `metrics.listen`")]
    InUse(SocketAddr),
    /// The system refused.
    #[error("listening on {address}, as `metrics.listen` says")]
    Listen {
        /// The address.
        address: SocketAddr,
        /// The system's error.
        #[source]
        source: io::Error,
    },
}

/// A bound port.
#[derive(Debug)]
pub struct MetricsPort {
    listener: TcpListener,
    address: SocketAddr,
}

impl MetricsPort {
    /// Binds the port. Must be called on a tokio runtime.
    pub fn bind(address: SocketAddr) -> Result<Self, PortError> {
        let failed = |source: io::Error| match source.kind() {
            io::ErrorKind::AddrInUse => PortError::InUse(address),
            _ => PortError::Listen { address, source },
        };
        let listener = std::net::TcpListener::bind(address).map_err(failed)?;
        listener.set_nonblocking(true).map_err(failed)?;
        let address = listener.local_addr().map_err(failed)?;
        Ok(Self { listener: TcpListener::from_std(listener).map_err(failed)?, address })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Answers until `stop` is ready, then finishes what is under way.
    pub async fn serve(self, gate: Arc<dyn Backend>, stop: impl Future<Output = ()>) {
        let options = ServeOptions { connections_max: CONNECTIONS_MAX, one_request: Some(CONNECTION_MAX) };
        accept::serve(&self.listener, router(gate), options, stop).await;
    }
}

#[derive(Clone)]
struct Figures {
    gate: Arc<dyn Backend>,
    /// The last text, and when it was made.
    last: Arc<Mutex<Option<(Instant, String)>>>,
}

fn router(gate: Arc<dyn Backend>) -> Router {
    Router::new()
        .route("/metrics", get(figures))
        .fallback(async || Problem::metrics_alone())
        .method_not_allowed_fallback(async |method: Method, _: Request| Problem::read_alone(method.as_str()))
        .layer(middleware::from_fn_with_state(Arc::new(Semaphore::new(limits::REQUESTS_MAX)), limits::keep))
        .with_state(Figures { gate, last: Arc::default() })
}

/// The lock is held while figures are gathered: those who come meanwhile get the same.
async fn figures(State(figures): State<Figures>, uri: Uri) -> Result<Response, Problem> {
    without_parameters(&uri)?;
    let mut last = figures.last.lock().await;
    let text = match &*last {
        Some((made, text)) if made.elapsed() < FIGURES_AGE_MAX => text.clone(),
        _ => {
            let text = scrape::text(&*figures.gate).await?;
            *last = Some((Instant::now(), text.clone()));
            text
        }
    };
    Ok(scrape::response(text).into_response())
}
