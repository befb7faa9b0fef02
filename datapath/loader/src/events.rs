//! The ring of records that the programs write.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};

use aya::maps::{MapData, RingBuf};
use namegate_abi::{EventRecord, HELD_OCTETS_MAX, OpeningRecord};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// New and denied flows, in the order in which the kernel met them. Readable when there are records.
pub struct Events(RingBuf<MapData>);

impl Events {
    pub(crate) const fn new(ring: RingBuf<MapData>) -> Self {
        Self(ring)
    }

    /// Waits for records on the calling task's runtime.
    pub fn into_async(self) -> io::Result<AsyncFd<Self>> {
        // SAFETY: The ring owns its descriptor and keeps it until it is dropped.
        Ok(unsafe { AsyncFd::register_with_interest(self, Interest::READABLE) }?)
    }

    /// The next record, or `None` where all are read.
    #[expect(clippy::should_implement_trait, reason = "the end is not the end: more records come")]
    pub fn next(&mut self) -> Option<EventRecord> {
        loop {
            let item = self.0.next()?;
            if item.len() == size_of::<EventRecord>() {
                // SAFETY: The octets are as many as the record has, and every pattern of them is valid.
                return Some(unsafe { item.as_ptr().cast::<EventRecord>().read_unaligned() });
            }
        }
    }
}

impl AsFd for Events {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl AsRawFd for Events {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }
}

impl std::fmt::Debug for Events {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_tuple("Events").finish_non_exhaustive()
    }
}

/// What connections begin with, in the order in which the kernel met it. Readable when there is some.
pub struct Openings(RingBuf<MapData>);

/// A packet of a flow that was copied.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Opening {
    /// What is known of it.
    pub record: OpeningRecord,
    /// Its payload, or the beginning of it.
    pub octets: Vec<u8>,
}

impl Openings {
    pub(crate) const fn new(ring: RingBuf<MapData>) -> Self {
        Self(ring)
    }

    /// Waits for copies on the calling task's runtime.
    pub fn into_async(self) -> io::Result<AsyncFd<Self>> {
        // SAFETY: The ring owns its descriptor and keeps it until it is dropped.
        Ok(unsafe { AsyncFd::register_with_interest(self, Interest::READABLE) }?)
    }

    /// The next copy, or `None` where all are read.
    #[expect(clippy::should_implement_trait, reason = "the end is not the end: more copies come")]
    pub fn next(&mut self) -> Option<Opening> {
        loop {
            let item = self.0.next()?;
            let Some((head, octets)) = item.split_at_checked(size_of::<OpeningRecord>()) else { continue };
            if octets.len() <= HELD_OCTETS_MAX {
                // SAFETY: The octets are as many as the record has, and every pattern of them is valid.
                let record = unsafe { head.as_ptr().cast::<OpeningRecord>().read_unaligned() };
                return Some(Opening { record, octets: octets.to_vec() });
            }
        }
    }
}

impl AsFd for Openings {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl AsRawFd for Openings {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }
}

impl std::fmt::Debug for Openings {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_tuple("Openings").finish_non_exhaustive()
    }
}
