//! What the container runtime hands to the CNI plugin.

use std::net::IpAddr;

use namegate_cni::fuzzing::{Add, read};
use serde_json::Value;

/// Versions of the specification that the plugin speaks.
const VERSIONS: [&str; 5] = ["0.3.1", "0.4.0", "1.0.0", "1.0.1", "1.1.0"];

/// Identifier, interface and arguments in the first line, split by blanks; the network configuration in the rest.
///
/// # Panics
/// The plugin takes what the specification does not allow, reads other addresses or interfaces than stand there, or
/// answers with an error in another form than the specification's.
pub fn cni_stdin(data: &[u8]) {
    let end = data.iter().position(|byte| *byte == b'\n').unwrap_or(data.len());
    let (line, input) = (String::from_utf8_lossy(&data[..end]), data.get(end + 1..).unwrap_or_default());
    let words: Vec<&str> = line.split(' ').collect();
    let variable = |name: &str| {
        let at = ["CNI_CONTAINERID", "CNI_IFNAME", "CNI_ARGS"].iter().position(|known| *known == name)?;
        words.get(at).map(|word| (*word).to_owned())
    };
    match read(&variable, input) {
        Ok(add) => check(&add, &words, input),
        Err(error) => check_error(&error),
    }
}

fn check(add: &Add, words: &[&str], input: &[u8]) {
    let config: Value = serde_json::from_slice(input).unwrap_or_default();
    assert!(VERSIONS.contains(&add.version.as_str()) && config["cniVersion"] == add.version.as_str(), "{add:?}");
    assert_eq!(add.allows, config["onAgentDown"] == "allow");
    assert!(add.wait <= 60 && config.get("waitSeconds").is_none_or(|wait| wait == &Value::from(add.wait)));

    assert_eq!((add.container.as_str(), add.inside.as_str()), (words[0], words[1]));
    let is_name = |text: &str| !text.is_empty() && !["/", "..", "."].contains(&text) && !text.contains('/');
    assert!(is_name(&add.container) && is_name(&add.inside), "both become names of files: {add:?}");
    let argument = |name: &str| {
        words[2].split(';').find_map(|pair| pair.strip_prefix(name)?.strip_prefix('=').filter(|it| !it.is_empty()))
    };
    assert_eq!(argument("K8S_POD_NAMESPACE"), Some(add.pod.0.as_str()));
    assert_eq!(argument("K8S_POD_NAME"), Some(add.pod.1.as_str()));

    let made = &config["prevResult"];
    let (addresses, outside) = slow_made(made);
    assert_eq!(add.addresses, addresses, "{made}");
    assert_eq!(add.outside, outside, "{made}");
    assert!(!add.addresses.is_empty(), "an endpoint without an address is guarded by nothing");
}

/// Addresses inside, and interfaces outside, last first.
fn slow_made(made: &Value) -> (Vec<IpAddr>, Vec<String>) {
    // The specification's objects; serde reads them from lists as well, in the order of their fields.
    let field = |object: &Value, name: &str, at: usize| match object {
        Value::Array(list) => list.get(at).cloned().unwrap_or_default(),
        other => other[name].clone(),
    };
    let listed = |name: &str, at: usize| field(made, name, at).as_array().cloned().unwrap_or_default();
    let interfaces = listed("interfaces", 0);
    let is_inside = |interface: &Value| field(interface, "sandbox", 1).as_str().is_some_and(|it| !it.is_empty());
    let mut addresses = Vec::new();
    for one in listed("ips", 1) {
        let index = field(&one, "interface", 1).as_u64().and_then(|index| usize::try_from(index).ok());
        if index.and_then(|index| interfaces.get(index)).is_none_or(is_inside) {
            let text = field(&one, "address", 0);
            let text = text.as_str().unwrap_or_default();
            addresses.extend(text.split('/').next().and_then(|text| text.parse::<IpAddr>().ok()));
        }
    }
    let outside = interfaces.iter().rev().filter(|interface| !is_inside(interface));
    let outside = outside.map(|interface| field(interface, "name", 0).as_str().unwrap_or_default().to_owned());
    (addresses, outside.collect())
}

/// CNI specification 1.1.0, section 5.
fn check_error(error: &Value) {
    assert!(error["cniVersion"].as_str().is_some_and(|version| VERSIONS.contains(&version)), "{error}");
    assert!(error["code"].as_u64().is_some_and(|code| code > 0), "{error}");
    assert!(error["msg"].as_str().is_some_and(|text| !text.is_empty()), "{error}");
}
