//! A resolver that says what a test wants, a backend that writes down what it is given, and clients.

use std::{
    future::Future,
    io::{Read, Write},
    net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket},
    sync::{Arc, Condvar, Mutex},
    time::Duration,
};

use namegate_dns_proxy::{Backend, Config, NotInstalled, Proxy};
use namegate_engine::{Answer, EndpointId};

/// Longer than anything may take.
pub(crate) const PATIENCE: Duration = Duration::from_secs(10);

pub(crate) const LOOPBACK: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);

/// What a resolver sends for a question that came over UDP (false) or TCP (true); the question's ID is put in.
pub(crate) type Script = dyn Fn(&[u8], bool) -> Vec<Vec<u8>> + Send + Sync;

/// A resolver on a loopback port, UDP and TCP. Its threads end with the process.
pub(crate) struct Resolver {
    pub(crate) address: SocketAddr,
}

impl Resolver {
    pub(crate) fn start(script: impl Fn(&[u8], bool) -> Vec<Vec<u8>> + Send + Sync + 'static) -> Self {
        let script: Arc<Script> = Arc::new(script);
        let (udp, tcp) = loop {
            let udp = UdpSocket::bind((LOOPBACK, 0)).unwrap();
            if let Ok(tcp) = TcpListener::bind(udp.local_addr().unwrap()) {
                break (udp, tcp);
            }
        };
        let address = udp.local_addr().unwrap();
        let over_udp = Arc::clone(&script);
        std::thread::spawn(move || {
            let mut buffer = vec![0; 65_535];
            while let Ok((length, client)) = udp.recv_from(&mut buffer) {
                for answer in over_udp(&buffer[..length], false) {
                    udp.send_to(&with_id(answer, &buffer), client).unwrap();
                }
            }
        });
        std::thread::spawn(move || {
            for stream in tcp.incoming() {
                let script = Arc::clone(&script);
                std::thread::spawn(move || serve(stream.unwrap(), &*script));
            }
        });
        Self { address }
    }
}

fn serve(mut stream: TcpStream, script: &Script) {
    while let Some(question) = read_framed(&mut stream) {
        for answer in script(&question, true) {
            if write_framed(&mut stream, &with_id(answer, &question)).is_err() {
                return;
            }
        }
    }
}

fn with_id(mut answer: Vec<u8>, question: &[u8]) -> Vec<u8> {
    if answer.len() >= 2 {
        answer[..2].copy_from_slice(&question[..2]);
    }
    answer
}

pub(crate) fn read_framed(stream: &mut TcpStream) -> Option<Vec<u8>> {
    let mut length = [0; 2];
    stream.read_exact(&mut length).ok()?;
    let mut message = vec![0; usize::from(u16::from_be_bytes(length))];
    stream.read_exact(&mut message).ok()?;
    Some(message)
}

pub(crate) fn write_framed(stream: &mut TcpStream, message: &[u8]) -> std::io::Result<()> {
    let mut frame = u16::try_from(message.len()).unwrap().to_be_bytes().to_vec();
    frame.extend_from_slice(message);
    stream.write_all(&frame)
}

/// What the gate says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Gate {
    Takes,
    Refuses,
    /// Says nothing until it is another.
    Waits,
}

/// Every loopback address is endpoint 7, or by choice an endpoint of its own.
#[derive(Clone)]
pub(crate) struct Recorder {
    shared: Arc<(Mutex<Recorded>, Condvar)>,
    wake: Arc<tokio::sync::Notify>,
    knows_endpoints: bool,
    by_address: bool,
    trusts: bool,
}

struct Recorded {
    answers: Vec<Answer>,
    batches: usize,
    gate: Gate,
}

pub(crate) const ENDPOINT: EndpointId = EndpointId(7);

impl Recorder {
    pub(crate) fn new(gate: Gate) -> Self {
        let recorded = Recorded { answers: Vec::new(), batches: 0, gate };
        let shared = Arc::new((Mutex::new(recorded), Condvar::new()));
        Self { shared, wake: Arc::default(), knows_endpoints: true, by_address: false, trusts: true }
    }

    pub(crate) fn knowing_no_endpoint(self) -> Self {
        Self { knows_endpoints: false, ..self }
    }

    /// Eight addresses each are one endpoint: 127.0.0.8 to 127.0.0.15 are endpoint 1.
    pub(crate) fn knowing_many_endpoints(self) -> Self {
        Self { by_address: true, ..self }
    }

    pub(crate) fn trusting_nobody(self) -> Self {
        Self { trusts: false, ..self }
    }

    pub(crate) fn set(&self, gate: Gate) {
        self.shared.0.lock().unwrap().gate = gate;
        self.wake.notify_waiters();
    }

