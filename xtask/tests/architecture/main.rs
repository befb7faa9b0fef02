//! The architecture is what ARCHITECTURE.md says: who depends on whom, and no circles of files.
#![expect(clippy::unwrap_used, clippy::expect_used, reason = "a test ends at the first surprise")]

mod circles;
mod crates;
mod imports;
mod known;
mod planted;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

use crate::imports::Modules;
use crate::known::KNOWN;

/// Workspaces of the project: the second and third have lock files of their own.
const MANIFESTS: [&str; 3] = ["Cargo.toml", "datapath/ebpf/Cargo.toml", "fuzz/Cargo.toml"];

/// Crates to which time, bytes and settings are arguments.
const PURE: [&str; 3] = ["datapath/abi/", "datapath/engine/", "config/"];

/// What pure crates do not reach for.
const IMPURE: [&str; 9] = [
    "std::env",
    "std::fs",
    "std::io::stdin",
    "std::net::TcpStream",
    "std::net::UdpSocket",
    "std::process",
    "std::thread",
    "std::time::Instant::now",
    "std::time::SystemTime::now",
];

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..").canonicalize().unwrap()
}

fn metadata(manifest: &str) -> Value {
    let mut cargo = Command::new(env!("CARGO"));
    cargo.args(["metadata", "--no-deps", "--offline", "--format-version", "1", "--manifest-path"]);
    let output = cargo.arg(root().join(manifest)).output().unwrap();
    assert!(output.status.success(), "{manifest}: {}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

/// The root file of each library and binary, as a path from the project's folder.
fn roots() -> BTreeSet<PathBuf> {
    let mut roots = BTreeSet::new();
    for manifest in MANIFESTS {
        let metadata = metadata(manifest);
        for package in metadata["packages"].as_array().unwrap() {
            let targets = package["targets"].as_array().unwrap().iter();
            let built = targets.filter(|target| matches!(target["kind"][0].as_str(), Some("lib" | "bin")));
            let paths = built.map(|target| PathBuf::from(target["src_path"].as_str().unwrap()));
            roots.extend(paths.map(|path| path.strip_prefix(root()).unwrap().to_path_buf()));
        }
    }
    roots
}

fn read(file: &Path) -> Option<String> {
    std::fs::read_to_string(root().join(file)).ok()
}

#[test]
fn crates_depend_on_each_other_as_the_list_allows() {
    let page = std::fs::read_to_string(root().join("ARCHITECTURE.md")).unwrap();
    let mut used = crates::Crates::new();
    for manifest in MANIFESTS {
        used.extend(crates::used(&metadata(manifest)));
    }
    assert!(used.len() > 12, "{} crates", used.len());
    let wrong = crates::compare(&used, &crates::allowed(&page));
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// The paths between backquotes of a cell.
fn paths_in(cell: &str) -> impl Iterator<Item = &str> {
    cell.split('`').skip(1).step_by(2).filter(|quoted| quoted.contains('/') || !quoted.contains('_'))
}

#[test]
fn questions_of_newcomers_lead_to_files_that_exist() {
    let page = std::fs::read_to_string(root().join("ARCHITECTURE.md")).unwrap();
    let section = page.split("\n## Where to look\n").nth(1).expect("ARCHITECTURE.md says where to look");
    let section = section.split("\n## ").next().unwrap();
    let rows: Vec<Vec<&str>> = section
        .lines()
        .filter(|line| line.starts_with("| Where"))
        .map(|line| line.trim_matches('|').split(" | ").map(str::trim).collect())
        .collect();
    assert!(rows.len() >= 10, "{} questions", rows.len());
    for row in &rows {
        let [question, folder, answer] = row[..] else { panic!("a row has three cells: {row:?}") };
        let folder = paths_in(folder).next().unwrap_or_else(|| panic!("{question} no folder"));
        let files: Vec<&str> = paths_in(answer).collect();
        assert!(root().join(folder).is_dir(), "{question} no such folder: {folder}");
        assert!(files.first().is_some_and(|file| file.starts_with(folder)), "{question} {folder} does not have it");
        let missing: Vec<_> = files.iter().filter(|file| !root().join(file).is_file()).collect();
        assert!(missing.is_empty(), "{question} no such file: {missing:?}");
    }
}

#[test]
fn files_of_a_crate_import_each_other_in_no_circle() {
    let mut left = Vec::new();
    let mut met = BTreeSet::new();
    for crate_root in roots() {
        let modules = Modules::read(&crate_root, &read);
        assert!(modules.missing.is_empty(), "no file for {:?}", modules.missing);
        let imports = modules.imports();
        for circle in circles::find(&imports) {
            match KNOWN
                .iter()
                .position(|known| known.files.iter().map(PathBuf::from).collect::<BTreeSet<_>>() == circle)
            {
                Some(known) => drop(met.insert(known)),
                None => left.push(circles::show(&circle, &imports)),
            }
        }
    }
    assert!(left.is_empty(), "circles of files:\n{}", left.join("\n"));
    for (at, known) in KNOWN.iter().enumerate() {
        assert!(!known.reason.is_empty());
        assert!(met.contains(&at), "this circle is gone; take it off the list: {:?}", known.files);
    }
}

#[test]
fn pure_crates_reach_for_no_file_clock_or_environment() {
    let pure = roots().into_iter().filter(|file| PURE.iter().any(|folder| file.starts_with(folder)));
    let mut read_files = 0;
    let mut wrong = Vec::new();
    for crate_root in pure {
        let modules = Modules::read(&crate_root, &read);
        read_files += 1;
        for (file, line, path) in modules.paths().filter(|(_, _, path)| is_impure(path)) {
            wrong.push(format!("{}:{line} imports `{path}`", file.display()));
        }
    }
    assert_eq!(read_files, PURE.len());
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

fn is_impure(path: &str) -> bool {
    let ends = ["Instant::now", "SystemTime::now"].iter().any(|call| path.ends_with(call));
    ends || IMPURE.iter().any(|impure| path == *impure || path.starts_with(&format!("{impure}::")))
}
