//! The rows of `RESOLVERS`: whose answers are believed.

use std::{collections::BTreeSet, net::IpAddr};

use crate::{Engine, Key, MapOp, Row};

impl Engine {
    /// Trusts the resolvers of the settings, of the topology and at these addresses.
    pub(crate) fn trust(&mut self, services: Vec<IpAddr>, ops: &mut Vec<MapOp>) {
        let selector = self.settings.dns.resolver_selector();
        let pods = selector.iter().flat_map(|selector| self.peers.matching(selector)).flat_map(|peer| &peer.addresses);
        let all = self.settings.dns.resolvers.iter().chain(pods).copied().chain(services);
        let mut wanted: BTreeSet<IpAddr> = all.map(|address| address.to_canonical()).collect();
        wanted.extend(self.peers.in_front_of(&wanted));
        let old = std::mem::replace(&mut self.resolvers, wanted.iter().copied().collect());
        self.unresolved.clone_from(&wanted);
        self.trust_again(ops);
        for address in old.into_iter().filter(|address| !wanted.contains(address)) {
            self.mirror.delete(Key::Resolver(address.into()), ops);
        }
    }

    /// Writes the rows of trusted resolvers that are missing.
    pub(crate) fn trust_again(&mut self, ops: &mut Vec<MapOp>) {
        let mirror = &mut self.mirror;
        self.unresolved.retain(|address| !mirror.put(Row::Resolver((*address).into()), ops));
    }
}
