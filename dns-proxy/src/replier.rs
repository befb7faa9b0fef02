//! Sockets that replies leave from: bound to the resolver's address, so that the client sees the answer of the one it
//! asked. A listener replies itself to a client that asked it plainly. Where a resolver on this machine has the address
//! for itself, a raw socket takes its place.

use std::{
    cmp::Reverse,
    collections::HashMap,
    io,
    net::{SocketAddr, UdpSocket},
    rc::Rc,
    time::Instant,
};

use namegate_engine::EndpointId;
use nix::sys::socket::SockaddrStorage;

use crate::{
    batch::{CLIENT_BATCH, Outbox, SendHeaders, socket_address},
    counters::{Counters, Outcome},
    raw::push_datagram,
    slots::{Key, Slots},
    socket::Marked,
};

struct Replier {
    socket: Rc<UdpSocket>,
    outbox: Outbox<SockaddrStorage>,
    used: Instant,
    kind: Kind,
    /// For whose question it was opened.
    owner: Option<EndpointId>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Listener,
    Bound,
    /// Writes UDP headers itself, from this address.
    Raw(SocketAddr),
}

/// The replying sockets of one worker.
pub(crate) struct Repliers {
    marked: Marked,
    /// Beside the listeners.
    all_max: usize,
    sockets: Slots<Replier>,
    by_address: HashMap<SocketAddr, Key>,
    /// Sockets with something to send.
    dirty: Vec<Key>,
    headers: SendHeaders<SockaddrStorage, CLIENT_BATCH>,
}

impl Repliers {
    pub(crate) fn new(marked: Marked, all_max: usize) -> Self {
        Self {
            marked,
            all_max,
            sockets: Slots::new(),
            by_address: HashMap::new(),
            dirty: Vec::new(),
            headers: SendHeaders::new(),
        }
    }

    pub(crate) fn add_listener(&mut self, address: SocketAddr, socket: Rc<UdpSocket>, now: Instant) {
        self.add(address, Replier { socket, outbox: Outbox::new(), used: now, kind: Kind::Listener, owner: None });
    }

    /// The socket that replies from this address; opened for a client where there is none.
    pub(crate) fn from(&mut self, address: SocketAddr, owner: Option<EndpointId>, now: Instant) -> io::Result<Key> {
        if let Some(key) = self.by_address.get(&address).copied() {
            if let Some(replier) = self.sockets.get_mut(key) {
                replier.used = now;
            }
            return Ok(key);
        }
        self.make_room();
        let (socket, kind) = match self.marked.udp_replier(address) {
            Err(error) if error.kind() == io::ErrorKind::AddrInUse => {
                (self.marked.raw_replier(address)?, Kind::Raw(address))
            }
            socket => (socket?, Kind::Bound),
        };
        Ok(self.add(address, Replier { socket: Rc::new(socket), outbox: Outbox::new(), used: now, kind, owner }))
    }

    /// Adds a reply to what is sent with the next [`Self::flush`]; false where the socket had to make room.
    pub(crate) fn send(&mut self, key: Key, receiver: SockaddrStorage, octets: &[u8]) -> bool {
        let Some(replier) = self.sockets.get_mut(key) else { return false };
        if replier.outbox.is_empty() {
            self.dirty.push(key);
        }
        match (replier.kind, socket_address(&receiver)) {
            (Kind::Raw(source), Some(client)) => {
                let portless = SocketAddr::new(client.ip(), 0);
                replier.outbox.push(Some(portless.into()), |out| push_datagram(out, source, client, octets));
            }
            _ => replier.outbox.push(Some(receiver), |out| out.extend_from_slice(octets)),
        }
        true
    }

    pub(crate) fn flush(&mut self, counters: &Counters) {
        for key in self.dirty.drain(..) {
            let Some(replier) = self.sockets.get_mut(key) else { continue };
            replier.outbox.flush(&replier.socket, &mut self.headers, |_| counters.count(Outcome::ReplyUnsent));
        }
    }

    fn add(&mut self, address: SocketAddr, replier: Replier) -> Key {
        let key = self.sockets.insert(replier);
        self.by_address.insert(address, key);
        key
    }

