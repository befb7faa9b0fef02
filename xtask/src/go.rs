//! Programs that are built from Go modules, once for each version.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};

use crate::shell::{self, Tool};

/// The oldest Go that fetches by itself the newer one which a module asks for.
const MINOR_MIN: u32 = 21;
const COREDNS_VERSION: &str = "1.14.7";
/// What is used of CoreDNS. All of it takes several times as long to build: most is about clouds.
const COREDNS_PLUGINS: [&str; 7] = ["bind", "errors", "forward", "health", "kubernetes", "multisocket", "ready"];

/// Installs Go where there is none; refuses one that is too old.
pub(crate) fn need() -> Result<()> {
    shell::install_missing(&[Tool { program: "go", package: "golang-go" }])?;
    ensure!(minor()? >= MINOR_MIN, "Go 1.{MINOR_MIN} or newer is needed; next step: install one from go.dev");
    Ok(())
}

fn minor() -> Result<u32> {
    let said = run(Path::new("/"), &["env", "GOVERSION"])?;
    minor_of(&said).with_context(|| format!("`go env GOVERSION` says `{}`", said.trim()))
}

/// 26 of `go1.26.4`.
fn minor_of(version: &str) -> Option<u32> {
    let digits = version.trim().strip_prefix("go1.")?;
    digits.split(|letter: char| !letter.is_ascii_digit()).next()?.parse().ok()
}

/// Runs `go` in a folder, without C; gives what it prints. Its compilers end soon: they collect less garbage and take
/// more memory.
pub(crate) fn run(folder: &Path, arguments: &[&str]) -> Result<String> {
    let mut go = Command::new("go");
    shell::output(go.args(arguments).current_dir(folder).env("GOGC", "400").env("CGO_ENABLED", "0"))
}

/// What a program is built for.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum For {
    /// Its speed is measured.
    Speed,
    /// It runs for minutes and took many to build: no function is inlined, which is a fifth less to compile.
    Use,
}

/// Builds packages of a module to a program or into a folder, with variables set to values (`-X` of Go's linker). What
/// only debuggers read is left out: it takes time.
pub(crate) fn build(folder: &Path, to: &Path, what_for: For, set: &[String], packages: &[&str]) -> Result<()> {
    let set: Vec<String> = set.iter().map(|variable| format!("-X {variable}")).collect();
    let flags = format!("-ldflags=-s -w {}", set.join(" "));
    let compilers = if what_for == For::Use { "-gcflags=all=-dwarf=false -l" } else { "-gcflags=all=-dwarf=false" };
    let arguments = ["build", "-mod=mod", compilers, &flags, "-o", &to.to_string_lossy()];
    run(folder, &[&arguments[..], packages].concat()).map(drop)
}

/// Writes a module of one source file.
pub(crate) fn module(folder: &Path, go_mod: &str, source: &str) -> Result<()> {
    fs::create_dir_all(folder).with_context(|| format!("making {}", folder.display()))?;
    fs::write(folder.join("go.mod"), go_mod)?;
    fs::write(folder.join("main.go"), source).with_context(|| format!("writing to {}", folder.display()))
}

/// A source file that is never built and makes a module need these packages.
pub(crate) fn tools(packages: &[&str]) -> String {
    format!("//go:build tools\n\npackage tools\n\nimport (\n{}\n)\n", imports(packages))
}

fn imports(packages: &[impl AsRef<str>]) -> String {
    let lines: Vec<String> = packages.iter().map(|package| format!("\t_ \"{}\"", package.as_ref())).collect();
    lines.join("\n")
}

/// CoreDNS's program, in `<the user's cache>/namegate/coredns-<version>`. One built for speed is good for use too.
pub(crate) fn coredns(what_for: For) -> Result<PathBuf> {
    const PACKAGE: &str = "github.com/coredns/coredns";
    let folder = shell::cache()?.join(format!("coredns-{COREDNS_VERSION}"));
    let (fast, quick) = (folder.join("coredns"), folder.join("coredns-quickly-built"));
    let program = if what_for == For::Speed || fast.is_file() { fast } else { quick };
    if program.is_file() {
        return Ok(program);
    }
    need()?;
    shell::step(&format!("building CoreDNS {COREDNS_VERSION} with Go, once; this takes minutes"));
    let plugins = COREDNS_PLUGINS.map(|plugin| format!("{PACKAGE}/plugin/{plugin}"));
    let source = format!(
        "package main\n\nimport (\n\t\"{PACKAGE}/coremain\"\n{}\n)\n\nfunc main() {{ coremain.Run() }}\n",
        imports(&plugins)
    );
    let source_folder = folder.join("module");
    module(&source_folder, "module coredns\n\ngo 1.26\n", &source)?;
    run(&source_folder, &["get", &format!("{PACKAGE}@v{COREDNS_VERSION}")])?;
    build(&source_folder, &program, what_for, &[], &["."])?;
    ensure!(program.is_file(), "`go build` left no {}", program.display());
    Ok(program)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_version_of_go_is_read() {
        for (said, want) in
            [("go1.26.4\n", Some(26)), ("go1.19", Some(19)), ("go1.27rc1", Some(27)), ("devel +abc", None), ("", None)]
        {
            assert_eq!(minor_of(said), want, "{said:?}");
        }
    }
}
