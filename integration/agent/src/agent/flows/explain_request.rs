//! Requests among the flows: what is known about a record of the layer 7 proxy.

use std::{net::IpAddr, sync::Arc, time::SystemTime};

use namegate_abi::Reason;
use namegate_api::{
    rfc3339,
    view::{Direction, Flow, FlowEndpoint, FlowPeer, HttpRequest, Verdict},
};
use namegate_config::{
    l7::head::HttpFacts,
    reference,
    rule::{self, Binding},
};
use namegate_enforcer::View;
use namegate_l7_proxy::{Access, AccessVerdict, What};

use super::{
    super::clock::boot_ns,
    NAMES_MAX,
    explain::{endpoint as shown_endpoint, shown_names},
};

/// IANA protocol number of TCP.
const TCP: u8 = 6;

/// A record with everything that is known about it.
pub(crate) fn explain(view: &View<'_>, time: SystemTime, access: Access) -> Flow {
    let (direction, own, peer) = ends(&access);
    let Access { client, server, rule, verdict: decided, mismatch, what, .. } = access;
    let endpoint = view.endpoint_by_address(own);
    let fqdns = endpoint.map(|endpoint| shown_names(view, endpoint, peer, boot_ns())).unwrap_or_default();
    let reason = match decided {
        AccessVerdict::Allowed => reference::Reason::Rule.word(),
        _ if mismatch => Reason::NameMismatch.word(),
        _ => reference::Reason::L7.word(),
    };
    let is_allowed = decided == AccessVerdict::Allowed;
    let (http, server_name, reason_text) = match what {
        What::Http { facts, code, latency } => {
            let HttpFacts { method, path, host, .. } = Arc::unwrap_or_clone(facts);
            let latency_ms = (latency.as_secs_f64() * 1e6).round() / 1e3;
            let text = if is_allowed { "a rule allows the request" } else { "no rule allows the request" };
            (Some(HttpRequest { method, path, host, code, latency_ms }), None, text)
        }
        What::Tls { server_name } => {
            let allowed = "a rule allows the server name";
            let text = if is_allowed { allowed } else { "no rule allows the server name" };
            (None, server_name, text)
        }
    };
    let asked = http.as_ref().map(|http: &HttpRequest| http.host.as_str()).or(server_name.as_deref());
    let flow = reference::Flow { protocol: TCP, port: server.port() };
    let openers = || view.limits().openers((own, peer), flow, Binding::Observe, boot_ns(), NAMES_MAX);
    let fqdns = if mismatch { openers().iter().map(ToString::to_string).collect() } else { fqdns };
    let reason_text = if mismatch { mismatch_text(asked, &fqdns) } else { reason_text.to_owned() };
    Flow {
        time: rfc3339(time),
        verdict: verdict(decided),
        direction,
        endpoint: match endpoint {
            Some(id) => shown_endpoint(view, id.0),
            None => FlowEndpoint { id: 0, namespace: String::new(), name: String::new() },
        },
        peer: FlowPeer { address: peer, name: view.peer_key(peer).map(str::to_owned), fqdns, identity: 0 },
        source: client.ip().to_canonical(),
        source_port: client.port(),
        destination: server.ip().to_canonical(),
        destination_port: server.port(),
        protocol: "TCP".to_owned(),
        rule: rule.map(|rule| rule.to_string()),
        reason: reason.to_owned(),
        reason_text,
        tcp_flags: 0,
        length: 0,
        http,
        server_name,
    }
}

/// What was asked for, and which names opened the address.
pub(crate) fn mismatch_text(asked: Option<&str>, learned: &[String]) -> String {
    let asked = asked.filter(|asked| !asked.is_empty()).unwrap_or("no name");
    format!("asked for {asked}, the address was opened by {}", learned.join(", "))
}

/// The direction of a request, the address whose rules decided, and the other one.
pub(crate) fn ends(access: &Access) -> (Direction, IpAddr, IpAddr) {
    let source = access.client.ip().to_canonical();
    let destination = access.server.ip().to_canonical();
    match access.direction {
        rule::Direction::Egress => (Direction::Egress, source, destination),
        rule::Direction::Ingress => (Direction::Ingress, destination, source),
    }
}

/// What is shown of a verdict.
pub(super) const fn verdict(verdict: AccessVerdict) -> Verdict {
    match verdict {
        AccessVerdict::Allowed => Verdict::Allowed,
        AccessVerdict::Denied => Verdict::Denied,
        AccessVerdict::Audited => Verdict::Audited,
    }
}
