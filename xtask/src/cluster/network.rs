//! The nodes' links: to a network that stands for the outside and joins them, and to the machine for `kubectl`.
//!
//! Pods keep their addresses on the way out, and between nodes. Outside and nodes know the way back to them.

use std::net::Ipv4Addr;
use std::path::Path;
use std::process::Command;

use anyhow::Result;

use super::node::{Node, mark};
use crate::shell;

/// What tells nodes apart.
pub(crate) struct Place {
    /// The node's name in the cluster.
    pub(crate) name: &'static str,
    /// Its addresses.
    pub(crate) v4: &'static str,
    pub(crate) v6: &'static str,
    /// Networks of its pods.
    pub(crate) pods_v4: &'static str,
    pub(crate) pods_v6: &'static str,
}

/// The first node has what the whole cluster needs once.
pub(crate) const PLACES: [Place; 2] = [
    Place {
        name: "node1",
        v4: "192.168.20.11",
        v6: "fd00:20::11",
        pods_v4: "10.244.0.0/22",
        pods_v6: "fd00:10:244::/64",
    },
    Place {
        name: "node2",
        v4: "192.168.20.12",
        v6: "fd00:20::12",
        pods_v4: "10.244.4.0/22",
        pods_v6: "fd00:10:244:4::/64",
    },
];
/// The outside's own addresses; its resolver answers there. Every other address is its too.
pub(crate) const OUTSIDE_V4: &str = "192.168.20.1";
pub(crate) const OUTSIDE_V6: &str = "fd00:20::1";
/// Networks of pods and services.
pub(crate) const PODS: &str = "10.244.0.0/16,fd00:10:244::/56";
pub(crate) const SERVICES: &str = "10.96.0.0/16,fd00:10:96::/112";
/// Name of the outside's network namespace, inside the first node.
pub(crate) const OUTSIDE: &str = "outside";
/// Settings of a node. Duplicate addresses cannot be, and looking for them delays each pod by a second.
const SETTINGS: [&str; 3] =
    ["net.ipv4.ip_forward=1", "net.ipv6.conf.all.forwarding=1", "net.ipv6.conf.default.accept_dad=0"];

/// The link between the machine and the first node, which goes when the node does. No two clusters have the same.
pub(crate) struct Uplink {
    /// Name of the machine's end.
    name: String,
    machine: Ipv4Addr,
    /// The node's address for the machine.
    pub(crate) server: Ipv4Addr,
}

impl Uplink {
    /// That of the cluster whose state lies in `folder`: one of the 16,384 networks of four addresses in 198.19.0.0/16
    /// (RFC 2544), which nothing else uses.
    pub(crate) fn of(folder: &Path) -> Self {
        let mark = mark(folder);
        let network = u32::from(Ipv4Addr::new(198, 19, 0, 0)) | (mark & 0x3fff) << 2;
        Self {
            name: format!("namegate-{:06x}", mark & 0xff_ffff),
            machine: Ipv4Addr::from(network | 1),
            server: Ipv4Addr::from(network | 2),
        }
    }
}

/// Makes links, addresses and routes of the first node and of the outside.
pub(super) fn make(node: &Node) -> Result<()> {
    node.output("ip", &["netns", "add", OUTSIDE])?;
    outside(node, &outside_lines(&PLACES[0]))?;
    // Where frames of a bridge pass the filters of IP, nobody here has use for it.
    let plain = ["-q", "-e", "net.bridge.bridge-nf-call-iptables=0", "net.bridge.bridge-nf-call-ip6tables=0"];
    node.output("ip", &[&["netns", "exec", OUTSIDE, "sysctl"][..], &plain].concat())?;
    node.feed("ip", &["-batch", "-"], &node_lines(&PLACES[0], &format!("netns {OUTSIDE}")))?;
    outside(node, &port_lines(&PLACES[0]))?;
    node.output("sysctl", &[&["-q"][..], &SETTINGS].concat())?;
    let Uplink { name, machine, server } = Uplink::of(node.folder());
    let lines = format!(
        "link add {name} type veth peer name kube0 netns {}\naddr add {machine}/30 dev {name}\nlink set {name} up\n",
        node.keeper()
    );
    shell::feed(Command::new("ip").args(["-batch", "-"]), &lines)?;
    node.output("ip", &["addr", "add", &format!("{server}/30"), "dev", "kube0"])?;
    node.output("ip", &["link", "set", "kube0", "up"])?;
    Ok(())
}

