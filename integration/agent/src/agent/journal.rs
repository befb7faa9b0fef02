//! What must survive the agent's death: numbers handed out and names learned, as one append-only file per boot.
//!
//! A `write(2)` survives `kill -9`; nothing here needs to survive the machine. Frames are a length (u32, little endian)
//! and a postcard document; a torn last frame is what a kill in the middle of a write leaves, and is dropped.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Write},
    path::{Path, PathBuf},
};

use anyhow::Context;
use namegate_engine::LedgerEntry;

/// The kernel's name of this boot: times since boot mean nothing in another.
const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";
/// Octets that are written before the file is made anew from a snapshot.
const GROWTH_OCTETS_MAX: u64 = 64 << 20;
/// A frame above this is a torn or foreign file.
const FRAME_OCTETS_MAX: usize = 16 << 20;

/// The open journal.
#[derive(Debug)]
pub(crate) struct Journal {
    path: PathBuf,
    boot: String,
    file: File,
    grown: u64,
    buffer: Vec<u8>,
}

impl Journal {
    /// Opens the journal of this boot and reads what it holds.
    pub(crate) fn open(folder: &Path) -> anyhow::Result<(Self, Vec<LedgerEntry>)> {
        fs::create_dir_all(folder).with_context(|| format!("making the state directory {}", folder.display()))?;
        let path = folder.join("journal");
        let boot = fs::read_to_string(BOOT_ID).with_context(|| format!("reading {BOOT_ID}"))?.trim().to_owned();
        let octets = match fs::read(&path) {
            Ok(octets) => octets,
            Err(error) if error.kind() == io::ErrorKind::NotFound => Vec::new(),
            Err(error) => return Err(error).with_context(|| format!("reading {}", path.display())),
        };
        let entries = read(&octets, &boot);
        let file = fresh(&path, &boot, &entries).with_context(|| format!("writing {}", path.display()))?;
        Ok((Self { path, boot, file, grown: 0, buffer: Vec::new() }, entries))
    }

    /// Adds entries; in the file on return.
    pub(crate) fn append(&mut self, entries: &[LedgerEntry]) -> io::Result<()> {
        self.buffer.clear();
        for entry in entries {
            frame(&mut self.buffer, entry)?;
        }
        self.file.write_all(&self.buffer)?;
        self.grown += self.buffer.len() as u64;
        Ok(())
    }

    /// Whether the file should be made anew.
    pub(crate) fn wants_snapshot(&self) -> bool {
        self.grown > GROWTH_OCTETS_MAX
    }

    /// Replaces what the file holds.
    pub(crate) fn replace(&mut self, entries: &[LedgerEntry]) -> io::Result<()> {
        self.file = fresh(&self.path, &self.boot, entries)?;
        self.grown = 0;
        Ok(())
    }
}

/// Writes a new file beside the old one and puts it in its place.
fn fresh(path: &Path, boot: &str, entries: &[LedgerEntry]) -> io::Result<File> {
    let beside = path.with_extension("new");
    let mut octets = Vec::new();
    octets.extend(boot.as_bytes());
    octets.push(b'\n');
    for entry in entries {
        frame(&mut octets, entry)?;
    }
    let mut file = OpenOptions::new().create(true).write(true).truncate(true).open(&beside)?;
    file.write_all(&octets)?;
    fs::rename(&beside, path)?;
    Ok(file)
}

fn frame(octets: &mut Vec<u8>, entry: &LedgerEntry) -> io::Result<()> {
    let document = postcard::to_stdvec(entry).map_err(io::Error::other)?;
    let length = u32::try_from(document.len()).map_err(io::Error::other)?;
    octets.extend(length.to_le_bytes());
    octets.extend(document);
    Ok(())
}

/// Whole frames of this boot, up to the first that cannot be read.
fn read(octets: &[u8], boot: &str) -> Vec<LedgerEntry> {
    let head = boot.len() + 1;
    let Some(mut rest) = octets.strip_prefix(boot.as_bytes()).and_then(|rest| rest.strip_prefix(b"\n")) else {
        return Vec::new();
    };
    let mut entries = Vec::new();
    while let Some((length, after)) = rest.split_first_chunk::<4>() {
        let length = u32::from_le_bytes(*length) as usize;
        let Some(document) = after.get(..length).filter(|_| length <= FRAME_OCTETS_MAX) else { break };
        let Ok(entry) = postcard::from_bytes(document) else { break };
        entries.push(entry);
        rest = &after[length..];
    }
    if !rest.is_empty() {
        tracing::warn!(octet = head + octets.len() - rest.len(), "the journal ends in a torn entry: it is left out");
    }
    entries
}
