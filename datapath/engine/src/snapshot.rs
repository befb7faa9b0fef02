//! Every entry that matters, in pieces: a journal begins anew while answers go on being installed.
//!
//! What the engine notes meanwhile belongs behind the pieces that were taken before it. All numbers come with the first
//! piece, before any note: a number may be handed out again. A later piece says what holds when it is taken, so a note that
//! is read before a piece of the same name changes nothing.

use std::{mem, sync::Arc, vec};

use namegate_abi::Address;

use crate::{
    EndpointId, Engine, LedgerEntry,
    cache::{Known, Name},
    names::NameId,
};

/// How far a snapshot has come.
#[derive(Debug)]
pub struct Snapshot {
    /// Numbers that were handed out: the first piece.
    numbers: Vec<LedgerEntry>,
    /// Endpoints whose names are still to come.
    endpoints: vec::IntoIter<EndpointId>,
    /// The endpoint whose turn it is, with its names that are still to come.
    names: Option<(EndpointId, vec::IntoIter<NameId>)>,
}

impl Engine {
    /// Begins a snapshot. What the engine notes from now on is not in it.
    pub fn begin_snapshot(&self) -> Snapshot {
        let endpoints: Vec<EndpointId> = self.cache.endpoints.keys().copied().collect();
        Snapshot { numbers: self.ledger.snapshot(), endpoints: endpoints.into_iter(), names: None }
    }

    /// The next entries: the numbers first, then as many as take about `units` of work, one for each name and each address.
    /// None follow where it is empty.
    pub fn snapshot_piece(&self, snapshot: &mut Snapshot, units: usize) -> Vec<LedgerEntry> {
        let mut entries = mem::take(&mut snapshot.numbers);
        let mut used = entries.len();
        while used < units {
            let Some((endpoint, names)) = &mut snapshot.names else {
                let Some(endpoint) = snapshot.endpoints.next() else { break };
                snapshot.names = Some((endpoint, self.names_by_age(endpoint).into_iter()));
                continue;
            };
            match names.next() {
                Some(name) => {
                    let entry = self.learned_entry(*endpoint, name);
                    used += 1 + entry.as_ref().map_or(0, addresses);
                    entries.extend(entry);
                }
                None => snapshot.names = None,
            }
        }
        entries
    }

    /// Every entry that matters now: a journal may begin anew with these.
    pub fn snapshot(&self) -> Vec<LedgerEntry> {
        self.snapshot_piece(&mut self.begin_snapshot(), usize::MAX)
    }

    /// Names of an endpoint. The one that was heard longest ago comes first: restored names keep their order.
    fn names_by_age(&self, endpoint: EndpointId) -> Vec<NameId> {
        let known = self.cache.endpoints.get(&endpoint);
        let mut names: Vec<(NameId, &Name)> = known.into_iter().flat_map(Known::names).collect();
        names.sort_unstable_by_key(|(_, name)| name.heard);
        names.into_iter().map(|(id, _)| id).collect()
    }

    /// What is known of a name; `None` where the endpoint has forgotten it.
    fn learned_entry(&self, endpoint: EndpointId, id: NameId) -> Option<LedgerEntry> {
        let known = self.cache.endpoints.get(&endpoint)?;
        let name = known.name(id)?;
        let address = |(address, expires_ns): &(Address, u64)| (address.to_ip(), name.ttl_s, *expires_ns);
        Some(LedgerEntry::Learned {
            endpoint: Arc::clone(&known.key),
            names: vec![self.cache.names.name(id).as_str().into()],
            addresses: name.addresses.iter().map(address).collect(),
            learned_ns: name.learned_ns,
        })
    }
}

fn addresses(entry: &LedgerEntry) -> usize {
    match entry {
        LedgerEntry::Learned { addresses, .. } => addresses.len(),
        _ => 0,
    }
}
