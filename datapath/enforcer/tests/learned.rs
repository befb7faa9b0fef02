//! What readers find of learned names is what the engine knows, after whatever came and went.

#![expect(clippy::unwrap_used, reason = "a test may panic")]

mod common;
#[path = "../../engine/tests/common/mod.rs"]
mod drawn;

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};

use namegate_config::settings::{Scope, Settings};
use namegate_enforcer::EnforcerHandle;
use namegate_engine::{Answer, Change, EndpointId, Engine, LearnedAddress, LearnedNames, Lookup};
use proptest::prelude::*;

use common::{Bench, SECOND, Table, settings};
use drawn::{NAMES, OUTSIDE, ip, pods, topology, world::Hearing, world::hearings};

static CLOCK: AtomicU64 = AtomicU64::new(100 * SECOND);

fn clock() -> u64 {
    CLOCK.load(Ordering::Relaxed)
}

/// One thing that happens.
#[derive(Clone, Debug)]
enum Step {
    Heard(Vec<Hearing>),
    Moved(Vec<Option<drawn::Pod>>),
    Forgot(&'static str),
    Passed(u64),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        6 => hearings().prop_map(Step::Heard),
        1 => pods().prop_map(Step::Moved),
        1 => proptest::sample::select(&NAMES[..]).prop_map(Step::Forgot),
        // Names are remembered for an hour after their end.
        2 => prop_oneof![Just(3), Just(30), Just(3_700)].prop_map(Step::Passed),
    ];
    proptest::collection::vec(step, 1..12)
}

/// The enforcer, and an engine to which the same happens.
struct Pair {
    handle: EnforcerHandle,
    engine: Engine,
}

impl Pair {
    fn apply(&mut self, change: &Change) {
        self.engine.update(change.clone(), clock());
        self.handle.apply(change.clone()).wait().unwrap();
    }

    fn hear(&mut self, hearing: &Hearing) {
        CLOCK.fetch_add(hearing.after_s * SECOND, Ordering::Relaxed);
        let Some(endpoint) = self.engine.endpoint_by_address(ip(drawn::world::OWN[hearing.pod])) else { return };
        let answer = Answer {
            endpoint,
            names: hearing.names.iter().map(|name| name.parse().unwrap()).collect(),
            addresses: hearing.addresses.iter().map(|(address, ttl)| (ip(address), *ttl)).collect(),
        };
        self.pass();
        let _ = self.engine.learn(&answer, clock(), &mut Vec::new());
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(self.handle.learn(vec![answer]));
    }

    fn forget(&mut self, name: &'static str) {
        let wanted = move |lookup: &Lookup<'_>| lookup.name.as_str() == name;
        let (gone, _) = self.engine.forget(&wanted, clock());
        assert_eq!(self.handle.forget(wanted).wait().unwrap(), gone);
    }

    /// Both do what is due.
    fn pass(&mut self) {
        self.engine.tick(clock());
        // What is due is done before the second of two requests.
        self.handle.attach_again().wait().unwrap();
        self.handle.attach_again().wait().unwrap();
    }

    fn check(&self) {
        let mut found = Vec::new();
        self.handle.reader().names().for_each(None, clock(), |lookup| found.push(shown(lookup)));
        found.sort();
        let mut known: Vec<_> = self.engine.lookups(clock()).map(|lookup| shown(&lookup)).collect();
        known.sort();
        assert_eq!(found, known);
        let all = self.handle.reader().names().count_all(clock());
        let addresses: usize = known.iter().map(|(.., addresses)| addresses.len()).sum();
        assert_eq!((all.names, all.addresses), (known.len(), addresses));
        for pod in 0..2 {
            let Some(endpoint) = self.engine.endpoint_by_address(ip(drawn::world::OWN[pod])) else { continue };
            for address in OUTSIDE {
                let sorted = |names: &dyn LearnedNames| {
                    let mut names = names.names_of(endpoint, ip(address), clock());
                    names.sort_by(|one, other| (&one.name, one.expires_ns).cmp(&(&other.name, other.expires_ns)));
                    names
                };
                assert_eq!(sorted(self.handle.reader().names()), sorted(&self.engine), "{endpoint:?} {address}");
            }
        }
    }
}

type Shown = (EndpointId, String, String, u32, u64, Vec<(std::net::IpAddr, u64)>);

fn shown(lookup: &Lookup<'_>) -> Shown {
    let mut addresses: Vec<_> =
        lookup.addresses.iter().map(|LearnedAddress { address, expires_ns }| (*address, *expires_ns)).collect();
    addresses.sort_unstable();
    let key = lookup.endpoint_key.to_owned();
    (lookup.endpoint, key, lookup.name.to_string(), lookup.ttl_s, lookup.learned_ns, addresses)
}

fn small(scope: Scope) -> Settings {
    let mut settings = settings();
    settings.dns.scope = scope;
    settings.dns.names_per_endpoint_max = 3;
    settings.dns.addresses_per_name_max = 2;
    settings
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 40, failure_persistence: None, ..ProptestConfig::default() })]
    #[test]
    fn readers_find_what_the_engine_knows(
        steps in steps(), first in pods(), rules in drawn::rules(0..6), shares: bool,
    ) {
        let settings = small(if shares { Scope::Node } else { Scope::Endpoint });
        let bench = Bench::with(&settings, Table::default(), tempfile::tempdir().unwrap(), clock);
        let mut pair = Pair { handle: bench.running.handle(), engine: Engine::new(&settings) };
        pair.apply(&Change { rules: Some(rules.into_iter().map(Arc::new).collect()), topology: Some(topology(&first)) });
        for step in &steps {
            match step {
                Step::Heard(hearings) => hearings.iter().for_each(|hearing| pair.hear(hearing)),
                Step::Moved(pods) => pair.apply(&Change { rules: None, topology: Some(topology(pods)) }),
                Step::Forgot(name) => pair.forget(name),
                Step::Passed(seconds) => {
                    CLOCK.fetch_add(seconds * SECOND, Ordering::Relaxed);
                    pair.pass();
                }
            }
            pair.check();
        }
        bench.running.stop();
    }
}
