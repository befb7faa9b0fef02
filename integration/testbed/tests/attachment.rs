//! What decides whether an endpoint's interface is enforced: look-ups that fail, pods that change their own network, other
//! tools on the node. None of it opens anything, and health says what is wrong until it is right again.
#![expect(clippy::unwrap_used, reason = "a test ends at the first surprise")]

#[expect(dead_code, reason = "each program of this folder uses its own part")]
mod common;

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use common::{
    ALLOWED_TEST, TEST_NETS, TIE, XWING, echo, edit_endpoints, egress, endpoint, entry, flow, ip, opens, world,
};
use namegate_testbed::proto::rr::RecordType;
use namegate_testbed::{Agent, ECHO_PORT, Options, World};
use serde_json::{Value, json};

/// Open by prefix, never open.
const PREFIX: &str = "198.51.100.70";
const DENIED: &str = "192.0.2.71";

fn options() -> Options {
    Options::default().policies(&egress(TEST_NETS))
}

/// Runs iproute2 in the node's namespace.
fn on_node(world: &World, arguments: &str) {
    in_namespace(world.node().name(), arguments);
}

/// Runs iproute2 in a pod's namespace, as a pod with `CAP_NET_ADMIN` can.
fn in_pod(world: &World, pod: &str, arguments: &str) {
    in_namespace(world.pod(pod).netns.name(), arguments);
}

fn in_namespace(name: &str, arguments: &str) {
    let output = Command::new("ip").args(["-n", name]).args(arguments.split(' ')).output().unwrap();
    assert!(output.status.success(), "ip {arguments}: {}", String::from_utf8_lossy(&output.stderr));
}

/// One connection to the agent's socket that stays open: it needs no new descriptor of the agent.
struct Health(UnixStream);

impl Health {
    fn open(agent: &Agent<'_>) -> Self {
        let stream = UnixStream::connect(agent.socket()).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        let mut health = Self(stream);
        assert_eq!(health.get().0, 200);
        health
    }

    /// Status code and body.
    fn get(&mut self) -> (u16, String) {
        self.0.write_all(b"GET /v1/healthz HTTP/1.1\r\nHost: namegate\r\n\r\n").unwrap();
        let mut text = String::new();
        loop {
            let mut bytes = [0; 4_096];
            let length = self.0.read(&mut bytes).unwrap();
            assert_ne!(length, 0, "the agent closed the connection after {text}");
            text.push_str(&String::from_utf8_lossy(&bytes[..length]));
            let Some((head, body)) = text.split_once("\r\n\r\n") else { continue };
            let wanted =
                head.lines().find_map(|line| line.to_lowercase().strip_prefix("content-length: ")?.parse().ok());
            if wanted.is_some_and(|wanted: usize| body.len() >= wanted) {
                return (head.split(' ').nth(1).unwrap().parse().unwrap(), body.to_owned());
            }
        }
    }
}

/// What health says, where it says that something is wrong with `subject`.
fn ill(agent: &Agent<'_>, kind: &str, subject: &str) -> String {
    let found = agent.wait_for("a problem", |agent| {
        let status = agent.json("/v1/status")?;
        let problems = status["problems"].as_array().cloned().unwrap_or_default();
        let wanted = |one: &Value| one["kind"] == kind && one["subject"].as_str().unwrap_or("").contains(subject);
        Ok(problems.iter().find(|one| wanted(one)).map(|one| one["message"].as_str().unwrap_or("").to_owned()))
    });
    let message = found.unwrap();
    assert_eq!(agent.get("/v1/healthz").unwrap().status, 503, "{message}");
    message
}

/// Waits until nothing is wrong.
fn well(agent: &Agent<'_>) {
    let healthy = |agent: &Agent<'_>| Ok((agent.get("/v1/healthz")?.status == 200).then_some(()));
    agent.wait_for("health", healthy).unwrap();
}

/// Starts the agent and waits until it answers, well or not.
fn launch(agent: &mut Agent<'_>) {
    agent.launch().unwrap();
    agent.wait_for("the agent", |agent| Ok(agent.get("/v1/status").is_ok().then_some(()))).unwrap();
}

/// Lets the agent read everything again, and waits until it has.
fn read_again(agent: &Agent<'_>) {
    let before = agent.policy().unwrap()["revision"]["enforced"].as_u64().unwrap();
    edit_endpoints(agent, |file| {
        entry(file, common::DNS)["labels"][format!("revision-{before}")] = json!("read");
    });
    common::settle(agent, before);
}

