//! The cluster's programs: Debian's, and those built from Go modules once for each version.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};

use crate::go::{self, For};
use crate::shell::{self, Tool};

const KUBERNETES_MINOR: &str = "36";
const KUBERNETES_PATCH: &str = "3";
const ETCD_VERSION: &str = "3.6.16";
const HELM_VERSION: &str = "3.22.0";
/// Names the version that was built as a whole.
const BUILT: &str = "built";
/// Built into one folder of the cache.
const KUBERNETES: [&str; 5] = ["kube-apiserver", "kube-controller-manager", "kube-scheduler", "kube-proxy", "kubelet"];
const TOOLS: [Tool; 11] = [
    Tool { program: "ip", package: "iproute2" },
    Tool { program: "nsenter", package: "util-linux" },
    Tool { program: "sysctl", package: "procps" },
    Tool { program: "openssl", package: "openssl" },
    Tool { program: "containerd", package: "containerd" },
    Tool { program: "runc", package: "runc" },
    Tool { program: "nft", package: "nftables" },
    Tool { program: "iptables", package: "iptables" },
    Tool { program: "conntrack", package: "conntrack" },
    Tool { program: "curl", package: "curl" },
    Tool { program: "wget", package: "wget" },
];
/// Where Debian keeps CNI plugins, and the one by which the package is known.
pub(super) const CNI_PLUGINS: &str = "/usr/lib/cni";

/// Programs that were found or built.
pub(crate) struct Programs {
    kubernetes: PathBuf,
    /// `etcd`.
    pub(super) etcd: PathBuf,
    /// `coredns`.
    pub(super) coredns: PathBuf,
    /// `kubectl`: that of the path, else built.
    pub(crate) kubectl: PathBuf,
}

impl Programs {
    /// Installs and builds what is missing.
    pub(crate) fn provide() -> Result<Self> {
        shell::install_missing(&TOOLS)?;
        if !Path::new(CNI_PLUGINS).join("ptp").exists() {
            shell::install(&["containernetworking-plugins"])?;
        }
        if !Path::new(BUSYBOX).exists() && !Path::new("/usr/bin/busybox").exists() {
            shell::install(&["busybox-static"])?;
        }
        let coredns = go::coredns(For::Use)?;
        let etcd = etcd()?;
        let kubernetes = kubernetes()?;
        let kubectl = if let Some(found) = shell::find("kubectl") { found } else { kubectl(&kubernetes)? };
        Ok(Self { kubernetes, etcd, coredns, kubectl })
    }

    /// One of Kubernetes' own.
    pub(super) fn kubernetes(&self, name: &str) -> PathBuf {
        self.kubernetes.join("bin").join(name)
    }
}

/// Where Debian's static busybox may lie.
const BUSYBOX: &str = "/bin/busybox";

fn etcd() -> Result<PathBuf> {
    let folder = shell::cache()?.join(format!("etcd-{ETCD_VERSION}"));
    let program = folder.join("bin/etcd");
    if says(&program, ETCD_VERSION) {
        return Ok(program);
    }
    go::need()?;
    shell::step(&format!("building etcd {ETCD_VERSION} with Go, once; this takes minutes"));
    let module = folder.join("module");
    go::module(&module, "module etcd\n\ngo 1.26\n", &go::tools(&["go.etcd.io/etcd/server/v3"]))?;
    go::run(&module, &["get", &format!("go.etcd.io/etcd/server/v3@v{ETCD_VERSION}")])?;
    go::build(&module, &program, For::Use, &[], &["go.etcd.io/etcd/server/v3"])?;
    ensure!(says(&program, ETCD_VERSION), "{} does not say it is {ETCD_VERSION}", program.display());
    Ok(program)
}

/// Gives the folder of this version, with the programs in `bin`.
fn kubernetes() -> Result<PathBuf> {
    let version = version();
    let folder = shell::cache()?.join(format!("kubernetes-{version}"));
    let there = || KUBERNETES.iter().all(|name| folder.join("bin").join(name).is_file());
    let built = |version: &str| fs::read_to_string(folder.join(BUILT)).is_ok_and(|text| text.trim() == version);
    if there() && built(&version) {
        return Ok(folder);
    }
    go::need()?;
    shell::step(&format!("building Kubernetes {version} with Go, once; this takes many minutes"));
    build(&folder, &KUBERNETES)?;
    ensure!(there(), "`go build` left no program in {}", folder.display());
    fs::write(folder.join(BUILT), format!("{version}\n"))?;
    Ok(folder)
}

