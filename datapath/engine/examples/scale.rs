//! How long compiling takes and how many rows come out: policies x endpoints x identities, then one policy changed, then
//! answers learned. Run with `--release`.

use std::{
    net::{IpAddr, Ipv4Addr},
    sync::Arc,
    time::{Duration, Instant},
};

use namegate_config::{
    labels::{LabelSelector, Labels, Requirement},
    name::{Fqdn, NamePattern},
    rule::{
        Direction, Effect, Origin, PeerSelector, Peers, PortMatch, Ports, RangeInclusive16, Rule, Subject, Tier,
        Transport,
    },
    settings,
};
use namegate_engine::{Answer, Change, Engine, Topology, TopologyEndpoint};

const POLICIES: usize = 1_000;
const ENDPOINTS: usize = 1_000;
const SECOND_NS: u64 = 1_000_000_000;

fn main() {
    let settings = settings::parse("namegate.yaml", "policies: p\nendpoints: e.yaml\n").expect("two keys are enough");
    println!(
        "{POLICIES} policies, {ENDPOINTS} endpoints; each policy selects one endpoint in {POLICIES} and names 10 peers, a name and a port"
    );
    println!(
        "{:>10} {:>12} {:>10} {:>10} {:>14} {:>12} {:>10}",
        "peers", "compile", "identities", "rows", "one policy", "its writes", "learn"
    );
    for peers in [10, 100, 1_000, 10_000] {
        let mut engine = Engine::new(&settings);
        let mut rules: Vec<Rule> = (0..POLICIES).flat_map(|at| policy(at, peers, 443)).collect();
        let topology = topology(peers);
        let change = Change { rules: Some(rules.clone()), topology: Some(topology) };
        let (compile, first) = timed(|| engine.update(change, SECOND_NS));
        let rows = engine.rows().len();
        assert_eq!(first.len(), rows, "the first update writes each row once");
        let identities = engine.identity_count();
        rules.splice(0..2, policy(0, peers, 8443));
        let (update, writes) = timed(|| engine.update(Change { rules: Some(rules), topology: None }, SECOND_NS));
        let learn = learn(&mut engine);
        println!(
            "{peers:>10} {:>12} {identities:>10} {rows:>10} {:>14} {:>12} {:>10}",
            format!("{compile:.1?}"),
            format!("{update:.1?}"),
            writes.len(),
            format!("{learn:.1?}")
        );
        for (what, count) in engine.refused() {
            println!("  refused: {what} {count}");
        }
    }
}

fn timed<T>(work: impl FnOnce() -> T) -> (Duration, T) {
    let start = Instant::now();
    let result = work();
    (start.elapsed(), result)
}

/// Time of one answer whose name is known.
fn learn(engine: &mut Engine) -> Duration {
    const ROUNDS: u32 = 20;
    let names: Vec<Fqdn> = (0..1_000).filter_map(|at| format!("www{at}.service0.example").parse().ok()).collect();
    let endpoint = engine.endpoints()[0].id;
    let answers: Vec<Answer> = (0..1_000_u32)
        .zip(names)
        .map(|(at, name)| Answer { endpoint, names: vec![name], addresses: vec![(outside(at), 60)] })
        .collect();
    let mut ops = Vec::new();
    for answer in &answers {
        engine.learn(answer, SECOND_NS, &mut ops);
    }
    let (spent, ()) = timed(|| {
        for round in 0..ROUNDS {
            for answer in &answers {
                engine.learn(answer, SECOND_NS * u64::from(round + 2), &mut ops);
            }
            engine.take_ledger();
        }
    });
    spent / (ROUNDS * 1_000)
}

fn outside(at: u32) -> IpAddr {
    IpAddr::V4(Ipv4Addr::from_bits(0xc612_0000 + at))
}

/// Two rules: ten peers on a port, and a name.
fn policy(at: usize, peers: usize, port: u16) -> Vec<Rule> {
    let selector = |key: &str, value: String| LabelSelector::new([Requirement::equals(key, &value)]);
    let peer = |step: usize| PeerSelector::Labels(selector("app", format!("app{}", (at * 10 + step) % peers)));
    let ports = Ports::Of(vec![PortMatch::Numbers {
        protocol: Transport::Tcp,
        ports: RangeInclusive16 { start: port, end: port },
    }]);
    let rule = |path: &str, peers: Vec<PeerSelector>| Rule {
        origin: Arc::new(Origin {
            kind: "CiliumNetworkPolicy".into(),
            namespace: Some("empire".into()),
            name: format!("policy{at}"),
            path: path.into(),
        }),
        subject: Subject::Endpoints(selector("class", format!("class{at}"))),
        direction: Direction::Egress,
        tier: Tier::Normal,
        effect: Effect::Allow,
        default_deny: true,
        peers: Peers::Of(peers),
        ports: ports.clone(),
        l7: None,
    };
    let name = NamePattern::pattern(&format!("*.service{at}.example")).expect("a pattern");
    vec![rule("egress[0]", (0..10).map(peer).collect()), rule("egress[1]", vec![PeerSelector::Name(name)])]
}

/// Endpoints of this node, and pods elsewhere of which each has labels of its own.
fn topology(peers: usize) -> Topology {
    let pod = |key: String, label: (&str, String), address: u32, interface| TopologyEndpoint {
        key,
        labels: Labels::pod("empire", [(label.0, &*label.1)], [], None),
        addresses: vec![IpAddr::V4(Ipv4Addr::from_bits(address))],
        named_ports: vec![],
        interface,
    };
    let local = (0..ENDPOINTS).zip(1_u32..).map(|(at, number)| {
        pod(
            format!("empire/local{at}"),
            ("class", format!("class{}", at % POLICIES)),
            0x0a00_0000 + number,
            Some(number),
        )
    });
    let remote = (0..peers)
        .zip(1_u32..)
        .map(|(at, number)| pod(format!("empire/peer{at}"), ("app", format!("app{at}")), 0x0a80_0000 + number, None));
    Topology { endpoints: local.chain(remote).collect(), ..Topology::default() }
}
