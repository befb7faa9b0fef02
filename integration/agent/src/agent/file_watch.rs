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
    event::{AccessKind, AccessMode},
};

use super::reload::Wake;

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
        let told = move |event: notify::Result<Event>| {
            let matters = event.as_ref().map_or(true, |event| is_change(event, inside.as_deref(), file.as_deref()));
            if matters {
                // The thread may have ended.
                let _ = wake.send(Wake::Changed);
            }
        };
        let watcher = notify::recommended_watcher(told).context("watching files")?;
        Ok(Self { watcher, folders: folders.into_iter().map(|folder| (folder, None)).collect() })
    }

    /// Watches folders that are there and are not watched yet.
    pub(crate) fn refresh(&mut self) {
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
                Ok(()) => *watched = there,
                Err(error) => tracing::debug!(%error, folder = %folder.display(), "watching"),
            }
        }
    }

    /// Whether all are watched: others are looked for again.
    pub(crate) fn is_whole(&self) -> bool {
        self.folders.iter().all(|(_, watched)| watched.is_some())
    }
}

fn absolute(path: &Path) -> anyhow::Result<PathBuf> {
    std::path::absolute(path).with_context(|| format!("reading the path {}", path.display()))
}

/// Reading a file is an event too, and no change.
fn is_change(event: &Event, policies: Option<&Path>, endpoints: Option<&Path>) -> bool {
    let is_read = matches!(event.kind, EventKind::Access(kind) if kind != AccessKind::Close(AccessMode::Write));
    // A mounted configuration is replaced by moving a link whose name starts with two dots.
    let is_link = |path: &Path| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with(".."));
    let is_ours = |path: &Path| {
        policies.is_some_and(|folder| path.parent() == Some(folder) || path == folder)
            || endpoints.is_some_and(|file| path == file || Some(path) == file.parent())
    };
    !is_read && event.paths.iter().any(|path| is_ours(path) || is_link(path))
}
