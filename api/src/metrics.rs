//! Metrics in the text format of OpenMetrics, made from a [`Status`] when asked.

use std::fmt;

use axum::{http::header, response::IntoResponse};
use prometheus_client::{
    encoding::{EncodeLabelSet, text::encode},
    metrics::{counter::Counter, family::Family, gauge::Gauge, info::Info},
    registry::{Registry, Unit},
};

use crate::{
    gatekeeper::{Gatekeeper, Refusal},
    instruments::Instruments,
    view::Status,
};

/// Media type of what [`render`] writes.
const MEDIA_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct PacketLabels {
    direction: &'static str,
    reason: String,
    denied: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct BoundLabels {
    bound: String,
    endpoint: String,
}

/// One label, whose name is in the type.
macro_rules! one_label {
    ($($name:ident { $label:ident })*) => { $(
        #[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
        struct $name { $label: String }

        impl From<&str> for $name {
            fn from(text: &str) -> Self {
                Self { $label: text.to_owned() }
            }
        }
    )* };
}
one_label! {
    StateLabel { state } KindLabel { kind } MapLabel { map } OutcomeLabel { outcome } VerdictLabel { verdict }
    EndpointLabel { endpoint }
}

/// Every metric as it is now, as text.
pub(crate) async fn text(gate: &dyn Gatekeeper) -> Result<String, Refusal> {
    let status = gate.status().await?;
    render(gate.instruments(), &status)
        .map_err(|error| Refusal::Unavailable(format!("metrics could not be written: {error}")))
}

/// The text with its media type.
pub(crate) fn response(text: String) -> impl IntoResponse {
    ([(header::CONTENT_TYPE, MEDIA_TYPE)], text)
}

fn render(instruments: &Instruments, status: &Status) -> Result<String, fmt::Error> {
    let mut registry = Registry::with_prefix("namegate");
    instruments.register(&mut registry);
    packets(&mut registry, status);
    state(&mut registry, status);
    bounds(&mut registry, status);
    events(&mut registry, status);
    let mut text = String::new();
    encode(&mut text, &registry)?;
    Ok(text)
}

fn packets(registry: &mut Registry, status: &Status) {
    let (packets, octets) = (Family::<PacketLabels, Counter>::default(), Family::<PacketLabels, Counter>::default());
    for counter in &status.counters {
        let labels = PacketLabels {
            direction: counter.direction.text(),
            reason: counter.reason.clone(),
            denied: if counter.denied { "true" } else { "false" },
        };
        packets.get_or_create(&labels).inc_by(counter.packets);
        octets.get_or_create(&labels).inc_by(counter.octets);
    }
    registry.register("packets", "Packets judged, by direction and reason", packets);
    registry.register_with_unit("traffic", "Octets judged, link header included", Unit::Bytes, octets);
}

fn state(registry: &mut Registry, status: &Status) {
    let endpoints = gauges::<StateLabel>([
        ("guarded", status.endpoints.guarded as u64),
        ("waiting", status.endpoints.waiting as u64),
        ("failed", status.endpoints.failed as u64),
    ]);
    registry.register("endpoints", "Endpoints by state", endpoints);
    let revision = gauges::<StateLabel>([("wanted", status.revision.wanted), ("enforced", status.revision.enforced)]);
    registry.register("policy_revision", "Revision read from files and revision in the kernel", revision);
    registry.register("policy_diagnostics", "Mistakes and warnings in force", gauge(status.diagnostics.len() as u64));
    registry.register("fqdn_names", "Learned names whose TTL has not ended", gauge(status.names.names as u64));
    registry.register("fqdn_addresses", "Addresses of learned names", gauge(status.names.addresses as u64));
    let problems = Family::<KindLabel, Gauge>::default();
    for problem in &status.problems {
        problems.get_or_create(&KindLabel::from(problem.kind.as_str())).inc();
    }
    registry.register("problems", "What is wrong right now, by kind", problems);
    registry.register("audit", "1 where denials are recorded only", gauge(u64::from(status.audit)));
    registry.register("build", "Version of the agent", Info::new([("version", status.version.clone())]));
}

fn bounds(registry: &mut Registry, status: &Status) {
    let rows = gauges::<MapLabel>(status.maps.iter().map(|fill| (fill.map.as_str(), fill.rows)));
    registry.register("map_rows", "Rows in a kernel map", rows);
    let rows_max = gauges::<MapLabel>(status.maps.iter().map(|fill| (fill.map.as_str(), fill.rows_max)));
    registry.register("map_rows_max", "Rows that fit into a kernel map", rows_max);
    let refused = Family::<BoundLabels, Counter>::default();
    for at in &status.refused {
        let labels = BoundLabels { bound: at.bound.clone(), endpoint: at.endpoint.clone() };
        refused.get_or_create(&labels).inc_by(at.count);
    }
    registry.register("refused", "What was refused at a bound", refused);
}

fn events(registry: &mut Registry, status: &Status) {
    let dns = counters::<OutcomeLabel>(status.dns.iter().map(|tally| (tally.what.as_str(), tally.count)));
    registry.register("dns_messages", "DNS messages by outcome", dns);
    let kept = gauge(status.dns_answers_kept as u64);
    registry.register("dns_cache_entries", "DNS answers that are kept to be given again", kept);
    let flows = counters::<VerdictLabel>(status.flows.iter().map(|tally| (tally.what.as_str(), tally.count)));
    registry.register("flows", "New and denied flows that were told, by verdict", flows);
    let checks = counters::<OutcomeLabel>(status.name_checks.iter().map(|tally| (tally.what.as_str(), tally.count)));
    registry.register("name_checks", "Connections whose name was looked at beside the way, by outcome", checks);
    let unread = counters::<EndpointLabel>(status.names_unread.iter().map(|at| (at.endpoint.as_str(), at.count)));
    registry.register("names_unread", "Connections whose name could not be looked at, by endpoint", unread);
    let lost: Counter = Counter::default();
    lost.inc_by(status.flows_lost);
    let healed = Counter::<u64>::default();
    healed.inc_by(status.attachments_healed);
    registry.register(
        "attachments_healed",
        "Programs and pins that were put back after another tool took them away",
        healed,
    );
    registry.register("flows_lost", "Records of flows lost since the ring was full or they came too fast", lost);
}

fn gauge(value: u64) -> Gauge {
    let gauge = Gauge::default();
    gauge.set(i64::try_from(value).unwrap_or(i64::MAX));
    gauge
}

fn gauges<'a, L>(values: impl IntoIterator<Item = (&'a str, u64)>) -> Family<L, Gauge>
where
    L: From<&'a str> + Clone + Eq + std::hash::Hash,
{
    let family = Family::<L, Gauge>::default();
    for (label, value) in values {
        family.get_or_create(&L::from(label)).set(i64::try_from(value).unwrap_or(i64::MAX));
    }
    family
}

