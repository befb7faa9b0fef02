//! Requests of trials: each is really made, to the proxies that a running agent has, in front of a server that takes all.
//!
//! The proxies listen on the loopback addresses of the trial's network namespace and are called directly: a frame that
//! never was on a wire has no connection that the kernel could hand over.

use std::{
    fmt::Write as _,
    future::{Future, ready},
    io::{ErrorKind, Read, Write},
    net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket},
    sync::{Arc, Mutex, MutexGuard, PoisonError, mpsc},
    thread,
    time::Duration,
};

use anyhow::{Context, bail, ensure};
use hickory_proto::{
    op::{Message, Query, ResponseCode},
    rr::{Name, RecordType},
};
use namegate_config::{
    l7::Request,
    name::Fqdn,
    question::QueryType,
    reference::{Limits, Reason, Verdict},
    rule::Direction,
};
use namegate_dns_proxy::{Asked, Forbidden, NotInstalled, Proxy as DnsProxy, forbidden};
use namegate_engine::{Answer, EndpointId};
use namegate_l7_proxy::{Access, AccessVerdict, ConnectionPolicy, Match, Proxy as L7Proxy, Question};
use tokio_rustls::rustls::{ClientConfig, ClientConnection, RootCertStore, crypto::ring, pki_types::ServerName};

/// How long a proxy may take.
const PATIENCE: Duration = Duration::from_secs(10);
/// A free port on the loopback address.
const ANYWHERE: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 0);
/// First octet of a TLS connection.
const TLS: u8 = 22;
/// What the server says to an HTTP request.
const HTTP_ANSWER: &[u8] = b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\nconnection: close\r\n\r\n";
/// What it says to whatever else comes.
const OTHER_ANSWER: &[u8] = b"heard";
/// Octets of a DNS message over UDP.
const DNS_OCTETS_MAX: usize = 4_096;

/// The proxies, and what they are to ask of the next request.
pub struct Requests {
    demands: Demands,
    records: mpsc::Receiver<Access>,
    l7: L7Proxy,
    dns: DnsProxy,
}

/// What is demanded of the next request: there is one at a time.
#[derive(Clone)]
struct Demands {
    next: Arc<Mutex<Option<ConnectionPolicy>>>,
    records: mpsc::Sender<Access>,
}

impl Demands {
    fn next(&self) -> MutexGuard<'_, Option<ConnectionPolicy>> {
        self.next.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl namegate_l7_proxy::Backend for Demands {
    fn connection_policy(&self, _: Question) -> impl Future<Output = Option<ConnectionPolicy>> + Send {
        ready(self.next().clone())
    }

    /// No connection sees two rules.
    fn revision(&self) -> u64 {
        0
    }

    fn record(&self, access: Access) {
        // Where nobody waits for it, the trial has failed.
        let _ = self.records.send(access);
    }
}

impl namegate_dns_proxy::Backend for Demands {
    fn endpoint(&self, _: IpAddr) -> Option<EndpointId> {
        Some(EndpointId(1))
    }

    fn is_trusted(&self, _: IpAddr) -> bool {
        true
    }

    fn limits(&self, _: IpAddr) -> bool {
        true
    }

    fn forbids(&self, _: IpAddr, _: SocketAddr, _: bool, asked: Asked<'_>) -> Option<Forbidden> {
        let limits = self.next().as_ref().and_then(|demand| demand.sides.first().map(|(_, limits)| limits.clone()));
        forbidden(&limits.unwrap_or(Limits::Closed(None)), asked)
    }

    fn install(&self, answers: Vec<Answer>) -> impl Future<Output = Vec<Result<(), NotInstalled>>> + Send {
        ready(vec![Ok(()); answers.len()])
    }
}

impl Requests {
    /// Starts the proxies, and the servers behind them, in the network namespace of the calling thread. Its loopback
    /// interface must be up.
    pub(crate) fn start() -> anyhow::Result<Self> {
        let (sender, records) = mpsc::channel();
        let demands = Demands { next: Arc::default(), records: sender };
        let server = TcpListener::bind(ANYWHERE).context("listening as the server of trials")?;
        let resolver = UdpSocket::bind(ANYWHERE).context("listening as the resolver of trials")?;
        let l7 = namegate_l7_proxy::Config { fixed_server: Some(server.local_addr()?), ..Default::default() };
        let fixed_resolver = Some(resolver.local_addr()?);
        let dns = namegate_dns_proxy::Config { workers: 1, fixed_resolver, ..Default::default() };
        // Both end with the process: they hold nothing.
        thread::spawn(move || server.incoming().flatten().for_each(|stream| drop(thread::spawn(|| answer(stream)))));
        thread::spawn(move || answer_questions(&resolver));
        Ok(Self {
            l7: L7Proxy::start(&l7, demands.clone())?,
            dns: DnsProxy::start(&dns, demands.clone())?,
            demands,
            records,
        })
    }

    /// Makes a request that these limits hold for.
    pub(crate) fn make(&self, request: &Request, direction: Direction, limits: Limits) -> anyhow::Result<Verdict> {
        *self.demands.next() = Some(ConnectionPolicy {
            sides: vec![(direction, limits.clone())],
            keeps_source: false,
            audit: false,
            bound: false,
            binding: Match::Good,
            names: Arc::default(),
        });
        let (allowed, by) = match request {
            Request::Http { method, path, host, headers } => self.http(method, path, host, headers)?,
            Request::Tls { server_name } => self.tls(server_name.as_ref())?,
            Request::Dns { name, kind } => (self.dns(name, *kind)?, None),
        };
        let by = by.or_else(|| match limits {
            Limits::Rules(rules) => rules.first().map(|rule| Arc::clone(&rule.origin)),
            Limits::Closed(rule) => rule,
            Limits::Free => None,
        });
        Ok(Verdict { allowed, by, reason: if allowed { Reason::Rule } else { Reason::L7 } })
    }

