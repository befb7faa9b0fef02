//! The programs in the kernel: those that an earlier agent left pinned, where nothing about them changed, else loaded
//! and pinned.
//!
//! The verifier needs some tenths of a second for them. Without it a restarted agent is back before most clients ask
//! for a name a second time.

use std::collections::HashMap;
use std::fs;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io;
use std::path::{Path, PathBuf};

use aya::Ebpf;
use aya::maps::MapInfo;
use aya::programs::{CgroupSkb, CgroupSkbAttachType, Program, ProgramError, ProgramInfo, SchedClassifier};

use crate::spec::MapSpec;
use crate::tables::access;
use crate::{LoadError, bpffs};

/// Programs of one object, pinned in a folder whose name changes with all that is baked into them.
pub(crate) struct Programs<'a> {
    ebpf: &'a mut Ebpf,
    folder: PathBuf,
    /// Number of each pinned map.
    maps: HashMap<&'static str, u32>,
}

impl<'a> Programs<'a> {
    /// `ebpf` is the object with its maps, which lie in `pins` by now; `namespace` is what it was told about the node.
    pub(crate) fn new(
        ebpf: &'a mut Ebpf,
        pins: &Path,
        specs: &[MapSpec],
        object: &[u8],
        namespace: u64,
    ) -> Result<Self, LoadError> {
        let mut hasher = DefaultHasher::new();
        (object, namespace).hash(&mut hasher);
        let folder = all(pins).join(format!("{:016x}", hasher.finish()));
        bpffs::make_folder(&folder)?;
        let number = |spec: &MapSpec| {
            let info = MapInfo::from_pin(pins.join(spec.name)).map_err(|error| access(spec.name, error))?;
            Ok((spec.name, info.id()))
        };
        Ok(Self { ebpf, folder, maps: specs.iter().map(number).collect::<Result<_, LoadError>>()? })
    }

    /// A program for the hooks of an interface.
    pub(crate) fn classifier(&mut self, name: &'static str) -> Result<SchedClassifier, LoadError> {
        let path = self.pinned(name)?;
        SchedClassifier::from_pin(path).map_err(|error| refused(name, error))
    }

    /// A program for the packets of a control group's sockets.
    pub(crate) fn for_sockets(
        &mut self,
        name: &'static str,
        hook: CgroupSkbAttachType,
    ) -> Result<CgroupSkb, LoadError> {
        let path = self.pinned(name)?;
        CgroupSkb::from_pin(path, hook).map_err(|error| refused(name, error))
    }

    /// Where the program is pinned, once it is there.
    fn pinned(&mut self, name: &'static str) -> Result<PathBuf, LoadError> {
        let path = self.folder.join(name);
        if self.is_current(&path) {
            return Ok(path);
        }
        let program = self.ebpf.program_mut(name).ok_or(LoadError::Missing(name))?;
        let loaded = match program {
            Program::SchedClassifier(program) => program.load(),
            Program::CgroupSkb(program) => program.load(),
            _ => return Err(LoadError::Missing(name)),
        };
        loaded.map_err(|error| refused(name, error))?;
        let pinned = match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => program.pin(&path).map_err(io::Error::other),
        };
        match pinned {
            Ok(()) => Ok(path),
            Err(source) => Err(LoadError::File { action: "pinning the program", path, source }),
        }
    }

    /// Whether a program is there that reads the maps of today: one of them may have been replaced since.
    fn is_current(&self, path: &Path) -> bool {
        let Ok(Some(used)) = ProgramInfo::from_pin(path).and_then(|program| program.map_ids()) else { return false };
        used.into_iter().all(|id| {
            let name = MapInfo::from_id(id).ok();
            let name = name.as_ref().and_then(MapInfo::name_as_str);
            name.is_some_and(|name| self.maps.get(name).is_none_or(|pinned| *pinned == id))
        })
    }

    /// Lets programs of other versions go. What is attached stays until another program takes its place.
    pub(crate) fn forget_others(&self, pins: &Path) {
        let folders = fs::read_dir(all(pins)).into_iter().flatten().flatten().map(|folder| folder.path());
        for folder in folders.filter(|folder| *folder != self.folder) {
            if let Err(error) = fs::remove_dir_all(&folder) {
                tracing::warn!(%error, path = %folder.display(), "programs of another version stay in the kernel");
            }
        }
    }
}

fn all(pins: &Path) -> PathBuf {
    pins.join("programs")
}

fn refused(program: &'static str, source: ProgramError) -> LoadError {
    LoadError::Program { program, source: Box::new(source) }
}
