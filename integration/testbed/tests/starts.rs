//! Starts that must not be, starts that must be in spite of a broken state, and what goes missing or is changed later.
#![expect(clippy::unwrap_used, reason = "a test ends at the first surprise")]

#[expect(dead_code, reason = "each program of this folder uses its own part")]
mod common;

use std::ffi::OsStr;
use std::net::TcpListener;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use common::{
    ALLOWED_TEST, TEST_NETS, TIE, XWING, cached_names, echo, edit_endpoints, egress, entry, ip, namegate, opens, text,
    world,
};
use namegate_testbed::proto::rr::RecordType;
use namegate_testbed::{Agent, Options, World};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use serde_json::{Value, json};

/// Open by name, open by prefix, never open.
const NAMED: &str = "192.0.2.70";
const PREFIX: &str = "198.51.100.70";
const DENIED: &str = "192.0.2.71";
/// Exit code of `timeout` where the agent went on running.
const RAN_ON: i32 = 124;

fn options() -> Options {
    Options::default().policies(&egress(&format!("{ALLOWED_TEST}{TEST_NETS}")))
}

/// The agent's settings with some of them changed, in a file of its own.
fn settings(agent: &Agent<'_>, name: &str, change: &Value) -> PathBuf {
    let mut settings: Value =
        serde_json::from_str(&std::fs::read_to_string(agent.path("namegate.yaml")).unwrap()).unwrap();
    for (key, value) in change.as_object().unwrap() {
        settings[key] = value.clone();
    }
    let path = agent.path(name);
    std::fs::write(&path, settings.to_string()).unwrap();
    path
}

/// Runs another agent until it ends, or for some seconds.
fn start(world: &World, agent: &Agent<'_>, settings: &Path) -> (Option<i32>, String) {
    let (binary, settings) = (agent.binary().to_owned(), settings.to_owned());
    let output = world.node().call(move || {
        Command::new("timeout").arg("5").arg(binary).args(["agent", "--config"]).arg(settings).output().unwrap()
    });
    shown(&output)
}

