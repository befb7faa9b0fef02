//! Neighbour discovery: it stays on its link, and honest neighbours find each other.

use std::net::{IpAddr, SocketAddr};
use std::process::Command;

use namegate_testbed::{Agent, Failure, Link, Netns, Options, Pod, client};
use serde_json::Value;

use crate::bridge::{ATTACKER, BRIDGE, GATEWAY, NODES, OWN, VICTIM, VICTIMS, bridged, give_v6, run_ip};
use crate::common::{TEST_NETS, WITHIN, document, echo, egress, ip, text, world};
use crate::{ALERT, ALLOWED, NETS, PLAIN, SECRET, about, bytes, counted, icmp6, neighbour, option, works};

/// Outside of what the policy opens.
const DENIED_V6: &str = "2001:db8:2::9";
/// What the pod may send to the outside.
const HONEST: &[u8] = b"an honest datagram";

/// A closed pod sends every type of discovery to an address outside, and the outside sends them back.
#[test]
fn no_discovery_goes_beyond_the_link() {
    let world = world(&[VICTIM]);
    let ingress = document("ingress", "  endpointSelector: {}\n  ingress: [{}]\n");
    let policies = format!("{}---\n{ingress}", egress(TEST_NETS));
    let _agent = Agent::start(&world, &Options::default().policies(&policies)).unwrap();
    let pod = world.pod(VICTIM);
    let inside = Link::open(&pod.netns, "eth0").unwrap();
    let (node, outside) =
        (Link::open(world.node(), &pod.interface).unwrap(), Link::open(world.outside(), "eth0").unwrap());
    let uplink = Link::open(world.node(), world.uplink()).unwrap();
    let denied = bytes(DENIED_V6);
    let is_denied = |frame: &[u8]| frame.len() >= 54 && (frame[22..38] == denied || frame[38..54] == denied);
    let is_honest = |frame: &[u8]| frame.windows(HONEST.len()).any(|part| part == HONEST);
    let exchange = |frames: &[Vec<u8>], from: &Link, to: &Link| {
        for frame in frames {
            from.send(frame).unwrap();
        }
        let server = echo("198.51.100.9");
        pod.netns.run(async move { client::echo(server, HONEST, WITHIN).await }).unwrap();
        let first = to.receive(WITHIN, |frame| is_denied(frame) || is_honest(frame)).unwrap();
        let first = first.expect("the honest datagram");
        assert!(is_honest(&first), "type {} with hop limit {} passed", first[54], first[21]);
    };
    let (gateway, own) = (node.address(), inside.address());
    let mut out = discovery([own, gateway], [VICTIMS[1], DENIED_V6], DENIED_V6);
    for source in ["fd00:10:244:1::99", DENIED_V6] {
        out.extend(discovery([own, gateway], [source, DENIED_V6], source));
    }
    // Messages that have their exact form, too.
    for (kind, target) in [(135, DENIED_V6), (136, VICTIMS[1])] {
        let message = about(kind, if kind == 136 { 0x60 } else { 0 }, target, &option(kind - 134, &own));
        out.push(icmp6(gateway, own, [VICTIMS[1], DENIED_V6], 255, PLAIN, &message));
    }
    exchange(&out, &inside, &outside);
    let back = discovery([outside.address(), uplink.address()], [DENIED_V6, VICTIMS[1]], VICTIMS[1]);
    exchange(&back, &outside, &inside);
}

/// Every type of discovery between two addresses, with several hop limits and data behind it.
fn discovery(links: [[u8; 6]; 2], between: [&str; 2], target: &str) -> Vec<Vec<u8>> {
    let mut frames = Vec::new();
    for kind in (130..=137).chain([143]) {
        for (hops, extension) in [255, 64, 3, 2, 1].into_iter().flat_map(|hops| [(hops, PLAIN), (hops, ALERT)]) {
            frames.push(icmp6(links[1], links[0], between, hops, extension, &about(kind, 0x60, target, SECRET)));
        }
    }
    frames
}

