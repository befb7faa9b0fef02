//! Name matches and whole policies, valid and not, against vectors that were run on Cilium 1.20.2.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{fs, path::Path};

use namegate_config::{
    diagnostic::Diagnostic,
    name::{Fqdn, NamePattern},
    policy::{Catalog, parse, translate},
    rule::{Peers, Rule, Subject},
};
use serde::Deserialize;

#[derive(Deserialize)]
struct Vectors {
    #[serde(rename = "match")]
    matches: Vec<Match>,
    invalid_policies: Vec<Policy>,
    valid_policies: Vec<Policy>,
    accepted_surprising: Vec<Policy>,
}

#[derive(Deserialize)]
struct Match {
    pattern: String,
    kind: String,
    name: String,
    matches: bool,
}

#[derive(Deserialize)]
struct Policy {
    name: String,
    yaml: String,
}

fn conformance(file: &str) -> String {
    fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("../conformance").join(file)).unwrap()
}

fn vectors() -> Vectors {
    serde_json::from_str(&conformance("policy-vectors.json")).unwrap()
}

#[test]
fn names_match_as_in_cilium() {
    let vectors = vectors().matches;
    assert_eq!(vectors.len(), 84);
    for vector in vectors {
        let pattern = match &*vector.kind {
            "matchName" => NamePattern::name(&vector.pattern),
            _ => NamePattern::pattern(&vector.pattern),
        };
        // The schema of the objects refuses some patterns that the matcher alone would take.
        let Ok(pattern) = pattern else {
            assert!(vector.pattern.starts_with('.'), "{}", vector.pattern);
            continue;
        };
        // A text that is no name is matched by nothing.
        let got = vector.name.parse::<Fqdn>().is_ok_and(|name| pattern.matches(&name));
        assert_eq!(got, vector.matches, "{} {}", vector.pattern, vector.name);
    }
}

#[test]
fn patterns_select_the_names_of_the_documentation() {
    #[derive(Deserialize)]
    struct File {
        patterns: Vec<Names>,
    }
    #[derive(Deserialize)]
    struct Names {
        pattern: String,
        accept: Vec<String>,
        reject: Vec<String>,
    }
    let file: File = serde_saphyr::from_str(&conformance("matchpattern.yaml")).unwrap();
    assert_eq!(file.patterns.len(), 12);
    for Names { pattern, accept, reject } in file.patterns {
        let parsed = NamePattern::pattern(&pattern).unwrap();
        let selects = |name: &String| name.parse::<Fqdn>().is_ok_and(|name| parsed.matches(&name));
        assert!(accept.iter().all(selects), "{pattern} {accept:?}");
        assert!(!reject.iter().any(selects), "{pattern} {reject:?}");
    }
}

#[test]
fn invalid_policies_are_refused_at_the_field() {
    let vectors = vectors().invalid_policies;
    assert_eq!(vectors.len(), 64);
    let mut lines = Vec::new();
    for vector in vectors {
        let parsed = parse(&vector.name, &vector.yaml);
        let errors: Vec<_> = parsed.diagnostics.iter().filter(|found| found.is_error()).collect();
        assert!(!errors.is_empty() && parsed.documents.is_empty(), "{} is accepted", vector.name);
        for error in errors {
            lines.push(format!("{}: {}:{} {} {error}", vector.name, error.line, error.column, error.code.as_str()));
        }
    }
    insta::assert_snapshot!("invalid_policies", lines.join("\n"));
}

/// Accepted by Cilium; Namegate has no such function and says so.
const UNSUPPORTED: [&str; 3] = ["tls-interception", "http-header-replace", "authentication"];

#[test]
fn valid_policies_are_accepted_and_translated() {
    let vectors = vectors().valid_policies;
    assert_eq!(vectors.len(), 32);
    for vector in vectors {
        let parsed = parse(&vector.name, &vector.yaml);
        if UNSUPPORTED.contains(&&*vector.name) {
            assert!(parsed.documents.is_empty(), "{}", vector.name);
            let errors = parsed.diagnostics.iter().filter(|found| found.is_error());
            assert!(
                errors.clone().count() > 0
                    && errors.clone().all(|found| found.code.as_str() == "namegate::unsupported")
            );
            continue;
        }
        assert!(!parsed.diagnostics.iter().any(Diagnostic::is_error), "{}: {:?}", vector.name, parsed.diagnostics);
        let translated = translate(&parsed.documents, &Catalog::default());
        assert!(!translated.rules.is_empty(), "{}", vector.name);
    }
}

fn written(rule: &Rule) -> String {
    let subject = match &rule.subject {
        Subject::Endpoints(selector) => format!("endpoints {selector}"),
        Subject::Nodes(selector) => format!("nodes {selector}"),
    };
    let peers = match &rule.peers {
        Peers::Any => "anybody".to_owned(),
        Peers::Of(peers) => format!("[{}]", peers.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")),
    };
    let (effect, ports, l7) = (rule.effect, &rule.ports, &rule.l7);
    format!("{}: {subject} {effect:?} {peers} {ports:?} {l7:?} default deny: {}", rule.origin, rule.default_deny)
}

#[test]
fn surprising_policies_get_the_safer_meaning() {
    let vectors = vectors().accepted_surprising;
    assert_eq!(vectors.len(), 12);
    let mut lines = Vec::new();
    for vector in vectors {
        let parsed = parse(&vector.name, &vector.yaml);
        lines.push(vector.name);
        for found in &parsed.diagnostics {
            lines.push(format!("  {:?} {}:{} {found}", found.severity, found.line, found.column));
        }
        for rule in translate(&parsed.documents, &Catalog::default()).rules {
            lines.push(format!("  {}", written(&rule)));
        }
    }
    insta::assert_snapshot!("accepted_surprising", lines.join("\n"));
}

#[test]
fn the_seed_policies_have_no_mistakes() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../integration/testbed/data/seed");
    let mut names: Vec<_> = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    names.retain(|name| name.extension().is_some_and(|extension| extension == "yaml"));
    names.sort();
    assert_eq!(names.len(), 4);
    for name in names {
        let parsed = parse(&name.to_string_lossy(), &fs::read_to_string(&name).unwrap());
        assert!(parsed.diagnostics.is_empty(), "{}: {:?}", name.display(), parsed.diagnostics);
        assert!(!translate(&parsed.documents, &Catalog::default()).rules.is_empty(), "{}", name.display());
    }
}
