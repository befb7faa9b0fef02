//! The links and routes of a world, as lines for `ip -batch`.
//!
//! The node routes to each pod over a pair of virtual interfaces, as the `ptp` CNI plugin does. Behind the node lies one
//! namespace that holds every other address of the world (`AnyIP`, `ip-route(8)`: routes of type `local`).

use std::fmt::Write;
use std::net::IpAddr;

use ipnet::IpNet;

use crate::spec::{PodSpec, Spec};

/// The node's side of each pod link.
const GATEWAY_V4: &str = "169.254.1.1";
/// The same for IPv6; also the node's side of the way out.
const GATEWAY_V6: &str = "fe80::1";
/// The other side of the node's way out.
const OUTSIDE_V4: &str = "169.254.2.1";
/// The same for IPv6.
const OUTSIDE_V6: &str = "fe80::2";
/// Addresses that the outside calls from; it answers from all.
const CALLER_V4: &str = "203.0.113.1";
/// The same for IPv6.
const CALLER_V6: &str = "2001:db8::1";
/// The node's interface towards the outside.
pub(crate) const UPLINK: &str = "ng-uplink";
/// Octets of an interface name, without its final zero (`IFNAMSIZ`).
const INTERFACE_OCTETS: usize = 15;

/// Settings of every namespace: no waiting for duplicate addresses, no reverse path filter, ping sockets for all.
pub(crate) const SYSCTLS: &[(&str, &str)] = &[
    ("net/ipv6/conf/default/accept_dad", "0"),
    ("net/ipv6/conf/all/accept_dad", "0"),
    ("net/ipv6/conf/default/accept_ra", "0"),
    ("net/ipv6/conf/default/router_solicitations", "0"),
    ("net/ipv4/conf/default/rp_filter", "0"),
    ("net/ipv4/conf/all/rp_filter", "0"),
    ("net/ipv4/ping_group_range", "0 2147483647"),
];

/// Settings of the node: it forwards.
pub(crate) const NODE_SYSCTLS: &[(&str, &str)] =
    &[("net/ipv4/ip_forward", "1"), ("net/ipv6/conf/all/forwarding", "1"), ("net/ipv6/conf/default/forwarding", "1")];

/// Settings of the outside: its answers leave from addresses that no interface has.
pub(crate) const OUTSIDE_SYSCTLS: &[(&str, &str)] = &[("net/ipv6/ip_nonlocal_bind", "1")];

/// Names for the node's sides of the pod links: `ng-` and the pod's name as far as it fits.
pub(crate) fn interface_names(pods: &[PodSpec]) -> Vec<String> {
    let mut names: Vec<String> = Vec::new();
    for (at, pod) in pods.iter().enumerate() {
        let mut name = format!("ng-{}", pod.name);
        name.truncate(INTERFACE_OCTETS);
        if names.contains(&name) || name == UPLINK {
            name = format!("ng-{at}-{}", pod.name);
            name.truncate(INTERFACE_OCTETS);
        }
        names.push(name);
    }
    names
}

/// The node's links, addresses and routes. `pods` holds host-side interface, namespace and description of each.
pub(crate) fn node_lines(spec: &Spec, outside: &str, pods: &[(&str, &str, &PodSpec)]) -> String {
    let mut lines = String::from("link set lo up\n");
    let addresses = spec.nodes.first().map(|node| node.ips.clone()).unwrap_or_default();
    line(&mut lines, format_args!("link add {UPLINK} type veth peer name eth0 netns {outside}"));
    for address in &addresses {
        line(&mut lines, format_args!("addr add {} dev {UPLINK}{}", IpNet::from(*address), no_dad(address)));
    }
    line(&mut lines, format_args!("addr add {GATEWAY_V6}/64 dev {UPLINK} nodad"));
    line(&mut lines, format_args!("link set {UPLINK} up"));
    line(&mut lines, format_args!("route add default via {OUTSIDE_V4} dev {UPLINK} onlink"));
    line(&mut lines, format_args!("route add default via {OUTSIDE_V6} dev {UPLINK}"));
    for network in &spec.service_cidrs {
        line(&mut lines, format_args!("route add unreachable {network}"));
    }
    for (interface, netns, pod) in pods {
        line(&mut lines, format_args!("link add {interface} type veth peer name eth0 netns {netns}"));
        line(&mut lines, format_args!("addr add {GATEWAY_V4}/32 dev {interface}"));
        line(&mut lines, format_args!("addr add {GATEWAY_V6}/64 dev {interface} nodad"));
        line(&mut lines, format_args!("link set {interface} up"));
        for address in &pod.ips {
            let source = addresses.iter().find(|own| own.is_ipv4() == address.is_ipv4());
            let source = source.map(|own| format!(" src {own}")).unwrap_or_default();
            line(&mut lines, format_args!("route add {} dev {interface}{source}", IpNet::from(*address)));
        }
    }
    lines
}

