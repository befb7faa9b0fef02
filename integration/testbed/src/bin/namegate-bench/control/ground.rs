//! Where the rows run: asking pods in namespaces of their own, a resolver, and a crowd of endpoints that only stand there.

use std::fmt::Write as _;
use std::io::Write as _;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};
use namegate_testbed::{Options, Pod, PodSpec, Protocol, Spec, World};
use serde_json::{Value, json};

use super::policies;
use crate::names;

/// The pod that asks.
const CLIENT: &str = "empire/tiefighter";
/// Address of the pod that stands for cluster DNS.
const RESOLVER: [u8; 4] = [10, 244, 2, 53];
const DNS_PORT: u16 = 53;
/// The first addresses of the crowd and of the pods elsewhere.
const CROWD_FIRST: u32 = 0x0af6_0001;
const IDENTITIES_FIRST: u32 = 0x0a80_0001;

/// A world with what the rows need.
pub(super) struct Fixture {
    pub(super) world: World,
    pub(super) resolver: SocketAddr,
    crowd: usize,
}

impl Fixture {
    /// Builds the world, with `crowd` endpoints besides the asking pod and `more` pods.
    pub(super) fn build(more: Vec<PodSpec>, crowd: usize) -> Result<Self> {
        let resolver = PodSpec::new("kube-system", "dns", &[IpAddr::from(RESOLVER)])
            .label("k8s-app", "kube-dns")
            .serves(Protocol::Udp, DNS_PORT)
            .serves(Protocol::Tcp, DNS_PORT);
        let spec = more.into_iter().fold(Spec::empire()?.only(&[CLIENT]).with(resolver), Spec::with);
        let world = World::build(spec)?;
        add_links(&world, crowd)?;
        Ok(Self { world, resolver: SocketAddr::from((RESOLVER, DNS_PORT)), crowd })
    }

    /// Gives each of the first names an address of its own.
    pub(super) fn set_names(&self, count: u16, ttl: u32) {
        for number in 0..count {
            let [high, low] = number.to_be_bytes();
            self.world.zone().set_addresses(&names::name(number), ttl, &[Ipv4Addr::new(20, 0, high, low).into()]);
        }
    }

    /// The pod that asks.
    pub(super) fn client(&self) -> &Pod {
        self.world.pod(CLIENT)
    }

    /// The node's side of the link of an endpoint of the crowd.
    pub(super) fn crowd_interface(at: usize) -> String {
        format!("ng-c{at:04}")
    }

    /// Index of an interface of the node.
    pub(super) fn index(&self, interface: &str) -> Result<u32> {
        let name = interface.to_owned();
        let index = self.world.node().call(move || nix::net::if_::if_nametoindex(&*name));
        index.with_context(|| format!("the index of {interface}"))
    }

    /// An agent with room for everything, the crowd, `identities` pods elsewhere, and the policy of the asking pods.
    pub(super) fn options(&self, identities: usize) -> Options {
        let crowd = (0..self.crowd).zip(CROWD_FIRST..).map(|(at, address)| crowd_endpoint(at, address));
        let others = (0..identities).zip(IDENTITIES_FIRST..).map(|(at, address)| identity(at, address));
        let limits = json!({
            "addresses": 2_097_152, "addressesReserved": 262_144, "addressesPerEndpoint": 65_536,
            "policyRows": 4_194_304, "policyRowsPerNamespace": 4_194_304,
        });
        let options = Options { endpoints: crowd.chain(others).collect(), ..Options::default() };
        options.with(json!({"limits": limits})).policies(policies::ASKING)
    }
}

fn crowd_endpoint(at: usize, address: u32) -> Value {
    json!({
        "name": format!("local{at}"), "namespace": "crowd", "labels": {"class": format!("class{at}")},
        "addresses": [Ipv4Addr::from_bits(address)], "interface": Fixture::crowd_interface(at),
    })
}

fn identity(at: usize, address: u32) -> Value {
    json!({
        "name": format!("peer{at}"), "namespace": "crowd", "labels": {"app": format!("app{at}")},
        "addresses": [Ipv4Addr::from_bits(address)],
    })
}

/// Links of the crowd. Their other sides lie in the outside's namespace and stay down.
fn add_links(world: &World, count: usize) -> Result<()> {
    let mut lines = String::new();
    for at in 0..count {
        let (interface, outside) = (Fixture::crowd_interface(at), world.outside().name());
        let _ = writeln!(lines, "link add {interface} type veth peer name c{at:04} netns {outside}");
    }
    let mut ip = Command::new("ip");
    ip.args(["-n", world.node().name(), "-batch", "-"]).stdin(Stdio::piped());
    let mut child = ip.spawn().context("running `ip` (iproute2)")?;
    child.stdin.take().context("standard input of `ip`")?.write_all(lines.as_bytes())?;
    ensure!(child.wait()?.success(), "`ip` refused to add the links of the crowd");
    Ok(())
}
