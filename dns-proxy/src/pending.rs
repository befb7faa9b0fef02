//! The questions on their way, and what is due when. Deadlines of one kind come in the order they were set, since all of a
//! kind wait equally long: a queue is enough.

use std::{
    collections::{HashMap, VecDeque},
    net::SocketAddr,
    time::Instant,
};

use namegate_engine::EndpointId;
use nix::sys::socket::SockaddrStorage;
use tokio::sync::mpsc::OwnedPermit;

use crate::{
    cache,
    slots::{Key, Slots},
    transaction::{Failure, Transaction},
    upstream::Via,
};

/// Questions on their way in one worker.
pub(crate) const PENDING_MAX: usize = 16_384;
/// Of them, those of one endpoint: nobody fills the table alone.
pub(crate) const PENDING_PER_ENDPOINT_MAX: usize = PENDING_MAX / 4;
/// Outlived entries that a queue may hold beside the living.
const STALE_MAX: usize = 1024;

/// Where a reply goes.
#[derive(Debug)]
pub(crate) enum Client {
    /// From the resolver's address to the client's.
    Udp { replier: Key, address: SockaddrStorage },
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
    by_endpoint: HashMap<EndpointId, usize>,
    /// Of transactions that wait for a resolver, and of those that wait for the gate.
    queues: [VecDeque<(Instant, Key)>; 2],
}

impl Pending {
    pub(crate) fn new() -> Self {
        Self { entries: Slots::new(), by_endpoint: HashMap::new(), queues: [VecDeque::new(), VecDeque::new()] }
    }

    /// Whether one more question of this endpoint may be on its way.
    pub(crate) fn room_for(&self, endpoint: EndpointId) -> Result<(), Failure> {
        if self.entries.len() >= PENDING_MAX {
            return Err(Failure::PendingFull);
        }
        if self.by_endpoint.get(&endpoint).is_some_and(|count| *count >= PENDING_PER_ENDPOINT_MAX) {
            return Err(Failure::EndpointFull);
        }
        Ok(())
    }

    /// Whoever inserts says next what the transaction waits for.
    pub(crate) fn insert(&mut self, entry: Entry) -> Key {
        *self.by_endpoint.entry(entry.transaction.endpoint()).or_default() += 1;
        self.entries.insert(entry)
    }

    pub(crate) fn get_mut(&mut self, key: Key) -> Option<&mut Entry> {
        self.entries.get_mut(key)
    }

    pub(crate) fn remove(&mut self, key: Key) -> Option<Entry> {
        let entry = self.entries.remove(key)?;
        let endpoint = entry.transaction.endpoint();
        if let Some(count) = self.by_endpoint.get_mut(&endpoint) {
            *count -= 1;
            if *count == 0 {
                self.by_endpoint.remove(&endpoint);
            }
        }
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
