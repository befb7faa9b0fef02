//! `namegate policy validate`: mistakes and warnings, each at its line.

use std::fmt::Write;

use namegate_api::view;
use namegate_config::{cases::World, diagnostic::Diagnostic, policy};
use serde_json::json;

use super::{
    Outcome,
    args::{ValidateArgs, ValidateOutput},
    cluster, output, sources, style,
};

/// Address of the SARIF 2.1.0 schema.
const SARIF_SCHEMA: &str = "https://json.schemastore.org/sarif-2.1.0.json";

/// What was found in all sources together.
struct Found {
    documents: usize,
    diagnostics: Vec<Diagnostic>,
}

pub(crate) fn run(args: &ValidateArgs) -> anyhow::Result<Outcome> {
    let sources = sources::read(&args.files)?;
    let cluster = cluster::read(args.world.as_deref(), args.config.as_deref())?;
    let found = check(&sources, cluster.as_ref().map(|(world, _)| world));
    match args.output {
        ValidateOutput::Text => print(&found)?,
        ValidateOutput::Json => output::json(&as_json(&found))?,
        ValidateOutput::Sarif => output::json(&as_sarif(&found))?,
    }
    let is_bad = |found: &Diagnostic| found.is_error() || args.strict;
    Ok(if found.diagnostics.iter().any(is_bad) { Outcome::Bad } else { Outcome::Good })
}

/// Mistakes of each source, then what all of them do together.
fn check(sources: &[sources::Source], world: Option<&World>) -> Found {
    let mut documents = Vec::new();
    let mut diagnostics = Vec::new();
    for source in sources {
        let parsed = policy::parse_with(&source.name, &source.text, &crate::agent::FEATURES);
        documents.extend(parsed.documents);
        diagnostics.extend(parsed.diagnostics);
    }
    let catalog = world.map(World::catalog).unwrap_or_default();
    diagnostics.extend(policy::translate(&documents, &catalog).diagnostics);
    diagnostics.extend(policy::lint(&documents, &catalog, world.map(World::audience).as_ref()));
    Found { documents: documents.len(), diagnostics }
}

fn print(found: &Found) -> anyhow::Result<()> {
    let mut text = output::drawn(&found.diagnostics)?;
    let errors = found.diagnostics.iter().filter(|found| found.is_error()).count();
    let colour = if errors == 0 { style::GOOD } else { style::ERROR };
    let (documents, warnings) = (found.documents, found.diagnostics.len() - errors);
    writeln!(
        text,
        "{colour}{documents} documents without a mistake, {errors} errors, {warnings} warnings{}",
        style::RESET
    )?;
    output::text(&text)
}

fn as_json(found: &Found) -> serde_json::Value {
    let diagnostics: Vec<view::Diagnostic> = found.diagnostics.iter().map(crate::agent::shown_diagnostic).collect();
    json!({ "documents": found.documents, "diagnostics": diagnostics })
}

/// Static Analysis Results Interchange Format 2.1.0 (OASIS), for code hosts that show findings beside the line.
fn as_sarif(found: &Found) -> serde_json::Value {
    let results: Vec<_> = found
        .diagnostics
        .iter()
        .map(|one| {
            let help = one.help.as_ref().map(|help| format!("; {help}")).unwrap_or_default();
            json!({
                "ruleId": one.code.as_str(),
                "level": if one.is_error() { "error" } else { "warning" },
                "message": { "text": format!("{one}{help}") },
                "locations": [{ "physicalLocation": {
                    "artifactLocation": { "uri": one.file() },
                    "region": { "startLine": one.line, "startColumn": one.column,
                        "byteOffset": one.span().offset(), "byteLength": one.span().len() },
                }}],
            })
        })
        .collect();
    json!({
        "$schema": SARIF_SCHEMA,
        "version": "2.1.0",
        "runs": [{
            "tool": { "driver": { "name": "namegate", "version": env!("CARGO_PKG_VERSION") } },
            "results": results,
        }],
    })
}
