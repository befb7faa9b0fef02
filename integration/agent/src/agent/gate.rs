//! The one thread that owns the engine and the kernel's maps: requests come in, writes go out, in order, without a lock.

use std::{
    collections::{BTreeSet, HashSet},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    thread::JoinHandle,
    time::Duration,
};

use arc_swap::ArcSwap;
use namegate_abi::NODE_INTERFACE;
use namegate_api::Instruments;
use namegate_config::rule;
use namegate_engine::{Change, Engine, Forgotten, Gate as _, GateError, Lookup, Proxies};
use namegate_loader::{Datapath, Directions, LoadError};

use super::{
    clock::boot_ns,
    desk::Clients,
    door::{Learn, Served},
    inbox::Next,
    journal::Journal,
    problems::{ProblemKind, Problems},
    refusals::Refusals,
    room::Room,
};

pub(crate) use super::door::Door;

/// The longest sleep.
const IDLE: Duration = Duration::from_mins(1);

/// Engine, maps, journal.
pub(crate) struct Gate {
    pub(super) engine: Engine,
    pub(super) datapath: Datapath,
    journal: Journal,
    directions: Directions,
    clients: Arc<ArcSwap<Clients>>,
    instruments: Instruments,
    pub(super) problems: Arc<Problems>,
    /// Denials are recorded only.
    audit: bool,
    /// Changes of rules or endpoints so far.
    changes: Arc<AtomicU64>,
    /// Interfaces whose programs could not be attached.
    failed: BTreeSet<u32>,
    pub(super) room: Room,
    refusals: Arc<Refusals>,
}

/// The running thread.
pub(crate) struct Running {
    door: Door,
    changes: Arc<AtomicU64>,
    thread: JoinHandle<()>,
}

impl Gate {
    /// Puts the parts together. `entries` is what the journal held; the rows in the kernel are adopted.
    pub(crate) fn new(
        mut engine: Engine,
        datapath: Datapath,
        journal: (Journal, Vec<namegate_engine::LedgerEntry>),
        directions: Directions,
        clients: Arc<ArcSwap<Clients>>,
        instruments: Instruments,
        problems: Arc<Problems>,
        audit: bool,
    ) -> Result<Self, GateError> {
        let (journal, entries) = journal;
        engine.restore(entries);
        engine.adopt(datapath.rows()?);
        Ok(Self {
            engine,
            datapath,
            journal,
            directions,
            clients,
            instruments,
            problems,
            audit,
            changes: Arc::default(),
            failed: BTreeSet::new(),
            room: Room::default(),
            refusals: Arc::default(),
        })
    }

    /// Starts the thread.
    pub(crate) fn start(self) -> anyhow::Result<Running> {
        let changes = Arc::clone(&self.changes);
        let door = Door::new(Arc::clone(&self.refusals));
        let served = door.served();
        let thread = std::thread::Builder::new().name("gate".to_owned()).spawn(move || self.serve(&served))?;
        Ok(Running { door, changes, thread })
    }

    /// What is known.
    pub(crate) fn engine(&self) -> &Engine {
        &self.engine
    }

    /// The kernel's side.
    pub(crate) fn datapath(&mut self) -> &mut Datapath {
        &mut self.datapath
    }

    /// Interfaces whose programs could not be attached.
    pub(crate) fn failed(&self) -> &BTreeSet<u32> {
        &self.failed
    }

    /// Interfaces whose packets are judged.
    pub(crate) fn guarded(&self) -> HashSet<u32> {
        self.datapath.attached().into_iter().filter(|interface| !self.failed.contains(interface)).collect()
    }

    /// What was refused to single endpoints.
    pub(crate) fn refusals(&self) -> &Refusals {
        &self.refusals
    }

    /// Makes the kernel agree with new rules or endpoints: rows first, then programs on new interfaces, so that no
    /// packet passes between.
    pub(crate) fn change(&mut self, change: Change) -> Vec<String> {
        let wanted = change.topology.as_ref().map(|topology| {
            topology.endpoints.iter().filter_map(|endpoint| endpoint.interface).collect::<BTreeSet<u32>>()
        });
        let gone: Vec<u32> = wanted.iter().flat_map(|wanted| self.gone(wanted)).collect();
        if let Some(wanted) = &wanted {
            // An interface may go while programs are attached to it: then nobody misses them.
            self.failed.retain(|interface| *interface == NODE_INTERFACE || wanted.contains(interface));
        }
        let ops = self.engine.update(change, boot_ns());
        self.write(&ops);
        for interface in gone {
            if let Err(error) = self.datapath.detach(interface) {
                tracing::debug!(interface, %error, "detaching");
            }
        }
        for interface in wanted.into_iter().flatten() {
            self.attach(interface);
        }
        self.guard_node();
        self.clients.store(Arc::new(Clients::of(&self.engine)));
        self.changes.fetch_add(1, Ordering::Release);
        self.keep();
        self.report_shortages();
        self.room.unenforced()
    }

