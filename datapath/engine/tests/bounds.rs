//! Maps without room: nothing is more open than the rules mean, and everything is as it should be once there is room.

#![expect(clippy::unwrap_used, reason = "a test may panic")]

mod common;

use std::sync::Arc;

use common::{
    Kernel, Pod, SECOND, ip, pods, rules, settings, topology,
    world::{Hearing, OWN, Probe, World, hearings, probes},
};
use namegate_abi::NODE_INTERFACE;
use namegate_config::{
    rule::{Effect, PeerSelector, Peers, Rule},
    settings::{Scope, Settings},
};
use namegate_engine::{GateError, Key, MapOp, MapWriter, Row, Topology, carry_out, tick_out};
use proptest::prelude::*;

/// Rules as policies can write them: names are for allowances alone.
fn written(count: std::ops::Range<usize>) -> impl Strategy<Value = Vec<Rule>> {
    let is_written = |rule: &Rule| match &rule.peers {
        Peers::Of(peers) if rule.effect != Effect::Allow => {
            !peers.iter().any(|peer| matches!(peer, PeerSelector::Name(_)))
        }
        _ => true,
    };
    (rules(count), any::<u8>()).prop_map(move |(mut rules, namespaces)| {
        rules.retain(is_written);
        for (at, rule) in rules.iter_mut().enumerate() {
            let namespace = [None, Some("any"), Some("x")][usize::from(namespaces >> (at % 8)) % 3];
            Arc::make_mut(&mut rule.origin).namespace = namespace.map(str::to_owned);
        }
        rules
    })
}

/// Settings with tiny maps.
fn tiny() -> impl Strategy<Value = Settings> {
    let rows = || prop_oneof![3 => 1..12_u32, 1 => 12..60_u32, 2 => Just(100_000_u32)];
    let shares = proptest::option::of((1..20_u32, 1..4_u32, 1..4_u32));
    (rows(), rows(), rows(), 1..4_u32, shares).prop_map(|(addresses, policy_rows, cidrs, endpoints, shares)| {
        let mut settings = settings();
        settings.limits.policy_rows_per_namespace = shares.map(|(rows, ..)| rows);
        settings.limits.cidrs_per_namespace = shares.map(|(_, cidrs, _)| cidrs);
        settings.limits.addresses_per_endpoint = shares.map(|(.., addresses)| addresses);
        settings.limits.addresses = addresses;
        settings.limits.policy_rows = policy_rows;
        settings.limits.cidrs = cidrs;
        settings.limits.endpoints = endpoints;
        settings
    })
}

/// Nothing passes that the rules do not let pass.
fn is_never_wider(world: &World, probes: &[Probe]) -> Result<(), TestCaseError> {
    for probe in probes {
        if !world.has(probe.pod) || ip(OWN[probe.pod]) == probe.peer {
            continue;
        }
        let (want, _) = world.reference(probe);
        let open = World::allows(&world.kernel, probe);
        prop_assert!(!open || want.allowed, "{probe:?} passes, and {want:?}: {:?}", world.engine.shortages());
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1_000, max_shrink_iters: 3_000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn without_room_nothing_is_wider_than_the_rules(
        settings in tiny(), first in written(0..6), second in written(0..6), before in pods(), after in pods(),
        hearings in hearings(), probes in probes(60),
    ) {
        let mut world = World::with(&settings, first, &before);
        is_never_wider(&world, &probes[..20])?;
        for hearing in &hearings {
            world.hear(hearing);
        }
        is_never_wider(&world, &probes[20..40])?;
        let gone = |pod: usize, before: &[Option<Pod>]| before[pod].is_some() && after[pod].is_none();
        world.update(Some(second), Some(topology(&after)));
        world.heard.retain(|(pod, ..), _| *pod > 3 || !gone(*pod, &before));
        is_never_wider(&world, &probes[40..])?;
    }
}

/// A gate that refuses writes, and sometimes to be read, as a stream of bits says.
struct Flaky<'k> {
    kernel: &'k mut Kernel,
    state: u64,
    /// Of 256 writes that many are refused.
    rate: u8,
}

impl Flaky<'_> {
    fn refuses(&mut self) -> bool {
        // Knuth's linear congruential generator (MMIX).
        self.state = self.state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.state >> 56) < u64::from(self.rate)
    }
}

fn refused() -> GateError {
    GateError::Access { map: "any", source: std::io::ErrorKind::OutOfMemory.into() }
}

impl MapWriter for Flaky<'_> {
    fn write(&mut self, op: &MapOp) -> Result<(), GateError> {
        // The kernel needs no memory to remove a row of a hash, and the node's row has its place from the start.
        let is_safe = matches!(op, MapOp::Delete(Key::Endpoint(_)) | MapOp::Put(Row::Endpoint(NODE_INTERFACE, _)));
        if self.refuses() && !is_safe {
            return Err(refused());
        }
        match op {
            MapOp::Delete(key) => _ = self.kernel.rows.remove(key),
            MapOp::Put(_) => self.kernel.write(op)?,
        }
        Ok(())
    }

    fn rows(&self) -> Result<Vec<Row>, GateError> {
        if self.state % 16 == 1 && self.rate > 0 { Err(refused()) } else { Ok(self.kernel.sorted()) }
    }
}

