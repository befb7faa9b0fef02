//! A world without a gate: everything reaches everything. What fails here is the testbed's fault, not the gate's.
#![expect(clippy::unwrap_used, reason = "a test ends at the first surprise")]

use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use namegate_testbed::dns::{DnsFailure, Transport};
use namegate_testbed::proto::op::ResponseCode;
use namegate_testbed::proto::rr::RecordType;
use namegate_testbed::{ECHO_PORT, Failure, OTHER_ECHO_PORT, PodSpec, Protocol, Spec, World};

const WITHIN: Duration = Duration::from_secs(3);

fn empire() -> World {
    let pods = ["empire/tiefighter", "empire/deathstar-1", "kube-system/coredns-1"];
    World::build(Spec::empire().unwrap().only(&pods)).unwrap()
}

#[test]
fn pods_reach_each_other_and_the_outside_by_name() {
    let world = empire();
    let tiefighter = world.pod("empire/tiefighter");
    for (url, want) in [
        ("http://deathstar.empire.svc.cluster.local/v1", "deathstar-1"),
        ("http://10.244.1.12:8080/metrics", "deathstar-1"),
        ("http://[fd00:10:244:1::12]/version", "deathstar-1"),
        ("http://cilium.io/", "outside"),
        ("https://google.com/", "outside"),
        ("http://www.cilium.io/", "outside"),
        ("http://[2a00:1450:400f:80d::200e]/", "outside"),
    ] {
        let visit = tiefighter.http_get(url);
        let page = visit.outcome.unwrap_or_else(|failure| panic!("{url}: {failure}"));
        assert!(page.status == 200 && page.body.contains(want), "{url}: {page:?}");
    }
    let cilium: IpAddr = "104.198.14.52".parse().unwrap();
    assert_eq!(world.outside_log().count(cilium), 2, "cilium.io and its alias");
    let peers: Vec<_> = world.outside_log().all().iter().map(|entry| entry.peer.ip()).collect();
    assert!(peers.contains(&tiefighter.ipv4()) && peers.contains(&tiefighter.ipv6()), "no address is translated");
}

#[test]
fn the_node_and_the_outside_reach_pods() {
    let world = empire();
    let deathstar = world.pod("empire/deathstar-1");
    let (v4, v6) = (SocketAddr::new(deathstar.ipv4(), 80), SocketAddr::new(deathstar.ipv6(), 80));
    for netns in [world.node(), world.outside()] {
        for to in [v4, v6] {
            netns.run(async move { namegate_testbed::client::connect(to, WITHIN).await }).unwrap();
        }
    }
    // A connection is open before the server hears of it.
    let until = Instant::now() + WITHIN;
    while deathstar.log.all().len() < 4 && Instant::now() < until {
        std::thread::sleep(Duration::from_millis(1));
    }
    let peers: Vec<_> = deathstar.log.all().iter().map(|entry| entry.peer.ip().to_string()).collect();
    let from_node = ["192.168.20.11", "fd00:20::11"].iter().all(|address| peers.iter().any(|peer| peer == address));
    assert!(from_node && peers.len() == 4, "the node calls from its own address: {peers:?}");
}

#[test]
fn echoes_of_all_kinds_come_back() {
    let world = empire();
    let tiefighter = world.pod("empire/tiefighter");
    for address in ["198.51.100.9", "2001:db8::9"].map(|text| text.parse::<IpAddr>().unwrap()) {
        tiefighter.ping(address, 56, WITHIN).unwrap();
        tiefighter.ping(address, 4000, WITHIN).expect("fragments");
        tiefighter.echo(SocketAddr::new(address, ECHO_PORT), 100, WITHIN).unwrap();
        tiefighter.echo(SocketAddr::new(address, OTHER_ECHO_PORT), 6000, WITHIN).expect("fragments");
        let conversation = tiefighter.open(SocketAddr::new(address, ECHO_PORT), WITHIN).unwrap();
        conversation.say(b"one", WITHIN).unwrap();
        conversation.say(b"two", WITHIN).unwrap();
    }
}

