//! What passes and what does not, and what is told and counted of it.

use std::net::{SocketAddr, UdpSocket};
use std::time::Duration;

use namegate_abi::{Direction, PolicyKey, Reason, Verdict, address_flags, endpoint_flags, policy_verdict};
use namegate_engine::{Key, Row};

use crate::bench::{
    ANSWERED, DROPPED, ECHO, ENDPOINT, ENFORCED, OTHER_ECHO, POLICY, SCOPE, TCP, UDP, address, eventually, now_ns, run,
    socket, steps, verdict, wait_until,
};

#[test]
fn without_an_endpoint_row_nothing_passes() {
    run(|bench| {
        for to in ["198.51.100.7:7", "[2001:db8:7::7]:7"] {
            assert!(!bench.connects(to, DROPPED), "TCP to {to}");
            assert!(!bench.echoes(to, 100, DROPPED), "UDP to {to}");
        }
        assert_eq!(bench.told(), []);
        let counters = bench.datapath.borrow().counters().unwrap();
        assert!(counters.iter().all(|(_, reason, _)| *reason == Reason::NoEndpoint), "{counters:?}");
        assert!(bench.packets(Direction::Egress, Reason::NoEndpoint) > 0);
        assert_eq!(bench.datapath.borrow().flow_rows(), 0);
    });
}

#[test]
fn an_endpoint_without_policy_passes_and_its_flows_are_told() {
    run(|bench| {
        bench.enforce(0, 1);
        assert!(bench.echoes("198.51.100.7:7", 10, ANSWERED));
        let told = bench.told();
        assert_eq!(told.len(), 1, "{told:?}");
        assert_eq!((told[0].reason, told[0].verdict), (Reason::NoPolicy as u8, Verdict::Allowed as u8));
        assert_eq!(bench.packets(Direction::Ingress, Reason::Reply), 1);
        assert_eq!(bench.datapath.borrow().flow_rows(), 1);
    });
}

#[test]
fn a_denial_is_told_and_counted_with_its_addresses_and_ports() {
    run(|bench| {
        bench.enforce(ENFORCED, 1);
        for ip in ["198.51.100.7", "2001:db8:7::7"] {
            let (before_ns, counted) = (now_ns(), bench.packets(Direction::Egress, Reason::DefaultDeny));
            let to = socket(address(ip), OTHER_ECHO);
            assert!(!bench.echoes(&to.to_string(), 10, DROPPED), "{to}");
            let told = bench.told();
            assert_eq!(told.len(), 1, "{told:?}");
            let (record, pod) = (told[0], if to.is_ipv4() { bench.pod().ipv4() } else { bench.pod().ipv6() });
            assert_eq!((record.source.to_ip(), record.destination.to_ip()), (pod, to.ip()));
            assert_eq!((record.destination_port, record.protocol), (OTHER_ECHO, UDP));
            assert!(record.source_port != 0);
            assert_eq!((record.endpoint, record.identity, record.rule), (ENDPOINT, 2, 0));
            assert_eq!(record.length, 14 + if to.is_ipv4() { 20 } else { 40 } + 8 + 10);
            assert_eq!(record.reason, Reason::DefaultDeny as u8);
            assert_eq!((record.verdict, record.direction), (Verdict::Denied as u8, Direction::Egress as u8));
            assert!((before_ns..=now_ns()).contains(&record.time_ns), "{record:?}");
            assert_eq!(bench.packets(Direction::Egress, Reason::DefaultDeny), counted + 1);
        }
        assert_eq!(bench.datapath.borrow().flow_rows(), 0, "a denial leaves no flow");
    });
}

