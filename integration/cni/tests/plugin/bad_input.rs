//! What a runtime should never hand over is answered with the specification's codes, on standard output.

use crate::common::{FakeAgent, call, config, variables, with};
use serde_json::json;

#[test]
fn variables_that_are_missing_or_wrong() {
    let agent = FakeAgent::start(|_, _| (200, String::new()));
    let config = config("1.1.0", &agent.socket).to_string();
    for (command, name, value, words) in [
        ("ADD", "CNI_COMMAND", "", "CNI_COMMAND is missing"),
        ("ADD", "CNI_COMMAND", "ADDD", "`ADDD` is unknown"),
        ("ADD", "CNI_CONTAINERID", "", "CNI_CONTAINERID is missing"),
        ("ADD", "CNI_CONTAINERID", "../x", "no container's identifier"),
        ("ADD", "CNI_IFNAME", "", "CNI_IFNAME is missing"),
        ("ADD", "CNI_IFNAME", "a b", "no name of an interface"),
        ("ADD", "CNI_NETNS", "", "CNI_NETNS is missing"),
        ("ADD", "CNI_ARGS", "", "CNI_ARGS is missing"),
        ("ADD", "CNI_ARGS", "K8S_POD_NAME=xwing", "no K8S_POD_NAMESPACE"),
        ("DEL", "CNI_CONTAINERID", "", "CNI_CONTAINERID is missing"),
        ("CHECK", "CNI_NETNS", "", "CNI_NETNS is missing"),
    ] {
        let done = call(&with(command, name, value), &config);
        assert_eq!((done.status, &done.output["code"]), (1, &json!(4)), "{name}={value}: {done:?}");
        assert!(done.output["msg"].as_str().unwrap().contains(words), "{name}={value}: {done:?}");
        assert_eq!(done.output["cniVersion"], "1.1.0");
    }
    assert!(agent.seen().is_empty(), "{:?}", agent.seen());
}

#[test]
fn configurations_that_are_none() {
    let agent = FakeAgent::start(|_, _| (200, String::new()));
    let good = config("1.0.0", &agent.socket);
    let changed = |key: &str, value: serde_json::Value| {
        let mut config = good.clone();
        config[key] = value;
        config.to_string()
    };
    for (input, code, words) in [
        (String::new(), 6, "cannot be read"),
        ("{".to_owned(), 6, "cannot be read"),
        ("[1]".to_owned(), 6, "cannot be read"),
        ("\u{0}".to_owned(), 6, "cannot be read"),
        (json!({"name": "x"}).to_string(), 6, "cannot be read"),
        (changed("cniVersion", json!("0.1.0")), 1, "not supported"),
        (changed("onAgentDown", json!("maybe")), 6, "cannot be read"),
        (changed("waitSeconds", json!(9999)), 7, "at most"),
        (changed("prevResult", json!(null)), 7, "no prevResult"),
        (changed("prevResult", json!({"ips": 7})), 6, "prevResult cannot be read"),
        (changed("prevResult", json!({"interfaces": [{"name": "lo"}]})), 7, "no address"),
        (changed("prevResult", json!({"ips": [{"address": "10.1.2.3/24"}]})), 7, "no other side"),
    ] {
        let done = call(&variables("ADD"), &input);
        assert_eq!((done.status, &done.output["code"]), (1, &json!(code)), "{input}: {done:?}");
        assert!(done.output["msg"].as_str().unwrap().contains(words), "{input}: {done:?}");
    }
    assert!(agent.seen().is_empty(), "{:?}", agent.seen());
}

#[test]
fn a_namespace_or_interface_that_is_gone() {
    let agent = FakeAgent::start(|_, _| (200, String::new()));
    let config = config("1.1.0", &agent.socket).to_string();
    for (name, value) in [("CNI_NETNS", "/nowhere"), ("CNI_NETNS", "/proc/self/status"), ("CNI_IFNAME", "eth99")] {
        let done = call(&with("ADD", name, value), &config);
        assert_eq!((done.status, &done.output["code"]), (1, &json!(5)), "{name}={value}: {done:?}");
    }
}
