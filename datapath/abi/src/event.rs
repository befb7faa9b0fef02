//! The record that the kernel sends for each new flow and each denial.

use core::mem::size_of;

use crate::Address;

/// What became of the packet of an [`EventRecord`].
#[repr(u8)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Verdict {
    /// Dropped.
    Denied = 0,
    /// Passed.
    Allowed = 1,
    /// Passed in audit mode; would have been dropped.
    Audited = 2,
    /// Handed to a proxy.
    Redirected = 3,
}

impl Verdict {
    /// Reads the octet of a record; an unknown one is a denial.
    pub const fn from_octet(octet: u8) -> Self {
        match octet {
            1 => Self::Allowed,
            2 => Self::Audited,
            3 => Self::Redirected,
            _ => Self::Denied,
        }
    }

    /// The word used in JSON and on the terminal.
    pub const fn text(self) -> &'static str {
        match self {
            Self::Denied => "denied",
            Self::Allowed => "allowed",
            Self::Audited => "audited",
            Self::Redirected => "redirected",
        }
    }
}

/// One new or denied flow. 72 octets, no holes.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct EventRecord {
    /// `CLOCK_BOOTTIME`, nanoseconds.
    pub time_ns: u64,
    /// Endpoint that judged it.
    pub endpoint: u32,
    /// Identity of the peer; 0 where it was not looked up.
    pub identity: u32,
    /// Rule that decided; 0 is the default.
    pub rule: u32,
    /// Octets, link header included.
    pub length: u32,
    /// Source.
    pub source: Address,
    /// Destination.
    pub destination: Address,
    /// Host order; the ICMP type for ICMP.
    pub source_port: u16,
    /// Host order; the ICMP type and code for ICMP.
    pub destination_port: u16,
    /// IANA protocol number.
    pub protocol: u8,
    /// [`crate::Direction`].
    pub direction: u8,
    /// [`crate::Reason`].
    pub reason: u8,
    /// [`Verdict`].
    pub verdict: u8,
    /// Flags of the TCP header, else 0.
    pub tcp_flags: u8,
    /// Zero.
    pub spare: [u8; 7],
}
const _: () = assert!(size_of::<EventRecord>() == 72);
