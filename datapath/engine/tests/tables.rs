//! What the engine promises, one sentence at a time.

#![expect(clippy::unwrap_used, reason = "a test may panic")]

mod common;

use std::sync::Arc;

use common::{Kernel, SECOND, apply, ip, settings, shared, topology};
use namegate_abi::{AddressKey, Reason, endpoint_flags, policy_flags};
use namegate_config::{
    l7::L7,
    labels::LabelSelector,
    name::Fqdn,
    name::NamePattern,
    reference::{Flow, Limits},
    rule::{
        Binding, Direction, Effect, Entity, Origin, PeerSelector, Peers, PortMatch, Ports, RangeInclusive16, Rule,
        Subject, Tier, Transport,
    },
    settings::{PrivateAnswers, Scope, Settings},
};
use namegate_engine::{Answer, Change, EndpointId, Engine, Key, MapOp, NamesAt, NotOpen, PolicyView, Proxies, Row};

const WEB: Flow = Flow { protocol: 6, port: 443 };
const OWN: &str = "10.0.0.1";

fn allow(peers: Vec<PeerSelector>) -> Rule {
    Rule {
        origin: Arc::new(Origin { kind: "T".into(), namespace: None, name: "r".into(), path: "egress[0]".into() }),
        subject: Subject::Endpoints(LabelSelector::default()),
        direction: Direction::Egress,
        tier: Tier::Normal,
        effect: Effect::Allow,
        default_deny: true,
        peers: Peers::Of(peers),
        ports: Ports::Any,
        l7: None,
        binding: None,
        named_only: None,
    }
}

fn name(pattern: &str) -> PeerSelector {
    PeerSelector::Name(NamePattern::pattern(pattern).unwrap())
}

/// An engine with two pods of this node under the rules, and its gate.
struct Setup {
    engine: Engine,
    kernel: Kernel,
}

fn pods(here: [bool; 2]) -> Vec<Option<common::Pod>> {
    let pod = || common::Pod { namespace: "x", app: None, ports: vec![] };
    here.map(|here| here.then(pod)).into()
}

impl Setup {
    fn new(settings: &Settings, rules: Vec<Rule>) -> Self {
        let mut engine = Engine::new(settings);
        let mut kernel = Kernel { now: 1_000 * SECOND, ..Kernel::default() };
        let change = Change { rules: Some(shared(rules)), topology: Some(topology(&pods([true, true]))) };
        kernel.apply(&engine.update(change, kernel.now));
        Self { engine, kernel }
    }

    fn endpoint(&self, at: usize) -> EndpointId {
        self.engine.endpoints()[at].id
    }

    fn learn(&mut self, at: usize, name: &str, address: &str, ttl: u32) -> Result<(), NotOpen> {
        let (endpoint, names) = (self.endpoint(at), vec![name.parse().unwrap()]);
        let mut ops = Vec::new();
        let answer = Answer { endpoint, names, addresses: vec![(ip(address), ttl)] };
        let learned = self.engine.learn(&answer, self.kernel.now, &mut ops);
        apply(&self.engine, &mut self.kernel, &ops);
        learned
    }

    fn tick(&mut self) {
        let ops = self.engine.tick(self.kernel.now);
        apply(&self.engine, &mut self.kernel, &ops);
    }

    /// What a new connection from pod `at` to the address comes to.
    fn reason(&self, at: usize, address: &str) -> Reason {
        let own = ["10.0.0.1", "10.0.0.2"][at];
        self.kernel.judge(10 + u32::try_from(at).unwrap(), ip(own), ip(address), Direction::Egress, WEB).reason
    }

    fn refused(&self, what: &str) -> u64 {
        self.engine.refused().iter().find(|(found, _)| *found == what).map_or(0, |(_, count)| *count)
    }

    fn steps(&self, address: &str) -> usize {
        let key = AddressKey { scope: self.endpoint(0).0, address: ip(address).into() };
        match self.kernel.rows.get(&Key::Address(key)) {
            Some(Row::Address(_, value)) => value.steps.iter().filter(|step| step.identity != 0).count(),
            _ => 0,
        }
    }
}

