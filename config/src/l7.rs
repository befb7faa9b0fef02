//! What a rule demands of the requests inside a flow: HTTP, DNS and the server name of TLS.

pub mod head;
mod http_rule;
pub mod path;
mod regex_text;

use http::{HeaderMap, Version};

use crate::{
    name::{Fqdn, NamePattern},
    question::{QueryType, Questions},
};

pub use http_rule::{HeaderMatch, HttpRule, is_override};
pub use regex_text::{REGEX_OCTETS_MAX, RegexText};

use head::{HttpFacts, Refused};

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
            (Self::Http(_), Request::Http { .. }) => {
                request.head().is_ok_and(|(facts, fields)| self.allows_http(&facts, &fields))
            }
            (Self::Dns(questions), Request::Dns { name, kind }) => questions.allows(name, *kind),
            (Self::ServerNames(_), Request::Tls { server_name: Some(name) }) => self.allows_server_name(name),
            _ => false,
        }
    }

    /// Whether an HTTP request passes: what rules see of it, and the fields that the server gets.
    pub fn allows_http(&self, facts: &HttpFacts, fields: &HeaderMap) -> bool {
        matches!(self, Self::Http(rules) if rules.iter().any(|rule| rule.matches(facts, fields)))
    }

    /// Whether a TLS connection to this server name passes.
    pub fn allows_server_name(&self, name: &Fqdn) -> bool {
        matches!(self, Self::ServerNames(patterns) if patterns.iter().any(|pattern| pattern.matches(name)))
    }
}

impl Request {
    /// Reads an HTTP request as the proxy does: what rules see, and the fields that the server gets. What the proxy
    /// answers 400, and what is not HTTP, is refused.
    pub fn head(&self) -> Result<(HttpFacts, HeaderMap), Refused> {
        let Self::Http { method, path, host, headers } = self else { return Err(head::NOT_HTTP) };
        if path.contains('#') {
            return Err(head::FRAGMENT);
        }
        let mut request = http::Request::builder().method(method.as_str()).uri(path.as_str());
        // HTTP/1.1 must name a host.
        request = if host.is_empty() { request.version(Version::HTTP_10) } else { request.header("host", host) };
        for (name, value) in headers {
            request = request.header(name, value);
        }
        let (mut parts, ()) = request.body(()).map_err(|_| head::NOT_HTTP)?.into_parts();
        let host = head::host(&parts)?;
        let facts = head::read(&mut parts, host, true)?;
        Ok((facts, parts.headers))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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

    /// The model of `policy trace` and `policy test` reads requests as the proxy does.
    #[test]
    fn requests_are_read_as_the_proxy_reads_them() {
        let rule = |path: &str, host: &str| {
            let host = Some(RegexText::ignoring_case(host).unwrap());
            let headers = vec![HeaderMatch { name: "x-limit".into(), value: Some("1".into()) }];
            L7::Http(vec![HttpRule { path: Some(RegexText::new(path).unwrap()), host, headers, ..HttpRule::default() }])
        };
        let limits = rule("/public/.*", r"a\.io(:80)?");
        let limit = [("X-Limit", "1")];
        for (path, host, headers, want) in [
            ("/public/a", "a.io", &limit[..], true),
            ("/x/..//public/%61", "A.io:80", &limit, true),
            ("http://a.io/public/a", "a.io", &limit, true),
            ("/public/../admin", "a.io", &limit, false),
            ("/public/%2e%2e/admin", "a.io", &limit, false),
            ("/public/..;/admin", "a.io", &limit, false),
            ("/public/#/../admin", "a.io", &limit, false),
            ("http://b.io/public/a", "a.io", &limit, false),
            ("/public/a", "a.io:8080", &limit, false),
            ("/public/a", "a.io:80:80", &limit, false),
            ("/public/a", "", &limit, false),
            ("/public/a", "a.io", &[("X-Limit", "1"), ("Connection", "x-limit")], false),
            ("/public/a", "a.io", &[("X-Limit", "1"), ("X-Limit", "2")], false),
            ("/public/a", "a.io", &[("X-Limit", "1"), ("Host", "b.io")], false),
            ("/public/a", "a.io", &[("X-Limit", "1"), ("Transfer-Encoding", "gzip")], false),
            ("/public/a b", "a.io", &limit, false),
        ] {
            let headers = headers.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
            let request = Request::Http { method: "GET".into(), path: path.into(), host: host.into(), headers };
            assert_eq!(limits.allows(&request), want, "{request:?}");
        }
    }
}
