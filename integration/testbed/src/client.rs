//! What a program in a pod does: look a name up, connect, ask; with every way it can go wrong told apart.

use std::io::ErrorKind;
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use bytes::Bytes;
use hickory_proto::rr::RecordType;
use http_body_util::{BodyExt, Empty};
use hyper::{Method, Request, Uri};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpSocket, TcpStream, UdpSocket};
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::pki_types::ServerName;

use crate::dns::{DnsFailure, Lookup, Question, resolve};
use crate::sctp;

/// How a client's act ended.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Failure {
    /// Nothing came back: how a silent drop looks.
    #[error("timeout")]
    Timeout,
    /// Answered by RST: nobody listens.
    #[error("refused")]
    Refused,
    /// Broken off by RST.
    #[error("reset")]
    Reset,
    /// The look-up failed, nothing was sent to the host.
    #[error("DNS: {0}")]
    Dns(#[from] DnsFailure),
    /// Anything else.
    #[error("{0}")]
    Other(String),
}

/// An HTTP answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Page {
    /// Status code.
    pub status: u16,
    /// Body, as text.
    pub body: String,
}

/// An HTTP request with what happened on the way.
#[derive(Clone, Debug)]
pub struct Visit {
    /// How it ended.
    pub outcome: Result<Page, Failure>,
    /// The address that was called.
    pub address: Option<IpAddr>,
    /// When the answer of the resolver came.
    pub resolved: Option<Instant>,
    /// When the connection was up.
    pub connected: Option<Instant>,
}

impl Visit {
    /// The status code, if there was an answer.
    pub fn status(&self) -> Option<u16> {
        self.outcome.as_ref().ok().map(|page| page.status)
    }

    /// Whether it ended as a silent drop does.
    pub fn timed_out(&self) -> bool {
        self.outcome == Err(Failure::Timeout)
    }
}

/// A client with its resolver. Its methods belong on the thread of a namespace.
#[derive(Clone)]
pub struct Client {
    /// The resolver that names are asked of.
    pub resolver: SocketAddr,
    /// Waiting time for a look-up.
    pub dns_within: Duration,
    /// Waiting time for a connection, and again for the answer.
    pub within: Duration,
    /// Record types to try in turn.
    pub families: Vec<RecordType>,
    /// Payload size offered by EDNS; `None` is plain DNS.
    pub edns: Option<u16>,
    /// Trusts the world's authority.
    pub tls: TlsConnector,
}

impl std::fmt::Debug for Client {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("Client").field("resolver", &self.resolver).finish_non_exhaustive()
    }
}

impl Client {
    /// Looks a name up, one record type after the other until one has addresses.
    pub async fn lookup(&self, name: &str) -> Result<Lookup, DnsFailure> {
        let mut last = Err(DnsFailure::Empty);
        for family in &self.families {
            last = self.lookup_type(name, *family).await;
            if !matches!(last, Err(DnsFailure::Empty)) {
                break;
            }
        }
        last
    }

    /// Looks up one record type of a name.
    pub async fn lookup_type(&self, name: &str, record_type: RecordType) -> Result<Lookup, DnsFailure> {
        let mut question = Question::new(self.resolver, name, record_type);
        (question.edns, question.within) = (self.edns, self.dns_within);
        resolve(question).await
    }

    /// GETs a URL.
    pub async fn get(&self, url: &str) -> Visit {
        self.request(Method::GET, url).await
    }

    /// Sends a request without a body.
    pub async fn request(&self, method: Method, url: &str) -> Visit {
        let mut visit = Visit { outcome: Err(Failure::Timeout), address: None, resolved: None, connected: None };
        visit.outcome = self.try_request(method, url, &mut visit).await;
        visit
    }

    async fn try_request(&self, method: Method, url: &str, visit: &mut Visit) -> Result<Page, Failure> {
        let url: Uri = url.parse().map_err(|error| Failure::Other(format!("`{url}`: {error}")))?;
        let host = url.host().unwrap_or_default().trim_matches(['[', ']']).to_owned();
        let secure = url.scheme_str() == Some("https");
        let port = url.port_u16().unwrap_or(if secure { 443 } else { 80 });
        let address = match host.parse() {
            Ok(address) => address,
            Err(_) => self.first_address(&host, visit).await?,
        };
        visit.address = Some(address);
        let stream = connect(SocketAddr::new(address, port), self.within).await?;
        visit.connected = Some(Instant::now());
        let exchange = async {
            if secure {
                let name = ServerName::try_from(host.clone()).map_err(other)?;
                exchange(self.tls.connect(name, stream).await.map_err(failure)?, method, &url).await
            } else {
                exchange(stream, method, &url).await
            }
        };
        timeout(self.within, exchange).await.map_err(|_| Failure::Timeout)?
    }

