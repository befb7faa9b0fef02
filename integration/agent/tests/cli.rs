//! The command line from outside: what it prints and how it exits.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::process::{Command, Output, Stdio};

fn namegate(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_namegate")).args(arguments).stdin(Stdio::null()).output().unwrap()
}

fn said(output: &Output) -> (Option<i32>, String, String) {
    let text = |octets: &[u8]| String::from_utf8(octets.to_vec()).unwrap();
    (output.status.code(), text(&output.stdout), text(&output.stderr))
}

#[test]
fn a_match_is_told_by_word_and_exit_code() {
    for (pattern, name, want) in [
        ("cilium.io", "CILIUM.IO.", 0),
        ("*.cilium.io", "sub.cilium.io", 0),
        ("*.cilium.io", "sub.sub.cilium.io", 1),
        ("**.cilium.io", "sub.sub.cilium.io", 0),
        ("*", ".", 0),
        ("*", ".io.", 1),
        ("*.example", "b\u{fc}cher.example", 1),
    ] {
        let (code, out, _) = said(&namegate(&["fqdn", "match", pattern, name]));
        let word = if want == 0 { "match\n" } else { "no match\n" };
        assert_eq!((code, out.as_str()), (Some(want), word), "{pattern} {name}");
    }
}

#[test]
fn a_bad_pattern_is_an_error_that_names_it() {
    for pattern in ["", "a..io", ".io", "a b.io", "[a-z].io"] {
        let (code, out, err) = said(&namegate(&["fqdn", "match", pattern, "cilium.io"]));
        assert_eq!((code, out.as_str()), (Some(2), ""), "{pattern:?}");
        assert!(err.contains(&format!("`{pattern}` is no name pattern")), "{err}");
    }
}

#[test]
fn an_absent_agent_is_named_with_the_next_step() {
    for verb in [
        &["status"][..],
        &["monitor"],
        &["fqdn", "cache", "list"],
        &["fqdn", "cache", "clean", "--yes"],
        &["fqdn", "cache", "names"],
    ] {
        let (code, out, err) = said(&namegate(&[&["--socket", "/nonexistent/ng.sock"], verb].concat()));
        assert_eq!((code, out.as_str()), (Some(2), ""), "{verb:?}");
        assert!(err.starts_with("error: no agent answers on /nonexistent/ng.sock; start it with"), "{err}");
    }
}

#[test]
fn wrong_usage_exits_2() {
    for arguments in [&["fqdn", "match", "a.io"][..], &["status", "-o", "xml"], &["nothing"], &[]] {
        assert_eq!(said(&namegate(arguments)).0, Some(2), "{arguments:?}");
    }
}

#[test]
fn help_of_every_verb_ends_well_and_has_an_example() {
    for verb in [
        &[][..],
        &["policy"],
        &["policy", "validate"],
        &["policy", "test"],
        &["policy", "trace"],
        &["policy", "schema"],
        &["policy", "crds"],
        &["fqdn"],
        &["fqdn", "match"],
        &["fqdn", "cache"],
        &["fqdn", "cache", "list"],
        &["fqdn", "cache", "clean"],
        &["fqdn", "cache", "names"],
        &["status"],
        &["monitor"],
    ] {
        let (code, out, _) = said(&namegate(&[verb, &["--help"]].concat()));
        assert_eq!(code, Some(0), "{verb:?}");
        assert!(out.contains("Example:"), "{verb:?}: {out}");
        assert!(!out.contains('\u{1b}'), "no colour where there is no terminal");
    }
}

#[test]
fn schemas_are_printed_by_kind_or_together() {
    let read = |arguments: &[&str]| {
        let (code, out, _) = said(&namegate(&[&["policy", "schema"], arguments].concat()));
        assert_eq!(code, Some(0), "{arguments:?}");
        serde_json::from_str::<serde_json::Value>(&out).unwrap()
    };
    assert_eq!(read(&["NetworkPolicy"])["properties"]["kind"]["enum"][0], "NetworkPolicy");
    assert_eq!(read(&[])["oneOf"].as_array().unwrap().len(), 6, "five kinds and lists of them");
    let (code, out, err) = said(&namegate(&["policy", "schema", "Pod"]));
    assert_eq!((code, out.as_str()), (Some(2), ""));
    assert!(err.contains("CiliumNetworkPolicy"), "{err}");
}

#[test]
fn definitions_are_printed_or_written() {
    let (code, out, _) = said(&namegate(&["policy", "crds"]));
    assert_eq!((code, out.matches("kind: CustomResourceDefinition").count()), (Some(0), 4));
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().to_str().unwrap();
    assert_eq!(said(&namegate(&["policy", "crds", "--directory", path])), (Some(0), String::new(), String::new()));
    let mut files: Vec<_> = std::fs::read_dir(path).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.sort();
    let texts: Vec<String> = files.iter().map(|file| std::fs::read_to_string(file).unwrap()).collect();
    assert_eq!(texts.iter().map(String::len).sum::<usize>() + 3 * "---\n".len(), out.len());
    let (code, _, err) = said(&namegate(&["policy", "crds", "--directory", "/nonexistent"]));
    assert_eq!(code, Some(2));
    assert!(err.contains("writing /nonexistent/"), "{err}");
}
