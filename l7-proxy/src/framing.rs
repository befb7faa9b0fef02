//! Where the requests of an HTTP/1 connection begin and end, read beside hyper, which shows nothing of two things: a length
//! beside a coding (RFC 9112 §6.3), and a fragment in the request target (RFC 9112 §3.2). Both are refused.

use std::sync::{Arc, OnceLock};

use crate::head::{BROKEN_BODY, FRAGMENT, Refused, TWO_ENDS};

/// Octets kept of a line: enough for the names and values that count.
const LINE_OCTETS_MAX: usize = 64;

/// Hexadecimal digits of the size of a chunk: as many as a number of 64 bits has.
const SIZE_DIGITS_MAX: usize = 16;

/// The number of the first request of a connection that is refused, and why; the first request is 1.
#[derive(Clone, Debug, Default)]
pub(crate) struct Doubtful(Arc<OnceLock<(u64, Refused)>>);

impl Doubtful {
    /// Why the request of this number is refused: it is that one, or comes after it.
    pub(crate) fn refuses(&self, number: u64) -> Option<Refused> {
        self.0.get().filter(|(first, _)| number >= *first).map(|(_, refused)| *refused)
    }
}

/// Follows the octets of one connection.
#[derive(Debug)]
pub(crate) struct Framing {
    state: State,
    line: Vec<u8>,
    requests: u64,
    length: Option<u64>,
    is_coded: bool,
    has_fragment: bool,
    doubtful: Doubtful,
}

/// What the next octets are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// A request line, or an empty line before it.
    Start,
    /// A header field, or the end of the head.
    Field,
    /// So many octets of a body.
    Body(u64),
    /// The size of a chunk.
    Size,
    /// So many octets of a chunk, and of the end of its line.
    Chunk(u64),
    /// A trailer field, or the end of the body.
    Trailer,
    /// Nothing that can be followed: hyper refuses it too, or ends the connection.
    Lost,
}

impl Framing {
    pub(crate) fn new(doubtful: Doubtful) -> Self {
        Self {
            state: State::Start,
            line: Vec::new(),
            requests: 0,
            length: None,
            is_coded: false,
            has_fragment: false,
            doubtful,
        }
    }

    /// Takes the next octets. To be called before hyper gets them.
    pub(crate) fn feed(&mut self, mut octets: &[u8]) {
        while !octets.is_empty() && self.state != State::Lost {
            if let State::Body(left) | State::Chunk(left) = self.state {
                let count = usize::try_from(left).map_or(octets.len(), |left| left.min(octets.len()));
                octets = &octets[count..];
                self.state = self.after_octets(left - count as u64);
                continue;
            }
            let end = octets.iter().position(|octet| *octet == b'\n');
            let part = &octets[..end.unwrap_or(octets.len())];
            self.has_fragment |= self.state == State::Start && part.contains(&b'#');
            let room = LINE_OCTETS_MAX - self.line.len();
            self.line.extend_from_slice(&part[..part.len().min(room)]);
            octets = &octets[end.map_or(octets.len(), |at| at + 1)..];
            if end.is_some() {
                self.state = self.after_line();
                self.line.clear();
            }
        }
    }

    fn after_octets(&self, left: u64) -> State {
        match (self.state, left) {
            (State::Body(_), 0) => State::Start,
            (State::Body(_), _) => State::Body(left),
            (_, 0) => State::Size,
            (_, _) => State::Chunk(left),
        }
    }

    fn after_line(&mut self) -> State {
        let line = self.line.strip_suffix(b"\r").unwrap_or(&self.line);
        match self.state {
            State::Start | State::Trailer if line.is_empty() => State::Start,
            State::Start => {
                self.requests += 1;
                (self.length, self.is_coded) = (None, false);
                if self.has_fragment { self.refuse(self.requests, FRAGMENT) } else { State::Field }
            }
            State::Field if line.is_empty() => self.after_head(),
            State::Field => {
                let at = line.iter().position(|octet| *octet == b':').unwrap_or(line.len());
                let (name, value) = line.split_at(at);
                if name.eq_ignore_ascii_case(b"transfer-encoding") {
                    self.is_coded = true;
                } else if name.eq_ignore_ascii_case(b"content-length") {
                    let value = std::str::from_utf8(value).unwrap_or_default();
                    // What is no number is refused by hyper.
                    self.length = Some(value.trim_start_matches(':').trim().parse().unwrap_or(0));
                }
                State::Field
            }
            State::Size => match size(line) {
                Some(0) => State::Trailer,
                Some(octets) => State::Chunk(octets.saturating_add(2)),
                None => self.refuse(self.requests + 1, BROKEN_BODY),
            },
            state => state,
        }
    }

