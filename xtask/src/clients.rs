//! `cargo xtask clients`: real clients against two names of one address, through the real agent.

use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use anyhow::{Context, Result, ensure};
use clap::Args;

use crate::shell::{self, Tool};

/// Sources of the clients.
pub(crate) const SOURCES: &str = "integration/testbed/clients";
/// What is called by name, or builds the others.
const TOOLS: [Tool; 5] = [
    Tool { program: "curl", package: "curl" },
    Tool { program: "openssl", package: "openssl" },
    Tool { program: "python3", package: "python3" },
    Tool { program: "go", package: "golang-go" },
    Tool { program: "chromium", package: "chromium" },
];

/// What to try.
#[derive(Args)]
pub(crate) struct Clients {
    /// Only clients whose name has this text.
    #[arg(long)]
    only: Option<String>,
}

/// Builds the clients and has them ask; the table comes last.
pub(crate) fn run(arguments: &Clients) -> Result<ExitCode> {
    shell::need_root("network namespaces and eBPF", "cargo xtask clients")?;
    shell::install_missing(&shell::TOOLS)?;
    shell::install_missing(&TOOLS)?;
    let sources = shell::root().join(SOURCES);
    let folder = shell::target().join("clients");
    std::fs::create_dir_all(&folder).with_context(|| format!("making {}", folder.display()))?;
    let python = python(&sources.join("python"))?;
    in_go(&sources.join("go"), &folder)?;
    let rust = in_rust(&sources.join("rust"), &folder.join("rust"))?;
    shell::step("building the agent and the testbed");
    shell::cargo(&["build", "--quiet", "--package", "namegate", "--bin", "namegate"])?;
    shell::cargo(&["build", "--quiet", "--package", "namegate-testbed", "--bin", "namegate-clients"])?;
    let built = shell::target().join("debug");
    let mut clients = Command::new(built.join("namegate-clients"));
    clients.env("NAMEGATE_BIN", built.join("namegate"));
    clients.arg("--server").arg(folder.join("server")).arg("--go").arg(folder.join("client"));
    clients.arg("--rust").arg(rust).arg("--python").arg(python).arg("--scripts").arg(sources.join("python"));
    if let Some(only) = &arguments.only {
        clients.args(["--only", only]);
    }
    let status = shell::run(&mut clients)?;
    Ok(ExitCode::from(status.code().and_then(|code| u8::try_from(code).ok()).unwrap_or(2)))
}

/// An interpreter that has the packages, in a virtual environment: `<the user's cache>/namegate/clients-python`.
pub(crate) fn python(sources: &Path) -> Result<PathBuf> {
    let folder = shell::cache()?.join("clients-python");
    let (python, pip) = (folder.join("bin/python"), folder.join("bin/pip"));
    if !pip.is_file() {
        // Debian has it apart from Python.
        if !shell::run(Command::new("python3").args(["-c", "import ensurepip"]))?.success() {
            shell::install(&["python3-venv"])?;
        }
        ensure!(shell::run(Command::new("python3").args(["-m", "venv"]).arg(&folder))?.success(), "`venv` failed");
    }
    let requirements = sources.join("requirements.txt");
    let mut install = Command::new(pip);
    install.args(["install", "--quiet", "--disable-pip-version-check", "--requirement"]).arg(requirements);
    shell::step("the Python clients' packages");
    ensure!(shell::run(&mut install)?.success(), "`pip install` failed");
    Ok(python)
}

fn in_go(sources: &Path, folder: &Path) -> Result<()> {
    shell::step("building the server and the client in Go");
    let go = shell::find("go").context("no `go`")?;
    let mut build = Command::new(go);
    build.arg("-C").arg(sources).args(["build", "-o"]).arg(folder).args(["./server", "./client"]);
    ensure!(
        shell::run(build.env("CGO_ENABLED", "0"))?.success(),
        "`go build` failed; it needs Go 1.26, or 1.21 and later to get that"
    );
    Ok(())
}

/// From its own folder, whose settings of cargo it needs.
fn in_rust(sources: &Path, target: &Path) -> Result<PathBuf> {
    shell::step("building the client in Rust; the first time takes minutes");
    let mut build = shell::cargo_command();
    build.args(["build", "--quiet", "--locked", "--target-dir"]).arg(target).current_dir(sources);
    let status = build.status().context("running cargo")?;
    ensure!(status.success(), "`cargo build` failed in {}", sources.display());
    Ok(target.join("debug/namegate-client"))
}
