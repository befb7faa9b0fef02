//! Real pods of a world, which call each other from inside their network namespaces.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use anyhow::{Context, Result};
use namegate_testbed::{Host, Log, Netns, Protocol, client};
use serde_json::{Value, json};
use tokio::task::JoinSet;

use crate::cluster::{Cluster, wait};

/// How long a call may take: a denied one is silent.
const WITHIN: Duration = Duration::from_millis(700);
/// Ports that every pod serves, over TCP, UDP and SCTP.
const PORTS: [u16; 2] = [80, 81];

/// A pod with its namespace entered.
struct Member {
    netns: Netns,
    addresses: Vec<IpAddr>,
    service: Vec<IpAddr>,
}

/// The pods of a world by `namespace/name`.
pub(crate) struct Mesh {
    members: BTreeMap<String, Member>,
    namespaces: Vec<String>,
}

/// One call.
#[derive(Clone, Debug)]
pub(crate) struct Probe {
    from: String,
    to: String,
    protocol: Protocol,
    address: SocketAddr,
}

impl Probe {
    pub(crate) fn new(from: &str, address: SocketAddr) -> Self {
        Self { from: from.to_owned(), to: "outside".to_owned(), protocol: Protocol::Tcp, address }
    }

    pub(crate) fn is_ipv4(&self) -> bool {
        self.address.is_ipv4()
    }
}

impl Mesh {
    /// Creates namespaces, pods and services, and serves in the pods.
    pub(crate) fn build(cluster: &Cluster, world: &Value) -> Result<Self> {
        let list = |key: &str| world[key].as_array().cloned().unwrap_or_default();
        let (namespaces, pods, services) = (list("namespaces"), list("pods"), list("services"));
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let names: Vec<String> = namespaces.iter().map(|namespace| text(&namespace["name"])).collect();
        let old: Vec<&str> = names.iter().map(String::as_str).collect();
        cluster.kubectl(&[&["delete", "namespace", "--ignore-not-found"][..], &old].concat())?;
        let objects = namespaces.iter().map(namespace).chain(pods.iter().map(pod)).chain(services.iter().map(service));
        let objects: Vec<Value> = objects.collect();
        let objects = json!({"apiVersion": "v1", "kind": "List", "items": objects});
        cluster.feed(&["apply", "-f", "-"], &objects.to_string())?;
        for namespace in &names {
            cluster.wait_pods(namespace)?;
        }
        let mut members = BTreeMap::new();
        for pod in &pods {
            let (namespace, name) = (text(&pod["namespace"]), text(&pod["name"]));
            let member = Member::enter(cluster, &namespace, &name)?;
            members.insert(format!("{namespace}/{name}"), member);
        }
        Ok(Self { members, namespaces: names })
    }

    /// Removes what was created.
    pub(crate) fn take_down(self, cluster: &Cluster) -> Result<()> {
        let namespaces: Vec<&str> = self.namespaces.iter().map(String::as_str).collect();
        cluster.kubectl(&[&["delete", "namespace", "--wait=false"][..], &namespaces].concat()).map(drop)
    }

    pub(crate) fn len(&self) -> usize {
        self.members.len()
    }

    pub(crate) fn names(&self) -> impl Iterator<Item = &String> {
        self.members.keys()
    }

    /// A pod's IPv4 address.
    pub(crate) fn ipv4(&self, name: &str) -> Option<IpAddr> {
        self.members.get(name)?.addresses.iter().copied().find(IpAddr::is_ipv4)
    }

    /// The calls that stand for one: by each address of the pod, and by its service's.
    pub(crate) fn probes(&self, from: &str, to: &str, protocol: Protocol, port: u16) -> Result<Vec<Probe>> {
        let member = self.members.get(to).with_context(|| format!("there is no pod {to}"))?;
        let addresses = member.addresses.iter().chain(&member.service);
        let probe = |address: &IpAddr| {
            let address = SocketAddr::new(*address, port);
            Probe { from: from.to_owned(), to: to.to_owned(), protocol, address }
        };
        Ok(addresses.map(probe).collect())
    }

