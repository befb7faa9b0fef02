//! Answers of every shape: large, cut short, by alias, over IPv6; and those of a resolver that lies or breaks.
#![expect(clippy::unwrap_used, reason = "a test ends at the first surprise")]

#[expect(dead_code, reason = "each program of this folder uses its own part")]
mod common;

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use common::{ALLOWED_TEST, DNS, TIE, WITHIN, cached_names, echo, egress, ip, opens, world};
use namegate_testbed::dns::{DnsFailure, Lookup, Question, Reply, Transport, ask};
use namegate_testbed::proto::op::{Message, ResponseCode};
use namegate_testbed::proto::rr::{RData, RecordType};
use namegate_testbed::{Agent, Client, ECHO_PORT, Options, Pod, Spec, World, client};
use serde::Deserialize;
use serde_json::{Value, json};

fn options() -> Options {
    Options::default().policies(&egress(ALLOWED_TEST))
}

/// Looks a name up with a client that was changed first.
fn lookup_as(pod: &Pod, change: impl FnOnce(&mut Client), name: &'static str, wanted: RecordType) -> Lookup {
    let mut client = pod.client();
    change(&mut client);
    pod.run(client, move |client| async move { client.lookup_type(name, wanted).await }).unwrap()
}

/// Connects to every address at the same time; those that did not come about.
fn closed(pod: &Pod, addresses: &[IpAddr]) -> Vec<IpAddr> {
    let connect = |address: IpAddr| async move {
        (address, client::connect(SocketAddr::new(address, ECHO_PORT), WITHIN).await.is_ok())
    };
    let tasks: Vec<_> = addresses.iter().map(|address| pod.netns.spawn(connect(*address))).collect();
    let ends = tasks.into_iter().map(namegate_testbed::Task::wait);
    ends.filter(|(_, open)| !open).map(|(address, _)| address).collect()
}

/// Addresses from this one on.
fn addresses(first: [u8; 4], count: u32) -> Vec<IpAddr> {
    (0..count).map(|at| IpAddr::V4(Ipv4Addr::from(u32::from_be_bytes(first) + at))).collect()
}

#[test]
fn six_hundred_addresses_over_tcp_open_all() {
    let world = world(&[TIE]);
    let many = addresses([198, 19, 0, 1], 600);
    let answer = many.clone();
    world.zone().script(move |query| {
        (query.name == "many.allowed.test").then(|| Reply::addresses(query, 60, answer.iter().copied()))
    });
    let agent = Agent::start(&world, &options()).unwrap();
    let tiefighter = world.pod(TIE);
    let lookup = tiefighter.lookup("many.allowed.test", RecordType::A).unwrap();
    assert_eq!((lookup.addresses.len(), lookup.transport), (600, Transport::Tcp));
    assert_eq!(closed(tiefighter, &many), Vec::<IpAddr>::new());
    assert_eq!(open_by_cache(&agent).len(), 600);
}

#[test]
fn an_answer_cut_short_is_fetched_whole_before_anything_opens() {
    let world = world(&[TIE]);
    let (address, others) = (ip("198.51.100.60"), (0..100).map(|at| IpAddr::from([198, 51, 101, at])));
    let others: Vec<IpAddr> = others.collect();
    world.zone().script(move |query| {
        let whole: Vec<IpAddr> = match query.name.as_str() {
            "short.allowed.test" => vec![address],
            "long.allowed.test" => others.clone(),
            _ => return None,
        };
        Some(match query.transport {
            Transport::Udp => Reply::truncated(query),
            Transport::Tcp => Reply::addresses(query, 60, whole),
        })
    });
    let agent = Agent::start(&world, &options()).unwrap();
    let tiefighter = world.pod(TIE);
    let asked = |name: &'static str| {
        let client = tiefighter.client();
        let question = Question::new(client.resolver, name, RecordType::A);
        let answer = tiefighter.run(client, |_| async move { ask(&question).await }).unwrap();
        Message::from_vec(&answer.octets).unwrap()
    };
    let short = asked("short.allowed.test");
    assert_eq!((short.metadata.truncation, short.answers.len()), (false, 1), "it fits a datagram once it is whole");
    assert!(opens(tiefighter, SocketAddr::new(address, ECHO_PORT)));
    let long = asked("long.allowed.test");
    assert!(long.metadata.truncation, "what does not fit is to be asked for over TCP");
    let whole = tiefighter.lookup("long.allowed.test", RecordType::A).unwrap();
    assert_eq!((whole.transport, whole.addresses.len()), (Transport::Tcp, 100));
    assert!(opens(tiefighter, SocketAddr::new(ip("198.51.101.99"), ECHO_PORT)));
    assert_eq!(cached_names(&agent, "").len(), 2);
}