/// Names a pod by its network namespace.
fn by_netns(world: &World, agent: &Agent<'_>, pod: &str) {
    let before = agent.policy().unwrap()["revision"]["enforced"].as_u64().unwrap();
    edit_endpoints(agent, |file| {
        let entry = entry(file, pod).as_object_mut().unwrap();
        entry.remove("interface");
        entry.insert("netns".to_owned(), json!(world.pod(pod).netns.path()));
    });
    common::settle(agent, before);
    agent.wait_for("the endpoint", |agent| Ok((endpoint(agent, pod)["state"] == "guarded").then_some(()))).unwrap();
}

fn assert_enforced(world: &World, pod: &str) {
    assert!(!opens(world.pod(pod), echo(DENIED)), "{pod} reaches {DENIED}");
    assert!(opens(world.pod(pod), echo(PREFIX)), "{pod} does not reach {PREFIX}");
}

#[test]
fn used_up_descriptors_detach_nothing_and_heal_without_help() {
    let world = world(&[TIE]);
    let agent = Agent::start(&world, &options()).unwrap();
    assert_enforced(&world, TIE);
    let mut health = Health::open(&agent);
    let limit = |of: &str| {
        let pid = agent.pid().unwrap().to_string();
        let done = Command::new("prlimit").args(["--pid", &pid, &format!("--nofile={of}")]).status().unwrap();
        assert!(done.success());
    };
    limit("3:");
    std::fs::write(agent.path("policies/another.yaml"), egress(ALLOWED_TEST).replace("dns-and-more", "another"))
        .unwrap();
    let (status, body) = loop {
        let (status, body) = health.get();
        if status != 200 {
            break (status, body);
        }
        assert!(!opens(world.pod(TIE), echo(DENIED)), "the denied address is open, and health says 200");
    };
    assert_eq!(status, 503, "{body}");
    assert!(body.contains("os error 24"), "{body}");
    assert_enforced(&world, TIE);
    assert_eq!(health.get().0, 503);
    limit("1024:");
    well(&agent);
    let read = agent.policy().unwrap()["documents"].to_string();
    assert!(read.contains("another"), "{read}");
    assert_enforced(&world, TIE);
}

#[test]
fn a_pod_without_a_default_route_stays_enforced() {
    let world = world(&[TIE]);
    let agent = Agent::start(&world, &options()).unwrap();
    by_netns(&world, &agent, TIE);
    in_pod(&world, TIE, "route replace 192.0.2.0/24 via 169.254.1.1 dev eth0");
    in_pod(&world, TIE, "route replace 198.51.100.0/24 via 169.254.1.1 dev eth0");
    in_pod(&world, TIE, "route delete default");
    in_pod(&world, TIE, "-6 route delete default");
    read_again(&agent);
    assert_enforced(&world, TIE);
    in_pod(&world, TIE, "link set eth0 name other0");
    read_again(&agent);
    assert_enforced(&world, TIE);
    well(&agent);
}

#[test]
fn a_pod_that_moves_its_interface_on_stays_enforced_also_after_a_restart() {
    let world = world(&[TIE]);
    let mut agent = Agent::start(&world, &options()).unwrap();
    by_netns(&world, &agent, TIE);
    let inner = format!("{}-inner", world.id());
    let status = Command::new("ip").args(["netns", "add", &inner]).status().unwrap();
    assert!(status.success());
    in_pod(&world, TIE, &format!("link set eth0 netns {inner}"));
    read_again(&agent);
    let held = |agent: &Agent<'_>| endpoint(agent, TIE)["interface-index"].as_u64();
    let index = held(&agent);
    assert!(index.is_some(), "the interface lives: {}", endpoint(&agent, TIE));
    ill(&agent, "interference", TIE);
    agent.kill().unwrap();
    launch(&mut agent);
    ill(&agent, "interference", TIE);
    assert_eq!(held(&agent), index, "it is known from the kernel's rows");
    in_namespace(&inner, &format!("link set eth0 netns {}", world.pod(TIE).netns.name()));
    for address in &world.pod(TIE).spec.ips {
        in_pod(&world, TIE, &format!("addr replace {address} dev eth0"));
    }
    in_pod(&world, TIE, "link set eth0 up");
    in_pod(&world, TIE, "route replace 169.254.1.1/32 dev eth0 scope link");
    in_pod(&world, TIE, "route replace default via 169.254.1.1 dev eth0");
    let _ = Command::new("ip").args(["netns", "delete", &inner]).status();
    read_again(&agent);
    assert_enforced(&world, TIE);
    well(&agent);
}

