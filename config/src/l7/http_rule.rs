//! Conditions on one HTTP request. Where servers read a request in different ways, every reading must hold.

use http::{HeaderMap, HeaderName, HeaderValue};

use super::{
    RegexText,
    head::HttpFacts,
    path::{normalise, without_parameters},
};

/// Fields by which a request may ask for another method than its own.
const METHOD_OVERRIDES: [&str; 3] = ["x-http-method-override", "x-http-method", "x-method-override"];
/// Fields by which a request may ask for another path than its own.
const PATH_OVERRIDES: [&str; 2] = ["x-original-url", "x-rewrite-url"];
/// The field whose parts HTTP/2 may send one by one (RFC 9113 §8.2.3).
const COOKIE: &str = "cookie";

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

impl HttpRule {
    /// Whether all conditions hold for a request whose fields reach the server.
    pub fn matches(&self, facts: &HttpFacts, fields: &HeaderMap) -> bool {
        self.method.as_ref().is_none_or(|method| method.matches(&facts.method))
            && self.path.as_ref().is_none_or(|path| is_allowed_path(path, &facts.path))
            && self.method.as_ref().is_none_or(|method| allows_other_methods(method, fields))
            && self.path.as_ref().is_none_or(|path| allows_other_paths(path, fields))
            && self.host.as_ref().is_none_or(|host| host.matches(&facts.host))
            && self.headers.iter().all(|wanted| wanted.matches(fields))
    }
}

/// Every method that a server could take instead of the request's own.
fn allows_other_methods(allowed: &RegexText, fields: &HeaderMap) -> bool {
    overrides(fields, &METHOD_OVERRIDES)
        .all(|value| value.to_str().is_ok_and(|value| allowed.matches(&value.to_ascii_uppercase())))
}

/// The path, with the parameters of its segments and without.
fn is_allowed_path(allowed: &RegexText, path: &str) -> bool {
    allowed.matches(path) && without_parameters(path).is_none_or(|bare| allowed.matches(&bare))
}

/// Every path that a server could take instead of the request's own.
fn allows_other_paths(allowed: &RegexText, fields: &HeaderMap) -> bool {
    overrides(fields, &PATH_OVERRIDES).all(|value| {
        let path = value.to_str().ok().and_then(|value| normalise(value).ok());
        path.is_some_and(|path| is_allowed_path(allowed, &path))
    })
}

/// Whether some server takes the field for a wish for another method or path than the request's own.
pub fn is_override(name: &HeaderName) -> bool {
    METHOD_OVERRIDES.iter().chain(&PATH_OVERRIDES).any(|wanted| is_alike(wanted, name.as_str()))
}

/// Values of the fields that some server takes for one of these names.
fn overrides<'f>(fields: &'f HeaderMap, names: &'static [&str]) -> impl Iterator<Item = &'f HeaderValue> {
    let is_one = move |name: &HeaderName| names.iter().any(|wanted| is_alike(wanted, name.as_str()));
    fields.iter().filter(move |(name, _)| is_one(name)).map(|(_, value)| value)
}

/// Whether a server that hands fields on as variables of CGI (RFC 3875 §4.1.18) takes both names for the same: there
/// `X_Limit` and `X-Limit` are `HTTP_X_LIMIT`. Both are in lower case.
fn is_alike(one: &str, other: &str) -> bool {
    let letter = |byte: u8| if byte.is_ascii_alphanumeric() { byte } else { b'_' };
    one.len() == other.len() && one.bytes().map(letter).eq(other.bytes().map(letter))
}

