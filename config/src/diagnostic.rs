//! Mistakes and warnings, each at the user's own line: for people (drawn by miette) and for machines.

use std::{fmt, sync::Arc};

use miette::{LabeledSpan, NamedSource, SourceSpan};

use crate::printable::{printable, printable_lines};

/// One mistake or warning in a file.
#[derive(Clone, Debug)]
pub struct Diagnostic {
    /// An error refuses the document, a warning does not.
    pub severity: Severity,
    /// What kind of mistake.
    pub code: Code,
    /// Path of the field, `spec.egress[0].toPorts`; empty where the document could not be read.
    pub field: String,
    /// What is wrong, in one sentence without a full stop.
    pub problem: String,
    /// What to write instead, where that is known.
    pub help: Option<String>,
    /// Line of the mistake, from 1.
    pub line: usize,
    /// Column of the mistake in characters, from 1.
    pub column: usize,
    source: Arc<NamedSource<String>>,
    span: SourceSpan,
}

/// How bad a [`Diagnostic`] is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Severity {
    /// The document is refused.
    Error,
    /// The document is taken, and does less or more than its writer may think.
    Warning,
}

macro_rules! codes {
    ($( $(#[$doc:meta])* $name:ident = $word:literal, $label:literal; )*) => {
        /// Kinds of mistakes; the words are stable.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum Code { $( $(#[$doc])* $name, )* }

        impl Code {
            /// Every code.
            pub const ALL: &'static [Self] = &[ $( Self::$name, )* ];

            /// Stable text, as in `namegate::unknown-field`.
            pub const fn as_str(self) -> &'static str {
                match self { $( Self::$name => concat!("namegate::", $word), )* }
            }

            /// What stands under the marked text.
            const fn label(self) -> &'static str {
                match self { $( Self::$name => $label, )* }
            }
        }
    };
}

codes! {
    /// The text is not YAML or JSON.
    Syntax = "syntax", "cannot be read";
    /// A field that the kind does not have.
    UnknownField = "unknown-field", "unknown field";
    /// A key stands twice in one mapping.
    DuplicateKey = "duplicate-key", "second time";
    /// A field that must be given.
    MissingField = "missing-field", "incomplete";
    /// Text where a number is wanted, and the like.
    WrongType = "wrong-type", "of another type";
    /// A value outside what the field takes.
    BadValue = "bad-value", "this value";
    /// Fields that exclude each other.
    Conflict = "conflict", "excluded by another field";
    /// An object that stands somewhere else too.
    DuplicateObject = "duplicate-object", "second time";
    /// Part of the language that Namegate does not enforce.
    Unsupported = "unsupported", "not supported";
    /// Something referred to does not exist.
    Dangling = "dangling", "not found";
    /// A rule or selector that can never match.
    MatchesNothing = "matches-nothing", "matches nothing";
    /// A value that is replaced by another.
    Overwritten = "overwritten", "overwritten";
    /// A rule without layer 7 limits beside one with them.
    Widened = "widened", "widened by another rule";
    /// A rule that a deny rule covers.
    Shadowed = "shadowed", "covered by a deny rule";
    /// A regular expression that looks like plain text.
    PlainText = "plain-text", "a pattern inside looks like plain text";
}

impl Diagnostic {
    /// Name of the file, as given to the parser.
    pub fn file(&self) -> &str {
        self.source.name()
    }

    /// The marked text: offset and length in octets.
    pub fn span(&self) -> SourceSpan {
        self.span
    }

    /// The same without anything that would steer a terminal, also in the text around it.
    #[must_use]
    pub fn printable(&self) -> Self {
        let text = self.source.inner();
        let place = |at: usize| match text.get(..at) {
            Some(before) => printable_lines(before).len(),
            None => at,
        };
        let start = place(self.span.offset());
        let end = place(self.span.offset() + self.span.len());
        let source = NamedSource::new(printable(self.source.name()), printable_lines(text).into_owned());
        Self {
            field: printable(&self.field).into_owned(),
            problem: printable(&self.problem).into_owned(),
            help: self.help.as_deref().map(|help| printable(help).into_owned()),
            source: Arc::new(source.with_language("yaml")),
            span: (start, end.saturating_sub(start)).into(),
            ..self.clone()
        }
    }

    /// Whether it refuses the document.
    pub fn is_error(&self) -> bool {
        self.severity == Severity::Error
    }
}

impl fmt::Display for Diagnostic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if !self.field.is_empty() {
            write!(f, "`{}`: ", self.field)?;
        }
        f.write_str(&self.problem)
    }
}

impl std::error::Error for Diagnostic {}

