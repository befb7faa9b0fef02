//! Case files and the worlds that they are about.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

use anyhow::{Context, bail};
use namegate_config::cases::{Case, World};

use crate::cli::{output, sources};

/// Folders above a case in which its world is looked for.
const LEVELS_MAX: usize = 4;

/// A case that can be run.
pub(super) struct Found {
    pub(super) file: String,
    pub(super) case: Case,
    /// Name of its world.
    pub(super) world: PathBuf,
}

/// Cases in the order of their files, and their worlds by path.
#[derive(Default)]
pub(super) struct Suite {
    pub(super) cases: Vec<Found>,
    pub(super) worlds: BTreeMap<PathBuf, World>,
}

impl Suite {
    /// Reads every case below the paths whose name has the text `only`.
    pub(super) fn read(paths: &[PathBuf], only: Option<&str>) -> anyhow::Result<Self> {
        let mut suite = Self::default();
        for path in paths {
            for source in sources::read(std::slice::from_ref(path))? {
                // Beside cases lie worlds, and maybe policies.
                if path.is_dir() && !is_case(&source.text) {
                    continue;
                }
                let case = Case::parse(&source.name, &source.text);
                let case = case.or_else(|found| bail!("{} is no case:\n{}", source.name, output::drawn(&found)?))?;
                if only.is_none_or(|text| case.name.contains(text)) {
                    let world = suite.world(path, Path::new(&source.name), &case.world)?;
                    suite.cases.push(Found { file: source.name, case, world });
                }
            }
        }
        Ok(suite)
    }

    /// Looks for the world of a case: beside it and in the folders above, beside the path of the command line and above.
    fn world(&mut self, given: &Path, file: &Path, name: &str) -> anyhow::Result<PathBuf> {
        let beside = [file, given].map(|path| path.canonicalize().unwrap_or_else(|_| path.to_owned()));
        let folders = beside[0].ancestors().skip(1).take(LEVELS_MAX).chain(beside[1].ancestors().take(2));
        let candidates = folders.map(|folder| folder.join(format!("{name}.yaml")));
        let Some(path) = candidates.into_iter().find(|path| path.is_file()) else {
            bail!("{}: there is no {name}.yaml beside it or in a folder above", file.display());
        };
        if !self.worlds.contains_key(&path) {
            let text = std::fs::read_to_string(&path).with_context(|| format!("reading {}", path.display()))?;
            let world = World::parse(&path.display().to_string(), &text);
            let world = world.or_else(|found| bail!("{} is no world:\n{}", path.display(), output::drawn(&found)?))?;
            self.worlds.insert(path.clone(), world);
        }
        Ok(path)
    }
}

/// A case names its world at the top.
fn is_case(text: &str) -> bool {
    text.lines().any(|line| line.starts_with("world:"))
}