    /// Makes all calls at the same time; gives for each whether it got through.
    pub(crate) fn call<'a>(&self, probes: impl Iterator<Item = &'a Probe>) -> Vec<bool> {
        let mut of: BTreeMap<&str, Vec<(usize, Probe)>> = BTreeMap::new();
        let mut count = 0;
        for probe in probes {
            of.entry(&probe.from).or_default().push((count, probe.clone()));
            count += 1;
        }
        let tasks: Vec<_> =
            of.into_iter().filter_map(|(from, calls)| Some(self.members.get(from)?.netns.spawn(all(calls)))).collect();
        let mut through = vec![false; count];
        for (at, seen) in tasks.into_iter().flat_map(namegate_testbed::Task::wait) {
            through[at] = seen;
        }
        through
    }

    /// A call in words, with what became of it.
    pub(crate) fn words(probe: &Probe, through: bool) -> String {
        let protocol = probe.protocol.word();
        let verdict = if through { "allowed" } else { "denied" };
        format!("{} -> {} ({}) {protocol} {verdict}", probe.from, probe.to, probe.address)
    }
}

impl Member {
    fn enter(cluster: &Cluster, namespace: &str, name: &str) -> Result<Self> {
        let netns = wait(&format!("the network of {namespace}/{name}"), || netns_of(cluster, namespace, name))?;
        let netns = cluster.enter(&netns)?;
        let host = Host { name: name.to_owned(), log: Log::default(), tls: None };
        netns.run(async move {
            Host::init_sctp(PORTS)?;
            PORTS.into_iter().try_for_each(|port| {
                host.echo_tcp(port)?;
                host.echo_udp(port)
            })
        })?;
        let service =
            cluster.get(&["service", &format!("s-{namespace}-{name}"), "-n", namespace, "--ignore-not-found"]);
        let service = service.unwrap_or_default();
        let service = service["spec"]["clusterIPs"].as_array().cloned().unwrap_or_default();
        let service = service.iter().filter_map(|address| address.as_str()?.parse().ok()).collect();
        Ok(Self { netns, addresses: cluster.addresses(namespace, name)?, service })
    }
}

/// File name of a pod's network namespace, as the CNI plugin has told the agent of its node.
pub(crate) fn netns_of(cluster: &Cluster, namespace: &str, name: &str) -> Result<Option<String>> {
    for node in cluster.nodes() {
        if let Some(found) = netns_on(node, namespace, name)? {
            return Ok(Some(found));
        }
    }
    Ok(None)
}

fn netns_on(node: &Cluster, namespace: &str, name: &str) -> Result<Option<String>> {
    let known = node.agent("/v1/cni").context("the agent does not answer")?;
    let is_it = |entry: &&Value| {
        let registration = &entry["registration"];
        registration["namespace"] == namespace && registration["pod"] == name
    };
    let found = known.as_array().into_iter().flatten().rfind(is_it);
    let path = found.and_then(|entry| entry["registration"]["netns"].as_str());
    Ok(path.and_then(|path| path.rsplit('/').next()).map(str::to_owned))
}

async fn all(calls: Vec<(usize, Probe)>) -> Vec<(usize, bool)> {
    let mut tasks = JoinSet::new();
    for (at, probe) in calls {
        tasks.spawn(async move { (at, gets_through(&probe).await) });
    }
    tasks.join_all().await
}

async fn gets_through(probe: &Probe) -> bool {
    let outcome = match probe.protocol {
        Protocol::Tcp => client::connect(probe.address, WITHIN).await.map(drop),
        Protocol::Udp => client::echo(probe.address, b"namegate", WITHIN).await,
        Protocol::Sctp => client::init_sctp(probe.address, WITHIN).await,
    };
    outcome.is_ok()
}

fn namespace(namespace: &Value) -> Value {
    json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": namespace["name"], "labels": namespace["labels"]}})
}

fn pod(pod: &Value) -> Value {
    let ports = pod["ports"]
        .as_array()
        .into_iter()
        .flatten()
        .map(|port| json!({"name": port["name"], "containerPort": port["port"], "protocol": port["protocol"]}));
    let container = json!({
        "name": "c", "image": "localhost/tools:1", "imagePullPolicy": "Never", "ports": ports.collect::<Vec<_>>(),
    });
    json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": pod["name"], "namespace": pod["namespace"], "labels": pod["labels"]},
        "spec": {"terminationGracePeriodSeconds": 0, "containers": [container]},
    })
}

fn service(service: &Value) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Service",
        "metadata": {"name": service["name"], "namespace": service["namespace"]},
        "spec": {"selector": service["selector"], "ports": service["ports"], "ipFamilyPolicy": "PreferDualStack"},
    })
}
