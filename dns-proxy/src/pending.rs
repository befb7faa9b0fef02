//! The questions on their way, and what is due when. Deadlines of one kind come in the order they were set, since all of a
//! kind wait equally long: a queue is enough.

use std::{collections::VecDeque, net::SocketAddr, time::Instant};

use namegate_config::shares::{Full, Shares};
use namegate_engine::EndpointId;
use nix::sys::socket::SockaddrStorage;
use tokio::sync::mpsc::OwnedPermit;

use crate::{
    bounds::Bounds,
    cache,
    slots::{Key, Slots},
    transaction::{Failure, Transaction},
    upstream::Via,
};

/// Outlived entries that a queue may hold beside the living.
const STALE_MAX: usize = 1024;

/// Where a reply goes.
#[derive(Debug)]
pub(crate) enum Client {
    /// From the resolver's address, `from`, to the client's.
    Udp { replier: Key, from: SocketAddr, address: SockaddrStorage, endpoint: Option<EndpointId> },
    /// Into a place that is kept free in the connection's queue.
    Tcp(OwnedPermit<Vec<u8>>),
}

/// One question on its way.
#[derive(Debug)]
pub(crate) struct Entry {
    pub(crate) transaction: Transaction,
    pub(crate) client: Client,
    pub(crate) resolver: SocketAddr,
    /// While it waits for an answer over UDP.
    pub(crate) via: Option<Via>,
    /// What its answer is to be kept under.
    pub(crate) cache_key: Option<cache::Key>,
}

#[derive(Debug)]
pub(crate) struct Pending {
    entries: Slots<Entry>,
    shares: Shares<EndpointId>,
    /// Of transactions that wait for a resolver, and of those that wait for the gate.
    queues: [VecDeque<(Instant, Key)>; 2],
}

impl Pending {
    pub(crate) fn new(bounds: &Bounds) -> Self {
        let shares = Shares::new(bounds.pending_max, bounds.pending_per_endpoint_max);
        Self { entries: Slots::new(), shares, queues: [VecDeque::new(), VecDeque::new()] }
    }

    /// Keeps a place for one more question of this endpoint; then comes [`Self::insert`].
    pub(crate) fn make_room(&mut self, endpoint: EndpointId) -> Result<(), Failure> {
        self.shares.take(endpoint, 1).map_err(|full| match full {
            Full::Share => Failure::EndpointFull,
            Full::All => Failure::PendingFull,
        })
    }

    /// Puts a question into the place that was kept for it. The caller sets next what the transaction waits for.
    pub(crate) fn insert(&mut self, entry: Entry) -> Key {
        self.entries.insert(entry)
    }

    pub(crate) fn get_mut(&mut self, key: Key) -> Option<&mut Entry> {
        self.entries.get_mut(key)
    }

    pub(crate) fn remove(&mut self, key: Key) -> Option<Entry> {
        let entry = self.entries.remove(key)?;
        self.shares.give(entry.transaction.endpoint(), 1);
        Some(entry)
    }

    /// The transaction has begun to wait for its resolver.
    pub(crate) fn await_resolver(&mut self, key: Key) {
        self.enqueue(0, key);
    }

    /// The transaction has begun to wait for the gate.
    pub(crate) fn await_gate(&mut self, key: Key) {
        self.enqueue(1, key);
    }

    /// The next moment at which [`Self::due`] may have something.
    pub(crate) fn next_deadline(&self) -> Option<Instant> {
        self.queues.iter().filter_map(|queue| queue.front().map(|(deadline, _)| *deadline)).min()
    }

    /// Takes out one key whose deadline has come; its transaction may have gone on since.
    pub(crate) fn due(&mut self, now: Instant) -> Option<Key> {
        let queue = self.queues.iter_mut().find(|queue| queue.front().is_some_and(|(deadline, _)| *deadline <= now))?;
        queue.pop_front().map(|(_, key)| key)
    }

    fn enqueue(&mut self, queue: usize, key: Key) {
        let Some(deadline) = self.entries.get(key).and_then(|entry| entry.transaction.deadline()) else { return };
        self.queues[queue].push_back((deadline, key));
        if self.queues[queue].len() > 2 * self.entries.len() + STALE_MAX {
            let entries = &self.entries;
            self.queues[queue].retain(|(deadline, key)| {
                entries.get(*key).is_some_and(|entry| entry.transaction.deadline() == Some(*deadline))
            });
        }
    }
}