#[test]
fn a_name_opens_until_its_ttl_ends_even_if_nobody_ticks() {
    let mut setup = Setup::new(&settings(), vec![allow(vec![name("*.io")])]);
    assert_eq!(setup.reason(0, "192.0.2.1"), Reason::DefaultDeny);
    setup.learn(0, "a.io", "192.0.2.1", 5).unwrap();
    for (after, want) in [(0, Reason::Rule), (4, Reason::Rule), (5, Reason::NameExpired), (9, Reason::NameExpired)] {
        let kernel = Kernel { now: setup.kernel.now + after * SECOND, ..setup.kernel.clone() };
        let got = kernel.judge(10, ip(OWN), ip("192.0.2.1"), Direction::Egress, WEB).reason;
        assert_eq!(got, want, "after {after} s");
    }
    assert_eq!(setup.reason(1, "192.0.2.1"), Reason::DefaultDeny, "another endpoint did not ask");
}

#[test]
fn an_hour_after_its_end_a_name_is_forgotten() {
    let mut setup = Setup::new(&settings(), vec![allow(vec![name("a.io")])]);
    setup.learn(0, "a.io", "192.0.2.1", 5).unwrap();
    let before = setup.engine.identity_count();
    setup.kernel.now += 6 * SECOND;
    setup.tick();
    let names = setup.engine.names_of(setup.endpoint(0), ip("192.0.2.1"), setup.kernel.now);
    assert!(names[0].ended && names[0].name.as_str() == "a.io");
    assert_eq!(setup.engine.lookups(setup.kernel.now).count(), 0);
    setup.kernel.now += 3_600 * SECOND;
    setup.tick();
    assert_eq!(setup.reason(0, "192.0.2.1"), Reason::DefaultDeny);
    assert!(setup.engine.names_of(setup.endpoint(0), ip("192.0.2.1"), setup.kernel.now).is_empty());
    assert!(setup.engine.identity_count() < before && setup.engine.next_tick().is_none());
}

#[test]
fn more_ends_than_steps_close_early_and_a_tick_is_exact() {
    let selectors = (0..6).map(|at| name(&format!("n{at}.io"))).collect::<Vec<_>>();
    // A rule for each name alone, so that the rows tell which names are alive.
    let rules = selectors.iter().map(|selector| allow(vec![selector.clone()])).collect();
    let mut setup = Setup::new(&settings(), rules);
    for at in 0..6_u32 {
        setup.learn(0, &format!("n{at}.io"), "192.0.2.1", 10 * (at + 1)).unwrap();
    }
    assert_eq!(setup.steps("192.0.2.1"), 4);
    let start = setup.kernel.now;
    for after in [35, 45, 55, 59] {
        let kernel = Kernel { now: start + after * SECOND, ..setup.kernel.clone() };
        let got = kernel.judge(10, ip(OWN), ip("192.0.2.1"), Direction::Egress, WEB).reason;
        assert_eq!(got, Reason::Rule, "the name that outlives all stays open without a tick, after {after} s");
    }
    let kernel = Kernel { now: start + 60 * SECOND, ..setup.kernel.clone() };
    assert!(kernel.judge(10, ip(OWN), ip("192.0.2.1"), Direction::Egress, WEB).reason.denies());
    for (after, left) in [(10, 4), (20, 4), (30, 3), (40, 2), (50, 1)] {
        assert!(setup.engine.next_tick().unwrap() <= start + after * SECOND);
        setup.kernel.now = start + after * SECOND;
        setup.tick();
        assert_eq!(setup.steps("192.0.2.1"), left, "after {after} s");
    }
}

