//! Services: what the kernel would do with a packet to a virtual address, and what the rules mean for who is behind it.

#![expect(clippy::unwrap_used, reason = "a test may panic")]

mod common;

use std::{net::IpAddr, sync::Arc};

use common::{FLOWS, Kernel, Pod, SECOND, addresses, apply, ip, pods, rules, settings, shared, topology};
use namegate_config::{
    l7::L7,
    labels::{LabelSelector, Labels},
    peer::Peer,
    reference::{Flow, Limits, SubjectFacts, verdict},
    rule::{Direction, Effect, Entity, Origin, PeerSelector, Peers, Ports, Rule, Subject, Tier, Transport},
    services::{Service, ServicePort, Target},
};
use namegate_engine::{Change, Engine, LedgerEntry, MapOp, Proxies, Topology};
use proptest::prelude::*;

const VIRTUAL: [&str; 3] = ["10.96.0.1", "10.96.0.2", "fd00:96::1"];
const OWN: [&str; 2] = ["10.0.0.1", "10.0.0.2"];
/// Addresses of pods that services may claim.
const CLAIMED: [&str; 2] = ["10.0.0.2", "10.0.0.3"];

fn services() -> impl Strategy<Value = Vec<Service>> {
    let target = (proptest::sample::select(addresses()), proptest::sample::select(vec![80_u16, 443, 8080, 53]))
        .prop_map(|(address, port)| Target { address, port });
    let place = proptest::sample::select(vec![
        (Transport::Tcp, 80),
        (Transport::Tcp, 443),
        (Transport::Tcp, 65535),
        (Transport::Udp, 53),
        (Transport::Sctp, 80),
    ]);
    let node_port = proptest::option::weighted(0.3, proptest::sample::select(vec![8080_u16, 443]));
    let port = (place, node_port, proptest::collection::vec(target, 0..4)).prop_map(
        |((protocol, port), node_port, targets)| ServicePort { name: None, protocol, port, node_port, targets },
    );
    // A service may claim the address of a pod, of this node or another.
    let all: Vec<IpAddr> = VIRTUAL.iter().chain(&CLAIMED).map(|address| ip(address)).collect();
    let addresses = proptest::sample::subsequence(all, 0..=3);
    let service = (addresses, proptest::collection::vec(port, 1..4), 0..9_u8).prop_map(|(addresses, ports, name)| {
        Service { name: format!("s{name}"), namespace: "x".into(), addresses, ports, ..Service::default() }
    });
    proptest::collection::vec(service, 0..4)
}

/// A new flow of a pod of this node.
#[derive(Clone, Debug)]
struct Probe {
    pod: usize,
    peer: IpAddr,
    direction: Direction,
    flow: Flow,
}

fn probes(count: usize) -> impl Strategy<Value = Vec<Probe>> {
    let peers: Vec<IpAddr> = VIRTUAL.map(ip).into_iter().cycle().take(12).chain(addresses()).collect();
    let direction = prop_oneof![1 => Just(Direction::Ingress), 4 => Just(Direction::Egress)];
    let probe = (0..2_usize, proptest::sample::select(peers), direction, proptest::sample::select(&FLOWS[..]))
        .prop_map(|(pod, peer, direction, flow)| Probe { pod, peer, direction, flow });
    proptest::collection::vec(probe, count)
}

struct World {
    engine: Engine,
    kernel: Kernel,
    rules: Vec<Rule>,
    topology: Topology,
}

/// Where the proxy listens.
const PROXIES: Proxies = Proxies { dns: 0, l7: 9_000 };

fn placed(pods: &[Option<Pod>], services: &[Service]) -> Topology {
    Topology { services: services.to_vec(), ..topology(pods) }
}

impl World {
    fn new(rules: Vec<Rule>, topology: Topology) -> Self {
        let mut world = Self {
            engine: Engine::new(&settings()),
            kernel: Kernel { now: 100 * SECOND, ..Kernel::default() },
            rules: vec![],
            topology: Topology::default(),
        };
        world.engine.set_proxies(PROXIES);
        let ops = world.change(Some(rules), Some(topology));
        apply(&world.engine, &mut world.kernel, &ops);
        world
    }

