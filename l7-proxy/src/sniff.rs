//! What a connection that may speak any protocol begins with: TLS, HTTP, or neither. Octets in, an answer out.
//!
//! What a lenient server could take for TLS or HTTP counts as such, or is malformed: a connection that is read as neither is
//! not asked for a name. So is a header of the PROXY protocol, which servers take off before they read either.

use std::{
    future::Future,
    io,
    net::IpAddr,
    pin::{Pin, pin},
    sync::{Arc, Mutex, PoisonError},
    task::{Context, Poll, Waker},
};

use bytes::Bytes;
use http_body_util::Empty;
use hyper::{
    Request, Response,
    body::Incoming,
    http::uri::Authority,
    rt::{Executor, Read, ReadBufCursor, Write},
    server::conn::{http1, http2},
    service::service_fn,
};
use namegate_config::name::Fqdn;

use crate::{
    head,
    hello::{self, Gathering, Hello, Malformed},
    record::{CHANGE_CIPHER_SPEC, HEARTBEAT},
};

/// Octets that are gathered before the beginning counts as malformed.
pub const OPENING_OCTETS_MAX: usize = hello::HELLO_OCTETS_MAX;

/// How HTTP/2 begins (RFC 9113 §3.4).
pub(crate) const HTTP2: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// First octet of a TLS connection.
pub(crate) const TLS: u8 = 22;
/// How version 2 of the PROXY protocol begins, as far as no other protocol does.
const PROXY_2: &[u8] = b"\r\n\r\n\0";
/// The word that version 1 begins with.
const PROXY_1: &[u8] = b"PROXY";
/// Methods of HTTP (RFC 9110 §9, RFC 5789). No other protocol's first word is read as one of them, save `CONNECT` and
/// `OPTIONS`, which NATS and SIP have too: these are HTTP where the line has more of it.
const METHODS: [&[u8]; 7] = [b"GET", b"HEAD", b"POST", b"PUT", b"DELETE", b"PATCH", b"TRACE"];

/// What the octets hold so far.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Opening {
    /// More are needed.
    Partial,
    /// TLS, with the name asked for where there is one that a rule could name.
    Tls(Option<Fqdn>),
    /// HTTP/1: the first line is there, and maybe more.
    Http,
    /// HTTP/2 with prior knowledge.
    Http2,
    /// Neither: nothing in it is a name.
    Other,
}

/// Reads what came so far.
pub fn read(octets: &[u8]) -> Result<Opening, Malformed> {
    Sniffer::default().read(octets)
}

/// Reads what a connection begins with as it comes.
#[derive(Debug, Default)]
pub struct Sniffer(Gathering);

impl Sniffer {
    /// Reads what came so far. `bytes` begin with those of the last call.
    pub fn read(&mut self, bytes: &[u8]) -> Result<Opening, Malformed> {
        match bytes {
            [] => Ok(Opening::Partial),
            [CHANGE_CIPHER_SPEC..=HEARTBEAT, ..] => Ok(match self.0.read(bytes)? {
                Hello::Partial => Opening::Partial,
                Hello::Whole(name) => Opening::Tls(name),
            }),
            // The form of SSL 2 of a first message, which old servers take for TLS (RFC 5246 §E.2): it has no names.
            [high, rest @ ..] if *high >= 0x80 && rest.len() < 4 && is_ssl2(rest) => Ok(Opening::Partial),
            [high, rest @ ..] if *high >= 0x80 && is_ssl2(rest) => Err(Malformed),
            _ if HTTP2.starts_with(bytes) && bytes.len() < HTTP2.len() => Ok(Opening::Partial),
            _ if bytes.starts_with(HTTP2) => Ok(Opening::Http2),
            _ if bytes.starts_with(PROXY_2) => Err(Malformed),
            _ if PROXY_2.starts_with(bytes) => Ok(Opening::Partial),
            _ => text(bytes),
        }
    }

    /// The first message of TLS.
    pub fn into_hello(self) -> Gathering {
        self.0
    }
}

