//! What connections hold: places, and the bytes that the proxy keeps for them. Where a bound is reached, idle and stalled
//! connections of the endpoint that holds most are closed, and others go on.

mod book;
mod bytes;

use std::{
    net::IpAddr,
    sync::{
        Arc, Mutex, MutexGuard, OnceLock, PoisonError,
        atomic::{AtomicBool, AtomicI64, AtomicU64, AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use book::Book;
pub(crate) use bytes::Charge;
use bytes::Sum;
use namegate_config::shares::Full;
use tokio::time::sleep;

use crate::{
    holder::{Holder, network},
    turn,
    wakers::Wakers,
};

/// So many idle connections are closed at once where places are needed.
const BATCH: usize = 16;
/// One of so many places may belong to connections that were closed and whose memory and descriptors are not free yet.
const LEAVING_PART: usize = 16;
/// Between two searches for connections that hold bytes, milliseconds: what was closed needs a moment to leave.
const RELIEF_PAUSE_MS: u64 = 5;
/// Bytes of a connection that has said nothing: its task, its socket, its place, and room for the first of a beginning.
pub(crate) const CONNECTION_BYTES: usize = (8 << 10) + UNREAD_BYTES_FREE;
/// Bytes of what passes as it comes: a buffer for each way.
const TUNNEL_BYTES: usize = 16 << 10;
/// Bytes of a beginning that count at most: no buffer for unfinished heads is larger.
const UNREAD_BYTES_MAX: usize = 64 << 10;
/// Bytes of a beginning that are counted with the connection: most heads are no longer.
const UNREAD_BYTES_FREE: usize = 1 << 10;

/// Bytes that a connection may have more in a turn of its task before others see them. They see the
/// rest when the turn ends: sums that all threads write to are slow to write to.
const UNSETTLED_BYTES_MAX: usize = 256 << 10;

/// Between two questions whether a holder may have more bytes.
pub(crate) const PAUSE: Duration = Duration::from_millis(5);
/// Requests that a client may give up before they are answered, beyond those that it let be answered.
const GIVEN_UP_MAX: i64 = 256;

/// Why a connection is closed before its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Crowded {
    /// A new connection needed its place.
    Places,
    /// Too many bytes were kept.
    Bytes,
    /// The client gave up one request after the other (CVE-2023-44487).
    GivenUp,
}

/// All connections.
#[derive(Debug)]
pub(crate) struct Accounts {
    book: Mutex<Book>,
    connections_max: usize,
    bytes_max: usize,
    bytes: Sum,
    began: Instant,
    /// When connections that hold bytes were searched for last, milliseconds.
    relieved_ms: AtomicU64,
    numbers: AtomicU64,
}

/// What one connection holds.
#[derive(Debug)]
pub(crate) struct Account {
    accounts: Arc<Accounts>,
    number: u64,
    holder: Holder,
    /// The client's address, of IPv6 the network.
    client: IpAddr,
    bytes: AtomicUsize,
    /// How many of them the sums have.
    settled: AtomicUsize,
    bytes_of_holder: Arc<Sum>,
    /// Bytes from the client since the last progress.
    unread: AtomicUsize,
    /// What comes from the client passes as it comes.
    is_tunnel: AtomicBool,
    progress_ms: AtomicU64,
    /// Requests that the client may still give up.
    patience: AtomicI64,
    crowded: OnceLock<Crowded>,
    leaving: Arc<Wakers>,
}

/// How many bytes of a beginning are on the account.
const fn counted_unread(bytes: usize) -> usize {
    bytes.saturating_sub(UNREAD_BYTES_FREE)
}

/// A request that has no answer yet; dropped before, the client has given it up.
#[derive(Debug)]
pub(crate) struct Unanswered(Option<Arc<Account>>);

impl Unanswered {
    /// There is an answer.
    pub(crate) fn answered(mut self) {
        if let Some(account) = self.0.take() {
            let _ = account
                .patience
                .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| (left < GIVEN_UP_MAX).then_some(left + 1));
        }
    }
}

impl Drop for Unanswered {
    fn drop(&mut self) {
        if let Some(account) = self.0.take()
            && account.patience.fetch_sub(1, Ordering::Relaxed) <= 0
        {
            account.close(Crowded::GivenUp);
        }
    }
}

impl Account {
    /// Notes a request.
    pub(crate) fn asked(self: &Arc<Self>) -> Unanswered {
        Unanswered(Some(Arc::clone(self)))
    }

    /// Whose connection it is.
    pub(crate) fn holder(&self) -> Holder {
        self.holder
    }

    /// Puts bytes on the account for as long as the charge lives.
    pub(crate) fn charge(self: &Arc<Self>, bytes: usize) -> Charge {
        self.add(bytes);
        Charge { account: Arc::clone(self), bytes }
    }

    /// Notes bytes that came from the client: a part of a head or of a handshake, or of what passes as it comes.
    pub(crate) fn received(&self, bytes: usize) {
        if self.is_tunnel.load(Ordering::Relaxed) {
            return self.progress();
        }
        let before = self.unread.load(Ordering::Relaxed);
        let after = before.saturating_add(bytes).min(UNREAD_BYTES_MAX);
        self.unread.store(after, Ordering::Relaxed);
        let counted = counted_unread(after) - counted_unread(before);
        if counted > 0 {
            self.add(counted);
        }
    }

    /// A head is whole, or a part of a body goes on: the connection is neither idle nor stalled.
    pub(crate) fn progress(&self) {
        self.progress_ms.store(self.accounts.now_ms(), Ordering::Relaxed);
        let counted = counted_unread(self.unread.swap(0, Ordering::Relaxed));
        if counted > 0 {
            self.remove(counted);
        }
    }

    /// What comes from now on passes as it comes. The charge is to be kept as long.
    #[must_use]
    pub(crate) fn pass(self: &Arc<Self>) -> Charge {
        self.is_tunnel.store(true, Ordering::Relaxed);
        self.progress();
        self.charge(TUNNEL_BYTES)
    }

    /// The tasks of the connection, which are woken where it must give way to others.
    pub(crate) fn leaving(&self) -> &Arc<Wakers> {
        &self.leaving
    }

    /// Why the connection gives way to others, where it does.
    pub(crate) fn crowded(&self) -> Option<Crowded> {
        self.crowded.get().copied()
    }

    fn close(&self, crowded: Crowded) {
        // The first reason counts.
        let _ = self.crowded.set(crowded);
        self.leaving.wake();
    }

    /// Puts bytes on the account until [`Self::remove`].
    pub(crate) fn add(&self, bytes: usize) {
        let now = self.bytes.fetch_add(bytes, Ordering::Relaxed) + bytes;
        let unsettled = now.saturating_sub(self.settled.load(Ordering::Relaxed));
        if unsettled > UNSETTLED_BYTES_MAX || !turn::is_running() {
            self.settle();
        }
    }

    /// Takes bytes off the account that [`Self::add`] put there.
    pub(crate) fn remove(&self, bytes: usize) {
        self.bytes.fetch_sub(bytes, Ordering::Relaxed);
        if !turn::is_running() {
            self.settle();
        }
    }

    /// Has the sums say what the connection holds.
    pub(crate) fn settle(&self) {
        self.settle_at(self.bytes());
    }

    fn settle_at(&self, bytes: usize) {
        if self.settled.load(Ordering::Relaxed) == bytes {
            return;
        }
        let more = bytes.cast_signed() - self.settled.swap(bytes, Ordering::Relaxed).cast_signed();
        let own = self.bytes_of_holder.add(more);
        let all = self.accounts.bytes.add(more);
        if more > 0 && own + all > self.accounts.bytes_max {
            self.accounts.relieve();
        }
    }

    /// Waits until the holder may have more bytes.
    pub(crate) async fn room(&self) {
        while self.is_over() {
            sleep(PAUSE).await;
        }
    }

    /// Whether the holder has more bytes than it leaves free: it gets no more until connections of it have given way.
    pub(crate) fn is_over(&self) -> bool {
        let kept = self.bytes_of_holder.get() + self.accounts.bytes.get();
        let is_over = kept > self.accounts.bytes_max;
        if is_over {
            self.accounts.relieve();
        }
        is_over
    }

    fn bytes(&self) -> usize {
        self.bytes.load(Ordering::Relaxed)
    }
}

impl Drop for Account {
    fn drop(&mut self) {
        self.settle_at(0);
    }
}

impl Accounts {
    /// A holder gets no more connections and bytes than it leaves free.
    pub(crate) fn new(connections_max: usize, per_endpoint_max: usize, bytes_max: usize) -> Arc<Self> {
        Arc::new(Self {
            book: Mutex::new(Book::new(connections_max, per_endpoint_max)),
            connections_max,
            bytes_max,
            bytes: Sum::default(),
            began: Instant::now(),
            relieved_ms: AtomicU64::new(0),
            numbers: AtomicU64::new(0),
        })
    }

    /// Connections, and bytes that are kept for them.
    pub(crate) fn held(&self) -> (usize, usize) {
        (self.book().shares.all(), self.bytes.get())
    }

    /// An account for a new connection; `None` where its holder has its share and none of its connections is idle.
    pub(crate) fn open(self: &Arc<Self>, holder: Holder, client: IpAddr) -> Option<Arc<Account>> {
        let (client, now_ms) = (network(client), self.now_ms());
        let mut book = self.book();
        if let Err(full) = book.take(holder, client) {
            let from = match full {
                Full::All => book.shares.greediest()?,
                Full::Share => holder,
            };
            let room = (self.connections_max / LEAVING_PART).max(1).saturating_sub(book.leaving);
            // A search takes time for each connection: none is made for nothing.
            if room > 0 {
                book.close_idle(from, now_ms, room.min(BATCH));
            }
            book.take(holder, client).ok()?;
        }
        let holding = book.holders.entry(holder).or_default();
        holding.accounts += 1;
        let account = Arc::new(Account {
            accounts: Arc::clone(self),
            number: self.numbers.fetch_add(1, Ordering::Relaxed),
            holder,
            client,
            bytes: AtomicUsize::new(0),
            settled: AtomicUsize::new(0),
            bytes_of_holder: Arc::clone(&holding.bytes),
            unread: AtomicUsize::new(0),
            is_tunnel: AtomicBool::new(false),
            progress_ms: AtomicU64::new(now_ms),
            patience: AtomicI64::new(GIVEN_UP_MAX),
            crowded: OnceLock::new(),
            leaving: Arc::default(),
        });
        holding.connections.insert(account.number, Arc::clone(&account));
        Some(account)
    }

    /// To be called when the connection of an account has ended.
    pub(crate) fn close(&self, account: &Account) {
        // Of a beginning that was not read to its end.
        account.progress();
        let mut book = self.book();
        let Some(holding) = book.holders.get_mut(&account.holder) else { return };
        holding.accounts -= 1;
        let has_place = holding.connections.remove(&account.number).is_some();
        if holding.accounts == 0 {
            book.holders.remove(&account.holder);
        }
        if has_place {
            book.give(account.holder, account.client);
        } else {
            book.leaving -= 1;
        }
    }

    /// Closes connections of the holder with most bytes until it has no more than it leaves free, with a margin: those of
    /// the client with most bytes, first those that have held many bytes for long.
    fn relieve(&self) {
        let now_ms = self.now_ms();
        let before = self.relieved_ms.swap(now_ms, Ordering::Relaxed);
        if before != 0 && now_ms.saturating_sub(before) < RELIEF_PAUSE_MS {
            self.relieved_ms.store(before, Ordering::Relaxed);
            return;
        }
        let mut book = self.book();
        let most = book.holders.iter().max_by_key(|(_, holding)| holding.bytes.get());
        let Some((&holder, holding)) = most else { return };
        let mut own: usize = holding.connections.values().map(|account| account.bytes()).sum();
        // Also those that are about to leave.
        let others = self.bytes.get().saturating_sub(own);
        let goal = (self.bytes_max - self.bytes_max / 8).saturating_sub(others) / 2;
        if own <= goal {
            return;
        }
        let age = |account: &Account| now_ms.saturating_sub(account.progress_ms.load(Ordering::Relaxed)) + 1;
        let weight = |account: &Account| account.bytes() as u64 * age(account);
        let client = holding.client_with_most(Account::bytes);
        let of_client = holding.connections.values().filter(|one| Some(one.client) == client);
        let mut heaviest: Vec<_> = of_client.map(|one| (weight(one), Arc::clone(one))).collect();
        heaviest.sort_unstable_by_key(|(weight, _)| std::cmp::Reverse(*weight));
        for (_, account) in heaviest {
            if own <= goal {
                break;
            }
            own -= account.bytes().min(own);
            book.let_go(holder, &account, Crowded::Bytes);
        }
    }

    fn now_ms(&self) -> u64 {
        u64::try_from(turn::now().duration_since(self.began).as_millis()).unwrap_or(u64::MAX)
    }

    fn book(&self) -> MutexGuard<'_, Book> {
        self.book.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;

    const HOSTILE: Holder = Holder::Caller(1);
    const HONEST: Holder = Holder::Caller(2);
    const CLIENT: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);

    /// Accounts that began a minute ago.
    fn accounts(connections_max: usize, bytes_max: usize) -> Arc<Accounts> {
        let mut accounts = Accounts::new(connections_max, connections_max, bytes_max);
        Arc::get_mut(&mut accounts).unwrap().began = Instant::now().checked_sub(Duration::from_mins(1)).unwrap();
        accounts
    }

    fn closed(account: &Account) -> Option<Crowded> {
        account.crowded()
    }

    #[test]
    fn the_holder_with_most_bytes_gives_way_the_stalled_first() {
        let accounts = accounts(100, 1_000);
        let [stalled, going, honest] = [HOSTILE, HOSTILE, HONEST].map(|holder| accounts.open(holder, CLIENT).unwrap());
        stalled.progress_ms.store(1, Ordering::Relaxed);
        let _kept = [stalled.charge(220), going.charge(220), honest.charge(100)];
        assert_eq!(accounts.held(), (3, 540), "a holder may have what it leaves free");
        let _more = going.charge(30);
        assert_eq!([&stalled, &going, &honest].map(|one| closed(one)), [Some(Crowded::Bytes), None, None]);
        drop((stalled, going));
    }

    #[test]
    fn bytes_are_given_back_and_beginnings_count_until_they_are_read() {
        let accounts = accounts(100, 1 << 30);
        let account = accounts.open(HONEST, CLIENT).unwrap();
        account.received(1_000);
        assert_eq!(accounts.held().1, 0, "there is room for the first bytes");
        account.received(1_000);
        assert_eq!(accounts.held().1, 2_000 - UNREAD_BYTES_FREE);
        account.received(1 << 20);
        assert_eq!(accounts.held().1, UNREAD_BYTES_MAX - UNREAD_BYTES_FREE, "no buffer of a beginning is larger");
        account.progress();
        assert_eq!(accounts.held().1, 0);
        let mut charge = account.charge(70);
        for bytes in [7_000, 7] {
            charge.resize(bytes);
            assert_eq!(accounts.held().1, bytes);
        }
        let buffers = account.pass();
        account.received(1 << 20);
        assert_eq!(accounts.held().1, 7 + TUNNEL_BYTES, "what passes is not kept");
        drop((charge, buffers));
        accounts.close(&account);
        assert_eq!(accounts.held(), (0, 0));
    }

    #[test]
    fn others_see_little_bytes_when_the_turn_ends_and_many_at_once() {
        let accounts = accounts(100, 2 * UNSETTLED_BYTES_MAX);
        let account = accounts.open(HONEST, CLIENT).unwrap();
        let (charge, _) = turn::during(|| {
            let charge = account.charge(10);
            drop(account.charge(UNSETTLED_BYTES_MAX - 10));
            assert_eq!(accounts.held().1, 0);
            charge
        });
        account.settle();
        assert_eq!(accounts.held().1, 10);
        let (more, _) = turn::during(|| {
            let more = account.charge(UNSETTLED_BYTES_MAX + 1);
            assert_eq!(accounts.held().1, UNSETTLED_BYTES_MAX + 11);
            assert_eq!((closed(&account), account.is_over()), (Some(Crowded::Bytes), true));
            more
        });
        accounts.close(&account);
        let _ = turn::during(|| drop((charge, more, account)));
        assert_eq!(accounts.held(), (0, 0), "also where no turn of its ends after it");
    }

    #[test]
    fn idle_connections_give_way_to_new_ones_of_their_holder() {
        let accounts = accounts(64, 1 << 30);
        let held: Vec<_> = std::iter::from_fn(|| accounts.open(HOSTILE, CLIENT)).collect();
        assert_eq!(held.len(), 32, "none of them is idle yet");
        held[3].progress_ms.store(1, Ordering::Relaxed);
        accounts.book().holders.get_mut(&HOSTILE).unwrap().busy_until_ms = 0;
        let new = accounts.open(HOSTILE, CLIENT).unwrap();
        assert!(accounts.open(HOSTILE, CLIENT).is_none(), "one was idle");
        let given: Vec<_> = held.iter().filter(|one| closed(one).is_some()).map(|one| one.number).collect();
        assert_eq!(given, [3]);
        assert!(accounts.open(HONEST, CLIENT).is_some());
        for account in held.iter().chain([&new]) {
            accounts.close(account);
        }
        assert_eq!((accounts.held().0, accounts.book().leaving), (1, 0));
    }

    #[test]
    fn clients_of_one_endpoint_take_no_places_and_no_bytes_from_each_other() {
        const SERVER: Holder = Holder::Called(3);
        let accounts = accounts(64, 1 << 20);
        let [other, hostile] = [1, 2].map(|last| IpAddr::V4(Ipv4Addr::new(192, 0, 2, last)));
        let idle = accounts.open(SERVER, other).unwrap();
        idle.progress_ms.store(1, Ordering::Relaxed);
        let held: Vec<_> = std::iter::from_fn(|| accounts.open(SERVER, hostile)).collect();
        accounts.book().holders.get_mut(&SERVER).unwrap().busy_until_ms = 0;
        assert!(accounts.open(SERVER, hostile).is_none());
        let charges: Vec<_> = held.iter().map(|one| one.charge((1 << 20) / held.len())).collect();
        assert_eq!(closed(&idle), None, "it is idle, and another client wants more");
        assert!(held.iter().any(|one| closed(one) == Some(Crowded::Bytes)));
        drop(charges);
    }

    #[test]
    fn few_connections_leave_at_a_time() {
        let accounts = accounts(64, 1 << 30);
        let held: Vec<_> = std::iter::from_fn(|| accounts.open(HOSTILE, CLIENT)).collect();
        for one in &held {
            one.progress_ms.store(1, Ordering::Relaxed);
        }
        accounts.book().holders.get_mut(&HOSTILE).unwrap().busy_until_ms = 0;
        let opened = std::iter::from_fn(|| accounts.open(HOSTILE, CLIENT)).count();
        assert_eq!(opened, 64 / LEAVING_PART, "their descriptors are not free yet");
    }

    #[test]
    fn a_client_that_gives_up_all_it_asks_is_closed() {
        let accounts = accounts(4, 1 << 30);
        let account = accounts.open(HONEST, CLIENT).unwrap();
        for _ in 0..10 * GIVEN_UP_MAX {
            drop(account.asked());
            account.asked().answered();
        }
        assert_eq!(closed(&account), None, "half of them were answered");
        for _ in 0..=GIVEN_UP_MAX {
            drop(account.asked());
        }
        assert_eq!(closed(&account), Some(Crowded::GivenUp));
    }
}
