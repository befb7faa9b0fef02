//! Flows whose peer's address becomes another's: each is judged by who has the address, and no other is touched.

#![expect(clippy::unwrap_used, reason = "a test may panic")]

mod common;

use std::{net::IpAddr, sync::Arc};

use common::{Kernel, SECOND, ip, settings, shared};
use namegate_abi::{Reason, tcp};
use namegate_config::{
    labels::{LabelSelector, Labels, Requirement},
    name::NamePattern,
    peer::NamedPort,
    rule::{
        CidrReach, CidrSelector, Direction, Effect, Entity, Origin, PeerSelector, Peers, PortMatch, Ports, Rule,
        Subject, Tier, Transport,
    },
    services::{Service, ServicePort, Target},
};
use namegate_engine::{Answer, Change, Engine, MapOp, Proxies, Row, Topology, TopologyEndpoint, TopologyNode};

/// The endpoint that is judged, and its interface.
const OWN: [&str; 2] = ["10.0.0.1", "fd00::1"];
const INTERFACE: u32 = 10;
/// Longer than ended names are kept.
const FORGOTTEN: u64 = 3 * 3_600 * SECOND;

/// Engine and maps, with what was told last.
struct World {
    engine: Engine,
    kernel: Kernel,
    topology: Topology,
    rules: Vec<Rule>,
}

fn rule(direction: Direction, peer: PeerSelector) -> Rule {
    Rule {
        origin: Arc::new(Origin { kind: "T".into(), namespace: None, name: "r".into(), path: "x".into() }),
        subject: Subject::Endpoints(LabelSelector::new([Requirement::equals("app", "client")])),
        direction,
        tier: Tier::Normal,
        effect: Effect::Allow,
        default_deny: true,
        peers: Peers::Of(vec![peer]),
        ports: Ports::Any,
        l7: None,
        binding: None,
        named_only: None,
    }
}

fn name(pattern: &str) -> PeerSelector {
    PeerSelector::Name(NamePattern::pattern(pattern).unwrap())
}

fn namespace(name: &str) -> PeerSelector {
    PeerSelector::Labels(LabelSelector::new([Requirement::equals("k8s:io.kubernetes.pod.namespace", name)]))
}

fn cidr(net: &str) -> PeerSelector {
    PeerSelector::Cidr(CidrSelector::new(net.parse().unwrap(), std::iter::empty(), CidrReach::OutsideCluster))
}

fn pod(key: &str, app: &str, addresses: &[&str], interface: Option<u32>) -> Arc<TopologyEndpoint> {
    let namespace = key.split_once('/').unwrap().0;
    Arc::new(TopologyEndpoint {
        key: key.into(),
        labels: Arc::new(Labels::pod(namespace, [("app", app)], [], None)),
        addresses: addresses.iter().map(|text| ip(text)).collect(),
        named_ports: vec![],
        interface,
    })
}

impl World {
    /// The endpoint under these rules, with the pods `others` around.
    fn new(rules: Vec<Rule>, others: &[Arc<TopologyEndpoint>]) -> Self {
        let node = TopologyNode {
            name: "n1".into(),
            labels: Labels::node(true, [("rack", "n1")]),
            addresses: vec![ip("192.168.0.1")],
            local: true,
        };
        let topology = Topology { nodes: vec![node], ..Topology::default() };
        let mut world = Self {
            engine: Engine::new(&settings()),
            kernel: Kernel { now: 1_000 * SECOND, ..Kernel::default() },
            topology,
            rules: rules.clone(),
        };
        world.engine.set_proxies(Proxies { dns: 0, l7: 9_000 });
        world.topology.endpoints = Self::with_own(others);
        let change = Change { rules: Some(shared(rules)), topology: Some(world.topology.clone()) };
        let ops = world.engine.update(change, world.kernel.now);
        world.write(&ops);
        world
    }

    fn with_own(others: &[Arc<TopologyEndpoint>]) -> Vec<Arc<TopologyEndpoint>> {
        let own = pod("x/client", "client", &OWN, Some(INTERFACE));
        std::iter::once(own).chain(others.iter().cloned()).collect()
    }

    fn write(&mut self, ops: &[MapOp]) {
        self.kernel.apply(ops);
        assert_eq!(self.kernel.sorted(), self.engine.rows());
    }

    fn change(&mut self, change: impl FnOnce(&mut Topology)) {
        change(&mut self.topology);
        let change = Change { rules: None, topology: Some(self.topology.clone()) };
        let ops = self.engine.update(change, self.kernel.now);
        self.write(&ops);
    }

