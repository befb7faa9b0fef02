//! Every command in every version, against an agent that says yes, says no, or is not there.

use std::os::unix::net::UnixListener;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use crate::common::{FakeAgent, PROGRAM, call, config, variables, with};
use serde_json::{Value, json};

const VERSIONS: [&str; 5] = ["0.3.1", "0.4.0", "1.0.0", "1.0.1", "1.1.0"];

/// The agent's list of containers.
fn known(containers: &[&str]) -> String {
    let known = containers.iter().map(|container| {
        let registration = json!({"namespace": "empire", "pod": "xwing", "interface": "lo", "addresses": ["10.1.2.3"]});
        json!({"container-id": container, "registration": registration, "state": "guarded"})
    });
    Value::Array(known.collect()).to_string()
}

fn yes() -> FakeAgent {
    FakeAgent::start(|method, _| match method {
        "GET" => (200, known(&["c0ffee", "dead", "beef"])),
        _ => (200, "{}".to_owned()),
    })
}

#[test]
fn add_tells_the_agent_and_hands_on_the_result() {
    for version in VERSIONS {
        let agent = yes();
        let config = config(version, &agent.socket);
        let done = call(&variables("ADD"), &config.to_string());
        assert_eq!((done.status, &done.output), (0, &config["prevResult"]), "{version}: {done:?}");
        let told = json!({
            "namespace": "empire", "pod": "xwing", "uid": "u-1", "interface": "lo",
            "addresses": ["10.1.2.3", "fd00::3"], "netns": "/proc/self/ns/net",
        });
        assert_eq!(agent.seen(), [("PUT".to_owned(), "/v1/cni/c0ffee".to_owned(), told)], "{version}");
    }
}

#[test]
fn delete_never_keeps_a_pod_from_going() {
    for version in VERSIONS {
        for (status, what) in [(200, "yes"), (404, "unknown"), (500, "no")] {
            let agent = FakeAgent::start(move |_, _| (status, what.to_owned()));
            let mut config = config(version, &agent.socket);
            config.as_object_mut().unwrap().remove("prevResult");
            let done = call(&with("DEL", "CNI_NETNS", ""), &config.to_string());
            assert_eq!((done.status, &done.output), (0, &Value::Null), "{version} {status}: {done:?}");
            assert_eq!(agent.seen(), [("DELETE".to_owned(), "/v1/cni/c0ffee".to_owned(), Value::Null)]);
        }
        let done = call(&variables("DEL"), &config(version, Path::new("/nobody.sock")).to_string());
        assert_eq!(done.status, 0, "{version}: {done:?}");
    }
}

#[test]
fn check_asks_whether_the_agent_knows_the_container() {
    for version in &VERSIONS[1..] {
        let agent = yes();
        let config = config(version, &agent.socket).to_string();
        let done = call(&variables("CHECK"), &config);
        assert_eq!((done.status, &done.output), (0, &Value::Null), "{version}: {done:?}");
        let done = call(&with("CHECK", "CNI_CONTAINERID", "other"), &config);
        assert_eq!((done.status, &done.output["code"]), (1, &json!(100)), "{version}: {done:?}");
    }
}

#[test]
fn collecting_takes_away_what_is_not_there_any_more() {
    let agent = yes();
    let mut config = config("1.1.0", &agent.socket);
    config["cni.dev/valid-attachments"] = json!([{"containerID": "c0ffee", "ifname": "eth0"}]);
    let done = call(&[("CNI_COMMAND", "GC"), ("CNI_PATH", "/opt/cni/bin")], &config.to_string());
    assert_eq!((done.status, &done.output), (0, &Value::Null), "{done:?}");
    let asked: Vec<String> = agent.seen().into_iter().map(|(method, path, _)| format!("{method} {path}")).collect();
    assert_eq!(asked, ["GET /v1/cni", "DELETE /v1/cni/dead", "DELETE /v1/cni/beef"]);
    // Without a list of what is there, everything would go.
    config.as_object_mut().unwrap().remove("cni.dev/valid-attachments");
    let done = call(&[("CNI_COMMAND", "GC")], &config.to_string());
    assert_eq!((done.status, &done.output["code"]), (1, &json!(7)), "{done:?}");
}

#[test]
fn status_says_whether_pods_can_start() {
    let agent = yes();
    let status = [("CNI_COMMAND", "STATUS")];
    assert_eq!(call(&status, &config("1.1.0", &agent.socket).to_string()).status, 0);
    let mut away = config("1.1.0", Path::new("/nobody.sock"));
    let done = call(&status, &away.to_string());
    assert_eq!((done.status, &done.output["code"]), (1, &json!(50)), "{done:?}");
    away["onAgentDown"] = "allow".into();
    assert_eq!(call(&status, &away.to_string()).status, 0);
}

