//! The proxy as its owner sees it: settings in, threads and counters out.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    sync::Arc,
    thread::JoinHandle,
    time::Instant,
};

use namegate_config::settings::Tunnelling;
use tokio::sync::watch;

use crate::{
    backend::Backend,
    bounds::Bounds,
    cache::Cache,
    config::Config,
    counters::Counters,
    settings::Settings,
    socket::Marked,
    traffic::Shared,
    transaction::Patience,
    tunnel::Watch,
    worker::{self, Listeners},
};

/// Ports tried where the kernel's choice for UDP is taken for TCP.
const PORT_TRIES: usize = 16;

/// Why the proxy can not start.
#[derive(Debug, thiserror::Error)]
pub enum ProxyError {
    /// A listening socket.
    #[error("listening on {address} for DNS questions (transparent sockets need CAP_NET_ADMIN)")]
    Listen {
        /// Where.
        address: SocketAddr,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// A worker's thread or its runtime.
    #[error("starting DNS worker {worker}")]
    Worker {
        /// Its number.
        worker: usize,
        /// Why not.
        #[source]
        source: io::Error,
    },
}

/// A running proxy. It ends on drop.
#[derive(Debug)]
pub struct Proxy {
    port: u16,
    counters: Vec<Arc<Counters>>,
    cache: Option<Arc<Cache>>,
    /// Closed to end the workers.
    stop: Option<watch::Sender<()>>,
    threads: Vec<JoinHandle<()>>,
}

impl Proxy {
    /// Opens all sockets and starts the workers.
    pub fn start(config: &Config, backend: impl Backend) -> Result<Self, ProxyError> {
        let cores = || std::thread::available_parallelism().map_or(1, usize::from);
        let workers = if config.workers == 0 { cores() } else { config.workers };
        let marked = Marked { mark: config.mark, transparency_optional: config.fixed_resolver.is_some() };
        let (port, listeners) = listen(config.port, workers, marked)?;
        let settings = Settings {
            patience: Patience { upstream: config.upstream_timeout, install: config.install_timeout },
            marked,
            refusal: config.refusal,
            refuses_tunnels: config.tunnelling == Tunnelling::Enforce,
            bounds: Bounds::of(config, workers),
            fixed_resolver: config.fixed_resolver,
            port,
        };
        let watch = (config.tunnelling != Tunnelling::Off)
            .then(|| Arc::new(Watch::new(config.tunnelling_names, &config.tunnelling_except, Instant::now())));
        let cache = (config.cache_answers > 0).then(|| Arc::new(Cache::new(config.cache_answers)));
        let shared = Shared { watch, cache: cache.clone() };
        let backends = std::iter::repeat_n(backend, listeners.len());
        let (stop, stopped) = watch::channel(());
        let mut proxy = Self { port, counters: Vec::new(), cache, stop: Some(stop), threads: Vec::new() };
        for (worker, (listeners, backend)) in listeners.into_iter().zip(backends).enumerate() {
            let counters = Arc::<Counters>::default();
            proxy.counters.push(Arc::clone(&counters));
            let failed = |source| ProxyError::Worker { worker, source };
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(failed)?;
            let (stopped, shared) = (stopped.clone(), shared.clone());
            let body = move || {
                if let Err(error) =
                    runtime.block_on(worker::run(listeners, backend, settings, counters, shared, stopped))
                {
                    tracing::error!(%error, worker, "a DNS worker ended");
                }
            };
            let thread = std::thread::Builder::new().name(format!("dns-{worker}"));
            proxy.threads.push(thread.spawn(body).map_err(failed)?);
        }
        Ok(proxy)
    }

    /// The port on the loopback addresses, UDP and TCP.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// What became of questions and answers since the start: every word with its count, always in the same order.
    pub fn counters(&self) -> Vec<(&'static str, u64)> {
        Counters::sum(&self.counters.iter().map(Arc::as_ref))
    }

    /// Answers that are kept, those that have ended and were not asked for since among them.
    pub fn answers_kept(&self) -> usize {
        self.cache.as_ref().map_or(0, |cache| cache.len())
    }

    /// Drops all answers that are kept: the next questions go to their resolvers.
    pub fn forget_answers(&self) {
        if let Some(cache) = &self.cache {
            cache.clear();
        }
    }

    /// Whether all workers work. One ends before [`Self::stop`] only by an error or a panic.
    pub fn is_alive(&self) -> bool {
        self.threads.iter().all(|thread| !thread.is_finished())
    }

    /// Ends the workers and waits for them. Questions on their way are dropped.
    pub fn stop(mut self) {
        self.end();
    }

    fn end(&mut self) {
        drop(self.stop.take());
        for thread in self.threads.drain(..) {
            if thread.join().is_err() {
                tracing::error!("a DNS worker panicked");
            }
        }
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.end();
    }
}

/// Opens every worker's sockets on one port.
fn listen(port: u16, workers: usize, marked: Marked) -> Result<(u16, Vec<Listeners>), ProxyError> {
    let mut tries = if port == 0 { PORT_TRIES } else { 1 };
    loop {
        tries -= 1;
        match listen_once(port, workers, marked) {
            Err(ProxyError::Listen { source, .. }) if tries > 0 && source.kind() == io::ErrorKind::AddrInUse => {}
            result => return result,
        }
    }
}

fn listen_once(port: u16, workers: usize, marked: Marked) -> Result<(u16, Vec<Listeners>), ProxyError> {
    let mut port = port;
    let mut all = Vec::new();
    for _ in 0..workers {
        let mut listeners = Listeners { udp: Vec::new(), tcp: Vec::new() };
        for ip in [IpAddr::V4(Ipv4Addr::LOCALHOST), IpAddr::V6(Ipv6Addr::LOCALHOST)] {
            let mut address = SocketAddr::new(ip, port);
            let failed = |source| ProxyError::Listen { address: SocketAddr::new(ip, port), source };
            let udp = match marked.udp_listener(address) {
                Err(error) if ip.is_ipv6() && lacks_ipv6(&error) => continue,
                result => result.map_err(failed)?,
            };
            address = udp.local_addr().map_err(failed)?;
            let tcp = marked.tcp_listener(address).map_err(failed)?;
            port = address.port();
            listeners.udp.push((address, udp));
            listeners.tcp.push(tcp);
        }
        all.push(listeners);
    }
    Ok((port, all))
}

/// The machine has no IPv6, or no loopback address in it.
fn lacks_ipv6(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::AddrNotAvailable | io::ErrorKind::Unsupported)
        || error.raw_os_error() == Some(nix::libc::EAFNOSUPPORT)
}
