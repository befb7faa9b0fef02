//! Reads fields out of a document, and collects what is wrong with them instead of stopping at the first mistake.

use crate::{
    diagnostic::{Code, Diagnostic, Place, Severity, Source, Span},
    document::{Kind, Node},
    language::{Refused, Shape},
};

/// Collects the mistakes of one document.
pub(crate) struct Reader<'s> {
    source: &'s Source,
    found: Vec<Diagnostic>,
}

/// A value and its path.
#[derive(Clone, Debug)]
pub(crate) struct Value<'n> {
    pub(crate) path: String,
    /// Where to point when the value as a whole is wrong.
    pub(crate) mark: Span,
    pub(crate) node: &'n Node,
}

/// A mapping whose keys are known and stand once.
#[derive(Clone, Debug)]
pub(crate) struct Object<'n> {
    pub(crate) path: String,
    pub(crate) mark: Span,
    fields: Vec<(&'n str, Value<'n>)>,
    /// What it may hold, where a table says so.
    shape: Option<&'static Shape>,
}

impl<'s> Reader<'s> {
    pub(crate) fn new(source: &'s Source) -> Self {
        Self { source, found: Vec::new() }
    }

    /// Everything found so far.
    pub(crate) fn finish(self) -> Vec<Diagnostic> {
        self.found
    }

    /// Whether an error was found.
    pub(crate) fn has_errors(&self) -> bool {
        self.found.iter().any(Diagnostic::is_error)
    }

    /// Notes an error; the diagnostic can be given a help text.
    pub(crate) fn error(&mut self, span: Span, code: Code, path: &str, problem: impl Into<String>) -> &mut Diagnostic {
        let at = self.found.len();
        self.found.push(self.source.error(span, code, path, problem));
        &mut self.found[at]
    }

    /// Notes an error at a value.
    pub(crate) fn wrong(&mut self, value: &Value<'_>, code: Code, problem: impl Into<String>) -> &mut Diagnostic {
        self.error(value.mark, code, &value.path, problem)
    }

    /// Notes an error at a mapping.
    pub(crate) fn wrong_object(&mut self, object: &Object<'_>, code: Code, problem: &str) -> &mut Diagnostic {
        self.error(object.mark, code, &object.path, problem)
    }

    /// Notes a warning at a value.
    pub(crate) fn warn(&mut self, value: &Value<'_>, code: Code, problem: impl Into<String>) -> &mut Diagnostic {
        let found = self.wrong(value, code, problem);
        found.severity = Severity::Warning;
        found
    }

    /// A diagnostic that may be needed later, once more is known.
    pub(crate) fn prepared(
        &self,
        value: &Value<'_>,
        code: Code,
        problem: impl Into<String>,
        severity: Severity,
    ) -> Diagnostic {
        let mut found = self.source.error(value.at_value().mark, code, &value.path, problem);
        found.severity = severity;
        found
    }

    /// Where a value stands.
    pub(crate) fn place(&self, value: &Value<'_>) -> Place {
        self.source.place(value.mark, &value.path)
    }

    fn wrong_type(&mut self, value: &Value<'_>, wanted: &str) -> &mut Diagnostic {
        let problem = format!("{wanted} is wanted here, this is {}", value.node.kind_name());
        self.wrong(value, Code::WrongType, problem)
    }

