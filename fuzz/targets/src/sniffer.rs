//! What a connection of any protocol begins with.

use namegate_l7_proxy::{
    hello::{self, Hello, Malformed},
    sniff::{self, FirstHost, Opening},
};

/// Longest input: each of its beginnings is read.
const BYTES_MAX: usize = 1_024;
/// How HTTP/2 begins (RFC 9113 §3.4).
const HTTP2: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// What a client sends first.
///
/// # Panics
/// What a beginning is changes with what comes after it; it is another than the rules say; or a host is read that is
/// nowhere in the bytes, or changes with what comes after it.
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
    assert_eq!(got, slow(data), "{}", data.escape_ascii());
    match got {
        Ok(Opening::Http) => check_host(data, false),
        Ok(Opening::Http2) => check_host(data, true),
        _ => {}
    }
}

/// The rules for all of the bytes at once.
fn slow(data: &[u8]) -> Result<Opening, Malformed> {
    let Some(first) = data.first() else { return Ok(Opening::Partial) };
    if *first == 22 && data.get(1).is_none_or(|version| *version == 3) {
        return match hello::read(data) {
            _ if data.len() == 1 => Ok(Opening::Partial),
            Ok(Hello::Partial) => Ok(Opening::Partial),
            Ok(Hello::Whole(name)) => Ok(Opening::Tls(name)),
            Err(error) => Err(error),
        };
    }
    if *first >= 0x80 {
        let is_ssl2 = data.iter().skip(2).zip([1, 3]).all(|(byte, wanted)| *byte == wanted);
        return Ok(match (is_ssl2, data.len()) {
            (false, _) => Opening::Other,
            (true, 4..) => Opening::Tls(None),
            (true, _) => Opening::Partial,
        });
    }
    if data.len() >= HTTP2.len() && data[..HTTP2.len()] == *HTTP2 {
        return Ok(Opening::Http2);
    }
    if HTTP2.iter().zip(data).all(|(wanted, byte)| wanted == byte) {
        return Ok(Opening::Partial);
    }
    Ok(slow_text(data))
}

fn slow_text(data: &[u8]) -> Opening {
    let lenient: Vec<u8> = data.iter().copied().skip_while(|byte| [b'\r', b'\n', b' ', b'\t'].contains(byte)).collect();
    let is_whole = lenient.contains(&b'\n');
    let line: Vec<u8> = lenient.iter().copied().take_while(|byte| *byte != b'\n').collect();
    let Some(blank) = line.iter().position(|byte| *byte == b' ' || *byte == b'\t') else {
        // One word: a method as far as it goes, or no request.
        let is_method = line.iter().all(|byte| is_token(*byte));
        return if is_method && !is_whole { Opening::Partial } else { Opening::Other };
    };
    let (method, target) = line.split_at(blank);
    let has_control = target.iter().any(|byte| (*byte < 32 || *byte == 127) && ![b'\t', b'\r'].contains(byte));
    if method.is_empty() || !method.iter().all(|byte| is_token(*byte)) || has_control {
        return Opening::Other;
    }
    if !is_whole {
        return Opening::Partial;
    }
    let target = String::from_utf8_lossy(target);
    let target = target.trim_matches([' ', '\t', '\r', '\x0c']);
    let is_request =
        target.to_ascii_lowercase().contains("http/") || target.starts_with('/') || target.starts_with("http");
    if is_request { Opening::Http } else { Opening::Other }
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
