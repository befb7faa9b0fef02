//! What must survive the agent's death: numbers handed out and names learned, as one append-only file per boot.
//!
//! A `write(2)` survives `kill -9`; nothing here needs to survive the machine. The frames are those of
//! [`push_frame`]. A file is read up to the first frame that is
//! cut short or damaged. One that cannot be written is begun anew from a snapshot as soon as that can be: no entry is lost
//! meanwhile but by the agent's death.

use std::{
    fs::{self, File},
    io::{self, Seek, SeekFrom, Write},
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use namegate_engine::{Frames, LedgerEntry, push_frame};

use super::state;

/// The kernel's name of this boot: times since boot mean nothing in another.
const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";
/// Form of the frames, behind the boot in the first line.
const FORM: &str = "crc32c";
/// Octets that are written before the file is made anew from a snapshot.
const GROWTH_OCTETS_MAX: u64 = 64 << 20;
/// Between two tries to write a file that could not be.
const RETRY: Duration = Duration::from_secs(1);

/// The journal, open while it can be written.
#[derive(Debug)]
pub(crate) struct Journal {
    path: PathBuf,
    /// The first line.
    head: String,
    /// `None` after a failure.
    file: Option<File>,
    /// Octets of whole frames in the file.
    whole: u64,
    grown: u64,
    buffer: Vec<u8>,
    /// When the last try failed.
    failed: Option<Instant>,
}

/// What a journal was opened with.
#[derive(Debug, Default)]
pub(crate) struct Opened {
    /// What it held.
    pub(crate) entries: Vec<LedgerEntry>,
    /// Why it cannot be written.
    pub(crate) refused: Option<io::Error>,
}

impl Journal {
    /// Opens the journal of this boot and reads what it holds. A folder in which nothing can be read or written gives an
    /// empty one, which tries again.
    pub(crate) fn open(folder: &Path) -> (Self, Opened) {
        let path = folder.join("journal");
        let boot = fs::read_to_string(BOOT_ID).unwrap_or_default();
        let head = format!("{} {FORM}\n", boot.trim());
        let entries = match fs::read(&path) {
            Ok(octets) => read(&octets, &head),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Vec::new(),
            Err(error) => {
                tracing::error!(%error, file = %path.display(), "the journal cannot be read: learned names are forgotten");
                Vec::new()
            }
        };
        let mut journal = Self { path, head, file: None, whole: 0, grown: 0, buffer: Vec::new(), failed: None };
        let refused = journal.replace(&entries).err();
        (journal, Opened { entries, refused })
    }

    /// Whether all that was handed over is in the file.
    pub(crate) const fn is_whole(&self) -> bool {
        self.file.is_some()
    }

    /// Whether a file that could not be written is worth another try.
    pub(crate) fn may_retry(&self) -> bool {
        self.failed.is_none_or(|at| at.elapsed() >= RETRY)
    }

    /// When that is.
    pub(crate) fn retries_in(&self) -> Option<Duration> {
        self.failed.map(|at| RETRY.saturating_sub(at.elapsed()))
    }

    /// Adds entries; in the file on return. After a failure the file wants a snapshot, which has them.
    pub(crate) fn append(&mut self, entries: &[LedgerEntry]) -> io::Result<()> {
        self.buffer.clear();
        for entry in entries {
            push_frame(&mut self.buffer, entry).map_err(io::Error::other)?;
        }
        let Some(file) = &mut self.file else { return Err(io::Error::other("it waits to be made anew")) };
        if let Err(error) = file.write_all(&self.buffer) {
            // What was before stays readable, also if the agent dies here.
            let _ = file.set_len(self.whole).and_then(|()| file.seek(SeekFrom::Start(self.whole)));
            self.file = None;
            self.failed = Some(Instant::now());
            return Err(error);
        }
        self.whole += self.buffer.len() as u64;
        self.grown += self.buffer.len() as u64;
        Ok(())
    }

    /// Whether the file should be made anew.
    pub(crate) fn wants_snapshot(&self) -> bool {
        self.grown > GROWTH_OCTETS_MAX
    }

    /// Replaces what the file holds.
    pub(crate) fn replace(&mut self, entries: &[LedgerEntry]) -> io::Result<()> {
        let mut octets = self.head.clone().into_bytes();
        let framed = entries.iter().try_for_each(|entry| push_frame(&mut octets, entry)).map_err(io::Error::other);
        let folder = self.path.parent().unwrap_or(Path::new("."));
        let written =
            framed.and_then(|()| state::make_folder(folder)).and_then(|()| state::replace(&self.path, &octets));
        match written {
            Ok(file) => {
                (self.file, self.failed) = (Some(file), None);
                self.whole = octets.len() as u64;
                self.grown = 0;
                Ok(())
            }
            Err(error) => {
                // An older file that is open goes on being written.
                self.failed = self.file.is_none().then(Instant::now);
                self.grown = 0;
                Err(error)
            }
        }
    }
}

/// Whole frames of this boot, up to the first that cannot be read.
fn read(octets: &[u8], head: &str) -> Vec<LedgerEntry> {
    let Some(rest) = octets.strip_prefix(head.as_bytes()) else {
        if !octets.is_empty() {
            tracing::info!("the journal is of another boot or version: it is begun anew");
        }
        return Vec::new();
    };
    let frames = Frames::read(rest);
    if frames.whole < rest.len() {
        tracing::warn!(
            octet = head.len() + frames.whole,
            of = octets.len(),
            entries = frames.entries.len(),
            "the journal is cut short or damaged: names that were learned after this octet are forgotten"
        );
    }
    frames.entries
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn entry(at: usize) -> LedgerEntry {
        LedgerEntry::Left { key: format!("shop/web-{at}").into() }
    }

    fn keys(entries: &[LedgerEntry]) -> Vec<String> {
        let key = |entry: &LedgerEntry| match entry {
            LedgerEntry::Left { key } => key.to_string(),
            other => panic!("{other:?}"),
        };
        entries.iter().map(key).collect()
    }

    /// A folder with the journal of three entries, and where each frame ends.
    fn written() -> (tempfile::TempDir, Vec<u8>, Vec<usize>) {
        let folder = tempfile::tempdir().unwrap();
        let (mut journal, opened) = Journal::open(folder.path());
        assert!(opened.refused.is_none() && opened.entries.is_empty());
        let path = folder.path().join("journal");
        let mut ends = vec![fs::read(&path).unwrap().len()];
        for at in 0..3 {
            journal.append(&[entry(at)]).unwrap();
            ends.push(fs::read(&path).unwrap().len());
        }
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        (folder, fs::read(path).unwrap(), ends)
    }

    fn reopened(folder: &Path, octets: &[u8]) -> Vec<String> {
        fs::write(folder.join("journal"), octets).unwrap();
        keys(&Journal::open(folder).1.entries)
    }

    #[test]
    fn a_torn_journal_is_read_up_to_the_damage() {
        let (folder, octets, ends) = written();
        for length in 0..=octets.len() {
            let whole = ends.iter().filter(|end| **end <= length).count().saturating_sub(1);
            assert_eq!(reopened(folder.path(), &octets[..length]).len(), whole, "cut at {length}");
        }
    }

    #[test]
    fn a_flipped_octet_ends_what_is_read() {
        let (folder, octets, ends) = written();
        for at in 0..octets.len() {
            for bit in 0..8 {
                let mut damaged = octets.clone();
                damaged[at] ^= 1 << bit;
                let whole = ends.iter().filter(|end| **end <= at).count().saturating_sub(1);
                let want: Vec<String> = (0..whole).map(|at| format!("shop/web-{at}")).collect();
                assert_eq!(reopened(folder.path(), &damaged), want, "bit {bit} of octet {at}");
            }
        }
    }

    #[test]
    fn another_boot_and_noise_give_nothing() {
        let (folder, octets, _) = written();
        let mut other = octets.clone();
        other[0] = b'!';
        assert_eq!(reopened(folder.path(), &other), [""; 0]);
        assert_eq!(reopened(folder.path(), &[0xff; 4_096]), [""; 0]);
        assert_eq!(reopened(folder.path(), b""), [""; 0]);
    }

    #[test]
    fn a_folder_that_cannot_be_used_gives_a_journal_that_tries_again() {
        let folder = tempfile::tempdir().unwrap();
        let place = folder.path().join("state");
        fs::write(&place, "no folder").unwrap();
        let (mut journal, opened) = Journal::open(&place);
        assert!(opened.refused.is_some() && !journal.is_whole() && journal.retries_in().is_some());
        assert!(journal.append(&[entry(0)]).is_err());
        fs::remove_file(&place).unwrap();
        journal.replace(&[entry(0)]).unwrap();
        journal.append(&[entry(1)]).unwrap();
        assert!(journal.is_whole());
        assert_eq!(keys(&Journal::open(&place).1.entries), ["shop/web-0", "shop/web-1"]);
    }

    #[test]
    fn an_entry_after_a_failed_one_is_read_again() {
        let (folder, ..) = written();
        let (mut journal, opened) = Journal::open(folder.path());
        assert_eq!(opened.entries.len(), 3);
        // A device that is full for ever.
        journal.file = Some(File::options().write(true).open("/dev/full").unwrap());
        let refused = journal.append(&[entry(3)]).unwrap_err();
        assert_eq!(refused.raw_os_error(), Some(nix::libc::ENOSPC));
        assert!(!journal.is_whole(), "entries after it would stand behind a torn one");
        journal.replace(&(0..4).map(entry).collect::<Vec<_>>()).unwrap();
        journal.append(&[entry(4)]).unwrap();
        assert_eq!(keys(&Journal::open(folder.path()).1.entries).len(), 5);
    }
}
