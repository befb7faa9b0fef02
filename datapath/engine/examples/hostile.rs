//! The longest single pieces of work that endpoints and policies can make: prints one JSON object. Built with `--release`.

use std::{
    fmt::Write,
    net::{IpAddr, Ipv4Addr},
    sync::Arc,
    time::{Duration, Instant},
};

use namegate_config::{
    labels::{LabelSelector, Labels, Requirement},
    name::NamePattern,
    rule::{Direction, Effect, Origin, PeerSelector, Peers, Ports, Rule, Subject, Tier},
    settings::{self, Settings},
};
use namegate_engine::{Answer, Change, EndpointId, Engine, Topology, TopologyEndpoint};

const SECOND_NS: u64 = 1_000_000_000;
/// Units of one piece of a change.
const UNITS: usize = 512;

fn main() {
    let mut line = String::from("{");
    shared_addresses(&mut line);
    many_patterns(&mut line);
    large_policy(&mut line);
    many_names(&mut line);
    leaving(&mut line);
    let peak = peak_bytes();
    println!("{line}\"peak_bytes\": {peak}}}");
}

/// Names of one endpoint that share a thousand addresses, each asked again and again.
fn shared_addresses(line: &mut String) {
    let mut engine = engine(vec![rule("*.example")], &settings(""), 0);
    let addresses: Vec<(IpAddr, u32)> = (0..1_000).map(|at| (outside(at), 60)).collect();
    let mut longest = Duration::ZERO;
    let (spent, ()) = timed(|| {
        for at in 0..1_040_u32 {
            let names = vec![format!("n{}.example", at % 260).parse().expect("a name")];
            let answer = Answer { endpoint: own(&engine), names, addresses: addresses.clone() };
            longest = longest.max(learn(&mut engine, &answer, SECOND_NS + u64::from(at) * 34_000_000));
        }
    });
    note(line, "shared_addresses_mean_s", spent / 1_040);
    note(line, "shared_addresses_longest_s", longest);
}

/// Two thousand patterns and nine thousand names: one selector comes.
fn many_patterns(line: &mut String) {
    let mut rules: Vec<Arc<Rule>> = (0..2_000).map(|at| rule(&format!("*.s{at}.example"))).collect();
    let mut engine = engine(rules.clone(), &settings(""), 0);
    for at in 0..9_000 {
        let names = vec![format!("n{at}.s{}.example", at % 2_000).parse().expect("a name")];
        let answer = Answer { endpoint: own(&engine), names, addresses: vec![(outside(at), 600)] };
        learn(&mut engine, &answer, SECOND_NS);
    }
    rules.push(rule("*.s7.example.org"));
    let change = Change { rules: Some(rules.clone()), topology: None };
    note(line, "one_selector_s", longest_piece(&mut engine, change));
    rules.push(rule("**.example"));
    let change = Change { rules: Some(rules), topology: None };
    note(line, "selector_of_all_names_longest_piece_s", longest_piece(&mut engine, change));
}

/// A policy for all of fifty thousand identities.
fn large_policy(line: &mut String) {
    let mut engine = engine(vec![rule("*.example")], &settings(""), 50_000);
    let all =
        Rule { peers: Peers::Of(vec![PeerSelector::Labels(LabelSelector::default())]), ..Rule::clone(&rule("x")) };
    let each = (0..50_000).map(|at| labelled("app", &format!("app{at}"))).collect();
    let other = Rule { peers: Peers::Of(each), ..Rule::clone(&rule("x")) };
    let change = Change { rules: Some(vec![Arc::new(all), Arc::new(other)]), topology: None };
    note(line, "large_policy_longest_piece_s", longest_piece(&mut engine, change));
}

/// Two thousand names of a thousand addresses each.
fn many_names(line: &mut String) {
    let before = peak_bytes();
    let limits = "{addresses: 4194304, addressesPerEndpoint: 4194304}";
    let mut engine = engine(vec![rule("*.example")], &settings(&format!("limits: {limits}\n")), 0);
    let mut longest = Duration::ZERO;
    for name in 0..2_000 {
        let addresses = (0..1_000).map(|at| (outside(name * 1_000 + at), 600)).collect();
        let names = vec![format!("n{name}.example").parse().expect("a name")];
        let answer = Answer { endpoint: own(&engine), names, addresses };
        longest = longest.max(learn(&mut engine, &answer, SECOND_NS));
    }
    note(line, "many_names_longest_s", longest);
    let _ = write!(line, "\"many_names_bytes\": {}, ", peak_bytes().saturating_sub(before));
}

