//! Policies and endpoints as files: read, kept in their last good form, and told apart from what is refused.
//!
//! A file is one unit: with a mistake in it the whole file is refused and its last good form stays in force, also over a
//! restart (a copy lies in the state directory). A file that goes away takes its rules and its copy along, also while there is
//! no agent: one of the same name that comes later begins anew.
//!
//! A file is read when the watch names it, or when its metadata say that it has changed; one with the content of before is
//! left alone.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::{self, Metadata},
    io,
    path::{Path, PathBuf},
    sync::Arc,
};

use namegate_api::view;
use namegate_config::{
    endpoints::{self, EndpointsFile},
    policy::{self, Features},
};

use super::{
    policies::{Policies, UnitKey},
    problems::Problems,
    stamp::{Digest, Stamp},
    state::{Copies, is_absent},
    touched::Touched,
    unit::{Loaded, Unit, load, shown, unreadable},
};

/// Endings of policy files.
const ENDINGS: [&str; 3] = ["yaml", "yml", "json"];
/// Folder of copies in the state directory.
const ACCEPTED: &str = "accepted";
/// The copy of the endpoints file.
const ENDPOINTS: &str = "endpoints";

/// The files and their last good forms.
#[derive(Debug)]
pub(crate) struct Files {
    folder: Option<PathBuf>,
    /// Copies of accepted files.
    accepted: Copies,
    /// Policy files by name.
    known: BTreeMap<String, KnownFile>,
    endpoints: Option<Endpoints>,
    features: Features,
    /// Files of which it is not known what held before, and why: a copy is there, or may be, and could not be read.
    unsure: BTreeMap<String, String>,
    /// The folder was listed once.
    is_listed: bool,
    /// Why the folder cannot be listed.
    unlisted: Option<view::Diagnostic>,
}

/// A policy file.
#[derive(Debug, Default)]
struct KnownFile {
    /// The file that was read last; `None` where it must be read again.
    read: Option<Read>,
    /// The last good form.
    good: Option<Arc<[Loaded]>>,
}

/// What was read last of a file.
#[derive(Debug)]
struct Read {
    /// `None` where the metadata could stay the same over a change.
    stamp: Option<Stamp>,
    digest: Digest,
}

/// The endpoints file.
#[derive(Debug)]
struct Endpoints {
    path: PathBuf,
    read: Option<Read>,
    good: Option<Arc<EndpointsFile>>,
    /// Grows when `good` changes.
    revision: u64,
    diagnostics: Vec<view::Diagnostic>,
}

impl Files {
    /// Nothing read yet.
    pub(crate) fn new(
        folder: Option<PathBuf>,
        endpoints: Option<PathBuf>,
        state: &Path,
        features: Features,
        problems: Arc<Problems>,
    ) -> Self {
        let unread = |path| Endpoints { path, read: None, good: None, revision: 0, diagnostics: Vec::new() };
        Self {
            folder,
            accepted: Copies::open(state.join(ACCEPTED), problems),
            known: BTreeMap::new(),
            endpoints: endpoints.map(unread),
            features,
            unsure: BTreeMap::new(),
            is_listed: false,
            unlisted: None,
        }
    }

    /// Whether copies wait to be written or removed.
    pub(crate) fn is_behind(&self) -> bool {
        self.accepted.is_behind()
    }

    /// Folder of policies and the endpoints file.
    pub(crate) fn paths(&self) -> (Option<&Path>, Option<&Path>) {
        (self.folder.as_deref(), self.endpoints.as_ref().map(|endpoints| &*endpoints.path))
    }

    /// Whether it is known what should hold. A copy that could not be read is no copy that is not there.
    pub(crate) fn is_sure(&self) -> Result<(), String> {
        self.unsure.values().next().map_or(Ok(()), |why| Err(why.clone()))
    }

    /// The endpoints in force, and how often they have changed.
    pub(crate) fn endpoints(&self) -> (Arc<EndpointsFile>, u64) {
        let endpoints = self.endpoints.as_ref();
        let good = endpoints.and_then(|endpoints| endpoints.good.clone());
        (good.unwrap_or_default(), endpoints.map_or(0, |endpoints| endpoints.revision))
    }

    /// Reads what was touched.
    pub(crate) fn read(&mut self, touched: &Touched, policies: &mut Policies) {
        self.accepted.retry();
        if let Some(folder) = self.folder.clone() {
            self.read_folder(&folder, touched, policies);
        }
        if touched.has_endpoints() {
            self.read_endpoints(touched.is_everything());
        }
        let of_endpoints = self.endpoints.iter().flat_map(|endpoints| &endpoints.diagnostics);
        policies.say(self.unlisted.iter().chain(of_endpoints).cloned().collect());
    }

