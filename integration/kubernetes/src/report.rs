//! The task that writes into the objects what became of them: conditions, this node's entry, and events.
//!
//! Only what differs is written, and an object at most once in a while; the server's own answer is the next state to
//! compare with.

use std::{
    collections::{BTreeSet, HashMap, HashSet},
    sync::Arc,
    time::Duration,
};

use k8s_openapi::{api::events::v1::Event, apimachinery::pkg::apis::meta::v1::Time, jiff::Timestamp};
use kube::{
    Api, Client,
    api::{DynamicObject, Patch, PatchParams, PostParams},
};
use serde_json::{Value, json};
use tokio::{sync::watch, time::Instant};

use crate::{
    backoff::part,
    event::{About, event},
    follow::failure,
    object::Object,
    row::{Kind, kept_of},
    status::{self, Own},
};

/// Owner of the fields that are written.
const MANAGER: &str = "namegate";
/// An object is written at most once in this time.
const PACE: Duration = Duration::from_secs(1);
/// Changes are gathered for this time, and up to as much again by chance: another node may write first.
const GATHER: Duration = Duration::from_millis(100);
/// How long conditions are left to the node whose turn it is, and up to as much again by chance. Its agent may be away.
const TURN: Duration = Duration::from_secs(5);
/// How long after a refusal of the server.
const REFUSED_PAUSE: Duration = Duration::from_secs(30);
/// How long a kind is taken to drop the entries of nodes.
const DROPS_ENTRIES: Duration = Duration::from_mins(10);
/// Events that are remembered as told; all are forgotten beyond.
const TOLD_MAX: usize = 4_096;

/// What this node made of one policy object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Report {
    /// Its origin, as in the snapshot.
    pub origin: Arc<str>,
    /// Its uid and generation, as in the snapshot.
    pub version: (String, i64),
    /// Mistakes; with one the object is refused.
    pub mistakes: Vec<String>,
    /// What its writer may not have meant.
    pub warnings: Vec<String>,
    /// Whether the kernel holds it.
    pub enforced: bool,
}

/// What is so of objects that are right, and worth a word once: their version, and the words.
pub type Notes = HashMap<Arc<str>, ((String, i64), Vec<String>)>;

/// The objects and the nodes as the server has them.
#[derive(Clone, Debug, Default)]
pub(crate) struct Observed {
    pub(crate) nodes: BTreeSet<String>,
    pub(crate) objects: HashMap<Arc<str>, Object>,
}

/// The task.
pub(crate) struct Reporter {
    client: Client,
    node: String,
    reports: watch::Receiver<Arc<Vec<Report>>>,
    notes: watch::Receiver<Arc<Notes>>,
    observed: watch::Receiver<Arc<Observed>>,
    /// When an object may be written again.
    next: HashMap<Arc<str>, Instant>,
    /// Until when conditions of an object are left to another node.
    waiting: HashMap<Arc<str>, Instant>,
    /// Statuses as the server answered, newer than what the watch has brought.
    answered: HashMap<Arc<str>, (Arc<Value>, Arc<Value>)>,
    /// Kinds whose definition drops the entries of nodes.
    dropping: HashMap<Kind, Instant>,
    told: HashSet<u64>,
}

impl Reporter {
    pub(crate) fn new(
        client: Client,
        node: String,
        (reports, notes): (watch::Receiver<Arc<Vec<Report>>>, watch::Receiver<Arc<Notes>>),
        observed: watch::Receiver<Arc<Observed>>,
    ) -> Self {
        let (next, waiting, answered, dropping, told) = Default::default();
        Self { client, node, reports, notes, observed, next, waiting, answered, dropping, told }
    }

