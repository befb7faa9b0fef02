//! Policies and endpoints as files: read, kept in their last good form, and told apart from what is refused.
//!
//! A file is one unit: with a mistake in it the whole file is refused and its last good form stays in force, also over a
//! restart (a copy lies in the state directory). A file that goes away takes its rules and its copy along, also while there is
//! no agent: one of the same name that comes later begins anew.

use std::{
    collections::BTreeMap,
    fs, io,
    path::{Path, PathBuf},
    sync::Arc,
};

use namegate_api::view::{self, DocumentState};
use namegate_config::{
    diagnostic::Diagnostic,
    endpoints::{self, EndpointsFile},
    policy::{self, Document, Features},
};

use super::{problems::Problems, sources::Said, state::Copies};

/// Endings of policy files.
const ENDINGS: [&str; 3] = ["yaml", "yml", "json"];
/// Folder of copies in the state directory.
const ACCEPTED: &str = "accepted";
/// The copy of the endpoints file.
const ENDPOINTS: &str = "endpoints";

/// Code of the diagnostic that a file or folder cannot be read, which is no mistake in it.
pub(crate) const UNREADABLE: &str = "namegate::unreadable";

/// The files and their last good forms.
#[derive(Debug)]
pub(crate) struct Files {
    policies: Option<PathBuf>,
    endpoints: Option<PathBuf>,
    /// Copies of accepted files.
    accepted: Copies,
    /// Last good form by file name.
    good: BTreeMap<String, Vec<Document>>,
    good_endpoints: Option<EndpointsFile>,
    features: Features,
    /// Why it is not known what held before: a copy is there, or may be, and could not be read.
    unsure: Option<String>,
    /// The folder was listed once.
    is_listed: bool,
}

impl Files {
    /// Nothing read yet.
    pub(crate) fn new(
        policies: Option<PathBuf>,
        endpoints: Option<PathBuf>,
        state: &Path,
        features: Features,
        problems: Arc<Problems>,
    ) -> Self {
        let accepted = Copies::open(state.join(ACCEPTED), problems);
        Self {
            policies,
            endpoints,
            accepted,
            good: BTreeMap::new(),
            good_endpoints: None,
            features,
            unsure: None,
            is_listed: false,
        }
    }

    /// Whether copies wait to be written or removed.
    pub(crate) fn is_behind(&self) -> bool {
        self.accepted.is_behind()
    }

    /// Folder of policies and the endpoints file.
    pub(crate) fn paths(&self) -> (Option<&Path>, Option<&Path>) {
        (self.policies.as_deref(), self.endpoints.as_deref())
    }

    /// Whether the last reading knows what should hold. A copy that could not be read is no copy that is not there.
    pub(crate) fn is_sure(&mut self) -> Result<(), String> {
        self.unsure.take().map_or(Ok(()), Err)
    }

    /// The last good form of a file from the state folder.
    fn copy(&mut self, name: &str) -> Option<String> {
        match self.accepted.read(name) {
            Ok(text) => text,
            Err(error) => {
                self.unsure = Some(format!("reading the kept copy of {name}: {error}"));
                None
            }
        }
    }

    /// Reads the folder anew; returns the documents in force.
    pub(crate) fn read_policies(&mut self, said: &mut Said) -> Vec<Document> {
        self.accepted.retry();
        if let Some(folder) = self.policies.clone() {
            self.read_folder(&folder, said);
        }
        self.good.values().flatten().cloned().collect()
    }

    fn read_folder(&mut self, folder: &Path, said: &mut Said) {
        let files = match list(folder) {
            Ok(files) => files,
            Err(error) => {
                said.diagnostics.push(unreadable(folder, &error));
                if !self.is_listed && !is_absent(&error) {
                    // Nothing is known of it yet, and an earlier agent's rules may be in force.
                    self.unsure = Some(format!("listing {}: {error}", folder.display()));
                }
                let names: Vec<String> = self.good.keys().cloned().collect();
                for name in names {
                    self.keep_former(&name, &folder.join(&name).display().to_string(), said);
                }
                return;
            }
        };
        let known = if self.is_listed { Vec::new() } else { self.accepted.names() };
        self.is_listed = true;
        let former = known.into_iter().filter(|name| name != ENDPOINTS);
        let gone = former.chain(self.good.keys().cloned()).filter(|name| !files.contains_key(name));
        for name in gone.collect::<Vec<_>>() {
            self.good.remove(&name);
            self.accepted.remove(&name);
        }
        for (name, path) in files {
            self.read_policy(&name, &path, said);
        }
    }

