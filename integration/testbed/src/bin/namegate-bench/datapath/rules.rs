//! The same rules for every leg: pairs of an address and a port that the client may connect to.

use std::fmt::Write as _;
use std::net::{Ipv4Addr, SocketAddr};

use clap::ValueEnum;
use serde_json::{Value, json};

/// The first address of the rules that name prefixes.
const PREFIXES: Ipv4Addr = Ipv4Addr::new(198, 18, 0, 1);
/// The first address of pods elsewhere.
const PODS: Ipv4Addr = Ipv4Addr::new(20, 0, 0, 1);
/// Their label.
const LABEL: &str = "elsewhere";
/// Addresses of one pod.
const ADDRESSES_PER_POD: usize = 100;
/// The first port. Between two ports of a rule lies one without, so that no rule covers two.
const FIRST_PORT: u16 = 7_001;
/// Ports in one list of a policy, at most.
const LIST_MAX: usize = 40;

/// How many rules there are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Size {
    /// One address, ten ports.
    Few,
    /// A hundred addresses, a hundred ports of each.
    Many,
    /// A hundred thousand addresses, one port of each.
    Addresses,
}

impl Size {
    /// The name in the result.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Few => "few",
            Self::Many => "many",
            Self::Addresses => "addresses",
        }
    }
}

/// What is allowed: every port of every address.
pub(crate) struct Rules {
    size: Size,
    addresses: Vec<Ipv4Addr>,
    ports: Vec<u16>,
}

impl Rules {
    pub(crate) fn of(size: Size) -> Self {
        let (first, addresses, ports) = match size {
            Size::Few => (PREFIXES, 1, 10),
            Size::Many => (PREFIXES, 100, 100),
            Size::Addresses => (PODS, 100_000, 1),
        };
        let first = u32::from(first);
        Self {
            size,
            addresses: (first..first + addresses).map(Ipv4Addr::from).collect(),
            ports: (0..ports).map(|number| FIRST_PORT + 2 * number).collect(),
        }
    }

    /// The pair in the middle, which is what the client connects to.
    pub(crate) fn target(&self) -> SocketAddr {
        let address = self.addresses[self.addresses.len() / 2];
        SocketAddr::new(address.into(), self.ports[self.ports.len() / 2])
    }

    /// The same address with a port that no rule allows.
    pub(crate) fn forbidden(&self) -> SocketAddr {
        let target = self.target();
        SocketAddr::new(target.ip(), target.port() + 1)
    }

    /// Every pair.
    pub(crate) fn elements(&self) -> impl Iterator<Item = (Ipv4Addr, u16)> {
        self.addresses.iter().flat_map(|address| self.ports.iter().map(|port| (*address, *port)))
    }

    /// How many pairs there are.
    pub(crate) fn count(&self) -> usize {
        self.addresses.len() * self.ports.len()
    }

    /// The same as a policy for the client.
    pub(crate) fn policy(&self) -> String {
        let mut text = String::from(
            "apiVersion: cilium.io/v2\nkind: CiliumNetworkPolicy\nmetadata: {name: bench, namespace: bench}\n\
             spec:\n  endpointSelector: {matchLabels: {app: client}}\n  egress:\n",
        );
        let lists = self.ports.chunks(LIST_MAX).map(|ports| {
            let ports: Vec<_> = ports.iter().map(|port| format!("{{port: '{port}', protocol: TCP}}")).collect();
            format!("{{ports: [{}]}}", ports.join(", "))
        });
        let lists = lists.collect::<Vec<_>>().join(", ");
        let peers: Vec<_> = match self.size {
            Size::Addresses => vec![format!("toEndpoints: [{{matchLabels: {{app: {LABEL}}}}}]")],
            Size::Few | Size::Many => self.addresses.iter().map(|address| format!("toCIDR: [{address}/32]")).collect(),
        };
        for peer in peers {
            let _ = writeln!(text, "  - {peer}\n    toPorts: [{lists}]"); // Writing to a string does not fail.
        }
        text
    }

    /// Entries of an endpoints file for pods elsewhere, where rules select them.
    pub(crate) fn endpoints(&self) -> Vec<Value> {
        if self.size != Size::Addresses {
            return Vec::new();
        }
        let pods = self.addresses.chunks(ADDRESSES_PER_POD).enumerate();
        let entry = |(number, addresses)| {
            json!({
                "name": format!("elsewhere-{number}"), "namespace": "bench",
                "labels": {"app": LABEL}, "addresses": addresses,
            })
        };
        pods.map(entry).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_size_has_its_pairs_and_allows_its_target() {
        for (size, count, pods) in [(Size::Few, 10, 0), (Size::Many, 10_000, 0), (Size::Addresses, 100_000, 1_000)] {
            let rules = Rules::of(size);
            assert_eq!((rules.count(), rules.endpoints().len()), (count, pods), "{}", size.name());
            let (target, forbidden) = (rules.target(), rules.forbidden());
            let is_allowed = |to: SocketAddr| rules.elements().any(|(ip, port)| SocketAddr::new(ip.into(), port) == to);
            assert!(is_allowed(target) && !is_allowed(forbidden), "{}", size.name());
        }
    }

    #[test]
    fn a_policy_names_each_prefix_and_each_port() {
        let policy = Rules::of(Size::Many).policy();
        assert_eq!(policy.matches("toCIDR: [").count(), 100);
        assert_eq!(policy.matches("port: '7001'").count(), 100);
    }
}