    /// Works until there is nothing to follow any more.
    pub(crate) async fn run(mut self) {
        let mut wake: Option<Instant> = None;
        loop {
            let timer = async {
                match wake {
                    Some(at) => tokio::time::sleep_until(at).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                changed = self.reports.changed() => if changed.is_err() { return },
                changed = self.notes.changed() => if changed.is_err() { return },
                changed = self.observed.changed() => if changed.is_err() { return },
                () = timer => {}
            }
            tokio::time::sleep(GATHER + part(GATHER)).await;
            wake = self.round().await;
        }
    }

    /// Writes what may be written now; says when to come again.
    async fn round(&mut self) -> Option<Instant> {
        let reports = self.reports.borrow_and_update().clone();
        self.notes.mark_unchanged();
        let observed = self.observed.borrow_and_update().clone();
        self.next.retain(|origin, _| observed.objects.contains_key(origin));
        self.waiting.retain(|origin, _| observed.objects.contains_key(origin));
        self.answered.retain(|origin, (seen, _)| {
            observed
                .objects
                .get(origin)
                .is_some_and(|object| Arc::ptr_eq(seen, &object.status) || object.status == *seen)
        });
        let mut wake: Option<Instant> = None;
        for report in reports.iter() {
            let Some(object) = observed.objects.get(&report.origin) else { continue };
            if (&object.uid, object.generation) != (&report.version.0, report.version.1) {
                continue;
            }
            if let Some(next) = self.next.get(&report.origin).copied().filter(|next| *next > Instant::now()) {
                wake = Some(wake.map_or(next, |wake| wake.min(next)));
                continue;
            }
            let pause = match self.one(report, object, &observed.nodes).await {
                Ok(false) => continue,
                Ok(true) => PACE,
                // It was deleted meanwhile.
                Err(kube::Error::Api(status)) if status.code == 404 => continue,
                Err(error) => {
                    let problem = failure(&error).problem;
                    tracing::warn!(
                        origin = &*report.origin,
                        problem,
                        "the status or an event of an object could not be written"
                    );
                    REFUSED_PAUSE
                }
            };
            let next = Instant::now() + pause;
            self.next.insert(Arc::clone(&report.origin), next);
            wake = Some(wake.map_or(next, |wake| wake.min(next)));
        }
        // One whose time has come was written, or has its pause.
        let turns = self.waiting.values().copied().filter(|until| *until > Instant::now());
        wake.into_iter().chain(turns).min()
    }

    /// Brings one object up to date; whether anything was written. An event that is refused keeps no status back.
    async fn one(&mut self, report: &Report, object: &Object, nodes: &BTreeSet<String>) -> kube::Result<bool> {
        let told = self.tell(report, object).await;
        let wrote = self.write(report, object, nodes).await?;
        Ok(told? || wrote)
    }

    /// Writes the status where it differs; whether it did.
    async fn write(&mut self, report: &Report, object: &Object, nodes: &BTreeSet<String>) -> kube::Result<bool> {
        let mut wrote = false;
        if !object.kind.has_status() {
            return Ok(wrote);
        }
        let seen = Arc::clone(&object.status);
        let current =
            self.answered.get(&report.origin).map_or_else(|| Arc::clone(&seen), |(_, answer)| Arc::clone(answer));
        let own = Own { generation: object.generation, mistakes: report.mistakes.clone(), enforced: report.enforced };
        let mut status = (*current).clone();
        let keeps = self.dropping.get(&object.kind).is_none_or(|since| since.elapsed() > DROPS_ENTRIES);
        let mut wanted = status::wanted(&own, &status, &object.uid, &self.node, nodes, keeps);
        let Some(api) = self.api(object) else { return Ok(wrote) };
        if let Some(entry) = wanted.entry.take() {
            wrote = true;
            let patch = json!({"status": {"namegate": {"nodes": {&self.node: entry}}}});
            let parameters = PatchParams { field_manager: Some(MANAGER.to_owned()), ..PatchParams::default() };
            let answer = api.patch_status(&object.name, &parameters, &Patch::Merge(&patch)).await?;
            status = kept(&answer);
            if status["namegate"]["nodes"][&self.node].is_null() {
                self.dropping.insert(object.kind, Instant::now());
            }
            let keeps = !self.dropping.contains_key(&object.kind);
            wanted = status::wanted(&own, &status, &object.uid, &self.node, nodes, keeps);
        }
        let overdue = self.overdue(&report.origin, wanted.others.is_some());
        if let Some(conditions) = wanted.conditions.or(wanted.others.filter(|_| overdue)) {
            wrote = true;
            let conditions = status::written(&conditions, &status, &stamp());
            let patch = json!({
                "apiVersion": object.version, "kind": object.kind.name(), "metadata": {"name": object.name},
                "status": {"conditions": conditions},
            });
            let answer =
                api.patch_status(&object.name, &PatchParams::apply(MANAGER).force(), &Patch::Apply(&patch)).await?;
            status = kept(&answer);
        }
        if wrote {
            self.answered.insert(Arc::clone(&report.origin), (seen, Arc::new(status)));
        }
        Ok(wrote)
    }

    /// Whether conditions that another node should write have been left to it for long enough.
    fn overdue(&mut self, origin: &Arc<str>, waits: bool) -> bool {
        if !waits {
            self.waiting.remove(origin);
            return false;
        }
        let until = self.waiting.entry(Arc::clone(origin)).or_insert_with(|| Instant::now() + TURN + part(TURN));
        *until <= Instant::now()
    }

    fn api(&self, object: &Object) -> Option<Api<DynamicObject>> {
        let (_, version) = object.version.rsplit_once('/')?;
        let resource = object.kind.resource(version)?;
        let client = self.client.clone();
        Some(match &*object.namespace {
            "" => Api::all_with(client, &resource),
            namespace => Api::namespaced_with(client, namespace, &resource),
        })
    }

    /// Tells events that were not told yet; their name says what they are about, so that nodes tell each once.
    async fn tell(&mut self, report: &Report, object: &Object) -> kube::Result<bool> {
        let said = |about: About, texts: &[String]| texts.iter().map(move |text| (about, text.clone())).collect();
        let mut all: Vec<(About, String)> = said(About::Mistake, &report.mistakes);
        all.append(&mut said(About::Warning, &report.warnings));
        if let Some((version, notes)) = self.notes.borrow().get(&report.origin)
            && *version == report.version
        {
            all.append(&mut said(About::Nobody, notes));
        }
        let mut wrote = false;
        for (about, text) in all {
            let mark = about.mark(object, &text);
            if self.told.len() >= TOLD_MAX {
                self.told.clear();
            }
            if !self.told.insert(mark) {
                continue;
            }
            wrote = true;
            let event = event(object, about, &text, mark, &self.node);
            let namespace = event.metadata.namespace.clone().unwrap_or_default();
            match Api::<Event>::namespaced(self.client.clone(), &namespace).create(&PostParams::default(), &event).await
            {
                // Another node, or this one before, has told it.
                Err(kube::Error::Api(status)) if status.code == 409 => {}
                Err(error) => {
                    self.told.remove(&mark);
                    return Err(error);
                }
                Ok(_) => {}
            }
        }
        Ok(wrote)
    }
}

impl Kind {
    /// Whether its objects have a status that others may write.
    const fn has_status(self) -> bool {
        matches!(self, Self::CiliumNetworkPolicy | Self::CiliumClusterwideNetworkPolicy | Self::ClusterNetworkPolicy)
    }
}

fn kept(answer: &DynamicObject) -> Value {
    kept_of(&answer.data["status"])
}

/// RFC 3339, whole seconds.
fn stamp() -> String {
    match serde_json::to_value(Time(Timestamp::now())) {
        Ok(Value::String(text)) => text,
        _ => String::new(),
    }
}