impl miette::Diagnostic for Diagnostic {
    fn code<'a>(&'a self) -> Option<Box<dyn fmt::Display + 'a>> {
        Some(Box::new(self.code.as_str()))
    }

    fn severity(&self) -> Option<miette::Severity> {
        Some(match self.severity {
            Severity::Error => miette::Severity::Error,
            Severity::Warning => miette::Severity::Warning,
        })
    }

    fn help<'a>(&'a self) -> Option<Box<dyn fmt::Display + 'a>> {
        self.help.as_ref().map(|help| Box::new(help) as Box<dyn fmt::Display>)
    }

    fn source_code(&self) -> Option<&dyn miette::SourceCode> {
        Some(&*self.source)
    }

    fn labels(&self) -> Option<Box<dyn Iterator<Item = LabeledSpan> + '_>> {
        let label = LabeledSpan::new_primary_with_span(Some(self.code.label().to_owned()), self.span);
        Some(Box::new(std::iter::once(label)))
    }
}

/// Octets of a file that a value stands at.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Span {
    pub(crate) offset: usize,
    pub(crate) len: usize,
}

/// Where something stands, for what is found out about it later.
#[derive(Clone, Debug)]
pub(crate) struct Place {
    source: Source,
    span: Span,
    field: String,
}

impl Place {
    /// A warning there.
    pub(crate) fn warning(&self, code: Code, problem: impl Into<String>) -> Diagnostic {
        Diagnostic { severity: Severity::Warning, ..self.source.error(self.span, code, &self.field, problem) }
    }

    /// File and line, for people.
    pub(crate) fn file_and_line(&self) -> (String, usize) {
        (self.source.0.name().to_owned(), self.source.line_and_column(self.span.offset).0)
    }
}

/// A file being read.
#[derive(Clone, Debug)]
pub(crate) struct Source(Arc<NamedSource<String>>);

impl Source {
    pub(crate) fn new(name: &str, text: &str) -> Self {
        Self(Arc::new(NamedSource::new(name, text.to_owned()).with_language("yaml")))
    }

    /// An object that has no text.
    pub(crate) fn of_object(name: &str) -> Self {
        Self::new(name, "")
    }

    pub(crate) fn text(&self) -> &str {
        self.0.inner()
    }

    /// An error at a place of this file.
    pub(crate) fn error(&self, span: Span, code: Code, field: &str, problem: impl Into<String>) -> Diagnostic {
        let (line, column) = self.line_and_column(span.offset);
        // Without a text the place is only an order.
        let end = if self.text().is_empty() { usize::MAX } else { self.text().len() };
        let start = span.offset.min(end);
        Diagnostic {
            severity: Severity::Error,
            code,
            field: field.to_owned(),
            problem: problem.into(),
            help: None,
            line,
            column,
            source: Arc::clone(&self.0),
            span: (start, span.len.min(end - start)).into(),
        }
    }

    /// A place of this file.
    pub(crate) fn place(&self, span: Span, field: &str) -> Place {
        Place { source: self.clone(), span, field: field.to_owned() }
    }

    /// Both from 1; the column in characters.
    fn line_and_column(&self, offset: usize) -> (usize, usize) {
        let mut end = offset.min(self.text().len());
        while !self.text().is_char_boundary(end) {
            end -= 1;
        }
        let before = &self.text()[..end];
        let line_start = before.rfind('\n').map_or(0, |at| at + 1);
        (before.matches('\n').count() + 1, before[line_start..].chars().count() + 1)
    }

    /// Offset of a line and column, both from 1.
    pub(crate) fn offset(&self, line: usize, column: usize) -> usize {
        let line_start: usize = self.text().split_inclusive('\n').take(line.saturating_sub(1)).map(str::len).sum();
        let rest = &self.text()[line_start..];
        line_start + rest.chars().take(column.saturating_sub(1)).map(char::len_utf8).sum::<usize>()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_counted_in_characters_from_one() {
        let source = Source::new("x.yaml", "é: 1\nbü: 2\n");
        for (offset, want) in [(0, (1, 1)), (2, (1, 2)), (6, (2, 1)), (9, (2, 3)), (1, (1, 1)), (99, (3, 1))] {
            let found = source.error(Span { offset, len: 1 }, Code::Syntax, "", "x");
            assert_eq!((found.line, found.column), want, "{offset}");
        }
        assert_eq!(source.offset(2, 3), 9);
        assert_eq!(source.offset(9, 9), 13);
    }

    #[test]
    fn a_printable_mistake_marks_the_same_text() {
        let text = "a: \u{9b}31m\nb: \u{202e}bad\n";
        let source = Source::new("x\x1b[2J.yaml", text);
        let at = text.find("\u{202e}").unwrap();
        let found = source.error(Span { offset: at, len: 6 }, Code::BadValue, "b\x1b", "`\u{202e}bad` is bad");
        let shown = found.printable();
        assert_eq!(shown.file(), "x\\u{1b}[2J.yaml");
        assert_eq!(shown.to_string(), "`b\\u{1b}`: `\\u{202e}bad` is bad");
        let (start, length) = (shown.span().offset(), shown.span().len());
        assert_eq!(&shown.source.inner()[start..start + length], "\\u{202e}bad");
        assert_eq!((shown.line, shown.column), (found.line, found.column));
    }

    #[test]
    fn codes_are_distinct() {
        for (at, one) in Code::ALL.iter().enumerate() {
            assert!(Code::ALL[at + 1..].iter().all(|other| other.as_str() != one.as_str()));
        }
    }
}
