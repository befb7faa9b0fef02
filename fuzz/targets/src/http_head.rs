//! The head of an HTTP request, and its path, beside a slow reading of the same rules and beside servers that read leniently.

use std::sync::LazyLock;

use hyper::{HeaderMap, Method, Request, Version, http::request::Parts};
use namegate_config::l7::{
    HeaderMatch, HttpRule, RegexText,
    head::{self, HttpFacts},
    path::normalise,
};

use self::servers::{Lenient, cgi_name};

mod servers;

/// `METHOD TARGET VERSION` in a first line, a header in each further one. Without a newline the bytes are a path.
///
/// # Panics
/// A path is read otherwise than step by step, or not the same a second time; a head is taken, or refused, against the
/// rules of RFC 9112 for one reading; or a rule allows a request that some server reads as one outside the rule.
pub fn http_head(data: &[u8]) {
    let Ok(text) = str::from_utf8(data) else { return };
    check_path(text.lines().next().unwrap_or_default());
    let Some(parts) = request(text) else { return };
    for normalises in [false, true] {
        let mut sent = parts.clone();
        let got = head::host(&parts).and_then(|host| head::read(&mut sent, host, normalises));
        let want = slow(&parts, normalises);
        let shown = got.as_ref().ok().map(|facts| Head { host: facts.host.clone(), path: facts.path.clone() });
        assert_eq!(shown, want, "{text:?}, {normalises}: {got:?}");
        match got {
            Ok(facts) if normalises => check_servers(text, &parts.headers, &sent, &facts),
            Ok(_) => {}
            Err(refused) => assert!([400, 405, 417].contains(&refused.status.as_u16()), "{text:?}: {refused:?}"),
        }
    }
}

fn check_path(target: &str) {
    let got = normalise(target).ok();
    assert_eq!(got, slow_path(target), "{target:?}");
    let Some(once) = got else { return };
    assert_eq!(normalise(&once).as_ref(), Ok(&once), "a second time: {target:?}");
    if PUBLIC.matches(&facts("GET", &once), &HeaderMap::new()) {
        check_readings(&once);
    }
}

fn facts(method: &str, path: &str) -> HttpFacts {
    HttpFacts { method: method.to_owned(), path: path.to_owned(), host: "x.a.io".to_owned(), websocket: None }
}

/// Paths below `/public`.
static PUBLIC: LazyLock<HttpRule> = LazyLock::new(|| HttpRule { path: regex("/public/.*"), ..HttpRule::default() });
/// As well GET alone, hosts below `a.io`, and `X-Limit: 1`.
static LIMITED: LazyLock<HttpRule> = LazyLock::new(|| HttpRule {
    method: regex("GET"),
    host: regex(r".*\.a\.io(:[0-9]+)?"),
    headers: vec![HeaderMatch { name: "x-limit".to_owned(), value: Some("1".to_owned()) }],
    ..PUBLIC.clone()
});

fn regex(text: &str) -> Option<RegexText> {
    RegexText::new(text).ok()
}

/// Whatever server gets a path that the rule allows, it serves what lies below `/public`.
fn check_readings(path: &str) {
    for server in Lenient::all() {
        let served = server.reads(path);
        assert!(served.starts_with("/public/"), "{path:?} is {served:?} for {server:?}");
    }
}

/// What a rule allows is within the rule for every server.
fn check_servers(text: &str, came: &HeaderMap, sent: &Parts, facts: &HttpFacts) {
    let target = sent.uri.path_and_query().map_or("", |target| target.as_str());
    assert_eq!(target, facts.path, "the server gets what was judged: {text:?}");
    if PUBLIC.matches(facts, &sent.headers) {
        check_readings(target);
        for value in fields(&sent.headers, &["HTTP_X_ORIGINAL_URL", "HTTP_X_REWRITE_URL"]) {
            check_readings(&String::from_utf8_lossy(value));
        }
    }
    if !LIMITED.matches(facts, &sent.headers) {
        return;
    }
    let overrides = ["HTTP_X_HTTP_METHOD_OVERRIDE", "HTTP_X_HTTP_METHOD", "HTTP_X_METHOD_OVERRIDE"];
    for method in fields(&sent.headers, &overrides) {
        assert!(method.eq_ignore_ascii_case(b"GET"), "another method: {text:?}");
    }
    let limits = fields(&sent.headers, &["HTTP_X_LIMIT"]);
    assert_eq!(limits, [b"1"], "{text:?}");
    let is_hop = options(came).is_some_and(|options| options.contains(&"x-limit".to_owned()));
    assert!(!is_hop, "a field that the server does not get: {text:?}");
    let cut = |host: &str| host.split([':', ',', ';', '/', '@', '%', ' ']).next().unwrap_or_default().to_owned();
    assert!(cut(&facts.host).to_ascii_lowercase().ends_with(".a.io"), "{text:?}");
}

