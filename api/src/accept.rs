//! The connections of a listener, served with bounds until the end.

use std::{io, sync::Arc, time::Duration};

use axum::Router;
use hyper::server::conn::http1;
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    server::graceful::GracefulShutdown,
    service::TowerToHyperService,
};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpListener, TcpStream, UnixListener, UnixStream},
    sync::Semaphore,
};

use crate::limits;

/// How long a stop waits for answers under way.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(1);
/// Pause after a failure to accept: most often there are no descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Whatever connections come from.
pub(crate) trait Listener {
    /// One connection.
    type Stream: AsyncRead + AsyncWrite + Unpin + Send + 'static;

    /// The next connection.
    fn next(&self) -> impl Future<Output = io::Result<Self::Stream>> + Send;
}

impl Listener for UnixListener {
    type Stream = UnixStream;

    async fn next(&self) -> io::Result<UnixStream> {
        self.accept().await.map(|(stream, _)| stream)
    }
}

impl Listener for TcpListener {
    type Stream = TcpStream;

    async fn next(&self) -> io::Result<TcpStream> {
        self.accept().await.map(|(stream, _)| stream)
    }
}

/// How connections are served.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Manner {
    /// At once; more wait in the listener's queue.
    pub(crate) connections_max: usize,
    /// A connection has one request and ends after this time; `None` has many, and lasts as long as they come.
    pub(crate) one_request: Option<Duration>,
}

/// Answers until `stop` is ready, then finishes what is under way.
pub(crate) async fn serve<L: Listener>(listener: &L, router: Router, manner: Manner, stop: impl Future<Output = ()>) {
    let connections = Arc::new(Semaphore::new(manner.connections_max));
    let drain = GracefulShutdown::new();
    let mut stop = std::pin::pin!(stop);
    loop {
        let accepted = async {
            let permit = Arc::clone(&connections).acquire_owned().await;
            (listener.next().await, permit)
        };
        let (accepted, permit) = tokio::select! {
            accepted = accepted => accepted,
            () = &mut stop => break,
        };
        match accepted {
            Ok(stream) => {
                let connection = drain.watch(connection(stream, router.clone(), manner));
                tokio::spawn(async move {
                    let lasts = manner.one_request.unwrap_or(Duration::MAX);
                    if let Ok(Err(error)) = tokio::time::timeout(lasts, connection).await {
                        tracing::debug!(%error, "an API connection ended early");
                    }
                    drop(permit);
                });
            }
            Err(error) => {
                tracing::warn!(%error, "accepting an API connection");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
    if tokio::time::timeout(DRAIN_TIMEOUT, drain.shutdown()).await.is_err() {
        tracing::debug!("API connections were cut at the stop");
    }
}

fn connection<S: AsyncRead + AsyncWrite + Unpin>(
    stream: S,
    router: Router,
    manner: Manner,
) -> http1::Connection<TokioIo<S>, TowerToHyperService<Router>> {
    http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(limits::HEAD_TIMEOUT)
        .keep_alive(manner.one_request.is_none())
        .serve_connection(TokioIo::new(stream), TowerToHyperService::new(router))
}
