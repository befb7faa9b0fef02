//! One point of the policy benchmark: how long policies take from their text to rows, how many rows come out, and what
//! memory it takes. Prints one JSON object. Built with `--release` and run by `cargo xtask bench policy`:
//! `scale POLICIES ENDPOINTS IDENTITIES`.

use std::{
    fmt::Write,
    net::{IpAddr, Ipv4Addr},
    process::ExitCode,
    sync::Arc,
    time::{Duration, Instant},
};

use namegate_config::{
    labels::Labels,
    name::Fqdn,
    policy::{Catalog, parse, translate},
    rule::Rule,
    settings::{self, Settings},
};
use namegate_engine::{Answer, Change, Engine, Topology, TopologyEndpoint};

const SECOND_NS: u64 = 1_000_000_000;
/// Peers that a policy names, each by labels of its own.
const PEERS: usize = 10;
/// How often one policy is changed; the median counts.
const CHANGES: usize = 3;
/// Answers of the look-up measurement, each of a name of its own.
const ANSWERS: usize = 1_000;
const PORTS: [u16; 2] = [443, 8443];

/// Sizes of one point.
#[derive(Clone, Copy)]
struct Point {
    policies: usize,
    endpoints: usize,
    identities: usize,
}

fn main() -> ExitCode {
    let numbers: Vec<usize> =
        std::env::args().skip(1).filter_map(|text| text.parse().ok()).filter(|number| *number > 0).collect();
    let &[policies, endpoints, identities] = &numbers[..] else {
        eprintln!("usage: scale POLICIES ENDPOINTS IDENTITIES");
        return ExitCode::from(2);
    };
    println!("{}", measure(Point { policies, endpoints, identities }));
    ExitCode::SUCCESS
}

fn measure(point: Point) -> String {
    let texts: Vec<String> = (0..point.policies).map(|at| point.policy(at, PORTS[0])).collect();
    let topology = point.topology();
    let (reading, rules) = timed(|| read(&texts));
    let mut engine = Engine::new(&settings());
    let change = Change { rules: Some(rules.clone()), topology: Some(topology) };
    let (compiling, writes) = timed(|| engine.update(change, SECOND_NS));
    engine.take_ledger();
    let rows: Vec<String> =
        engine.row_counts().iter().map(|count| format!("\"{}\": {}", count.map, count.rows)).collect();
    let first_writes = writes.len();
    drop(writes);
    let mut changes = Vec::new();
    let mut changed_writes = 0;
    for round in 0..CHANGES {
        // What stays is shared with the list before, as the agent does it.
        let mut list = read(&[point.policy(0, PORTS[(round + 1) % PORTS.len()])]);
        list.extend_from_slice(&rules[list.len()..]);
        let change = Change { rules: Some(list), topology: None };
        let (spent, writes) = timed(|| engine.update(change, SECOND_NS));
        engine.take_ledger();
        changes.push(spent);
        changed_writes = writes.len();
    }
    changes.sort_unstable();
    let learning = learn(&mut engine);
    let refused = engine.refused();
    assert!(refused.is_empty(), "the settings leave room for everything: {refused:?}");
    let mut line = String::new();
    let seconds = |spent: Duration| spent.as_secs_f64();
    write!(
        line,
        "{{\"policies\": {}, \"endpoints\": {}, \"identities\": {}, \"identities_in_use\": {}, \"read_s\": {}, \
         \"compile_s\": {}, \"writes\": {first_writes}, \"change_s\": {}, \"change_writes\": {changed_writes}, \
         \"learn_s\": {}, \"rows\": {{{}}}, \"peak_octets\": {}}}",
        point.policies,
        point.endpoints,
        point.identities,
        engine.identity_count(),
        seconds(reading),
        seconds(compiling),
        seconds(changes[CHANGES / 2]),
        seconds(learning),
        rows.join(", "),
        peak_octets(),
    )
    .expect("text takes text");
    line
}

fn timed<T>(work: impl FnOnce() -> T) -> (Duration, T) {
    let start = Instant::now();
    let result = work();
    (start.elapsed(), result)
}

