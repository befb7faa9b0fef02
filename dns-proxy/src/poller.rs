//! Readiness of many sockets behind one descriptor: one batch of events per wake-up, no task per socket.

use std::{
    io,
    os::fd::{AsFd, AsRawFd, RawFd},
};

use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use tokio::io::unix::AsyncFd;

/// Sockets served per wake-up.
const EVENTS_MAX: usize = 128;

struct Descriptor(Epoll);

impl AsRawFd for Descriptor {
    fn as_raw_fd(&self) -> RawFd {
        self.0.0.as_raw_fd()
    }
}

/// A set of watched sockets. A closed socket leaves it by itself.
pub(crate) struct Poller {
    descriptor: AsyncFd<Descriptor>,
}

impl Poller {
    /// Must be called on a tokio runtime.
    #[expect(
        deprecated,
        reason = "its heir is unsafe; `Descriptor` owns one descriptor from first to last, as both ask"
    )]
    pub(crate) fn new() -> io::Result<Self> {
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
        Ok(Self { descriptor: AsyncFd::with_interest(Descriptor(epoll), tokio::io::Interest::READABLE)? })
    }

    pub(crate) fn watch(&self, socket: &impl AsFd, word: u64) -> io::Result<()> {
        Ok(self.descriptor.get_ref().0.add(socket, EpollEvent::new(EpollFlags::EPOLLIN, word))?)
    }

    /// Waits until sockets can be read, and adds their words. A socket that is not read out is named again.
    pub(crate) async fn ready(&self, words: &mut Vec<u64>) -> io::Result<()> {
        loop {
            let mut guard = self.descriptor.readable().await?;
            let mut events = [EpollEvent::empty(); EVENTS_MAX];
            let count = guard.get_inner().0.wait(&mut events, EpollTimeout::ZERO)?;
            if count > 0 {
                words.extend(events[..count].iter().map(EpollEvent::data));
                return Ok(());
            }
            guard.clear_ready();
        }
    }
}
