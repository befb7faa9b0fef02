//! Every stored input through its target, without a fuzzer.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
};

use namegate_fuzz_targets::TARGETS;

fn folder(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(name)
}

fn names(folder: &Path) -> BTreeSet<String> {
    let entries = fs::read_dir(folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
    entries.map(|entry| entry.unwrap().path().file_stem().unwrap().to_string_lossy().into_owned()).collect()
}

#[test]
fn every_target_has_a_program_and_a_corpus() {
    let targets: BTreeSet<String> = TARGETS.iter().map(|target| target.name.to_owned()).collect();
    assert_eq!(names(&folder("fuzz_targets")), targets);
    assert_eq!(names(&folder("corpus")), targets);
}

/// Stored inputs of all targets, in octets: what a clone carries.
const CORPORA_OCTETS_MAX: u64 = 2 << 20;

#[test]
fn every_stored_input_passes() {
    let mut octets = 0;
    for target in TARGETS {
        let corpus = folder("corpus").join(target.name);
        let mut files: Vec<PathBuf> = fs::read_dir(corpus).unwrap().map(|entry| entry.unwrap().path()).collect();
        files.sort();
        assert!(files.len() >= 10, "{} has {} inputs", target.name, files.len());
        for file in &files {
            let input = fs::read(file).unwrap();
            octets += input.len() as u64;
            let passed = std::panic::catch_unwind(|| (target.check)(&input));
            assert!(passed.is_ok(), "{} fails on {}", target.name, file.display());
        }
        println!("{}: {} inputs", target.name, files.len());
    }
    assert!(octets <= CORPORA_OCTETS_MAX, "{octets} octets: minimise with `cargo xtask fuzz --store`");
}