#[test]
fn a_later_answer_moves_an_end_back_and_never_forward() {
    let mut setup = Setup::new(&settings(), vec![allow(vec![name("a.io")])]);
    setup.learn(0, "a.io", "192.0.2.1", 50).unwrap();
    setup.learn(0, "a.io", "192.0.2.1", 10).unwrap();
    setup.kernel.now += 40 * SECOND;
    assert_eq!(setup.reason(0, "192.0.2.1"), Reason::Rule);
    setup.learn(0, "a.io", "192.0.2.1", 50).unwrap();
    setup.kernel.now += 40 * SECOND;
    assert_eq!(setup.reason(0, "192.0.2.1"), Reason::Rule);
}

#[test]
fn ttls_are_kept_within_their_bounds() {
    let mut settings = settings();
    (settings.dns.min_ttl_s, settings.dns.max_ttl_s) = (10, 20);
    let mut setup = Setup::new(&settings, vec![allow(vec![name("*")])]);
    setup.learn(0, "a.io", "192.0.2.1", 0).unwrap();
    setup.learn(0, "a.io", "192.0.2.2", 9_999).unwrap();
    for (after, first, second) in [(9, true, true), (10, false, true), (20, false, false)] {
        let kernel = Kernel { now: setup.kernel.now + after * SECOND, ..setup.kernel.clone() };
        let open = |address| !kernel.judge(10, ip(OWN), ip(address), Direction::Egress, WEB).reason.denies();
        assert_eq!((open("192.0.2.1"), open("192.0.2.2")), (first, second), "after {after} s");
    }
}

#[test]
fn the_oldest_name_gives_way_at_the_bound_and_closes() {
    let mut settings = settings();
    settings.dns.names_per_endpoint_max = 2;
    let mut setup = Setup::new(&settings, vec![allow(vec![name("*.io")])]);
    setup.learn(0, "a.io", "192.0.2.1", 60).unwrap();
    setup.learn(0, "b.io", "192.0.2.2", 60).unwrap();
    setup.learn(0, "a.io", "192.0.2.1", 60).unwrap();
    setup.learn(0, "c.io", "192.0.2.3", 60).unwrap();
    let reasons = ["192.0.2.1", "192.0.2.2", "192.0.2.3"].map(|address| setup.reason(0, address));
    assert_eq!(reasons, [Reason::Rule, Reason::DefaultDeny, Reason::Rule]);
    assert_eq!(setup.refused("dns.namesPerEndpointMax"), 1);
}

#[test]
fn the_address_that_ends_first_gives_way_at_the_bound_and_closes() {
    let mut settings = settings();
    settings.dns.addresses_per_name_max = 2;
    let mut setup = Setup::new(&settings, vec![allow(vec![name("*.io")])]);
    for (address, ttl) in [("192.0.2.1", 60), ("192.0.2.2", 30), ("192.0.2.3", 60)] {
        setup.learn(0, "a.io", address, ttl).unwrap();
    }
    let reasons = ["192.0.2.1", "192.0.2.2", "192.0.2.3"].map(|address| setup.reason(0, address));
    assert_eq!(reasons, [Reason::Rule, Reason::DefaultDeny, Reason::Rule]);
    assert_eq!(setup.refused("dns.addressesPerNameMax"), 1);
}

#[test]
fn names_of_one_address_are_bounded() {
    let mut setup = Setup::new(&settings(), vec![allow(vec![name("*.io")])]);
    for at in 0..300 {
        setup.learn(0, &format!("n{at}.io"), "192.0.2.1", 60).unwrap();
    }
    assert_eq!(setup.engine.names_of(setup.endpoint(0), ip("192.0.2.1"), setup.kernel.now).len(), 256);
    assert_eq!(setup.engine.lookups(setup.kernel.now).count(), 256);
}

