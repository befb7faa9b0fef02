//! Memory of a program with all its processes.

use std::fs::read_to_string;

use anyhow::{Context, Result};

/// The most memory that a process and its children had (`VmHWM`, `proc_pid_status(5)`), added up, octets. What
/// processes share counts for each.
pub(crate) fn peak(pid: u32) -> Result<u64> {
    let children =
        read_to_string(format!("/proc/{pid}/task/{pid}/children")).context("reading a process's children")?;
    let children = children.split_whitespace().filter_map(|word| word.parse().ok());
    let mut whole = own(pid)?;
    for child in children {
        whole += own(child)?;
    }
    Ok(whole)
}

fn own(pid: u32) -> Result<u64> {
    let status = read_to_string(format!("/proc/{pid}/status")).context("reading a process's memory")?;
    high_water(&status).with_context(|| format!("process {pid} has no memory"))
}

fn high_water(status: &str) -> Option<u64> {
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    Some(line.trim().strip_suffix(" kB")?.parse::<u64>().ok()? * 1_024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_high_water_mark_is_read() {
        assert_eq!(high_water("Name:\tx\nVmHWM:\t    1204 kB\nVmRSS:\t 900 kB\n"), Some(1_204 << 10));
        assert_eq!(high_water("Name:\tkthreadd\n"), None);
        assert!(peak(std::process::id()).unwrap() > 100_000);
    }
}