    /// Closes a socket of the client that has most: the one not used for longest.
    fn make_room(&mut self) {
        let sockets = &self.sockets;
        let candidates: Vec<_> = self
            .by_address
            .iter()
            .filter_map(|(address, key)| {
                let replier = sockets.get(*key).filter(|replier| replier.kind != Kind::Listener)?;
                Some((replier.owner, replier.outbox.is_empty(), replier.used, *address))
            })
            .collect();
        if candidates.len() < self.all_max {
            return;
        }
        let mut counts: HashMap<Option<EndpointId>, usize> = HashMap::new();
        for (owner, ..) in &candidates {
            *counts.entry(*owner).or_default() += 1;
        }
        let age = |(owner, is_idle, used, _): &(Option<EndpointId>, bool, Instant, SocketAddr)| {
            (Reverse(counts[owner]), !is_idle, *used)
        };
        let oldest = candidates.iter().min_by_key(|candidate| age(candidate)).copied();
        if let Some(key) = oldest.and_then(|(.., address)| self.by_address.remove(&address)) {
            self.sockets.remove(key);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

    use super::*;

    const MARKED: Marked = Marked { mark: 0, transparency_optional: false };

    /// Fails without the rights: transparent sockets need root.
    fn repliers(addresses: &[SocketAddr]) -> (Repliers, Vec<Key>) {
        let mut repliers = Repliers::new(MARKED, 32);
        let keys = addresses.iter().map(|address| repliers.from(*address, None, Instant::now()).unwrap()).collect();
        (repliers, keys)
    }

    #[test]
    fn replies_come_from_the_address_that_was_asked() {
        for (resolver, client) in [
            ("10.96.0.10:53".parse().unwrap(), UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap()),
            ("[fd00::53]:53".parse().unwrap(), UdpSocket::bind((Ipv6Addr::LOCALHOST, 0)).unwrap()),
        ] {
            let (mut repliers, keys) = repliers(&[resolver]);
            let receiver = SockaddrStorage::from(client.local_addr().unwrap());
            assert!(repliers.send(keys[0], receiver, b"one") && repliers.send(keys[0], receiver, b"two"));
            let counters = Counters::default();
            repliers.flush(&counters);
            assert_eq!(counters.of(Outcome::ReplyUnsent), 0);
            for want in [b"one", b"two"] {
                let mut octets = [0; 3];
                assert_eq!(client.recv_from(&mut octets).unwrap(), (3, resolver));
                assert_eq!(&octets, want);
            }
        }
    }

    #[test]
    fn a_resolver_on_this_machine_keeps_its_questions() {
        let resolver = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::DGRAM, None).unwrap();
        resolver.set_reuse_port(true).unwrap();
        resolver.bind(&SocketAddr::from((Ipv4Addr::new(127, 0, 0, 9), 0)).into()).unwrap();
        let resolver = UdpSocket::from(resolver);
        let address = resolver.local_addr().unwrap();
        let _repliers = repliers(&[address]);
        for _ in 0..50 {
            let client = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
            client.send_to(b"question", address).unwrap();
            resolver.set_read_timeout(Some(std::time::Duration::from_secs(5))).unwrap();
            assert_eq!(resolver.recv_from(&mut [0; 8]).unwrap(), (8, client.local_addr().unwrap()));
        }
    }

    #[test]
    fn a_resolver_that_shares_its_port_with_nobody_is_answered_for() {
        for ip in [IpAddr::V4(Ipv4Addr::LOCALHOST), IpAddr::V6(Ipv6Addr::LOCALHOST)] {
            let [resolver, client] = [(); 2].map(|()| UdpSocket::bind((ip, 0)).unwrap());
            let address = resolver.local_addr().unwrap();
            let (mut repliers, keys) = repliers(&[address]);
            let receiver = SockaddrStorage::from(client.local_addr().unwrap());
            let counters = Counters::default();
            for payload in [&b"odd"[..], &[0; 4], &[0xff; 1999]] {
                assert!(repliers.send(keys[0], receiver, payload));
                repliers.flush(&counters);
                let mut octets = [0; 2000];
                assert_eq!(client.recv_from(&mut octets).unwrap(), (payload.len(), address));
                assert_eq!(&octets[..payload.len()], payload);
            }
            client.send_to(b"question", address).unwrap();
            assert_eq!(resolver.recv_from(&mut [0; 8]).unwrap(), (8, client.local_addr().unwrap()));
            assert_eq!(counters.of(Outcome::ReplyUnsent), 0);
        }
    }

    #[test]
    fn the_resolver_not_asked_for_longest_makes_room() {
        let address = |number: usize| SocketAddr::from(([10, 96, 0, u8::try_from(number).unwrap()], 53));
        let addresses: Vec<_> = (0..=32).map(address).collect();
        let (mut repliers, keys) = repliers(&addresses);
        let receiver = SockaddrStorage::from(address(0));
        assert!(!repliers.send(keys[0], receiver, b""));
        assert!(repliers.send(keys[1], receiver, b""));
        assert_eq!(repliers.by_address.len(), 32);
    }

    #[test]
    fn an_endpoint_with_many_resolvers_closes_its_own_sockets() {
        let mut repliers = Repliers::new(MARKED, 32);
        let address = |number: u8| SocketAddr::new(Ipv4Addr::new(10, 96, 1, number).into(), 53);
        let honest = repliers.from(address(0), Some(EndpointId(2)), Instant::now()).unwrap();
        for number in 1..100 {
            repliers.from(address(number), Some(EndpointId(1)), Instant::now()).unwrap();
        }
        assert_eq!(repliers.by_address.len(), 32);
        assert!(repliers.sockets.get(honest).is_some());
    }
}
