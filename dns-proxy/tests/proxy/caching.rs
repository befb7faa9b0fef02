//! Answers that are given again, through sockets.

use std::{
    future::Future,
    net::{IpAddr, SocketAddr},
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering::SeqCst},
    },
    time::{Duration, Instant},
};

use hickory_proto::op::{Message, ResponseCode};
use namegate_dns_proxy::{Asked, Backend, Config, Forbidden, NotInstalled, Proxy};
use namegate_engine::{Answer, EndpointId};

use crate::{
    cases::{answer, cases, query, truncated, with_edns},
    support::{Gate, Recorder, Resolver, TcpClient, UdpClient, count},
};

const A: u16 = 1;
const NAME: &str = "api.allowed.test.";

/// A proxy that keeps answers of a resolver.
fn proxy(resolver: SocketAddr, backend: impl Backend, cache_answers: usize) -> Proxy {
    let config = Config { workers: 2, fixed_resolver: Some(resolver), cache_answers, ..Config::default() };
    Proxy::start(&config, backend).unwrap()
}

/// A resolver that counts what it is asked, and truncates long answers over UDP.
fn counted(addresses: u16) -> (Resolver, Arc<AtomicU64>) {
    let asked = Arc::<AtomicU64>::default();
    let counter = Arc::clone(&asked);
    let resolver = Resolver::start(move |question, is_tcp| {
        counter.fetch_add(1, SeqCst);
        vec![if is_tcp || addresses < 20 { answer(question, addresses) } else { truncated(question) }]
    });
    (resolver, asked)
}

/// An answer without its TTLs, which stand eight octets before the end of each record.
fn without_ttls(mut message: Vec<u8>, addresses: usize) -> (Vec<u8>, Vec<u32>) {
    let start = message.len() - 16 * addresses;
    let ttls = message[start..].chunks_exact_mut(16).map(|record| {
        let ttl = u32::from_be_bytes(*record[6..].first_chunk().unwrap());
        record[6..10].fill(0);
        ttl
    });
    let ttls = ttls.collect();
    (message, ttls)
}

#[test]
fn a_second_question_does_not_reach_the_resolver() {
    let (resolver, asked) = counted(2);
    let backend = Recorder::new(Gate::Takes);
    let proxy = proxy(resolver.address, backend.clone(), 100);
    let first = query(1, NAME, A);
    assert_eq!(UdpClient::new(proxy.port()).ask(&first), answer(&first, 2));
    let learned = backend.take();
    assert_eq!(learned[0].addresses.iter().map(|(_, ttl)| *ttl).collect::<Vec<_>>(), [60, 60]);
    // Over both workers, over TCP too, in the letters and with the ID of each.
    let start = Instant::now();
    for id in 2..20 {
        let question = query(id, "aPi.Allowed.TEST.", A);
        let reply = match id % 2 {
            0 => UdpClient::new(proxy.port()).ask(&question),
            _ => TcpClient::new(proxy.port()).ask(&question),
        };
        let (reply, ttls) = without_ttls(reply, 2);
        assert_eq!(reply, without_ttls(answer(&question, 2), 2).0);
        let again = backend.take();
        assert_eq!(again.len(), 1, "the gate is asked each time");
        assert_eq!((again[0].endpoint, &again[0].names), (learned[0].endpoint, &learned[0].names));
        // What the client gets and what the gate opens ends at the same time.
        assert_eq!(again[0].addresses.iter().map(|(_, ttl)| *ttl).collect::<Vec<_>>(), ttls);
        let passed = u32::try_from(start.elapsed().as_secs()).unwrap();
        assert!(ttls.iter().all(|ttl| *ttl < 60 && ttl + passed + 2 >= 60), "{ttls:?} after {passed} s");
    }
    assert_eq!((asked.load(SeqCst), count(&proxy, "asked")), (1, 1));
    assert_eq!((count(&proxy, "cache_hit"), count(&proxy, "cache_miss"), proxy.answers_kept()), (18, 1, 1));
    assert_eq!(count(&proxy, "installed"), 19);

    proxy.forget_answers();
    assert_eq!(proxy.answers_kept(), 0);
    UdpClient::new(proxy.port()).ask(&first);
    assert_eq!(asked.load(SeqCst), 2);
}

