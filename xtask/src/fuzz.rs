//! `cargo xtask fuzz`: feeds made-up input to everything that reads input from outside.
//!
//! Stable Rust will do: the targets hold no unsafe code, so no sanitizer is needed, and that is all nightly would add.

use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, Stdio};
use std::thread::{available_parallelism, sleep};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use clap::Args;

use crate::shell::{self, Tool};

const CARGO_FUZZ_VERSION: &str = "0.13.2";
/// Everything that can be fuzzed; the same as in the package `namegate-fuzz-targets`.
const TARGETS: [&str; 18] = [
    "policy_yaml",
    "cidr",
    "pattern",
    "selector",
    "settings",
    "endpoints",
    "dns_wire",
    "packet",
    "quic_initial",
    "api",
    "cni_stdin",
    "http_head",
    "journal",
    "kubernetes_json",
    "sniffer",
    "tls_hello",
    "icmp_errors",
    "neighbour",
];
/// How long `cargo xtask test` fuzzes each target, seconds.
const SHORT_S: u64 = 60;
/// One input may take this long, seconds, and this much memory, MiB.
const TIMEOUT_S: u32 = 10;
const MEMORY_MIB: u32 = 2_048;
/// What libFuzzer says of an input that took too long.
const TIMEOUT: &str = "ERROR: libFuzzer: timeout";
/// libFuzzer itself needs a compiler for C++.
const COMPILER: Tool = Tool { program: "c++", package: "g++" };

/// What to fuzz, and for how long.
#[derive(Args)]
pub(crate) struct Fuzz {
    /// What to fuzz; everything if not given.
    #[arg(value_name = "TARGET", value_parser = TARGETS)]
    targets: Vec<String>,
    /// How long each target is fuzzed.
    #[arg(long, default_value_t = 600, value_parser = clap::value_parser!(u64).range(1..=604_800))]
    seconds: u64,
    /// Replace the stored inputs by the fewest that reach what they and the ones found since reach.
    #[arg(long)]
    store: bool,
}

