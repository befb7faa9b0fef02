//! Limits on requests between pods of one bridge: the bridge knows no proxy, and would hand frames on by their link address.
#![expect(clippy::unwrap_used, reason = "a test ends at the first surprise")]

#[expect(dead_code, reason = "each program of this folder uses its own part")]
mod common;

#[expect(dead_code, reason = "each program uses its own part")]
#[path = "common/bridge.rs"]
mod bridge;

use std::net::{Ipv6Addr, SocketAddr};
use std::sync::{Arc, Mutex};

use bridge::{ATTACKER, VICTIM, VICTIMS, bridged, run_ip};
use common::{WITHIN, document, ip};
use namegate_testbed::{Agent, Link, Options, Pod, Visit, World};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

const PORT: u16 = 8080;

const LIMITED_CLIENT: &str = "  endpointSelector: {matchLabels: {class: xwing}}
  egress:
  - toEndpoints: [{}]
    toPorts: [{ports: [{port: '8080', protocol: TCP}], rules: {http: [{path: /open}]}}]
";
const LIMITED_SERVER: &str = "  endpointSelector: {matchLabels: {class: tiefighter}}
  ingress:
  - fromEndpoints: [{}]
    toPorts: [{ports: [{port: '8080', protocol: TCP}], rules: {http: [{path: /open}]}}]
";

type Asked = Arc<Mutex<Vec<String>>>;

/// A server of the victim's that answers everything; gives the paths that it was asked for.
fn serve(pod: &Pod) -> Asked {
    let asked = Asked::default();
    let noted = Arc::clone(&asked);
    let (ready, listens) = std::sync::mpsc::channel();
    let server = pod.netns.spawn(async move {
        let listener =
            tokio::net::TcpListener::bind(SocketAddr::new(Ipv6Addr::UNSPECIFIED.into(), PORT)).await.unwrap();
        ready.send(()).unwrap();
        while let Ok((mut stream, _)) = listener.accept().await {
            let noted = Arc::clone(&noted);
            tokio::spawn(async move {
                let mut head = [0; 4096];
                let count = stream.read(&mut head).await.unwrap_or(0);
                let head = String::from_utf8_lossy(&head[..count]).into_owned();
                noted.lock().unwrap().push(head.split(' ').nth(1).unwrap_or_default().to_owned());
                let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nok").await;
            });
        }
    });
    listens.recv().unwrap();
    // It serves as long as its namespace is there.
    std::mem::forget(server);
    asked
}

fn get(pod: &Pod, host: &str, path: &str) -> Visit {
    let host = if host.contains(':') { format!("[{host}]") } else { host.to_owned() };
    let (mut client, url) = (pod.client(), format!("http://{host}:{PORT}{path}"));
    client.within = WITHIN;
    pod.run(client, move |client| async move { client.get(&url).await })
}

/// Asks for what the rule opens and for what it does not, over both families.
fn asks(world: &World, policy: &str, asked: &Asked) {
    let _agent = Agent::start(world, &Options::default().policies(&document("limited", policy))).unwrap();
    for host in VICTIMS {
        for (path, want) in [("/open", 200), ("/secret", 403)] {
            let visit = get(world.pod(ATTACKER), host, path);
            assert_eq!(visit.status(), Some(want), "{host}{path}: {:?}", visit.outcome);
        }
    }
    assert_eq!(*asked.lock().unwrap(), ["/open", "/open"], "what the server was asked for");
}

fn hairpin(world: &World, value: &str) {
    let lines = [ATTACKER, VICTIM]
        .map(|key| format!("link set {} type bridge_slave hairpin {value}", world.pod(key).interface));
    run_ip(world.node(), &lines);
}

#[test]
fn requests_of_a_neighbour_are_limited() {
    let world = bridged();
    let asked = serve(world.pod(VICTIM));
    asks(&world, LIMITED_CLIENT, &asked);
}

#[test]
fn requests_to_a_neighbour_are_limited() {
    let world = bridged();
    let asked = serve(world.pod(VICTIM));
    asks(&world, LIMITED_SERVER, &asked);
}

/// Ports that send back what came from them: a frame that is sent back in must not go round.
#[test]
fn requests_are_limited_behind_hairpins() {
    for policy in [LIMITED_CLIENT, LIMITED_SERVER] {
        let world = bridged();
        hairpin(&world, "on");
        let asked = serve(world.pod(VICTIM));
        asks(&world, policy, &asked);
    }
}

/// A frame to everybody is taken by neighbours whose address is in the packet.
#[test]
fn what_is_sent_to_everybody_reaches_the_proxy_alone() {
    let world = bridged();
    let _agent = Agent::start(&world, &Options::default().policies(&document("limited", LIMITED_CLIENT))).unwrap();
    let (attacker, victim) = (world.pod(ATTACKER), world.pod(VICTIM));
    let (sender, receiver) = (Link::open(&attacker.netns, "eth0").unwrap(), Link::open(&victim.netns, "eth0").unwrap());
    let opening = syn(sender.address(), attacker.ipv4(), ip(VICTIMS[0]));
    let honest = get(attacker, VICTIMS[0], "/open");
    assert!(honest.outcome.is_ok() || honest.status().is_none(), "{honest:?}");
    sender.send(&opening).unwrap();
    let is_it =
        |frame: &[u8]| frame.len() >= 54 && frame[26..38] == opening[26..38] && frame[44..48] == opening[44..48];
    let seen = receiver.receive(common::SILENT, is_it).unwrap();
    assert_eq!(seen, None, "the victim gets what the proxy was to read");
}

/// A packet to everybody on the link that opens a connection from port 40,000.
fn syn(from: [u8; 6], source: std::net::IpAddr, destination: std::net::IpAddr) -> Vec<u8> {
    let bytes = |address: std::net::IpAddr| match address {
        std::net::IpAddr::V4(address) => address.octets(),
        std::net::IpAddr::V6(_) => unreachable!("of IPv4"),
    };
    let [source, destination] = [source, destination].map(bytes);
    let mut head = [&[0x45, 0, 0, 40, 0, 7, 0x40, 0, 64, 6, 0, 0][..], &source, &destination].concat();
    let sum = checksum(&[&head]);
    head[10..12].copy_from_slice(&sum);
    let mut segment = vec![0x9c, 0x40, 0x1f, 0x90, 0, 0, 0, 77, 0, 0, 0, 0, 0x50, 2, 0xff, 0xff, 0, 0, 0, 0];
    let sum = checksum(&[&source, &destination, &[0, 6, 0, 20], &segment]);
    segment[16..18].copy_from_slice(&sum);
    [&[0xff; 6][..], &from, &[8, 0], &head, &segment].concat()
}

fn checksum(parts: &[&[u8]]) -> [u8; 2] {
    let words = parts.iter().flat_map(|part| part.chunks(2)).map(|pair| u32::from(pair[0]) << 8 | u32::from(pair[1]));
    let mut all: u32 = words.sum();
    while all > 0xffff {
        all = (all & 0xffff) + (all >> 16);
    }
    u16::try_from(all ^ 0xffff).unwrap().to_be_bytes()
}