    fn read_folder(&mut self, folder: &Path, touched: &Touched, policies: &mut Policies) {
        let wanted = touched.named_policies().filter(|_| self.is_listed && self.unlisted.is_none());
        if wanted.is_some_and(BTreeSet::is_empty) {
            return;
        }
        // A file that is gone together with its folder stays in force.
        let listed = match wanted {
            Some(_) => fs::read_dir(folder).map(|_| BTreeMap::new()),
            None => list(folder),
        };
        let files = match listed {
            Ok(files) => files,
            Err(error) => return self.keep_all(folder, &error, policies),
        };
        self.unlisted = None;
        self.unsure.remove(&*folder.to_string_lossy());
        match wanted {
            Some(names) => names.iter().for_each(|name| self.read_named(name, &folder.join(name), policies)),
            None => self.read_listed(folder, files, policies),
        }
    }

    fn keep_all(&mut self, folder: &Path, error: &io::Error, policies: &mut Policies) {
        self.unlisted = Some(unreadable(folder, error));
        if !self.is_listed && !is_absent(error) {
            // Nothing is known of it yet, and an earlier agent's rules may be in force.
            let problem = format!("listing {}: {error}", folder.display());
            self.unsure.insert(folder.to_string_lossy().into_owned(), problem);
        }
        let names: Vec<String> = self.known.keys().cloned().collect();
        for name in names {
            self.keep_former(&name, &folder.join(&name), Vec::new(), policies);
        }
    }

    fn read_listed(&mut self, folder: &Path, files: BTreeMap<String, io::Result<Metadata>>, policies: &mut Policies) {
        let copies = if self.is_listed { Vec::new() } else { self.accepted.names() };
        self.is_listed = true;
        let former = copies.into_iter().filter(|name| name != ENDPOINTS);
        let gone = former.chain(self.known.keys().cloned()).filter(|name| !files.contains_key(name));
        for name in gone.collect::<Vec<_>>() {
            self.forget(&name, policies);
        }
        for (name, found) in files {
            let stamp = found.as_ref().ok().map(Stamp::of);
            let read = self.known.get(&name).and_then(|known| known.read.as_ref());
            let is_same = stamp.is_some() && read.is_some_and(|read| read.stamp == stamp);
            if !is_same {
                self.read_policy(&name, &folder.join(&name), stamp, policies);
            }
        }
    }

    /// Reads a file that the watch has named, or takes it out where it is gone.
    fn read_named(&mut self, name: &str, path: &Path, policies: &mut Policies) {
        if !is_policy_name(name) {
            return;
        }
        match policy_file(path) {
            Some(found) => self.read_policy(name, path, found.ok().as_ref().map(Stamp::of), policies),
            None => self.forget(name, policies),
        }
    }

    fn forget(&mut self, name: &str, policies: &mut Policies) {
        self.known.remove(name);
        self.unsure.remove(name);
        self.accepted.remove(name);
        policies.remove(&UnitKey::File(name.into()));
    }

    fn read_policy(&mut self, name: &str, path: &Path, stamp: Option<Stamp>, policies: &mut Policies) {
        let text = match fs::read_to_string(path) {
            Ok(text) => text,
            // It went away since the folder was listed: the next reading has it.
            Err(error) if error.kind() == io::ErrorKind::NotFound => return,
            Err(error) => return self.keep_former(name, path, vec![unreadable(path, &error)], policies),
        };
        let read = Read { stamp: stamp.filter(Stamp::is_settled), digest: Digest::of(&text) };
        let known = self.known.entry(name.to_owned()).or_default();
        let is_same = known.read.as_ref().is_some_and(|before| before.digest == read.digest);
        known.read = Some(read);
        if is_same {
            return;
        }
        let shown_name = path.display().to_string();
        let parsed = policy::parse_with(&shown_name, &text, &self.features);
        let diagnostics = parsed.diagnostics.iter().map(shown).collect();
        let Some(good) = load(parsed, &mut policies.interner) else {
            return self.keep_former(name, path, diagnostics, policies);
        };
        known.good = Some(Arc::clone(&good));
        self.unsure.remove(name);
        self.accepted.save(name, &text);
        let unit = Unit { name: shown_name.into(), good: Some(good), is_current: true, diagnostics };
        policies.put(&UnitKey::File(name.into()), unit);
    }

    /// Leaves the last good form of a file in force.
    fn keep_former(&mut self, name: &str, path: &Path, diagnostics: Vec<view::Diagnostic>, policies: &mut Policies) {
        let shown_name = path.display().to_string();
        let has_form = self.known.get(name).is_some_and(|known| known.good.is_some());
        let former = if has_form { None } else { self.copy(name) };
        let former = former.and_then(|text| {
            let parsed = policy::parse_with(&shown_name, &text, &self.features);
            load(parsed, &mut policies.interner)
        });
        let is_unsure = self.unsure.contains_key(name);
        let known = self.known.entry(name.to_owned()).or_default();
        known.good = known.good.take().or(former);
        if is_unsure || diagnostics.iter().any(is_unreadable) || diagnostics.is_empty() {
            known.read = None;
        }
        let unit = Unit { name: shown_name.into(), good: known.good.clone(), is_current: false, diagnostics };
        policies.put(&UnitKey::File(name.into()), unit);
    }

