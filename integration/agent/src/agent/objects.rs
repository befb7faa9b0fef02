//! Policy objects of the Kubernetes API: each is one unit, read once, and kept in its last good form.
//!
//! An object with a mistake is refused alone; the form that was accepted last stays in force, also over a restart (a copy
//! lies in the state directory). An object that is deleted takes its rules and its copy along, also while there is no agent:
//! another object of the same name, which has another uid, begins anew.

use std::{
    collections::{BTreeMap, HashSet},
    path::Path,
    sync::Arc,
};

use namegate_api::view::{self, DocumentState};
use namegate_config::policy::{self, Document, Features, Parsed};
use namegate_kubernetes::PolicyObject;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{
    files::{line, refused, shown},
    problems::Problems,
    state::Copies,
};

/// The objects and their last good forms.
#[derive(Debug)]
pub(crate) struct Objects {
    /// Copies of accepted objects.
    accepted: Copies,
    /// Copies of objects that were gone when the agent started are gone too.
    swept: bool,
    /// By origin.
    known: BTreeMap<Arc<str>, Known>,
    features: Features,
    /// Objects whose former form may be there and could not be read, and why.
    unsure: BTreeMap<Arc<str>, String>,
}

#[derive(Debug)]
struct Known {
    /// Another object of the same name has another.
    uid: String,
    /// What was read last.
    read: Arc<Value>,
    diagnostics: Vec<view::Diagnostic>,
    /// One without mistakes; that of an earlier form where the last one has some.
    good: Vec<Arc<Document>>,
    is_good: bool,
}

/// The copy of an object.
#[derive(Serialize, Deserialize)]
struct Copy {
    uid: String,
    object: Value,
}

impl Objects {
    /// Nothing read yet.
    pub(crate) fn new(state: &Path, features: Features, problems: Arc<Problems>) -> Self {
        let accepted = Copies::open(state.join("accepted-objects"), problems);
        Self { accepted, swept: false, known: BTreeMap::new(), features, unsure: BTreeMap::new() }
    }

    /// Whether copies wait to be written or removed.
    pub(crate) fn is_behind(&self) -> bool {
        self.accepted.is_behind()
    }

    /// Carries out what could not be before.
    pub(crate) fn retry(&mut self) {
        self.accepted.retry();
    }

