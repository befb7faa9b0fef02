//! Pods behind services of every kind, and clients with a policy each.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;

use anyhow::{Context, Result};
use namegate_testbed::dns::{Question, resolve};
use namegate_testbed::proto::rr::RecordType;
use namegate_testbed::{Netns, Task, client};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::timeout;

use crate::cluster::{Cluster, wait};
use crate::mesh::netns_of;

const SERVICES: &str = include_str!("../../../../data/cluster/services.yaml");
const POLICIES: &str = include_str!("../../../../data/cluster/services-policies.yaml");
/// The same in the agent's words.
const DOCUMENTS: [&str; 2] = ["CiliumNetworkPolicy services/clients", "NetworkPolicy services/named"];
pub(super) const NAMESPACE: &str = "services";
/// Pods behind services: name, the label `app`, whether `mixed` leads to them.
const SERVERS: [(&str, &str, bool); 5] = [
    ("web-1", "web", true),
    ("web-2", "web", false),
    ("other", "other", true),
    ("guarded", "guarded", false),
    (CLAIMED, "other", false),
];
/// The pod whose address a service with other pods behind it claims.
pub(super) const CLAIMED: &str = "claimed";
/// Clients, by the label `client`. The policies say what each may.
const CLIENTS: [&str; 10] = ["free", "label", "port", "other", "both", "service", "named", "node", "name", "limited"];
/// Where pods serve.
const PORT: u16 = 8080;
/// How long each step of a call may take: a denied one is silent.
pub(super) const WITHIN: Duration = Duration::from_secs(2);
/// The cluster's DNS.
const DNS: &str = "10.96.0.10:53";

