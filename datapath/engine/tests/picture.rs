//! A picture says what the engine says, and a picture made from the last one what one made from nothing says.

#![expect(clippy::unwrap_used, reason = "a test may panic")]

mod common;

use namegate_config::{rule::Binding, settings::Scope};
use namegate_engine::{PolicyView, Requests};
use proptest::prelude::*;

use common::{
    ip, pods, rules, topology,
    world::{OWN, Probe, World, hearings, probes},
};

/// Everything that requests of a probe are asked.
fn asked(requests: &Requests<'_>, probe: &Probe, now: u64) -> String {
    let own = ip(OWN[probe.pod]);
    let names = ["a.io", "x.org"].map(|name| name.parse().unwrap());
    let asking = names
        .each_ref()
        .map(|name| requests.limits_asking(own, probe.peer, probe.flow, Some(name), Binding::Enforce, now));
    format!(
        "{:?} {:?} {:?} {:?} {:?}",
        requests.limits(own, probe.peer, probe.direction, probe.flow, now),
        asking,
        requests.limits_nameless(own, probe.peer, probe.flow, Binding::Observe, now),
        requests.is_bound(own, probe.peer, probe.flow, Binding::Observe, now),
        requests.openers((own, probe.peer), probe.flow, Binding::Observe, now, usize::MAX),
    )
}

fn shown(view: &PolicyView, world: &World, probes: &[Probe]) -> String {
    let now = world.kernel.now;
    let of_requests: Vec<String> =
        probes.iter().map(|probe| asked(&view.requests(&world.engine), probe, now)).collect();
    let of_dns: Vec<_> =
        probes.iter().map(|probe| view.dns_limits(ip(OWN[probe.pod]), probe.peer, probe.flow)).collect();
    let of_peers: Vec<_> =
        probes.iter().map(|probe| (view.peer_key(probe.peer), view.endpoint_by_address(probe.peer))).collect();
    format!("{of_requests:?} {of_dns:?} {of_peers:?} {:?} {:?}", view.endpoints(), view.name_selectors())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 100, failure_persistence: None, ..ProptestConfig::default() })]
    #[test]
    fn a_picture_says_what_the_engine_says(
        worlds in proptest::collection::vec((proptest::option::of(rules(0..6)), proptest::option::of(pods())), 1..4),
        first in rules(0..6), before in pods(), hearings in hearings(), probes in probes(16), shows: bool,
    ) {
        let mut world = World::new(Scope::Endpoint, first, &before);
        let mut last = world.engine.policy_view(&PolicyView::default());
        for (rules, pods) in worlds {
            for hearing in &hearings {
                world.hear(hearing);
            }
            world.update(rules, pods.map(|pods| topology(&pods)));
            let view = world.engine.policy_view(&last);
            let anew = world.engine.policy_view(&PolicyView::default());
            prop_assert_eq!(shown(&view, &world, &probes), shown(&anew, &world, &probes));
            for probe in &probes {
                let now = world.kernel.now;
                let of_engine = asked(&world.engine.requests(), probe, now);
                prop_assert_eq!(asked(&view.requests(&world.engine), probe, now), of_engine);
                prop_assert_eq!(view.peer_key(probe.peer), world.engine.peer_key(probe.peer));
            }
            if shows {
                world.engine.has_shown(&view);
            }
            last = view;
        }
    }
}