#[test]
fn versions_are_listed() {
    for input in [r#"{"cniVersion":"1.0.0"}"#, r#"{"cniVersion":"9.0.0"}"#, "", "{"] {
        let done = call(&[("CNI_COMMAND", "VERSION")], input);
        assert_eq!((done.status, &done.output["supportedVersions"]), (0, &json!(VERSIONS)), "{input}: {done:?}");
        assert!(done.output["cniVersion"].is_string(), "{input}");
    }
}

#[test]
fn a_pod_waits_for_an_agent_that_is_away() {
    for version in VERSIONS {
        let mut away = config(version, Path::new("/nobody.sock"));
        let done = call(&variables("ADD"), &away.to_string());
        assert_eq!((done.status, &done.output["code"], &done.output["cniVersion"]), (1, &json!(11), &json!(version)));
        away["onAgentDown"] = "allow".into();
        let done = call(&variables("ADD"), &away.to_string());
        assert_eq!((done.status, &done.output), (0, &away["prevResult"]), "{done:?}");
        assert!(done.complaint.contains("empire/xwing starts unguarded"), "{done:?}");
    }
}

#[test]
fn a_refusal_is_told_in_the_agents_words() {
    for (status, body, words) in [
        (503, json!({"title": "no", "detail": "map ENDPOINTS is full"}).to_string(), "503: map ENDPOINTS is full"),
        (400, "plain".to_owned(), "400: plain"),
    ] {
        let agent = FakeAgent::start(move |_, _| (status, body.clone()));
        // Who is there and says no is not away: `allow` does not help.
        for rule in ["deny", "allow"] {
            let mut config = config("1.1.0", &agent.socket);
            config["onAgentDown"] = rule.into();
            let done = call(&variables("ADD"), &config.to_string());
            assert_eq!((done.status, &done.output["code"]), (1, &json!(11)), "{rule} {done:?}");
            assert!(done.output["details"].as_str().unwrap().contains(words), "{done:?}");
        }
    }
}

#[test]
fn an_answer_that_is_none_counts_as_no_answer() {
    for octets in ["", "x", "HTTP/1.1 200", "HTTP/1.1 many OK\r\n\r\n", "SSH-2.0-x\r\n\r\n"] {
        let agent = FakeAgent::serve(move |_, _| octets.to_owned());
        let done = call(&variables("ADD"), &config("1.1.0", &agent.socket).to_string());
        assert_eq!((done.status, &done.output["code"]), (1, &json!(11)), "{octets:?} {done:?}");
    }
}

#[test]
fn an_agent_that_starts_is_waited_for() {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("late.sock");
    let mut config = config("1.1.0", &socket);
    config["waitSeconds"] = 20.into();
    let started = Instant::now();
    let (late, delay) = (socket.clone(), Duration::from_millis(300));
    let agent = std::thread::spawn(move || {
        std::thread::sleep(delay); // The delay is what is tested.
        let listener = UnixListener::bind(late).unwrap();
        let (mut stream, _) = listener.accept().unwrap();
        let mut octets = [0; 4096];
        let count = std::io::Read::read(&mut stream, &mut octets).unwrap();
        std::io::Write::write_all(&mut stream, b"HTTP/1.0 200 OK\r\n\r\n").unwrap();
        count
    });
    let done = call(&variables("ADD"), &config.to_string());
    assert_eq!(done.status, 0, "{done:?}");
    assert!(started.elapsed() >= delay);
    assert!(agent.join().unwrap() > 0);
}

#[test]
fn probes_hear_whether_all_is_well() {
    for (status, body, code, words) in [
        (200, "{}", 0, ""),
        (503, r#"{"healthy":false,"problems":["the resolver does not answer"]}"#, 1, "the resolver does not answer"),
    ] {
        let agent = FakeAgent::start(move |_, _| (status, body.to_owned()));
        let done = Command::new(PROGRAM).args(["health", "--socket"]).arg(&agent.socket).output().unwrap();
        assert_eq!(done.status.code(), Some(code), "{done:?}");
        assert!(String::from_utf8_lossy(&done.stderr).contains(words), "{done:?}");
    }
    let done = Command::new(PROGRAM).args(["health", "--socket", "/nobody.sock"]).output().unwrap();
    assert_eq!(done.status.code(), Some(2), "{done:?}");
}
