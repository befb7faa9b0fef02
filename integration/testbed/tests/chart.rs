//! The chart with its default values is the plain manifest, and what the manifest asks for is no more than it says.
#![expect(clippy::unwrap_used, reason = "a test ends at the first surprise")]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;

use namegate_config::settings;
use serde_json::Value;

const MANIFEST: &str = "integration/deploy/kubernetes/namegate.yaml";
const CHART: &str = "integration/deploy/helm/namegate";
/// The version that it is rendered for.
const KUBERNETES: &str = "1.36.3";
/// Where `cargo xtask test` says that helm is.
const HELM_VARIABLE: &str = "NAMEGATE_HELM";

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

/// Objects by kind and name.
fn objects(text: &str) -> BTreeMap<String, Value> {
    let documents =
        text.split("\n---\n").filter(|text| text.lines().any(|line| !line.is_empty() && !line.starts_with('#')));
    let objects =
        documents.map(|text| serde_saphyr::from_str::<Value>(text).unwrap_or_else(|error| panic!("{error}:\n{text}")));
    objects
        .filter(|object| !object.is_null())
        .map(|object| {
            (format!("{} {}", object["kind"].as_str().unwrap(), object["metadata"]["name"].as_str().unwrap()), object)
        })
        .collect()
}

fn manifest() -> BTreeMap<String, Value> {
    objects(&std::fs::read_to_string(root().join(MANIFEST)).unwrap())
}

/// What helm makes of the chart; `None` where there is no helm.
fn rendered(values: &[&str]) -> Option<BTreeMap<String, Value>> {
    let helm = std::env::var_os(HELM_VARIABLE).map_or_else(|| "helm".into(), PathBuf::from);
    let mut command = Command::new(helm);
    command.args(["template", "namegate", CHART, "--namespace", "kube-system"]).current_dir(root());
    command.args(["--kube-version", KUBERNETES]); // A helm that was built from its module knows none.
    for value in values {
        command.args(["--set", value]);
    }
    let output = match command.output() {
        Ok(output) => output,
        Err(error) if std::env::var_os(HELM_VARIABLE).is_none() => {
            eprintln!("helm is not there ({error}): the chart is not rendered");
            return None;
        }
        Err(error) => panic!("{HELM_VARIABLE}: {error}"),
    };
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    Some(objects(&String::from_utf8(output.stdout).unwrap()))
}

#[test]
fn the_chart_renders_the_manifest() {
    let Some(rendered) = rendered(&[]) else { return };
    let manifest = manifest();
    assert_eq!(rendered.keys().collect::<Vec<_>>(), manifest.keys().collect::<Vec<_>>());
    for (name, object) in &manifest {
        assert_eq!(&rendered[name], object, "{name}");
    }
}

#[test]
fn values_take_parts_away() {
    let Some(rendered) = rendered(&["cni.enabled=false", "prepareNode=false", "image.tag=x", "settings.audit=true"])
    else {
        return;
    };
    let pod = &rendered["DaemonSet namegate"]["spec"]["template"]["spec"];
    assert!(pod["initContainers"].is_null(), "{pod}");
    assert_eq!(pod["containers"][0]["image"], "ghcr.io/namegate/namegate:x");
    let text = rendered["ConfigMap namegate"]["data"]["namegate.yaml"].as_str().unwrap();
    assert!(settings::parse("namegate.yaml", text).unwrap().audit, "{text}");
}

#[test]
fn the_manifest_is_consistent() {
    let manifest = manifest();
    let pod = &manifest["DaemonSet namegate"]["spec"]["template"]["spec"];
    let names = |list: &Value| -> Vec<String> {
        list.as_array().unwrap().iter().map(|entry| entry["name"].as_str().unwrap().to_owned()).collect()
    };
    let volumes = names(&pod["volumes"]);
    let containers = pod["containers"].as_array().unwrap().iter().chain(pod["initContainers"].as_array().unwrap());
    let mut used = Vec::new();
    for container in containers {
        let mounts = container["volumeMounts"].as_array().cloned().unwrap_or_default();
        used.extend(names(&Value::Array(mounts)));
        let security = &container["securityContext"];
        assert_eq!(security["readOnlyRootFilesystem"], true, "{container}");
        assert!(security["privileged"] == true || security["capabilities"]["drop"][0] == "ALL", "{container}");
    }
    used.sort();
    used.dedup();
    let mut wanted = volumes.clone();
    wanted.sort();
    assert_eq!(used, wanted, "each volume is used, each mount has one");
    let text = manifest["ConfigMap namegate"]["data"]["namegate.yaml"].as_str().unwrap();
    settings::parse("namegate.yaml", text).unwrap_or_else(|mistakes| panic!("{mistakes:?}"));
    let rules = manifest["ClusterRole namegate"]["rules"].as_array().unwrap();
    let writes: Vec<&Value> =
        rules.iter().filter(|rule| rule["verbs"] != serde_json::json!(["get", "list", "watch"])).collect();
    for rule in writes {
        let resources = rule["resources"].as_array().unwrap().iter().map(|name| name.as_str().unwrap());
        for resource in resources {
            assert!(resource == "events" || resource.ends_with("/status"), "{rule}");
        }
    }
}
