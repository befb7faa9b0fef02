//! Two pods on one bridge of the node.

use std::process::Command;

use namegate_testbed::{Netns, Pod, World};

use crate::common::{TIE, XWING, world};

/// The attacker and its victim.
pub(crate) const ATTACKER: &str = XWING;
pub(crate) const VICTIM: &str = TIE;
pub(crate) const OWN: [&str; 2] = ["10.244.1.11", "fd00:10:244:1::11"];
pub(crate) const VICTIMS: [&str; 2] = ["10.244.1.10", "fd00:10:244:1::10"];
/// The node on the bridge.
pub(crate) const NODES: [&str; 2] = ["10.244.1.1", "fd00:10:244:1::1"];
pub(crate) const GATEWAY: &str = "fe80::1";
pub(crate) const BRIDGE: &str = "ng-bridge";

pub(crate) fn run_ip(netns: &Netns, lines: &[String]) {
    for line in lines {
        let mut command = Command::new("ip");
        command.args(line.split(' '));
        let output = netns.call(move || command.output()).unwrap();
        assert!(output.status.success(), "ip {line}: {}", String::from_utf8_lossy(&output.stderr));
    }
}

/// Attacker and victim as ports of one bridge of the node, which asks and answers for all.
pub(crate) fn bridged() -> World {
    let world = world(&[ATTACKER, VICTIM]);
    let mut lines: Vec<String> = [
        format!("link add {BRIDGE} type bridge mcast_snooping 0"),
        format!("link set {BRIDGE} up"),
        format!("addr add {}/24 dev {BRIDGE}", NODES[0]),
        format!("addr add {}/64 dev {BRIDGE} nodad", NODES[1]),
        format!("addr add {GATEWAY}/64 dev {BRIDGE} nodad"),
    ]
    .into();
    for pod in [ATTACKER, VICTIM].map(|key| world.pod(key)) {
        lines.extend([
            format!("route del {}/32 dev {}", pod.ipv4(), pod.interface),
            format!("-6 route del {}/128 dev {}", pod.ipv6(), pod.interface),
            format!("addr flush dev {}", pod.interface),
            format!("link set {} master {BRIDGE}", pod.interface),
        ]);
    }
    run_ip(world.node(), &lines);
    for pod in [ATTACKER, VICTIM].map(|key| world.pod(key)) {
        let lines = [
            "route flush dev eth0".to_owned(),
            format!("addr del {}/32 dev eth0", pod.ipv4()),
            format!("addr add {}/24 dev eth0", pod.ipv4()),
            format!("route add default via {} dev eth0", NODES[0]),
        ];
        run_ip(&pod.netns, &lines);
        give_v6(pod, "nodad");
    }
    world
}

/// The pod's IPv6 address with the whole prefix on its link, and the way out.
pub(crate) fn give_v6(pod: &Pod, option: &str) {
    let own = pod.ipv6();
    let _ = pod.exec("ip", &["addr", "del", &format!("{own}/128"), "dev", "eth0"]).unwrap(); // It may be gone.
    let option = if option.is_empty() { String::new() } else { format!(" {option}") };
    let lines =
        [format!("addr replace {own}/64 dev eth0{option}"), format!("-6 route replace default via {GATEWAY} dev eth0")];
    run_ip(&pod.netns, &lines);
}
