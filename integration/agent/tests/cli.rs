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
