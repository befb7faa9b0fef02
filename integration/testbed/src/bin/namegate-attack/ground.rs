//! The node that is attacked: its pods, names, policies and settings, and a bridge that two pods share.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use anyhow::{Context, Result, ensure};
use namegate_testbed::{Netns, Options, Pod, Spec, World};
use serde_json::json;

use crate::raw::Mac;

/// The honest endpoint with a link of its own, and a server.
pub(crate) const ALPHA: &str = "honest/alpha";
/// The honest endpoint on the bridge.
pub(crate) const BETA: &str = "honest/beta";
/// The hostile endpoint.
pub(crate) const ENDPOINT: &str = "hostile/endpoint";
/// The hostile endpoint on the bridge.
pub(crate) const NEIGHBOUR: &str = "hostile/neighbour";

/// Where the hostile endpoint may send, over UDP, TCP and by echo requests.
pub(crate) const SINK: [IpAddr; 2] =
    [IpAddr::V4(Ipv4Addr::new(203, 0, 113, 200)), IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 0x200, 0, 0, 0, 0, 1))];
/// Where its requests are read as HTTP.
pub(crate) const LIMITED: [IpAddr; 2] =
    [IpAddr::V4(Ipv4Addr::new(203, 0, 113, 201)), IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 0x201, 0, 0, 0, 0, 1))];
/// Where its server names are read.
pub(crate) const NAMED: [IpAddr; 2] =
    [IpAddr::V4(Ipv4Addr::new(203, 0, 113, 202)), IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 0x202, 0, 0, 0, 0, 1))];
/// The address of a name that binds QUIC connections.
pub(crate) const BOUND: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 203);
/// The name of [`BOUND`].
pub(crate) const BOUND_NAME: &str = "quic.hostile.test";

/// Names that the honest endpoints use: any address, an HTTP rule, a server name.
pub(crate) const API_NAME: &str = "api.honest.test";
pub(crate) const WEB_NAME: &str = "web.honest.test";
pub(crate) const TLS_NAME: &str = "tls.honest.test";

/// Memory of the far side for fragments.
const FRAGMENT_BYTES: &str = "268435456";
/// The bridge of the node.
const BRIDGE: &str = "ng-bridge";
/// The addresses that the node has on every pod's link.
pub(crate) const GATEWAY_V4: Ipv4Addr = Ipv4Addr::new(169, 254, 1, 1);
pub(crate) const GATEWAY_V6: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 1);

const WORLD: &str = "
name: attack
podCIDRs: [10.244.0.0/16, 'fd00:10:244::/48']
nodes:
- {name: node1, ips: [192.168.20.11, 'fd00:20::11']}
- {name: node2, ips: [192.168.20.12, 'fd00:20::12']}
namespaces: [{name: honest}, {name: hostile}, {name: author}, {name: kube-system}]
pods:
- {name: alpha, namespace: honest, ips: [10.244.1.10, 'fd00:10:244:1::10'], ports: [{port: 8080}]}
- {name: beta, namespace: honest, ips: [10.244.1.11, 'fd00:10:244:1::11']}
- {name: endpoint, namespace: hostile, ips: [10.244.1.66, 'fd00:10:244:1::66']}
- {name: neighbour, namespace: hostile, ips: [10.244.1.67, 'fd00:10:244:1::67']}
- {name: author, namespace: author, ips: [10.244.1.68, 'fd00:10:244:1::68']}
- {name: coredns-1, namespace: kube-system, labels: {k8s-app: kube-dns}, ips: [10.244.2.10, 'fd00:10:244:2::10']}
dns:
  api.honest.test: {A: [203.0.113.10, 203.0.113.11], AAAA: ['2001:db8:10::1'], ttl: 5}
  web.honest.test: {A: [203.0.113.12], AAAA: ['2001:db8:12::1'], ttl: 5}
  tls.honest.test: {A: [203.0.113.13], AAAA: ['2001:db8:13::1'], ttl: 5}
  quic.hostile.test: {A: [203.0.113.203], ttl: 600}
";

const POLICIES: &str = "
apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata: {name: honest, namespace: honest}
spec:
  endpointSelector: {}
  ingress:
  - fromEndpoints: [{}]
    toPorts: [{ports: [{port: '8080', protocol: TCP}], rules: {http: [{method: GET, path: /v1}]}}]
  egress:
  - toEndpoints: [{matchLabels: {'k8s:io.kubernetes.pod.namespace': kube-system, 'k8s:k8s-app': kube-dns}}]
  - toEndpoints: [{}]
    toPorts: [{ports: [{port: '8080', protocol: TCP}]}]
  - toFQDNs: [{matchName: api.honest.test}]
    toPorts: [{ports: [{port: '7', protocol: ANY}]}]
  - toFQDNs: [{matchName: web.honest.test}]
    toPorts: [{ports: [{port: '80', protocol: TCP}], rules: {http: [{method: GET, path: /v1}]}}]
  - toFQDNs: [{matchName: tls.honest.test}]
    toPorts: [{ports: [{port: '443', protocol: TCP}], serverNames: [tls.honest.test]}]
