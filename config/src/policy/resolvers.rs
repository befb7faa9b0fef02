//! Prefixes of public resolvers that speak DNS over TLS or HTTPS: what the entity `public-resolvers` stands for.
//!
//! Provenance: what the operators say of their resolvers; most of it stands in the list of known providers too,
//! in `docs/general/dns-providers.md` of `AdguardTeam/KnowledgeBaseDNS`. Where an operator has a prefix for its resolvers
//! alone, the prefix stands here; addresses that serve other things too are left out. To change the list, edit [`PREFIXES`]:
//! nothing else knows it. An address that is missing can be denied with `toCIDR` beside the entity.

use ipnet::IpNet;

use crate::rule::{CidrReach, CidrSelector, PeerSelector};

/// The word in `toEntities`.
pub(super) const WORD: &str = "public-resolvers";

/// Operators, and where their resolvers are.
const PREFIXES: [(&str, &[&str]); 15] = [
    ("AdGuard", &["94.140.14.0/24", "94.140.15.0/24", "2a10:50c0::/64"]),
    ("Ali", &["223.5.5.5/32", "223.6.6.6/32", "2400:3200::1/128", "2400:3200:baba::1/128"]),
    ("CleanBrowsing", &["185.228.168.0/24", "185.228.169.0/24", "2a0d:2a00:1::/48", "2a0d:2a00:2::/48"]),
    (
        "Cloudflare",
        &[
            "1.1.1.0/24",
            "1.0.0.0/24",
            "104.16.248.249/32",
            "104.16.249.249/32",
            "162.159.36.1/32",
            "162.159.46.1/32",
            "162.159.61.3/32",
            "162.159.61.4/32",
            "172.64.41.3/32",
            "172.64.41.4/32",
            "2606:4700:4700::/48",
            "2606:4700::6810:f8f9/128",
            "2606:4700::6810:f9f9/128",
            "2803:f800:53::3/128",
            "2803:f800:53::4/128",
            "2a06:98c1:52::3/128",
            "2a06:98c1:52::4/128",
        ],
    ),
    ("Control D", &["76.76.2.0/24", "76.76.10.0/24", "2606:1a40::/48", "2606:1a40:1::/48"]),
    ("DNS.SB", &["45.11.45.11/32", "185.222.222.222/32", "2a09::/128", "2a11::/128"]),
    ("DNS4EU", &["86.54.11.0/24", "2a13:1001::86:54:11:0/112"]),
    ("DNSPod", &["1.12.12.12/32", "1.12.12.21/32", "119.29.29.29/32", "120.53.53.53/32", "2402:4e00::/128"]),
    (
        "Google",
        &[
            "8.8.4.0/24",
            "8.8.8.0/24",
            "2001:4860:4860::64/128",
            "2001:4860:4860::6464/128",
            "2001:4860:4860::8844/128",
            "2001:4860:4860::8888/128",
        ],
    ),
    ("Hurricane Electric", &["74.82.42.42/32", "2001:470:20::2/128"]),
    ("Mullvad", &["194.242.2.0/24", "2a07:e340::/48"]),
    ("NextDNS", &["45.90.28.0/24", "45.90.30.0/24", "2a07:a8c0::/32", "2a07:a8c1::/32"]),
    (
        "OpenDNS",
        &[
            "146.112.41.2/32",
            "146.112.41.3/32",
            "208.67.220.0/24",
            "208.67.222.0/24",
            "2620:0:ccc::2/128",
            "2620:0:ccd::2/128",
            "2620:119:35::/48",
            "2620:119:53::/48",
            "2620:119:fc::/48",
        ],
    ),
    ("Quad9", &["9.9.9.0/24", "149.112.112.0/24", "2620:fe::/48"]),
    (
        "Yandex",
        &[
            "77.88.8.1/32",
            "77.88.8.2/32",
            "77.88.8.3/32",
            "77.88.8.7/32",
            "77.88.8.8/32",
            "77.88.8.88/32",
            "2a02:6b8::feed:a11/128",
            "2a02:6b8::feed:bad/128",
            "2a02:6b8::feed:ff/128",
            "2a02:6b8:0:1::feed:a11/128",
            "2a02:6b8:0:1::feed:bad/128",
            "2a02:6b8:0:1::feed:ff/128",
        ],
    ),
];

