//! A gate of maps in memory, judged by the code that the kernel runs, and a small world to draw cases from.
#![allow(dead_code, reason = "each test file uses a part")]

pub(crate) mod world;

use std::{
    collections::{BTreeSet, HashMap},
    net::IpAddr,
    sync::Arc,
};

use namegate_abi::{
    AddressKey, AddressValue, CidrKey, Class, Decision, EndpointValue, FlowKey, FlowValue, FlowWrite, FragmentKey,
    FragmentValue, Packet, PolicyKey, PolicyValue, Reader, Reason, Tables, judge,
};
use namegate_config::{
    l7::L7,
    labels::{LabelSelector, Labels, Operator, Requirement},
    peer::NamedPort,
    reference::Flow,
    rule::{
        Binding, CidrReach, CidrSelector, Direction, Effect, Entity, Origin, PeerSelector, Peers, PortMatch, Ports,
        RangeInclusive16, Rule, Subject, Tier, Transport,
    },
    settings::{self, Settings},
};
use namegate_engine::{Engine, GateError, Key, MapOp, MapWriter, Row, Topology, TopologyEndpoint, TopologyNode};
use proptest::prelude::*;

pub(crate) const SECOND: u64 = 1_000_000_000;

/// The maps, and a clock.
#[derive(Clone, Debug, Default)]
pub(crate) struct Kernel {
    pub(crate) now: u64,
    pub(crate) rows: HashMap<Key, Row>,
    pub(crate) cidr_lengths: BTreeSet<u32>,
    /// Flows of packets that [`Kernel::pass`] let through.
    pub(crate) flows: HashMap<FlowKey, FlowValue>,
}

impl MapWriter for Kernel {
    fn write(&mut self, op: &MapOp) -> Result<(), GateError> {
        match op {
            MapOp::Put(row) => {
                if let Row::Cidr(prefix, ..) = row {
                    self.cidr_lengths.insert(*prefix);
                }
                self.rows.insert(row.key(), *row);
            }
            MapOp::Delete(key) => assert!(self.rows.remove(key).is_some(), "no such row: {key:?}"),
        }
        Ok(())
    }

    fn rows(&self) -> Result<Vec<Row>, GateError> {
        Ok(self.sorted())
    }
}

impl Kernel {
    pub(crate) fn apply(&mut self, ops: &[MapOp]) {
        for op in ops {
            self.write(op).unwrap();
        }
    }

    pub(crate) fn sorted(&self) -> Vec<Row> {
        let mut rows: Vec<Row> = self.rows.values().copied().collect();
        rows.sort_unstable();
        rows
    }

    pub(crate) fn endpoint(&self, interface: u32) -> Option<EndpointValue> {
        match self.rows.get(&Key::Endpoint(interface)) {
            Some(Row::Endpoint(_, value)) => Some(*value),
            _ => None,
        }
    }

    /// Judges a new flow of the endpoint on an interface.
    pub(crate) fn judge(
        &self,
        interface: u32,
        own: IpAddr,
        peer: IpAddr,
        direction: Direction,
        flow: Flow,
    ) -> Decision {
        let endpoint = self.endpoint(interface).expect("the interface has an endpoint");
        let (source, destination) = if direction == Direction::Egress { (own, peer) } else { (peer, own) };
        let icmp = flow.protocol == 1 || flow.protocol == 58;
        let packet = Packet {
            source: source.into(),
            destination: destination.into(),
            source_port: 40_000,
            destination_port: if icmp { 0 } else { flow.port },
            icmp: if icmp { flow.port } else { 0 },
            protocol: flow.protocol,
            tcp_flags: 2,
            class: Class::Plain,
            fragmented: false,
            fragment_id: 0,
            transport_at: 20,
        };
        judge(self, &Nothing, &endpoint, &packet, wire(direction))
    }

    /// Judges a packet of the endpoint on an interface, and remembers its flow as the programs do.
    pub(crate) fn pass(
        &mut self,
        interface: u32,
        source: (IpAddr, u16),
        destination: (IpAddr, u16),
        direction: Direction,
        tcp_flags: u8,
    ) -> Reason {
        let endpoint = self.endpoint(interface).expect("the interface has an endpoint");
        let packet = Packet {
            source: source.0.into(),
            destination: destination.0.into(),
            source_port: source.1,
            destination_port: destination.1,
            icmp: 0,
            protocol: 6,
            tcp_flags,
            class: Class::Plain,
            fragmented: false,
            fragment_id: 0,
            transport_at: 20,
        };
        let decision = judge(self, &Nothing, &endpoint, &packet, wire(direction));
        if decision.write != FlowWrite::None {
            self.flows.insert(FlowKey::of(endpoint.endpoint, &packet, wire(direction)), decision.flow);
        }
        decision.reason
    }
}

