//! Policy objects of the Kubernetes API: each is one unit, read once, and kept in its last good form.
//!
//! An object with a mistake is refused alone; the form that was accepted last stays in force, also over a restart (a copy
//! lies in the state directory). An object that is deleted takes its rules along.

use std::{
    collections::BTreeMap,
    fs, io,
    path::{Path, PathBuf},
    sync::Arc,
};

use anyhow::Context;
use namegate_api::view::{self, DocumentState};
use namegate_config::policy::{self, Document, Features, Parsed};
use namegate_kubernetes::PolicyObject;
use serde_json::Value;

use super::files::{is_absent, line, refused, shown};

/// The objects and their last good forms.
#[derive(Debug)]
pub(crate) struct Objects {
    /// Copies of accepted objects.
    accepted: PathBuf,
    /// By origin.
    known: BTreeMap<Arc<str>, Known>,
    features: Features,
    /// Objects whose former form may be there and could not be read, and why.
    unsure: BTreeMap<Arc<str>, String>,
}

#[derive(Debug)]
struct Known {
    /// What was read last.
    read: Arc<Value>,
    diagnostics: Vec<view::Diagnostic>,
    /// One without mistakes; that of an earlier form where the last one has some.
    good: Vec<Arc<Document>>,
    is_good: bool,
}

impl Objects {
    /// Nothing read yet.
    pub(crate) fn new(state: &Path, features: Features) -> anyhow::Result<Self> {
        let accepted = state.join("accepted-objects");
        fs::create_dir_all(&accepted).with_context(|| format!("making {}", accepted.display()))?;
        Ok(Self { accepted, known: BTreeMap::new(), features, unsure: BTreeMap::new() })
    }

    /// Reads objects that have changed; returns all documents in force.
    pub(crate) fn read(&mut self, objects: &[PolicyObject], said: &mut super::sources::Said) -> Vec<Arc<Document>> {
        self.forget(objects);
        let mut documents = Vec::new();
        for object in objects {
            let known = self.read_one(object);
            said.diagnostics.extend(known.diagnostics.iter().cloned());
            let state = if known.is_good { DocumentState::Accepted } else { DocumentState::KeptFormer };
            said.documents.extend(known.good.iter().map(|one| line(&object.origin, one, state)));
            if known.good.is_empty() {
                said.documents.push(refused(&object.origin));
            }
            documents.extend(known.good.iter().cloned());
        }
        documents
    }

    /// Whether the last reading knows what should hold. What could not be read is asked for again by the next one.
    pub(crate) fn is_sure(&mut self) -> Result<(), String> {
        let unsure = std::mem::take(&mut self.unsure);
        for origin in unsure.keys() {
            self.known.remove(origin);
        }
        unsure.into_values().next().map_or(Ok(()), Err)
    }

    fn forget(&mut self, objects: &[PolicyObject]) {
        let listed: std::collections::HashSet<&str> = objects.iter().map(|object| &*object.origin).collect();
        let gone: Vec<Arc<str>> = self.known.keys().filter(|origin| !listed.contains(&***origin)).cloned().collect();
        for origin in gone {
            self.known.remove(&origin);
            match fs::remove_file(self.copy(&origin)) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    tracing::warn!(%error, %origin, "the copy of a deleted object could not be removed");
                }
                _ => {}
            }
        }
    }

    fn read_one(&mut self, object: &PolicyObject) -> &Known {
        let is_read = self
            .known
            .get(&object.origin)
            .is_some_and(|known| Arc::ptr_eq(&known.read, &object.document) || known.read == object.document);
        if !is_read {
            let former = self.known.remove(&object.origin);
            let known = self.parse(object, former);
            self.known.insert(Arc::clone(&object.origin), known);
        }
        &self.known[&object.origin]
    }

    fn parse(&mut self, object: &PolicyObject, former: Option<Known>) -> Known {
        let text = object.document.to_string();
        let Parsed { documents, diagnostics } = policy::parse_with(&object.origin, &text, &self.features);
        let is_good = !diagnostics.iter().any(namegate_config::diagnostic::Diagnostic::is_error);
        let good = if is_good {
            self.save(&object.origin, &text);
            shared(documents)
        } else {
            former.map_or_else(|| self.accepted(&object.origin), |former| former.good)
        };
        // Lines mean nothing to whoever wrote the object in another form.
        let told = diagnostics.iter().map(|found| view::Diagnostic { line: 0, column: 0, ..shown(found) });
        Known { read: Arc::clone(&object.document), diagnostics: told.collect(), good, is_good }
    }

    /// The last good form from the state directory.
    fn accepted(&mut self, origin: &Arc<str>) -> Vec<Arc<Document>> {
        let path = self.copy(origin);
        let text = match fs::read_to_string(&path) {
            Ok(text) => Some(text),
            Err(error) => {
                if !is_absent(&error) {
                    let problem = format!("reading the kept copy {}: {error}", path.display());
                    self.unsure.insert(Arc::clone(origin), problem);
                }
                None
            }
        };
        text.map(|text| shared(policy::parse_with(origin, &text, &self.features).documents)).unwrap_or_default()
    }

    fn save(&self, origin: &str, text: &str) {
        let path = self.copy(origin);
        if fs::read_to_string(&path).is_ok_and(|former| former == text) {
            return;
        }
        let beside = path.with_extension("new");
        if let Err(error) = fs::write(&beside, text).and_then(|()| fs::rename(&beside, &path)) {
            tracing::warn!(%error, origin, "the last good form of an object could not be kept");
        }
    }

    /// Names of objects hold neither commas nor slashes.
    fn copy(&self, origin: &str) -> PathBuf {
        self.accepted.join(format!("{},json", origin.replace('/', ",")))
    }
}

fn shared(documents: Vec<Document>) -> Vec<Arc<Document>> {
    documents.into_iter().map(Arc::new).collect()
}
