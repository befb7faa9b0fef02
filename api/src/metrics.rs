//! Metrics in the text format of OpenMetrics. The registry is made once; what a [`Status`] holds is read when it is written.

use std::{
    collections::BTreeMap,
    fmt,
    sync::{Arc, Mutex, PoisonError},
};

use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeMetric, MetricEncoder, text::encode},
    metrics::{MetricType, counter::ConstCounter, gauge::ConstGauge, info::Info},
    registry::{Registry, Unit},
};

use crate::view::Status;

/// Every metric of the agent, registered once.
#[derive(Debug)]
pub(crate) struct Exposition {
    /// One scrape at a time: the collector reads the status of the scrape that holds the lock.
    registry: Mutex<Registry>,
    /// What the scrape under way is about.
    status: Arc<Mutex<Option<Status>>>,
}

impl Exposition {
    /// What `register` registers, and all that a status holds.
    pub(crate) fn new(register: impl FnOnce(&mut Registry)) -> Self {
        let mut registry = Registry::with_prefix("namegate");
        register(&mut registry);
        let status = Arc::default();
        registry.register_collector(Box::new(StatusCollector { status: Arc::clone(&status) }));
        Self { registry: Mutex::new(registry), status }
    }

    /// All metrics as they are now, those of the status among them.
    pub(crate) fn render(&self, status: Status) -> Result<String, fmt::Error> {
        let registry = self.registry.lock().unwrap_or_else(PoisonError::into_inner);
        *self.status.lock().unwrap_or_else(PoisonError::into_inner) = Some(status);

        let mut text = String::new();
        let written = encode(&mut text, &registry);

        // A status may be large, and the next scrape far away.
        self.status.lock().unwrap_or_else(PoisonError::into_inner).take();
        written.map(|()| text)
    }
}

/// Writes what a status holds.
#[derive(Debug)]
struct StatusCollector {
    status: Arc<Mutex<Option<Status>>>,
}

impl Collector for StatusCollector {
    fn encode(&self, encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let status = self.status.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(status) = &*status else { return Ok(()) };
        let mut page = Page { encoder };
        packets(&mut page, status)?;
        state(&mut page, status)?;
        bounds(&mut page, status)?;
        events(&mut page, status)
    }
}

fn packets(page: &mut Page<'_>, status: &Status) -> fmt::Result {
    let labelled = status.counters.iter().map(|counter| {
        let denied = if counter.denied { "true" } else { "false" };
        ([("direction", counter.direction.text()), ("reason", &*counter.reason), ("denied", denied)], counter)
    });
    let packets = labelled.clone().map(|(labels, counter)| (labels, counter.packets));
    page.counters("packets", "Packets judged, by direction and reason.", None, packets)?;
    let octets = labelled.map(|(labels, counter)| (labels, counter.octets));
    page.counters("traffic", "Octets judged, link header included.", Some(&Unit::Bytes), octets)
}

fn state(page: &mut Page<'_>, status: &Status) -> fmt::Result {
    let endpoints = [
        ([("state", "guarded")], status.endpoints.guarded as u64),
        ([("state", "waiting")], status.endpoints.waiting as u64),
        ([("state", "failed")], status.endpoints.failed as u64),
    ];
    page.gauges("endpoints", "Endpoints by state.", endpoints)?;
    let revision =
        [([("state", "wanted")], status.revision.wanted), ([("state", "enforced")], status.revision.enforced)];
    page.gauges("policy_revision", "Revision read from files and revision in the kernel.", revision)?;
    page.gauge("policy_diagnostics", "Mistakes and warnings in force.", status.diagnostics.len() as u64)?;
    page.gauge("fqdn_names", "Learned names whose TTL has not ended.", status.names.names as u64)?;
    page.gauge("fqdn_addresses", "Addresses of learned names.", status.names.addresses as u64)?;
    let mut problems = BTreeMap::new();
    for problem in &status.problems {
        *problems.entry([("kind", &*problem.kind)]).or_insert(0) += 1;
    }
    page.gauges("problems", "What is wrong right now, by kind.", problems)?;
    page.gauge("audit", "1 where denials are recorded only.", u64::from(status.audit))?;
    let build = Info::new([("version", &*status.version)]);
    build.encode(page.metric("build", "Version of the agent.", None, MetricType::Info)?)
}

