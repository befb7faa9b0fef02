//! What became of connections and requests, counted.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

/// Parts of the counters: each thread writes to one, and seldom meets another there.
const PARTS: usize = 16;

thread_local! {
    static PART: usize = {
        static THREADS: AtomicUsize = AtomicUsize::new(0);
        THREADS.fetch_add(1, Ordering::Relaxed) % PARTS
    };
}

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
pub(crate) struct Counters([Part; PARTS]);

/// What some threads have counted. No two parts share a line of the processor's cache.
#[derive(Debug, Default)]
#[repr(align(128))]
struct Part([AtomicU64; WORDS.len()]);

impl Counters {
    pub(crate) fn count(&self, outcome: Outcome) {
        self.0[PART.with(|part| *part)].0[outcome as usize].fetch_add(1, Ordering::Relaxed);
    }

    /// Every word with its count, always in the same order.
    pub(crate) fn all(&self) -> Vec<(&'static str, u64)> {
        let count = |at: usize| self.0.iter().map(|part| part.0[at].load(Ordering::Relaxed)).sum();
        WORDS.iter().enumerate().map(|(at, word)| (*word, count(at))).collect()
    }
}

#[cfg(test)]
mod tests {
    use std::thread;

    use super::*;

    #[test]
    fn what_threads_count_is_summed() {
        let counters = Counters::default();
        thread::scope(|scope| {
            for _ in 0..2 * PARTS {
                scope.spawn(|| {
                    counters.count(Outcome::Denied);
                    counters.count(Outcome::Revoked);
                });
            }
        });
        let counted: Vec<_> = counters.all().into_iter().filter(|(_, count)| *count > 0).collect();
        assert_eq!(counted, [("denied", 2 * PARTS as u64), ("revoked", 2 * PARTS as u64)]);
    }
}