    /// Other pods than before.
    fn others(&mut self, others: &[Arc<TopologyEndpoint>]) {
        self.change(|topology| topology.endpoints = Self::with_own(others));
    }

    fn learn(&mut self, name: &str, address: &str, ttl_s: u32) {
        let endpoint = self.engine.endpoint_by_address(ip(OWN[0])).unwrap();
        let answer = Answer { endpoint, names: vec![name.parse().unwrap()], addresses: vec![(ip(address), ttl_s)] };
        let mut ops = Vec::new();
        self.engine.learn(&answer, self.kernel.now, &mut ops).unwrap();
        self.write(&ops);
    }

    /// A packet of the connection with the peer's port 80, or with the endpoint's own.
    fn packet(&mut self, peer: &str, direction: Direction, tcp_flags: u8) -> Reason {
        let peer = ip(peer);
        let own = OWN.map(ip).into_iter().find(|own: &IpAddr| own.is_ipv4() == peer.is_ipv4()).unwrap();
        let ends = match direction {
            Direction::Egress => ((own, 40_000), (peer, 80)),
            Direction::Ingress => ((peer, 40_000), (own, 80)),
        };
        self.kernel.pass(INTERFACE, ends.0, ends.1, direction, tcp_flags)
    }

    fn open(&mut self, peer: &str, direction: Direction) {
        let reason = self.packet(peer, direction, tcp::SYN);
        assert!(!reason.denies(), "{peer}: {reason:?}");
        assert_eq!(self.packet(peer, direction, tcp::ACK), Reason::Established, "{peer}");
    }

    fn goes_on(&mut self, peer: &str, direction: Direction, what: &str) {
        assert_eq!(self.packet(peer, direction, tcp::ACK), Reason::Established, "{what}: {peer}");
    }

    fn ends(&mut self, peer: &str, direction: Direction, what: &str) {
        let reason = self.packet(peer, direction, tcp::ACK);
        assert!(reason.denies(), "{what}: {peer}: {reason:?}");
    }
}

const OUT: Direction = Direction::Egress;
const IN: Direction = Direction::Ingress;

#[test]
fn what_a_name_opened_ends_where_the_address_becomes_a_pods() {
    for peer in ["10.9.0.1", "fd00::9"] {
        for ended in [false, true] {
            let mut world = World::new(vec![rule(OUT, name("a.io"))], &[]);
            world.learn("a.io", peer, 60);
            world.open(peer, OUT);
            if ended {
                world.kernel.now += 61 * SECOND;
                world.goes_on(peer, OUT, "after the TTL");
            }
            let tenant = pod("y/other", "b", &[peer], None);
            world.others(&[tenant]);
            world.ends(peer, OUT, "a pod has the address");
            world.others(&[]);
            world.goes_on(peer, OUT, "the address is outside again");
        }
    }
}

#[test]
fn what_a_name_opened_goes_on_where_the_pod_is_allowed_and_ends_with_it() {
    for peer in ["10.9.0.1", "fd00::9"] {
        let mut world = World::new(vec![rule(OUT, name("a.io")), rule(OUT, namespace("y"))], &[]);
        world.learn("a.io", peer, 60);
        world.open(peer, OUT);
        world.kernel.now += 61 * SECOND;
        world.others(&[pod("y/other", "b", &[peer], None)]);
        world.goes_on(peer, OUT, "to a pod that is allowed");
        world.kernel.now += FORGOTTEN;
        let ops = world.engine.tick(world.kernel.now);
        world.write(&ops);
        world.goes_on(peer, OUT, "to a pod that is allowed");
        world.others(&[]);
        world.ends(peer, OUT, "the pod is gone: it was the pod's flow");
    }
}

#[test]
fn a_flow_ends_where_another_pod_takes_its_peers_address() {
    for direction in [OUT, IN] {
        for peer in ["10.9.0.1", "fd00::9"] {
            for gap in [false, true] {
                let friend = pod("y/friend", "b", &[peer], None);
                let mut world = World::new(vec![rule(direction, namespace("y"))], std::slice::from_ref(&friend));
                world.open(peer, direction);
                if gap {
                    world.others(&[]);
                    world.others(&[pod("z/other", "b", &[peer], None)]);
                } else {
                    world.others(&[pod("z/other", "b", &[peer], None)]);
                }
                world.ends(peer, direction, "another tenant's pod");
                world.others(&[]);
                world.ends(peer, direction, "nobody's");
                world.others(&[friend]);
                world.goes_on(peer, direction, "the same again");
            }
        }
    }
}

