//! Counters: what became of questions, answers and whatever was refused. One word each, the same in metrics and logs.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

macro_rules! outcomes {
    ($($(#[$doc:meta])* $outcome:ident = $word:literal,)+) => {
        /// What is counted.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub(crate) enum Outcome { $($(#[$doc])* $outcome,)+ }

        impl Outcome {
            /// All of them, in the order of their numbers.
            pub(crate) const WORDS: &[&str] = &[$($word),+];
        }
    };
}

outcomes! {
    /// A question was sent to its resolver.
    Asked = "asked",
    /// A question was answered from the cache.
    CacheHit = "cache_hit",
    /// A question was not answered from the cache, where there is one: it has no such answer, or may not keep it.
    CacheMiss = "cache_miss",
    /// An answer left the cache to make room for another.
    CacheEvicted = "cache_evicted",
    /// A reply that opens nothing was released.
    Forwarded = "forwarded",
    /// A reply was released after the gate held its addresses.
    Installed = "installed",
    /// A reply was cut to what its client can take over UDP.
    Truncated = "truncated",
    /// A truncated answer was asked for again over TCP.
    RetriedOverTcp = "retried_over_tcp",
    /// A datagram without a header, or with an answer where a question belongs: no reply.
    Dropped = "dropped",
    /// A question that can not be read was answered FORMERR.
    BadQuery = "bad_query",
    /// Another opcode, or a zone transfer, was answered NOTIMP.
    NotImplemented = "not_implemented",
    /// A question from an address of no endpoint was answered REFUSED.
    UnknownEndpoint = "unknown_endpoint",
    /// A question that a rule keeps the endpoint from asking was answered REFUSED.
    Forbidden = "forbidden",
    /// A question beyond what a minute may bring looks like a tunnel's.
    TunnelSuspected = "tunnel_suspected",
    /// Of these, one that was refused.
    TunnelRefused = "tunnel_refused",
    /// A name that was forgotten before its minute was over, so that tunnels could go unseen.
    TunnelForgotten = "tunnel_forgotten",
    /// A question to a resolver that is not trusted: forwarded, and its answer opens nothing.
    UntrustedResolver = "untrusted_resolver",
    /// The original destination of a question is not known, or is the proxy itself.
    NoDestination = "no_destination",
    /// An answer to no pending question, or one that does not match it: dropped.
    Mismatch = "mismatch",
    /// An answer to a question that breaks the rules of the wire: SERVFAIL.
    MalformedAnswer = "malformed_answer",
    /// No answer in time: SERVFAIL.
    UpstreamTimeout = "upstream_timeout",
    /// The resolver can not be reached: SERVFAIL.
    UpstreamUnreachable = "upstream_unreachable",
    /// The gate did not take an answer's addresses: SERVFAIL.
    InstallFailed = "install_failed",
    /// The gate did not take an answer's addresses in time: SERVFAIL.
    InstallTimeout = "install_timeout",
    /// A special address in an answer: never opened.
    SpecialAddress = "special_address",
    /// A question above the bound of one worker: SERVFAIL.
    PendingFull = "pending_full",
    /// A question above the bound of one endpoint: SERVFAIL.
    EndpointFull = "endpoint_full",
    /// A question to one resolver too many, or for which no socket can be opened: SERVFAIL.
    ResolversFull = "resolvers_full",
    /// A truncated answer above the bound of questions over TCP: SERVFAIL.
    RetriesFull = "retries_full",
    /// A client's connection above the bound was closed.
    ConnectionsFull = "connections_full",
    /// A reply that the kernel did not take.
    ReplyUnsent = "reply_unsent",
}

/// The counters of one worker.
#[derive(Debug)]
pub(crate) struct Counters([AtomicU64; Outcome::WORDS.len()]);

impl Default for Counters {
    fn default() -> Self {
        Self(std::array::from_fn(|_| AtomicU64::new(0)))
    }
}

impl Counters {
    pub(crate) fn count(&self, outcome: Outcome) {
        self.add(outcome, 1);
    }

    pub(crate) fn add(&self, outcome: Outcome, times: u64) {
        self.0[outcome as usize].fetch_add(times, Relaxed);
    }

    #[cfg(test)]
    pub(crate) fn of(&self, outcome: Outcome) -> u64 {
        self.0[outcome as usize].load(Relaxed)
    }

    /// The sums of several workers, every word once.
    pub(crate) fn sum<'a>(workers: &(impl Iterator<Item = &'a Self> + Clone)) -> Vec<(&'static str, u64)> {
        let of = |at: usize| workers.clone().map(|counters| counters.0[at].load(Relaxed)).sum();
        Outcome::WORDS.iter().enumerate().map(|(at, word)| (*word, of(at))).collect()
    }
}
