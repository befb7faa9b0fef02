//! What a connection that may speak any protocol begins with: TLS, HTTP, or neither. Octets in, an answer out.
//!
//! What could be TLS or HTTP for a lenient server counts as such: whoever has it read as neither is not asked for a name.

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
    hello::{self, Hello, Malformed},
};

/// Octets that are gathered before the beginning counts as malformed.
pub const OPENING_OCTETS_MAX: usize = hello::HELLO_OCTETS_MAX;

/// How HTTP/2 begins (RFC 9113 §3.4).
pub(crate) const HTTP2: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// First octet of a TLS connection.
pub(crate) const TLS: u8 = 22;

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
    match octets {
        [] | [TLS] => Ok(Opening::Partial),
        [TLS, 3, ..] => Ok(match hello::read(octets)? {
            Hello::Partial => Opening::Partial,
            Hello::Whole(name) => Opening::Tls(name),
        }),
        // SSL 2's form of a first message, which old servers take for TLS (RFC 5246 §E.2): it has no names.
        [high, ..] if high & 0x80 != 0 => Ok(match octets {
            [_, _, 1, 3, ..] => Opening::Tls(None),
            [_] | [_, _] | [_, _, 1] => Opening::Partial,
            _ => Opening::Other,
        }),
        _ if HTTP2.starts_with(octets) && octets.len() < HTTP2.len() => Ok(Opening::Partial),
        _ if octets.starts_with(HTTP2) => Ok(Opening::Http2),
        _ => text(octets),
    }
}

/// Whether a line of text is the first of a request (RFC 9112 §3), also for servers that forgive blanks and empty lines
/// before it.
fn text(octets: &[u8]) -> Result<Opening, Malformed> {
    let from = octets.iter().position(|octet| !b"\r\n \t".contains(octet));
    let line = from.map_or(&[][..], |from| &octets[from..]);
    let method = line.iter().take_while(|octet| is_token(**octet)).count();
    let partial = if octets.len() < OPENING_OCTETS_MAX { Ok(Opening::Partial) } else { Err(Malformed) };
    match line.get(method) {
        None => return partial,
        Some(b' ' | b'\t') if method > 0 => {}
        Some(_) => return Ok(Opening::Other),
    }
    let rest = &line[method..];
    let end = rest.iter().position(|octet| *octet == b'\n');
    let target = &rest[..end.unwrap_or(rest.len())];
    if target.iter().any(|octet| octet.is_ascii_control() && !b"\t\r".contains(octet)) {
        return Ok(Opening::Other);
    }
    let target = target.trim_ascii();
    let has_version = target.windows(5).any(|five| five.eq_ignore_ascii_case(b"HTTP/"));
    // HTTP/0.9 had no version.
    let has_path = target.starts_with(b"/") || target.starts_with(b"http");
    match end {
        None => partial,
        Some(_) if has_version || has_path => Ok(Opening::Http),
        Some(_) => Ok(Opening::Other),
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
            (b"SIP \x01", Opening::Other),
            (b"\0\0\0\x08\x04\xd2\x16\x2f", Opening::Other),
            (b"\x16\x02", Opening::Other),
            (b"\x80\x2e\x01\x03\x01", Opening::Tls(None)),
            (b"\x80\x2e\x02", Opening::Other),
            ("été".as_bytes(), Opening::Other),
        ] {
            let (at, got) = decided(octets);
            assert_eq!(got, Ok(want), "{} after {at}", octets.escape_ascii());
            assert!(at > 0);
        }
        assert_eq!(read(b""), Ok(Opening::Partial));
        for undecided in [&b"GET / HTTP/1.1"[..], b"G", b"\r\n", b"\x16", b"\x16\x03\x01\0", b"PRI * HTTP/2.0\r\n"] {
            assert_eq!(read(undecided), Ok(Opening::Partial), "{}", undecided.escape_ascii());
        }
        assert_eq!(read(&vec![b'A'; OPENING_OCTETS_MAX]), Err(Malformed), "undecided for ever");
        assert_eq!(read(&[22, 3, 1, 0, 0]), Err(Malformed));
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
