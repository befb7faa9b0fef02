//! The threat model is true: each test that it names exists, and each row names one.

use std::path::Path;

/// Rows that the table has at least; a table that is not found has none.
const ROWS_MIN: usize = 30;

fn page(name: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").join(name);
    std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{name}: {error}"))
}

/// The names between backquotes.
fn quoted(text: &str) -> impl Iterator<Item = &str> {
    text.split('`').skip(1).step_by(2)
}

fn has_test(name: &str) -> bool {
    let Some((file, function)) = name.split_once("::") else { return false };
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").join(file);
    let source = std::fs::read_to_string(path).unwrap_or_default();
    let declaration = format!("fn {function}(");
    // The attribute, maybe another one, and the function.
    source.split("test]").skip(1).any(|after| after.lines().take(4).any(|line| line.contains(&declaration)))
}

#[test]
fn every_row_of_the_threat_model_names_tests_that_exist() {
    let text = page("docs/threat-model.md");
    let table = text.split("## What is not defended").next().unwrap();
    let rows: Vec<Vec<&str>> = table
        .lines()
        .filter(|line| line.starts_with("| ") && !line.starts_with("| ---") && !line.starts_with("| Attacker"))
        .map(|line| line.trim_matches('|').split(" | ").collect())
        .collect();
    assert!(rows.len() >= ROWS_MIN, "{} rows", rows.len());
    for row in &rows {
        assert_eq!(row.len(), 4, "{row:?}");
        let tests: Vec<&str> = quoted(row[3]).collect();
        assert!(!tests.is_empty(), "no test: {row:?}");
        let missing: Vec<_> = tests.iter().filter(|test| !has_test(test)).collect();
        assert!(missing.is_empty(), "no such test: {missing:?}");
    }
}

#[test]
fn security_and_threat_model_are_found_from_the_first_page() {
    let first = page("README.md");
    for link in ["SECURITY.md", "docs/threat-model.md"] {
        assert!(first.contains(&format!("({link})")), "README.md has no link to {link}");
    }
    assert!(page("SECURITY.md").contains("(docs/threat-model.md)"));
}
