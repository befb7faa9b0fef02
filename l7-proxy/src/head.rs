//! The head of an HTTP request: refused where servers could read it in more than one way, else as rules see it.

use hyper::{
    HeaderMap, Method, StatusCode, Version,
    header::{CONTENT_LENGTH, EXPECT, HOST, TRANSFER_ENCODING},
    http::{request::Parts, uri::Authority},
};

use crate::{guard::HttpFacts, path};

/// Why a request is not looked at any further.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Refused {
    pub(crate) status: StatusCode,
    pub(crate) why: &'static str,
}

const fn bad(why: &'static str) -> Refused {
    Refused { status: StatusCode::BAD_REQUEST, why }
}

/// The end of the body can be found in two ways.
pub(crate) const TWO_ENDS: Refused = bad("both Content-Length and Transfer-Encoding");

/// Reads the head of a request for a host. Without `normalise` the path is as it came: no rule has a condition on it.
pub(crate) fn read(parts: &Parts, host: String, normalise: bool) -> Result<HttpFacts, Refused> {
    framing(&parts.headers)?;
    let target = parts.uri.path_and_query().map_or("/", |target| target.as_str());
    let path = match target {
        "*" if parts.method == Method::OPTIONS => target.to_owned(),
        query if query.starts_with('?') && !normalise => format!("/{query}"),
        target if !normalise => target.to_owned(),
        // An absolute target may leave the path out.
        query if query.starts_with('?') => normal(&format!("/{query}"))?,
        target => normal(target)?,
    };
    Ok(HttpFacts { method: parts.method.to_string(), path, host })
}

fn normal(target: &str) -> Result<String, Refused> {
    path::normalise(target).map_err(|error| {
        bad(match error {
            path::PathError::NotAPath => "the request target is not a path",
            path::PathError::Encoding => "the path has a broken percent-encoding",
            path::PathError::Separator => "the path has an encoded slash or a backslash",
            path::PathError::Control => "the path has a control character",
        })
    })
}

/// One way to find the end of the body (RFC 9112 §6.3).
fn framing(headers: &HeaderMap) -> Result<(), Refused> {
    let codings: Vec<_> = headers.get_all(TRANSFER_ENCODING).iter().collect();
    let lengths = headers.get_all(CONTENT_LENGTH).iter().count();
    match (codings.as_slice(), lengths) {
        ([], 0 | 1) => {}
        ([], _) => return Err(bad("more than one Content-Length")),
        (_, 1..) => return Err(TWO_ENDS),
        ([coding], 0) if coding.as_bytes().eq_ignore_ascii_case(b"chunked") => {}
        (_, 0) => return Err(bad("a Transfer-Encoding other than chunked")),
    }
    let mut expected = headers.get_all(EXPECT).iter();
    if expected.any(|value| !value.as_bytes().eq_ignore_ascii_case(b"100-continue")) {
        return Err(Refused { status: StatusCode::EXPECTATION_FAILED, why: "an unknown expectation" });
    }
    Ok(())
}

/// The one host that is asked for (RFC 9112 §3.2, RFC 9113 §8.3.1); empty where HTTP/1.0 names none.
pub(crate) fn host(parts: &Parts) -> Result<String, Refused> {
    if parts.method == Method::CONNECT {
        return Err(Refused { status: StatusCode::METHOD_NOT_ALLOWED, why: "CONNECT is not passed on" });
    }
    let mut fields = parts.headers.get_all(HOST).iter();
    let field = fields.next();
    if fields.next().is_some() {
        return Err(bad("more than one Host"));
    }
    let field = match field {
        None => None,
        Some(field) => Some(field.to_str().map_err(|_| bad("Host is no authority"))?),
    };
    if parts.version < Version::HTTP_2 && parts.uri.scheme_str().is_some_and(|scheme| scheme != "http") {
        return Err(bad("the request target is of another scheme"));
    }
    let host = match (parts.uri.authority().map(Authority::as_str), field) {
        (Some(authority), Some(field)) if !authority.eq_ignore_ascii_case(field) => {
            return Err(bad("Host is not that of the request target"));
        }
        (Some(host), _) | (None, Some(host)) => host,
        // HTTP/1.0 knew none.
        (None, None) if parts.version <= Version::HTTP_10 => return Ok(String::new()),
        (None, None) => return Err(bad("no Host")),
    };
    match host.parse::<Authority>() {
        Ok(authority) if !authority.host().is_empty() && !host.contains('@') => Ok(host.to_owned()),
        _ => Err(bad("Host is no authority")),
    }
}

