//! Address resolution and its like on a link: what an endpoint may claim there, and what passes without a rule.
//!
//! ARP (RFC 826, RFC 5227), neighbour discovery (RFC 4861, RFC 4862) and multicast listener discovery (RFC 2710, RFC 3810)
//! need no rule where they stay within the link. Several endpoints can share a link, so each may claim its own addresses
//! alone, from one link address, in messages of the exact size and form of the standards: a free byte in them is a way
//! from one closed endpoint to another. An endpoint's own addresses are those of its row in `ADDRESSES`, and the link-local
//! address that is made of its link address (RFC 4291, appendix A).

mod arp;
mod discovery;
#[cfg(test)]
mod tests;

use crate::{Address, AddressKey, Reason, Tables, address_flags};

pub use arp::{arp, arp_addresses};
pub use discovery::{DiscoveryHead, discovery, discovery_of_node, solicitation};

/// A link address of Ethernet.
pub type Mac = [u8; 6];

/// The link address that an endpoint resolves addresses with: of the first message, until it has another one.
///
/// Each is free to be chosen and neighbours read it, so an endpoint may change it seldom.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LinkAddress {
    /// When the first of `changes` was, `CLOCK_BOOTTIME` nanoseconds.
    pub since_ns: u64,
    /// The address; zeros before the first message.
    pub link: Mac,
    /// How often the endpoint had another one since then.
    pub changes: u8,
    /// Zero.
    pub spare: u8,
}

impl LinkAddress {
    /// How long changes are counted together.
    pub const WINDOW_NS: u64 = 60_000_000_000;
    /// Changes within that time.
    pub const CHANGES_MAX: u8 = 4;

    /// The row after a message from `link`, or `None` where the endpoint may not have it yet.
    #[inline(always)]
    pub fn after(self, link: Mac, now_ns: u64) -> Option<Self> {
        if equals(&self.link, &link) {
            return Some(self);
        }
        let is_over = now_ns.saturating_sub(self.since_ns) > Self::WINDOW_NS;
        if is_over || is_zero(&self.link) {
            return Some(Self { since_ns: now_ns, link, changes: 0, spare: 0 });
        }
        (self.changes < Self::CHANGES_MAX).then_some(Self { link, changes: self.changes + 1, ..self })
    }
}

/// Bytes of an Ethernet header.
const LINK_OCTETS: usize = 14;
/// The link address of everybody.
const BROADCAST: Mac = [0xff; 6];
/// What a message is.
#[repr(u8)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Claim {
    /// It passes without a rule.
    Passes = 0,
    /// It does not stay within the link, or is none: it is judged as any other packet.
    Ordinary = 1,
    /// It claims what is not the sender's.
    Forged = 2,
    /// Its size or form is not that of its standard.
    Form = 3,
    /// It is for another endpoint, and reached this one since the link brings it to all.
    Elsewhere = 4,
}

impl Claim {
    /// The reason to pass or to deny, where the claim decides.
    #[inline(always)]
    pub const fn reason(self) -> Reason {
        match self {
            Self::Passes | Self::Ordinary => Reason::Neighbour,
            Self::Forged => Reason::ForgedNeighbour,
            Self::Form => Reason::NeighbourForm,
            Self::Elsewhere => Reason::NeighbourElsewhere,
        }
    }
}

/// Who put a frame on the link that an endpoint is about to receive.
#[repr(u8)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LinkOwner {
    /// The node itself.
    Node = 0,
    /// An endpoint of this node.
    Endpoint = 1,
    /// Another interface of the same bridge.
    Unknown = 2,
}

/// What is known of a frame besides its headers of layer 3.
#[derive(Clone, Copy, Debug)]
pub struct LinkFrame {
    /// Destination of the link header.
    pub destination: Mac,
    /// Source of the link header.
    pub source: Mac,
    /// The link address by which the endpoint is known; zeros where it is not.
    pub known: Mac,
    /// Who sent the frame, of one that arrives; without meaning for one that leaves.
    pub owner: LinkOwner,
    /// The endpoint that sent the frame, where one did.
    pub sender: u32,
    /// Bytes of the frame.
    pub octets: usize,
    /// Headers of neighbour discovery, where it is that.
    pub head: DiscoveryHead,
}

impl LinkFrame {
    /// Whether a frame that arrives is for the endpoint by its link address; all have the addresses of groups.
    #[inline(always)]
    fn is_addressed(&self, group: Mac) -> bool {
        equals(&self.destination, &group) || (equals(&self.destination, &self.known) && !is_zero(&self.known))
    }
}

/// Whether a sender may claim an address. Whoever is no endpoint of this node may claim those that no endpoint has, nor the
/// node.
#[inline(always)]
fn may_claim(tables: &impl Tables, claimant: u32, address: &Address) -> bool {
    let key = AddressKey { scope: 0, address: *address };
    match tables.address(&key) {
        Some(row) if claimant == 0 => row.endpoint == 0 && row.flags & address_flags::LOCAL_HOST == 0,
        Some(row) => row.endpoint == claimant,
        None => claimant == 0,
    }
}

/// Whether a link address is of one interface.
#[inline(always)]
const fn is_one(link: &Mac) -> bool {
    link[0] & 1 == 0
}

#[inline(always)]
fn is_zero(link: &Mac) -> bool {
    equals(link, &[0; 6])
}

#[inline(always)]
fn equals(one: &Mac, other: &Mac) -> bool {
    *one == *other
}
