//! A client that sends raw octets, the proxy, and a server that notes what reaches it.

use std::{
    io::{Read, Write},
    net::{Shutdown, TcpListener, TcpStream},
    sync::{Arc, Mutex},
    thread,
    time::Duration,
};

use namegate_config::{
    l7::{HttpRule, L7, RegexText},
    labels::LabelSelector,
    reference::Limits,
    rule::{Direction, Effect, Origin, Peers, Ports, Rule, Subject, Tier},
};
use namegate_l7_proxy::{Access, Backend, Config, ConnectionPolicy, Match, Proxy, Question};

/// The longest wait.
pub(crate) const WITHIN: Duration = Duration::from_secs(10);

/// Gives the same answer to everybody, and keeps records.
#[derive(Clone)]
pub(crate) struct Rules {
    pub(crate) limits: Arc<Mutex<Limits>>,
    pub(crate) revision: Arc<Mutex<u64>>,
    pub(crate) records: Arc<Mutex<Vec<Access>>>,
}

impl Backend for Rules {
    async fn connection_policy(&self, _: Question) -> Option<ConnectionPolicy> {
        let limits = self.limits.lock().unwrap().clone();
        Some(ConnectionPolicy {
            sides: vec![(Direction::Ingress, limits)],
            keeps_source: false,
            audit: false,
            bound: false,
            binding: Match::Good,
            names: Arc::default(),
        })
    }

    fn revision(&self) -> u64 {
        *self.revision.lock().unwrap()
    }

    fn record(&self, access: Access) {
        self.records.lock().unwrap().push(access);
    }
}

/// Limits of one rule.
pub(crate) fn rule(l7: L7) -> Limits {
    let origin =
        Origin { kind: "cnp".into(), namespace: Some("a".into()), name: "b".into(), path: "ingress[0]".into() };
    Limits::Rules(vec![Arc::new(Rule {
        origin: Arc::new(origin),
        subject: Subject::Endpoints(LabelSelector::default()),
        direction: Direction::Ingress,
        tier: Tier::Normal,
        effect: Effect::Allow,
        default_deny: true,
        peers: Peers::Any,
        ports: Ports::Any,
        l7: Some(Arc::new(l7)),
        binding: None,
        named_only: None,
    })])
}

/// GET and POST of paths below `/open`.
pub(crate) fn open() -> Limits {
    let text = |text| Some(RegexText::new(text).unwrap());
    rule(L7::Http(vec![HttpRule { method: text("GET|POST"), path: text("/open.*"), ..HttpRule::default() }]))
}

/// A client, the proxy and a server.
pub(crate) struct Bench {
    pub(crate) proxy: Proxy,
    pub(crate) rules: Rules,
    /// What each connection to the server brought.
    pub(crate) seen: Arc<Mutex<Vec<Vec<u8>>>>,
}

/// How many whole requests there are, with their bodies.
fn requests(mut octets: &[u8]) -> usize {
    let end_of = |octets: &[u8], end: &[u8]| octets.windows(end.len()).position(|window| window == end);
    let mut count = 0;
    while let Some(end) = end_of(octets, b"\r\n\r\n") {
        let (head, body) = octets.split_at(end + 4);
        let head = String::from_utf8_lossy(head).to_ascii_lowercase();
        let length = head.split("\r\ncontent-length: ").nth(1).and_then(|rest| rest.split("\r\n").next()?.parse().ok());
        let length = if head.contains("\r\ntransfer-encoding: chunked") {
            end_of(body, b"0\r\n").and_then(|at| Some(at + end_of(&body[at..], b"\r\n\r\n")? + 4))
        } else {
            Some(length.unwrap_or(0)).filter(|length| *length <= body.len())
        };
        let Some(length) = length else { break };
        (octets, count) = (&body[length..], count + 1);
    }
    count
}

impl Bench {
    /// A server that answers each request with `reply` once it is whole.
    pub(crate) fn new(limits: Limits, reply: &'static [u8]) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let server = listener.local_addr().unwrap();
        let seen = Arc::<Mutex<Vec<Vec<u8>>>>::default();
        let noting = Arc::clone(&seen);
        thread::spawn(move || {
            for stream in listener.incoming() {
                let (mut stream, noting) = (stream.unwrap(), Arc::clone(&noting));
                let at = {
                    let mut noting = noting.lock().unwrap();
                    noting.push(Vec::new());
                    noting.len() - 1
                };
                thread::spawn(move || {
                    let mut octets = [0; 4_096];
                    let mut answered = 0;
                    while let Ok(count @ 1..) = stream.read(&mut octets) {
                        let mut noting = noting.lock().unwrap();
                        noting[at].extend_from_slice(&octets[..count]);
                        let whole = requests(&noting[at]);
                        while answered < whole {
                            answered += 1;
                            stream.write_all(reply).unwrap();
                        }
                    }
                });
            }
        });
        let rules = Rules { limits: Arc::new(Mutex::new(limits)), revision: Arc::default(), records: Arc::default() };
        let config = Config { fixed_server: Some(server), ..Config::default() };
        let proxy = Proxy::start(&config, rules.clone()).unwrap();
        Self { proxy, rules, seen }
    }

    pub(crate) fn connect(&self) -> TcpStream {
        let stream = TcpStream::connect(("127.0.0.1", self.proxy.port())).unwrap();
        stream.set_read_timeout(Some(WITHIN)).unwrap();
        stream
    }

    /// Sends octets, says that no more come, and gives all that comes back.
    pub(crate) fn ask(&self, octets: &[u8]) -> String {
        let mut stream = self.connect();
        // It may be reset already.
        let _ = stream.write_all(octets).and_then(|()| stream.shutdown(Shutdown::Write));
        let mut heard = Vec::new();
        // A reset after the answer is an end too.
        let _ = stream.read_to_end(&mut heard);
        String::from_utf8_lossy(&heard).into_owned()
    }

    pub(crate) fn seen(&self) -> String {
        self.seen.lock().unwrap().iter().map(|octets| String::from_utf8_lossy(octets).into_owned()).collect()
    }
}

/// An answer with a body.
pub(crate) const OK: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";

/// The status of each answer.
pub(crate) fn codes(heard: &str) -> Vec<&str> {
    heard.split("HTTP/1.1 ").skip(1).map(|rest| &rest[..3]).collect()
}
