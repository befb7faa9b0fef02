//! What each full map and each bound comes to, one sentence at a time.

#![expect(clippy::unwrap_used, reason = "a test may panic")]

mod common;

use std::{net::IpAddr, sync::Arc};

use common::{Kernel, SECOND, apply, ip, settings, shared, topology};
use namegate_abi::{AddressKey, NODE_INTERFACE, Reason};
use namegate_config::{
    labels::LabelSelector,
    name::NamePattern,
    reference::Flow,
    rule::{
        CidrReach, CidrSelector, Direction, Effect, Entity, Origin, PeerSelector, Peers, PortMatch, Ports, Rule,
        Subject, Tier,
    },
    settings::{Scope, Settings},
};
use namegate_engine::{Answer, Change, EndpointId, Engine, Key, NotOpen, ShortageKind, Topology};

const WEB: Flow = Flow { protocol: 6, port: 443 };
const OWN: [&str; 2] = ["10.0.0.1", "10.0.0.2"];

fn rule(effect: Effect, peers: Vec<PeerSelector>) -> Rule {
    Rule {
        origin: Arc::new(Origin { kind: "T".into(), namespace: None, name: "r".into(), path: format!("{peers:?}") }),
        subject: Subject::Endpoints(LabelSelector::default()),
        direction: Direction::Egress,
        tier: Tier::Normal,
        effect,
        default_deny: true,
        peers: Peers::Of(peers),
        ports: Ports::Any,
        l7: None,
        binding: None,
        named_only: None,
    }
}

fn allow(peers: Vec<PeerSelector>) -> Rule {
    rule(Effect::Allow, peers)
}

fn of_namespace(namespace: &str, mut rule: Rule) -> Rule {
    let origin = Arc::make_mut(&mut rule.origin);
    origin.namespace = Some(namespace.into());
    rule
}

fn name(pattern: &str) -> PeerSelector {
    PeerSelector::Name(NamePattern::pattern(pattern).unwrap())
}

fn net(net: &str, except: &[&str]) -> PeerSelector {
    let except = except.iter().map(|hole| hole.parse().unwrap());
    PeerSelector::Cidr(CidrSelector::new(net.parse().unwrap(), except, CidrReach::OutsideCluster))
}

const WORLD: PeerSelector = PeerSelector::Entity(Entity::World);

fn two_pods() -> Topology {
    pods([true, true])
}

fn pods(here: [bool; 2]) -> Topology {
    let pod = || common::Pod { namespace: "x", app: None, ports: vec![] };
    topology(&here.map(|here| here.then(pod)))
}

/// An engine with two pods of this node, and its gate.
struct Setup {
    engine: Engine,
    kernel: Kernel,
}

impl Setup {
    fn new(settings: &Settings, rules: Vec<Rule>, topology: Topology) -> Self {
        let mut setup =
            Self { engine: Engine::new(settings), kernel: Kernel { now: 1_000 * SECOND, ..Kernel::default() } };
        setup.change(Some(rules), Some(topology));
        setup
    }

    fn change(&mut self, rules: Option<Vec<Rule>>, topology: Option<Topology>) {
        let ops = self.engine.update(Change { rules: rules.map(shared), topology }, self.kernel.now);
        apply(&self.engine, &mut self.kernel, &ops);
    }

    fn endpoint(&self, at: usize) -> EndpointId {
        self.engine.endpoint_by_address(ip(OWN[at])).unwrap()
    }

    fn learn(&mut self, at: usize, names: &[&str], addresses: &[IpAddr], ttl: u32) -> Result<(), NotOpen> {
        let mut ops = Vec::new();
        let answer = Answer {
            endpoint: self.endpoint(at),
            names: names.iter().map(|name| name.parse().unwrap()).collect(),
            addresses: addresses.iter().map(|address| (*address, ttl)).collect(),
        };
        let learned = self.engine.learn(&answer, self.kernel.now, &mut ops);
        apply(&self.engine, &mut self.kernel, &ops);
        learned
    }

    /// Lets seconds go by, with every tick that is due.
    fn pass(&mut self, seconds: u64) {
        let until = self.kernel.now + seconds * SECOND;
        while let Some(due) = self.engine.next_tick().filter(|due| *due <= until) {
            self.kernel.now = self.kernel.now.max(due);
            let ops = self.engine.tick(self.kernel.now);
            apply(&self.engine, &mut self.kernel, &ops);
        }
        self.kernel.now = until;
    }