fn counters<'a, L>(values: impl IntoIterator<Item = (&'a str, u64)>) -> Family<L, Counter>
where
    L: From<&'a str> + Clone + Eq + std::hash::Hash,
{
    let family = Family::<L, Counter>::default();
    for (label, value) in values {
        family.get_or_create(&L::from(label)).inc_by(value);
    }
    family
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::view::{self, Direction, EndpointTally, Fill, Refused, Tally};

    fn status() -> Status {
        Status {
            problems: vec![view::Problem {
                kind: "attachment".into(),
                subject: "shop/web".into(),
                message: String::new(),
                since: String::new(),
            }],
            version: "1.2.3".into(),
            started: String::new(),
            audit: false,
            directions: vec![],
            revision: view::Revision { wanted: 8, enforced: 7 },
            endpoints: view::EndpointCounts { guarded: 3, waiting: 1, failed: 0 },
            names: view::NameCounts { names: 5, addresses: 9 },
            counters: vec![view::Counter {
                direction: Direction::Egress,
                reason: "default-deny".into(),
                text: String::new(),
                denied: true,
                packets: 12,
                octets: 900,
            }],
            maps: vec![Fill { map: "POLICY".into(), rows: 4, rows_max: 10, setting: String::new() }],
            refused: vec![Refused {
                bound: "names".into(),
                endpoint: "shop/web".into(),
                count: 2,
                setting: String::new(),
            }],
            dns: vec![Tally { what: "answered".into(), count: 6 }],
            dns_answers_kept: 21,
            requests: vec![Tally { what: "denied".into(), count: 3 }],
            name_checks: vec![Tally { what: "mismatched".into(), count: 4 }],
            names_unread: vec![EndpointTally { endpoint: "shop/web".into(), count: 3 }],
            mismatches: vec![],
            denials: vec![],
            flows: vec![Tally { what: "denied".into(), count: 11 }],
            flows_lost: 1,
            attachments_healed: 2,
            kubernetes: None,
            diagnostics: vec![],
        }
    }

    #[test]
    fn figures_are_those_of_the_status() {
        let instruments = Instruments::default();
        instruments.answer_installed(std::time::Duration::from_micros(100));
        let text = render(&instruments, &status()).unwrap();
        for line in [
            "namegate_packets_total{direction=\"egress\",reason=\"default-deny\",denied=\"true\"} 12",
            "namegate_traffic_bytes_total{direction=\"egress\",reason=\"default-deny\",denied=\"true\"} 900",
            "namegate_problems{kind=\"attachment\"} 1",
            "namegate_endpoints{state=\"guarded\"} 3",
            "namegate_policy_revision{state=\"wanted\"} 8",
            "namegate_policy_revision{state=\"enforced\"} 7",
            "namegate_map_rows_max{map=\"POLICY\"} 10",
            "namegate_refused_total{bound=\"names\",endpoint=\"shop/web\"} 2",
            "namegate_dns_messages_total{outcome=\"answered\"} 6",
            "namegate_dns_cache_entries 21",
            "namegate_name_checks_total{outcome=\"mismatched\"} 4",
            "namegate_names_unread_total{endpoint=\"shop/web\"} 3",
            "namegate_flows_lost_total 1",
            "namegate_attachments_healed_total 2",
            "namegate_dns_install_seconds_count 1",
            "namegate_build_info{version=\"1.2.3\"} 1",
        ] {
            assert!(text.lines().any(|got| got == line), "no `{line}` in\n{text}");
        }
        assert!(text.ends_with("# EOF\n"), "{text}");
    }

    /// Name and type of every metric, as the page or the exposition writes them.
    fn listed(page: &str) -> BTreeMap<&str, &str> {
        let cells = page.lines().filter_map(|line| line.strip_prefix("| `"));
        cells.filter_map(|row| Some((row.split('`').next()?, row.split(" | ").nth(1)?))).collect()
    }

    #[test]
    fn the_page_lists_every_metric_and_no_other() {
        let text = render(&Instruments::default(), &status()).unwrap();
        let exposed: Vec<_> = text.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.split_once(' ')).collect();
        let exposed: BTreeMap<String, &str> = exposed
            .into_iter()
            .map(|(name, kind)| match kind {
                "counter" => (format!("{name}_total"), kind),
                "info" => (format!("{name}_info"), kind),
                _ => (name.to_owned(), kind),
            })
            .collect();
        let page = include_str!("../../docs/metrics.md");
        let exposed: BTreeMap<&str, &str> = exposed.iter().map(|(name, kind)| (name.as_str(), *kind)).collect();
        assert_eq!(listed(page), exposed);
    }
}
