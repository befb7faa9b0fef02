//! The chart with its default values is the plain manifest, and what the manifest asks for is no more than it says.
#![expect(clippy::unwrap_used, reason = "a test ends at the first surprise")]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

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
    let output = helm(values)?;
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    Some(objects(&String::from_utf8(output.stdout).unwrap()))
}

fn helm(values: &[&str]) -> Option<Output> {
    let helm = std::env::var_os(HELM_VARIABLE).map_or_else(|| "helm".into(), PathBuf::from);
    let mut command = Command::new(helm);
    command.args(["template", "namegate", CHART, "--namespace", "kube-system"]).current_dir(root());
    command.args(["--kube-version", KUBERNETES]); // A helm that was built from its module knows none.
    for value in values {
        command.args(["--set", value]);
    }
    match command.output() {
        Ok(output) => Some(output),
        Err(error) if std::env::var_os(HELM_VARIABLE).is_none() => {
            eprintln!("helm is not there ({error}): the chart is not rendered");
            None
        }
        Err(error) => panic!("{HELM_VARIABLE}: {error}"),
    }
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
fn values_open_the_port_for_metrics() {
    let monitored =
        ["metrics.enabled=true", "metrics.port=9961", "podMonitor.enabled=true", "podMonitor.labels.team=a"];
    let Some(with) = rendered(&monitored) else { return };
    let text = with["ConfigMap namegate"]["data"]["namegate.yaml"].as_str().unwrap();
    let settings = settings::parse("namegate.yaml", text).unwrap();
    assert_eq!(settings.metrics.listen, Some("[::]:9961".parse().unwrap()), "{text}");
    assert!(settings.kubernetes.is_some(), "{text}");
    let port = &with["DaemonSet namegate"]["spec"]["template"]["spec"]["containers"][0]["ports"][0];
    assert_eq!((&port["name"], &port["containerPort"]), (&"metrics".into(), &9961.into()));
    let monitor = &with["PodMonitor namegate"];
    assert_eq!(monitor["metadata"]["labels"]["team"], "a");
    let endpoint = &monitor["spec"]["podMetricsEndpoints"][0];
    assert_eq!((&endpoint["port"], &endpoint["path"]), (&port["name"], &"/metrics".into()));
    let labels = &with["DaemonSet namegate"]["spec"]["template"]["metadata"]["labels"];
    assert_eq!(&monitor["spec"]["selector"]["matchLabels"], labels, "the agents' pods are selected");

    let port_alone = rendered(&["metrics.enabled=true", "metrics.address=0.0.0.0"]).unwrap();
    assert!(!port_alone.contains_key("PodMonitor namegate"));
    let text = port_alone["ConfigMap namegate"]["data"]["namegate.yaml"].as_str().unwrap();
    let settings = settings::parse("namegate.yaml", text).unwrap();
    assert_eq!(settings.metrics.listen, Some("0.0.0.0:9960".parse().unwrap()), "{text}");
    let refused = helm(&["podMonitor.enabled=true"]).unwrap();
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(!refused.status.success() && said.contains("needs metrics.enabled"), "{said}");
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