#[test]
fn a_chain_of_eight_aliases_opens_its_end_and_no_further() {
    let world = world(&[TIE]);
    world.zone().set_alias("www.allowed.test", 60, "c0.chain.test");
    for link in 0..7 {
        world.zone().set_alias(&format!("c{link}.chain.test"), 60, &format!("c{}.chain.test", link + 1));
    }
    world.zone().set_addresses("c7.chain.test", 30, &[ip("198.51.100.61")]);
    world.zone().set_addresses("c8.chain.test", 30, &[ip("198.51.100.62")]);
    let _agent = Agent::start(&world, &options()).unwrap();
    let tiefighter = world.pod(TIE);
    let chain = tiefighter.lookup("www.allowed.test", RecordType::A).unwrap();
    assert_eq!((chain.message.answers.len(), chain.ttl), (9, 30));
    assert!(opens(tiefighter, echo("198.51.100.61")));
    tiefighter.lookup("c8.chain.test", RecordType::A).unwrap();
    assert!(!opens(tiefighter, echo("198.51.100.62")), "not an allowed name, and no alias leads there");
}

#[test]
fn the_end_of_a_chain_may_be_the_allowed_name() {
    let world = world(&[TIE]);
    let _agent =
        Agent::start(&world, &Options::default().policies(&egress("  - toFQDNs: [{matchName: cilium.io}]\n"))).unwrap();
    let visit = world.pod(TIE).http_get("https://www.cilium.io/");
    assert_eq!(visit.status(), Some(200), "{:?}", visit.outcome);
}

#[test]
fn names_and_resolvers_of_ipv6_are_heard() {
    let world = world(&[TIE]);
    let (far, too) = ("2001:db8::61", "2001:db8::62");
    world.zone().set_addresses("six.allowed.test", 60, &[ip(far)]);
    world.zone().set_addresses("too.allowed.test", 60, &[ip(too)]);
    let _agent = Agent::start(&world, &options()).unwrap();
    let tiefighter = world.pod(TIE);
    assert!(!opens(tiefighter, echo(far)) && !opens(tiefighter, echo(too)));
    let visit = tiefighter.http_get("http://six.allowed.test/");
    assert_eq!((visit.status(), visit.address), (Some(200), Some(ip(far))));

    let resolver = SocketAddr::new(world.pod(DNS).ipv6(), 53);
    lookup_as(tiefighter, |client| client.resolver = resolver, "too.allowed.test", RecordType::AAAA);
    assert!(opens(tiefighter, echo(too)), "asked over IPv6");
}

#[test]
fn a_long_answer_by_edns_opens_all() {
    let world = world(&[TIE]);
    let many = addresses([198, 51, 100, 100], 60);
    world.zone().set_addresses("long.allowed.test", 60, &many);
    let _agent = Agent::start(&world, &options()).unwrap();
    let tiefighter = world.pod(TIE);
    let lookup = lookup_as(tiefighter, |client| client.edns = Some(1_232), "long.allowed.test", RecordType::A);
    assert_eq!((lookup.addresses.len(), lookup.transport), (60, Transport::Udp));
    assert!(lookup.message.edns.is_some(), "EDNS comes through");
    assert_eq!(closed(tiefighter, &many), Vec::<IpAddr>::new());
}

#[test]
fn refusals_of_the_resolver_come_through() {
    let world = world(&[TIE]);
    let agent = Agent::start(&world, &options()).unwrap();
    let tiefighter = world.pod(TIE);
    let unknown = tiefighter.lookup("nowhere.allowed.test", RecordType::A).map(|_| ());
    assert_eq!(unknown, Err(DnsFailure::Code(ResponseCode::NXDomain)));
    let empty = tiefighter.lookup("cilium.io", RecordType::AAAA).map(|_| ());
    assert_eq!(empty, Err(DnsFailure::Empty));
    assert!(cached_names(&agent, "").is_empty());
}

/// One case of `conformance/dns-wire.json`.
#[derive(Clone, Deserialize)]
struct Case {
    id: String,
    question: Asked,
    response_hex: String,
    expect: Expect,
}

