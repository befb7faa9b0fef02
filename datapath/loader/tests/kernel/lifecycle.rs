//! Opening again, sizes, and what the agent's death leaves.

use std::fs;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use aya::programs::{SchedClassifier, TcAttachType};
use namegate_abi::{
    AddressKey, AddressValue, CidrKey, CidrValue, Direction, EndpointValue, PolicyKey, PolicyValue, Reason, map_names,
};
use namegate_engine::{GateError, MapOp, MapWriter, Row};
use namegate_loader::{Datapath, Directions, LoadError, MapLimits, Options};

use crate::bench::{
    ANSWERED, Bench, DROPPED, ECHO, ENDPOINT, ENFORCED, LIMITS, POLICY, SCOPE, TCP, UDP, address, chain, eventually,
    run, steps, wait_until,
};

/// More than the ring has room for.
const PACKETS: u64 = 80_000;

/// Makes a row from a number.
type MakeRow<'a> = &'a dyn Fn(u32) -> Row;

/// Allows UDP echoes to two peers.
fn open_two(bench: &Bench) {
    bench.enforce(ENFORCED, 1);
    bench.learn("198.51.100.7", 300, 0);
    bench.cidr("2001:db8:7::/48", 300);
    bench.allow(300, UDP, ECHO, 16, 1);
    bench.put(Row::Resolver(address("198.51.100.53").into()));
}

/// Waits until the kernel has let go of the program on one side of the pod's interface.
fn wait_until_off(bench: &Bench, hook: TcAttachType) {
    let programs = || SchedClassifier::query_tcx(&bench.pod().interface, hook).unwrap().1;
    eventually("the program is off", || programs().is_empty());
}

fn rows(datapath: &Datapath) -> Vec<Row> {
    let mut rows = datapath.rows().unwrap();
    rows.sort();
    rows
}

fn reopen(options: &Options) -> Datapath {
    Datapath::open(options).unwrap_or_else(|error| panic!("{}", chain(&error)))
}

#[test]
fn opening_again_takes_over_rows_and_links_without_a_gap() {
    run(|bench| {
        open_two(&bench);
        let before = rows(&bench.datapath.borrow());
        assert_eq!(before.len(), 7);
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = stop.clone();
        let stream = bench.pod().netns.spawn(async move {
            let allowed = tokio::net::UdpSocket::bind("0.0.0.0:0").await.unwrap();
            allowed.connect("198.51.100.7:7").await.unwrap();
            let denied = tokio::net::UdpSocket::bind("0.0.0.0:0").await.unwrap();
            denied.connect("198.51.100.8:7").await.unwrap();
            let (mut sent, mut lost) = (0_u32, 0_u32);
            while !stopped.load(Ordering::Relaxed) {
                denied.send(&[0; 8]).await.unwrap();
                allowed.send(&[1; 8]).await.unwrap();
                let back = tokio::time::timeout(Duration::from_secs(2), allowed.recv(&mut [0; 16])).await;
                (sent, lost) = (sent + 1, lost + u32::from(back.is_err()));
            }
            let leaked = denied.try_recv(&mut [0; 16]).is_ok();
            (sent, lost, leaked)
        });
        for _ in 0..10 {
            let mut again = reopen(&bench.options);
            assert_eq!(again.attached().unwrap(), [bench.interface]);
            again.attach(bench.interface, Directions::Both).unwrap();
            assert_eq!(rows(&again), before);
            bench.datapath.replace(again);
        }
        stop.store(true, Ordering::Relaxed);
        let (sent, lost, leaked) = stream.wait();
        assert!(sent > 100, "{sent} packets are too few to show a gap");
        assert_eq!((lost, leaked), (0, false), "of {sent}");
        let denied = bench.packets(Direction::Egress, Reason::DefaultDeny);
        assert_eq!(denied, u64::from(sent), "each was denied, and the counters were kept");
    });
}

/// Numbers of the programs on both sides of the pod's interface.
fn attached_programs(bench: &Bench) -> Vec<u32> {
    let on = |hook| SchedClassifier::query_tcx(&bench.pod().interface, hook).unwrap().1;
    [TcAttachType::Ingress, TcAttachType::Egress].into_iter().flat_map(on).map(|program| program.id()).collect()
}

