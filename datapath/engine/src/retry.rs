//! What happens after a write found no room or was refused: what is open is closed at once, the rest is tried again.

use foldhash::HashSet;

use crate::{Engine, GateError, Key, MapOp, MapWriter, Row, diff::diff, engine::Local, place::moves_peers};

/// The first pause before rows that found no room are tried again; it doubles.
const PAUSE_NS: u64 = 1_000_000_000;
/// The longest.
const PAUSE_MAX_NS: u64 = 30_000_000_000;
/// Answers to refused writes that are carried out one after the other.
const ROUNDS_MAX: usize = 4;

/// When rows that found no room are tried again.
#[derive(Debug, Default)]
pub(crate) struct Retry {
    at: Option<u64>,
    pause_ns: u64,
    last: u64,
    /// Rows were removed since the last attempt.
    freed: bool,
    /// The next attempt follows at once.
    is_soon: bool,
}

impl Retry {
    /// After something else has changed.
    pub(crate) fn begin_anew(&mut self) {
        self.pause_ns = 0;
        self.freed = false;
    }

    /// After a change without a time.
    pub(crate) fn come_at_once(&mut self) {
        self.at = Some(0);
    }

    /// Notes that there may be room.
    pub(crate) fn note(&mut self, ops: &[MapOp]) {
        self.freed |= ops.iter().any(|op| matches!(op, MapOp::Delete(_)));
        if let Some(at) = self.at.as_mut().filter(|_| self.freed) {
            *at = (*at).min(self.last.saturating_add(PAUSE_NS));
        }
    }
}

/// The kernel holds something else than it should.
#[derive(Debug, Default)]
pub(crate) struct Doubt {
    /// Rows that the kernel refused to write or to remove.
    pub(crate) failing: HashSet<Key>,
    /// What it holds could not be read.
    pub(crate) is_blind: bool,
}

/// Carries writes out. At the first that the maps refuse the engine is asked what to do instead; what was refused is tried
/// again by [`Engine::tick`]. Gives what was refused; nothing is lost where that is empty.
pub fn carry_out(engine: &mut Engine, maps: &mut impl MapWriter, ops: &[MapOp], now: u64) -> Vec<GateError> {
    let mut errors = Vec::new();
    let mut next: Option<Vec<MapOp>> = None;
    for round in 0..=ROUNDS_MAX {
        let list = next.as_deref().unwrap_or(ops);
        let Some((key, error)) = list.iter().find_map(|op| Some((key_of(op), maps.write(op).err()?))) else { break };
        errors.push(error);
        let rows = match maps.rows() {
            Ok(rows) => Some(rows),
            Err(error) => {
                errors.push(error);
                None
            }
        };
        if round == ROUNDS_MAX {
            engine.note_refusal(key, rows);
            engine.plan_retry(now);
            break;
        }
        next = Some(engine.refused_write(key, rows, now));
    }
    errors
}

/// What is due at a moment: see [`Engine::tick`]. Where the rows of the maps could not be read before, they are read first.
pub fn tick_out(engine: &mut Engine, maps: &mut impl MapWriter, now: u64) -> Vec<GateError> {
    if engine.doubt.as_ref().is_some_and(|doubt| doubt.is_blind) {
        match maps.rows() {
            Ok(rows) => engine.see(rows),
            Err(error) => {
                engine.plan_retry(now);
                return vec![error];
            }
        }
    }
    let ops = engine.tick(now);
    carry_out(engine, maps, &ops, now)
}

fn key_of(op: &MapOp) -> Key {
    match op {
        MapOp::Put(row) => row.key(),
        MapOp::Delete(key) => *key,
    }
}

impl Engine {
    /// After a write that the kernel refused, and after which nothing was written: what closes whatever is open because of
    /// it. `rows` is what the kernel holds, where that could be read.
    pub fn refused_write(&mut self, refused: Key, rows: Option<Vec<Row>>, now: u64) -> Vec<MapOp> {
        // The rest of a change is among what is missing then, and is made up for with it.
        self.finish(now, &mut Vec::new());
        self.note_refusal(refused, rows);
        let mut ops = Vec::new();
        if self.ready {
            let mut leaks = self.leaks();
            leaks.all |= self.doubt.as_ref().is_some_and(|doubt| doubt.is_blind);
            self.point_all(leaks, false, false, &mut ops);
        }
        self.plan_retry(now);
        ops
    }

    fn note_refusal(&mut self, refused: Key, rows: Option<Vec<Row>>) {
        let doubt = self.doubt.get_or_insert_default();
        doubt.failing.insert(refused);
        doubt.is_blind = rows.is_none();
        if let Some(rows) = rows {
            self.mirror.replace(rows);
        }
    }

    /// What the kernel holds, where that could not be read before.
    fn see(&mut self, rows: Vec<Row>) {
        self.mirror.replace(rows);
        if let Some(doubt) = &mut self.doubt {
            doubt.is_blind = false;
        }
    }