fn shown(output: &Output) -> (Option<i32>, String) {
    (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
}

/// Problems of the status whose kind is this one, as `subject: message`.
fn problems(agent: &Agent<'_>, kind: &str) -> Vec<String> {
    let status = agent.json("/v1/status").unwrap();
    let found = status["problems"].as_array().unwrap().iter().filter(|found| found["kind"] == kind);
    found.map(|found| format!("{}: {}", text(&found["subject"]), text(&found["message"]))).collect()
}

/// Waits for a problem that holds these words; health says the same.
fn wait_problem(agent: &Agent<'_>, kind: &str, words: &str) -> String {
    let found = agent.wait_for(&format!("a problem of {words:?}"), |agent| {
        let Ok(response) = agent.get("/v1/healthz") else { return Ok(None) };
        let is_unwell = response.status != 200;
        Ok(problems(agent, kind).into_iter().find(|one| one.contains(words)).filter(|_| is_unwell))
    });
    found.unwrap()
}

fn wait_well(agent: &Agent<'_>) {
    agent.wait_for("health", |agent| Ok((agent.get("/v1/healthz")?.status == 200).then_some(()))).unwrap();
}

#[test]
fn a_start_without_what_the_settings_name_says_the_next_step() {
    let world = world(&[TIE]);
    let mut agent = Agent::start(&world, &options()).unwrap();
    agent.terminate().unwrap();
    let broken = agent.path("broken.yaml");
    std::fs::write(&broken, "endpoints:\n- {name: tiefighter, namespace: empire, interfase: eth0}\n").unwrap();
    let file = agent.path("namegate.yaml");
    let taken = world.node().call(|| TcpListener::bind("127.0.0.1:0").unwrap());
    let port = taken.local_addr().unwrap();
    let state = agent.path("other-state");
    for (name, change, words) in [
        ("policies", json!({"policies": "nowhere"}), "make the folder, or correct `policies` in the settings"),
        ("policies-file", json!({"policies": file}), "make the folder, or correct `policies` in the settings"),
        ("endpoints", json!({"endpoints": "nowhere.yaml"}), "write the file, or correct `endpoints` in the settings"),
        ("endpoints-folder", json!({"endpoints": state}), "write the file, or correct `endpoints` in the settings"),
        ("endpoints-mistake", json!({"endpoints": broken}), "there is no such field"),
        ("kubeconfig", json!({"kubernetes": {"node": "n", "kubeconfig": "nowhere"}}), "`kubernetes.kubeconfig`"),
        ("pins", json!({"pins": agent.path("pins")}), "is not on a BPF file system; mount one there"),
        ("port", json!({"metrics": {"listen": port}}), "another program listens on"),
        (
            "resolver",
            json!({"dns": {"resolvers": ["0.0.0.0"]}}),
            "write the address that stands in the endpoints' `resolv.conf`",
        ),
        ("key", json!({"polices": "p"}), "there is no such field"),
    ] {
        let mut change = change;
        change["state"] = json!(state);
        let settings = settings(&agent, &format!("{name}.json"), &change);
        let (code, said) = start(&world, &agent, &settings);
        assert_eq!(code, Some(2), "{name}: {said}");
        assert!(said.contains(words) && !said.contains("panicked"), "{name}: {said}");
    }
    agent.run().unwrap();
    assert!(opens(world.pod(TIE), echo(PREFIX)) && !opens(world.pod(TIE), echo(DENIED)));
}

#[test]
fn pins_that_end_with_the_agent_are_refused() {
    let world = world(&[TIE]);
    let mut agent = Agent::start(&world, &options()).unwrap();
    agent.terminate().unwrap();
    let folder = agent.path("bpf");
    std::fs::create_dir(&folder).unwrap();
    let settings = settings(&agent, "private.json", &json!({"pins": folder.join("pins")}));
    let script = "mount -t bpf bpf \"$1\" && exec timeout 5 \"$2\" agent --config \"$3\"";
    let mut command = Command::new("unshare");
    command.args(["--mount", "--propagation", "private", "sh", "-c", script, "sh"]);
    command.arg(&folder).arg(agent.binary()).arg(&settings);
    let (code, said) = shown(&world.node().call(move || command.output().unwrap()));
    assert_eq!(code, Some(2), "{said}");
    assert!(said.contains("is on a BPF file system that only this process sees"), "{said}");
}

#[test]
fn a_second_agent_is_refused_by_pins_and_by_socket() {
    let world = world(&[TIE]);
    let mut agent = Agent::start(&world, &options()).unwrap();
    let process = format!("process {}", agent.pid().unwrap());
    let others = json!({"state": agent.path("state-2"), "socket": agent.path("2.sock")});
    let same_pins = settings(&agent, "same-pins.json", &others);
    let (code, said) = start(&world, &agent, &same_pins);
    assert_eq!(code, Some(2), "{said}");
    let socket = format!("socket {}", agent.socket().display());
    assert!(said.contains(&process) && said.contains(&socket), "{said}");
    let others = json!({"state": agent.path("state-2"), "pins": agent.pins().with_extension("2")});
    let same_socket = settings(&agent, "same-socket.json", &others);
    let (code, said) = start(&world, &agent, &same_socket);
    assert_eq!(code, Some(2), "{said}");
    assert!(said.contains(&process) && said.contains(&agent.socket().display().to_string()), "{said}");
    assert_eq!(agent.get("/v1/healthz").unwrap().status, 200);
    assert!(opens(world.pod(TIE), echo(PREFIX)) && !opens(world.pod(TIE), echo(DENIED)));
    agent.kill().unwrap();
    let (code, said) = start(&world, &agent, &same_pins);
    assert_eq!(code, Some(RAN_ON), "the lock of a killed agent is free: {said}");
    agent.run().unwrap();
}

/// A small file system for the state.
struct Small(PathBuf);

impl Small {
    fn mount(path: PathBuf) -> Self {
        std::fs::create_dir(&path).unwrap();
        mount(Some("tmpfs"), &path, Some("tmpfs"), MsFlags::empty(), Some("size=64k")).unwrap();
        Self(path)
    }

    fn filler(&self) -> PathBuf {
        self.0.join("filler")
    }

    fn fill(&self) {
        assert!(std::fs::write(self.filler(), vec![0; 1 << 20]).is_err(), "the file system is small");
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        let _ = umount2(&self.0, MntFlags::MNT_DETACH);
    }
}

#[test]
fn a_full_state_folder_is_said_and_no_reason_not_to_start() {
    let world = world(&[TIE]);
    for name in ["one", "two"] {
        world.zone().set_addresses(&format!("{name}.allowed.test"), 600, &[ip(NAMED)]);
    }
    let folder = tempfile::tempdir().unwrap();
    let small = Small::mount(folder.path().join("state"));
    let mut agent = Agent::start(&world, &options().with(json!({"state": small.0}))).unwrap();
    let tiefighter = world.pod(TIE);
    let mode = |name: &str| std::fs::metadata(small.0.join(name)).unwrap().permissions().mode() & 0o777;
    assert_eq!((mode("journal"), mode("accepted"), mode("accepted/policies.yaml")), (0o600, 0o700, 0o600));

    small.fill();
    agent.kill().unwrap();
    agent.launch().unwrap();
    wait_problem(&agent, "state", "journal: it can't be written");
    let (_, page, _) = namegate(&agent, &["status"]);
    assert!(page.starts_with("state journal: it can't be written"), "{page}");
    assert_eq!(tiefighter.lookup("one.allowed.test", RecordType::A).unwrap().addresses, [ip(NAMED)]);
    assert!(opens(tiefighter, echo(NAMED)) && !opens(tiefighter, echo(DENIED)));

    std::fs::remove_file(small.filler()).unwrap();
    wait_well(&agent);
    tiefighter.lookup("two.allowed.test", RecordType::A).unwrap();
    agent.kill().unwrap();
    agent.run().unwrap();
    assert_eq!(cached_names(&agent, ""), ["one.allowed.test", "two.allowed.test"], "learned before and after");
}

#[test]
fn a_state_that_is_no_folder_is_said_and_no_reason_not_to_start() {
    let world = world(&[TIE]);
    world.zone().set_addresses("one.allowed.test", 600, &[ip(NAMED)]);
    let mut agent = Agent::start(&world, &options()).unwrap();
    agent.terminate().unwrap();
    let state = agent.path("state");
    std::fs::rename(&state, agent.path("state-aside")).unwrap();
    std::fs::write(&state, "a file").unwrap();
    agent.launch().unwrap();
    wait_problem(&agent, "state", "journal: it can't be written");
    let tiefighter = world.pod(TIE);
    tiefighter.lookup("one.allowed.test", RecordType::A).unwrap();
    assert!(opens(tiefighter, echo(NAMED)) && !opens(tiefighter, echo(DENIED)));
    std::fs::remove_file(&state).unwrap();
    wait_well(&agent);
}

/// What the file `more.yaml` is said to be.
fn more(policy: &Value) -> Option<String> {
    let documents = policy["documents"].as_array().unwrap().iter();
    let found = documents.clone().find(|one| text(&one["file"]).ends_with("more.yaml"));
    found.map(|found| text(&found["state"]))
}

fn wait_more(agent: &Agent<'_>, want: Option<&str>) {
    let is_held = |policy: &Value| policy["revision"]["wanted"] == policy["revision"]["enforced"];
    let is_so = |policy: &Value| is_held(policy) && more(policy).as_deref() == want;
    agent.wait_for(&format!("{want:?}"), |agent| Ok(is_so(&agent.policy()?).then_some(()))).unwrap();
}

#[test]
fn a_deleted_policy_stays_deleted() {
    let world = world(&[TIE]);
    let mut agent = Agent::start(&world, &options()).unwrap();
    let file = agent.path("policies/more.yaml");
    let good = egress("  - toCIDR: [192.0.2.71/32]\n").replace("dns-and-more", "more");
    let mistake = good.replace("toCIDR", "toCIDRR");
    let tiefighter = world.pod(TIE);
    std::fs::write(&file, &good).unwrap();
    wait_more(&agent, Some("accepted"));
    assert!(opens(tiefighter, echo(DENIED)));
    std::fs::remove_file(&file).unwrap();
    wait_more(&agent, None);
    std::fs::write(&file, &mistake).unwrap();
    wait_more(&agent, Some("refused"));
    assert!(!opens(tiefighter, echo(DENIED)), "the rules of the deleted file");
    agent.kill().unwrap();
    agent.run().unwrap();
    wait_more(&agent, Some("refused"));
    assert!(!opens(tiefighter, echo(DENIED)), "the rules of the deleted file, after a restart");

    // Deleted while there is no agent, and written again later.
    std::fs::write(&file, &good).unwrap();
    wait_more(&agent, Some("accepted"));
    agent.kill().unwrap();
    std::fs::remove_file(&file).unwrap();
    agent.run().unwrap();
    wait_more(&agent, None);
    std::fs::write(&file, &mistake).unwrap();
    wait_more(&agent, Some("refused"));
    assert!(!opens(tiefighter, echo(DENIED)), "the rules of a file that was deleted meanwhile");
}

#[test]
fn what_goes_missing_later_is_said_and_changes_nothing() {
    let world = world(&[TIE]);
    let agent = Agent::start(&world, &options()).unwrap();
    let tiefighter = world.pod(TIE);
    let (policies, aside) = (agent.path("policies"), agent.path("aside"));
    std::fs::rename(&policies, &aside).unwrap();
    wait_problem(&agent, "lookup", "cannot be read");
    assert!(opens(tiefighter, echo(PREFIX)) && !opens(tiefighter, echo(DENIED)));
    std::fs::rename(&aside, &policies).unwrap();
    wait_well(&agent);
    let (endpoints, aside) = (agent.path("endpoints.yaml"), agent.path("endpoints.aside"));
    std::fs::rename(&endpoints, &aside).unwrap();
    wait_problem(&agent, "lookup", "cannot be read");
    assert!(opens(tiefighter, echo(PREFIX)) && !opens(tiefighter, echo(DENIED)));
    std::fs::rename(&aside, &endpoints).unwrap();
    wait_well(&agent);

    // A folder that was made anew is followed as the first was.
    std::fs::rename(&policies, agent.path("old")).unwrap();
    std::fs::create_dir(&policies).unwrap();
    agent.apply(&egress("  - toCIDR: [192.0.2.71/32]\n")).unwrap();
    agent.apply(&egress(TEST_NETS)).unwrap();
    // The folder's own coming is a change that `apply` may have seen.
    let is_followed = |_: &Agent<'_>| {
        let holds = opens(tiefighter, echo(PREFIX)) && !opens(tiefighter, echo(DENIED));
        Ok(holds.then_some(()))
    };
    agent.wait_for("the rules of the new folder", is_followed).unwrap();
    wait_well(&agent);
}

