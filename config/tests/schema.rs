//! Policies against the schema: what the reader takes fits, what is wrong in its form does not.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{
    fs,
    path::{Path, PathBuf},
};

use namegate_config::{policy::parse, schema};
use serde_json::Value;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

fn validator() -> jsonschema::Validator {
    jsonschema::draft202012::new(&schema::all()).unwrap()
}

/// Vectors of one list: name and YAML.
fn vectors(list: &str) -> Vec<(String, String)> {
    let text = fs::read_to_string(root().join("conformance/policy-vectors.json")).unwrap();
    let file: Value = serde_json::from_str(&text).unwrap();
    let field = |vector: &Value, key: &str| vector[key].as_str().unwrap().to_owned();
    file[list].as_array().unwrap().iter().map(|vector| (field(vector, "name"), field(vector, "yaml"))).collect()
}

fn is_accepted(yaml: &str) -> bool {
    !parse("x.yaml", yaml).diagnostics.iter().any(namegate_config::diagnostic::Diagnostic::is_error)
}

/// The documents of a file, as a validator sees them: keys that stand twice are one there.
fn documents(yaml: &str) -> Vec<Value> {
    let last = serde_saphyr::options! {
        duplicate_keys: serde_saphyr::DuplicateKeyPolicy::LastWins,
        strict_booleans: true,
    };
    serde_saphyr::from_multiple_with_options(yaml, last).unwrap()
}

fn errors(schema: &jsonschema::Validator, document: &Value) -> Vec<String> {
    schema.iter_errors(document).map(|error| format!("{}: {error:.300}", error.instance_path)).collect()
}

#[test]
fn vectors_that_are_accepted_fit() {
    let schema = validator();
    let mut fitting = 0;
    for (name, yaml) in [vectors("valid_policies"), vectors("accepted_surprising")].concat() {
        if !is_accepted(&yaml) {
            continue;
        }
        for document in documents(&yaml) {
            assert!(schema.is_valid(&document), "{name}: {:?}", errors(&schema, &document));
            fitting += 1;
        }
    }
    assert_eq!(fitting, 40);
}

/// Vectors that only the reader refuses, and why a schema does not.
const READER_ONLY: [(&str, &str); 11] = [
    ("except-wider", "compares two values"),
    ("except-other-family", "compares two values"),
    ("http-port-zero", "a limit on what stands beside it"),
    ("http-bad-path-regex", "regular expressions are compiled"),
    ("http-bad-method-regex", "regular expressions are compiled"),
    ("dns-port-range", "a limit on what stands beside it"),
    ("icmp-v4-name-for-v6", "names depend on the family beside them"),
    ("in-without-values", "values depend on the operator"),
    ("exists-with-values", "values depend on the operator"),
    ("host-policy-http", "depends on the subject of the policy"),
    ("duplicate-yaml-key", "a mapping of JSON has each key once"),
];

#[test]
fn vectors_that_are_wrong_in_their_form_do_not_fit() {
    let schema = validator();
    let is_fitting = |yaml: &String| documents(yaml).iter().all(|document| schema.is_valid(document));
    let fitting: Vec<String> =
        vectors("invalid_policies").into_iter().filter(|(_, yaml)| is_fitting(yaml)).map(|(name, _)| name).collect();
    assert_eq!(fitting, READER_ONLY.map(|(name, _)| name));
}

/// Every file below a folder.
fn files(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() { found.extend(files(&path)) } else { found.push(path) }
    }
    found
}

/// Every mapping somewhere in a value that is an object of a kind there is a schema for.
fn objects<'v>(value: &'v Value, found: &mut Vec<&'v Value>) {
    match value {
        Value::Object(fields) => {
            let kind = fields.get("kind").and_then(Value::as_str);
            if fields.contains_key("apiVersion") && kind.is_some_and(|kind| schema::kinds().any(|known| known == kind))
            {
                found.push(value);
                return;
            }
            fields.values().for_each(|below| objects(below, found));
        }
        Value::Array(items) => items.iter().for_each(|below| objects(below, found)),
        _ => {}
    }
}

/// Documents of Markdown pages stand between fences.
fn texts(path: &Path) -> Vec<String> {
    let text = fs::read_to_string(path).unwrap();
    match path.extension().and_then(std::ffi::OsStr::to_str) {
        Some("yaml") => vec![text],
        Some("md") => text
            .split("```")
            .skip(1)
            .step_by(2)
            .filter_map(|block| Some(block.strip_prefix("yaml")?.to_owned()))
            .collect(),
        _ => Vec::new(),
    }
}

/// Uses a field that Cilium itself has given up: refused by reader and schema alike.
const REFUSED: &str = "doc-requires.yaml";

#[test]
fn policies_of_cases_examples_and_pages_fit() {
    let schema = validator();
    let mut counts = Vec::new();
    for folder in ["conformance/cases", "examples", "docs", "integration/testbed/data/seed"] {
        let mut count = 0;
        for path in files(&root().join(folder)) {
            for text in texts(&path) {
                let read = documents(&text);
                let mut found = Vec::new();
                for document in &read {
                    objects(document, &mut found);
                }
                for object in found {
                    let is_valid = schema.is_valid(object);
                    let is_refused = path.ends_with(REFUSED);
                    assert!(is_valid != is_refused, "{}: {:?}", path.display(), errors(&schema, object));
                    count += 1;
                }
            }
        }
        counts.push(count);
    }
    assert!(counts.iter().all(|count| *count > 0), "{counts:?}");
    assert!(counts[0] > 325, "{counts:?}");
}

#[test]
fn lists_fit_as_kubectl_prints_them() {
    let schema = validator();
    let (_, yaml) = vectors("valid_policies").remove(0);
    let mut list = serde_json::json!({ "apiVersion": "v1", "kind": "List", "metadata": {}, "items": documents(&yaml) });
    assert!(schema.is_valid(&list) && is_accepted(&list.to_string()));
    list["items"][0]["specs"][0]["egresss"] = serde_json::json!([]);
    assert!(!schema.is_valid(&list) && !is_accepted(&list.to_string()));
}
