//! Whether a file has changed: by its metadata, and by its content.

use std::{
    fs::Metadata,
    os::unix::fs::MetadataExt,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use sha2::{Digest as _, Sha256};

/// The kernel counts the times of files in ticks of some milliseconds, other file systems in seconds: a second change within
/// this time of the first may show in none of them.
const UNSETTLED: Duration = Duration::from_secs(2);

/// What the system knows of a file. Writing to it, replacing it, and moving another one to its place change it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Stamp {
    device: u64,
    inode: u64,
    length: u64,
    modified: (i64, i64),
    /// When its inode changed last: no program can set it.
    changed: (i64, i64),
}

impl Stamp {
    /// The stamp of a file, taken before it is read.
    pub(crate) fn of(found: &Metadata) -> Self {
        Self {
            device: found.dev(),
            inode: found.ino(),
            length: found.len(),
            modified: (found.mtime(), found.mtime_nsec()),
            changed: (found.ctime(), found.ctime_nsec()),
        }
    }

    /// Whether a change from now on would give another stamp.
    pub(crate) fn is_settled(&self) -> bool {
        let changed = UNIX_EPOCH + Duration::from_secs(u64::try_from(self.changed.0).unwrap_or(0));
        SystemTime::now().duration_since(changed).is_ok_and(|age| age > UNSETTLED)
    }
}

/// A content hash.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Digest([u8; 32]);

impl Digest {
    /// The hash of a text.
    pub(crate) fn of(text: &str) -> Self {
        Self(Sha256::digest(text.as_bytes()).into())
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn another_file_in_the_same_place_has_another_stamp() {
        let folder = tempfile::tempdir().unwrap();
        let (path, beside) = (folder.path().join("a"), folder.path().join("b"));
        fs::write(&path, "one").unwrap();
        fs::write(&beside, "two").unwrap();
        let stamp = || Stamp::of(&fs::metadata(&path).unwrap());
        let before = stamp();
        assert_eq!(stamp(), before);
        fs::rename(&beside, &path).unwrap();
        assert_ne!(stamp(), before);
    }

    #[test]
    fn a_file_that_was_just_written_may_change_under_its_stamp() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a");
        fs::write(&path, "one").unwrap();
        let stamp = Stamp::of(&fs::metadata(&path).unwrap());
        assert!(!stamp.is_settled());
        assert!(Stamp { changed: (stamp.changed.0 - 3, 0), ..stamp }.is_settled());
    }

    #[test]
    fn the_content_has_one_digest() {
        assert_eq!(Digest::of("a"), Digest::of("a"));
        assert_ne!(Digest::of("a"), Digest::of("b"));
    }
}
