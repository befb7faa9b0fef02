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
    let (mut octets, mut failed) = (0, Vec::new());
    for target in TARGETS {
        let corpus = folder("corpus").join(target.name);
        let mut files: Vec<PathBuf> = fs::read_dir(corpus).unwrap().map(|entry| entry.unwrap().path()).collect();
        files.sort();
        assert!(files.len() >= 10, "{} has {} inputs", target.name, files.len());
        for file in &files {
            let input = fs::read(file).unwrap();
            octets += input.len() as u64;
            if std::panic::catch_unwind(|| (target.check)(&input)).is_err() {
                failed.push(format!("{}: {}", target.name, file.display()));
            }
        }
        println!("{}: {} inputs", target.name, files.len());
    }
    assert!(failed.is_empty(), "{} inputs fail: {failed:#?}", failed.len());
    assert!(octets <= CORPORA_OCTETS_MAX, "{octets} octets: minimise with `cargo xtask fuzz --store`");
}

/// Files of a former form are not read, so that nothing would be checked of them.
#[test]
fn stored_inputs_of_saved_objects_are_of_the_form_that_is_read() {
    let files: Vec<PathBuf> =
        fs::read_dir(folder("corpus").join("kubernetes_json")).unwrap().map(|entry| entry.unwrap().path()).collect();
    let read = files.iter().filter_map(|file| namegate_kubernetes::fuzzing::saved(&fs::read(file).unwrap()));
    let objects: Vec<usize> = read.map(|saved| saved.objects).collect();
    assert!(objects.len() * 2 > files.len(), "{} of {} inputs are read", objects.len(), files.len());
    assert!(objects.contains(&6), "an object of each of six kinds in one file: {objects:?}");
}

fn conformance(file: &str) -> serde_json::Value {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../conformance").join(file);
    serde_json::from_str(&fs::read_to_string(path).unwrap()).unwrap()
}

/// What the targets began with: each case of other suites, whole, where the stored inputs are minimised.
#[test]
fn every_case_of_conformance_passes() {
    let messages = conformance("dns-wire.json");
    for case in messages["cases"].as_array().unwrap() {
        let digits = case["response_hex"].as_str().unwrap().as_bytes();
        let octet = |pair: &[u8]| u8::from_str_radix(str::from_utf8(pair).unwrap(), 16).unwrap();
        let message: Vec<u8> = digits.chunks(2).map(octet).collect();
        namegate_fuzz_targets::dns_wire(&message);
    }
    let vectors = conformance("policy-vectors.json");
    for one in vectors["match"].as_array().unwrap() {
        let text = |field: &str| one[field].as_str().unwrap().to_owned();
        namegate_fuzz_targets::pattern(format!("{}\n{}\n", text("pattern"), text("name")).as_bytes());
    }
    for kind in ["invalid_policies", "valid_policies", "accepted_surprising"] {
        for policy in vectors[kind].as_array().unwrap() {
            namegate_fuzz_targets::policy_yaml(policy["yaml"].as_str().unwrap().as_bytes());
        }
    }
}
