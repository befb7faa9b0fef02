//! The programs in the kernel: those that an earlier agent left pinned, where nothing about them changed, else loaded
//! and pinned.
//!
//! The verifier needs some tenths of a second for them. Without it a restarted agent is back before most clients ask
//! for a name a second time.

use std::borrow::Cow;
use std::fs;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io;
use std::path::{Path, PathBuf};

use aya::maps::MapInfo;
use aya::programs::{CgroupSkb, CgroupSkbAttachType, Program, ProgramError, ProgramInfo, SchedClassifier};
use aya::{Ebpf, EbpfLoader};

use crate::spec::MapSpec;
use crate::{LoadError, bpffs, object};

/// Where the programs of the node's sockets find the namespace they judge.
const NODE_NAMESPACE: &str = "NODE_NAMESPACE";

/// Programs of one object, pinned in a folder whose name changes with all that is baked into them.
pub(crate) struct Programs<'a> {
    pins: &'a Path,
    specs: &'a [MapSpec],
    /// Cookie of the node's network namespace.
    namespace: u64,
    object: Cow<'static, [u8]>,
    folder: PathBuf,
    /// The object, once something in it was not pinned.
    ebpf: Option<Ebpf>,
}

impl<'a> Programs<'a> {
    /// Makes the maps that `pins` lacks.
    pub(crate) fn new(pins: &'a Path, specs: &'a [MapSpec], namespace: u64) -> Result<Self, LoadError> {
        let object = object::read()?;
        let mut hasher = DefaultHasher::new();
        (&object, namespace).hash(&mut hasher);
        let folder = all(pins).join(format!("{:016x}", hasher.finish()));
        bpffs::make_folder(&folder)?;
        let mut programs = Self { pins, specs, namespace, object, folder, ebpf: None };
        if !specs.iter().all(|spec| pins.join(spec.name).exists()) {
            programs.ebpf()?;
        }
        Ok(programs)
    }

    /// The object over the pinned maps, and with new ones where none is pinned.
    fn ebpf(&mut self) -> Result<&mut Ebpf, LoadError> {
        let ebpf = match self.ebpf.take() {
            Some(ebpf) => ebpf,
            None => self.load()?,
        };
        Ok(self.ebpf.insert(ebpf))
    }

    fn load(&self) -> Result<Ebpf, LoadError> {
        let mut loader = EbpfLoader::new();
        loader.override_global(NODE_NAMESPACE, &self.namespace, true);
        for spec in self.specs {
            loader.map_pin_path(spec.name, self.pins.join(spec.name));
            loader.map_max_entries(spec.name, spec.rows_max);
        }
        loader.load(&self.object).map_err(LoadError::of_object)
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
        let program = self.ebpf()?.program_mut(name).ok_or(LoadError::Missing(name))?;
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
            let Ok(map) = MapInfo::from_id(id) else { return false };
            let spec = self.specs.iter().find(|spec| map.name_as_str() == Some(spec.name));
            spec.is_none_or(|spec| MapInfo::from_pin(self.pins.join(spec.name)).is_ok_and(|pinned| pinned.id() == id))
        })
    }

    /// Lets programs of other versions go. What is attached stays until another program takes its place.
    pub(crate) fn forget_others(&self) {
        let folders = fs::read_dir(all(self.pins)).into_iter().flatten().flatten().map(|folder| folder.path());
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
