//! Two pods on one bridge: what one may claim there, and what it can hand to the other past their policies.
#![expect(clippy::unwrap_used, reason = "a test ends at the first surprise")]

#[expect(dead_code, reason = "each program of this folder uses its own part")]
mod common;

#[path = "common/bridge.rs"]
mod bridge;
#[path = "neighbours/discovery.rs"]
mod discovery;

use std::cell::RefCell;
use std::net::{IpAddr, Ipv6Addr};

use bridge::{ATTACKER, GATEWAY, NODES, OWN, VICTIM, VICTIMS, bridged};
use common::{SILENT, WITHIN, document, echo, egress, ip, opens};
use namegate_testbed::{Agent, Failure, Link, Options, Pod, World};
use serde_json::Value;

/// Inside of what the policy opens.
const ALLOWED: [&str; 2] = ["198.51.100.9", "2001:db8:1::9"];
const EVERYBODY: [u8; 6] = [0xff; 6];
const NO_LINK: [u8; 6] = [0; 6];
/// Data that one pod would hand to another.
const SECRET: &[u8] = b"secret";

const NETS: &str = "  - toCIDR: [198.51.100.0/24, '2001:db8:1::/48']\n";

fn closed() -> Options {
    Options::default().policies(&document("closed", "  endpointSelector: {}\n  ingress: [{}]\n  egress: [{}]\n"))
}

fn bytes(address: &str) -> Vec<u8> {
    match ip(address) {
        IpAddr::V4(address) => address.octets().into(),
        IpAddr::V6(address) => address.octets().into(),
    }
}

fn sum(octets: &[u8]) -> u32 {
    octets.chunks(2).map(|pair| u32::from(pair[0]) << 8 | u32::from(*pair.get(1).unwrap_or(&0))).sum()
}

fn checksum(parts: &[&[u8]]) -> [u8; 2] {
    let mut all: u32 = parts.iter().map(|part| sum(part)).sum();
    while all > 0xffff {
        all = (all & 0xffff) + (all >> 16);
    }
    u16::try_from(all ^ 0xffff).unwrap().to_be_bytes()
}

fn arp(to: [u8; 6], from: [u8; 6], operation: u8, sender: &str, target: (&str, [u8; 6])) -> Vec<u8> {
    let mut frame = [to, from].concat();
    frame.extend([0x08, 0x06, 0, 1, 0x08, 0, 6, 4, 0, operation]);
    frame.extend(from);
    frame.extend(bytes(sender));
    frame.extend(target.1);
    frame.extend(bytes(target.0));
    frame
}

/// A frame of ICMPv6 behind `extension`, whose first byte names the header that follows it.
fn icmp6(to: [u8; 6], from: [u8; 6], between: [&str; 2], hops: u8, extension: (u8, &[u8]), message: &[u8]) -> Vec<u8> {
    let [source, destination] = between.map(bytes);
    let length = u8::try_from(extension.1.len() + message.len()).unwrap();
    let mut message = message.to_vec();
    let octets = u8::try_from(message.len()).unwrap();
    let sum = checksum(&[&source, &destination, &[0, octets, 0, 58], &message]);
    message[2..4].copy_from_slice(&sum);
    let mut frame = [to, from].concat();
    frame.extend([0x86, 0xdd, 0x60, 0, 0, 0, 0, length, extension.0, hops]);
    frame.extend([source, destination].concat());
    frame.extend(extension.1);
    frame.extend(message);
    frame
}

const PLAIN: (u8, &[u8]) = (58, &[]);
const ALERT: (u8, &[u8]) = (0, &[58, 0, 5, 2, 0, 0, 1, 0]);

/// A message of neighbour discovery about an address, with options behind it.
fn about(kind: u8, flags: u8, target: &str, options: &[u8]) -> Vec<u8> {
    [&[kind, 0, 0, 0, flags, 0, 0, 0][..], &bytes(target), options].concat()
}

fn option(kind: u8, link: &[u8]) -> Vec<u8> {
    [&[kind, 1], link].concat()
}

