//! Sockets to resolvers. A forger has to guess port and ID together (RFC 5452 §4): each question takes one of many sockets
//! at random, every one on a random port of its own that changes, and a random ID. Questions that leave in one system call
//! share a socket: the port of each is as hard to guess, and one call sends them all.

use std::{
    collections::HashMap,
    io,
    net::{SocketAddr, UdpSocket},
    rc::Rc,
    time::{Duration, Instant},
};

use namegate_config::shares::Shares;
use namegate_engine::EndpointId;
use rand::{RngExt, rngs::StdRng};

use crate::{
    batch::{Outbox, SendHeaders, UPSTREAM_BATCH},
    poller::Poller,
    slots::{Key, Slots},
    socket::Marked,
    transaction::Failure,
};

/// Sockets, and so ports, of one worker to one resolver.
const SOCKETS_PER_RESOLVER: usize = 64;
/// Resolvers of one worker; of the endpoint that asks most of them, the one not asked for longest makes room.
pub(crate) const RESOLVERS_MAX: usize = 32;
/// Questions over one socket, after which its port changes.
const SOCKET_USES_MAX: u32 = 4096;
/// Age of a socket, after which its port changes.
const SOCKET_AGE_MAX: Duration = Duration::from_mins(1);

/// Where a question waits for its answer.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Via {
    socket: Key,
    pub(crate) id: u16,
}

struct Upstream {
    socket: Rc<UdpSocket>,
    /// The questions that wait here, by their IDs.
    waiting: HashMap<u16, Key>,
    outbox: Outbox<()>,
    uses: u32,
    opened: Instant,
    /// Takes no more questions; closed with the last answer.
    is_retired: bool,
    /// For whose question it was opened.
    owner: EndpointId,
}

struct Pool {
    sockets: [Option<Key>; SOCKETS_PER_RESOLVER],
    asked: Instant,
    /// The socket of the last question, while it is not sent.
    filling: Option<Key>,
    /// For whose question it was made.
    owner: EndpointId,
}

/// All sockets of one worker to resolvers.
pub(crate) struct Upstreams {
    marked: Marked,
    pools: HashMap<SocketAddr, Pool>,
    sockets: Slots<Upstream>,
    shares: Shares<EndpointId>,
    /// Sockets with something to send.
    dirty: Vec<Key>,
    headers: SendHeaders<(), UPSTREAM_BATCH>,
    random: StdRng,
}

impl Upstreams {
    pub(crate) fn new(marked: Marked, sockets_max: usize) -> Self {
        Self {
            marked,
            pools: HashMap::new(),
            sockets: Slots::new(),
            shares: Shares::new(sockets_max, sockets_max),
            dirty: Vec::new(),
            headers: SendHeaders::new(),
            random: rand::make_rng(),
        }
    }

    /// An ID for a question over a socket of its own.
    pub(crate) fn random_id(&mut self) -> u16 {
        self.random.random()
    }

    /// Finds a socket and an ID for a question, which waits there from now on.
    pub(crate) fn reserve(
        &mut self,
        resolver: SocketAddr,
        (question, endpoint): (Key, EndpointId),
        now: Instant,
        poller: &Poller,
    ) -> Result<Via, Failure> {
        let key = self.pick((resolver, endpoint), now, poller)?;
        let upstream = self.sockets.get_mut(key).ok_or(Failure::ResolversFull)?;
        upstream.uses += 1;
        // A worker has far fewer questions than a socket has IDs.
        let mut id = self.random.random();
        while upstream.waiting.contains_key(&id) {
            id = self.random.random();
        }
        upstream.waiting.insert(id, question);
        Ok(Via { socket: key, id })
    }

    /// Adds a datagram to what is sent with the next [`Self::flush`].
    pub(crate) fn send(&mut self, via: Via, write: impl FnOnce(&mut Vec<u8>)) {
        let Some(upstream) = self.sockets.get_mut(via.socket) else { return };
        if upstream.outbox.is_empty() {
            self.dirty.push(via.socket);
        }
        upstream.outbox.push(None, write);
    }