#[test]
fn an_interface_numbered_like_that_of_another_pod_leads_nowhere() {
    let world = world(&[TIE, XWING]);
    let agent = Agent::start(&world, &options()).unwrap();
    let of_xwing = endpoint(&agent, XWING)["interface-index"].as_u64().unwrap();
    by_netns(&world, &agent, TIE);
    in_pod(&world, TIE, &format!("link add decoy2 index {of_xwing} type veth peer name decoy"));
    in_pod(&world, TIE, "link set decoy up");
    for net in ["192.0.2.0/24", "198.51.100.0/24"] {
        in_pod(&world, TIE, &format!("route replace {net} via 169.254.1.1 dev eth0"));
    }
    in_pod(&world, TIE, "route replace default dev decoy");
    read_again(&agent);
    assert_enforced(&world, TIE);
    assert_enforced(&world, XWING);
    well(&agent);
}

#[test]
fn a_second_link_of_a_namespace_is_enforced_too() {
    let world = world(&[TIE]);
    let agent = Agent::start(&world, &options()).unwrap();
    by_netns(&world, &agent, TIE);
    let of_pod = world.pod(TIE).netns.name().to_owned();
    on_node(&world, &format!("link add ng-second type veth peer name second netns {of_pod}"));
    on_node(&world, "addr add 169.254.1.1/32 dev ng-second");
    on_node(&world, "link set ng-second up");
    in_pod(&world, TIE, "link set second up");
    in_pod(&world, TIE, "route replace 169.254.1.1/32 dev second scope link");
    for net in ["192.0.2.0/24", "198.51.100.0/24"] {
        in_pod(&world, TIE, &format!("route replace {net} via 169.254.1.1 dev second src {}", world.pod(TIE).ipv4()));
    }
    on_node(&world, &format!("route replace {} dev ng-second", world.pod(TIE).ipv4()));
    agent
        .wait_for("both links", |agent| {
            let links = std::fs::read_dir(agent.pins().join("links"))?.count();
            Ok((links == 6).then_some(()))
        })
        .unwrap();
    assert_enforced(&world, TIE);
    well(&agent);
}

#[test]
fn a_renamed_interface_stays_enforced_and_a_new_one_of_its_name_is_enforced_too() {
    let world = world(&[TIE]);
    let agent = Agent::start(&world, &options()).unwrap();
    let name = world.pod(TIE).interface.clone();
    on_node(&world, &format!("link set {name} down"));
    on_node(&world, &format!("link set {name} name ng-renamed"));
    on_node(&world, "link set ng-renamed up");
    for address in &world.pod(TIE).spec.ips {
        on_node(&world, &format!("route replace {address} dev ng-renamed"));
    }
    let message = ill(&agent, "interference", TIE);
    assert!(message.contains("ng-renamed"), "{message}");
    assert_enforced(&world, TIE);

    let before = endpoint(&agent, TIE)["interface-index"].clone();
    let of_pod = world.pod(TIE).netns.name().to_owned();
    on_node(&world, "link delete ng-renamed");
    on_node(&world, &format!("link add {name} type veth peer name eth0 netns {of_pod}"));
    on_node(&world, &format!("addr add 169.254.1.1/32 dev {name}"));
    on_node(&world, &format!("link set {name} up"));
    in_pod(&world, TIE, &format!("addr add {} dev eth0", world.pod(TIE).ipv4()));
    in_pod(&world, TIE, "link set eth0 up");
    in_pod(&world, TIE, "route replace 169.254.1.1/32 dev eth0 scope link");
    in_pod(&world, TIE, "route replace default via 169.254.1.1 dev eth0");
    on_node(&world, &format!("route replace {} dev {name}", world.pod(TIE).ipv4()));
    let is_new = |agent: &Agent<'_>| {
        let endpoint = endpoint(agent, TIE);
        Ok((endpoint["state"] == "guarded" && endpoint["interface-index"] != before).then_some(()))
    };
    agent.wait_for("the new interface", is_new).unwrap();
    well(&agent);
    assert_enforced(&world, TIE);
}

/// Files below a folder of pins.
fn pinned(agent: &Agent<'_>, folder: &str) -> Vec<PathBuf> {
    let files = std::fs::read_dir(agent.pins().join(folder)).into_iter().flatten().flatten();
    // The agent's own mark of the folder is no pin.
    files.map(|file| file.path()).filter(|path| !path.is_dir() && !path.ends_with("agent")).collect()
}

