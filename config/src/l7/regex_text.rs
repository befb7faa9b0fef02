//! Regular expressions of rules.

use std::{
    fmt,
    hash::{Hash, Hasher},
    sync::{Arc, OnceLock},
};

use regex::{Regex, RegexBuilder};
use regex_syntax::{
    ParserBuilder,
    hir::literal::{Extractor, Literal},
};

/// Longest regular expression in bytes.
pub const REGEX_OCTETS_MAX: usize = 1_024;
/// Largest compiled regular expression in bytes.
const REGEX_COMPILED_MAX: usize = 1 << 20;
/// Beginnings that are compared before an expression is run.
const BEGINNINGS_MAX: usize = 16;

/// A regular expression that compiles and is matched against the whole text, in time linear in it. Clones share the
/// compiled form, which is made with the first text.
#[derive(Clone)]
pub struct RegexText(Arc<Checked>);

struct Checked {
    text: String,
    ignore_case: bool,
    /// `None` never happens to a checked expression.
    compiled: OnceLock<Option<Compiled>>,
}

/// An expression to be matched. Most expressions of rules begin with a text, or are nothing else: to compare it takes a small
/// part of the time that the expression takes.
enum Compiled {
    /// It matches these texts alone.
    Texts(Vec<Box<str>>),
    /// What it matches begins with one of these.
    From(Vec<Box<str>>, Regex),
    Any(Regex),
}

impl Compiled {
    fn matches(&self, text: &str) -> bool {
        match self {
            Self::Texts(texts) => texts.iter().any(|one| **one == *text),
            Self::From(beginnings, regex) => {
                beginnings.iter().any(|one| text.starts_with(&**one)) && regex.is_match(text)
            }
            Self::Any(regex) => regex.is_match(text),
        }
    }
}

impl RegexText {
    /// Checks a regular expression; the error says what is wrong with it.
    pub fn new(text: &str) -> Result<Self, String> {
        Self::checked(text, false)
    }

    /// The same, for text whose letter case does not count.
    pub fn ignoring_case(text: &str) -> Result<Self, String> {
        Self::checked(text, true)
    }

    fn checked(text: &str, ignore_case: bool) -> Result<Self, String> {
        if text.len() > REGEX_OCTETS_MAX {
            return Err(format!(
                "a regular expression has at most {REGEX_OCTETS_MAX} octets, this one has {}",
                text.len()
            ));
        }
        let checked = Checked { text: text.to_owned(), ignore_case, compiled: OnceLock::new() };
        // Alone first: `a)|(b` would compile between parentheses.
        for candidate in [text.to_owned(), checked.anchored()] {
            checked.build(&candidate).map_err(|error| one_line(&error))?;
        }
        Ok(Self(Arc::new(checked)))
    }

    /// As written.
    pub fn as_str(&self) -> &str {
        &self.0.text
    }

    /// Whether it matches the whole text.
    pub fn matches(&self, text: &str) -> bool {
        let compiled = self.0.compiled.get_or_init(|| self.0.compile().ok());
        compiled.as_ref().is_some_and(|compiled| compiled.matches(text))
    }
}

impl Checked {
    fn anchored(&self) -> String {
        format!(r"\A(?:{})\z", self.text)
    }

    fn compile(&self) -> Result<Compiled, regex::Error> {
        let Some((beginnings, is_whole)) = self.beginnings() else {
            return Ok(Compiled::Any(self.build(&self.anchored())?));
        };
        if is_whole {
            return Ok(Compiled::Texts(beginnings));
        }
        Ok(Compiled::From(beginnings, self.build(&self.anchored())?))
    }

    /// What every text that it matches begins with, and whether that is all of the text.
    fn beginnings(&self) -> Option<(Vec<Box<str>>, bool)> {
        let parsed = ParserBuilder::new().case_insensitive(self.ignore_case).build().parse(&self.text).ok()?;
        let found = Extractor::new().limit_total(BEGINNINGS_MAX).extract(&parsed);
        let literals = found.literals()?;
        // An assertion is taken for an empty text, also where it does not hold.
        let is_whole = parsed.properties().look_set().is_empty() && literals.iter().all(Literal::is_exact);
        let texts = literals.iter().map(|literal| std::str::from_utf8(literal.as_bytes()).ok().map(Box::from));
        Some((texts.collect::<Option<_>>()?, is_whole))
    }

