//! What one worker does with questions, answers and what the gate says: it moves transactions on and puts octets into
//! outboxes. It waits for nothing; what takes time is handed over as tasks.

use std::{
    collections::HashMap,
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::Instant,
};

use namegate_config::shares::Shares;
use namegate_engine::{Answer, EndpointId};
use nix::sys::socket::SockaddrStorage;
use tokio::task::JoinSet;

use crate::{
    backend::{Asked, Backend, Forbidden, NotInstalled, Share, Suspicion},
    batch::socket_address,
    cache::{self, Cache},
    counters::{Counters, Outcome},
    exchange::{self, Idle},
    pending::{Client, Entry, Pending},
    poller::Poller,
    query::Transport,
    replier::Repliers,
    settings::Settings,
    slots::Key,
    tcp::TcpQuestion,
    transaction::{Failure, Opening, Origin, Step, Transaction},
    tunnel::{Found, Watch},
    upstream::Upstreams,
    wire::number,
};

/// Answers that are handed over in one go.
const INSTALL_ANSWERS_MAX: usize = 64;
/// Buffers kept to be used again.
const SPARE_MAX: usize = 1024;
/// A buffer that has grown beyond this many octets is not kept.
const SPARE_OCTETS_MAX: usize = 4096;

/// What the gate said to one batch.
pub(crate) type Installed = (Vec<Key>, Vec<Result<(), NotInstalled>>);
/// What a resolver said over TCP to a question of an endpoint.
pub(crate) type Retried = (Key, EndpointId, Option<Vec<u8>>);
/// Questions whose answers wait to be handed over, and these answers.
type Batch = (Vec<Key>, Vec<Answer>);

/// What the workers share.
#[derive(Clone, Debug, Default)]
pub(crate) struct Shared {
    /// None where nobody looks for tunnels.
    pub(crate) watch: Option<Arc<Watch>>,
    /// None where no answers are kept.
    pub(crate) cache: Option<Arc<Cache>>,
}

pub(crate) struct Traffic<D> {
    backend: D,
    settings: Settings,
    counters: Arc<Counters>,
    shared: Shared,
    /// The last answer that was recalled; its space is used again.
    recalled: Vec<u8>,
    pub(crate) poller: Poller,
    pub(crate) pending: Pending,
    pub(crate) upstreams: Upstreams,
    pub(crate) repliers: Repliers,
    /// Answers of this wake-up, and the questions they belong to.
    batch: Batch,
    pub(crate) installs: JoinSet<Installed>,
    pub(crate) retries: JoinSet<Retried>,
    retry_shares: Shares<EndpointId>,
    idle: Arc<Idle>,
    spare: Vec<Vec<u8>>,
}

impl<D: Backend> Traffic<D> {
    pub(crate) fn new(backend: D, settings: Settings, counters: Arc<Counters>, shared: Shared, poller: Poller) -> Self {
        let bounds = settings.bounds;
        Self {
            backend,
            settings,
            counters,
            shared,
            recalled: Vec::new(),
            poller,
            pending: Pending::new(&bounds),
            upstreams: Upstreams::new(settings.marked, bounds.sockets_max),
            repliers: Repliers::new(settings.marked, bounds.repliers_max),
            batch: (Vec::new(), Vec::new()),
            installs: JoinSet::new(),
            retries: JoinSet::new(),
            retry_shares: Shares::new(bounds.retries_max, bounds.retries_max),
            idle: Arc::new(Idle::new(bounds.idle_max)),
            spare: Vec::new(),
        }
    }

    /// A datagram of a client.
    pub(crate) fn datagram(
        &mut self,
        octets: &[u8],
        source: SockaddrStorage,
        destination: Option<SocketAddr>,
        now: Instant,
    ) {
        let (Some(client), Some(destination)) = (socket_address(&source), destination) else {
            return self.counters.count(Outcome::NoDestination);
        };
        let endpoint = self.backend.endpoint(client.ip().to_canonical());
        let Ok(replier) = self.repliers.from(destination, endpoint, now) else {
            return self.counters.count(Outcome::ReplyUnsent);
        };
        let mut message = self.spare.pop().unwrap_or_default();
        message.extend_from_slice(octets);
        let client_side = Client::Udp { replier, from: destination, address: source, endpoint };
        self.open(message, (client.ip(), endpoint), destination, Transport::Udp, client_side, now);
    }