/// Removes the link to the machine: the kernel takes its time to let go of a node that ended.
pub(super) fn unlink(folder: &Path) {
    // It may be gone.
    let _ = shell::output(Command::new("ip").args(["link", "del", &Uplink::of(folder).name]));
}

/// Joins the second node to the first and to the outside.
pub(super) fn join(first: &Node, second: &Node) -> Result<()> {
    let [one, other] = &PLACES;
    // The link is made in the machine's tree of processes, where both are known by a number, and moved.
    let end = format!("netns /proc/{}/root/run/netns/{OUTSIDE}", first.keeper());
    let lines = node_lines(other, &end);
    let netns = format!("--net=/proc/{}/ns/net", second.keeper());
    shell::feed(Command::new("nsenter").args([&netns, "--", "ip", "-batch", "-"]), &lines)?;
    outside(first, &format!("{}{}", way_lines(other), port_lines(other)))?;
    second.output("sysctl", &[&["-q"][..], &SETTINGS].concat())?;
    first.feed("ip", &["-batch", "-"], &pods_lines(other))?;
    second.feed("ip", &["-batch", "-"], &pods_lines(one))
}

/// Takes out of the first node what led to the second, as far as it is there.
pub(super) fn part(first: &Node) -> Result<()> {
    let Place { pods_v4, pods_v6, .. } = PLACES[1];
    for (family, pods) in [("-4", pods_v4), ("-6", pods_v6)] {
        first.output("ip", &[family, "route", "flush", pods])?;
    }
    Ok(())
}

fn outside(node: &Node, lines: &str) -> Result<()> {
    node.feed("ip", &["-netns", OUTSIDE, "-batch", "-"], lines)
}

/// A node's own link, whose other end is a port of the outside with the node's name.
fn node_lines(place: &Place, end: &str) -> String {
    let Place { name, v4, v6, .. } = place;
    format!(
        "link set lo up\n\
         link add eth0 type veth peer name {name} {end}\n\
         addr add {v4}/24 dev eth0\n\
         addr add {v6}/64 dev eth0 nodad\n\
         link set eth0 up\n\
         route add default via {OUTSIDE_V4}\n\
         route add default via {OUTSIDE_V6} dev eth0\n"
    )
}

/// The way to the pods of another node.
fn pods_lines(place: &Place) -> String {
    let Place { v4, v6, pods_v4, pods_v6, .. } = place;
    format!("route replace {pods_v4} via {v4} dev eth0\nroute replace {pods_v6} via {v6} dev eth0\n")
}

/// The outside with the way to pods, for whom the first node stands unless another does: one segment for all nodes, and
/// every address but theirs.
fn outside_lines(first: &Place) -> String {
    let Place { v4, v6, .. } = first;
    format!(
        "link set lo up\n\
         link add eth0 type bridge forward_delay 0 mcast_snooping 0\n\
         addr add {OUTSIDE_V4}/24 dev eth0\n\
         addr add {OUTSIDE_V6}/64 dev eth0 nodad\n\
         link set eth0 up\n\
         route add fd00:20::/64 dev eth0 table local\n\
         route add fe80::/64 dev eth0 table local\n\
         {}\
         route add 10.244.0.0/16 via {v4} dev eth0 table local\n\
         route add fd00:10:244::/56 via {v6} dev eth0 table local\n\
         route add local 0.0.0.0/0 dev lo table local\n\
         route add local ::/0 dev lo table local\n",
        way_lines(first)
    )
}

/// The outside's way to a node and its pods. It may be there from a node before.
fn way_lines(place: &Place) -> String {
    let Place { v4, v6, pods_v4, pods_v6, .. } = place;
    format!(
        "route replace {v4}/32 dev eth0 scope link table local\n\
         route replace {pods_v4} via {v4} dev eth0 table local\n\
         route replace {pods_v6} via {v6} dev eth0 table local\n"
    )
}

fn port_lines(place: &Place) -> String {
    format!("link set {0} master eth0\nlink set {0} up\n", place.name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_cluster_has_a_link_of_its_own() {
        let [one, other] = ["/one/cluster", "/other/cluster"].map(|folder| Uplink::of(Path::new(folder)));
        assert_ne!((&one.name, one.server), (&other.name, other.server));
        for Uplink { name, machine, server } in [one, other] {
            // Linux: IFNAMSIZ, with its zero.
            assert!(name.len() < 16, "{name}");
            assert_eq!((machine.octets()[..2].to_vec(), u32::from(machine) & 3), (vec![198, 19], 1));
            assert_eq!(u32::from(server), u32::from(machine) + 1);
        }
    }
}