    /// The mapping; unknown and repeated keys are noted.
    pub(crate) fn object<'n>(&mut self, value: &Value<'n>, known: &[&str]) -> Option<Object<'n>> {
        let object = self.any_object(value)?;
        self.check_keys(&object, known, &[]);
        Some(object)
    }

    /// The mapping; keys that its table does not have are noted, and those that it refuses with the reason.
    pub(crate) fn shaped<'n>(&mut self, value: &Value<'n>, shape: &'static Shape) -> Option<Object<'n>> {
        let object = self.any_object(value)?;
        Some(self.in_shape(object, shape))
    }

    /// The same for a mapping that has been looked at.
    pub(crate) fn in_shape<'n>(&mut self, object: Object<'n>, shape: &'static Shape) -> Object<'n> {
        let known: Vec<&str> = shape.fields.iter().map(|field| field.name).collect();
        self.check_keys(&object, &known, shape.refused);
        Object { shape: Some(shape), ..object }
    }

    fn check_keys(&mut self, object: &Object<'_>, known: &[&str], refused: &[Refused]) {
        for (key, field) in &object.fields {
            if known.contains(key) {
                continue;
            }
            if let Some(refused) = refused.iter().find(|refused| refused.name == *key) {
                self.wrong(field, refused.code, refused.why).help = refused.help.map(str::to_owned);
                continue;
            }
            let list = known.join(", ");
            let help = match nearest(key, known) {
                Some(near) => format!("did you mean `{near}`? The fields here are {list}"),
                None => format!("the fields here are {list}"),
            };
            self.wrong(field, Code::UnknownField, "there is no such field").help = Some(help);
        }
    }

    /// A mapping with any keys; repeated ones are noted. The mark of a field is its key.
    pub(crate) fn any_object<'n>(&mut self, value: &Value<'n>) -> Option<Object<'n>> {
        let Kind::Map(entries) = &value.node.kind else {
            self.wrong_type(value, "a mapping");
            return None;
        };
        let mut fields: Vec<(&str, Value<'_>)> = Vec::with_capacity(entries.len());
        let mut seen = std::collections::HashSet::with_capacity(entries.len());
        for (key, node) in entries {
            let path = join(&value.path, &key.text);
            if !seen.insert(&key.text) {
                self.error(key.span, Code::DuplicateKey, &path, "the key stands twice in this mapping");
                continue;
            }
            fields.push((&key.text, Value { path, mark: key.span, node }));
        }
        Some(Object { path: value.path.clone(), mark: value.mark, fields, shape: None })
    }

    /// The elements of a list.
    pub(crate) fn list<'n>(&mut self, value: &Value<'n>) -> Option<Vec<Value<'n>>> {
        let Kind::List(items) = &value.node.kind else {
            self.wrong_type(value, "a list");
            return None;
        };
        let element =
            |(at, node): (usize, &'n Node)| Value { path: format!("{}[{at}]", value.path), mark: node.mark(), node };
        Some(items.iter().enumerate().map(element).collect())
    }

    /// Text. Numbers and booleans are not taken for text: an API server would not either.
    pub(crate) fn text<'n>(&mut self, value: &Value<'n>) -> Option<&'n str> {
        if let Kind::Text(text) = &value.node.kind {
            return Some(text);
        }
        let quoted = self.written(value.node).map(|written| format!("put it in quotes: \"{written}\""));
        let value = value.at_value();
        self.wrong_type(&value, "text").help = quoted;
        None
    }

    /// A number or boolean as it is written.
    fn written(&self, node: &Node) -> Option<String> {
        let span = node.span;
        let text = self.source.text().get(span.offset..span.offset + span.len);
        match node.kind {
            Kind::Integer(number) => Some(text.map_or_else(|| number.to_string(), str::to_owned)),
            Kind::Bool(value) => Some(text.map_or_else(|| value.to_string(), str::to_owned)),
            Kind::Float => text.map(str::to_owned),
            _ => None,
        }
    }

    /// Text that is not empty.
    pub(crate) fn filled_text<'n>(&mut self, value: &Value<'n>) -> Option<&'n str> {
        let text = self.text(value)?;
        if text.is_empty() {
            self.wrong(&value.at_value(), Code::BadValue, "must not be empty");
            return None;
        }
        Some(text)
    }

    /// `true` or `false`.
    pub(crate) fn boolean(&mut self, value: &Value<'_>) -> Option<bool> {
        if let Kind::Bool(boolean) = value.node.kind {
            return Some(boolean);
        }
        self.wrong_type(&value.at_value(), "`true` or `false`");
        None
    }

    /// A whole number within bounds.
    pub(crate) fn integer(&mut self, value: &Value<'_>, bounds: std::ops::RangeInclusive<u32>) -> Option<u32> {
        let Kind::Integer(number) = value.node.kind else {
            self.wrong_type(&value.at_value(), "a whole number");
            return None;
        };
        let fitting = u32::try_from(number).ok().filter(|number| bounds.contains(number));
        if fitting.is_none() {
            let problem = format!("{number} is not within {} and {}", bounds.start(), bounds.end());
            self.wrong(&value.at_value(), Code::BadValue, problem);
        }
        fitting
    }

    /// One of a few words, with what it stands for.
    pub(crate) fn choice<T: Copy>(&mut self, value: &Value<'_>, words: &[(&str, T)]) -> Option<T> {
        let text = self.text(value)?;
        let found = words.iter().find(|(word, _)| *word == text).map(|(_, meaning)| *meaning);
        if found.is_none() {
            let known: Vec<&str> = words.iter().map(|(word, _)| *word).collect();
            let mut help = format!("one of {}", known.join(", "));
            if let Some(near) = nearest(text, &known) {
                help = format!("did you mean `{near}`? It is {help}");
            }
            let problem = format!("`{text}` is none of the words this field takes");
            self.wrong(&value.at_value(), Code::BadValue, problem).help = Some(help);
        }
        found
    }

    /// Text that something else reads.
    pub(crate) fn parsed<T: std::str::FromStr<Err: std::fmt::Display>>(&mut self, value: &Value<'_>) -> Option<T> {
        let text = self.text(value)?;
        match text.parse() {
            Ok(parsed) => Some(parsed),
            Err(error) => {
                self.wrong(&value.at_value(), Code::BadValue, format!("`{text}`: {error}"));
                None
            }
        }
    }

    /// A mapping from keys to text, as labels are written.
    pub(crate) fn text_map<'n>(&mut self, value: &Value<'n>) -> Vec<(&'n str, &'n str)> {
        let Some(object) = self.any_object(value) else { return Vec::new() };
        object.fields.iter().filter_map(|(key, field)| Some((*key, self.text(field)?))).collect()
    }

    /// A field that must be there.
    pub(crate) fn required<'n>(&mut self, object: &Object<'n>, name: &str) -> Option<Value<'n>> {
        let field = object.get(name);
        if field.is_none() {
            self.error(object.mark, Code::MissingField, &join(&object.path, name), "must be given");
        }
        field
    }
}

