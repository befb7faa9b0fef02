//! How much of everything one worker may hold, and how descriptors are shared out between its kinds of sockets.

use crate::config::Config;

/// Sockets to resolvers, those included that only wait for their last answers.
const SOCKETS_MAX: usize = 4_096;
/// Connections of clients.
const CLIENTS_MAX: usize = 1_024;
/// Connections to resolvers: for truncated answers, and kept for the next.
const EXCHANGES_MAX: usize = 640;
/// Sockets that replies leave from.
const REPLIERS_MAX: usize = 32;
/// The same where descriptors are few.
const REPLIERS_MIN: usize = 4;

/// Descriptors that one worker uses at most beside those of its start.
pub const WORKER_DESCRIPTORS_MAX: usize = SOCKETS_MAX + CLIENTS_MAX + EXCHANGES_MAX + REPLIERS_MAX;
/// Descriptors that one worker starts with: listeners of both families and transports, and its event loop.
pub const WORKER_DESCRIPTORS_FIXED: usize = 10;

/// Bounds of one worker.
#[expect(clippy::struct_field_names, reason = "each is the most that a worker may have")]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Bounds {
    /// Questions under way.
    pub(crate) pending_max: usize,
    /// Of them, those of one endpoint.
    pub(crate) pending_per_endpoint_max: usize,
    pub(crate) sockets_max: usize,
    pub(crate) clients_max: usize,
    /// Questions over TCP to resolvers.
    pub(crate) retries_max: usize,
    /// Connections to resolvers that are kept.
    pub(crate) idle_max: usize,
    pub(crate) repliers_max: usize,
}

impl Bounds {
    /// The part of each of `workers`.
    pub(crate) fn of(config: &Config, workers: usize) -> Self {
        let each = config.descriptors_max.map_or(WORKER_DESCRIPTORS_MAX, |all| all / workers.max(1));
        let repliers_max = (each / 8).clamp(REPLIERS_MIN, REPLIERS_MAX);
        let left = each.saturating_sub(repliers_max);
        // The sockets to resolvers get what the connections leave.
        let clients_max = (left / 4).clamp(1, CLIENTS_MAX);
        let exchanges_max = (left / 6).clamp(1, EXCHANGES_MAX);
        let idle_max = exchanges_max / 5;
        Self {
            pending_max: config.pending_max,
            pending_per_endpoint_max: config.pending_per_endpoint_max,
            sockets_max: left.saturating_sub(clients_max + exchanges_max).clamp(1, SOCKETS_MAX),
            clients_max,
            retries_max: exchanges_max - idle_max,
            idle_max,
            repliers_max,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bounds(descriptors_max: Option<usize>, workers: usize) -> Bounds {
        Bounds::of(&Config { descriptors_max, ..Config::default() }, workers)
    }

    #[test]
    fn with_enough_descriptors_every_bound_is_whole() {
        for bounds in [bounds(None, 3), bounds(Some(3 * WORKER_DESCRIPTORS_MAX), 3)] {
            assert_eq!((bounds.sockets_max, bounds.clients_max, bounds.repliers_max), (4_096, 1_024, 32), "{bounds:?}");
            assert_eq!((bounds.retries_max, bounds.idle_max), (512, 128));
        }
    }

    #[test]
    fn all_sockets_together_keep_within_the_descriptors() {
        for all in 7..3_000 {
            let bounds = bounds(Some(2 * all), 2);
            let Bounds { sockets_max, clients_max, retries_max, idle_max, repliers_max, .. } = bounds;
            let used = sockets_max + clients_max + retries_max + idle_max + repliers_max;
            assert!(used <= all, "{all}: {bounds:?}");
            assert!(sockets_max.min(clients_max).min(retries_max) > 0, "{all}: {bounds:?}");
        }
    }
}
