//! Interfaces and routes of the node.

use std::path::Path;
use std::process::Command;

use namegate_loader::links::{self, LinkChange, LinkWatch};
use namegate_loader::upkeep::Upkeep;
use namegate_loader::{PinsLock, routes, untracked};

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
        assert_eq!(links::peer_of_netns(&bench.pod().netns.path()).unwrap(), Some(bench.interface));
        assert_eq!(links::peer_of_netns(Path::new("/run/netns/no-such")).unwrap(), None);
        assert!(links::peer_of_netns(Path::new("/dev/null")).is_err(), "not a namespace");
        ip(&["-n", bench.pod().netns.name(), "route", "delete", "default"]);
        let six = links::peer_of_netns(&bench.pod().netns.path()).unwrap();
        assert_eq!(six, Some(bench.interface), "by IPv6");
        ip(&["-n", bench.pod().netns.name(), "-6", "route", "delete", "default"]);
        assert_eq!(links::peer_of_netns(&bench.pod().netns.path()).unwrap(), None);
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
