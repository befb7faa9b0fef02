//! Laws between two ways of knowing: what the kernel would do with the rows, and what the rules mean.

#![expect(clippy::unwrap_used, reason = "a test may panic")]

mod common;

use std::{collections::HashMap, net::IpAddr, sync::Arc};

use common::{FLOWS, Kernel, NAMES, OUTSIDE, Pod, SECOND, addresses, apply, ip, pods, rules, settings, topology};
use namegate_abi::{AddressKey, NODE_INTERFACE, Reason as Kernels, Tables, flow_flags, policy_flags, tcp};
use namegate_config::{
    l7::Request,
    labels::Labels,
    name::Fqdn,
    peer::Peer,
    question::QueryType,
    reference::{Flow, Limits, Reason, SubjectFacts, Verdict, verdict, verdict_l7},
    rule::{Binding, Direction, Rule},
    settings::Scope,
};
use namegate_engine::{Answer, Change, EndpointId, Engine, LedgerEntry, MapOp, Proxies, Topology};
use proptest::prelude::*;

/// What was heard: who, name, address, end.
type Heard = HashMap<(usize, &'static str, IpAddr), u64>;

/// One answer: pod, names, addresses with TTLs, and how long after the one before.
#[derive(Clone, Debug)]
struct Hearing {
    pod: usize,
    names: Vec<&'static str>,
    addresses: Vec<(&'static str, u32)>,
    after_s: u64,
}

fn hearings() -> impl Strategy<Value = Vec<Hearing>> {
    let names = proptest::sample::subsequence(NAMES.to_vec(), 1..=2);
    let address = (proptest::sample::select(&OUTSIDE[..]), 1..20_u32);
    let one = (0..2_usize, names, proptest::collection::vec(address, 1..3), 0..4_u64)
        .prop_map(|(pod, names, addresses, after_s)| Hearing { pod, names, addresses, after_s });
    proptest::collection::vec(one, 0..6)
}

/// A new flow of a pod of this node, or of the node itself.
#[derive(Clone, Debug)]
struct Probe {
    pod: usize,
    peer: IpAddr,
    direction: Direction,
    flow: Flow,
}

fn probes(count: usize) -> impl Strategy<Value = Vec<Probe>> {
    let direction = prop_oneof![Just(Direction::Ingress), Just(Direction::Egress)];
    let probe = (0..OWN.len(), proptest::sample::select(addresses()), direction, proptest::sample::select(&FLOWS[..]))
        .prop_map(|(pod, peer, direction, flow)| Probe { pod, peer, direction, flow });
    proptest::collection::vec(probe, count)
}

/// Engine, kernel and what is known without them.
struct World {
    engine: Engine,
    kernel: Kernel,
    rules: Vec<Rule>,
    topology: Topology,
    heard: Heard,
    scope: Scope,
}

/// Where the proxy listens.
const L7_PORT: u16 = 9_000;

/// Addresses of those who are judged: two pods and the node.
const OWN: [&str; 3] = ["10.0.0.1", "10.0.0.2", "192.168.0.1"];
const NODE: usize = 2;

/// Where the programs look for the endpoint.
fn interface(pod: usize) -> u32 {
    if pod == NODE { NODE_INTERFACE } else { 10 + u32::try_from(pod).unwrap() }
}

impl World {
    fn new(scope: Scope, rules: Vec<Rule>, pods: &[Option<Pod>]) -> Self {
        let mut settings = settings();
        settings.dns.scope = scope;
        let mut world = Self {
            engine: Engine::new(&settings),
            kernel: Kernel { now: 100 * SECOND, ..Kernel::default() },
            rules: vec![],
            topology: Topology::default(),
            heard: HashMap::new(),
            scope,
        };
        assert_eq!(world.engine.set_proxies(Proxies { dns: 0, l7: L7_PORT }), []);
        world.update(Some(rules), Some(topology(pods)));
        world
    }

    fn change(&mut self, rules: Option<Vec<Rule>>, topology: Option<Topology>) -> Vec<MapOp> {
        let ops = self.engine.update(Change { rules: rules.clone(), topology: topology.clone() }, self.kernel.now);
        self.rules = rules.unwrap_or(std::mem::take(&mut self.rules));
        self.topology = topology.unwrap_or(std::mem::take(&mut self.topology));
        ops
    }

    fn update(&mut self, rules: Option<Vec<Rule>>, topology: Option<Topology>) {
        let ops = self.change(rules, topology);
        apply(&self.engine, &mut self.kernel, &ops);
    }

    fn id(&self, pod: usize) -> Option<EndpointId> {
        self.engine.endpoint_by_address(ip(OWN[pod]))
    }

    fn hear(&mut self, hearing: &Hearing) {
        self.kernel.now += hearing.after_s * SECOND;
        let Some(endpoint) = self.id(hearing.pod) else { return };
        let answer = Answer {
            endpoint,
            names: hearing.names.iter().map(|name| name.parse().unwrap()).collect(),
            addresses: hearing.addresses.iter().map(|(address, ttl)| (ip(address), *ttl)).collect(),
        };
        let mut ops = Vec::new();
        self.engine.learn(&answer, self.kernel.now, &mut ops);
        for name in &hearing.names {
            for (address, ttl) in &hearing.addresses {
                let ends = self.kernel.now + u64::from(*ttl) * SECOND;
                let known = self.heard.entry((hearing.pod, name, ip(address))).or_default();
                *known = (*known).max(ends);
            }
        }
        self.kernel.apply(&ops);
    }

    /// Whether the pod is here; the node is.
    fn has(&self, pod: usize) -> bool {
        pod == NODE || self.id(pod).is_some()
    }

    /// The verdict about the flow, and about a request in it that no limit lets pass.
    fn reference(&self, probe: &Probe) -> (Verdict, Verdict) {
        let own = ip(OWN[probe.pod]);
        let pod = self.topology.endpoints.iter().find(|pod| pod.addresses.contains(&own));
        let facts = SubjectFacts {
            labels: pod.map_or(&self.topology.nodes[0].labels, |pod| &*pod.labels),
            is_node: pod.is_none(),
            named_ports: pod.map_or(&[], |pod| &pod.named_ports),
        };
        let pod = self.topology.endpoints.iter().find(|pod| pod.addresses.contains(&probe.peer));
        let node = self.topology.nodes.iter().find(|node| node.addresses.contains(&probe.peer));
        let labels = pod.map(|pod| Labels::clone(&pod.labels)).or_else(|| node.map(|node| node.labels.clone()));
        let names = self.heard.iter().filter(|((pod, _, address), ends)| {
            (self.scope == Scope::Node || *pod == probe.pod) && *address == probe.peer && **ends > self.kernel.now
        });
        let peer = Peer {
            labels: Arc::new(labels.unwrap_or_else(|| Labels::reserved("world"))),
            address: probe.peer,
            names: names.map(|((_, name, _), _)| name.parse::<Fqdn>().unwrap()).collect(),
            named_ports: pod.map(|pod| pod.named_ports.clone()).unwrap_or_default().into(),
        };
        let request = Request::Dns { name: "x.org".parse().unwrap(), kind: QueryType::A };
        let (direction, flow) = (probe.direction, probe.flow);
        (
            verdict(&self.rules, &facts, &peer, direction, flow),
            verdict_l7(&self.rules, &facts, &peer, direction, flow, &request),
        )
    }

    /// Whether a proxy must read the name that a connection asks for, and else what its row says about names: where the
    /// rules let the flow pass as it is, and would not without names.
    fn names_asked(&self, probe: &Probe) -> (bool, u8) {
        let Probe { peer, flow, direction, .. } = *probe;
        let own = ip(OWN[probe.pod]);
        let whole = self.engine.limits(own, peer, direction, flow, self.kernel.now);
        let depends =
            |binding| self.engine.limits_asking(own, peer, flow, None, binding, self.kernel.now) != Limits::Free;
        if direction == Direction::Ingress || whole != Limits::Free {
            return (false, 0);
        }
        match flow.protocol {
            6 if depends(Binding::Enforce) => (true, 0),
            17 if depends(Binding::Enforce) => (false, policy_flags::HOLD_NAME),
            6 | 17 if depends(Binding::Observe) => (false, policy_flags::OBSERVE_NAME),
            _ => (false, 0),
        }
    }

    fn allows(kernel: &Kernel, probe: &Probe) -> bool {
        // A node that no rule selects has no row.
        kernel.endpoint(interface(probe.pod)).is_none() || {
            let own = ip(OWN[probe.pod]);
            !kernel.judge(interface(probe.pod), own, probe.peer, probe.direction, probe.flow).reason.denies()
        }
    }

    /// The kernel does what the rules mean, and says why.
    fn check(&self, probe: &Probe) {
        if !self.has(probe.pod) || ip(OWN[probe.pod]) == probe.peer {
            return;
        }
        let (want, limited) = self.reference(probe);
        let interface = interface(probe.pod);
        assert_eq!(self.engine.node_id().is_some(), self.kernel.endpoint(NODE_INTERFACE).is_some());
        if probe.pod == NODE && self.engine.node_id().is_none() {
            assert_eq!(want.reason, Reason::NoPolicy, "{probe:?}");
            return;
        }
        let got = self.kernel.judge(interface, ip(OWN[probe.pod]), probe.peer, probe.direction, probe.flow);
        let at = || format!("{probe:?} at {}: {got:?}, wanted {want:?}", self.kernel.now / SECOND);
        assert_eq!(!got.reason.denies(), want.allowed, "{}", at());
        // A proxy reads the requests exactly where some might not pass.
        let asked = self.engine.limits(ip(OWN[probe.pod]), probe.peer, probe.direction, probe.flow, self.kernel.now);
        let asks = matches!(asked, Limits::Rules(_));
        let (read, flags) = self.names_asked(probe);
        assert!(got.reason.denies() || (got.proxy_port != 0) == (asks || read), "{}: {asked:?}", at());
        let goes_on = limited.allowed && !read || !want.allowed;
        assert_eq!(got.proxy_port, if goes_on { 0 } else { L7_PORT }, "{}", at());
        assert_eq!(got.row_flags, if goes_on && want.allowed { flags } else { 0 }, "{}", at());
        let reason = match got.reason {
            Kernels::Rule if got.rule == 0 => Reason::NoPolicy,
            Kernels::Rule => Reason::Rule,
            Kernels::NoPolicy => Reason::NoPolicy,
            Kernels::LocalHost => Reason::LocalHost,
            Kernels::DefaultDeny | Kernels::NameExpired => Reason::DefaultDeny,
            Kernels::DenyRule => Reason::DenyRule,
            _ => panic!("{}", at()),
        };
        assert_eq!(reason, want.reason, "{}", at());
        assert_eq!(self.engine.origin(got.rule).cloned(), want.by, "{}", at());
    }
}

/// A packet of the probe's flow.
fn next_packet(kernel: &mut Kernel, probe: &Probe, tcp_flags: u8) -> Kernels {
    let ends = ((ip(OWN[probe.pod]), 40_000), (probe.peer, 40_000));
    let (source, destination) = match probe.direction {
        Direction::Egress => (ends.0, (probe.peer, probe.flow.port)),
        Direction::Ingress => (ends.1, (ip(OWN[probe.pod]), probe.flow.port)),
    };
    kernel.pass(interface(probe.pod), source, destination, probe.direction, tcp_flags)
}

fn scopes() -> impl Strategy<Value = Scope> {
    prop_oneof![4 => Just(Scope::Endpoint), 1 => Just(Scope::Node)]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 6_000, max_shrink_iters: 2_000, failure_persistence: None, ..ProptestConfig::default() })]

    /// Rules, topology and answers, then a change of rules and topology, judged between and after every end of a TTL.
    #[test]
    fn the_kernel_does_what_the_rules_mean(
        first in rules(0..6), more in rules(0..3), kept in any::<u8>(), before in pods(), after in pods(),
        hearings in hearings(), probes in probes(18), ticking: bool,
    ) {
        let mut world = World::new(Scope::Endpoint, first.clone(), &before);
        for hearing in &hearings {
            world.hear(hearing);
        }
        for probe in &probes[..6] {
            world.check(probe);
        }
        let second = first.into_iter().enumerate().filter(|(at, _)| kept >> at & 1 == 1).map(|(_, rule)| rule);
        let gone = |pod: usize| before[pod].is_some() && after[pod].is_none();
        world.update(Some(second.chain(more).collect()), Some(topology(&after)));
        world.heard.retain(|(pod, ..), _| !gone(*pod));
        for probe in &probes[6..] {
            world.check(probe);
            world.kernel.now += 3 * SECOND;
            if ticking {
                let ops = world.engine.tick(world.kernel.now);
                apply(&world.engine, &mut world.kernel, &ops);
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1_000, max_shrink_iters: 2_000, failure_persistence: None, ..ProptestConfig::default() })]

    /// More than four ends: nothing is open longer than its TTL, and a tick at every end makes it exact.
    #[test]
    fn shared_names_are_exact_with_ticks(
        rules in rules(1..5), pods in pods(), hearings in hearings(), probes in probes(16), scope in scopes(),
    ) {
        let mut world = World::new(scope, rules, &pods);
        for hearing in &hearings {
            world.hear(hearing);
        }
        for probe in &probes {
            world.check(probe);
            let until = world.kernel.now + 2 * SECOND;
            while let Some(due) = world.engine.next_tick().filter(|due| *due <= until) {
                world.kernel.now = world.kernel.now.max(due);
                let ops = world.engine.tick(world.kernel.now);
                apply(&world.engine, &mut world.kernel, &ops);
            }
            world.kernel.now = until;
        }
    }

    /// After every single write: allowed before and after is allowed, denied before and after is denied. What is cut
    /// has another revision.
    #[test]
    fn no_write_cuts_or_opens_what_should_stay(
        first in rules(1..6), more in rules(0..4), kept in any::<u8>(), before in pods(), after in pods(),
        moved in proptest::option::of(0..4_usize), hearings in hearings(), probes in probes(40),
    ) {
        let mut world = World::new(Scope::Endpoint, first.clone(), &before);
        for hearing in &hearings {
            world.hear(hearing);
        }
        let old = world.kernel.clone();
        let mut steps = vec![old.clone()];
        let here: Vec<bool> = (0..OWN.len()).map(|pod| world.has(pod)).collect();
        let ops = if let Some(at) = moved {
            let mut pods = before.clone();
            pods[at] = after[at].clone();
            world.change(None, Some(topology(&pods)))
        } else {
            let second = first.into_iter().enumerate().filter(|(at, _)| kept >> at & 1 == 1).map(|(_, rule)| rule);
            world.change(Some(second.chain(more).collect()), None)
        };
        for op in &ops {
            let mut next = steps.last().unwrap().clone();
            next.apply(std::slice::from_ref(op));
            steps.push(next);
        }
        let new = steps.last().unwrap();
        for probe in &probes {
            if !here[probe.pod] || !world.has(probe.pod) || ip(OWN[probe.pod]) == probe.peer {
                continue;
            }
            let (was, is) = (World::allows(&old, probe), World::allows(new, probe));
            if was == is {
                for (at, step) in steps.iter().enumerate() {
                    prop_assert_eq!(World::allows(step, probe), was, "{:?} after {:?}", probe, &ops[..at]);
                }
            }
            let revision = |kernel: &Kernel| kernel.endpoint(interface(probe.pod)).map(|row| row.current());
            prop_assert!(!was || is || revision(&old) != revision(new), "{:?} is cut without a new revision", probe);
            if !was || probe.flow.protocol != 6 || old.endpoint(interface(probe.pod)).is_none() {
                continue;
            }
            let mut kernel = old.clone();
            prop_assert!(!next_packet(&mut kernel, probe, tcp::SYN).denies());
            for (at, op) in ops.iter().enumerate() {
                kernel.apply(std::slice::from_ref(op));
                if kernel.endpoint(interface(probe.pod)).is_none() {
                    break;
                }
                let reason = next_packet(&mut kernel, probe, tcp::ACK);
                prop_assert!(!is || !reason.denies(), "the flow {:?} is cut by {:?}", probe, &ops[..=at]);
            }
            if moved.is_some() && kernel.endpoint(interface(probe.pod)).is_some() {
                let named = kernel.flows.values().any(|flow| flow.flags & flow_flags::LEARNED != 0);
                let owned = kernel.address(&AddressKey { scope: 0, address: probe.peer.into() }).is_some();
                let reason = next_packet(&mut kernel, probe, tcp::ACK);
                prop_assert!(is || reason.denies() || (named && !owned), "the flow {:?} goes on", probe);
            }
        }
    }

    /// A restarted agent writes nothing where nothing changed, and knows its names again.
    #[test]
    fn a_restart_writes_nothing(
        first in rules(0..6), second in rules(0..6), before in pods(), after in pods(), hearings in hearings(),
        whole: bool,
    ) {
        let mut world = World::new(Scope::Endpoint, first, &before);
        let mut journal: Vec<LedgerEntry> = world.engine.take_ledger();
        for hearing in &hearings {
            world.hear(hearing);
        }
        world.update(Some(second), Some(topology(&after)));
        let ops = world.engine.tick(world.kernel.now);
        world.kernel.apply(&ops);
        journal.extend(world.engine.take_ledger());
        let mut engine = Engine::new(&settings());
        engine.set_proxies(Proxies { dns: 0, l7: L7_PORT });
        engine.restore(if whole { journal } else { world.engine.snapshot() });
        engine.adopt(world.kernel.sorted());
        let same = Change { rules: Some(world.rules.clone()), topology: Some(world.topology.clone()) };
        let ops = engine.update(same, world.kernel.now);
        prop_assert_eq!(&ops, &[][..]);
        let sorted = |engine: &Engine| {
            let view = |lookup: namegate_engine::Lookup<'_>| {
                let mut addresses: Vec<_> = lookup.addresses.iter().map(|one| (one.address, one.expires_ns)).collect();
                addresses.sort_unstable();
                (lookup.endpoint, lookup.name.to_string(), addresses)
            };
            let mut all: Vec<_> = engine.lookups(world.kernel.now).map(view).collect();
            all.sort_unstable();
            all
        };
        prop_assert_eq!(sorted(&engine), sorted(&world.engine));
    }

    /// Whatever the gate holds after an error, the next call brings it to what it should hold.
    #[test]
    fn a_gate_that_lost_rows_is_mended(
        first in rules(0..6), second in rules(0..6), before in pods(), after in pods(), hearings in hearings(),
        lost in any::<u64>(),
    ) {
        let mut other = World::new(Scope::Endpoint, second, &after);
        let mut world = World::new(Scope::Endpoint, first, &before);
        for hearing in &hearings {
            world.hear(hearing);
            other.hear(hearing);
        }
        let part = |kernel: &Kernel, bit: u64| {
            let rows = kernel.sorted().into_iter().enumerate();
            rows.filter(|(at, _)| lost.rotate_right(u32::try_from(at % 64).unwrap()) & 1 == bit)
                .map(|(_, row)| MapOp::Put(row)).collect::<Vec<_>>()
        };
        let mut kernel = Kernel { now: world.kernel.now, ..Kernel::default() };
        kernel.apply(&part(&other.kernel, 0));
        kernel.apply(&part(&world.kernel, 1));
        world.engine.resync(kernel.sorted());
        let ops = world.engine.tick(kernel.now);
        kernel.apply(&ops);
        prop_assert_eq!(kernel.sorted(), world.engine.rows());
    }
}
