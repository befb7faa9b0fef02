//! The machine: cores, kernel, and how busy others keep it.

use std::time::Duration;

use anyhow::{Context, Result};

/// What figures depend on besides the programs.
#[derive(Clone, Debug)]
pub(crate) struct Machine {
    /// Cores that this process may use.
    pub(crate) cores: usize,
    /// Release of the kernel.
    pub(crate) kernel: String,
    /// Per cent of the cores' time that others used before the run. Much of it spoils the figures.
    pub(crate) busy_percent: u64,
}

impl Machine {
    /// Watches the machine for a while, doing nothing.
    pub(crate) fn look(length: Duration) -> Result<Self> {
        let before = times()?;
        std::thread::sleep(length);
        let busy_percent = busy(before, times()?);
        let kernel = std::fs::read_to_string("/proc/sys/kernel/osrelease").context("reading the kernel's release")?;
        let cores = std::thread::available_parallelism().map_or(0, usize::from);
        Ok(Self { cores, kernel: kernel.trim().to_owned(), busy_percent })
    }
}

fn times() -> Result<(u64, u64)> {
    let text = std::fs::read_to_string("/proc/stat").context("reading /proc/stat")?;
    read(&text).context("/proc/stat has no line `cpu`")
}

/// Idle and whole time since the start of the machine, in ticks (`proc_stat(5)`).
fn read(stat: &str) -> Option<(u64, u64)> {
    /// The fields of the line; those after them count guests a second time.
    const FIELDS: usize = 8;
    let line = stat.lines().next()?.strip_prefix("cpu ")?;
    let ticks: Vec<u64> = line.split_whitespace().take(FIELDS).map_while(|word| word.parse().ok()).collect();
    let (idle, waiting) = (ticks.get(3)?, ticks.get(4)?);
    Some((idle + waiting, ticks.iter().sum()))
}

fn busy(before: (u64, u64), after: (u64, u64)) -> u64 {
    let (idle, whole) = (after.0.saturating_sub(before.0), after.1.saturating_sub(before.1));
    (whole.saturating_sub(idle) * 100).checked_div(whole).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn busy_time_is_what_is_neither_idle_nor_waiting() {
        let before = read("cpu  100 0 50 800 50 0 0 0 0 0\ncpu0 1 1 1 1\n").unwrap();
        let after = read("cpu  130 0 70 840 60 0 0 0 30 0\n").unwrap();
        assert_eq!((before, after), ((850, 1_000), (900, 1_100)));
        assert_eq!(busy(before, after), 50);
        assert_eq!(busy(before, before), 0);
        assert_eq!(read("intr 1 2 3"), None);
    }
}
