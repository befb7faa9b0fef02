//! `cargo xtask h2spec`: the conformance tests of HTTP/2 against the proxy, over clear text with prior knowledge.

use std::io::{BufRead as _, BufReader};
use std::path::PathBuf;
use std::process::{Child, Command, ExitCode, Stdio};

use anyhow::{Context, Result, ensure};
use clap::Args;

use crate::{go, shell};

/// What is built, and where it is kept: `<the user's cache>/namegate/h2spec-<version>/h2spec`.
const VERSION: &str = "2.2.1";
/// Seconds that h2spec waits for what it expects.
const PATIENCE_S: &str = "2";

/// Tests that may fail: octets that are no preface of HTTP/2 are read as HTTP/1, and answered 400.
const EXPECTED: [&str; 1] = ["Sends invalid connection preface"];

/// Handed on to h2spec.
#[derive(Args)]
pub(crate) struct H2spec {
    /// Sections to test, such as `http2/5.1` or `hpack`; all if none is given.
    sections: Vec<String>,
}

/// A server while it runs, and its port. Dropping it ends it.
struct Server {
    child: Child,
    port: String,
}

impl Server {
    /// Starts an example of the proxy, which prints its port first.
    fn start(example: &str, arguments: &[&str]) -> Result<Self> {
        let program = shell::target().join("debug/examples").join(example);
        let mut command = Command::new(&program);
        let mut child = command
            .args(arguments)
            .stdout(Stdio::piped())
            .spawn()
            .with_context(|| format!("starting {}", program.display()))?;
        let said = child.stdout.take();
        let mut server = Self { child, port: String::new() };
        let said = said.with_context(|| format!("{example} has no output"))?;
        BufReader::new(said).read_line(&mut server.port).with_context(|| format!("reading the port of {example}"))?;
        server.port.truncate(server.port.trim_end().len());
        Ok(server)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill(); // It may have ended by itself.
        let _ = self.child.wait();
    }
}

/// Runs the tests; h2spec's summary comes last. All requests are allowed, and the server behind the proxy answers none
/// before it is whole: an answer of the proxy's own could come before what h2spec sends next.
pub(crate) fn run(arguments: &H2spec) -> Result<ExitCode> {
    let h2spec = h2spec()?;
    shell::step("building the proxy");
    shell::cargo(&["build", "--quiet", "--package", "namegate-l7-proxy", "--examples"])?;
    let origin = Server::start("origin", &[])?;
    let proxy = Server::start("alone", &["0", &format!("127.0.0.1:{}", origin.port), "2", "http"])?;
    let mut tests = Command::new(h2spec);
    tests.args(["--host", "127.0.0.1", "--port", &proxy.port, "--timeout", PATIENCE_S]).args(&arguments.sections);
    let mut tests = tests.stdout(Stdio::piped()).spawn().context("starting h2spec")?;
    let mut said = BufReader::new(tests.stdout.take().context("h2spec has no output")?);
    let (mut text, mut line) = (String::new(), String::new());
    while said.read_line(&mut line).context("reading what h2spec says")? > 0 {
        print!("{line}");
        text.push_str(&std::mem::take(&mut line));
    }
    ensure!(tests.wait()?.code().is_some_and(|code| code <= 1), "h2spec did not come to its end");
    let unexpected = failures(&text).filter(|test| !EXPECTED.contains(test)).count();
    println!("{unexpected} failed that are not expected to; expected: {}", EXPECTED.join("; "));
    Ok(if unexpected == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Tests in the closing list of failures, without their numbers.
fn failures(said: &str) -> impl Iterator<Item = &str> {
    let list = said.split_once("\nFailures:").map_or("", |(_, list)| list);
    list.lines().filter_map(|line| line.trim().strip_prefix("× ")?.split_once(": ").map(|(_, test)| test))
}

fn h2spec() -> Result<PathBuf> {
    let folder = shell::cache()?.join(format!("h2spec-{VERSION}"));
    let program = folder.join("h2spec");
    if program.is_file() {
        return Ok(program);
    }
    go::need()?;
    shell::step(&format!("building h2spec {VERSION} with Go, once"));
    std::fs::create_dir_all(&folder).with_context(|| format!("making {}", folder.display()))?;
    let mut install = Command::new("go");
    install.args(["install", &format!("github.com/summerwind/h2spec/cmd/h2spec@v{VERSION}+incompatible")]);
    ensure!(shell::run(install.env("GOBIN", &folder))?.success(), "`go install` failed");
    ensure!(program.is_file(), "`go install` left no {}", program.display());
    Ok(program)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn failures_are_taken_from_the_closing_list() {
        let said = "  × 1: Sends another\n\nFailures: \n\n  3.5. Preface\n      × 2: Sends invalid connection preface\n        -> must";
        assert_eq!(failures(said).collect::<Vec<_>>(), EXPECTED);
        assert_eq!(failures("Finished\n145 tests, 145 passed").count(), 0);
    }
}
