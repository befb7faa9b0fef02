//! What the settings name must be there when the agent starts: without policies or endpoints it would enforce nothing.

use std::{fs, path::Path};

use anyhow::Context;
use namegate_config::{endpoints, printable::printable, settings::Settings};

use super::files;
use crate::outcome::Outcome;

/// Looks at every path that is read. Mistakes in the endpoints file are drawn, unless a last good form stands in for it.
pub(crate) fn check(settings: &Settings) -> anyhow::Result<Outcome> {
    if let Some(folder) = &settings.policies {
        fs::read_dir(folder)
            .with_context(|| next(folder, "the folder of policies", "`policies`", "make the folder"))?;
    }
    let kubeconfig = settings.kubernetes.as_ref().and_then(|kubernetes| kubernetes.kubeconfig.as_ref());
    if let Some(file) = kubeconfig {
        fs::read(file)
            .with_context(|| next(file, "the kubeconfig", "`kubernetes.kubeconfig`", "put the file there"))?;
    }
    let Some(file) = &settings.endpoints else { return Ok(Outcome::Good) };
    let text =
        fs::read_to_string(file).with_context(|| next(file, "the endpoints file", "`endpoints`", "write the file"))?;
    match endpoints::parse(&file.display().to_string(), &text) {
        Err(mistakes) if !files::has_former_endpoints(&settings.state) => {
            for mistake in mistakes {
                anstream::eprintln!("{:?}", miette::Report::new(mistake.printable()));
            }
            Ok(Outcome::Failed)
        }
        _ => Ok(Outcome::Good),
    }
}

fn next(path: &Path, what: &str, setting: &str, step: &str) -> String {
    let shown = path.display().to_string();
    format!("reading {what} {}; {step}, or correct {setting} in the settings", printable(&shown))
}