fn bounds(page: &mut Page<'_>, status: &Status) -> fmt::Result {
    let rows = status.maps.iter().map(|fill| ([("map", &*fill.map)], fill.rows));
    page.gauges("map_rows", "Rows in a kernel map.", rows)?;
    let rows_max = status.maps.iter().map(|fill| ([("map", &*fill.map)], fill.rows_max));
    page.gauges("map_rows_max", "Rows that fit into a kernel map.", rows_max)?;
    let refused = status.refused.iter().map(|at| ([("bound", &*at.bound), ("endpoint", &*at.endpoint)], at.count));
    page.counters("refused", "What was refused at a bound.", None, refused)
}

fn events(page: &mut Page<'_>, status: &Status) -> fmt::Result {
    let dns = status.dns.iter().map(|tally| ([("outcome", &*tally.what)], tally.count));
    page.counters("dns_messages", "DNS messages by outcome.", None, dns)?;
    let kept = status.dns_answers_kept as u64;
    page.gauge("dns_cache_entries", "DNS answers that are kept to be given again.", kept)?;
    let flows = status.flows.iter().map(|tally| ([("verdict", &*tally.what)], tally.count));
    page.counters("flows", "New and denied flows that were told, by verdict.", None, flows)?;
    let checks = status.name_checks.iter().map(|tally| ([("outcome", &*tally.what)], tally.count));
    let help = "Connections whose name was looked at beside the way, by outcome.";
    page.counters("name_checks", help, None, checks)?;
    let unread = status.names_unread.iter().map(|at| ([("endpoint", &*at.endpoint)], at.count));
    page.counters("names_unread", "Connections whose name could not be looked at, by endpoint.", None, unread)?;
    let help = "Programs and pins that were put back after another tool took them away.";
    page.counter("attachments_healed", help, status.attachments_healed)?;
    let help = "Records of flows lost since the ring was full or they came too fast.";
    page.counter("flows_lost", help, status.flows_lost)
}

/// Names and values of labels.
type Labels<'a, const N: usize> = [(&'static str, &'a str); N];

/// Where metrics are written.
struct Page<'a> {
    encoder: DescriptorEncoder<'a>,
}

impl Page<'_> {
    fn metric<'s>(
        &'s mut self,
        name: &'s str,
        help: &str,
        unit: Option<&'s Unit>,
        kind: MetricType,
    ) -> Result<MetricEncoder<'s>, fmt::Error> {
        self.encoder.encode_descriptor(name, help, unit, kind)
    }

    fn gauge(&mut self, name: &str, help: &str, value: u64) -> fmt::Result {
        ConstGauge::new(value).encode(self.metric(name, help, None, MetricType::Gauge)?)
    }

    fn counter(&mut self, name: &str, help: &str, value: u64) -> fmt::Result {
        ConstCounter::new(value).encode(self.metric(name, help, None, MetricType::Counter)?)
    }

    /// One gauge for each set of labels; nothing where there is none.
    fn gauges<'a, const N: usize>(
        &mut self,
        name: &str,
        help: &str,
        values: impl IntoIterator<Item = (Labels<'a, N>, u64)>,
    ) -> fmt::Result {
        let values: BTreeMap<_, _> = values.into_iter().collect();
        if values.is_empty() {
            return Ok(());
        }
        let mut metric = self.metric(name, help, None, MetricType::Gauge)?;
        for (labels, value) in &values {
            ConstGauge::new(*value).encode(metric.encode_family(labels)?)?;
        }
        Ok(())
    }

    /// One counter for each set of labels, the sum where it occurs more than once; nothing where there is none.
    fn counters<'a, const N: usize>(
        &mut self,
        name: &str,
        help: &str,
        unit: Option<&Unit>,
        values: impl IntoIterator<Item = (Labels<'a, N>, u64)>,
    ) -> fmt::Result {
        let mut sums = BTreeMap::<Labels<'a, N>, u64>::new();
        for (labels, value) in values {
            let sum = sums.entry(labels).or_default();
            *sum = sum.saturating_add(value);
        }
        if sums.is_empty() {
            return Ok(());
        }
        let mut metric = self.metric(name, help, unit, MetricType::Counter)?;
        for (labels, sum) in &sums {
            ConstCounter::new(*sum).encode(metric.encode_family(labels)?)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
