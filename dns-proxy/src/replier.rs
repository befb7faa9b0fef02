//! Sockets that replies leave from: bound to the resolver's address, so that the client sees the answer of the one it
//! asked. A listener replies itself to whoever asked it plainly.

use std::{
    collections::HashMap,
    io,
    net::{SocketAddr, UdpSocket},
    rc::Rc,
    time::Instant,
};

use nix::sys::socket::SockaddrStorage;

use crate::{
    batch::{CLIENT_BATCH, Outbox, SendHeaders},
    slots::{Key, Slots},
    socket::Marked,
    tally::{Outcome, Tallies},
    upstream::RESOLVERS_MAX,
};

struct Replier {
    socket: Rc<UdpSocket>,
    outbox: Outbox<SockaddrStorage>,
    used: Instant,
    is_listener: bool,
}

/// The replying sockets of one worker, at most [`RESOLVERS_MAX`] beside the listeners.
pub(crate) struct Repliers {
    marked: Marked,
    sockets: Slots<Replier>,
    by_address: HashMap<SocketAddr, Key>,
    /// Sockets with something to send.
    dirty: Vec<Key>,
    headers: SendHeaders<SockaddrStorage, CLIENT_BATCH>,
}

impl Repliers {
    pub(crate) fn new(marked: Marked) -> Self {
        Self {
            marked,
            sockets: Slots::new(),
            by_address: HashMap::new(),
            dirty: Vec::new(),
            headers: SendHeaders::new(),
        }
    }

    pub(crate) fn add_listener(&mut self, address: SocketAddr, socket: Rc<UdpSocket>, now: Instant) {
        self.add(address, Replier { socket, outbox: Outbox::new(), used: now, is_listener: true });
    }

    /// The socket that replies from this address; opened where there is none.
    pub(crate) fn from(&mut self, address: SocketAddr, now: Instant) -> io::Result<Key> {
        if let Some(key) = self.by_address.get(&address).copied() {
            if let Some(replier) = self.sockets.get_mut(key) {
                replier.used = now;
            }
            return Ok(key);
        }
        self.make_room();
        let socket = Rc::new(self.marked.udp_replier(address)?);
        Ok(self.add(address, Replier { socket, outbox: Outbox::new(), used: now, is_listener: false }))
    }

    /// Adds a reply to what is sent with the next [`Self::flush`]; false where the socket had to make room.
    pub(crate) fn send(&mut self, key: Key, receiver: SockaddrStorage, octets: &[u8]) -> bool {
        let Some(replier) = self.sockets.get_mut(key) else { return false };
        if replier.outbox.is_empty() {
            self.dirty.push(key);
        }
        replier.outbox.push(Some(receiver), |out| out.extend_from_slice(octets));
        true
    }

    pub(crate) fn flush(&mut self, tallies: &Tallies) {
        for key in self.dirty.drain(..) {
            let Some(replier) = self.sockets.get_mut(key) else { continue };
            replier.outbox.flush(&replier.socket, &mut self.headers, |_| tallies.count(Outcome::ReplyUnsent));
        }
    }

    fn add(&mut self, address: SocketAddr, replier: Replier) -> Key {
        let key = self.sockets.insert(replier);
        self.by_address.insert(address, key);
        key
    }

    fn make_room(&mut self) {
        let sockets = &self.sockets;
        let candidates = self.by_address.iter().filter_map(|(address, key)| {
            let replier = sockets.get(*key).filter(|replier| !replier.is_listener)?;
            Some((replier.used, *address))
        });
        let (count, oldest) = candidates.fold((0, None), |(count, oldest), candidate| {
            (count + 1, Some(oldest.map_or(candidate, |oldest: (Instant, SocketAddr)| oldest.min(candidate))))
        });
        if count < RESOLVERS_MAX {
            return;
        }
        if let Some(key) = oldest.and_then(|(_, address)| self.by_address.remove(&address)) {
            self.sockets.remove(key);
        }
    }
}
