//! What is read of the agent itself: memory, journal, and how long its status takes.

use std::time::Instant;

use anyhow::{Context, Result, ensure};
use namegate_testbed::Agent;
use serde_json::{Value, json};

use crate::memory;

/// How often the status is asked for; the median counts.
const ASKED: usize = 5;

/// All of it as part of a row.
pub(super) fn read(agent: &Agent<'_>) -> Result<Value> {
    let pid = agent.pid().context("the agent does not run")?;
    let journal = std::fs::metadata(agent.path("state/journal")).context("reading the size of the journal")?.len();
    let mut status = Vec::new();
    for _ in 0..ASKED {
        let started = Instant::now();
        let response = agent.get("/v1/status")?;
        status.push(started.elapsed().as_secs_f64());
        ensure!(response.status == 200, "GET /v1/status gave {}", response.status);
    }
    status.sort_by(f64::total_cmp);
    Ok(json!({
        "memory_bytes": memory::proportional(pid)?, "peak_bytes": memory::peak(pid)?,
        "journal_bytes": journal, "status_s": status[ASKED / 2],
    }))
}
