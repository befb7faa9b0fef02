//! The honest endpoints: they resolve, connect, send fragments, make limited requests, and start anew.

use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use namegate_testbed::dns::DnsFailure;
use namegate_testbed::proto::op::ResponseCode;
use namegate_testbed::proto::rr::RecordType;
use namegate_testbed::{Client, ECHO_PORT, Failure, Task, World, client};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::flood::End;
use crate::ground::{ALPHA, API_NAME, BETA, TLS_NAME, WEB_NAME};

/// Between two rounds.
const PAUSE: Duration = Duration::from_millis(100);
/// Waiting time for each step: several retransmissions of TCP.
const PATIENCE: Duration = Duration::from_secs(10);
/// A resolver is asked again after this, or after a failure of its, once: `resolv.conf(5)` has two attempts.
const DNS_PATIENCE: Duration = Duration::from_secs(5);
/// Longer than a frame, so that it comes in fragments.
const LONG_BYTES: usize = 3_000;
/// Rounds from one start of the endpoint's program to the next.
const LIFE: u64 = 20;
/// Failures that are kept word for word.
const WORDS_MAX: usize = 12;
/// The longest look-up that is told apart, microseconds.
const LATENCY_MAX: u64 = 20_000_000;

/// What became of one kind of act.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Count {
    pub(crate) done: u64,
    pub(crate) failed: u64,
}

/// What both honest endpoints did.
#[derive(Clone)]
pub(crate) struct Counter {
    pub(crate) lookups: Count,
    pub(crate) connections: Count,
    pub(crate) fragments: Count,
    pub(crate) requests: Count,
    pub(crate) denials: Count,
    pub(crate) restarts: Count,
    /// Look-ups that were asked a second time.
    pub(crate) again: u64,
    /// Look-ups, microseconds.
    pub(crate) latency: Histogram<u64>,
    /// What failed, word for word.
    pub(crate) words: Vec<String>,
}

impl Counter {
    fn new() -> anyhow::Result<Self> {
        let none = Count::default();
        Ok(Self {
            lookups: none,
            connections: none,
            fragments: none,
            requests: none,
            denials: none,
            restarts: none,
            again: 0,
            latency: Histogram::new_with_max(LATENCY_MAX, 3)?,
            words: Vec::new(),
        })
    }
}

/// Both honest endpoints at work.
pub(crate) struct Honest {
    tally: Arc<Mutex<Counter>>,
    tasks: Vec<Task<()>>,
}

impl Honest {
    /// Starts them; they go on until the end.
    pub(crate) fn start(world: &World, end: &End) -> anyhow::Result<Self> {
        let tally = Arc::new(Mutex::new(Counter::new()?));
        let tasks = actors(world, &tally)
            .into_iter()
            .map(|(key, mut actor)| {
                let end = end.clone();
                world.pod(key).netns.spawn(async move {
                    while !end.is_set() {
                        actor.round().await;
                        tokio::time::sleep(PAUSE).await;
                    }
                })
            })
            .collect();
        Ok(Self { tally, tasks })
    }

    /// What they did so far.
    pub(crate) fn tally(&self) -> Counter {
        lock(&self.tally).clone()
    }

    /// Waits until both have ended their round.
    pub(crate) fn finish(self) -> Counter {
        for task in self.tasks {
            task.wait();
        }
        lock(&self.tally).clone()
    }

    /// A first or last round of each, for itself.
    pub(crate) fn once(world: &World) -> anyhow::Result<Counter> {
        let tally = Arc::new(Mutex::new(Counter::new()?));
        for (key, mut actor) in actors(world, &tally) {
            world.pod(key).netns.run(async move { actor.round().await });
        }
        let whole = lock(&tally).clone();
        Ok(whole)
    }
}

fn actors(world: &World, tally: &Arc<Mutex<Counter>>) -> Vec<(&'static str, Actor)> {
    let server = world.pod(ALPHA).ipv4();
    [ALPHA, BETA]
        .into_iter()
        .map(|key| {
            let mut client = world.pod(key).client();
            (client.within, client.dns_within) = (PATIENCE, DNS_PATIENCE);
            let server = (key == BETA).then_some(server);
            (key, Actor { name: key, client, server, number: 0, held: None, tally: tally.clone() })
        })
        .collect()
}

fn lock(tally: &Mutex<Counter>) -> MutexGuard<'_, Counter> {
    tally.lock().unwrap_or_else(PoisonError::into_inner)
}

/// One honest endpoint.
struct Actor {
    name: &'static str,
    client: Client,
    /// The other honest endpoint, where this one asks it.
    server: Option<IpAddr>,
    number: u64,
    /// The connection that lasts from one start to the next.
    held: Option<TcpStream>,
    tally: Arc<Mutex<Counter>>,
}