    /// The last good form of a file from the state folder.
    fn copy(&mut self, name: &str) -> Option<String> {
        match self.accepted.read(name) {
            Ok(text) => {
                self.unsure.remove(name);
                text
            }
            Err(error) => {
                self.unsure.insert(name.to_owned(), format!("reading the kept copy of {name}: {error}"));
                None
            }
        }
    }

    /// Reads the endpoints file. Where `may_skip`, one whose metadata are those of before is left alone.
    fn read_endpoints(&mut self, may_skip: bool) {
        let Some(mut endpoints) = self.endpoints.take() else { return };
        self.read_endpoints_into(&mut endpoints, may_skip);
        self.endpoints = Some(endpoints);
    }

    fn read_endpoints_into(&mut self, endpoints: &mut Endpoints, may_skip: bool) {
        let stamp = fs::metadata(&endpoints.path).ok().as_ref().map(Stamp::of);
        if may_skip && stamp.is_some() && endpoints.read.as_ref().is_some_and(|read| read.stamp == stamp) {
            return;
        }
        let shown_name = endpoints.path.display().to_string();
        let mut failure = None;
        match fs::read_to_string(&endpoints.path) {
            Ok(text) => {
                let read = Read { stamp: stamp.filter(Stamp::is_settled), digest: Digest::of(&text) };
                let is_same = endpoints.read.as_ref().is_some_and(|before| before.digest == read.digest);
                endpoints.read = Some(read);
                if is_same {
                    return;
                }
                match endpoints::parse(&shown_name, &text) {
                    Ok(file) => {
                        self.accepted.save(ENDPOINTS, &text);
                        endpoints.replace(file);
                        endpoints.diagnostics.clear();
                    }
                    Err(mistakes) => endpoints.diagnostics = mistakes.iter().map(shown).collect(),
                }
            }
            Err(error) => {
                endpoints.read = None;
                endpoints.diagnostics = vec![unreadable(&endpoints.path, &error)];
                failure = Some(error).filter(|error| !is_absent(error));
            }
        }
        self.unsure.remove(ENDPOINTS);
        if endpoints.good.is_none()
            && let Some(file) = self.copy(ENDPOINTS).and_then(|text| endpoints::parse(&shown_name, &text).ok())
        {
            endpoints.replace(file);
        }
        if let (Some(error), None) = (failure, &endpoints.good) {
            self.unsure.insert(ENDPOINTS.to_owned(), format!("reading {}: {error}", endpoints.path.display()));
        }
        if self.unsure.contains_key(ENDPOINTS) {
            endpoints.read = None;
        }
    }
}

impl Endpoints {
    fn replace(&mut self, file: EndpointsFile) {
        if self.good.as_deref() != Some(&file) {
            self.good = Some(Arc::new(file));
            self.revision += 1;
        }
    }
}

/// Whether a last good form of the endpoints file is kept.
pub(crate) fn has_former_endpoints(state: &Path) -> bool {
    let text = fs::read_to_string(state.join(ACCEPTED).join(ENDPOINTS));
    text.is_ok_and(|text| endpoints::parse(ENDPOINTS, &text).is_ok())
}

/// Policy files of the folder by name, with what is known of each; hidden ones are left out.
fn list(folder: &Path) -> io::Result<BTreeMap<String, io::Result<Metadata>>> {
    let mut files = BTreeMap::new();
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        let Some(name) = path.file_name().and_then(|name| name.to_str()).filter(|name| is_policy_name(name)) else {
            continue;
        };
        if let Some(found) = policy_file(&path) {
            files.insert(name.to_owned(), found);
        }
    }
    Ok(files)
}

/// Whether a file of this name is one of policies.
pub(crate) fn is_policy_name(name: &str) -> bool {
    let ending = Path::new(name).extension().and_then(|ending| ending.to_str());
    !name.starts_with('.') && ending.is_some_and(|ending| ENDINGS.contains(&ending))
}

/// What is known of a file; `None` where there is none. An error is that it is there, and cannot be read: its last good
/// form holds.
fn policy_file(path: &Path) -> Option<io::Result<Metadata>> {
    match fs::metadata(path) {
        Ok(found) => found.is_file().then_some(Ok(found)),
        Err(error) if is_absent(&error) => None,
        Err(error) => Some(Err(error)),
    }
}

fn is_unreadable(found: &view::Diagnostic) -> bool {
    found.code == super::unit::UNREADABLE
}

#[cfg(test)]
mod tests;