#[test]
fn failures_are_told_apart() {
    let world = empire();
    let tiefighter = world.pod("empire/tiefighter");
    let closed = tiefighter.http_get("http://10.244.1.12:81/").outcome;
    assert_eq!(closed, Err(Failure::Refused));
    let unknown = tiefighter.http_get("http://nowhere.test/").outcome;
    assert_eq!(unknown, Err(Failure::Dns(DnsFailure::Code(ResponseCode::NXDomain))));
    assert_eq!(tiefighter.lookup("cilium.io", RecordType::AAAA).map(|_| ()), Err(DnsFailure::Empty));
    let silent = world.pod("empire/deathstar-1");
    silent.exec("ip", &["link", "set", "eth0", "down"]).unwrap();
    let lost = tiefighter.connect(SocketAddr::new(silent.ipv4(), 80), Duration::from_millis(300));
    assert_eq!(lost, Err(Failure::Timeout));
}

#[test]
fn the_resolver_follows_aliases_cuts_short_and_obeys_scripts() {
    use namegate_testbed::dns::Reply;
    let world = empire();
    let (zone, tiefighter) = (world.zone(), world.pod("empire/tiefighter"));

    for link in 0..8 {
        zone.set_alias(&format!("c{link}.chain.test"), 60, &format!("c{}.chain.test", link + 1));
    }
    zone.set_addresses("c8.chain.test", 30, &["203.0.113.8".parse().unwrap()]);
    let chain = tiefighter.lookup("c0.chain.test", RecordType::A).unwrap();
    assert_eq!((chain.message.answers.len(), chain.ttl), (9, 30));

    zone.script(|query| {
        let addresses = (0..600u32).map(|at| IpAddr::V4((0xc633_0000 + at).into()));
        (query.name == "many.test").then(|| Reply::addresses(query, 60, addresses))
    });
    let many = tiefighter.lookup("many.test", RecordType::A).unwrap();
    assert_eq!((many.addresses.len(), many.transport), (600, Transport::Tcp));

    zone.script(|query| (query.name == "slow.test").then(|| Reply::default().after(Duration::from_secs(9))));
    let mut client = tiefighter.client();
    client.dns_within = Duration::from_millis(200);
    let slow = tiefighter.run(client, |client| async move { client.lookup("slow.test").await.map(|_| ()) });
    assert_eq!(slow, Err(DnsFailure::Timeout));
    assert!(tiefighter.lookup("many.test", RecordType::A).is_ok(), "one slow answer holds up no other");
}

#[test]
fn two_worlds_live_side_by_side_and_leave_nothing() {
    let started = Instant::now();
    let names = || {
        let entries = std::fs::read_dir("/run/netns").into_iter().flatten().flatten();
        entries.filter_map(|entry| entry.file_name().into_string().ok()).collect::<Vec<_>>()
    };
    let (one, two) = (empire(), empire());
    assert!(started.elapsed() < Duration::from_secs(5), "two worlds took {:?}", started.elapsed());
    let ids = [one.id().to_owned(), two.id().to_owned()];
    assert_eq!(names().iter().filter(|name| name.starts_with(&ids[0])).count(), 5);
    for world in [&one, &two] {
        assert_eq!(world.pod("empire/tiefighter").http_get("http://cilium.io/").status(), Some(200));
    }
    let panicked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(move || {
        let _both = (one, two);
        panic!("a test fails");
    }));
    assert!(panicked.is_err());
    let left: Vec<_> = names().into_iter().filter(|name| ids.iter().any(|id| name.starts_with(id))).collect();
    assert!(left.is_empty(), "{left:?}");
}

#[test]
fn what_a_dead_run_left_behind_is_removed() {
    let dead = "ng4194304-0-node"; // Larger than any process number (`/proc/sys/kernel/pid_max`).
    let status = std::process::Command::new("ip").args(["netns", "add", dead]).status().unwrap();
    assert!(status.success());
    drop(World::build(Spec::default().with(PodSpec::new("a", "b", &["10.0.0.1".parse().unwrap()]))).unwrap());
    assert!(!std::path::Path::new("/run/netns").join(dead).exists());
}

#[test]
fn a_world_of_one_family_works() {
    let pods = [("a", "fd00::1"), ("b", "fd00::2")].map(|(name, ip)| PodSpec::new("x", name, &[ip.parse().unwrap()]));
    let [a, b] = pods;
    let world = World::build(Spec::default().with(a).with(b.serves(Protocol::Tcp, 80))).unwrap();
    assert_eq!(world.pod("x/a").http_get("http://[fd00::2]/v1").status(), Some(200));
    assert_eq!(world.pod("x/a").http_get("http://[2001:db8::1]/v1").status(), Some(200));
}
