//! YAML and JSON documents as trees whose values know where they stand.
//!
//! YAML 1.2: `yes` and `on` are text, numbers with a leading zero too. Merge keys and tags are refused: an API server
//! may read them otherwise. Each document of a file is read alone, so that a broken one does not take the others along.

use std::fmt;

use serde::de::{Deserialize, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_saphyr::{DuplicateKeyPolicy, MergeKeyPolicy, Spanned};

use crate::diagnostic::{Code, Diagnostic, Source, Span};

/// A value and its place. Mappings and sequences have a place of zero or one octet, where they start.
#[derive(Clone, Debug)]
pub(crate) struct Node {
    pub(crate) kind: Kind,
    pub(crate) span: Span,
}

/// What a [`Node`] holds.
#[derive(Clone, Debug)]
pub(crate) enum Kind {
    Null,
    Bool(bool),
    Integer(i128),
    Float,
    Text(String),
    List(Vec<Node>),
    /// In the order of the file; a key may stand twice.
    Map(Vec<(Key, Node)>),
}

/// A key of a mapping and its place.
#[derive(Clone, Debug)]
pub(crate) struct Key {
    pub(crate) text: String,
    pub(crate) span: Span,
}

/// Reads every document of a file. Documents without content are left out.
pub(crate) fn read(source: &Source) -> Vec<Result<Node, Diagnostic>> {
    split(source.text())
        .into_iter()
        .map(|part| read_one(source, part))
        .filter(|document| !matches!(document, Ok(Node { kind: Kind::Null, .. })))
        .collect()
}

fn read_one(source: &Source, part: Span) -> Result<Node, Diagnostic> {
    let text = &source.text()[part.offset..part.offset + part.len];
    match serde_saphyr::from_str_with_options::<Spanned<Kind>>(text, options(text, DuplicateKeyPolicy::LastWins)) {
        Ok(spanned) => {
            let mut node = Node::from(spanned);
            node.shift(part.offset);
            Ok(node)
        }
        Err(error) => Err(syntax(source, part, &error)),
    }
}

/// Reads the only document of a file into a type of serde.
pub(crate) fn read_as<T: serde::de::DeserializeOwned>(source: &Source) -> Result<T, Diagnostic> {
    let whole = Span { offset: 0, len: source.text().len() };
    serde_saphyr::from_str_with_options(source.text(), options(source.text(), DuplicateKeyPolicy::Error))
        .map_err(|error| syntax(source, whole, &error))
}

/// Each node takes a byte of the text or more: what is written out is bounded by its length, and may be long. Bounds of
/// aliases, which make much of little, and of depth stay those of the library.
fn options(text: &str, duplicate_keys: DuplicateKeyPolicy) -> serde_saphyr::Options {
    const EVENTS_OF_NODE: usize = 2;
    let defaults = serde_saphyr::Budget::default();
    let budget = serde_saphyr::budget! {
        max_nodes: defaults.max_nodes.max(text.len()),
        max_events: defaults.max_events.max(text.len() * EVENTS_OF_NODE),
        max_total_scalar_bytes: defaults.max_total_scalar_bytes.max(text.len()),
    };
    serde_saphyr::options! {
        budget: budget,
        duplicate_keys: duplicate_keys,
        merge_keys: MergeKeyPolicy::Error,
        strict_booleans: true,
        leading_zero_numbers_as_strings: true,
        underscored_numbers_as_strings: true,
        reject_unsupported_tags: true,
        with_snippet: false,
    }
}

fn syntax(source: &Source, part: Span, error: &serde_saphyr::Error) -> Diagnostic {
    let mut problem = error.to_string();
    let mut span = Span { offset: part.offset, len: 0 };
    if let Some(location) = error.location() {
        if let Some(at) = problem.rfind(&format!(" at line {}", location.line())) {
            problem.truncate(at);
        }
        let place = span_of(&location).unwrap_or_else(|| {
            let text = Source::new("", &source.text()[part.offset..part.offset + part.len]);
            let count = |number: u64| usize::try_from(number).unwrap_or(usize::MAX);
            let offset = text.offset(count(location.line()), count(location.column()));
            Span { offset, len: text.text()[offset..].chars().next().map_or(0, char::len_utf8) }
        });
        span = Span { offset: part.offset + place.offset, ..place };
    }
    source.error(span, Code::Syntax, "", problem)
}

/// Parts of the text between document markers. A marker at the start of a line is one wherever it stands (YAML 1.2.2
/// §9.1.2), so this needs no parser. Directives stay with the document they precede.
fn split(text: &str) -> Vec<Span> {
    let mut parts = Vec::new();
    let mut start = 0;
    let mut at = 0;
    let mut has_content = false;
    for line in text.split_inclusive('\n') {
        if is_marker(line, "---") {
            if has_content {
                parts.push(Span { offset: start, len: at - start });
                start = at;
            }
            has_content = true;
        } else if is_marker(line, "...") {
            if has_content {
                parts.push(Span { offset: start, len: at - start });
            }
            start = at + line.len();
            has_content = false;
        } else {
            has_content = has_content || !(line.trim().is_empty() || line.starts_with(['#', '%']));
        }
        at += line.len();
    }
    if has_content {
        parts.push(Span { offset: start, len: at - start });
    }
    parts
}

fn is_marker(line: &str, marker: &str) -> bool {
    let line = line.strip_prefix('\u{feff}').unwrap_or(line);
    line.strip_prefix(marker).is_some_and(|rest| rest.is_empty() || rest.starts_with([' ', '\t', '\r', '\n']))
}

impl Node {
    /// Where to point at: the first key of a mapping written in lines, else the value itself.
    pub(crate) fn mark(&self) -> Span {
        match &self.kind {
            Kind::Map(entries) if self.span.len == 0 => entries.first().map_or(self.span, |(key, _)| key.span),
            Kind::List(items) if self.span.len == 0 => items.first().map_or(self.span, Self::mark),
            _ => self.span,
        }
    }

    /// What people call this kind of value.
    pub(crate) fn kind_name(&self) -> &'static str {
        match self.kind {
            Kind::Null => "null",
            Kind::Bool(_) => "a boolean",
            Kind::Integer(_) | Kind::Float => "a number",
            Kind::Text(_) => "text",
            Kind::List(_) => "a list",
            Kind::Map(_) => "a mapping",
        }
    }

    /// An object of an API as a tree. It has no text, so a place is the number of the value in the order of the object:
    /// what is found out about the object is reported in that order.
    pub(crate) fn from_json(value: &serde_json::Value) -> Self {
        Self::numbered(value, &mut 0)
    }

    fn numbered(value: &serde_json::Value, number: &mut usize) -> Self {
        use serde_json::Value;
        let span = next_span(number);
        let kind = match value {
            Value::Null => Kind::Null,
            Value::Bool(value) => Kind::Bool(*value),
            Value::Number(value) => value.as_i128().map_or(Kind::Float, Kind::Integer),
            Value::String(text) => Kind::Text(text.clone()),
            Value::Array(items) => Kind::List(items.iter().map(|item| Self::numbered(item, number)).collect()),
            Value::Object(fields) => {
                let field = |(key, value): (&String, &Value)| {
                    let key = Key { text: key.clone(), span: next_span(number) };
                    (key, Self::numbered(value, number))
                };
                Kind::Map(fields.iter().map(field).collect())
            }
        };
        Self { kind, span }
    }

    fn shift(&mut self, by: usize) {
        self.span.offset += by;
        match &mut self.kind {
            Kind::List(items) => items.iter_mut().for_each(|item| item.shift(by)),
            Kind::Map(entries) => {
                for (key, value) in entries {
                    key.span.offset += by;
                    value.shift(by);
                }
            }
            _ => {}
        }
    }
}

