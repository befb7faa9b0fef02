//! Word of changes in the folders of policies and endpoints, also after a folder was removed and made anew.

use std::{
    fs,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    sync::mpsc::Sender,
};

use anyhow::Context;
use notify::{
    Event, EventKind, RecommendedWatcher, RecursiveMode, Watcher,
    event::{AccessKind, AccessMode, ModifyKind},
};

use super::{files::is_policy_name, touched::Cause, wake::Wake};

/// The watched folders.
pub(crate) struct FileWatch {
    watcher: RecommendedWatcher,
    /// Each with the folder that is watched there: device and inode.
    folders: Vec<(PathBuf, Option<(u64, u64)>)>,
}

impl FileWatch {
    /// Wakes the thread whenever a policy or the endpoints file may have changed; call [`FileWatch::refresh`] before each
    /// reading.
    pub(crate) fn new(
        (policies, endpoints): (Option<&Path>, Option<&Path>),
        wake: Sender<Wake>,
    ) -> anyhow::Result<Self> {
        let inside = policies.map(absolute).transpose()?;
        let file = endpoints.map(absolute).transpose()?;
        let parent = file.as_deref().and_then(Path::parent).map(Path::to_owned);
        let mut folders: Vec<PathBuf> = inside.iter().cloned().chain(parent).collect();
        folders.dedup();
        let received = move |event: notify::Result<Event>| {
            let (causes, is_complete) = match &event {
                Ok(event) => (causes(event, inside.as_deref(), file.as_deref()), is_complete(event)),
                Err(_) => (vec![Cause::Everything], true),
            };
            if !causes.is_empty() {
                // The thread may have ended.
                let _ = wake.send(Wake::Changed { causes, is_complete });
            }
        };
        let watcher = notify::recommended_watcher(received).context("watching files")?;
        Ok(Self { watcher, folders: folders.into_iter().map(|folder| (folder, None)).collect() })
    }

    /// Watches folders that are there and are not watched yet. Says whether there were such: what happened in them before is
    /// not known.
    pub(crate) fn refresh(&mut self) -> bool {
        let mut is_new = false;
        for (folder, watched) in &mut self.folders {
            let there = fs::metadata(&*folder).ok().map(|found| (found.dev(), found.ino()));
            if there == *watched && there.is_some() {
                continue;
            }
            if watched.take().is_some() {
                // The kernel may have ended it with the folder.
                let _ = self.watcher.unwatch(folder);
            }
            if there.is_none() {
                continue;
            }
            match self.watcher.watch(folder, RecursiveMode::NonRecursive) {
                Ok(()) => {
                    *watched = there;
                    is_new = true;
                }
                Err(error) => tracing::debug!(%error, folder = %folder.display(), "watching"),
            }
        }
        is_new
    }

    /// Whether all are watched: others are looked for again.
    pub(crate) fn is_whole(&self) -> bool {
        self.folders.iter().all(|(_, watched)| watched.is_some())
    }
}

fn absolute(path: &Path) -> anyhow::Result<PathBuf> {
    std::path::absolute(path).with_context(|| format!("reading the path {}", path.display()))
}

/// What an event is about; nothing where a file was only read.
fn causes(event: &Event, folder: Option<&Path>, endpoints: Option<&Path>) -> Vec<Cause> {
    if event.need_rescan() {
        return vec![Cause::Everything];
    }
    if matches!(event.kind, EventKind::Access(kind) if kind != AccessKind::Close(AccessMode::Write)) {
        return Vec::new();
    }
    event.paths.iter().flat_map(|path| causes_of_path(path, folder, endpoints)).collect()
}

fn causes_of_path(path: &Path, folder: Option<&Path>, endpoints: Option<&Path>) -> Vec<Cause> {
    let name = path.file_name().and_then(|name| name.to_str());
    // A mounted configuration is replaced by moving a link whose name starts with two dots.
    let is_link = path.file_name().is_some_and(|name| name.to_string_lossy().starts_with(".."));
    let mut causes = Vec::new();
    if let Some(file) = endpoints
        && (is_link || path == file || Some(path) == file.parent())
    {
        causes.push(Cause::Endpoints);
    }
    let is_inside = |folder: &Path| path.parent() == Some(folder);
    match (folder, name) {
        (Some(folder), Some(name)) if is_inside(folder) && is_policy_name(name) => {
            causes.push(Cause::Policy(name.to_owned()));
        }
        // Files of the folder may be links that lead over this path.
        (Some(folder), _) if is_inside(folder) || path == folder || is_link => causes.push(Cause::Folder),
        _ => {}
    }
    causes
}

/// Whether the file has its content now: it was closed, moved to its place, or removed.
fn is_complete(event: &Event) -> bool {
    matches!(
        event.kind,
        EventKind::Access(AccessKind::Close(AccessMode::Write))
            | EventKind::Modify(ModifyKind::Name(_))
            | EventKind::Remove(_)
    )
}

#[cfg(test)]
mod tests {
    use std::{
        collections::BTreeSet,
        sync::mpsc::{Receiver, channel},
        time::Duration,
    };

    use super::*;
    use crate::agent::touched::Touched;

    /// What is received until the watch has been silent for a while.
    fn received(woken: &Receiver<Wake>) -> (Touched, bool) {
        let mut touched = Touched::default();
        let mut was_complete = false;
        while let Ok(Wake::Changed { causes, is_complete }) = woken.recv_timeout(Duration::from_millis(300)) {
            for cause in causes {
                touched.add(cause);
            }
            was_complete |= is_complete;
        }
        (touched, was_complete)
    }

    #[test]
    fn a_file_is_named_and_the_moving_of_a_link_touches_all() {
        let folder = tempfile::tempdir().unwrap();
        let (policies, endpoints) = (folder.path().join("policies"), folder.path().join("endpoints.yaml"));
        fs::create_dir(&policies).unwrap();
        let (wake, woken) = channel();
        let mut watch = FileWatch::new((Some(&policies), Some(&endpoints)), wake).unwrap();
        assert!(watch.refresh() && watch.is_whole());
        assert!(!watch.refresh());

        fs::write(policies.join("a.yaml"), "text").unwrap();
        let (touched, is_complete) = received(&woken);
        let named: Vec<&str> = touched.named_policies().into_iter().flatten().map(String::as_str).collect();
        assert_eq!((named, touched.has_endpoints(), is_complete), (vec!["a.yaml"], false, true));

        fs::write(folder.path().join("beside"), "text").unwrap();
        fs::read_to_string(policies.join("a.yaml")).unwrap();
        let (touched, is_complete) = received(&woken);
        assert!(touched.named_policies().is_some_and(BTreeSet::is_empty) && !is_complete);

        fs::rename(folder.path().join("beside"), &endpoints).unwrap();
        let (touched, is_complete) = received(&woken);
        assert!(touched.has_endpoints() && touched.named_policies().is_some() && is_complete);

        std::os::unix::fs::symlink("somewhere", policies.join("..data")).unwrap();
        let (touched, _) = received(&woken);
        assert!(touched.named_policies().is_none());

        fs::remove_dir_all(&policies).unwrap();
        let (touched, _) = received(&woken);
        assert!(touched.named_policies().is_none());
        assert!(!watch.refresh() && !watch.is_whole());
        fs::create_dir(&policies).unwrap();
        assert!(watch.refresh() && watch.is_whole());
    }

    #[test]
    fn a_watch_that_has_lost_events_touches_everything() {
        let event = Event::new(EventKind::Other).set_flag(notify::event::Flag::Rescan);
        assert_eq!(causes(&event, Some(Path::new("/p")), None), [Cause::Everything]);
    }
}