    fn is_open(&self, at: usize, address: &str) -> bool {
        let interface = 10 + u32::try_from(at).unwrap();
        self.kernel.endpoint(interface).is_some()
            && !self.reason(interface, ip(OWN[at]), address, Direction::Egress).denies()
    }

    fn reason(&self, interface: u32, own: IpAddr, address: &str, direction: Direction) -> Reason {
        self.kernel.judge(interface, own, ip(address), direction, WEB).reason
    }

    fn short(&self) -> Vec<(ShortageKind, String)> {
        self.engine.shortages().into_iter().map(|short| (short.kind, short.subject)).collect()
    }

    fn is_short_of(&self, kind: ShortageKind, subject: &str) -> bool {
        self.short().contains(&(kind, subject.to_owned()))
    }

    fn refused_of(&self, endpoint: &str, what: &str) -> u64 {
        let all = self.engine.refused_of_shares();
        all.iter().find(|(key, found, _)| &**key == endpoint && *found == what).map_or(0, |(.., count)| *count)
    }
}

#[test]
fn a_full_policy_map_closes_the_endpoint_until_there_is_room() {
    let mut settings = settings();
    settings.limits.policy_rows = 8;
    let mut setup = Setup::new(&settings, vec![allow(vec![WORLD])], two_pods());
    assert!(setup.is_open(0, "192.0.2.1") && setup.short().is_empty());
    let ports = (0..9).map(|at| PortMatch::Icmp { v6: false, kind: at * 2 }).collect();
    let wide = Rule { ports: Ports::Of(ports), ..allow(vec![PeerSelector::Entity(Entity::Cluster)]) };
    setup.change(Some(vec![wide]), None);
    assert!(!setup.is_open(0, "192.0.2.1"), "what the old policy allows is not allowed any more");
    assert!(setup.is_short_of(ShortageKind::Rows, "POLICY") && setup.is_short_of(ShortageKind::Closed, "any/p0"));
    // The node is kept out too: a rule might say so.
    let from_node = setup.reason(10, ip(OWN[0]), "192.168.0.1", Direction::Ingress);
    assert!(from_node.denies(), "{from_node:?}");
    setup.change(Some(vec![allow(vec![WORLD])]), None);
    assert!(setup.is_open(0, "192.0.2.1") && setup.short().is_empty());
}

/// One policy takes the place of another of about the same size in a map that has no room for both.
#[test]
fn a_policy_takes_the_room_of_the_one_before() {
    let mut settings = settings();
    let ports = |first: u8| Ports::Of((0..6).map(|at| PortMatch::Icmp { v6: false, kind: first + at * 2 }).collect());
    let of = |first| Rule { ports: ports(first), peers: Peers::Any, ..allow(vec![]) };
    settings.limits.policy_rows = 8;
    let mut setup = Setup::new(&settings, vec![of(0)], two_pods());
    setup.change(Some(vec![of(20)]), None);
    assert_eq!(setup.short(), []);
    let echo = Flow { protocol: 1, port: 20 << 8 };
    let reason = setup.kernel.judge(10, ip(OWN[0]), ip("192.0.2.1"), Direction::Egress, echo).reason;
    assert_eq!(reason, Reason::Rule);
}

#[test]
fn denials_whose_prefixes_find_no_room_close_what_they_narrow() {
    let denied = || rule(Effect::Deny, vec![net("192.0.2.0/24", &[])]);
    let except = || allow(vec![net("192.0.2.0/24", &["192.0.2.7/32"])]);
    let of_all = || net("0.0.0.0/0", &[]);
    for (what, cidrs, rules) in [
        ("a denial below the world", 1, vec![allow(vec![WORLD, net("198.51.100.0/24", &[])]), denied()]),
        ("a denial below a prefix", 1, vec![allow(vec![of_all()]), denied()]),
        ("a hole", 1, vec![except()]),
        (
            "a denial of another namespace",
            2,
            vec![of_namespace("y", allow(vec![of_all(), net("198.51.100.0/24", &[])])), of_namespace("x", denied())],
        ),
    ] {
        let mut settings = settings();
        settings.limits.cidrs = cidrs;
        let mut setup = Setup::new(&settings, rules, two_pods());
        assert!(!setup.is_open(0, "192.0.2.7"), "{what}");
        assert!(!setup.short().is_empty(), "{what}");
        setup.change(Some(vec![allow(vec![of_all()])]), None);
        assert!(setup.is_open(0, "192.0.2.7") && setup.short().is_empty(), "{what}");
    }
}