    async fn first_address(&self, host: &str, visit: &mut Visit) -> Result<IpAddr, Failure> {
        let lookup = self.lookup(host).await?;
        visit.resolved = Some(lookup.received);
        Ok(lookup.addresses[0])
    }
}

/// Opens a connection.
pub async fn connect(to: SocketAddr, within: Duration) -> Result<TcpStream, Failure> {
    timeout(within, TcpStream::connect(to)).await.map_err(|_| Failure::Timeout)?.map_err(failure)
}

/// Opens a connection from a given port of this side.
pub async fn connect_from(port: u16, to: SocketAddr, within: Duration) -> Result<TcpStream, Failure> {
    let socket = if to.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }.map_err(failure)?;
    socket.set_reuseaddr(true).map_err(failure)?;
    socket.bind(SocketAddr::new(any_of(to), port)).map_err(failure)?;
    timeout(within, socket.connect(to)).await.map_err(|_| Failure::Timeout)?.map_err(failure)
}

/// Sends a datagram to an echo server and waits for it to come back.
pub async fn echo(to: SocketAddr, octets: &[u8], within: Duration) -> Result<(), Failure> {
    let exchange = async {
        let socket = UdpSocket::bind(SocketAddr::new(any_of(to), 0)).await?;
        socket.connect(to).await?;
        socket.send(octets).await?;
        let mut back = vec![0; octets.len() + 1];
        let length = socket.recv(&mut back).await?;
        Ok::<_, std::io::Error>(back[..length] == *octets)
    };
    match timeout(within, exchange).await {
        Err(_) => Err(Failure::Timeout),
        Ok(Ok(true)) => Ok(()),
        Ok(Ok(false)) => Err(Failure::Other("the echo differs".to_owned())),
        Ok(Err(error)) => Err(failure(error)),
    }
}

/// Sends the first message of SCTP and waits for the second.
pub async fn init_sctp(to: SocketAddr, within: Duration) -> Result<(), Failure> {
    sctp::begin(to, within).await
}

/// The wildcard address of the family of `peer`.
pub fn any_of(peer: SocketAddr) -> IpAddr {
    match peer {
        SocketAddr::V4(_) => std::net::Ipv4Addr::UNSPECIFIED.into(),
        SocketAddr::V6(_) => std::net::Ipv6Addr::UNSPECIFIED.into(),
    }
}

async fn exchange<S>(stream: S, method: Method, url: &Uri) -> Result<Page, Failure>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(other)?;
    tokio::spawn(connection);
    let path = url.path_and_query().map_or("/", |path| path.as_str());
    let host = url.authority().map_or("", |authority| authority.as_str());
    let request = Request::builder().method(method).uri(path).header(hyper::header::HOST, host);
    let request = request.body(Empty::<Bytes>::new()).map_err(other)?;
    let response = sender.send_request(request).await.map_err(broken)?;
    let status = response.status().as_u16();
    let body = response.into_body().collect().await.map_err(broken)?.to_bytes();
    Ok(Page { status, body: String::from_utf8_lossy(&body).into_owned() })
}

fn broken(error: hyper::Error) -> Failure {
    use std::error::Error;
    match error.source().and_then(|source| source.downcast_ref::<std::io::Error>()) {
        Some(io) if io.kind() == ErrorKind::ConnectionReset => Failure::Reset,
        _ => other(error),
    }
}

pub(crate) fn failure(error: std::io::Error) -> Failure {
    match error.kind() {
        ErrorKind::ConnectionRefused => Failure::Refused,
        ErrorKind::ConnectionReset => Failure::Reset,
        ErrorKind::TimedOut => Failure::Timeout,
        _ => other(error),
    }
}

fn other(error: impl std::fmt::Display) -> Failure {
    Failure::Other(error.to_string())
}
