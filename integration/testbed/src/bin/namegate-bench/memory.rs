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

/// The memory that a process has, bytes (`Pss`, `proc_pid_smaps(5)`). Unlike `VmRSS` it counts a ring buffer of the kernel
/// once, whose pages are mapped twice in a row.
pub(crate) fn proportional(pid: u32) -> Result<u64> {
    let sums = read_to_string(format!("/proc/{pid}/smaps_rollup")).context("reading a process's memory")?;
    bytes(&sums, "Pss:").with_context(|| format!("process {pid} has no memory"))
}

fn own(pid: u32) -> Result<u64> {
    let status = read_to_string(format!("/proc/{pid}/status")).context("reading a process's memory")?;
    bytes(&status, "VmHWM:").with_context(|| format!("process {pid} has no memory"))
}

fn bytes(status: &str, name: &str) -> Option<u64> {
    let line = status.lines().find_map(|line| line.strip_prefix(name))?;
    Some(line.trim().strip_suffix(" kB")?.parse::<u64>().ok()? * 1_024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_figures_are_read() {
        let status = "Name:\tx\nVmHWM:\t    1204 kB\nVmRSS:\t 900 kB\n";
        assert_eq!(bytes(status, "VmHWM:"), Some(1_204 << 10));
        assert_eq!(bytes(status, "VmRSS:"), Some(900 << 10));
        assert_eq!(bytes("Name:\tkthreadd\n", "VmHWM:"), None);
        let own = std::process::id();
        let (peak, now) = (peak(own).unwrap(), proportional(own).unwrap());
        assert!(now > 100_000 && peak >= now, "{peak} {now}");
    }
}