impl Actor {
    async fn round(&mut self) {
        self.number += 1;
        let record_type = if self.number.is_multiple_of(2) { RecordType::A } else { RecordType::AAAA };
        if let Some(address) = self.look_up(record_type).await {
            let to = SocketAddr::new(address, ECHO_PORT);
            if self.number % LIFE == 1 {
                self.restart(to).await;
            }
            self.converse(to).await;
            self.fragments(to).await;
        }
        let web = format!("http://{WEB_NAME}");
        self.request(&format!("{web}/v1"), 200).await;
        if self.number % 5 == 1 {
            self.request(&format!("{web}/closed"), 403).await;
            self.request(&format!("https://{TLS_NAME}/v1"), 200).await;
        }
        if let Some(server) = self.server {
            self.request(&format!("http://{server}:8080/v1"), 200).await;
        }
    }

    fn note(&self, what: &str, of: impl Fn(&mut Counter) -> &mut Count, outcome: Result<(), String>) {
        let mut tally = lock(&self.tally);
        of(&mut tally).done += 1;
        if let Err(why) = outcome {
            of(&mut tally).failed += 1;
            if tally.words.len() < WORDS_MAX {
                tally.words.push(format!("{} {what}, round {}: {why}", self.name, self.number));
            }
        }
    }

    async fn look_up(&self, record_type: RecordType) -> Option<IpAddr> {
        let began = Instant::now();
        let mut found = self.client.lookup_type(API_NAME, record_type).await;
        if found.as_ref().is_err_and(is_passing) {
            lock(&self.tally).again += 1;
            found = self.client.lookup_type(API_NAME, record_type).await;
        }
        let took = u64::try_from(began.elapsed().as_micros()).unwrap_or(LATENCY_MAX);
        lock(&self.tally).latency.saturating_record(took);
        let outcome = found.as_ref().map(drop).map_err(ToString::to_string);
        self.note("look-up", |tally| &mut tally.lookups, outcome);
        found.ok().and_then(|found| found.addresses.first().copied())
    }

    /// Drops what the program held, and connects anew as one that starts does.
    async fn restart(&mut self, to: SocketAddr) {
        self.held = None;
        let opened = client::connect(to, PATIENCE).await;
        let outcome = opened.as_ref().map(drop).map_err(|failure| format!("{to}: {failure}"));
        self.note("restart", |tally| &mut tally.restarts, outcome);
        self.held = opened.ok();
    }

    /// Speaks over the connection that lasts, and over a new one.
    async fn converse(&mut self, to: SocketAddr) {
        if let Some(held) = &mut self.held {
            let outcome = speak(held).await;
            if outcome.is_err() {
                self.held = None;
            }
            self.note("held connection", |tally| &mut tally.connections, outcome);
        }
        let outcome = match client::connect(to, PATIENCE).await {
            Ok(mut stream) => speak(&mut stream).await,
            Err(failure) => Err(failure.to_string()),
        };
        let outcome = outcome.map_err(|why| format!("{to}: {why}"));
        self.note("connection", |tally| &mut tally.connections, outcome);
    }

    /// A datagram in fragments, sent again where it is lost: UDP promises nothing.
    async fn fragments(&self, to: SocketAddr) {
        let mut outcome = Ok(());
        for _ in 0..3 {
            outcome = client::echo(to, &[0x5a; LONG_BYTES], Duration::from_secs(1)).await;
            if outcome.is_ok() {
                break;
            }
        }
        let outcome = outcome.map_err(|failure| format!("{to}: {failure}"));
        self.note("datagram in fragments", |tally| &mut tally.fragments, outcome);
    }

    async fn request(&self, url: &str, want: u16) {
        let mut visit = self.client.get(url).await;
        if matches!(&visit.outcome, Err(Failure::Dns(failure)) if is_passing(failure)) {
            lock(&self.tally).again += 1;
            visit = self.client.get(url).await;
        }
        let outcome = match visit.outcome {
            Ok(page) if page.status == want => Ok(()),
            Ok(page) => Err(format!("{url}: {} for {want}", page.status)),
            Err(failure) => {
                let reached = if visit.connected.is_some() { "connected" } else { "not connected" };
                let after = visit.resolved.map(|resolved| resolved.elapsed());
                Err(format!("{url} ({reached}; {after:?} after its answer): {failure}"))
            }
        };
        let is_denial = want == 403;
        self.note("request", |tally| if is_denial { &mut tally.denials } else { &mut tally.requests }, outcome);
    }
}

/// A failure after which a stub resolver asks again.
fn is_passing(failure: &DnsFailure) -> bool {
    matches!(failure, DnsFailure::Timeout | DnsFailure::Code(ResponseCode::ServFail))
}

async fn speak(stream: &mut TcpStream) -> Result<(), String> {
    let exchange = async {
        stream.write_all(b"honest").await?;
        let mut back = [0; 6];
        stream.read_exact(&mut back).await?;
        Ok::<_, std::io::Error>(back == *b"honest")
    };
    match tokio::time::timeout(PATIENCE, exchange).await {
        Err(_) => Err("no echo in time".to_owned()),
        Ok(Ok(true)) => Ok(()),
        Ok(Ok(false)) => Err("the echo differs".to_owned()),
        Ok(Err(error)) => Err(error.to_string()),
    }
}
