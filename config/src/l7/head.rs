//! The head of an HTTP request: refused where servers could read it in more than one way, else what the server gets and
//! what rules see.

use http::{
    HeaderMap, HeaderName, HeaderValue, Method, StatusCode, Uri, Version,
    header::{
        AUTHORIZATION, CONNECTION, CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_TYPE, COOKIE, EXPECT, HOST,
        SEC_WEBSOCKET_KEY, SEC_WEBSOCKET_VERSION, TE, TRANSFER_ENCODING, UPGRADE,
    },
    request::Parts,
    uri::{Authority, PathAndQuery},
};

use super::path;

/// Fields about one connection (RFC 9110 §7.6.1).
const HOP_BY_HOP: [HeaderName; 7] = [
    CONNECTION,
    TRANSFER_ENCODING,
    UPGRADE,
    TE,
    // The other half of a wish for HTTP/2 (RFC 7540 §3.2.1), also where `Connection` does not name it.
    HeaderName::from_static("http2-settings"),
    HeaderName::from_static("keep-alive"),
    HeaderName::from_static("proxy-connection"),
];
/// Options of most connections of HTTP/1. `close` is the name of no field (RFC 9110 §7.6.1), and
/// `Keep-Alive` is removed in any case.
const COMMON_OPTIONS: [&str; 2] = ["close", "keep-alive"];
/// Fields for the server, which a client must not name in `Connection`: without them the server gets another request.
const END_TO_END: [HeaderName; 7] =
    [AUTHORIZATION, CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_TYPE, COOKIE, EXPECT, HOST];
/// Characters of a `Sec-WebSocket-Key`: 16 bytes in base64 (RFC 6455 §4.1).
const WEBSOCKET_KEY_LENGTH: usize = 24;

/// Why a request is not judged any further.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Refused {
    /// What the client gets.
    pub status: StatusCode,
    /// The reason in words.
    pub why: &'static str,
}

const fn bad(why: &'static str) -> Refused {
    Refused { status: StatusCode::BAD_REQUEST, why }
}

/// A method, target or field that HTTP has not.
pub const NOT_HTTP: Refused = bad("not an HTTP request");
/// The end of the body can be found in two ways.
pub const TWO_ENDS: Refused = bad("both Content-Length and Transfer-Encoding");
/// The request target has a fragment.
pub const FRAGMENT: Refused = bad("the request target has a fragment");
/// The client broke off, or sent chunks that are none (RFC 9112 §7.1).
pub const BROKEN_BODY: Refused = bad("the body is broken");

/// An HTTP request as rules see it, beside its header fields.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HttpFacts {
    /// Method.
    pub method: String,
    /// Normalised path, and query.
    pub path: String,
    /// Host, with the port where one was sent; empty where HTTP/1.0 names none.
    pub host: String,
    /// The key of a WebSocket handshake, where the request is one.
    pub websocket: Option<HeaderValue>,
}

/// Reads the head of a request for a host, and leaves in `parts` what the server gets. Without `normalise` the path stays
/// as it came: no rule has a condition on it.
pub fn read(parts: &mut Parts, host: String, normalise: bool) -> Result<HttpFacts, Refused> {
    framing(&parts.headers)?;
    let path = target(parts, normalise)?;
    let websocket = websocket(parts)?;
    fields(parts, websocket.is_some())?;
    let is_as_it_came = |target: &&PathAndQuery| target.as_str() == path;
    let mut uri = match parts.uri.path_and_query().filter(is_as_it_came) {
        Some(target) => Uri::builder().path_and_query(target.clone()),
        None => Uri::builder().path_and_query(path.as_str()),
    };
    if parts.version >= Version::HTTP_2 {
        uri = uri.scheme(parts.uri.scheme_str().unwrap_or("http")).authority(host.as_str());
        parts.headers.remove(HOST);
    } else {
        let is_as_judged = parts.headers.get(HOST).is_some_and(|field| field.as_bytes() == host.as_bytes());
        if !is_as_judged && !host.is_empty() {
            parts.headers.insert(HOST, HeaderValue::from_str(&host).map_err(|_| bad("Host is no authority"))?);
        }
        parts.version = Version::HTTP_11;
    }
    parts.uri = uri.build().map_err(|_| bad("the request target is not a path"))?;
    Ok(HttpFacts { method: parts.method.to_string(), path, host, websocket })
}

