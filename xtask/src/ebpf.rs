//! `cargo xtask ebpf`: builds the kernel's programs to the same octets wherever it runs.
//!
//! Two toolchains will do: Debian's `rustc-web` with its prebuilt `core` for the kernel's machine, or a rustup nightly
//! with `rust-src`. Either needs `bpf-linker` built for the LLVM of its rustc.

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use anyhow::{Context, Result, bail, ensure};

use crate::shell;

/// The newest that a Rust of 1.95 builds.
const BPF_LINKER_VERSION: &str = "0.13.0";
/// Rust's name for the kernel's machine.
const TARGET: &str = "bpfel-unknown-none";
/// Debian's compiler and its `core` for [`TARGET`].
const DEBIAN_RUSTC: &str = "/usr/bin/rustc";
const DEBIAN_CORE: &str = "/usr/lib/rustlib/bpfel-unknown-none/lib";
const DEBIAN_PACKAGES: [&str; 2] = ["rustc-web", "libstd-rust-web-dev-bpf"];
/// Set for the calls of this program in the place of rustc.
const WRAPPER_VARIABLE: &str = "NAMEGATE_XTASK_RUSTC";
/// What the loader takes in.
const OBJECT: &str = "datapath/loader/ebpf/namegate.bpf.o";
/// What built it.
const TOOLCHAIN: &str = "datapath/loader/ebpf/toolchain.txt";

/// A compiler that knows the kernel's machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Compiler {
    Debian,
    Nightly,
}

/// Everything that decides which octets come out.
struct Toolchain {
    compiler: Compiler,
    /// Major version of the LLVM of rustc, which `bpf-linker` must share.
    llvm: String,
    /// The folder of `bpf-linker`.
    linker: PathBuf,
    /// Exact versions, one a line.
    versions: String,
}

/// How the committed object compares with its source.
pub(crate) enum Compared {
    /// Octet for octet what the source gives.
    Same,
    /// Other versions built it, so octets say nothing; a freshly built object lies here.
    OtherVersions(PathBuf),
    /// The same versions give other octets; they lie here.
    Different(PathBuf),
}

/// Builds the object; with `check`, compares it with the one that is committed.
pub(crate) fn run(check: bool) -> Result<ExitCode> {
    if !check {
        return write();
    }
    match compare()? {
        Compared::Same => {
            println!("{OBJECT} is what its source gives");
            Ok(ExitCode::SUCCESS)
        }
        Compared::OtherVersions(built) => {
            println!("{}", built.display());
            eprintln!("next step: `NAMEGATE_BPF_OBJECT={} sudo -E cargo xtask test`", built.display());
            Ok(ExitCode::SUCCESS)
        }
        Compared::Different(built) => {
            eprintln!("{OBJECT} is not what its source gives: {}", built.display());
            eprintln!("next step: `cargo xtask ebpf`, then commit the object");
            Ok(ExitCode::FAILURE)
        }
    }
}

fn write() -> Result<ExitCode> {
    let (toolchain, built) = build()?;
    let (object, recorded) = (shell::root().join(OBJECT), shell::root().join(TOOLCHAIN));
    fs::create_dir_all(object.parent().context("the object lies in a folder")?)?;
    fs::copy(&built, &object).with_context(|| format!("writing {OBJECT}"))?;
    fs::write(&recorded, &toolchain.versions).with_context(|| format!("writing {TOOLCHAIN}"))?;
    println!("wrote {OBJECT} and {TOOLCHAIN}");
    Ok(ExitCode::SUCCESS)
}

/// Builds the object anew and compares it with the committed one.
pub(crate) fn compare() -> Result<Compared> {
    let (toolchain, built) = build()?;
    let (object, recorded) = (shell::root().join(OBJECT), shell::root().join(TOOLCHAIN));
    let recorded = fs::read_to_string(&recorded).with_context(|| format!("reading {TOOLCHAIN}"))?;
    if recorded != toolchain.versions {
        eprintln!("the committed object was built with other versions:\n{recorded}octets are not compared");
        return Ok(Compared::OtherVersions(built));
    }
    let committed = fs::read(&object).with_context(|| format!("reading {OBJECT}"))?;
    Ok(if fs::read(&built)? == committed { Compared::Same } else { Compared::Different(built) })
}