    /// A question of a client's connection.
    pub(crate) fn connection(&mut self, question: TcpQuestion, now: Instant) {
        let TcpQuestion { message, client, destination, place } = question;
        let endpoint = self.backend.endpoint(client.to_canonical());
        self.open(message, (client, endpoint), destination, Transport::Tcp, Client::Tcp(place), now);
    }

    /// A datagram at a socket to a resolver.
    pub(crate) fn response(&mut self, socket: Key, octets: &[u8], now: Instant) {
        let question = number(octets, 0).ok().and_then(|id| self.upstreams.question(socket, id));
        match question.filter(|key| self.pending.get_mut(*key).is_some()) {
            Some(key) => self.hear(key, octets, now),
            None => self.counters.count(Outcome::Mismatch),
        }
    }

    /// The resolver behind a socket is away.
    pub(crate) fn unreachable(&mut self, socket: Key, now: Instant) {
        for key in self.upstreams.questions(socket) {
            self.fail(key, Failure::Unreachable, now);
        }
    }

    /// The gate has answered for a batch.
    pub(crate) fn installed(&mut self, (keys, results): Installed, now: Instant) {
        let results = results.into_iter().chain(std::iter::repeat(Err(NotInstalled::Closed)));
        for (key, result) in keys.into_iter().zip(results) {
            let Some(entry) = self.pending.get_mut(key) else { continue };
            let step = entry.transaction.handle_installed(result, &self.counters);
            self.take(key, step, now);
        }
    }

    /// A question over TCP has come to its end.
    pub(crate) fn retried(&mut self, (key, endpoint, response): Retried, now: Instant) {
        self.retry_shares.give(endpoint, 1);
        match response {
            Some(response) => self.hear(key, &response, now),
            None => self.fail(key, Failure::Unreachable, now),
        }
    }

    /// Ends what has waited long enough.
    pub(crate) fn expire(&mut self, now: Instant) {
        while let Some(key) = self.pending.due(now) {
            let Some(entry) = self.pending.get_mut(key) else { continue };
            let step = entry.transaction.poll_timeout(now, &self.counters);
            self.take(key, step, now);
        }
    }

    /// Hands over and sends everything that this wake-up brought.
    pub(crate) fn flush(&mut self, now: Instant) {
        for socket in self.upstreams.flush() {
            self.unreachable(socket, now);
        }
        self.repliers.flush(&self.counters);
        let (keys, answers) = std::mem::take(&mut self.batch);
        let mut batches: HashMap<EndpointId, Batch> = HashMap::new();
        for (key, answer) in keys.into_iter().zip(answers) {
            let batch = batches.entry(answer.endpoint).or_default();
            batch.0.push(key);
            batch.1.push(answer);
            if batch.0.len() == INSTALL_ANSWERS_MAX {
                let whole = std::mem::take(batch);
                self.install(whole);
            }
        }
        for batch in batches.into_values().filter(|(keys, _)| !keys.is_empty()) {
            self.install(batch);
        }
    }

    /// Hands over answers of one endpoint: they wait for no other endpoint's.
    fn install(&mut self, (keys, answers): Batch) {
        let (backend, patience) = (self.backend.clone(), self.settings.patience.install);
        self.installs.spawn(async move {
            match tokio::time::timeout(patience, backend.install(answers)).await {
                Ok(results) => (keys, results),
                // Every transaction of the batch has the same deadline, and gives up by itself.
                Err(_) => (Vec::new(), Vec::new()),
            }
        });
    }

