//! From the kernel's record of a flow to what the API shows.

use std::net::IpAddr;

use namegate_abi::{EventRecord, Reason};
use namegate_api::{
    rfc3339,
    view::{Direction, Flow, FlowEndpoint, FlowPeer, Verdict},
};
use namegate_enforcer::View;
use namegate_engine::EndpointId;

use super::super::clock;

/// A record with everything that is known about it.
pub(super) fn explain(view: &View<'_>, record: &EventRecord) -> Flow {
    let (source, destination) = (record.source.to_ip(), record.destination.to_ip());
    let direction = namegate_abi::Direction::from_octet(record.direction);
    let (shown_direction, peer) = match direction {
        namegate_abi::Direction::Ingress => (Direction::Ingress, source),
        namegate_abi::Direction::Egress => (Direction::Egress, destination),
    };
    let reason = Reason::from_octet(record.reason);
    Flow {
        time: rfc3339(clock::calendar(record.time_ns)),
        verdict: verdict(record),
        direction: shown_direction,
        endpoint: endpoint(view, record.endpoint),
        peer: FlowPeer {
            address: peer,
            name: view.peer_key(peer).map(str::to_owned),
            fqdns: names(view, record, peer),
            identity: record.identity,
        },
        source,
        source_port: record.source_port,
        destination,
        destination_port: record.destination_port,
        protocol: protocol(record.protocol),
        rule: view.origin(record.rule).map(ToString::to_string),
        reason: reason.map_or("unknown", Reason::word).to_owned(),
        reason_text: reason.map_or("a reason this version does not know", Reason::text).to_owned(),
        tcp_flags: record.tcp_flags,
        length: record.length,
        http: None,
        server_name: None,
    }
}

/// Names of one record.
pub(crate) const NAMES_MAX: usize = 16;

/// The endpoint; both parts of its name are empty where it is gone.
pub(crate) fn endpoint(view: &View<'_>, id: u32) -> FlowEndpoint {
    let key = view.endpoint_key(EndpointId(id)).unwrap_or_default();
    let (namespace, name) = key.split_once('/').unwrap_or(("", key));
    FlowEndpoint { id, namespace: namespace.to_owned(), name: name.to_owned() }
}

/// Names by which the endpoint learned the address, those whose TTL has ended lately too.
fn names(view: &View<'_>, record: &EventRecord, peer: IpAddr) -> Vec<String> {
    shown_names(view, EndpointId(record.endpoint), peer, record.time_ns)
}

/// Names by which the endpoint learned the address, as records have them: many names may share an address.
pub(crate) fn shown_names(view: &View<'_>, endpoint: EndpointId, peer: IpAddr, now: u64) -> Vec<String> {
    let names = view.some_names_of(endpoint, peer, now, NAMES_MAX);
    names.iter().map(ToString::to_string).collect()
}

/// What became of the packet.
pub(super) fn verdict(record: &EventRecord) -> Verdict {
    match namegate_abi::Verdict::from_octet(record.verdict) {
        namegate_abi::Verdict::Denied => Verdict::Denied,
        namegate_abi::Verdict::Allowed => Verdict::Allowed,
        namegate_abi::Verdict::Audited => Verdict::Audited,
        namegate_abi::Verdict::Redirected => Verdict::Redirected,
    }
}

pub(crate) fn protocol(number: u8) -> String {
    match number {
        1 => "ICMP".to_owned(),
        6 => "TCP".to_owned(),
        17 => "UDP".to_owned(),
        58 => "ICMPv6".to_owned(),
        132 => "SCTP".to_owned(),
        other => other.to_string(),
    }
}