#[test]
fn a_deny_rule_is_named_and_is_no_default() {
    run(|bench| {
        bench.enforce(ENFORCED, 1);
        bench.allow(0, UDP, 0, 0, 1);
        bench.learn("198.51.100.7", 300, 0);
        bench.rule(300, (UDP, ECHO, 16), policy_verdict::DENY, 9, 0);
        assert!(!bench.echoes("198.51.100.7:7", 10, DROPPED));
        let told = bench.told_of(Reason::DenyRule);
        assert_eq!((verdict(&told), told[0].rule, told[0].identity), (Verdict::Denied, 9, 300));
        assert!(bench.echoes("198.51.100.8:7", 10, ANSWERED), "another peer");
    });
}

#[test]
fn addresses_prefixes_and_ports_open_what_they_say() {
    run(|bench| {
        bench.enforce(ENFORCED, 1);
        bench.learn("198.51.100.7", 300, 0);
        bench.learn("2001:db8:7::7", 300, 0);
        bench.allow(300, UDP, ECHO, 16, 1);
        bench.cidr("203.0.112.0/23", 301);
        bench.cidr("203.0.113.128/25", 302);
        bench.cidr("2001:db8:9::/48", 301);
        bench.allow(301, TCP, 0, 0, 2);
        // 7000 to 7007.
        bench.allow(0, UDP, 7_000, 13, 3);
        for (protocol, to, open) in [
            ("UDP", "198.51.100.7:7", true),
            ("UDP", "[2001:db8:7::7]:7", true),
            ("TCP", "198.51.100.7:7", false),
            ("UDP", "198.51.100.8:7", false),
            ("UDP", "[2001:db8:7::8]:7", false),
            ("TCP", "203.0.112.9:7", true),
            ("TCP", "203.0.113.9:7", true),
            ("TCP", "203.0.113.200:7", false),
            ("TCP", "203.0.114.9:7", false),
            ("TCP", "[2001:db8:9::1]:7007", true),
            ("TCP", "[2001:db8:a::1]:7007", false),
            ("UDP", "203.0.113.9:7", false),
            ("UDP", "192.0.2.55:7007", true),
            ("UDP", "[2001:db8:77::1]:7007", true),
        ] {
            let within = if open { ANSWERED } else { DROPPED };
            let passed = if protocol == "TCP" { bench.connects(to, within) } else { bench.echoes(to, 10, within) };
            assert_eq!(passed, open, "{protocol} to {to}");
        }
        let rules: Vec<u32> = bench.told_of(Reason::Rule).iter().map(|record| record.rule).collect();
        assert_eq!(rules, [1, 1, 2, 2, 2, 3, 3]);
    });
}

#[test]
fn icmp_is_judged_by_type_and_errors_by_what_they_quote() {
    run(|bench| {
        bench.enforce(ENFORCED, 1);
        bench.allow(0, 1, 8 << 8, 8, 1);
        bench.allow(0, 58, 128 << 8, 8, 1);
        for ip in ["198.51.100.7", "2001:db8:7::7"] {
            assert_eq!(bench.pod().ping(address(ip), 20, ANSWERED), Ok(()), "{ip}");
        }
        // Nobody serves port 9: the answer is an ICMP error of the outside, which opens nothing by itself.
        bench.allow(0, UDP, 9, 16, 2);
        for to in ["198.51.100.7:9", "[2001:db8:7::7]:9"] {
            let answer = bench.pod().echo(to.parse().unwrap(), 10, ANSWERED);
            assert_eq!(answer, Err(namegate_testbed::client::Failure::Refused), "{to}");
        }
        assert_eq!(bench.packets(Direction::Ingress, Reason::Related), 2);
        assert_eq!(bench.packets(Direction::Ingress, Reason::Reply), 2);
    });
}

#[test]
fn a_ttl_ends_at_its_moment_without_anybody_writing() {
    run(|bench| {
        bench.enforce(ENFORCED, 1);
        bench.allow(300, UDP, ECHO, 16, 1);
        let ends_ns = now_ns() + 600_000_000;
        bench.learn("198.51.100.7", 300, ends_ns);
        assert!(bench.echoes("198.51.100.7:7", 10, Duration::from_millis(500)), "before the end");
        wait_until(ends_ns);
        assert!(!bench.echoes("198.51.100.7:7", 10, DROPPED), "after the end");
        let told = bench.told();
        assert_eq!(told.len(), 2, "{told:?}");
        assert!(told[0].reason == Reason::Rule as u8 && told[0].time_ns < ends_ns, "{told:?}");
        assert!(told[1].reason == Reason::NameExpired as u8 && told[1].time_ns >= ends_ns, "{told:?}");
    });
}