fn next_span(number: &mut usize) -> Span {
    *number += 1;
    Span { offset: *number, len: 0 }
}

fn span_of(location: &serde_saphyr::Location) -> Option<Span> {
    let span = location.span();
    let offset = usize::try_from(span.byte_offset()?).ok()?;
    Some(Span { offset, len: usize::try_from(span.byte_len()?).ok()? })
}

impl From<Spanned<Kind>> for Node {
    fn from(spanned: Spanned<Kind>) -> Self {
        Self { kind: spanned.value, span: span_of(&spanned.referenced).unwrap_or_default() }
    }
}

impl From<Spanned<String>> for Key {
    fn from(spanned: Spanned<String>) -> Self {
        Self { text: spanned.value, span: span_of(&spanned.referenced).unwrap_or_default() }
    }
}

impl<'de> Deserialize<'de> for Kind {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(KindVisitor)
    }
}

struct KindVisitor;

impl<'de> Visitor<'de> for KindVisitor {
    type Value = Kind;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a value")
    }

    fn visit_unit<E>(self) -> Result<Kind, E> {
        Ok(Kind::Null)
    }

    fn visit_none<E>(self) -> Result<Kind, E> {
        Ok(Kind::Null)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Kind, E> {
        Ok(Kind::Bool(value))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Kind, E> {
        Ok(Kind::Integer(value.into()))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Kind, E> {
        Ok(Kind::Integer(value.into()))
    }

    fn visit_i128<E>(self, value: i128) -> Result<Kind, E> {
        Ok(Kind::Integer(value))
    }

    fn visit_f64<E>(self, _: f64) -> Result<Kind, E> {
        Ok(Kind::Float)
    }

    fn visit_str<E>(self, value: &str) -> Result<Kind, E> {
        Ok(Kind::Text(value.to_owned()))
    }

    fn visit_string<E>(self, value: String) -> Result<Kind, E> {
        Ok(Kind::Text(value))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut access: A) -> Result<Kind, A::Error> {
        let mut items = Vec::new();
        while let Some(item) = access.next_element::<Spanned<Kind>>()? {
            items.push(item.into());
        }
        Ok(Kind::List(items))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut access: A) -> Result<Kind, A::Error> {
        let mut entries = Vec::new();
        while let Some((key, value)) = access.next_entry::<Spanned<String>, Spanned<Kind>>()? {
            entries.push((key.into(), value.into()));
        }
        Ok(Kind::Map(entries))
    }
}

#[cfg(test)]
mod tests {
    use std::fmt::Write as _;

    use super::*;

    /// The marked text of each document, or the line and problem of its error.
    fn texts(text: &str) -> Vec<Result<String, (usize, String)>> {
        let source = Source::new("x.yaml", text);
        let marked = |node: &Node| source.text()[node.mark().offset..][..node.mark().len].to_owned();
        read(&source).iter().map(|one| one.as_ref().map(marked).map_err(|e| (e.line, e.problem.clone()))).collect()
    }

    #[test]
    fn documents_are_read_one_by_one() {
        for (text, want) in [
            ("", &[][..]),
            ("# nothing\n---\n", &[]),
            ("a: 1\n", &[Some("a")]),
            ("a: 1\n---\nb: 1\n", &[Some("a"), Some("b")]),
            ("%YAML 1.2\n---\na: 1\n...\n# c\n---\nb: 1", &[Some("a"), Some("b")]),
            ("\u{feff}---\r\na: 1\r\n---\r\nb: 1\r\n", &[Some("a"), Some("b")]),
            ("--- {a: 1}\n--- 'text'\n", &[Some("{"), Some("'text'")]),
            ("a: |\n  ---\n  x\n---\nb: 1", &[Some("a"), Some("b")]),
            ("---\na: [1\n---\nb: 1", &[None, Some("b")]),
        ] {
            let got: Vec<Option<String>> = texts(text).into_iter().map(Result::ok).collect();
            let got: Vec<Option<&str>> = got.iter().map(Option::as_deref).collect();
            assert_eq!(got, want, "{text:?}");
        }
    }

    #[test]
    fn what_an_api_server_reads_otherwise_is_refused() {
        for (text, line) in [
            ("a: 1\nb: [", 2),
            ("a: &x {b: 1}\nc:\n  <<: *x\n", 3),
            ("a: !env HOME\n", 1),
            ("a: .nan\n", 1),
            ("? [a]\n: b\n", 1),
            ("a: x\u{0}y\n", 1),
        ] {
            let got = texts(text);
            assert!(
                matches!(&got[..], [Err((at, problem))] if *at == line && !problem.contains("at line")),
                "{text:?} {got:?}"
            );
        }
    }

    #[test]
    fn a_long_document_is_read_and_one_of_many_aliases_is_not() {
        let mut long = String::from("endpoints:\n");
        for at in 0..25_000 {
            let _ = writeln!(long, "- {{name: e{at}, labels: {{app: a}}, addresses: [10.0.0.1, 'fd00::1']}}");
        }
        assert_eq!(texts(&long).iter().filter(|document| document.is_ok()).count(), 1);
        let list = |of: &str| format!("[{}]", vec![of; 40].join(", "));
        let bomb = format!("a: &a {}\nb: &b {}\nc: &c {}\nd: {}\n", list("x"), list("*a"), list("*b"), list("*c"));
        assert_eq!(texts(&bomb).iter().filter(|document| document.is_err()).count(), 1);
    }

    #[test]
    fn a_wide_character_is_marked_whole() {
        let text = "a: 1\n\u{feff}b: 2\n";
        let found = read(&Source::new("x.yaml", text)).remove(0).unwrap_err();
        let (start, end) = (found.span().offset(), found.span().offset() + found.span().len());
        assert_eq!((start, &text[start..end]), (5, "\u{feff}"));
    }

    #[test]
    fn an_object_is_the_tree_of_its_text() {
        let text = "{\"a\": [1, -2, 1.5, 18446744073709551615, true, null, \"x\\u00e9y\\n\"], \"b\": {\"c\": {}}}";
        let shape = |node: &Node| {
            fn walk(node: &Node, text: &mut String) {
                match &node.kind {
                    Kind::List(items) => items.iter().for_each(|item| walk(item, text)),
                    Kind::Map(fields) => fields.iter().for_each(|(key, value)| {
                        text.push_str(&key.text);
                        walk(value, text);
                    }),
                    other => write!(text, "{other:?}").unwrap(),
                }
                text.push(';');
            }
            let mut text = String::new();
            walk(node, &mut text);
            text
        };
        let of_text = read(&Source::new("x.json", text)).remove(0).unwrap();
        let of_object = Node::from_json(&serde_json::from_str(text).unwrap());
        assert_eq!(shape(&of_object), shape(&of_text));
    }

    #[test]
    fn deep_nesting_is_refused_and_not_followed() {
        let text = "[".repeat(100_000);
        assert!(texts(&text)[0].is_err());
    }
}