/// Everything that address resolution is for, with nothing denied.
#[test]
fn honest_neighbours_find_each_other() {
    let world = bridged();
    let among = "  - toEndpoints: [{}]\n";
    let agent = Agent::start(&world, &Options::default().policies(&egress(&format!("{NETS}{among}")))).unwrap();
    let pods = [ATTACKER, VICTIM].map(|key| world.pod(key));
    let setting = |pod: &Pod, name: &'static str, value: &'static str| {
        pod.netns.call(move || std::fs::write(format!("/proc/sys/net/ipv6/conf/eth0/{name}"), value)).unwrap();
    };
    for pod in pods {
        setting(pod, "accept_dad", "1");
        setting(pod, "accept_ra", "1");
        setting(pod, "router_solicitations", "2");
        setting(pod, "router_solicitation_delay", "0");
        run_ip(&pod.netns, &["link set eth0 down".to_owned(), "link set eth0 up".to_owned()]);
        run_ip(&pod.netns, &[format!("route replace default via {} dev eth0", NODES[0])]);
        give_v6(pod, "");
        let free = agent.wait_for("duplicate detection", |_| {
            let shown = pod.exec("ip", &["-6", "addr", "show", "dev", "eth0"])?;
            let shown = String::from_utf8(shown.stdout)?;
            assert!(!shown.contains("dadfailed"), "{shown}");
            Ok((!shown.contains("tentative") && shown.contains("fe80")).then_some(()))
        });
        free.unwrap();
        let asked = agent.wait_for("a router solicitation", |_| {
            let counters = pod.netns.call(|| std::fs::read_to_string("/proc/thread-self/net/snmp6"))?;
            let sent = counters.lines().find(|line| line.starts_with("Icmp6OutRouterSolicits")).map(str::to_owned);
            Ok(sent.filter(|line| !line.ends_with(" 0") && !line.ends_with("\t0")))
        });
        asked.unwrap();
    }
    for round in 0..2 {
        let others = [(pods[0], VICTIMS), (pods[1], OWN)];
        for (pod, others) in others {
            for to in others.into_iter().chain(ALLOWED) {
                pod.ping(ip(to), 56, WITHIN).unwrap_or_else(|error| panic!("{} to {to}: {error}", pod.spec.key()));
            }
            works(pod);
            // The node asks for the pod, which it has forgotten.
            run_ip(world.node(), &[format!("neigh flush dev {BRIDGE}")]);
            for own in [pod.ipv4(), pod.ipv6()] {
                ping(world.node(), own);
            }
            if round == 0 {
                for address in others.into_iter().chain([NODES[0], GATEWAY]) {
                    probe(&agent, pod, address);
                }
            }
            run_ip(&pod.netns, &["neigh flush dev eth0".to_owned()]);
        }
    }
    for reason in ["forged-neighbour", "neighbour-form", "foreign-destination", "spoofed-source", "default-deny"] {
        assert_eq!(counted(&agent, reason), 0, "{reason}: {:#?}", agent.flows("denied=true").unwrap());
    }
}

fn ping(netns: &Netns, to: IpAddr) {
    let mut command = Command::new("ip");
    command.args(["route", "get", &to.to_string()]);
    assert!(netns.call(move || command.output()).unwrap().status.success());
    let to = SocketAddr::new(to, 9);
    let refused = netns.run(async move { client::connect(to, WITHIN).await.map(drop) });
    assert_eq!(refused, Err(Failure::Refused), "the node to {to}");
}

/// Has the pod's kernel ask a neighbour alone whether it is still there, and waits for the answer.
fn probe(agent: &Agent<'_>, pod: &Pod, address: &str) {
    let known = neighbour(pod, address);
    let link = known
        .split_whitespace()
        .skip_while(|word| *word != "lladdr")
        .nth(1)
        .unwrap_or_else(|| panic!("{address}: {known}"));
    run_ip(&pod.netns, &[format!("neigh replace {address} lladdr {link} dev eth0 nud probe")]);
    let reachable = agent.wait_for("the neighbour's answer", |_| {
        let known = neighbour(pod, address);
        anyhow::ensure!(!known.contains("FAILED"), "{known}");
        Ok(known.contains("REACHABLE").then_some(()))
    });
    reachable.unwrap_or_else(|error| panic!("{} asks {address}: {error:#}", text(&Value::from(pod.spec.key()))));
}