#[test]
fn without_the_setting_every_question_reaches_the_resolver() {
    let (resolver, asked) = counted(1);
    let proxy = proxy(resolver.address, Recorder::new(Gate::Takes), 0);
    let client = UdpClient::new(proxy.port());
    for id in 0..3 {
        client.ask(&query(id, NAME, A));
    }
    let counts = (count(&proxy, "cache_hit"), count(&proxy, "cache_miss"), proxy.answers_kept());
    assert_eq!((asked.load(SeqCst), counts), (3, (0, 0, 0)));
    proxy.forget_answers();
}

#[test]
fn a_kept_answer_waits_for_the_gate_as_well() {
    let (resolver, asked) = counted(1);
    let backend = Recorder::new(Gate::Takes);
    let proxy = proxy(resolver.address, backend.clone(), 100);
    let client = UdpClient::new(proxy.port());
    client.ask(&query(1, NAME, A));
    backend.take();
    backend.set(Gate::Waits);
    client.send(&query(2, NAME, A));
    backend.wait_for_answer();
    assert!(client.is_silent(), "the gate does not hold it yet");
    backend.set(Gate::Takes);
    assert_eq!(client.receive()[..2], [0, 2]);
    backend.set(Gate::Refuses);
    let refused = Message::from_vec(&client.ask(&query(3, NAME, A))).unwrap();
    assert_eq!((refused.metadata.response_code, refused.answers.len()), (ResponseCode::ServFail, 0));
    assert_eq!(asked.load(SeqCst), 1);
}

#[test]
fn each_client_gets_what_it_can_take() {
    let (resolver, asked) = counted(100);
    let backend = Recorder::new(Gate::Takes);
    let proxy = proxy(resolver.address, backend.clone(), 100);
    let (udp, mut tcp) = (UdpClient::new(proxy.port()), TcpClient::new(proxy.port()));
    let small = query(1, NAME, A);
    assert_eq!(udp.ask(&small), truncated(&small));
    assert_eq!((backend.take(), asked.load(SeqCst)), (Vec::new(), 2), "over UDP, then over TCP");
    assert_eq!(udp.ask(&small), truncated(&small));
    assert_eq!(backend.take(), [], "what the client does not see is not opened");
    assert_eq!(tcp.ask(&small).len(), answer(&small, 100).len());
    assert_eq!((backend.take()[0].addresses.len(), asked.load(SeqCst)), (100, 2));
    // With EDNS it is another question.
    let wide = with_edns(query(2, NAME, A), 4096);
    for _ in 0..2 {
        assert_eq!(udp.ask(&wide).len(), answer(&wide, 100).len());
    }
    let narrow = with_edns(query(3, NAME, A), 1232);
    let cut = Message::from_vec(&udp.ask(&narrow)).unwrap();
    assert!(cut.metadata.truncation && cut.edns.is_some() && cut.answers.is_empty(), "{cut}");
    assert_eq!(asked.load(SeqCst), 4);
}

#[test]
fn only_trusted_resolvers_are_relied_on() {
    let (resolver, asked) = counted(1);
    let proxy = proxy(resolver.address, Recorder::new(Gate::Takes).trusting_nobody(), 100);
    let client = UdpClient::new(proxy.port());
    for id in 0..3 {
        let question = query(id, NAME, A);
        assert_eq!(client.ask(&question), answer(&question, 1));
    }
    assert_eq!((asked.load(SeqCst), count(&proxy, "cache_hit"), proxy.answers_kept()), (3, 0, 0));
}

