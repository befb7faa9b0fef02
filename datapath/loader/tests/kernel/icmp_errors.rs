//! ICMP errors: each passes only with the flow whose packet it quotes. The frames were never on a wire.

use std::net::{IpAddr, SocketAddr, UdpSocket};

use namegate_abi::{Direction, NODE_INTERFACE, PolicyKey, Reason, endpoint_flags};
use namegate_engine::{Key, Row};
use namegate_loader::Directions;

use crate::bench::{ANSWERED, Bench, ENDPOINT, ENFORCED, POLICY, SCOPE, UDP, address, chain, run};
use crate::frames::{Frame, error_about, udp};

/// Own address, peer, another of the peer's family, and a router.
const WORLDS: [[&str; 4]; 2] = [
    ["10.244.1.10", "198.51.100.7", "198.51.100.8", "203.0.113.1"],
    ["fd00:10:244:1::10", "2001:db8:7::7", "2001:db8:7::8", "2001:db8:ff::1"],
];
const ASKED: u16 = 7;
const OWN: u16 = 40_000;

/// Opens the peers' port, sends one datagram to each, and closes it again without a new revision.
fn flows(bench: &Bench, flags: u32, interface: u32) {
    bench.enforce(flags, 1);
    let value =
        namegate_abi::EndpointValue { endpoint: ENDPOINT, policy: POLICY, scope: SCOPE, revision: 1, flags, moved: 0 };
    bench.put(Row::Endpoint(interface, value));
    bench.allow(0, UDP, ASKED, 16, 1);
}

fn close(bench: &Bench) {
    let key = PolicyKey::new(POLICY, Direction::Egress, 0, UDP, ASKED);
    bench.delete(Key::Policy(key.prefix_len(16), key));
}

impl Bench {
    fn passes(&self, direction: Direction, frame: &Frame) -> bool {
        self.datapath.borrow_mut().try_packet(direction, self.interface, &frame.0).unwrap()
    }

    fn node_passes(&self, direction: Direction, frame: &Frame) -> bool {
        self.datapath.borrow_mut().try_node_packet(direction, self.interface, &frame.0).unwrap()
    }
}

fn ips(world: [&str; 4]) -> [IpAddr; 4] {
    world.map(address)
}

#[test]
fn an_error_passes_only_where_it_fits_the_packet_it_quotes() {
    run(|bench| {
        flows(&bench, ENFORCED, bench.interface);
        for [own, peer, other, router] in WORLDS.map(ips) {
            let sent = udp((own, OWN), (peer, ASKED));
            let received = udp((peer, ASKED), (own, OWN));
            assert!(bench.passes(Direction::Egress, &sent), "{own}");
            let (into, out) = (Direction::Ingress, Direction::Egress);
            for (what, frame, direction, want) in [
                ("of the peer", error_about(peer, own, &sent), into, true),
                ("of a router", error_about(router, own, &sent), into, true),
                ("with eight octets of its header", error_about(router, own, &sent.cut(8)), into, true),
                ("cut short", error_about(router, own, &sent.cut(3)), into, false),
                ("to another", error_about(router, other, &sent), into, false),
                ("about an answer, coming in", error_about(router, own, &received), into, false),
                ("about an error", error_about(router, own, &error_about(own, peer, &received)), into, false),
                ("about an answer", error_about(own, peer, &received), out, true),
                ("about an answer, to another", error_about(own, other, &received), out, false),
                ("about an answer, from another", error_about(other, peer, &received), out, false),
                ("about a packet that went out", error_about(own, peer, &sent), out, false),
            ] {
                assert_eq!(bench.passes(direction, &frame), want, "{what}, {own}");
            }
        }
        assert_eq!(bench.packets(Direction::Ingress, Reason::Related), 6);
        assert_eq!(bench.packets(Direction::Egress, Reason::Related), 2);
        assert_eq!(bench.packets(Direction::Egress, Reason::SpoofedSource), 2);
    });
}

#[test]
fn an_error_does_not_outlive_the_rule_of_its_flow() {
    run(|bench| {
        flows(&bench, ENFORCED, bench.interface);
        for [own, peer, ..] in WORLDS.map(ips) {
            assert!(bench.passes(Direction::Egress, &udp((own, OWN), (peer, ASKED))));
        }
        let passing = |bench: &Bench| {
            WORLDS.map(ips).map(|[own, peer, ..]| {
                let error = error_about(peer, own, &udp((own, OWN), (peer, ASKED)));
                let answer = udp((peer, ASKED), (own, OWN));
                let unreachable = error_about(own, peer, &answer);
                [bench.passes(Direction::Ingress, &error), bench.passes(Direction::Egress, &unreachable)]
            })
        };
        bench.enforce(ENFORCED, 2);
        assert_eq!(passing(&bench), [[true; 2]; 2], "judged again under a rule that is there");
        close(&bench);
        bench.enforce(ENFORCED, 3);
        assert_eq!(passing(&bench), [[false; 2]; 2], "the rule is gone");
    });
}

#[test]
fn a_connection_of_the_node_gets_its_errors_and_raw_sockets_do_not() {
    run(|bench| {
        let refusal = bench.datapath.borrow().node_refusal().map(|error| chain(error));
        assert_eq!(refusal, None, "the programs for the node are loaded");
        flows(&bench, ENFORCED | endpoint_flags::NODE, NODE_INTERFACE);
        bench.datapath.borrow_mut().guard_node(Directions::Both).unwrap();
        for to in ["198.51.100.7:9", "[2001:db8:7::7]:9"] {
            bench.allow(0, UDP, 9, 16, 2);
            let to: SocketAddr = to.parse().unwrap();
            let socket = UdpSocket::bind(SocketAddr::new(namegate_testbed::client::any_of(to), 0)).unwrap();
            socket.connect(to).unwrap();
            socket.set_read_timeout(Some(ANSWERED)).unwrap();
            socket.send(b"x").unwrap();
            let error = socket.recv(&mut [0; 8]).unwrap_err();
            assert_eq!(error.kind(), std::io::ErrorKind::ConnectionRefused, "{to}");
            let own = socket.local_addr().unwrap();
            let error = error_about(to.ip(), own.ip(), &udp((own.ip(), own.port()), (to.ip(), to.port())));
            assert!(!bench.node_passes(Direction::Ingress, &error), "to a raw socket, {to}");
        }
        bench.datapath.borrow_mut().release_node().unwrap();
    });
}
