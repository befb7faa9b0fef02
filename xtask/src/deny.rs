//! Licences, banned crates, sources and known vulnerabilities of every lock file, by cargo-deny.
//!
//! Licences, bans and sources need the lock files and the crates alone. Advisories need a database that cargo-deny
//! fetches; where it cannot be reached within [`FETCH_S`] seconds, the run says that advisories are not checked.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Result, ensure};

use crate::shell::{self, Tool};

const CARGO_DENY_VERSION: &str = "0.20.2";
/// Every folder with a lock file of its own, relative to the root of the repository, and what is checked without a
/// database. The clients of `cargo xtask clients` are other people's programs on purpose, so no crate is banned there.
const WORKSPACES: [(&str, &[&str]); 4] = [
    (".", &["licenses", "bans", "sources"]),
    ("fuzz", &["licenses", "bans", "sources"]),
    ("datapath/ebpf", &["licenses", "bans", "sources"]),
    ("integration/testbed/clients/rust", &["licenses", "sources"]),
];
/// How long fetching the database of advisories may take, seconds.
const FETCH_S: u32 = 60;
/// Ends what takes too long.
const TIMEOUT: Tool = Tool { program: "timeout", package: "coreutils" };

/// Checks every lock file; says plainly what could not be checked.
///
/// # Errors
/// cargo-deny cannot be built, or a check failed.
pub(crate) fn check() -> Result<()> {
    let program = install()?;
    for (workspace, checks) in WORKSPACES {
        run(&program, workspace, &[], checks)?;
    }

    if let Err(error) = fetch(&program) {
        shell::step(&format!("advisories are NOT checked, their database cannot be reached: {error:#}"));
        return Ok(());
    }
    for (workspace, _) in WORKSPACES {
        run(&program, workspace, &["--offline"], &["advisories"])?;
    }
    Ok(())
}

fn run(program: &Path, workspace: &str, options: &[&str], checks: &[&str]) -> Result<()> {
    shell::step(&format!("cargo deny check {} ({workspace})", checks.join(" ")));
    let mut deny = command(program, workspace);
    deny.args(options).arg("check").args(checks);
    ensure!(
        shell::run(&mut deny)?.success(),
        "`cargo deny check {}` failed for {workspace}/Cargo.lock; next step: change the dependency, or say in deny.toml \
         why it is right",
        checks.join(" ")
    );
    Ok(())
}

/// Brings the database of advisories up to date, within [`FETCH_S`] seconds.
fn fetch(program: &Path) -> Result<()> {
    shell::install_missing(&[TIMEOUT])?;
    shell::step(&format!("fetching the database of advisories, for at most {FETCH_S} s"));
    let deny = command(program, ".");
    let mut limited = Command::new("timeout");
    limited.args(["--kill-after=5", &FETCH_S.to_string()]).arg(program).args(deny.get_args());
    limited.args(["fetch", "db"]);
    // A fetch that asks for a password would wait for it.
    limited.env("GIT_TERMINAL_PROMPT", "0").stdin(Stdio::null());
    shell::output(&mut limited).map(drop)
}

fn command(program: &Path, workspace: &str) -> Command {
    let mut deny = Command::new(program);
    let manifest = shell::root().join(workspace).join("Cargo.toml");
    deny.args(["--log-level", "error", "--locked", "--config"]).arg(shell::root().join("deny.toml"));
    deny.arg("--manifest-path").arg(manifest);
    deny
}

/// Builds cargo-deny once for each version, without the optimisations that would double the time; gives its path.
fn install() -> Result<PathBuf> {
    let folder = shell::cache()?.join(format!("cargo-deny-{CARGO_DENY_VERSION}"));
    let program = folder.join("bin/cargo-deny");
    if is_right(&program) {
        return Ok(program);
    }
    shell::step(&format!("building cargo-deny {CARGO_DENY_VERSION}; this takes some minutes, once"));
    let mut install = shell::cargo_command();
    install.args(["install", "cargo-deny", "--version", &format!("={CARGO_DENY_VERSION}"), "--locked", "--force"]);
    install.arg("--root").arg(&folder).env("CARGO_PROFILE_RELEASE_LTO", "off");
    install.env("CARGO_PROFILE_RELEASE_CODEGEN_UNITS", "16").env("CARGO_PROFILE_RELEASE_OPT_LEVEL", "1");
    ensure!(shell::run(&mut install)?.success(), "building cargo-deny {CARGO_DENY_VERSION} failed");
    ensure!(is_right(&program), "{} is not cargo-deny {CARGO_DENY_VERSION}", program.display());
    Ok(program)
}

/// Whether the program runs, and is of the version that is wanted.
fn is_right(program: &Path) -> bool {
    let about = shell::output(Command::new(program).arg("--version")).unwrap_or_default();
    about.trim() == format!("cargo-deny {CARGO_DENY_VERSION}")
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    /// A lock file that is added later is checked too.
    #[test]
    fn every_lock_file_is_checked() {
        let mut git = Command::new("git");
        git.current_dir(shell::root()).args(["ls-files", "*Cargo.lock"]);
        let listed = shell::output(&mut git).unwrap();
        let in_tree: BTreeSet<&str> =
            listed.lines().map(|file| file.strip_suffix("Cargo.lock").unwrap().trim_end_matches('/')).collect();
        let checked: BTreeSet<&str> =
            WORKSPACES.into_iter().map(|(folder, _)| folder.trim_start_matches('.')).collect();
        assert_eq!(in_tree, checked);
    }
}
