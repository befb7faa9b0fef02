//! Looks again and again at what other tools may change under a running agent, and reports it.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use namegate_abi::Settings;
use namegate_enforcer::Reader;
use namegate_loader::{PinsLock, upkeep::Upkeep};

use super::{
    enforcer::Chain,
    problems::{ProblemKind, Problems},
};

/// Between two looks. What was found wrong stays a problem until a look finds it right.
const PERIOD: Duration = Duration::from_secs(3);
/// The pins among problems.
const PINS: &str = "pins";

/// What is looked after.
pub(crate) struct Looked {
    /// Marks of the proxies.
    pub(crate) settings: Settings,
    /// Whether requests are limited.
    pub(crate) limits: bool,
    /// Whether nftables took the rule at the start.
    pub(crate) nftables: bool,
    /// Held as long as the agent runs.
    pub(crate) lock: PinsLock,
}

/// Looks until the agent ends.
pub(crate) async fn follow(mut looked: Looked, reader: Reader, problems: Arc<Problems>) -> anyhow::Result<()> {
    let mut raised = BTreeSet::new();
    loop {
        let interfaces: Vec<u32> = reader.enforcement().judged.iter().copied().collect();
        let look = move || {
            let Looked { settings, limits, nftables, .. } = &looked;
            let upkeep = Upkeep { settings, limits: *limits, nftables: *nftables, interfaces: &interfaces };
            let mut faults = upkeep.look();
            if let Err(error) = looked.lock.renew() {
                let (subject, message) = (PINS.to_owned(), Chain(&error).to_string());
                faults.push(namegate_loader::upkeep::Fault { subject, message });
            }
            (looked, faults)
        };
        let (back, faults) = tokio::task::spawn_blocking(look).await?;
        looked = back;
        let mut right = std::mem::take(&mut raised);
        for fault in faults {
            problems.raise(ProblemKind::Interference, &fault.subject, fault.message);
            right.remove(&fault.subject);
            raised.insert(fault.subject);
        }
        for subject in right {
            problems.clear(ProblemKind::Interference, &subject);
        }
        tokio::time::sleep(PERIOD).await;
    }
}