/// Values of the fields that have one of these names as variables of CGI.
fn fields<'f>(headers: &'f HeaderMap, names: &[&str]) -> Vec<&'f [u8]> {
    let found = headers.iter().filter(|(name, _)| names.contains(&&*cgi_name(name.as_str())));
    found.map(|(_, value)| value.as_bytes()).collect()
}

/// What is judged of a head.
#[derive(Debug, PartialEq, Eq)]
struct Head {
    host: String,
    path: String,
}

fn request(text: &str) -> Option<Parts> {
    let mut lines = text.lines();
    let mut first = lines.next()?.split(' ');
    let (method, target) = (first.next()?, first.next()?);
    let version = match first.next() {
        Some("1.0") => Version::HTTP_10,
        Some("2") => Version::HTTP_2,
        _ => Version::HTTP_11,
    };
    let mut request = Request::builder().method(method).uri(target).version(version);
    for line in lines {
        let (name, value) = line.split_once(':')?;
        request = request.header(name, value.trim());
    }
    Some(request.body(()).ok()?.into_parts().0)
}

/// The rules one after the other.
fn slow(parts: &Parts, normalises: bool) -> Option<Head> {
    let host = slow_host(parts)?;
    if !has_one_end(&parts.headers) || names_what_is_for_the_server(&parts.headers) || has_upgrade_with_body(parts) {
        return None;
    }
    let target = parts.uri.path_and_query().map_or("/", |target| target.as_str());
    let with_slash = if target.starts_with('?') { format!("/{target}") } else { target.to_owned() };
    let is_star = target == "*" && parts.method == Method::OPTIONS;
    let path = if is_star || !normalises { with_slash } else { slow_path(&with_slash)? };
    // A path that no rule reads is sent as it came, if a request can have it.
    hyper::Uri::builder().path_and_query(path.as_str()).build().is_ok().then_some(Head { host, path })
}

fn slow_host(parts: &Parts) -> Option<String> {
    if parts.method == Method::CONNECT {
        return None;
    }
    let fields: Vec<_> = parts.headers.get_all("host").iter().collect();
    let of_target = parts.uri.authority().map(ToString::to_string);
    if fields.len() > 1 || parts.version != Version::HTTP_2 && parts.uri.scheme_str().is_some_and(|it| it != "http") {
        return None;
    }
    let field = match fields.first() {
        Some(field) => Some(field.to_str().ok()?.to_owned()),
        None => None,
    };
    let host = match (of_target, field) {
        (Some(host), Some(field)) if !host.eq_ignore_ascii_case(&field) => return None,
        (Some(host), _) | (None, Some(host)) => host,
        (None, None) => return (parts.version == Version::HTTP_10).then(String::new),
    };
    let port_at = if host.ends_with(']') { None } else { host.rfind(':') };
    let (name, port) = host.split_at(port_at.unwrap_or(host.len()));
    let is_port = |port: &str| port.bytes().all(|one| one.is_ascii_digit()) && port.parse::<u16>().is_ok();
    if port_at.is_some() && !is_port(&port[1..]) {
        return None;
    }
    let is_address = name.starts_with('[')
        && name.ends_with(']')
        && name.get(1..name.len() - 1).is_some_and(|address| address.parse::<std::net::Ipv6Addr>().is_ok());
    let is_name = !name.is_empty() && name.chars().all(|one| one.is_ascii_alphanumeric() || "-._~".contains(one));
    (is_address || is_name).then_some(host)
}

/// Words of `Connection`; `None` where it is no text.
fn options(headers: &HeaderMap) -> Option<Vec<String>> {
    let mut options = Vec::new();
    for value in headers.get_all("connection") {
        options.extend(value.to_str().ok()?.split(',').map(|option| option.trim().to_lowercase()));
    }
    Some(options)
}

fn names_what_is_for_the_server(headers: &HeaderMap) -> bool {
    let needed = ["authorization", "content-encoding", "content-length", "content-type", "cookie", "expect", "host"];
    options(headers).is_none_or(|options| options.iter().any(|option| needed.contains(&&**option)))
}