pub(crate) fn wire(direction: Direction) -> namegate_abi::Direction {
    match direction {
        Direction::Ingress => namegate_abi::Direction::Ingress,
        Direction::Egress => namegate_abi::Direction::Egress,
    }
}

struct Nothing;

impl Reader for Nothing {
    fn load<const N: usize>(&self, _: usize) -> Option<[u8; N]> {
        None
    }
}

fn masked(address: [u8; 16], bits: u32) -> [u8; 16] {
    let mask = u128::MAX.checked_shl(128 - bits).unwrap_or(0);
    (u128::from_be_bytes(address) & mask).to_be_bytes()
}

impl Tables for Kernel {
    fn now_ns(&self) -> u64 {
        self.now
    }

    fn address(&self, key: &AddressKey) -> Option<&AddressValue> {
        match self.rows.get(&Key::Address(*key)) {
            Some(Row::Address(_, value)) => Some(value),
            _ => None,
        }
    }

    fn cidr(&self, key: &CidrKey) -> Option<u32> {
        self.cidr_lengths.iter().rev().find_map(|&bits| {
            let key = CidrKey { address: namegate_abi::Address(masked(key.address.0, bits)) };
            match self.rows.get(&Key::Cidr(bits, key)) {
                Some(Row::Cidr(_, _, value)) => Some(value.identity),
                _ => None,
            }
        })
    }

    fn policy(&self, key: &PolicyKey) -> Option<PolicyValue> {
        let row = |bits: u32, key: PolicyKey| match self.rows.get(&Key::Policy(bits, key)) {
            Some(Row::Policy(_, _, value)) => Some(*value),
            _ => None,
        };
        let port = u16::from_be_bytes(key.port_be);
        let narrow = (0..=16_u32).rev().find_map(|bits| {
            let mask = u16::MAX.checked_shl(16 - bits).unwrap_or(0);
            row(80 + bits, PolicyKey { port_be: (port & mask).to_be_bytes(), ..*key })
        });
        narrow.or_else(|| row(72, PolicyKey { port_be: [0; 2], protocol: 0, ..*key }))
    }

    fn flow(&self, key: &FlowKey) -> Option<FlowValue> {
        self.flows.get(key).copied()
    }

    fn fragment(&self, _: &FragmentKey) -> Option<FragmentValue> {
        None
    }
}

/// Rules as a change takes them.
pub(crate) fn shared(rules: Vec<Rule>) -> Vec<Arc<Rule>> {
    rules.into_iter().map(Arc::new).collect()
}

pub(crate) fn settings() -> Settings {
    settings::parse("namegate.yaml", "policies: p\nendpoints: e.yaml\n").unwrap()
}

pub(crate) fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

/// Writes what the engine says and checks that both hold the same.
pub(crate) fn apply(engine: &Engine, kernel: &mut Kernel, ops: &[MapOp]) {
    kernel.apply(ops);
    assert_eq!(kernel.sorted(), engine.rows());
}

pub(crate) const NAMES: [&str; 4] = ["a.io", "b.io", "c.a.io", "x.org"];
pub(crate) const OUTSIDE: [&str; 7] =
    ["192.0.2.1", "192.0.2.2", "198.51.100.7", "10.9.0.1", "2001:db8::1", "2001:db8:1::1", "fd00::9"];

/// Addresses that pods and nodes may have, then those outside.
pub(crate) fn addresses() -> Vec<IpAddr> {
    let inside = ["10.0.0.1", "10.0.0.2", "10.0.0.3", "fd00::3", "10.0.1.4", "192.168.0.1", "192.168.0.2"];
    inside.iter().chain(&OUTSIDE).map(|text| ip(text)).collect()
}

pub(crate) const FLOWS: [Flow; 12] = [
    Flow { protocol: 6, port: 80 },
    Flow { protocol: 6, port: 443 },
    Flow { protocol: 6, port: 8080 },
    Flow { protocol: 6, port: 65535 },
    Flow { protocol: 6, port: 0 },
    Flow { protocol: 17, port: 53 },
    Flow { protocol: 17, port: 80 },
    Flow { protocol: 132, port: 80 },
    Flow { protocol: 1, port: 8 << 8 },
    Flow { protocol: 1, port: 3 << 8 | 4 },
    Flow { protocol: 58, port: 128 << 8 | 1 },
    Flow { protocol: 47, port: 0 },
];

