//! The task that owns the tables: takes what the watches tell, and publishes snapshots.
//!
//! Nothing is published before every kind has been listed once: with pods but without policies a snapshot would open
//! what should be closed. Where the server does not answer, the objects of the last run stand in.

use std::{
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant},
};

use namegate_config::settings::Dns;
use tokio::{
    sync::{mpsc::Receiver, watch},
    time::timeout_at,
};

use crate::{
    assemble,
    follow::Told,
    health::{Health, SourceState},
    report::Observed,
    row::Kind,
    saved,
    snapshot::{PolicyObject, Snapshot, Who},
    tables::{Changed, Tables},
};

/// Changes that come within this time of the first are published together.
const GATHER: Duration = Duration::from_millis(2);
/// The same at most, where putting a snapshot together takes long.
const GATHER_MAX: Duration = Duration::from_millis(250);
/// How long the API server may list nothing before an agent starts with what was saved. Until then the kernel goes on with
/// the rows of the last run, which are newer than the file.
const ANSWER_MAX: Duration = Duration::from_secs(3);
/// Pause after the objects were saved, as a multiple of what that took, and its bounds: what changes in it is not in the file.
const SAVE_PAUSE_FACTOR: u32 = 50;
const SAVE_PAUSE_MIN: Duration = Duration::from_millis(100);
const SAVE_PAUSE_MAX: Duration = Duration::from_secs(5);

/// Tables and where their snapshots go.
pub(crate) struct Hub {
    tables: Tables,
    node: String,
    dns: Dns,
    snapshots: watch::Sender<Option<Arc<Snapshot>>>,
    observed: watch::Sender<Arc<Observed>>,
    health: Arc<Health>,
    file: PathBuf,
    /// Everybody in the last snapshot; `None` where that has changed.
    who: Option<Arc<Who>>,
    who_revision: u64,
    /// The policies in the last snapshot; `None` where they have changed.
    policies: Option<Arc<[PolicyObject]>>,
    policies_revision: u64,
    /// Policies or nodes have changed since they were told of for reports.
    unobserved: bool,
    /// What the last snapshot took.
    cost: Duration,
    /// When the objects may be saved again.
    save_next: tokio::time::Instant,
    unsaved: bool,
    /// The objects of the last run, and when they are published unless more is listed by then.
    fallback: Option<(tokio::time::Instant, Arc<Snapshot>)>,
}

impl Hub {
    /// Starts with the objects of the last run, where there are any.
    pub(crate) fn new(
        node: String,
        dns: Dns,
        (snapshots, observed): (watch::Sender<Option<Arc<Snapshot>>>, watch::Sender<Arc<Observed>>),
        health: Arc<Health>,
        file: PathBuf,
    ) -> Self {
        let tables = saved::read(&file).unwrap_or_default();
        let save_next = tokio::time::Instant::now();
        let mut hub = Self {
            tables,
            node,
            dns,
            snapshots,
            observed,
            health,
            file,
            who: None,
            who_revision: 0,
            policies: None,
            policies_revision: 0,
            unobserved: false,
            cost: Duration::ZERO,
            save_next,
            unsaved: false,
            fallback: None,
        };
        if !hub.tables.is_empty() {
            hub.fallback = Some((save_next + ANSWER_MAX, hub.assemble(true)));
        }
        hub
    }

    /// Works until every watch has ended.
    pub(crate) async fn run(mut self, mut inbox: Receiver<(Kind, Told)>) {
        loop {
            self.fall_back();
            let wake = self.fallback.as_ref().map_or_else(|| self.save_at(), |(at, _)| *at);
            let first = match timeout_at(wake, inbox.recv()).await {
                Ok(Some(told)) => told,
                Ok(None) => return,
                Err(_) => {
                    self.save().await;
                    continue;
                }
            };
            let mut changed = self.take(first);
            let until = tokio::time::Instant::now() + (self.cost * 2).clamp(GATHER, GATHER_MAX);
            while let Ok(Some(told)) = timeout_at(until, inbox.recv()).await {
                changed = changed.max(self.take(told));
            }
            if !self.tables.is_ready() {
                continue;
            }
            if changed == Changed::Facts {
                self.publish();
            }
            if std::mem::take(&mut self.unobserved) {
                self.observed.send_replace(Arc::new(assemble::observed(&self.tables)));
            }
        }
    }

