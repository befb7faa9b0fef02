//! Who is where, for verbs that work without an agent: a cluster on paper, or the files of an agent.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, bail};
use namegate_config::{cases::World, diagnostic::Diagnostic, endpoints, settings};

use super::output;

/// The world of a file, or that of an agent's settings with the place of the agent's policies.
pub(crate) fn read(world: Option<&Path>, config: Option<&Path>) -> anyhow::Result<Option<(World, Vec<PathBuf>)>> {
    if let Some(path) = world {
        return Ok(Some((parsed(path, World::parse)?, Vec::new())));
    }
    let Some(path) = config else { return Ok(None) };
    let settings = parsed(path, settings::parse)?;
    let folder = path.parent().unwrap_or(Path::new("."));
    let (Some(endpoints), Some(policies)) = (&settings.endpoints, &settings.policies) else {
        bail!("{} names no files: their endpoints and policies are in Kubernetes; use `--world`", path.display());
    };
    let file = parsed(&folder.join(endpoints), endpoints::parse)?;
    Ok(Some((World::of_agent(&file, &settings.dns), vec![folder.join(policies)])))
}

fn parsed<T>(path: &Path, parse: fn(&str, &str) -> Result<T, Vec<Diagnostic>>) -> anyhow::Result<T> {
    let text = fs::read_to_string(path).with_context(|| format!("reading {}", path.display()))?;
    let read = parse(&path.display().to_string(), &text);
    read.or_else(|found| bail!("{} cannot be used:\n{}", path.display(), output::drawn(&found)?))
}