#[test]
fn a_flow_with_a_prefix_ends_where_a_pod_takes_the_address_and_back() {
    for (net, peer) in [("10.9.0.0/24", "10.9.0.1"), ("fd00:0:0:9::/64", "fd00:0:0:9::9")] {
        for direction in [OUT, IN] {
            let mut world = World::new(vec![rule(direction, cidr(net))], &[]);
            world.open(peer, direction);
            world.others(&[pod("y/other", "b", &[peer], None)]);
            world.ends(peer, direction, "prefixes outside the cluster hold no pod");
            world.others(&[]);
            world.goes_on(peer, direction, "outside again");
        }
    }
}

/// The address is looked at for the name of the port too.
#[test]
fn a_flow_ends_where_a_pod_with_a_port_that_a_rule_names_takes_the_address() {
    for peer in ["10.9.0.1", "fd00::9"] {
        for direction in [OUT, IN] {
            let by_name = PortMatch::Named { protocol: None, name: "alt".to_owned() };
            let to_port = Rule { ports: Ports::Of(vec![by_name]), ..rule(direction, namespace("y")) };
            let outside = rule(direction, PeerSelector::Entity(Entity::World));
            let mut world = World::new(vec![to_port, outside], &[]);
            world.open(peer, direction);
            let port = NamedPort { name: "alt".into(), protocol: Transport::Tcp, port: 8080 };
            let tenant = TopologyEndpoint::clone(&pod("z/other", "b", &[peer], None));
            world.others(&[Arc::new(TopologyEndpoint { named_ports: vec![port], ..tenant })]);
            world.ends(peer, direction, "a pod has the address");
        }
    }
}

#[test]
fn a_flow_ends_where_a_pod_and_a_rule_about_it_come_together() {
    for peer in ["10.9.0.1", "fd00::9"] {
        for direction in [OUT, IN] {
            let mut world = World::new(vec![rule(direction, PeerSelector::Entity(Entity::World))], &[]);
            world.open(peer, direction);
            let subject = Subject::Endpoints(LabelSelector::new([Requirement::equals("app", "b")]));
            world.rules.push(Rule { subject, ..rule(direction, namespace("z")) });
            world.topology.endpoints = World::with_own(&[pod("z/other", "b", &[peer], Some(INTERFACE + 1))]);
            let change = Change { rules: Some(shared(world.rules.clone())), topology: Some(world.topology.clone()) };
            let ops = world.engine.update(change, world.kernel.now);
            world.write(&ops);
            world.ends(peer, direction, "a pod has the address");
        }
    }
}

#[test]
fn a_flow_to_a_service_ends_with_the_right_to_reach_who_is_behind() {
    for (front, ours, theirs) in [("10.96.0.1", "10.9.0.1", "10.9.0.2"), ("fd00:96::1", "fd00::a1", "fd00::a2")] {
        let service = |target: &str| Service {
            name: "s".into(),
            namespace: "y".into(),
            addresses: vec![ip(front)],
            ports: vec![ServicePort {
                name: None,
                protocol: Transport::Tcp,
                port: 80,
                node_port: None,
                targets: vec![Target { address: ip(target), port: 80 }],
            }],
            ..Service::default()
        };
        let others = [pod("y/ours", "b", &[ours], None), pod("z/theirs", "b", &[theirs], None)];
        let mut world = World::new(vec![rule(OUT, namespace("y"))], &others);
        world.change(|topology| topology.services = vec![service(ours)]);
        world.open(front, OUT);
        world.change(|topology| topology.services = vec![service(theirs)]);
        world.ends(front, OUT, "another tenant is behind");
        world.change(|topology| topology.services = vec![service(ours)]);
        world.goes_on(front, OUT, "as before");
        world.change(|topology| topology.services = vec![]);
        world.ends(front, OUT, "the service is gone");
    }
}