    fn take(&mut self, (kind, told): (Kind, Told)) -> Changed {
        if let (Some((at, _)), Told::Listed(..) | Told::End | Told::Absent) = (&mut self.fallback, &told) {
            *at = tokio::time::Instant::now() + ANSWER_MAX;
        }
        let changed = self.note(kind, told);
        match changed {
            Changed::Facts if kind.is_policy() => self.policies = None,
            Changed::Facts => self.who = None,
            Changed::Nothing | Changed::Status => {}
        }
        self.unobserved |= changed != Changed::Nothing && (kind.is_policy() || kind == Kind::Node);
        changed
    }

    fn note(&mut self, kind: Kind, told: Told) -> Changed {
        match told {
            Told::Begin => {
                self.tables.begin(kind);
                Changed::Nothing
            }
            Told::Listed(key, row) => {
                self.tables.list(kind, key, row);
                Changed::Nothing
            }
            Told::End => {
                self.health.well(kind, SourceState::Watching);
                self.tables.end(kind)
            }
            Told::Put(key, row) => {
                self.health.well(kind, SourceState::Watching);
                self.tables.put(kind, key, row)
            }
            Told::Gone(key) => {
                self.health.well(kind, SourceState::Watching);
                self.tables.remove(kind, &key)
            }
            Told::Absent => {
                self.health.well(kind, SourceState::Absent);
                self.tables.absent(kind)
            }
            Told::Failed(failure) => {
                self.health.fails(kind, failure);
                Changed::Nothing
            }
        }
    }

    /// Publishes the objects of the last run once the API server has listed nothing for too long.
    fn fall_back(&mut self) {
        if let Some((_, saved)) = self.fallback.take_if(|(at, _)| *at <= tokio::time::Instant::now()) {
            self.snapshots.send_replace(Some(saved));
        }
    }

    fn publish(&mut self) {
        let start = Instant::now();
        let snapshot = self.assemble(false);
        self.snapshots.send_replace(Some(snapshot));
        self.fallback = None;
        self.cost = start.elapsed();
        self.unsaved = true;
    }

    fn assemble(&mut self, saved: bool) -> Arc<Snapshot> {
        let (tables, node, dns) = (&self.tables, &self.node, &self.dns);
        let who = self.who.get_or_insert_with(|| {
            self.who_revision += 1;
            Arc::new(assemble::who(tables, node, dns))
        });
        let policies = self.policies.get_or_insert_with(|| {
            self.policies_revision += 1;
            assemble::policies(tables)
        });
        Arc::new(Snapshot {
            policies: Arc::clone(policies),
            policies_revision: self.policies_revision,
            who: Arc::clone(who),
            who_revision: self.who_revision,
            saved,
        })
    }

    /// When the objects should be saved next.
    fn save_at(&self) -> tokio::time::Instant {
        if self.unsaved { self.save_next } else { tokio::time::Instant::now() + Duration::from_hours(1) }
    }

    async fn save(&mut self) {
        if !std::mem::take(&mut self.unsaved) {
            return;
        }
        let start = Instant::now();
        let (file, octets) = (self.file.clone(), saved::octets(&self.tables));
        let written = tokio::task::spawn_blocking(move || match octets {
            Ok(octets) => saved::write(&file, &octets),
            Err(error) => Err(error.into()),
        });
        if let Ok(Err(error)) = written.await {
            tracing::warn!(%error, "the objects could not be saved: a start without the API server would not know them");
        }
        let pause = (start.elapsed() * SAVE_PAUSE_FACTOR).clamp(SAVE_PAUSE_MIN, SAVE_PAUSE_MAX);
        self.save_next = tokio::time::Instant::now() + pause;
    }
}

#[cfg(test)]
mod tests {
    use tokio::sync::mpsc;

    use super::*;
    use crate::row::{Key, Labelled, Row};

    /// A hub with one saved object.
    fn hub(folder: &std::path::Path) -> (Hub, watch::Receiver<Option<Arc<Snapshot>>>) {
        let file = saved::path(folder);
        let tables = Tables::restore(vec![(Kind::Namespace, key(), Row::Namespace(Labelled::default()))]);
        saved::write(&file, &saved::octets(&tables).unwrap()).unwrap();
        let ((sender, snapshots), (sees, _)) = (watch::channel(None), watch::channel(Arc::default()));
        (Hub::new("node1".to_owned(), Dns::default(), (sender, sees), Arc::default(), file), snapshots)
    }

    fn key() -> Key {
        ("".into(), "empire".into())
    }

