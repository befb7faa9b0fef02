//! A stub resolver as programs have it: a question over UDP, again over TCP where the answer says so.

use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use hickory_proto::op::{Edns, Message, ResponseCode};
use hickory_proto::rr::{Name, RData, RecordType};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UdpSocket};
use tokio::time::timeout;

use super::zone::Transport;

/// The longest datagram.
const DATAGRAM_OCTETS: usize = 65_535;

/// What to ask, of whom, and how long to wait.
#[derive(Clone, Debug)]
pub struct Question {
    /// The name, with or without its final dot.
    pub name: String,
    /// The type.
    pub record_type: RecordType,
    /// Who is asked.
    pub server: SocketAddr,
    /// How; an answer cut short over UDP is asked for again over TCP.
    pub transport: Transport,
    /// Payload size offered by EDNS (RFC 6891); `None` is plain DNS.
    pub edns: Option<u16>,
    /// Waiting time.
    pub within: Duration,
}

/// An answer as it came, before it is judged.
#[derive(Clone, Debug)]
pub struct Reply {
    /// The message as it came.
    pub octets: Vec<u8>,
    /// When it came.
    pub received: Instant,
    /// How it came.
    pub transport: Transport,
}

/// A successful look-up.
#[derive(Clone, Debug)]
pub struct Lookup {
    /// Addresses of the answer section, in order.
    pub addresses: Vec<IpAddr>,
    /// Smallest TTL of the answer section, seconds; 0 without records.
    pub ttl: u32,
    /// The whole message.
    pub message: Message,
    /// When it came.
    pub received: Instant,
    /// How it came.
    pub transport: Transport,
}

/// Why a look-up gave no answer.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DnsFailure {
    /// Nothing came in time.
    #[error("no answer in time")]
    Timeout,
    /// The resolver said no.
    #[error("the resolver said {0}")]
    Code(ResponseCode),
    /// The name is known, but not with this type.
    #[error("no such record")]
    Empty,
    /// What came is no DNS message.
    #[error("the answer cannot be read")]
    Malformed,
    /// The name cannot be asked for.
    #[error("no name to ask for")]
    BadName,
    /// The network said no.
    #[error("{0}")]
    Network(String),
}

impl Question {
    /// A question over UDP without EDNS, with five seconds to wait, as `resolv.conf(5)` has it.
    pub fn new(server: SocketAddr, name: &str, record_type: RecordType) -> Self {
        let (name, transport, within) = (name.to_owned(), Transport::Udp, Duration::from_secs(5));
        Self { name, record_type, server, transport, edns: None, within }
    }

    /// The question as a message with a random identifier.
    pub fn message(&self) -> Result<Message, DnsFailure> {
        let mut name = Name::from_ascii(&self.name).map_err(|_| DnsFailure::BadName)?;
        name.set_fqdn(true);
        let mut message = Message::query();
        message.metadata.recursion_desired = true;
        message.add_query(hickory_proto::op::Query::query(name, self.record_type));
        if let Some(payload) = self.edns {
            let mut edns = Edns::new();
            edns.set_max_payload(payload);
            message.set_edns(edns);
        }
        Ok(message)
    }
}

/// Asks, goes over to TCP if need be, and reads the addresses.
pub async fn resolve(question: Question) -> Result<Lookup, DnsFailure> {
    let mut lookup = judge(&ask(&question).await?)?;
    if lookup.message.metadata.truncation && lookup.transport == Transport::Udp {
        lookup = judge(&ask(&Question { transport: Transport::Tcp, ..question }).await?)?;
    }
    match lookup.message.metadata.response_code {
        ResponseCode::NoError if lookup.addresses.is_empty() => Err(DnsFailure::Empty),
        ResponseCode::NoError => Ok(lookup),
        code => Err(DnsFailure::Code(code)),
    }
}

/// Asks once and gives the first message with the right identifier, whatever it says.
pub async fn ask(question: &Question) -> Result<Reply, DnsFailure> {
    let octets = question.message()?.to_vec().map_err(|_| DnsFailure::BadName)?;
    ask_octets(question.server, question.transport, octets, question.within).await
}

/// Sends a message and gives the first one that comes back with its identifier.
pub async fn ask_octets(
    server: SocketAddr,
    transport: Transport,
    octets: Vec<u8>,
    within: Duration,
) -> Result<Reply, DnsFailure> {
    let exchange = async {
        match transport {
            Transport::Udp => over_udp(server, &octets).await,
            Transport::Tcp => over_tcp(server, &octets).await,
        }
    };
    let octets = timeout(within, exchange).await.map_err(|_| DnsFailure::Timeout)?;
    let octets = octets.map_err(|error| DnsFailure::Network(error.to_string()))?;
    Ok(Reply { octets, received: Instant::now(), transport })
}

async fn over_udp(server: SocketAddr, question: &[u8]) -> std::io::Result<Vec<u8>> {
    let socket = UdpSocket::bind(unspecified(server)).await?;
    socket.connect(server).await?;
    socket.send(question).await?;
    let mut answer = vec![0; DATAGRAM_OCTETS];
    loop {
        let length = socket.recv(&mut answer).await?;
        if length >= 2 && answer[..2] == question[..2] {
            answer.truncate(length);
            return Ok(answer);
        }
    }
}

async fn over_tcp(server: SocketAddr, question: &[u8]) -> std::io::Result<Vec<u8>> {
    let mut stream = TcpStream::connect(server).await?;
    let length = u16::try_from(question.len()).map_err(std::io::Error::other)?;
    stream.write_all(&[&length.to_be_bytes()[..], question].concat()).await?;
    loop {
        let length = stream.read_u16().await?;
        let mut answer = vec![0; usize::from(length)];
        stream.read_exact(&mut answer).await?;
        if answer.len() >= 2 && answer[..2] == question[..2] {
            return Ok(answer);
        }
    }
}

fn unspecified(peer: SocketAddr) -> SocketAddr {
    match peer {
        SocketAddr::V4(_) => (std::net::Ipv4Addr::UNSPECIFIED, 0).into(),
        SocketAddr::V6(_) => (std::net::Ipv6Addr::UNSPECIFIED, 0).into(),
    }
}

fn judge(reply: &Reply) -> Result<Lookup, DnsFailure> {
    let message = Message::from_vec(&reply.octets).map_err(|_| DnsFailure::Malformed)?;
    let ttl = message.answers.iter().map(|record| record.ttl).min().unwrap_or(0);
    let address = |data: &RData| match data {
        RData::A(address) => Some(IpAddr::V4(address.0)),
        RData::AAAA(address) => Some(IpAddr::V6(address.0)),
        _ => None,
    };
    let addresses = message.answers.iter().filter_map(|record| address(&record.data)).collect();
    Ok(Lookup { addresses, ttl, message, received: reply.received, transport: reply.transport })
}
