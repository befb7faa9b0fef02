//! The proxy as its owner sees it: settings in, a port and counters out.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    sync::Arc,
    thread::{self, JoinHandle},
    time::Duration,
};

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use tokio::{
    net::TcpListener,
    runtime::{Builder, Runtime},
    sync::watch,
    task::JoinSet,
    time::{MissedTickBehavior, interval, timeout},
};

use crate::{
    accept::{self, Worker},
    account::Accounts,
    backend::Backend,
    connection::Shared,
    counters::Counters,
    pace, socket, standing, turn,
};

/// Ports tried where the kernel's choice for IPv4 is taken for IPv6.
const PORT_TRIES: usize = 16;
/// How long requests under way may take when the proxy ends.
const FAREWELL_MAX: Duration = Duration::from_secs(2);
/// Between two calls of [`Backend::tidy`].
const TIDY_EVERY: Duration = Duration::from_secs(1);
/// Descriptors asked of the system: two for each connection.
const DESCRIPTORS: u64 = 65_536;

/// How the proxy runs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// Threads.
    pub workers: usize,
    /// Port on the loopback addresses; 0 is the kernel's choice.
    pub port: u16,
    /// `SO_MARK` of all sockets, by which the gate knows them; 0 sets none, and nothing can be redirected here then.
    pub mark: u32,
    /// The server of connections that were not redirected but made to the proxy's own address; none refuses them.
    pub fixed_server: Option<SocketAddr>,
    /// Connections at a time; each needs two descriptors.
    pub connections_max: usize,
    /// Of them, those of one endpoint. It gets no more than it leaves free, so others always find room.
    pub connections_per_endpoint_max: usize,
    /// Bytes that are kept for all connections: beginnings that are not whole, heads of requests under way, parts of bodies
    /// that the other side has not taken. An endpoint gets no more than it leaves free.
    pub bytes_max: usize,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            workers: 1,
            port: 0,
            mark: 0,
            fixed_server: None,
            connections_max: 16_384,
            connections_per_endpoint_max: 16_384,
            bytes_max: 192 << 20,
        }
    }
}

