//! One worker: a thread with sockets of its own and a loop that takes what came, all of it, and sends what follows from it.
//! Workers share nothing that a question waits for but locks of a moment.

use std::{
    io,
    net::{SocketAddr, UdpSocket},
    pin::pin,
    rc::Rc,
    sync::Arc,
    time::Instant,
};

use nix::sys::socket::SockaddrStorage;
use tokio::{
    sync::{mpsc, watch},
    task::JoinSet,
};

use crate::{
    backend::Backend,
    batch::{CLIENT_BATCH, Inbox, UPSTREAM_BATCH},
    counters::{Counters, Outcome},
    poller::Poller,
    settings::Settings,
    slots::Key,
    tcp::{self, Clients, TcpQuestion},
    traffic::{Shared, Traffic},
};

/// Octets of a question over UDP; longer ones are dropped.
const QUESTION_OCTETS_MAX: usize = 4096;
/// Octets of an answer over UDP: what a datagram can have.
const ANSWER_OCTETS_MAX: usize = 65_535;
/// Questions of connections that wait for the loop.
const QUESTIONS_QUEUED_MAX: usize = 256;
/// Things of one kind taken per wake-up, so that every kind has its turn.
const TURN_MAX: usize = 256;

/// The sockets that one worker starts with.
pub(crate) struct Listeners {
    pub(crate) udp: Vec<(SocketAddr, UdpSocket)>,
    pub(crate) tcp: Vec<std::net::TcpListener>,
}

struct Listener {
    socket: Rc<UdpSocket>,
    inbox: Inbox<SockaddrStorage, CLIENT_BATCH>,
}

/// Serves until `stop` is closed. Must be called on a tokio runtime of one thread.
pub(crate) async fn run<D: Backend>(
    listeners: Listeners,
    backend: D,
    settings: Settings,
    counters: Arc<Counters>,
    shared: Shared,
    mut stop: watch::Receiver<()>,
) -> io::Result<()> {
    let (sender, questions) = mpsc::channel(QUESTIONS_QUEUED_MAX);
    let clients = Clients::new(backend.clone(), sender, Arc::clone(&counters), &settings.bounds);
    let mut accepting = JoinSet::new();
    for listener in listeners.tcp {
        let listener = tokio::net::TcpListener::from_std(listener)?;
        accepting.spawn(tcp::accept(listener, clients.clone()));
    }
    // The queue of questions ends with the listeners.
    drop(clients);
    let traffic = Traffic::new(backend, settings, Arc::clone(&counters), shared, Poller::new()?);
    let mut worker = Worker { traffic, listeners: Vec::new(), answers: Inbox::for_peers(ANSWER_OCTETS_MAX), counters };
    for (address, socket) in listeners.udp {
        worker.listen(address, socket)?;
    }
    tokio::select! {
        _ = stop.changed() => Ok(()),
        Some(ended) = accepting.join_next() => ended.map_err(io::Error::other),
        result = worker.serve(questions) => result,
    }
}

struct Worker<D> {
    traffic: Traffic<D>,
    listeners: Vec<Listener>,
    answers: Inbox<(), UPSTREAM_BATCH>,
    counters: Arc<Counters>,
}

/// The poller's word for a listener: keys of sockets never come so far.
fn word(listener: usize) -> u64 {
    u64::MAX - listener as u64
}

impl<D: Backend> Worker<D> {
    fn listen(&mut self, address: SocketAddr, socket: UdpSocket) -> io::Result<()> {
        let socket = Rc::new(socket);
        self.traffic.poller.watch(&*socket, word(self.listeners.len()))?;
        self.traffic.repliers.add_listener(address, Rc::clone(&socket), Instant::now());
        self.listeners.push(Listener { socket, inbox: Inbox::for_listener(QUESTION_OCTETS_MAX) });
        Ok(())
    }

    async fn serve(&mut self, mut questions: mpsc::Receiver<TcpQuestion>) -> io::Result<()> {
        let mut alarm = pin!(tokio::time::sleep(std::time::Duration::ZERO));
        let mut alarm_at: Option<Instant> = None;
        let mut words = Vec::new();
        loop {
            if let Some(deadline) = self.traffic.pending.next_deadline()
                && alarm_at.is_none_or(|at| deadline < at)
            {
                alarm.as_mut().reset(deadline.into());
                alarm_at = Some(deadline);
            }
            tokio::select! {
                result = self.traffic.poller.ready(&mut words) => {
                    result?;
                    let now = Instant::now();
                    words.drain(..).for_each(|word| self.readable(word, now));
                }
                Some(result) = self.traffic.installs.join_next() => self.installed(result),
                Some(result) = self.traffic.retries.join_next() => {
                    if let Ok(retried) = result {
                        self.traffic.retried(retried, Instant::now());
                    }
                }
                Some(question) = questions.recv() => self.connections(question, &mut questions),
                () = &mut alarm, if alarm_at.is_some() => {
                    alarm_at = None;
                    self.traffic.expire(Instant::now());
                }
            }
            self.traffic.flush(Instant::now());
            // Connections have their turn, however many datagrams wait.
            tokio::task::yield_now().await;
        }
    }

    fn readable(&mut self, word: u64, now: Instant) {
        let listener = usize::try_from(u64::MAX - word).unwrap_or(usize::MAX);
        match self.listeners.get_mut(listener) {
            Some(listener) => {
                let (traffic, counters) = (&mut self.traffic, &self.counters);
                let received = listener.inbox.receive(&listener.socket, |datagram| match datagram.source {
                    Some(source) if datagram.is_whole => {
                        traffic.datagram(datagram.octets, source, datagram.destination, now);
                    }
                    _ => counters.count(Outcome::Dropped),
                });
                log_unexpected(received);
            }
            None => self.answers(Key::from_bits(word), now),
        }
    }

    fn answers(&mut self, key: Key, now: Instant) {
        let Some(socket) = self.traffic.upstreams.socket(key) else { return };
        let traffic = &mut self.traffic;
        let received = self.answers.receive(&socket, |datagram| traffic.response(key, datagram.octets, now));
        // The resolver's machine says that nobody listens there (an ICMP error).
        if received.as_ref().is_err_and(|error| error.kind() != io::ErrorKind::WouldBlock) {
            self.traffic.unreachable(key, now);
        }
    }

    fn connections(&mut self, first: TcpQuestion, questions: &mut mpsc::Receiver<TcpQuestion>) {
        let now = Instant::now();
        self.traffic.connection(first, now);
        for _ in 1..TURN_MAX {
            let Ok(question) = questions.try_recv() else { return };
            self.traffic.connection(question, now);
        }
    }

    fn installed(&mut self, first: Result<crate::traffic::Installed, tokio::task::JoinError>) {
        let now = Instant::now();
        let (mut next, mut taken) = (Some(first), 0);
        while let Some(result) = next {
            match result {
                Ok(installed) => self.traffic.installed(installed, now),
                // The backend panicked: its questions end at their deadline.
                Err(error) => tracing::error!(%error, "handing addresses to the gate failed"),
            }
            taken += 1;
            next = if taken < TURN_MAX { self.traffic.installs.try_join_next() } else { None };
        }
    }
}

fn log_unexpected(received: io::Result<usize>) {
    if let Err(error) = received
        && error.kind() != io::ErrorKind::WouldBlock
    {
        tracing::debug!(%error, "receiving questions");
    }
}