/// Whether the bytes after the first are those of a message in the form of SSL 2, as far as they go: a length, the type, and
/// a version (2 or 3).
fn is_ssl2(rest: &[u8]) -> bool {
    let begins =
        |version: &[u8]| rest.iter().skip(1).zip([&[1][..], version].concat()).all(|(byte, wanted)| *byte == wanted);
    begins(&[3]) || begins(&[0, 2])
}

/// Whether a line of text is the first of a request (RFC 9112 §3), also for servers that forgive blanks and empty lines
/// before it, and other blanks and control characters in it.
fn text(octets: &[u8]) -> Result<Opening, Malformed> {
    let from = octets.iter().position(|octet| !is_blank(*octet));
    let line = from.map_or(&[][..], |from| &octets[from..]);
    let method = line.iter().take_while(|octet| is_token(**octet)).count();
    let partial = if octets.len() < OPENING_OCTETS_MAX { Ok(Opening::Partial) } else { Err(Malformed) };
    let (method, rest) = line.split_at(method);
    let Some(next) = rest.first() else { return partial };
    let is_method = METHODS.contains(&method);
    if !is_blank(*next) {
        return if is_method { Err(Malformed) } else { Ok(Opening::Other) };
    }
    if method.is_empty() {
        return Ok(Opening::Other);
    }
    if method.eq_ignore_ascii_case(PROXY_1) {
        return Err(Malformed);
    }
    let end = rest.iter().position(|octet| *octet == b'\n');
    let target = &rest[..end.unwrap_or(rest.len())];
    // Binary protocols may begin with what looks like a word of one digit or sign.
    let is_word = method.first().is_some_and(u8::is_ascii_alphabetic);
    if !is_word && target.iter().any(|octet| octet.is_ascii_control() && !is_blank(*octet)) {
        return Ok(Opening::Other);
    }
    if end.is_none() {
        return partial;
    }
    let has_version = target.windows(5).any(|five| five.eq_ignore_ascii_case(b"HTTP/"));
    // HTTP/0.9 had no version.
    let first = target.split(|octet| is_blank(*octet)).find(|word| !word.is_empty()).unwrap_or_default();
    let has_path = first.starts_with(b"/") || first.get(..4).is_some_and(|four| four.eq_ignore_ascii_case(b"http"));
    let is_request = has_version || has_path || is_method && !first.is_empty();
    Ok(if is_request { Opening::Http } else { Opening::Other })
}

/// What servers take for blank: Python's servers all that `str.split` does.
fn is_blank(octet: u8) -> bool {
    matches!(octet, b'\t'..=b'\r' | 0x1c..=b' ' | 0x85 | 0xa0)
}

/// The first line of a connection that passes as one of a protocol without names, followed while it passes: servers that
/// take any word for a method act on it once it is whole.
///
/// Binary protocols have no lines, so nothing waits for the end of one.
#[derive(Clone, Copy, Debug, Default)]
pub struct FirstLine {
    is_over: bool,
    words: usize,
    /// Bytes of the word under way that are as in the version of HTTP, and its bytes in all.
    same: usize,
    length: usize,
    /// A word after the first one begins as the version of HTTP does.
    has_version: bool,
}

impl FirstLine {
    /// Reads the next bytes, before the server gets them. `Malformed` where the line has a version, as one of HTTP/1 does,
    /// that is not its first word: servers do not agree on what may follow it.
    pub fn read(&mut self, bytes: &[u8]) -> Result<(), Malformed> {
        const VERSION: &[u8] = b"HTTP/";
        if self.is_over {
            return Ok(());
        }
        for byte in bytes {
            // Servers skip empty lines before the first.
            if *byte == b'\n' && self.words > 0 {
                self.is_over = true;
                return if self.has_version { Err(Malformed) } else { Ok(()) };
            }
            if is_blank(*byte) {
                self.length = 0;
                continue;
            }
            if self.length == 0 {
                (self.words, self.same) = (self.words.saturating_add(1), 0);
            }
            let is_same = VERSION.get(self.length).is_some_and(|wanted| byte.eq_ignore_ascii_case(wanted));
            self.same += usize::from(is_same && self.same == self.length);
            self.length = self.length.saturating_add(1);
            self.has_version |= self.words > 1 && self.same == VERSION.len();
        }
        Ok(())
    }
}

