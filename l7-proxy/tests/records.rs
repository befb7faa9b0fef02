//! What is on record of requests whose client does not wait for the answer: the server may have got them.
#![expect(clippy::unwrap_used, reason = "a test ends at the first surprise")]
#![expect(dead_code, reason = "other tests need more of the bench")]

mod bench;

use std::{
    io::Write,
    net::TcpStream,
    thread,
    time::{Duration, Instant},
};

use bench::{Bench, WITHIN, open};
use namegate_l7_proxy::{Access, AccessVerdict, What};

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// Types of frames (RFC 9113 §6).
const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;

fn frame(kind: u8, flags: u8, stream: u8, payload: &[u8]) -> Vec<u8> {
    let length = u8::try_from(payload.len()).unwrap();
    [&[0, 0, length, kind, flags, 0, 0, 0, stream], payload].concat()
}

/// The head of a request is among what a connection brought.
fn has_request(octets: &[u8]) -> bool {
    let mut rest = octets.strip_prefix(PREFACE).unwrap_or_default();
    while let [high, middle, low, kind, after @ ..] = rest {
        if *kind == HEADERS {
            return true;
        }
        let length = usize::from(*high) << 16 | usize::from(*middle) << 8 | usize::from(*low);
        rest = after.get(5 + length..).unwrap_or_default();
    }
    false
}

fn wait(what: &str, is_so: impl Fn() -> bool) {
    let began = Instant::now();
    while !is_so() {
        assert!(began.elapsed() < WITHIN, "{what}");
        thread::sleep(Duration::from_millis(1));
    }
}

/// Asks a server that never answers, goes once it has got the request, and looks for what is on record.
fn check(go: impl FnOnce(TcpStream)) {
    let bench = Bench::new(open(), b"");
    // GET, http, "/open", ":authority: a" (RFC 7541 §6).
    let fields = [&[0x82, 0x86, 0x04, 0x05][..], b"/open", &[0x41, 0x01, b'a']].concat();
    let mut stream = bench.connect();
    stream.write_all(&[PREFACE, &frame(SETTINGS, 0, 0, &[]), &frame(HEADERS, 5, 1, &fields)].concat()).unwrap();
    wait("the server gets the request", || bench.seen.lock().unwrap().iter().any(|octets| has_request(octets)));
    go(stream);
    wait("the request is on record", || !bench.rules.records.lock().unwrap().is_empty());
    let records = bench.rules.records.lock().unwrap().clone();
    let [Access { verdict: AccessVerdict::Allowed, what: What::Http { facts, code: 0, .. }, .. }] = &records[..] else {
        panic!("{records:?}");
    };
    assert_eq!(facts.path, "/open");
}

#[test]
fn a_client_that_closes_its_connection() {
    check(drop);
}

#[test]
fn a_client_that_resets_its_stream() {
    check(|mut stream| {
        stream.write_all(&frame(RST_STREAM, 0, 1, &[0, 0, 0, 8])).unwrap();
        // The connection stays for as long as the proxy may look at the stream.
        thread::spawn(move || {
            thread::sleep(WITHIN);
            drop(stream);
        });
    });
}
