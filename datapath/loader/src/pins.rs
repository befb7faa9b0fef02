//! Pinned maps of an earlier run: kept where they fit, replaced with their rows where only the size changed, and left
//! in force where they cannot be understood.
//!
//! A map that is replaced lies aside under another name until its rows are in the new one and the attached programs
//! read that. Whatever ends in between, the next start begins with the old map again.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use aya::maps::MapInfo;

use crate::LoadError;
use crate::spec::MapSpec;
use crate::tables::{Saved, access};

/// Pinned maps that give way to maps of another size.
#[derive(Debug, Default)]
pub(crate) struct Replaced {
    /// Where each lies and where it belongs.
    paths: Vec<(PathBuf, PathBuf)>,
    /// What they held.
    pub(crate) saved: Vec<Saved>,
}

impl Replaced {
    /// Compares what is pinned with what is wanted, and puts aside what has another size.
    pub(crate) fn find(folder: &Path, specs: &[MapSpec]) -> Result<Self, LoadError> {
        let mut replaced = Self::default();
        for spec in specs {
            let (path, aside) = (folder.join(spec.name), folder.join(format!("{}-old", spec.name)));
            if aside.exists() {
                rename(&aside, &path)?; // A replacement that was not finished.
            }
            if path.exists() && !fits(spec, &path)? {
                let saved = Saved::read(spec.name, &path)?;
                let rows = saved.rows.len();
                if rows > spec.rows_max as usize {
                    replaced.put_back();
                    let MapSpec { name: map, rows_max, setting, .. } = *spec;
                    return Err(LoadError::Shrunk { map, rows, rows_max, setting });
                }
                rename(&path, &aside)?;
                replaced.paths.push((aside, path));
                replaced.saved.push(saved);
            }
        }
        Ok(replaced)
    }

    /// Gives the old maps their names back.
    pub(crate) fn put_back(&self) {
        for (aside, path) in &self.paths {
            if let Err(error) = rename(aside, path) {
                tracing::error!(%error, "a pinned map stays under another name until the next start");
            }
        }
    }

    /// Lets the old maps go.
    pub(crate) fn finish(&self) {
        for (aside, _) in &self.paths {
            if let Err(error) = fs::remove_file(aside) {
                tracing::error!(%error, path = %aside.display(), "removing a replaced map");
            }
        }
    }
}

/// Whether the pinned map has the size that is wanted. Another layout is an error.
fn fits(spec: &MapSpec, path: &Path) -> Result<bool, LoadError> {
    let info = MapInfo::from_pin(path).map_err(|error| access(spec.name, error))?;
    let same_kind = info.map_type().is_ok_and(|kind| kind == spec.kind);
    let octets = (info.key_size() as usize, info.value_size() as usize);
    if !same_kind || octets != (spec.key_octets, spec.value_octets) {
        return Err(LoadError::Layout { path: path.to_owned() });
    }
    Ok(info.max_entries() == spec.rows_max)
}

fn rename(from: &Path, to: &Path) -> Result<(), LoadError> {
    fs::rename(from, to).map_err(|source| LoadError::File {
        action: "renaming the pinned map",
        path: from.to_owned(),
        source,
    })
}

/// The pinned links: one file for each interface and program.
#[derive(Debug)]
pub(crate) struct LinkPins(PathBuf);

impl LinkPins {
    pub(crate) fn below(pins: &Path) -> Self {
        Self(pins.join("links"))
    }

    pub(crate) fn folder(&self) -> &Path {
        &self.0
    }

    /// Where the link of a program on an interface is pinned.
    pub(crate) fn path(&self, interface: u32, program: &str) -> PathBuf {
        self.0.join(format!("{interface}-{program}"))
    }

    /// Interface and program of every pinned link.
    pub(crate) fn all(&self) -> Vec<(u32, String)> {
        let files = fs::read_dir(&self.0).into_iter().flatten().flatten();
        files
            .filter_map(|file| {
                let name = file.file_name().into_string().ok()?;
                let (interface, program) = name.split_once('-')?;
                Some((interface.parse().ok()?, program.to_owned()))
            })
            .collect()
    }

    /// Removes the pin, and with it the link; none is no error.
    pub(crate) fn remove(&self, interface: u32, program: &str) -> Result<(), LoadError> {
        let path = self.path(interface, program);
        match fs::remove_file(&path) {
            Err(source) if source.kind() != io::ErrorKind::NotFound => {
                Err(LoadError::File { action: "removing the pinned link", path, source })
            }
            _ => Ok(()),
        }
    }
}