    /// The socket behind a poller's word.
    pub(crate) fn socket(&self, key: Key) -> Option<Rc<UdpSocket>> {
        self.sockets.get(key).map(|upstream| Rc::clone(&upstream.socket))
    }

    /// The question that waits for this ID at this socket.
    pub(crate) fn question(&self, socket: Key, id: u16) -> Option<Key> {
        self.sockets.get(socket)?.waiting.get(&id).copied()
    }

    /// All questions that wait at a socket.
    pub(crate) fn questions(&self, socket: Key) -> Vec<Key> {
        self.sockets.get(socket).map_or_else(Vec::new, |upstream| upstream.waiting.values().copied().collect())
    }

    /// A question waits there no longer.
    pub(crate) fn release(&mut self, via: Via) {
        let Some(upstream) = self.sockets.get_mut(via.socket) else { return };
        upstream.waiting.remove(&via.id);
        if upstream.is_retired && upstream.waiting.is_empty() {
            self.close(via.socket);
        }
    }

    /// Sends everything; returns sockets whose resolver turned out to be away.
    pub(crate) fn flush(&mut self) -> Vec<Key> {
        let mut unreachable = Vec::new();
        for key in self.dirty.drain(..) {
            let Some(upstream) = self.sockets.get_mut(key) else { continue };
            let mut is_reached = true;
            upstream.outbox.flush(&upstream.socket, &mut self.headers, |_| is_reached = false);
            if !is_reached {
                unreachable.push(key);
            }
        }
        unreachable
    }

    fn pick(
        &mut self,
        (resolver, endpoint): (SocketAddr, EndpointId),
        now: Instant,
        poller: &Poller,
    ) -> Result<Key, Failure> {
        let filling = self.pools.get(&resolver).and_then(|pool| pool.filling);
        let has_room = |upstream: &Upstream| (1..UPSTREAM_BATCH).contains(&upstream.outbox.len());
        if let Some(key) = filling.filter(|key| self.sockets.get(*key).is_some_and(has_room)) {
            return Ok(key);
        }
        let key = self.pick_at_random((resolver, endpoint), now, poller)?;
        if let Some(pool) = self.pools.get_mut(&resolver) {
            pool.filling = Some(key);
        }
        Ok(key)
    }

    fn pick_at_random(
        &mut self,
        (resolver, endpoint): (SocketAddr, EndpointId),
        now: Instant,
        poller: &Poller,
    ) -> Result<Key, Failure> {
        if !self.pools.contains_key(&resolver) {
            self.make_room();
        }
        let place = self.random.random_range(0..SOCKETS_PER_RESOLVER);
        let pool = self.pools.entry(resolver).or_insert_with(|| Pool {
            sockets: [None; SOCKETS_PER_RESOLVER],
            asked: now,
            filling: None,
            owner: endpoint,
        });
        pool.asked = now;
        let current = pool.sockets[place].filter(|key| self.sockets.get(*key).is_some());
        let is_fresh = |upstream: &Upstream| {
            upstream.uses < SOCKET_USES_MAX && now.duration_since(upstream.opened) < SOCKET_AGE_MAX
        };
        if let Some(key) = current.filter(|key| self.sockets.get(*key).is_some_and(is_fresh)) {
            return Ok(key);
        }
        match self.open((resolver, endpoint), now, poller) {
            Ok(key) => {
                if let Some(old) = current {
                    self.retire(old);
                }
                self.put(resolver, place, key);
                Ok(key)
            }
            // Better an old port than no answer.
            Err(error) => current.or_else(|| self.any_open(resolver)).ok_or_else(|| failure(&error)),
        }
    }