fn has_upgrade_with_body(parts: &Parts) -> bool {
    let upgrades: Vec<_> = parts.headers.get_all("upgrade").iter().collect();
    let asks = upgrades.len() == 1
        && upgrades[0].as_bytes().eq_ignore_ascii_case(b"websocket")
        && options(&parts.headers).is_some_and(|options| options.contains(&"upgrade".to_owned()));
    let length = parts.headers.get("content-length").map(hyper::http::HeaderValue::as_bytes);
    asks && (parts.headers.contains_key("transfer-encoding") || length.is_some_and(|length| length != b"0"))
}

/// Whether the end of the body can be found in one way only (RFC 9112 §6.3), and nothing unknown is expected.
fn has_one_end(headers: &HeaderMap) -> bool {
    let all = |name: &str| {
        headers.get_all(name).iter().map(|value| value.as_bytes().to_ascii_lowercase()).collect::<Vec<_>>()
    };
    let (codings, lengths) = (all("transfer-encoding"), all("content-length"));
    let framed = match codings.len() {
        0 => lengths.len() < 2,
        1 => lengths.is_empty() && codings[0] == b"chunked",
        _ => false,
    };
    framed && all("expect").iter().all(|expected| expected == b"100-continue")
}

/// One byte of a path, and whether it came as `%XX`.
#[derive(Clone, Copy)]
struct Letter {
    value: u8,
    encoded: bool,
}

/// Letter by letter, then segment by segment from the left until nothing is to be removed.
fn slow_path(target: &str) -> Option<String> {
    let at = target.find('?').unwrap_or(target.len());
    let (path, query) = target.split_at(at);
    let letters = letters(path)?;
    if !path.starts_with('/') || target.contains('#') {
        return None;
    }
    let mut text = String::new();
    for Letter { value, encoded } in &letters {
        let (is_slash, is_end) = (*value == b'/', [b'?', b';'].contains(value));
        if value.is_ascii_control() || *value == b'\\' || *encoded && (is_slash || is_end) || !encoded && *value > 127 {
            return None;
        }
        if *encoded && !is_plain(*value) {
            let hexadecimal = format!("%{value:02X}");
            text.push_str(&hexadecimal);
        } else {
            text.push(char::from(*value));
        }
    }
    if letters.split(|letter| letter.value == b'/').any(is_doubtful) {
        return None;
    }
    let mut segments: Vec<String> = text[1..].split('/').map(str::to_owned).collect();
    while step(&mut segments) {}
    Some(format!("/{}{query}", segments.join("/")))
}

fn is_plain(value: u8) -> bool {
    value.is_ascii_alphanumeric() || b"-._~".contains(&value)
}

/// Whether a segment is one of dots or of nothing for some servers alone, or hides another one.
fn is_doubtful(segment: &[Letter]) -> bool {
    let bytes: Vec<u8> = segment.iter().map(|letter| letter.value).collect();
    let Ok(text) = String::from_utf8(bytes.clone()) else { return true };
    let is_hidden = |three: &[u8]| {
        let digits = str::from_utf8(&three[1..]).unwrap_or_default();
        let is_hexadecimal = three[0] == b'%' && three[1..].iter().all(u8::is_ascii_hexdigit);
        is_hexadecimal && !u8::from_str_radix(digits, 16).is_ok_and(|byte| is_plain(byte) && byte != b'.')
    };
    if text.chars().any(char::is_control) || bytes.windows(3).any(is_hidden) {
        return true;
    }
    let name = text.split([';', '#']).next().unwrap_or_default();
    let rest: String = name.chars().filter(|one| *one != '.' && !one.is_whitespace()).collect();
    let has_more = text.contains([';', '#']) || name.contains(char::is_whitespace);
    rest.is_empty() && has_more
}

fn letters(path: &str) -> Option<Vec<Letter>> {
    let mut letters = Vec::new();
    let mut rest = path.as_bytes();
    while let Some((&value, after)) = rest.split_first() {
        rest = after;
        if value != b'%' {
            letters.push(Letter { value, encoded: false });
            continue;
        }
        let digits = rest.get(..2).filter(|digits| digits.iter().all(u8::is_ascii_hexdigit))?;
        let value = u8::from_str_radix(str::from_utf8(digits).ok()?, 16).ok()?;
        letters.push(Letter { value, encoded: true });
        rest = &rest[2..];
    }
    Some(letters)
}

/// Takes away one segment that says nothing; false where there is none. The last one may be empty.
fn step(segments: &mut Vec<String>) -> bool {
    let last = segments.len() - 1;
    let Some(at) =
        segments.iter().enumerate().position(|(at, one)| one == "." || one == ".." || one.is_empty() && at < last)
    else {
        return false;
    };
    let is_up = segments.remove(at) == "..";
    if is_up && at > 0 {
        segments.remove(at - 1);
    }
    if at == last {
        segments.push(String::new());
    }
    true
}
