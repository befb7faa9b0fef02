//! What is measured as it happens.

use std::{sync::Arc, time::Duration};

use prometheus_client::{
    metrics::histogram::{Histogram, exponential_buckets},
    registry::Unit,
};

use crate::metrics::Exposition;

/// Histograms that the agent feeds, and the registry that they are in; cheap to clone, all clones are one.
#[derive(Clone, Debug)]
pub struct Instruments {
    answer_installed: Histogram,
    exposition: Arc<Exposition>,
}

impl Default for Instruments {
    fn default() -> Self {
        // 16 us to 0.5 s.
        let answer_installed = Histogram::new(exponential_buckets(16e-6, 2.0, 16));
        let exposition = Exposition::new(|registry| {
            registry.register_with_unit(
                "dns_install",
                "Time from an answer to its addresses in the kernel",
                Unit::Seconds,
                answer_installed.clone(),
            );
        });
        Self { answer_installed, exposition: Arc::new(exposition) }
    }
}

impl Instruments {
    /// An answer's addresses are in the kernel; `took` is the time since the answer was handed over.
    pub fn answer_installed(&self, took: Duration) {
        self.answer_installed.observe(took.as_secs_f64());
    }

    /// The metrics that are served, these among them.
    pub(crate) fn exposition(&self) -> &Exposition {
        &self.exposition
    }
}
