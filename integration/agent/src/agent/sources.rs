//! Files and Kubernetes together: which rules hold, and who is where.
//!
//! A reading takes what has changed in each source, by its revision, and shares everything else with the reading before.

use std::{
    collections::{BTreeMap, HashSet},
    path::Path,
    sync::Arc,
    time::Instant,
};

use namegate_api::view;
use namegate_config::{endpoints::EndpointsFile, policy::Features, settings::Settings};
use namegate_kubernetes::Snapshot;
use namegate_loader::netns::{self, Own};

use super::{
    cluster::Cluster,
    cluster_state::{ClusterState, Interfaces},
    files::Files,
    interfaces::{Finder, Found, Machine},
    objects::Objects,
    own,
    policies::Policies,
    problems::{ProblemKind, Problems},
    reading::Reading,
    touched::Touched,
    unit::UNREADABLE,
};

/// Where rules and endpoints come from.
pub(crate) struct Sources {
    files: Files,
    objects: Objects,
    policies: Policies,
    cluster: Option<Cluster>,
    /// The snapshot that was read last.
    snapshot: Option<Arc<Snapshot>>,
    /// The objects that were read last.
    objects_read: Option<ObjectsRead>,
    everybody: Option<Everybody>,
    /// Revision of everybody whose services the policies know.
    services_read: u64,
    reported: Option<Reported>,
    finder: Finder,
    /// What the last search for interfaces brought.
    found: Found,
    /// The machine's addresses when they were read last, and how often they have changed.
    own: Option<(Own, u64)>,
    /// Look-ups that failed, and why: what they brought before holds.
    failed: BTreeMap<String, String>,
}

/// Which objects of Kubernetes were read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct ObjectsRead {
    revision: u64,
    /// They are those of an earlier run.
    is_saved: bool,
}

/// What was reported last.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Reported {
    said: u64,
    policies: u64,
    enforced: bool,
}

/// What everybody is made of, by revision.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct MadeOf {
    who: Option<u64>,
    listed: u64,
    own: u64,
}

/// Everybody of one reading.
#[derive(Clone)]
struct Everybody {
    made_of: MadeOf,
    endpoints: Arc<EndpointsFile>,
    facts: Arc<ClusterState>,
    interfaces: Arc<Interfaces>,
    /// Grows when one of them changes.
    revision: u64,
}

impl Sources {
    /// Nothing read yet.
    pub(crate) fn new(
        settings: &Settings,
        features: Features,
        cluster: Option<Cluster>,
        problems: &Arc<Problems>,
    ) -> Self {
        let (policies, endpoints) = (settings.policies.clone(), settings.endpoints.clone());
        Self {
            files: Files::new(policies, endpoints, &settings.state, features, Arc::clone(problems)),
            objects: Objects::new(&settings.state, features, Arc::clone(problems)),
            policies: Policies::default(),
            cluster,
            snapshot: None,
            objects_read: None,
            everybody: None,
            services_read: 0,
            reported: None,
            finder: Finder::default(),
            found: Found::default(),
            own: None,
            failed: BTreeMap::new(),
        }
    }

    /// Whether copies of what is in force wait to be written or removed.
    pub(crate) fn is_behind(&self) -> bool {
        self.files.is_behind() || self.objects.is_behind()
    }

    /// Raises mistakes in the endpoints file: its last good form is in force, and not what it says.
    pub(crate) fn raise(&self, reading: &Reading, problems: &Problems) {
        const SUBJECT: &str = "file ";
        let endpoints = self.files.paths().1.map(|path| path.display().to_string());
        let is_wrong = |one: &&view::Diagnostic| {
            let of_endpoints = one.severity == view::Severity::Error && endpoints.as_deref() == Some(&*one.file);
            of_endpoints && one.code != UNREADABLE
        };
        let wrong = reading.said.found.iter().filter(is_wrong).map(|one| {
            let place = if one.line == 0 { String::new() } else { format!("line {}: ", one.line) };
            let message = format!("{place}{}; the last good form stays in force", one.message);
            (format!("{SUBJECT}{}", one.file), message)
        });
        problems.replace(ProblemKind::Source, SUBJECT, wrong);
    }

    /// Takes over which interfaces the kernel's rows give to which endpoint.
    pub(crate) fn begin(&mut self, known: Interfaces) {
        self.finder.begin(known);
    }

    /// Interfaces of the endpoints of the last reading.
    pub(crate) fn found(&self) -> &Found {
        &self.found
    }

    /// Look-ups that failed when they were made last.
    pub(crate) fn failed(&self) -> &BTreeMap<String, String> {
        &self.failed
    }

    /// Files that are followed.
    pub(crate) fn paths(&self) -> (Option<&Path>, Option<&Path>) {
        self.files.paths()
    }

    /// When a reading could find more interfaces of pods.
    pub(crate) fn again(&self) -> Option<Instant> {
        self.cluster.as_ref().and_then(Cluster::again)
    }

    /// Tells the CNI plugins that wait how far their networks are; `guarded` are interfaces with programs.
    pub(crate) fn tell(&self, facts: &ClusterState, guarded: &HashSet<u32>, closed: &BTreeMap<String, String>) {
        if let Some(cluster) = &self.cluster {
            cluster.tell(facts, &self.found, guarded, closed);
        }
    }

    /// Says what became of the objects of the last reading.
    pub(crate) fn report(&mut self, reading: &Arc<Reading>, enforced: bool) {
        let (Some(cluster), Some(snapshot)) = (&self.cluster, &self.snapshot) else { return };
        cluster.has_read(reading, snapshot);
        let reported = Reported { said: reading.said_revision, policies: snapshot.policies_revision, enforced };
        if self.reported != Some(reported) {
            cluster.report(reading.reports(snapshot, enforced));
            self.reported = Some(reported);
        }
    }