fn build() -> Result<(Toolchain, PathBuf)> {
    let toolchain = Toolchain::find()?;
    shell::step("building the eBPF object with");
    eprint!("{}", toolchain.versions);
    let built = toolchain.build()?;
    Ok((toolchain, built))
}

impl Toolchain {
    fn find() -> Result<Self> {
        let compiler = Compiler::find()?;
        let about = shell::output(compiler.rustc().arg("-vV"))?;
        let rustc = about.lines().next().unwrap_or_default().to_owned();
        let llvm_version = about.lines().find_map(|line| line.strip_prefix("LLVM version: "));
        let llvm_version = llvm_version.context("rustc tells no LLVM version")?.to_owned();
        let llvm = llvm_version.split('.').next().unwrap_or_default().to_owned();
        install_llvm(&llvm)?;
        let linker = install_linker(&llvm)?;
        let linker_llvm = shell::output(Command::new(llvm_folder(&llvm).join("bin/llvm-config")).arg("--version"))?;
        let versions = format!(
            "{rustc}\nLLVM of rustc {llvm_version}\nbpf-linker {BPF_LINKER_VERSION}\nLLVM of bpf-linker {}\n",
            linker_llvm.trim()
        );
        Ok(Self { compiler, llvm, linker, versions })
    }

    /// Gives the path of the object, without the debug information that only a debugger reads; BTF stays.
    fn build(&self) -> Result<PathBuf> {
        let target = shell::target().join("ebpf");
        let paths = std::env::var_os("PATH").unwrap_or_default();
        let paths = std::iter::once(self.linker.join("bin")).chain(std::env::split_paths(&paths));
        let mut cargo = self.compiler.cargo();
        cargo
            .args(["build", "--release", "--locked", "--target", TARGET])
            .arg("--manifest-path")
            .arg(shell::root().join("datapath/ebpf/Cargo.toml"))
            .env("PATH", std::env::join_paths(paths)?)
            .env("CARGO_TARGET_DIR", &target)
            .env("CARGO_ENCODED_RUSTFLAGS", flags().join("\x1f"))
            .env("RUSTC_WRAPPER", std::env::current_exe()?)
            .env(WRAPPER_VARIABLE, "1")
            .env_remove("RUSTFLAGS");
        ensure!(shell::run(&mut cargo)?.success(), "building the eBPF object failed");
        let (built, object) = (target.join(TARGET).join("release/namegate"), target.join("namegate.bpf.o"));
        let mut strip = Command::new(llvm_folder(&self.llvm).join("bin/llvm-objcopy"));
        strip.arg("--strip-debug").arg(&built).arg(&object);
        ensure!(shell::run(&mut strip)?.success(), "removing debug information from the eBPF object failed");
        Ok(object)
    }
}

impl Compiler {
    /// The compiler at hand; Debian's is installed where there is none.
    fn find() -> Result<Self> {
        if Path::new(DEBIAN_CORE).is_dir() && Path::new(DEBIAN_RUSTC).exists() {
            return Ok(Self::Debian);
        }
        if let Ok(sysroot) = shell::output(Self::Nightly.rustc().args(["--print", "sysroot"]))
            && Path::new(sysroot.trim()).join("lib/rustlib/src/rust/library/core").is_dir()
        {
            return Ok(Self::Nightly);
        }
        if let Err(error) = shell::install(&DEBIAN_PACKAGES) {
            bail!("{error}; or `rustup toolchain install nightly --component rust-src`");
        }
        Ok(Self::Debian)
    }

    fn rustc(self) -> Command {
        match self {
            Self::Debian => Command::new(DEBIAN_RUSTC),
            Self::Nightly => nightly("rustc"),
        }
    }

