//! A folder of the BPF file system for each world.

use std::fs::File;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use nix::fcntl::{Flock, FlockArg};
use nix::mount::{MsFlags, mount};
use nix::sys::statfs::{BPF_FS_MAGIC, statfs};

/// Where pinned maps lie in the file tree.
const ROOT: &str = "/sys/fs/bpf";
/// The testbed's own part of it.
pub(crate) const PINS: &str = "/sys/fs/bpf/namegate-testbed";
/// Held while looking and mounting: a second mount would hide the first.
const LOCK: &str = "/run/namegate-testbed.lock";

/// The folder for a world; mounts the file system where it is missing. The agent makes the folder.
pub(super) fn folder(world: &str) -> Result<PathBuf> {
    let lock = File::options().create(true).append(true).open(LOCK).with_context(|| format!("opening {LOCK}"))?;
    let held = Flock::lock(lock, FlockArg::LockExclusive).map_err(|(_, error)| error).context("locking")?;
    if statfs(ROOT).with_context(|| format!("looking at {ROOT}"))?.filesystem_type() != BPF_FS_MAGIC {
        mount(Some("bpf"), ROOT, Some("bpf"), MsFlags::empty(), None::<&Path>)
            .with_context(|| format!("mounting the BPF file system at {ROOT}"))?;
    }
    std::fs::create_dir_all(PINS).with_context(|| format!("making {PINS}"))?;
    drop(held);
    Ok(Path::new(PINS).join(world))
}

/// Removes a world's folder with everything in it: programs attached by pinned links go with them.
pub(super) fn remove(folder: &Path) {
    let _ = std::fs::remove_dir_all(folder); // The agent may not have come so far.
}
