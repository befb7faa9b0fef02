//! Order, time, size and load.

use std::{
    io::Read,
    net::{Ipv6Addr, SocketAddr, UdpSocket},
    time::{Duration, Instant},
};

use hickory_proto::{
    op::{Message, ResponseCode},
    rr::rdata::opt::{EdnsCode, EdnsOption},
};
use namegate_dns_proxy::{Config, Proxy};
use namegate_engine::Answer;

use crate::{
    cases::{answer, query, truncated, with_edns},
    support::{ENDPOINT, Gate, LOOPBACK, PATIENCE, Recorder, Resolver, TcpClient, UdpClient, count, proxy},
};

const A: u16 = 1;
const NAME: &str = "api.allowed.test.";
/// Short, for what is to run out.
const SHORT: Duration = Duration::from_millis(100);

fn one_address() -> Resolver {
    Resolver::start(|question, _| vec![answer(question, 1)])
}

/// Response code and extended error (RFC 8914) of an error that the proxy made; none where there is no OPT.
fn error(reply: &[u8]) -> (ResponseCode, Option<u16>) {
    let message = Message::from_vec(reply).unwrap();
    assert!(message.answers.is_empty(), "{message:?}");
    assert_eq!(message.queries.len(), 1);
    let code = message.edns.as_ref().and_then(|edns| match edns.option(EdnsCode::Unknown(15)) {
        Some(EdnsOption::Unknown(15, octets)) => Some(u16::from_be_bytes([octets[0], octets[1]])),
        _ => None,
    });
    (message.metadata.response_code, code)
}

#[test]
fn the_client_hears_nothing_before_the_gate_holds_the_address() {
    let (resolver, backend) = (one_address(), Recorder::new(Gate::Waits));
    let proxy = proxy(resolver.address, backend.clone(), PATIENCE);
    let client = UdpClient::new(proxy.port());
    client.send(&query(1, "API.allowed.test.", A));
    backend.wait_for_answer();
    // Questions that need no gate are served meanwhile.
    assert_eq!(error(&UdpClient::new(proxy.port()).ask(&query(2, NAME, 252))).0, ResponseCode::NotImp);
    assert!(client.is_silent());
    let addresses = vec![("198.18.0.0".parse().unwrap(), 60)];
    let want = Answer { endpoint: ENDPOINT, names: vec![NAME.parse().unwrap()], addresses };
    assert_eq!(backend.take(), [want]);
    backend.set(Gate::Takes);
    assert_eq!(client.receive(), answer(&query(1, "API.allowed.test.", A), 1));
    assert_eq!(count(&proxy, "installed"), 1);
}

#[test]
fn without_the_gate_there_is_servfail() {
    for (gate, word) in [(Gate::Refuses, "install_failed"), (Gate::Waits, "install_timeout")] {
        let resolver = one_address();
        let proxy = proxy(resolver.address, Recorder::new(gate), SHORT);
        let client = UdpClient::new(proxy.port());
        let plain = query(1, NAME, A);
        assert_eq!(error(&client.ask(&plain)), (ResponseCode::ServFail, None), "{word}");
        assert_eq!(error(&client.ask(&with_edns(plain.clone(), 1232))), (ResponseCode::ServFail, Some(0)), "{word}");
        assert_eq!(error(&TcpClient::new(proxy.port()).ask(&plain)), (ResponseCode::ServFail, None), "{word}");
        assert_eq!(count(&proxy, word), 3);
    }
}

#[test]
fn the_gate_has_its_own_deadline() {
    let resolver = one_address();
    let config = Config {
        install_timeout: SHORT,
        upstream_timeout: PATIENCE,
        fixed_resolver: Some(resolver.address),
        ..Config::default()
    };
    let proxy = Proxy::start(&config, Recorder::new(Gate::Waits)).unwrap();
    let start = Instant::now();
    assert_eq!(error(&UdpClient::new(proxy.port()).ask(&query(1, NAME, A))).0, ResponseCode::ServFail);
    assert!(start.elapsed() >= SHORT && start.elapsed() < PATIENCE / 2, "{:?}", start.elapsed());
}

#[test]
fn a_silent_resolver_ends_in_servfail_and_holds_nobody() {
    let resolver = Resolver::start(|question, _| match question[13] {
        b's' => Vec::new(),
        _ => vec![answer(question, 1)],
    });
    let proxy = proxy(resolver.address, Recorder::new(Gate::Takes), Duration::from_millis(500));
    let start = Instant::now();
    let slow = UdpClient::new(proxy.port());
    for id in 0..100 {
        slow.send(&with_edns(query(id, "slow.allowed.test.", A), 1232));
    }
    let quick = UdpClient::new(proxy.port());
    for id in 0..100 {
        let question = query(id, NAME, A);
        assert_eq!(quick.ask(&question), answer(&question, 1));
    }
    assert!(slow.is_silent(), "{:?}", start.elapsed());
    for _ in 0..100 {
        assert_eq!(error(&slow.receive()), (ResponseCode::ServFail, Some(22)));
    }
    assert!(start.elapsed() >= Duration::from_millis(500));
    assert_eq!(count(&proxy, "upstream_timeout"), 100);
}

