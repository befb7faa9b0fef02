//! Where the requests of an HTTP/1 connection begin and end, read beside hyper. Of a length and a coding hyper keeps the
//! coding alone and shows nothing of the length; here it is seen, so that such a request can be refused (RFC 9112 §6.3).

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};

/// Octets kept of a line: enough for the names and values that count.
const LINE_OCTETS_MAX: usize = 64;

/// The number of the first request of a connection that has both a length and a coding; the first request is 1.
#[derive(Clone, Debug)]
pub(crate) struct Doubtful(Arc<AtomicU64>);

impl Default for Doubtful {
    fn default() -> Self {
        Self(Arc::new(AtomicU64::new(u64::MAX)))
    }
}

impl Doubtful {
    /// Whether the request of this number is one, or comes after one.
    pub(crate) fn has(&self, number: u64) -> bool {
        number >= self.0.load(Ordering::Relaxed)
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
        Self { state: State::Start, line: Vec::new(), requests: 0, length: None, is_coded: false, doubtful }
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
                State::Field
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
                None => State::Lost,
            },
            state => state,
        }
    }

    fn after_head(&self) -> State {
        match (self.is_coded, self.length) {
            (true, Some(_)) => {
                self.doubtful.0.store(self.requests, Ordering::Relaxed);
                State::Lost
            }
            (true, None) => State::Size,
            (false, None | Some(0)) => State::Start,
            (false, Some(length)) => State::Body(length),
        }
    }
}

/// The number in front of extensions (RFC 9112 §7.1).
fn size(line: &[u8]) -> Option<u64> {
    let digits = line.iter().position(|octet| !octet.is_ascii_hexdigit()).unwrap_or(line.len());
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
            found.push((1..10).find(|number| doubtful.has(*number)));
        }
        found.dedup();
        assert_eq!(found.len(), 1, "{octets:?}: {found:?}");
        found[0]
    }

    #[test]
    fn a_length_beside_a_coding_is_seen_behind_any_body() {
        let both = "POST / HTTP/1.1\r\ncontent-LENGTH: 4\r\nTransfer-Encoding: chunked\r\n\r\n";
        let turned = "POST / HTTP/1.1\nTransfer-Encoding: chunked\nHost: a\nContent-Length:4\n\n";
        let get = "GET / HTTP/1.1\r\nHost: a\r\n\r\n";
        let body = format!("POST / HTTP/1.1\r\nContent-Length: {}\r\n\r\n{both}", both.len());
        let chunks = format!(
            "POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n{:X};a=b\r\n{both}\r\n0\r\nX: y\r\n\r\n",
            both.len()
        );
        let long = format!("GET / HTTP/1.1\r\nX: {}\r\n\r\n", "x".repeat(300));
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
            ("\u{16}\u{3}\n:\n\n\n".to_owned(), None),
            ("POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n".to_owned() + both, None),
        ] {
            assert_eq!(doubtful(&octets), want, "{octets:?}");
        }
    }
}