/// The most memory that this process has had.
fn peak_octets() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let kibi = line.and_then(|line| line.trim().trim_end_matches(" kB").parse::<u64>().ok());
    kibi.unwrap_or(0) * 1_024
}

fn settings() -> Settings {
    let limits = "{addresses: 1048576, policyRows: 16777216, endpoints: 65536}";
    let text = format!("policies: p\nendpoints: e.yaml\nlimits: {limits}\n");
    settings::parse("namegate.yaml", &text).expect("these are settings")
}

/// The rules of every policy.
fn read(texts: &[String]) -> Vec<Arc<Rule>> {
    let rules = |text: &String| {
        let parsed = parse("policy.yaml", text);
        assert!(parsed.diagnostics.is_empty(), "{:?}", parsed.diagnostics);
        translate(&parsed.documents, &Catalog::default()).rules
    };
    texts.iter().flat_map(rules).map(Arc::new).collect()
}

/// Time of one answer whose name is known.
fn learn(engine: &mut Engine) -> Duration {
    const ROUNDS: u32 = 20;
    let endpoint = engine.endpoints()[0].id;
    let answer = |at: u32| -> Option<Answer> {
        let name: Fqdn = format!("www{at}.service0.example").parse().ok()?;
        let address = IpAddr::V4(Ipv4Addr::from_bits(0xc612_0000 + at));
        Some(Answer { endpoint, names: vec![name], addresses: vec![(address, 60)] })
    };
    let answers: Vec<Answer> = (0..).take(ANSWERS).filter_map(answer).collect();
    let mut ops = Vec::new();
    for answer in &answers {
        engine.learn(answer, SECOND_NS, &mut ops).expect("there is room");
    }
    let (spent, ()) = timed(|| {
        for round in 0..ROUNDS {
            for answer in &answers {
                engine.learn(answer, SECOND_NS * u64::from(round + 2), &mut ops).expect("there is room");
            }
            ops.clear();
            engine.take_ledger();
        }
    });
    spent / ROUNDS / u32::try_from(answers.len()).unwrap_or(u32::MAX)
}

impl Point {
    /// Kinds of endpoints: each policy selects one of them.
    fn classes(self) -> usize {
        self.policies.min(self.endpoints)
    }

    /// Peers on a port, and a name.
    fn policy(self, at: usize, port: u16) -> String {
        let class = at % self.classes();
        let mut text = format!(
            "apiVersion: cilium.io/v2\nkind: CiliumNetworkPolicy\nmetadata: {{name: policy{at}, namespace: empire}}\n\
             spec:\n  endpointSelector:\n    matchLabels: {{class: class{class}}}\n  egress:\n  - toEndpoints:\n"
        );
        // Policies of one class name different peers.
        let first = (class + at / self.classes()) * PEERS;
        for step in 0..PEERS {
            let peer = (first + step) % self.identities;
            text.push_str("    - matchLabels: {app: app");
            text.push_str(&peer.to_string());
            text.push_str("}\n");
        }
        let rest = format!(
            "    toPorts: [{{ports: [{{port: '{port}', protocol: TCP}}]}}]\n  - toFQDNs: [{{matchPattern: '*.service{at}.example'}}]\n"
        );
        text + &rest
    }

    /// Endpoints of this node, and pods elsewhere of which each has labels of its own.
    fn topology(self) -> Topology {
        let pod = |key: String, label: (&str, String), address: u32, interface| TopologyEndpoint {
            key: key.into(),
            labels: Arc::new(Labels::pod("empire", [(label.0, &*label.1)], [], None)),
            addresses: vec![IpAddr::V4(Ipv4Addr::from_bits(address))],
            named_ports: vec![],
            interface,
        };
        let local = (0..self.endpoints).zip(1_u32..).map(|(at, number)| {
            let class = format!("class{}", at % self.classes());
            pod(format!("empire/local{at}"), ("class", class), 0x0a00_0000 + number, Some(number))
        });
        let remote = (0..self.identities).zip(1_u32..).map(|(at, number)| {
            pod(format!("empire/peer{at}"), ("app", format!("app{at}")), 0x0a80_0000 + number, None)
        });
        Topology { endpoints: local.chain(remote).map(Arc::new).collect(), ..Topology::default() }
    }
}
