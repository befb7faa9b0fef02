//! A table in memory with programs, which can be made to wait, to refuse and to be full; and reports that are kept.
#![allow(dead_code, reason = "each test file uses a part")]

use std::{
    collections::{BTreeMap, HashMap},
    net::IpAddr,
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
};

use namegate_abi::Settings as KernelSettings;
use namegate_config::{
    labels::Labels,
    policy::{Catalog, parse, translate},
    rule::Rule,
    settings::{self, Settings},
};
use namegate_enforcer::{Enforcer, FaultKind, Journal, Observer, Parts, ProgramError, Programs, Running};
use namegate_engine::{Answer, Change, EndpointId, GateError, Key, MapOp, MapWriter, Row, Topology, TopologyEndpoint};

pub(crate) const SECOND: u64 = 1_000_000_000;
pub(crate) const OWN: &str = "10.0.0.1";
pub(crate) const OTHER: &str = "10.0.0.2";
pub(crate) const INTERFACE: u32 = 10;

pub(crate) fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

/// What was done to the kernel, in order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Done {
    Wrote(MapOp),
    Attached(u32),
    Detached(u32),
}

/// Decides about a write before it is done.
type Judge = Box<dyn FnMut(&MapOp) -> Result<(), GateError> + Send>;

#[derive(Default)]
struct Inner {
    rows: HashMap<Key, Row>,
    attached: Vec<u32>,
    done: Vec<Done>,
    judge: Option<Judge>,
    /// Why an interface cannot carry programs.
    broken: BTreeMap<u32, ProgramError>,
    /// Writes and attachments wait until this is false.
    is_blocked: bool,
    /// One of them waits.
    is_waiting: bool,
}

/// The kernel; all clones are one.
#[derive(Clone, Default)]
pub(crate) struct Table(Arc<(Mutex<Inner>, Condvar)>);

impl Table {
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.0.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes the next write or attachment wait.
    pub(crate) fn block(&self) {
        self.lock().is_blocked = true;
    }

    /// Waits until the enforcer is in the middle of its work.
    pub(crate) fn wait_until_blocked(&self) {
        let (lock, changed) = &*self.0;
        drop(changed.wait_while(lock.lock().unwrap(), |inner| !inner.is_waiting).unwrap());
    }

    pub(crate) fn release(&self) {
        self.lock().is_blocked = false;
        self.0.1.notify_all();
    }

    /// Asks `judge` about each write from now on.
    pub(crate) fn judge(&self, judge: impl FnMut(&MapOp) -> Result<(), GateError> + Send + 'static) {
        self.lock().judge = Some(Box::new(judge));
    }

    pub(crate) fn obey(&self) {
        self.lock().judge = None;
    }

    pub(crate) fn break_interface(&self, interface: u32, error: Option<ProgramError>) {
        let mut inner = self.lock();
        match error {
            Some(error) => drop(inner.broken.insert(interface, error)),
            None => drop(inner.broken.remove(&interface)),
        }
    }

    pub(crate) fn take_done(&self) -> Vec<Done> {
        std::mem::take(&mut self.lock().done)
    }

    pub(crate) fn row(&self, key: &Key) -> Option<Row> {
        self.lock().rows.get(key).copied()
    }

    pub(crate) fn sorted(&self) -> Vec<Row> {
        let mut rows: Vec<Row> = self.lock().rows.values().copied().collect();
        rows.sort_unstable();
        rows
    }

    /// Whether the endpoint on an interface is denied everything.
    pub(crate) fn is_closed(&self, interface: u32) -> bool {
        match self.row(&Key::Endpoint(interface)) {
            Some(Row::Endpoint(_, value)) => value.policy == 0 && value.flags != 0,
            _ => true,
        }
    }

    fn turn(&self) -> MutexGuard<'_, Inner> {
        let mut inner = self.lock();
        while inner.is_blocked {
            inner.is_waiting = true;
            self.0.1.notify_all();
            inner = self.0.1.wait(inner).unwrap_or_else(PoisonError::into_inner);
        }
        inner.is_waiting = false;
        inner
    }
}

impl MapWriter for Table {
    fn write(&mut self, op: &MapOp) -> Result<(), GateError> {
        let judge = self.turn().judge.take();
        if let Some(mut judge) = judge {
            // Not under the lock: it may look at the table.
            let judged = judge(op);
            self.lock().judge.get_or_insert(judge);
            judged?;
        }
        let mut inner = self.lock();
        match op {
            MapOp::Put(row) => drop(inner.rows.insert(row.key(), *row)),
            MapOp::Delete(key) => drop(inner.rows.remove(key)),
        }
        inner.done.push(Done::Wrote(*op));
        Ok(())
    }

    fn rows(&self) -> Result<Vec<Row>, GateError> {
        Ok(self.sorted())
    }
}

impl Programs for Table {
    fn attached(&self) -> Result<Vec<u32>, ProgramError> {
        Ok(self.lock().attached.clone())
    }

