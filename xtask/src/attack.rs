//! `cargo xtask attack`: one node under attack from all sides at once, while two honest endpoints go on.

use std::path::Path;
use std::process::{Command, ExitCode};

use anyhow::{Result, ensure};
use clap::Args;

use crate::shell;

/// How long the attack of `cargo xtask test` lasts, seconds.
const SHORT_S: u64 = 35;

/// How long, and in which form the result is printed.
#[derive(Args)]
pub(crate) struct Attack {
    /// How long the attack lasts.
    #[arg(long, default_value_t = 300, value_parser = clap::value_parser!(u64).range(10..=86_400))]
    seconds: u64,
    /// Form of the output.
    #[arg(short, long, default_value = "text", value_parser = ["text", "json"])]
    output: String,
}

/// Builds the agent and the attack as users get them, and runs the attack.
pub(crate) fn run(arguments: &Attack) -> Result<ExitCode> {
    shell::need_root("network namespaces and eBPF", "cargo xtask attack")?;
    shell::install_missing(&shell::TOOLS)?;
    shell::step("building the agent and the attack (release); the first time takes minutes");
    let packages = ["--package", "namegate", "--package", "namegate-testbed"];
    shell::cargo(&[&["build", "--release", "--bin", "namegate", "--bin", "namegate-attack"], &packages[..]].concat())?;
    let mut attack = attack(&shell::target().join("release"), arguments.seconds);
    attack.args(["--output", &arguments.output]);
    let status = shell::run(&mut attack)?;
    Ok(ExitCode::from(status.code().and_then(|code| u8::try_from(code).ok()).unwrap_or(2)))
}

/// A short attack with the programs that tests use.
///
/// # Errors
/// A row is not as expected, or the attack could not run.
pub(crate) fn short() -> Result<()> {
    shell::step(&format!("attacking a node from all sides for {SHORT_S} s"));
    shell::cargo(&["build", "--quiet", "--package", "namegate-testbed", "--bin", "namegate-attack"])?;
    let status = shell::run(&mut attack(&shell::target().join("debug"), SHORT_S))?;
    ensure!(status.success(), "the attack went through: see the rows above; next step: `sudo -E cargo xtask attack`");
    Ok(())
}

fn attack(programs: &Path, seconds: u64) -> Command {
    let mut attack = Command::new(programs.join("namegate-attack"));
    attack.args(["--seconds", &seconds.to_string()]).env("NAMEGATE_BIN", programs.join("namegate"));
    attack
}
