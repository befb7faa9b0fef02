//! Flows of endpoints that are gone and flows past a share that has shrunk, forgotten on a thread of its own.
//!
//! One endpoint may hold 65,536 flows, each of which costs three calls: the thread that writes rules, and that answers of
//! DNS wait for, has other things to do. A flow that is forgotten late does no harm: the packets of an endpoint that is gone
//! pass no program, numbers of endpoints are not given twice, and programs take slots below the share alone.

use std::{
    collections::HashSet,
    path::Path,
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    thread::{self, JoinHandle},
    time::Duration,
};

use namegate_abi::{FlowSlot, map_names};
use namegate_engine::GateError;

use crate::{flow_maps::FlowMaps, raw_maps::Raw};

/// Until what the kernel refused is tried again.
const RETRY: Duration = Duration::from_secs(1);

/// What the thread is to forget.
#[derive(Debug, Default)]
struct Wanted {
    /// Endpoints that are gone.
    gone: HashSet<u32>,
    /// Slots from this one on are not used any more.
    share: u32,
    is_due: bool,
    is_over: bool,
}

impl Wanted {
    fn names(&self, slot: FlowSlot) -> bool {
        slot.slot >= self.share || self.gone.contains(&slot.endpoint)
    }
}

/// The thread, for as long as this lives.
pub(crate) struct Sweeper {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Default)]
struct Shared {
    wanted: Mutex<Wanted>,
    changed: Condvar,
}

impl Shared {
    fn wanted(&self) -> MutexGuard<'_, Wanted> {
        self.wanted.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Sweeper {
    /// Starts the thread; nothing is forgotten before it is asked for.
    pub(crate) fn start(pins: &Path, rows_max: u32) -> Result<Self, GateError> {
        let shared = Arc::new(Shared::default());
        let (theirs, maps) = (Arc::clone(&shared), FlowMaps::open(pins, rows_max)?);
        let thread = thread::Builder::new().name("flow-sweeper".to_owned()).spawn(move || serve(&theirs, maps));
        let thread = thread.map_err(|source| GateError::Access { map: map_names::FLOW_SLOTS, source })?;
        Ok(Self { shared, thread: Some(thread) })
    }

    /// An endpoint is gone: its flows are forgotten soon.
    pub(crate) fn forget(&self, endpoint: u32, share: u32) {
        let mut wanted = self.shared.wanted();
        wanted.gone.insert(endpoint);
        (wanted.share, wanted.is_due) = (share, true);
        self.shared.changed.notify_one();
    }

    /// An endpoint is here: flows that are left of it stay.
    pub(crate) fn keep(&self, endpoint: u32) {
        self.shared.wanted().gone.remove(&endpoint);
    }

    /// Each endpoint has fewer slots than before: flows in the others are forgotten soon.
    pub(crate) fn shrink(&self, share: u32) {
        let mut wanted = self.shared.wanted();
        (wanted.share, wanted.is_due) = (share, true);
        self.shared.changed.notify_one();
    }
}

impl Drop for Sweeper {
    fn drop(&mut self) {
        self.shared.wanted().is_over = true;
        self.shared.changed.notify_one();
        if let Some(thread) = self.thread.take() {
            // It has nothing to say; a panic in it was printed.
            let _ = thread.join();
        }
    }
}

fn serve(shared: &Shared, mut maps: FlowMaps) {
    let mut wanted = shared.wanted();
    loop {
        if wanted.is_over {
            return;
        }
        if !wanted.is_due {
            wanted = shared.changed.wait(wanted).unwrap_or_else(PoisonError::into_inner);
            continue;
        }
        wanted.is_due = false;
        drop(wanted);
        let result = sweep(shared, &mut maps);
        wanted = shared.wanted();
        match result {
            // Of what was asked for meanwhile, a part may be left.
            Ok(()) if wanted.is_due => {}
            Ok(()) => wanted.gone.clear(),
            Err(error) => {
                tracing::warn!(%error, "flows of endpoints that are gone are left; tried again");
                wanted.is_due = true;
                let rested = shared.changed.wait_timeout(wanted, RETRY);
                wanted = rested.unwrap_or_else(PoisonError::into_inner).0;
            }
        }
    }
}

/// Frees the slots that are wanted free. An endpoint that has come back meanwhile keeps its own.
fn sweep(shared: &Shared, maps: &mut FlowMaps) -> Result<(), GateError> {
    for slot in listed(maps, shared) {
        let wanted = shared.wanted();
        if wanted.is_over {
            return Ok(());
        }
        if wanted.names(slot.0) {
            maps.free(slot)?;
        }
    }
    Ok(())
}

/// Slots that are wanted free now. The walk starts anew where its row vanishes: bounded by the size of the table.
fn listed(maps: &FlowMaps, shared: &Shared) -> Vec<Raw<FlowSlot>> {
    let all = maps.slots.keys().take(maps.rows_max as usize).filter_map(Result::ok);
    all.filter(|slot| shared.wanted().names(slot.0)).collect()
}
