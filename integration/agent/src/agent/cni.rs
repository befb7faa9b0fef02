//! Networks that a CNI plugin has registered: the agent keeps them over its restarts, and answers a plugin that waits
//! once the network is enforced.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    fs, io,
    path::{Path, PathBuf},
    sync::{Arc, PoisonError, RwLock},
    time::Duration,
};

use anyhow::Context;
use namegate_api::{
    Refusal,
    view::{CniEndpoint, CniRegistration, CniState},
};
use namegate_enforcer::private_file::{make_folder, replace};
use serde::{Deserialize, Serialize};
use tokio::{sync::watch, time::timeout_at};

/// How long a plugin waits for its pod to be known and its network to be guarded.
const PATIENCE: Duration = Duration::from_secs(3);
/// How long a registration waits for its turn. Many pods may come at once, and the kernel waits for a grace period of RCU at
/// each attachment of a program: one that is given up is made again with another interface, and all of them take longer.
/// The API answers within a little more.
const TURN_PATIENCE: Duration = Duration::from_secs(9);

/// The registered networks.
#[derive(Debug)]
pub(crate) struct Registry {
    folder: PathBuf,
    entries_max: usize,
    entries: RwLock<Entries>,
    outcome: watch::Sender<Outcome>,
}

#[derive(Debug, Default)]
struct Entries {
    by_container: BTreeMap<String, Entry>,
    last: u64,
}

/// One registration.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Entry {
    /// What the plugin told.
    pub(crate) registration: CniRegistration,
    /// Grows with each change of the registrations.
    pub(crate) serial: u64,
}

/// How far the registrations are carried out.
#[derive(Clone, Debug, Default)]
pub(crate) struct Outcome {
    /// Serial of the last registration that was read.
    pub(crate) upto: u64,
    /// How each is guarded, by container.
    pub(crate) states: Arc<HashMap<String, (CniState, Option<String>)>>,
}

impl Registry {
    /// Reads what is registered already; a file that is no registration is left out with a warning.
    pub(crate) fn open(state: &Path, entries_max: u32) -> anyhow::Result<Self> {
        let folder = state.join("cni");
        // Where that fails, registering says so to each plugin that asks.
        let made = make_folder(&folder);
        let mut entries = Entries::default();
        let files = made.and_then(|()| fs::read_dir(&folder)).inspect_err(|error| {
            tracing::error!(%error, folder = %folder.display(), "registered networks cannot be kept: make room for `state`");
        });
        for file in files.into_iter().flatten() {
            let path = file.with_context(|| format!("reading {}", folder.display()))?.path();
            let Some(container) = path.file_name().and_then(|name| name.to_str()?.strip_suffix(".json")) else {
                continue;
            };
            // A registration that cannot be read for now is not one that is not there.
            let octets = fs::read(&path).with_context(|| format!("reading the registration {}", path.display()))?;
            match serde_json::from_slice::<Entry>(&octets) {
                Ok(entry) => {
                    entries.last = entries.last.max(entry.serial);
                    entries.by_container.insert(container.to_owned(), entry);
                }
                Err(error) => tracing::warn!(%error, file = %path.display(), "a registered network cannot be read"),
            }
        }
        let entries_max = usize::try_from(entries_max).unwrap_or(usize::MAX);
        Ok(Self { folder, entries_max, entries: RwLock::new(entries), outcome: watch::Sender::default() })
    }

    /// The registrations, and the serial of the last one.
    pub(crate) fn entries(&self) -> (BTreeMap<String, Entry>, u64) {
        let entries = self.entries.read().unwrap_or_else(PoisonError::into_inner);
        (entries.by_container.clone(), entries.last)
    }

    /// Serial of the last change of the registrations.
    pub(crate) fn changes(&self) -> u64 {
        self.entries.read().unwrap_or_else(PoisonError::into_inner).last
    }

    /// Notes how far the registrations are carried out.
    pub(crate) fn tell(&self, outcome: Outcome) {
        self.outcome.send_replace(outcome);
    }

    /// Registers a network and returns its serial.
    pub(crate) fn put(&self, container: &str, registration: CniRegistration) -> Result<u64, Refusal> {
        let mut entries = self.entries.write().unwrap_or_else(PoisonError::into_inner);
        if entries.by_container.len() >= self.entries_max && !entries.by_container.contains_key(container) {
            let problem = format!("{} networks are registered; raise `limits.endpoints`", self.entries_max);
            return Err(Refusal::NotGuarded(problem));
        }
        entries.last += 1;
        let entry = Entry { registration, serial: entries.last };
        self.write(container, &entry)
            .map_err(|error| Refusal::NotGuarded(format!("the registration cannot be kept: {error}")))?;
        entries.by_container.insert(container.to_owned(), entry);
        Ok(entries.last)
    }

    /// Forgets a network, where it is registered.
    pub(crate) fn remove(&self, container: &str) {
        let mut entries = self.entries.write().unwrap_or_else(PoisonError::into_inner);
        if entries.by_container.remove(container).is_some() {
            entries.last += 1;
        }
        match fs::remove_file(self.file(container)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                tracing::warn!(%error, container, "the file of a registered network could not be removed");
            }
            _ => {}
        }
    }

    /// Forgets networks whose interface is gone and whose pod is not known: their plugin could not reach the agent.
    pub(crate) fn drop_dead(&self, dead: &HashSet<String>) {
        for container in dead {
            tracing::info!(container, "a registered network is gone, with its interface and its pod");
            self.remove(container);
        }
    }

    /// Waits until the registration is carried out.
    pub(crate) async fn settled(&self, container: &str, serial: u64) -> Result<CniState, Refusal> {
        let mut outcome = self.outcome.subscribe();
        let began = tokio::time::Instant::now();
        loop {
            let state = {
                let outcome = outcome.borrow_and_update();
                if outcome.upto < serial { None } else { outcome.states.get(container).cloned() }
            };
            if let Some((CniState::Guarded, _)) = state {
                return Ok(CniState::Guarded);
            }
            let patience = if state.is_some() { PATIENCE } else { TURN_PATIENCE };
            if !matches!(timeout_at(began + patience, outcome.changed()).await, Ok(Ok(()))) {
                return match state {
                    // Everything is denied until the pod is known: nothing passes unseen.
                    Some((CniState::UnknownPod, _)) => Ok(CniState::UnknownPod),
                    Some((_, problem)) => Err(Refusal::NotGuarded(problem.unwrap_or_default())),
                    None => Err(Refusal::NotGuarded("pods and policies are not known yet".to_owned())),
                };
            }
        }
    }

    /// The registered networks as the API shows them.
    pub(crate) fn list(&self) -> Vec<CniEndpoint> {
        let outcome = self.outcome.borrow().clone();
        let (entries, _) = self.entries();
        let shown = |(container, entry): (String, Entry)| {
            let state = outcome.states.get(&container).filter(|_| outcome.upto >= entry.serial).cloned();
            let (state, problem) = state.unwrap_or((CniState::Waiting, None));
            CniEndpoint { container_id: container, registration: entry.registration, state, problem }
        };
        entries.into_iter().map(shown).collect()
    }

    fn write(&self, container: &str, entry: &Entry) -> io::Result<()> {
        make_folder(&self.folder)?;
        replace(&self.file(container), &serde_json::to_vec(entry)?).map(drop)
    }

    fn file(&self, container: &str) -> PathBuf {
        self.folder.join(format!("{container}.json"))
    }
}