    /// Reads what was touched; `None` while Kubernetes is a source of which nothing is known yet: with some of the facts
    /// more would be open than with none. An error is that something could not be read, and what it held is not known: then
    /// all stays as it is.
    pub(crate) fn read(&mut self, touched: &Touched) -> Result<Option<Reading>, String> {
        let snapshot = match &self.cluster {
            Some(cluster) => match cluster.snapshot() {
                Some(snapshot) => Some(snapshot),
                None => return Ok(None),
            },
            None => None,
        };
        self.objects.retry();
        self.read_own(touched)?;
        self.files.read(touched, &mut self.policies);
        self.files.is_sure()?;
        let everybody = self.everybody(snapshot.as_deref(), touched)?;
        if let Some(snapshot) = snapshot {
            self.read_objects(&snapshot);
            self.snapshot = Some(snapshot);
        }
        self.objects.is_sure().inspect_err(|_| self.objects_read = None)?;
        let is_closed = !everybody.facts.unknown.is_empty();
        let settled = if self.services_read == everybody.revision {
            self.policies.settle_again(is_closed)
        } else {
            self.policies.settle(everybody.endpoints.catalog().services, is_closed)
        };
        self.services_read = everybody.revision;
        Ok(Some(Reading {
            rules: Arc::clone(&settled.rules),
            rules_revision: settled.rules_revision,
            endpoints: everybody.endpoints,
            facts: everybody.facts,
            interfaces: everybody.interfaces,
            topology_revision: everybody.revision,
            said: Arc::clone(&settled.said),
            said_revision: settled.said_revision,
        }))
    }

    fn read_objects(&mut self, snapshot: &Snapshot) {
        let wanted = ObjectsRead { revision: snapshot.policies_revision, is_saved: snapshot.saved };
        if self.objects_read != Some(wanted) {
            self.objects.read(&snapshot.policies, snapshot.saved, &mut self.policies);
            self.objects_read = Some(wanted);
        }
    }

    /// Reads the machine's addresses, where they may have changed; those of before hold where they cannot be read.
    fn read_own(&mut self, touched: &Touched) -> Result<(), String> {
        const SUBJECT: &str = "addresses";
        if self.own.is_some() && !touched.has_machine() {
            return Ok(());
        }
        match (netns::own(), &self.own) {
            (Ok(own), Some((former, _))) if own == *former => drop(self.failed.remove(SUBJECT)),
            (Ok(own), former) => {
                let revision = former.as_ref().map_or(1, |(_, revision)| revision + 1);
                self.own = Some((own, revision));
                self.failed.remove(SUBJECT);
            }
            (Err(error), former) => {
                let problem = format!("reading the addresses of this machine: {error}");
                self.failed.insert(SUBJECT.to_owned(), problem.clone());
                if former.is_none() {
                    return Err(problem);
                }
            }
        }
        Ok(())
    }

    /// Everybody, found anew where something may have changed.
    fn everybody(&mut self, snapshot: Option<&Snapshot>, touched: &Touched) -> Result<Everybody, String> {
        let (listed, listed_revision) = self.files.endpoints();
        let (own, own_revision) = self.own.clone().ok_or("the addresses of this machine are not known")?;
        let who = snapshot.map(|snapshot| snapshot.who_revision);
        let made_of = MadeOf { who, listed: listed_revision, own: own_revision };
        let is_settled = self.cluster.as_ref().is_none_or(Cluster::is_settled);
        if let Some(last) = self.everybody.clone().filter(|last| is_settled && last.made_of == made_of) {
            if touched.has_machine() {
                self.found = self.finder.find(&mut Machine::default(), &last.endpoints, &last.facts.adopted);
            }
            if self.found.interfaces == *last.interfaces {
                return Ok(last);
            }
        }
        let mut endpoints = EndpointsFile::clone(&listed);
        let facts = if let (Some(cluster), Some(snapshot)) = (&mut self.cluster, snapshot) {
            cluster.join(&snapshot.who, &mut endpoints, &own)
        } else {
            let taken = own::listed(&endpoints);
            ClusterState { shared: own::add(&mut endpoints, &own, &taken), ..ClusterState::default() }
        };
        self.note_namespaces();
        self.found = self.finder.find(&mut Machine::default(), &endpoints, &facts.adopted);
        Ok(self.renewed(made_of, endpoints, facts))
    }

    /// Notes whether the interfaces of pods that nothing registered could be looked for.
    fn note_namespaces(&mut self) {
        const SUBJECT: &str = "namespaces";
        match self.cluster.as_ref().and_then(Cluster::failure) {
            Some(error) => {
                let problem = format!("looking for the interfaces of pods: {error}");
                self.failed.insert(SUBJECT.to_owned(), problem);
            }
            None => drop(self.failed.remove(SUBJECT)),
        }
    }

    /// Everybody with another revision where anything differs from the last reading.
    fn renewed(&mut self, made_of: MadeOf, endpoints: EndpointsFile, facts: ClusterState) -> Everybody {
        let last = self.everybody.take();
        let interfaces = &self.found.interfaces;
        let is_same =
            |last: &Everybody| *last.endpoints == endpoints && *last.facts == facts && *last.interfaces == *interfaces;
        let everybody = match last {
            Some(last) if is_same(&last) => Everybody { made_of, ..last },
            last => Everybody {
                made_of,
                interfaces: Arc::new(interfaces.clone()),
                endpoints: Arc::new(endpoints),
                facts: Arc::new(facts),
                revision: last.map_or(1, |last| last.revision + 1),
            },
        };
        self.everybody = Some(everybody.clone());
        everybody
    }
}

#[cfg(test)]
mod tests;