#[cfg(test)]
mod tests {
    use hyper::Request;

    fn read(method: &str, target: &str, headers: &[(&str, &str)]) -> Result<(String, String), &'static str> {
        let mut request = Request::builder().method(method).uri(target);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let (parts, ()) = request.body(()).unwrap().into_parts();
        let facts = super::host(&parts).and_then(|host| super::read(&parts, host, true));
        facts.map(|facts| (facts.host, facts.path)).map_err(|refused| refused.why)
    }

    #[test]
    fn heads_are_read_in_one_way_or_not_at_all() {
        let host = ("host", "a.io");
        let ok = |host: &str, path: &str| Ok((host.to_owned(), path.to_owned()));
        for (method, target, headers, want) in [
            ("GET", "/x", &[host][..], ok("a.io", "/x")),
            ("GET", "/x/../y//z?q=..", &[host], ok("a.io", "/y/z?q=..")),
            ("GET", "http://a.io/x", &[host], ok("a.io", "/x")),
            ("GET", "http://A.io?q", &[host], ok("A.io", "/?q")),
            ("GET", "http://a.io/x", &[], ok("a.io", "/x")),
            ("OPTIONS", "*", &[host], ok("a.io", "*")),
            ("GET", "/", &[("host", "[2001:db8::1]:80")], ok("[2001:db8::1]:80", "/")),
            ("POST", "/", &[host, ("transfer-encoding", "Chunked")], ok("a.io", "/")),
            ("POST", "/", &[host, ("content-length", "1"), ("expect", "100-Continue")], ok("a.io", "/")),
            ("GET", "*", &[host], Err("the request target is not a path")),
            ("GET", "/a%2fb", &[host], Err("the path has an encoded slash or a backslash")),
            ("GET", "/a%00", &[host], Err("the path has a control character")),
            ("GET", "/a%4", &[host], Err("the path has a broken percent-encoding")),
            ("GET", "/", &[], Err("no Host")),
            ("GET", "/", &[("host", "")], Err("Host is no authority")),
            ("GET", "/", &[("host", "a.io/b")], Err("Host is no authority")),
            ("GET", "/", &[("host", "x@a.io")], Err("Host is no authority")),
            ("GET", "/", &[("host", "a.io b.io")], Err("Host is no authority")),
            ("GET", "/", &[host, host], Err("more than one Host")),
            ("GET", "http://b.io/", &[host], Err("Host is not that of the request target")),
            ("GET", "http://a.io:80/", &[host], Err("Host is not that of the request target")),
            ("GET", "https://a.io/", &[host], Err("the request target is of another scheme")),
            ("CONNECT", "a.io:443", &[host], Err("CONNECT is not passed on")),
            (
                "POST",
                "/",
                &[host, ("content-length", "1"), ("content-length", "1")],
                Err("more than one Content-Length"),
            ),
            (
                "POST",
                "/",
                &[host, ("content-length", "1"), ("transfer-encoding", "chunked")],
                Err("both Content-Length and Transfer-Encoding"),
            ),
            (
                "POST",
                "/",
                &[host, ("transfer-encoding", "gzip, chunked")],
                Err("a Transfer-Encoding other than chunked"),
            ),
            ("POST", "/", &[host, ("transfer-encoding", "xchunked")], Err("a Transfer-Encoding other than chunked")),
            ("POST", "/", &[host, ("expect", "200-ok")], Err("an unknown expectation")),
        ] {
            assert_eq!(read(method, target, headers), want, "{method} {target} {headers:?}");
        }
    }
}