pub(crate) fn named(name: &str, protocol: Transport, port: u16) -> NamedPort {
    NamedPort { name: name.into(), protocol, port }
}

/// A pod of the small world: place and looks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Pod {
    pub(crate) namespace: &'static str,
    pub(crate) app: Option<&'static str>,
    pub(crate) ports: Vec<NamedPort>,
}

pub(crate) fn pods() -> impl Strategy<Value = Vec<Option<Pod>>> {
    let ports = proptest::sample::subsequence(
        vec![named("web", Transport::Tcp, 80), named("web", Transport::Udp, 80), named("alt", Transport::Tcp, 8080)],
        0..=2,
    );
    let pod = (prop_oneof![Just("x"), Just("y")], prop_oneof![Just(None), Just(Some("a")), Just(Some("b"))], ports)
        .prop_map(|(namespace, app, ports)| Pod { namespace, app, ports });
    proptest::collection::vec(proptest::option::weighted(0.9, pod), 4)
}

/// Pods 0 and 1 are on this node, on interfaces 10 and 11.
pub(crate) fn topology(pods: &[Option<Pod>]) -> Topology {
    let places: [(&str, &[&str]); 4] =
        [("p0", &["10.0.0.1"]), ("p1", &["10.0.0.2"]), ("p2", &["10.0.0.3", "fd00::3"]), ("p3", &["10.0.1.4"])];
    let endpoints = pods.iter().zip(places).enumerate().filter_map(|(at, (pod, (name, addresses)))| {
        let pod = pod.as_ref()?;
        Some(Arc::new(TopologyEndpoint {
            key: format!("any/{name}").into(),
            labels: Arc::new(Labels::pod(pod.namespace, pod.app.map(|app| ("app", app)), [], None)),
            addresses: addresses.iter().map(|text| ip(text)).collect(),
            named_ports: pod.ports.clone(),
            interface: (at < 2).then_some(10 + u32::try_from(at).unwrap()),
        }))
    });
    let node = |name: &str, local, address: &str| TopologyNode {
        name: name.into(),
        labels: Labels::node(local, [("rack", name)]),
        addresses: vec![ip(address)],
        local,
    };
    Topology {
        endpoints: endpoints.collect(),
        nodes: vec![node("n1", true, "192.168.0.1"), node("n2", false, "192.168.0.2")],
        resolver_services: vec![],
        services: vec![],
        ..Topology::default()
    }
}

fn label_selectors() -> impl Strategy<Value = LabelSelector> {
    let list = |requirements: Vec<Requirement>| Just(LabelSelector::new(requirements));
    prop_oneof![
        list(vec![]),
        list(vec![Requirement::equals("app", "a")]),
        list(vec![Requirement::equals("k8s:io.kubernetes.pod.namespace", "x")]),
        list(vec![
            Requirement::equals("k8s:io.kubernetes.pod.namespace", "y"),
            Requirement::new("app", Operator::In(["a".into(), "b".into()].into())),
        ]),
        list(vec![Requirement::new("app", Operator::DoesNotExist)]),
        list(vec![Requirement::equals("reserved:world", "")]),
        list(vec![Requirement::equals("node:rack", "n2")]),
    ]
}

fn node_selectors() -> impl Strategy<Value = LabelSelector> {
    prop_oneof![
        2 => Just(LabelSelector::default()),
        2 => Just(LabelSelector::new([Requirement::equals("node:rack", "n1")])),
        1 => Just(LabelSelector::new([Requirement::equals("node:rack", "n2")])),
    ]
}