    fn change(&mut self, rules: Option<Vec<Rule>>, topology: Option<Topology>) -> Vec<MapOp> {
        let ops = self
            .engine
            .update(Change { rules: rules.clone().map(shared), topology: topology.clone() }, self.kernel.now);
        self.rules = rules.unwrap_or(std::mem::take(&mut self.rules));
        self.topology = topology.unwrap_or(std::mem::take(&mut self.topology));
        ops
    }

    fn has(&self, pod: usize) -> bool {
        self.engine.endpoint_by_address(ip(OWN[pod])).is_some()
    }

    /// Who is behind the port; `None` where the address speaks for itself.
    fn behind(&self, address: IpAddr, flow: Flow) -> Option<Vec<Target>> {
        let is_node = self.topology.nodes.iter().any(|node| node.addresses.contains(&address));
        let is_pod = self.topology.endpoints.iter().any(|pod| pod.addresses.contains(&address));
        let mut found = None;
        for service in &self.topology.services {
            for port in service.ports.iter().filter(|port| port.protocol.number() == flow.protocol) {
                let own = service.addresses.contains(&address) && port.port == flow.port;
                let mut families = service.addresses.iter().map(IpAddr::is_ipv4);
                let serves = service.addresses.is_empty() || families.any(|is_v4| is_v4 == address.is_ipv4());
                if own || (is_node && serves && port.node_port == Some(flow.port)) {
                    let targets: &mut Vec<Target> = found.get_or_insert_default();
                    targets.extend(port.targets.iter().filter(|one| one.address.is_ipv4() == address.is_ipv4()));
                    if is_pod && !is_node {
                        targets.push(Target { address, port: flow.port });
                    }
                }
            }
        }
        found
    }

    fn allows_peer(&self, probe: &Probe, address: IpAddr, port: u16) -> bool {
        let own = ip(OWN[probe.pod]);
        let subject = self.topology.endpoints.iter().find(|pod| pod.addresses.contains(&own)).unwrap();
        let facts = SubjectFacts { labels: &subject.labels, is_node: false, named_ports: &subject.named_ports };
        let pod = self.topology.endpoints.iter().find(|pod| pod.addresses.contains(&address));
        let node = self.topology.nodes.iter().find(|node| node.addresses.contains(&address));
        let labels = pod.map(|pod| Labels::clone(&pod.labels)).or_else(|| node.map(|node| node.labels.clone()));
        // One who is nobody has no labels, and is not the world.
        let is_virtual = self.topology.services.iter().any(|service| service.addresses.contains(&address));
        let other = if is_virtual { Labels::default() } else { Labels::reserved("world") };
        let peer = Peer {
            labels: Arc::new(labels.unwrap_or(other)),
            address,
            names: vec![],
            named_ports: pod.map(|pod| pod.named_ports.clone()).unwrap_or_default().into(),
        };
        verdict(&self.rules, &facts, &peer, probe.direction, Flow { port, ..probe.flow }).allowed
    }

    /// Whether the rules let the flow pass, and whether they are of two minds.
    fn reference(&self, probe: &Probe) -> (bool, bool) {
        let behind = self.behind(probe.peer, probe.flow).filter(|_| probe.direction == Direction::Egress);
        let Some(targets) = behind else { return (self.allows_peer(probe, probe.peer, probe.flow.port), false) };
        let allowed = targets.iter().filter(|target| self.allows_peer(probe, target.address, target.port)).count();
        // An endpoint that no rule selects is not asked.
        let enforced = self.kernel.endpoint(interface(probe)).unwrap().enforces(namegate_abi::Direction::Egress);
        let whole = allowed == targets.len() && (allowed > 0 || !enforced);
        (whole, enforced && allowed > 0 && !whole)
    }

