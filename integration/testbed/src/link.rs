//! Frames as they are on a link: sent and received past the stack of a namespace.

use std::os::fd::{AsRawFd, OwnedFd};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use nix::errno::Errno;
use nix::ifaddrs::getifaddrs;
use nix::sys::socket::{
    AddressFamily, LinkAddr, MsgFlags, SockFlag, SockProtocol, SockType, bind, recv, sendto, setsockopt, socket,
    sockopt,
};
use nix::sys::time::{TimeVal, TimeValLike};

use crate::netns::Netns;

/// The longest frame of a link without offloading, and some more.
const FRAME_OCTETS: usize = 4_096;

/// A socket on one interface of a namespace that sends whole frames and sees all that come in.
#[derive(Debug)]
pub struct Link {
    socket: OwnedFd,
    interface: LinkAddr,
}

impl Link {
    /// Opens an interface of a namespace.
    pub fn open(netns: &Netns, interface: &str) -> Result<Self> {
        let name = interface.to_owned();
        netns.call(move || {
            let addresses = getifaddrs().context("listing the interfaces of a namespace")?;
            let of_link = addresses.filter(|found| found.interface_name == name).find_map(|found| found.address);
            let interface = of_link.and_then(|address| address.as_link_addr().copied());
            let interface = interface.with_context(|| format!("no interface `{name}` in the namespace"))?;
            let socket = socket(AddressFamily::Packet, SockType::Raw, SockFlag::empty(), SockProtocol::EthAll)?;
            bind(socket.as_raw_fd(), &interface)?;
            Ok(Self { socket, interface })
        })
    }

    /// The link address of the interface.
    ///
    /// # Panics
    ///
    /// Where the interface has none.
    pub fn address(&self) -> [u8; 6] {
        self.interface.addr().expect("the interface has a link address")
    }

    /// Sends a frame from its first byte on.
    pub fn send(&self, frame: &[u8]) -> Result<()> {
        let sent = sendto(self.socket.as_raw_fd(), frame, &self.interface, MsgFlags::empty())?;
        anyhow::ensure!(sent == frame.len(), "the link took {sent} of {} bytes", frame.len());
        Ok(())
    }

    /// Waits for a frame that `wanted` is true of; gives it, or none where it does not come in time.
    pub fn receive(&self, within: Duration, wanted: impl Fn(&[u8]) -> bool) -> Result<Option<Vec<u8>>> {
        let until = Instant::now() + within;
        loop {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(None);
            }
            setsockopt(&self.socket, sockopt::ReceiveTimeout, &TimeVal::microseconds(microseconds(left)))?;
            let mut frame = vec![0; FRAME_OCTETS];
            match recv(self.socket.as_raw_fd(), &mut frame, MsgFlags::empty()) {
                Ok(length) => frame.truncate(length),
                Err(Errno::EAGAIN | Errno::EINTR) => continue,
                Err(error) => return Err(error.into()),
            }
            if wanted(&frame) {
                return Ok(Some(frame));
            }
        }
    }
}

/// Zero would be no end.
fn microseconds(time: Duration) -> i64 {
    i64::try_from(time.as_micros()).unwrap_or(i64::MAX).max(1)
}
