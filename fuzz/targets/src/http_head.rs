//! The head of an HTTP request, and its path.

use hyper::{
    HeaderMap, Method, Request, Version,
    http::{request::Parts, uri::Authority},
};
use namegate_l7_proxy::{
    fuzzing::{Head, head},
    path::normalise,
};

/// `METHOD TARGET VERSION` in a first line, a header in each further one. Without a newline the bytes are a path.
///
/// # Panics
/// A path is read otherwise than step by step, or not the same a second time; or a head is taken, or refused, against
/// the rules of RFC 9112 for one reading.
pub fn http_head(data: &[u8]) {
    let Ok(text) = str::from_utf8(data) else { return };
    check_path(text.lines().next().unwrap_or_default());
    let Some(parts) = request(text) else { return };
    for normalises in [false, true] {
        let got = head(&parts, normalises);
        let want = slow(&parts, normalises);
        assert_eq!(got.as_ref().ok(), want.as_ref(), "{text:?}, {normalises}: {got:?}");
        if let Err(status) = got {
            assert!([400, 405, 417].contains(&status), "{text:?}: {status}");
        }
    }
}

fn check_path(target: &str) {
    let got = normalise(target).ok();
    assert_eq!(got, slow_path(target), "{target:?}");
    if let Some(once) = got {
        assert_eq!(normalise(&once).as_ref(), Ok(&once), "a second time: {target:?}");
    }
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
    if !has_one_end(&parts.headers) {
        return None;
    }
    let target = parts.uri.path_and_query().map_or("/", |target| target.as_str());
    let with_slash = if target.starts_with('?') { format!("/{target}") } else { target.to_owned() };
    let is_star = target == "*" && parts.method == Method::OPTIONS;
    let path = if is_star || !normalises { with_slash } else { slow_path(&with_slash)? };
    Some(Head { method: parts.method.to_string(), host, path })
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
        (Some(host), Some(field)) if host.to_ascii_lowercase() != field.to_ascii_lowercase() => return None,
        (Some(host), _) => host,
        (None, Some(host)) => host,
        (None, None) => return (parts.version == Version::HTTP_10).then(String::new),
    };
    let authority: Authority = host.parse().ok()?;
    (!authority.host().is_empty() && !host.contains('@')).then_some(host)
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

/// One character of a path, and whether it came as `%XX`.
struct Letter {
    value: char,
    encoded: bool,
}

/// Letter by letter, then segment by segment from the left until nothing is to be removed.
fn slow_path(target: &str) -> Option<String> {
    let at = target.find('?').unwrap_or(target.len());
    let (path, query) = target.split_at(at);
    let letters = letters(path)?;
    if path.chars().next() != Some('/') {
        return None;
    }
    let mut text = String::new();
    for Letter { value, encoded } in letters {
        let is_control = if encoded { value.is_ascii_control() } else { value.is_control() };
        if is_control || value == '\\' || encoded && value == '/' {
            return None;
        }
        if encoded && !(value.is_ascii_alphanumeric() || ['-', '.', '_', '~'].contains(&value)) {
            text += &format!("%{:02X}", u32::from(value));
        } else {
            text.push(value);
        }
    }
    let mut segments: Vec<String> = text[1..].split('/').map(str::to_owned).collect();
    while step(&mut segments) {}
    Some(format!("/{}{query}", segments.join("/")))
}

fn letters(path: &str) -> Option<Vec<Letter>> {
    let mut letters = Vec::new();
    let mut rest = path;
    while let Some(value) = rest.chars().next() {
        rest = &rest[value.len_utf8()..];
        if value != '%' {
            letters.push(Letter { value, encoded: false });
            continue;
        }
        let digits = rest.get(..2).filter(|digits| digits.bytes().all(|digit| digit.is_ascii_hexdigit()))?;
        letters.push(Letter { value: char::from(u8::from_str_radix(digits, 16).ok()?), encoded: true });
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