#[test]
fn forgotten_names_close_at_once() {
    let mut setup = Setup::new(&settings(), vec![allow(vec![name("*.io")])]);
    setup.learn(0, "a.io", "192.0.2.1", 60).unwrap();
    setup.learn(0, "b.io", "192.0.2.2", 60).unwrap();
    setup.learn(1, "a.io", "192.0.2.1", 60).unwrap();
    let first = setup.endpoint(0);
    let wanted = |lookup: &namegate_engine::Lookup<'_>| lookup.endpoint == first && lookup.name.as_str() == "a.io";
    let (forgotten, ops) = setup.engine.forget(&wanted, setup.kernel.now);
    apply(&setup.engine, &mut setup.kernel, &ops);
    assert_eq!((forgotten.names, forgotten.addresses), (1, 1));
    let open = |at, address| setup.reason(at, address) == Reason::Rule;
    assert_eq!((open(0, "192.0.2.1"), open(0, "192.0.2.2"), open(1, "192.0.2.1")), (false, true, true));
}

#[test]
fn private_answers_open_by_default_and_not_under_deny() {
    for (setting, want) in [(PrivateAnswers::Allow, Reason::Rule), (PrivateAnswers::Deny, Reason::DefaultDeny)] {
        let mut settings = settings();
        settings.dns.private_answers = setting;
        let mut setup = Setup::new(&settings, vec![allow(vec![name("*.io")])]);
        for address in ["10.9.9.9", "172.16.0.1", "100.64.0.1", "fd00::9"] {
            setup.learn(0, "a.io", address, 60).unwrap();
            assert_eq!(setup.reason(0, address), want, "{address} {setting:?}");
        }
        setup.learn(0, "a.io", "192.0.2.1", 60).unwrap();
        assert_eq!(setup.reason(0, "192.0.2.1"), Reason::Rule);
        assert_eq!(setup.refused("dns.privateAnswers"), if setting == PrivateAnswers::Deny { 4 } else { 0 });
    }
}

#[test]
fn a_name_never_opens_a_pod_or_a_node() {
    let mut setup = Setup::new(&settings(), vec![allow(vec![name("*")])]);
    for address in ["10.0.0.2", "192.168.0.1", "192.168.0.2"] {
        setup.learn(0, "a.io", address, 60).unwrap();
        assert_eq!(setup.reason(0, address), Reason::DefaultDeny, "{address}");
    }
    assert_eq!(setup.refused("answers with addresses of pods and nodes"), 3);
}

#[test]
fn scope_node_opens_for_every_endpoint() {
    let mut settings = settings();
    settings.dns.scope = Scope::Node;
    let mut setup = Setup::new(&settings, vec![allow(vec![name("*.io")])]);
    setup.learn(0, "a.io", "192.0.2.1", 60).unwrap();
    assert_eq!((setup.reason(0, "192.0.2.1"), setup.reason(1, "192.0.2.1")), (Reason::Rule, Reason::Rule));
}

#[test]
fn a_policy_that_comes_later_opens_what_is_still_alive() {
    let mut setup = Setup::new(&settings(), vec![allow(vec![])]);
    setup.learn(0, "a.io", "192.0.2.1", 60).unwrap();
    assert_eq!(setup.reason(0, "192.0.2.1"), Reason::DefaultDeny);
    assert_eq!(setup.steps("192.0.2.1"), 0, "no selector matches: no row");
    let change = Change { rules: Some(shared(vec![allow(vec![name("a.io")])])), topology: None };
    let ops = setup.engine.update(change, setup.kernel.now);
    apply(&setup.engine, &mut setup.kernel, &ops);
    assert_eq!(setup.reason(0, "192.0.2.1"), Reason::Rule);
}

#[test]
fn a_known_name_costs_one_write_whatever_the_number_of_rules() {
    let rules = (0..50).map(|_| allow(vec![name("*.io"), name("a.*")])).collect();
    let mut setup = Setup::new(&settings(), rules);
    setup.learn(0, "a.io", "192.0.2.1", 60).unwrap();
    setup.kernel.now += SECOND;
    let (endpoint, names) = (setup.endpoint(1), vec!["a.io".parse().unwrap()]);
    let mut ops = Vec::new();
    let answer = Answer { endpoint, names, addresses: vec![(ip("192.0.2.9"), 60)] };
    setup.engine.learn(&answer, setup.kernel.now, &mut ops).unwrap();
    assert!(matches!(ops[..], [MapOp::Put(Row::Address(..))]), "{ops:?}");
}

