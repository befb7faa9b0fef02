//! The one thread that owns the engine and the kernel's maps: requests come in, writes go out, in order, without a lock.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
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
    /// Interfaces whose programs could not be attached, and why.
    failed: BTreeMap<u32, String>,
    /// Interfaces that should carry programs.
    wanted: BTreeSet<u32>,
    /// Programs and pins that were put back after another tool took them away.
    healed: u64,
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

    /// Interfaces whose programs could not be attached, and why.
    pub(crate) fn failed(&self) -> &BTreeMap<u32, String> {
        &self.failed
    }

    /// Interfaces whose packets are judged: programs are attached, and the row of an endpoint is there. An error is that
    /// this cannot be said for now.
    pub(crate) fn guarded(&self) -> Result<HashSet<u32>, LoadError> {
        let is_whole = |interface: &u32| !self.failed.contains_key(interface) && self.engine.has_interface(*interface);
        Ok(self.datapath.attached()?.into_iter().filter(is_whole).collect())
    }

    /// Which interfaces the kernel's rows give to which endpoint, by `namespace/name`.
    pub(crate) fn known_interfaces(&self) -> HashMap<String, Vec<u32>> {
        let mut known: HashMap<String, Vec<u32>> = HashMap::new();
        for (interface, key) in self.engine.interfaces() {
            if interface != NODE_INTERFACE
                && let Some(key) = key
            {
                known.entry(key.to_string()).or_default().push(interface);
            }
        }
        known
    }

    /// Programs and pins that were put back after another tool took them away.
    pub(crate) fn healed(&self) -> u64 {
        self.healed
    }

    /// Interfaces and the directions in which they should be judged.
    pub(crate) fn attachments(&self) -> (BTreeSet<u32>, Directions) {
        (self.wanted.clone(), self.directions)
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

    /// Takes programs off interfaces that are not wanted any more.
    fn leave(&mut self) {
        const SUBJECT: &str = "links";
        // An interface may go while programs are attached to it: then nobody misses them.
        let wanted = &self.wanted;
        self.failed.retain(|interface, _| *interface == NODE_INTERFACE || wanted.contains(interface));
        let attached = match self.datapath.attached() {
            Ok(attached) => attached,
            Err(error) => {
                // Who leaves is let go with the next change: until then it stays enforced.
                return self.problems.raise(ProblemKind::Lookup, SUBJECT, Chain(&error).to_string());
            }
        };
        self.problems.clear(ProblemKind::Lookup, SUBJECT);
        for interface in attached.into_iter().filter(|interface| !self.wanted.contains(interface)) {
            if let Err(error) = self.datapath.detach(interface) {
                let message = format!("interface {interface} is enforced though no endpoint has it: {}", Chain(&error));
                self.problems.raise(ProblemKind::Lookup, SUBJECT, message);
            }
        }
    }

    /// Puts programs back where another tool took them away, and says what is attached then.
    pub(crate) fn heal(&mut self, interfaces: &[u32], node: bool, maps: bool) {
        for interface in interfaces.iter().copied() {
            if !self.wanted.contains(&interface) {
                continue;
            }
            self.attach(interface);
            self.healed += u64::from(!self.failed.contains_key(&interface));
        }
        if node {
            self.guard_node();
            self.healed += u64::from(!self.failed.contains_key(&NODE_INTERFACE));
        }
        if maps {
            match self.datapath.pin_maps_again() {
                Ok(pinned) => self.healed += pinned.len() as u64,
                Err(error) => tracing::error!(error = %Chain(&error), "maps are not pinned"),
            }
        }
    }

    /// Tries once more what could not be attached.
    pub(crate) fn attach_again(&mut self) {
        for interface in self.failed.keys().copied().collect::<Vec<u32>>() {
            if interface == NODE_INTERFACE {
                self.guard_node();
            } else {
                self.attach(interface);
            }
        }
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

    fn attach(&mut self, interface: u32) {
        if self.audit && !self.engine.has_interface(interface) {
            // Without its row the programs would close what is only to be recorded.
            self.failed.insert(interface, "its row found no room, and an audit closes nothing".to_owned());
            return;
        }
        match self.datapath.attach(interface, self.directions) {
            Ok(()) => drop(self.failed.remove(&interface)),
            Err(error) => {
                let former = self.failed.insert(interface, Chain(&error).to_string());
                // The endpoint ends: what says so is on its way.
                if error.is_gone() {
                    tracing::debug!(interface, "gone before programs were attached");
                } else if former.is_none() {
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
                if self.failed.insert(NODE_INTERFACE, Chain(&error).to_string()).is_none() {
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
