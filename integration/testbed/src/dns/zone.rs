//! What an embedded resolver answers: a table of names, and scripts that may answer first.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use hickory_proto::op::{Edns, Message, OpCode, ResponseCode};
use hickory_proto::rr::rdata::{A, AAAA, CNAME};
use hickory_proto::rr::{Name, RData, Record, RecordType};

use crate::spec::{DnsSpec, Spec};

/// Aliases followed before a chain is given up.
const CHAIN_MAX: usize = 32;
/// Octets of an answer over UDP without EDNS (RFC 1035 §4.2.1).
const UDP_OCTETS: usize = 512;

/// How a question came.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Transport {
    /// A datagram.
    Udp,
    /// A stream with two octets of length before each message (RFC 1035 §4.2.2).
    Tcp,
}

/// A question as a script sees it.
#[derive(Clone, Debug)]
pub struct Query {
    /// The asked name: lower case, no final dot, odd octets escaped.
    pub name: String,
    /// The asked type.
    pub record_type: RecordType,
    /// How it came.
    pub transport: Transport,
    /// Who asked.
    pub from: SocketAddr,
    /// The whole message.
    pub message: Message,
}

/// A question that came in, and when its answer went out.
#[derive(Clone, Debug)]
pub struct Asked {
    /// The asked name.
    pub name: String,
    /// The asked type.
    pub record_type: RecordType,
    /// How it came.
    pub transport: Transport,
    /// Who asked.
    pub from: SocketAddr,
    /// When the answer left.
    pub answered: Instant,
}

/// What goes out for one question.
#[derive(Clone, Debug, Default)]
pub struct Reply {
    /// Messages in order; none is silence. Over TCP they follow each other on the stream.
    pub messages: Vec<Vec<u8>>,
    /// Waiting time before the first.
    pub after: Duration,
    /// Leave the identifiers of `messages` as they are, instead of putting in that of the question.
    pub keeps_id: bool,
}

impl Reply {
    /// One message with the identifier of the question.
    pub fn octets(octets: impl Into<Vec<u8>>) -> Self {
        Self { messages: vec![octets.into()], ..Self::default() }
    }

    /// An answer with these records.
    pub fn records(query: &Query, records: Vec<Record>) -> Self {
        let mut message = response(&query.message);
        message.add_answers(records);
        Self::octets(fit(&message, query))
    }

    /// An answer with these addresses, all of them for the asked name.
    pub fn addresses(query: &Query, ttl: u32, addresses: impl IntoIterator<Item = IpAddr>) -> Self {
        let Some(name) = query.message.queries.first().map(|question| question.name().clone()) else {
            return Self::default();
        };
        let asked = |data: &RData| data.record_type() == query.record_type;
        let records = addresses.into_iter().map(address_data).filter(asked);
        Self::records(query, records.map(|data| Record::from_rdata(name.clone(), ttl, data)).collect())
    }

    /// An empty answer with the bit that says "ask again over TCP".
    pub fn truncated(query: &Query) -> Self {
        Self::octets(encode(&response(&query.message).truncate()))
    }

    /// The same after a waiting time.
    #[must_use]
    pub fn after(mut self, delay: Duration) -> Self {
        self.after = delay;
        self
    }
}

type Script = Arc<dyn Fn(&Query) -> Option<Reply> + Send + Sync>;

#[derive(Default)]
struct Inner {
    names: HashMap<String, DnsSpec>,
    scripts: Vec<Script>,
    asked: Vec<Asked>,
}

/// Names and their answers. Clones share one table, so that it can change under a running resolver.
#[derive(Clone, Default)]
pub struct Zone(Arc<Mutex<Inner>>);

impl std::fmt::Debug for Zone {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("Zone").field("names", &self.inner().names.len()).finish_non_exhaustive()
    }
}

impl Zone {
    /// Cluster names for the services of a world, and what lies behind the forwarder.
    pub fn of(spec: &Spec) -> Self {
        let zone = Self::default();
        for (name, answer) in &spec.dns {
            zone.set(name, answer.clone());
        }
        for host in &spec.external {
            for name in host.dns.iter().filter(|name| !spec.dns.contains_key(*name)) {
                zone.set(name, dns_of(host.ips.iter().copied(), 60));
            }
        }
        for service in &spec.services {
            let name = format!("{}.{}.svc.{}", service.name, service.namespace, spec.cluster_domain);
            let pods = spec.pods_of(service).flat_map(|pod| pod.ips.iter().copied());
            zone.set(&name, dns_of(pods.chain(service.backends.iter().copied()), 5));
        }
        zone
    }

    /// Puts a name in, over what it was.
    pub fn set(&self, name: &str, answer: DnsSpec) {
        self.inner().names.insert(key(name), answer);
    }

    /// Puts a name with addresses in.
    pub fn set_addresses(&self, name: &str, ttl: u32, addresses: &[IpAddr]) {
        self.set(name, dns_of(addresses.iter().copied(), ttl));
    }