    fn read_policy(&mut self, name: &str, path: &Path, said: &mut Said) {
        let shown_name = path.display().to_string();
        let text = match fs::read_to_string(path) {
            Ok(text) => text,
            // It went away since the folder was listed: the next reading has it.
            Err(error) if error.kind() == io::ErrorKind::NotFound => return,
            Err(error) => {
                said.diagnostics.push(unreadable(path, &error));
                return self.keep_former(name, &shown_name, said);
            }
        };
        let parsed = policy::parse_with(&shown_name, &text, &self.features);
        said.diagnostics.extend(parsed.diagnostics.iter().map(shown));
        if parsed.diagnostics.iter().any(Diagnostic::is_error) {
            return self.keep_former(name, &shown_name, said);
        }
        said.documents.extend(parsed.documents.iter().map(|one| line(&shown_name, one, DocumentState::Accepted)));
        self.good.insert(name.to_owned(), parsed.documents);
        self.accepted.save(name, &text);
    }

    fn keep_former(&mut self, name: &str, shown_name: &str, said: &mut Said) {
        if !self.good.contains_key(name)
            && let Some(text) = self.copy(name)
        {
            self.good.insert(name.to_owned(), policy::parse_with(shown_name, &text, &self.features).documents);
        }
        match self.good.get(name) {
            Some(former) => {
                said.documents.extend(former.iter().map(|one| line(shown_name, one, DocumentState::KeptFormer)));
            }
            None => said.documents.push(refused(shown_name)),
        }
    }

    /// Reads the endpoints file anew; returns the endpoints in force.
    pub(crate) fn read_endpoints(&mut self, said: &mut Said) -> EndpointsFile {
        let Some(path) = self.endpoints.clone() else { return EndpointsFile::default() };
        let shown_name = path.display().to_string();
        let mut failure = None;
        let found = match fs::read_to_string(&path) {
            Ok(text) => match endpoints::parse(&shown_name, &text) {
                Ok(file) => {
                    self.accepted.save(ENDPOINTS, &text);
                    self.good_endpoints = Some(file);
                    Vec::new()
                }
                Err(mistakes) => mistakes.iter().map(shown).collect(),
            },
            Err(error) => {
                let found = vec![unreadable(&path, &error)];
                failure = Some(error).filter(|error| !is_absent(error));
                found
            }
        };
        if self.good_endpoints.is_none() {
            let former = self.copy(ENDPOINTS);
            self.good_endpoints = former.and_then(|text| endpoints::parse(&shown_name, &text).ok());
        }
        if let (Some(error), None) = (failure, &self.good_endpoints) {
            self.unsure = Some(format!("reading {}: {error}", path.display()));
        }
        said.diagnostics.extend(found);
        self.good_endpoints.clone().unwrap_or_default()
    }
}

/// Whether a last good form of the endpoints file is kept.
pub(crate) fn has_former_endpoints(state: &Path) -> bool {
    let text = fs::read_to_string(state.join(ACCEPTED).join(ENDPOINTS));
    text.is_ok_and(|text| endpoints::parse(ENDPOINTS, &text).is_ok())
}

/// Policy files of the folder by name; hidden ones are left out.
fn list(folder: &Path) -> io::Result<BTreeMap<String, PathBuf>> {
    let mut files = BTreeMap::new();
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        let is_policy = path.extension().and_then(|ending| ending.to_str()).is_some_and(|it| ENDINGS.contains(&it));
        let name = path.file_name().and_then(|name| name.to_str()).filter(|name| !name.starts_with('.'));
        let Some(name) = name.filter(|_| is_policy) else { continue };
        let is_file = match fs::metadata(&path) {
            Ok(found) => found.is_file(),
            Err(error) if is_absent(&error) => false,
            Err(_) => true, // It is there, and cannot be read: its last good form holds.
        };
        if is_file {
            files.insert(name.to_owned(), path.clone());
        }
    }
    Ok(files)
}

