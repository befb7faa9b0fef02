//! The node's links: to a network that stands for the outside, and to the machine for `kubectl`.
//!
//! Pods keep their addresses on the way out, so the outside knows the way back to them.

use anyhow::Result;

use super::node::Node;

/// Addresses of the node.
pub(crate) const NODE_V4: &str = "192.168.20.11";
pub(crate) const NODE_V6: &str = "fd00:20::11";
/// The outside's own addresses; its resolver answers there. Every other address is its too.
pub(crate) const OUTSIDE_V4: &str = "192.168.20.1";
pub(crate) const OUTSIDE_V6: &str = "fd00:20::1";
/// The node's address for the machine (RFC 2544), which nothing else uses.
pub(crate) const SERVER: &str = "198.18.77.2";
/// Networks of pods and services.
pub(crate) const PODS: &str = "10.244.0.0/16,fd00:10:244::/56";
pub(crate) const SERVICES: &str = "10.96.0.0/16,fd00:10:96::/112";
/// Name of the outside's network namespace, inside the node.
pub(crate) const OUTSIDE: &str = "outside";
/// The machine's end of its link. It goes when the node does.
const LINK: &str = "namegate-kube";

/// Makes links, addresses and routes.
pub(super) fn make(node: &Node) -> Result<()> {
    node.output("ip", &["netns", "add", OUTSIDE])?;
    node.feed("ip", &["-batch", "-"], &node_lines())?;
    node.feed("ip", &["-netns", OUTSIDE, "-batch", "-"], &outside_lines())?;
    // Duplicate addresses cannot be, and looking for them delays each pod by a second.
    let settings = ["net.ipv4.ip_forward=1", "net.ipv6.conf.all.forwarding=1", "net.ipv6.conf.default.accept_dad=0"];
    node.output("sysctl", &[&["-q"][..], &settings].concat())?;
    let keeper = node.keeper().to_string();
    crate::shell::feed(std::process::Command::new("ip").args(["-batch", "-"]), &machine_lines(&keeper))?;
    node.output("ip", &["addr", "add", &format!("{SERVER}/30"), "dev", "kube0"])?;
    node.output("ip", &["link", "set", "kube0", "up"])?;
    Ok(())
}

fn node_lines() -> String {
    format!(
        "link set lo up\n\
         link add eth0 type veth peer name eth0 netns {OUTSIDE}\n\
         addr add {NODE_V4}/24 dev eth0\n\
         addr add {NODE_V6}/64 dev eth0 nodad\n\
         link set eth0 up\n\
         route add default via {OUTSIDE_V4}\n\
         route add default via {OUTSIDE_V6} dev eth0\n"
    )
}

fn outside_lines() -> String {
    format!(
        "link set lo up\n\
         addr add {OUTSIDE_V4}/24 dev eth0\n\
         addr add {OUTSIDE_V6}/64 dev eth0 nodad\n\
         link set eth0 up\n\
         route add 10.244.0.0/16 via {NODE_V4} dev eth0 table local\n\
         route add fd00:10:244::/56 via {NODE_V6} dev eth0 table local\n\
         route add {NODE_V4}/32 dev eth0 scope link table local\n\
         route add fd00:20::/64 dev eth0 table local\n\
         route add fe80::/64 dev eth0 table local\n\
         route add local 0.0.0.0/0 dev lo table local\n\
         route add local ::/0 dev lo table local\n"
    )
}

fn machine_lines(keeper: &str) -> String {
    format!(
        "link add {LINK} type veth peer name kube0 netns {keeper}\n\
         addr add 198.18.77.1/30 dev {LINK}\n\
         link set {LINK} up\n"
    )
}