    /// Puts an alias in.
    pub fn set_alias(&self, name: &str, ttl: u32, target: &str) {
        self.set(name, DnsSpec { cname: Some(target.to_owned()), ttl, ..DnsSpec::default() });
    }

    /// Takes a name out.
    pub fn remove(&self, name: &str) {
        self.inner().names.remove(&key(name));
    }

    /// Adds a function that may answer before the table does; a later one is tried first.
    pub fn script(&self, script: impl Fn(&Query) -> Option<Reply> + Send + Sync + 'static) {
        self.inner().scripts.push(Arc::new(script));
    }

    /// Every question so far, oldest first.
    pub fn asked(&self) -> Vec<Asked> {
        self.inner().asked.clone()
    }

    /// When the latest answer for a name left.
    pub fn answered(&self, name: &str) -> Option<Instant> {
        let name = key(name);
        self.inner().asked.iter().rev().find(|asked| asked.name == name).map(|asked| asked.answered)
    }

    pub(super) fn note(&self, query: &Query) {
        let (name, from) = (query.name.clone(), query.from);
        let (record_type, transport) = (query.record_type, query.transport);
        self.inner().asked.push(Asked { name, record_type, transport, from, answered: Instant::now() });
    }

    /// The answer to a message; `None` for one that is no question.
    pub(super) fn answer(&self, octets: &[u8], transport: Transport, from: SocketAddr) -> Option<(Query, Reply)> {
        let message = Message::from_vec(octets).ok()?;
        let question = message.queries.first()?.clone();
        let name = key(&question.name().to_ascii());
        let query = Query { name, record_type: question.query_type(), transport, from, message };
        let scripts = self.inner().scripts.clone();
        let scripted = scripts.iter().rev().find_map(|script| script(&query));
        let reply = scripted.unwrap_or_else(|| Reply::octets(fit(&self.look_up(&query, question.name()), &query)));
        Some((query, reply))
    }

    fn look_up(&self, query: &Query, asked: &Name) -> Message {
        let mut message = response(&query.message);
        let inner = self.inner();
        let (mut owner, mut at) = (asked.clone(), query.name.clone());
        for _ in 0..CHAIN_MAX {
            let Some(found) = inner.names.get(&at) else {
                if message.answers.is_empty() {
                    message.metadata.response_code = ResponseCode::NXDomain;
                }
                return message;
            };
            let Some(alias) = &found.cname else {
                message.add_answers(records(&owner, found, query.record_type));
                return message;
            };
            let Ok(target) = Name::from_ascii(format!("{}.", key(alias))) else { break };
            message.add_answer(Record::from_rdata(owner, found.ttl, RData::CNAME(CNAME(target.clone()))));
            (owner, at) = (target, key(alias));
        }
        message
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn records(owner: &Name, found: &DnsSpec, wanted: RecordType) -> Vec<Record> {
    let v4 = found.a.iter().map(|address| RData::A(A(*address)));
    let v6 = found.aaaa.iter().map(|address| RData::AAAA(AAAA(*address)));
    let wanted = v4.chain(v6).filter(|data| data.record_type() == wanted);
    wanted.map(|data| Record::from_rdata(owner.clone(), found.ttl, data)).collect()
}

fn address_data(address: IpAddr) -> RData {
    match address {
        IpAddr::V4(address) => RData::A(A(address)),
        IpAddr::V6(address) => RData::AAAA(AAAA(address)),
    }
}

fn dns_of(addresses: impl Iterator<Item = IpAddr>, ttl: u32) -> DnsSpec {
    let mut answer = DnsSpec { ttl, ..DnsSpec::default() };
    for address in addresses {
        match address {
            IpAddr::V4(address) => answer.a.push(address),
            IpAddr::V6(address) => answer.aaaa.push(address),
        }
    }
    answer
}

fn key(name: &str) -> String {
    name.trim_end_matches('.').to_ascii_lowercase()
}

fn response(question: &Message) -> Message {
    let mut message = Message::response(question.metadata.id, OpCode::Query);
    message.metadata.recursion_desired = question.metadata.recursion_desired;
    message.metadata.recursion_available = true;
    message.add_queries(question.queries.iter().cloned());
    if question.edns.is_some() {
        let mut edns = Edns::new();
        edns.set_max_payload(1232);
        message.set_edns(edns);
    }
    message
}

fn fit(message: &Message, query: &Query) -> Vec<u8> {
    let octets = encode(message);
    let room = query.message.edns.as_ref().map_or(UDP_OCTETS, |edns| usize::from(edns.max_payload()).max(UDP_OCTETS));
    let fits = query.transport == Transport::Tcp || octets.len() <= room;
    if fits { octets } else { encode(&message.truncate()) }
}

/// A message that does not encode is a mistake of the test: silence shows it.
fn encode(message: &Message) -> Vec<u8> {
    message.to_vec().unwrap_or_default()
}
