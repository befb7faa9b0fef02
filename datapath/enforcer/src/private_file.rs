//! Files for their owner alone, replaced as a whole.

use std::{
    fs::{self, DirBuilder, File, OpenOptions, Permissions},
    io::{self, Seek, SeekFrom, Write},
    os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt},
    path::{Path, PathBuf},
};

/// Owner alone: the files say which names endpoints ask for.
const FILE_MODE: u32 = 0o600;
/// The same for folders.
pub const FOLDER_MODE: u32 = 0o700;
/// Ends the name of a file that is being written.
pub const BESIDE: &str = ".new";

/// Makes a folder of the agent's own where it is missing.
pub fn make_folder(path: &Path) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(FOLDER_MODE).create(path)
}

/// Writes a file beside its place and moves it there; gives the open file. Nothing is left of one that could not be written.
pub fn replace(path: &Path, bytes: &[u8]) -> io::Result<File> {
    let written = create_beside(path).and_then(|mut file| file.write_all(bytes).map(|()| file));
    let moved = written.and_then(|file| move_into_place(path).map(|()| file));
    if moved.is_err() {
        remove_beside(path);
    }
    moved
}

/// Opens a new file beside the place of another.
pub(crate) fn create_beside(path: &Path) -> io::Result<File> {
    let path = beside(path);
    let file = OpenOptions::new().create(true).write(true).truncate(true).mode(FILE_MODE).open(path)?;
    own(&file)?;
    Ok(file)
}

/// Moves the file beside a place there.
pub(crate) fn move_into_place(path: &Path) -> io::Result<()> {
    fs::rename(beside(path), path)
}

/// Removes a file beside a place that could not be written: the room it takes may be what is missing.
pub(crate) fn remove_beside(path: &Path) {
    // It may not have been made at all.
    let _ = fs::remove_file(beside(path));
}

/// Opens a file that is there, to be written behind its first bytes.
pub(crate) fn open_to_append(path: &Path, length: u64) -> io::Result<File> {
    let mut file = OpenOptions::new().write(true).open(path)?;
    own(&file)?;
    file.set_len(length)?;
    file.seek(SeekFrom::Start(length))?;
    Ok(file)
}

/// A file that was there keeps its mode otherwise.
fn own(file: &File) -> io::Result<()> {
    file.set_permissions(Permissions::from_mode(FILE_MODE))
}

fn beside(path: &Path) -> PathBuf {
    let mut beside = path.as_os_str().to_owned();
    beside.push(BESIDE);
    PathBuf::from(beside)
}