/// The path and query that the request asks for.
fn target(parts: &Parts, normalise: bool) -> Result<String, Refused> {
    let target = parts.uri.path_and_query().map_or("/", |target| target.as_str());
    let whole = match target {
        "*" if parts.method == Method::OPTIONS => return Ok(target.to_owned()),
        // An absolute target may leave the path out.
        query if query.starts_with('?') => format!("/{query}"),
        target => target.to_owned(),
    };
    if normalise { path::normalise(&whole).map_err(|error| bad(error.why())) } else { Ok(whole) }
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

/// The key of a WebSocket handshake (RFC 6455 §4.2.1). A wish for another protocol, or one that servers could read
/// otherwise, is none: the request is passed on without it.
fn websocket(parts: &Parts) -> Result<Option<HeaderValue>, Refused> {
    let one = |name: HeaderName| {
        let mut values = parts.headers.get_all(name).iter();
        values.next().filter(|_| values.next().is_none())
    };
    let is = |value: Option<&HeaderValue>, word: &[u8]| {
        value.is_some_and(|value| value.as_bytes().eq_ignore_ascii_case(word))
    };
    let asks_to_upgrade = || options(&parts.headers).any(|option| option.eq_ignore_ascii_case("upgrade"));
    if !is(one(UPGRADE), b"websocket") || !asks_to_upgrade() {
        return Ok(None);
    }
    let has_body = parts.headers.contains_key(TRANSFER_ENCODING)
        || parts.headers.get(CONTENT_LENGTH).is_some_and(|length| length != "0");
    if has_body {
        return Err(bad("a WebSocket handshake with a body"));
    }
    let is_key = |key: &&HeaderValue| {
        let key = key.as_bytes();
        let is_letter = |byte: &u8| byte.is_ascii_alphanumeric() || b"+/".contains(byte);
        key.len() == WEBSOCKET_KEY_LENGTH && key.ends_with(b"==") && key[..key.len() - 2].iter().all(is_letter)
    };
    let is_handshake = parts.method == Method::GET && parts.version == Version::HTTP_11;
    let key = one(SEC_WEBSOCKET_KEY).filter(is_key);
    Ok(key.filter(|_| is_handshake && is(one(SEC_WEBSOCKET_VERSION), b"13")).cloned())
}

/// Words of `Connection`.
fn options(headers: &HeaderMap) -> impl Iterator<Item = &str> {
    let values = headers.get_all(CONNECTION).iter().filter_map(|value| value.to_str().ok());
    values.flat_map(|value| value.split(',')).map(str::trim)
}

/// Removes the fields about one connection, and those that `Connection` names (RFC 9110 §7.6.1).
pub fn strip(headers: &mut HeaderMap) {
    let names_no_field = |option: &&str| COMMON_OPTIONS.iter().any(|common| option.eq_ignore_ascii_case(common));
    let others = options(headers).filter(|option| !names_no_field(option));
    let named: Vec<HeaderName> = others.filter_map(|option| option.parse().ok()).collect();
    let is_hop_by_hop = |name: &&HeaderName| HOP_BY_HOP.contains(name);
    let present: Vec<HeaderName> = headers.keys().filter(is_hop_by_hop).cloned().collect();
    for name in named.iter().chain(&present) {
        headers.remove(name);
    }
}

/// Leaves the fields for the server, and sets those about the connection to it.
fn fields(parts: &mut Parts, is_websocket: bool) -> Result<(), Refused> {
    let headers = &mut parts.headers;
    if headers.get_all(CONNECTION).iter().any(|value| value.to_str().is_err()) {
        return Err(bad("Connection names no field"));
    }
    let is_end_to_end = |option: &str| END_TO_END.iter().any(|name| option.eq_ignore_ascii_case(name.as_str()));
    if options(headers).any(is_end_to_end) {
        return Err(bad("Connection names a field that is for the server"));
    }
    let takes_trailers = headers.get(TE).is_some_and(|value| value.as_bytes().eq_ignore_ascii_case(b"trailers"));
    let is_chunked = headers.contains_key(TRANSFER_ENCODING);
    strip(headers);
    // The proxy has said "100 Continue" itself when the body is read.
    headers.remove(EXPECT);
    if takes_trailers {
        headers.insert(TE, HeaderValue::from_static("trailers"));
    }
    if is_chunked {
        // With it, hyper passes trailers on too.
        headers.insert(TRANSFER_ENCODING, HeaderValue::from_static("chunked"));
    }
    if is_websocket {
        headers.insert(UPGRADE, HeaderValue::from_static("websocket"));
        headers.insert(CONNECTION, HeaderValue::from_static("upgrade"));
    }
    Ok(())
}

/// The one host that is asked for (RFC 9112 §3.2, RFC 9113 §8.3.1); empty where HTTP/1.0 names none.
pub fn host(parts: &Parts) -> Result<String, Refused> {
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
    if is_authority(host) { Ok(host.to_owned()) } else { Err(bad("Host is no authority")) }
}

/// A name or an address, and a port where there is one. What RFC 3986 §3.2.2 allows besides, servers cut at different
/// places: `a.io,b.io`, `a.io:b.io`, `a%2eio`.
fn is_authority(host: &str) -> bool {
    let (name, port) = match host.rsplit_once(':') {
        Some((name, port)) if !port.ends_with(']') => (name, Some(port)),
        _ => (host, None),
    };
    let is_port = |port: &str| port.bytes().all(|byte| byte.is_ascii_digit()) && port.parse::<u16>().is_ok();
    let address = name.strip_prefix('[').and_then(|name| name.strip_suffix(']'));
    let is_name = |name: &str| {
        !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-._~".contains(&byte))
    };
    port.is_none_or(is_port)
        && address.map_or_else(|| is_name(name), |address| address.parse::<std::net::Ipv6Addr>().is_ok())
}

#[cfg(test)]
mod tests {
    use http::Request;

    fn read(method: &str, target: &str, headers: &[(&str, &str)]) -> Result<(String, String), &'static str> {
        let mut request = Request::builder().method(method).uri(target);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let (mut parts, ()) = request.body(()).unwrap().into_parts();
        let facts = super::host(&parts).and_then(|host| super::read(&mut parts, host, true));
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
            ("POST", "/", &[host, ("transfer-encoding", "Chunked")], ok("a.io", "/")),
            ("POST", "/", &[host, ("content-length", "1"), ("expect", "100-Continue")], ok("a.io", "/")),
            ("GET", "*", &[host], Err("the request target is not a path")),
            (
                "GET",
                "/a%2fb",
                &[host],
                Err("the path has an encoded slash, question mark or semicolon, or a backslash"),
            ),
            ("GET", "/a%00", &[host], Err("the path has a control character")),
            ("GET", "/a%4", &[host], Err("the path has a broken percent-encoding")),
            ("GET", "/", &[], Err("no Host")),
            (
                "GET",
                "/",
                &[host, ("connection", "close, HOST")],
                Err("Connection names a field that is for the server"),
            ),
            ("GET", "/", &[host, ("connection", "x-limit")], ok("a.io", "/")),
            ("GET", "/", &[host, ("connection", "x\u{e9}")], Err("Connection names no field")),
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

    #[test]
    fn a_host_is_one_name_or_address() {
        let ok = |host: &str, path: &str| Ok((host.to_owned(), path.to_owned()));
        for (method, target, headers, want) in [
            ("GET", "/", &[("host", "[2001:db8::1]:80")][..], ok("[2001:db8::1]:80", "/")),
            ("GET", "/", &[("host", "")], Err("Host is no authority")),
            ("GET", "/", &[("host", "a.io/b")], Err("Host is no authority")),
            ("GET", "/", &[("host", "x@a.io")], Err("Host is no authority")),
            ("GET", "/", &[("host", "a.io b.io")], Err("Host is no authority")),
            ("GET", "/", &[("host", "a.io,b.io")], Err("Host is no authority")),
            ("GET", "/", &[("host", "b.io:x.a.io")], Err("Host is no authority")),
            ("GET", "/", &[("host", "a%2eio")], Err("Host is no authority")),
            ("GET", "/", &[("host", "a.io:")], Err("Host is no authority")),
            ("GET", "/", &[("host", "a.io:+80")], Err("Host is no authority")),
            ("GET", "/", &[("host", "a.io:65536")], Err("Host is no authority")),
            ("GET", "/", &[("host", "[a.io]")], Err("Host is no authority")),
            ("GET", "/", &[("host", "2001:db8::1")], Err("Host is no authority")),
            ("GET", "/", &[("host", "a_b.io:8080")], ok("a_b.io:8080", "/")),
            ("GET", "/", &[("host", "[2001:db8::1]")], ok("[2001:db8::1]", "/")),
        ] {
            assert_eq!(read(method, target, headers), want, "{method} {target} {headers:?}");
        }
    }

    #[test]
    fn a_websocket_is_asked_for_in_one_way() {
        const KEY: (&str, &str) = ("sec-websocket-key", "dGhlIHNhbXBsZSBub25jZQ==");
        const VERSION: (&str, &str) = ("sec-websocket-version", "13");
        let asks = [("host", "a.io"), ("connection", "keep-alive, Upgrade"), ("upgrade", "WebSocket")];
        let read = |method: &str, more: &[(&str, &str)]| {
            let mut request = Request::builder().method(method).uri("/");
            for (name, value) in asks.iter().chain(more) {
                request = request.header(*name, *value);
            }
            let (mut parts, ()) = request.body(()).unwrap().into_parts();
            let read = super::read(&mut parts, "a.io".to_owned(), true).map_err(|refused| refused.why);
            let is_passed_on = parts.headers.contains_key("upgrade") && parts.headers["connection"] == "upgrade";
            read.map(|facts| {
                assert_eq!(facts.websocket.is_some(), is_passed_on, "{more:?}");
                is_passed_on
            })
        };
        for (method, more, want) in [
            ("GET", &[KEY, VERSION][..], Ok(true)),
            ("GET", &[KEY, VERSION, ("content-length", "0")], Ok(true)),
            ("GET", &[KEY], Ok(false)),
            ("GET", &[VERSION], Ok(false)),
            ("GET", &[KEY, KEY, VERSION], Ok(false)),
            ("GET", &[KEY, ("sec-websocket-version", "8")], Ok(false)),
            ("GET", &[("sec-websocket-key", "short=="), VERSION], Ok(false)),
            ("GET", &[KEY, VERSION, ("upgrade", "h2c")], Ok(false)),
            ("POST", &[KEY, VERSION], Ok(false)),
            ("GET", &[KEY, VERSION, ("content-length", "4")], Err("a WebSocket handshake with a body")),
            ("GET", &[KEY, VERSION, ("transfer-encoding", "chunked")], Err("a WebSocket handshake with a body")),
        ] {
            assert_eq!(read(method, more), want, "{method} {more:?}");
        }
    }
}
