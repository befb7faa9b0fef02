//! `cargo xtask test`: every check and every test, the test runner's summary last.

use std::ffi::OsString;
use std::process::ExitCode;
use std::time::Instant;

use anyhow::{Result, bail};

use crate::ebpf::{self, Compared};
use crate::{attack, cluster, deny, fuzz, gauntlet, shell};

/// Names another eBPF object than the committed one, for the agent and for every test.
const OBJECT_VARIABLE: &str = "NAMEGATE_BPF_OBJECT";

/// Names the helm that the test of the chart calls.
const HELM_VARIABLE: &str = "NAMEGATE_HELM";

/// Runs all of it; stops at the first check that fails.
pub(crate) fn run(arguments: &[OsString]) -> Result<ExitCode> {
    shell::need_root("the real-kernel tests", "cargo xtask test")?;
    shell::install_missing(&shell::TOOLS)?;
    let started = Instant::now();
    shell::step("cargo fmt --check");
    shell::cargo(&["fmt", "--all", "--check"])?;
    shell::step("cargo clippy");
    shell::cargo(&["clippy", "--quiet", "--workspace", "--all-targets", "--", "-D", "warnings"])?;
    deny::check()?;
    let object = match ebpf::compare()? {
        Compared::Same => None,
        Compared::OtherVersions(built) => Some(built),
        Compared::Different(built) => {
            bail!(
                "the committed eBPF object is not what its source gives ({}); run `cargo xtask ebpf`",
                built.display()
            )
        }
    };
    if arguments.is_empty() {
        fuzz::short()?;
    }
    shell::step("building the agent");
    shell::cargo(&["build", "--quiet", "--package", "namegate"])?;
    if arguments.is_empty() {
        attack::short()?;
        gauntlet::short()?;
    }
    shell::step(&format!("cargo test --workspace (checks took {} s)", started.elapsed().as_secs()));
    let mut test = shell::cargo_command();
    test.args(["test", "--workspace", "--no-fail-fast"]).env("NAMEGATE_BIN", shell::target().join("debug/namegate"));
    match cluster::helm() {
        Ok(helm) => drop(test.env(HELM_VARIABLE, helm)),
        Err(error) => shell::step(&format!("helm can't be built, the chart is not rendered: {error:#}")),
    }
    if let Some(object) = object {
        shell::step(&format!("tests load the object that was built now: {}", object.display()));
        test.env(OBJECT_VARIABLE, object);
    }
    if !arguments.is_empty() {
        test.arg("--").args(arguments);
    }
    let status = shell::run(&mut test)?;
    Ok(if status.success() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
