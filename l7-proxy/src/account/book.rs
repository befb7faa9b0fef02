//! Who has which connections. Everything here happens under one lock, and waits for nothing.

use std::{
    collections::HashMap,
    net::IpAddr,
    sync::{Arc, atomic::Ordering},
};

use namegate_config::shares::{Full, Shares};

use super::{Account, Crowded, bytes::Sum};
use crate::holder::Holder;

/// A connection that has made no progress for this long is idle: it gives way to a new one where its holder has its share.
const IDLE_MIN_MS: u64 = 5_000;

/// Connections by their holders.
#[derive(Debug)]
pub(super) struct Book {
    pub(super) shares: Shares<Holder>,
    /// Of an endpoint that is called, by client.
    pub(super) callers: Shares<(u32, IpAddr)>,
    pub(super) holders: HashMap<Holder, Holding>,
    /// Connections that were closed for others and still have memory and descriptors.
    pub(super) leaving: usize,
}

/// What one holder has.
#[derive(Debug, Default)]
pub(super) struct Holding {
    pub(super) bytes: Arc<Sum>,
    pub(super) connections: HashMap<u64, Arc<Account>>,
    /// Connections with an account, those included that leave.
    pub(super) accounts: usize,
    /// Before this time none of the connections is idle, milliseconds.
    pub(super) busy_until_ms: u64,
}

impl Holding {
    /// The client whose connections have most of something.
    pub(super) fn client_with_most(&self, of: impl Fn(&Account) -> usize) -> Option<IpAddr> {
        let mut clients = HashMap::new();
        for account in self.connections.values() {
            *clients.entry(account.client).or_insert(0) += of(account);
        }
        clients.into_iter().max_by_key(|(_, most)| *most).map(|(client, _)| client)
    }
}

impl Book {
    /// No connections. One client leaves half of what an endpoint may be called to its other clients.
    pub(super) fn new(connections_max: usize, per_endpoint_max: usize) -> Self {
        let per_caller_max = (per_endpoint_max.min(connections_max) / 2).max(1);
        Self {
            shares: Shares::new(connections_max, per_endpoint_max),
            callers: Shares::new(usize::MAX, per_caller_max),
            holders: HashMap::new(),
            leaving: 0,
        }
    }

    pub(super) fn take(&mut self, holder: Holder, client: IpAddr) -> Result<(), Full> {
        if let Holder::Called(endpoint) = holder {
            self.callers.take((endpoint, client), 1)?;
        }
        let taken = self.shares.take(holder, 1);
        if taken.is_err() {
            self.give_caller(holder, client);
        }
        taken
    }

    pub(super) fn give(&mut self, holder: Holder, client: IpAddr) {
        self.shares.give(holder, 1);
        self.give_caller(holder, client);
    }

    fn give_caller(&mut self, holder: Holder, client: IpAddr) {
        if let Holder::Called(endpoint) = holder {
            self.callers.give((endpoint, client), 1);
        }
    }

    /// Closes up to so many connections of a holder that have been idle longest.
    pub(super) fn close_idle(&mut self, holder: Holder, now_ms: u64, count: usize) {
        let Some(holding) = self.holders.get_mut(&holder).filter(|holding| holding.busy_until_ms <= now_ms) else {
            return;
        };
        // Clients of one endpoint that is called take no places from each other.
        let client = holding.client_with_most(|_| 1);
        let is_called = matches!(holder, Holder::Called(_));
        let progress = |account: &Arc<Account>| account.progress_ms.load(Ordering::Relaxed);
        let of_client = holding.connections.values().filter(|one| !is_called || Some(one.client) == client);
        let mut oldest: Vec<_> = of_client.map(|one| (progress(one), Arc::clone(one))).collect();
        oldest.sort_unstable_by_key(|(progress, _)| *progress);
        oldest.truncate(count);
        if let Some((first, _)) = oldest.first() {
            holding.busy_until_ms = first + IDLE_MIN_MS;
        }
        for (progress, account) in oldest {
            if progress + IDLE_MIN_MS <= now_ms {
                self.let_go(holder, &account, Crowded::Places);
            }
        }
    }

    /// Closes a connection; its place is free at once.
    pub(super) fn let_go(&mut self, holder: Holder, account: &Account, why: Crowded) {
        let connections = self.holders.get_mut(&holder).map(|holding| &mut holding.connections);
        if connections.is_some_and(|connections| connections.remove(&account.number).is_some()) {
            self.give(holder, account.client);
            self.leaving += 1;
            account.close(why);
        }
    }
}
