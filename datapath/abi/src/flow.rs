//! What flows and fragments are remembered by: keys made from a packet, as one endpoint sees it.

use crate::{Direction, FlowKey, FlowSlot, FragmentKey, Packet, icmp, icmp_way, limits, protocol};

impl FlowKey {
    /// The key of the flow of a packet that `endpoint` sent (egress) or received (ingress): the same for both directions.
    #[inline(always)]
    pub fn of(endpoint: u32, packet: &Packet, direction: Direction) -> Self {
        let (local, remote, local_port, remote_port) = match direction {
            Direction::Egress => (packet.source, packet.destination, packet.source_port, packet.destination_port),
            Direction::Ingress => (packet.destination, packet.source, packet.destination_port, packet.source_port),
        };
        let mut key = Self {
            endpoint,
            local,
            remote,
            local_port,
            remote_port,
            protocol: packet.protocol,
            icmp_type: 0,
            icmp_code: 0,
            icmp_way: icmp_way::NONE,
        };
        if matches!(packet.protocol, protocol::ICMP | protocol::ICMPV6) {
            key.add_icmp(packet, direction);
        }
        key
    }

    /// Tells flows of ICMP apart: by the type of the request and who asks, or by the type and code of a message that has no
    /// reply. A reply finds the flow of its request alone.
    #[inline(always)]
    fn add_icmp(&mut self, packet: &Packet, direction: Direction) {
        let [kind, code] = packet.icmp.to_be_bytes();
        let request = icmp::request_of(packet.protocol, kind);
        if request != icmp::NO_REQUEST {
            self.icmp_type = request;
            self.icmp_way = icmp_way::of_request(direction.reversed());
        } else if icmp::is_request(packet.protocol, kind) && code == 0 {
            self.icmp_type = kind;
            self.icmp_way = icmp_way::of_request(direction);
        } else {
            self.icmp_type = kind;
            self.icmp_code = code;
            self.icmp_way = icmp_way::alone(direction);
        }
    }
}

impl FragmentKey {
    /// The key of the fragmented packet.
    #[inline(always)]
    pub fn of(endpoint: u32, packet: &Packet, direction: Direction) -> Self {
        Self {
            endpoint,
            id: packet.fragment_id,
            source: packet.source,
            destination: packet.destination,
            protocol: packet.protocol,
            direction: direction as u8,
            spare: [0; 2],
        }
    }

    /// The place of the packet among those of its endpoint: the next packet with the same takes it.
    #[inline(always)]
    pub const fn slot(&self) -> FlowSlot {
        const HALF: u32 = limits::FRAGMENTS_PER_ENDPOINT / 2;
        // Peers count identifications up. The ends of both addresses keep peers that count alike apart.
        let mixed = self.id ^ (self.source.0[15] ^ self.destination.0[15] ^ self.protocol) as u32;
        FlowSlot { endpoint: self.endpoint, slot: mixed % HALF + (self.direction & 1) as u32 * HALF }
    }
}
