//! The stream of a connection to a server, on the account of the client's connection that it is for.

use std::{
    io,
    os::fd::{AsFd, BorrowedFd},
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use tokio::{
    io::{AsyncRead, ReadBuf},
    net::TcpStream,
};

use crate::{account::Account, delegate::delegate_writes, socket, turn};

/// The stream of a connection to a server. It is read in slices (see [`turn`]).
#[derive(Debug)]
pub(crate) struct Server {
    stream: TcpStream,
    account: Arc<Account>,
}

impl Server {
    pub(crate) fn new(stream: TcpStream, account: &Arc<Account>) -> Self {
        Self { stream, account: Arc::clone(account) }
    }

    /// Waits for bytes and leaves them where they are.
    pub(crate) async fn peek(&self, into: &mut [u8]) -> io::Result<usize> {
        self.stream.peek(into).await
    }
}

/// The kernel keeps nothing either of what a connection that gives way has not sent.
impl Drop for Server {
    fn drop(&mut self) {
        if self.account.crowded().is_some() {
            socket::reset(&self.stream);
        }
    }
}

impl AsFd for Server {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.stream.as_fd()
    }
}

impl AsyncRead for Server {
    fn poll_read(mut self: Pin<&mut Self>, context: &mut Context<'_>, into: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        ready!(turn::poll_slice(context));
        Pin::new(&mut self.stream).poll_read(context, into)
    }
}

delegate_writes!([] Server);
