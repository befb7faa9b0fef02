//! The cluster's daemons: what each is given.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use super::network::{OUTSIDE_V4, PLACES, PODS, Place, SERVICES, Uplink};
use super::node::{Node, cgroup};
use super::pki::Pki;
use super::programs::{CNI_PLUGINS, Programs};
use super::{KUBE_PROXY, PROXY_MODE, PROXY_MODES};

const CONTAINERD: &str = include_str!("../../data/cluster/containerd.toml");
const KUBELET: &str = include_str!("../../data/cluster/kubelet.yaml");
const CONFLIST: &str = include_str!("../../data/cluster/pods.conflist");

/// Starts daemons in a node.
pub(super) struct Parts<'a> {
    pub(super) node: &'a Node,
    pub(super) place: &'static Place,
    pub(super) programs: &'a Programs,
    /// The state of the cluster.
    pub(super) folder: &'a Path,
}

impl Parts<'_> {
    /// Makes keys, and writes what the daemons that are there once read.
    pub(super) fn found(&self) -> Result<Pki> {
        let server = Uplink::of(self.folder).server.to_string();
        let pki = Pki::make(self.folder.join("pki"), &server)?;
        pki.kubeconfig(&self.folder.join("kubeconfig"), "/O=system:masters/CN=admin", &server)?;
        for (name, subject) in
            [("scheduler", "/CN=system:kube-scheduler"), ("controllers", "/CN=system:kube-controller-manager")]
        {
            pki.kubeconfig(&self.kubeconfig(name), subject, PLACES[0].v4)?;
        }
        Ok(pki)
    }

    /// Writes what a node's own daemons read, at the places where nodes have it.
    pub(super) fn configure(&self, pki: &Pki) -> Result<()> {
        let users = [
            (self.own("kubelet"), format!("/O=system:nodes/CN=system:node:{}", self.place.name)),
            (self.own("proxy"), "/CN=system:kube-proxy".to_owned()),
        ];
        for (name, subject) in users {
            pki.kubeconfig(&self.kubeconfig(&name), &subject, PLACES[0].v4)?;
        }
        self.write("/etc/kubernetes/resolv.conf", &format!("nameserver {OUTSIDE_V4}\n"))?;
        let kubelet = KUBELET.replace("{pki}", &self.folder.join("pki").to_string_lossy());
        self.write("/etc/kubernetes/kubelet.yaml", &kubelet.replace("{cgroup}", &cgroup(self.node.folder())))?;
        self.write("/etc/namegate-cluster/containerd.toml", CONTAINERD)?;
        let networks = CONFLIST.replace("{pods_v4}", self.place.pods_v4).replace("{pods_v6}", self.place.pods_v6);
        self.write("/etc/cni/net.d/10-pods.conflist", &networks)?;
        self.node.output("mkdir", &["-p", "/opt/cni/bin"])?;
        self.node.output("cp", &["-r", &format!("{CNI_PLUGINS}/."), "/opt/cni/bin/"])?;
        Ok(())
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
    pub(super) fn apiserver(&self, pki: &Pki) -> Result<()> {
        let file = |name: &str| pki.path(name).display().to_string();
        let own = [
            format!("--tls-cert-file={} --tls-private-key-file={}", file("apiserver.crt"), file("apiserver.key")),
            format!("--client-ca-file={} --service-account-key-file={}", file("ca.crt"), file("sa.key")),
            format!("--service-account-signing-key-file={}", file("sa.key")),
            format!("--kubelet-client-certificate={}", file("apiserver-kubelet.crt")),
            format!("--kubelet-client-key={}", file("apiserver-kubelet.key")),
            format!("--service-cluster-ip-range={SERVICES} --advertise-address={}", self.place.v4),
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

    /// Starts what the cluster has once and asks the API server.
    pub(super) fn controllers(&self, pki: &Pki) -> Result<()> {
        let controllers = format!(
            "{} --leader-elect=false --use-service-account-credentials=true --root-ca-file={} --service-account-private-key-file={}",
            self.config("controllers"),
            pki.path("ca.crt").display(),
            pki.path("sa.key").display()
        );
        let scheduler = format!("{} --leader-elect=false", self.config("scheduler"));
        self.ask([("kube-controller-manager", controllers), ("kube-scheduler", scheduler)])
    }

    /// Starts what each node has and asks the API server.
    pub(super) fn agents(&self) -> Result<()> {
        let Place { name, v4, v6, .. } = self.place;
        let kubelet = format!(
            "{} --config=/etc/kubernetes/kubelet.yaml --hostname-override={name} --node-ip={v4},{v6}",
            self.config(&self.own("kubelet"))
        );
        let proxy = format!(
            "{} --hostname-override={name} --cluster-cidr={PODS} {PROXY_MODE}={} --conntrack-max-per-core=0",
            self.config(&self.own("proxy")),
            PROXY_MODES[0]
        );
        self.ask([("kubelet", kubelet), (KUBE_PROXY, proxy)])
    }

    fn ask(&self, daemons: [(&str, String); 2]) -> Result<()> {
        for (name, arguments) in daemons {
            self.node.daemon(name, &self.programs.kubernetes(name), &words([arguments.as_str()]))?;
        }
        Ok(())
    }

    /// The name of a user of this node alone.
    fn own(&self, name: &str) -> String {
        format!("{name}-{}", self.place.name)
    }

    fn config(&self, name: &str) -> String {
        format!("--kubeconfig={}", self.kubeconfig(name).display())
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
