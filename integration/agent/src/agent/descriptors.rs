//! The process's descriptors, shared out: a reserve for maps, netlink, files and the API first, then the DNS proxy, then
//! the layer 7 proxy. What a pod does with its connections then leaves the agent the descriptors that its own work needs.

use namegate_dns_proxy::{WORKER_DESCRIPTORS_FIXED, WORKER_DESCRIPTORS_MAX};
use nix::sys::resource::{Resource, getrlimit, setrlimit};

use super::problems::{ProblemKind, Problems};

/// As many as the agent asks for: a limit that is without bound stays within reason.
const WANTED_MAX: u64 = 1 << 20;
/// What is set aside at least: interfaces and namespaces that are looked up, files, the journal, the API server's
/// connections, and those that are refused in a moment.
const RESERVE_MIN: usize = 64;
/// What is set aside at most: all of that with every connection of the API and of the metrics port.
const RESERVE_MAX: usize = 256;
/// One of so many descriptors is added to the reserve.
const RESERVE_PART: usize = 8;
/// A connection: the client's and the server's socket.
const PER_CONNECTION: usize = 2;
/// What one thread of the layer 7 proxy starts with: listeners of both families and its event loop.
const L7_WORKER_FIXED: usize = 6;
/// Below so many descriptors for sockets of DNS, or connections, hardly anything works.
const DNS_MIN: usize = 16;
const CONNECTIONS_MIN: usize = 8;
/// The subject of the problem.
const SUBJECT: &str = "descriptors";

/// What is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Wanted {
    pub(crate) dns_workers: usize,
    pub(crate) l7_workers: usize,
    /// Connections of the layer 7 proxy.
    pub(crate) l7_connections: usize,
}

/// What each part gets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Shared {
    pub(crate) dns_workers: usize,
    pub(crate) l7_workers: usize,
    /// Descriptors of the DNS proxy beside those that it starts with.
    pub(crate) dns: usize,
    /// Connections of the layer 7 proxy.
    pub(crate) l7_connections: usize,
    /// There are too few for the work.
    pub(crate) is_too_few: bool,
}

/// Raises the limit as far as the process may; gives what it got.
pub(crate) fn raise() -> usize {
    let Ok((soft, hard)) = getrlimit(Resource::RLIMIT_NOFILE) else { return usize::MAX };
    let wanted = hard.min(WANTED_MAX).max(soft);
    let got = match setrlimit(Resource::RLIMIT_NOFILE, wanted, hard) {
        Ok(()) => wanted,
        Err(error) => {
            tracing::warn!(%error, soft, hard, "the limit of open files stays as it is");
            soft
        }
    };
    usize::try_from(got).unwrap_or(usize::MAX)
}

/// Shares out what the process has, and reports where that is less than what is asked for.
pub(crate) fn share_out(limit: usize, wanted: Wanted, problems: &Problems) -> Shared {
    let shared = share(limit, open_now(), wanted);
    let Shared { dns, l7_connections, .. } = shared;
    let advice = "raise RLIMIT_NOFILE (`LimitNOFILE` of the unit, `ulimit -n`) and start the agent again";
    if shared.is_too_few {
        let message = format!(
            "the process may open {limit} files: that leaves {dns} for sockets of DNS and {l7_connections} connections \
             under limits on requests; {advice}"
        );
        problems.raise(ProblemKind::Bound, SUBJECT, message);
    } else if shared.l7_connections < wanted.l7_connections {
        tracing::warn!(
            limit,
            dns,
            connections = l7_connections,
            wanted = wanted.l7_connections,
            "fewer connections than `limits.l7Connections` fit into the limit of open files; {advice}"
        );
    }
    shared
}

/// Descriptors that are open at the moment.
fn open_now() -> usize {
    // Without `/proc` half of the smallest reserve is a guess that is too high for the start.
    std::fs::read_dir("/proc/self/fd").map_or(RESERVE_MIN / 2, Iterator::count)
}

fn share(limit: usize, open: usize, wanted: Wanted) -> Shared {
    let reserve = (RESERVE_MIN + limit / RESERVE_PART).min(RESERVE_MAX);
    let left = limit.saturating_sub(open + reserve);
    // Threads have descriptors of their own: no more than a third goes there.
    let dns_workers = wanted.dns_workers.min(left / 6 / WORKER_DESCRIPTORS_FIXED).max(1);
    let l7_workers = wanted.l7_workers.min(left / 6 / L7_WORKER_FIXED).max(1);
    let left = left.saturating_sub(dns_workers * WORKER_DESCRIPTORS_FIXED + l7_workers * L7_WORKER_FIXED);
    let dns_wanted = dns_workers * WORKER_DESCRIPTORS_MAX;
    let l7_wanted = wanted.l7_connections * PER_CONNECTION;
    let dns = dns_wanted.min((left / 3).max(left.saturating_sub(l7_wanted)));
    let l7_connections = wanted.l7_connections.min((left - dns) / PER_CONNECTION);
    Shared {
        dns_workers,
        l7_workers,
        dns,
        is_too_few: dns < DNS_MIN || l7_connections < CONNECTIONS_MIN.min(wanted.l7_connections),
        // One is served in any case.
        l7_connections: l7_connections.max(1),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const WANTED: Wanted = Wanted { dns_workers: 2, l7_workers: 2, l7_connections: 16_384 };
    /// What an agent has open at its start.
    const OPEN: usize = 40;

    fn used(shared: &Shared) -> usize {
        let fixed = shared.dns_workers * WORKER_DESCRIPTORS_FIXED + shared.l7_workers * L7_WORKER_FIXED;
        fixed + shared.dns + shared.l7_connections * PER_CONNECTION
    }

    #[test]
    fn with_many_descriptors_everything_is_granted() {
        let shared = share(65_536, OPEN, WANTED);
        assert_eq!((shared.l7_connections, shared.dns), (16_384, 2 * WORKER_DESCRIPTORS_MAX));
        assert!(!shared.is_too_few);
    }

    #[test]
    fn the_reserve_stays_however_few_there_are() {
        for limit in 250..70_000 {
            let shared = share(limit, OPEN, WANTED);
            assert!(used(&shared) + OPEN + RESERVE_MIN <= limit, "{limit}: {shared:?}");
            assert!(!shared.is_too_few, "{limit}: {shared:?}");
        }
    }

    #[test]
    fn many_cores_do_not_use_up_what_connections_need() {
        let shared = share(512, OPEN, Wanted { dns_workers: 128, l7_workers: 4, ..WANTED });
        assert!(shared.dns_workers < 8 && shared.l7_connections > 50, "{shared:?}");
        assert!(used(&shared) + OPEN + RESERVE_MIN <= 512);
    }

    #[test]
    fn too_few_are_reported() {
        assert!(share(160, OPEN, WANTED).is_too_few);
        let problems = Problems::default();
        share_out(100, WANTED, &problems);
        let listed = problems.list();
        assert!(listed[0].message.contains("raise RLIMIT_NOFILE"), "{listed:?}");
    }
}