#[test]
fn a_closed_port_is_told_at_once() {
    // Bound and let go: nobody listens there now.
    let nobody = UdpSocket::bind((LOOPBACK, 0)).unwrap().local_addr().unwrap();
    let proxy = proxy(nobody, Recorder::new(Gate::Takes), PATIENCE);
    let client = UdpClient::new(proxy.port());
    let start = Instant::now();
    assert_eq!(error(&client.ask(&with_edns(query(1, NAME, A), 1232))), (ResponseCode::ServFail, Some(23)));
    assert!(start.elapsed() < PATIENCE / 2);
    assert_eq!(count(&proxy, "upstream_unreachable"), 1);
}

#[test]
fn a_truncated_answer_is_asked_again_over_tcp() {
    let resolver = Resolver::start(|question, is_tcp| {
        let addresses = if question[13] == b'm' { 600 } else { 20 };
        vec![if is_tcp { answer(question, addresses) } else { truncated(question) }]
    });
    let backend = Recorder::new(Gate::Takes);
    let proxy = proxy(resolver.address, backend.clone(), PATIENCE);
    let (udp, mut tcp) = (UdpClient::new(proxy.port()), TcpClient::new(proxy.port()));
    // 20 addresses: 354 octets fit anybody. 600: 9,635 octets fit whoever says so, and TCP.
    let few = query(1, "few.allowed.test.", A);
    assert_eq!(udp.ask(&few), answer(&few, 20));
    assert_eq!(backend.take()[0].addresses.len(), 20);
    let many = query(2, "many.allowed.test.", A);
    assert_eq!(udp.ask(&many), truncated(&many));
    assert_eq!(backend.take(), []);
    let wide = with_edns(query(3, "many.allowed.test.", A), 16_384);
    assert_eq!(udp.ask(&wide), answer(&wide, 600));
    assert_eq!(tcp.ask(&many), answer(&many, 600));
    let opened = backend.take();
    assert_eq!(opened.iter().map(|answer| answer.addresses.len()).collect::<Vec<_>>(), [600, 600]);
    assert_eq!((count(&proxy, "retried_over_tcp"), count(&proxy, "truncated")), (4, 1));
}

#[test]
fn questions_of_one_connection_overtake_each_other() {
    let resolver = Resolver::start(|question, _| match question[13] {
        b's' => Vec::new(),
        _ => vec![answer(question, 3)],
    });
    let proxy = proxy(resolver.address, Recorder::new(Gate::Takes), Duration::from_millis(300));
    let mut client = TcpClient::new(proxy.port());
    client.send(&query(9, "slow.allowed.test.", A));
    for id in 10..60 {
        client.send(&query(id, NAME, A));
    }
    let mut ids: Vec<u16> = (0..51).map(|_| u16::from_be_bytes(*client.receive().first_chunk().unwrap())).collect();
    assert_eq!(ids.pop(), Some(9));
    ids.sort_unstable();
    assert!(ids.into_iter().eq(10..60));
}

#[test]
fn strangers_are_refused_and_strange_resolvers_open_nothing() {
    let resolver = one_address();
    let question = with_edns(query(1, NAME, A), 1232);
    let backend = Recorder::new(Gate::Takes).knowing_no_endpoint();
    let unknown = proxy(resolver.address, backend.clone(), PATIENCE);
    assert_eq!(error(&UdpClient::new(unknown.port()).ask(&question)), (ResponseCode::Refused, Some(18)));
    assert_eq!((backend.take(), count(&unknown, "unknown_endpoint")), (Vec::new(), 1));

    let backend = Recorder::new(Gate::Takes).trusting_nobody();
    let strange = proxy(resolver.address, backend.clone(), PATIENCE);
    assert_eq!(UdpClient::new(strange.port()).ask(&question), answer(&question, 1));
    assert_eq!((backend.take(), count(&strange, "untrusted_resolver")), (Vec::new(), 1));
}

#[test]
fn forged_answers_change_nothing() {
    // A wrong question, a wrong opcode, a query: then the right answer.
    let resolver = Resolver::start(|question, _| {
        let other = answer(&query(0, "evil.allowed.test.", A), 1);
        let mut update = answer(question, 1);
        update[2] |= 0x28;
        vec![other, update, question.to_vec(), Vec::new(), vec![0; 5], answer(question, 2)]
    });
    let backend = Recorder::new(Gate::Takes);
    let proxy = proxy(resolver.address, backend.clone(), PATIENCE);
    let question = query(1, NAME, A);
    assert_eq!(UdpClient::new(proxy.port()).ask(&question), answer(&question, 2));
    assert_eq!(backend.take().len(), 1);
    assert_eq!(count(&proxy, "mismatch"), 5);
}

