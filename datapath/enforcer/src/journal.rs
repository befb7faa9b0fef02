//! What must survive the agent's death: numbers handed out and names learned, as one append-only file per boot.
//!
//! A `write(2)` survives `kill -9`; nothing here needs to survive the machine. The frames are those of
//! [`push_frame`]. A file is read up to the first frame that is cut short or damaged. One that has grown is made anew from a
//! snapshot, piece by piece beside the work on answers. So is one that cannot be written, as soon as it can be: no entry is
//! lost meanwhile but by the agent's death.

use std::{
    fs::{self, File},
    io::{self, Seek, SeekFrom, Write},
    mem,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use namegate_engine::{Frames, JOURNAL_FORM, LedgerEntry, push_frame};

use crate::private_file;

/// The kernel's name of this boot: times since boot mean nothing in another.
const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";
/// Bytes by which the file may grow beyond twice its size after the last snapshot, before it is made anew.
const GROWTH_BYTES_MAX: u64 = 64 << 20;
/// Between two tries to write a file that could not be.
const RETRY: Duration = Duration::from_secs(1);

/// The journal, open while it can be written.
#[derive(Debug)]
pub struct Journal {
    path: PathBuf,
    /// The first line: the boot, and the form of the frames.
    head: String,
    /// `None` after a failure.
    file: Option<Growing>,
    /// The file that takes its place once a whole snapshot is in it.
    next: Option<Growing>,
    /// Bytes of the file after the last snapshot.
    base: u64,
    /// An earlier agent wrote the file: what does not matter any more is still in it.
    is_old: bool,
    buffer: Vec<u8>,
    /// When the last try failed.
    failed: Option<Instant>,
}

/// What a journal was opened with.
#[derive(Debug, Default)]
pub struct Opened {
    /// What it held.
    pub entries: Vec<LedgerEntry>,
    /// Why it cannot be written.
    pub refused: Option<io::Error>,
}

/// A file that is written at its end.
#[derive(Debug)]
struct Growing {
    file: File,
    /// Bytes of whole frames and the head.
    whole: u64,
}

impl Growing {
    /// Adds bytes: all of them, or none.
    fn append(&mut self, bytes: &[u8]) -> io::Result<()> {
        if let Err(error) = self.file.write_all(bytes) {
            // What was before stays readable, also if the agent dies here.
            let _ = self.file.set_len(self.whole).and_then(|()| self.file.seek(SeekFrom::Start(self.whole)));
            return Err(error);
        }
        self.whole += bytes.len() as u64;
        Ok(())
    }
}

impl Journal {
    /// Opens the journal of this boot and reads what it holds. A folder in which nothing can be read or written gives an
    /// empty one, which tries again.
    pub fn open(folder: &Path) -> (Self, Opened) {
        let path = folder.join("journal");
        let boot = fs::read_to_string(BOOT_ID).unwrap_or_default();
        let head = format!("{} {JOURNAL_FORM}\n", boot.trim());
        let read = match fs::read(&path) {
            Ok(bytes) => read(&bytes, &head),
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(error) => {
                tracing::error!(%error, file = %path.display(), "the journal cannot be read: learned names are forgotten");
                None
            }
        };
        let mut journal =
            Self { path, head, file: None, next: None, base: 0, is_old: false, buffer: Vec::new(), failed: None };
        let (entries, opened) = match read {
            Some(frames) => {
                let opened = journal.go_on(frames.whole);
                (frames.entries, opened)
            }
            None => (Vec::new(), journal.replace(&[])),
        };
        (journal, Opened { entries, refused: opened.err() })
    }

    /// Goes on behind the head and so many bytes of frames that were read.
    fn go_on(&mut self, frames: usize) -> io::Result<()> {
        let whole = (self.head.len() + frames) as u64;
        match private_file::open_to_append(&self.path, whole) {
            Ok(file) => {
                self.file = Some(Growing { file, whole });
                self.is_old = true;
                Ok(())
            }
            Err(error) => {
                self.failed = Some(Instant::now());
                Err(error)
            }
        }
    }

    /// Whether all that was handed over is in the file.
    pub const fn is_whole(&self) -> bool {
        self.file.is_some()
    }

    /// Whether all is in the file, and there was room to make it anew when that was tried last.
    pub const fn is_well(&self) -> bool {
        self.is_whole() && self.failed.is_none()
    }

    /// When a file that could not be written is worth another try.
    pub fn retries_in(&self) -> Option<Duration> {
        self.failed.map(|at| RETRY.saturating_sub(at.elapsed()))
    }

    /// Adds entries; in the file on return. After a failure the file wants a snapshot, which has them.
    ///
    /// # Errors
    /// The file cannot be written, or waits to be made anew.
    pub fn append(&mut self, entries: &[LedgerEntry]) -> io::Result<()> {
        let mut buffer = mem::take(&mut self.buffer);
        buffer.clear();
        let framed = entries.iter().try_for_each(|entry| push_frame(&mut buffer, entry)).map_err(io::Error::other);
        let kept = framed.and_then(|()| self.append_to_file(&buffer));
        self.append_to_next(&buffer);
        self.buffer = buffer;
        kept
    }

    fn append_to_file(&mut self, bytes: &[u8]) -> io::Result<()> {
        let file = self.file.as_mut().ok_or_else(|| io::Error::other("it waits to be made anew"))?;
        file.append(bytes).inspect_err(|_| {
            self.file = None;
            self.failed = Some(Instant::now());
        })
    }

    /// A snapshot under way that cannot be written ends; the file itself may go on.
    fn append_to_next(&mut self, bytes: &[u8]) {
        if let Some(next) = &mut self.next
            && let Err(error) = next.append(bytes)
        {
            tracing::debug!(%error, "the journal is not made anew");
            self.give_up();
        }
    }

    /// Whether the file should be made anew: it has grown, an earlier agent wrote it, or that failed a while ago.
    pub fn wants_snapshot(&self) -> bool {
        let is_large = |file: &Growing| file.whole > 2 * self.base + GROWTH_BYTES_MAX;
        let is_due = match self.failed {
            Some(at) => at.elapsed() >= RETRY,
            None => self.is_old || self.file.as_ref().is_none_or(is_large),
        };
        is_due && self.next.is_none()
    }

    /// Begins a new file, which the entries of a snapshot go to. What is appended meanwhile goes to both.
    ///
    /// # Errors
    /// There is no room for it; another try may be made later. The same holds for the next two.
    pub fn begin(&mut self) -> io::Result<()> {
        let folder = self.path.parent().unwrap_or(Path::new("."));
        let created = private_file::make_folder(folder).and_then(|()| private_file::create_beside(&self.path));
        let begun = created.and_then(|file| {
            let mut next = Growing { file, whole: 0 };
            next.append(self.head.as_bytes())?;
            Ok(next)
        });
        match begun {
            Ok(next) => {
                self.next = Some(next);
                Ok(())
            }
            Err(error) => Err(self.failed_to_renew(error)),
        }
    }

    /// Adds entries of a snapshot to the new file.
    ///
    /// # Errors
    /// See [`Self::begin`].
    pub fn add(&mut self, entries: &[LedgerEntry]) -> io::Result<()> {
        let mut bytes = Vec::new();
        let framed = entries.iter().try_for_each(|entry| push_frame(&mut bytes, entry)).map_err(io::Error::other);
        let next = self.next.as_mut().ok_or_else(|| io::Error::other("its new file could not be written"));
        framed.and_then(|()| next?.append(&bytes)).map_err(|error| self.failed_to_renew(error))
    }

    /// Puts the new file, which has a whole snapshot, in the place of the old one.
    ///
    /// # Errors
    /// See [`Self::begin`].
    pub fn finish(&mut self) -> io::Result<()> {
        let next = self.next.take().ok_or_else(|| io::Error::other("its new file could not be written"));
        match next.and_then(|next| private_file::move_into_place(&self.path).map(|()| next)) {
            Ok(next) => {
                self.base = next.whole;
                self.file = Some(next);
                self.is_old = false;
                self.failed = None;
                Ok(())
            }
            Err(error) => Err(self.failed_to_renew(error)),
        }
    }

    /// Replaces what the file holds.
    ///
    /// # Errors
    /// See [`Self::begin`].
    pub fn replace(&mut self, entries: &[LedgerEntry]) -> io::Result<()> {
        self.begin()?;
        self.add(entries)?;
        self.finish()
    }

    fn failed_to_renew(&mut self, error: io::Error) -> io::Error {
        self.give_up();
        error
    }

    /// Ends a snapshot that cannot be written. A file that is open goes on being written.
    fn give_up(&mut self) {
        self.next = None;
        self.failed = Some(Instant::now());
        private_file::remove_beside(&self.path);
    }
}

/// Whole frames of this boot, up to the first that cannot be read; `None` where none are of this boot and form.
fn read(octets: &[u8], head: &str) -> Option<Frames> {
    let Some(rest) = octets.strip_prefix(head.as_bytes()) else {
        if !octets.is_empty() {
            tracing::info!("the journal is of another boot or version: it is begun anew");
        }
        return None;
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
    Some(frames)
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
        journal.file = Some(Growing { file: File::options().write(true).open("/dev/full").unwrap(), whole: 0 });
        let refused = journal.append(&[entry(3)]).unwrap_err();
        assert_eq!(refused.raw_os_error(), Some(nix::libc::ENOSPC));
        assert!(!journal.is_whole(), "entries after it would stand behind a torn one");
        journal.replace(&(0..4).map(entry).collect::<Vec<_>>()).unwrap();
        journal.append(&[entry(4)]).unwrap();
        assert_eq!(keys(&Journal::open(folder.path()).1.entries).len(), 5);
    }

    #[test]
    fn entries_that_come_while_the_file_is_made_anew_are_in_both() {
        let (folder, octets, _) = written();
        let (mut journal, _) = Journal::open(folder.path());
        assert!(journal.wants_snapshot(), "what an earlier agent wrote is made anew");
        journal.begin().unwrap();
        journal.add(&[entry(10)]).unwrap();
        journal.append(&[entry(11)]).unwrap();
        let old = fs::read(folder.path().join("journal")).unwrap();
        assert!(old.starts_with(&octets) && old.len() > octets.len(), "an agent that dies now has all of the old file");
        journal.add(&[entry(12)]).unwrap();
        journal.finish().unwrap();
        journal.append(&[entry(13)]).unwrap();
        let keys = keys(&Journal::open(folder.path()).1.entries);
        assert_eq!(keys, ["shop/web-10", "shop/web-11", "shop/web-12", "shop/web-13"]);
    }

    #[test]
    fn a_new_file_that_cannot_be_written_leaves_the_old_one() {
        let (folder, ..) = written();
        let (mut journal, _) = Journal::open(folder.path());
        journal.begin().unwrap();
        journal.next = Some(Growing { file: File::options().write(true).open("/dev/full").unwrap(), whole: 0 });
        journal.append(&[entry(3)]).unwrap();
        assert!(journal.is_whole() && !journal.is_well());
        assert!(journal.add(&[entry(4)]).is_err() && journal.finish().is_err());
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1, "nothing is left of it");
        assert_eq!(keys(&Journal::open(folder.path()).1.entries).len(), 4);
    }

    #[test]
    fn a_file_that_has_grown_wants_to_be_made_anew() {
        let (folder, ..) = written();
        let (mut journal, _) = Journal::open(folder.path());
        (journal.base, journal.is_old) = (1 << 20, false);
        let file = journal.file.as_mut().unwrap();
        file.whole = (2 << 20) + GROWTH_BYTES_MAX;
        assert!(!journal.wants_snapshot());
        journal.append(&[entry(3)]).unwrap();
        assert!(journal.wants_snapshot());
        journal.begin().unwrap();
        assert!(!journal.wants_snapshot(), "it is under way");
    }
}
