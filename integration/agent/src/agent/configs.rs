//! What each part is started with, from the settings.

use std::time::Duration;

use namegate_abi::Settings as KernelSettings;
use namegate_config::settings::{Settings, Tunnelling};
use namegate_dns_proxy::Config as DnsConfig;
use namegate_l7_proxy::Config as L7Config;

use super::descriptors::{Shared, Wanted};

/// Mark of packets that go to a local proxy.
const REDIRECT_MARK: u32 = 0x200;
/// Mark of what the proxy sends.
pub(super) const PROXY_MARK: u32 = 0x400;
/// Bits of both.
const MARK_MASK: u32 = 0xf00;
/// Threads that read requests, at most.
const L7_WORKERS_MAX: usize = 4;
/// Bytes that the layer 7 proxy keeps for all connections; one endpoint gets half of them at most.
const L7_BYTES_MAX: usize = 192 << 20;
/// How long the kernel may take for the rows of one answer.
const INSTALL_TIMEOUT: Duration = Duration::from_secs(1);

pub(super) fn kernel_settings(dns_port: u16, names_port: u16) -> KernelSettings {
    KernelSettings {
        redirect_mark: REDIRECT_MARK,
        proxy_mark: PROXY_MARK,
        mark_mask: MARK_MASK,
        dns_port,
        names_port,
        flow_share: 0,
    }
}

pub(super) fn dns_config(settings: &Settings, shared: &Shared) -> DnsConfig {
    DnsConfig {
        workers: shared.dns_workers,
        port: 0,
        upstream_timeout: Duration::from_millis(settings.dns.upstream_timeout_ms.into()),
        install_timeout: INSTALL_TIMEOUT,
        mark: PROXY_MARK,
        fixed_resolver: None,
        refusal: settings.dns.refusal,
        tunnelling: match settings.dns.tunnelling {
            Tunnelling::Enforce if settings.audit => Tunnelling::Observe,
            tunnelling => tunnelling,
        },
        tunnelling_names: settings.dns.tunnelling_names_per_minute,
        tunnelling_except: settings.dns.tunnelling_except.clone(),
        cache_answers: settings.dns.cache_entries as usize,
        pending_max: settings.dns.pending_max as usize,
        pending_per_endpoint_max: settings.dns.pending_per_endpoint_max as usize,
        descriptors_max: Some(shared.dns),
    }
}

/// A thread for each core, within bounds: requests are a part of a node's work.
pub(super) fn descriptors_wanted(settings: &Settings) -> Wanted {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let dns_workers = if settings.dns.workers == 0 { cores } else { settings.dns.workers as usize };
    let l7_connections = settings.limits.l7_connections as usize;
    Wanted { dns_workers, l7_workers: cores.min(L7_WORKERS_MAX), l7_connections }
}

pub(super) fn l7_config(settings: &Settings, shared: &Shared) -> L7Config {
    L7Config {
        workers: shared.l7_workers,
        port: 0,
        mark: PROXY_MARK,
        fixed_server: None,
        connections_max: shared.l7_connections,
        connections_per_endpoint_max: settings.limits.l7_connections_per_endpoint as usize,
        bytes_max: L7_BYTES_MAX,
    }
}