impl<'n> Value<'n> {
    /// The root of a document.
    pub(crate) fn root(node: &'n Node) -> Self {
        Self { path: String::new(), mark: node.mark(), node }
    }

    /// The same, pointing at the value and not at its key.
    pub(crate) fn at_value(&self) -> Self {
        let span = self.node.mark();
        Self { mark: if span.len == 0 { self.mark } else { span }, ..self.clone() }
    }
}

impl<'n> Object<'n> {
    /// A field, where it is given.
    pub(crate) fn get(&self, name: &str) -> Option<Value<'n>> {
        debug_assert!(self.shape.is_none_or(|shape| shape.names(name)), "no table has `{name}` at `{}`", self.path);
        self.fields.iter().find(|(key, _)| *key == name).map(|(_, value)| value.clone())
    }

    /// The table that says what it may hold.
    pub(crate) fn shape(&self) -> Option<&'static Shape> {
        self.shape
    }

    /// Every field in the order of the file.
    pub(crate) fn fields(&self) -> impl Iterator<Item = &(&'n str, Value<'n>)> {
        self.fields.iter()
    }
}

fn join(path: &str, key: &str) -> String {
    if path.is_empty() { key.to_owned() } else { format!("{path}.{key}") }
}

/// The word that differs by case or by at most two letters, if one does.
pub(crate) fn nearest<'w>(text: &str, words: &[&'w str]) -> Option<&'w str> {
    const DISTANCE_MAX: usize = 2;
    let distances = words.iter().map(|word| (distance(&text.to_lowercase(), &word.to_lowercase()), *word));
    distances.filter(|(distance, word)| *distance <= DISTANCE_MAX.min(word.len() / 2)).min().map(|(_, word)| word)
}

/// The words in the order of their likeness to the text, the most alike first.
pub fn nearest_first<'w>(text: &str, words: impl IntoIterator<Item = &'w str>) -> Vec<&'w str> {
    let mut words: Vec<&str> = words.into_iter().collect();
    words.sort_by_cached_key(|word| (distance(text, word), (*word).to_owned()));
    words
}

/// Letters to add, drop or change (Levenshtein).
fn distance(one: &str, other: &str) -> usize {
    const LETTERS_MAX: usize = 64;
    if one.len().max(other.len()) > LETTERS_MAX {
        return usize::MAX;
    }
    let mut row: Vec<usize> = (0..=other.len()).collect();
    for (at, letter) in one.bytes().enumerate() {
        let mut diagonal = row[0];
        row[0] = at + 1;
        for (place, candidate) in other.bytes().enumerate() {
            let changed = diagonal + usize::from(letter != candidate);
            diagonal = row[place + 1];
            row[place + 1] = changed.min(diagonal + 1).min(row[place] + 1);
        }
    }
    row[other.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn near_words_are_suggested() {
        let words = ["toEndpoints", "toCIDR", "toPorts", "toFQDNs"];
        for (text, want) in [
            ("toEndpoint", Some("toEndpoints")),
            ("tofqdns", Some("toFQDNs")),
            ("toPort", Some("toPorts")),
            ("something", None),
            ("x", None),
        ] {
            assert_eq!(nearest(text, &words), want, "{text}");
        }
    }

    #[test]
    fn all_mistakes_of_a_document_are_noted_with_their_place() {
        let source = Source::new("x.yaml", "nam: x\nport: 99999\nport: 1\nlist: 3\ntext: 8080\nflag: 'yes'\n");
        let documents = crate::document::read(&source);
        let root = Value::root(documents[0].as_ref().unwrap());
        let mut reader = Reader::new(&source);
        let object = reader.object(&root, &["name", "port", "list", "text", "flag"]).unwrap();
        reader.required(&object, "name");
        reader.integer(&object.get("port").unwrap(), 0..=65535);
        reader.list(&object.get("list").unwrap());
        reader.text(&object.get("text").unwrap());
        reader.boolean(&object.get("flag").unwrap());
        let found: Vec<String> =
            reader.finish().iter().map(|found| format!("{}:{} {found}", found.line, found.column)).collect();
        assert_eq!(
            found,
            [
                "3:1 `port`: the key stands twice in this mapping",
                "1:1 `nam`: there is no such field",
                "1:1 `name`: must be given",
                "2:7 `port`: 99999 is not within 0 and 65535",
                "4:1 `list`: a list is wanted here, this is a number",
                "5:7 `text`: text is wanted here, this is a number",
                "6:7 `flag`: `true` or `false` is wanted here, this is text",
            ]
        );
    }
}