#[test]
fn programs_are_loaded_again_only_where_something_changed() {
    run(|bench| {
        open_two(&bench);
        let folders = || -> Vec<PathBuf> {
            fs::read_dir(bench.options.pins.join("programs")).unwrap().map(|folder| folder.unwrap().path()).collect()
        };
        let first = attached_programs(&bench);
        assert_eq!((first.len(), folders().len()), (2, 1));
        bench.datapath.replace(reopen(&bench.options));
        assert_eq!(attached_programs(&bench), first, "the same programs stay");

        // Another version left its own, and one of ours is no program at all.
        let other = bench.options.pins.join("programs/0000000000000000");
        let from = folders()[0].join("from_endpoint");
        fs::create_dir(&other).unwrap();
        fs::rename(&from, other.join("from_endpoint")).unwrap();
        fs::hard_link(bench.options.pins.join(map_names::RESOLVERS), &from).unwrap();
        bench.datapath.replace(reopen(&bench.options));
        assert!(!other.exists(), "{:?}", folders());
        let second = attached_programs(&bench);
        assert_ne!(second[0], first[0], "it was loaded");
        assert_eq!(second[1], first[1], "it was kept");

        let limits = MapLimits { addresses: 100, ..LIMITS };
        bench.datapath.replace(reopen(&Options { limits, ..bench.options.clone() }));
        let third = attached_programs(&bench);
        assert!(third.iter().all(|id| !second.contains(id)), "they read another map: {third:?} after {second:?}");
        assert!(bench.echoes("198.51.100.7:7", 10, ANSWERED));
        assert!(!bench.echoes("198.51.100.8:7", 10, DROPPED));
    });
}

#[test]
fn enforcement_outlives_the_agent() {
    run(|bench| {
        open_two(&bench);
        let Bench { datapath, events, world, pins: _pins, .. } = bench;
        drop((datapath, events));
        let pod = world.pod("test/pod");
        assert_eq!(pod.echo("198.51.100.7:7".parse().unwrap(), 10, ANSWERED), Ok(()));
        assert!(pod.echo("198.51.100.8:7".parse().unwrap(), 10, DROPPED).is_err());
        assert_eq!(pod.echo("[2001:db8:7::7]:7".parse().unwrap(), 10, ANSWERED), Ok(()));
    });
}

#[test]
fn a_map_of_another_size_is_replaced_with_its_rows() {
    run(|bench| {
        open_two(&bench);
        assert!(bench.echoes("198.51.100.7:7", 10, ANSWERED));
        let before = rows(&bench.datapath.borrow());
        let limits = MapLimits {
            addresses: 100,
            policy_rows: 100,
            cidrs: 100,
            flows: 2_048,
            flows_per_endpoint: 2_048,
            endpoints: 16,
        };
        let again = reopen(&Options { limits, ..bench.options.clone() });
        assert_eq!(rows(&again), before);
        assert_eq!(again.flow_rows(), 1, "flows came along");
        bench.datapath.replace(again);
        assert!(bench.echoes("198.51.100.7:7", 10, ANSWERED));
        assert!(!bench.echoes("198.51.100.8:7", 10, DROPPED));
        // The new maps count, not the old ones: a row written now is seen by the attached programs.
        bench.learn("198.51.100.8", 300, 0);
        assert!(bench.echoes("198.51.100.8:7", 10, ANSWERED));
        let left: Vec<_> = fs::read_dir(&bench.options.pins).unwrap().map(|file| file.unwrap().file_name()).collect();
        assert_eq!(left.len(), 18, "sixteen maps, the links and the programs: {left:?}");
    });
}

#[test]
fn a_limit_below_the_rows_in_use_is_refused_and_changes_nothing() {
    run(|bench| {
        open_two(&bench);
        let before = rows(&bench.datapath.borrow());
        // `ENDPOINTS` is replaced first, and must be put back.
        let limits = MapLimits { endpoints: 16, addresses: 2, ..LIMITS };
        let error = Datapath::open(&Options { limits, ..bench.options.clone() }).unwrap_err();
        let LoadError::Shrunk { map, rows: in_use, rows_max, setting } = error else { panic!("{error}") };
        assert_eq!((map, in_use, rows_max, setting), (map_names::ADDRESSES, 3, 2, "limits.addresses"));
        assert_eq!(rows(&reopen(&bench.options)), before);
        assert!(!bench.echoes("198.51.100.8:7", 10, DROPPED));
    });
}

#[test]
fn a_replacement_that_was_cut_short_is_taken_up_again() {
    run(|bench| {
        open_two(&bench);
        let before = rows(&bench.datapath.borrow());
        for map in [map_names::ADDRESSES, map_names::POLICY] {
            let pin = bench.options.pins.join(map);
            fs::rename(&pin, bench.options.pins.join(format!("{map}-old"))).unwrap();
        }
        assert_eq!(rows(&reopen(&bench.options)), before);
    });
}