#[test]
fn a_connection_outlives_its_ttl_and_ends_with_a_policy_that_denies_it() {
    run(|bench| {
        bench.enforce(ENFORCED, 1);
        bench.allow(300, TCP, ECHO, 16, 1);
        let ends_ns = now_ns() + 600_000_000;
        for ip in ["198.51.100.7", "2001:db8:7::7"] {
            bench.learn(ip, 300, ends_ns);
        }
        let open: [SocketAddr; 2] = ["198.51.100.7:7".parse().unwrap(), "[2001:db8:7::7]:7".parse().unwrap()];
        let peers = open.map(|to| bench.world.pod("test/pod").open(to, ANSWERED).unwrap());
        wait_until(ends_ns);
        for (to, peer) in open.iter().zip(&peers) {
            peer.say(b"after the TTL", ANSWERED).unwrap_or_else(|error| panic!("{to}: {error}"));
            assert!(!bench.connects(&to.to_string(), DROPPED), "a new connection to {to}");
        }
        bench.enforce(ENFORCED, 2);
        for (to, peer) in open.iter().zip(&peers) {
            peer.say(b"under a revision that allows it", ANSWERED).unwrap_or_else(|error| panic!("{to}: {error}"));
        }
        let key = PolicyKey::new(POLICY, Direction::Egress, 300, TCP, ECHO);
        bench.delete(Key::Policy(key.prefix_len(16), key));
        bench.enforce(ENFORCED, 3);
        for (to, peer) in open.iter().zip(&peers) {
            assert!(peer.say(b"under one that does not", DROPPED).is_err(), "{to}");
        }
    });
}

#[test]
fn a_connection_ends_where_its_peers_address_becomes_anothers_and_no_other_does() {
    run(|bench| {
        bench.enforce(ENFORCED, 1);
        bench.allow(300, TCP, ECHO, 16, 1);
        let open: [SocketAddr; 4] = ["198.51.100.7:7", "[2001:db8:7::7]:7", "198.51.100.8:7", "[2001:db8:7::8]:7"]
            .map(|to| to.parse().unwrap());
        let ends_ns = now_ns() + 600_000_000;
        for to in &open {
            bench.learn(&to.ip().to_string(), 300, ends_ns);
        }
        let peers = open.map(|to| bench.pod().open(to, ANSWERED).unwrap());
        wait_until(ends_ns);
        // The names are forgotten, as they are some time after their TTL.
        for to in &open {
            bench.delete(Key::Address(namegate_abi::AddressKey { scope: SCOPE, address: to.ip().into() }));
        }
        let placed = |to: &SocketAddr| namegate_abi::AddressKey { scope: 0, address: to.ip().into() };
        for to in &open[..2] {
            bench.put(Row::Address(placed(to), steps(&[(0, 257)])));
        }
        bench.move_peers(ENFORCED, 1, 2);
        for (to, peer) in open[..2].iter().zip(&peers[..2]) {
            assert!(peer.say(b"to a pod", DROPPED).is_err(), "{to}");
        }
        for (to, peer) in open[2..].iter().zip(&peers[2..]) {
            peer.say(b"to whom it was", ANSWERED).unwrap_or_else(|error| panic!("{to}: {error}"));
        }
    });
}

