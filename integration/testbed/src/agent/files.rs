//! The agent's files: settings, endpoints, policies.

use std::io::Write;
use std::path::Path;

use anyhow::{Context, Result};
use serde_json::{Value, json};

use super::Options;
use crate::spec::PodSpec;
use crate::world::World;

/// Writes everything that the agent reads at its start.
pub(super) fn write(folder: &Path, pins: &Path, world: &World, options: &Options) -> Result<()> {
    let policies = folder.join("policies");
    std::fs::create_dir(&policies)?;
    if !options.policies.is_empty() {
        replace(&policies.join("policies.yaml"), &options.policies)?;
    }
    for (name, text) in &options.files {
        std::fs::write(policies.join(name), text).with_context(|| format!("writing the policy {name}"))?;
    }
    replace(&folder.join("endpoints.yaml"), &endpoints(world, options)?)?;
    let mut settings = json!({
        "policies": policies,
        "endpoints": folder.join("endpoints.yaml"),
        "socket": folder.join("namegate.sock"),
        "state": folder.join("state"),
        "pins": pins,
    });
    if let Value::Object(settings) = &mut settings {
        settings.extend(options.settings.clone());
    }
    replace(&folder.join("namegate.yaml"), &serde_json::to_string_pretty(&settings)?)
}

/// The endpoints file for a world: every pod with its host-side interface.
pub(super) fn endpoints(world: &World, options: &Options) -> Result<String> {
    let spec = world.spec();
    let known = world.pods().iter().filter(|pod| !options.unknown.contains(&pod.spec.key()));
    let endpoints: Vec<_> = known
        .map(|pod| {
            let guarded = !options.unguarded.contains(&pod.spec.key());
            endpoint(&pod.spec, guarded.then_some(pod.interface.as_str()))
        })
        .collect();
    let endpoints: Vec<Value> = endpoints.into_iter().chain(options.endpoints.iter().cloned()).collect();
    let namespaces: Vec<_> = spec.namespaces.iter().map(|it| json!({"name": it.name, "labels": it.labels})).collect();
    let nodes = spec.nodes.iter().skip(1);
    let nodes: Vec<_> = nodes.map(|it| json!({"name": it.name, "labels": it.labels, "addresses": it.ips})).collect();
    let mut file = json!({"nodes": nodes, "namespaces": namespaces, "endpoints": endpoints});
    if let Some(host) = spec.nodes.first() {
        file["host"] = json!({"addresses": host.ips, "labels": host.labels});
    }
    serde_json::to_string_pretty(&file).context("writing the endpoints")
}

fn endpoint(pod: &PodSpec, interface: Option<&str>) -> Value {
    let named = pod.ports.iter().filter_map(|port| Some((port.name.as_ref()?, port)));
    let ports: Vec<_> =
        named.map(|(name, port)| json!({"name": name, "port": port.port, "protocol": port.protocol.word()})).collect();
    let mut endpoint = json!({
        "name": pod.name,
        "namespace": pod.namespace,
        "labels": pod.labels,
        "serviceAccount": pod.service_account,
        "addresses": pod.ips,
        "ports": ports,
    });
    if let Some(interface) = interface {
        endpoint["interface"] = json!(interface);
    }
    endpoint
}

/// Puts a file in place at once, so that nobody reads half of it.
pub(super) fn replace(path: &Path, text: &str) -> Result<()> {
    let folder = path.parent().and_then(Path::parent).context("a folder for the new file")?;
    let mut file = tempfile::NamedTempFile::new_in(folder)?;
    file.write_all(text.as_bytes())?;
    file.persist(path).with_context(|| format!("writing {}", path.display()))?;
    Ok(())
}
