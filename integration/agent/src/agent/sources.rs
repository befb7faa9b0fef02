//! Files and Kubernetes together: which rules hold, and who is where.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    net::IpAddr,
    path::Path,
    sync::{Arc, LazyLock},
};

use namegate_kubernetes::{PolicyObject, Report, Snapshot, Who};

use super::{
    cluster::Cluster,
    files::{self, Files, UNREADABLE},
    interfaces::{Adopted, Finder, Found, Interfaces, Machine},
    objects::Objects,
    own,
    problems::{ProblemKind, Problems},
};
use namegate_api::view;
use namegate_config::{
    endpoints::EndpointsFile,
    labels::{LabelSelector, Operator, RESERVED, Requirement},
    policy::{self, Catalog, Document, Features},
    rule::{Direction, Effect, Origin, Peers, Ports, Rule, Subject, Tier},
    settings::Settings,
};
use namegate_loader::netns::{self, Own};

/// Label of an endpoint whose own labels are not known, as in Cilium: `reserved:init`.
pub(crate) const UNKNOWN: &str = "init";

/// Where rules and endpoints come from.
pub(crate) struct Sources {
    files: Files,
    objects: Objects,
    cluster: Option<Cluster>,
    /// The snapshot that was read last.
    read: Option<Arc<Snapshot>>,
    joined: Option<Joined>,
    translated: Option<Translated>,
    reported: Option<Reported>,
    finder: Finder,
    /// What the last search for interfaces brought.
    found: Found,
    /// The machine's addresses when they were read last.
    own: Option<Own>,
    /// Look-ups of the last reading that failed, and why: what they brought before holds.
    failed: BTreeMap<String, String>,
}

/// What was reported last: said of which policies, and whether the kernel held the rules.
type Reported = (Arc<Said>, Arc<[PolicyObject]>, bool);

/// Everybody of one reading, for the next where policies alone have changed.
struct Joined {
    who: Arc<Who>,
    listed: EndpointsFile,
    endpoints: Arc<EndpointsFile>,
    facts: Arc<Facts>,
    own: Own,
    interfaces: Interfaces,
}

/// What the policies of one reading came to, for the next where none has changed.
struct Translated {
    policies: Arc<[PolicyObject]>,
    /// Whether they are those of an earlier run.
    is_saved: bool,
    /// What was said of the files.
    of_files: Said,
    catalog: Catalog,
    is_closed: bool,
    rules: Arc<[Rule]>,
    said: Arc<Said>,
}

/// What a reading brought. What is the same as in the reading before is shared with it.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Reading {
    /// Rules in force.
    pub(crate) rules: Arc<[Rule]>,
    /// Endpoints in force.
    pub(crate) endpoints: Arc<EndpointsFile>,
    /// What is to be said of it.
    pub(crate) said: Arc<Said>,
    /// What Kubernetes adds.
    pub(crate) facts: Arc<Facts>,
}

/// What is said of policies and endpoints.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Said {
    /// One line for each object.
    pub(crate) documents: Vec<view::Document>,
    /// Mistakes and warnings.
    pub(crate) diagnostics: Vec<view::Diagnostic>,
}