fn kubectl(folder: &Path) -> Result<PathBuf> {
    let program = folder.join("bin/kubectl");
    if !program.exists() {
        go::need()?;
        shell::step("building kubectl with Go, once");
        build(folder, &["kubectl"])?;
    }
    Ok(program)
}

/// Builds helm, which renders the chart.
pub(crate) fn helm() -> Result<PathBuf> {
    let folder = shell::cache()?.join(format!("helm-{HELM_VERSION}"));
    let program = folder.join("bin/helm");
    if program.is_file() {
        return Ok(program);
    }
    go::need()?;
    shell::step(&format!("building helm {HELM_VERSION} with Go, once; this takes minutes"));
    let module = folder.join("module");
    go::module(&module, "module helm\n\ngo 1.26\n", &go::tools(&["helm.sh/helm/v3/cmd/helm"]))?;
    go::run(&module, &["get", &format!("helm.sh/helm/v3/cmd/helm@v{HELM_VERSION}")])?;
    go::build(&module, &program, For::Use, &[], &["helm.sh/helm/v3/cmd/helm"])?;
    Ok(program)
}

fn version() -> String {
    format!("1.{KUBERNETES_MINOR}.{KUBERNETES_PATCH}")
}

/// Builds commands of the module `k8s.io/kubernetes`, whose sister modules have versions of their own.
fn build(folder: &Path, commands: &[&str]) -> Result<()> {
    let module = folder.join("module");
    let packages: Vec<String> = commands.iter().map(|command| format!("k8s.io/kubernetes/cmd/{command}")).collect();
    let packages: Vec<&str> = packages.iter().map(String::as_str).collect();
    fs::create_dir_all(&module)?;
    let fetched = go::run(Path::new("/"), &["mod", "download", "-json", &format!("k8s.io/kubernetes@v{}", version())])?;
    let fetched: serde_json::Value = serde_json::from_str(&fetched).context("what `go mod download` says")?;
    let theirs = fetched["GoMod"].as_str().context("`go mod download` names no go.mod")?;
    let theirs = fs::read_to_string(theirs).with_context(|| format!("reading {theirs}"))?;
    go::module(&module, &go_mod(&theirs), &go::tools(&packages))?;
    // Fails over tests of tests that nobody needs; the build says what is really missing.
    let _ = Command::new("go").args(["mod", "tidy", "-e"]).current_dir(&module).output();
    let stamps = [
        ("gitVersion", &*format!("v{}", version())),
        ("gitMajor", "1"),
        ("gitMinor", KUBERNETES_MINOR),
        ("gitTreeState", "clean"),
    ];
    let stamps = stamps.map(|(name, value)| format!("k8s.io/component-base/version.{name}={value}"));
    // The slash at the end means a folder.
    go::build(&module, &folder.join("bin/"), For::Use, &stamps, &packages)
}

/// A module that needs Kubernetes; the sister modules it has in its own tree are taken from where they are published.
fn go_mod(theirs: &str) -> String {
    let sisters: BTreeSet<&str> = theirs
        .lines()
        .filter(|line| line.contains("=> ./staging/"))
        .filter_map(|line| line.split_whitespace().find(|word| word.starts_with("k8s.io/")))
        .collect();
    let mut text = format!("module kubernetes\n\ngo 1.26\n\nrequire k8s.io/kubernetes v{}\n\nreplace (\n", version());
    for sister in sisters {
        let _ = writeln!(text, "\t{sister} => {sister} v0.{KUBERNETES_MINOR}.{KUBERNETES_PATCH}"); // Writing to a string does not fail.
    }
    text.push_str(")\n");
    text
}

/// Whether a program is there and names this version when asked.
fn says(program: &Path, version: &str) -> bool {
    let output = Command::new(program).arg("--version").output();
    output.is_ok_and(|output| {
        let words = String::from_utf8_lossy(&output.stdout).into_owned();
        words.split_whitespace().any(|word| word.trim_start_matches('v') == version)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sister_modules_are_taken_from_where_they_are_published() {
        let theirs = "replace (\n\tk8s.io/api => ./staging/src/k8s.io/api\n\tk8s.io/client-go => ./staging/src/k8s.io/client-go\n)\nrequire k8s.io/klog/v2 v2.1.0\n";
        let ours = go_mod(theirs);
        let want = format!("\tk8s.io/api => k8s.io/api v0.{KUBERNETES_MINOR}.{KUBERNETES_PATCH}\n");
        assert!(ours.contains(&want), "{ours}");
        assert_eq!(ours.matches("=>").count(), 2, "{ours}");
        assert!(ours.contains("require k8s.io/kubernetes v1."), "{ours}");
    }
}
