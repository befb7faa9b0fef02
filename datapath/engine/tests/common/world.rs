//! Engine, kernel and what is known without them: rules, topology and what was heard, judged by the reference evaluator.

use std::{collections::HashMap, net::IpAddr, sync::Arc};

use namegate_abi::{NODE_INTERFACE, Reason as Kernels, policy_flags};
use namegate_config::{
    l7::Request,
    labels::Labels,
    name::Fqdn,
    peer::Peer,
    question::QueryType,
    reference::{Flow, Limits, Reason, SubjectFacts, Verdict, verdict, verdict_l7},
    rule::{Binding, Direction, Rule},
    settings::{Scope, Settings},
};
use namegate_engine::{Answer, Change, EndpointId, Engine, MapOp, Proxies, Topology};
use proptest::prelude::*;

use super::{FLOWS, Kernel, NAMES, OUTSIDE, Pod, SECOND, addresses, apply, ip, settings, shared, topology};

/// What was heard: who, name, address, end.
pub(crate) type Heard = HashMap<(usize, &'static str, IpAddr), u64>;

/// One answer: pod, names, addresses with TTLs, and how long after the one before.
#[derive(Clone, Debug)]
pub(crate) struct Hearing {
    pub(crate) pod: usize,
    pub(crate) names: Vec<&'static str>,
    pub(crate) addresses: Vec<(&'static str, u32)>,
    pub(crate) after_s: u64,
}

pub(crate) fn hearings() -> impl Strategy<Value = Vec<Hearing>> {
    let names = proptest::sample::subsequence(NAMES.to_vec(), 1..=2);
    let address = (proptest::sample::select(&OUTSIDE[..]), 1..20_u32);
    let one = (0..2_usize, names, proptest::collection::vec(address, 1..3), 0..4_u64)
        .prop_map(|(pod, names, addresses, after_s)| Hearing { pod, names, addresses, after_s });
    proptest::collection::vec(one, 0..6)
}

/// A new flow of a pod of this node, or of the node itself.
#[derive(Clone, Debug)]
pub(crate) struct Probe {
    pub(crate) pod: usize,
    pub(crate) peer: IpAddr,
    pub(crate) direction: Direction,
    pub(crate) flow: Flow,
}

pub(crate) fn probes(count: usize) -> impl Strategy<Value = Vec<Probe>> {
    let direction = prop_oneof![Just(Direction::Ingress), Just(Direction::Egress)];
    let probe = (0..OWN.len(), proptest::sample::select(addresses()), direction, proptest::sample::select(&FLOWS[..]))
        .prop_map(|(pod, peer, direction, flow)| Probe { pod, peer, direction, flow });
    proptest::collection::vec(probe, count)
}

/// Engine, kernel and what is known without them.
pub(crate) struct World {
    pub(crate) engine: Engine,
    pub(crate) kernel: Kernel,
    pub(crate) rules: Vec<Rule>,
    pub(crate) topology: Topology,
    pub(crate) heard: Heard,
    pub(crate) scope: Scope,
}

/// Where the proxy listens.
pub(crate) const L7_PORT: u16 = 9_000;

/// Addresses of those who are judged: two pods and the node.
pub(crate) const OWN: [&str; 3] = ["10.0.0.1", "10.0.0.2", "192.168.0.1"];
pub(crate) const NODE: usize = 2;

/// Where the programs look for the endpoint.
pub(crate) fn interface(pod: usize) -> u32 {
    if pod == NODE { NODE_INTERFACE } else { 10 + u32::try_from(pod).unwrap() }
}

impl World {
    pub(crate) fn new(scope: Scope, rules: Vec<Rule>, pods: &[Option<Pod>]) -> Self {
        let mut settings = settings();
        settings.dns.scope = scope;
        Self::with(&settings, rules, pods)
    }

    pub(crate) fn with(settings: &Settings, rules: Vec<Rule>, pods: &[Option<Pod>]) -> Self {
        let scope = settings.dns.scope;
        let mut world = Self {
            engine: Engine::new(settings),
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

    pub(crate) fn change(&mut self, rules: Option<Vec<Rule>>, topology: Option<Topology>) -> Vec<MapOp> {
        let ops = self
            .engine
            .update(Change { rules: rules.clone().map(shared), topology: topology.clone() }, self.kernel.now);
        self.rules = rules.unwrap_or(std::mem::take(&mut self.rules));
        self.topology = topology.unwrap_or(std::mem::take(&mut self.topology));
        ops
    }

    pub(crate) fn update(&mut self, rules: Option<Vec<Rule>>, topology: Option<Topology>) {
        let ops = self.change(rules, topology);
        apply(&self.engine, &mut self.kernel, &ops);
    }

    pub(crate) fn id(&self, pod: usize) -> Option<EndpointId> {
        self.engine.endpoint_by_address(ip(OWN[pod]))
    }

    pub(crate) fn hear(&mut self, hearing: &Hearing) {
        let mut ops = Vec::new();
        self.hear_into(hearing, &mut ops);
        self.kernel.apply(&ops);
    }

    pub(crate) fn hear_into(&mut self, hearing: &Hearing, ops: &mut Vec<MapOp>) {
        self.kernel.now += hearing.after_s * SECOND;
        let Some(endpoint) = self.id(hearing.pod) else { return };
        let answer = Answer {
            endpoint,
            names: hearing.names.iter().map(|name| name.parse().unwrap()).collect(),
            addresses: hearing.addresses.iter().map(|(address, ttl)| (ip(address), *ttl)).collect(),
        };
        let learned = self.engine.learn(&answer, self.kernel.now, ops);
        assert!(learned.is_ok() || !self.engine.shortages().is_empty(), "{learned:?}");
        for name in &hearing.names {
            for (address, ttl) in &hearing.addresses {
                let ends = self.kernel.now + u64::from(*ttl) * SECOND;
                let known = self.heard.entry((hearing.pod, name, ip(address))).or_default();
                *known = (*known).max(ends);
            }
        }
    }

    /// Whether the pod is here; the node is.
    pub(crate) fn has(&self, pod: usize) -> bool {
        pod == NODE || self.id(pod).is_some()
    }

    /// The verdict about the flow, and about a request in it that no limit lets pass.
    pub(crate) fn reference(&self, probe: &Probe) -> (Verdict, Verdict) {
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
    pub(crate) fn names_asked(&self, probe: &Probe) -> (bool, u8) {
        let Probe { peer, flow, direction, .. } = *probe;
        let own = ip(OWN[probe.pod]);
        let whole = self.engine.requests().limits(own, peer, direction, flow, self.kernel.now);
        let depends = |binding| {
            self.engine.requests().limits_asking(own, peer, flow, None, binding, self.kernel.now) != Limits::Free
        };
        if direction == Direction::Ingress || whole != Limits::Free {
            return (false, 0);
        }
        match flow.protocol {
            6 if depends(Binding::Enforce) => (true, 0),
            17 if depends(Binding::Enforce) => {
                let nameless =
                    self.engine.requests().limits_nameless(own, peer, flow, Binding::Enforce, self.kernel.now);
                let required = if nameless == Limits::Free { 0 } else { policy_flags::REQUIRE_NAME };
                (false, policy_flags::HOLD_NAME | required)
            }
            6 | 17 if depends(Binding::Observe) => (false, policy_flags::OBSERVE_NAME),
            _ => (false, 0),
        }
    }

    pub(crate) fn allows(kernel: &Kernel, probe: &Probe) -> bool {
        let own = ip(OWN[probe.pod]);
        match kernel.endpoint(interface(probe.pod)) {
            // A node that no rule selects has no row; the programs deny an interface without one.
            None => probe.pod == NODE,
            Some(_) => {
                !kernel.judge(interface(probe.pod), own, probe.peer, probe.direction, probe.flow).reason.denies()
            }
        }
    }

    /// The kernel does what the rules mean, and says why.
    pub(crate) fn check(&self, probe: &Probe) {
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
        let asked =
            self.engine.requests().limits(ip(OWN[probe.pod]), probe.peer, probe.direction, probe.flow, self.kernel.now);
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