#[test]
fn an_interface_that_is_not_there_is_said_with_those_that_are() {
    let world = world(&[TIE, XWING]);
    let agent = Agent::start(&world, &options()).unwrap();
    let right = world.pod(XWING).interface.clone();
    let typo = format!("{right}x");
    edit_endpoints(&agent, |file| entry(file, XWING)["interface"] = json!(typo));
    let said = wait_problem(&agent, "attachment", &typo);
    assert!(said.contains(XWING) && said.contains("stays enforced meanwhile"), "{said}");
    assert!(said.contains(&format!("there are {right}, ")), "the nearest comes first: {said}");
    edit_endpoints(&agent, |file| entry(file, XWING)["interface"] = json!(right));
    wait_well(&agent);
}

#[test]
fn what_other_tools_take_away_is_said_and_set_again() {
    let world = world(&[TIE]);
    world.zone().set_addresses("one.allowed.test", 600, &[ip(NAMED)]);
    let agent = Agent::start(&world, &options()).unwrap();
    let remove = |arguments: &'static [&'static str]| {
        let removed = world.node().call(move || Command::new("ip").args(arguments).output().unwrap());
        assert!(removed.status.success(), "{removed:?}");
    };
    remove(&["rule", "del", "pref", "90"]);
    wait_problem(&agent, "interference", "route to the proxies: packets for the proxies are not delivered");
    wait_well(&agent);
    remove(&["-6", "route", "flush", "table", "2004"]);
    wait_problem(&agent, "interference", "not delivered to this node (IPv6)");
    wait_well(&agent);
    let tiefighter = world.pod(TIE);
    tiefighter.lookup("one.allowed.test", RecordType::A).unwrap();
    assert!(opens(tiefighter, echo(NAMED)));
}