#[test]
fn a_prefix_that_only_opens_is_left_out_and_closes_nobody() {
    let mut settings = settings();
    settings.limits.cidrs = 1;
    let setup =
        Setup::new(&settings, vec![allow(vec![net("192.0.2.0/24", &[]), net("198.51.100.0/24", &[])])], two_pods());
    let open = ["192.0.2.7", "198.51.100.7"].map(|address| setup.is_open(0, address));
    assert_eq!(open.iter().filter(|open| **open).count(), 1);
    assert_eq!(setup.short(), [(ShortageKind::Rows, "CIDRS".to_owned())]);
}

#[test]
fn a_pod_without_a_row_is_not_the_world() {
    let mut settings = settings();
    settings.limits.addresses = 3;
    let setup = Setup::new(&settings, vec![allow(vec![WORLD])], two_pods());
    assert!(setup.is_short_of(ShortageKind::Rows, "ADDRESSES"));
    for peer in ["10.0.0.2", "192.168.0.1", "192.168.0.2"] {
        assert!(!setup.is_open(0, peer), "{peer}");
    }
}

#[test]
fn learned_addresses_leave_room_for_pods() {
    let mut settings = settings();
    settings.limits.addresses = 10;
    settings.limits.addresses_reserved = Some(5);
    let here = || pods([true, false]);
    let mut setup = Setup::new(&settings, vec![allow(vec![name("*.io"), WORLD])], here());
    let mut open = 0;
    for at in 0..20 {
        open += usize::from(setup.learn(0, &[&format!("n{at}.io")], &[ip(&format!("192.0.2.{at}"))], 60).is_ok());
    }
    assert!(open >= 5, "the world is open without a row: {open}");
    setup.change(None, Some(two_pods()));
    assert!(!setup.is_short_of(ShortageKind::Rows, "ADDRESSES"), "{:?}", setup.short());
    assert!(!setup.is_open(0, "10.0.0.2") && setup.is_open(0, "192.0.2.250"));
}

#[test]
fn an_address_that_finds_no_room_is_reported_and_opened_later() {
    let mut settings = settings();
    settings.limits.addresses = 5;
    let mut setup = Setup::new(&settings, vec![allow(vec![name("*.io")])], two_pods());
    assert_eq!(setup.learn(0, &["a.io"], &[ip("192.0.2.1")], 5), Ok(()));
    assert_eq!(setup.learn(0, &["a.io"], &[ip("192.0.2.2")], 60), Err(NotOpen::NoRoom));
    assert!(setup.is_open(0, "192.0.2.1") && !setup.is_open(0, "192.0.2.2"));
    assert!(setup.is_short_of(ShortageKind::Withheld, "any/p0"));
    setup.pass(7);
    assert!(setup.is_open(0, "192.0.2.2") && setup.short().is_empty(), "{:?}", setup.short());
}

#[test]
fn names_that_no_rule_of_the_endpoint_uses_are_answered_without_room() {
    let mut settings = settings();
    settings.limits.addresses = 4;
    let mut setup = Setup::new(&settings, vec![allow(vec![name("*.io")])], two_pods());
    assert_eq!(setup.learn(0, &["a.org"], &[ip("192.0.2.1")], 60), Ok(()));
    assert_eq!(setup.learn(0, &["a.io"], &[ip("192.0.2.1")], 60), Err(NotOpen::NoRoom));
}

