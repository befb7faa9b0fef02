//! Sends at a steady rate: many kinds of packets from one thread, each kind with a rate of its own.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// How often a thread sends what is due.
const TICK: Duration = Duration::from_millis(10);
/// After a pause of the machine no more than this is sent at once.
const BURST_MAX: u64 = 200;

/// Whether the attack is over; clones share it.
#[derive(Clone, Default)]
pub(crate) struct End(Arc<AtomicBool>);

impl End {
    /// Ends the attack.
    pub(crate) fn set(&self) {
        self.0.store(true, Ordering::Relaxed);
    }

    /// Whether it has ended.
    pub(crate) fn is_set(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

/// One kind of packet.
pub(crate) struct Flood {
    /// Its name in the report.
    pub(crate) name: &'static str,
    /// How many a second.
    pub(crate) rate: u64,
    /// Sends the packet of this number.
    pub(crate) send: Box<dyn FnMut(u64) + Send>,
}

impl Flood {
    pub(crate) fn new(name: &'static str, rate: u64, send: impl FnMut(u64) + Send + 'static) -> Self {
        Self { name, rate, send: Box::new(send) }
    }
}

/// How much was sent of each kind; clones share it.
#[derive(Clone, Default)]
pub(crate) struct Sent(Arc<BTreeMap<&'static str, AtomicU64>>);

impl Sent {
    /// How much so far, by name.
    pub(crate) fn all(&self) -> BTreeMap<&'static str, u64> {
        self.0.iter().map(|(name, count)| (*name, count.load(Ordering::Relaxed))).collect()
    }
}

/// Sends until the end, on a thread of its own.
pub(crate) fn start(mut floods: Vec<Flood>, end: &End) -> (Sent, JoinHandle<()>) {
    let sent = Sent(Arc::new(floods.iter().map(|flood| (flood.name, AtomicU64::new(0))).collect()));
    let (shared, end) = (sent.clone(), end.clone());
    let thread = std::thread::spawn(move || {
        let mut next: Vec<u64> = vec![0; floods.len()];
        let mut offset: Vec<u64> = vec![0; floods.len()];
        let began = Instant::now();
        while !end.is_set() {
            let passed = u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX);
            for (at, flood) in floods.iter_mut().enumerate() {
                let due = (passed * flood.rate / 1_000).saturating_sub(offset[at]);
                // What is beyond a burst is left out, not made up for later.
                offset[at] += due.saturating_sub(next[at] + BURST_MAX);
                for number in next[at]..due.min(next[at] + BURST_MAX) {
                    (flood.send)(number);
                    next[at] = number + 1;
                }
                if let Some(count) = shared.0.get(flood.name) {
                    count.store(next[at], Ordering::Relaxed);
                }
            }
            std::thread::sleep(TICK);
        }
    });
    (sent, thread)
}
