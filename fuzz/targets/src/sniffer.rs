//! What a connection of any protocol begins with.

use namegate_l7_proxy::{
    hello::{self, Hello},
    sniff::{self, FirstHost, FirstLine, Opening},
};

/// Longest input: each of its beginnings is read.
const BYTES_MAX: usize = 1_024;

/// What a client sends first.
///
/// # Panics
/// What a beginning is changes with what comes after it; bytes pass as a protocol without names that a lenient server would
/// take for TLS or HTTP; or a host is read that is nowhere in the bytes, or changes with what comes after it.
pub fn sniffer(data: &[u8]) {
    let data = &data[..data.len().min(BYTES_MAX)];
    let mut decided = None;
    for length in 0..=data.len() {
        let answer = sniff::read(&data[..length]);
        match &decided {
            Some(before) => assert_eq!(&answer, before, "decided before {length}"),
            None if answer == Ok(Opening::Partial) => {}
            None => decided = Some(answer),
        }
    }
    let got = decided.unwrap_or(Ok(Opening::Partial));
    match got {
        Ok(Opening::Other) => check_other(data),
        Ok(Opening::Tls(name)) => assert_eq!(hello::read(data), Ok(Hello::Whole(name))),
        Ok(Opening::Http) => check_host(data, false),
        Ok(Opening::Http2) => check_host(data, true),
        _ => {}
    }
}

/// Whether a lenient server would take the bytes for TLS, for HTTP, or for a header before one of them.
fn is_named(data: &[u8]) -> bool {
    is_tls_for_go(data) || is_tls_for_openssl(data) || is_proxy_header(data) || is_http(data)
}

/// Go takes any version below 16.0 of the first record, and alerts before the first message.
fn is_tls_for_go(data: &[u8]) -> bool {
    matches!(data, [21 | 22, 0..16, _, _, _, ..])
}

/// OpenSSL and older servers take the form of SSL 2.
fn is_tls_for_openssl(data: &[u8]) -> bool {
    matches!(data, [128..=255, _, 1, 3, _, ..] | [128..=255, _, 1, 0, 2, ..] | [20..=24, 3, ..])
}

fn is_proxy_header(data: &[u8]) -> bool {
    data.starts_with(b"PROXY ") || data.starts_with(b"\r\n\r\n\0\r\nQUIT\n")
}

/// Servers take the first line for a request once it is whole: nginx, Node and Go after empty lines, with a method of
/// letters or any token; Python with any blanks around any words.
fn is_http(data: &[u8]) -> bool {
    let text: String = data.iter().map(|byte| char::from(*byte)).collect();
    let is_whole = |text: &str| text.contains('\n');
    let begin = text.trim_start_matches(['\r', '\n']);
    let line = begin.split('\n').next().unwrap_or_default().trim_end_matches('\r');
    let parts: Vec<&str> = line.split(' ').collect();
    let is_method = |word: &str| !word.is_empty() && word.bytes().all(is_token);
    let is_strict = is_whole(begin)
        && match parts[..] {
            [method, target, version] => is_method(method) && version.starts_with("HTTP/1.") && target.starts_with('/'),
            // HTTP/0.9, as nginx has it.
            ["GET", target] => target.starts_with('/'),
            _ => false,
        };
    is_strict || is_whole(&text) && is_http_for_python(&text)
}

/// `str.split` of Python, as `http.server` and `wsgiref` have it.
fn is_http_for_python(text: &str) -> bool {
    let is_blank = |c: char| matches!(u32::from(c), 9..=13 | 28..=32 | 0x85 | 0xa0);
    let line = text.split('\n').next().unwrap_or_default();
    let words: Vec<&str> = line.split(is_blank).filter(|word| !word.is_empty()).collect();
    match words[..] {
        ["GET", _] => true,
        [_, _, .., version] => version.starts_with("HTTP/"),
        _ => false,
    }
}

/// What passes as neither is watched to the end of its first line.
fn check_other(data: &[u8]) {
    let is_watched = |pieces: usize| {
        let mut line = FirstLine::default();
        data.chunks(pieces).try_for_each(|piece| line.read(piece)).is_err()
    };
    let found = is_watched(1);
    assert_eq!(is_watched(7), found);
    assert!(found || !is_named(data), "passes: {}", data.escape_ascii());
}

/// Characters of a method (RFC 9110 §5.6.2).
fn is_token(byte: u8) -> bool {
    let separators = b"\"(),/:;<=>?@[\\]{}";
    (33..127).contains(&byte) && !separators.contains(&byte)
}

fn check_host(data: &[u8], is_http2: bool) {
    let got = sniff::first_host(data, is_http2);
    let FirstHost::Whole(name) = &got else { return };
    let more = [data, b"x"].concat();
    assert_eq!(sniff::first_host(&more, is_http2), got, "more bytes change the host");
    if let Some(name) = name
        && !is_http2
    {
        let text = data.to_ascii_lowercase();
        let is_there = text.windows(name.as_str().len()).any(|window| window == name.as_str().as_bytes());
        assert!(is_there, "{name} is nowhere in {}", data.escape_ascii());
    }
}
