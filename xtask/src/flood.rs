//! `cargo xtask flood`: one endpoint floods the layer 7 proxy in all known ways while another makes steady requests.

use std::process::{Command, ExitCode};

use anyhow::Result;
use clap::Args;

use crate::shell;

/// Which floods, how long, and in which form the result is printed.
#[derive(Args)]
pub(crate) struct Flood {
    /// How long each flood lasts.
    #[arg(long, default_value_t = 60, value_parser = clap::value_parser!(u64).range(1..=3_600))]
    seconds: u64,
    /// Only these floods: `ping`, `hpack`, `stalled-windows` and others, as the help of `namegate-flood` lists them.
    #[arg(long)]
    only: Vec<String>,
    /// Form of the output.
    #[arg(short, long, default_value = "text", value_parser = ["text", "json"])]
    output: String,
}

/// Builds the agent and the floods as users get them, and runs the floods.
pub(crate) fn run(arguments: &Flood) -> Result<ExitCode> {
    shell::need_root("network namespaces and eBPF", "cargo xtask flood")?;
    shell::install_missing(&shell::TOOLS)?;
    shell::step("building the agent and the floods (release); the first time takes minutes");
    shell::cargo(&["build", "--release", "--package", "namegate"])?;
    shell::cargo(&["build", "--release", "--package", "namegate-testbed", "--bin", "namegate-flood"])?;
    let programs = shell::target().join("release");
    let mut flood = Command::new(programs.join("namegate-flood"));
    flood.args(["--seconds", &arguments.seconds.to_string(), "--output", &arguments.output]);
    flood.args(arguments.only.iter().flat_map(|kind| ["--only", kind]));
    let status = shell::run(flood.env("NAMEGATE_BIN", programs.join("namegate")))?;
    Ok(ExitCode::from(status.code().and_then(|code| u8::try_from(code).ok()).unwrap_or(2)))
}