/// A pod's addresses and its way out.
pub(crate) fn pod_lines(pod: &PodSpec) -> String {
    let mut lines = String::from("link set lo up\n");
    for address in &pod.ips {
        line(&mut lines, format_args!("addr add {} dev eth0{}", IpNet::from(*address), no_dad(address)));
    }
    lines.push_str("link set eth0 up\n");
    if pod.ips.iter().any(IpAddr::is_ipv4) {
        line(&mut lines, format_args!("route add {GATEWAY_V4}/32 dev eth0 scope link"));
        line(&mut lines, format_args!("route add default via {GATEWAY_V4} dev eth0"));
    }
    if pod.ips.iter().any(IpAddr::is_ipv6) {
        line(&mut lines, format_args!("route add default via {GATEWAY_V6} dev eth0"));
    }
    lines
}

/// The outside: the way back to the cluster, and every other address as its own.
pub(crate) fn outside_lines(spec: &Spec) -> String {
    let mut lines = String::from("link set lo up\nlink set eth0 up\n");
    line(&mut lines, format_args!("addr add {CALLER_V4}/32 dev lo"));
    line(&mut lines, format_args!("addr add {CALLER_V6}/128 dev lo nodad"));
    line(&mut lines, format_args!("addr add {OUTSIDE_V4}/32 dev eth0"));
    line(&mut lines, format_args!("addr add {OUTSIDE_V6}/64 dev eth0 nodad"));
    line(&mut lines, format_args!("route add fe80::/64 dev eth0 table local"));
    let node = spec.nodes.first().map(|node| node.ips.clone()).unwrap_or_default();
    let node_v4 = node.iter().find(|address| address.is_ipv4());
    if let Some(node) = node_v4 {
        line(&mut lines, format_args!("route add {node}/32 dev eth0 scope link src {CALLER_V4} table local"));
    }
    let single = node.iter().filter(|address| address.is_ipv6()).chain(spec.pods.iter().flat_map(|pod| &pod.ips));
    let single = single.filter(|address| !spec.pod_cidrs.iter().any(|network| network.contains(*address)));
    for network in spec.pod_cidrs.iter().copied().chain(single.map(|address| IpNet::from(*address))) {
        let (via, source) = match (network, node_v4) {
            (IpNet::V6(_), _) => (GATEWAY_V6.to_owned(), CALLER_V6),
            (IpNet::V4(_), Some(node)) => (format!("{node} onlink"), CALLER_V4),
            (IpNet::V4(_), None) => continue,
        };
        line(&mut lines, format_args!("route add {network} via {via} dev eth0 src {source} table local"));
    }
    lines.push_str("route add local 0.0.0.0/0 dev lo table local\nroute add local ::/0 dev lo table local\n");
    lines
}

fn no_dad(address: &IpAddr) -> &'static str {
    if address.is_ipv6() { " nodad" } else { "" }
}

fn line(lines: &mut String, text: std::fmt::Arguments<'_>) {
    let _ = writeln!(lines, "{text}"); // Writing to a string does not fail.
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn interface_names_fit_and_differ() {
        let pods: Vec<_> = ["tiefighter", "kubernetes-dashboard", "kubernetes-dashboard-2", "uplink"]
            .map(|name| PodSpec::new("empire", name, &[]))
            .into();
        let names = interface_names(&pods);
        assert_eq!(names, ["ng-tiefighter", "ng-kubernetes-d", "ng-2-kubernetes", "ng-3-uplink"]);
    }
}