    /// What was saved last can be older than what the kernel holds: it stands in for a server that does not answer alone.
    #[tokio::test(start_paused = true)]
    async fn saved_objects_are_for_a_server_that_does_not_answer() {
        // How many objects are listed, with a pause after each, and whether the listings end.
        for (listed, ends) in [(0, false), (0, true), (5, true), (5, false)] {
            let folder = tempfile::tempdir().unwrap();
            let (hub, mut snapshots) = hub(folder.path());
            let start = tokio::time::Instant::now();
            let (inbox, told) = mpsc::channel(64);
            let running = tokio::spawn(hub.run(told));
            inbox.send((Kind::Namespace, Told::Begin)).await.unwrap();
            for _ in 0..listed {
                tokio::time::sleep(ANSWER_MAX * 2 / 3).await;
                inbox.send((Kind::Namespace, Told::Listed(key(), None))).await.unwrap();
            }
            for kind in Kind::ALL.into_iter().filter(|_| ends) {
                inbox.send((kind, Told::End)).await.unwrap();
            }
            assert!(snapshots.borrow().is_none(), "{listed} {ends}: while the server lists");
            snapshots.changed().await.unwrap();
            assert_eq!(snapshots.borrow_and_update().as_ref().unwrap().saved, !ends, "{listed} {ends}");
            let least = ANSWER_MAX * 2 / 3 * listed + if ends { Duration::ZERO } else { ANSWER_MAX };
            assert!(
                (least..least + ANSWER_MAX / 3).contains(&start.elapsed()),
                "{listed} {ends}: {:?}",
                start.elapsed()
            );
            assert!(tokio::time::timeout(ANSWER_MAX * 2, snapshots.changed()).await.is_err(), "one snapshot is enough");
            drop(inbox);
            running.await.unwrap();
        }
    }

    #[tokio::test]
    async fn what_changes_is_saved_soon() {
        let folder = tempfile::tempdir().unwrap();
        let (hub, _snapshots) = hub(folder.path());
        let (inbox, told) = mpsc::channel(64);
        let running = tokio::spawn(hub.run(told));
        let saved = || saved::read(&saved::path(folder.path())).map_or(0, |tables| tables.all().count());
        for kind in Kind::ALL {
            inbox.send((kind, Told::End)).await.unwrap();
        }
        // The second change comes within the pause after the first was saved.
        for want in [0, 1, 0] {
            if want == 1 {
                inbox
                    .send((Kind::Namespace, Told::Put(key(), Some(Row::Namespace(Labelled::default())))))
                    .await
                    .unwrap();
            } else {
                inbox.send((Kind::Namespace, Told::Gone(key()))).await.unwrap();
            }
            let soon = async {
                while saved() != want {
                    tokio::time::sleep(GATHER).await;
                }
            };
            tokio::time::timeout(Duration::from_secs(30), soon).await.expect("the change is not in the file");
        }
        drop(inbox);
        running.await.unwrap();
    }

    #[tokio::test]
    async fn what_has_not_changed_keeps_its_revision() {
        let folder = tempfile::tempdir().unwrap();
        let (hub, mut snapshots) = hub(folder.path());
        let (inbox, told) = mpsc::channel(64);
        let running = tokio::spawn(hub.run(told));
        for kind in Kind::ALL {
            inbox.send((kind, Told::End)).await.unwrap();
        }
        let policy = |uid: &str| Row::Policy(crate::row::Policy { uid: uid.to_owned(), ..Default::default() });
        let mut revisions = Vec::new();
        for (kind, row) in [
            (Kind::Namespace, Row::Namespace(Labelled::default())),
            (Kind::NetworkPolicy, policy("1")),
            (Kind::NetworkPolicy, policy("2")),
        ] {
            snapshots.changed().await.unwrap();
            let snapshot = snapshots.borrow_and_update().clone().unwrap();
            revisions.push((snapshot.who_revision, snapshot.policies_revision));
            inbox.send((kind, Told::Put(key(), Some(row)))).await.unwrap();
        }
        snapshots.changed().await.unwrap();
        let last = snapshots.borrow_and_update().clone().unwrap();
        revisions.push((last.who_revision, last.policies_revision));
        let steps: Vec<_> = revisions.windows(2).map(|two| (two[1].0 - two[0].0, two[1].1 - two[0].1)).collect();
        assert_eq!(steps, [(1, 0), (0, 1), (0, 1)]);
        drop(inbox);
        running.await.unwrap();
    }
}
