//! The file system in which maps and links outlive the agent, and what the kernel must have.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};
use nix::mount::{MsFlags, mount};
use nix::sys::stat::{major, minor};
use nix::sys::statfs::{BPF_FS_MAGIC, statfs};
use nix::sys::utsname::uname;

use crate::LoadError;

/// Where the file system is mounted by custom.
const CUSTOMARY: &str = "/sys/fs/bpf";

/// Refuses a kernel older than the first one with `feature`.
pub(crate) fn check_kernel(feature: &'static str, since: (u32, u32)) -> Result<(), LoadError> {
    let release = uname().map(|name| name.release().to_string_lossy().into_owned()).unwrap_or_default();
    if version(&release).is_some_and(|version| version < since) {
        return Err(LoadError::Kernel { release, feature, since });
    }
    Ok(())
}

/// Major and minor version of a kernel; `None` for a form not known, which is left to the kernel to refuse.
fn version(release: &str) -> Option<(u32, u32)> {
    let mut parts = release.split(['.', '-']);
    Some((parts.next()?.parse().ok()?, parts.next()?.parse().ok()?))
}

/// Makes the folder for pins; mounts the file system at its customary place where it is missing there.
pub(crate) fn make_folder(path: &Path) -> Result<(), LoadError> {
    if path.starts_with(CUSTOMARY) && !is_bpffs(Path::new(CUSTOMARY)) {
        if !sees_first_process() {
            return Err(LoadError::PrivateBpfFs { path: path.to_owned() });
        }
        mount_customary()
            .map_err(|error| refused("mounting the BPF file system at", CUSTOMARY.as_ref(), error.into()))?;
    }
    let existing = path.ancestors().find(|folder| folder.exists());
    if !existing.is_some_and(is_bpffs) {
        return Err(LoadError::NotBpfFs { path: path.to_owned() });
    }
    fs::create_dir_all(path).map_err(|error| refused("making the folder", path, error))
}

/// Whether process 1 is the machine's first, and no container's.
fn sees_first_process() -> bool {
    /// Inode of the first namespace of processes (`PROC_PID_INIT_INO`).
    const FIRST: &str = "pid:[4026531836]";
    // Where that cannot be read, nothing speaks against it.
    fs::read_link("/proc/self/ns/pid").map_or(true, |namespace| namespace == Path::new(FIRST))
}

/// Refuses a BPF file system that is mounted where process 1 does not see it: it goes with the last process that does.
pub(crate) fn check_lasting(path: &Path) -> Result<(), LoadError> {
    let device = fs::metadata(path).map_err(|error| refused("reading", path, error))?.dev();
    // Without the right to read them there is nothing to compare with.
    let Ok(mounts) = fs::read_to_string("/proc/1/mountinfo") else { return Ok(()) };
    if holds(&mounts, (major(device), minor(device))) {
        return Ok(());
    }
    Err(LoadError::PrivateBpfFs { path: path.to_owned() })
}

/// Whether a file system is among mounts (`proc_pid_mountinfo(5)`).
fn holds(mounts: &str, (major, minor): (u64, u64)) -> bool {
    let device = format!("{major}:{minor}");
    mounts.lines().any(|line| line.split(' ').nth(2) == Some(&device))
}

/// Mounts it, unless another process was faster: a second mount would hide the first.
fn mount_customary() -> nix::Result<()> {
    let folder = File::open(CUSTOMARY).map_err(|error| Errno::from_raw(error.raw_os_error().unwrap_or(libc::EIO)))?;
    let held = Flock::lock(folder, FlockArg::LockExclusive).map_err(|(_, error)| error)?;
    if !is_bpffs(Path::new(CUSTOMARY)) {
        mount(Some("bpf"), CUSTOMARY, Some("bpf"), MsFlags::empty(), None::<&Path>)?;
    }
    drop(held);
    Ok(())
}

fn is_bpffs(path: &Path) -> bool {
    statfs(path).is_ok_and(|found| found.filesystem_type() == BPF_FS_MAGIC)
}

fn refused(action: &'static str, path: &Path, source: io::Error) -> LoadError {
    match source.kind() {
        io::ErrorKind::PermissionDenied => LoadError::Privilege { action: "making a place for pinned maps", source },
        _ => LoadError::File { action, path: path.to_owned(), source },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_read_as_distributions_write_them() {
        for (release, want) in [
            ("6.18.44-fc-v657", Some((6, 18))),
            ("6.6.0", Some((6, 6))),
            ("5.15-generic", Some((5, 15))),
            ("6.12-rc3", Some((6, 12))),
            ("", None),
            ("next", None),
        ] {
            assert_eq!(version(release), want, "{release:?}");
        }
    }

    #[test]
    fn mounts_are_told_apart_by_their_device() {
        let mounts = "22 27 0:21 / /proc rw,relatime - proc proc rw\n36 23 0:31 / /sys/fs/bpf rw - bpf bpf rw\ncut";
        for (device, want) in [((0, 31), true), ((0, 3), false), ((0, 32), false), ((0, 21), true)] {
            assert_eq!(holds(mounts, device), want, "{device:?}");
        }
        assert!(sees_first_process() || fs::read_link("/proc/self/ns/pid").is_ok());
    }

    #[test]
    fn pins_belong_on_a_bpf_file_system() {
        let error = make_folder(Path::new("/tmp/namegate/pins")).unwrap_err();
        assert!(matches!(error, LoadError::NotBpfFs { .. }), "{error}");
        assert!(error.to_string().contains("/tmp/namegate/pins"), "{error}");
        assert!(!Path::new("/tmp/namegate/pins").exists());
    }
}