impl HeaderMatch {
    /// Whether the field is there, with the wanted value where there is one, and nothing that a server could take for it.
    /// The value of a repeated field is that of all its lines, joined by commas (RFC 9110 §5.3).
    pub fn matches(&self, fields: &HeaderMap) -> bool {
        let is_other = |name: &HeaderName| name.as_str() != self.name && is_alike(name.as_str(), &self.name);
        if fields.keys().any(is_other) {
            return false;
        }
        let mut values = fields.get_all(self.name.as_str()).iter().map(HeaderValue::as_bytes);
        let Some(first) = values.next() else { return false };
        let Some(wanted) = &self.value else { return true };
        let comma = if self.name == COOKIE { &b"; "[..] } else { b"," };
        let rest = values.flat_map(|value| comma.iter().chain(value));
        first.iter().chain(rest).eq(wanted.as_bytes())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fields(fields: &[(&str, &[u8])]) -> HeaderMap {
        let field = |(name, value): &(&str, &[u8])| {
            (name.parse::<HeaderName>().unwrap(), HeaderValue::from_bytes(value).unwrap())
        };
        fields.iter().map(field).collect()
    }

    fn facts(method: &str, path: &str) -> HttpFacts {
        HttpFacts { method: method.into(), path: path.into(), host: "a.io".into(), websocket: None }
    }

    #[test]
    fn a_demanded_field_has_its_value_for_every_server() {
        let one: &[u8] = b"1";
        for (name, value, have, want) in [
            ("x-limit", None, &[("X-Limit", one)][..], true),
            ("x-limit", None, &[("X-Limit", b"")], true),
            ("x-limit", None, &[], false),
            ("x-limit", None, &[("X-Limit", one), ("X-Limit", b"2")], true),
            ("x-limit", None, &[("X_Limit", one)], false),
            ("x-limit", None, &[("X-Limit", one), ("X_Limit", one)], false),
            ("x-limit", Some("1"), &[("X-Limit", one)], true),
            ("x-limit", Some("1"), &[("X-Limit", one), ("x_limit", b"2")], false),
            ("x-limit", Some("1"), &[("X-Limit", one), ("X.Limit", b"2")], false),
            ("x-limit", Some("1"), &[("X-Limit", one), ("X-Limit", b"2")], false),
            ("x-limit", Some("1"), &[("X-Limit", b"2"), ("X-Limit", one)], false),
            ("x-limit", Some("1"), &[("X-Limit", one), ("X-Limit", one)], false),
            ("x-limit", Some("1"), &[("X-Limit", one), ("X-Limit", b"")], false),
            ("x-limit", Some("1,2"), &[("X-Limit", one), ("X-Limit", b"2")], true),
            ("x-limit", Some("1"), &[("X-Limit", b"")], false),
            ("x-limit", Some("1"), &[("X-Limit", b"1\xa0")], false),
            ("x-limit", Some("1"), &[("X-Limit", b"1 ")], false),
            ("x-limit", Some("\u{fffd}"), &[("X-Limit", b"\xff")], false),
            ("x-limit", Some("\u{e9}"), &[("X-Limit", b"\xe9")], false),
            ("x-limit", Some("\u{e9}"), &[("X-Limit", "\u{e9}".as_bytes())], true),
            ("x_limit", Some("1"), &[("X_Limit", one)], true),
            ("x_limit", Some("1"), &[("X_Limit", one), ("X-Limit", b"2")], false),
            ("cookie", Some("a=1; b=2"), &[("Cookie", b"a=1"), ("Cookie", b"b=2")], true),
            ("cookie", Some("a=1"), &[("Cookie", b"a=1"), ("Cookie", b"b=2")], false),
        ] {
            let wanted = HeaderMatch { name: name.into(), value: value.map(Into::into) };
            assert_eq!(wanted.matches(&fields(have)), want, "{wanted:?} {have:?}");
        }
    }

    #[test]
    fn a_request_that_asks_for_another_method_or_path_is_judged_by_both() {
        let text = |text: &str| Some(RegexText::new(text).unwrap());
        let rule = HttpRule { method: text("GET|POST"), path: text("/public/.*"), ..HttpRule::default() };
        for (field, value, want) in [
            ("X-HTTP-Method-Override", "POST", true),
            ("X-HTTP-Method-Override", "post", true),
            ("X-HTTP-Method-Override", "DELETE", false),
            ("X_HTTP_Method_Override", "DELETE", false),
            ("X-HTTP-Method", "PUT", false),
            ("X-Method-Override", "PATCH", false),
            ("X-Original-URL", "/public/../public/x", true),
            ("X-Original-URL", "/public/../admin", false),
            ("X-Original-URL", "http://a.io/public/x", false),
            ("X-Rewrite-URL", "/admin", false),
            ("X-Forwarded-Host", "b.io", true),
        ] {
            let fields = fields(&[(field, value.as_bytes())]);
            assert_eq!(rule.matches(&facts("POST", "/public/a"), &fields), want, "{field}: {value}");
            let any = HttpRule::default();
            assert!(any.matches(&facts("POST", "/public/a"), &fields), "no condition on either: {field}: {value}");
        }
    }

    #[test]
    fn a_path_with_parameters_is_judged_with_and_without_them() {
        let rule = |path: &str| HttpRule { path: Some(RegexText::new(path).unwrap()), ..HttpRule::default() };
        for (allowed, path, want) in [
            ("/public/.*", "/public/a;v=1", true),
            ("/public/.*", "/public;v=1/a", false),
            ("/public.*", "/public;v=1/a", true),
            (r"/files/[^/]*\.txt", "/files/secret;.txt", false),
            (r"/files/[^/]*\.txt", "/files/a.txt;v=1", false),
            ("/a(;v=1)?", "/a;v=1", true),
            ("/a;v=1", "/a;v=1", false),
        ] {
            assert_eq!(rule(allowed).matches(&facts("GET", path), &HeaderMap::new()), want, "{allowed} {path}");
        }
    }
}