    /// Sends what rules limit to these proxies from now on.
    pub(crate) fn set_proxies(&mut self, proxies: Proxies) -> Vec<GateError> {
        let ops = self.engine.set_proxies(proxies);
        self.write(&ops)
    }

    /// Whether denials are recorded only.
    pub(crate) fn audits(&self) -> bool {
        self.audit
    }

    /// Attached interfaces that are not wanted any more.
    fn gone(&self, wanted: &BTreeSet<u32>) -> Vec<u32> {
        self.datapath.attached().into_iter().filter(|interface| !wanted.contains(interface)).collect()
    }

    fn attach(&mut self, interface: u32) {
        match self.datapath.attach(interface, self.directions) {
            Ok(()) => drop(self.failed.remove(&interface)),
            Err(error) => {
                let is_new = self.failed.insert(interface);
                // The endpoint ends: what says so is on its way.
                if matches!(error, LoadError::NoInterface { .. }) {
                    tracing::debug!(interface, "gone before programs were attached");
                } else if is_new {
                    tracing::error!(interface, error = %Chain(&error), "programs could not be attached");
                }
            }
        }
    }

    /// Attaches to the node's sockets where a rule selects the node, and only there.
    fn guard_node(&mut self) {
        let wanted = self.engine.node_id().is_some();
        let guarded = if wanted { self.datapath.guard_node(self.directions) } else { self.datapath.release_node() };
        match guarded {
            Ok(()) => drop(self.failed.remove(&NODE_INTERFACE)),
            Err(error) => {
                if self.failed.insert(NODE_INTERFACE) {
                    tracing::error!(error = %Chain(&error), wanted, "the node's own sockets");
                }
            }
        }
    }

    /// Forgets names and closes their addresses.
    pub(crate) fn forget(&mut self, wanted: &dyn Fn(&Lookup<'_>) -> bool) -> Forgotten {
        let (gone, ops) = self.engine.forget(wanted, boot_ns());
        self.write(&ops);
        self.keep();
        self.report_shortages();
        gone
    }

    fn serve(mut self, served: &Served) {
        loop {
            let sleep = self.engine.next_tick().map_or(IDLE, |at| Duration::from_nanos(at.saturating_sub(boot_ns())));
            // What is due is done, however much waits.
            if sleep.is_zero() {
                self.tick();
            }
            match served.next(sleep.min(self.room.unreported_for().unwrap_or(IDLE))) {
                Next::Answers(Learn { answers, since, done }) => {
                    let results = self.learn(&answers);
                    self.keep();
                    self.report_some_shortages();
                    self.instruments.answer_installed(since.elapsed());
                    // The asker may have timed out: the rows are true all the same.
                    let _ = done.send(results);
                }
                Next::Question(question) => question(&mut self),
                Next::Nothing if sleep.is_zero() => {}
                Next::Nothing => self.tick(),
                Next::Stop => return,
            }
        }
    }

    /// Brings the journal up to date.
    pub(super) fn keep(&mut self) {
        let entries = self.engine.take_ledger();
        if entries.is_empty() {
            return;
        }
        let kept = match self.journal.append(&entries) {
            Ok(()) if self.journal.wants_snapshot() => self.journal.replace(&self.engine.snapshot()),
            other => other,
        };
        const SUBJECT: &str = "journal";
        match kept {
            Ok(()) => self.problems.clear(ProblemKind::State, SUBJECT),
            Err(error) => {
                let message = format!("the journal can't be written, a restart would forget names: {error}");
                self.problems.raise(ProblemKind::State, SUBJECT, message);
            }
        }
    }
}

impl Running {
    /// Grows with each change of rules or endpoints.
    pub(crate) fn changes(&self) -> Arc<AtomicU64> {
        Arc::clone(&self.changes)
    }

    /// How the gate is reached.
    pub(crate) fn door(&self) -> Door {
        self.door.clone()
    }

    /// Ends the thread after what waits.
    pub(crate) fn stop(self) {
        self.door.stop();
        if self.thread.join().is_err() {
            tracing::error!("the gate's thread panicked; the kernel keeps its rows");
        }
    }
}

/// An error with its causes in one line.
pub(crate) struct Chain<'a>(pub(crate) &'a dyn std::error::Error);

impl std::fmt::Display for Chain<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}", self.0)?;
        let mut cause = self.0.source();
        while let Some(error) = cause {
            write!(f, ": {error}")?;
            cause = error.source();
        }
        Ok(())
    }
}

/// Which programs a setting asks for.
pub(crate) fn directions(of: &[rule::Direction]) -> Directions {
    match of {
        [rule::Direction::Egress] => Directions::Egress,
        [rule::Direction::Ingress] => Directions::Ingress,
        _ => Directions::Both,
    }
}

/// Whether an error asks for root or another kernel, for the exit's last line.
pub(crate) fn load_error(error: LoadError) -> anyhow::Error {
    anyhow::Error::new(error).context("loading the eBPF programs")
}
