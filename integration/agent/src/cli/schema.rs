//! `namegate policy schema` and `namegate policy crds`: the policy language as schemas.

use std::{fs, path::Path};

use anyhow::Context;
use namegate_config::schema;

use super::{Outcome, output};

/// Prints the schema of one kind, or of all.
pub(crate) fn run(kind: Option<&str>) -> anyhow::Result<Outcome> {
    let schema = match kind {
        Some(kind) => schema::of_kind(kind).with_context(|| format!("there is no kind `{kind}`"))?,
        None => schema::all(),
    };
    output::json(&schema)?;
    Ok(Outcome::Good)
}

/// Prints the definitions as one YAML stream, or writes a file for each.
pub(crate) fn crds(directory: Option<&Path>) -> anyhow::Result<Outcome> {
    let mut texts = Vec::new();
    for crd in schema::crds() {
        let text = crd.yaml()?;
        match directory {
            Some(directory) => {
                let path = directory.join(format!("{}.yaml", crd.name));
                fs::write(&path, text).with_context(|| format!("writing {}", path.display()))?;
            }
            None => texts.push(text),
        }
    }
    output::text(&texts.join("---\n"))?;
    Ok(Outcome::Good)
}
