//! Connections that one endpoint holds leave room for those of others.
#![expect(clippy::unwrap_used, reason = "a test ends at the first surprise")]

use std::{
    collections::HashMap,
    io::{Read, Write},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream},
    sync::{Arc, Mutex},
    thread,
    time::{Duration, Instant},
};

use namegate_config::{reference::Limits, rule::Direction};
use namegate_l7_proxy::{Access, Backend, Config, ConnectionPolicy, Match, Proxy, Question};
use socket2::{Domain, Socket, Type};

const WITHIN: Duration = Duration::from_secs(10);
const HOSTILE: u32 = 1;
const HONEST: u32 = 2;

/// Two endpoints, the first of them with addresses of both families; 127.0.0.100 and above are clients from elsewhere.
#[derive(Clone, Default)]
struct Tenants(Arc<Mutex<HashMap<Option<u32>, u64>>>);

impl Backend for Tenants {
    async fn connection_policy(&self, _: Question) -> Option<ConnectionPolicy> {
        let sides = vec![(Direction::Ingress, Limits::Free)];
        Some(ConnectionPolicy {
            sides,
            keeps_source: false,
            audit: false,
            bound: false,
            binding: Match::Good,
            names: Arc::default(),
        })
    }

    fn revision(&self) -> u64 {
        0
    }

    fn record(&self, _: Access) {}

    fn endpoint(&self, address: IpAddr) -> Option<u32> {
        match address {
            IpAddr::V6(_) => Some(HOSTILE),
            IpAddr::V4(address) => match address.octets()[3] {
                2..10 => Some(HOSTILE),
                20 => Some(HONEST),
                _ => None,
            },
        }
    }

    fn refused(&self, endpoint: Option<u32>) {
        *self.0.lock().unwrap().entry(endpoint).or_default() += 1;
    }
}

impl Tenants {
    fn refusals(&self, endpoint: Option<u32>) -> u64 {
        self.0.lock().unwrap().get(&endpoint).copied().unwrap_or(0)
    }
}

fn v4(last: u8) -> IpAddr {
    Ipv4Addr::new(127, 0, 0, last).into()
}

/// A connection to the proxy from one of this machine's addresses.
fn connect(own: IpAddr, port: u16) -> TcpStream {
    let proxy: IpAddr = if own.is_ipv4() { Ipv4Addr::LOCALHOST.into() } else { Ipv6Addr::LOCALHOST.into() };
    let address = SocketAddr::new(proxy, port);
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, None).unwrap();
    socket.bind(&SocketAddr::new(own, 0).into()).unwrap();
    socket.connect(&address.into()).unwrap();
    let stream = TcpStream::from(socket);
    stream.set_read_timeout(Some(WITHIN)).unwrap();
    stream
}

/// The first line of the answer to a request, or nothing where the connection is reset.
fn request(own: IpAddr, port: u16) -> String {
    let mut stream = connect(own, port);
    // A reset may come before the request is written.
    let _ = stream.write_all(b"GET / HTTP/1.1\r\nHost: a.test\r\nConnection: close\r\n\r\n");
    let mut answer = String::new();
    let _ = stream.read_to_string(&mut answer);
    answer.lines().next().unwrap_or_default().to_owned()
}

fn start(backend: Tenants, connections_max: usize, connections_per_endpoint_max: usize) -> Proxy {
    let server = TcpListener::bind("127.0.0.1:0").unwrap();
    let fixed_server = Some(server.local_addr().unwrap());
    thread::spawn(move || {
        for stream in server.incoming() {
            thread::spawn(move || {
                let mut stream = stream.unwrap();
                let _ = stream.read(&mut [0; 1_024]);
                let _ = stream.write_all(b"HTTP/1.1 204 No Content\r\nConnection: close\r\n\r\n");
            });
        }
    });
    let config =
        Config { workers: 2, fixed_server, connections_max, connections_per_endpoint_max, ..Config::default() };
    Proxy::start(&config, backend).unwrap()
}

/// Waits until so many connections were accepted.
fn accepted(proxy: &Proxy, wanted: u64) {
    let started = Instant::now();
    let count = || proxy.counters().iter().find(|(what, _)| *what == "connections").unwrap().1;
    while count() < wanted {
        assert!(started.elapsed() < WITHIN, "{} of {wanted} accepted", count());
        thread::yield_now();
    }
}

const OK: &str = "HTTP/1.1 204 No Content";

#[test]
fn an_endpoint_with_two_families_and_many_addresses_is_one_share() {
    let backend = Tenants::default();
    let proxy = start(backend.clone(), 64, 64);
    let own = (0..200_u8).map(|at| if at % 2 == 0 { v4(2 + at % 8) } else { Ipv6Addr::LOCALHOST.into() });
    let held: Vec<TcpStream> = own.map(|own| connect(own, proxy.port())).collect();
    accepted(&proxy, 200);
    assert_eq!(request(v4(20), proxy.port()), OK, "another endpoint");
    assert_eq!(request(v4(1), proxy.port()), OK, "a client that is no endpoint");
    assert_eq!(request(v4(3), proxy.port()), "", "the greedy endpoint");
    assert_eq!(backend.refusals(Some(HOSTILE)), 200 - 32 + 1);
    assert_eq!((backend.refusals(Some(HONEST)), backend.refusals(None)), (0, 0));
    drop(held);
    let started = Instant::now();
    while request(v4(3), proxy.port()) != OK {
        assert!(started.elapsed() < WITHIN, "places are not given back");
    }
}

#[test]
fn the_bound_of_one_endpoint_is_a_setting() {
    let backend = Tenants::default();
    let proxy = start(backend.clone(), 64, 5);
    let _held: Vec<TcpStream> = (0..8).map(|at| connect(v4(2 + at), proxy.port())).collect();
    accepted(&proxy, 8);
    // The last one is refused a moment after it is counted.
    let started = Instant::now();
    while backend.refusals(Some(HOSTILE)) < 3 {
        assert!(started.elapsed() < WITHIN, "{} refused", backend.refusals(Some(HOSTILE)));
        thread::yield_now();
    }
    assert_eq!(backend.refusals(Some(HOSTILE)), 3);
    assert_eq!(request(v4(20), proxy.port()), OK);
}