    /// Takes out the answers so far.
    pub(crate) fn take(&self) -> Vec<Answer> {
        std::mem::take(&mut self.shared.0.lock().unwrap().answers)
    }

    pub(crate) fn batches(&self) -> usize {
        self.shared.0.lock().unwrap().batches
    }

    /// Waits until the gate was given something.
    pub(crate) fn wait_for_answer(&self) {
        let (recorded, arrived) = &*self.shared;
        let guard = recorded.lock().unwrap();
        let (guard, _) = arrived.wait_timeout_while(guard, PATIENCE, |recorded| recorded.answers.is_empty()).unwrap();
        assert!(!guard.answers.is_empty(), "no answer reached the gate");
    }
}

impl Backend for Recorder {
    fn endpoint(&self, address: IpAddr) -> Option<EndpointId> {
        match address {
            IpAddr::V4(v4) if self.by_address => Some(EndpointId(u32::from(v4.octets()[3] / 8))),
            _ => (self.knows_endpoints && address.is_loopback()).then_some(ENDPOINT),
        }
    }

    fn is_trusted(&self, resolver: IpAddr) -> bool {
        self.trusts && resolver.is_loopback()
    }

    fn install(&self, answers: Vec<Answer>) -> impl Future<Output = Vec<Result<(), NotInstalled>>> + Send {
        let count = answers.len();
        {
            let mut recorded = self.shared.0.lock().unwrap();
            recorded.answers.extend(answers);
            recorded.batches += 1;
            self.shared.1.notify_all();
        }
        let backend = self.clone();
        async move {
            loop {
                let woken = backend.wake.notified();
                let gate = backend.shared.0.lock().unwrap().gate;
                match gate {
                    Gate::Takes => return vec![Ok(()); count],
                    Gate::Refuses => return vec![Err(NotInstalled::Full); count],
                    Gate::Waits => woken.await,
                }
            }
        }
    }
}

/// A proxy before a resolver.
pub(crate) fn proxy(resolver: SocketAddr, backend: Recorder, timeout: Duration) -> Proxy {
    let config = Config {
        workers: 2,
        upstream_timeout: timeout,
        install_timeout: timeout,
        fixed_resolver: Some(resolver),
        ..Config::default()
    };
    Proxy::start(&config, backend).unwrap()
}

/// The count of one word.
pub(crate) fn count(proxy: &Proxy, word: &str) -> u64 {
    proxy.counters().into_iter().find(|(name, _)| *name == word).unwrap_or_else(|| panic!("no word {word}")).1
}

/// A client of a port on the loopback address.
pub(crate) struct UdpClient(UdpSocket);

impl UdpClient {
    pub(crate) fn new(port: u16) -> Self {
        Self::from(LOOPBACK, port)
    }

    pub(crate) fn from(own: IpAddr, port: u16) -> Self {
        let socket = UdpSocket::bind((own, 0)).unwrap();
        socket.connect((LOOPBACK, port)).unwrap();
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        Self(socket)
    }

    pub(crate) fn send(&self, question: &[u8]) {
        self.0.send(question).unwrap();
    }

    pub(crate) fn receive(&self) -> Vec<u8> {
        let mut buffer = vec![0; 65_535];
        let length = self.0.recv(&mut buffer).expect("a reply");
        buffer.truncate(length);
        buffer
    }

    /// Whether nothing has come yet.
    pub(crate) fn is_silent(&self) -> bool {
        self.0.set_nonblocking(true).unwrap();
        let nothing = self.0.recv(&mut [0; 512]).is_err();
        self.0.set_nonblocking(false).unwrap();
        nothing
    }

    pub(crate) fn ask(&self, question: &[u8]) -> Vec<u8> {
        self.send(question);
        self.receive()
    }
}

/// One connection to a port on the loopback address.
pub(crate) struct TcpClient(pub(crate) TcpStream);

impl TcpClient {
    pub(crate) fn new(port: u16) -> Self {
        Self::from(LOOPBACK, port)
    }

    pub(crate) fn from(own: IpAddr, port: u16) -> Self {
        let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
        socket.bind(&SocketAddr::new(own, 0).into()).unwrap();
        socket.connect(&SocketAddr::new(LOOPBACK, port).into()).unwrap();
        let stream = TcpStream::from(socket);
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        Self(stream)
    }

    pub(crate) fn send(&mut self, question: &[u8]) {
        write_framed(&mut self.0, question).unwrap();
    }

    pub(crate) fn receive(&mut self) -> Vec<u8> {
        read_framed(&mut self.0).expect("a reply")
    }

    pub(crate) fn ask(&mut self, question: &[u8]) -> Vec<u8> {
        self.send(question);
        self.receive()
    }
}
