//! Connections that ask for names which did not open their address, and would not pass where names were enforced.

use std::collections::{BTreeMap, VecDeque};

use namegate_api::view::{Flow, FlowEndpoint, NameMismatch};

/// Kinds of connections that are kept.
pub(super) const MISMATCHES_MAX: usize = 512;

/// The last kinds of such connections, with the numbers of their endpoints.
#[derive(Debug, Default)]
pub(super) struct Mismatches(VecDeque<(u32, NameMismatch)>);

impl Mismatches {
    /// The most recent first.
    pub(super) fn list(&self) -> Vec<NameMismatch> {
        self.0.iter().rev().map(|(_, mismatch)| mismatch.clone()).collect()
    }

    /// Adds to the entry of the same endpoint, address and name; of an endpoint that has its share, the one seen longest ago
    /// gives way.
    pub(super) fn add(&mut self, flow: &Flow) {
        let FlowEndpoint { namespace, name, .. } = &flow.endpoint;
        let asked = flow.server_name.clone().or_else(|| flow.http.as_ref().map(|http| http.host.clone()));
        let mut new = NameMismatch {
            endpoint: format!("{namespace}/{name}"),
            address: flow.destination,
            port: flow.destination_port,
            protocol: flow.protocol.clone(),
            asked,
            names: flow.peer.fqdns.clone(),
            count: 1,
            last: flow.time.clone(),
        };
        let of =
            |one: &NameMismatch| (one.endpoint.clone(), one.address, one.port, one.protocol.clone(), one.asked.clone());
        let is_known = |(_, known): &(u32, NameMismatch)| of(known) == of(&new);
        let known = self.0.iter().position(is_known);
        new.count += known.and_then(|known| self.0.remove(known)).map_or(0, |(_, known)| known.count);
        self.make_room(flow.endpoint.id);
        self.0.push_back((flow.endpoint.id, new));
    }

    fn make_room(&mut self, endpoint: u32) {
        let mut counts: BTreeMap<u32, usize> = BTreeMap::new();
        for (owner, _) in &self.0 {
            *counts.entry(*owner).or_default() += 1;
        }
        let own = counts.get(&endpoint).copied().unwrap_or(0);
        if own < MISMATCHES_MAX - self.0.len() {
            return;
        }
        let most = counts.iter().max_by_key(|(_, count)| **count).map(|(owner, _)| *owner);
        let victim = if own > 0 { Some(endpoint) } else { most };
        if let Some(oldest) = self.0.iter().position(|(owner, _)| Some(*owner) == victim) {
            self.0.remove(oldest);
        }
    }
}