#[test]
fn what_a_name_opened_ends_where_the_address_becomes_a_services_or_a_nodes() {
    for peer in ["10.9.0.1", "fd00::9"] {
        let mut world = World::new(vec![rule(OUT, name("a.io"))], &[]);
        world.learn("a.io", peer, 60);
        world.open(peer, OUT);
        let node = TopologyNode {
            name: "n2".into(),
            labels: Labels::node(false, [("rack", "n2")]),
            addresses: vec![ip(peer)],
            local: false,
        };
        world.change(|topology| topology.nodes.push(node));
        world.ends(peer, OUT, "a node has the address");
        world.change(|topology| topology.nodes.truncate(1));
        world.goes_on(peer, OUT, "outside again");
        world.change(|topology| {
            let port = ServicePort { name: None, protocol: Transport::Tcp, port: 80, node_port: None, targets: vec![] };
            let addresses = vec![ip(peer)];
            topology.services = vec![Service {
                name: "s".into(),
                namespace: "y".into(),
                addresses,
                ports: vec![port],
                ..Service::default()
            }];
        });
        world.ends(peer, OUT, "a service has the address");
    }
}

#[test]
fn a_node_that_moves_away_leaves_no_way_in() {
    for peer in ["192.168.0.1", "fd00:20::1"] {
        let mut world = World::new(vec![rule(IN, namespace("y"))], &[]);
        world.change(|topology| topology.nodes[0].addresses = vec![ip(peer), ip("192.168.0.9")]);
        world.open(peer, IN);
        world.change(|topology| topology.nodes[0].addresses = vec![ip("192.168.0.9")]);
        world.ends(peer, IN, "no address of the node");
    }
}

#[test]
fn other_flows_go_on_however_often_pods_move() {
    let rules = vec![rule(OUT, name("a.io")), rule(OUT, namespace("y")), rule(OUT, cidr("192.0.2.0/24"))];
    let friend = || pod("y/friend", "b", &["10.9.0.7", "fd00::97"], None);
    let leaving = pod("y/leaving", "b", &["10.9.0.8"], None);
    let mut world = World::new(rules, &[friend(), leaving]);
    let named = ["198.51.100.7", "2001:db8::7"];
    for peer in named {
        world.learn("a.io", peer, 60);
    }
    let peers = [named[0], named[1], "10.9.0.7", "fd00::97", "192.0.2.1"];
    for peer in peers {
        world.open(peer, OUT);
    }
    // The name was forgotten long ago; what it opened goes on.
    for _ in 0..8 {
        world.kernel.now += FORGOTTEN / 8;
        for peer in peers {
            world.goes_on(peer, OUT, "while nothing moves");
        }
    }
    let ops = world.engine.tick(world.kernel.now);
    world.write(&ops);
    for others in [
        vec![friend()],
        vec![friend(), pod("z/new", "b", &["10.9.0.9"], None)],
        vec![friend(), pod("z/new", "c", &["10.9.0.9"], None)],
        vec![friend()],
    ] {
        world.others(&others);
        for peer in peers {
            world.goes_on(peer, OUT, "while others move");
        }
    }
}

#[test]
fn a_pod_that_went_while_the_agent_was_away_leaves_no_flow() {
    for (before, after) in [("y/friend", None), ("y/friend", Some("z/other")), ("", Some("z/other"))] {
        let peer = "10.9.0.1";
        let others = |key: &str| if key.is_empty() { vec![] } else { vec![pod(key, "b", &[peer], None)] };
        let mut world = World::new(vec![rule(OUT, namespace("y")), rule(OUT, name("a.io"))], &others(before));
        if before.is_empty() {
            world.learn("a.io", peer, 60);
        }
        world.open(peer, OUT);
        let journal = world.engine.snapshot();
        world.engine = Engine::new(&settings());
        world.engine.set_proxies(Proxies { dns: 0, l7: 9_000 });
        world.engine.restore(journal);
        world.engine.adopt(world.kernel.sorted());
        world.topology.endpoints = World::with_own(&others(after.unwrap_or_default()));
        let change = Change { rules: Some(shared(world.rules.clone())), topology: Some(world.topology.clone()) };
        let ops = world.engine.update(change, world.kernel.now);
        world.write(&ops);
        world.ends(peer, OUT, "another has the address, or nobody");
        // The moment at which flows are looked at again comes after the rows by which they are.
        let last_row = ops.iter().rposition(|op| {
            let key = match op {
                MapOp::Put(row) => row.key(),
                MapOp::Delete(key) => *key,
            };
            matches!(key, namegate_engine::Key::Address(key) if key.scope == 0)
        });
        let switched = ops.iter().rposition(|op| matches!(op, MapOp::Put(Row::Endpoint(..))));
        assert!(last_row < switched, "{ops:?}");
    }
}