#[test]
fn names_of_others_steer_no_terminal() {
    let world = world(&[TIE]);
    let agent = Agent::start(&world, &options()).unwrap();
    let name = OsStr::from_bytes("x\x1b[2J\u{9b}31m\u{202e}.yaml".as_bytes());
    std::fs::write(agent.path("policies").join(name), "kind: [\n").unwrap();
    let is_said = |policy: &Value| !policy["diagnostics"].as_array().unwrap().is_empty();
    agent.wait_for("a mistake", |agent| Ok(is_said(&agent.policy()?).then_some(()))).unwrap();
    let steers = |text: &str| text.chars().any(|one| one != '\n' && (one.is_control() || one == '\u{202e}'));
    for arguments in [&["status"][..], &["status", "-o", "json"]] {
        let (code, page, _) = namegate(&agent, arguments);
        assert_eq!(code, Some(0));
        assert!(page.contains("1b"), "{page}");
        assert!(!steers(&page), "{page:?}");
    }
    assert!(!steers(&agent.log()), "{:?}", agent.log());
    let folder = agent.path("policies");
    let output = agent.cli(&["policy", "validate", folder.to_str().unwrap()]).unwrap();
    let shown = [output.stdout, output.stderr].map(|octets| String::from_utf8_lossy(&octets).into_owned()).concat();
    assert!(shown.contains("1b") && !steers(&shown), "{shown:?}");
}
