//! Laws between two ways of knowing: what the kernel would do with the rows, and what the rules mean.

#![expect(clippy::unwrap_used, reason = "a test may panic")]

mod common;

use common::{
    Kernel, SECOND, apply, ip, pods, rules, settings, shared, topology,
    world::{L7_PORT, OWN, Probe, World, hearings, interface, probes},
};
use namegate_abi::{AddressKey, Reason as Kernels, Tables, flow_flags, tcp};
use namegate_config::{rule::Direction, settings::Scope};
use namegate_engine::{Change, Engine, Key, LedgerEntry, MapOp, Proxies};
use proptest::prelude::*;

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

    /// A restarted agent writes nothing where nothing changed, and knows its names again: from all that was noted, from a
    /// snapshot, and from one that was taken in pieces while names were learned and rules changed.
    #[test]
    fn a_restart_writes_nothing(
        first in rules(0..6), second in rules(0..6), before in pods(), after in pods(), hearings in hearings(),
        source in 0..3_u8,
    ) {
        let mut world = World::new(Scope::Endpoint, first, &before);
        let mut journal: Vec<LedgerEntry> = world.engine.take_ledger();
        for hearing in &hearings[..hearings.len() / 2] {
            world.hear(hearing);
        }
        journal.extend(world.engine.take_ledger());
        let mut snapshot = world.engine.begin_snapshot();
        let mut renewed = world.engine.snapshot_piece(&mut snapshot, 2);
        for hearing in &hearings[hearings.len() / 2..] {
            world.hear(hearing);
            let noted = world.engine.take_ledger();
            journal.extend(noted.iter().cloned());
            renewed.extend(noted);
            renewed.extend(world.engine.snapshot_piece(&mut snapshot, 2));
        }
        world.update(Some(second), Some(topology(&after)));
        let ops = world.engine.tick(world.kernel.now);
        world.kernel.apply(&ops);
        let noted = world.engine.take_ledger();
        journal.extend(noted.iter().cloned());
        renewed.extend(noted);
        renewed.extend(world.engine.snapshot_piece(&mut snapshot, usize::MAX));
        prop_assert!(world.engine.snapshot_piece(&mut snapshot, usize::MAX).is_empty());
        let mut engine = Engine::new(&settings());
        engine.set_proxies(Proxies { dns: 0, l7: L7_PORT });
        engine.restore(match source {
            0 => journal,
            1 => world.engine.snapshot(),
            _ => renewed,
        });
        engine.adopt(world.kernel.sorted());
        let same = Change { rules: Some(shared(world.rules.clone())), topology: Some(world.topology.clone()) };
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

    /// Whatever the kernel holds after an error, the next call brings it to what it should hold.
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
        let refused = Key::Resolver(ip("192.0.2.53").into());
        let ops = world.engine.refused_write(refused, Some(kernel.sorted()), kernel.now);
        kernel.apply(&ops);
        let until = kernel.now + 5 * SECOND;
        while let Some(due) = world.engine.next_tick().filter(|due| *due <= until) {
            kernel.now = kernel.now.max(due);
            let ops = world.engine.tick(kernel.now);
            kernel.apply(&ops);
        }
        prop_assert_eq!(kernel.sorted(), world.engine.rows());
        prop_assert_eq!(world.engine.shortages(), vec![]);
    }
}