/// Whatever the octets of an answer: given again, it opens nothing that it did not open the first time, and for less long.
#[test]
fn the_cases_of_the_wire_open_no_more_when_they_are_kept() {
    let says = Arc::new(Mutex::new(Vec::new()));
    let script = Arc::clone(&says);
    let resolver = Resolver::start(move |_, _| vec![script.lock().unwrap().clone()]);
    let backend = Recorder::new(Gate::Takes);
    let config = Config {
        workers: 1,
        fixed_resolver: Some(resolver.address),
        upstream_timeout: Duration::from_millis(200),
        cache_answers: 1_000,
        ..Config::default()
    };
    let proxy = Proxy::start(&config, backend.clone()).unwrap();
    let opened = || backend.take().into_iter().flat_map(|answer| answer.addresses).collect::<Vec<_>>();
    let (client, mut hits) = (UdpClient::new(proxy.port()), 0);
    for case in cases() {
        proxy.forget_answers();
        *says.lock().unwrap() = case.response();
        let query = case.query(0x4e47);
        let reply = client.ask(&query);
        let first = opened();
        assert!(case.may_open(&first) && case.may_see(&reply, &query), "{}: {first:?}, {reply:02x?}", case.id);
        *says.lock().unwrap() = Vec::new();
        let again = client.ask(&query);
        let second = opened();
        let was_kept = count(&proxy, "cache_hit") > hits;
        hits += u64::from(was_kept);
        if was_kept {
            assert_eq!((again.len(), again[3] & 0xf), (reply.len(), reply[3] & 0xf), "{}: {again:02x?}", case.id);
            let shorter = |(one, two): (&(IpAddr, u32), &(IpAddr, u32))| one.0 == two.0 && one.1 > two.1;
            let fits = first.len() == second.len() && first.iter().zip(&second).all(shorter);
            assert!(fits, "{}: {first:?}, then {second:?}", case.id);
        } else {
            assert!(second.is_empty() && again[3] & 0xf == 2, "{}: {second:?}, {again:02x?}", case.id);
        }
    }
    assert!(hits > 10, "{hits} answers were kept");
}

/// Forbids every name to clients over TCP.
#[derive(Clone)]
struct UdpOnly(Recorder);

impl Backend for UdpOnly {
    fn endpoint(&self, address: IpAddr) -> Option<EndpointId> {
        self.0.endpoint(address)
    }

    fn is_trusted(&self, resolver: IpAddr) -> bool {
        self.0.is_trusted(resolver)
    }

    fn limits(&self, _: IpAddr) -> bool {
        true
    }

    fn forbids(&self, _: IpAddr, _: SocketAddr, over_tcp: bool, _: Asked<'_>) -> Option<Forbidden> {
        over_tcp.then(|| Forbidden { reason: "not over TCP".to_owned(), is_name_allowed: false })
    }

    fn install(&self, answers: Vec<Answer>) -> impl Future<Output = Vec<Result<(), NotInstalled>>> + Send {
        self.0.install(answers)
    }
}

#[test]
fn rules_come_before_the_cache() {
    let (resolver, asked) = counted(1);
    let proxy = proxy(resolver.address, UdpOnly(Recorder::new(Gate::Takes)), 100);
    let question = query(1, NAME, A);
    let (udp, mut tcp) = (UdpClient::new(proxy.port()), TcpClient::new(proxy.port()));
    udp.ask(&question);
    let refused = Message::from_vec(&tcp.ask(&question)).unwrap();
    assert_eq!(refused.metadata.response_code, ResponseCode::Refused);
    assert_eq!(Message::from_vec(&udp.ask(&question)).unwrap().answers.len(), 1);
    assert_eq!((asked.load(SeqCst), count(&proxy, "forbidden"), count(&proxy, "cache_hit")), (1, 1, 1));
}

#[test]
fn failures_are_not_kept_and_old_answers_make_room() {
    let fails = Arc::<AtomicU64>::default();
    let left = Arc::clone(&fails);
    let resolver = Resolver::start(move |question, _| {
        let mut message = answer(question, 1);
        if left.fetch_add(1, SeqCst) == 0 {
            message = answer(question, 0);
            message[3] |= 2;
        }
        vec![message]
    });
    let proxy = proxy(resolver.address, Recorder::new(Gate::Takes), 2);
    let client = UdpClient::new(proxy.port());
    let code = |id, name: &str| Message::from_vec(&client.ask(&query(id, name, A))).unwrap().metadata.response_code;
    assert_eq!((code(1, NAME), proxy.answers_kept()), (ResponseCode::ServFail, 0));
    assert_eq!((code(2, NAME), proxy.answers_kept()), (ResponseCode::NoError, 1));
    for name in ["b.test.", "c.test.", "d.test."] {
        assert_eq!(code(3, name), ResponseCode::NoError);
    }
    assert_eq!((proxy.answers_kept(), count(&proxy, "cache_evicted")), (2, 2));
}
