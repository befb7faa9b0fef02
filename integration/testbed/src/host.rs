//! Servers inside a namespace: HTTP, HTTPS and echo, each noting whom it accepted and when.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::{Arc, LazyLock, Mutex, PoisonError};
use std::time::Instant;

use anyhow::{Context, Result};
use bytes::Bytes;
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::header::{CONTENT_TYPE, SERVER};
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;

use crate::sctp;
use crate::socket::{UdpAny, listen};

/// Path of the page that is larger than what anything on the way keeps.
const BIG: &str = "/big";
/// Bytes of that page.
const BIG_BYTES: usize = 8 << 20;

/// A connection that a server accepted, or a datagram that an echo answered.
#[derive(Clone, Copy, Debug)]
pub struct Accepted {
    /// When.
    pub time: Instant,
    /// The address that was called.
    pub local: SocketAddr,
    /// The caller.
    pub peer: SocketAddr,
}

/// What the servers of a host accepted, oldest first. Clones share one list.
#[derive(Clone, Debug, Default)]
pub struct Log(Arc<Mutex<Vec<Accepted>>>);

impl Log {
    /// Everything so far.
    pub fn all(&self) -> Vec<Accepted> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// How often an address was called.
    pub fn count(&self, local: std::net::IpAddr) -> usize {
        let entries = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        entries.iter().filter(|entry| entry.local.ip() == local).count()
    }

    fn note(&self, local: SocketAddr, peer: SocketAddr) {
        let plain = |address: SocketAddr| SocketAddr::new(address.ip().to_canonical(), address.port());
        let entry = Accepted { time: Instant::now(), local: plain(local), peer: plain(peer) };
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push(entry);
    }
}

/// The servers of one namespace. To be called on its thread.
#[derive(Clone)]
pub struct Host {
    /// Name that answers carry.
    pub name: String,
    /// What was accepted.
    pub log: Log,
    /// Certificates; `None` serves no TLS.
    pub tls: Option<TlsAcceptor>,
}

impl std::fmt::Debug for Host {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("Host").field("name", &self.name).finish_non_exhaustive()
    }
}

impl Host {
    /// Answers HTTP/1.1, and HTTP/2 with prior knowledge, on a port of every address.
    pub fn http(&self, port: u16) -> Result<()> {
        let host = self.clone();
        self.accept(port, move |stream| {
            let host = host.clone();
            async move { host.answer_http(stream).await }
        })
    }

    /// Answers HTTP/1.1 over TLS on a port of every address.
    pub fn https(&self, port: u16) -> Result<()> {
        let host = self.clone();
        let tls = self.tls.clone().context("this host has no certificates")?;
        self.accept(port, move |stream| {
            let (host, tls) = (host.clone(), tls.clone());
            async move {
                if let Ok(stream) = tls.accept(stream).await {
                    host.answer_http(stream).await;
                }
            }
        })
    }

    /// Sends back what comes over TCP on a port of every address.
    pub fn echo_tcp(&self, port: u16) -> Result<()> {
        self.accept(port, |mut stream| async move {
            let (mut read, mut write) = stream.split();
            let _ = tokio::io::copy(&mut read, &mut write).await; // Ends when the caller does.
        })
    }

    /// Speaks first on a port of every address, as servers of mail and shells do, then sends back what comes.
    pub fn greet_tcp(&self, port: u16, greeting: &'static [u8]) -> Result<()> {
        self.accept(port, move |mut stream| async move {
            if stream.write_all(greeting).await.is_ok() {
                let (mut read, mut write) = stream.split();
                let _ = tokio::io::copy(&mut read, &mut write).await; // Ends when the caller does.
            }
        })
    }

    /// Sends back what comes over UDP on a port of every address.
    pub fn echo_udp(&self, port: u16) -> Result<()> {
        let socket = UdpAny::bind(port).with_context(|| format!("binding UDP port {port}"))?;
        let log = self.log.clone();
        tokio::spawn(async move {
            while let Ok(datagram) = socket.receive().await {
                log.note(SocketAddr::new(datagram.local, port), datagram.peer);
                let _ = socket.send(&datagram).await; // The caller may be gone.
            }
        });
        Ok(())
    }

    /// Answers the first message of SCTP on ports of every address. Needs no SCTP of the kernel.
    pub fn init_sctp(ports: impl IntoIterator<Item = u16>) -> Result<()> {
        sctp::serve(&ports.into_iter().collect()).context("opening a raw socket for SCTP")
    }

    fn accept<F, T>(&self, port: u16, serve: F) -> Result<()>
    where
        F: Fn(TcpStream) -> T + Send + 'static,
        T: Future<Output = ()> + Send + 'static,
    {
        let listener: TcpListener = listen(port).with_context(|| format!("binding TCP port {port}"))?;
        let log = self.log.clone();
        tokio::spawn(async move {
            while let Ok((stream, peer)) = listener.accept().await {
                let Ok(local) = stream.local_addr() else { continue };
                log.note(local, peer);
                tokio::spawn(serve(stream));
            }
        });
        Ok(())
    }

    async fn answer_http(&self, stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static) {
        let service = service_fn(|request| std::future::ready(Ok::<_, Infallible>(self.response(&request))));
        let server = auto::Builder::new(TokioExecutor::new());
        let _ = server.serve_connection(TokioIo::new(stream), service).await; // The caller may break off.
    }

    /// The pages that the seed article's commands ask for, and a large one.
    fn response(&self, request: &Request<Incoming>) -> Response<Full<Bytes>> {
        let name = &self.name;
        if request.uri().path() == BIG {
            static BODY: LazyLock<Bytes> = LazyLock::new(|| vec![b'x'; BIG_BYTES].into());
            return Response::new(Full::new(BODY.clone()));
        }
        let (kind, body) = match request.uri().path() {
            "/v1" | "/v1/" => ("application/json", format!("{{\"name\":\"Death Star\",\"hostname\":\"{name}\"}}\n")),
            "/version" => ("application/json", format!("{{\"version\":\"1\",\"hostname\":\"{name}\"}}\n")),
            "/metrics" => ("text/plain; version=0.0.4", format!("up{{host=\"{name}\"}} 1\n")),
            path => ("text/plain", format!("{name} {} {path}\n", request.method())),
        };
        let mut response = Response::new(Full::from(body));
        response.headers_mut().insert(CONTENT_TYPE, hyper::header::HeaderValue::from_static(kind));
        if let Ok(value) = name.parse() {
            response.headers_mut().insert(SERVER, value);
        }
        response
    }
}