/// Whether the system says that there is no such file, and not only that it could not be asked.
pub(crate) fn is_absent(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory)
}

/// The line of an object.
pub(crate) fn line(file: &str, document: &Document, state: DocumentState) -> view::Document {
    view::Document {
        file: file.to_owned(),
        kind: Some(document.kind.clone()),
        namespace: document.namespace.clone(),
        name: Some(document.name.clone()),
        state,
        rules: 0,
    }
}

/// The line of something that cannot be read at all.
pub(crate) fn refused(file: &str) -> view::Document {
    view::Document {
        file: file.to_owned(),
        kind: None,
        namespace: None,
        name: None,
        state: DocumentState::Refused,
        rules: 0,
    }
}

/// A diagnostic as the API shows it.
pub(crate) fn shown(found: &Diagnostic) -> view::Diagnostic {
    view::Diagnostic {
        file: found.file().to_owned(),
        line: found.line,
        column: found.column,
        severity: if found.is_error() { view::Severity::Error } else { view::Severity::Warning },
        code: found.code.as_str().to_owned(),
        field: found.field.clone(),
        message: found.problem.clone(),
        help: found.help.clone(),
    }
}

fn unreadable(path: &Path, error: &io::Error) -> view::Diagnostic {
    view::Diagnostic {
        file: path.display().to_string(),
        line: 0,
        column: 0,
        severity: view::Severity::Error,
        code: UNREADABLE.to_owned(),
        field: String::new(),
        message: format!("cannot be read: {error}"),
        help: Some("make it readable for the agent; the last good form stays in force".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const POLICY: &str = "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\n\
                          metadata: {name: a, namespace: default}\nspec: {podSelector: {}, policyTypes: [Egress]}\n";

    fn files(folder: &Path) -> Files {
        let (policies, endpoints) = (folder.join("policies"), folder.join("endpoints.yaml"));
        fs::create_dir_all(&policies).unwrap();
        Files::new(Some(policies), Some(endpoints), &folder.join("state"), super::super::FEATURES).unwrap()
    }

    /// A link that leads to itself: reading it fails, and the system does not say that it is not there.
    fn unreadable_at(path: &Path) {
        let _ = fs::remove_file(path);
        std::os::unix::fs::symlink(path, path).unwrap();
    }

    #[test]
    fn what_cannot_be_read_is_not_what_is_not_there() {
        let folder = tempfile::tempdir().unwrap();
        let policy = folder.path().join("policies/a.yaml");
        let endpoints = folder.path().join("endpoints.yaml");
        let mut first = files(folder.path());
        fs::write(&policy, POLICY).unwrap();
        fs::write(&endpoints, "endpoints: [{name: a, namespace: default, addresses: [192.0.2.1]}]").unwrap();
        let read = |files: &mut Files| {
            let said = &mut Said::default();
            (files.read_policies(said).len(), files.read_endpoints(said).endpoints.len(), files.is_sure())
        };
        assert_eq!(read(&mut first), (1, 1, Ok(())));
        unreadable_at(&policy);
        unreadable_at(&endpoints);
        assert_eq!(read(&mut first), (1, 1, Ok(())), "the last good forms hold");
        assert_eq!(read(&mut files(folder.path())).0, 1, "also for the next agent, from its copies");

        // Not even the copies can be read: then nobody knows what should hold.
        unreadable_at(&folder.path().join("state/accepted/a.yaml"));
        let (_, _, is_sure) = read(&mut files(folder.path()));
        assert!(is_sure.unwrap_err().contains("a.yaml"));
        fs::remove_file(&policy).unwrap();
        unreadable_at(&folder.path().join("state/accepted/endpoints"));
        let (_, _, is_sure) = read(&mut files(folder.path()));
        assert!(is_sure.unwrap_err().contains("endpoints"));
        assert_eq!(read(&mut first), (0, 1, Ok(())), "a file that is gone takes its rules along");

        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("endpoints.yaml"), "endpoints: []").unwrap();
        let mut next = files(folder.path());
        fs::remove_dir(folder.path().join("policies")).unwrap();
        unreadable_at(&folder.path().join("policies"));
        let problem = read(&mut next).2.unwrap_err();
        assert!(problem.contains("policies"), "a folder that cannot be listed is not empty: {problem}");
    }
}
