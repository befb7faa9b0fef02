//! What flows and fragments are remembered by: keys made from a packet, as one endpoint sees it.

use crate::{Direction, FlowKey, FragmentKey, Packet};

impl FlowKey {
    /// The key of the flow of a packet that `endpoint` sent (egress) or received (ingress): the same for both directions.
    #[inline(always)]
    pub fn of(endpoint: u32, packet: &Packet, direction: Direction) -> Self {
        let (local, remote, local_port, remote_port) = match direction {
            Direction::Egress => (packet.source, packet.destination, packet.source_port, packet.destination_port),
            Direction::Ingress => (packet.destination, packet.source, packet.destination_port, packet.source_port),
        };
        Self { endpoint, local, remote, local_port, remote_port, protocol: packet.protocol, spare: [0; 3] }
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
}
