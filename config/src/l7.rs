//! What a rule demands of the requests inside a flow: HTTP, DNS and the server name of TLS.

use std::sync::Arc;

use regex::{Regex, RegexBuilder};

use crate::{
    name::{Fqdn, NamePattern},
    question::{QueryType, Questions},
};

/// Longest regular expression in octets.
pub const REGEX_OCTETS_MAX: usize = 1_024;
/// Largest compiled regular expression in octets.
const REGEX_COMPILED_MAX: usize = 1 << 20;

/// Requests that pass; each list is one of alternatives.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum L7 {
    /// HTTP requests that one of these matches. Whatever is not HTTP does not pass.
    Http(Vec<HttpRule>),
    /// DNS questions.
    Dns(Questions),
    /// TLS connections to server names that one of these matches.
    ServerNames(Vec<NamePattern>),
}

/// Conditions on one HTTP request; all of them must hold. Without any, every request passes.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct HttpRule {
    /// Method; letter case counts (RFC 9110 §9.1).
    pub method: Option<RegexText>,
    /// Path with the query string.
    pub path: Option<RegexText>,
    /// Host, with the port where the client sends one; letter case does not count.
    pub host: Option<RegexText>,
    /// Header fields that must be there.
    pub headers: Vec<HeaderMatch>,
}

/// A header field that must be there.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct HeaderMatch {
    /// Lower case.
    pub name: String,
    /// The whole value; `None` is any.
    pub value: Option<String>,
}

/// A regular expression that compiles and is matched against the whole text, in time linear in it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct RegexText {
    text: Arc<str>,
    ignore_case: bool,
}

/// A request, as [`L7`] sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Request {
    /// HTTP.
    Http {
        /// Method, upper case as sent.
        method: String,
        /// Path and query string.
        path: String,
        /// Host, with the port where one is sent.
        host: String,
        /// Header fields in their order.
        headers: Vec<(String, String)>,
    },
    /// A DNS question.
    Dns {
        /// The name asked for.
        name: Fqdn,
        /// The record type asked for.
        kind: QueryType,
    },
    /// The first message of a TLS connection.
    Tls {
        /// The name it asks for, where it gives one (RFC 6066 §3).
        server_name: Option<Fqdn>,
    },
}

impl L7 {
    /// Whether the request passes.
    pub fn allows(&self, request: &Request) -> bool {
        match (self, request) {
            (Self::Http(rules), Request::Http { .. }) => rules.iter().any(|rule| rule.matches(request)),
            (Self::Dns(questions), Request::Dns { name, kind }) => questions.allows(name, *kind),
            (Self::ServerNames(patterns), Request::Tls { server_name: Some(name) }) => {
                patterns.iter().any(|pattern| pattern.matches(name))
            }
            _ => false,
        }
    }
}

impl HttpRule {
    /// Whether all conditions hold; never for what is not HTTP.
    pub fn matches(&self, request: &Request) -> bool {
        let Request::Http { method, path, host, headers } = request else { return false };
        let holds = |pattern: &Option<RegexText>, text: &str| pattern.as_ref().is_none_or(|regex| regex.matches(text));
        holds(&self.method, method)
            && holds(&self.path, path)
            && holds(&self.host, host)
            && self.headers.iter().all(|wanted| headers.iter().any(|(name, value)| wanted.matches(name, value)))
    }
}

impl HeaderMatch {
    /// Whether the field is the wanted one.
    pub fn matches(&self, name: &str, value: &str) -> bool {
        self.name.eq_ignore_ascii_case(name) && self.value.as_deref().is_none_or(|wanted| wanted == value)
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
        let regex = Self { text: text.into(), ignore_case };
        // Alone first: `a)|(b` would compile between parentheses.
        for candidate in [text.to_owned(), regex.anchored()] {
            regex.build(&candidate).map_err(|error| one_line(&error))?;
        }
        Ok(regex)
    }

    /// As written.
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// The compiled form; it matches the whole text. `None` never happens to a checked expression.
    pub fn compile(&self) -> Option<Regex> {
        self.build(&self.anchored()).ok()
    }

    /// Whether it matches the whole text. Compiles each time: for tests and rare questions.
    pub fn matches(&self, text: &str) -> bool {
        self.compile().is_some_and(|regex| regex.is_match(text))
    }

    fn anchored(&self) -> String {
        format!(r"\A(?:{})\z", self.text)
    }

    fn build(&self, text: &str) -> Result<Regex, regex::Error> {
        RegexBuilder::new(text).case_insensitive(self.ignore_case).size_limit(REGEX_COMPILED_MAX).build()
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

    #[test]
    fn requests_of_another_kind_do_not_pass() {
        let http = Request::Http { method: "GET".into(), path: "/".into(), host: "a.io".into(), headers: vec![] };
        let dns = Request::Dns { name: "a.io".parse().unwrap(), kind: QueryType::A };
        let tls = Request::Tls { server_name: Some("a.io".parse().unwrap()) };
        let nameless = Request::Tls { server_name: None };
        let pattern = vec![NamePattern::pattern("*").unwrap()];
        for (l7, want) in [
            (L7::Http(vec![HttpRule::default()]), [true, false, false, false]),
            (L7::Dns(pattern.clone().into()), [false, true, false, false]),
            (L7::ServerNames(pattern), [false, false, true, false]),
            (L7::Http(vec![]), [false; 4]),
        ] {
            assert_eq!([&http, &dns, &tls, &nameless].map(|request| l7.allows(request)), want, "{l7:?}");
        }
    }

    #[test]
    fn header_fields_must_be_there() {
        let rule = |name: &str, value: Option<&str>| HttpRule {
            headers: vec![HeaderMatch { name: name.into(), value: value.map(Into::into) }],
            ..HttpRule::default()
        };
        let headers = vec![("X-Token".into(), "1".into()), ("x-token".into(), "42".into())];
        let request = Request::Http { method: "GET".into(), path: "/".into(), host: String::new(), headers };
        for (rule, want) in [
            (rule("x-token", None), true),
            (rule("x-token", Some("42")), true),
            (rule("x-token", Some("4")), false),
            (rule("x-other", None), false),
        ] {
            assert_eq!(rule.matches(&request), want, "{rule:?}");
        }
    }
}
