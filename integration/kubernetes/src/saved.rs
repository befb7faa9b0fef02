//! The last objects in a file: what an agent starts with while the API server does not answer.

use std::{
    fs::{self, OpenOptions, Permissions},
    io::{self, Write},
    os::unix::fs::{OpenOptionsExt, PermissionsExt},
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};

use crate::{
    row::{Key, Kind, Row},
    tables::Tables,
};

/// Of the form of the file; another is not read.
pub(crate) const FORM: u32 = 2;

#[derive(Serialize)]
struct Written<'a> {
    form: u32,
    rows: Vec<(Kind, &'a Key, &'a Row)>,
}

#[derive(Deserialize)]
struct Read {
    form: u32,
    rows: Vec<(Kind, Key, Row)>,
}

/// The name of the file in the folder of state.
pub(crate) fn path(state: &Path) -> PathBuf {
    state.join("kubernetes.json")
}

/// The octets of the file.
pub(crate) fn octets(tables: &Tables) -> serde_json::Result<Vec<u8>> {
    serde_json::to_vec(&Written { form: FORM, rows: tables.all().collect() })
}

/// Writes the file beside its place and moves it there.
pub(crate) fn write(path: &Path, octets: &[u8]) -> io::Result<()> {
    let beside = path.with_extension("json.new");
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder)?;
    }
    let written = write_private(&beside, octets).and_then(|()| fs::rename(&beside, path));
    if written.is_err() {
        // The room it takes is what is missing.
        let _ = fs::remove_file(&beside);
    }
    written
}

/// For its owner alone: the objects say who may reach whom.
fn write_private(path: &Path, octets: &[u8]) -> io::Result<()> {
    const MODE: u32 = 0o600;
    let mut file = OpenOptions::new().create(true).write(true).truncate(true).mode(MODE).open(path)?;
    file.set_permissions(Permissions::from_mode(MODE))?;
    file.write_all(octets)
}

/// What the file holds; nothing where there is none or it cannot be read.
pub(crate) fn read(path: &Path) -> Option<Tables> {
    let octets = match fs::read(path) {
        Ok(octets) => octets,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return None,
        Err(error) => {
            tracing::warn!(%error, file = %path.display(), "the saved objects cannot be read");
            return None;
        }
    };
    match parse(&octets) {
        Ok(tables) => tables,
        Err(error) => {
            tracing::warn!(%error, file = %path.display(), "the saved objects cannot be read");
            None
        }
    }
}

/// What the bytes of a file hold; nothing where they are of another form.
pub(crate) fn parse(bytes: &[u8]) -> serde_json::Result<Option<Tables>> {
    // What is skipped is not checked otherwise: a file with damage there is not whole either.
    let text = std::str::from_utf8(bytes).map_err(serde::de::Error::custom)?;
    let read: Read = serde_json::from_str(text)?;
    Ok((read.form == FORM).then(|| Tables::restore(read.rows)))
}
