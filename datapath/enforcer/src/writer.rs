//! The thread that owns the engine and the kernel's maps. Requests come in, writes go out, in one order.

use std::{
    collections::HashMap,
    sync::Arc,
    thread::JoinHandle,
    time::{Duration, Instant},
};

use namegate_abi::NODE_INTERFACE;
use namegate_config::settings::Settings;
use namegate_engine::{
    Answer, Change, Engine, Forgotten, GateError, Lookup, MapOp, MapWriter, NotOpen, Proxies, Snapshot, carry_out,
    tick_out,
};

use crate::{
    Enforcement, EnforcerHandle, FaultKind, Journal, NotInstalled, Observer, Opened, Programs,
    attachments::Attachments,
    handle::{Learn, Request, Served},
    inbox::{ANSWERS_IN_A_ROW_MAX, Next, Turn},
    shortages::Shortages,
    view::Published,
};

/// The longest sleep.
const IDLE: Duration = Duration::from_mins(1);
/// How often figures are published while answers do not end.
const FIGURES_PACE: Duration = Duration::from_millis(100);
/// How long the answers of one endpoint may take in one turn; an answer is never divided.
const TURN: Duration = Duration::from_millis(1);
/// Rows that a piece of a change looks at or writes: about a millisecond's work.
const STEP_UNITS: usize = 256;
/// Names and addresses of a piece of a snapshot: less than a millisecond's work.
const SNAPSHOT_UNITS: usize = 1_024;
/// The journal among faults.
const JOURNAL: &str = "journal";

/// What an enforcer is made of.
pub struct Parts<'s, K> {
    /// The agent's settings.
    pub settings: &'s Settings,
    /// Maps and programs.
    pub kernel: K,
    /// The journal, with what it held.
    pub journal: (Journal, Opened),
    /// Takes reports.
    pub observer: Arc<dyn Observer>,
    /// Nanoseconds of `CLOCK_BOOTTIME`.
    pub clock: fn() -> u64,
}

/// Engine, maps and journal. Nobody else writes to any of them.
pub struct Enforcer<K> {
    pub(crate) engine: Engine,
    pub(crate) kernel: K,
    pub(crate) attachments: Attachments,
    pub(crate) shortages: Shortages,
    pub(crate) observer: Arc<dyn Observer>,
    /// Denials are recorded only.
    pub(crate) is_audit: bool,
    journal: Journal,
    /// The snapshot that the journal is made anew from.
    snapshot: Option<Snapshot>,
    pub(crate) published: Arc<Published>,
    pub(crate) clock: fn() -> u64,
    /// When figures were published; `None` where they are not out of date.
    pub(crate) figures_due: Option<Instant>,
}

/// The running thread.
#[derive(Debug)]
pub struct Running {
    handle: EnforcerHandle,
    thread: JoinHandle<()>,
}

impl<K: MapWriter + Programs + Send + 'static> Enforcer<K> {
    /// Starts the thread.
    pub fn start(self) -> std::io::Result<Running> {
        let handle = EnforcerHandle::new(Arc::clone(&self.published), Arc::clone(&self.observer));
        let served = handle.served();
        let thread = std::thread::Builder::new().name("enforcer".to_owned()).spawn(move || self.serve(&served))?;
        Ok(Running { handle, thread })
    }
}

impl<K: MapWriter + Programs> Enforcer<K> {
    /// Puts the parts together. The rows in the kernel are adopted, and what the journal held is restored.
    pub fn new(parts: Parts<'_, K>) -> Result<Self, GateError> {
        let Parts { settings, kernel, journal: (journal, opened), observer, clock } = parts;
        let mut engine = Engine::new(settings);
        engine.follow_names();
        engine.restore(opened.entries);
        if let Some(error) = opened.refused {
            observer.raise(FaultKind::State, JOURNAL, unkept(&error));
        }
        engine.adopt(kernel.rows()?);
        let mut enforcer = Self {
            engine,
            kernel,
            attachments: Attachments::default(),
            shortages: Shortages::default(),
            observer,
            is_audit: settings.audit,
            journal,
            snapshot: None,
            published: Arc::new(Published::new(settings)),
            clock,
            figures_due: Some(Instant::now()),
        };
        enforcer.attachments.known = Some(enforcer.known_interfaces().into_values().flatten().collect());
        enforcer.publish_names();
        enforcer.publish_figures();
        Ok(enforcer)
    }

