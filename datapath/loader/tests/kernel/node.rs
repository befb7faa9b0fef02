//! Interfaces and routes of the node.

use std::path::Path;
use std::process::Command;

use namegate_loader::links::{self, LinkChange, LinkWatch};
use namegate_loader::upkeep::Upkeep;
use namegate_loader::{Directions, PinsLock, netns, routes, untracked};
use nix::sys::resource::{Resource, getrlimit, setrlimit};

use crate::bench::{ANSWERED, SETTINGS, run};

fn ip(arguments: &[&str]) -> String {
    let output = Command::new("ip").args(arguments).output().unwrap();
    assert!(output.status.success(), "ip {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn an_interface_is_found_by_name_and_by_its_pod() {
    run(|bench| {
        assert_eq!(links::index_of(&bench.pod().interface).unwrap(), Some(bench.interface));
        assert_eq!(links::index_of("no-such").unwrap(), None);
        assert_eq!(links::by_index(bench.interface).unwrap().unwrap().name, bench.pod().interface);
        assert_eq!(links::by_index(999_999).unwrap(), None);
        let path = bench.pod().netns.path();
        let found = || links::leading_to(&path).unwrap();
        assert_eq!(found(), Some(vec![bench.interface]));
        assert_eq!(links::leading_to(Path::new("/run/netns/no-such")).unwrap(), None);
        assert!(links::leading_to(Path::new("/dev/null")).is_err(), "not a namespace");
        // Nothing that a pod can do inside changes what leads there.
        let pod = |arguments: &str| {
            let words: Vec<&str> = ["-n", bench.pod().netns.name()].into_iter().chain(arguments.split(' ')).collect();
            ip(&words)
        };
        for arguments in [
            "route delete default",
            "-6 route delete default",
            "addr flush dev eth0",
            "link set eth0 down",
            "link set eth0 name other0",
            "link add decoy2 index 77 type veth peer name decoy",
            "link add link other0 name below type macvlan",
        ] {
            pod(arguments);
            assert_eq!(found(), Some(vec![bench.interface]), "after `{arguments}`");
        }
        pod("link delete other0");
        assert_eq!(found(), Some(vec![]), "the namespace is there, and no link leads to it");
    });
}

/// Runs a part of a test with a limit on descriptors that are all in use.
fn without_descriptors<T>(part: impl FnOnce() -> T) -> T {
    // The process shares its limit: other tests run in processes of their own, or wait for a while.
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
    setrlimit(Resource::RLIMIT_NOFILE, 3, hard).unwrap();
    let result = part();
    setrlimit(Resource::RLIMIT_NOFILE, soft, hard).unwrap();
    result
}

#[test]
fn a_look_up_without_descriptors_is_an_error_and_no_absence() {
    // In a process of its own: the limit is that of all threads.
    const ALONE: &str = "NAMEGATE_TEST_ALONE";
    if std::env::var_os(ALONE).is_none() {
        let own = std::env::current_exe().unwrap();
        let name = "node::a_look_up_without_descriptors_is_an_error_and_no_absence";
        let output = Command::new(own).args(["--exact", name, "--nocapture"]).env(ALONE, "1").output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        return;
    }
    run(|bench| {
        let name = bench.pod().interface.clone();
        let netns = bench.pod().netns.path();
        let links = links::Links::read().unwrap();
        let used_up = |result: Option<i32>| assert_eq!(result, Some(libc::EMFILE));
        without_descriptors(|| {
            used_up(links::index_of(&name).unwrap_err().raw_os_error());
            used_up(links::by_index(bench.interface).unwrap_err().raw_os_error());
            used_up(links::leading_to(&netns).unwrap_err().raw_os_error());
            used_up(links.leading_to(&netns).unwrap_err().raw_os_error());
            used_up(netns::inside(&links, &netns).unwrap_err().raw_os_error());
            used_up(netns::own().unwrap_err().raw_os_error());
            let mut datapath = bench.datapath.borrow_mut();
            assert!(datapath.attached().is_err(), "links that cannot be listed are not gone");
            let error = datapath.attach(bench.interface, Directions::Both).unwrap_err();
            assert!(!error.is_gone(), "{error}");
            assert!(datapath.inspector().interface(bench.interface, Directions::Both).is_err());
            assert!(datapath.inspector().maps().is_err());
        });
        let mut datapath = bench.datapath.borrow_mut();
        assert_eq!(datapath.attached().unwrap(), [bench.interface]);
        datapath.attach(bench.interface, Directions::Both).unwrap();
        assert_eq!(datapath.inspector().interface(bench.interface, Directions::Both).unwrap(), []);
    });
}

#[test]
fn interfaces_that_come_and_go_are_told() {
    run(|_bench| {
        let mut watch = LinkWatch::new().unwrap();
        assert_eq!(watch.next().unwrap(), None);
        ip(&["link", "add", "ng-a", "type", "veth", "peer", "name", "ng-b"]);
        let index = links::index_of("ng-a").unwrap().unwrap();
        ip(&["link", "delete", "ng-a"]);
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let seen = runtime.block_on(async {
            let mut watch = watch.into_async().unwrap();
            let mut seen = Vec::new();
            let gone = LinkChange::Gone { index, name: "ng-a".to_owned() };
            while !seen.contains(&gone) {
                let mut guard = tokio::time::timeout(ANSWERED, watch.readable_mut()).await.unwrap().unwrap();
                while let Some(change) = guard.get_inner_mut().next().unwrap() {
                    seen.push(change);
                }
                guard.clear_ready();
            }
            seen
        });
        assert!(seen.contains(&LinkChange::Present { index, name: "ng-a".to_owned() }), "{seen:?}");
    });
}

#[test]
fn routes_are_made_once_and_can_be_removed() {
    run(|_bench| {
        let rules =
            || ["-4", "-6"].map(|family| ip(&[family, "rule"]).matches("fwmark 0x200/0xf00 lookup 2004").count());
        let routes = || {
            ["-4", "-6"].map(|family| {
                let shown = Command::new("ip").args([family, "route", "show", "table", "2004"]).output().unwrap();
                String::from_utf8(shown.stdout).unwrap().matches("local default dev lo").count()
            })
        };
        assert_eq!((rules(), routes()), ([0, 0], [0, 0]));
        for time in 1..=2 {
            routes::set_up(&SETTINGS).unwrap();
            assert_eq!((rules(), routes()), ([1, 1], [1, 1]), "time {time}");
        }
        routes::remove(&SETTINGS).unwrap();
        assert_eq!((rules(), routes()), ([0, 0], [0, 0]));
        routes::remove(&SETTINGS).unwrap();
    });
}

#[test]
fn redirected_packets_are_left_untracked_by_one_rule() {
    run(|_bench| {
        let shown = || {
            let output = Command::new("nft").args(["list", "ruleset"]).output().unwrap();
            String::from_utf8(output.stdout).unwrap()
        };
        assert_eq!(shown(), "");
        for time in 1..=2 {
            untracked::set_up(&SETTINGS).unwrap();
            let shown = shown();
            let lines: Vec<&str> = shown.lines().map(str::trim).collect();
            let want = [
                "table inet namegate {",
                "chain prerouting {",
                "type filter hook prerouting priority raw; policy accept;",
                "meta mark & 0x00000f00 == 0x00000200 notrack",
                "}",
                "}",
            ];
            assert_eq!(lines, want, "time {time}");
        }
        for _ in 1..=2 {
            untracked::remove().unwrap();
            assert_eq!(shown(), "");
        }
    });
}

#[test]
fn a_route_that_cannot_be_made_says_what_to_do() {
    run(|_bench| {
        ip(&["link", "set", "lo", "down"]);
        let error = routes::set_up(&SETTINGS).unwrap_err();
        let text = crate::bench::chain(&error);
        assert!(text.contains("`ip -6 route add local default dev lo table 2004`"), "{text}");
    });
}

#[test]
fn what_other_tools_change_is_noticed_and_set_again() {
    run(|bench| {
        let upkeep = || {
            let interfaces = [bench.interface];
            let all = Upkeep { settings: &SETTINGS, limits: true, nftables: true, interfaces: &interfaces };
            all.look().into_iter().map(|fault| fault.subject).collect::<Vec<_>>()
        };
        let sysctl = |name: &str, value: &str| std::fs::write(format!("/proc/sys/net/ipv4/{name}"), value).unwrap();
        routes::set_up(&SETTINGS).unwrap();
        routes::forward_proxied().unwrap();
        untracked::set_up(&SETTINGS).unwrap();
        assert_eq!(upkeep(), [""; 0]);

        routes::remove(&SETTINGS).unwrap();
        assert_eq!(upkeep(), ["route to the proxies"]);
        assert_eq!(upkeep(), [""; 0], "the route is set again");
        untracked::remove().unwrap();
        assert_eq!(upkeep(), ["nftables"]);
        assert_eq!(upkeep(), [""; 0], "the rule is set again");
        sysctl("tcp_early_demux", "1");
        assert_eq!(upkeep(), ["net.ipv4.tcp_early_demux"]);
        assert_eq!(upkeep(), [""; 0], "the sysctl is set again");
        let interface = &bench.pod().interface;
        sysctl(&format!("conf/{interface}/rp_filter"), "1");
        sysctl("conf/all/rp_filter", "1");
        assert_eq!(upkeep(), [format!("net.ipv4.conf.{interface}.rp_filter")]);
        assert_eq!(upkeep(), [""; 0], "the check is loose again");
        sysctl("conf/all/src_valid_mark", "1");
        assert_eq!(upkeep(), ["net.ipv4.conf.all.src_valid_mark"]);
        assert_eq!(upkeep(), ["net.ipv4.conf.all.src_valid_mark"], "what others set stays, and is said");
    });
}

#[test]
fn one_agent_holds_the_pins() {
    run(|bench| {
        let pins = &bench.options.pins;
        let mut lock = PinsLock::take(pins, Path::new("/run/one.sock")).unwrap();
        let refused = |what: &str| {
            let error = PinsLock::take(pins, Path::new("/run/two.sock")).unwrap_err().to_string();
            let holder = format!("another agent (process {}, socket /run/one.sock) uses the pins", std::process::id());
            assert!(error.starts_with(&holder), "{what}: {error}");
        };
        refused("while it runs");
        // Made anew by another tool: the lock follows.
        let aside = pins.with_file_name(format!("{}-aside", bench.world.id()));
        std::fs::rename(pins, &aside).unwrap();
        std::fs::create_dir(pins).unwrap();
        lock.renew().unwrap();
        refused("after the folder was made anew");
        std::fs::remove_file(pins.join("agent")).unwrap();
        std::fs::remove_dir(pins).unwrap();
        std::fs::rename(&aside, pins).unwrap();
        lock.renew().unwrap();
        drop(lock);
        PinsLock::take(pins, Path::new("/run/two.sock")).unwrap();
    });
}