    fn attach(&mut self, interface: u32) -> Result<(), ProgramError> {
        let mut inner = self.turn();
        if let Some(error) = inner.broken.get(&interface) {
            return Err(error.clone());
        }
        if !inner.attached.contains(&interface) {
            inner.attached.push(interface);
            inner.done.push(Done::Attached(interface));
        }
        Ok(())
    }

    fn detach(&mut self, interface: u32) -> Result<(), ProgramError> {
        let mut inner = self.turn();
        inner.attached.retain(|attached| *attached != interface);
        inner.done.push(Done::Detached(interface));
        Ok(())
    }

    fn attach_node(&mut self, _: bool) -> Result<(), ProgramError> {
        Ok(())
    }

    fn pin_maps_again(&mut self) -> Result<usize, ProgramError> {
        Ok(1)
    }

    fn configure(&mut self, _: &KernelSettings) -> Result<(), GateError> {
        Ok(())
    }
}

/// Reports by kind and subject.
#[derive(Default)]
pub(crate) struct Reports {
    faults: Mutex<BTreeMap<(FaultKind, String), String>>,
    pub(crate) refused: Mutex<Vec<(EndpointId, usize)>>,
}

impl Reports {
    pub(crate) fn faults(&self) -> Vec<(FaultKind, String)> {
        self.faults.lock().unwrap().keys().cloned().collect()
    }
}

impl Observer for Reports {
    fn raise(&self, kind: FaultKind, subject: &str, message: String) {
        self.faults.lock().unwrap().insert((kind, subject.to_owned()), message);
    }

    fn clear(&self, kind: FaultKind, subject: &str) {
        self.faults.lock().unwrap().remove(&(kind, subject.to_owned()));
    }

    fn replace(&self, kind: FaultKind, prefix: &str, now: BTreeMap<String, String>) {
        let mut faults = self.faults.lock().unwrap();
        faults.retain(|(of, subject), _| *of != kind || !subject.starts_with(prefix));
        faults.extend(now.into_iter().map(|(subject, message)| ((kind, subject), message)));
    }

    fn refused(&self, endpoint: EndpointId, count: usize) {
        self.refused.lock().unwrap().push((endpoint, count));
    }
}

pub(crate) fn settings() -> Settings {
    settings::parse("namegate.yaml", "policies: p\nendpoints: e.yaml\n").unwrap()
}

/// An enforcer on a table, with a journal in a folder.
pub(crate) struct Bench {
    pub(crate) table: Table,
    pub(crate) reports: Arc<Reports>,
    pub(crate) running: Running,
    pub(crate) folder: tempfile::TempDir,
}

impl Bench {
    pub(crate) fn new(clock: fn() -> u64) -> Self {
        Self::with(&settings(), Table::default(), tempfile::tempdir().unwrap(), clock)
    }

    pub(crate) fn with(settings: &Settings, table: Table, folder: tempfile::TempDir, clock: fn() -> u64) -> Self {
        let reports = Arc::<Reports>::default();
        let enforcer = Enforcer::new(Parts {
            settings,
            kernel: table.clone(),
            journal: Journal::open(folder.path()),
            observer: Arc::clone(&reports) as Arc<dyn Observer>,
            clock,
        });
        let running = enforcer.unwrap().start().unwrap();
        Self { table, reports, running, folder }
    }
}

/// A pod of this node.
pub(crate) fn pod(name: &str, address: &str, interface: u32) -> Arc<TopologyEndpoint> {
    Arc::new(TopologyEndpoint {
        key: format!("shop/{name}").into(),
        labels: Arc::new(Labels::pod("shop", [("app", name)], [], None)),
        addresses: vec![ip(address)],
        named_ports: vec![],
        interface: Some(interface),
    })
}

/// Two pods, `web` and `db`.
pub(crate) fn topology() -> Topology {
    Topology { endpoints: vec![pod("web", OWN, INTERFACE), pod("db", OTHER, 11)], ..Topology::default() }
}

/// Rules that let every pod of `shop` reach these names on this port, and nothing else.
pub(crate) fn rules(names: &[&str], port: u16) -> Vec<Arc<Rule>> {
    let names: Vec<String> = names.iter().map(|name| format!("{{matchPattern: '{name}'}}")).collect();
    let text = format!(
        "apiVersion: cilium.io/v2\nkind: CiliumNetworkPolicy\nmetadata: {{name: p, namespace: shop}}\nspec: \
         {{endpointSelector: {{}}, egress: [{{toFQDNs: [{}], toPorts: [{{ports: [{{port: '{port}', protocol: TCP}}]}}]}}]}}\n",
        names.join(", ")
    );
    let parsed = parse("p.yaml", &text);
    assert!(parsed.diagnostics.is_empty(), "{:?}", parsed.diagnostics);
    translate(&parsed.documents, &Catalog::default()).rules.into_iter().map(Arc::new).collect()
}

pub(crate) fn change(names: &[&str], port: u16) -> Change {
    Change { rules: Some(rules(names, port)), topology: Some(topology()) }
}

/// An answer for one name and address.
pub(crate) fn answer(endpoint: EndpointId, name: &str, address: &str) -> Answer {
    Answer { endpoint, names: vec![name.parse().unwrap()], addresses: vec![(ip(address), 60)] }
}
