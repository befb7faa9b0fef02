//! Prefixes with holes, and which addresses they contain.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use namegate_config::{
    policy::{Catalog, parse, translate},
    rule::{CidrSelector, PeerSelector, Peers},
};
use serde_json::{Value, json};

/// A prefix as people write it, bit by bit.
#[derive(Clone, Debug, PartialEq)]
struct Prefix {
    bits: Vec<bool>,
    is_v4: bool,
}

/// A prefix in the first line; below it holes, each after a `-`, and addresses.
///
/// # Panics
/// A prefix is taken that is none, or refused though it is one; or it contains another address than its bits say.
pub fn cidr(data: &[u8]) {
    let Ok(text) = str::from_utf8(data) else { return };
    let mut lines = text.lines();
    let written = lines.next().unwrap_or_default();
    let (holes, others): (Vec<&str>, Vec<&str>) = lines.take(32).partition(|line| line.starts_with('-'));
    let holes: Vec<&str> = holes.iter().map(|hole| &hole[1..]).collect();
    let addresses: Vec<IpAddr> = others.iter().filter_map(|line| line.parse().ok()).collect();

    let prefix = Prefix::read(written);
    let read_holes: Option<Vec<Prefix>> = holes.iter().map(|hole| Prefix::read(hole)).collect();
    let inside = |hole: &Prefix| prefix.as_ref().is_some_and(|net| hole.is_inside(net));
    let wanted = prefix.as_ref().zip(read_holes.filter(|holes| holes.iter().all(inside)));
    for policy in [
        cilium(&json!({"toCIDRSet": [{"cidr": written, "except": holes}]})),
        kubernetes(&json!({"ipBlock": {"cidr": written, "except": holes}})),
    ] {
        let read = selector_of(&policy);
        assert_eq!(read.is_some(), wanted.is_some(), "{written:?} except {holes:?}: {read:?}");
        if let (Some(selector), Some((net, holes))) = (read, &wanted) {
            compare(&selector, net, holes, &addresses);
        }
    }
    let bare = prefix.clone().or_else(|| written.parse().ok().and_then(Prefix::of_address));
    let read = selector_of(&cilium(&json!({"toCIDR": [written]})));
    assert_eq!(read.is_some(), bare.is_some(), "{written:?}: {read:?}");
    if let (Some(selector), Some(net)) = (read, &bare) {
        compare(&selector, net, &[], &addresses);
    }
}

fn compare(selector: &CidrSelector, net: &Prefix, holes: &[Prefix], addresses: &[IpAddr]) {
    let edges = holes.iter().chain([net]).flat_map(Prefix::edges);
    for address in addresses.iter().copied().chain(edges) {
        let want = net.contains(address) && !holes.iter().any(|hole| hole.contains(address));
        assert_eq!(selector.contains(address), want, "{selector} {address}");
    }
}

fn cilium(element: &Value) -> Value {
    json!({
        "apiVersion": "cilium.io/v2",
        "kind": "CiliumNetworkPolicy",
        "metadata": {"name": "p", "namespace": "n"},
        "spec": {"endpointSelector": {}, "egress": [element]},
    })
}

fn kubernetes(peer: &Value) -> Value {
    json!({
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": {"name": "p", "namespace": "n"},
        "spec": {"podSelector": {}, "policyTypes": ["Egress"], "egress": [{"to": [peer]}]},
    })
}

/// The one selector of a policy; `None` where the policy is refused.
fn selector_of(policy: &Value) -> Option<CidrSelector> {
    let parsed = parse("p.json", &policy.to_string());
    let rules = translate(&parsed.documents, &Catalog::default()).rules;
    let Peers::Of(peers) = &rules.first()?.peers else { panic!("{policy}: {rules:?}") };
    let [PeerSelector::Cidr(selector)] = &peers[..] else { panic!("{policy}: {rules:?}") };
    Some(selector.clone())
}

impl Prefix {
    /// `address/length`; numbers have no leading zeros, and an IPv4-mapped prefix is none.
    fn read(text: &str) -> Option<Self> {
        let (address, length) = text.split_once('/')?;
        let mut net = Self::of_address(address.parse().ok()?)?;
        let number: usize = length.parse().ok().filter(|number: &usize| number.to_string() == length)?;
        if number > net.bits.len() {
            return None;
        }
        net.bits.truncate(number);
        Some(net)
    }

    /// One address; `None` for an IPv4-mapped one.
    fn of_address(address: IpAddr) -> Option<Self> {
        if matches!(address, IpAddr::V6(v6) if v6.to_ipv4_mapped().is_some()) {
            return None;
        }
        Some(Self { bits: bits(address), is_v4: address.is_ipv4() })
    }

    fn contains(&self, address: IpAddr) -> bool {
        let address = address.to_canonical();
        self.is_v4 == address.is_ipv4() && bits(address).starts_with(&self.bits)
    }

    fn is_inside(&self, net: &Self) -> bool {
        self.is_v4 == net.is_v4 && self.bits.starts_with(&net.bits)
    }

    /// The first and last address, and their neighbours.
    fn edges(&self) -> Vec<IpAddr> {
        let width = if self.is_v4 { 32 } else { 128 };
        let number = |filler: bool| {
            let rest = std::iter::repeat_n(filler, width - self.bits.len());
            self.bits.iter().copied().chain(rest).fold(0_u128, |number, bit| number << 1 | u128::from(bit))
        };
        let (first, last) = (number(false), number(true));
        let address = |number: u128| match u32::try_from(number) {
            Ok(number) if self.is_v4 => Some(IpAddr::V4(Ipv4Addr::from_bits(number))),
            _ if self.is_v4 => None,
            _ => Some(IpAddr::V6(Ipv6Addr::from_bits(number))),
        };
        [Some(first), Some(last), first.checked_sub(1), last.checked_add(1)]
            .into_iter()
            .flatten()
            .filter_map(address)
            .collect()
    }
}

fn bits(address: IpAddr) -> Vec<bool> {
    let octets = match address {
        IpAddr::V4(v4) => v4.octets().to_vec(),
        IpAddr::V6(v6) => v6.octets().to_vec(),
    };
    octets.iter().flat_map(|octet| (0..8).rev().map(move |bit| octet >> bit & 1 == 1)).collect()
}