    fn open(
        &mut self,
        message: Vec<u8>,
        (client, endpoint): (IpAddr, Option<EndpointId>),
        destination: SocketAddr,
        transport: Transport,
        client_side: Client,
        now: Instant,
    ) {
        let Some(resolver) = self.settings.resolver_for(destination) else {
            return self.counters.count(Outcome::NoDestination);
        };
        let origin = Origin { endpoint, is_trusted: self.backend.is_trusted(resolver.ip().to_canonical()), transport };
        match Transaction::handle_query(message, origin, now, self.settings.patience, &self.counters) {
            Opening::Drop => {}
            Opening::Reply(octets) => self.send(client_side, octets),
            Opening::Ask(transaction) => {
                let over_tcp = transport == Transport::Tcp;
                let forbidden = self.forbids(&transaction, client.to_canonical(), resolver, over_tcp);
                match forbidden.or_else(|| self.looks_like_tunnel(&transaction, now)) {
                    Some((why, outcome)) => {
                        let refusal = self.settings.refusal;
                        self.send(client_side, transaction.refuse(&why, refusal, outcome, &self.counters));
                    }
                    None => self.begin(transaction, client_side, resolver, now),
                }
            }
        }
    }

    /// What rules say.
    fn forbids(
        &self,
        transaction: &Transaction,
        client: IpAddr,
        resolver: SocketAddr,
        over_tcp: bool,
    ) -> Option<(Forbidden, Outcome)> {
        if !self.backend.limits(client) {
            return None;
        }
        let name = transaction.name();
        let asked = Asked { name: name.as_ref(), kind: transaction.kind() };
        Some((self.backend.forbids(client, resolver, over_tcp, asked)?, Outcome::Forbidden))
    }

    /// Counts the name, and tells of one too many. It is refused where tunnels are not only looked for.
    fn looks_like_tunnel(&self, transaction: &Transaction, now: Instant) -> Option<(Forbidden, Outcome)> {
        let (endpoint, refused) = (transaction.endpoint(), self.settings.refuses_tunnels);
        let seen = self.shared.watch.as_ref()?.asked(endpoint, transaction.wire_name()?.octets(), now);
        if seen.forgotten > 0 {
            self.counters.add(Outcome::TunnelForgotten, seen.forgotten as u64);
        }
        let Found { parent, names, is_news } = seen.found?;
        self.counters.count(Outcome::TunnelSuspected);
        let reason = format!("looks like a tunnel: {names} names under {parent} in a minute");
        if is_news {
            self.backend.suspects(Suspicion { endpoint, parent, names, refused });
        }
        refused.then_some((Forbidden { reason, is_name_allowed: false }, Outcome::TunnelRefused))
    }

    /// Asks what the client may ask, where there is room, and nobody asked the same a short time ago.
    fn begin(&mut self, mut transaction: Transaction, client_side: Client, resolver: SocketAddr, now: Instant) {
        if let Err(failure) = self.pending.make_room(transaction.endpoint()) {
            self.backend.refused(Share::Pending, Some(transaction.endpoint()));
            transaction.handle_failure(failure, &self.counters);
            return self.send(client_side, transaction.reply());
        }
        let cache_key = self.shared.cache.as_ref().and_then(|_| transaction.cache_key(resolver));
        let step = self.recall(&mut transaction, cache_key.as_ref(), now);
        let key = self.pending.insert(Entry { transaction, client: client_side, resolver, via: None, cache_key });
        match step {
            Step::Wait => {
                self.pending.await_resolver(key);
                self.ask(key, now);
            }
            step => self.take(key, step, now),
        }
    }

    /// Answers from the cache; [`Step::Wait`] where it has no answer.
    fn recall(&mut self, transaction: &mut Transaction, key: Option<&cache::Key>, now: Instant) -> Step {
        let Some(cache) = &self.shared.cache else { return Step::Wait };
        if !key.is_some_and(|key| cache.recall(key, now, &mut self.recalled)) {
            self.counters.count(Outcome::CacheMiss);
            return Step::Wait;
        }
        self.counters.count(Outcome::CacheHit);
        transaction.handle_recalled(&self.recalled, now, self.settings.patience, &self.counters)
    }