#[derive(Clone, Deserialize)]
struct Asked {
    name: String,
    #[serde(rename = "type")]
    record_type: String,
}

#[derive(Clone, Deserialize)]
struct Expect {
    inject: Value,
    reply: String,
}

/// Smallest and largest TTL under the default settings, seconds.
const MIN_TTL_S: u64 = 1;
const MAX_TTL_S: u64 = 86_400;
/// How long the agent waits for a resolver that says nothing of use.
const UPSTREAM_MS: u64 = 300;
/// How long another question may take meanwhile.
const UNDISTURBED: Duration = Duration::from_millis(250);
/// The address that most cases try to open.
const TARGET: &str = "198.51.100.7";

impl Case {
    fn all() -> Vec<Self> {
        let mut file: Value = serde_json::from_str(include_str!("../../../conformance/dns-wire.json")).unwrap();
        let cases: Vec<Self> = serde_json::from_value(file["cases"].take()).unwrap();
        assert_eq!(cases.len(), 54);
        cases
    }

    fn octets(&self) -> Vec<u8> {
        let digits = self.response_hex.as_bytes().chunks(2);
        digits.map(|pair| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap()).collect()
    }

    /// Sets of addresses with TTLs that may be open after the answer; one of them must be.
    fn wanted(&self) -> Vec<BTreeSet<(IpAddr, u64)>> {
        let nothing = BTreeSet::new();
        match &self.expect.inject {
            Value::Array(pairs) => {
                let exactly: BTreeSet<_> = pairs.iter().map(pair).collect();
                let may_be_taken_out = self.expect.reply.contains("nothing injected");
                if may_be_taken_out { vec![exactly, nothing] } else { vec![exactly] }
            }
            // "any-of: [] or …": what the answer says where it can be read at all.
            _ => vec![nothing, self.readable()],
        }
    }

    /// Addresses of the answer section, if the message is whole.
    fn readable(&self) -> BTreeSet<(IpAddr, u64)> {
        let octets = self.octets();
        let message = Message::from_vec(&octets).or_else(|_| Message::from_vec(&octets[..octets.len() - 4]));
        let Ok(message) = message else { return BTreeSet::new() };
        let records = message.answers.iter().filter_map(|record| match &record.data {
            RData::A(address) => Some((address.0.into(), u64::from(record.ttl).clamp(MIN_TTL_S, MAX_TTL_S))),
            _ => None,
        });
        records.collect()
    }
}

/// `[address, TTL]` of the file.
fn pair(pair: &Value) -> (IpAddr, u64) {
    let ttl = match &pair[1] {
        Value::String(word) if word == "min-ttl" => MIN_TTL_S,
        Value::String(word) if word == "max-ttl" => MAX_TTL_S,
        number => number.as_u64().unwrap(),
    };
    (ip(pair[0].as_str().unwrap()), ttl)
}

/// Addresses with TTLs that the agent says are open.
fn open_by_cache(agent: &Agent<'_>) -> BTreeSet<(IpAddr, u64)> {
    let entries = agent.json("/v1/fqdn/cache").unwrap();
    let pairs = entries.as_array().unwrap().iter().flat_map(|entry| {
        let ttl = entry["ttl"].as_u64().unwrap();
        entry["ips"].as_array().unwrap().iter().map(move |address| (ip(address.as_str().unwrap()), ttl))
    });
    pairs.collect()
}

/// Plays one case. Another question asked at the same time must not feel it.
fn play(world: &World, agent: &Agent<'_>, case: &Case, transport: Transport) {
    let label = format!("{} over {transport:?}", case.id);
    let tiefighter = world.pod(TIE);
    let mut client = tiefighter.client();
    client.dns_within = Duration::from_millis(UPSTREAM_MS + 150);
    let mut question = Question::new(client.resolver, &case.question.name, case.question.record_type.parse().unwrap());
    (question.transport, question.within) = (transport, client.dns_within);
    let asked = tiefighter.netns.spawn(async move { ask(&question).await });
    let started = Instant::now();
    let beside = tiefighter.lookup("nowhere.test", RecordType::A).map(|_| ());
    assert_eq!(beside, Err(DnsFailure::Code(ResponseCode::NXDomain)), "{label}: another question");
    assert!(started.elapsed() < UNDISTURBED, "{label}: another question took {:?}", started.elapsed());
    let reply = asked.wait();
    if case.expect.reply == "forward" {
        reply.unwrap_or_else(|failure| panic!("{label}: no answer comes through: {failure}"));
    }

    let open = open_by_cache(agent);
    let wanted = case.wanted();
    assert!(wanted.contains(&open), "{label}: {open:?} is open, wanted is one of {wanted:?}");
    let addresses: Vec<_> = open.iter().map(|(address, _)| *address).collect();
    assert_eq!(closed(tiefighter, &addresses), Vec::<IpAddr>::new(), "{label}: listed as open");
    if !addresses.contains(&ip(TARGET)) {
        assert!(!opens(tiefighter, echo(TARGET)), "{label}: open and not listed");
    }
    assert_eq!(agent.delete("/v1/fqdn/cache").unwrap().status, 200);
}

