//! ARP for Ethernet and IPv4 (RFC 826, RFC 5227).

use super::{BROADCAST, Claim, LINK_OCTETS, LinkFrame, LinkOwner, Mac, equals, is_one, is_zero, may_claim};
use crate::{Address, Direction, EndpointValue, Reader, Tables, decide::is_own};

/// Bytes of ARP for Ethernet and IPv4.
const ARP_OCTETS: usize = 28;
/// The shortest frame of Ethernet, without its checksum: shorter ones may be filled up with zeros.
const FRAME_OCTETS_MIN: usize = 60;
/// Hardware type Ethernet, protocol type IPv4, and the lengths of their addresses.
const ARP_KIND: [u8; 6] = [0, 1, 0x08, 0x00, 6, 4];
/// `0.0.0.0`.
const UNSPECIFIED_V4: [u8; 4] = [0; 4];

/// Where the sender's address is.
const SENDER_AT: usize = LINK_OCTETS + 14;
/// Where the target's address is.
const TARGET_AT: usize = LINK_OCTETS + 24;
/// Operation of a request.
const REQUEST: u8 = 1;
/// Operation of a reply.
const REPLY: u8 = 2;

/// What a message says.
struct Message {
    operation: u8,
    sender_link: Mac,
    sender: [u8; 4],
    target_link: Mac,
    target: [u8; 4],
}

impl Message {
    /// Reads a message of the exact size and kind.
    #[inline(always)]
    fn read(reader: &impl Reader, frame: &LinkFrame) -> Option<Self> {
        const FILL: usize = FRAME_OCTETS_MIN - LINK_OCTETS - ARP_OCTETS;
        let end = LINK_OCTETS + ARP_OCTETS;
        let is_filled = frame.octets == FRAME_OCTETS_MIN && reader.load::<FILL>(end)? == [0; FILL];
        let head = reader.load::<8>(LINK_OCTETS)?;
        let kind = [head[0], head[1], head[2], head[3], head[4], head[5]];
        if !(frame.octets == end || is_filled) || kind != ARP_KIND || head[6] != 0 {
            return None;
        }
        let message = Self {
            operation: head[7],
            sender_link: reader.load::<6>(LINK_OCTETS + 8)?,
            sender: reader.load::<4>(SENDER_AT)?,
            target_link: reader.load::<6>(LINK_OCTETS + 18)?,
            target: reader.load::<4>(TARGET_AT)?,
        };
        matches!(message.operation, REQUEST | REPLY).then_some(message)
    }

    /// Whether the link addresses have the values of an honest message.
    #[inline(always)]
    fn fits(&self, frame: &LinkFrame) -> bool {
        let fits_target = is_zero(&self.target_link)
            || equals(&self.target_link, &BROADCAST)
            || equals(&self.target_link, &frame.destination)
            || equals(&self.target_link, &self.sender_link);
        fits_target && (is_one(&frame.destination) || equals(&frame.destination, &BROADCAST))
    }
}

/// Judges an ARP message, whose frame begins at 0.
#[inline(always)]
pub fn arp(
    tables: &impl Tables,
    reader: &impl Reader,
    endpoint: &EndpointValue,
    frame: &LinkFrame,
    direction: Direction,
) -> Claim {
    let arrives = matches!(direction, Direction::Ingress);
    if arrives && matches!(frame.owner, LinkOwner::Node) {
        return Claim::Passes;
    }
    let Some(message) = Message::read(reader, frame) else { return Claim::Form };
    if !is_one(&frame.source) || !equals(&message.sender_link, &frame.source) {
        return Claim::Forged;
    }
    if !message.fits(frame) {
        return Claim::Form;
    }
    let is_probe = message.operation == REQUEST && message.sender == UNSPECIFIED_V4;
    let claimant = if arrives { frame.sender } else { endpoint.endpoint };
    if !is_probe && !may_claim(tables, claimant, &Address::from_v4(message.sender)) {
        return Claim::Forged;
    }
    if !arrives {
        return Claim::Passes;
    }
    let for_endpoint = is_own(tables, endpoint.endpoint, &Address::from_v4(message.target));
    let announces = !is_probe && message.sender == message.target;
    if frame.is_addressed(BROADCAST) && (for_endpoint || announces) { Claim::Passes } else { Claim::Elsewhere }
}

/// Sender's and target's address of an ARP message, for the record of a denial.
#[inline(always)]
pub fn arp_addresses(reader: &impl Reader) -> Option<(Address, Address)> {
    let sender = reader.load::<4>(SENDER_AT)?;
    let target = reader.load::<4>(TARGET_AT)?;
    Some((Address::from_v4(sender), Address::from_v4(target)))
}
