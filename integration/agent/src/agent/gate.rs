//! The one thread that owns the engine and the kernel's maps: requests come in, writes go out, in order, without a lock.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    thread::JoinHandle,
    time::Duration,
};

use arc_swap::ArcSwap;
use namegate_api::Instruments;
use namegate_config::rule;
use namegate_engine::{Change, Engine, Forgotten, Gate as _, GateError, Lookup, Proxies};
use namegate_loader::{Datapath, Directions, LoadError};

use super::{
    clock::boot_ns,
    desk::Clients,
    door::{Learn, Served},
    inbox::Next,
    journal::{Journal, Opened},
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
    pub(super) directions: Directions,
    clients: Arc<ArcSwap<Clients>>,
    instruments: Instruments,
    pub(super) problems: Arc<Problems>,
    /// Denials are recorded only.
    audit: bool,
    /// Changes of rules or endpoints so far.
    changes: Arc<AtomicU64>,
    /// Interfaces whose programs could not be attached, and why.
    pub(super) failed: BTreeMap<u32, String>,
    /// Interfaces that should carry programs.
    pub(super) wanted: BTreeSet<u32>,
    /// Programs and pins that were put back after another tool took them away.
    pub(super) healed: u64,
    pub(super) room: Room,
    refusals: Arc<Refusals>,
}

/// What the thread shares with the rest of the agent.
#[derive(Clone, Default)]
pub(crate) struct Published {
    /// What the DNS proxy asks of endpoints and resolvers; replaced by each change.
    pub(crate) clients: Arc<ArcSwap<Clients>>,
    pub(crate) instruments: Instruments,
    pub(crate) problems: Arc<Problems>,
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
        journal: (Journal, Opened),
        directions: Directions,
        published: Published,
        audit: bool,
    ) -> Result<Self, GateError> {
        let Published { clients, instruments, problems } = published;
        let (journal, opened) = journal;
        engine.restore(opened.entries);
        if let Some(error) = opened.refused {
            problems.raise(ProblemKind::State, JOURNAL, unkept(&error));
        }
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
            failed: BTreeMap::new(),
            wanted: BTreeSet::new(),
            healed: 0,
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

    /// What was refused to single endpoints.
    pub(crate) fn refusals(&self) -> &Refusals {
        &self.refusals
    }

    /// Makes the kernel agree with new rules or endpoints: programs go from interfaces that are not enforced any more, then
    /// rows are written, then programs come to new interfaces. So no packet of a new one passes between, and none of one
    /// that leaves is dropped: an interface with programs and without a row is closed.
    pub(crate) fn change(&mut self, change: Change) -> Vec<String> {
        let has_moved = change.topology.is_some();
        if let Some(topology) = &change.topology {
            let first = topology.endpoints.iter().filter_map(|endpoint| endpoint.interface);
            self.wanted = first.chain(topology.more_interfaces.values().flatten().copied()).collect();
            self.leave();
        }
        let ops = self.engine.update(change, boot_ns());
        self.write(&ops);
        for interface in self.wanted.clone().into_iter().filter(|_| has_moved) {
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
            let sleep = self.journal.retries_in().map_or(sleep, |retry| retry.min(sleep));
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
        let kept = if !self.journal.is_whole() {
            if !self.journal.may_retry() {
                return;
            }
            self.journal.replace(&self.engine.snapshot())
        } else if entries.is_empty() {
            return;
        } else {
            match self.journal.append(&entries) {
                Ok(()) if self.journal.wants_snapshot() => self.journal.replace(&self.engine.snapshot()),
                other => other,
            }
        };
        match kept {
            Ok(()) => self.problems.clear(ProblemKind::State, JOURNAL),
            Err(error) => self.problems.raise(ProblemKind::State, JOURNAL, unkept(&error)),
        }
    }
}

/// The journal among problems.
const JOURNAL: &str = "journal";

fn unkept(error: &std::io::Error) -> String {
    format!(
        "it can't be written, a restart would forget names: {error}. Make room in the folder `state`, or set another"
    )
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
