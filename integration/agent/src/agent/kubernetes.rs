//! Kubernetes beside the gate: its watches, the registered networks, and what the API tells of both.

use std::sync::Arc;

use anyhow::Context;
use namegate_api::{
    Refusal,
    view::{self, CniEndpoint, CniRegistration, Facts},
};
use namegate_config::settings::Settings;
use namegate_kubernetes::{Options, SourceState, Watch};
use tokio::sync::watch;

use super::{
    background::Background,
    cluster::Cluster,
    cni::Registry,
    unused_selectors::{self, Read},
};

/// Names the node where the settings do not.
const NODE_NAME: &str = "NODE_NAME";

/// The running watches and the registrations.
pub(crate) struct Kubernetes {
    node: String,
    watch: Watch,
    registry: Arc<Registry>,
    nudge: Option<Box<dyn Fn() + Send + Sync>>,
    readings: watch::Sender<Read>,
}

impl Kubernetes {
    /// Starts the watches, where Kubernetes is a source.
    pub(crate) async fn start(settings: &Settings) -> anyhow::Result<Option<Self>> {
        let Some(wanted) = &settings.kubernetes else { return Ok(None) };
        let from_environment = || std::env::var(NODE_NAME).ok().filter(|name| !name.is_empty());
        let node = wanted.node.clone().or_else(from_environment);
        let node = node.with_context(|| format!("the node has no name: set `kubernetes.node` or {NODE_NAME}"))?;
        let options = Options {
            node: node.clone(),
            kubeconfig: wanted.kubeconfig.clone(),
            dns: settings.dns.clone(),
            state: settings.state.clone(),
        };
        let registry = Arc::new(Registry::open(&settings.state, settings.limits.endpoints)?);
        let watch = Watch::start(options).await?;
        let (readings, _) = watch::channel(None);
        Ok(Some(Self { node, watch, registry, nudge: None, readings }))
    }

    /// What the thread that reads needs of it.
    pub(crate) fn cluster(&self) -> Cluster {
        Cluster::new(&self.watch, Arc::clone(&self.registry), self.readings.clone())
    }

    /// Calls `nudge` for each snapshot and registration from now on, and tells of policies that select nobody.
    pub(crate) fn followed(
        mut self,
        nudge: impl Fn() + Clone + Send + Sync + 'static,
        background: &mut Background,
    ) -> Self {
        let mut snapshots = self.watch.snapshots();
        snapshots.mark_changed();
        self.nudge = Some(Box::new(nudge.clone()));
        background.run("following Kubernetes", async move {
            loop {
                snapshots.changed().await.context("the watches have ended")?;
                nudge();
            }
        });
        let looking = unused_selectors::follow(self.readings.subscribe(), self.watch.notes());
        background.run("looking for policies that select nobody", looking);
        self
    }

    /// Registers a network and waits until it is guarded.
    pub(crate) async fn register(
        &self,
        container: String,
        registration: CniRegistration,
    ) -> Result<CniEndpoint, Refusal> {
        let serial = self.registry.put(&container, registration.clone())?;
        self.nudge();
        let state = self.registry.settled(&container, serial).await?;
        Ok(CniEndpoint { container_id: container, registration, state, problem: None })
    }

    /// Forgets a network.
    pub(crate) fn unregister(&self, container: &str) {
        self.registry.remove(container);
        self.nudge();
    }

    /// Registered networks.
    pub(crate) fn networks(&self) -> Vec<CniEndpoint> {
        self.registry.list()
    }

    /// How everything is followed.
    pub(crate) fn status(&self) -> view::Kubernetes {
        let facts = match self.watch.snapshots().borrow().as_deref() {
            None => Facts::None,
            Some(snapshot) if snapshot.saved => Facts::Saved,
            Some(_) => Facts::Server,
        };
        let shown = |source: namegate_kubernetes::Source| view::Source {
            kind: source.kind.to_owned(),
            state: match source.state {
                SourceState::Listing => view::SourceState::Listing,
                SourceState::Watching => view::SourceState::Watching,
                SourceState::Absent => view::SourceState::Absent,
                SourceState::Failing => view::SourceState::Failing,
            },
            problem: source.problem,
        };
        let sources = self.watch.sources().into_iter().map(shown).collect();
        view::Kubernetes { node: self.node.clone(), facts, sources }
    }

    fn nudge(&self) {
        if let Some(nudge) = &self.nudge {
            nudge();
        }
    }
}
