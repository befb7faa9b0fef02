//! Pinned maps of an earlier run: kept where they fit, replaced with their rows where only the size changed, and left
//! in force where they cannot be understood.
//!
//! A map that is replaced lies aside under another name until its rows are in the new one and the attached programs
//! read that. Whatever ends in between, the next start begins with the old map again.

use std::fs;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use aya::maps::MapInfo;

use crate::raw_maps::access;
use crate::spec::MapSpec;
use crate::tables::Saved;
use crate::{LoadError, bpf, bpffs};

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
#[derive(Clone, Debug)]
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

    /// Interface and program of every pinned link. Links that cannot be listed are an error, and not none.
    pub(crate) fn all(&self) -> Result<Vec<(u32, String)>, LoadError> {
        let refused = |source| LoadError::File { action: "listing the pinned links in", path: self.0.clone(), source };
        let files = match fs::read_dir(&self.0) {
            Ok(files) => files,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(refused(error)),
        };
        let mut found = Vec::new();
        for file in files {
            let name = file.map_err(refused)?.file_name();
            let parts = name.to_str().and_then(|name| name.split_once('-'));
            let link = parts.and_then(|(interface, program)| Some((interface.parse().ok()?, program.to_owned())));
            found.extend(link);
        }
        Ok(found)
    }

    /// The pinned link; `None` where none is pinned.
    pub(crate) fn open(&self, interface: u32, program: &str) -> Result<Option<OwnedFd>, LoadError> {
        let path = self.path(interface, program);
        match bpf::pinned(&path) {
            Ok(link) => Ok(Some(link)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(source) => Err(LoadError::File { action: "opening the pinned link", path, source }),
        }
    }

    /// Pins a link in the place of whatever is pinned there.
    pub(crate) fn pin(&self, link: &OwnedFd, interface: u32, program: &str) -> Result<(), LoadError> {
        self.remove(interface, program)?;
        let path = self.path(interface, program);
        bpffs::make_folder(&self.0)?;
        bpf::pin(link.as_fd(), &path).map_err(|source| LoadError::File { action: "pinning the link", path, source })
    }

    /// Takes the program off at once and removes the pin; none is no error.
    pub(crate) fn detach(&self, interface: u32, program: &str) -> Result<(), LoadError> {
        // Without a descriptor the kernel lets go of the link when its pin is removed, a moment later.
        if let Ok(Some(link)) = self.open(interface, program) {
            // Its interface may be gone, and nothing hangs on it any more.
            let _ = bpf::detach(link.as_fd());
        }
        self.remove(interface, program)
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

/// The pinned maps, held open: what another tool unpins is pinned again.
#[derive(Debug)]
pub(crate) struct MapPins {
    folder: PathBuf,
    maps: Vec<PinnedMap>,
}

#[derive(Debug)]
struct PinnedMap {
    name: &'static str,
    map: OwnedFd,
    number: u32,
}

impl MapPins {
    pub(crate) fn open(folder: &Path, specs: &[MapSpec]) -> Result<Self, LoadError> {
        let open = |spec: &MapSpec| {
            let path = folder.join(spec.name);
            let map = bpf::pinned(&path).and_then(|map| Ok((bpf::object_number(map.as_fd())?, map)));
            let (number, map) =
                map.map_err(|source| LoadError::File { action: "opening the pinned map", path, source })?;
            Ok(PinnedMap { name: spec.name, map, number })
        };
        Ok(Self { folder: folder.to_owned(), maps: specs.iter().map(open).collect::<Result<_, LoadError>>()? })
    }

    /// Name and number of each.
    pub(crate) fn numbers(&self) -> Vec<(&'static str, u32)> {
        self.maps.iter().map(|map| (map.name, map.number)).collect()
    }

    /// Pins what is not pinned under its name any more.
    pub(crate) fn pin_again(&self) -> Result<Vec<&'static str>, LoadError> {
        let mut pinned = Vec::new();
        for PinnedMap { name, map, number } in &self.maps {
            let path = self.folder.join(name);
            if is_pinned(&path, *number)? {
                continue;
            }
            bpffs::make_folder(&self.folder)?;
            let done = match fs::remove_file(&path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
                _ => bpf::pin(map.as_fd(), &path),
            };
            done.map_err(|source| LoadError::File { action: "pinning the map again", path, source })?;
            pinned.push(*name);
        }
        Ok(pinned)
    }
}

/// Whether the map with this number is pinned here.
pub(crate) fn is_pinned(path: &Path, number: u32) -> Result<bool, LoadError> {
    match bpf::pinned(path).and_then(|map| bpf::object_number(map.as_fd())) {
        Ok(found) => Ok(found == number),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(source) => Err(LoadError::File { action: "opening the pinned map", path: path.to_owned(), source }),
    }
}