    /// Takes what a resolver said to a question, and keeps an answer.
    fn hear(&mut self, key: Key, response: &[u8], now: Instant) {
        let Some(entry) = self.pending.get_mut(key) else { return };
        let step = entry.transaction.handle_response(response, now, self.settings.patience, &self.counters);
        if entry.transaction.is_answered()
            && let (Some(cache), Some(key)) = (&self.shared.cache, entry.cache_key.take())
        {
            self.counters.add(Outcome::CacheEvicted, cache.keep(key, response, now));
        }
        self.take(key, step, now);
    }

    fn ask(&mut self, key: Key, now: Instant) {
        let Some(entry) = self.pending.get_mut(key) else { return };
        let endpoint = entry.transaction.endpoint();
        match self.upstreams.reserve(entry.resolver, (key, endpoint), now, &self.poller) {
            Ok(via) => {
                self.counters.count(Outcome::Asked);
                entry.via = Some(via);
                self.upstreams.send(via, |out| entry.transaction.ask(via.id, out));
            }
            Err(failure) => {
                if failure == Failure::ResolversFull {
                    self.backend.refused(Share::Sockets, Some(endpoint));
                }
                self.fail(key, failure, now);
            }
        }
    }

    fn fail(&mut self, key: Key, failure: Failure, now: Instant) {
        let Some(entry) = self.pending.get_mut(key) else { return };
        let step = entry.transaction.handle_failure(failure, &self.counters);
        self.take(key, step, now);
    }

    /// Does what a transaction wants done.
    fn take(&mut self, key: Key, step: Step, now: Instant) {
        if step == Step::Wait {
            return;
        }
        if let Some(via) = self.pending.get_mut(key).and_then(|entry| entry.via.take()) {
            self.upstreams.release(via);
        }
        match step {
            Step::Wait => {}
            Step::AskOverTcp => self.ask_over_tcp(key, now),
            Step::Install(answer) => {
                self.pending.await_gate(key);
                self.batch.0.push(key);
                self.batch.1.push(answer);
            }
            Step::Reply => {
                if let Some(entry) = self.pending.remove(key) {
                    self.send(entry.client, entry.transaction.reply());
                }
            }
        }
    }

    fn ask_over_tcp(&mut self, key: Key, now: Instant) {
        let Some(endpoint) = self.pending.get_mut(key).map(|entry| entry.transaction.endpoint()) else { return };
        if self.retry_shares.take(endpoint, 1).is_err() {
            self.backend.refused(Share::Retries, Some(endpoint));
            return self.fail(key, Failure::RetriesFull, now);
        }
        self.pending.await_resolver(key);
        let id = self.upstreams.random_id();
        let Some(entry) = self.pending.get_mut(key) else { return };
        let mut question = Vec::new();
        entry.transaction.ask(id, &mut question);
        let (idle, settings, resolver) = (Arc::clone(&self.idle), self.settings, entry.resolver);
        self.retries.spawn(async move {
            let answer = exchange::ask(&idle, settings.marked, resolver, &question);
            match tokio::time::timeout(settings.patience.upstream, answer).await {
                Ok(answer) => (key, endpoint, answer.ok()),
                Err(_) => (key, endpoint, None),
            }
        });
    }

    fn send(&mut self, client: Client, mut octets: Vec<u8>) {
        match client {
            Client::Tcp(place) => drop(place.send(octets)),
            Client::Udp { replier, from, address, endpoint } => {
                // The socket may have made room for another meanwhile.
                let repliers = &mut self.repliers;
                let mut is_sent = repliers.send(replier, address, &octets);
                if !is_sent && let Ok(replier) = repliers.from(from, endpoint, Instant::now()) {
                    is_sent = repliers.send(replier, address, &octets);
                }
                if !is_sent {
                    self.counters.count(Outcome::ReplyUnsent);
                }
                if self.spare.len() < SPARE_MAX && octets.capacity() <= SPARE_OCTETS_MAX {
                    octets.clear();
                    self.spare.push(octets);
                }
            }
        }
    }
}
