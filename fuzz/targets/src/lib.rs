//! What fuzzing checks: one function a target, from octets to a panic or nothing.
//!
//! A target does not only ask whether the code survives. Beside the code stands a slow and obvious reading of the same
//! rules, and both must come to the same end. Inputs that were found once are stored below `fuzz/corpus`; `cargo test`
//! checks them all, without a fuzzer.
//!
//! ```
//! namegate_fuzz_targets::pattern(b"*.cilium.io\ndocs.cilium.io\n");
//! ```

#![forbid(unsafe_code)]

mod api;
mod cidr;
mod cni_stdin;
mod dns_wire;
mod endpoints;
mod http_head;
mod icmp_errors;
mod journal;
mod kubernetes_json;
mod link;
mod neighbour;
mod packet;
mod pattern;
mod policy_yaml;
mod quic_initial;
mod quic_server;
mod selector;
mod settings;
mod sniffer;
mod tls_hello;

pub use api::api;
pub use cidr::cidr;
pub use cni_stdin::cni_stdin;
pub use dns_wire::dns_wire;
pub use endpoints::endpoints;
pub use http_head::http_head;
pub use icmp_errors::icmp_errors;
pub use journal::journal;
pub use kubernetes_json::kubernetes_json;
pub use neighbour::neighbour;
pub use packet::packet;
pub use pattern::pattern;
pub use policy_yaml::policy_yaml;
pub use quic_initial::quic_initial;
pub use selector::selector;
pub use settings::settings;
pub use sniffer::sniffer;
pub use tls_hello::tls_hello;

/// One target.
#[derive(Clone, Copy, Debug)]
pub struct Target {
    /// Name of its program below `fuzz/fuzz_targets` and of its folder below `fuzz/corpus`.
    pub name: &'static str,
    /// Panics where the code is wrong.
    pub check: fn(&[u8]),
}

/// Every target.
pub const TARGETS: [Target; 18] = [
    Target { name: "api", check: api },
    Target { name: "cidr", check: cidr },
    Target { name: "cni_stdin", check: cni_stdin },
    Target { name: "dns_wire", check: dns_wire },
    Target { name: "endpoints", check: endpoints },
    Target { name: "http_head", check: http_head },
    Target { name: "icmp_errors", check: icmp_errors },
    Target { name: "journal", check: journal },
    Target { name: "kubernetes_json", check: kubernetes_json },
    Target { name: "neighbour", check: neighbour },
    Target { name: "packet", check: packet },
    Target { name: "pattern", check: pattern },
    Target { name: "policy_yaml", check: policy_yaml },
    Target { name: "quic_initial", check: quic_initial },
    Target { name: "selector", check: selector },
    Target { name: "settings", check: settings },
    Target { name: "sniffer", check: sniffer },
    Target { name: "tls_hello", check: tls_hello },
];