    fn allows(kernel: &Kernel, probe: &Probe) -> bool {
        let own = ip(OWN[probe.pod]);
        !kernel.judge(interface(probe), own, probe.peer, probe.direction, probe.flow).reason.denies()
    }

    fn check(&self, probe: &Probe) {
        if !self.has(probe.pod) || ip(OWN[probe.pod]) == probe.peer {
            return;
        }
        let own = ip(OWN[probe.pod]);
        let got = self.kernel.judge(interface(probe), own, probe.peer, probe.direction, probe.flow);
        let (want, divided) = self.reference(probe);
        let at = || format!("{probe:?} to {:?}: {got:?}", self.behind(probe.peer, probe.flow));
        assert_eq!(!got.reason.denies(), want, "{}", at());
        let key = format!("any/p{}", probe.pod);
        let told = self.engine.divided().into_iter().any(|one| {
            (one.protocol, one.port) == (probe.flow.protocol, probe.flow.port)
                && one.endpoints.iter().any(|it| **it == *key)
        });
        assert!(told || !divided, "{}: nobody is told", at());
        // A proxy reads the requests exactly where some might not pass.
        let asked = self.engine.requests().limits(own, probe.peer, probe.direction, probe.flow, self.kernel.now);
        assert!(!want || (got.proxy_port != 0) == matches!(asked, Limits::Rules(_)), "{}: {asked:?}", at());
    }
}

fn interface(probe: &Probe) -> u32 {
    10 + u32::try_from(probe.pod).unwrap()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1_500, max_shrink_iters: 2_000, failure_persistence: None, ..ProptestConfig::default() })]

    /// A port is as open as the least open of its targets, after every change of rules, pods and targets.
    #[test]
    fn a_virtual_address_is_judged_by_who_is_behind_it(
        first in rules(0..6), second in rules(0..6), before in pods(), after in pods(), old in services(), new in services(),
        probes in probes(24),
    ) {
        let mut world = World::new(first, placed(&before, &old));
        for probe in &probes[..8] {
            world.check(probe);
        }
        let ops = world.change(None, Some(placed(&before, &new)));
        apply(&world.engine, &mut world.kernel, &ops);
        for probe in &probes[8..16] {
            world.check(probe);
        }
        let ops = world.change(Some(second), Some(placed(&after, &new)));
        apply(&world.engine, &mut world.kernel, &ops);
        for probe in &probes[16..] {
            world.check(probe);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 700, max_shrink_iters: 2_000, failure_persistence: None, ..ProptestConfig::default() })]

    /// After every single write: allowed before and after is allowed, denied before and after is denied. What is cut
    /// has another revision.
    #[test]
    fn no_write_cuts_or_opens_what_should_stay(
        rules in rules(1..6), other in rules(0..4), pods in pods(), old in services(), new in services(), targets: bool,
        probes in probes(40),
    ) {
        let mut world = World::new(rules.clone(), placed(&pods, &old));
        let mut steps = vec![world.kernel.clone()];
        let ops = if targets {
            world.change(None, Some(placed(&pods, &new)))
        } else {
            world.change(Some(rules.into_iter().skip(1).chain(other).collect()), None)
        };
        for op in &ops {
            let mut next = steps.last().unwrap().clone();
            next.apply(std::slice::from_ref(op));
            steps.push(next);
        }
        let (first, last) = (&steps[0], steps.last().unwrap());
        for probe in probes.iter().filter(|probe| world.has(probe.pod) && ip(OWN[probe.pod]) != probe.peer) {
            let (was, is) = (World::allows(first, probe), World::allows(last, probe));
            if was == is {
                for (at, step) in steps.iter().enumerate() {
                    prop_assert_eq!(World::allows(step, probe), was, "{:?} after {:?}", probe, &ops[..at]);
                }
            }
            let revision = |kernel: &Kernel| kernel.endpoint(interface(probe)).unwrap().current();
            prop_assert!(!was || is || revision(first) != revision(last), "{:?} is cut without a new revision", probe);
        }
    }

    /// A restarted agent writes nothing where nothing changed.
    #[test]
    fn a_restart_writes_nothing(
        rules in rules(0..6), before in pods(), after in pods(), old in services(), new in services(), whole: bool,
    ) {
        let mut world = World::new(rules, placed(&before, &old));
        let mut journal: Vec<LedgerEntry> = world.engine.take_ledger();
        let ops = world.change(None, Some(placed(&after, &new)));
        world.kernel.apply(&ops);
        journal.extend(world.engine.take_ledger());
        let mut engine = Engine::new(&settings());
        engine.set_proxies(PROXIES);
        engine.restore(if whole { journal } else { world.engine.snapshot() });
        engine.adopt(world.kernel.sorted());
        let same = Change { rules: Some(shared(world.rules.clone())), topology: Some(world.topology.clone()) };
        prop_assert_eq!(&engine.update(same, world.kernel.now), &[][..]);
    }
}

