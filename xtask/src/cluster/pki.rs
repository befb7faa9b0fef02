//! The cluster's certificate authority, and what it signs. Made anew with each cluster.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use super::network::PLACES;
use crate::shell;

/// Days that certificates hold: a cluster lives for hours.
const DAYS: &str = "30";

/// Keys and certificates in one folder.
pub(super) struct Pki(PathBuf);

impl Pki {
    /// Makes the authority, the API server's certificate and the key of service accounts.
    /// `server` is the API server's address for the machine.
    pub(super) fn make(folder: PathBuf, server: &str) -> Result<Self> {
        fs::create_dir_all(&folder).with_context(|| format!("making {}", folder.display()))?;
        let pki = Self(folder);
        pki.request("ca", "/CN=namegate-cluster", &["-addext", "keyUsage=critical,keyCertSign,digitalSignature"])?;
        let names = ["kubernetes", "kubernetes.default", "kubernetes.default.svc", "localhost"]
            .map(|name| format!("DNS:{name}"));
        let cluster = ["DNS:kubernetes.default.svc.cluster.local".to_owned()];
        let addresses = [PLACES[0].v4, PLACES[0].v6, server, "127.0.0.1", "::1", "10.96.0.1", "fd00:10:96::1"]
            .map(|address| format!("IP:{address}"));
        let all = [&names[..], &cluster, &addresses].concat().join(",");
        pki.signed("apiserver", "/CN=kube-apiserver", &["-addext", &format!("subjectAltName={all}")])?;
        pki.signed("apiserver-kubelet", "/O=system:masters/CN=kube-apiserver-kubelet-client", &[])?;
        shell::output(Command::new("openssl").args(["genrsa", "-out"]).arg(pki.path("sa.key")).arg("2048"))?;
        Ok(pki)
    }

    /// Those that were made before.
    pub(super) fn of(folder: PathBuf) -> Self {
        Self(folder)
    }

    /// Where a file lies.
    pub(super) fn path(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    /// Writes a file for `kubectl` and the cluster's own clients, with a certificate for this user. They reach the API server at
    /// `server`.
    pub(super) fn kubeconfig(&self, to: &Path, subject: &str, server: &str) -> Result<()> {
        let name = to.file_stem().context("a file's name")?.to_string_lossy().into_owned();
        self.signed(&name, subject, &[])?;
        let path = |file: String| self.path(&file).display().to_string();
        let (ca, certificate, key) = (path("ca.crt".into()), path(format!("{name}.crt")), path(format!("{name}.key")));
        let text = format!(
            "apiVersion: v1\nkind: Config\n\
             clusters: [{{name: namegate, cluster: {{server: \"https://{server}:6443\", certificate-authority: \"{ca}\"}}}}]\n\
             users: [{{name: {name}, user: {{client-certificate: \"{certificate}\", client-key: \"{key}\"}}}}]\n\
             contexts: [{{name: namegate, context: {{cluster: namegate, user: {name}}}}}]\n\
             current-context: namegate\n"
        );
        fs::write(to, text).with_context(|| format!("writing {}", to.display()))
    }

    fn signed(&self, name: &str, subject: &str, more: &[&str]) -> Result<()> {
        let (ca, key) = (self.path("ca.crt"), self.path("ca.key"));
        let signer = [
            "-CA",
            &ca.to_string_lossy(),
            "-CAkey",
            &key.to_string_lossy(),
            "-addext",
            "basicConstraints=critical,CA:FALSE",
        ]
        .map(str::to_owned);
        let signer: Vec<&str> = signer.iter().map(String::as_str).chain(more.iter().copied()).collect();
        self.request(name, subject, &signer)
    }

    fn request(&self, name: &str, subject: &str, more: &[&str]) -> Result<()> {
        let mut openssl = Command::new("openssl");
        openssl.args(["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"]);
        openssl.args(["-days", DAYS, "-subj", subject]).args(more);
        openssl
            .arg("-keyout")
            .arg(self.path(&format!("{name}.key")))
            .arg("-out")
            .arg(self.path(&format!("{name}.crt")));
        shell::output(&mut openssl).map(drop)
    }
}