fn peer_selectors() -> impl Strategy<Value = PeerSelector> {
    let cidr = |net: &str, except: &[&str], reach| {
        let except = except.iter().map(|hole| hole.parse().unwrap());
        PeerSelector::Cidr(CidrSelector::new(net.parse().unwrap(), except, reach))
    };
    let reach = || prop_oneof![Just(CidrReach::OutsideCluster), Just(CidrReach::Everything)];
    let nets = prop_oneof![
        Just(("0.0.0.0/0", &[][..])),
        Just(("::/0", &[][..])),
        Just(("::/0", &["2001:db8::/32"][..])),
        Just(("10.0.0.0/8", &["10.0.0.0/24", "10.0.1.4/32"][..])),
        Just(("10.0.0.0/24", &[][..])),
        Just(("192.0.2.0/24", &["192.0.2.2/32"][..])),
        Just(("192.0.0.0/8", &["192.0.2.0/24"][..])),
        Just(("2001:db8::/32", &["2001:db8:1::/48"][..])),
        Just(("10.9.0.1/32", &["10.0.0.0/8"][..])),
    ];
    let patterns = prop_oneof![Just("a.io"), Just("*.io"), Just("**.io"), Just("*"), Just("*.a.io"), Just("x.org")];
    prop_oneof![
        3 => label_selectors().prop_map(PeerSelector::Labels),
        3 => (nets, reach()).prop_map(move |((net, except), reach)| cidr(net, except, reach)),
        3 => patterns.prop_map(|text| PeerSelector::Name(namegate_config::name::NamePattern::pattern(text).unwrap())),
        2 => proptest::sample::select(&Entity::EVERY[..]).prop_map(PeerSelector::Entity),
    ]
}

fn ports() -> impl Strategy<Value = Ports> {
    let transport = || proptest::sample::select(&Transport::ALL[..]);
    let range = |start, end| RangeInclusive16 { start, end };
    let ranges = prop_oneof![
        Just(range(80, 80)),
        Just(range(443, 443)),
        Just(range(0, 65535)),
        Just(range(1, 1023)),
        Just(range(1024, 65535)),
        Just(range(79, 8081)),
        Just(range(0, 0)),
    ];
    let name = prop_oneof![Just("web"), Just("alt"), Just("none")];
    let one = prop_oneof![
        3 => (transport(), ranges).prop_map(|(protocol, ports)| PortMatch::Numbers { protocol, ports }),
        2 => (proptest::option::of(transport()), name)
            .prop_map(|(protocol, name)| PortMatch::Named { protocol, name: name.to_owned() }),
        1 => (any::<bool>(), prop_oneof![Just(8), Just(3), Just(128)])
            .prop_map(|(v6, kind)| PortMatch::Icmp { v6, kind }),
    ];
    prop_oneof![
        1 => Just(Ports::Any),
        2 => proptest::collection::vec(one, 0..4).prop_map(Ports::Of),
    ]
}

pub(crate) fn rules(count: std::ops::Range<usize>) -> impl Strategy<Value = Vec<Rule>> {
    let tier = prop_oneof![
        2 => (0..3_u32).prop_map(Tier::Admin),
        6 => Just(Tier::Normal),
        1 => (0..3_u32).prop_map(Tier::Baseline),
    ];
    let peers = prop_oneof![
        1 => Just(Peers::Any),
        4 => proptest::collection::vec(peer_selectors(), 0..3).prop_map(Peers::Of),
    ];
    let effect = prop_oneof![4 => Just(Effect::Allow), 2 => Just(Effect::Deny), 1 => Just(Effect::Pass)];
    let direction = prop_oneof![1 => Just(Direction::Ingress), 2 => Just(Direction::Egress)];
    let quiet = proptest::bool::weighted(0.3);
    let limits = proptest::option::weighted(
        0.3,
        any::<bool>().prop_map(|http| Arc::new(if http { L7::Http(vec![]) } else { L7::ServerNames(vec![]) })),
    );
    let subject = prop_oneof![
        4 => label_selectors().prop_map(Subject::Endpoints),
        1 => node_selectors().prop_map(Subject::Nodes),
    ];
    let bindings = proptest::option::of(proptest::sample::select(Binding::WORDS.map(|(_, binding)| binding).to_vec()));
    let rule = (subject, direction, tier, effect, quiet, peers, ports(), any::<u32>(), (limits, bindings)).prop_map(
        |(subject, direction, tier, effect, quiet, peers, ports, name, (l7, binding))| Rule {
            origin: Arc::new(Origin { kind: "T".into(), namespace: None, name: format!("r{name}"), path: "x".into() }),
            // Policies for nodes limit no requests.
            l7: l7.filter(|_| effect == Effect::Allow && matches!(subject, Subject::Endpoints(_))),
            subject,
            direction,
            tier,
            effect: if effect == Effect::Pass && !matches!(tier, Tier::Admin(_)) { Effect::Allow } else { effect },
            default_deny: tier == Tier::Normal && !quiet,
            peers,
            ports,
            binding,
            named_only: None,
        },
    );
    proptest::collection::vec(rule, count)
}
