//! The one connection to the server that belongs to a client's: opened with the first request that passes, and again
//! where the server has closed it.

use std::{
    io,
    net::{IpAddr, SocketAddr},
    sync::Arc,
};

use hyper::{
    Request, Response,
    body::Incoming,
    client::conn::{http1, http2},
};
use hyper_util::rt::TokioIo;
use tokio::sync::Mutex;

use crate::{
    account::Account,
    body::RequestBody,
    counted::{FIELDS_MAX, WINDOW_BYTES},
    pace::{self, Executor},
    server::Server,
    socket,
};

/// Bytes of the head of a response, and of the buffer that a connection is read into.
const HEAD_OCTETS_MAX: u32 = 64 << 10;
/// Bytes of all bodies of an HTTP/2 connection that may have come and are not read.
pub(crate) const CONNECTION_WINDOW_BYTES: u32 = 512 << 10;
/// Bytes of one body of HTTP/2 that wait to be sent.
pub(crate) const SEND_BYTES: usize = 32 << 10;

/// Why there is no response.
#[derive(Debug, thiserror::Error)]
pub(crate) enum UpstreamError {
    #[error("connecting to the server")]
    Connect(#[source] io::Error),
    #[error("talking HTTP with the server")]
    Talk(#[source] hyper::Error),
}

/// A request to the server, in a box: it is moved some times on its way.
pub(crate) type BoxedRequest = Box<Request<RequestBody>>;

enum Sender {
    One(http1::SendRequest<RequestBody>),
    Two(http2::SendRequest<RequestBody>),
}

/// A server, and the connection to it.
pub(crate) struct Upstream {
    server: SocketAddr,
    mark: u32,
    is_http2: bool,
    /// Of the client's connection that it is for.
    account: Arc<Account>,
    /// Opened before the first request.
    opened: Mutex<Option<Server>>,
    sender: Mutex<Option<Sender>>,
}

impl Upstream {
    pub(crate) fn new(ends: (SocketAddr, u32), is_http2: bool, account: &Arc<Account>, opened: Option<Server>) -> Self {
        let ((server, mark), account) = (ends, Arc::clone(account));
        Self { server, mark, is_http2, account, opened: Mutex::new(opened), sender: Mutex::default() }
    }

    /// Sends a request and gives the head of the response. A request that a closing server did not take is sent once more.
    pub(crate) async fn send(
        &self,
        request: BoxedRequest,
        source: Option<IpAddr>,
    ) -> Result<Response<Incoming>, UpstreamError> {
        match self.try_send(request, source).await? {
            Ok(response) => Ok(response),
            // Rare, and in a box: the future of every request would have room for it, and is moved some times.
            Err(request) => match Box::pin(self.try_send(request, source)).await? {
                Ok(response) => Ok(response),
                Err(_) => Err(UpstreamError::Connect(io::ErrorKind::ConnectionReset.into())),
            },
        }
    }

    /// Gives the request back where it was not sent.
    async fn try_send(
        &self,
        request: BoxedRequest,
        source: Option<IpAddr>,
    ) -> Result<Result<Response<Incoming>, BoxedRequest>, UpstreamError> {
        let mut place = self.sender.lock().await;
        let is_ready = match place.as_mut() {
            Some(Sender::One(sender)) => sender.ready().await.is_ok(),
            Some(Sender::Two(sender)) => sender.ready().await.is_ok(),
            None => false,
        };
        if !is_ready {
            *place = Some(Box::pin(self.connect(source)).await?);
        }
        let Some(sender) = place.as_mut() else { return Ok(Err(request)) };
        let sent = match sender {
            Sender::One(sender) => {
                let sending = sender.try_send_request(*request);
                drop(place);
                sending.await
            }
            Sender::Two(sender) => {
                let mut sender = sender.clone();
                drop(place);
                sender.try_send_request(*request).await
            }
        };
        match sent {
            Ok(response) => Ok(Ok(response)),
            Err(mut error) => match error.take_message() {
                Some(request) => {
                    *self.sender.lock().await = None;
                    Ok(Err(Box::new(request)))
                }
                None => Err(UpstreamError::Talk(error.into_error())),
            },
        }
    }

    async fn connect(&self, source: Option<IpAddr>) -> Result<Sender, UpstreamError> {
        let opened = self.opened.lock().await.take();
        let stream = if let Some(opened) = opened {
            opened
        } else {
            let stream = socket::connect(self.server, source, self.mark).await.map_err(UpstreamError::Connect)?;
            Server::new(stream, &self.account)
        };
        let stream = TokioIo::new(stream);
        if self.is_http2 {
            let (sender, connection) = http2::Builder::new(Executor(Arc::clone(&self.account)))
                .initial_stream_window_size(WINDOW_BYTES)
                .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
                .max_send_buf_size(SEND_BYTES)
                .max_header_list_size(HEAD_OCTETS_MAX)
                .handshake(stream)
                .await
                .map_err(UpstreamError::Talk)?;
            // It ends with its last sender; what went wrong shows at the request.
            pace::spawn(&self.account, connection);
            return Ok(Sender::Two(sender));
        }
        let (sender, connection) = http1::Builder::new()
            .max_buf_size(HEAD_OCTETS_MAX as usize)
            .max_headers(FIELDS_MAX)
            .preserve_header_case(true)
            .handshake(stream)
            .await
            .map_err(UpstreamError::Talk)?;
        pace::spawn(&self.account, connection.with_upgrades());
        Ok(Sender::One(sender))
    }
}