/// The link address of an IPv6 group.
fn group(address: &str) -> [u8; 6] {
    let octets = bytes(address);
    [0x33, 0x33, octets[12], octets[13], octets[14], octets[15]]
}

/// The group that listens for solicitations of an address.
fn solicited(address: &str) -> String {
    let octets = bytes(address);
    Ipv6Addr::from([0xff, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0xff, octets[13], octets[14], octets[15]]).to_string()
}

/// The link-local address of a link address.
fn local(link: [u8; 6]) -> String {
    let own = [link[0] ^ 2, link[1], link[2], 0xff, 0xfe, link[3], link[4], link[5]];
    let octets: [u8; 16] = [&[0xfe, 0x80, 0, 0, 0, 0, 0, 0][..], &own].concat().try_into().unwrap();
    Ipv6Addr::from(octets).to_string()
}

/// The links of both pods.
struct Links {
    attacker: Link,
    victim: Link,
}

impl Links {
    fn open(world: &World) -> Self {
        let open = |key: &str| Link::open(&world.pod(key).netns, "eth0").unwrap();
        Self { attacker: open(ATTACKER), victim: open(VICTIM) }
    }

    /// Sends frames from the attacker, an honest one last; those of them that reached the victim before that.
    fn arrived<'f>(&self, frames: &'f [(&str, Vec<u8>)]) -> Vec<&'f str> {
        for (what, frame) in frames {
            self.attacker.send(frame).unwrap_or_else(|error| panic!("{what}: {error}"));
        }
        let last = arp(EVERYBODY, self.attacker.address(), 1, OWN[0], (VICTIMS[0], NO_LINK));
        self.attacker.send(&last).unwrap();
        let seen = RefCell::new(Vec::new());
        let honest = self.victim.receive(WITHIN, |frame| {
            seen.borrow_mut().push(frame.to_vec());
            frame == last
        });
        assert!(honest.unwrap().is_some(), "an honest question for the victim arrives");
        let seen = seen.into_inner();
        frames.iter().filter(|(_, frame)| seen.contains(frame)).map(|(what, _)| *what).collect()
    }
}

/// Packets counted under a reason, in both directions.
fn counted(agent: &Agent<'_>, reason: &str) -> u64 {
    let status = agent.json("/v1/status").unwrap();
    let counters = status["counters"].as_array().unwrap();
    let of_reason = counters.iter().filter(|counter| counter["reason"] == reason);
    of_reason.map(|counter| counter["packets"].as_u64().unwrap()).sum()
}

/// What the pod knows of a neighbour.
fn neighbour(pod: &Pod, address: &str) -> String {
    let output = pod.exec("ip", &["neigh", "show", address, "dev", "eth0"]).unwrap();
    String::from_utf8(output.stdout).unwrap()
}

fn mac(link: [u8; 6]) -> String {
    link.map(|octet| format!("{octet:02x}")).join(":")
}

fn works(pod: &Pod) {
    for to in ALLOWED {
        assert!(opens(pod, echo(to)), "{} to {to}", pod.spec.key());
    }
}

