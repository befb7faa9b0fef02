//! Frames of address resolution, as an endpoint sends them.

use namegate_abi::{
    Address, AddressKey, AddressValue, CidrKey, Claim, Direction, DiscoveryHead, EndpointValue, FlowKey, FlowValue,
    FragmentKey, FragmentValue, LinkFrame, LinkOwner, PolicyKey, PolicyValue, Reader, Tables, arp, discovery, parse,
};

/// Bytes of an Ethernet header.
const LINK: usize = 14;
const ENDPOINT: u32 = 7;
const OWN_V4: [u8; 4] = [10, 0, 0, 7];
const OWN_V6: [u8; 16] = [0xfd, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 7];
const NODE_V6: [u8; 16] = [0xfd, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1];

/// The endpoint's addresses, and one of another endpoint.
struct Rows {
    own: AddressValue,
    other: AddressValue,
}

impl Tables for Rows {
    fn now_ns(&self) -> u64 {
        0
    }

    fn address(&self, key: &AddressKey) -> Option<&AddressValue> {
        match key.address {
            address if address == Address(OWN_V6) || address == Address::from_v4(OWN_V4) => Some(&self.own),
            address if address == Address(NODE_V6) => Some(&self.other),
            _ => None,
        }
    }

    fn cidr(&self, _: &CidrKey) -> Option<u32> {
        None
    }

    fn policy(&self, _: &PolicyKey) -> Option<PolicyValue> {
        None
    }

    fn flow(&self, _: &FlowKey) -> Option<FlowValue> {
        None
    }

    fn fragment(&self, _: &FragmentKey) -> Option<FragmentValue> {
        None
    }
}

struct Octets<'a>(&'a [u8]);

impl Reader for Octets<'_> {
    fn load<const N: usize>(&self, offset: usize) -> Option<[u8; N]> {
        self.0.get(offset..offset.checked_add(N)?)?.try_into().ok()
    }
}

/// The octets are a frame that an endpoint sends.
///
/// # Panics
/// A frame passes without a rule, and cannot be written again from the few things that it may say.
pub fn neighbour(data: &[u8]) {
    let Some(head) = data.first_chunk::<LINK>() else { return };
    let part = |at: usize| [head[at], head[at + 1], head[at + 2], head[at + 3], head[at + 4], head[at + 5]];
    let row = |endpoint| AddressValue { endpoint, ..AddressValue::default() };
    let rows = Rows { own: row(ENDPOINT), other: row(ENDPOINT + 1) };
    let endpoint = EndpointValue { endpoint: ENDPOINT, ..EndpointValue::default() };
    let reader = Octets(data);
    let mut frame = LinkFrame {
        destination: part(0),
        source: part(6),
        known: [0; 6],
        owner: LinkOwner::Node,
        sender: 0,
        octets: data.len(),
        head: DiscoveryHead::default(),
    };
    match [head[12], head[13]] {
        [0x08, 0x06] => {
            if arp(&rows, &reader, &endpoint, &frame, Direction::Egress) == Claim::Passes {
                assert!(arp_frames(data).iter().any(|one| one == data), "ARP with something else in it");
            }
        }
        [0x86, 0xdd] => {
            let Ok(packet) = parse(&reader, 0x86dd, LINK) else { return };
            if !packet.is_discovery() {
                return;
            }
            frame.head = DiscoveryHead::read(&reader, &packet, LINK, data.len());
            if discovery(&rows, &reader, &endpoint, &packet, &frame, Direction::Egress) == Claim::Passes {
                let kind = packet.icmp.to_be_bytes()[0];
                assert!(stays(packet.destination.octets()), "type {kind} goes beyond the link");
                let is_listeners = matches!(kind, 131 | 132 | 143);
                assert!(is_listeners || is_plain(kind, data), "type {kind} with something else in it");
            }
        }
        _ => {}
    }
}

/// All messages of ARP that an endpoint may send with the addresses of this one.
fn arp_frames(data: &[u8]) -> Vec<Vec<u8>> {
    let (to, from, target) = (&data[..6], &data[6..12], &data[38..42]);
    let mut frames = Vec::new();
    for (operation, sender) in [(1, OWN_V4), (2, OWN_V4), (1, [0; 4])] {
        for target_link in [&[0; 6], &[0xff; 6], to, from] {
            let fixed = [0x08, 0x06, 0, 1, 0x08, 0, 6, 4, 0, operation];
            let frame = [to, from, &fixed, from, &sender, target_link, target].concat();
            let mut filled = frame.clone();
            filled.resize(60, 0);
            frames.extend([frame, filled]);
        }
    }
    frames
}

/// Whether packets to an address stay within the link, or are for the node or an endpoint of it.
fn stays(address: &[u8; 16]) -> bool {
    matches!(address, [0xff, 0x02, ..] | [0xfe, 0x80..=0xbf, ..]) || [OWN_V6, NODE_V6].contains(address)
}

/// Whether a message has no other bytes than those that it must have, by its own words: addresses, flags and a link address
/// that the frame has too. The checksum is the receiver's to check, and a nonce comes back to no endpoint.
fn is_plain(kind: u8, data: &[u8]) -> bool {
    let message = &data[54..];
    let (fixed, option) = match kind {
        133 => (8, 1),
        135 => (24, 1),
        136 => (24, 2),
        _ => return false,
    };
    let reserved = [message[4] & if kind == 136 { 0x1f } else { 0xff }, message[5], message[6], message[7]];
    let labelled = kind != 133 && [data[15] & 0x0f, data[16], data[17]] != [0; 3];
    let is_option = match &message[fixed..] {
        [] => true,
        [kind, 1, link @ ..] => {
            (*kind == option && *link == data[6..12]) || (*kind == 14 && link.len() == 6 && data[22..38] == [0; 16])
        }
        _ => false,
    };
    data[20] == 58 && data[21] == 255 && message[1] == 0 && reserved == [0; 4] && !labelled && is_option
}