/// Where to call.
#[derive(Clone, Copy, Debug)]
pub(super) enum At {
    /// The IPv4 address of a service, port 80.
    Service(&'static str),
    /// The IPv6 address of a service, port 80.
    Service6(&'static str),
    /// The port of a service at the node's IPv4 address.
    NodePort(&'static str),
    /// The port of a service at the node's IPv6 address.
    NodePort6(&'static str),
    /// Every IPv4 address that the name of a service leads to, at this port.
    Name(&'static str, u16),
    /// A port of the node itself.
    Node(u16),
    /// An address outside that services claim, port 80.
    Outside(Ipv4Addr),
    /// The IPv4 address of a pod, at its own port.
    Pod(&'static str),
}

/// The clients, and what is known of those they call.
pub(super) struct World {
    clients: BTreeMap<&'static str, Netns>,
    /// By their names, as the API server has them.
    services: BTreeMap<String, Value>,
    /// Of the node.
    addresses: Vec<IpAddr>,
    /// IPv4 addresses of the pods behind services, by their names.
    pods: BTreeMap<&'static str, IpAddr>,
}

impl World {
    /// Creates everything, the policies last; they are in force then.
    pub(super) fn build(cluster: &Cluster) -> Result<Self> {
        cluster.kubectl(&["delete", "namespace", NAMESPACE, "--ignore-not-found"])?;
        cluster.feed(&["apply", "-f", "-"], SERVICES)?;
        let clients = CLIENTS.map(|name| pod(&format!("client-{name}"), &json!({"client": name}), None));
        let servers = SERVERS.map(|(name, app, mixed)| {
            let group = if mixed { "mixed" } else { "none" };
            server(name, &json!({"app": app, "group": group}))
        });
        let pods: Vec<Value> = servers.into_iter().chain(clients).collect();
        let list = json!({"apiVersion": "v1", "kind": "List", "items": pods});
        cluster.feed(&["apply", "-f", "-"], &list.to_string())?;
        cluster.wait_pods(NAMESPACE)?;
        let enter = |name: &'static str| -> Result<_> {
            let pod = format!("client-{name}");
            let netns = wait(&format!("the network of {pod}"), || netns_of(cluster, NAMESPACE, &pod))?;
            Ok((name, cluster.enter(&netns)?))
        };
        let clients = CLIENTS.into_iter().map(enter).collect::<Result<_>>()?;
        let pods = claim(cluster)?;
        cluster.feed(&["apply", "-f", "-"], POLICIES)?;
        for document in DOCUMENTS {
            cluster.change(document, true, || Ok(()))?;
        }
        let items = |value: Value| value["items"].as_array().cloned().unwrap_or_default();
        let services = items(cluster.get(&["services", "-n", NAMESPACE])?);
        let services = services.into_iter().filter_map(|one| Some((one["metadata"]["name"].as_str()?.to_owned(), one)));
        let nodes = items(cluster.get(&["nodes"])?);
        let addresses = nodes.iter().filter_map(|node| node["status"]["addresses"].as_array()).flatten();
        let addresses = addresses.filter(|entry| entry["type"] == "InternalIP");
        let addresses = addresses.filter_map(|entry| entry["address"].as_str()?.parse().ok()).collect();
        Ok(Self { clients, services: services.collect(), addresses, pods })
    }

    /// Begins to call; gives the name that the last of those answers who are called, `None` unless all do.
    pub(super) fn call(&self, client: &str, at: At) -> Result<Task<Option<String>>> {
        self.ask(client, at, "/", WITHIN)
    }

    /// Begins to ask for a page, with so much patience; gives its last line.
    pub(super) fn ask(
        &self,
        client: &str,
        at: At,
        page: &'static str,
        within: Duration,
    ) -> Result<Task<Option<String>>> {
        let place = self.place(at)?;
        let netns = self.clients.get(client).with_context(|| format!("there is no client {client}"))?;
        Ok(netns.spawn(async move {
            let addresses = match place {
                Place::Address(address) => vec![address],
                Place::Name(name, port) => look_up(&name, port, within).await?,
            };
            let mut said = None;
            for address in addresses {
                said = Some(fetch(address, page, within).await?);
            }
            said
        }))
    }

    fn place(&self, at: At) -> Result<Place> {
        let address = match at {
            At::Service(name) => SocketAddr::new(self.cluster_ip(name, IpAddr::is_ipv4)?, 80),
            At::Service6(name) => SocketAddr::new(self.cluster_ip(name, IpAddr::is_ipv6)?, 80),
            At::NodePort(name) => SocketAddr::new(self.node(IpAddr::is_ipv4)?, self.node_port(name)?),
            At::NodePort6(name) => SocketAddr::new(self.node(IpAddr::is_ipv6)?, self.node_port(name)?),
            At::Node(port) => SocketAddr::new(self.node(IpAddr::is_ipv4)?, port),
            At::Outside(address) => SocketAddr::new(address.into(), 80),
            At::Pod(name) => SocketAddr::new(*self.pods.get(name).context("a pod behind a service")?, PORT),
            At::Name(name, port) => return Ok(Place::Name(format!("{name}.{NAMESPACE}.svc.cluster.local"), port)),
        };
        Ok(Place::Address(address))
    }

    fn node(&self, family: impl Fn(&IpAddr) -> bool) -> Result<IpAddr> {
        self.addresses.iter().copied().find(family).context("an address of the node")
    }

    fn cluster_ip(&self, name: &str, family: impl Fn(&IpAddr) -> bool) -> Result<IpAddr> {
        let listed = self.services.get(name).and_then(|service| service["spec"]["clusterIPs"].as_array());
        let mut parsed = listed.into_iter().flatten().filter_map(|address| address.as_str()?.parse().ok());
        parsed.find(family).with_context(|| format!("an address of the service {name}"))
    }

    fn node_port(&self, name: &str) -> Result<u16> {
        let port = self.services.get(name).and_then(|service| service["spec"]["ports"][0]["nodePort"].as_u64());
        port.and_then(|port| port.try_into().ok()).with_context(|| format!("the node's port of the service {name}"))
    }
}

/// Has services claim an address outside by their status, and the address of a pod; gives the addresses of the pods.
fn claim(cluster: &Cluster) -> Result<BTreeMap<&'static str, IpAddr>> {
    let ingress = json!({"status": {"loadBalancer": {"ingress": [{"ip": "203.0.113.44", "ipMode": "Proxy"}]}}});
    let ingress = ingress.to_string();
    let patch = ["patch", "service", "balanced", "-n", NAMESPACE, "--subresource=status", "--type=merge", "-p"];
    cluster.kubectl(&[&patch[..], &[ingress.as_str()]].concat())?;
    let of = |(name, ..): (&'static str, &str, bool)| -> Result<_> {
        let mut addresses = cluster.addresses(NAMESPACE, name)?.into_iter();
        Ok((name, addresses.find(IpAddr::is_ipv4).context("an IPv4 address of a pod")?))
    };
    let pods: BTreeMap<_, _> = SERVERS.into_iter().map(of).collect::<Result<_>>()?;
    let claimed = pods.get(CLAIMED).context("the pod whose address is claimed")?;
    let service = json!({
        "apiVersion": "v1", "kind": "Service", "metadata": {"name": "claiming", "namespace": NAMESPACE},
        "spec": {"selector": {"app": "web"}, "ports": [{"port": PORT}], "externalIPs": [claimed]},
    });
    cluster.feed(&["apply", "-f", "-"], &service.to_string())?;
    Ok(pods)
}

enum Place {
    Address(SocketAddr),
    Name(String, u16),
}

/// The addresses of a name with a port.
pub(crate) async fn look_up(name: &str, port: u16, within: Duration) -> Option<Vec<SocketAddr>> {
    let mut question = Question::new(DNS.parse().ok()?, name, RecordType::A);
    question.within = within;
    let found = resolve(question).await.ok()?;
    Some(found.addresses.into_iter().map(|address| SocketAddr::new(address, port)).collect())
}

/// GETs a page; gives its last line, `None` where no answer comes in time.
pub(crate) async fn fetch(address: SocketAddr, path: &str, within: Duration) -> Option<String> {
    let mut stream = client::connect(address, within).await.ok()?;
    let request = format!("GET {path} HTTP/1.1\r\nHost: service\r\nConnection: close\r\n\r\n");
    let exchange = async {
        stream.write_all(request.as_bytes()).await?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.map(|_| answer)
    };
    let answer = timeout(within, exchange).await.ok()?.ok()?;
    answer.lines().last().map(str::to_owned)
}

/// A pod that answers with its name.
pub(super) fn server(name: &str, labels: &Value) -> Value {
    let script = format!("mkdir /tmp/w; echo {name} > /tmp/w/index.html; exec busybox httpd -f -p {PORT} -h /tmp/w");
    pod(name, labels, Some(&script))
}

fn pod(name: &str, labels: &Value, script: Option<&str>) -> Value {
    let mut container = json!({"name": "c", "image": "localhost/tools:1", "imagePullPolicy": "Never"});
    if let Some(script) = script {
        container["command"] = json!(["/bin/sh", "-c", script]);
        container["ports"] = json!([{"name": "http", "containerPort": PORT}]);
        let probe = format!("nc -w 1 127.0.0.1 {PORT} </dev/null");
        container["readinessProbe"] = json!({"exec": {"command": ["/bin/sh", "-c", probe]}, "periodSeconds": 1});
    }
    json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": name, "namespace": NAMESPACE, "labels": labels},
        "spec": {"terminationGracePeriodSeconds": 0, "containers": [container]},
    })
}