#[test]
fn flags_follow_rules_and_settings() {
    let ingress = Rule { direction: Direction::Ingress, ..allow(vec![]) };
    let egress = allow(vec![]);
    let (in_, out, dns) =
        (endpoint_flags::ENFORCE_INGRESS, endpoint_flags::ENFORCE_EGRESS, endpoint_flags::OBSERVE_DNS);
    for (rules, directions, audit, want) in [
        (vec![], &[Direction::Egress, Direction::Ingress][..], false, 0),
        (vec![egress.clone()], &[Direction::Egress, Direction::Ingress], false, out | dns),
        (vec![ingress.clone()], &[Direction::Egress, Direction::Ingress], false, in_),
        (vec![ingress.clone(), egress.clone()], &[Direction::Egress], false, out | dns),
        (vec![ingress, egress], &[Direction::Ingress], true, in_ | endpoint_flags::AUDIT),
    ] {
        let mut settings = settings();
        (settings.directions, settings.audit) = (directions.to_vec(), audit);
        let setup = Setup::new(&settings, rules);
        assert_eq!(setup.kernel.endpoint(10).unwrap().flags, want, "{directions:?} {audit}");
    }
}

#[test]
fn an_endpoint_that_leaves_takes_its_names_and_its_number() {
    let mut setup = Setup::new(&settings(), vec![allow(vec![name("*.io")])]);
    setup.learn(0, "a.io", "192.0.2.1", 60).unwrap();
    let before = setup.endpoint(0);
    for here in [[false, true], [true, true]] {
        let change = Change { rules: None, topology: Some(topology(&pods(here))) };
        let ops = setup.engine.update(change, setup.kernel.now);
        apply(&setup.engine, &mut setup.kernel, &ops);
    }
    let again = setup.engine.endpoint_by_address(ip(OWN)).unwrap();
    assert_ne!(again, before);
    assert_eq!(setup.reason(0, "192.0.2.1"), Reason::DefaultDeny);
    let picture = setup.engine.policy_view(&PolicyView::default());
    assert_eq!(picture.endpoint_by_address(ip(OWN)), Some(again));
    assert_eq!(setup.engine.peer_key(ip("192.168.0.2")), Some("n2"));
}

#[test]
fn limited_rules_need_a_proxy_and_one_free_rule_lifts_the_limits() {
    let http = || Some(Arc::new(L7::Http(vec![])));
    let dns = || Some(Arc::new(L7::Dns(vec![].into())));
    let world = |l7| Rule { l7, ..allow(vec![PeerSelector::Entity(Entity::World)]) };
    let proxies = |dns, l7| Proxies { dns, l7 };
    for (what, rules, proxies, want) in [
        ("no proxy", vec![world(http())], proxies(0, 0), (Reason::ProxyAbsent, 0)),
        ("proxy", vec![world(http())], proxies(0, 9_000), (Reason::Rule, 9_000)),
        ("free rule", vec![world(http()), world(None)], proxies(0, 0), (Reason::Rule, 0)),
        ("names, observed", vec![world(dns())], proxies(0, 9_000), (Reason::Rule, 0)),
        ("names, proxy", vec![world(dns())], proxies(53, 9_000), (Reason::Rule, 53)),
        ("no default", vec![Rule { default_deny: false, ..world(http()) }], proxies(0, 9_000), (Reason::Rule, 0)),
    ] {
        let mut setup = Setup::new(&settings(), rules);
        let ops = setup.engine.set_proxies(proxies);
        apply(&setup.engine, &mut setup.kernel, &ops);
        let got = setup.kernel.judge(10, ip(OWN), ip("192.0.2.1"), Direction::Egress, WEB);
        assert_eq!((got.reason, got.proxy_port), want, "{what}");
    }
}

