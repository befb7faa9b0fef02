//! Installing into the folders of runtimes, twice, and taking it out again.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Output};

use crate::common::PROGRAM;
use serde_json::{Value, json};

struct Node(tempfile::TempDir);

impl Node {
    fn new(files: &[(&str, Value)]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        for name in ["bin", "conf"] {
            fs::create_dir(folder.path().join(name)).unwrap();
        }
        for (name, content) in files {
            fs::write(folder.path().join("conf").join(name), content.to_string()).unwrap();
        }
        Self(folder)
    }

    fn run(&self, verb: &str) -> Output {
        let path = |name: &str| self.0.path().join(name);
        let mut command = Command::new(PROGRAM);
        command.arg(verb).arg("--bin-dir").arg(path("bin")).arg("--conf-dir").arg(path("conf"));
        command.output().unwrap()
    }

    fn done(&self, verb: &str) -> String {
        let output = self.run(verb);
        assert!(output.status.success(), "{verb}: {output:?}");
        String::from_utf8(output.stdout).unwrap()
    }

    fn conf(&self, name: &str) -> Value {
        serde_json::from_slice(&fs::read(self.0.path().join("conf").join(name)).unwrap()).unwrap()
    }

    fn names(&self, folder: &str) -> Vec<String> {
        let entries = fs::read_dir(self.0.path().join(folder)).unwrap();
        let mut names: Vec<String> = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    fn program(&self) -> std::path::PathBuf {
        self.0.path().join("bin/namegate-cni")
    }
}

fn plugin() -> Value {
    json!({"type": "namegate-cni", "socket": "/run/namegate/namegate.sock", "onAgentDown": "deny"})
}

#[test]
fn the_first_list_gets_the_plugin_once() {
    let list = json!({"cniVersion": "1.0.0", "name": "pods", "plugins": [{"type": "ptp", "ipam": {"type": "x"}}]});
    let node = Node::new(&[("10-pods.conflist", list.clone()), ("20-other.conflist", list.clone())]);
    node.done("install");
    let mut want = list.clone();
    want["plugins"].as_array_mut().unwrap().push(plugin());
    assert_eq!(node.conf("10-pods.conflist"), want);
    assert_eq!(node.conf("20-other.conflist"), list);
    assert_eq!(fs::read(node.program()).unwrap(), fs::read(PROGRAM).unwrap());
    assert_eq!(fs::metadata(node.program()).unwrap().permissions().mode() & 0o777, 0o755);
    let written = fs::metadata(node.0.path().join("conf/10-pods.conflist")).unwrap().modified().unwrap();
    let again = node.done("install");
    assert!(again.contains("is up to date") && again.contains("has the plugin"), "{again}");
    assert_eq!(fs::metadata(node.0.path().join("conf/10-pods.conflist")).unwrap().modified().unwrap(), written);
    node.done("uninstall");
    assert_eq!(node.conf("10-pods.conflist"), list);
    assert!(!node.program().exists());
    node.done("uninstall");
    assert_eq!(node.names("conf"), ["10-pods.conflist", "20-other.conflist"]);
}

#[test]
fn a_single_configuration_becomes_a_list_and_comes_back() {
    let single = json!({"cniVersion": "0.3.1", "name": "net", "type": "bridge", "bridge": "cni0"});
    let node = Node::new(&[("10-net.conf", single.clone())]);
    node.done("install");
    let list =
        json!({"cniVersion": "0.3.1", "name": "net", "plugins": [{"type": "bridge", "bridge": "cni0"}, plugin()]});
    assert_eq!(node.conf("10-net.conflist"), list);
    assert_eq!(node.names("conf"), ["10-net.conf.namegate-saved", "10-net.conflist"]);
    node.done("install");
    assert_eq!(node.conf("10-net.conflist"), list);
    node.done("uninstall");
    assert_eq!(node.names("conf"), ["10-net.conf"]);
    assert_eq!(node.conf("10-net.conf"), single);
}

#[test]
fn an_older_entry_is_replaced() {
    let list = |entry: Value| json!({"cniVersion": "1.0.0", "name": "pods", "plugins": [{"type": "ptp"}, entry, {"type": "portmap"}]});
    let node = Node::new(&[("10-pods.conflist", list(json!({"type": "namegate-cni", "socket": "/old"})))]);
    fs::write(node.program(), "an older version").unwrap();
    node.done("install");
    assert_eq!(node.conf("10-pods.conflist"), list(plugin()));
    assert_eq!(fs::read(node.program()).unwrap(), fs::read(PROGRAM).unwrap());
    assert_eq!(node.names("bin"), ["namegate-cni"]);
}

#[test]
fn folders_without_a_plugin_to_follow_are_refused() {
    for (files, words) in [
        (vec![], "has no network configuration"),
        (vec![("10-x.conf", json!({"cniVersion": "1.0.0", "type": "ptp"}))], "no `name`"),
        (vec![("10-x.conflist", json!({"name": "x"}))], "neither `plugins` nor `type`"),
        (vec![("10-x.conflist", json!({"name": "x", "plugins": {}}))], "no list"),
        (vec![("10-x.conflist", json!({"name": "x", "plugins": []}))], "makes an interface"),
        (vec![("10-x.conflist", json!([]))], "no JSON object"),
    ] {
        let node = Node::new(&files);
        let output = node.run("install");
        let said = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(2), "{files:?}: {said}");
        assert!(said.contains(words), "{files:?}: {said}");
        assert_eq!(node.names("conf"), files.iter().map(|(name, _)| (*name).to_owned()).collect::<Vec<_>>());
    }
    let output =
        Command::new(PROGRAM).args(["install", "--conf-dir", "/nowhere", "--bin-dir", "/nowhere"]).output().unwrap();
    assert_eq!(output.status.code(), Some(2));
    assert!(!Path::new("/nowhere").exists());
}
