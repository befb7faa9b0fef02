//! The settings file.

use namegate_config::{
    rule::{Binding, Direction},
    settings::{PrivateAnswers, Refusal, Scope, Settings, Tunnelling, parse},
};
use serde_json::{Value, json};

/// A settings file.
///
/// # Panics
/// Settings that were read cannot be written down and read again as the same; reading twice gives different mistakes; or
/// a mistake stands outside the text.
pub fn settings(data: &[u8]) {
    let Ok(text) = str::from_utf8(data) else { return };
    match (parse("namegate.yaml", text), parse("namegate.yaml", text)) {
        (Ok(settings), Ok(same)) => {
            assert_eq!(settings, same);
            let written = written(&settings).to_string();
            let again = parse("namegate.json", &written);
            assert_eq!(again.as_ref().ok(), Some(&settings), "{written}: {:?}", again.as_ref().err());
        }
        (Err(found), Err(same)) => crate::endpoints::check_mistakes(&found, &same, text),
        (one, other) => panic!("read as {one:?}, then as {other:?}"),
    }
}

fn written(settings: &Settings) -> Value {
    let Settings { policies, endpoints, socket, state, pins, directions, audit, metrics, dns, limits, .. } = settings;
    let direction = |direction: &Direction| match direction {
        Direction::Egress => "egress",
        Direction::Ingress => "ingress",
    };
    json!({
        "policies": policies,
        "endpoints": endpoints,
        "socket": socket,
        "state": state,
        "pins": pins,
        "directions": directions.iter().map(direction).collect::<Vec<_>>(),
        "audit": audit,
        "metrics": {"listen": metrics.listen.map_or_else(|| "off".to_owned(), |address| address.to_string())},
        "dns": {
            "resolvers": dns.resolvers,
            "resolverLabels": dns.resolver_labels,
            "resolverNamespace": dns.resolver_namespace,
            "minTtl": dns.min_ttl_s,
            "maxTtl": dns.max_ttl_s,
            "privateAnswers": if dns.private_answers == PrivateAnswers::Allow { "allow" } else { "deny" },
            "scope": if dns.scope == Scope::Endpoint { "endpoint" } else { "node" },
            "refusal": if dns.refusal == Refusal::Refused { "refused" } else { "nxdomain" },
            "nameBinding": Binding::WORDS.iter().find(|(_, binding)| *binding == dns.name_binding).map(|(word, _)| word),
            "namedPorts": dns.named_ports.ranges().iter().map(ToString::to_string).collect::<Vec<_>>(),
            "tunnelling": match dns.tunnelling {
                Tunnelling::Off => "off",
                Tunnelling::Observe => "observe",
                Tunnelling::Enforce => "enforce",
            },
            "tunnellingNamesPerMinute": dns.tunnelling_names_per_minute,
            "tunnellingExcept": dns.tunnelling_except.iter().map(ToString::to_string).collect::<Vec<_>>(),
            "addressesPerNameMax": dns.addresses_per_name_max,
            "namesPerEndpointMax": dns.names_per_endpoint_max,
            "upstreamTimeoutMs": dns.upstream_timeout_ms,
            "cacheEntries": dns.cache_entries,
            "pendingMax": dns.pending_max,
            "pendingPerEndpointMax": dns.pending_per_endpoint_max,
            "workers": dns.workers,
        },
        "limits": {
            "addresses": limits.addresses,
            "policyRows": limits.policy_rows,
            "cidrs": limits.cidrs,
            "flows": limits.flows,
            "flowsPerEndpoint": limits.flows_per_endpoint,
            "endpoints": limits.endpoints,
            "l7Connections": limits.l7_connections,
            "l7ConnectionsPerEndpoint": limits.l7_connections_per_endpoint,
        },
    })
}
