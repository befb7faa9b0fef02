//! The machine's own addresses: names never open them, and rules for the node mean them. Broadcast and anycast addresses of
//! its networks open by no name either, and nothing that comes from one counts as the node's.

use std::{collections::HashSet, net::IpAddr};

use namegate_config::endpoints::EndpointsFile;
use namegate_loader::netns::Own;

/// Adds the machine's addresses to those of the host, but for `taken` ones. Gives its broadcast and anycast addresses, but
/// for those that the file gives to another.
pub(crate) fn add(endpoints: &mut EndpointsFile, own: &Own, taken: &HashSet<IpAddr>) -> Vec<IpAddr> {
    let added = own.addresses.iter().filter(|address| !taken.contains(address));
    let mut addresses: Vec<IpAddr> = endpoints.host.addresses.iter().chain(added).copied().collect();
    let mut seen = HashSet::new();
    addresses.retain(|address| seen.insert(address.to_canonical()));
    endpoints.host.addresses = addresses;
    let of_endpoints = endpoints.endpoints.iter().flat_map(|endpoint| &endpoint.addresses);
    let of_nodes = endpoints.nodes.iter().flat_map(|node| &node.addresses);
    seen.extend(of_endpoints.chain(of_nodes).map(IpAddr::to_canonical));
    own.shared.iter().filter(|address| !seen.contains(address) && !taken.contains(address)).copied().collect()
}

/// Addresses that the file itself gives to somebody: endpoints and services.
pub(crate) fn listed(endpoints: &EndpointsFile) -> HashSet<IpAddr> {
    let of_endpoints = endpoints.endpoints.iter().flat_map(|endpoint| &endpoint.addresses);
    let of_services = endpoints.services.iter().flat_map(|service| &service.addresses);
    of_endpoints.chain(of_services).map(IpAddr::to_canonical).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_machine_has_its_addresses_unless_the_file_gives_them_away() {
        let text = "host: {addresses: [192.0.2.1]}\nendpoints:\n- {name: a, namespace: default, addresses: [192.0.2.9, 192.0.2.15]}\n";
        let mut file = namegate_config::endpoints::parse("endpoints.yaml", text).unwrap();
        let set = |texts: &[&str]| texts.iter().map(|text| text.parse().unwrap()).collect();
        let own = Own {
            addresses: set(&["192.0.2.1", "192.0.2.2", "192.0.2.9", "2001:db8::1"]),
            shared: set(&["192.0.2.15", "192.0.2.31", "2001:db8::"]),
        };
        let taken = listed(&file);
        let shared = add(&mut file, &own, &taken);
        let shown = |addresses: &[IpAddr]| addresses.iter().map(ToString::to_string).collect::<Vec<_>>();
        assert_eq!(shown(&file.host.addresses), ["192.0.2.1", "192.0.2.2", "2001:db8::1"]);
        assert_eq!(shown(&shared), ["192.0.2.31", "2001:db8::"]);
    }
}