    /// Reads objects that have changed; returns all documents in force. `is_saved` is whether the objects are those of an
    /// earlier run: what the API server has since may be missing among them.
    pub(crate) fn read(
        &mut self,
        objects: &[PolicyObject],
        is_saved: bool,
        said: &mut super::sources::Said,
    ) -> Vec<Arc<Document>> {
        self.forget(objects, is_saved);
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

    fn forget(&mut self, objects: &[PolicyObject], is_saved: bool) {
        let listed: HashSet<&str> = objects.iter().map(|object| &*object.origin).collect();
        let gone: Vec<Arc<str>> = self.known.keys().filter(|origin| !listed.contains(&***origin)).cloned().collect();
        for origin in gone {
            self.known.remove(&origin);
            self.accepted.remove(&copy_name(&origin));
        }
        if self.swept || is_saved {
            return;
        }
        self.swept = true;
        let names: HashSet<String> = listed.into_iter().map(copy_name).collect();
        for former in self.accepted.names().into_iter().filter(|name| !names.contains(name)) {
            self.accepted.remove(&former);
        }
    }

    fn read_one(&mut self, object: &PolicyObject) -> &Known {
        let is_read = |known: &Known| {
            known.uid == object.version.0
                && (Arc::ptr_eq(&known.read, &object.document) || known.read == object.document)
        };
        if !self.known.get(&object.origin).is_some_and(is_read) {
            let former = self.known.remove(&object.origin).filter(|former| former.uid == object.version.0);
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
            self.save(object);
            shared(documents)
        } else {
            former.map_or_else(|| self.accepted(object), |former| former.good)
        };
        // Lines mean nothing to whoever wrote the object in another form.
        let told = diagnostics.iter().map(|found| view::Diagnostic { line: 0, column: 0, ..shown(found) });
        let read = Arc::clone(&object.document);
        Known { uid: object.version.0.clone(), read, diagnostics: told.collect(), good, is_good }
    }

    /// The last good form from the state directory: of this object, and of no other that had its name.
    fn accepted(&mut self, object: &PolicyObject) -> Vec<Arc<Document>> {
        let text = self.accepted.read(&copy_name(&object.origin)).unwrap_or_else(|error| {
            let problem = format!("reading the kept copy of {}: {error}", object.origin);
            self.unsure.insert(Arc::clone(&object.origin), problem);
            None
        });
        let copy = text.and_then(|text| serde_json::from_str::<Copy>(&text).ok());
        let copy = copy.filter(|copy| copy.uid == object.version.0);
        let parsed = copy.map(|copy| policy::parse_with(&object.origin, &copy.object.to_string(), &self.features));
        parsed.map(|parsed| shared(parsed.documents)).unwrap_or_default()
    }

    fn save(&mut self, object: &PolicyObject) {
        let copy = Copy { uid: object.version.0.clone(), object: Value::clone(&object.document) };
        // A document of the API is one of JSON.
        if let Ok(text) = serde_json::to_string(&copy) {
            self.accepted.save(&copy_name(&object.origin), &text);
        }
    }
}

/// Names of objects hold neither commas nor slashes.
fn copy_name(origin: &str) -> String {
    format!("{},json", origin.replace('/', ","))
}

fn shared(documents: Vec<Document>) -> Vec<Arc<Document>> {
    documents.into_iter().map(Arc::new).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::agent::sources::Said;

    fn object(uid: &str, selector: &str) -> PolicyObject {
        let document = serde_json::json!({
            "apiVersion": "cilium.io/v2", "kind": "CiliumNetworkPolicy",
            "metadata": {"name": "web", "namespace": "shop"},
            "spec": {selector: {}, "egress": [{"toEntities": ["world"]}]},
        });
        PolicyObject {
            origin: "CiliumNetworkPolicy shop/web".into(),
            document: Arc::new(document),
            version: (uid.to_owned(), 1),
        }
    }

    const GOOD: &str = "endpointSelector";
    const BAD: &str = "endpointSelektor";

    fn objects(folder: &Path) -> Objects {
        Objects::new(folder, crate::agent::FEATURES, Arc::default())
    }

    /// How many documents are in force.
    fn count(objects: &mut Objects, listed: &[PolicyObject], is_saved: bool) -> usize {
        objects.read(listed, is_saved, &mut Said::default()).len()
    }

    #[test]
    fn a_mistake_keeps_the_last_good_form_also_over_a_restart() {
        let folder = tempfile::tempdir().unwrap();
        let mut first = objects(folder.path());
        assert_eq!(count(&mut first, &[object("1", GOOD)], false), 1);
        assert_eq!(count(&mut first, &[object("1", BAD)], false), 1);
        assert_eq!(count(&mut objects(folder.path()), &[object("1", BAD)], false), 1);
    }

    #[test]
    fn a_deleted_object_stays_deleted() {
        let folder = tempfile::tempdir().unwrap();
        let mut first = objects(folder.path());
        assert_eq!(count(&mut first, &[object("1", GOOD)], false), 1);
        assert_eq!(count(&mut first, &[], false), 0);
        assert_eq!(count(&mut first, &[object("2", BAD)], false), 0, "one of the same name");
        assert_eq!(count(&mut objects(folder.path()), &[object("2", BAD)], false), 0, "after a restart");
    }

    #[test]
    fn one_that_was_deleted_between_two_looks_stays_deleted() {
        let folder = tempfile::tempdir().unwrap();
        let mut first = objects(folder.path());
        assert_eq!(count(&mut first, &[object("1", GOOD)], false), 1);
        assert_eq!(count(&mut first, &[object("2", BAD)], false), 0);
        assert_eq!(count(&mut first, &[object("1", GOOD)], false), 1);
        assert_eq!(count(&mut objects(folder.path()), &[object("2", BAD)], false), 0, "while there was no agent");
    }

    #[test]
    fn one_that_was_deleted_while_there_was_no_agent_stays_deleted() {
        let folder = tempfile::tempdir().unwrap();
        assert_eq!(count(&mut objects(folder.path()), &[object("1", GOOD)], false), 1);
        let mut saved = objects(folder.path());
        assert_eq!(count(&mut saved, &[], true), 0, "what an earlier run saved says nothing of copies");
        assert_eq!(count(&mut saved, &[object("1", BAD)], false), 1);
        assert_eq!(count(&mut objects(folder.path()), &[], false), 0);
        assert_eq!(count(&mut objects(folder.path()), &[object("1", BAD)], false), 0);
    }
}
