//! Pods on two nodes, which serve and call from inside their network namespaces.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use anyhow::{Context, Result};
use namegate_testbed::{Host, Log, Netns, Task};
use serde_json::{Value, json};

use crate::cluster::{Cluster, wait};
use crate::mesh::netns_of;
use crate::services::world::fetch;

pub(super) const NAMESPACE: &str = "nodes";
const SERVICES: &str = include_str!("../../../../data/cluster/nodes.yaml");
/// Pods of each node.
const PODS: [&[&str]; 2] = [
    &["a", "free", "none", "remote", "host", "both", "one", "caller", "near", "limited"],
    &["b", "c", "far", "door", "gate", "names", "back"],
];
/// Labels beside the name.
const GROUPS: [(&str, &str, &str); 3] = [("b", "group", "b"), ("near", "app", "mixed"), ("far", "app", "mixed")];
/// Where pods serve.
pub(super) const PORT: u16 = 8080;
/// A port that kube-proxy opens on every address of its node.
const HEALTH: u16 = 10256;
/// How long each step of a call may take: a denied one is silent.
pub(super) const WITHIN: Duration = Duration::from_secs(2);

/// Whom to call. Nodes are counted from 1.
#[derive(Clone, Copy, Debug)]
pub(super) enum To {
    /// A pod's own address.
    Pod(&'static str),
    /// The address of a service, port 80.
    Service(&'static str),
    /// The port of a service at a node's address.
    NodePort(usize, &'static str),
    /// A port of a node itself.
    Node(usize),
}

/// The two families of addresses, by whether they are IPv6.
pub(super) const FAMILIES: [(&str, bool); 2] = [("IPv4", false), ("IPv6", true)];

/// The pods, and what is known of those they call.
pub(super) struct World {
    pods: BTreeMap<&'static str, (Netns, Vec<IpAddr>)>,
    /// By their names, as the API server has them.
    services: BTreeMap<String, Value>,
    /// Addresses of each node.
    nodes: Vec<Vec<IpAddr>>,
}

impl World {
    /// Creates pods and services, no policies, and serves in the pods.
    pub(super) fn build(cluster: &Cluster) -> Result<Self> {
        cluster.kubectl(&["delete", "namespace", NAMESPACE, "--ignore-not-found"])?;
        cluster.feed(&["apply", "-f", "-"], SERVICES)?;
        let names = || (1..).zip(PODS).flat_map(|(node, names)| names.iter().map(move |name| (node, *name)));
        let pods: Vec<Value> = names().map(|(node, name)| pod(name, node, &labels(name), None)).collect();
        let list = json!({"apiVersion": "v1", "kind": "List", "items": pods});
        cluster.feed(&["apply", "-f", "-"], &list.to_string())?;
        cluster.wait_pods(NAMESPACE)?;
        let enter = |(_, name): (usize, &'static str)| -> Result<_> {
            let netns = wait(&format!("the network of {name}"), || netns_of(cluster, NAMESPACE, name))?;
            let netns = cluster.enter(&netns)?;
            let host = Host { name: name.to_owned(), log: Log::default(), tls: None };
            netns.run(async move { host.http(PORT) })?;
            Ok((name, (netns, cluster.addresses(NAMESPACE, name)?)))
        };
        let pods = names().map(enter).collect::<Result<_>>()?;
        let items = |value: Value| value["items"].as_array().cloned().unwrap_or_default();
        let services = items(cluster.get(&["services", "-n", NAMESPACE])?);
        let services = services.into_iter().filter_map(|one| Some((one["metadata"]["name"].as_str()?.to_owned(), one)));
        let nodes = (1..=PODS.len()).map(|node| addresses_of(cluster, node)).collect::<Result<_>>()?;
        Ok(Self { pods, services: services.collect(), nodes })
    }

    /// Begins to call; gives the name of the pod that answers.
    pub(super) fn call(&self, client: &str, to: To, v6: bool) -> Result<Task<Option<String>>> {
        self.ask(client, to, v6, "/")
    }

    /// Begins to ask for a page; gives the first word of the last line of the answer.
    pub(super) fn ask(&self, client: &str, to: To, v6: bool, page: &'static str) -> Result<Task<Option<String>>> {
        let address = self.address(to, v6)?;
        Ok(self.netns(client)?.spawn(async move {
            let line = fetch(address, page, WITHIN).await?;
            line.split(' ').next().map(str::to_owned)
        }))
    }

    /// Where a pod calls from.
    pub(super) fn netns(&self, pod: &str) -> Result<&Netns> {
        self.pods.get(pod).map(|(netns, _)| netns).with_context(|| format!("there is no pod {pod}"))
    }

    /// What stands for somebody in one family.
    pub(super) fn address(&self, to: To, v6: bool) -> Result<SocketAddr> {
        let of = |addresses: &[IpAddr]| addresses.iter().copied().find(|address| address.is_ipv6() == v6);
        let (address, port) = match to {
            To::Pod(name) => (self.pods.get(name).and_then(|(_, addresses)| of(addresses)), PORT),
            To::Service(name) => (of(&self.cluster_ips(name)), 80),
            To::NodePort(node, name) => (of(&self.nodes[node - 1]), self.node_port(name)?),
            To::Node(node) => (of(&self.nodes[node - 1]), HEALTH),
        };
        Ok(SocketAddr::new(address.with_context(|| format!("an address of {to:?}"))?, port))
    }

    fn cluster_ips(&self, name: &str) -> Vec<IpAddr> {
        let listed = self.services.get(name).and_then(|service| service["spec"]["clusterIPs"].as_array());
        listed.into_iter().flatten().filter_map(|address| address.as_str()?.parse().ok()).collect()
    }

    fn node_port(&self, name: &str) -> Result<u16> {
        let port = self.services.get(name).and_then(|service| service["spec"]["ports"][0]["nodePort"].as_u64());
        port.and_then(|port| port.try_into().ok()).with_context(|| format!("the nodes' port of the service {name}"))
    }
}

fn addresses_of(cluster: &Cluster, node: usize) -> Result<Vec<IpAddr>> {
    let node = cluster.get(&["node", &name_of(node)])?;
    let listed = node["status"]["addresses"].as_array().into_iter().flatten();
    let internal = listed.filter(|entry| entry["type"] == "InternalIP");
    Ok(internal.filter_map(|entry| entry["address"].as_str()?.parse().ok()).collect())
}

/// A node's name.
pub(super) fn name_of(node: usize) -> String {
    format!("node{node}")
}

fn labels(pod: &str) -> Value {
    let mut labels = json!({"pod": pod});
    for (_, key, value) in GROUPS.into_iter().filter(|(name, ..)| *name == pod) {
        labels[key] = value.into();
    }
    labels
}

/// A pod of this node.
pub(super) fn pod(name: &str, node: usize, labels: &Value, script: Option<&str>) -> Value {
    let mut container = json!({"name": "c", "image": "localhost/tools:1", "imagePullPolicy": "Never"});
    if let Some(script) = script {
        container["command"] = json!(["/bin/sh", "-c", script]);
    }
    json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": name, "namespace": NAMESPACE, "labels": labels},
        "spec": {"nodeName": name_of(node), "terminationGracePeriodSeconds": 0, "containers": [container]},
    })
}
