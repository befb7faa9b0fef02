//! Header fields that a rule demands, and what the server gets of them.
#![expect(clippy::unwrap_used, reason = "a test ends at the first surprise")]

#[allow(dead_code, reason = "each program of this folder uses its own part")]
mod bench;

use std::{
    io::Write,
    thread,
    time::{Duration, Instant},
};

use bench::{Bench, OK, WITHIN, codes, rule};
use namegate_config::{
    l7::{HeaderMatch, HttpRule, L7, RegexText},
    reference::Limits,
};

/// Requests with `X-Limit: 1`.
fn limited() -> Limits {
    let headers = vec![HeaderMatch { name: "x-limit".into(), value: Some("1".into()) }];
    let method = Some(RegexText::new("GET|POST").unwrap());
    rule(L7::Http(vec![HttpRule { method, headers, ..HttpRule::default() }]))
}

#[test]
fn a_demanded_field_reaches_the_server_as_it_was_judged() {
    let bench = Bench::new(limited(), OK);
    for (what, fields, want) in [
        ("the field", &b"X-Limit: 1\r\n"[..], "200"),
        ("in capitals", b"X-LIMIT: 1\r\n", "200"),
        ("with blanks around its value", b"X-Limit: \t1 \t\r\n", "200"),
        ("no field", b"", "403"),
        ("another value", b"X-Limit: 2\r\n", "403"),
        ("no value", b"X-Limit:\r\n", "403"),
        ("twice", b"X-Limit: 1\r\nX-Limit: 1\r\n", "403"),
        ("another one before", b"X-Limit: 2\r\nX-Limit: 1\r\n", "403"),
        ("another one behind", b"X-Limit: 1\r\nX-Limit: 2\r\n", "403"),
        ("a list", b"X-Limit: 1, 2\r\n", "403"),
        ("a look-alike beside it", b"X-Limit: 1\r\nX_Limit: 2\r\n", "403"),
        ("a look-alike alone", b"X_Limit: 1\r\n", "403"),
        ("removed by Connection", b"X-Limit: 1\r\nConnection: X-Limit\r\n", "403"),
        ("removed by Connection in a list", b"X-Limit: 1\r\nConnection: keep-alive , x-LIMIT\r\n", "403"),
        ("removed by a second Connection", b"X-Limit: 1\r\nConnection: a\r\nConnection: x-limit\r\n", "403"),
        ("a look-alike that Connection removes", b"X-Limit: 1\r\nX_Limit: 2\r\nConnection: x_limit\r\n", "200"),
        ("Connection names Host", b"X-Limit: 1\r\nConnection: Host\r\n", "400"),
        ("Connection is no text", b"X-Limit: 1\r\nConnection: \xe9, x-limit\r\n", "400"),
        ("folded", b"X-Limit:\r\n 1\r\n", "400"),
        ("a folded end", b"X-Limit: 1\r\n ,2\r\n", "400"),
        ("a blank before the colon", b"X-Limit : 1\r\n", "400"),
        ("a no-break space behind", b"X-Limit: 1\xa0\r\n", "403"),
        ("a byte beyond ASCII", b"X-Limit: \xb9\r\n", "403"),
        ("a vertical tab", b"X-Limit: 1\x0b\r\n", "400"),
        ("another method", b"X-Limit: 1\r\nX-HTTP-Method-Override: DELETE\r\n", "403"),
        ("an allowed other method", b"X-Limit: 1\r\nX-HTTP-Method-Override: POST\r\n", "200"),
    ] {
        let before = bench.seen().len();
        let request = [b"GET / HTTP/1.1\r\nHost: a.io\r\n", fields, b"\r\n"].concat();
        let heard = bench.ask(&request);
        assert_eq!(codes(&heard), [want], "{what}: {heard}");
        let seen = bench.seen()[before..].to_ascii_lowercase();
        let limits: Vec<&str> = seen.lines().filter(|line| line.replace('_', "-").starts_with("x-limit")).collect();
        assert_eq!(limits.len(), usize::from(want == "200"), "{what}: {seen}");
        assert!(limits.iter().all(|limit| limit.trim_end().ends_with(": 1")), "{what}: {seen}");
    }
}

#[test]
fn bytes_beyond_ascii_are_compared_as_they_are() {
    for (wanted, sent, want) in
        [("\u{e9}", &b"\xc3\xa9"[..], "200"), ("\u{e9}", b"\xe9", "403"), ("\u{fffd}", b"\xff", "403")]
    {
        let headers = vec![HeaderMatch { name: "x-limit".into(), value: Some(wanted.into()) }];
        let bench = Bench::new(rule(L7::Http(vec![HttpRule { headers, ..HttpRule::default() }])), OK);
        let heard = bench.ask(&[b"GET / HTTP/1.1\r\nHost: a.io\r\nX-Limit: ", sent, b"\r\n\r\n"].concat());
        assert_eq!(codes(&heard), [want], "{wanted} {sent:?}: {heard}");
    }
}

/// Some servers take trailers for fields: where a rule demands fields, none are passed on.
#[test]
fn trailers_do_not_count_and_reach_no_server_where_a_rule_demands_fields() {
    let bench = Bench::new(limited(), OK);
    let post = |fields: &str| {
        format!(
            "POST / HTTP/1.1\r\nHost: a.io\r\n{fields}TE: trailers\r\nTrailer: X-Limit\r\nTransfer-Encoding: chunked\r\n\r\n\
             2\r\nhi\r\n0\r\nX-Limit: 1\r\n\r\n"
        )
    };
    assert_eq!(codes(&bench.ask(post("").as_bytes())), ["403"]);
    assert_eq!(bench.seen(), "");
    // A server that answers ahead of the body's end would end the reading of it.
    let bench = Bench::new(limited(), b"");
    let mut stream = bench.connect();
    stream.write_all(post("X-Limit: 1\r\n").as_bytes()).unwrap();
    let started = Instant::now();
    while !bench.seen().ends_with("hi\r\n0\r\n\r\n") {
        assert!(started.elapsed() < WITHIN, "{}", bench.seen());
        thread::sleep(Duration::from_millis(1));
    }
    assert_eq!(bench.seen().to_ascii_lowercase().matches("x-limit: 1").count(), 1, "{}", bench.seen());
}
