//! The running watches: started once, asked for snapshots.

use std::{path::PathBuf, sync::Arc, time::Duration};

use kube::Client;
use namegate_config::settings::Dns;
use tokio::{
    sync::{mpsc, watch},
    task::JoinSet,
};

use crate::{
    client::{StartError, client},
    follow,
    health::{Health, Source},
    hub::Hub,
    report::{Notes, Report, Reporter},
    row::Kind,
    saved,
    snapshot::Snapshot,
};

/// Events that wait at most; the watches wait beyond.
const TOLD_MAX: usize = 1_024;
/// How often the server is asked whether a failure is over.
const LOOK: Duration = Duration::from_secs(2);

/// What the watches need to know.
#[derive(Clone, Debug)]
pub struct Options {
    /// Name of this node.
    pub node: String,
    /// A kubeconfig; `None` is the pod's own account, and `KUBECONFIG` where there is none.
    pub kubeconfig: Option<PathBuf>,
    /// Which services are those of trusted resolvers.
    pub dns: Dns,
    /// Folder where the last objects are kept for a start without the API server.
    pub state: PathBuf,
}

/// The running watches; they end when it is dropped.
pub struct Watch {
    snapshots: watch::Receiver<Option<Arc<Snapshot>>>,
    health: Arc<Health>,
    reports: watch::Sender<Arc<Vec<Report>>>,
    notes: watch::Sender<Arc<Notes>>,
    _tasks: JoinSet<()>,
}

impl Watch {
    /// Starts every watch. Needs no answer of the server: it goes on until there is one.
    pub async fn start(options: Options) -> Result<Self, StartError> {
        let client = client(options.kubeconfig).await?;
        let (sender, snapshots) = watch::channel(None);
        let (inbox, told) = mpsc::channel(TOLD_MAX);
        let health = Arc::new(Health::default());
        let file = saved::path(&options.state);
        let (sees, observed) = watch::channel(Arc::default());
        let (reports, told_reports) = watch::channel(Arc::default());
        let (notes, told_notes) = watch::channel(Arc::default());
        let reporter = Reporter::new(client.clone(), options.node.clone(), (told_reports, told_notes), observed);
        let hub = Hub::new(options.node, options.dns, (sender, sees), Arc::clone(&health), file);
        let mut tasks = JoinSet::new();
        tasks.spawn(hub.run(told));
        for kind in Kind::ALL {
            tasks.spawn(follow::follow(client.clone(), kind, inbox.clone()));
        }
        tasks.spawn(look(client, Arc::clone(&health)));
        tasks.spawn(reporter.run());
        Ok(Self { snapshots, health, reports, notes, _tasks: tasks })
    }

    /// The snapshots: the last one, and word of each new one. `None` until all is known.
    pub fn snapshots(&self) -> watch::Receiver<Option<Arc<Snapshot>>> {
        self.snapshots.clone()
    }

    /// How each kind is followed.
    pub fn sources(&self) -> Vec<Source> {
        self.health.sources()
    }

    /// Takes what this node made of the policy objects; each list replaces the one before.
    pub fn reports(&self) -> watch::Sender<Arc<Vec<Report>>> {
        self.reports.clone()
    }

    /// Takes what is so of the policy objects; each map replaces the one before.
    pub fn notes(&self) -> watch::Sender<Arc<Notes>> {
        self.notes.clone()
    }
}

impl std::fmt::Debug for Watch {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Watch").field("health", &self.health).finish_non_exhaustive()
    }
}

/// Asks the server whether it is there, while a watch is in doubt: a watch that has reconnected says nothing by itself.
async fn look(client: Client, health: Arc<Health>) {
    loop {
        tokio::time::sleep(LOOK).await;
        if health.is_in_doubt() && client.apiserver_version().await.is_ok() {
            health.answered();
        }
    }
}