#[test]
fn a_source_that_is_not_the_endpoints_own_is_dropped() {
    run(|bench| {
        bench.enforce(ENFORCED, 1);
        bench.allow(0, UDP, 0, 0, 1);
        for (own, spoofed, to) in [
            ("10.244.1.10", "10.244.1.99", "198.51.100.7:7"),
            ("fd00:10:244:1::10", "fd00:10:244:1::99", "[2001:db8:7::7]:7"),
        ] {
            let options = if spoofed.contains(':') { vec!["nodad"] } else { vec![] };
            let added = [vec!["addr", "add", spoofed, "dev", "eth0"], options].concat();
            assert!(bench.pod().exec("ip", &added).unwrap().status.success());
            // Its own address first: the gateway's link address is known then, and asked for under no other.
            for (source, reason) in [(own, Reason::Rule), (spoofed, Reason::SpoofedSource)] {
                let (from, to) = (socket(address(source), 0), to.parse::<SocketAddr>().unwrap());
                bench.pod().netns.call(move || UdpSocket::bind(from).unwrap().send_to(b"x", to).unwrap());
                let told = bench.hear();
                assert_eq!(told.len(), 1, "{source}: {told:?}");
                assert_eq!((told[0].reason, told[0].source.to_ip()), (reason as u8, address(source)));
            }
        }
    });
}

#[test]
fn an_address_that_is_not_the_endpoints_own_is_not_resolved_with() {
    run(|bench| {
        bench.enforce(0, 1);
        let spoofed = "10.244.1.99";
        assert!(bench.pod().exec("ip", &["addr", "add", spoofed, "dev", "eth0"]).unwrap().status.success());
        let (from, to) = (socket(address(spoofed), 0), "198.51.100.7:7".parse::<SocketAddr>().unwrap());
        bench.pod().netns.call(move || UdpSocket::bind(from).unwrap().send_to(b"x", to).unwrap());
        let told = bench.hear();
        let reason = Reason::ForgedNeighbour as u8;
        assert_eq!((told[0].reason, told[0].source.to_ip()), (reason, address(spoofed)), "{told:?}");
        assert_eq!((told[0].destination.to_ip(), told[0].protocol), (address("169.254.1.1"), 0), "{told:?}");
    });
}

/// A type of ICMP that no rule is about does not ride on the flow of one that a rule allows, identifier 0 or not.
#[test]
fn icmp_of_one_type_opens_no_other() {
    run(|bench| {
        bench.enforce(ENFORCED, 1);
        bench.allow(0, 1, 8 << 8, 8, 1);
        bench.allow(0, 58, 128 << 8, 8, 1);
        for (ip, echo, reply) in [("198.51.100.7", 8, 0), ("2001:db8:7::7", 128, 129)] {
            let to = address(ip);
            let send = |kind: u8| {
                let protocol = if to.is_ipv4() { socket2::Protocol::ICMPV4 } else { socket2::Protocol::ICMPV6 };
                bench.pod().netns.call(move || {
                    let domain = socket2::Domain::for_address(socket(to, 0));
                    let raw = socket2::Socket::new(domain, socket2::Type::RAW, Some(protocol)).unwrap();
                    let mut message = [kind, 0, 0, 0, 0, 0, 0, 1];
                    if to.is_ipv4() {
                        let sum = !(u16::from_be_bytes([kind, 0]) + 1);
                        message[2..4].copy_from_slice(&sum.to_be_bytes());
                    }
                    raw.send_to(&message, &socket(to, 0).into()).unwrap();
                });
            };
            send(echo);
            let replies = || bench.packets(Direction::Ingress, Reason::Reply);
            let before = u64::from(!to.is_ipv4());
            eventually("the reply", || replies() > before);
            assert_eq!(bench.told_of(Reason::Rule).len(), 1, "{ip}");
            for kind in [reply, 13, 40, 200] {
                send(kind);
                let told = bench.hear();
                assert_eq!((told.len(), told[0].reason), (1, Reason::DefaultDeny as u8), "{ip} type {kind}: {told:?}");
            }
        }
    });
}

