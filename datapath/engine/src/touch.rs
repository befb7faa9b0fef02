//! What a selector matches: what is looked at again where it comes or goes.

use std::ops::RangeInclusive;

use namegate_abi::Address;
use namegate_config::{
    labels::{LabelSelector, Labels},
    rule::{CidrReach, CidrSelector, PeerSelector},
};

use crate::{
    Engine,
    identify::prefix_of,
    selectors::{Term, TermId},
};

impl Engine {
    /// Queues the addresses, prefixes and names that a selector in force matches.
    pub(crate) fn touch(&mut self, id: TermId) {
        let Some(term) = self.terms.get(id).cloned() else { return };
        let mut addresses: Vec<Address> = Vec::new();
        match &term {
            Term::Peer(PeerSelector::Labels(selector)) => self.matched_by_labels(selector, &mut addresses),
            Term::Peer(PeerSelector::Entity(entity)) => {
                let matching = self.peers.iter().filter(|peer| entity.matches(&peer.labels));
                addresses.extend(matching.flat_map(|peer| self.peers.owned(peer)));
                if entity.matches(&Labels::default()) {
                    addresses.extend(self.peers.fronts_in(EVERY));
                }
            }
            Term::Peer(PeerSelector::Cidr(selector)) => self.touch_prefix(selector, &mut addresses),
            Term::Peer(PeerSelector::Name(pattern)) => {
                let names = &self.cache.names;
                let matching = names.under(pattern).into_iter().filter(|id| pattern.matches(names.name(*id)));
                self.work.names.extend(matching);
            }
            Term::Port(port) => {
                addresses.extend(self.peers.with_port(port).flat_map(|peer| self.peers.owned(peer)));
            }
        }
        for address in addresses {
            self.work.places.extend(self.peers.fronts_of(address));
            self.work.places.insert(address);
        }
    }

    fn matched_by_labels(&self, selector: &LabelSelector, addresses: &mut Vec<Address>) {
        addresses.extend(self.peers.matching(selector).flat_map(|peer| self.peers.owned(peer)));
        if selector.matches(&Labels::default()) {
            addresses.extend(self.peers.fronts_in(EVERY));
        }
    }

    fn touch_prefix(&mut self, selector: &CidrSelector, addresses: &mut Vec<Address>) {
        let edges = std::iter::once(&selector.net).chain(&selector.except);
        for net in edges.clone() {
            self.work.nets.extend(self.terms.cidrs.edges_in(*net).map(prefix_of));
        }
        let (bits, key) = prefix_of(selector.net.trunc());
        let range = range_of(bits, key.address);
        self.work.rows.extend(self.cache.rows_in(range.clone()));
        let reaches_all = selector.reach == CidrReach::Everything;
        addresses.extend(self.peers.owned_in(range.clone(), !reaches_all));
        if reaches_all {
            addresses.extend(self.peers.fronts_in(range.clone()));
        }
        // Those outside the cluster that services lead to.
        for target in self.peers.targets_in(range) {
            self.work.places.extend(self.peers.fronts_of(target));
        }
    }
}

const EVERY: RangeInclusive<Address> = Address([0; 16])..=Address([u8::MAX; 16]);

/// Every address in a prefix.
fn range_of(bits: u32, address: Address) -> RangeInclusive<Address> {
    let rest = u128::MAX.checked_shr(bits).unwrap_or(0);
    let first = u128::from_be_bytes(address.0) & !rest;
    Address(first.to_be_bytes())..=Address((first | rest).to_be_bytes())
}
