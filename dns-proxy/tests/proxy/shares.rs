//! What one endpoint uses up, another still has.

use std::{
    io::Read,
    net::{IpAddr, Ipv4Addr},
    time::{Duration, Instant},
};

use hickory_proto::op::{Message, ResponseCode};
use namegate_dns_proxy::{Config, Proxy};

use crate::{
    cases::{answer, query, truncated},
    support::{Gate, PATIENCE, Recorder, Resolver, TcpClient, UdpClient, count},
};

const A: u16 = 1;
const NAME: &str = "api.allowed.test.";
const SLOW: &str = "slow.allowed.test.";

/// Hostile endpoints have the numbers from 1 on, the honest one has 20.
const HONEST: u8 = 20;

fn address(endpoint: u8, of_eight: u8) -> IpAddr {
    Ipv4Addr::new(127, 0, 0, 8 * endpoint + of_eight).into()
}

/// Never answers names that begin with `s`.
fn resolver() -> Resolver {
    Resolver::start(|question, _| if question[13] == b's' { Vec::new() } else { vec![answer(question, 1)] })
}

fn proxy(resolver: &Resolver) -> Proxy {
    let backend = Recorder::new(Gate::Takes).knowing_many_endpoints();
    let upstream_timeout = Duration::from_mins(1);
    let fixed_resolver = Some(resolver.address);
    Proxy::start(&Config { workers: 1, upstream_timeout, fixed_resolver, ..Config::default() }, backend).unwrap()
}

fn code(reply: &[u8]) -> ResponseCode {
    Message::from_vec(reply).unwrap().metadata.response_code
}

/// Waits until a counter of the proxy stops growing, or has reached what is wanted.
fn settle(proxy: &Proxy, words: &[&str], wanted: u64) {
    let started = Instant::now();
    while words.iter().map(|word| count(proxy, word)).sum::<u64>() < wanted {
        assert!(started.elapsed() < 3 * PATIENCE, "{:?}", proxy.counters());
        std::thread::yield_now();
    }
}

#[test]
fn questions_that_nobody_answers_leave_room_for_those_of_others() {
    let resolver = resolver();
    let proxy = proxy(&resolver);
    let hostile: Vec<_> = (1..7).map(|endpoint| UdpClient::from(address(endpoint, 0), proxy.port())).collect();
    let mut sent = 0;
    for round in 0..64_u16 {
        for client in &hostile {
            (0..70).for_each(|id| client.send(&query(round * 70 + id, SLOW, A)));
            sent += 70;
        }
        // No more at a time than the socket holds.
        settle(&proxy, &["asked", "endpoint_full", "pending_full"], sent);
    }
    for of_eight in 0..3 {
        let honest = UdpClient::from(address(HONEST, of_eight), proxy.port());
        assert_eq!(code(&honest.ask(&query(1, NAME, A))), ResponseCode::NoError, "{:?}", proxy.counters());
    }
}

#[test]
fn connections_of_all_addresses_of_an_endpoint_are_one_share() {
    let resolver = resolver();
    let proxy = proxy(&resolver);
    let mut held = Vec::new();
    for endpoint in 1..3 {
        for of_eight in 0..8 {
            held.extend((0..128).map(|_| TcpClient::from(address(endpoint, of_eight), proxy.port())));
        }
    }
    let mut honest = TcpClient::from(address(HONEST, 0), proxy.port());
    honest.send(&query(1, NAME, A));
    let mut length = [0; 2];
    assert_eq!(honest.0.read(&mut length).unwrap_or(0), 2, "{:?}", proxy.counters());
    drop(held);
}

#[test]
fn questions_over_tcp_that_nobody_answers_leave_room_for_those_of_others() {
    let resolver = Resolver::start(|question, over_tcp| match (over_tcp, question[13]) {
        (false, _) => vec![truncated(question)],
        (true, b's') => Vec::new(),
        (true, _) => vec![answer(question, 1)],
    });
    let proxy = proxy(&resolver);
    let hostile = UdpClient::from(address(1, 0), proxy.port());
    for round in 0..20_u16 {
        (0..50).for_each(|id| hostile.send(&query(round * 50 + id, SLOW, A)));
        settle(&proxy, &["retried_over_tcp"], u64::from(round + 1) * 50);
    }
    let honest = UdpClient::from(address(HONEST, 0), proxy.port());
    assert_eq!(code(&honest.ask(&query(1, NAME, A))), ResponseCode::NoError, "{:?}", proxy.counters());
}
