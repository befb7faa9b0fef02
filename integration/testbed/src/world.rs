//! A world on this machine: built from a description, taken down when dropped, also after a panic.

use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use hickory_proto::rr::RecordType;

use crate::client::Client;
use crate::dns::{self, Zone};
use crate::host::{Host, Log};
use crate::ip;
use crate::netns::Netns;
use crate::network::{self, NODE_SYSCTLS, OUTSIDE_SYSCTLS, SYSCTLS, UPLINK};
use crate::pod::Pod;
use crate::spec::{PodSpec, Protocol, Spec};
use crate::tls::{Certificate, Tls};

/// Port of the resolvers.
const DNS_PORT: u16 = 53;
/// Ports that are served with TLS.
const TLS_PORTS: [u16; 2] = [443, 8443];
/// Ports of the outside that answer HTTP.
const OUTSIDE_HTTP: [u16; 2] = [80, 8080];
/// Port of the echo protocol (RFC 862), served outside over TCP and UDP.
pub const ECHO_PORT: u16 = 7;
/// A port of the outside that echoes over TCP and UDP, for tests that need a second one.
pub const OTHER_ECHO_PORT: u16 = 7007;

static WORLDS: AtomicU32 = AtomicU32::new(0);

/// Pods on one node, and everything else behind it.
#[derive(Debug)]
pub struct World {
    id: String,
    spec: Spec,
    zone: Zone,
    pods: Vec<Pod>,
    node: Netns,
    outside: Netns,
    outside_log: Log,
    outside_host: Host,
    tls: Tls,
    _names: Names,
}

/// Removes the namespaces by name once their threads have ended.
#[derive(Debug)]
struct Names(Vec<String>);

impl Drop for Names {
    fn drop(&mut self) {
        ip::delete_namespaces(&self.0);
    }
}

impl World {
    /// Builds a world. Needs root.
    pub fn build(spec: Spec) -> Result<Self> {
        ensure!(nix::unistd::geteuid().is_root(), "network namespaces need root: run this again with `sudo -E`");
        ip::clean_leftovers();
        let mut spec = spec;
        spec.pods.retain(|pod| !pod.host_network);
        let id = format!("ng{}-{}", std::process::id(), WORLDS.fetch_add(1, Ordering::Relaxed));
        let names = Names(namespaces(&id, spec.pods.len()));
        ip::add_namespaces(&names.0)?;
        let mut entered = names.0.iter().map(|name| enter(name)).collect::<Result<Vec<_>>>()?;
        let pod_namespaces = entered.split_off(2);
        let (outside, node) = (entered.remove(1), entered.remove(0));
        node.call(|| set(NODE_SYSCTLS))?;
        outside.call(|| set(OUTSIDE_SYSCTLS))?;
        connect(&spec, &names.0)?;

        let (zone, tls) = (Zone::of(&spec), Tls::new()?);
        let client = client(&spec, &tls);
        let interfaces = network::interface_names(&spec.pods);
        let built = spec.pods.iter().cloned().zip(pod_namespaces).zip(interfaces);
        let pods: Vec<Pod> = built.map(|((pod, netns), link)| Pod::new(pod, netns, link, client.clone())).collect();
        for pod in pods.iter().filter(|pod| !pod.spec.bare) {
            let host = Host { name: pod.spec.name.clone(), log: pod.log.clone(), tls: Some(tls.acceptor.clone()) };
            serve_pod(pod, host, zone.clone())?;
        }
        let outside_log = Log::default();
        let outside_host =
            Host { name: "outside".to_owned(), log: outside_log.clone(), tls: Some(tls.acceptor.clone()) };
        let (host, served) = (outside_host.clone(), zone.clone());
        if !spec.bare_outside {
            outside.run(async move { serve_outside(&host, &served) })?;
        }
        Ok(Self { id, spec, zone, pods, node, outside, outside_log, outside_host, tls, _names: names })
    }

    /// Unique among all runs: the prefix of the names of the namespaces.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// The description.
    pub fn spec(&self) -> &Spec {
        &self.spec
    }

    /// What the resolvers answer; changes hold at once.
    pub fn zone(&self) -> &Zone {
        &self.zone
    }

    /// Every pod.
    pub fn pods(&self) -> &[Pod] {
        &self.pods
    }

    /// A pod by `namespace/name`.
    ///
    /// # Panics
    ///
    /// Where the world has no such pod.
    pub fn pod(&self, key: &str) -> &Pod {
        let all = || self.pods.iter().map(|pod| pod.spec.key()).collect::<Vec<_>>().join(", ");
        self.pods.iter().find(|pod| pod.spec.key() == key).unwrap_or_else(|| panic!("no pod `{key}` among {}", all()))
    }

    /// The node's namespace, where the gate runs.
    pub fn node(&self) -> &Netns {
        &self.node
    }

