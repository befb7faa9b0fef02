//! Connections as they come: seats, and the thread of each.

use std::{
    collections::HashMap,
    net::{IpAddr, SocketAddr},
    sync::{Arc, PoisonError},
    time::Duration,
};

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

/// Connections at a time.
const CONNECTIONS_MAX: usize = 16_384;
/// Connections of one client at a time.
const CONNECTIONS_PER_CLIENT_MAX: usize = 8_192;
/// How many connections a thread may have more than the one with the fewest before it hands new ones over.
const LEAD_MAX: usize = 4;
/// Pause after a failure to accept: most often there are no descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// Connections at the moment.
#[derive(Debug, Default)]
pub(crate) struct Seats {
    all: usize,
    by_client: HashMap<IpAddr, usize>,
}

impl<D> Shared<D> {
    fn seat(self: &Arc<Self>, client: IpAddr, worker: &Worker<D>) -> Option<Seat<D>> {
        let mut seats = self.seats.lock().unwrap_or_else(PoisonError::into_inner);
        let own = seats.by_client.get(&client).copied().unwrap_or(0);
        if own >= CONNECTIONS_PER_CLIENT_MAX || seats.all >= CONNECTIONS_MAX {
            return None;
        }
        seats.all += 1;
        seats.by_client.insert(client, own + 1);
        Some(Seat { shared: Arc::clone(self), client, _load: Arc::clone(&worker.load) })
    }
}

/// A place among the connections, given back on drop.
struct Seat<D> {
    shared: Arc<Shared<D>>,
    client: IpAddr,
    _load: Arc<()>,
}

impl<D> Drop for Seat<D> {
    fn drop(&mut self) {
        let mut seats = self.shared.seats.lock().unwrap_or_else(PoisonError::into_inner);
        seats.all -= 1;
        if let Some(count) = seats.by_client.get_mut(&self.client) {
            *count -= 1;
            if *count == 0 {
                seats.by_client.remove(&self.client);
            }
        }
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
        let Some(seat) = shared.seat(client.ip(), if is_handed { fewest } else { own }) else {
            shared.tallies.count(Outcome::ConnectionsFull);
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