#[test]
fn a_map_of_another_layout_is_refused_and_stays_in_force() {
    run(|bench| {
        open_two(&bench);
        let pins = &bench.options.pins;
        fs::rename(pins.join(map_names::RESOLVERS), pins.join("aside")).unwrap();
        fs::rename(pins.join(map_names::ENDPOINTS), pins.join(map_names::RESOLVERS)).unwrap();
        let error = Datapath::open(&bench.options).unwrap_err();
        assert!(matches!(&error, LoadError::Layout { path } if path.ends_with(map_names::RESOLVERS)), "{error}");
        assert!(bench.echoes("198.51.100.7:7", 10, ANSWERED));
        assert!(!bench.echoes("198.51.100.8:7", 10, DROPPED));
    });
}

#[test]
fn a_full_map_refuses_the_row_and_names_its_setting() {
    run(|bench| {
        open_two(&bench);
        let address_row = |at: u32| {
            let ip = std::net::Ipv4Addr::from(at);
            Row::Address(AddressKey { scope: 1, address: std::net::IpAddr::from(ip).into() }, steps(&[(0, 256)]))
        };
        let cidr_row = |at: u32| {
            let ip = std::net::Ipv4Addr::from(at << 8);
            Row::Cidr(120, CidrKey { address: std::net::IpAddr::from(ip).into() }, CidrValue { identity: 256 })
        };
        let policy_row = |at: u32| {
            let key = PolicyKey::new(1, Direction::Egress, at, 6, 80);
            Row::Policy(96, key, PolicyValue::default())
        };
        let endpoint_row = |at: u32| Row::Endpoint(at + 1_000, EndpointValue::default());
        let resolver_row = |at: u32| Row::Resolver(std::net::IpAddr::from(std::net::Ipv4Addr::from(at)).into());
        let kinds: [(MakeRow<'_>, &str, u32, &str); 5] = [
            (&address_row, "ADDRESSES", 64, "limits.addresses"),
            (&cidr_row, "CIDRS", 64, "limits.cidrs"),
            (&policy_row, "POLICY", 64, "limits.policyRows"),
            (&endpoint_row, "ENDPOINTS", 8, "limits.endpoints"),
            (&resolver_row, "RESOLVERS", 1_024, "dns.resolvers"),
        ];
        for (row, name, size, wanted) in kinds {
            let mut datapath = bench.datapath.borrow_mut();
            let error = (1..=size + 1).find_map(|at| datapath.write(&MapOp::Put(row(at))).err());
            let Some(GateError::Full { map, rows_max, setting }) = error else { panic!("{name}: {error:?}") };
            assert_eq!((map, rows_max, setting), (name, size, wanted));
            datapath.write(&MapOp::Put(row(1))).unwrap_or_else(|error| panic!("{name}: a row that is there: {error}"));
            datapath.write(&MapOp::Delete(row(1).key())).unwrap();
            datapath.write(&MapOp::Delete(row(1).key())).unwrap_or_else(|error| panic!("{name}: twice: {error}"));
            datapath.write(&MapOp::Put(row(size + 1))).unwrap_or_else(|error| panic!("{name}: room again: {error}"));
        }
        assert!(bench.echoes("198.51.100.7:7", 10, ANSWERED), "the old rows stay");
    });
}

#[test]
fn detaching_ends_enforcement_and_a_direction_can_be_left_out() {
    run(|bench| {
        open_two(&bench);
        let attach = |directions| bench.datapath.borrow_mut().attach(bench.interface, directions).unwrap();
        assert!(!bench.echoes("198.51.100.8:7", 10, DROPPED));
        attach(Directions::Ingress);
        wait_until_off(&bench, TcAttachType::Ingress);
        assert!(!bench.echoes("198.51.100.8:7", 10, DROPPED), "the answer is denied now");
        assert_eq!(bench.packets(Direction::Ingress, Reason::DefaultDeny), 1);
        attach(Directions::Egress);
        wait_until_off(&bench, TcAttachType::Egress);
        assert!(bench.echoes("198.51.100.7:7", 10, ANSWERED));
        assert_eq!(bench.packets(Direction::Ingress, Reason::Reply), 0);
        bench.datapath.borrow_mut().detach(bench.interface).unwrap();
        assert!(bench.datapath.borrow().attached().unwrap().is_empty());
        wait_until_off(&bench, TcAttachType::Ingress);
        assert!(bench.echoes("198.51.100.8:7", 10, ANSWERED));
        bench.datapath.borrow_mut().detach(bench.interface).unwrap();
        let error = bench.datapath.borrow_mut().attach(999_999, Directions::Both).unwrap_err();
        assert!(matches!(error, LoadError::NoInterface { interface: 999_999 }), "{error}");
    });
}

#[test]
fn links_of_interfaces_that_are_gone_are_forgotten() {
    run(|bench| {
        let link = bench.pod().interface.clone();
        let deleted = std::process::Command::new("ip").args(["link", "delete", &link]).status().unwrap();
        assert!(deleted.success());
        assert!(reopen(&bench.options).attached().unwrap().is_empty());
    });
}

#[test]
fn records_that_find_no_room_are_counted() {
    run(|bench| {
        bench.enforce(ENFORCED, 1);
        bench.pod().netns.call(|| {
            let socket = std::net::UdpSocket::bind("0.0.0.0:0").unwrap();
            socket.connect("198.51.100.7:9").unwrap();
            for _ in 0..PACKETS {
                socket.send(&[0; 8]).unwrap();
            }
        });
        eventually("every packet was judged", || bench.packets(Direction::Egress, Reason::DefaultDeny) == PACKETS);
        let lost = bench.datapath.borrow().events_lost().unwrap();
        assert!(lost > 0, "the ring is too large for this test");
        assert_eq!(bench.told().len() as u64 + lost, PACKETS);
        // With the endpoint's next second there is room again.
        eventually("a record", || !bench.echoes("198.51.100.7:7", 10, DROPPED) && !bench.told().is_empty());
    });
}

#[test]
fn records_of_one_endpoint_leave_room_for_those_of_another() {
    const OTHER: u32 = ENDPOINT + 1;
    run(|bench| {
        bench.enforce(ENFORCED, 1);
        bench.pod().netns.call(|| {
            let socket = std::net::UdpSocket::bind("0.0.0.0:0").unwrap();
            socket.connect("198.51.100.7:9").unwrap();
            for _ in 0..PACKETS {
                socket.send(&[0; 8]).unwrap();
            }
        });
        eventually("every packet was judged", || bench.packets(Direction::Egress, Reason::DefaultDeny) == PACKETS);
        // From now on the interface is another endpoint's; nothing was read so far.
        for ip in bench.pod().spec.ips.clone() {
            let value = AddressValue { endpoint: OTHER, ..steps(&[(0, 256)]) };
            bench.put(Row::Address(AddressKey { scope: 0, address: ip.into() }, value));
        }
        let value = EndpointValue {
            endpoint: OTHER,
            policy: POLICY,
            scope: SCOPE,
            revision: 1,
            flags: ENFORCED,
            ..EndpointValue::default()
        };
        bench.put(Row::Endpoint(bench.interface, value));
        assert!(!bench.echoes("198.51.100.7:7", 10, DROPPED));
        let told = bench.told();
        assert_eq!(told.iter().filter(|record| record.endpoint == OTHER).count(), 1, "of {}", told.len());
        let rates = bench.datapath.borrow().rates();
        let lost = |endpoint| rates.iter().find(|(of, _)| *of == endpoint).map(|(_, rate)| rate.records_lost);
        assert_eq!(lost(OTHER), Some(0));
        assert!(lost(ENDPOINT).is_some_and(|lost| lost > PACKETS / 2), "{rates:?}");
    });
}

#[test]
fn events_wake_a_waiting_task() {
    run(|bench| {
        bench.enforce(ENFORCED, 1);
        let Bench { datapath, events, world, pins: _pins, .. } = bench;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let mut events = events.into_inner().into_async().unwrap();
            let sent = world.pod("test/pod").netns.spawn(async {
                tokio::net::UdpSocket::bind("0.0.0.0:0").await.unwrap().send_to(b"x", "198.51.100.7:9").await
            });
            let mut guard = tokio::time::timeout(ANSWERED, events.readable_mut()).await.unwrap().unwrap();
            let record = guard.get_inner_mut().next().unwrap();
            assert_eq!((record.destination_port, record.reason), (9, Reason::DefaultDeny as u8));
            assert_eq!(guard.get_inner_mut().next(), None);
            while !sent.is_finished() {
                tokio::task::yield_now().await;
            }
        });
        drop((runtime, datapath));
    });
}

#[test]
fn a_handshake_on_the_ports_of_an_old_connection_is_judged_anew() {
    run(|bench| {
        bench.enforce(ENFORCED, 1);
        bench.allow(300, TCP, ECHO, 16, 1);
        let ends_ns = crate::bench::now_ns() + 400_000_000;
        bench.learn("198.51.100.7", 300, ends_ns);
        let from = 40_000;
        let first = namegate_testbed::client::connect_from(from, "198.51.100.7:7".parse().unwrap(), ANSWERED);
        bench.pod().netns.run(first).unwrap();
        wait_until(ends_ns);
        // The same ports again: the row of the old flow is there, and a new handshake is judged anew.
        let again = namegate_testbed::client::connect_from(from, "198.51.100.7:7".parse().unwrap(), DROPPED);
        assert!(bench.pod().netns.run(again).is_err());
        assert!(!bench.told_of(Reason::NameExpired).is_empty());
    });
}
