//! Connections as they come: their places, and the thread of each.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use tokio::{
    net::{TcpListener, TcpStream},
    sync::{mpsc, watch},
};

use crate::{
    account::Crowded,
    backend::Backend,
    client::{Client, ConnectionPermit},
    connection::{self, Shared},
    counters::Outcome,
    holder::Holder,
    pace::OfConnection,
    socket,
};

/// How many connections a thread may have more than the one with the fewest before it hands new ones over.
const LEAD_MAX: usize = 4;
/// Pause after a failure to accept: most often there are no descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// A thread that serves connections, as those who accept them know it.
pub(crate) struct Worker {
    arrivals: mpsc::UnboundedSender<Arrival>,
    /// Held by each of its connections.
    load: Arc<()>,
}

/// A connection on its way to the thread that serves it: places bound how many there are.
pub(crate) struct Arrival {
    stream: std::net::TcpStream,
    client: SocketAddr,
    permit: Arc<ConnectionPermit>,
}

impl Worker {
    /// A worker, and where it gets its connections from.
    pub(crate) fn new() -> (Self, mpsc::UnboundedReceiver<Arrival>) {
        let (arrivals, inbox) = mpsc::unbounded_channel();
        (Self { arrivals, load: Arc::default() }, inbox)
    }
}

/// Accepts connections until `stop` is closed. All workers do so for themselves; one that has many more than another hands
/// them over.
pub(crate) async fn accept<D: Backend>(
    listener: TcpListener,
    shared: Arc<Shared<D>>,
    (workers, own): (Arc<[Worker]>, usize),
    mut stop: watch::Receiver<()>,
) {
    let load = |worker: &Worker| Arc::strong_count(&worker.load);
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
        shared.counters.count(Outcome::Connection);
        let fewest = workers.iter().min_by_key(|worker| load(worker)).unwrap_or(own);
        let is_handed = load(own) > load(fewest) + LEAD_MAX;
        let server = stream.local_addr().ok().map(|server| server.ip());
        let holder = Holder::of(&shared.backend, client.ip(), server);
        let worker = if is_handed { fewest } else { own };
        let Some(permit) = ConnectionPermit::take(&shared.accounts, holder, client.ip(), &worker.load) else {
            shared.counters.count(Outcome::ConnectionsFull);
            shared.backend.refused(holder.endpoint());
            socket::reset(stream);
            continue;
        };
        if !is_handed {
            start(&shared, stream, client, permit, &stop);
        } else if let Ok(stream) = stream.into_std() {
            // A worker that has ended takes its connections with it.
            let _ = fewest.arrivals.send(Arrival { stream, client, permit });
        }
    }
}

/// Serves the connections that are handed to a worker until those who accept are gone. Those under way end by `stop`.
pub(crate) async fn work<D: Backend>(
    shared: Arc<Shared<D>>,
    mut inbox: mpsc::UnboundedReceiver<Arrival>,
    stop: watch::Receiver<()>,
) {
    while let Some(Arrival { stream, client, permit }) = inbox.recv().await {
        match TcpStream::from_std(stream) {
            Ok(stream) => start(&shared, stream, client, permit, &stop),
            Err(error) => tracing::debug!(%error, "a connection was not taken over"),
        }
    }
}

/// Starts the task of a connection on this thread; it ends where the connection must give way to others.
fn start<D: Backend>(
    shared: &Arc<Shared<D>>,
    stream: TcpStream,
    client: SocketAddr,
    permit: Arc<ConnectionPermit>,
    stop: &watch::Receiver<()>,
) {
    let holder = permit.account().holder();
    let account = Arc::clone(permit.account());
    let serving = serve(Arc::clone(shared), Client::new(stream, permit), client, stop.clone());
    let serving = OfConnection::new(&account, serving);
    let shared = Arc::clone(shared);
    tokio::spawn(async move {
        if let Err(crowded) = serving.await {
            give_way(&shared, holder, crowded);
        }
    });
}

/// Serves a connection until it ends.
async fn serve<D: Backend>(shared: Arc<Shared<D>>, stream: Client, client: SocketAddr, stop: watch::Receiver<()>) {
    if let Err(error) = connection::serve(&shared, stream, client, stop).await {
        shared.counters.count(Outcome::Unread);
        tracing::trace!(%error, %client, "a connection ended");
    }
}

/// Counts a connection that was closed before its end.
fn give_way<D: Backend>(shared: &Shared<D>, holder: Holder, crowded: Crowded) {
    shared.counters.count(if crowded == Crowded::GivenUp { Outcome::GivenUp } else { Outcome::GaveWay });
    match crowded {
        Crowded::Places => shared.backend.refused(holder.endpoint()),
        Crowded::Bytes => shared.backend.relieved(holder.endpoint()),
        Crowded::GivenUp => {}
    }
}
