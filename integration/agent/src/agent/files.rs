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
/// Code of what cannot be read at all.
pub(crate) const UNREADABLE: &str = "namegate::unreadable";

/// The files and their last good forms.
#[derive(Debug)]
pub(crate) struct Files {
    policies: Option<PathBuf>,
    endpoints: Option<PathBuf>,
    /// Copies of accepted files.
    accepted: Copies,
    /// Copies of files that were gone when the agent started are gone too.
    swept: bool,
    /// Last good form by file name.
    good: BTreeMap<String, Vec<Document>>,
    good_endpoints: Option<EndpointsFile>,
    features: Features,
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
        let (good, good_endpoints) = (BTreeMap::new(), None);
        Self { policies, endpoints, accepted, swept: false, good, good_endpoints, features }
    }

    /// Whether copies wait to be written or removed.
    pub(crate) fn is_behind(&self) -> bool {
        self.accepted.is_behind()
    }

    /// Folder of policies and the endpoints file.
    pub(crate) fn paths(&self) -> (Option<&Path>, Option<&Path>) {
        (self.policies.as_deref(), self.endpoints.as_deref())
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
                let names: Vec<String> = self.good.keys().cloned().collect();
                for name in names {
                    self.keep_former(&name, &folder.join(&name).display().to_string(), said);
                }
                return;
            }
        };
        let known = if self.swept { Vec::new() } else { self.accepted.names() };
        self.swept = true;
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
            && let Some(text) = self.accepted.read(name)
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
        let found = match fs::read_to_string(&path) {
            Ok(text) => match endpoints::parse(&shown_name, &text) {
                Ok(file) => {
                    self.accepted.save(ENDPOINTS, &text);
                    self.good_endpoints = Some(file);
                    Vec::new()
                }
                Err(mistakes) => mistakes.iter().map(shown).collect(),
            },
            Err(error) => vec![unreadable(&path, &error)],
        };
        if self.good_endpoints.is_none() {
            let former = self.accepted.read(ENDPOINTS);
            self.good_endpoints = former.and_then(|text| endpoints::parse(&shown_name, &text).ok());
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
        if let Some(name) = name.filter(|_| is_policy && may_be_file(&path)) {
            files.insert(name.to_owned(), path.clone());
        }
    }
    Ok(files)
}

/// What cannot be looked at may be one: reading it says why, and its last good form stays.
fn may_be_file(path: &Path) -> bool {
    match fs::metadata(path) {
        Ok(found) => found.is_file(),
        Err(error) => error.kind() != io::ErrorKind::NotFound,
    }
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