/// Fuzzes; the status is 1 where an input was found that a target fails on.
pub(crate) fn run(arguments: &Fuzz) -> Result<ExitCode> {
    let all: Vec<&str> = TARGETS.into();
    let given: Vec<&str> = arguments.targets.iter().map(String::as_str).collect();
    let targets = if given.is_empty() { all } else { given };
    build()?;
    let failed = fuzz(&targets, arguments.seconds)?;
    if arguments.store && failed == 0 {
        targets.iter().try_for_each(|target| store(target))?;
    }
    Ok(if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// A short run of every target, for `cargo xtask test`; says so where it cannot be done.
///
/// # Errors
/// An input was found that a target fails on.
pub(crate) fn short() -> Result<()> {
    if let Err(error) = build() {
        shell::step(&format!("fuzzing is left out: {error:#}"));
        return Ok(());
    }
    let failed = fuzz(&TARGETS, SHORT_S)?;
    ensure!(failed == 0, "{failed} fuzz targets failed");
    Ok(())
}

fn build() -> Result<()> {
    shell::install_missing(&[COMPILER])?;
    let folder = cargo_fuzz()?;
    shell::step("building the fuzz targets; the first time takes minutes");
    let mut cargo = Command::new(folder.join("bin/cargo-fuzz"));
    cargo.args(["build", "--sanitizer", "none", "--fuzz-dir"]).arg(shell::root().join("fuzz"));
    cargo.arg("--target-dir").arg(target_folder()).env_remove("RUSTFLAGS");
    let output = cargo.current_dir(shell::root()).output().context("running `cargo fuzz build`")?;
    ensure!(output.status.success(), "`cargo fuzz build` failed: {}", String::from_utf8_lossy(&output.stderr).trim());
    Ok(())
}

/// Builds `cargo-fuzz` once; gives its folder.
fn cargo_fuzz() -> Result<PathBuf> {
    let folder = shell::cache()?.join(format!("cargo-fuzz-{CARGO_FUZZ_VERSION}"));
    if folder.join("bin/cargo-fuzz").exists() {
        return Ok(folder);
    }
    shell::step(&format!("building cargo-fuzz {CARGO_FUZZ_VERSION}; this takes a minute, once"));
    let mut install = shell::cargo_command();
    install.args(["install", "cargo-fuzz", "--version", CARGO_FUZZ_VERSION, "--locked", "--root"]).arg(&folder);
    ensure!(shell::run(&mut install)?.success(), "building cargo-fuzz failed");
    Ok(folder)
}

/// What is built and found, apart from what the workspace builds.
fn target_folder() -> PathBuf {
    shell::target().join("fuzz")
}

fn program(target: &str) -> PathBuf {
    target_folder().join(format!("{}-unknown-linux-gnu/release", std::env::consts::ARCH)).join(target)
}

fn stored(target: &str) -> PathBuf {
    shell::root().join("fuzz/corpus").join(target)
}

/// Inputs found in earlier runs.
fn found(target: &str) -> PathBuf {
    target_folder().join("found").join(target)
}

/// Runs each target so long, as many at once as there are cores; gives how many failed.
fn fuzz(targets: &[&str], seconds: u64) -> Result<usize> {
    let cores = available_parallelism().map_or(1, usize::from);
    shell::step(&format!("fuzzing {}, {seconds} s each, {cores} at once", targets.join(", ")));
    let mut waiting = targets.iter().rev().copied().collect::<Vec<_>>();
    let mut running: Vec<Run> = Vec::new();
    let mut failed = 0;
    while !waiting.is_empty() || !running.is_empty() {
        while running.len() < cores
            && let Some(target) = waiting.pop()
        {
            running.push(Run::start(target, seconds)?);
        }
        sleep(Duration::from_millis(200));
        for at in (0..running.len()).rev() {
            if let Some(status) = running[at].child.try_wait()? {
                let run = running.swap_remove(at);
                let left = run.ends.saturating_duration_since(Instant::now()).as_secs();
                match run.tell(status.success())? {
                    Outcome::Failed => failed += 1,
                    Outcome::Starved if left > 0 => running.push(Run::start(&run.target, left)?),
                    Outcome::Clean | Outcome::Starved => {}
                }
            }
        }
    }
    Ok(failed)
}

/// How a run ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Outcome {
    Clean,
    Failed,
    /// An input took too long, and is quick when it is played again: the machine had no time for it.
    Starved,
}

/// A target at work. Ends with this program.
struct Run {
    target: String,
    ends: Instant,
    child: Child,
    log: PathBuf,
}

impl Run {
    fn start(target: &str, seconds: u64) -> Result<Self> {
        let (found, stored) = (found(target), stored(target));
        let failures = target_folder().join("failures");
        for folder in [&found, &failures] {
            fs::create_dir_all(folder).with_context(|| format!("making {}", folder.display()))?;
        }
        let log = target_folder().join(format!("{target}.log"));
        let output = fs::File::create(&log).with_context(|| format!("writing {}", log.display()))?;
        let mut command = Command::new(program(target));
        command.arg(found).arg(stored).arg(format!("-max_total_time={seconds}"));
        command.args([format!("-timeout={TIMEOUT_S}"), format!("-rss_limit_mb={MEMORY_MIB}")]);
        command.arg(format!("-artifact_prefix={}/{target}-", failures.display())).arg("-print_final_stats=1");
        if let Some(words) = dictionary(target) {
            command.arg(format!("-dict={}", words.display()));
        }
        let child = command.stdout(Stdio::null()).stderr(output).spawn();
        let child = child.with_context(|| format!("running {}", program(target).display()))?;
        let ends = Instant::now() + Duration::from_secs(seconds);
        Ok(Self { target: target.to_owned(), ends, child, log })
    }

    /// Says what came out.
    fn tell(&self, success: bool) -> Result<Outcome> {
        let log = fs::read(&self.log).with_context(|| format!("reading {}", self.log.display()))?;
        let log = String::from_utf8_lossy(&log);
        if success {
            println!("{:<12} {:>12} inputs, reached {}", self.target, executed(&log), reached(&log));
            return Ok(Outcome::Clean);
        }
        let input = log.lines().find_map(|line| line.split_once("Test unit written to ")).map(|(_, path)| path);
        if log.contains(TIMEOUT)
            && let Some(input) = input
            && is_quick(&self.target, input)?
        {
            println!(
                "{:<12} {:>12} inputs, then an input had no time for {TIMEOUT_S} s; played again, it is quick: it goes on",
                self.target,
                executed(&log)
            );
            return Ok(Outcome::Starved);
        }
        let start = log.find("panicked at").or_else(|| log.find("ERROR: ")).unwrap_or(0);
        let told: Vec<&str> = log[start..].lines().take(4).collect();
        println!("{:<12} failed: {}", self.target, told.join("\n  "));
        if let Some(input) = input {
            println!("  the input: {input}");
            println!("  next step: copy it to fuzz/corpus/{}, then `cargo test -p namegate-fuzz-targets`", self.target);
        }
        println!("  everything it said: {}", self.log.display());
        Ok(Outcome::Failed)
    }
}

/// Plays an input again; gives whether it ends well, and in time.
fn is_quick(target: &str, input: &str) -> Result<bool> {
    let mut again = Command::new(program(target));
    again.arg(format!("-timeout={TIMEOUT_S}")).arg(input).stdout(Stdio::null()).stderr(Stdio::null());
    Ok(again.status().with_context(|| format!("running {}", program(target).display()))?.success())
}

impl Drop for Run {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn dictionary(target: &str) -> Option<PathBuf> {
    let file = shell::root().join("fuzz/dictionaries").join(format!("{target}.dict"));
    file.is_file().then_some(file)
}

fn executed(log: &str) -> &str {
    let prefix = "stat::number_of_executed_units:";
    log.lines().find_map(|line| line.strip_prefix(prefix)).map_or("unknown", str::trim)
}

/// `cov: 2723 ft: 5896` of the last line that has it: places in the code, and ways through them.
fn reached(log: &str) -> String {
    let last = log.lines().rev().find_map(|line| line.split_once("cov: ")).map(|(_, rest)| rest);
    let mut words = last.unwrap_or_default().split_whitespace();
    let (places, ways) = (words.next().unwrap_or("unknown"), words.nth(1).unwrap_or("unknown"));
    format!("{places} places on {ways} ways")
}

/// Stores the fewest inputs that reach every place that all of them reach.
fn store(target: &str) -> Result<()> {
    let (stored, fewest) = (stored(target), target_folder().join("fewest").join(target));
    remove(&fewest)?;
    fs::create_dir_all(&fewest).with_context(|| format!("making {}", fewest.display()))?;
    let mut merge = Command::new(program(target));
    // How often a place is reached counts while fuzzing, and would store many more inputs.
    merge
        .args(["-set_cover_merge=1", "-use_counters=0"])
        .args([&fewest, &stored, &found(target)])
        .stderr(Stdio::null());
    ensure!(shell::run(&mut merge)?.success(), "minimising the inputs of {target} failed");
    remove(&stored)?;
    fs::create_dir_all(&stored).with_context(|| format!("making {}", stored.display()))?;
    let mut count = 0;
    for entry in fs::read_dir(&fewest)? {
        let entry = entry?;
        fs::copy(entry.path(), stored.join(entry.file_name()))?;
        count += 1;
    }
    println!("{target:<12} {count:>12} inputs stored");
    Ok(())
}

fn remove(folder: &Path) -> Result<()> {
    match fs::remove_dir_all(folder) {
        Err(error) if error.kind() != ErrorKind::NotFound => {
            Err(error).with_context(|| format!("removing {}", folder.display()))
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_program_is_a_target() {
        let folder = shell::root().join("fuzz/fuzz_targets");
        let mut programs: Vec<String> = fs::read_dir(folder)
            .unwrap()
            .map(|entry| entry.unwrap().path().file_stem().unwrap().to_string_lossy().into_owned())
            .collect();
        programs.sort();
        let mut targets = TARGETS;
        targets.sort_unstable();
        assert_eq!(programs, targets);
    }

    #[test]
    fn what_libfuzzer_says_is_read() {
        let log = "#2\tINITED cov: 3 ft: 4 corp: 1/1b\n#7248\tDONE   cov: 2723 ft: 5896 corp: 318/11290b lim: 71\n\
                   stat::number_of_executed_units: 7248\nstat::peak_rss_mb:              35\n";
        assert_eq!((executed(log), reached(log).as_str()), ("7248", "2723 places on 5896 ways"));
        assert_eq!(executed(""), "unknown");
    }
}
