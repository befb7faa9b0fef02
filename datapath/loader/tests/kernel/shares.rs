//! Flows and fragments of one endpoint, however many, take nothing from another's. The frames were never on a wire.

use std::{
    net::IpAddr,
    thread,
    time::{Duration, Instant},
};

use namegate_abi::{AddressKey, AddressValue, Direction, EndpointValue, FlowLosses, Reason, endpoint_flags};
use namegate_engine::{Key, Row};
use namegate_loader::{Datapath, MapLimits, Options};

use crate::bench::{Bench, ENDPOINT, ENFORCED, LIMITS, POLICY, SCOPE, TCP, UDP, address, chain, run, steps};
use crate::frames::{Frame, fragment, tcp, udp};

/// Another endpoint than the bench's; its interface is the loopback interface, which every namespace has.
const OTHER: u32 = ENDPOINT + 1;
const OTHER_INTERFACE: u32 = 1;
/// Own address, the other endpoint's, and a peer.
const WORLDS: [[&str; 3]; 2] =
    [["10.244.1.10", "10.244.1.20", "198.51.100.7"], ["fd00:10:244:1::10", "fd00:10:244:1::20", "2001:db8:7::7"]];
/// Flows of an endpoint that is gone are forgotten beside other work.
const SWEPT_WITHIN: Duration = Duration::from_secs(30);
const SYN: u8 = 2;
const ACK: u8 = 16;

fn ips(world: [&str; 3]) -> [IpAddr; 3] {
    world.map(address)
}

impl Bench {
    /// Two endpoints that may send what they like.
    fn two(&self, flags: u32) {
        self.enforce(flags, 1);
        for [_, other, _] in WORLDS {
            let value = AddressValue { endpoint: OTHER, ..steps(&[(0, 256)]) };
            self.put(Row::Address(AddressKey { scope: 0, address: address(other).into() }, value));
        }
        let value = EndpointValue { endpoint: OTHER, policy: POLICY, scope: SCOPE, revision: 1, flags, moved: 0 };
        self.put(Row::Endpoint(OTHER_INTERFACE, value));
        self.allow(0, UDP, 0, 0, 1);
        self.allow(0, TCP, 0, 0, 1);
    }

    fn judges(&self, interface: u32, direction: Direction, frame: &Frame) -> bool {
        self.datapath.borrow_mut().try_packet(direction, interface, &frame.0).unwrap()
    }

    /// Waits until there are so few flows.
    fn swept(&self, most: u64) {
        let until = Instant::now() + SWEPT_WITHIN;
        while self.datapath.borrow().flow_rows() > most {
            assert!(Instant::now() < until, "{} flows", self.datapath.borrow().flow_rows());
            thread::sleep(Duration::from_millis(5));
        }
    }

    fn losses(&self, endpoint: u32) -> FlowLosses {
        let losses = self.datapath.borrow().flow_losses().unwrap();
        losses.into_iter().find(|(id, _)| *id == endpoint).map_or_else(FlowLosses::default, |(_, losses)| losses)
    }
}

const OUT: Direction = Direction::Egress;
const IN: Direction = Direction::Ingress;

#[test]
fn fragments_of_one_endpoint_leave_room_for_anothers() {
    run(|bench| {
        bench.two(ENFORCED);
        for [own, other, peer] in WORLDS.map(ips) {
            assert!(bench.judges(OTHER_INTERFACE, OUT, &fragment((other, 9), (peer, 7), 77, true)), "{other}");
            for id in 0..6_000 {
                assert!(bench.judges(bench.interface, OUT, &fragment((own, 9), (peer, 7), id, true)), "{own}");
            }
            assert!(bench.judges(OTHER_INTERFACE, OUT, &fragment((other, 9), (peer, 7), 77, false)), "{other}");
            assert!(bench.judges(bench.interface, OUT, &fragment((own, 9), (peer, 7), 5_999, false)), "its own last");
            assert!(!bench.judges(bench.interface, OUT, &fragment((own, 9), (peer, 7), 1, false)), "its own first");
            assert!(!bench.judges(OTHER_INTERFACE, OUT, &fragment((other, 9), (peer, 7), 5_999, false)), "another's");
            assert!(!bench.judges(OTHER_INTERFACE, IN, &fragment((peer, 9), (other, 7), 77, false)), "the other way");
        }
    });
}

#[test]
fn later_fragments_have_an_own_source_whatever_is_enforced() {
    run(|bench| {
        bench.two(endpoint_flags::ENFORCE_INGRESS);
        for [own, other, peer] in WORLDS.map(ips) {
            assert!(bench.judges(bench.interface, OUT, &fragment((own, 9), (peer, 7), 1, false)), "{own}");
            assert!(!bench.judges(bench.interface, OUT, &fragment((other, 9), (peer, 7), 1, false)), "{other}");
        }
        assert_eq!(bench.packets(OUT, Reason::SpoofedSource), 2);
    });
}

