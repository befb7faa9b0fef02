//! A client's connection: its stream, and its place among the connections for as long as anything of it lives.

use std::{
    io,
    net::{IpAddr, SocketAddr},
    os::fd::{AsFd, BorrowedFd},
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use tokio::{
    io::{AsyncRead, ReadBuf},
    net::TcpStream,
};

use crate::{
    account::{Account, Accounts, CONNECTION_BYTES, Charge},
    delegate::delegate_writes,
    holder::Holder,
    socket, turn,
};

/// A place among the connections, given back on drop.
#[derive(Debug)]
pub(crate) struct ConnectionPermit {
    account: Arc<Account>,
    accounts: Arc<Accounts>,
    _charge: Charge,
    /// Held for each connection of a thread.
    _load: Arc<()>,
}

impl ConnectionPermit {
    /// A place for a connection; `None` where its holder gets no more.
    pub(crate) fn take(accounts: &Arc<Accounts>, holder: Holder, client: IpAddr, load: &Arc<()>) -> Option<Arc<Self>> {
        let account = accounts.open(holder, client)?;
        let charge = account.charge(CONNECTION_BYTES);
        Some(Arc::new(Self { account, accounts: Arc::clone(accounts), _charge: charge, _load: Arc::clone(load) }))
    }

    /// What the connection holds.
    pub(crate) fn account(&self) -> &Arc<Account> {
        &self.account
    }
}

impl Drop for ConnectionPermit {
    fn drop(&mut self) {
        self.accounts.close(&self.account);
    }
}

/// The stream of a client's connection. What is read of it is on the account of the connection.
#[derive(Debug)]
pub(crate) struct Client {
    stream: TcpStream,
    permit: Arc<ConnectionPermit>,
}

impl Client {
    pub(crate) fn new(stream: TcpStream, permit: Arc<ConnectionPermit>) -> Self {
        Self { stream, permit }
    }

    /// The place among the connections.
    pub(crate) fn permit(&self) -> &Arc<ConnectionPermit> {
        &self.permit
    }

    /// What the connection holds.
    pub(crate) fn account(&self) -> &Arc<Account> {
        self.permit.account()
    }

    /// The address that the client called.
    pub(crate) fn local_addr(&self) -> io::Result<SocketAddr> {
        self.stream.local_addr()
    }

    /// Sends small parts at once, and keeps few that cannot be sent.
    pub(crate) fn tune(&self) -> io::Result<()> {
        socket::tune(&self.stream)
    }
}

/// What could not be sent of a connection that gives way is not kept by the kernel either.
impl Drop for Client {
    fn drop(&mut self) {
        if self.account().crowded().is_some() {
            socket::reset(&self.stream);
        }
    }
}

impl AsFd for Client {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.stream.as_fd()
    }
}

impl AsyncRead for Client {
    fn poll_read(mut self: Pin<&mut Self>, context: &mut Context<'_>, into: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        ready!(turn::poll_slice(context));
        let before = into.filled().len();
        ready!(Pin::new(&mut self.stream).poll_read(context, into))?;
        self.account().received(into.filled().len() - before);
        Poll::Ready(Ok(()))
    }
}

delegate_writes!([] Client);