    /// Whether a row is missing, or might be.
    pub fn is_short(&self) -> bool {
        !self.unopened.is_empty() || self.is_short_of_more_than_names()
    }

    fn is_short_of_more_than_names(&self) -> bool {
        self.doubt.is_some()
            || !self.unplaced.is_empty()
            || !self.unprefixed.is_empty()
            || !self.uninstalled.is_empty()
            || !self.unresolved.is_empty()
            || self.local.values().any(Local::is_shut)
    }

    /// Sets the timer for what is missing.
    pub(crate) fn plan_retry(&mut self, now: u64) {
        if !self.is_short() {
            self.retry = Retry::default();
            return;
        }
        self.retry.pause_ns = (self.retry.pause_ns * 2).clamp(PAUSE_NS, PAUSE_MAX_NS);
        let pause_ns = if std::mem::take(&mut self.retry.is_soon) { 0 } else { self.retry.pause_ns };
        self.retry.at = Some(now.saturating_add(pause_ns));
        self.retry.last = now;
        self.retry.freed = false;
    }

    /// When [`Engine::retry`] has something to do.
    pub(crate) fn retry_due(&self) -> Option<u64> {
        self.retry.at.filter(|_| self.ready)
    }

    /// Tries again to write what is missing.
    pub(crate) fn try_again(&mut self, now: u64, ops: &mut Vec<MapOp>) {
        if self.retry_due().is_none_or(|at| at > now) || self.is_changing() {
            return;
        }
        self.mirror.is_retry = true;
        if self.doubt.is_some() {
            self.mend(ops);
        } else if self.is_short_of_more_than_names() {
            // It sets the timer itself.
            self.renew(now, ops);
            return;
        } else if !self.reopen(now, ops) {
            self.retry.is_soon = true;
        }
        self.mirror.is_retry = false;
        self.plan_retry(now);
    }

    /// Brings the kernel to what it should hold. What was refused before comes last: it must not stand before the rest.
    fn mend(&mut self, ops: &mut Vec<MapOp>) {
        let wanted = self.wanted();
        let Some(doubt) = &mut self.doubt else { return };
        let failing = std::mem::take(&mut doubt.failing);
        let writes = diff(self.mirror.rows(), &wanted);
        let is_pointed = |op: &MapOp| matches!(op, MapOp::Put(Row::Endpoint(..)));
        let suspicion = Suspicion::of(&failing);
        let (suspects, first): (Vec<MapOp>, Vec<MapOp>) =
            writes.into_iter().filter(|op| !is_pointed(op)).partition(|op| suspicion.falls_on(op));
        let (puts, deletes): (Vec<MapOp>, Vec<MapOp>) = first.into_iter().partition(|op| matches!(op, MapOp::Put(_)));
        let mut whole = self.write_all(&puts, ops);
        let mut leaks = self.leaks();
        let mut removals = Vec::new();
        self.write_all(&deletes, &mut removals);
        leaks.join(self.leaks());
        if suspects.is_empty() && whole {
            self.doubt = None;
        }
        let is_moved = moves_peers(&puts) || moves_peers(&removals);
        self.point_all(leaks, is_moved, false, ops);
        ops.extend(removals);
        whole &= self.write_all(&suspects, ops);
        if moves_peers(&suspects) {
            self.look_again(ops);
        }
        // Endpoints that are closed for these are opened with the next attempt, once these are there.
        self.retry.is_soon = self.doubt.is_some() && whole;
    }

    fn write_all(&mut self, writes: &[MapOp], ops: &mut Vec<MapOp>) -> bool {
        let mut whole = true;
        for op in writes {
            match op {
                MapOp::Put(row) => whole &= self.mirror.put(*row, ops),
                MapOp::Delete(key) => self.mirror.delete(*key, ops),
            }
        }
        whole
    }
}

/// Which writes might be refused too, or need one that might.
struct Suspicion<'f> {
    failing: &'f HashSet<Key>,
    identities: HashSet<u32>,
    has_peers: bool,
}

impl<'f> Suspicion<'f> {
    fn of(failing: &'f HashSet<Key>) -> Self {
        let identity = |key: &Key| match key {
            Key::Policy(_, key) => Some(key.identity),
            _ => None,
        };
        let identities = failing.iter().filter_map(identity).collect();
        let has_peers = failing.iter().any(|key| matches!(key, Key::Address(_) | Key::Cidr(..)));
        Self { failing, identities, has_peers }
    }

    fn falls_on(&self, op: &MapOp) -> bool {
        let is_named = |identity: u32| self.identities.contains(&identity);
        match op {
            _ if self.failing.contains(&key_of(op)) => true,
            MapOp::Put(Row::Address(_, value)) => value.steps.iter().any(|step| is_named(step.identity)),
            MapOp::Put(Row::Cidr(_, _, value)) => self.has_peers || is_named(value.identity),
            _ => false,
        }
    }
}