/// Removes files from the pins, and waits until the agent has put them back.
fn remove_pins(agent: &Agent<'_>, gone: &[PathBuf]) {
    let healed = || agent.json("/v1/status").unwrap()["attachments-healed"].as_u64().unwrap_or(0);
    let before = healed();
    for path in gone {
        std::fs::remove_file(path).unwrap();
    }
    let all_there = |_: &Agent<'_>| Ok(gone.iter().all(|path| path.exists()).then_some(()));
    agent.wait_for("the pins", all_there).unwrap();
    assert!(healed() > before, "{} after {before}", healed());
    well(agent);
}

#[test]
fn links_and_maps_that_another_tool_unpins_come_back() {
    let world = world(&[TIE]);
    let agent = Agent::start(&world, &options()).unwrap();
    let links = pinned(&agent, "links");
    assert_eq!(links.len(), 4);
    remove_pins(&agent, &links);
    assert_enforced(&world, TIE);
    remove_pins(&agent, &pinned(&agent, ""));
    assert_enforced(&world, TIE);
}

#[test]
fn all_that_is_pinned_comes_back_and_holds_over_a_restart() {
    let world = world(&[TIE]);
    world.zone().set_addresses("api.allowed.test", 600, &[ip(DENIED)]);
    let mut agent =
        Agent::start(&world, &Options::default().policies(&egress(&format!("{ALLOWED_TEST}{TEST_NETS}")))).unwrap();
    world.pod(TIE).lookup("api.allowed.test", RecordType::A).unwrap();
    assert!(opens(world.pod(TIE), echo(DENIED)), "the name is open");
    let maps = pinned(&agent, "").len();
    std::fs::remove_dir_all(agent.pins()).unwrap();
    let back =
        |agent: &Agent<'_>| Ok((pinned(agent, "links").len() == 4 && pinned(agent, "").len() == maps).then_some(()));
    agent.wait_for("the pins", back).unwrap();
    well(&agent);
    agent.kill().unwrap();
    assert!(opens(world.pod(TIE), echo(DENIED)), "the rows are still the same");
    assert!(!opens(world.pod(TIE), echo("192.0.2.99")));
    agent.run().unwrap();
    assert!(opens(world.pod(TIE), echo(DENIED)), "the maps were adopted");
    assert!(!opens(world.pod(TIE), echo("192.0.2.99")));
}

#[test]
fn an_endpoint_that_waits_is_a_problem_after_a_while() {
    let world = world(&[TIE, XWING]);
    let mut agent = Agent::prepare(&world, &options()).unwrap();
    edit_endpoints(&agent, |file| entry(file, TIE)["interface"] = json!("no-such"));
    launch(&mut agent);
    let message = ill(&agent, "attachment", TIE);
    assert!(message.contains("no-such") && message.contains("it is not enforced"), "{message}");
    edit_endpoints(&agent, |file| entry(file, TIE)["interface"] = json!(world.pod(TIE).interface));
    well(&agent);
    assert_enforced(&world, TIE);
}

#[test]
fn an_interface_that_is_named_anew_and_not_there_leaves_the_former_one_enforced() {
    let world = world(&[TIE, XWING]);
    let agent = Agent::start(&world, &options()).unwrap();
    assert_enforced(&world, TIE);
    let index = endpoint(&agent, TIE)["interface-index"].clone();
    for (field, other, name) in [("interface", "netns", "no-such"), ("netns", "interface", "/run/netns/no-such")] {
        let before = common::revision(&agent);
        edit_endpoints(&agent, |file| {
            let entry = entry(file, TIE).as_object_mut().unwrap();
            entry.remove(other);
            entry.insert(field.to_owned(), json!(name));
        });
        common::settle(&agent, before);
        assert_enforced(&world, TIE);
        let message = agent.wait_for("the problem", |agent| {
            let status = agent.json("/v1/status")?;
            let messages =
                status["problems"].as_array().into_iter().flatten().filter_map(|one| one["message"].as_str());
            Ok(messages.map(str::to_owned).find(|message| message.contains(name)))
        });
        assert!(message.unwrap().contains("stays enforced"));
        assert_eq!(agent.get("/v1/healthz").unwrap().status, 503);
        assert_enforced(&world, TIE);
        assert_eq!(endpoint(&agent, TIE)["interface-index"], index);
    }
    edit_endpoints(&agent, |file| {
        let entry = entry(file, TIE).as_object_mut().unwrap();
        entry.remove("netns");
        entry.insert("interface".to_owned(), json!(world.pod(TIE).interface));
    });
    well(&agent);
    assert_enforced(&world, TIE);
}