---
apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata: {name: hostile, namespace: hostile}
spec:
  endpointSelector: {}
  egress:
  - toEndpoints: [{matchLabels: {'k8s:io.kubernetes.pod.namespace': kube-system, 'k8s:k8s-app': kube-dns}}]
  - toFQDNs: [{matchPattern: '*.zone.hostile.test'}]
  - toCIDR: [203.0.113.200/32, '2001:db8:200::1/128']
    toPorts: [{ports: [{port: '7', protocol: ANY}]}]
  - toCIDR: [203.0.113.200/32, '2001:db8:200::1/128']
    icmps: [{fields: [{family: IPv4, type: 8}, {family: IPv6, type: 128}]}]
  - toCIDR: [203.0.113.201/32, '2001:db8:201::1/128']
    toPorts: [{ports: [{port: '80', protocol: TCP}], rules: {http: [{method: GET, path: /v1}]}}]
  - toCIDR: [203.0.113.202/32, '2001:db8:202::1/128']
    toPorts: [{ports: [{port: '443', protocol: TCP}], serverNames: [named.hostile.test]}]
---
apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata: {name: bound, namespace: hostile, annotations: {namegate.io/name-binding: enforce}}
spec:
  endpointSelector: {}
  egress:
  - toFQDNs: [{matchName: quic.hostile.test}]
    toPorts: [{ports: [{port: '443', protocol: ANY}]}]
---
apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata: {name: author, namespace: author}
spec:
  endpointSelector: {}
  egress: [{toCIDR: [203.0.113.220/32]}]
";

/// Builds the world, and puts [`BETA`] and [`NEIGHBOUR`] on one bridge.
pub(crate) fn world() -> Result<World> {
    let world = World::build(Spec::parse(WORLD)?)?;
    world.node().call(leave_bridge_alone);
    world.outside().call(keep_fragments)?;
    let pods = [BETA, NEIGHBOUR].map(|key| world.pod(key));
    let mut lines = vec![
        format!("link add {BRIDGE} type bridge forward_delay 0 mcast_snooping 0"),
        format!("link set {BRIDGE} up"),
        format!("addr add {GATEWAY_V4}/32 dev {BRIDGE}"),
        format!("addr add {GATEWAY_V6}/64 dev {BRIDGE} nodad"),
    ];
    for pod in pods {
        let link = &pod.interface;
        lines.push(format!("addr flush dev {link}"));
        lines.push(format!("link set {link} master {BRIDGE}"));
        for address in &pod.spec.ips {
            let node = world.spec().nodes[0].ips.iter().find(|own| own.is_ipv4() == address.is_ipv4());
            let source = node.map(|own| format!(" src {own}")).unwrap_or_default();
            lines.push(format!("route replace {address} dev {BRIDGE}{source}"));
        }
    }
    for line in lines {
        ip(world.node(), &line)?;
    }
    Ok(world)
}

/// Packets on the bridge do not pass iptables: on that path the kernel forgets which socket a program has assigned.
fn leave_bridge_alone() {
    for name in ["iptables", "ip6tables", "arptables"] {
        // Without br_netfilter there is no such setting, and no such path.
        let _ = std::fs::write(format!("/proc/sys/net/bridge/bridge-nf-call-{name}"), "0");
    }
}

/// The far side has room for the fragments of everyone: what fails is then the node's doing.
fn keep_fragments() -> Result<()> {
    for name in ["ipv4/ipfrag_high_thresh", "ipv6/ip6frag_high_thresh"] {
        std::fs::write(format!("/proc/sys/net/{name}"), FRAGMENT_BYTES).with_context(|| format!("setting {name}"))?;
    }
    Ok(())
}

/// The agent's settings: bounds that the attack can reach, and the policies of all tenants.
pub(crate) fn options() -> Options {
    let settings = json!({
        "limits": {
            "cidrs": 8192, "policyRows": 16384, "addresses": 16384, "flows": 32768, "l7ConnectionsPerEndpoint": 2048,
        },
        "dns": {"addressesPerNameMax": 64, "namesPerEndpointMax": 1000, "pendingPerEndpointMax": 512},
    });
    Options::default().policies(POLICIES).with(settings)
}

/// The Ethernet address of a pod, and that of the node on the bridge.
pub(crate) fn macs(world: &World, pod: &Pod) -> Result<(Mac, Mac)> {
    Ok((mac(&pod.netns, "eth0")?, mac(world.node(), BRIDGE)?))
}

fn mac(netns: &Netns, interface: &str) -> Result<Mac> {
    let shown = ip(netns, &format!("-json link show dev {interface}"))?;
    let shown: serde_json::Value = serde_json::from_str(&shown).context("reading what `ip` shows")?;
    let text = shown[0]["address"].as_str().unwrap_or_default().to_owned();
    let bytes = text.split(':').map(|byte| u8::from_str_radix(byte, 16)).collect::<Result<Vec<_>, _>>()?;
    bytes.try_into().ok().with_context(|| format!("`{text}` is no Ethernet address"))
}

/// Runs `ip` in a namespace and gives what it shows.
fn ip(netns: &Netns, arguments: &str) -> Result<String> {
    let mut command = std::process::Command::new("ip");
    command.args(arguments.split_whitespace());
    let output = netns.call(move || command.output()).context("running `ip`")?;
    let complaint = String::from_utf8_lossy(&output.stderr).into_owned();
    ensure!(output.status.success(), "`ip {arguments}` failed: {}", complaint.trim());
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}