/// Octets of a method (RFC 9110 §5.6.2).
fn is_token(octet: u8) -> bool {
    octet.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&octet)
}

/// The name in an authority; `None` for an address, and for what no rule could name.
pub(crate) fn name_of(authority: &str) -> Option<Fqdn> {
    let authority: Authority = authority.parse().ok()?;
    let host = authority.host();
    if host.starts_with('[') || host.parse::<IpAddr>().is_ok() {
        return None;
    }
    host.parse::<Fqdn>().ok().filter(|name| !name.as_str().is_empty())
}

/// What the first request of an HTTP connection asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FirstHost {
    /// The head is not there yet.
    Partial,
    /// The name in `Host` or `:authority`; `None` where there is none that a rule could name.
    Whole(Option<Fqdn>),
    /// The head can be read in two ways, or in none.
    Malformed,
}

/// Reads the host of the first request from octets that begin as [`Opening::Http`] or [`Opening::Http2`].
pub fn first_host(octets: &[u8], is_http2: bool) -> FirstHost {
    let found = Arc::new(Mutex::new(FirstHost::Partial));
    let noted = Arc::clone(&found);
    let service = service_fn(move |request: Request<Incoming>| {
        let host = head::host(&request.into_parts().0);
        let mut noted = noted.lock().unwrap_or_else(PoisonError::into_inner);
        if *noted == FirstHost::Partial {
            *noted = host.map_or(FirstHost::Malformed, |host| FirstHost::Whole(name_of(&host)));
        }
        std::future::pending::<io::Result<Response<Empty<Bytes>>>>()
    });
    let recording = Recording(octets.to_vec(), 0);
    let failed = if is_http2 {
        let connection = pin!(http2::Builder::new(AtOnce).serve_connection(recording, service));
        matches!(once(connection), Poll::Ready(Err(_)))
    } else {
        let connection = pin!(http1::Builder::new().serve_connection(recording, service));
        matches!(once(connection), Poll::Ready(Err(_)))
    };
    let found = found.lock().unwrap_or_else(PoisonError::into_inner).clone();
    if failed && found == FirstHost::Partial { FirstHost::Malformed } else { found }
}

fn once<F: Future>(future: Pin<&mut F>) -> Poll<F::Output> {
    future.poll(&mut Context::from_waker(Waker::noop()))
}

/// Runs a task as far as it comes by itself.
#[derive(Clone)]
struct AtOnce;

impl<F: Future> Executor<F> for AtOnce {
    fn execute(&self, future: F) {
        // It waits for more octets than there are, or for the answer that is never given.
        let _ = once(pin!(future));
    }
}

/// Octets, and silence after them; what is written is nobody's.
struct Recording(Vec<u8>, usize);

impl Read for Recording {
    fn poll_read(mut self: Pin<&mut Self>, _: &mut Context<'_>, mut into: ReadBufCursor<'_>) -> Poll<io::Result<()>> {
        let left = &self.0[self.1..];
        let count = left.len().min(into.remaining());
        if count == 0 {
            return Poll::Pending;
        }
        into.put_slice(&left[..count]);
        self.1 += count;
        Poll::Ready(Ok(()))
    }
}

