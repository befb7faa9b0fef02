//! Many connections that say little cost little.
#![expect(clippy::unwrap_used, reason = "a test ends at the first surprise")]

use std::{
    fs,
    io::Write,
    net::TcpStream,
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use namegate_config::{reference::Limits, rule::Direction};
use namegate_l7_proxy::{Access, Backend, Config, ConnectionPolicy, Match, Proxy, Question};

const IDLE: usize = 5_000;
const TRICKLING: usize = 500;
const MEBIBYTE: u64 = 1 << 20;

#[derive(Clone)]
struct Nobody;

impl Backend for Nobody {
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
}

/// Octets of this process in memory.
fn resident() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() * 1_024
}

#[test]
fn five_thousand_idle_and_five_hundred_trickling_connections_fit() {
    let config = Config { fixed_server: Some(([127, 0, 0, 1], 9).into()), ..Config::default() };
    let proxy = Proxy::start(&config, Nobody).unwrap();
    let before = resident();
    let connect = || TcpStream::connect(("127.0.0.1", proxy.port())).unwrap();
    let idle: Vec<TcpStream> = (0..IDLE).map(|_| connect()).collect();
    let mut trickling: Vec<TcpStream> = (0..TRICKLING).map(|_| connect()).collect();
    for octet in b"GET /very/long/path HTTP/1.1\r\nHost: a" {
        for stream in &mut trickling {
            stream.write_all(&[*octet]).unwrap();
        }
    }
    let started = Instant::now();
    let accepted = || proxy.counters().iter().find(|(what, _)| *what == "connections").unwrap().1;
    while accepted() < (IDLE + TRICKLING) as u64 {
        assert!(started.elapsed() < Duration::from_mins(1), "{} accepted", accepted());
        thread::sleep(Duration::from_millis(5));
    }
    let grown = resident().saturating_sub(before);
    assert!(grown < 150 * MEBIBYTE, "{} MiB", grown / MEBIBYTE);
    println!("{} KiB for each connection", grown / 1_024 / (IDLE + TRICKLING) as u64);
    drop((idle, trickling));
}