    /// The node's interface towards the outside.
    pub fn uplink(&self) -> &'static str {
        UPLINK
    }

    /// The namespace of every address that is not of the cluster.
    pub fn outside(&self) -> &Netns {
        &self.outside
    }

    /// What was accepted outside.
    pub fn outside_log(&self) -> &Log {
        &self.outside_log
    }

    /// The certificate that the world's clients trust, in PEM.
    pub fn authority(&self) -> &str {
        self.tls.authority()
    }

    /// A certificate for names, in PEM, from the authority that the world's clients trust.
    pub fn certificate(&self, names: &[&str]) -> Result<Certificate> {
        self.tls.certificate(names)
    }

    /// Adds servers on the node itself: `serve` is called on the namespace's thread.
    pub fn serve_node<F>(&self, serve: F) -> Result<()>
    where
        F: FnOnce(&Host) -> Result<()> + Send + 'static,
    {
        let host = Host { name: "node".to_owned(), log: Log::default(), ..self.outside_host.clone() };
        self.node.run(async move { serve(&host) })
    }

    /// Adds servers outside: `serve` is called on the namespace's thread.
    pub fn serve_outside<F>(&self, serve: F) -> Result<()>
    where
        F: FnOnce(&Host) -> Result<()> + Send + 'static,
    {
        let host = self.outside_host.clone();
        self.outside.run(async move { serve(&host) })
    }
}

fn namespaces(id: &str, pods: usize) -> Vec<String> {
    let fixed = ["node", "outside"].map(|what| format!("{id}-{what}"));
    fixed.into_iter().chain((0..pods).map(|at| format!("{id}-pod{at}"))).collect()
}

fn enter(name: &str) -> Result<Netns> {
    let netns = Netns::enter(name)?;
    netns.call(|| set(SYSCTLS))?;
    Ok(netns)
}

fn set(sysctls: &[(&str, &str)]) -> Result<()> {
    for (name, value) in sysctls {
        let path = std::path::Path::new("/proc/sys").join(name);
        std::fs::write(&path, value).with_context(|| format!("setting {} to {value}", path.display()))?;
    }
    Ok(())
}

fn connect(spec: &Spec, names: &[String]) -> Result<()> {
    let interfaces = network::interface_names(&spec.pods);
    let pods = interfaces.iter().zip(&names[2..]).zip(&spec.pods);
    let pods: Vec<_> = pods.map(|((link, netns), pod)| (link.as_str(), netns.as_str(), pod)).collect();
    ip::batch(Some(&names[0]), &network::node_lines(spec, &names[1], &pods))?;
    ip::batch(Some(&names[1]), &network::outside_lines(spec))?;
    pods.iter().try_for_each(|(_, netns, pod)| ip::batch(Some(netns), &network::pod_lines(pod)))
}

fn is_resolver(pod: &PodSpec) -> bool {
    pod.labels.get("k8s-app").is_some_and(|app| app == "kube-dns")
}

fn client(spec: &Spec, tls: &Tls) -> Client {
    let resolver = spec.pods.iter().find(|pod| is_resolver(pod)).and_then(|pod| pod.ips.first().copied());
    let resolver = resolver.unwrap_or(IpAddr::from([1, 1, 1, 1]));
    Client {
        resolver: SocketAddr::new(resolver, DNS_PORT),
        dns_within: Duration::from_secs(5),
        within: Duration::from_secs(3),
        families: vec![RecordType::A, RecordType::AAAA],
        edns: None,
        tls: tls.connector.clone(),
    }
}

fn serve_pod(pod: &Pod, host: Host, zone: Zone) -> Result<()> {
    let (ports, resolver) = (pod.spec.ports.clone(), is_resolver(&pod.spec));
    pod.netns.run(async move {
        for port in ports {
            match (port.protocol, port.port) {
                (_, DNS_PORT) if resolver => {}
                (Protocol::Tcp, ECHO_PORT | OTHER_ECHO_PORT) => host.echo_tcp(port.port)?,
                (Protocol::Tcp, number) if TLS_PORTS.contains(&number) => host.https(number)?,
                (Protocol::Tcp, number) => host.http(number)?,
                (Protocol::Udp, number) => host.echo_udp(number)?,
                (Protocol::Sctp, number) => Host::init_sctp([number])?,
            }
        }
        if resolver { dns::serve(&zone, DNS_PORT) } else { Ok(()) }
    })
}

fn serve_outside(host: &Host, zone: &Zone) -> Result<()> {
    OUTSIDE_HTTP.into_iter().try_for_each(|port| host.http(port))?;
    TLS_PORTS.into_iter().try_for_each(|port| host.https(port))?;
    for port in [ECHO_PORT, OTHER_ECHO_PORT] {
        host.echo_tcp(port)?;
        host.echo_udp(port)?;
    }
    dns::serve(zone, DNS_PORT)
}