    fn http(
        &self,
        method: &str,
        path: &str,
        host: &str,
        headers: &[(String, String)],
    ) -> anyhow::Result<(bool, Option<Origin>)> {
        let mut stream = self.connect()?;
        let host = if host.is_empty() { "server" } else { host };
        let mut head = format!("{method} {path} HTTP/1.1\r\nhost: {host}\r\nconnection: close\r\n");
        for (name, value) in headers {
            write!(head, "{name}: {value}\r\n")?;
        }
        stream.write_all(format!("{head}\r\n").as_bytes())?;
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).context("reading the answer to a request")?;
        let answer = String::from_utf8_lossy(&answer);
        match answer.split(' ').nth(1) {
            Some("200") => self.told(true),
            Some("403") => self.told(false),
            // It can be read in two ways: no rule is asked.
            Some("400" | "405" | "417") => Ok((false, None)),
            _ => bail!("{method} {path} was answered `{}`", answer.lines().next().unwrap_or_default()),
        }
    }

    fn tls(&self, name: Option<&Fqdn>) -> anyhow::Result<(bool, Option<Origin>)> {
        let mut stream = self.connect()?;
        stream.write_all(&hello(name)?)?;
        let mut answer = Vec::new();
        match stream.read_to_end(&mut answer) {
            Ok(_) if answer == OTHER_ANSWER => self.told(true),
            Err(error) if error.kind() == ErrorKind::ConnectionReset => self.told(false),
            other => bail!("a TLS connection ended otherwise than with a reset: {other:?}"),
        }
    }

    fn dns(&self, name: &Fqdn, kind: QueryType) -> anyhow::Result<bool> {
        let client = UdpSocket::bind(ANYWHERE)?;
        client.set_read_timeout(Some(PATIENCE))?;
        client.connect((Ipv4Addr::LOCALHOST, self.dns.port()))?;
        let mut question = Message::query();
        question.add_query(Query::query(Name::from_ascii(name.to_string())?, RecordType::from(kind.0)));
        client.send(&question.to_vec()?)?;
        let mut answer = [0; DNS_OCTETS_MAX];
        let octets = client.recv(&mut answer).context("waiting for the answer of a resolver")?;
        match Message::from_vec(&answer[..octets])?.metadata.response_code {
            ResponseCode::NoError => Ok(true),
            ResponseCode::Refused => Ok(false),
            other => bail!("the question for {name} was answered {other}"),
        }
    }

    fn connect(&self) -> anyhow::Result<TcpStream> {
        let stream = TcpStream::connect((Ipv4Addr::LOCALHOST, self.l7.port())).context("calling the proxy")?;
        stream.set_read_timeout(Some(PATIENCE))?;
        Ok(stream)
    }

    /// The rule that decided; the proxy must have told what it did.
    fn told(&self, allowed: bool) -> anyhow::Result<(bool, Option<Origin>)> {
        let access = self.records.recv_timeout(PATIENCE).context("the proxy told of no request")?;
        ensure!(
            (access.verdict == AccessVerdict::Allowed) == allowed,
            "what the proxy did is not what it told of: {access:?}"
        );
        Ok((allowed, access.rule))
    }
}

type Origin = Arc<namegate_config::rule::Origin>;

/// The first message of a TLS client.
fn hello(name: Option<&Fqdn>) -> anyhow::Result<Vec<u8>> {
    let mut config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()?
        .with_root_certificates(RootCertStore::empty())
        .with_no_client_auth();
    config.enable_sni = name.is_some();
    let server = name.map_or_else(|| "unnamed".to_owned(), Fqdn::to_string);
    let mut client = ClientConnection::new(Arc::new(config), ServerName::try_from(server)?)?;
    let mut octets = Vec::new();
    while client.wants_write() {
        client.write_tls(&mut octets)?;
    }
    Ok(octets)
}

/// The server: it takes whatever the proxy lets through.
fn answer(mut stream: TcpStream) {
    let mut heard = Vec::new();
    let mut octets = [0; 4_096];
    while let Ok(count @ 1..) = stream.read(&mut octets) {
        heard.extend_from_slice(&octets[..count]);
        if heard.first() == Some(&TLS) {
            // A client that has gone is the trial's to notice.
            let _ = stream.write_all(OTHER_ANSWER);
            return;
        }
        if heard.windows(4).any(|four| four == b"\r\n\r\n") {
            let _ = stream.write_all(HTTP_ANSWER);
            return;
        }
    }
}

/// The resolver: every name is there and has no address.
fn answer_questions(socket: &UdpSocket) {
    let mut octets = [0; DNS_OCTETS_MAX];
    while let Ok((count, client)) = socket.recv_from(&mut octets) {
        let Ok(question) = Message::from_vec(&octets[..count]) else { continue };
        let mut reply = Message::response(question.metadata.id, question.metadata.op_code);
        reply.add_queries(question.queries);
        if let Ok(octets) = reply.to_vec() {
            // As above.
            let _ = socket.send_to(&octets, client);
        }
    }
}