/// The victim's gateway, its own addresses, the role of a router: none is the attacker's to claim.
#[test]
fn a_pod_takes_nothing_from_its_neighbour_on_a_bridge() {
    let world = bridged();
    let agent = Agent::start(&world, &Options::default().policies(&egress(NETS))).unwrap();
    let victim = world.pod(VICTIM);
    works(victim);
    let links = Links::open(&world);
    let (own, its) = (links.attacker.address(), links.victim.address());
    let own_local = local(own);
    let (source, target) = (option(1, &own), option(2, &own));
    let advertisement = [&[134, 0, 0, 0, 64, 0, 7, 8, 0, 0, 0, 0, 0, 0, 0, 0][..], &source].concat();
    let redirect = [about(137, 0, &own_local, &[]), bytes(ALLOWED[1]), target.clone()].concat();
    let nd = |to: [u8; 6], between: [&str; 2], message: &[u8]| icmp6(to, own, between, 255, PLAIN, message);
    let all = group("ff02::1");
    let frames = [
        ("ARP: the gateway asks", arp(EVERYBODY, own, 1, NODES[0], (VICTIMS[0], NO_LINK))),
        ("ARP: the gateway announces itself", arp(EVERYBODY, own, 1, NODES[0], (NODES[0], NO_LINK))),
        ("ARP: the gateway answers", arp(its, own, 2, NODES[0], (VICTIMS[0], its))),
        ("ARP: the victim announces itself", arp(EVERYBODY, own, 1, VICTIMS[0], (VICTIMS[0], NO_LINK))),
        ("ARP: the victim answers", arp(its, own, 2, VICTIMS[0], (VICTIMS[0], its))),
        ("NA: the gateway", nd(all, [OWN[1], "ff02::1"], &about(136, 0xa0, GATEWAY, &target))),
        ("NA: the gateway, of itself", nd(its, [GATEWAY, VICTIMS[1]], &about(136, 0xe0, GATEWAY, &target))),
        ("NA: the node", nd(its, [OWN[1], VICTIMS[1]], &about(136, 0xe0, NODES[1], &target))),
        ("NA: the victim", nd(all, [OWN[1], "ff02::1"], &about(136, 0x20, VICTIMS[1], &target))),
        ("NS: of the gateway", nd(its, [GATEWAY, VICTIMS[1]], &about(135, 0, VICTIMS[1], &source))),
        ("NS: of the node", nd(its, [NODES[1], VICTIMS[1]], &about(135, 0, VICTIMS[1], &source))),
        ("NS: is the victim's address free", nd(its, ["::", &solicited(VICTIMS[1])], &about(135, 0, VICTIMS[1], &[]))),
        ("RA", nd(all, [&own_local, "ff02::1"], &advertisement)),
        ("RA to the victim", nd(its, [&own_local, VICTIMS[1]], &advertisement)),
        ("redirect", nd(its, [&own_local, VICTIMS[1]], &redirect)),
        ("redirect of the gateway", nd(its, [GATEWAY, VICTIMS[1]], &redirect)),
        ("MLD query", icmp6(all, own, [&own_local, "ff02::1"], 1, ALERT, &about(130, 0, "::", &[]))),
        ("an allowed packet, handed to the victim", icmp6(its, own, [OWN[1], ALLOWED[1]], 64, PLAIN, &echo_request())),
    ];
    assert_eq!(links.arrived(&frames), Vec::<&str>::new());
    for address in [NODES[0], GATEWAY, NODES[1]] {
        let known = neighbour(victim, address);
        assert!(!known.contains(&mac(own)), "the victim's way to {address}: {known}");
    }
    works(victim);
    let told = agent.wait_for("the record of a denial", |agent| {
        let flows = agent.flows("endpoint=empire%2Fxwing&denied=true")?;
        Ok(flows.into_iter().find(|flow| flow["reason"] == "forged-neighbour"))
    });
    let told = told.unwrap();
    assert_eq!((&told["source"], &told["verdict"]), (&Value::from(NODES[0]), &Value::from("denied")), "{told}");
    assert_eq!(counted(&agent, "foreign-destination"), 1);
}

fn echo_request() -> Vec<u8> {
    [&[128, 0, 0, 0, 0, 7, 0, 1][..], SECRET].concat()
}

