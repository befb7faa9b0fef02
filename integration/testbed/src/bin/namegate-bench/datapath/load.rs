//! The loads: one stream by iperf3, new connections, and requests on connections that stay open.

use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use namegate_testbed::World;
use serde_json::Value;
use socket2::{Domain, SockRef, Socket, Type};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use super::{CLIENT, Work};
use crate::daemon::{Daemon, find};

/// How long a connection may take, and a server until it listens.
pub(super) const PATIENCE: Duration = Duration::from_secs(3);
const PAUSE: Duration = Duration::from_millis(20);
/// Threads that open connections, and threads that accept them.
const THREADS: usize = 2;
/// Connections that requests are sent on.
const OPEN: usize = 16;

/// One load against one server.
pub(super) struct Load<'a> {
    pub(super) world: &'a World,
    pub(super) folder: &'a Path,
    pub(super) target: SocketAddr,
    pub(super) length: Duration,
}

impl Load<'_> {
    /// Bits, connections or requests a second.
    pub(super) fn run(&self, work: Work) -> Result<f64> {
        let done = match work {
            Work::Throughput => return self.throughput(),
            Work::Connections => self.connections()?,
            Work::Requests => self.requests()?,
        };
        ensure!(done > 0, "nothing was answered");
        #[expect(clippy::cast_precision_loss, reason = "far fewer than 2^52")]
        Ok(done as f64 / self.length.as_secs_f64())
    }

    /// Bits a second of one stream.
    fn throughput(&self) -> Result<f64> {
        let iperf3 = find("iperf3").context("there is no `iperf3`")?;
        let port = self.target.port().to_string();
        let server = ["--server", "--port", &port].map(Into::into).to_vec();
        let _server = Daemon::start(self.world.outside(), &iperf3, server, self.folder)?;
        let started = Instant::now();
        loop {
            let result = self.stream(&iperf3, &port);
            if result.is_ok() || started.elapsed() > PATIENCE {
                return result;
            }
            std::thread::sleep(PAUSE);
        }
    }

    fn stream(&self, iperf3: &Path, port: &str) -> Result<f64> {
        let mut command = Command::new(iperf3);
        command.args(["--json", "--client", &self.target.ip().to_string(), "--port", port]);
        command.args(["--time", &self.length.as_secs().max(1).to_string()]).stdin(Stdio::null());
        let output = self.world.pod(CLIENT).netns.call(move || command.output()).context("running `iperf3`")?;
        let said: Value = serde_json::from_slice(&output.stdout).context("`iperf3` prints no JSON")?;
        match said.pointer("/end/sum_received/bits_per_second").and_then(Value::as_f64) {
            Some(rate) => Ok(rate),
            None => bail!("`iperf3` says: {}", said["error"]),
        }
    }

    /// Connections that were opened and reset: none is left to wait for, and no port is used up.
    fn connections(&self) -> Result<u64> {
        let _servers = listen(self.world, &[self.target.port()])?;
        let end = Instant::now() + self.length;
        let target = self.target;
        let netns = &self.world.pod(CLIENT).netns;
        let threads: Vec<JoinHandle<Result<u64>>> =
            (0..THREADS).map(|_| netns.call(move || std::thread::spawn(move || open_until(end, target)))).collect();
        threads.into_iter().map(join).sum()
    }

    /// Requests that were answered.
    fn requests(&self) -> Result<u64> {
        let port = self.target.port();
        let server = self.world.outside().spawn(async move { echo(port).await });
        let end = Instant::now() + self.length;
        let target = self.target;
        let asked = self.world.pod(CLIENT).netns.run(async move {
            let asking: Vec<_> = (0..OPEN).map(|_| tokio::spawn(ask_until(end, target))).collect();
            let mut answered = 0;
            for one in asking {
                answered += one.await??;
            }
            anyhow::Ok(answered)
        });
        server.stop();
        asked
    }
}

/// Servers that accept connections and close them. Dropping them ends them.
pub(super) struct Servers {
    listeners: Vec<Arc<TcpListener>>,
    threads: Vec<JoinHandle<()>>,
}

/// Listens on ports of every address outside.
pub(super) fn listen(world: &World, ports: &[u16]) -> Result<Servers> {
    let mut servers = Servers { listeners: Vec::new(), threads: Vec::new() };
    for port in ports.iter().copied() {
        let listener = world.outside().call(move || TcpListener::bind((Ipv4Addr::UNSPECIFIED, port)));
        let listener = Arc::new(listener.with_context(|| format!("listening on port {port}"))?);
        for _ in 0..THREADS {
            let listener = Arc::clone(&listener);
            servers.threads.push(std::thread::spawn(move || while listener.accept().is_ok() {}));
        }
        servers.listeners.push(listener);
    }
    Ok(servers)
}

impl Drop for Servers {
    fn drop(&mut self) {
        for listener in &self.listeners {
            let _ = SockRef::from(&**listener).shutdown(Shutdown::Read); // What waits for a connection gets an error.
        }
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

fn open_until(end: Instant, target: SocketAddr) -> Result<u64> {
    let mut opened = 0;
    while Instant::now() < end {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None)?;
        socket.set_linger(Some(Duration::ZERO))?;
        socket.set_write_timeout(Some(PATIENCE))?;
        socket.connect(&target.into()).with_context(|| format!("connecting to {target}"))?;
        opened += 1;
    }
    Ok(opened)
}

fn join(thread: JoinHandle<Result<u64>>) -> Result<u64> {
    thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}

/// Sends back each byte, until it is stopped.
async fn echo(port: u16) -> Result<()> {
    let listener = tokio::net::TcpListener::bind((Ipv4Addr::UNSPECIFIED, port)).await?;
    loop {
        let (mut stream, _) = listener.accept().await?;
        stream.set_nodelay(true)?;
        tokio::spawn(async move {
            while let Ok(byte) = stream.read_u8().await {
                if stream.write_u8(byte).await.is_err() {
                    return;
                }
            }
        });
    }
}

async fn ask_until(end: Instant, target: SocketAddr) -> Result<u64> {
    let mut stream = connect(target).await?;
    stream.set_nodelay(true)?;
    stream.set_zero_linger()?;
    let mut answered = 0;
    while Instant::now() < end {
        stream.write_u8(7).await?;
        stream.read_u8().await?;
        answered += 1;
    }
    Ok(answered)
}

/// Connects as soon as the server listens.
async fn connect(target: SocketAddr) -> Result<TcpStream> {
    let started = Instant::now();
    loop {
        match TcpStream::connect(target).await {
            Ok(stream) => return Ok(stream),
            Err(error) if started.elapsed() > PATIENCE => return Err(error.into()),
            Err(_) => tokio::time::sleep(PAUSE).await,
        }
    }
}
