//! Files, directories and standard input, read as a verb's arguments name them.

use std::{
    fs,
    io::Read,
    path::{Path, PathBuf},
};

use anyhow::Context;

/// What stands for standard input.
const STDIN: &str = "-";
/// Name of standard input in diagnostics.
const STDIN_NAME: &str = "<stdin>";

/// A text and the name that diagnostics show.
pub(crate) struct Source {
    pub(crate) name: String,
    pub(crate) text: String,
}

/// Reads every file named; a directory stands for the `*.yaml`, `*.yml` and `*.json` files in it and below.
pub(crate) fn read(paths: &[PathBuf]) -> anyhow::Result<Vec<Source>> {
    let mut sources = Vec::new();
    for path in paths {
        if path.as_os_str() == STDIN {
            let mut text = String::new();
            std::io::stdin().read_to_string(&mut text).context("reading standard input")?;
            sources.push(Source { name: STDIN_NAME.to_owned(), text });
        } else if path.is_dir() {
            let mut files = Vec::new();
            list(path, &mut files)?;
            files.sort();
            for file in &files {
                sources.push(read_file(file)?);
            }
        } else {
            sources.push(read_file(path)?);
        }
    }
    Ok(sources)
}

fn read_file(path: &Path) -> anyhow::Result<Source> {
    let text = fs::read_to_string(path).with_context(|| format!("reading {}", path.display()))?;
    Ok(Source { name: path.display().to_string(), text })
}

fn list(folder: &Path, files: &mut Vec<PathBuf>) -> anyhow::Result<()> {
    let entries = fs::read_dir(folder).with_context(|| format!("listing {}", folder.display()))?;
    for entry in entries {
        let path = entry.with_context(|| format!("listing {}", folder.display()))?.path();
        let ending = path.extension().and_then(|ending| ending.to_str()).unwrap_or_default();
        if path.is_dir() {
            list(&path, files)?;
        } else if matches!(ending, "yaml" | "yml" | "json") {
            files.push(path);
        }
    }
    Ok(())
}