#[test]
fn more_endpoints_than_rows_are_closed() {
    let mut settings = settings();
    settings.limits.endpoints = 1;
    let mut on_node = allow(vec![WORLD]);
    on_node.subject = Subject::Nodes(LabelSelector::default());
    let mut setup = Setup::new(&settings, vec![allow(vec![WORLD]), on_node], two_pods());
    assert!(setup.is_open(0, "192.0.2.1"));
    assert_eq!(setup.kernel.endpoint(11), None, "the programs deny an interface without a row");
    assert!(setup.kernel.endpoint(NODE_INTERFACE).is_some(), "the node's row has a place of its own");
    assert!(setup.is_short_of(ShortageKind::Closed, "any/p1") && !setup.is_short_of(ShortageKind::Closed, "host"));
    setup.change(None, Some(pods([false, true])));
    assert!(setup.is_open(1, "192.0.2.1") && setup.short().is_empty());
}

#[test]
fn an_answer_with_too_many_addresses_is_not_let_out() {
    let mut settings = settings();
    settings.dns.addresses_per_name_max = 3;
    let mut setup = Setup::new(&settings, vec![allow(vec![name("*.io")])], two_pods());
    let v4: Vec<IpAddr> = (1..=4).map(|at| ip(&format!("192.0.2.{at}"))).collect();
    let v6: Vec<IpAddr> = (1..=4).map(|at| ip(&format!("2001:db8::{at}"))).collect();
    for addresses in [&v4, &v6] {
        assert_eq!(setup.learn(0, &["a.io"], addresses, 60), Err(NotOpen::TooMany));
        assert!(!setup.is_open(0, &addresses[0].to_string()));
        assert_eq!(setup.learn(0, &["a.org"], addresses, 60), Ok(()), "no rule is about the name");
    }
    assert_eq!(setup.learn(0, &["a.io"], &v4[..3], 60), Ok(()));
    // Addresses of an earlier answer give way, whatever their TTL, and none of this one.
    assert_eq!(setup.learn(0, &["a.io"], &v4[1..], 10), Ok(()));
    let open: Vec<bool> = v4.iter().map(|address| setup.is_open(0, &address.to_string())).collect();
    assert_eq!(open, [false, true, true, true]);
    assert!(setup.refused_of("any/p0", "dns.addressesPerNameMax") > 0);
}

#[test]
fn a_chain_longer_than_the_bound_of_names_is_not_let_out_closed() {
    let mut settings = settings();
    settings.dns.names_per_endpoint_max = 1;
    let mut setup = Setup::new(&settings, vec![allow(vec![name("a.io")])], two_pods());
    let learned = setup.learn(0, &["a.io", "b.org", "c.org"], &[ip("192.0.2.1")], 60);
    assert_eq!(learned.is_ok(), setup.is_open(0, "192.0.2.1"));
}

#[test]
fn names_without_a_rule_push_out_no_name_with_one() {
    let mut settings = settings();
    settings.dns.names_per_endpoint_max = 4;
    let mut setup = Setup::new(&settings, vec![allow(vec![name("*.io")])], two_pods());
    setup.learn(0, &["a.io"], &[ip("192.0.2.1")], 600).unwrap();
    for at in 0..50 {
        setup.learn(0, &[&format!("n{at}.org")], &[ip("198.51.100.7")], 600).unwrap();
    }
    assert!(setup.is_open(0, "192.0.2.1"));
    assert!(setup.refused_of("any/p0", "dns.namesPerEndpointMax") >= 46);
}

#[test]
fn ended_names_give_way_first() {
    let mut settings = settings();
    settings.dns.names_per_endpoint_max = 2;
    let mut setup = Setup::new(&settings, vec![allow(vec![name("*.io")])], two_pods());
    setup.learn(0, &["a.io"], &[ip("192.0.2.1")], 600).unwrap();
    setup.learn(0, &["b.io"], &[ip("192.0.2.2")], 2).unwrap();
    setup.pass(3);
    setup.learn(0, &["c.io"], &[ip("192.0.2.3")], 600).unwrap();
    let open = ["192.0.2.1", "192.0.2.2", "192.0.2.3"].map(|address| setup.is_open(0, address));
    assert_eq!(open, [true, false, true]);
}

