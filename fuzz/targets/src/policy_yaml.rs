//! Files of policies.

use miette::{GraphicalReportHandler, GraphicalTheme};
use namegate_config::{
    diagnostic::Diagnostic,
    policy::{Catalog, Parsed, parse, translate},
    rule::Rule,
};

/// Drawing takes time: the first ones tell as much.
const DRAWN_MAX: usize = 4;

/// A file of policies.
///
/// # Panics
/// Reading the same text twice gives different rules or mistakes; a mistake stands outside the text or cannot be drawn;
/// or a text after itself does not give its rules twice.
pub fn policy_yaml(data: &[u8]) {
    let Ok(text) = str::from_utf8(data) else { return };
    let (parsed, rules) = read(text);
    let (again, same_rules) = read(text);
    assert_eq!(rules, same_rules);
    assert_eq!(told(&parsed), told(&again));
    for found in &parsed.diagnostics {
        check_place(found, text);
    }
    let drawer = GraphicalReportHandler::new_themed(GraphicalTheme::unicode_nocolor());
    for found in parsed.diagnostics.iter().take(DRAWN_MAX) {
        let mut drawn = String::new();
        assert!(drawer.render_report(&mut drawn, found).is_ok(), "{found:?} cannot be drawn");
    }
    if parsed.diagnostics.iter().any(Diagnostic::is_error) {
        assert!(!parsed.diagnostics.is_empty());
    } else {
        check_twice(text, &parsed, &rules);
    }
}

fn read(text: &str) -> (Parsed, Vec<Rule>) {
    let parsed = parse("p.yaml", text);
    let rules = translate(&parsed.documents, &Catalog::default()).rules;
    (parsed, rules)
}

/// Everything that people see of it.
fn told(parsed: &Parsed) -> Vec<String> {
    let documents = parsed.documents.iter().map(|document| format!("{document:?}"));
    let found = parsed.diagnostics.iter().map(|found| {
        format!("{}:{} {:?} {} {found} {:?}", found.line, found.column, found.severity, found.code.as_str(), found.help)
    });
    documents.chain(found).collect()
}

fn check_place(found: &Diagnostic, text: &str) {
    let (start, end) = (found.span().offset(), found.span().offset() + found.span().len());
    assert!(text.is_char_boundary(start) && text.is_char_boundary(end), "{found:?}");
    let line = text.split('\n').nth(found.line - 1);
    assert!(line.is_some_and(|line| found.column <= line.chars().count() + 1), "{found:?}");
}

/// Documents do not know of each other, but for groups of prefixes. Directives and marks of the order of octets stand
/// at the start of a file alone.
fn check_twice(text: &str, parsed: &Parsed, rules: &[Rule]) {
    let stands_alone = text.contains('\u{feff}')
        || text.lines().any(|line| line.starts_with('%'))
        || parsed.documents.iter().any(|document| document.kind == "CiliumCIDRGroup");
    if stands_alone {
        return;
    }
    let (_, twice) = read(&format!("{text}\n---\n{text}"));
    assert_eq!(twice, [rules, rules].concat());
}