    fn cargo(self) -> Command {
        match self {
            Self::Debian => {
                let mut cargo = shell::cargo_command();
                cargo.env("RUSTC", DEBIAN_RUSTC).env("RUSTC_BOOTSTRAP", "1");
                cargo
            }
            Self::Nightly => {
                let mut cargo = nightly("cargo");
                cargo.args(["-Z", "build-std=core"]).env_remove("RUSTC");
                cargo
            }
        }
    }
}

fn nightly(program: &str) -> Command {
    let mut command = Command::new("rustup");
    command.args(["run", "nightly", program]).env_remove("RUSTUP_TOOLCHAIN").env_remove("CARGO");
    command
}

/// Flags of rustc. No path of this machine may come into the object.
fn flags() -> Vec<String> {
    let mut flags: Vec<String> =
        ["--cfg=bpf_target_arch=\"x86_64\"", "-Cdebuginfo=2", "-Clinker=bpf-linker", "-Clink-arg=--btf"]
            .map(str::to_owned)
            .into();
    let home = std::env::var_os("HOME").map(PathBuf::from).unwrap_or_default();
    let cargo_home = std::env::var_os("CARGO_HOME").map_or_else(|| home.join(".cargo"), PathBuf::from);
    let registries = fs::read_dir(cargo_home.join("registry/src")).into_iter().flatten().flatten();
    let registries = registries.map(|folder| (folder.path(), "registry"));
    for (from, to) in registries.chain([(shell::root().to_owned(), ".")]) {
        flags.push(format!("--remap-path-prefix={}={to}", from.display()));
    }
    flags
}

/// Runs as rustc where cargo was told so by [`Toolchain::build`]; gives its status.
///
/// Cargo tells crates apart by a number made from absolute paths and flags, which ends in the names of symbols. Each
/// crate of the object is there once, so its name will do.
pub(crate) fn as_rustc() -> Option<Result<ExitCode>> {
    std::env::var_os(WRAPPER_VARIABLE)?;
    let mut arguments = std::env::args_os().skip(1);
    let rustc = arguments.next()?;
    let arguments: Vec<OsString> = arguments.collect();
    let for_kernel = arguments.iter().any(|argument| argument == TARGET);
    let renamed = arguments.iter().map(|argument| match argument.to_str() {
        Some(text) if for_kernel && text.starts_with("metadata=") => "metadata=namegate".into(),
        _ => argument.clone(),
    });
    let status = Command::new(rustc).args(renamed).status().context("running rustc");
    Some(status.map(|status| if status.success() { ExitCode::SUCCESS } else { ExitCode::FAILURE }))
}

fn llvm_folder(llvm: &str) -> PathBuf {
    PathBuf::from(format!("/usr/lib/llvm-{llvm}"))
}

/// Installs what `bpf-linker` is built with.
fn install_llvm(llvm: &str) -> Result<()> {
    let folder = llvm_folder(llvm);
    if folder.join("include/llvm-c/Core.h").exists() && folder.join("bin/llvm-objcopy").exists() {
        return Ok(());
    }
    shell::install(&[&format!("llvm-{llvm}-dev"), &format!("libpolly-{llvm}-dev")])
}

/// Builds `bpf-linker` once for each version and LLVM; gives its folder.
fn install_linker(llvm: &str) -> Result<PathBuf> {
    let folder = shell::cache()?.join(format!("bpf-linker-{BPF_LINKER_VERSION}-llvm-{llvm}"));
    if folder.join("bin/bpf-linker").exists() {
        return Ok(folder);
    }
    shell::step(&format!("building bpf-linker {BPF_LINKER_VERSION} for LLVM {llvm}; this takes a minute, once"));
    let mut install = shell::cargo_command();
    install
        .args(["install", "bpf-linker", "--version", BPF_LINKER_VERSION, "--locked", "--no-default-features"])
        .args(["--features", &format!("llvm-{llvm}")])
        .arg("--root")
        .arg(&folder)
        .env("LLVM_PREFIX", llvm_folder(llvm))
        .env(format!("LLVM_SYS_{llvm}1_PREFIX"), llvm_folder(llvm));
    ensure!(shell::run(&mut install)?.success(), "building bpf-linker for LLVM {llvm} failed");
    Ok(folder)
}