#[test]
fn hundreds_of_names_at_one_address_do_not_close_an_allowed_one() {
    for scope in [Scope::Endpoint, Scope::Node] {
        let mut settings = settings();
        settings.dns.scope = scope;
        let rules = vec![allow(vec![name("a.io")]), Rule { ports: Ports::Of(vec![]), ..allow(vec![name("*.org")]) }];
        let mut setup = Setup::new(&settings, rules, two_pods());
        setup.learn(0, &["a.io"], &[ip("192.0.2.1")], 10).unwrap();
        for at in 0..600 {
            setup.learn(0, &[&format!("n{at}.com")], &[ip("192.0.2.1")], 600).unwrap();
            setup.learn(0, &[&format!("n{at}.org")], &[ip("192.0.2.1")], 600).unwrap();
            setup.learn(1, &[&format!("m{at}.org")], &[ip("192.0.2.1")], 600).unwrap();
        }
        assert!(setup.is_open(0, "192.0.2.1"), "{scope:?}");
        let key = AddressKey {
            scope: if scope == Scope::Node { u32::MAX } else { setup.endpoint(0).0 },
            address: ip("192.0.2.1").into(),
        };
        assert!(setup.kernel.rows.contains_key(&Key::Address(key)));
    }
}

#[test]
fn one_endpoint_takes_its_share_of_learned_addresses() {
    for scope in [Scope::Endpoint, Scope::Node] {
        let mut settings = settings();
        settings.dns.scope = scope;
        settings.limits.addresses = 40;
        settings.limits.addresses_per_endpoint = Some(5);
        let mut setup = Setup::new(&settings, vec![allow(vec![name("*.io")])], two_pods());
        let mut open = 0;
        for at in 0..30 {
            let learned = setup.learn(0, &[&format!("n{at}.io")], &[ip(&format!("192.0.2.{at}"))], 600);
            open += usize::from(learned.is_ok());
        }
        assert_eq!(open, 5, "{scope:?}");
        assert!(setup.refused_of("any/p0", "limits.addressesPerEndpoint") > 0);
        assert_eq!(setup.learn(1, &["a.io"], &[ip("198.51.100.7")], 600), Ok(()), "{scope:?}");
        assert!(setup.is_open(1, "198.51.100.7"));
    }
}

/// A topology with one pod each of two namespaces on this node.
fn two_namespaces() -> Topology {
    let mut topology = two_pods();
    for (at, namespace) in ["a", "b"].iter().enumerate() {
        let pod = Arc::make_mut(&mut topology.endpoints[at]);
        pod.key = format!("{namespace}/p{at}").into();
        pod.labels = Arc::new(namegate_config::labels::Labels::pod(namespace, [("app", "x")], [], None));
    }
    topology
}

fn subject(namespace: &str, rule: Rule) -> Rule {
    let requirement = namegate_config::labels::Requirement::equals("k8s:io.kubernetes.pod.namespace", namespace);
    Rule { subject: Subject::Endpoints(LabelSelector::new([requirement])), ..of_namespace(namespace, rule) }
}

#[test]
fn the_prefixes_of_one_namespace_leave_room_for_those_of_others() {
    let mut settings = settings();
    settings.limits.cidrs = 10;
    settings.limits.cidrs_per_namespace = Some(4);
    let many = (0..20).map(|at| net(&format!("198.51.{at}.0/24"), &[])).collect();
    let denied = subject("b", rule(Effect::Deny, vec![net("192.0.2.0/24", &[])]));
    let rules = vec![subject("a", allow(many)), subject("b", allow(vec![WORLD])), denied];
    let setup = Setup::new(&settings, rules, two_namespaces());
    let open: usize = (0..20).map(|at| usize::from(setup.is_open(0, &format!("198.51.{at}.1")))).sum();
    assert_eq!(open, 4);
    assert!(setup.is_open(1, "203.0.113.1") && !setup.is_open(1, "192.0.2.1"));
    assert_eq!(setup.short(), [(ShortageKind::Share, "a limits.cidrsPerNamespace".to_owned())]);
    assert!(setup.refused_of("a", "limits.cidrsPerNamespace") > 0);
}

#[test]
fn a_denial_above_the_share_of_its_namespace_closes_that_namespace_alone() {
    let mut settings = settings();
    settings.limits.cidrs_per_namespace = Some(2);
    let many = (0..9).map(|at| net(&format!("198.51.{at}.0/24"), &[])).collect();
    let rules = vec![
        subject("a", allow(vec![WORLD])),
        subject("a", rule(Effect::Deny, many)),
        subject("b", allow(vec![WORLD])),
    ];
    let setup = Setup::new(&settings, rules, two_namespaces());
    let open: usize = (0..9).map(|at| usize::from(setup.is_open(0, &format!("198.51.{at}.1")))).sum();
    assert_eq!(open, 0);
    assert!(setup.is_open(1, "198.51.1.1"));
    assert!(setup.is_short_of(ShortageKind::Closed, "a/p0") && !setup.is_short_of(ShortageKind::Closed, "b/p1"));
}

