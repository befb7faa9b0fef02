//! What the run prints: one row for each flood, or one JSON object.

use anyhow::{Context, Result};
use serde_json::{Value, json};

use crate::generate::Kind;
use crate::honest::Counter;

/// Memory of the agent during a flood, bytes.
const MEMORY_MAX: u64 = 300 << 20;
/// How much more it may have after a flood than before, parts of a hundred.
const LEFT_MAX_PERCENT: u64 = 120;
/// The bar for honest requests, microseconds. It is shown and decides nothing: the flood comes from the same machine.
const LATENCY_BAR: u64 = 100_000;

const RED: &str = "\x1b[31m";
const GREEN: &str = "\x1b[32m";
const DIM: &str = "\x1b[2m";
const PLAIN: &str = "\x1b[0m";

/// Resident memory of the agent, bytes.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Memory {
    pub(crate) before: u64,
    pub(crate) peak: u64,
    pub(crate) after: u64,
}

/// One flood.
pub(crate) struct Row {
    pub(crate) kind: Kind,
    pub(crate) honest: Counter,
    pub(crate) memory: Memory,
}

impl Row {
    /// What is not as it must be.
    fn wrong(&self) -> Vec<&'static str> {
        let Memory { before, peak, after } = self.memory;
        let bars = [
            (self.honest.refused == 0 && self.honest.sent > 0, "refused"),
            (peak < MEMORY_MAX, "peak"),
            (after * 100 <= before * LEFT_MAX_PERCENT, "after"),
        ];
        bars.into_iter().filter(|(holds, _)| !holds).map(|(_, what)| what).collect()
    }

    /// Whether all bars hold that decide.
    pub(crate) fn is_good(&self) -> bool {
        self.wrong().is_empty()
    }

    fn latency(&self, quantile: f64) -> u64 {
        self.honest.latency.value_at_quantile(quantile)
    }

    /// Prints the row for people.
    pub(crate) fn print(&self) {
        let (mark, colour) = if self.is_good() { ("✓", GREEN) } else { ("✗", RED) };
        let Memory { before, peak, after } = self.memory;
        let slow = if self.latency(0.99) < LATENCY_BAR { "" } else { " (above the bar of 100 ms)" };
        anstream::println!(
            "{colour}{mark}{PLAIN} {:<16} {:>6} sent {:>4} refused  p50 {:>7.1} ms  p99 {:>8.1} ms{slow}  memory {:>4} MB \
             before {:>4} peak {:>4} after",
            format!("{:?}", self.kind),
            self.honest.sent,
            self.honest.refused,
            ms(self.latency(0.5)),
            ms(self.latency(0.99)),
            before >> 20,
            peak >> 20,
            after >> 20,
        );
        for word in &self.honest.words {
            anstream::println!("  {DIM}refused: {word}{PLAIN}");
        }
    }

    /// The row as JSON: milliseconds and bytes.
    pub(crate) fn json(&self) -> Value {
        json!({
            "flood": format!("{:?}", self.kind),
            "sent": self.honest.sent,
            "refused": self.honest.refused,
            "words": self.honest.words,
            "p50Ms": ms(self.latency(0.5)),
            "p99Ms": ms(self.latency(0.99)),
            "memoryBefore": self.memory.before,
            "memoryPeak": self.memory.peak,
            "memoryAfter": self.memory.after,
            "wrong": self.wrong(),
        })
    }
}

#[expect(clippy::cast_precision_loss, reason = "shown with one digit")]
fn ms(micros: u64) -> f64 {
    micros as f64 / 1e3
}

/// The memory that a process has now (`VmRSS`, `proc_pid_status(5)`), bytes.
pub(crate) fn resident(pid: u32) -> Result<u64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).context("reading a process's memory")?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("a process has no memory")?;
    Ok(line.trim().trim_end_matches(" kB").parse::<u64>()? << 10)
}