    fn open(&mut self, (resolver, owner): (SocketAddr, EndpointId), now: Instant, poller: &Poller) -> io::Result<Key> {
        self.shares.take(owner, 1).map_err(|_| io::ErrorKind::QuotaExceeded)?;
        let opened = self.marked.udp_upstream(resolver);
        if opened.is_err() {
            self.shares.give(owner, 1);
        }
        let socket = Rc::new(opened?);
        let key = self.sockets.insert(Upstream {
            socket: Rc::clone(&socket),
            waiting: HashMap::new(),
            outbox: Outbox::new(),
            uses: 0,
            opened: now,
            is_retired: false,
            owner,
        });
        if let Err(error) = poller.watch(&*socket, key.to_bits()) {
            self.close(key);
            return Err(error);
        }
        Ok(key)
    }

    fn put(&mut self, resolver: SocketAddr, place: usize, key: Key) {
        if let Some(pool) = self.pools.get_mut(&resolver) {
            pool.sockets[place] = Some(key);
        }
    }

    fn any_open(&self, resolver: SocketAddr) -> Option<Key> {
        let pool = self.pools.get(&resolver)?;
        pool.sockets.iter().flatten().copied().find(|key| self.sockets.get(*key).is_some())
    }

    fn retire(&mut self, key: Key) {
        let Some(upstream) = self.sockets.get_mut(key) else { return };
        upstream.is_retired = true;
        if upstream.waiting.is_empty() {
            self.close(key);
        }
    }

    fn close(&mut self, key: Key) {
        if let Some(upstream) = self.sockets.remove(key) {
            self.shares.give(upstream.owner, 1);
        }
    }

    /// Gives up a resolver of the endpoint that has most: the one not asked for longest.
    fn make_room(&mut self) {
        if self.pools.len() < RESOLVERS_MAX {
            return;
        }
        let mut counts: HashMap<EndpointId, usize> = HashMap::new();
        for pool in self.pools.values() {
            *counts.entry(pool.owner).or_default() += 1;
        }
        let age = |pool: &Pool| (std::cmp::Reverse(counts[&pool.owner]), pool.asked);
        let oldest = self.pools.iter().min_by_key(|(_, pool)| age(pool)).map(|(resolver, _)| *resolver);
        let pool = oldest.and_then(|resolver| self.pools.remove(&resolver));
        for key in pool.iter().flat_map(|pool| pool.sockets).flatten() {
            self.retire(key);
        }
    }
}

fn failure(error: &io::Error) -> Failure {
    match error.kind() {
        io::ErrorKind::NetworkUnreachable | io::ErrorKind::HostUnreachable => Failure::Unreachable,
        _ => Failure::ResolversFull,
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;

    const HOSTILE: EndpointId = EndpointId(1);
    const HONEST: EndpointId = EndpointId(2);
    const MARKED: Marked = Marked { mark: 0, transparency_optional: false };

    fn resolver(number: u16) -> SocketAddr {
        let [high, low] = number.to_be_bytes();
        SocketAddr::new(Ipv4Addr::new(127, 1, high, low).into(), 9)
    }

    #[tokio::test]
    async fn resolvers_that_never_answer_take_no_sockets_from_others() {
        let (poller, now) = (Poller::new().unwrap(), Instant::now());
        let mut upstreams = Upstreams::new(MARKED, 64);
        let mut questions = Slots::new();
        let mut ask = |upstreams: &mut Upstreams, resolver, endpoint| {
            upstreams.reserve(resolver, (questions.insert(()), endpoint), now, &poller)
        };
        let own = resolver(0);
        let first = ask(&mut upstreams, own, HONEST).unwrap();
        let refused = (1..1_000).filter(|number| ask(&mut upstreams, resolver(*number), HOSTILE).is_err()).count();
        assert!(refused > 900, "{refused}");
        assert!(upstreams.pools.contains_key(&own), "the honest endpoint's resolver stays");
        for number in 0..8 {
            assert!(ask(&mut upstreams, resolver(2_000 + number), HONEST).is_ok(), "{number}");
        }
        assert!(upstreams.questions(first.socket).len() == 1, "what waits goes on waiting");
        assert!(upstreams.sockets.len() <= 64);
    }
}