#[test]
fn an_address_in_front_of_resolvers_alone_is_trusted() {
    let labels = Arc::new(Labels::pod("kube-system", [("k8s-app", "kube-dns")], [], None));
    let mut facts = topology(&[None, None, None, None]);
    facts.endpoints.push(Arc::new(namegate_engine::TopologyEndpoint {
        key: "kube-system/coredns".into(),
        labels,
        addresses: vec![ip("10.0.9.9")],
        named_ports: vec![],
        interface: None,
    }));
    let both = &[Transport::Udp, Transport::Tcp][..];
    for (targets, protocols, want) in [
        (&["10.0.9.9"][..], both, true),
        (&["10.0.9.9", "10.0.0.1"], both, false),
        (&[], both, false),
        (&["192.0.2.1"], both, false),
        // Over the other protocol, whoever has the address answers.
        (&["10.0.9.9"], &[Transport::Udp], false),
        (&["10.0.9.9"], &[Transport::Tcp], false),
    ] {
        let targets: Vec<Target> = targets.iter().map(|address| Target { address: ip(address), port: 5353 }).collect();
        let port = |protocol: &Transport| ServicePort {
            name: None,
            protocol: *protocol,
            port: 53,
            node_port: None,
            targets: targets.clone(),
        };
        let ports = protocols.iter().map(port).collect();
        facts.services = vec![Service { addresses: vec![ip(VIRTUAL[0])], ports, ..Service::default() }];
        let world = World::new(vec![], facts.clone());
        assert_eq!(world.engine.resolvers().contains(&ip(VIRTUAL[0])), want, "{:?}", facts.services[0].ports);
    }
}

/// What a pod writes into its labels, and a service with its address, make no resolver of it.
#[test]
fn no_pod_makes_itself_a_trusted_resolver() {
    let peer = |key: &str, labels, address| namegate_engine::TopologyEndpoint {
        key: key.into(),
        labels: Arc::new(labels),
        addresses: vec![ip(address)],
        named_ports: vec![],
        interface: None,
    };
    let mut facts = topology(&[None, None, None, None]);
    let forged = [("k8s-app", "kube-dns"), ("io.kubernetes.pod.namespace", "kube-system")];
    let resolver = Labels::pod("kube-system", [("k8s-app", "kube-dns")], [], None);
    facts.endpoints.push(Arc::new(peer("evil/one", Labels::pod("evil", forged, [], None), "10.0.9.8")));
    facts.endpoints.push(Arc::new(peer("kube-system/coredns", resolver, "10.0.9.9")));
    let port = |protocol| ServicePort {
        name: None,
        protocol,
        port: 53,
        node_port: None,
        targets: vec![Target { address: ip("10.0.9.9"), port: 53 }],
    };
    let addresses = vec![ip(VIRTUAL[0]), ip("10.0.9.8")];
    let ports = [Transport::Udp, Transport::Tcp].map(port).into();
    facts.services = vec![Service { addresses, ports, ..Service::default() }];
    let world = World::new(vec![], facts);
    let trusted: Vec<IpAddr> = world.engine.resolvers().to_vec();
    assert_eq!(trusted, [ip("10.0.9.9"), ip(VIRTUAL[0])]);
    let none = namegate_engine::PolicyView::default();
    let view = world.engine.policy_view(&none);
    let mut new: Vec<_> = view.newly_trusted(&none).collect();
    new.sort_unstable();
    assert_eq!(new, [(ip("10.0.9.9"), Some("kube-system/coredns")), (ip(VIRTUAL[0]), Some("/"))]);
    assert_eq!(view.newly_trusted(&view).count(), 0);
}

