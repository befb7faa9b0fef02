//! Regular expressions of rules.

use std::{
    fmt,
    hash::{Hash, Hasher},
    sync::{Arc, OnceLock},
};

use regex::{Regex, RegexBuilder};

/// Longest regular expression in bytes.
pub const REGEX_OCTETS_MAX: usize = 1_024;
/// Largest compiled regular expression in bytes.
const REGEX_COMPILED_MAX: usize = 1 << 20;

/// A regular expression that compiles and is matched against the whole text, in time linear in it. Clones share the
/// compiled form, which is made with the first text.
#[derive(Clone)]
pub struct RegexText(Arc<Checked>);

struct Checked {
    text: String,
    ignore_case: bool,
    /// `None` never happens to a checked expression.
    compiled: OnceLock<Option<Regex>>,
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
        let compiled = self.0.compiled.get_or_init(|| self.0.build(&self.0.anchored()).ok());
        compiled.as_ref().is_some_and(|regex| regex.is_match(text))
    }
}

impl Checked {
    fn anchored(&self) -> String {
        format!(r"\A(?:{})\z", self.text)
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
