//! Calls the plugin as a container runtime does, with an agent that is played.

use std::io::{Read, Write};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex};

use serde_json::{Value, json};

pub(crate) const PROGRAM: &str = env!("CARGO_BIN_EXE_namegate-cni");

/// A request as the agent saw it: method, path, body.
pub(crate) type Seen = (String, String, Value);

/// An agent that gives one answer to each method and path.
pub(crate) struct FakeAgent {
    pub(crate) socket: PathBuf,
    seen: Arc<Mutex<Vec<Seen>>>,
    _folder: tempfile::TempDir,
}

impl FakeAgent {
    /// Answers with what the function says: a status and a body.
    pub(crate) fn start(answer: impl Fn(&str, &str) -> (u16, String) + Send + 'static) -> Self {
        Self::serve(move |method, path| {
            let (status, body) = answer(method, path);
            format!("HTTP/1.0 {status} So\r\nContent-Length: {}\r\n\r\n{body}", body.len())
        })
    }

    /// Answers with these octets.
    pub(crate) fn serve(answer: impl Fn(&str, &str) -> String + Send + 'static) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let socket = folder.path().join("agent.sock");
        let listener = UnixListener::bind(&socket).unwrap();
        let seen = Arc::new(Mutex::new(Vec::new()));
        let log = seen.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let mut stream = stream.unwrap();
                let (method, path, body) = read(&mut stream);
                let octets = answer(&method, &path);
                log.lock().unwrap().push((method, path, body));
                let _ = stream.write_all(octets.as_bytes()); // The plugin may have seen enough.
            }
        });
        Self { socket, seen, _folder: folder }
    }

    pub(crate) fn seen(&self) -> Vec<Seen> {
        self.seen.lock().unwrap().clone()
    }
}

fn read(stream: &mut impl Read) -> Seen {
    let mut octets = Vec::new();
    loop {
        let mut some = [0; 4096];
        let count = stream.read(&mut some).unwrap();
        octets.extend_from_slice(&some[..count]);
        let text = String::from_utf8_lossy(&octets).into_owned();
        let Some((head, body)) = text.split_once("\r\n\r\n") else { continue };
        let length = head.lines().find_map(|line| line.strip_prefix("Content-Length: ")).unwrap_or("0");
        if body.len() < length.parse::<usize>().unwrap() {
            continue;
        }
        let mut words = head.split(' ');
        let (method, path) = (words.next().unwrap().to_owned(), words.next().unwrap().to_owned());
        return (method, path, serde_json::from_str(body).unwrap_or(Value::Null));
    }
}

/// What the plugin did.
#[derive(Debug)]
pub(crate) struct Done {
    pub(crate) status: i32,
    pub(crate) output: Value,
    pub(crate) complaint: String,
}

/// Variables of a call.
pub(crate) type Variables<'a> = Vec<(&'a str, &'a str)>;

/// Calls the plugin with these variables and no other `CNI_` ones.
pub(crate) fn call(variables: &[(&str, &str)], input: &str) -> Done {
    let mut command = Command::new(PROGRAM);
    command.env_clear().envs(variables.iter().copied());
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
    let done = child.wait_with_output().unwrap();
    let output = String::from_utf8(done.stdout).unwrap();
    Done {
        status: done.status.code().unwrap(),
        output: if output.is_empty() { Value::Null } else { serde_json::from_str(&output).unwrap() },
        complaint: String::from_utf8(done.stderr).unwrap(),
    }
}

/// Variables of a call for the pod empire/xwing, whose interface is this test's own `lo`: it has no other side.
pub(crate) fn variables(command: &str) -> Variables<'_> {
    vec![
        ("CNI_COMMAND", command),
        ("CNI_CONTAINERID", "c0ffee"),
        ("CNI_NETNS", "/proc/self/ns/net"),
        ("CNI_IFNAME", "lo"),
        ("CNI_PATH", "/opt/cni/bin"),
        ("CNI_ARGS", "IgnoreUnknown=1;K8S_POD_NAMESPACE=empire;K8S_POD_NAME=xwing;K8S_POD_UID=u-1"),
    ]
}

/// The same with one variable changed, or taken away where the value is empty.
pub(crate) fn with<'a>(command: &'a str, name: &'a str, value: &'a str) -> Variables<'a> {
    let kept = variables(command).into_iter().filter(|(known, _)| *known != name);
    kept.chain((!value.is_empty()).then_some((name, value))).collect()
}

/// A configuration as the runtime fills it in. The node's side is `lo`, which every machine has.
pub(crate) fn config(version: &str, socket: &Path) -> Value {
    let mut config = json!({
        "cniVersion": version, "name": "pods", "type": "namegate-cni", "socket": socket, "waitSeconds": 0,
        "prevResult": {
            "cniVersion": version,
            "interfaces": [{"name": "lo", "mac": "00:00:00:00:00:00"}, {"name": "eth0", "sandbox": "/run/netns/x"}],
            "ips": [{"address": "10.1.2.3/24", "gateway": "10.1.2.1", "interface": 1}, {"address": "fd00::3/64", "interface": 1}],
            "dns": {"nameservers": ["10.96.0.10"]},
        },
    });
    if version.starts_with('0') {
        config["prevResult"]["ips"][0]["version"] = "4".into();
        config["prevResult"]["ips"][1]["version"] = "6".into();
    }
    config
}