    /// Has the request of this number refused, and all that come after it.
    fn refuse(&self, number: u64, refused: Refused) -> State {
        // The first one stands: hyper reads no further.
        let _ = self.doubtful.0.set((number, refused));
        State::Lost
    }

    fn after_head(&self) -> State {
        match (self.is_coded, self.length) {
            (true, Some(_)) => self.refuse(self.requests, TWO_ENDS),
            (true, None) => State::Size,
            (false, None | Some(0)) => State::Start,
            (false, Some(length)) => State::Body(length),
        }
    }
}

/// The number in front of extensions (RFC 9112 §7.1).
fn size(line: &[u8]) -> Option<u64> {
    let digits = line.iter().position(|octet| !octet.is_ascii_hexdigit()).unwrap_or(line.len());
    if digits > SIZE_DIGITS_MAX || !matches!(line.get(digits), None | Some(b';' | b' ' | b'\t')) {
        return None;
    }
    u64::from_str_radix(std::str::from_utf8(&line[..digits]).ok()?, 16).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The number of the first doubtful request, with the octets in pieces of every size.
    fn doubtful(octets: &str) -> Option<u64> {
        let mut found = Vec::new();
        for piece in 1..=octets.len() {
            let doubtful = Doubtful::default();
            let mut framing = Framing::new(doubtful.clone());
            octets.as_bytes().chunks(piece).for_each(|part| framing.feed(part));
            assert!(framing.line.len() <= LINE_OCTETS_MAX);
            found.push((1..10).find(|number| doubtful.refuses(*number).is_some()));
        }
        found.dedup();
        assert_eq!(found.len(), 1, "{octets:?}: {found:?}");
        found[0]
    }

    #[test]
    fn what_hyper_hides_is_seen_behind_any_body() {
        let both = "POST / HTTP/1.1\r\ncontent-LENGTH: 4\r\nTransfer-Encoding: chunked\r\n\r\n";
        let turned = "POST / HTTP/1.1\nTransfer-Encoding: chunked\nHost: a\nContent-Length:4\n\n";
        let get = "GET / HTTP/1.1\r\nHost: a\r\n\r\n";
        let body = format!("POST / HTTP/1.1\r\nContent-Length: {}\r\n\r\n{both}", both.len());
        let chunks = format!(
            "POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n{:X};a=b\r\n{both}\r\n0\r\nX: y\r\n\r\n",
            both.len()
        );
        let long = format!("GET / HTTP/1.1\r\nX: {}\r\n\r\n", "x".repeat(300));
        let sized = |size: &str| {
            format!("POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n{size}\r\nhello\r\n0\r\n\r\n{get}")
        };
        for (octets, want) in [
            (both.to_owned(), Some(1)),
            (turned.to_owned(), Some(1)),
            (get.repeat(3) + both, Some(4)),
            (format!("\r\n{get}\r\n{turned}"), Some(2)),
            (body.clone(), None),
            (body + both, Some(2)),
            (chunks.clone(), None),
            (chunks + turned, Some(2)),
            (long + both, Some(2)),
            (get.replace("/ ", "/a#b "), Some(1)),
            (get.to_owned() + &get.replace("/ ", &format!("/{}#b ", "a".repeat(300))), Some(2)),
            (get.replace("Host: a", "Host: a\r\nX: #"), None),
            (sized("5"), None),
            (sized("00000000000005 ;a=#"), None),
            (sized(&("0".repeat(70) + "5")), Some(2)),
            (sized("0x5"), Some(2)),
            (sized("+5"), Some(2)),
            ("\u{16}\u{3}\n:\n\n\n".to_owned(), None),
            ("POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n".to_owned() + both, Some(2)),
        ] {
            assert_eq!(doubtful(&octets), want, "{octets:?}");
        }
    }
}
