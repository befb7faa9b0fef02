//! Which crate of the project may use which: the list in ARCHITECTURE.md, and what cargo says.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;

/// What one crate uses of the project.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Uses {
    /// In what it builds.
    pub(crate) built: BTreeSet<String>,
    /// In its tests alone.
    pub(crate) tests: BTreeSet<String>,
}

/// By the short name of the crate.
pub(crate) type Crates = BTreeMap<String, Uses>;

/// Reads lines of the form `engine -> abi, config; in tests: testbed`, in the block after the heading.
pub(crate) fn allowed(page: &str) -> Crates {
    let section = page.split("\n## Allowed dependencies\n").nth(1).expect("ARCHITECTURE.md lists what is allowed");
    let block = section.split("```").nth(1).expect("the list stands in a block");
    let lines = block.lines().skip(1).filter(|line| !line.is_empty());
    lines.map(read_line).collect()
}

fn read_line(line: &str) -> (String, Uses) {
    let (name, uses) = line.split_once("->").unwrap_or_else(|| panic!("`{line}` has no arrow"));
    let (built, tests) = uses.split_once("; in tests:").unwrap_or((uses, ""));
    (name.trim().to_owned(), Uses { built: read_names(built), tests: read_names(tests) })
}

fn read_names(list: &str) -> BTreeSet<String> {
    let names = list.split(',').map(str::trim).filter(|name| !name.is_empty() && *name != "nothing");
    names.map(str::to_owned).collect()
}

/// Crates of the project by what `cargo metadata --no-deps` prints.
pub(crate) fn used(metadata: &Value) -> Crates {
    let packages = metadata["packages"].as_array().expect("cargo lists packages");
    packages.iter().map(|package| (short(text(&package["name"])), uses_of(package))).collect()
}

fn uses_of(package: &Value) -> Uses {
    let mut uses = Uses::default();
    // A dependency by path is one of the project.
    for dependency in package["dependencies"].as_array().into_iter().flatten().filter(|one| one["path"].is_string()) {
        let name = short(text(&dependency["name"]));
        match dependency["kind"].as_str() {
            Some("dev") => uses.tests.insert(name),
            _ => uses.built.insert(name),
        };
    }
    uses
}

fn text(value: &Value) -> &str {
    value.as_str().expect("cargo gives a name")
}

/// The folder's name: without the project's, which only the agent's binary has for its own.
fn short(name: &str) -> String {
    if name == "namegate" { "agent".to_owned() } else { name.trim_start_matches("namegate-").to_owned() }
}

/// What stands in the code and not in the list, and the reverse: a line each.
pub(crate) fn compare(used: &Crates, allowed: &Crates) -> Vec<String> {
    let none = Uses::default();
    let names: BTreeSet<&String> = used.keys().chain(allowed.keys()).collect();
    let mut wrong = Vec::new();
    for name in names {
        if !used.contains_key(name) {
            wrong.push(format!("ARCHITECTURE.md allows dependencies of `{name}`, which is no crate"));
        } else if !allowed.contains_key(name) {
            wrong.push(format!("ARCHITECTURE.md does not list the crate `{name}`"));
        }
        let found = used.get(name).unwrap_or(&none);
        let may = allowed.get(name).unwrap_or(&none);
        wrong.extend(difference(name, "", &found.built, &may.built));
        wrong.extend(difference(name, " in its tests", &found.tests, &may.tests));
    }
    wrong
}

fn difference(name: &str, when: &str, uses: &BTreeSet<String>, may: &BTreeSet<String>) -> Vec<String> {
    let wrong = uses.difference(may).map(|other| format!("`{name}` imports `{other}`{when}: not allowed"));
    let stale = may.difference(uses).map(|other| format!("`{name}` may import `{other}`{when}, and does not"));
    wrong.chain(stale).collect()
}