#[test]
fn garbage_does_not_stop_the_service() {
    let proxy = proxy(one_address().address, Recorder::new(Gate::Takes), PATIENCE);
    let storm = UdpClient::new(proxy.port());
    let mut seed = 0x2545_f491_4f6c_dd1d_u64;
    let mut garbage = vec![0; 600];
    let client = UdpClient::new(proxy.port());
    for round in 0..3000_u16 {
        for octet in &mut garbage {
            seed ^= seed << 13;
            seed ^= seed >> 7;
            seed ^= seed << 17;
            *octet = seed.to_be_bytes()[0];
        }
        let length = usize::from(round) % garbage.len();
        storm.send(&garbage[..length]);
        if round % 100 == 0 {
            TcpClient::new(proxy.port()).send(&garbage[..length]);
            let question = query(round, NAME, A);
            assert_eq!(client.ask(&question), answer(&question, 1));
        }
    }
    for (damaged, want) in [
        (query(1, NAME, A)[..20].to_vec(), ResponseCode::FormErr),
        ([&query(1, NAME, A)[..4], &[0; 8]].concat(), ResponseCode::FormErr),
        ([&[0, 1, 0x28, 0], &query(1, NAME, A)[4..]].concat(), ResponseCode::NotImp),
    ] {
        let reply = Message::from_vec(&client.ask(&damaged)).unwrap();
        assert_eq!(reply.metadata.response_code, want, "{damaged:?}");
    }
}

#[test]
fn many_questions_become_few_batches() {
    let backend = Recorder::new(Gate::Waits);
    let proxy = proxy(one_address().address, backend.clone(), PATIENCE);
    let clients: Vec<_> = (0..8).map(|_| UdpClient::new(proxy.port())).collect();
    // No more at a time than the resolver's socket can hold.
    for id in 0..16 {
        for client in &clients {
            client.send(&query(id, NAME, A));
        }
    }
    backend.wait_for_answer();
    backend.set(Gate::Takes);
    for client in &clients {
        let mut replies: Vec<_> = (0..16).map(|_| client.receive()).collect();
        replies.sort_unstable();
        assert!(replies.into_iter().eq((0..16).map(|id| answer(&query(id, NAME, A), 1))));
    }
    assert_eq!(backend.take().len(), 128);
    assert!(backend.batches() < 128, "{} batches", backend.batches());
}

#[test]
fn one_endpoint_does_not_fill_the_table() {
    let resolver = Resolver::start(|question, _| match question[13] {
        b's' => Vec::new(),
        _ => vec![answer(question, 1)],
    });
    let proxy = proxy(resolver.address, Recorder::new(Gate::Takes), PATIENCE);
    let client = UdpClient::new(proxy.port());
    let question = |id| with_edns(query(id, "slow.allowed.test.", A), 1232);
    // One client's questions go to one worker, which takes 4,096 of an endpoint.
    (0..4096).for_each(|id| client.send(&question(id)));
    assert!(client.is_silent());
    assert_eq!(error(&client.ask(&question(5000))), (ResponseCode::ServFail, Some(0)));
    assert_eq!((count(&proxy, "asked"), count(&proxy, "endpoint_full")), (4096, 1));
}

#[test]
fn one_client_does_not_take_all_connections() {
    let config = Config { workers: 1, fixed_resolver: Some(one_address().address), ..Config::default() };
    let proxy = Proxy::start(&config, Recorder::new(Gate::Takes)).unwrap();
    let question = query(1, NAME, A);
    let mut clients: Vec<_> = (0..128).map(|_| TcpClient::new(proxy.port())).collect();
    assert_eq!(clients[127].ask(&question), answer(&question, 1));
    let mut one_more = TcpClient::new(proxy.port());
    assert_eq!(one_more.0.read(&mut [0; 2]).unwrap_or(0), 0);
    assert_eq!(count(&proxy, "connections_full"), 1);
    assert_eq!(clients[0].ask(&question), answer(&question, 1));
}

#[test]
fn ipv6_is_served_as_well() {
    let proxy = proxy(one_address().address, Recorder::new(Gate::Takes), PATIENCE);
    let Ok(client) = UdpSocket::bind((Ipv6Addr::LOCALHOST, 0)) else { return };
    client.set_read_timeout(Some(PATIENCE)).unwrap();
    let question = query(1, NAME, A);
    client.send_to(&question, (Ipv6Addr::LOCALHOST, proxy.port())).unwrap();
    let mut reply = [0; 512];
    let length = client.recv(&mut reply).unwrap();
    assert_eq!(reply[..length], answer(&question, 1));
}

#[test]
fn a_stopped_proxy_frees_its_port() {
    let proxy = proxy(one_address().address, Recorder::new(Gate::Waits), PATIENCE);
    let address = SocketAddr::new(LOOPBACK, proxy.port());
    UdpClient::new(proxy.port()).send(&query(1, NAME, A));
    proxy.stop();
    UdpSocket::bind(address).unwrap();
}