/// Where a rule opens the address whatever its names, nothing is asked; else the least strict rule decides.
#[test]
fn connections_to_a_bound_name_go_through_the_proxy_or_are_copied() {
    let bound = |pattern, binding| Rule { binding, ..allow(vec![name(pattern)]) };
    let (off, observe, enforce) = (Some(Binding::Off), Some(Binding::Observe), Some(Binding::Enforce));
    let world = allow(vec![PeerSelector::Entity(Entity::World)]);
    let both = Rule { binding: enforce, ..allow(vec![name("a.io"), PeerSelector::Entity(Entity::World)]) };
    let quiet = Rule { default_deny: false, ..bound("a.io", enforce) };
    let deny = Rule { effect: Effect::Deny, peers: Peers::Any, ..allow(vec![]) };
    let questions = Rule { l7: Some(Arc::new(L7::Dns(vec![].into()))), ..bound("a.io", enforce) };
    // Port of the proxy, and flags.
    let (plain, copied, read) = ((0, 0), (0, policy_flags::OBSERVE_NAME), (9, 0));
    for (rules, tcp, other) in [
        (vec![bound("a.io", off)], plain, plain),
        (vec![bound("a.io", None)], copied, plain),
        (vec![bound("a.io", observe)], copied, plain),
        (vec![bound("a.io", enforce)], read, plain),
        (vec![bound("a.io", enforce), bound("*.io", enforce)], read, plain),
        (vec![bound("a.io", enforce), bound("*.io", observe)], copied, plain),
        (vec![bound("a.io", enforce), bound("a.io", off)], plain, plain),
        (vec![bound("a.io", enforce), bound("b.io", off)], read, plain),
        (vec![bound("a.io", enforce), world.clone()], plain, plain),
        (vec![both], plain, plain),
        (vec![quiet.clone()], plain, plain),
        (vec![quiet, bound("a.io", observe)], copied, plain),
        (vec![bound("a.io", enforce), deny], plain, plain),
        (vec![questions], plain, plain),
        (vec![Rule { tier: Tier::Admin(1), default_deny: false, ..bound("a.io", enforce) }, world], plain, plain),
    ] {
        let mut setup = Setup::new(&settings(), rules.clone());
        let ops = setup.engine.set_proxies(Proxies { dns: 0, l7: 9 });
        apply(&setup.engine, &mut setup.kernel, &ops);
        setup.learn(0, "a.io", "192.0.2.1", 600).unwrap();
        let judged = [6, 17, 132].map(|protocol| {
            let flow = Flow { protocol, ..WEB };
            let decision = setup.kernel.judge(10, ip(OWN), ip("192.0.2.1"), Direction::Egress, flow);
            (decision.proxy_port, decision.row_flags)
        });
        let udp = if tcp == read { (0, policy_flags::HOLD_NAME | policy_flags::REQUIRE_NAME) } else { tcp };
        assert_eq!(judged, [tcp, udp, other], "{rules:#?}");
    }
}

/// Only ports where names are required hold up what has none, and the least strict rule decides.
#[test]
fn names_are_required_of_datagrams_on_the_ports_that_the_rules_say() {
    let bound = |pattern, ports: &str, binding| Rule {
        binding: Some(binding),
        named_only: Some(ports.parse().unwrap()),
        ..allow(vec![name(pattern)])
    };
    let hold = policy_flags::HOLD_NAME;
    let require = hold | policy_flags::REQUIRE_NAME;
    let strict = bound("a.io", "443,8000-8999", Binding::Enforce);
    let all = Rule { named_only: None, ..strict.clone() };
    let none = bound("*.io", "none", Binding::Enforce);
    let observed = bound("a.io", "1-65535", Binding::Observe);
    let udp = PortMatch::Numbers { protocol: Transport::Udp, ports: RangeInclusive16 { start: 8_500, end: 9_000 } };
    let higher = Rule { ports: Ports::Of(vec![udp]), ..strict.clone() };
    for (rules, wants) in [
        (vec![strict.clone()], [hold, require, hold, require, require, hold]),
        (vec![none.clone()], [hold; 6]),
        (vec![strict.clone(), none], [hold; 6]),
        (vec![all], [hold, require, hold, hold, hold, hold]),
        (vec![observed.clone(), strict], [policy_flags::OBSERVE_NAME; 6]),
        (vec![higher], [0, 0, 0, 0, require, hold]),
    ] {
        let mut setup = Setup::new(&settings(), rules.clone());
        setup.learn(0, "a.io", "192.0.2.1", 600).unwrap();
        let found = [22, 443, 444, 8_000, 8_999, 9_000].map(|port| {
            let flow = Flow { protocol: 17, port };
            setup.kernel.judge(10, ip(OWN), ip("192.0.2.1"), Direction::Egress, flow).row_flags
        });
        assert_eq!(found, wants, "{rules:#?}");
    }
}

