//! One agent for each folder of pins: who holds its lock may write the maps below it.
//!
//! The lock (`flock(2)`) is on the folder itself, so that two agents with folders of state of their own, or with two paths
//! to one folder, meet. It ends with its process, however that ends.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::{MetadataExt, symlink};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};

use crate::{LoadError, bpffs};

/// A link below the pins whose target says who holds the lock. A BPF file system takes links, and no other files.
const HOLDER: &str = "agent";

/// The lock of a folder of pins. It is free again when this is dropped, or the process ends.
#[derive(Debug)]
pub struct PinsLock {
    pins: PathBuf,
    held: Flock<File>,
    /// What stands in the link: process and socket.
    holder: String,
}

impl PinsLock {
    /// Takes the lock of the folder, which is made where it is missing. `socket` is where the holder can be asked.
    ///
    /// The folder must be on a BPF file system that outlives this process.
    pub fn take(pins: &Path, socket: &Path) -> Result<Self, LoadError> {
        bpffs::make_folder(pins)?;
        bpffs::check_lasting(pins)?;
        let holder = format!("process {}, socket {}", std::process::id(), socket.display());
        let held = lock(pins)?;
        let lock = Self { pins: pins.to_owned(), held, holder };
        lock.sign();
        Ok(lock)
    }

    /// Takes the lock of a folder that was made anew in the place of the one that is locked.
    pub fn renew(&mut self) -> Result<(), LoadError> {
        let is_same =
            |folder: &fs::Metadata, held: &fs::Metadata| (folder.dev(), folder.ino()) == (held.dev(), held.ino());
        let Ok(folder) = fs::metadata(&self.pins) else { return Ok(()) };
        if self.held.metadata().is_ok_and(|held| is_same(&folder, &held)) {
            return Ok(());
        }
        self.held = lock(&self.pins)?;
        self.sign();
        Ok(())
    }

    /// Without the link a second agent is refused all the same, and not told by whom.
    fn sign(&self) {
        let path = self.pins.join(HOLDER);
        let _ = fs::remove_file(&path);
        let _ = symlink(&self.holder, &path);
    }
}

fn lock(pins: &Path) -> Result<Flock<File>, LoadError> {
    let failed = |source: io::Error| LoadError::File { action: "locking", path: pins.to_owned(), source };
    let folder = File::open(pins).map_err(failed)?;
    Flock::lock(folder, FlockArg::LockExclusiveNonblock).map_err(|(_, error)| match error {
        Errno::EWOULDBLOCK => {
            let holder = fs::read_link(pins.join(HOLDER)).ok();
            let holder = holder.map(|holder| format!(" ({})", holder.display())).unwrap_or_default();
            LoadError::InUse { pins: pins.to_owned(), holder }
        }
        error => failed(error.into()),
    })
}
