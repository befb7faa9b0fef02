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

use namegate_config::policy::{self, Features};
use namegate_kubernetes::PolicyObject;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{
    policies::{Policies, UnitKey},
    problems::Problems,
    state::Copies,
    unit::{Loaded, Unit, load, shown_without_line},
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
    /// The last form without mistakes.
    good: Option<Arc<[Loaded]>>,
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

    /// Reads objects that have changed. `is_saved` is whether the objects are those of an earlier run: what the API server
    /// has since may be missing among them.
    pub(crate) fn read(&mut self, objects: &[PolicyObject], is_saved: bool, policies: &mut Policies) {
        self.forget(objects, is_saved, policies);
        for object in objects {
            self.read_one(object, policies);
        }
    }

    /// Whether the last reading knows what should hold. What could not be read is asked for again by the next one.
    pub(crate) fn is_sure(&mut self) -> Result<(), String> {
        let unsure = std::mem::take(&mut self.unsure);
        for origin in unsure.keys() {
            self.known.remove(origin);
        }
        unsure.into_values().next().map_or(Ok(()), Err)
    }

    fn forget(&mut self, objects: &[PolicyObject], is_saved: bool, policies: &mut Policies) {
        let listed: HashSet<&str> = objects.iter().map(|object| &*object.origin).collect();
        let gone: Vec<Arc<str>> = self.known.keys().filter(|origin| !listed.contains(&***origin)).cloned().collect();
        for origin in gone {
            self.known.remove(&origin);
            self.accepted.remove(&copy_name(&origin));
            policies.remove(&UnitKey::Object(origin));
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

    fn read_one(&mut self, object: &PolicyObject, policies: &mut Policies) {
        let is_read = |known: &Known| {
            known.uid == object.version.0
                && (Arc::ptr_eq(&known.read, &object.document) || known.read == object.document)
        };
        if self.known.get(&object.origin).is_some_and(is_read) {
            return;
        }
        let former = self.known.remove(&object.origin).filter(|former| former.uid == object.version.0);
        let parsed = policy::parse_object(&object.origin, &object.document, &self.features);
        let diagnostics = parsed.diagnostics.iter().map(shown_without_line).collect();
        let current = load(parsed, &mut policies.interner);
        let is_current = current.is_some();
        let good = match (current, former) {
            (Some(current), _) => {
                self.save(object);
                Some(current)
            }
            (None, Some(former)) => former.good,
            (None, None) => self.accepted(object, policies),
        };
        let (name, key) = (Arc::clone(&object.origin), UnitKey::Object(Arc::clone(&object.origin)));
        policies.put(&key, Unit { name, good: good.clone(), is_current, diagnostics });
        let known = Known { uid: object.version.0.clone(), read: Arc::clone(&object.document), good };
        self.known.insert(Arc::clone(&object.origin), known);
    }

    /// The last good form from the state directory: of this object, and of no other that had its name.
    fn accepted(&mut self, object: &PolicyObject, policies: &mut Policies) -> Option<Arc<[Loaded]>> {
        let text = self.accepted.read(&copy_name(&object.origin)).unwrap_or_else(|error| {
            let problem = format!("reading the kept copy of {}: {error}", object.origin);
            self.unsure.insert(Arc::clone(&object.origin), problem);
            None
        });
        let copy = text.and_then(|text| serde_json::from_str::<Copy>(&text).ok());
        let copy = copy.filter(|copy| copy.uid == object.version.0)?;
        let parsed = policy::parse_object(&object.origin, &copy.object, &self.features);
        load(parsed, &mut policies.interner)
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

#[cfg(test)]
mod tests {
    use super::*;

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

    fn objects(folder: &Path) -> (Objects, Policies) {
        (Objects::new(folder, crate::agent::FEATURES, Arc::default()), Policies::default())
    }

    /// How many rules are in force.
    fn count((objects, policies): &mut (Objects, Policies), listed: &[PolicyObject], is_saved: bool) -> usize {
        objects.read(listed, is_saved, policies);
        policies.settle([], false).rules.len()
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

    #[test]
    fn what_is_said_of_an_object_has_no_lines_and_names_the_field() {
        let folder = tempfile::tempdir().unwrap();
        let (mut objects, mut policies) = objects(folder.path());
        objects.read(&[object("1", BAD)], false, &mut policies);
        let said = Arc::clone(&policies.settle([], false).said);
        let found: Vec<_> = said.found.iter().map(|one| (one.line, one.column, &*one.field)).collect();
        assert!(found.contains(&(0, 0, "spec.endpointSelektor")), "{found:?}");
        assert!(said.found.iter().all(|one| one.file == "CiliumNetworkPolicy shop/web"));
        let states: Vec<_> = said.documents().map(|one| one.state).collect();
        assert_eq!(states, [namegate_api::view::DocumentState::Refused]);
    }

    #[test]
    fn an_object_that_has_not_changed_keeps_its_rules() {
        let folder = tempfile::tempdir().unwrap();
        let (mut objects, mut policies) = objects(folder.path());
        objects.read(&[object("1", GOOD)], false, &mut policies);
        let before = policies.settle([], false).clone();
        // Another listing of the same.
        objects.read(&[object("1", GOOD)], false, &mut policies);
        let after = policies.settle([], false);
        assert_eq!(after.rules_revision, before.rules_revision);
        assert!(Arc::ptr_eq(&after.rules, &before.rules));
    }
}