/// What Kubernetes and the machine know of the endpoints.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Facts {
    /// `namespace/name` of the pods of this node, guarded or not yet.
    pub(crate) local: BTreeSet<String>,
    /// Registered networks whose pod is not known.
    pub(crate) unknown: BTreeSet<String>,
    /// Interfaces of pods of this node that nothing has registered.
    pub(crate) adopted: BTreeMap<String, Adopted>,
    /// Endpoint of each registered container.
    pub(crate) containers: BTreeMap<String, String>,
    /// Addresses of services in front of trusted resolvers.
    pub(crate) resolver_services: Vec<IpAddr>,
    /// Addresses of the API server.
    pub(crate) api_servers: Vec<IpAddr>,
    /// Broadcast and anycast addresses of this machine's networks.
    pub(crate) shared: Vec<IpAddr>,
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
            cluster,
            read: None,
            joined: None,
            translated: None,
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
        let wrong = reading.said.diagnostics.iter().filter(is_wrong).map(|one| {
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

    /// Look-ups of the last reading that failed.
    pub(crate) fn failed(&self) -> &BTreeMap<String, String> {
        &self.failed
    }

    /// Files that are followed.
    pub(crate) fn paths(&self) -> (Option<&Path>, Option<&Path>) {
        self.files.paths()
    }

    /// Kubernetes, where it is a source.
    pub(crate) fn cluster(&mut self) -> Option<&mut Cluster> {
        self.cluster.as_mut()
    }

    /// Says what became of the objects of the last reading.
    pub(crate) fn report(&mut self, reading: &Arc<Reading>, enforced: bool) {
        let (Some(cluster), Some(snapshot)) = (&self.cluster, &self.read) else { return };
        cluster.has_read(reading, snapshot);
        let is_same = |(said, policies, held): &Reported| {
            Arc::ptr_eq(said, &reading.said) && Arc::ptr_eq(policies, &snapshot.policies) && *held == enforced
        };
        if !self.reported.as_ref().is_some_and(is_same) {
            cluster.report(reading.reports(snapshot, enforced));
            self.reported = Some((Arc::clone(&reading.said), Arc::clone(&snapshot.policies), enforced));
        }
    }

    /// Reads everything anew; `None` while Kubernetes is a source of which nothing is known yet: with some of the facts
    /// more would be open than with none. An error is that something could not be read, and what it held is not known: then
    /// all stays as it is.
    pub(crate) fn read(&mut self) -> Result<Option<Reading>, String> {
        self.failed.clear();
        let snapshot = match &self.cluster {
            Some(cluster) => match cluster.snapshot() {
                Some(snapshot) => Some(snapshot),
                None => return Ok(None),
            },
            None => None,
        };
        let is_saved = snapshot.as_ref().is_some_and(|snapshot| snapshot.saved);
        self.objects.retry();
        let own = self.own_addresses()?;
        let mut reading = Reading::default();
        let mut said = Said::default();
        let documents = self.files.read_policies(&mut said);
        let mut listed = self.files.read_endpoints(&mut said);
        self.files.is_sure()?;
        let mut policies: Arc<[PolicyObject]> = Arc::default();
        if let (Some(snapshot), true) = (snapshot, self.cluster.is_some()) {
            let joined = self.join(&snapshot.who, listed, own);
            reading.endpoints = Arc::clone(&joined.endpoints);
            reading.facts = Arc::clone(&joined.facts);
            self.joined = Some(joined);
            policies = Arc::clone(&snapshot.policies);
            self.read = Some(snapshot);
        } else {
            let taken = own::listed(&listed);
            let shared = own::add(&mut listed, &own, &taken);
            reading.facts = Arc::new(Facts { shared, ..Facts::default() });
            reading.endpoints = Arc::new(listed);
            self.found = self.finder.find(&mut Machine::default(), &reading.endpoints, &reading.facts.adopted);
        }
        let (catalog, is_closed) = (reading.endpoints.catalog(), !reading.facts.unknown.is_empty());
        // Documents of files are read anew each time.
        let is_same = |last: &Translated| {
            documents.is_empty()
                && Arc::ptr_eq(&last.policies, &policies)
                && last.is_saved == is_saved
                && (&last.of_files, &last.catalog, last.is_closed) == (&said, &catalog, is_closed)
        };
        let translated = self.translated.take().filter(is_same);
        let translated =
            translated.unwrap_or_else(|| self.translate(documents, (policies, is_saved), said, catalog, is_closed));
        self.objects.is_sure()?;
        reading.rules = Arc::clone(&translated.rules);
        reading.said = Arc::clone(&translated.said);
        self.translated = Some(translated);
        Ok(Some(reading))
    }

    /// The machine's addresses; those of the last reading where they cannot be read.
    fn own_addresses(&mut self) -> Result<Own, String> {
        match netns::own() {
            Ok(own) => self.own = Some(own),
            Err(error) => {
                self.failed.insert("addresses".to_owned(), format!("reading the addresses of this machine: {error}"));
            }
        }
        self.own.clone().ok_or_else(|| self.failed["addresses"].clone())
    }

    /// Everybody, found anew where something may have changed.
    fn join(&mut self, who: &Arc<Who>, listed: EndpointsFile, own: Own) -> Joined {
        let Some(cluster) = &mut self.cluster else { return Joined::of_files(who, listed, own) };
        let machine = &mut Machine::default();
        if let Some(last) = self.joined.take().filter(|last| last.may_hold(who, &listed, &own, cluster)) {
            self.found = self.finder.find(machine, &last.endpoints, &last.facts.adopted);
            if self.found.interfaces == last.interfaces {
                return last;
            }
        }
        let mut endpoints = listed.clone();
        let facts = Arc::new(cluster.join(who, &mut endpoints, &own));
        if let Some(error) = cluster.failure() {
            self.failed.insert("namespaces".to_owned(), format!("looking for the interfaces of pods: {error}"));
        }
        self.found = self.finder.find(machine, &endpoints, &facts.adopted);
        let interfaces = self.found.interfaces.clone();
        Joined { who: Arc::clone(who), listed, endpoints: Arc::new(endpoints), facts, own, interfaces }
    }

    fn translate(
        &mut self,
        of_folder: Vec<Document>,
        (policies, is_saved): (Arc<[PolicyObject]>, bool),
        of_files: Said,
        catalog: Catalog,
        is_closed: bool,
    ) -> Translated {
        let mut said = of_files.clone();
        let mut documents: Vec<Arc<Document>> = of_folder.into_iter().map(Arc::new).collect();
        if self.cluster.is_some() {
            documents.extend(self.objects.read(&policies, is_saved, &mut said));
        }
        let policy::Translated { mut rules, diagnostics } = policy::translate(&documents, &catalog);
        said.diagnostics.extend(diagnostics.iter().map(files::shown));
        count_rules(&mut said, &rules);
        if is_closed {
            rules.extend(CLOSED.iter().cloned());
        }
        Translated { policies, is_saved, of_files, catalog, is_closed, rules: rules.into(), said: Arc::new(said) }
    }
}

impl Joined {
    fn of_files(who: &Arc<Who>, listed: EndpointsFile, own: Own) -> Self {
        let endpoints = Arc::new(listed.clone());
        Self { who: Arc::clone(who), listed, endpoints, facts: Arc::default(), own, interfaces: Interfaces::new() }
    }

    /// Whether it would come out the same where interfaces are the same.
    fn may_hold(&self, who: &Arc<Who>, listed: &EndpointsFile, own: &Own, cluster: &Cluster) -> bool {
        Arc::ptr_eq(&self.who, who) && self.listed == *listed && self.own == *own && cluster.is_settled()
    }
}

impl Reading {
    /// What is to be said of each object. `enforced` is whether the kernel holds the rules.
    fn reports(&self, snapshot: &Snapshot, enforced: bool) -> Vec<Report> {
        let mut found: HashMap<&str, (Vec<String>, Vec<String>)> = HashMap::new();
        for one in &self.said.diagnostics {
            let (mistakes, warnings) = found.entry(&one.file).or_default();
            let list = if one.severity == view::Severity::Error { mistakes } else { warnings };
            let field = if one.field.is_empty() { String::new() } else { format!("`{}`: ", one.field) };
            list.push(format!("{field}{}", one.message));
        }
        let report = |object: &PolicyObject| {
            let (mistakes, warnings) = found.get(&*object.origin).cloned().unwrap_or_default();
            let enforced = enforced && mistakes.is_empty();
            Report { origin: Arc::clone(&object.origin), version: object.version.clone(), mistakes, warnings, enforced }
        };
        snapshot.policies.iter().map(report).collect()
    }
}

/// Rules that close whoever is not known.
static CLOSED: LazyLock<[Rule; 2]> = LazyLock::new(|| {
    [Direction::Ingress, Direction::Egress].map(|direction| Rule {
        origin: Arc::new(Origin {
            kind: "Namegate".to_owned(),
            namespace: None,
            name: "unknown-pod".to_owned(),
            path: if direction == Direction::Ingress { "ingress" } else { "egress" }.to_owned(),
        }),
        subject: Subject::Endpoints(LabelSelector::new([Requirement {
            source: Some(RESERVED.to_owned()),
            key: UNKNOWN.to_owned(),
            operator: Operator::Exists,
        }])),
        direction,
        tier: Tier::Admin(0),
        effect: Effect::Deny,
        default_deny: true,
        peers: Peers::Any,
        ports: Ports::Any,
        l7: None,
        binding: None,
        named_only: None,
    })
});

/// How many rules each document has in force.
fn count_rules(said: &mut Said, rules: &[Rule]) {
    let mut counts: BTreeMap<(&str, Option<&str>, &str), usize> = BTreeMap::new();
    for rule in rules {
        let Origin { kind, namespace, name, .. } = &*rule.origin;
        *counts.entry((kind, namespace.as_deref(), name)).or_default() += 1;
    }
    for document in &mut said.documents {
        let (Some(kind), Some(name)) = (&document.kind, &document.name) else { continue };
        document.rules = counts.get(&(kind, document.namespace.as_deref(), name)).copied().unwrap_or(0);
    }
}
