//! Maps without room: nothing is more open than the rules mean, and everything is as it should be once there is room.

#![expect(clippy::unwrap_used, reason = "a test may panic")]

mod common;

use common::{
    Pod, ip, pods, rules, settings, topology,
    world::{OWN, Probe, World, hearings, probes},
};
use namegate_config::{
    rule::{Effect, PeerSelector, Peers, Rule},
    settings::Settings,
};
use proptest::prelude::*;

/// Rules as policies can write them: names are for allowances alone.
fn written(count: std::ops::Range<usize>) -> impl Strategy<Value = Vec<Rule>> {
    let is_written = |rule: &Rule| match &rule.peers {
        Peers::Of(peers) if rule.effect != Effect::Allow => {
            !peers.iter().any(|peer| matches!(peer, PeerSelector::Name(_)))
        }
        _ => true,
    };
    rules(count).prop_map(move |mut rules| {
        rules.retain(is_written);
        rules
    })
}

/// Settings with tiny maps.
fn tiny() -> impl Strategy<Value = Settings> {
    let rows = || prop_oneof![3 => 1..12_u32, 1 => 12..60_u32, 2 => Just(100_000_u32)];
    (rows(), rows(), rows(), 1..4_u32).prop_map(|(addresses, policy_rows, cidrs, endpoints)| {
        let mut settings = settings();
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
        prop_assert!(!open || want.allowed, "{probe:?} passes, and {want:?}");
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 3_000, max_shrink_iters: 3_000, failure_persistence: None, ..ProptestConfig::default() })]

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
