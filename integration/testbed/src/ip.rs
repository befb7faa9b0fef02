//! Runs iproute2 in batches, and removes what dead runs left behind.

use std::io::Write;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

/// Runs lines of `ip` commands, in the namespace `netns` if one is given.
pub(crate) fn batch(netns: Option<&str>, lines: &str) -> Result<()> {
    let mut command = Command::new("ip");
    if let Some(netns) = netns {
        command.args(["-n", netns]);
    }
    let mut child = command
        .args(["-batch", "-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .context("running `ip`: install iproute2 (`cargo xtask test` does)")?;
    child.stdin.take().context("standard input of `ip`")?.write_all(lines.as_bytes())?;
    let output = child.wait_with_output()?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        bail!("`ip` refused in {}: {}\n{lines}", netns.unwrap_or("the host"), said.trim());
    }
    Ok(())
}

/// Makes namespaces.
pub(crate) fn add_namespaces(names: &[String]) -> Result<()> {
    batch(None, &per_name("netns add", names))
}

/// Removes namespaces; those that are gone already are no error.
pub(crate) fn delete_namespaces(names: &[String]) {
    let lines = per_name("netns delete", names);
    if let Ok(mut child) =
        Command::new("ip").args(["-force", "-batch", "-"]).stdin(Stdio::piped()).stderr(Stdio::null()).spawn()
    {
        if let Some(mut input) = child.stdin.take() {
            let _ = input.write_all(lines.as_bytes()); // What stays is cleaned by the next run.
        }
        let _ = child.wait();
    }
}

/// Removes namespaces and pinned maps of runs whose process has ended.
pub(crate) fn clean_leftovers() {
    let dead: Vec<String> =
        names_in("/run/netns").into_iter().filter(|name| owner(name).is_some_and(|pid| !alive(pid))).collect();
    delete_namespaces(&dead);
    for name in names_in(crate::agent::PINS) {
        if owner(&name).is_some_and(|pid| !alive(pid)) {
            let _ = std::fs::remove_dir_all(std::path::Path::new(crate::agent::PINS).join(name));
        }
    }
}

fn per_name(command: &str, names: &[String]) -> String {
    names.iter().flat_map(|name| [command, " ", name, "\n"]).collect()
}

fn names_in(folder: &str) -> Vec<String> {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().into_string().ok()).collect()
}

/// The process that made `ng<pid>-<n>` or `ng<pid>-<n>-<what>`.
fn owner(name: &str) -> Option<u32> {
    name.strip_prefix("ng")?.split('-').next()?.parse().ok()
}

fn alive(pid: u32) -> bool {
    std::path::Path::new("/proc").join(pid.to_string()).exists()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_owner_stands_in_the_name() {
        for (name, want) in
            [("ng12-0-node", Some(12)), ("ng7-3", Some(7)), ("ng-tie", None), ("cni-1", None), ("ngx-1-a", None)]
        {
            assert_eq!(owner(name), want, "{name}");
        }
    }
}