/// Why the proxy can not start.
#[derive(Debug, thiserror::Error)]
pub enum ProxyError {
    /// A listening socket.
    #[error("listening on {address} for requests (transparent sockets need CAP_NET_ADMIN)")]
    Listen {
        /// Where.
        address: SocketAddr,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// The threads.
    #[error("starting the threads that read requests")]
    Runtime(#[source] io::Error),
}

/// A running proxy. It ends on drop.
///
/// Each of its threads has connections of its own, from the first octet to the last: no request changes threads.
#[derive(Debug)]
pub struct Proxy {
    port: u16,
    counters: Arc<Counters>,
    accounts: Arc<Accounts>,
    running: Option<Running>,
}

/// What ends a proxy.
#[derive(Debug)]
struct Running {
    /// A value that is sent here ends connections.
    stop: watch::Sender<()>,
    /// Dropped to cut what is left of them.
    cut: watch::Sender<()>,
    threads: Vec<JoinHandle<()>>,
}

impl Proxy {
    /// Opens the sockets and starts the threads.
    pub fn start(config: &Config, backend: impl Backend) -> Result<Self, ProxyError> {
        raise_descriptors();
        let (port, listeners) = listen(config)?;
        let counters = Arc::<Counters>::default();
        let shared = Arc::new(Shared::new(backend, Arc::clone(&counters), config, port));
        let ((stop, stopped), (cut, over)) = (watch::channel(()), watch::channel(()));
        let mut threads = Vec::new();
        let mut workers = Vec::new();
        let mut runtimes = Vec::new();
        for _ in 0..config.workers.max(1) {
            let (worker, inbox) = Worker::new();
            let mut builder = Builder::new_current_thread();
            builder.enable_all().on_thread_park(turn::sleeps).on_thread_unpark(turn::wakes);
            let runtime = builder.build().map_err(ProxyError::Runtime)?;
            workers.push(worker);
            runtimes.push((runtime, inbox));
        }
        let workers: Arc<[_]> = workers.into();
        let accounts = Arc::clone(&shared.accounts);
        for (own, (runtime, inbox)) in runtimes.into_iter().enumerate() {
            let mut tasks = JoinSet::new();
            let on = runtime.handle();
            let _entered = runtime.enter();
            if own == 0 {
                tasks.spawn_on(standing::follow(Arc::clone(&shared), stopped.clone()), on);
            }
            tasks.spawn_on(pace::rounds(), on);
            tasks.spawn_on(tidy(Arc::clone(&shared)), on);
            for listener in &listeners {
                let listener = listener.try_clone().and_then(TcpListener::from_std).map_err(ProxyError::Runtime)?;
                let place = (Arc::clone(&workers), own);
                tasks.spawn_on(accept::accept(listener, Arc::clone(&shared), place, stopped.clone()), on);
            }
            tasks.spawn_on(accept::work(Arc::clone(&shared), inbox, stopped.clone()), on);
            let over = over.clone();
            let thread = thread::Builder::new().name("l7".into()).spawn(move || run(&runtime, tasks, over));
            threads.push(thread.map_err(ProxyError::Runtime)?);
        }
        Ok(Self { port, counters, accounts, running: Some(Running { stop, cut, threads }) })
    }

    /// The port on the loopback addresses.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// What became of connections and requests since the start: every word with its count, always in the same order.
    pub fn counters(&self) -> Vec<(&'static str, u64)> {
        self.counters.all()
    }

    /// Connections at the moment, and bytes that are kept for them.
    pub fn held(&self) -> (usize, usize) {
        self.accounts.held()
    }

    /// Whether all threads work. One ends before [`Self::stop`] only where a task of it panicked.
    pub fn is_alive(&self) -> bool {
        self.running.as_ref().is_some_and(|running| running.threads.iter().all(|thread| !thread.is_finished()))
    }

    /// Takes no more connections, lets requests under way end for a moment, and ends. Must not be called from an
    /// asynchronous task.
    pub fn stop(mut self) {
        self.end();
    }

    fn end(&mut self) {
        let Some(Running { stop, cut, threads }) = self.running.take() else { return };
        // Told by a value, so that `closed` says when the last connection has gone.
        let _ = stop.send(());
        // Within a task of a runtime, as after a start that failed, nothing may wait: connections are cut at once.
        if tokio::runtime::Handle::try_current().is_err()
            && let Ok(runtime) = Builder::new_current_thread().enable_time().build()
        {
            // What is not done by then is cut.
            let _ = runtime.block_on(async { timeout(FAREWELL_MAX, stop.closed()).await });
        }
        drop(cut);
        for thread in threads {
            // A thread that panicked has said so.
            let _ = thread.join();
        }
    }
}

/// Has the thread that it runs on tidied up, again and again.
async fn tidy<D: Backend>(shared: Arc<Shared<D>>) {
    let mut turns = interval(TIDY_EVERY);
    turns.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        turns.tick().await;
        shared.backend.tidy();
    }
}

/// One thread: works until it is over for all, or until one of its tasks has panicked.
fn run(runtime: &Runtime, mut tasks: JoinSet<()>, mut over: watch::Receiver<()>) {
    let panicked = async {
        loop {
            match tasks.join_next().await {
                Some(Err(error)) => return error,
                Some(Ok(())) => {}
                None => return std::future::pending().await,
            }
        }
    };
    // Its end, and no value, is waited for.
    let over = async { while over.changed().await.is_ok() {} };
    runtime.block_on(async {
        tokio::select! {
            error = panicked => tracing::error!(%error, "a thread of the layer 7 proxy ends"),
            () = over => {}
        }
    });
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.end();
    }
}

/// As far as the system lets it.
fn raise_descriptors() {
    if let Ok((soft, hard)) = getrlimit(Resource::RLIMIT_NOFILE)
        && soft < DESCRIPTORS
    {
        // With fewer, connections beyond them wait.
        let _ = setrlimit(Resource::RLIMIT_NOFILE, DESCRIPTORS.min(hard).max(soft), hard);
    }
}

/// Opens both sockets on one port; a machine without IPv6 has one.
fn listen(config: &Config) -> Result<(u16, Vec<std::net::TcpListener>), ProxyError> {
    let mut tries = if config.port == 0 { PORT_TRIES } else { 1 };
    loop {
        tries -= 1;
        match listen_once(config) {
            Err(ProxyError::Listen { source, .. }) if tries > 0 && source.kind() == io::ErrorKind::AddrInUse => {}
            result => return result,
        }
    }
}

fn listen_once(config: &Config) -> Result<(u16, Vec<std::net::TcpListener>), ProxyError> {
    let mut port = config.port;
    let mut listeners = Vec::new();
    for ip in [IpAddr::V4(Ipv4Addr::LOCALHOST), IpAddr::V6(Ipv6Addr::LOCALHOST)] {
        let address = SocketAddr::new(ip, port);
        let failed = |source| ProxyError::Listen { address, source };
        let listener = match socket::listener(address, config.mark) {
            Err(error) if ip.is_ipv6() && lacks_ipv6(&error) => continue,
            result => result.map_err(failed)?,
        };
        port = listener.local_addr().map_err(failed)?.port();
        listeners.push(listener);
    }
    Ok((port, listeners))
}

/// The machine has no IPv6, or no loopback address in it.
fn lacks_ipv6(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::AddrNotAvailable | io::ErrorKind::Unsupported)
        || error.raw_os_error() == Some(nix::libc::EAFNOSUPPORT)
}