#[test]
fn flows_of_one_endpoint_take_nothing_from_anothers_nor_from_its_own_connections() {
    const SHARE: u64 = 512;
    run(|bench| {
        bench.two(ENFORCED);
        let [[own, other, peer], [own_six, other_six, peer_six]] = WORLDS.map(ips);
        let connections = [
            (bench.interface, own, peer),
            (bench.interface, own_six, peer_six),
            (OTHER_INTERFACE, other, peer),
            (OTHER_INTERFACE, other_six, peer_six),
        ];
        for (interface, from, to) in connections {
            assert!(bench.judges(interface, OUT, &tcp((from, 9), (to, 80), SYN)), "{from}");
            assert!(bench.judges(interface, IN, &tcp((to, 80), (from, 9), SYN | ACK)), "{from}");
            assert!(bench.judges(interface, OUT, &tcp((from, 9), (to, 80), ACK)), "{from}");
        }
        let is_known = |bench: &Bench| {
            for (interface, from, to) in connections {
                assert!(bench.judges(interface, IN, &tcp((to, 80), (from, 9), ACK)), "{from}");
            }
        };
        for port in 1..=4_000 {
            let flood =
                if port % 2 == 0 { udp((own, port), (peer, 7)) } else { tcp((own_six, port), (peer_six, 7), SYN) };
            assert!(bench.judges(bench.interface, OUT, &flood));
        }
        is_known(&bench);
        let rows = bench.datapath.borrow().flow_rows();
        assert!(rows > 2 + SHARE / 2 && rows <= 2 + SHARE, "{rows}");
        let lost = bench.losses(ENDPOINT);
        assert!(lost.evicted >= 4_000 - SHARE && lost.refused == 0, "{lost:?}");
        assert_eq!(bench.losses(OTHER), FlowLosses::default());

        // What is counted and remembered outlives the agent.
        let reopen = |limits| {
            let options = Options { limits, ..bench.options.clone() };
            Datapath::open(&options).unwrap_or_else(|error| panic!("{}", chain(&error)))
        };
        bench.datapath.replace(reopen(LIMITS));
        is_known(&bench);
        assert_eq!(bench.losses(ENDPOINT), lost);
        assert_eq!(bench.datapath.borrow().flow_rows(), rows);
        // A smaller share forgets what is past it.
        bench.datapath.replace(reopen(MapLimits { flows_per_endpoint: 16, ..LIMITS }));
        assert!(bench.datapath.borrow().flow_rows() <= 32);
        // A gone endpoint leaves nothing.
        bench.datapath.replace(reopen(LIMITS));
        bench.delete(Key::Endpoint(bench.interface));
        assert_eq!(bench.losses(ENDPOINT), FlowLosses::default());
        bench.swept(2);
    });
}

#[test]
fn flows_of_an_endpoint_that_is_gone_are_forgotten_and_no_others() {
    const FLOWS: u16 = 8;
    run(|bench| {
        bench.two(ENFORCED);
        let [own, other, peer] = ips(WORLDS[0]);
        for port in 1..=FLOWS {
            assert!(bench.judges(bench.interface, OUT, &tcp((own, port), (peer, 80), SYN)));
            assert!(bench.judges(OTHER_INTERFACE, OUT, &tcp((other, port), (peer, 80), SYN)));
        }
        assert_eq!(bench.datapath.borrow().flow_rows(), 2 * u64::from(FLOWS));
        bench.delete(Key::Endpoint(bench.interface));
        bench.swept(FLOWS.into());
        for port in 1..=FLOWS {
            assert!(bench.judges(OTHER_INTERFACE, IN, &tcp((peer, 80), (other, port), SYN | ACK)), "{port}");
        }
        assert_eq!(bench.datapath.borrow().flow_rows(), u64::from(FLOWS));
    });
}

#[test]
fn a_flow_that_is_over_gives_its_slot_back_without_a_loss() {
    run(|bench| {
        bench.two(ENFORCED);
        let limits = MapLimits { flows_per_endpoint: 16, ..LIMITS };
        let options = Options { limits, ..bench.options.clone() };
        bench.datapath.replace(Datapath::open(&options).unwrap_or_else(|error| panic!("{}", chain(&error))));
        let [own, _, peer] = ips(WORLDS[0]);
        for port in 1..=16 {
            assert!(bench.judges(bench.interface, OUT, &tcp((own, port), (peer, 80), SYN)));
        }
        // The same ports again: their flows are there, and take no other slot.
        for port in 1..=16 {
            assert!(bench.judges(bench.interface, OUT, &tcp((own, port), (peer, 80), SYN)));
        }
        assert_eq!(bench.losses(ENDPOINT), FlowLosses::default());
        assert_eq!(bench.datapath.borrow().flow_rows(), 16);
        bench.datapath.borrow_mut().forget_flows().unwrap();
        for port in 17..=32 {
            assert!(bench.judges(bench.interface, OUT, &udp((own, port), (peer, 80))));
        }
        assert_eq!(bench.losses(ENDPOINT), FlowLosses::default());
        assert!(bench.judges(bench.interface, OUT, &udp((own, 33), (peer, 80))));
        assert_eq!(bench.losses(ENDPOINT), FlowLosses { evicted: 1, refused: 0 });
        assert_eq!(bench.datapath.borrow().flow_rows(), 16);
    });
}
