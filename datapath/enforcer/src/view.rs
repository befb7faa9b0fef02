//! What the enforcer publishes: immutable pictures, each replaced as a whole, and the learned names.

use std::{
    collections::{BTreeMap, BTreeSet, HashSet},
    net::IpAddr,
    ops::Deref,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use arc_swap::{ArcSwap, Guard};
use namegate_config::{
    name::Fqdn,
    settings::{Scope, Settings},
};
use namegate_engine::{DividedPort, EndpointId, KnownName, LearnedNames, PolicyView, Requests, RowCount};
use tokio::sync::watch;

use crate::names::Names;

/// How far the kernel is with what it should enforce.
#[derive(Clone, Debug, Default)]
pub struct Enforcement {
    /// What keeps rules from being enforced now.
    pub unenforced: Vec<String>,
    /// Endpoints that are closed, by `namespace/name`, and why.
    pub closed: BTreeMap<String, String>,
    /// Interfaces that should carry programs.
    pub wanted: BTreeSet<u32>,
    /// Those of them that carry programs since an earlier run, and that no endpoint has: they are closed.
    pub unowned: BTreeSet<u32>,
    /// Interfaces whose programs could not be attached, and why.
    pub failed: BTreeMap<u32, String>,
    /// Interfaces whose packets are judged: they carry programs and have the row of an endpoint.
    pub judged: HashSet<u32>,
    /// Interfaces that should carry programs and have no row: they are closed.
    pub rowless: BTreeSet<u32>,
    /// A rule selects the node itself.
    pub selects_node: bool,
    /// Programs and pins that were put back after another tool took them away.
    pub healed: u64,
    /// Ports of services of which some targets may be reached, and others not.
    pub divided: Vec<DividedPort>,
}

impl Enforcement {
    /// Whether each interface that should carry programs does, as far as it has a row.
    pub fn is_attached(&self) -> bool {
        let is_done = |interface: &u32| self.judged.contains(interface) || self.rowless.contains(interface);
        self.failed.is_empty() && self.wanted.iter().all(is_done)
    }
}

/// How full everything is, and what was refused.
#[derive(Clone, Debug, Default)]
pub struct Figures {
    /// Rows of the maps.
    pub rows: Vec<RowCount>,
    /// What was refused at bounds and by settings: what, and how often.
    pub refused: Vec<(&'static str, u64)>,
    /// The same at the shares of single endpoints, by `namespace/name`, and of namespaces.
    pub refused_of_shares: Vec<(Arc<str>, &'static str, u64)>,
    /// Writes that the kernel refused, ever.
    pub writes_refused: u64,
}

/// Where the writer puts what it publishes.
#[derive(Debug)]
pub(crate) struct Published {
    pub(crate) policy: ArcSwap<PolicyView>,
    pub(crate) names: Names,
    pub(crate) enforcement: ArcSwap<Enforcement>,
    pub(crate) figures: ArcSwap<Figures>,
    changes: AtomicU64,
    /// When the piece of work began that the writer is at; 0 while it waits.
    busy_since: AtomicU64,
    /// Whether the writer's thread has ended.
    has_stopped: watch::Sender<bool>,
}

/// How long one piece of work may take before it is a problem.
const BUSY_MAX: Duration = Duration::from_secs(2);

/// Why nothing is installed and nothing carried out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Stall {
    /// The enforcer's thread has ended.
    #[error("the enforcer has stopped: the kernel keeps its rows, and nothing changes any more; the log says why")]
    Stopped,
    /// The enforcer's thread is at the same piece of work for so long.
    #[error("the enforcer is at the same piece of work for {} s: answers and changes wait", .0.as_secs())]
    Busy(Duration),
}

impl Published {
    pub(crate) fn new(settings: &Settings) -> Self {
        Self {
            policy: ArcSwap::default(),
            names: Names::new(settings.dns.scope == Scope::Node),
            enforcement: ArcSwap::default(),
            figures: ArcSwap::default(),
            changes: AtomicU64::new(0),
            busy_since: AtomicU64::new(0),
            has_stopped: watch::Sender::new(false),
        }
    }

    /// The writer begins a piece of work, or waits where `at` is 0.
    pub(crate) fn work(&self, at: u64) {
        self.busy_since.store(at, Ordering::Relaxed);
    }

    pub(crate) fn stop(&self) {
        self.has_stopped.send_replace(true);
    }

    /// Publishes a picture of rules and endpoints. A reader that sees the count that follows sees this picture, or a
    /// later one.
    pub(crate) fn publish(&self, policy: PolicyView) {
        self.policy.store(Arc::new(policy));
        self.changes.fetch_add(1, Ordering::Release);
    }
}

/// Gives what the enforcer publishes, without waiting for it. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Reader(pub(crate) Arc<Published>);

impl Reader {
    /// Rules, endpoints and names as they are now. A reader that answers one question loads this once.
    pub fn view(&self) -> View<'_> {
        View { policy: self.0.policy.load(), names: &self.0.names }
    }

    /// The learned names alone.
    pub fn names(&self) -> &Names {
        &self.0.names
    }

    /// How far the kernel is.
    pub fn enforcement(&self) -> Arc<Enforcement> {
        self.0.enforcement.load_full()
    }

    /// How full everything is.
    pub fn figures(&self) -> Arc<Figures> {
        self.0.figures.load_full()
    }

    /// Grows with each picture of rules and endpoints, after it is published. An answer that was given at a count that
    /// still holds is not out of date.
    pub fn changes(&self) -> u64 {
        self.0.changes.load(Ordering::Acquire)
    }

    /// Waits for the end of the enforcer's thread.
    pub async fn stopped(&self) {
        // The sender is as old as this reader: it is there.
        let _ = self.0.has_stopped.subscribe().wait_for(|has_stopped| *has_stopped).await;
    }

    /// Whether the enforcer does its work at `now`.
    pub fn stall(&self, now: u64) -> Option<Stall> {
        if *self.0.has_stopped.borrow() {
            return Some(Stall::Stopped);
        }
        let since = match self.0.busy_since.load(Ordering::Relaxed) {
            0 => return None,
            since => Duration::from_nanos(now.saturating_sub(since)),
        };
        (since > BUSY_MAX).then_some(Stall::Busy(since))
    }
}

/// Rules and endpoints of one moment, beside the names that are learned. Drop it before something is awaited.
pub struct View<'a> {
    policy: Guard<Arc<PolicyView>>,
    names: &'a Names,
}

impl Deref for View<'_> {
    type Target = PolicyView;

    fn deref(&self) -> &PolicyView {
        &self.policy
    }
}

impl View<'_> {
    /// The limits on requests inside flows.
    pub fn limits(&self) -> Requests<'_> {
        self.policy.requests(self.names)
    }

    /// Names under which the endpoint learned the address, for people: no more than so many, those that live first.
    pub fn some_names_of(&self, endpoint: EndpointId, address: IpAddr, now: u64, max: usize) -> Vec<Fqdn> {
        self.names.some_names_of(endpoint, address, now, max)
    }

    /// Names under which the endpoint learned the address; ended ones too, for an hour.
    pub fn names_of(&self, endpoint: EndpointId, address: IpAddr, now: u64) -> Vec<KnownName> {
        self.names.names_of(endpoint, address, now)
    }
}