    /// Which interfaces the kernel's rows give to which endpoint, by `namespace/name`.
    pub fn known_interfaces(&self) -> HashMap<String, Vec<u32>> {
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

    fn serve(mut self, served: &Served) {
        loop {
            let next = self.next(served);
            self.published.work((self.clock)());
            match next {
                Next::Answers(turn) => self.install(turn, served),
                Next::Request(request) => self.carry_out_request(request, served),
                Next::Nothing => self.tick(),
                Next::Stop => return,
            }
            self.renew_journal();
        }
    }

    /// Waits for the next thing to do. What is due is done, however much waits.
    fn next(&mut self, served: &Served) -> Next<Learn, Request> {
        let mut sleep = self.until_tick();
        if sleep.is_zero() {
            self.tick();
            sleep = self.until_tick();
        }
        if self.figures_due.is_some_and(|last| last.elapsed() >= FIGURES_PACE) {
            self.publish_figures();
        }
        loop {
            match served.next(Duration::ZERO) {
                Next::Nothing if self.snapshot.is_some() => self.renew_journal(),
                Next::Nothing => break,
                waiting => return waiting,
            }
        }
        if self.figures_due.is_some() {
            self.publish_figures();
        }
        self.published.work(0);
        let retry = self.journal.retries_in().unwrap_or(IDLE);
        let report = self.shortages.unreported_for().unwrap_or(IDLE);
        served.next(sleep.min(retry).min(report))
    }

    fn until_tick(&self) -> Duration {
        self.engine.next_tick().map_or(IDLE, |at| Duration::from_nanos(at.saturating_sub((self.clock)())))
    }

    fn carry_out_request(&mut self, request: Request, served: &Served) {
        // The caller may not wait for an outcome any more: the enforcer carries the request out all the same.
        match request {
            Request::Apply(change, done) => {
                let enforcement = self.apply(change, served);
                let _ = done.send(Ok(enforcement));
            }
            Request::Forget(wanted, done) => {
                let _ = done.send(Ok(self.forget(&*wanted)));
            }
            Request::SetProxies(proxies, done) => {
                self.set_proxies(proxies);
                let _ = done.send(Ok(()));
            }
            Request::Configure(settings, done) => {
                let _ = done.send(Ok(self.kernel.configure(&settings)));
            }
            Request::AttachAgain(done) => {
                self.attach_again(served);
                self.list_attached();
                self.publish_enforcement();
                let _ = done.send(Ok(()));
            }
            Request::Repair(repair, done) => {
                self.repair(&repair, served);
                self.list_attached();
                self.publish_enforcement();
                let _ = done.send(Ok(()));
            }
        }
        self.figures_due.get_or_insert_with(Instant::now);
    }

    /// Makes the kernel agree with new rules or endpoints: programs go from interfaces that are not enforced any more, then
    /// rows are written, then programs come to new interfaces. So no packet of a new one passes between, and none of one
    /// that leaves is dropped: an interface with programs and without a row is closed.
    fn apply(&mut self, change: Change, served: &Served) -> Arc<Enforcement> {
        let has_moved = change.topology.is_some();
        if let Some(topology) = &change.topology {
            self.attachments.want(topology);
            self.leave(served);
        }
        self.engine.begin(change);
        while self.step() {
            self.install_some(served);
        }
        self.publish_policy();
        self.keep();
        if has_moved {
            self.attach_all(served);
        }
        self.attach_node();
        if has_moved || self.attachments.attached.is_empty() {
            self.list_attached();
        }
        self.report_shortages();
        self.publish_enforcement()
    }

    /// Carries out a piece of the change under way; false after the last one. Answers may be installed between two.
    fn step(&mut self) -> bool {
        self.published.work((self.clock)());
        let step = self.engine.step(STEP_UNITS, (self.clock)());
        self.write(&step.ops);
        self.publish_names();
        !step.is_done
    }

    fn set_proxies(&mut self, proxies: Proxies) {
        let ops = self.engine.set_proxies(proxies);
        self.write(&ops);
        self.publish_policy();
    }

    fn forget(&mut self, wanted: &dyn Fn(&Lookup<'_>) -> bool) -> Forgotten {
        let (gone, ops) = self.engine.forget(wanted, (self.clock)());
        if !self.write(&ops).is_empty() {
            self.publish_policy();
        }
        self.publish_names();
        self.keep();
        self.report_shortages();
        gone
    }

    /// Does what is due, and tries again what found no room.
    fn tick(&mut self) {
        let was_short = self.engine.is_short();
        let errors = tick_out(&mut self.engine, &mut self.kernel, (self.clock)());
        self.shortages.note(&errors);
        self.publish_names();
        if was_short || self.engine.is_short() {
            // Endpoints may have been closed or opened.
            self.publish_policy();
        }
        self.keep();
        self.report_shortages();
        self.figures_due.get_or_insert_with(Instant::now);
    }

    /// Installs answers that wait, and no more than so many: a part of a request may follow.
    pub(crate) fn install_some(&mut self, served: &Served) {
        for _ in 0..ANSWERS_IN_A_ROW_MAX {
            let Some(turn) = served.next_answers() else { return };
            self.install(turn, served);
        }
    }

    /// Installs answers of one endpoint for one turn. Those that it was not enough for wait for the next one, and so do the
    /// results of the others: the asker gets all at once.
    fn install(&mut self, turn: Turn<Learn>, served: &Served) {
        let Turn { endpoint, answers: mut learn } = turn;
        let began = Instant::now();
        // One moment for the whole turn, which is short: a TTL ends by no more than that too early.
        let now = (self.clock)();
        self.published.work(now);
        while let Some(answer) = learn.answers.get(learn.results.len()) {
            learn.results.push(self.learn(answer, now));
            if began.elapsed() >= TURN {
                break;
            }
        }
        self.publish_names();
        self.keep();
        self.report_some_shortages();
        self.figures_due.get_or_insert_with(Instant::now);
        if learn.results.len() < learn.answers.len() {
            served.end_turn(endpoint, began.elapsed(), Some(learn));
            return;
        }
        self.observer.installed(learn.since.elapsed());
        // The asker may have timed out: the rows are true all the same.
        let _ = learn.done.send(learn.results);
        served.end_turn(endpoint, began.elapsed(), None);
    }

    fn learn(&mut self, answer: &Answer, now: u64) -> Result<(), NotInstalled> {
        let mut ops = Vec::new();
        let learned = self.engine.learn(answer, now, &mut ops);
        let errors = self.write_at(&ops, now);
        if learned == Err(NotOpen::NoRoom) {
            self.shortages.refused = Some(Instant::now());
        }
        if !errors.is_empty() {
            // Endpoints may have been closed for it.
            self.publish_policy();
        }
        match errors.first() {
            Some(GateError::Full { .. }) => Err(NotInstalled::Full),
            Some(GateError::Access { .. }) => Err(NotInstalled::Write),
            None => learned.map_err(NotInstalled::from),
        }
    }

    /// Carries writes out; what is open because one is refused is closed.
    fn write(&mut self, ops: &[MapOp]) -> Vec<GateError> {
        self.write_at(ops, (self.clock)())
    }

    fn write_at(&mut self, ops: &[MapOp], now: u64) -> Vec<GateError> {
        let errors = carry_out(&mut self.engine, &mut self.kernel, ops, now);
        self.shortages.note(&errors);
        errors
    }

    /// Brings the journal up to date.
    fn keep(&mut self) {
        let entries = self.engine.take_ledger();
        if !entries.is_empty() {
            let kept = self.journal.append(&entries);
            self.report_journal(kept);
        }
        if self.journal.wants_snapshot() {
            let begun = self.journal.begin();
            self.snapshot = begun.is_ok().then(|| self.engine.begin_snapshot());
            self.report_journal(begun);
        }
    }

    /// Writes a piece of a journal that is made anew. Answers may be installed between two.
    fn renew_journal(&mut self) {
        let Some(snapshot) = &mut self.snapshot else { return };
        let entries = self.engine.snapshot_piece(snapshot, SNAPSHOT_UNITS);
        let is_last = entries.is_empty();
        let written = if is_last { self.journal.finish() } else { self.journal.add(&entries) };
        if is_last || written.is_err() {
            self.snapshot = None;
        }
        self.report_journal(written);
    }

    fn report_journal(&self, kept: std::io::Result<()>) {
        match kept {
            Ok(()) if self.journal.is_well() => self.observer.clear(FaultKind::State, JOURNAL),
            Ok(()) => {}
            Err(error) => self.observer.raise(FaultKind::State, JOURNAL, unkept(&error)),
        }
    }
}

impl Running {
    /// How the enforcer is reached.
    pub fn handle(&self) -> EnforcerHandle {
        self.handle.clone()
    }

    /// Ends the thread after what waits.
    pub fn stop(self) {
        self.handle.stop();
        if self.thread.join().is_err() {
            tracing::error!("the enforcer's thread panicked; the kernel keeps its rows");
        }
    }
}

fn unkept(error: &std::io::Error) -> String {
    format!(
        "it can't be written, a restart would forget names: {error}. Make room in the folder `state`, or set another"
    )
}