impl Write for Recording {
    fn poll_write(self: Pin<&mut Self>, _: &mut Context<'_>, octets: &[u8]) -> Poll<io::Result<usize>> {
        Poll::Ready(Ok(octets.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The answer to every prefix: how long it is undecided, and what is decided then.
    fn decided(octets: &[u8]) -> (usize, Result<Opening, Malformed>) {
        let mut at = 0;
        while read(&octets[..at]) == Ok(Opening::Partial) && at < octets.len() {
            at += 1;
        }
        (at, read(&octets[..at]))
    }

    #[test]
    fn beginnings_are_told_apart_octet_by_octet() {
        for (octets, want) in [
            (&b"GET / HTTP/1.1\r\nHost: a.io\r\n\r\n"[..], Opening::Http),
            (b"\r\n\r\n\nGET / HTTP/1.1\r\n", Opening::Http),
            (b"  get\t/ http/1.1\n", Opening::Http),
            (b"GET /\r\n", Opening::Http),
            (b"GET http://a.io/\n", Opening::Http),
            (b"X-ODD^METHOD any thing HTTP/1.1 \r\n", Opening::Http),
            (HTTP2, Opening::Http2),
            (b"PRI * HTTP/1.1\r\n", Opening::Http),
            (b"SSH-2.0-OpenSSH_9.9\r\n", Opening::Other),
            (b"EHLO a.io\r\n", Opening::Other),
            (b"get key\r\n", Opening::Other),
            (b"PING\r\n", Opening::Other),
            (b"*1\r\n$4\r\nPING\r\n", Opening::Other),
            (b"\0\0\0\x08\x04\xd2\x16\x2f", Opening::Other),
            (b"\x80\x2e\x02", Opening::Other),
            (b"\x80\0\0\x28", Opening::Other),
            (b"0\x0c\x02\x01\x01\x60\x07", Opening::Other),
            (b"0033git-upload-pack /a.git\0host=a.io\0", Opening::Other),
            (b"\x05\x01\0", Opening::Other),
            (b"\x04\0\0\0\x05\0\0\0\0", Opening::Other),
            (b"CONNECT {\"verbose\":false}\r\n", Opening::Other),
            (b"OPTIONS sip:a.io SIP/2.0\r\n", Opening::Other),
            (b"CONNECT a.io:443 HTTP/1.1\r\n", Opening::Http),
            (b"GET key\r\n", Opening::Http),
            (b"GET\x0b/\x0cHTTP/1.1\r\n", Opening::Http),
            (b"\x0b\x0c\x1f\x85\xa0GET / HTTP/1.1\r\n", Opening::Http),
            (b"GET\r/\rHTTP/1.1\n", Opening::Http),
            (b"ANY\xa0\x01\x1fHTTP/1.1\n", Opening::Http),
            ("été".as_bytes(), Opening::Other),
        ] {
            let (at, got) = decided(octets);
            assert_eq!(got, Ok(want), "{} after {at}", octets.escape_ascii());
            assert!(at > 0);
        }
        assert_eq!(read(b""), Ok(Opening::Partial));
        for undecided in [
            &b"GET / HTTP/1.1"[..],
            b"G",
            b"\r\n",
            b"\x16",
            b"\x16\x03\x01\0",
            b"PRI * HTTP/2.0\r\n",
            b"SIP \x01",
            b"\r\n\r\n",
        ] {
            assert_eq!(read(undecided), Ok(Opening::Partial), "{}", undecided.escape_ascii());
        }
    }

    #[test]
    fn what_only_looks_like_a_protocol_with_names_is_refused() {
        assert_eq!(read(&vec![b'A'; OPENING_OCTETS_MAX]), Err(Malformed), "undecided for ever");
        for refused in [
            &[22, 3, 1, 0, 0][..],
            &[22, 2],
            &[20],
            &[21, 3, 1, 0, 2, 1, 0],
            &[23],
            &[24],
            b"\x80\x2e\x01\x03\x01",
            b"\x85\x2e\x01\0\x02",
            b"PROXY TCP4 192.0.2.1 192.0.2.2 1 443\r\n",
            b"\r\n\r\n\0\r\nQUIT\n",
            b"GET\0/ HTTP/1.1\r\n",
            b"GET/ HTTP/1.1\r\n",
        ] {
            let (at, got) = decided(refused);
            assert_eq!(got, Err(Malformed), "{} after {at}", refused.escape_ascii());
        }
    }

    #[test]
    fn a_first_line_that_passes_is_none_of_http() {
        for (line, want) in [
            (&b"\x01GET / HTTP/1.1\r\n"[..], Err(Malformed)),
            (b"(\x0b/\x1fhttp/1.0\x85\r\n", Err(Malformed)),
            (b"( / HTTP/\n", Err(Malformed)),
            (b"'x / HTTP/1.1\r\x0e\x0e\n", Err(Malformed)),
            (b"\n\r\n5 / HTTP/1.1\x00\n", Err(Malformed)),
            (b"\0\0\0\x08HTTP/1.1 x\n", Ok(())),
            (b"HTTP/1.1 \n", Ok(())),
            (b"( / HTTQ/1.1\n", Ok(())),
            (b"( / xHTTP/1.1\n", Ok(())),
            (b"SSH-2.0-x\r\n/ HTTP/1.1\n", Ok(())),
        ] {
            assert_eq!(FirstLine::default().read(line), want, "{}", line.escape_ascii());
            let mut pieces = FirstLine::default();
            let found = line.chunks(1).try_for_each(|piece| pieces.read(piece));
            assert_eq!(found, want, "{} in pieces", line.escape_ascii());
        }
    }

    #[test]
    fn names_are_read_from_authorities() {
        for (authority, want) in [
            ("a.io", Some("a.io")),
            ("A.io.:443", Some("a.io")),
            ("192.0.2.1:80", None),
            ("[2001:db8::1]:80", None),
            ("", None),
            ("a b", None),
        ] {
            assert_eq!(name_of(authority).as_ref().map(Fqdn::as_str), want, "{authority}");
        }
    }

    #[test]
    fn the_host_of_the_first_request_is_found_as_soon_as_its_head_is_there() {
        let head = b"\r\nGET /x HTTP/1.1\r\nX: y\r\nhOsT: A.io:80\r\n\r\n";
        let whole = FirstHost::Whole(Some("a.io".parse().unwrap()));
        for at in 0..head.len() {
            assert_eq!(first_host(&head[..at], false), FirstHost::Partial, "after {at}");
        }
        assert_eq!(first_host(head, false), whole);
        for (head, want) in [
            (&b"GET / HTTP/1.1\r\nHost: a.io\r\nHost: b.io\r\n\r\n"[..], FirstHost::Malformed),
            (b"GET / HTTP/1.1\r\n\r\n", FirstHost::Malformed),
            (b"GET / HTTP/1.0\r\n\r\n", FirstHost::Whole(None)),
            (b"GET / HTTP/1.1\r\nHost: 192.0.2.1\r\n\r\n", FirstHost::Whole(None)),
            (b"GET http://a.io/ HTTP/1.1\r\n\r\n", whole.clone()),
            (b"GET /\r\n\r\n", FirstHost::Malformed),
        ] {
            assert_eq!(first_host(head, false), want, "{}", head.escape_ascii());
        }
    }

    #[test]
    fn the_authority_of_http2_is_found() {
        // SETTINGS, then HEADERS of stream 1: GET, http, /, and `:authority` as it stands (RFC 7541 §6.1, §6.2.1).
        let block = [&[0x82, 0x86, 0x84, 0x41, 4][..], b"a.io"].concat();
        let mut octets = HTTP2.to_vec();
        octets.extend([0, 0, 0, 4, 0, 0, 0, 0, 0]);
        octets.extend([0, 0, u8::try_from(block.len()).unwrap(), 1, 5, 0, 0, 0, 1]);
        octets.extend(&block);
        let whole = FirstHost::Whole(Some("a.io".parse().unwrap()));
        for at in 0..octets.len() {
            assert_eq!(first_host(&octets[..at], true), FirstHost::Partial, "after {at}");
        }
        assert_eq!(first_host(&octets, true), whole);
    }
}