#[test]
fn a_moved_interface_whose_journal_is_lost_is_closed_until_its_endpoint_takes_it() {
    let world = world(&[TIE, XWING]);
    let mut agent = Agent::start(&world, &options()).unwrap();
    let name = world.pod(TIE).interface.clone();
    agent.kill().unwrap();
    std::fs::remove_file(agent.path("state/journal")).unwrap();
    edit_endpoints(&agent, |file| entry(file, TIE)["interface"] = json!("no-such"));
    launch(&mut agent);
    let message = ill(&agent, "attachment", "interface ");
    assert!(message.contains("it is closed"), "{message}");
    for address in [DENIED, PREFIX] {
        assert!(!opens(world.pod(TIE), echo(address)), "{TIE} reaches {address}");
    }
    assert_enforced(&world, XWING);
    edit_endpoints(&agent, |file| entry(file, TIE)["interface"] = json!(name));
    well(&agent);
    assert_enforced(&world, TIE);
}

#[test]
fn an_endpoint_beyond_the_limit_is_closed_and_said() {
    let world = world(&[TIE, XWING]);
    let options = options().with(json!({"limits": {"endpoints": 2}}));
    let mut agent = Agent::start_unready(&world, &options).unwrap();
    agent.wait_for("endpoints", |agent| Ok(agent.get("/v1/endpoint").is_ok().then_some(()))).unwrap();
    let held = |agent: &Agent<'_>| {
        let links = std::fs::read_dir(agent.pins().join("links"))?.count();
        Ok((links == 6).then_some(()))
    };
    agent.wait_for("programs everywhere", held).unwrap();
    for pod in [TIE, XWING] {
        assert!(!opens(world.pod(pod), echo(DENIED)), "{pod} reaches {DENIED}");
    }
    let closed = [TIE, XWING, common::DNS].into_iter().find(|pod| endpoint(&agent, pod)["state"] != "guarded").unwrap();
    let message = ill(&agent, "attachment", closed);
    assert!(message.contains("limits.endpoints"), "{message}");
    agent.kill().unwrap();
}

/// An address of the node that no file names, one that comes later, and the broadcast address of its network.
const OF_NODE: &str = "192.168.20.77";
const LATE: &str = "192.168.20.99";
const OF_NETWORK: &str = "192.168.20.79";

#[test]
fn a_name_never_opens_an_address_of_the_node() {
    let world = world(&[TIE]);
    on_node(&world, &format!("addr add {OF_NODE}/28 dev {}", world.uplink()));
    world.serve_node(|host| host.echo_tcp(ECHO_PORT)).unwrap();
    world.zone().set_addresses("node.allowed.test", 600, &[ip(OF_NODE)]);
    world.zone().set_addresses("late.allowed.test", 600, &[ip(LATE)]);
    world.zone().set_addresses("all.allowed.test", 600, &[ip(OF_NETWORK)]);
    let agent = Agent::start(&world, &Options::default().policies(&egress(ALLOWED_TEST))).unwrap();
    let before = agent.policy().unwrap()["revision"]["enforced"].as_u64().unwrap();
    edit_endpoints(&agent, |file| drop(file.as_object_mut().unwrap().remove("host")));
    common::settle(&agent, before);
    let pod = world.pod(TIE);
    pod.lookup("node.allowed.test", RecordType::A).unwrap();
    assert!(!opens(pod, echo(OF_NODE)), "a name opens the node");
    // Nor do names open an address that stands for every machine of its network.
    pod.lookup("all.allowed.test", RecordType::A).unwrap();
    assert!(!opens(pod, echo(OF_NETWORK)));
    flow(&agent, pod, ip(OF_NETWORK), "denied");

    // An address that comes later is the node's as soon as it is there.
    pod.lookup("late.allowed.test", RecordType::A).unwrap();
    on_node(&world, &format!("addr add {LATE}/32 dev {}", world.uplink()));
    agent.wait_for("the address to be known", |_| Ok((!opens(pod, echo(LATE))).then_some(()))).unwrap();
    pod.lookup("late.allowed.test", RecordType::A).unwrap();
    assert!(!opens(pod, echo(LATE)), "a name opens the node");
}