/// All of them.
pub(super) fn selectors() -> impl Iterator<Item = PeerSelector> {
    let texts = PREFIXES.iter().flat_map(|(_, prefixes)| prefixes.iter());
    let nets = texts.filter_map(|text| text.parse::<IpNet>().ok());
    nets.map(|net| PeerSelector::Cidr(CidrSelector::new(net, [], CidrReach::OutsideCluster)))
}

#[cfg(test)]
mod tests {
    use std::{collections::HashSet, sync::Arc};

    use super::*;
    use crate::{
        labels::Labels,
        peer::Peer,
        policy::{Catalog, parse, translate},
        rule::Peers,
    };

    const HEADER: &str =
        "apiVersion: cilium.io/v2\nkind: CiliumNetworkPolicy\nmetadata: {name: p, namespace: empire}\n";

    /// Resolvers that a policy would be expected to know.
    #[test]
    fn the_well_known_are_selected() {
        let nets: Vec<IpNet> = PREFIXES.iter().flat_map(|(_, all)| *all).map(|text| text.parse().unwrap()).collect();
        for address in [
            "1.1.1.1",
            "1.0.0.3",
            "8.8.8.8",
            "8.8.4.4",
            "9.9.9.11",
            "149.112.112.112",
            "208.67.222.222",
            "94.140.15.16",
            "45.90.28.7",
            "185.228.168.9",
            "194.242.2.4",
            "76.76.2.22",
            "2606:4700:4700::1113",
            "2001:4860:4860::8888",
            "2620:fe::fe:11",
            "2a10:50c0::bad2:ff",
            "2a07:a8c1::ab:cdef",
            "2a0d:2a00:2::1",
            "2620:119:35::35",
        ] {
            let address: std::net::IpAddr = address.parse().unwrap();
            assert!(nets.iter().any(|net| net.contains(&address)), "{address}");
        }
        for address in ["10.96.0.10", "192.0.2.53", "104.16.132.229", "2606:4700::1"] {
            let address: std::net::IpAddr = address.parse().unwrap();
            assert!(!nets.iter().any(|net| net.contains(&address)), "{address}");
        }
    }

    #[test]
    fn every_prefix_is_one_and_stands_once() {
        let mut seen = HashSet::new();
        for text in PREFIXES.iter().flat_map(|(_, prefixes)| *prefixes) {
            let net: IpNet = text.parse().unwrap();
            assert_eq!(net, net.trunc(), "{text}");
            assert!(seen.insert(net), "{text} stands twice");
            let others = PREFIXES.iter().flat_map(|(_, all)| *all).map(|text| text.parse::<IpNet>().unwrap());
            assert_eq!(others.filter(|other| other.contains(&net)).count(), 1, "{text} lies in another");
        }
        assert_eq!(selectors().count(), seen.len());
        for operator in ["Google", "Cloudflare", "Quad9", "OpenDNS", "AdGuard", "NextDNS", "CleanBrowsing", "Mullvad"] {
            let (_, prefixes) = PREFIXES.iter().find(|(name, _)| *name == operator).unwrap();
            let nets: Vec<IpNet> = prefixes.iter().map(|text| text.parse().unwrap()).collect();
            let families = |v4: bool| nets.iter().any(|net| matches!(net, IpNet::V4(_)) == v4);
            assert!(families(true) && families(false), "{operator}");
        }
    }

    #[test]
    fn public_resolvers_are_prefixes() {
        let text = |section: &str| format!("{HEADER}spec: {{endpointSelector: {{}}, {section}}}\n");
        for section in
            ["egress: [{toEntities: [public-resolvers]}]", "egressDeny: [{toEntities: [public-resolvers, host]}]"]
        {
            let parsed = parse("p.yaml", &text(section));
            let rules = translate(&parsed.documents, &Catalog::default()).rules;
            let Peers::Of(peers) = &rules[0].peers else { panic!("{rules:?}") };
            for address in ["8.8.8.8", "2606:4700:4700::1111"] {
                let peer = Peer {
                    labels: Arc::new(Labels::reserved("world")),
                    address: address.parse().unwrap(),
                    names: vec![],
                    named_ports: Arc::new([]),
                };
                assert!(peers.iter().any(|selector| selector.matches(&peer)), "{section} {address}");
            }
        }
        let found = parse("p.yaml", &text("ingress: [{fromEntities: [public-resolvers]}]")).diagnostics;
        assert!(found[0].to_string().contains("they can stand in `toEntities` only"), "{found:?}");
    }
}
