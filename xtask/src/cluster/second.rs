//! The second node: it comes to a cluster that runs, and goes. It has pods and what each node has, nothing else.

use std::path::{Path, PathBuf};

use anyhow::Result;

use super::network::{self, PLACES};
use super::node::Node;
use super::pki::Pki;
use super::{Cluster, KUBE_PROXY, clear};
use crate::shell;

/// Everything that runs there besides pods.
pub(super) const DAEMONS: [&str; 3] = ["containerd", KUBE_PROXY, "kubelet"];

/// Where its state lies, inside that of the cluster.
pub(super) fn folder(cluster: &Path) -> PathBuf {
    cluster.join(PLACES[1].name)
}

/// Whether there is one, even one that has ended.
pub(super) fn is_recorded(cluster: &Path) -> bool {
    folder(cluster).join("run/keeper").exists()
}

/// Ends it with everything in it; whether there was one. Its folder stays.
pub(super) fn end(cluster: &Path) -> Result<bool> {
    let there = is_recorded(cluster);
    Node::end(&folder(cluster))?;
    Ok(there)
}

impl Cluster {
    /// Makes the second node, and waits until it may have pods.
    pub(super) fn join(&mut self) -> Result<()> {
        shell::step("starting a second node in namespaces of its own");
        self.forget()?;
        let (node, place) = (Node::start(&folder(&self.folder))?, &PLACES[1]);
        network::join(&self.node, &node)?;
        let parts = self.parts(&node, place);
        parts.configure(&Pki::of(self.folder.join("pki")))?;
        parts.containerd()?;
        self.runtime(&node)?;
        parts.agents()?;
        self.kubelet(&node, place)?;
        self.second = Some(node);
        Ok(())
    }

    /// Starts it again with what is on its disk, without its daemons.
    pub(super) fn restart_second(&mut self) -> Result<()> {
        let node = Node::start(&folder(&self.folder))?;
        network::join(&self.node, &node)?;
        self.second = Some(node);
        Ok(())
    }

    /// Removes the second node with its pods.
    pub(super) fn part(&mut self) -> Result<()> {
        shell::step("removing the second node");
        self.second = None;
        self.forget()?;
        network::part(&self.node)
    }

    /// Ends what is left of a second node, on the machine and in the API server's mind.
    fn forget(&self) -> Result<()> {
        let name = PLACES[1].name;
        end(&self.folder)?;
        clear(&folder(&self.folder))?;
        shell::output(&mut self.kubectl(&["delete", "node", name, "--ignore-not-found"]))?;
        let its = format!("spec.nodeName={name}");
        let pods = ["delete", "pods", "--all-namespaces", "--force", "--grace-period=0", "--wait=false"];
        shell::output(self.kubectl(&pods).args(["--field-selector", &its])).map(drop)
    }
}
