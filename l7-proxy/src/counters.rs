//! What became of connections and requests, counted.

use std::sync::atomic::{AtomicU64, Ordering};

macro_rules! outcomes {
    ($( $(#[$doc:meta])* $name:ident, $word:literal; )*) => {
        /// What is counted.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub(crate) enum Outcome { $( $(#[$doc])* $name, )* }

        const WORDS: &[&str] = &[ $( $word, )* ];
    };
}

outcomes! {
    /// Accepted.
    Connection, "connections";
    /// Too many at once, of all or of one endpoint.
    ConnectionsFull, "connections_full";
    /// Closed for others: idle where places were needed, or with many bytes where too many were kept.
    GaveWay, "gave_way";
    /// Closed since the client gave up far more requests than it let be answered.
    GivenUp, "given_up";
    /// No first octets in time, or octets that no rule reads.
    Unread, "unread";
    /// A request passed.
    Allowed, "allowed";
    /// A request did not.
    Denied, "denied";
    /// A request that can be read in more than one way.
    Malformed, "malformed";
    /// The server does not answer.
    ServerFailed, "server_failed";
    /// A TLS handshake went on otherwise than its first message allows: another second message, a renegotiation.
    Inconsistent, "inconsistent";
    /// What was let pass ended, since the rules changed.
    Revoked, "revoked";
}

/// Counters.
#[derive(Debug, Default)]
pub(crate) struct Counters([AtomicU64; WORDS.len()]);

impl Counters {
    pub(crate) fn count(&self, outcome: Outcome) {
        self.0[outcome as usize].fetch_add(1, Ordering::Relaxed);
    }

    /// Every word with its count, always in the same order.
    pub(crate) fn all(&self) -> Vec<(&'static str, u64)> {
        WORDS.iter().zip(&self.0).map(|(word, count)| (*word, count.load(Ordering::Relaxed))).collect()
    }
}
