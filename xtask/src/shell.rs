//! Running programs, and installing those that are missing.

use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus};

use anyhow::{Context, Result, bail, ensure};

/// A program and the Debian package that has it.
pub(crate) struct Tool {
    pub(crate) program: &'static str,
    pub(crate) package: &'static str,
}

/// What worlds of network namespaces are made with.
pub(crate) const TOOLS: [Tool; 2] =
    [Tool { program: "ip", package: "iproute2" }, Tool { program: "setpriv", package: "util-linux" }];

/// The folder of the workspace.
pub(crate) fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap_or(Path::new("."))
}

/// Where cargo puts what it builds.
pub(crate) fn target() -> PathBuf {
    let given = std::env::var_os("CARGO_TARGET_DIR").map(PathBuf::from);
    given.map_or_else(|| root().join("target"), |target| root().join(target))
}

/// The user's folder for what can be made again (XDG Base Directory Specification).
pub(crate) fn cache() -> Result<PathBuf> {
    let absolute = |name| std::env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
    let home = || absolute("HOME").map(|home| home.join(".cache"));
    Ok(absolute("XDG_CACHE_HOME").or_else(home).context("neither XDG_CACHE_HOME nor HOME is set")?.join("namegate"))
}

/// Says on standard error what comes next.
pub(crate) fn step(text: &str) {
    eprintln!("==> {text}");
}

/// Runs a program in the workspace and gives its status.
pub(crate) fn run(command: &mut Command) -> Result<ExitStatus> {
    let name = command.get_program().to_string_lossy().into_owned();
    command.current_dir(root()).status().with_context(|| format!("running `{name}`"))
}

/// Runs cargo; anything but success is an error.
pub(crate) fn cargo(arguments: &[&str]) -> Result<()> {
    let status = run(Command::new(cargo_program()).args(arguments))?;
    ensure!(status.success(), "`cargo {}` failed", arguments.join(" "));
    Ok(())
}

/// The cargo that runs this program.
pub(crate) fn cargo_program() -> std::ffi::OsString {
    std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into())
}

/// Refuses to go on without root.
pub(crate) fn need_root(what: &str, verb: &str) -> Result<()> {
    if is_root() {
        return Ok(());
    }
    bail!("{what} need root; next step: `sudo -E {verb}`")
}

/// Whether a program can be found.
pub(crate) fn has(program: &str) -> bool {
    let folders = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&folders)
        .chain(["/usr/sbin".into(), "/sbin".into()])
        .any(|folder| folder.join(program).is_file())
}

/// Installs the packages of missing tools with apt-get; says which.
pub(crate) fn install_missing(tools: &[Tool]) -> Result<()> {
    let missing: Vec<_> = tools.iter().filter(|tool| !has(tool.program)).map(|tool| tool.package).collect();
    if missing.is_empty() { Ok(()) } else { install(&missing) }
}

/// Installs Debian packages with apt-get; says which.
pub(crate) fn install(missing: &[&str]) -> Result<()> {
    let packages = missing.join(" ");
    ensure!(is_root(), "missing: {packages}; next step: `sudo apt-get install {packages}`");
    ensure!(has("apt-get"), "missing: {packages}; install them with this system's package manager");
    step(&format!("installing what is missing: apt-get install {packages}"));
    let apt =
        |arguments: &[&str]| run(Command::new("apt-get").args(arguments).env("DEBIAN_FRONTEND", "noninteractive"));
    let install: Vec<&str> =
        ["install", "--yes", "--no-install-recommends"].into_iter().chain(missing.iter().copied()).collect();
    if !apt(&install)?.success() {
        step("asking for newer package lists: apt-get update");
        apt(&["update"])?;
        ensure!(apt(&install)?.success(), "`apt-get install {packages}` failed");
    }
    Ok(())
}

fn is_root() -> bool {
    let own = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    own.lines().any(|line| line.starts_with("Uid:") && line.split_whitespace().nth(2) == Some("0"))
}