#[test]
fn names_count_as_they_were_when_the_connection_began() {
    let rules = ["a.io", "b.io"].map(|one| Rule { binding: Some(Binding::Enforce), ..allow(vec![name(one)]) });
    let mut setup = Setup::new(&settings(), rules.into());
    setup.learn(0, "a.io", "192.0.2.1", 600).unwrap();
    setup.learn(0, "b.io", "192.0.2.1", 5).unwrap();
    setup.learn(1, "c.io", "192.0.2.1", 600).unwrap();
    let began = setup.kernel.now;
    let (own, peer) = (ip(OWN), ip("192.0.2.1"));
    for (since, open) in [(began, &["a.io", "b.io"][..]), (began + 5 * SECOND, &["a.io"])] {
        assert!(setup.engine.requests().is_bound(own, peer, WEB, Binding::Enforce, since));
        for asked in ["a.io", "b.io", "c.io"] {
            let name = asked.parse().unwrap();
            let limits = setup.engine.requests().limits_asking(own, peer, WEB, Some(&name), Binding::Enforce, since);
            assert_eq!(limits == Limits::Free, open.contains(&asked), "{asked} {limits:?}");
        }
        let openers = setup.engine.requests().openers((own, peer), WEB, Binding::Observe, since, usize::MAX);
        let mut openers: Vec<&str> = openers.iter().map(Fqdn::as_str).collect();
        openers.sort_unstable();
        assert_eq!(openers, open);
    }
    assert!(!setup.engine.requests().is_bound(own, ip("192.0.2.2"), WEB, Binding::Observe, began), "a closed address");
}

#[test]
fn names_that_opened_an_address_for_a_connection_count_when_they_are_forgotten() {
    let rule = Rule { binding: Some(Binding::Enforce), ..allow(vec![name("a.io")]) };
    let setup = Setup::new(&settings(), vec![rule]);
    let (own, peer, now) = (ip(OWN), ip("192.0.2.1"), setup.kernel.now);
    let known = ["a.io".parse().unwrap()];
    let remembered = NamesAt { at: now, known: &known };
    let whole = |at: NamesAt<'_>| setup.engine.requests().limits(own, peer, Direction::Egress, WEB, at);
    assert!(matches!(whole(now.into()), Limits::Closed(_)));
    assert_eq!(whole(remembered), Limits::Free);
    assert!(setup.engine.requests().is_bound(own, peer, WEB, Binding::Enforce, remembered));
    for (asked, passes) in [("a.io", true), ("b.io", false)] {
        let name = asked.parse().unwrap();
        let limits = setup.engine.requests().limits_asking(own, peer, WEB, Some(&name), Binding::Enforce, remembered);
        assert_eq!(limits == Limits::Free, passes, "{asked}");
    }
    for (port, passes) in [(80, false), (443, false), (22, true)] {
        let limits =
            setup.engine.requests().limits_nameless(own, peer, Flow { port, ..WEB }, Binding::Enforce, remembered);
        assert_eq!(limits == Limits::Free, passes, "port {port}");
    }
}