/// An endpoint with ten thousand names goes.
fn leaving(line: &mut String) {
    let mut engine = engine(vec![rule("*.example")], &settings(""), 0);
    for at in 0..10_000 {
        let names = vec![format!("n{at}.example").parse().expect("a name")];
        let answer = Answer { endpoint: own(&engine), names, addresses: vec![(outside(at), 600)] };
        learn(&mut engine, &answer, SECOND_NS);
    }
    let change = Change { rules: None, topology: Some(Topology::default()) };
    note(line, "leaving_longest_piece_s", longest_piece(&mut engine, change));
}

fn engine(rules: Vec<Arc<Rule>>, settings: &Settings, identities: u32) -> Engine {
    let mut engine = Engine::new(settings);
    let pod = |key: String, label: (&str, &str), address: u32, interface| {
        Arc::new(TopologyEndpoint {
            key: key.into(),
            labels: Arc::new(Labels::pod("empire", [label], [], None)),
            addresses: vec![IpAddr::V4(Ipv4Addr::from_bits(address))],
            named_ports: vec![],
            interface,
        })
    };
    let own = pod("empire/own".to_owned(), ("class", "own"), 0x0a00_0001, Some(1));
    let others =
        (0..identities).map(|at| pod(format!("empire/peer{at}"), ("app", &format!("app{at}")), 0x0a80_0000 + at, None));
    let topology = Topology { endpoints: std::iter::once(own).chain(others).collect(), ..Topology::default() };
    engine.update(Change { rules: Some(rules), topology: Some(topology) }, SECOND_NS);
    engine
}

fn own(engine: &Engine) -> EndpointId {
    engine.endpoint_by_address(IpAddr::V4(Ipv4Addr::from_bits(0x0a00_0001))).expect("the endpoint is here")
}

fn learn(engine: &mut Engine, answer: &Answer, now: u64) -> Duration {
    let mut ops = Vec::new();
    let (spent, _) = timed(|| engine.learn(answer, now, &mut ops));
    engine.take_ledger();
    spent
}

/// The longest piece of a change.
fn longest_piece(engine: &mut Engine, change: Change) -> Duration {
    let (mut longest, ()) = timed(|| engine.begin(change));
    loop {
        let (spent, step) = timed(|| engine.step(UNITS, SECOND_NS));
        longest = longest.max(spent);
        if step.is_done {
            return longest;
        }
    }
}

fn outside(at: u32) -> IpAddr {
    IpAddr::V4(Ipv4Addr::from_bits(0x2000_0000 + at))
}

fn labelled(key: &str, value: &str) -> PeerSelector {
    PeerSelector::Labels(LabelSelector::new([Requirement::equals(key, value)]))
}

fn rule(pattern: &str) -> Arc<Rule> {
    let name = NamePattern::pattern(pattern).expect("a pattern");
    Arc::new(Rule {
        origin: Arc::new(Origin { kind: "T".into(), namespace: None, name: pattern.into(), path: "x".into() }),
        subject: Subject::Endpoints(LabelSelector::new([Requirement::equals("class", "own")])),
        direction: Direction::Egress,
        tier: Tier::Normal,
        effect: Effect::Allow,
        default_deny: true,
        peers: Peers::Of(vec![PeerSelector::Name(name)]),
        ports: Ports::Any,
        l7: None,
        binding: None,
        named_only: None,
    })
}

fn settings(more: &str) -> Settings {
    settings::parse("namegate.yaml", &format!("policies: p\nendpoints: e.yaml\n{more}")).expect("these are settings")
}

fn timed<T>(work: impl FnOnce() -> T) -> (Duration, T) {
    let start = Instant::now();
    let result = work();
    (start.elapsed(), result)
}

fn note(line: &mut String, what: &str, spent: Duration) {
    let _ = write!(line, "\"{what}\": {}, ", spent.as_secs_f64());
}

/// The most memory that this process has had.
fn peak_bytes() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let kibi = line.and_then(|line| line.trim().trim_end_matches(" kB").parse::<u64>().ok());
    kibi.unwrap_or(0) * 1_024
}
