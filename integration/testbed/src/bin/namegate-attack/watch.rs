//! What the agent says of itself meanwhile: metrics, health, memory.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context, Result};
use namegate_testbed::Agent;

/// Samples of `/metrics` by name and labels.
#[derive(Clone, Debug, Default)]
pub(crate) struct Metrics(BTreeMap<String, f64>);

impl Metrics {
    /// Asks the agent.
    pub(crate) fn of(agent: &Agent<'_>) -> Result<Self> {
        let answer = agent.get("/metrics")?;
        anyhow::ensure!(answer.status == 200, "GET /metrics gave {}", answer.status);
        Ok(Self::parse(&answer.text()))
    }

    fn parse(text: &str) -> Self {
        let samples = text.lines().filter(|line| !line.starts_with('#'));
        Self(samples.filter_map(|line| line.rsplit_once(' ')).filter_map(sample).collect())
    }

    /// Samples that have grown since an earlier time, by how much.
    pub(crate) fn since(&self, before: &Self) -> Self {
        let grown = self.0.iter().map(|(name, value)| (name, value - before.0.get(name).copied().unwrap_or_default()));
        Self(grown.filter(|(_, by)| *by > 0.0).map(|(name, by)| (name.clone(), by)).collect())
    }

    /// Samples whose name and labels hold all these texts.
    pub(crate) fn with(&self, texts: &[&str]) -> Vec<(&str, f64)> {
        let holds = |name: &&String| texts.iter().all(|text| name.contains(text));
        self.0.iter().filter(|(name, _)| holds(name)).map(|(name, value)| (name.as_str(), *value)).collect()
    }
}

fn sample((name, value): (&str, &str)) -> Option<(String, f64)> {
    Some((name.to_owned(), value.parse().ok()?))
}

/// What was seen of the agent's health.
#[derive(Clone, Debug, Default)]
pub(crate) struct Health {
    pub(crate) asked: u64,
    /// Answers other than 200.
    pub(crate) unwell: u64,
    /// No answer at all.
    pub(crate) silent: u64,
    /// Kinds and subjects of problems that were raised at some time.
    pub(crate) problems: BTreeSet<String>,
    /// The most memory that the process had, bytes.
    pub(crate) memory: u64,
}

impl Health {
    /// Asks once.
    pub(crate) fn ask(&mut self, agent: &Agent<'_>) {
        self.asked += 1;
        match agent.get("/v1/healthz") {
            Ok(answer) if answer.status == 200 => {}
            Ok(_) => self.unwell += 1,
            Err(_) => self.silent += 1,
        }
        if let Ok(status) = agent.json("/v1/status") {
            let listed = status["problems"].as_array().into_iter().flatten();
            self.problems.extend(listed.map(|one| format!("{} {}", word(&one["kind"]), word(&one["subject"]))));
        }
        if let Some(memory) = agent.pid().and_then(|pid| memory(pid).ok()) {
            self.memory = self.memory.max(memory);
        }
    }
}

fn word(value: &serde_json::Value) -> &str {
    value.as_str().unwrap_or_default()
}

/// The most memory that a process ever had (`VmHWM`, `proc_pid_status(5)`), bytes.
fn memory(pid: u32) -> Result<u64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).context("reading a process's memory")?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).context("a process has no memory")?;
    Ok(line.trim().trim_end_matches(" kB").parse::<u64>()? << 10)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_grew_is_found() {
        let before = Metrics::parse("# TYPE a counter\na_total{b=\"c d\"} 1\nx 5\n");
        let after = Metrics::parse("a_total{b=\"c d\"} 4\na_total{b=\"e\"} 2\nx 5\n");
        let grown = after.since(&before);
        assert_eq!(grown.with(&["a_total"]), [("a_total{b=\"c d\"}", 3.0), ("a_total{b=\"e\"}", 2.0)]);
        assert!(grown.with(&["x"]).is_empty());
        assert!(memory(std::process::id()).unwrap() > 1 << 20);
    }
}