type Named = Vec<(&'static str, Vec<u8>)>;

/// The data as a link address.
fn secret() -> [u8; 6] {
    SECRET.try_into().unwrap()
}

/// An honest question of the attacker for the victim.
fn ask(own: [u8; 6]) -> Vec<u8> {
    arp(EVERYBODY, own, 1, OWN[0], (VICTIMS[0], NO_LINK))
}

/// ARP with data in it.
fn arp_with_data(own: [u8; 6], its: [u8; 6]) -> Named {
    let hidden = [2, SECRET[1], SECRET[2], SECRET[3], SECRET[4], SECRET[5]];
    let longer = |length: usize| {
        let mut frame = [&ask(own)[..], SECRET].concat();
        frame.resize(length, 0);
        frame
    };
    let mut kind = ask(own);
    kind[15] = 6;
    vec![
        ("ARP: behind it", longer(60)),
        ("ARP: a long frame", longer(1_400)),
        ("ARP: the target's link address", arp(EVERYBODY, own, 1, OWN[0], (VICTIMS[0], secret()))),
        ("ARP: the target", arp(EVERYBODY, own, 1, OWN[0], ("115.101.99.114", NO_LINK))),
        ("ARP: the target of a probe", arp(EVERYBODY, own, 1, "0.0.0.0", ("115.101.99.114", NO_LINK))),
        ("ARP: the sender", arp(EVERYBODY, own, 1, "115.101.99.114", (VICTIMS[0], NO_LINK))),
        ("ARP: the target of an answer", arp(its, own, 2, OWN[0], ("115.101.99.114", its))),
        ("ARP: an operation", arp(EVERYBODY, own, SECRET[0], OWN[0], (VICTIMS[0], NO_LINK))),
        ("ARP: another hardware", kind),
        ("ARP: a flooded link address", arp(hidden, own, 1, OWN[0], (VICTIMS[0], NO_LINK))),
    ]
}

/// Solicitations and advertisements with data in them.
fn discovery_with_data(own: [u8; 6], its: [u8; 6]) -> Named {
    let nd = |to: [u8; 6], between: [&str; 2], message: &[u8]| icmp6(to, own, between, 255, PLAIN, message);
    let asks = |options: &[u8]| {
        nd(group(&solicited(VICTIMS[1])), [OWN[1], &solicited(VICTIMS[1])], &about(135, 0, VICTIMS[1], options))
    };
    let source = option(1, &own);
    let data = "2001:db8:7365:6372:6574::1";
    let mut labelled = asks(&source);
    labelled[17] = SECRET[0];
    vec![
        ("NS: two options", asks(&[&source[..], &option(14, SECRET)].concat())),
        ("NS: an unknown option", asks(&option(200, SECRET))),
        ("NS: a nonce", asks(&option(14, SECRET))),
        ("NS: the link option", asks(&option(1, SECRET))),
        ("NS: behind it", [asks(&source), SECRET.to_vec()].concat()),
        ("NS: the flow label", labelled),
        ("NS: the target", nd(group(&solicited(data)), [OWN[1], &solicited(data)], &about(135, 0, data, &source))),
        (
            "NS: a local target",
            nd(
                group("ff02::1:ff73:6563"),
                [OWN[1], "ff02::1:ff73:6563"],
                &about(135, 0, "fe80::7365:6372:6573:6563", &source),
            ),
        ),
        (
            "NS: a nonce of its own",
            nd(group(&solicited(OWN[1])), ["::", &solicited(OWN[1])], &about(135, 0, OWN[1], &option(14, SECRET))),
        ),
        ("NA: an unknown option", nd(its, [OWN[1], VICTIMS[1]], &about(136, 0x60, OWN[1], &option(200, SECRET)))),
        ("NA: the link option", nd(its, [OWN[1], VICTIMS[1]], &about(136, 0x60, OWN[1], &option(2, SECRET)))),
        ("NA: a long one", nd(its, [OWN[1], VICTIMS[1]], &about(136, 0x60, OWN[1], &[0x73; 88]))),
        ("NA: the target", nd(its, [OWN[1], VICTIMS[1]], &about(136, 0x60, data, &[]))),
    ]
}

/// Other messages with data in them.
fn others_with_data(own: [u8; 6], its: [u8; 6]) -> Named {
    let own_local = local(own);
    let nd = |to: [u8; 6], between: [&str; 2], message: &[u8]| icmp6(to, own, between, 255, PLAIN, message);
    let record = [&[143, 0, 0, 0, 0, 0, 0, 1, 4, 0, 0, 0, 0xff, 0x0e][..], &[0x73; 14]].concat();
    vec![
        (
            "NS: behind a header",
            icmp6(
                its,
                own,
                [OWN[1], VICTIMS[1]],
                255,
                (60, &[58, 0, 1, 4, 0x73, 0x65, 0x63, 0x72]),
                &about(135, 0, VICTIMS[1], &[]),
            ),
        ),
        (
            "RS: an option",
            nd(
                group("ff02::2"),
                [&own_local, "ff02::2"],
                &[&[133, 0, 0, 0, 0, 0, 0, 0][..], &option(200, SECRET)].concat(),
            ),
        ),
        ("MLD: the group", icmp6(group("ff02::16"), own, [&own_local, "ff02::16"], 1, ALERT, &record)),
        ("MLD: to the victim", icmp6(its, own, [OWN[1], VICTIMS[1]], 1, PLAIN, &record)),
        ("a ping", icmp6(its, own, [OWN[1], VICTIMS[1]], 64, PLAIN, &echo_request())),
    ]
}

/// Both pods may send nothing and receive nothing. What address resolution they need carries no data of theirs.
#[test]
fn closed_pods_on_a_bridge_exchange_nothing() {
    let world = bridged();
    let agent = Agent::start(&world, &closed()).unwrap();
    let links = Links::open(&world);
    let (own, its) = (links.attacker.address(), links.victim.address());
    let frames = [arp_with_data(own, its), discovery_with_data(own, its), others_with_data(own, its)].concat();
    assert_eq!(links.arrived(&frames), Vec::<&str>::new());
    assert!(counted(&agent, "neighbour-form") >= 10);
    // A tag carries twelve bits, and the frame looks as any other without it.
    let before = counted(&agent, "neighbour-form");
    let mut tagged = ask(own);
    tagged.splice(12..12, [0x81, 0x00, 0x01, 0x23]);
    links.attacker.send(&tagged).unwrap();
    let denied = |agent: &Agent<'_>| Ok((counted(agent, "neighbour-form") > before).then_some(()));
    agent.wait_for("the denial of a tagged frame", denied).unwrap();
    // A link address is six bytes of its own choice: an endpoint has a few of them, not one for each message.
    for last in 0..=u8::MAX {
        let link = [2, SECRET[0], SECRET[1], SECRET[2], SECRET[3], last];
        links.attacker.send(&ask(link)).unwrap();
    }
    let ping = world.pod(VICTIM).ping(ip(OWN[0]), 8, SILENT);
    assert_eq!(ping, Err(Failure::Timeout), "it is closed");
    assert!(counted(&agent, "forged-neighbour") >= 250);
}

/// Tags behind the one that the kernel takes off: the node takes them off later, after the programs have seen the frame.
#[test]
fn no_second_tag_hides_what_a_pod_without_policies_sends() {
    const TAG: [u8; 4] = [0x81, 0, 0, 0];
    const TAG_OF_PROVIDER: [u8; 4] = [0x88, 0xa8, 0, 0];
    let world = bridged();
    let victims = document("victims", "  endpointSelector: {matchLabels: {class: tiefighter}}\n  egress: [{}]\n");
    let agent = Agent::start(&world, &Options::default().policies(&victims)).unwrap();
    works(world.pod(ATTACKER));
    let links = Links::open(&world);
    let (own, its) = (links.attacker.address(), links.victim.address());
    let before = counted(&agent, "malformed");
    let claims = [
        arp(its, own, 2, NODES[0], (VICTIMS[0], its)),
        icmp6(its, own, [VICTIMS[1], NODES[1]], 64, PLAIN, &echo_request()),
    ];
    let mut sent = 0;
    for frame in claims {
        for tags in [[TAG, TAG], [TAG, TAG_OF_PROVIDER], [TAG_OF_PROVIDER, TAG]] {
            links.attacker.send(&[&frame[..12], tags.as_flattened(), &frame[12..]].concat()).unwrap();
            sent += 1;
        }
    }
    let denied = |agent: &Agent<'_>| Ok((counted(agent, "malformed") >= before + sent).then_some(()));
    agent.wait_for("the denial of each frame", denied).unwrap();
    works(world.pod(ATTACKER));
}