    fn build(&self, text: &str) -> Result<Regex, regex::Error> {
        RegexBuilder::new(text).case_insensitive(self.ignore_case).size_limit(REGEX_COMPILED_MAX).build()
    }
}

impl PartialEq for RegexText {
    fn eq(&self, other: &Self) -> bool {
        (&self.0.text, self.0.ignore_case) == (&other.0.text, other.0.ignore_case)
    }
}

impl Eq for RegexText {}

impl Hash for RegexText {
    fn hash<H: Hasher>(&self, state: &mut H) {
        (&self.0.text, self.0.ignore_case).hash(state);
    }
}

impl fmt::Debug for RegexText {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RegexText").field("text", &self.0.text).field("ignore_case", &self.0.ignore_case).finish()
    }
}

/// The last line of the error, which says what is wrong; the lines before it draw the expression.
fn one_line(error: &regex::Error) -> String {
    let text = error.to_string();
    let line = text.lines().last().unwrap_or_default();
    line.strip_prefix("error: ").unwrap_or(line).trim_end_matches('.').to_owned()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn expressions_match_the_whole_text() {
        for (regex, text, want) in [
            ("GET", "GET", true),
            ("GET", "GETS", false),
            ("GET|POST", "POST", true),
            ("/a|/b", "/a/b", false),
            ("/path1$", "/path1", true),
            ("/metrics", "/metrics?x=1", false),
            ("/v[0-9]+/.*", "/v2/things", true),
            ("get", "GET", false),
            ("", "", true),
            ("", "x", false),
        ] {
            assert_eq!(RegexText::new(regex).unwrap().matches(text), want, "{regex} {text}");
        }
        assert!(RegexText::ignoring_case(r"a\.io").unwrap().matches("A.io"));
    }

    /// An expression of parts that are put together in every way that an expression has.
    fn expressions() -> impl Strategy<Value = String> {
        let part = proptest::sample::select(vec![
            "a", "ab", "/", "é", "[ab]", "[^a]", ".", "^", "$", r"\b", r"\A", r"\z", "(?i:a)", r"\.", "k", "",
            "(?-u:a)",
        ]);
        part.prop_map(str::to_owned).prop_recursive(4, 24, 3, |inner| {
            prop_oneof![
                proptest::collection::vec(inner.clone(), 1..4).prop_map(|parts| parts.concat()),
                proptest::collection::vec(inner.clone(), 2..4).prop_map(|parts| format!("(?:{})", parts.join("|"))),
                (inner, proptest::sample::select(vec!["*", "+", "?", "{2}", "{0,2}", "*?", "+?"]))
                    .prop_map(|(part, how_often)| format!("(?:{part}){how_often}")),
            ]
        })
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 1_000, failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn what_is_compared_is_what_the_expression_means(
            text in expressions(), ignore_case: bool, asked in proptest::collection::vec("[abAké/.K]{0,5}", 8),
        ) {
            let Ok(checked) = RegexText::checked(&text, ignore_case) else { return Ok(()) };
            let whole = checked.0.build(&checked.0.anchored()).unwrap();
            for asked in &asked {
                prop_assert_eq!(checked.matches(asked), whole.is_match(asked), "{} {}", text, asked);
            }
        }
    }

    #[test]
    fn expressions_of_rules_are_compared_before_they_are_run() {
        let compiled = |text| RegexText::new(text).unwrap().0.compile().unwrap();
        assert!(matches!(compiled("GET|POST"), Compiled::Texts(texts) if texts.len() == 2));
        assert!(matches!(compiled("/api/[0-9]+"), Compiled::From(..)));
        assert!(matches!(compiled(".*"), Compiled::Any(_)));
    }

    #[test]
    fn broken_expressions_are_refused_in_one_line() {
        for (text, want) in [
            ("/a(", "unclosed group"),
            ("*", "repetition operator missing expression"),
            ("a)|(b", "unopened group"),
            ("(?x)a # c", "unclosed group"),
            (r"(a)\1", "backreferences are not supported"),
            ("(?=a)", "look-around, including look-ahead and look-behind, is not supported"),
            ("a{1000}{1000}", "Compiled regex exceeds size limit of 1048576 bytes"),
        ] {
            assert_eq!(RegexText::new(text).unwrap_err(), want, "{text}");
        }
        assert!(RegexText::new(&"a".repeat(1025)).is_err());
    }
}
