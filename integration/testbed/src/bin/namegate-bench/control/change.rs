//! One change of a policy a second, and how long each takes until the kernel holds it.
//!
//! The end of a change is read from the kernel's map itself, which asks nothing of the agent: the row of the endpoint whose
//! policy changed gets another policy or another revision when its new rules are in force. After it the agent removes rows
//! that nobody uses, and nothing else.

use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, ensure};
use aya::maps::{HashMap, Map, MapData};
use namegate_testbed::Agent;
use serde_json::{Value, json};

/// Between two changes.
const PERIOD: Duration = Duration::from_secs(1);
/// Between two reads of the row.
const PAUSE: Duration = Duration::from_micros(100);
/// After so long a change counts as failed.
const PATIENCE: Duration = Duration::from_mins(1);
/// Bytes of a value of `ENDPOINTS`.
const ROW_BYTES: usize = 24;

/// The rows of endpoints in the kernel, by index of their interface.
pub(super) struct EndpointRows(HashMap<MapData, u32, [u8; ROW_BYTES]>);

impl EndpointRows {
    /// Opens the pinned map.
    pub(super) fn open(pins: &Path) -> Result<Self> {
        let path = pins.join("ENDPOINTS");
        let data = MapData::from_pin(&path).with_context(|| format!("opening {}", path.display()))?;
        Ok(Self(HashMap::try_from(Map::HashMap(data)).context("ENDPOINTS is another kind of map")?))
    }

    fn get(&self, interface: u32) -> Result<[u8; ROW_BYTES]> {
        self.0.get(&interface, 0).with_context(|| format!("reading the row of interface {interface}"))
    }
}

/// One change: the file, its new text, and the interface whose rules it changes.
pub(super) struct Change {
    pub(super) file: String,
    pub(super) text: String,
    pub(super) interface: u32,
}

/// Makes one change a second until `stop`; `next` gives each by its number.
pub(super) fn keep_changing(
    agent: &Agent<'_>,
    stop: &AtomicBool,
    next: impl Fn(usize) -> Result<Change>,
) -> Result<Enforced> {
    let rows = EndpointRows::open(agent.pins())?;
    let mut took = Vec::new();
    for number in 0.. {
        if stop.load(Ordering::Relaxed) {
            break;
        }
        let started = Instant::now();
        took.push(make(agent, &rows, &next(number)?)?);
        std::thread::sleep(PERIOD.saturating_sub(started.elapsed()));
    }
    Enforced::of(took)
}

/// From the writing of the file to the moment at which the kernel holds the rules.
fn make(agent: &Agent<'_>, rows: &EndpointRows, change: &Change) -> Result<Duration> {
    let before = rows.get(change.interface)?;
    let started = Instant::now();
    agent.write_policy(&change.file, &change.text)?;
    while rows.get(change.interface)? == before {
        ensure!(started.elapsed() < PATIENCE, "{} is not enforced after {PATIENCE:?}: {}", change.file, agent.log());
        std::thread::sleep(PAUSE);
    }
    Ok(started.elapsed())
}

/// Times until changes were enforced, sorted.
pub(super) struct Enforced(Vec<Duration>);

impl Enforced {
    fn of(mut took: Vec<Duration>) -> Result<Self> {
        took.sort_unstable();
        if took.is_empty() { Err(anyhow!("no change was made")) } else { Ok(Self(took)) }
    }

    fn quantile(&self, percent: usize) -> f64 {
        self.0[(self.0.len() - 1) * percent / 100].as_secs_f64() * 1e6
    }

    /// As part of a row.
    pub(super) fn object(&self) -> Value {
        json!({
            "changes": self.0.len(), "p50_us": self.quantile(50), "p99_us": self.quantile(99),
            "max_us": self.quantile(100),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_times_that_were_measured() {
        let of = |times: &[u64]| Enforced::of(times.iter().copied().map(Duration::from_micros).collect());
        let enforced = of(&[30, 10, 20]).unwrap().object();
        assert_eq!((&enforced["p50_us"], &enforced["max_us"]), (&json!(20.0), &json!(30.0)));
        assert!(of(&[]).is_err());
    }
}