/// A rule for every endpoint.
fn rule(direction: Direction, peers: Peers, l7: Option<L7>) -> Rule {
    Rule {
        origin: Arc::new(Origin { kind: "T".into(), namespace: None, name: "r".into(), path: "x".into() }),
        subject: Subject::Endpoints(LabelSelector::default()),
        direction,
        tier: Tier::Normal,
        effect: Effect::Allow,
        default_deny: true,
        peers,
        ports: Ports::Any,
        l7: l7.map(Arc::new),
        binding: None,
        named_only: None,
    }
}

fn of_world() -> Peers {
    Peers::Of(vec![PeerSelector::Entity(Entity::World)])
}

/// Both pods of this node, and a service whose port 80 leads to one target.
fn in_front_of(rules: Vec<Rule>, address: &str, port: u16) -> World {
    let targets = vec![Target { address: ip(address), port }];
    let port = ServicePort { name: None, protocol: Transport::Tcp, port: 80, node_port: None, targets };
    let service = Service { addresses: vec![ip(VIRTUAL[0])], ports: vec![port], ..Service::default() };
    let pods = [true, true, false, false].map(|here| here.then(|| Pod { namespace: "x", app: None, ports: vec![] }));
    World::new(rules, placed(&pods, &[service]))
}

/// What the rules leave free for the world stays limited where a virtual address has nobody behind the port.
#[test]
fn a_port_without_a_service_is_not_the_world() {
    let limited = rule(Direction::Egress, Peers::Any, Some(L7::ServerNames(vec![])));
    let world = in_front_of(vec![limited, rule(Direction::Egress, of_world(), None)], "192.0.2.1", 80);
    let own = ip(OWN[0]);
    for (peer, number, is_limited) in [(VIRTUAL[0], 80, false), (VIRTUAL[0], 443, true), ("192.0.2.1", 443, false)] {
        let flow = Flow { protocol: 6, port: number };
        let got = world.kernel.judge(10, own, ip(peer), Direction::Egress, flow);
        let asked = world.engine.requests().limits(own, ip(peer), Direction::Egress, flow, world.kernel.now);
        assert_eq!(got.proxy_port, if is_limited { PROXIES.l7 } else { 0 }, "{peer}:{number}: {got:?}");
        assert_eq!(matches!(asked, Limits::Rules(_)), is_limited, "{peer}:{number}: {asked:?}");
    }
}

/// Who calls a service through the proxy is judged by the policies of those behind it, since the kernel sees the proxy.
#[test]
fn those_behind_a_service_have_their_say_in_requests() {
    let rule = |peers, l7| vec![rule(Direction::Ingress, peers, l7)];
    for (what, rules, want) in [
        ("no policy", vec![], "free"),
        ("a rule for all", rule(Peers::Any, None), "free"),
        ("a rule for others", rule(of_world(), None), "closed"),
        ("a rule with limits", rule(Peers::Any, Some(L7::ServerNames(vec![]))), "limited"),
    ] {
        let world = in_front_of(rules, OWN[1], 8080);
        let flow = Flow { protocol: 6, port: 80 };
        let asked =
            world.engine.requests().limits(ip(VIRTUAL[0]), ip(OWN[0]), Direction::Ingress, flow, world.kernel.now);
        let got = match asked {
            Limits::Free => "free",
            Limits::Closed(_) => "closed",
            Limits::Rules(_) => "limited",
        };
        assert_eq!(got, want, "{what}");
    }
}
