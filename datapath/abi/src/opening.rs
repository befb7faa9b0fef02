//! The record of what a connection begins with, for whoever looks for a name in it.

use core::mem::{offset_of, size_of};

use crate::FlowKey;

/// Octets of a packet's payload that are copied at most.
pub const OPENING_OCTETS_MAX: usize = 4_096;
/// Packets with a payload that are copied of one flow at most.
pub const OPENINGS_PER_FLOW: u8 = 4;
/// Packets copied in a second on each CPU at most.
pub const OPENINGS_PER_SECOND: u32 = 2_048;

/// What stands before the octets of the payload. 72 octets, no holes.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct OpeningRecord {
    /// `CLOCK_BOOTTIME`, nanoseconds.
    pub time_ns: u64,
    /// The flow.
    pub flow: FlowKey,
    /// Rule that allowed it.
    pub rule: u32,
    /// TCP: sequence number of the first octet of the payload; 0 for UDP.
    pub sequence: u32,
    /// Octets of the payload, more than follow where they are above [`OPENING_OCTETS_MAX`].
    pub length: u32,
    /// UDP: octets of each of the datagrams that the kernel carries in one packet; 0 is one datagram.
    pub segment: u16,
    /// [`opening_flags`].
    pub flags: u8,
    /// Zero.
    pub spare: [u8; 5],
}
const _: () = assert!(size_of::<OpeningRecord>() == 72 && offset_of!(OpeningRecord, spare) == 67);

/// Bits of [`OpeningRecord::flags`].
pub mod opening_flags {
    /// The packet was dropped: it waits with the agent.
    pub const HELD: u8 = 1;
}
