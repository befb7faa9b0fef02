//! Finds the agent's binary, and sees to it that it is not older than its sources.

use std::path::PathBuf;
use std::process::Command;
use std::sync::OnceLock;

use anyhow::{Context, Result, bail};

/// Names a binary to use as it is.
const VARIABLE: &str = "NAMEGATE_BIN";

/// The binary that `NAMEGATE_BIN` names, else the one beside this executable, brought up to date by `cargo build`.
pub(super) fn find() -> Result<PathBuf> {
    static FOUND: OnceLock<Result<PathBuf, String>> = OnceLock::new();
    FOUND.get_or_init(|| look().map_err(|error| format!("{error:#}"))).clone().map_err(anyhow::Error::msg)
}

fn look() -> Result<PathBuf> {
    if let Some(given) = std::env::var_os(VARIABLE) {
        let given = PathBuf::from(given);
        if !given.is_file() {
            bail!("{VARIABLE} names {}, which is no file", given.display());
        }
        return Ok(given);
    }
    let executable = std::env::current_exe().context("finding this executable")?;
    let mut folder = executable.parent().context("the folder of this executable")?;
    if folder.ends_with("deps") || folder.ends_with("examples") {
        folder = folder.parent().context("the folder of this executable")?;
    }
    build(folder.ends_with("release"))?;
    let beside = folder.join("namegate");
    if !beside.is_file() {
        bail!("no agent at {}: run `cargo build -p namegate`, or set {VARIABLE}", beside.display());
    }
    Ok(beside)
}

fn build(release: bool) -> Result<()> {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.args(["build", "--quiet", "--package", "namegate"]).current_dir(env!("CARGO_MANIFEST_DIR"));
    if release {
        command.arg("--release");
    }
    match command.output() {
        Ok(output) if !output.status.success() => {
            bail!("the agent does not build:\n{}", String::from_utf8_lossy(&output.stderr))
        }
        _ => Ok(()), // Without cargo what lies there is used.
    }
}
