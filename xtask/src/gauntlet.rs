//! `cargo xtask gauntlet`: odd requests and handshakes against real servers, through the real agent.

use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use anyhow::{Context, Result, ensure};
use clap::Args;

use crate::shell::{self, Tool};
use crate::{clients, go};

/// Sources of the servers.
const SOURCES: &str = "integration/testbed/servers";
/// Servers, and what runs or builds those of our own.
const TOOLS: [Tool; 7] = [
    Tool { program: "nginx", package: "nginx-light" },
    Tool { program: "apache2", package: "apache2-bin" },
    Tool { program: "node", package: "nodejs" },
    Tool { program: "python3", package: "python3" },
    Tool { program: "php", package: "php-cli" },
    Tool { program: "caddy", package: "caddy" },
    Tool { program: "openssl", package: "openssl" },
];
/// What the servers in Java need.
const JAVA_TOOLS: [Tool; 2] =
    [Tool { program: "javac", package: "default-jdk-headless" }, Tool { program: "mvn", package: "maven" }];

/// What to play.
#[derive(Args)]
pub(crate) struct Gauntlet {
    /// Only servers that are quick to have, as in `cargo xtask test`.
    #[arg(long)]
    short: bool,
    /// Only this server.
    #[arg(long)]
    server: Option<String>,
    /// Only groups of forms whose name has this text.
    #[arg(long)]
    only: Option<String>,
    /// Print the table of docs/layer7.md.
    #[arg(long, conflicts_with = "output")]
    table: bool,
    /// Form of the output.
    #[arg(short, long, default_value = "text", value_parser = ["text", "json"])]
    output: String,
}

/// Builds the servers and plays the forms; the table comes last.
pub(crate) fn run(arguments: &Gauntlet) -> Result<ExitCode> {
    shell::need_root("network namespaces and eBPF", "cargo xtask gauntlet")?;
    shell::install_missing(&shell::TOOLS)?;
    let mut gauntlet = prepare(!arguments.short)?;
    if arguments.short {
        gauntlet.arg("--short");
    }
    for (option, value) in [("--server", &arguments.server), ("--only", &arguments.only)] {
        if let Some(value) = value {
            gauntlet.args([option, value]);
        }
    }
    gauntlet.args(["--output", if arguments.table { "table" } else { &arguments.output }]);
    let status = shell::run(&mut gauntlet)?;
    Ok(ExitCode::from(status.code().and_then(|code| u8::try_from(code).ok()).unwrap_or(2)))
}

/// The servers that are quick to have.
///
/// # Errors
/// A form went wrong, or it could not run.
pub(crate) fn short() -> Result<()> {
    shell::step("odd requests and handshakes against real servers");
    let status = shell::run(prepare(false)?.arg("--short"))?;
    ensure!(status.success(), "a form went wrong: see above; next step: `sudo -E cargo xtask gauntlet`");
    Ok(())
}

/// Installs and builds what is missing; the program that plays, without its options.
fn prepare(is_long: bool) -> Result<Command> {
    shell::install_missing(&TOOLS)?;
    let sources = shell::root().join(SOURCES);
    let built = shell::target().join("servers");
    std::fs::create_dir_all(&built).with_context(|| format!("making {}", built.display()))?;
    in_go(&sources.join("go"), &built.join("go"))?;
    let python =
        if is_long { Some(clients::python(&shell::root().join(clients::SOURCES).join("python"))?) } else { None };
    if is_long {
        in_java(&sources.join("java"), &built)?;
    }
    shell::step("building the agent and the testbed");
    shell::cargo(&["build", "--quiet", "--package", "namegate", "--bin", "namegate"])?;
    shell::cargo(&["build", "--quiet", "--package", "namegate-testbed", "--bin", "namegate-gauntlet"])?;
    let programs = shell::target().join("debug");
    let mut gauntlet = Command::new(programs.join("namegate-gauntlet"));
    gauntlet.env("NAMEGATE_BIN", programs.join("namegate")).env("PATH", shell::search_path());
    gauntlet.arg("--sources").arg(sources).arg("--built").arg(built);
    if let Some(python) = python {
        gauntlet.arg("--python").arg(python);
    }
    Ok(gauntlet)
}

fn in_go(sources: &Path, program: &Path) -> Result<()> {
    go::need()?;
    shell::step("building the server in Go");
    go::run(sources, &["build", "-o", &program.to_string_lossy(), "."]).map(drop)
}

/// Libraries go to `lib`, classes to `classes`.
fn in_java(sources: &Path, built: &Path) -> Result<()> {
    shell::install_missing(&JAVA_TOOLS)?;
    shell::step("building the servers in Java");
    let (library, classes): (PathBuf, PathBuf) = (built.join("lib"), built.join("classes"));
    let mut maven = Command::new("mvn");
    maven.args(["--quiet", "--batch-mode", "--file"]).arg(sources.join("pom.xml"));
    maven.arg("dependency:copy-dependencies").arg(format!("-DoutputDirectory={}", library.display()));
    shell::output(&mut maven)?;
    let mut compiler = Command::new("javac");
    compiler.arg("-cp").arg(library.join("*")).arg("-d").arg(classes).arg(sources.join("Server.java"));
    shell::output(&mut compiler).map(drop)
}
