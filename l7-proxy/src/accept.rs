//! Connections as they come: seats, and the thread of each.

use std::{
    net::{IpAddr, Ipv6Addr, SocketAddr},
    sync::{Arc, PoisonError},
    time::Duration,
};

use namegate_config::shares::Shares;
use tokio::{
    net::{TcpListener, TcpStream},
    sync::{mpsc, watch},
};

use crate::{
    connection::{self, Shared},
    desk::Desk,
    socket,
    tally::Outcome,
};

/// How many connections a thread may have more than the one with the fewest before it hands new ones over.
const LEAD_MAX: usize = 4;
/// Pause after a failure to accept: most often there are no descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// Bits of an IPv6 address that name a network whose hosts are one client: who has one address of it has all.
const CLIENT_NETWORK: u128 = u128::MAX << 64;

/// Whose share of the connections a connection is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Holder {
    /// An endpoint of this node that calls, by whichever of its addresses.
    Caller(u32),
    /// An endpoint of this node that is called from elsewhere.
    Called(u32),
    /// A client where neither end is known: its address, of IPv6 the network.
    Client(IpAddr),
}

/// The address of an IPv4 client, the network of an IPv6 client.
fn network(client: IpAddr) -> IpAddr {
    match client.to_canonical() {
        IpAddr::V6(address) => Ipv6Addr::from_bits(address.to_bits() & CLIENT_NETWORK).into(),
        v4 => v4,
    }
}

impl Holder {
    fn of(desk: &impl Desk, client: IpAddr, server: Option<IpAddr>) -> Self {
        let (client, server) = (client.to_canonical(), server.map(|server| server.to_canonical()));
        if let Some(endpoint) = desk.endpoint(client) {
            return Self::Caller(endpoint);
        }
        let called = server.and_then(|server| desk.endpoint(server));
        called.map_or_else(|| Self::Client(network(client)), Self::Called)
    }

    /// The endpoint that is refused more, where it is one.
    fn endpoint(self) -> Option<u32> {
        match self {
            Self::Caller(endpoint) | Self::Called(endpoint) => Some(endpoint),
            Self::Client(_) => None,
        }
    }
}

/// Connections at the moment.
#[derive(Debug)]
pub(crate) struct Seats {
    shares: Shares<Holder>,
    /// Of an endpoint that is called, by client.
    callers: Shares<(u32, IpAddr)>,
}

impl Seats {
    pub(crate) fn new(connections_max: usize, per_endpoint_max: usize) -> Self {
        // One client leaves half of what an endpoint may be called to its other clients.
        let per_caller_max = (per_endpoint_max.min(connections_max) / 2).max(1);
        Self {
            shares: Shares::new(connections_max, per_endpoint_max),
            callers: Shares::new(usize::MAX, per_caller_max),
        }
    }

    fn take(&mut self, holder: Holder, client: IpAddr) -> bool {
        if let Holder::Called(endpoint) = holder
            && self.callers.take((endpoint, client), 1).is_err()
        {
            return false;
        }
        let is_taken = self.shares.take(holder, 1).is_ok();
        if !is_taken {
            self.give_back_caller(holder, client);
        }
        is_taken
    }

    fn give(&mut self, holder: Holder, client: IpAddr) {
        self.shares.give(holder, 1);
        self.give_back_caller(holder, client);
    }

    fn give_back_caller(&mut self, holder: Holder, client: IpAddr) {
        if let Holder::Called(endpoint) = holder {
            self.callers.give((endpoint, client), 1);
        }
    }
}

impl<D: Desk> Shared<D> {
    fn seat(self: &Arc<Self>, holder: Holder, client: IpAddr, worker: &Worker<D>) -> Option<Seat<D>> {
        let client = network(client);
        let mut seats = self.seats.lock().unwrap_or_else(PoisonError::into_inner);
        let seat = || Seat { shared: Arc::clone(self), holder, client, _load: Arc::clone(&worker.load) };
        seats.take(holder, client).then(seat)
    }
}

/// A place among the connections, given back on drop.
struct Seat<D> {
    shared: Arc<Shared<D>>,
    holder: Holder,
    client: IpAddr,
    _load: Arc<()>,
}

impl<D> Drop for Seat<D> {
    fn drop(&mut self) {
        let mut seats = self.shared.seats.lock().unwrap_or_else(PoisonError::into_inner);
        seats.give(self.holder, self.client);
    }
}

/// A thread that serves connections, as those who accept them know it.
pub(crate) struct Worker<D> {
    arrivals: mpsc::UnboundedSender<Arrival<D>>,
    /// Held by each of its connections.
    load: Arc<()>,
}

/// A connection on its way to the thread that serves it: seats bound how many there are.
pub(crate) struct Arrival<D> {
    stream: std::net::TcpStream,
    client: SocketAddr,
    seat: Seat<D>,
}

impl<D> Worker<D> {
    /// A worker, and where it gets its connections from.
    pub(crate) fn new() -> (Self, mpsc::UnboundedReceiver<Arrival<D>>) {
        let (arrivals, inbox) = mpsc::unbounded_channel();
        (Self { arrivals, load: Arc::default() }, inbox)
    }
}

/// Accepts connections until `stop` is closed. All workers do so for themselves; one that has many more than another hands
/// them over.
pub(crate) async fn accept<D: Desk>(
    listener: TcpListener,
    shared: Arc<Shared<D>>,
    (workers, own): (Arc<[Worker<D>]>, usize),
    mut stop: watch::Receiver<()>,
) {
    let load = |worker: &Worker<D>| Arc::strong_count(&worker.load);
    let own = &workers[own];
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            _ = stop.changed() => return,
        };
        let (stream, client) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                tracing::debug!(%error, "a connection was not accepted");
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        shared.tallies.count(Outcome::Connection);
        let fewest = workers.iter().min_by_key(|worker| load(worker)).unwrap_or(own);
        let is_handed = load(own) > load(fewest) + LEAD_MAX;
        let server = stream.local_addr().ok().map(|server| server.ip());
        let holder = Holder::of(&shared.desk, client.ip(), server);
        let Some(seat) = shared.seat(holder, client.ip(), if is_handed { fewest } else { own }) else {
            shared.tallies.count(Outcome::ConnectionsFull);
            shared.desk.refused(holder.endpoint());
            socket::reset(stream);
            continue;
        };
        if !is_handed {
            tokio::spawn(serve(stream, client, seat, stop.clone()));
        } else if let Ok(stream) = stream.into_std() {
            // A worker that has ended takes its connections with it.
            let _ = fewest.arrivals.send(Arrival { stream, client, seat });
        }
    }
}

/// Serves the connections that are handed to a worker until those who accept are gone. Those under way end by `stop`.
pub(crate) async fn work<D: Desk>(mut inbox: mpsc::UnboundedReceiver<Arrival<D>>, stop: watch::Receiver<()>) {
    while let Some(Arrival { stream, client, seat }) = inbox.recv().await {
        match TcpStream::from_std(stream) {
            Ok(stream) => drop(tokio::spawn(serve(stream, client, seat, stop.clone()))),
            Err(error) => tracing::debug!(%error, "a connection was not taken over"),
        }
    }
}

async fn serve<D: Desk>(stream: TcpStream, client: SocketAddr, seat: Seat<D>, stop: watch::Receiver<()>) {
    if let Err(error) = connection::serve(&seat.shared, stream, client, stop).await {
        seat.shared.tallies.count(Outcome::Unread);
        tracing::trace!(%error, %client, "a connection ended");
    }
}