/// Does all of it through a gate that refuses writes at that rate.
struct Trial {
    world: World,
    seed: u64,
    rate: u8,
}

impl Trial {
    fn out(&mut self, work: impl FnOnce(&mut World) -> Vec<MapOp>) {
        let ops = work(&mut self.world);
        self.seed = self.seed.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let now = self.world.kernel.now;
        let mut gate = Flaky { kernel: &mut self.world.kernel, state: self.seed, rate: self.rate };
        carry_out(&mut self.world.engine, &mut gate, &ops, now);
    }

    fn update(&mut self, rules: Vec<Rule>, topology: Topology) {
        self.out(|world| world.change(Some(rules), Some(topology)));
    }

    fn hear(&mut self, hearing: &Hearing) {
        let mut ops = Vec::new();
        self.world.hear_into(hearing, &mut ops);
        self.out(|_| ops);
    }

    /// What is due within so many seconds.
    fn pass(&mut self, seconds: u64) {
        let until = self.world.kernel.now + seconds * SECOND;
        while let Some(due) = self.world.engine.next_tick().filter(|due| *due <= until) {
            self.world.kernel.now = self.world.kernel.now.max(due);
            self.seed = self.seed.wrapping_add(0x9e37_79b9_7f4a_7c15);
            let now = self.world.kernel.now;
            let mut gate = Flaky { kernel: &mut self.world.kernel, state: self.seed, rate: self.rate };
            tick_out(&mut self.world.engine, &mut gate, now);
        }
        self.world.kernel.now = until;
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 800, max_shrink_iters: 3_000, failure_persistence: None, ..ProptestConfig::default() })]

    /// A kernel that refuses writes at random: nothing is wider at any time, and when it takes them all is as it should be.
    #[test]
    fn refused_writes_open_nothing_and_are_made_up_for(
        settings in prop_oneof![Just(settings()), tiny()], first in written(0..6), second in written(0..6),
        before in pods(), after in pods(), hearings in hearings(), probes in probes(70), seed: u64, rate in 1..90_u8,
    ) {
        let mut trial = Trial { world: World::with(&settings, vec![], &before), seed, rate };
        trial.update(first, topology(&before));
        is_never_wider(&trial.world, &probes[..10])?;
        for hearing in &hearings {
            trial.hear(hearing);
            is_never_wider(&trial.world, &probes[10..20])?;
        }
        trial.pass(1);
        is_never_wider(&trial.world, &probes[20..30])?;
        let gone = |pod: usize| before.get(pod).is_some_and(Option::is_some) && after[pod].is_none();
        trial.update(second, topology(&after));
        trial.world.heard.retain(|(pod, ..), _| !gone(*pod));
        is_never_wider(&trial.world, &probes[30..40])?;
        trial.pass(3);
        is_never_wider(&trial.world, &probes[40..50])?;
        trial.rate = 0;
        trial.pass(70);
        is_never_wider(&trial.world, &probes[50..])?;
        if settings.limits != common::settings().limits && !trial.world.engine.shortages().is_empty() {
            return Ok(());
        }
        prop_assert_eq!(trial.world.engine.shortages(), vec![]);
        prop_assert_eq!(trial.world.kernel.sorted(), trial.world.engine.rows());
        for probe in &probes[50..] {
            trial.world.check(probe);
        }
    }

    /// After a time without room everything is as in a new engine that had room all the time.
    #[test]
    fn once_there_is_room_everything_is_as_it_should_be(
        settings in tiny(), first in written(0..6), second in written(0..2), before in pods(), after in pods(),
        hearings in hearings(), probes in probes(20), scope in prop_oneof![Just(Scope::Endpoint), Just(Scope::Node)],
    ) {
        let mut settings = settings;
        settings.dns.scope = scope;
        let mut world = World::with(&settings, first, &before);
        for hearing in &hearings {
            world.hear(hearing);
        }
        // Everybody goes, and comes back under few rules.
        world.update(Some(vec![]), Some(topology(&[None, None, None, None])));
        world.heard.clear();
        world.update(Some(second.clone()), Some(topology(&after)));
        prop_assert_eq!(world.kernel.sorted(), world.engine.rows());
        if !world.engine.shortages().is_empty() {
            return Ok(());
        }
        let fresh = World::with(&settings, second, &after);
        prop_assert_eq!(counts(&world), counts(&fresh));
        for probe in &probes {
            world.check(probe);
        }
    }
}

fn counts(world: &World) -> Vec<(&'static str, usize)> {
    world.engine.row_counts().iter().map(|count| (count.map, count.rows)).collect()
}
