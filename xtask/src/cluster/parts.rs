//! The cluster's daemons: what each is given.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use super::network::{NODE_V4, NODE_V6, OUTSIDE_V4, PODS, SERVICES};
use super::node::Node;
use super::pki::Pki;
use super::programs::{CNI_PLUGINS, Programs};
use super::{KUBE_PROXY, PROXY_MODE, PROXY_MODES};

/// The only node's name.
pub(crate) const NODE_NAME: &str = "node1";
const CONTAINERD: &str = include_str!("../../data/cluster/containerd.toml");
const KUBELET: &str = include_str!("../../data/cluster/kubelet.yaml");
const CONFLIST: &str = include_str!("../../data/cluster/pods.conflist");

/// Starts daemons in a node.
pub(super) struct Parts<'a> {
    pub(super) node: &'a Node,
    pub(super) programs: &'a Programs,
    pub(super) folder: &'a Path,
}

impl Parts<'_> {
    /// Writes what the daemons read, at the places where nodes have it.
    pub(super) fn configure(&self) -> Result<Pki> {
        let pki = Pki::make(self.folder.join("pki"))?;
        let users = [
            ("kubelet", format!("/O=system:nodes/CN=system:node:{NODE_NAME}")),
            ("proxy", "/CN=system:kube-proxy".to_owned()),
            ("scheduler", "/CN=system:kube-scheduler".to_owned()),
            ("controllers", "/CN=system:kube-controller-manager".to_owned()),
        ];
        pki.kubeconfig(&self.folder.join("kubeconfig"), "/O=system:masters/CN=admin")?;
        for (name, subject) in users {
            pki.kubeconfig(&self.kubeconfig(name), &subject)?;
        }
        self.write("/etc/kubernetes/resolv.conf", &format!("nameserver {OUTSIDE_V4}\n"))?;
        self.write(
            "/etc/kubernetes/kubelet.yaml",
            &KUBELET.replace("{pki}", &self.folder.join("pki").to_string_lossy()),
        )?;
        self.write("/etc/namegate-cluster/containerd.toml", CONTAINERD)?;
        self.write("/etc/cni/net.d/10-pods.conflist", CONFLIST)?;
        self.node.output("mkdir", &["-p", "/opt/cni/bin"])?;
        self.node.output("cp", &["-r", &format!("{CNI_PLUGINS}/."), "/opt/cni/bin/"])?;
        Ok(pki)
    }

    /// Starts the container runtime.
    pub(super) fn containerd(&self) -> Result<()> {
        self.node.daemon(
            "containerd",
            Path::new("containerd"),
            &words(["--config /etc/namegate-cluster/containerd.toml"]),
        )
    }

    /// Starts the API server's store.
    pub(super) fn etcd(&self) -> Result<()> {
        let data = format!("--data-dir={}", self.folder.join("etcd").display());
        let rest = [
            "--listen-client-urls=http://127.0.0.1:2379 --advertise-client-urls=http://127.0.0.1:2379",
            "--listen-peer-urls=http://127.0.0.1:2380 --unsafe-no-fsync --log-level=warn",
        ];
        self.node.daemon("etcd", &self.programs.etcd, &words(rest.into_iter().chain([data.as_str()])))
    }

    /// Starts the API server.
    pub(super) fn apiserver(&self, pki: &Path) -> Result<()> {
        let file = |name: &str| pki.join(name).display().to_string();
        let own = [
            format!("--tls-cert-file={} --tls-private-key-file={}", file("apiserver.crt"), file("apiserver.key")),
            format!("--client-ca-file={} --service-account-key-file={}", file("ca.crt"), file("sa.key")),
            format!("--service-account-signing-key-file={}", file("sa.key")),
            format!("--kubelet-client-certificate={}", file("apiserver-kubelet.crt")),
            format!("--kubelet-client-key={}", file("apiserver-kubelet.key")),
            format!("--service-cluster-ip-range={SERVICES} --advertise-address={NODE_V4}"),
        ];
        let rest = [
            "--etcd-servers=http://127.0.0.1:2379 --secure-port=6443 --bind-address=::",
            "--service-account-issuer=https://kubernetes.default.svc.cluster.local",
            "--authorization-mode=Node,RBAC --enable-admission-plugins=NodeRestriction",
            "--kubelet-preferred-address-types=InternalIP --allow-privileged=true --enable-priority-and-fairness=false",
        ];
        let arguments = words(rest.into_iter().chain(own.iter().map(String::as_str)));
        self.node.daemon("kube-apiserver", &self.programs.kubernetes("kube-apiserver"), &arguments)
    }

    /// Starts everything that asks the API server.
    pub(super) fn rest(&self, pki: &Pki) -> Result<()> {
        let config = |name| format!("--kubeconfig={}", self.kubeconfig(name).display());
        let (ca, key) = (pki.path("ca.crt"), pki.path("sa.key"));
        let controllers = format!(
            "{} --leader-elect=false --use-service-account-credentials=true --root-ca-file={} --service-account-private-key-file={}",
            config("controllers"),
            ca.display(),
            key.display()
        );
        let kubelet = format!(
            "{} --config=/etc/kubernetes/kubelet.yaml --hostname-override={NODE_NAME} --node-ip={NODE_V4},{NODE_V6}",
            config("kubelet")
        );
        let proxy = format!(
            "{} --hostname-override={NODE_NAME} --cluster-cidr={PODS} {PROXY_MODE}={} --conntrack-max-per-core=0",
            config("proxy"),
            PROXY_MODES[0]
        );
        let scheduler = format!("{} --leader-elect=false", config("scheduler"));
        let daemons = [
            ("kubelet", kubelet),
            ("kube-controller-manager", controllers),
            ("kube-scheduler", scheduler),
            (KUBE_PROXY, proxy),
        ];
        for (name, arguments) in daemons {
            self.node.daemon(name, &self.programs.kubernetes(name), &words([arguments.as_str()]))?;
        }
        Ok(())
    }

    fn kubeconfig(&self, name: &str) -> PathBuf {
        self.folder.join(format!("{name}.kubeconfig"))
    }

    /// Writes a file of the node's own tree, which is not the machine's.
    fn write(&self, path: &str, text: &str) -> Result<()> {
        let outer =
            Path::new("/proc").join(self.node.keeper().to_string()).join("root").join(path.trim_start_matches('/'));
        fs::create_dir_all(outer.parent().context("a file lies in a folder")?)?;
        fs::write(&outer, text).with_context(|| format!("writing {path} in the node"))
    }
}

fn words<'a>(lines: impl IntoIterator<Item = &'a str>) -> Vec<String> {
    lines.into_iter().flat_map(str::split_whitespace).map(str::to_owned).collect()
}
