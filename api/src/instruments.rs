//! What is measured as it happens.

use std::time::Duration;

use prometheus_client::{
    metrics::histogram::{Histogram, exponential_buckets},
    registry::{Registry, Unit},
};

/// Histograms that the agent feeds; cheap to clone, all clones are one.
#[derive(Clone, Debug)]
pub struct Instruments {
    answer_installed: Histogram,
}

impl Default for Instruments {
    fn default() -> Self {
        // 16 us to 0.5 s.
        Self { answer_installed: Histogram::new(exponential_buckets(16e-6, 2.0, 16)) }
    }
}

impl Instruments {
    /// An answer's addresses are in the kernel; `took` is the time since the answer was handed over.
    pub fn answer_installed(&self, took: Duration) {
        self.answer_installed.observe(took.as_secs_f64());
    }

    pub(crate) fn register(&self, registry: &mut Registry) {
        registry.register_with_unit(
            "dns_install",
            "Time from an answer to its addresses in the kernel",
            Unit::Seconds,
            self.answer_installed.clone(),
        );
    }
}
