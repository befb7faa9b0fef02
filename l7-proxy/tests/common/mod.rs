//! The proxy before servers of other programs, and a client that writes its TLS messages by hand.
#![expect(clippy::unwrap_used, reason = "a test ends at the first surprise")]

use std::{
    fmt::Write as _,
    io::{BufRead, BufReader, Read, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use namegate_config::{
    l7::L7,
    labels::LabelSelector,
    name::NamePattern,
    reference::Limits,
    rule::{Direction, Effect, Origin, Peers, Ports, Rule, Subject, Tier},
};
use namegate_l7_proxy::{Access, Backend, Config, ConnectionPolicy, Match, Named, Proxy, Question};

pub(crate) const GOOD: &str = "good.test";
pub(crate) const BAD: &str = "bad.test";
/// Waiting time for what must come.
pub(crate) const WITHIN: Duration = Duration::from_secs(10);

/// Why a name decides.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum By {
    /// A rule with `serverNames`.
    ServerNames,
    /// Names bound to connections. Protocols without names pass.
    Binding,
    /// The same on a port where connections must ask for a name.
    NamedPort,
}

/// Rules that allow one name, or none.
#[derive(Clone)]
pub(crate) struct Names {
    pub(crate) by: By,
    pub(crate) audit: bool,
    allowed: Arc<Mutex<Limits>>,
    revision: Arc<AtomicU64>,
    pub(crate) records: Arc<Mutex<Vec<Access>>>,
}

impl Names {
    pub(crate) fn new(by: By) -> Self {
        let names = vec![NamePattern::pattern(GOOD).unwrap()];
        let limits = if by == By::ServerNames { rule(L7::ServerNames(names)) } else { Limits::Free };
        let allowed = Arc::new(Mutex::new(limits));
        Self { by, audit: false, allowed, revision: Arc::default(), records: Arc::default() }
    }

    pub(crate) fn change(&self, limits: Limits) {
        *self.allowed.lock().unwrap() = limits;
        self.revision.fetch_add(1, Ordering::Release);
    }
}

pub(crate) fn rule(l7: L7) -> Limits {
    let origin = Origin { kind: "cnp".into(), namespace: None, name: "names".into(), path: "egress[0]".into() };
    Limits::Rules(vec![Arc::new(Rule {
        origin: Arc::new(origin),
        subject: Subject::Endpoints(LabelSelector::default()),
        direction: Direction::Egress,
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

impl Backend for Names {
    async fn connection_policy(&self, question: Question) -> Option<ConnectionPolicy> {
        let allowed = self.allowed.lock().unwrap().clone();
        let is_good = match &question.named {
            Named::Any => true,
            Named::One(name) => name.as_ref().is_some_and(|name| name.as_str() == GOOD),
            Named::Nameless => self.by == By::Binding,
        };
        let is_bound = self.by != By::ServerNames;
        let (limits, binding) =
            if is_good || !is_bound { (allowed, Match::Good) } else { (Limits::Closed(None), Match::Refused) };
        Some(ConnectionPolicy {
            sides: vec![(Direction::Egress, limits)],
            keeps_source: false,
            audit: self.audit,
            bound: is_bound,
            binding,
            names: Arc::default(),
        })
    }

    fn revision(&self) -> u64 {
        self.revision.load(Ordering::Acquire)
    }

    fn record(&self, access: Access) {
        self.records.lock().unwrap().push(access);
    }
}

/// The proxy in front of one server.
pub(crate) fn proxy(names: &Names, server: SocketAddr) -> Proxy {
    Proxy::start(&Config { fixed_server: Some(server), ..Config::default() }, names.clone()).unwrap()
}

pub(crate) fn count(proxy: &Proxy, word: &str) -> u64 {
    proxy.counters().into_iter().find(|(known, _)| *known == word).unwrap().1
}

pub(crate) fn connect(proxy: &Proxy) -> TcpStream {
    let stream = TcpStream::connect(("127.0.0.1", proxy.port())).unwrap();
    stream.set_read_timeout(Some(WITHIN)).unwrap();
    stream.set_nodelay(true).unwrap();
    stream
}

/// Waits until something is so.
pub(crate) fn wait(what: &str, is_so: impl Fn() -> bool) {
    let deadline = Instant::now() + WITHIN;
    while !is_so() {
        assert!(Instant::now() < deadline, "no {what} in time");
        thread::sleep(Duration::from_millis(10));
    }
}

/// A folder with keys and certificates for both names.
pub(crate) fn certificates() -> PathBuf {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("certificates-{}-{number}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    for name in [GOOD, BAD] {
        let made = Command::new("openssl")
            .current_dir(&folder)
            .args(["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "9"])
            .args(["-keyout", &format!("{name}.key"), "-out", &format!("{name}.crt"), "-subj", &format!("/CN={name}")])
            .args(["-addext", &format!("subjectAltName=DNS:{name}")])
            .output()
            .unwrap();
        assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    }
    folder
}

/// A server of another program, which ends with this value.
pub(crate) struct Server {
    pub(crate) address: SocketAddr,
    child: Child,
    log: Arc<Mutex<String>>,
    file: Option<PathBuf>,
}

impl Server {
    /// Starts a program that listens on the port which replaces `PORT` in its arguments.
    pub(crate) fn start(folder: &Path, program: &str, arguments: &[&str]) -> Self {
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        Self::start_at(folder, program, arguments, port)
    }

    /// The same with this port.
    pub(crate) fn start_at(folder: &Path, program: &str, arguments: &[&str], port: u16) -> Self {
        let arguments = arguments.iter().map(|argument| argument.replace("PORT", &port.to_string()));
        let mut child = Command::new(program)
            .current_dir(folder)
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap_or_else(|error| panic!("{program} does not start: {error}"));
        let log = Arc::<Mutex<String>>::default();
        let outputs: [Box<dyn Read + Send>; 2] =
            [Box::new(child.stdout.take().unwrap()), Box::new(child.stderr.take().unwrap())];
        for output in outputs {
            let log = Arc::clone(&log);
            thread::spawn(move || {
                for line in BufReader::new(output).split(b'\n').map_while(Result::ok) {
                    writeln!(log.lock().unwrap(), "{}", String::from_utf8_lossy(&line)).unwrap();
                }
            });
        }
        let address = SocketAddr::from(([127, 0, 0, 1], port));
        wait(program, || TcpStream::connect(address).is_ok());
        Self { address, child, log, file: None }
    }

    /// Reads the log from a file too.
    pub(crate) fn logging_to(mut self, file: PathBuf) -> Self {
        self.file = Some(file);
        self
    }

    pub(crate) fn log(&self) -> String {
        let file = self.file.as_ref().map(|file| std::fs::read(file).unwrap_or_default()).unwrap_or_default();
        self.log.lock().unwrap().clone() + &String::from_utf8_lossy(&file)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A `ClientHello` of TLS 1.3 in the making.
#[derive(Clone, Debug)]
pub(crate) struct ClientHello {
    pub(crate) name: Option<&'static str>,
    pub(crate) random: u8,
    pub(crate) session: u8,
    pub(crate) suites: Vec<u8>,
    pub(crate) share: Share,
    pub(crate) more: Vec<u8>,
}

/// The group of the key share.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Share {
    X25519,
    P384,
}

/// The base point of P-384 (FIPS 186-4 §D.1.2.4), which is somebody's public key too.
const BASE_POINT: &str = "aa87ca22be8b05378eb1c71ef320ad746e1d3b628ba79b9859f741e082542a385502f25dbf55296c3a545e3872760ab7\
                          3617de4a96262c6f5d9e98bf9292dc29f8f41dbd289a147ce9da3113b5f0b8c00a60b1ce1d7e819d7a431d7c90ea0e5f";

fn vector8(bytes: &[u8]) -> Vec<u8> {
    [&[u8::try_from(bytes.len()).unwrap()][..], bytes].concat()
}

fn vector16(bytes: &[u8]) -> Vec<u8> {
    [&u16::try_from(bytes.len()).unwrap().to_be_bytes()[..], bytes].concat()
}

pub(crate) fn extension(kind: u16, data: &[u8]) -> Vec<u8> {
    [&kind.to_be_bytes()[..], &vector16(data)].concat()
}

impl ClientHello {
    pub(crate) fn first() -> Self {
        Self {
            name: Some(GOOD),
            random: 7,
            session: 9,
            suites: vec![0x13, 1, 0x13, 2],
            share: Share::X25519,
            more: Vec::new(),
        }
    }

    /// What may follow the first after a `HelloRetryRequest` for P-384.
    pub(crate) fn second() -> Self {
        Self { share: Share::P384, ..Self::first() }
    }

    /// The message with its type and length.
    pub(crate) fn message(&self) -> Vec<u8> {
        let sni = |name: &str| extension(0, &vector16(&[&[0][..], &vector16(name.as_bytes())].concat()));
        let point: Vec<u8> = match self.share {
            Share::X25519 => [&[9][..], &[0; 31]].concat(),
            Share::P384 => {
                let digits = (0..BASE_POINT.len()).step_by(2);
                let bytes = digits.map(|at| u8::from_str_radix(&BASE_POINT[at..at + 2], 16).unwrap());
                std::iter::once(4).chain(bytes).collect()
            }
        };
        let group: [u8; 2] = if self.share == Share::X25519 { [0, 29] } else { [0, 24] };
        let extensions = [
            self.name.map(sni).unwrap_or_default(),
            extension(10, &vector16(&[0, 29, 0, 24])),
            extension(13, &vector16(&[4, 3, 8, 4, 8, 5, 8, 6, 5, 3])),
            extension(43, &vector8(&[3, 4])),
            extension(51, &vector16(&[&group[..], &vector16(&point)].concat())),
            self.more.clone(),
        ];
        let body = [
            &[3, 3][..],
            &[self.random; 32],
            &vector8(&[self.session; 32]),
            &vector16(&self.suites),
            &[1, 0],
            &vector16(&extensions.concat()),
        ]
        .concat();
        let length = u32::try_from(body.len()).unwrap().to_be_bytes();
        [&[1][..], &length[1..], &body].concat()
    }

    pub(crate) fn record(&self) -> Vec<u8> {
        records(&self.message(), 1 << 14)
    }
}

/// A message in records with fragments of this length.
pub(crate) fn records(message: &[u8], length: usize) -> Vec<u8> {
    message.chunks(length).flat_map(|part| [&[22, 3, 3][..], &vector16(part)].concat()).collect()
}

/// Reads a whole record. `None` where the other side ends or resets the connection.
pub(crate) fn read_record(stream: &mut TcpStream) -> Option<Vec<u8>> {
    let mut record = vec![0; 5];
    stream.read_exact(&mut record).ok()?;
    let length = usize::from(u16::from_be_bytes([record[3], record[4]]));
    record.resize(5 + length, 0);
    stream.read_exact(&mut record[5..]).ok()?;
    Some(record)
}

/// Whether a record holds a `ServerHello`, and whether that asks for another `ClientHello`.
pub(crate) fn server_hello(record: &[u8]) -> Option<bool> {
    (record[0] == 22 && record[5] == 2).then(|| record[11..15] == [0xcf, 0x21, 0xad, 0x74])
}

/// Writes, whoever listens.
pub(crate) fn send(stream: &mut TcpStream, bytes: &[u8]) {
    // It may be reset already.
    let _ = stream.write_all(bytes);
}
