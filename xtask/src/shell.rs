//! Running programs, and installing those that are missing.

use std::ffi::OsString;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};

use anyhow::{Context, Result, bail, ensure};

/// A program and the Debian package that has it.
pub(crate) struct Tool {
    pub(crate) program: &'static str,
    pub(crate) package: &'static str,
}

/// What worlds of network namespaces are made with.
pub(crate) const TOOLS: [Tool; 3] = [
    Tool { program: "ip", package: "iproute2" },
    Tool { program: "setpriv", package: "util-linux" },
    Tool { program: "nft", package: "nftables" },
];

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
    let status = run(cargo_command().args(arguments))?;
    ensure!(status.success(), "`cargo {}` failed", arguments.join(" "));
    Ok(())
}

/// The cargo that runs this program, without what that has told about this package: build scripts that look at it would
/// run again each time.
pub(crate) fn cargo_command() -> Command {
    let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    let is_about = |name: &OsString| {
        name.to_str().is_some_and(|name| name.starts_with("CARGO_PKG_") || name.starts_with("CARGO_MANIFEST_"))
    };
    for (name, _) in std::env::vars_os().filter(|(name, _)| is_about(name)) {
        cargo.env_remove(name);
    }
    cargo
}

/// Refuses to go on without root.
pub(crate) fn need_root(what: &str, verb: &str) -> Result<()> {
    if is_root() {
        return Ok(());
    }
    bail!("{what} need root; next step: `sudo -E {verb}`")
}

/// Runs a program and gives what it prints; anything but success is an error with what it complains of.
pub(crate) fn output(command: &mut Command) -> Result<String> {
    let name = command.get_program().to_string_lossy().into_owned();
    let output = command.output().with_context(|| format!("running `{name}`"))?;
    checked(command, &output)?;
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Gives text to a program; anything but success is an error with what it complains of.
pub(crate) fn feed(command: &mut Command, input: &str) -> Result<()> {
    let name = command.get_program().to_string_lossy().into_owned();
    let piped = command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::piped());
    let mut child = piped.spawn().with_context(|| format!("running `{name}`"))?;
    child.stdin.take().context("a program's standard input")?.write_all(input.as_bytes())?;
    let output = child.wait_with_output()?;
    checked(command, &output)
}

fn checked(command: &Command, output: &std::process::Output) -> Result<()> {
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    let words: Vec<_> = words.map(|word| word.to_string_lossy()).collect();
    ensure!(
        output.status.success(),
        "`{}` failed: {}",
        words.join(" "),
        String::from_utf8_lossy(&output.stderr).trim()
    );
    Ok(())
}

/// Whether a program can be found.
pub(crate) fn has(program: &str) -> bool {
    find(program).is_some()
}

/// Where a program lies: on the path, or with those of administrators.
pub(crate) fn find(program: &str) -> Option<PathBuf> {
    folders().map(|folder| folder.join(program)).find(|path| path.is_file())
}

/// The path for programs, with the folders of administrators.
pub(crate) fn search_path() -> OsString {
    std::env::join_paths(folders()).unwrap_or_default()
}

fn folders() -> impl Iterator<Item = PathBuf> {
    let given = std::env::var_os("PATH").unwrap_or_default();
    let given: Vec<PathBuf> = std::env::split_paths(&given).collect();
    given.into_iter().chain(["/usr/sbin".into(), "/sbin".into()])
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
