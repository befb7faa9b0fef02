//! The connections of a listener, served with bounds until the end.

use std::{
    io,
    net::{IpAddr, Ipv6Addr},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use axum::Router;
use hyper::server::conn::http1;
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    server::graceful::GracefulShutdown,
    service::TowerToHyperService,
};
use namegate_config::shares::Shares;
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

    /// The next connection, and where it comes from, if that is an address.
    fn next(&self) -> impl Future<Output = io::Result<(Self::Stream, Option<IpAddr>)>> + Send;
}

impl Listener for UnixListener {
    type Stream = UnixStream;

    async fn next(&self) -> io::Result<(UnixStream, Option<IpAddr>)> {
        self.accept().await.map(|(stream, _)| (stream, None))
    }
}

impl Listener for TcpListener {
    type Stream = TcpStream;

    async fn next(&self) -> io::Result<(TcpStream, Option<IpAddr>)> {
        self.accept().await.map(|(stream, client)| (stream, Some(network(client.ip()))))
    }
}

/// The address of an IPv4 client, the network of an IPv6 client: who has one address of it has all.
fn network(client: IpAddr) -> IpAddr {
    match client.to_canonical() {
        IpAddr::V6(address) => Ipv6Addr::from_bits(address.to_bits() & (u128::MAX << 64)).into(),
        IpAddr::V4(address) => address.into(),
    }
}

/// A connection's part of its client's share, given back on drop. A client gets no more connections than it leaves free.
struct ShareOfClient {
    shares: Arc<Mutex<Shares<IpAddr>>>,
    client: IpAddr,
}

impl ShareOfClient {
    fn take(shares: &Arc<Mutex<Shares<IpAddr>>>, client: IpAddr) -> Option<Self> {
        shares.lock().unwrap_or_else(PoisonError::into_inner).take(client, 1).ok()?;
        Some(Self { shares: Arc::clone(shares), client })
    }
}

impl Drop for ShareOfClient {
    fn drop(&mut self) {
        self.shares.lock().unwrap_or_else(PoisonError::into_inner).give(self.client, 1);
    }
}

/// How connections are served.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ServeOptions {
    /// At once; more wait in the listener's queue.
    pub(crate) connections_max: usize,
    /// A connection has one request and ends after this time; `None` has many, and lasts as long as they come.
    pub(crate) one_request: Option<Duration>,
}

/// Answers until `stop` is ready, then finishes what is under way.
pub(crate) async fn serve<L: Listener>(
    listener: &L,
    router: Router,
    options: ServeOptions,
    stop: impl Future<Output = ()>,
) {
    let connections = Arc::new(Semaphore::new(options.connections_max));
    let shares = Arc::new(Mutex::new(Shares::new(options.connections_max, options.connections_max)));
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
            Ok((stream, client)) => {
                let share = client.map(|client| ShareOfClient::take(&shares, client));
                if matches!(share, Some(None)) {
                    tracing::debug!(?client, "a client has its share of the connections");
                    continue;
                }
                let connection = drain.watch(connection(stream, router.clone(), options));
                tokio::spawn(async move {
                    let lasts = options.one_request.unwrap_or(Duration::MAX);
                    if let Ok(Err(error)) = tokio::time::timeout(lasts, connection).await {
                        tracing::debug!(%error, "an API connection ended early");
                    }
                    drop((permit, share));
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
    options: ServeOptions,
) -> http1::Connection<TokioIo<S>, TowerToHyperService<Router>> {
    http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(limits::HEAD_TIMEOUT)
        .keep_alive(options.one_request.is_none())
        .serve_connection(TokioIo::new(stream), TowerToHyperService::new(router))
}