/// Over TCP an answer that is cut short has no meaning.
fn fits_tcp(case: &Case) -> bool {
    case.id != "tc-set-with-data"
}

#[test]
fn an_answer_opens_exactly_what_it_should_whatever_its_octets() {
    let mut spec = Spec::empire().unwrap().only(&[TIE, DNS]);
    spec.service_cidrs.clear(); // One case opens an address that would lie there.
    let world = World::build(spec).unwrap();
    let octets: Arc<Mutex<Vec<u8>>> = Arc::default();
    let sent = octets.clone();
    world.zone().script(move |query| {
        let of_a_case = query.name.ends_with("allowed.test") || query.name.ends_with("attacker.test");
        of_a_case.then(|| Reply::octets(sent.lock().unwrap().clone()))
    });
    let agent = Agent::start(&world, &options().with(json!({"dns": {"upstreamTimeoutMs": UPSTREAM_MS}}))).unwrap();
    for case in Case::all() {
        *octets.lock().unwrap() = case.octets();
        play(&world, &agent, &case, Transport::Udp);
        if fits_tcp(&case) {
            play(&world, &agent, &case, Transport::Tcp);
        }
    }
    assert_eq!(agent.get("/v1/healthz").unwrap().status, 200);
}

#[test]
fn by_setting_private_addresses_open_nothing() {
    let world = world(&[TIE]);
    let private = ["10.9.9.9", "172.16.3.4", "192.168.77.1", "100.64.0.1", "fd00:9::1"].map(ip);
    world.zone().set_addresses("inside.allowed.test", 60, &private);
    world.zone().set_addresses("mixed.allowed.test", 60, &[private[0], ip(TARGET)]);
    let agent = Agent::start(&world, &options().with(json!({"dns": {"privateAnswers": "deny"}}))).unwrap();
    let tiefighter = world.pod(TIE);
    for record_type in [RecordType::A, RecordType::AAAA] {
        let _ = tiefighter.lookup("inside.allowed.test", record_type); // Refused or forwarded: both are fine.
    }
    assert_eq!(open_by_cache(&agent), BTreeSet::new());
    let _ = tiefighter.lookup("mixed.allowed.test", RecordType::A);
    assert_eq!(open_by_cache(&agent), BTreeSet::from([(ip(TARGET), 60)]));
    assert!(opens(tiefighter, echo(TARGET)) && !opens(tiefighter, SocketAddr::new(private[0], ECHO_PORT)));
}

#[test]
fn only_a_trusted_resolver_is_heard() {
    let world = world(&[TIE]);
    world.zone().set_addresses("far.allowed.test", 60, &[ip(TARGET)]);
    let to_anybody = format!("{ALLOWED_TEST}  - toPorts: [{{ports: [{{port: '53'}}]}}]\n");
    let agent = Agent::start(&world, &Options::default().policies(&egress(&to_anybody))).unwrap();
    let tiefighter = world.pod(TIE);
    let stranger = SocketAddr::new(ip("1.1.1.1"), 53);
    let lookup = lookup_as(tiefighter, |client| client.resolver = stranger, "far.allowed.test", RecordType::A);
    assert_eq!(lookup.addresses, [ip(TARGET)], "the question itself is allowed");
    assert!(cached_names(&agent, "").is_empty(), "and its answer opens nothing");
    assert!(!opens(tiefighter, echo(TARGET)));
    tiefighter.lookup("far.allowed.test", RecordType::A).unwrap();
    assert!(opens(tiefighter, echo(TARGET)));
}
