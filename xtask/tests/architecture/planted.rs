//! A wrong import and a circle that are put in are found, and named.

use std::path::{Path, PathBuf};

use serde_json::json;

use crate::imports::Modules;
use crate::{circles, crates, is_impure};

const PAGE: &str = "# Page\n\n## Allowed dependencies\n\nText.\n\n```text\nabi -> nothing\nengine -> abi; in tests: testbed\ntestbed -> nothing\n```\n";

/// The imports of a crate of which these are the files, each with its text.
fn imports(files: &[(&str, &str)]) -> (Modules, Vec<String>) {
    let read = |file: &Path| files.iter().find(|(name, _)| Path::new(name) == file).map(|(_, text)| (*text).to_owned());
    let modules = Modules::read(Path::new("src/lib.rs"), &read);
    let found = modules.imports();
    let circles = circles::find(&found).iter().map(|circle| circles::show(circle, &found)).collect();
    (modules, circles)
}

fn pairs(modules: &Modules) -> Vec<(PathBuf, PathBuf)> {
    modules.imports().into_iter().map(|import| (import.from, import.to)).collect()
}

#[test]
fn a_dependency_that_the_list_does_not_have_is_named() {
    let metadata = json!({ "packages": [
        { "name": "namegate-abi", "dependencies": [{ "name": "namegate-engine", "kind": null, "path": "/engine" }] },
        { "name": "namegate-engine", "dependencies": [
            { "name": "namegate-abi", "kind": null, "path": "/abi" },
            { "name": "namegate-testbed", "kind": null, "path": "/testbed" },
            { "name": "ipnet", "kind": null },
        ] },
        { "name": "namegate", "dependencies": [] },
        { "name": "namegate-testbed", "dependencies": [] },
    ] });

    let wrong = crates::compare(&crates::used(&metadata), &crates::allowed(PAGE));

    let want = [
        "`abi` imports `engine`: not allowed",
        "ARCHITECTURE.md does not list the crate `agent`",
        "`engine` imports `testbed`: not allowed",
        "`engine` may import `testbed` in its tests, and does not",
    ];
    assert_eq!(wrong, want);
}

#[test]
fn a_circle_is_shown_by_its_imports() {
    let (_, circles) = imports(&[
        ("src/lib.rs", "mod a;\nmod b;\nmod c;\npub use b::B;"),
        ("src/a.rs", "use crate::B;\nuse std::fmt;\npub struct A(B);"),
        ("src/b.rs", "pub struct B;\nimpl B { fn run() { super::c::run(); } }"),
        ("src/c.rs", "pub fn run() { println!(\"{}\", crate::a::A::NAME); }"),
    ]);

    let want = "  src/a.rs:1 imports `crate::B` from src/b.rs\n  \
                src/b.rs:2 imports `super::c::run` from src/c.rs\n  \
                src/c.rs:1 imports `crate::a::A::NAME` from src/a.rs\n";
    assert_eq!(circles, [want]);
}

#[test]
fn what_a_module_defines_is_for_the_files_below_it() {
    let (_, circles) = imports(&[
        ("src/lib.rs", "mod a;"),
        ("src/a.rs", "mod deep;\npub struct Shared;\npub fn run() { deep::run(&Shared) }"),
        ("src/a/deep.rs", "use super::Shared;\npub fn run(_: &Shared) {}"),
    ]);
    assert_eq!(circles, [""; 0]);
}

#[test]
fn names_that_are_passed_on_and_tests_make_no_circle() {
    let (modules, circles) = imports(&[
        ("src/lib.rs", "mod a;\nmod b;\npub use a::{A, inner::{self, Deep as Named}};\npub use b::*;"),
        ("src/a.rs", "pub mod inner { pub struct Deep; }\npub struct A;\n#[cfg(test)]\nmod tests { use crate::B; }"),
        ("src/b.rs", "use crate::{A, Named, inner::Deep};\npub struct B(A);"),
    ]);
    assert_eq!(circles, [""; 0]);
    // From `A` in the file, and from what stands between braces in it.
    let pair: (PathBuf, PathBuf) = ("src/b.rs".into(), "src/a.rs".into());
    assert_eq!(pairs(&modules), [pair.clone(), pair]);
}

#[test]
fn a_module_without_a_file_is_not_passed_over() {
    let (modules, _) = imports(&[("src/lib.rs", "mod gone;")]);
    assert_eq!(modules.missing, ["src/lib.rs: mod gone"]);
}

#[test]
fn clocks_and_files_are_known_by_their_paths() {
    for path in ["std::fs", "std::fs::read", "Instant::now", "std::env::var"] {
        assert!(is_impure(path), "{path}");
    }
    for path in ["std::fmt", "std::time::Duration", "crate::env::read", "std::net::IpAddr"] {
        assert!(!is_impure(path), "{path}");
    }
}
