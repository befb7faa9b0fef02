//! What kernel and host agree on: map layouts, packet parsing and the decision.
//!
//! The crate is compiled twice, for the kernel's machine and for the host, so that a test on the host runs the very
//! code that judges packets. It knows no policy language, no names and no clock.
//!
//! ```
//! use namegate_abi::{Address, Direction, PolicyKey};
//! let google: Address = "8.8.8.8".parse::<core::net::IpAddr>().unwrap().into();
//! assert_eq!(google.octets()[10..], [0xff, 0xff, 8, 8, 8, 8]);
//! let row = PolicyKey::new(7, Direction::Egress, 300, 6, 443);
//! assert_eq!(row.prefix_len(PolicyKey::PORT_BITS), 96);
//! ```
#![no_std]
#![expect(
    clippy::inline_always,
    reason = "a call costs the kernel's programs stack of the 512 octets they have, and the verifier what it knew"
)]

mod address;
mod decide;
mod event;
mod flow;
pub mod icmp;
pub mod icmp_way;
pub mod limits;
pub mod map_names;
mod maps;
mod named_flow;
mod neighbour;
mod opening;
mod packet;
mod rate;
mod reason;
mod share;
mod standing;

pub use address::{Address, NameRow, STEPS_MAX, Step};
pub use decide::{Decision, FlowWrite, Peer, Tables, decide, judge, judge_quoting, judge_related, peer};
pub use event::{EventRecord, Verdict};
pub use maps::{
    AddressKey, AddressValue, CidrKey, CidrValue, Counter, EndpointValue, FlowKey, FlowLosses, FlowSlot, FlowValue,
    FragmentKey, FragmentValue, NODE_INTERFACE, PolicyKey, PolicyValue, Settings, address_flags, counter_slot,
    endpoint_flags, flow_flags, identity, policy_flags, policy_verdict,
};
pub use named_flow::{FLOW_NAMES_BYTES, NamedFlow};
pub use neighbour::{
    Claim, DiscoveryHead, LinkAddress, LinkFrame, LinkOwner, Mac, arp, arp_addresses, discovery, discovery_of_node,
    solicitation,
};
pub use opening::{
    DTLS_HANDSHAKE, DTLS_HEAD_BYTES, HELD_OCTETS_MAX, OPENING_OCTETS_MAX, OPENINGS_PER_FLOW, OpeningRecord,
    begins_quic, is_dtls, is_dtls_handshake, opening_flags,
};
pub use packet::{Class, EXTENSIONS_MAX, Packet, Reader, is_tag, parse, parse_inner, protocol, tcp};
pub use rate::{OPENINGS_PER_SECOND, RECORDS_PER_SECOND, RateValue};
pub use reason::{Direction, Reason};
pub use share::{PROBES, flow_share, is_loss, probe, worth};
pub use standing::{is_related, stands};