#[test]
fn fragments_follow_their_first() {
    run(|bench| {
        bench.enforce(ENFORCED, 1);
        bench.allow(0, UDP, ECHO, 16, 1);
        for to in ["198.51.100.7:7", "[2001:db8:7::7]:7"] {
            assert!(bench.echoes(to, 4_000, ANSWERED), "{to}");
        }
        for direction in [Direction::Egress, Direction::Ingress] {
            assert_eq!(bench.packets(direction, Reason::Fragment), 4, "{direction:?}: two of three, twice");
        }
        for to in ["198.51.100.7:7007", "[2001:db8:7::7]:7007"] {
            assert!(!bench.echoes(to, 4_000, DROPPED), "{to}");
        }
        assert_eq!(bench.packets(Direction::Egress, Reason::FragmentAlone), 4);
        assert_eq!(bench.packets(Direction::Egress, Reason::DefaultDeny), 2);
    });
}

#[test]
fn audit_records_and_drops_nothing() {
    run(|bench| {
        bench.enforce(ENFORCED | endpoint_flags::AUDIT, 1);
        for to in ["198.51.100.7:7", "[2001:db8:7::7]:7"] {
            assert!(bench.echoes(to, 4_000, ANSWERED), "UDP to {to}");
            assert!(bench.connects(to, ANSWERED), "TCP to {to}");
        }
        assert_eq!(verdict(&bench.told_of(Reason::DefaultDeny)), Verdict::Audited);
    });
}

#[test]
fn what_comes_in_is_judged_too_and_the_node_gets_in() {
    run(|bench| {
        let pod = bench.pod().ipv4();
        let server = bench.pod().netns.run(async move { tokio::net::TcpListener::bind((pod, 80)).await.unwrap() });
        bench.enforce(ENFORCED, 1);
        let outside = |bench: &crate::bench::Bench| {
            bench.world.outside().run(namegate_testbed::client::connect(socket(pod, 80), DROPPED)).is_ok()
        };
        assert!(!outside(&bench), "no rule");
        let told = bench.told_of(Reason::DefaultDeny);
        assert_eq!((told[0].direction, told[0].destination_port), (Direction::Ingress as u8, 80));
        let key = PolicyKey::new(POLICY, Direction::Ingress, 0, TCP, 80);
        let allow = namegate_abi::PolicyValue { verdict: policy_verdict::ALLOW, rule: 5, ..Default::default() };
        bench.put(Row::Policy(key.prefix_len(16), key, allow));
        assert!(outside(&bench), "a rule");
        bench.delete(Key::Policy(key.prefix_len(16), key));
        let node = namegate_abi::AddressKey { scope: 0, address: address("192.168.20.11").into() };
        let mut row = steps(&[(0, 1)]);
        row.flags = address_flags::LOCAL_HOST;
        bench.put(Row::Address(node, row));
        let from_node = std::net::TcpStream::connect_timeout(&socket(pod, 80), ANSWERED);
        assert!(from_node.is_ok(), "from the node: {from_node:?}");
        assert_eq!(bench.told_of(Reason::LocalHost).len(), 1);
        drop(server);
    });
}

#[test]
fn rows_of_another_scope_and_of_the_node_do_not_mix() {
    run(|bench| {
        bench.enforce(ENFORCED, 1);
        bench.allow(300, UDP, ECHO, 16, 1);
        let key = namegate_abi::AddressKey { scope: SCOPE + 1, address: address("198.51.100.7").into() };
        bench.put(Row::Address(key, steps(&[(0, 300)])));
        assert!(!bench.echoes("198.51.100.7:7", 10, DROPPED), "learned by another endpoint");
        bench.learn("198.51.100.7", 300, 0);
        assert!(bench.echoes("198.51.100.7:7", 10, ANSWERED), "learned by this one");
        let node = namegate_abi::AddressKey { scope: 0, ..key };
        bench.put(Row::Address(node, steps(&[(0, 257)])));
        assert!(!bench.echoes("198.51.100.7:7", 10, DROPPED), "of a pod: a name does not open it");
    });
}