#[test]
fn the_policy_rows_of_one_namespace_leave_room_for_those_of_others() {
    let mut settings = settings();
    settings.limits.policy_rows = 60;
    settings.limits.policy_rows_per_namespace = Some(20);
    let ports = (0..40).map(|at| PortMatch::Icmp { v6: false, kind: at * 2 }).collect();
    let greedy = subject("a", Rule { ports: Ports::Of(ports), peers: Peers::Any, ..allow(vec![]) });
    let mut setup =
        Setup::new(&settings, vec![greedy, subject("b", allow(vec![WORLD, name("*.io")]))], two_namespaces());
    assert!(setup.is_open(1, "192.0.2.1"));
    assert!(setup.is_short_of(ShortageKind::Closed, "a/p0") && !setup.is_short_of(ShortageKind::Closed, "b/p1"));
    assert!(setup.refused_of("a", "limits.policyRowsPerNamespace") > 0);
    assert_eq!(setup.learn(1, &["a.io"], &[ip("192.0.2.9")], 60), Ok(()));
}

/// Names that one endpoint learns take no rows of another's policy, though a pattern of that matches them.
#[test]
fn names_of_one_endpoint_take_no_policy_rows_of_another_namespace() {
    let mut settings = settings();
    settings.limits.policy_rows_per_namespace = Some(8);
    settings.limits.policy_rows = 100;
    let patterns = ["*.io", "a.*", "*", "**.io", "b.*", "c.*"];
    let of_b = patterns.iter().map(|pattern| subject("b", allow(vec![name(pattern)])));
    let rules: Vec<Rule> = std::iter::once(subject("a", allow(vec![name("*")]))).chain(of_b).collect();
    let mut setup = Setup::new(&settings, rules, two_namespaces());
    for (at, asked) in ["a.io", "b.io", "c.io", "d.io", "a.org", "b.org", "c.org", "x.y.io"].iter().enumerate() {
        // It may find its own share used up.
        let _ = setup.learn(1, &[asked], &[ip(&format!("192.0.2.{at}"))], 60);
    }
    assert_eq!(setup.learn(0, &["a.io"], &[ip("198.51.100.1")], 60), Ok(()));
    assert!(setup.is_open(0, "198.51.100.1") && !setup.is_open(0, "192.0.2.0"));
}

/// A name with one address counts 576 bytes.
#[test]
fn names_that_take_too_many_bytes_give_way_and_close() {
    for scope in [Scope::Endpoint, Scope::Node] {
        let mut settings = settings();
        settings.dns.scope = scope;
        settings.limits.learned_bytes_per_endpoint = 4 * 576;
        let mut setup = Setup::new(&settings, vec![allow(vec![name("*.io")])], two_pods());
        let address = |at: usize| format!("192.0.2.{at}");
        for at in 0..6 {
            setup.learn(0, &[&format!("n{at}.io")], &[ip(&address(at))], 600).unwrap();
        }
        let open: Vec<bool> = (0..6).map(|at| setup.is_open(0, &address(at))).collect();
        assert_eq!(open, [false, false, true, true, true, true], "{scope:?}");
        assert_eq!(setup.refused_of("any/p0", "limits.learnedBytesPerEndpoint"), 2);
        assert_eq!(setup.learn(1, &["a.io"], &[ip("198.51.100.7")], 600), Ok(()), "{scope:?}");
        // One name that is larger than all that the endpoint may have is not let out.
        let many: Vec<IpAddr> = (0..40).map(|at| ip(&format!("203.0.113.{at}"))).collect();
        assert_eq!(setup.learn(0, &["large.io"], &many, 600), Err(NotOpen::NoRoom), "{scope:?}");
        assert!(!setup.is_open(0, "203.0.113.0") && setup.is_open(1, "198.51.100.7"), "{scope:?}");
    }
}
