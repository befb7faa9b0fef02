//! Files of the state folder: for their owner alone, replaced at once, and never a reason not to start.
//!
//! A folder that is full, read-only or missing is a problem in health and log. What could not be written is tried again.

use std::{
    collections::BTreeMap,
    fs::{self, Permissions},
    io,
    os::unix::fs::PermissionsExt,
    path::PathBuf,
    sync::Arc,
};

use namegate_enforcer::private_file::{BESIDE, FOLDER_MODE, make_folder, replace};

use super::problems::{ProblemKind, Problems};

/// The last good forms of files or objects: a folder with a copy of each.
#[derive(Debug)]
pub(crate) struct Copies {
    folder: PathBuf,
    problems: Arc<Problems>,
    /// The folder is there.
    made: bool,
    /// What the folder should hold and does not yet: the text, or nothing.
    pending: BTreeMap<String, Option<String>>,
}

impl Copies {
    /// The copies in a folder, which is made where it is missing.
    pub(crate) fn open(folder: PathBuf, problems: Arc<Problems>) -> Self {
        let mut copies = Self { folder, problems, made: false, pending: BTreeMap::new() };
        copies.retry();
        copies
    }

    fn make_folder(&self) -> io::Result<()> {
        make_folder(&self.folder)?;
        fs::set_permissions(&self.folder, Permissions::from_mode(FOLDER_MODE))
    }

    /// The copy of that name.
    ///
    /// One that could not be read may be there: that is an error.
    pub(crate) fn read(&self, name: &str) -> io::Result<Option<String>> {
        if let Some(pending) = self.pending.get(name) {
            return Ok(pending.clone());
        }
        match fs::read_to_string(self.folder.join(name)) {
            Ok(text) => Ok(Some(text)),
            Err(error) if is_absent(&error) => Ok(None),
            // One that is no text any more is damaged, and is nothing to wait for.
            Err(error) if error.kind() == io::ErrorKind::InvalidData => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Names of all copies.
    pub(crate) fn names(&self) -> Vec<String> {
        let files = fs::read_dir(&self.folder).into_iter().flatten().flatten();
        let names = files.filter_map(|file| file.file_name().into_string().ok());
        names.filter(|name| !name.ends_with(BESIDE)).collect()
    }

    /// Keeps a copy.
    pub(crate) fn save(&mut self, name: &str, text: &str) {
        if self.read(name).ok().flatten().as_deref() != Some(text) {
            self.pending.insert(name.to_owned(), Some(text.to_owned()));
            self.retry();
        }
    }

    /// Lets a copy go.
    pub(crate) fn remove(&mut self, name: &str) {
        if self.pending.contains_key(name) || self.folder.join(name).exists() {
            self.pending.insert(name.to_owned(), None);
            self.retry();
        }
    }

    /// Whether the folder lags behind.
    pub(crate) fn is_behind(&self) -> bool {
        !self.made || !self.pending.is_empty()
    }

    /// Carries out what could not be before.
    pub(crate) fn retry(&mut self) {
        if !self.is_behind() {
            return;
        }
        let mut carried_out = self.make_folder();
        self.made = carried_out.is_ok();
        while carried_out.is_ok()
            && let Some((name, text)) = self.pending.first_key_value()
        {
            let path = self.folder.join(name);
            carried_out = match text {
                Some(text) => replace(&path, text.as_bytes()).map(drop),
                None => match fs::remove_file(&path) {
                    Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
                    _ => Ok(()),
                },
            };
            if carried_out.is_ok() {
                self.pending.pop_first();
            }
        }
        self.note(carried_out);
    }

    fn note(&self, result: io::Result<()>) {
        let subject = self.folder.display().to_string();
        match result {
            Ok(()) => self.problems.clear(ProblemKind::State, &subject),
            Err(error) => {
                let message = format!(
                    "last good forms of policies and endpoints cannot be kept or let go: {error}; a restart would know \
                     those of before. Make room in the folder, or set another `state`"
                );
                self.problems.raise(ProblemKind::State, &subject, message);
            }
        }
    }
}

/// Whether the system says that there is no such file, and not only that it could not be asked.
pub(crate) fn is_absent(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory)
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    fn mode(path: &Path) -> u32 {
        fs::metadata(path).unwrap().permissions().mode() & 0o777
    }

    #[test]
    fn copies_are_for_their_owner_alone() {
        let folder = tempfile::tempdir().unwrap();
        let (place, problems) = (folder.path().join("state/accepted"), Arc::new(Problems::default()));
        let mut copies = Copies::open(place.clone(), problems);
        copies.save("a.yaml", "text");
        assert_eq!((mode(&place), mode(&place.join("a.yaml"))), (0o700, 0o600));
        fs::set_permissions(place.join("a.yaml"), Permissions::from_mode(0o644)).unwrap();
        copies.save("a.yaml", "other");
        assert_eq!(mode(&place.join("a.yaml")), 0o600);
        assert_eq!(copies.names(), ["a.yaml"]);
    }

    #[test]
    fn what_cannot_be_written_is_a_problem_until_it_can() {
        let folder = tempfile::tempdir().unwrap();
        let (place, problems) = (folder.path().join("state"), Arc::new(Problems::default()));
        fs::write(&place, "a file in the place of the folder").unwrap();
        let mut copies = Copies::open(place.clone(), Arc::clone(&problems));
        assert_eq!(problems.list().len(), 1);
        copies.save("a.yaml", "text");
        copies.save("b.yaml", "text");
        copies.remove("b.yaml");
        let read = |copies: &Copies, name: &str| copies.read(name).unwrap();
        assert_eq!((read(&copies, "a.yaml").as_deref(), read(&copies, "b.yaml")), (Some("text"), None));
        assert!(copies.is_behind());
        fs::remove_file(&place).unwrap();
        copies.retry();
        assert_eq!((problems.list().len(), copies.is_behind()), (0, false));
        assert_eq!((copies.names(), read(&copies, "a.yaml").as_deref()), (vec!["a.yaml".to_owned()], Some("text")));
    }
}
