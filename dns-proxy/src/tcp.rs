//! Clients over TCP (RFC 7766): many questions per connection, answered in the order the answers come.

use std::{
    io,
    net::{IpAddr, SocketAddr},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use namegate_config::shares::Shares;
use namegate_engine::EndpointId;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{
        TcpListener, TcpStream,
        tcp::{OwnedReadHalf, OwnedWriteHalf},
    },
    sync::mpsc::{self, OwnedPermit},
    time::timeout,
};

use crate::{
    backend::{Backend, Share},
    bounds::Bounds,
    counters::{Counters, Outcome},
    exchange::framed,
};

/// Connections of one endpoint in one worker.
const CONNECTIONS_PER_ENDPOINT_MAX: usize = 128;
/// Questions of one connection that are not answered yet; then no more are read.
const PIPELINE_MAX: usize = 64;
/// A connection ends when a question does not come, or a reply is not taken, for so long (RFC 7766 §6.2.3).
const IDLE_MAX: Duration = Duration::from_secs(10);
/// Pause after a failure to accept: most often there are no descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// One question of a connection.
#[derive(Debug)]
pub(crate) struct TcpQuestion {
    pub(crate) message: Vec<u8>,
    pub(crate) client: IpAddr,
    /// Where the client thinks it is connected to.
    pub(crate) destination: SocketAddr,
    /// The reply's place in the connection's queue.
    pub(crate) place: OwnedPermit<Vec<u8>>,
}

/// Connections of one worker, by endpoint; clients that are no endpoint are one holder.
#[derive(Debug)]
struct Connections(Mutex<Shares<Option<EndpointId>>>);

impl Connections {
    /// A permit that is given back on drop, where there is one.
    fn permit(self: &Arc<Self>, endpoint: Option<EndpointId>) -> Option<ConnectionPermit> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).take(endpoint, 1).ok()?;
        Some(ConnectionPermit { connections: Arc::clone(self), endpoint })
    }
}

struct ConnectionPermit {
    connections: Arc<Connections>,
    endpoint: Option<EndpointId>,
}

impl Drop for ConnectionPermit {
    fn drop(&mut self) {
        self.connections.0.lock().unwrap_or_else(PoisonError::into_inner).give(self.endpoint, 1);
    }
}

/// What the listeners of one worker share.
#[derive(Clone, Debug)]
pub(crate) struct Clients<D> {
    backend: D,
    questions: mpsc::Sender<TcpQuestion>,
    counters: Arc<Counters>,
    connections: Arc<Connections>,
}

impl<D: Backend> Clients<D> {
    pub(crate) fn new(
        backend: D,
        questions: mpsc::Sender<TcpQuestion>,
        counters: Arc<Counters>,
        bounds: &Bounds,
    ) -> Self {
        let shares = Shares::new(bounds.clients_max, CONNECTIONS_PER_ENDPOINT_MAX);
        Self { backend, questions, counters, connections: Arc::new(Connections(Mutex::new(shares))) }
    }
}

/// Accepts connections until the worker ends.
pub(crate) async fn accept<D: Backend>(listener: TcpListener, clients: Clients<D>) {
    let Clients { backend, questions, counters, connections } = clients;
    loop {
        let (stream, client) = match listener.accept().await {
            Ok(accepted) => accepted,
            Err(error) => {
                tracing::debug!(%error, "a DNS client over TCP was not accepted");
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        let endpoint = backend.endpoint(client.ip().to_canonical());
        let Some(permit) = connections.permit(endpoint) else {
            counters.count(Outcome::ConnectionsFull);
            backend.refused(Share::TcpClients, endpoint);
            continue;
        };
        let questions = questions.clone();
        tokio::spawn(async move {
            let _permit = permit;
            if let Err(error) = serve(stream, client.ip(), questions).await {
                tracing::trace!(%error, %client, "a DNS connection ended");
            }
        });
    }
}

async fn serve(stream: TcpStream, client: IpAddr, questions: mpsc::Sender<TcpQuestion>) -> io::Result<()> {
    let destination = stream.local_addr()?;
    stream.set_nodelay(true)?;
    let (reader, writer) = stream.into_split();
    let (places, replies) = mpsc::channel(PIPELINE_MAX);
    let (read, written) = tokio::join!(read(reader, client, destination, places, questions), write(writer, replies));
    read.and(written)
}

/// Reads questions until the client is silent or gone. A place for the reply comes first: a client that does not take
/// replies is not read from.
async fn read(
    mut reader: OwnedReadHalf,
    client: IpAddr,
    destination: SocketAddr,
    places: mpsc::Sender<Vec<u8>>,
    questions: mpsc::Sender<TcpQuestion>,
) -> io::Result<()> {
    loop {
        let Ok(place) = places.clone().reserve_owned().await else { return Ok(()) };
        let message = timeout(IDLE_MAX, read_message(&mut reader)).await??;
        if questions.send(TcpQuestion { message, client, destination, place }).await.is_err() {
            return Ok(());
        }
    }
}

async fn read_message(reader: &mut OwnedReadHalf) -> io::Result<Vec<u8>> {
    let mut message = vec![0; usize::from(reader.read_u16().await?)];
    reader.read_exact(&mut message).await?;
    Ok(message)
}

/// Writes replies until no question can come any more, or the client does not take them.
async fn write(mut writer: OwnedWriteHalf, mut replies: mpsc::Receiver<Vec<u8>>) -> io::Result<()> {
    while let Some(reply) = replies.recv().await {
        timeout(IDLE_MAX, writer.write_all(&framed(&reply)?)).await??;
    }
    Ok(())
}
