//! The proxy between raw octets of a client and a server that notes what reaches it.
#![expect(clippy::unwrap_used, reason = "a test ends at the first surprise")]

mod bench;
#[expect(dead_code, reason = "each program of this folder uses its own part")]
mod common;

use std::{
    io::{Read, Write},
    net::{Shutdown, TcpListener, TcpStream},
    path::Path,
    sync::{Arc, Mutex},
    thread,
    time::Duration,
};

use bench::{Bench, OK, Rules, WITHIN, codes, open, rule};
use common::Server;
use namegate_config::{l7::L7, name::NamePattern, reference::Limits, rule::Direction};
use namegate_l7_proxy::{Access, AccessVerdict, Config, Proxy, What};

/// What it is, the octets, and the codes of the answers.
type Case = (&'static str, String, &'static [&'static str]);

/// What is not allowed never reaches the server, nor does a request with two ends.
fn check(cases: Vec<Case>) {
    let bench = Bench::new(open(), OK);
    for (what, octets, want) in cases {
        let heard = bench.ask(octets.as_bytes());
        assert_eq!(codes(&heard), want, "{what}: {heard}");
        assert!(!bench.seen().contains("/shut"), "{what}: {}", bench.seen());
    }
    assert!(!bench.seen().contains(".."), "{}", bench.seen());
    for seen in bench.seen.lock().unwrap().iter() {
        let seen = String::from_utf8_lossy(seen).to_ascii_lowercase();
        assert!(!(seen.contains("content-length") && seen.contains("transfer-encoding")), "{seen}");
    }
}

fn get(target: &str) -> String {
    format!("GET {target} HTTP/1.1\r\nHost: a\r\n\r\n")
}

#[test]
fn heads_that_can_be_read_in_two_ways_are_refused() {
    let long = format!("GET /open HTTP/1.1\r\nHost: a\r\nX: {}\r\n\r\n", "x".repeat(70_000));
    let many = format!("GET /open HTTP/1.1\r\nHost: a\r\n{}\r\n", "X: y\r\n".repeat(200));
    let target = format!("GET /open{} HTTP/1.1\r\nHost: a\r\n\r\n", "x".repeat(70_000));
    check(vec![
        ("plain", get("/open"), &["200"]),
        ("two in one packet", get("/open") + &get("/shut"), &["200", "403"]),
        ("absolute form", get("http://a/open"), &["200"]),
        ("absolute form of another host", get("http://b/open"), &["400"]),
        ("absolute form of another scheme", get("https://a/open"), &["400"]),
        ("dot segments out", get("/open/../shut"), &["403"]),
        ("encoded dot segments out", get("/open/%2e%2e/shut"), &["403"]),
        ("half encoded dot segments out", get("/open/.%2E/shut"), &["403"]),
        ("dot segments in", get("/shut/../open"), &["200"]),
        ("doubled slashes", get("//open"), &["200"]),
        ("encoded letters", get("/%6fpen"), &["200"]),
        ("encoded slash", get("/open%2f..%2fshut"), &["400"]),
        ("backslash", get("/open/..\\shut"), &["400"]),
        ("encoded backslash", get("/open/..%5cshut"), &["400"]),
        ("encoded NUL", get("/open%00"), &["400"]),
        ("broken encoding", get("/open%4"), &["400"]),
        ("fragment", get("/shut#/open"), &["400"]),
        ("fragment behind what is allowed", get("/open#/../shut"), &["400"]),
        ("fragment in a query", get("/open?#/../shut"), &["400"]),
        ("fragment of an absolute form", get("http://a/open#/../shut"), &["400"]),
        ("a fragment and then a request", get("/open#") + &get("/open"), &["400"]),
        ("lower-case method", get("/open").replace("GET", "get"), &["403"]),
        ("another method", get("/open").replace("GET", "DELETE"), &["403"]),
        ("asterisk", get("*"), &["400"]),
        ("CONNECT", "CONNECT a:443 HTTP/1.1\r\nHost: a:443\r\n\r\n".into(), &["405"]),
        ("no Host", "GET /open HTTP/1.1\r\n\r\n".into(), &["400"]),
        ("two Hosts", get("/open").replace("Host: a", "Host: a\r\nHost: b"), &["400"]),
        ("two equal Hosts", get("/open").replace("Host: a", "Host: a\r\nHost: a"), &["400"]),
        ("Host with a path", get("/open").replace("Host: a", "Host: a/b"), &["400"]),
        ("folded field", get("/open").replace("Host: a", "Host: a\r\nX: y\r\n z"), &["400"]),
        ("space before the colon", get("/open").replace("Host: a", "Host: a\r\nX : y"), &["400"]),
        ("bare CR in a field", get("/open").replace("Host: a", "Host: a\r\nX: y\rz"), &["400"]),
        ("NUL in a field", get("/open").replace("Host: a", "Host: a\r\nX: y\0z"), &["400"]),
        ("another version", get("/open").replace("HTTP/1.1", "HTTP/1.2"), &["400"]),
        ("no version", "GET /open\r\n\r\n".into(), &["400"]),
        ("not HTTP", "SSH-2.0-OpenSSH\r\n".into(), &["400"]),
        ("TLS", "\x16\x03\x01\0\x05\x01\0\0\x01\0".into(), &["400"]),
        ("a long field", long, &["431"]),
        ("many fields", many, &["431"]),
        ("a long target", target, &["431"]),
    ]);
}

#[test]
fn bodies_have_one_end() {
    let post = |fields: &str, body: &str| format!("POST /open HTTP/1.1\r\nHost: a\r\n{fields}\r\n{body}");
    let smuggled = "GET /shut HTTP/1.1\r\nHost: a\r\n\r\n";
    check(vec![
        ("two lengths", post("Content-Length: 0\r\nContent-Length: 5\r\n", smuggled), &["400"]),
        ("a list of lengths", post("Content-Length: 0, 5\r\n", smuggled), &["400"]),
        ("a signed length", post("Content-Length: +0\r\n", ""), &["400"]),
        ("a negative length", post("Content-Length: -1\r\n", ""), &["400"]),
        (
            "length and chunks",
            post("Content-Length: 4\r\nTransfer-Encoding: chunked\r\n", "0\r\n\r\n") + smuggled,
            &["400"],
        ),
        (
            "chunks and length",
            post("Transfer-Encoding: chunked\r\nContent-Length: 4\r\n", "0\r\n\r\n") + smuggled,
            &["400"],
        ),
        (
            "chunks and length in the third request",
            get("/open")
                + &post("Transfer-Encoding: chunked\r\n", "2\r\nhi\r\n0\r\n\r\n")
                + &post("Transfer-Encoding: chunked\r\nContent-Length: 4\r\n", "0\r\n\r\n"),
            &["200", "200", "400"],
        ),
        ("another coding", post("Transfer-Encoding: gzip\r\n", ""), &["400"]),
        ("chunked twice", post("Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n", "0\r\n\r\n"), &["400"]),
        ("hidden coding", post("Transfer-Encoding: xchunked\r\n", ""), &["400"]),
        ("chunked in HTTP/1.0", post("Transfer-Encoding: chunked\r\n", "0\r\n\r\n").replace("1.1", "1.0"), &["400"]),
        ("body and then a request", post("Content-Length: 2\r\n", "hi") + smuggled, &["200", "403"]),
        (
            "chunks and then a request",
            post("Transfer-Encoding: chunked\r\n", "2\r\nhi\r\n0\r\n\r\n") + smuggled,
            &["200", "403"],
        ),
        ("an unknown expectation", post("Expect: nothing\r\nContent-Length: 0\r\n", ""), &["417"]),
    ]);
}

#[test]
fn denials_say_why_and_are_recorded() {
    let bench = Bench::new(open(), OK);
    let heard = bench.ask(b"GET /shut?a=1 HTTP/1.1\r\nHost: a.io:80\r\n\r\n");
    assert!(heard.starts_with("HTTP/1.1 403 "), "{heard}");
    assert!(heard.contains("\r\nx-namegate-reason: a/b ingress[0]\r\n"), "{heard}");
    assert!(heard.ends_with("\r\n\r\nAccess denied\n"), "{heard}");
    let records = bench.rules.records.lock().unwrap().clone();
    let [Access { verdict: AccessVerdict::Denied, direction: Direction::Ingress, rule: Some(rule), what, .. }] =
        &records[..]
    else {
        panic!("{records:?}");
    };
    assert_eq!(rule.name, "b");
    let What::Http { facts, code: 403, .. } = what else { panic!("{what:?}") };
    assert_eq!((&*facts.method, &*facts.path, &*facts.host), ("GET", "/shut?a=1", "a.io:80"));
}

#[test]
fn fields_about_the_connection_stay_on_their_side() {
    let bench = Bench::new(
        open(),
        b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nKeep-Alive: x\r\nConnection: X-Hop\r\nX-Hop: 1\r\n\r\n",
    );
    let heard = bench.ask(
        b"GET /open HTTP/1.1\r\nHost: a\r\nConnection: keep-alive, X-Mine\r\nX-Mine: 1\r\nTE: trailers\r\nUpgrade: h2c\r\n\
          HTTP2-Settings: AAMAAABkAAQAoAAAAAIAAAAA\r\nX-Kept: 2\r\n\r\n",
    );
    let (heard, seen) = (heard.to_ascii_lowercase(), bench.seen().to_ascii_lowercase());
    assert!(!heard.contains("x-hop") && heard.starts_with("http/1.1 200"), "{heard}");
    assert!(!seen.contains("x-mine") && !seen.contains("upgrade") && seen.contains("x-kept: 2"), "{seen}");
    assert!(seen.contains("te: trailers"), "{seen}");
}

/// The wish for HTTP/2 (RFC 7540 §3.2) is not passed on: what would follow are requests in a form that nobody reads.
#[test]
fn a_wish_for_http2_is_answered_as_http1_and_does_not_reach_the_server() {
    const SETTINGS: &str = "HTTP2-Settings: AAMAAABkAAQAoAAAAAIAAAAA\r\n";
    for wish in [
        "Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\n",
        "Connection: upgrade\r\nUpgrade: h2c\r\n",
        "Connection: Upgrade, HTTP2-Settings\r\nUpgrade: H2C\r\n",
        "Connection: Upgrade\r\nUpgrade: h2c, websocket\r\n",
        "Connection: Upgrade\r\nUpgrade: websocket\r\nUpgrade: h2c\r\n",
        "Upgrade: h2c\r\n",
        "",
    ] {
        let bench = Bench::new(open(), OK);
        let ask = |path: &str| format!("GET {path} HTTP/1.1\r\nHost: a\r\n{wish}{SETTINGS}X-Kept: 2\r\n\r\n");
        let heard = bench.ask((ask("/open") + &ask("/shut") + &get("/open/more")).as_bytes());
        assert_eq!(codes(&heard), ["200", "403", "200"], "{wish:?}: each is judged: {heard}");
        assert!(!heard.contains("101"), "{heard}");
        let seen = bench.seen().to_ascii_lowercase();
        assert!(seen.contains("get /open http/1.1\r\n") && seen.contains("get /open/more "), "{wish:?}: {seen}");
        assert!(seen.contains("x-kept: 2") && !seen.contains("/shut"), "{wish:?}: {seen}");
        assert!(!["upgrade", "h2c", "http2-settings"].iter().any(|word| seen.contains(word)), "{wish:?}: {seen}");
    }
    // A server that changes all the same.
    let bench = Bench::new(open(), b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: h2c\r\n\r\n");
    let wish = format!(
        "GET /open HTTP/1.1\r\nHost: a\r\nConnection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\n{SETTINGS}\r\n"
    );
    let heard = bench.ask(wish.as_bytes());
    assert_eq!(codes(&heard), ["502"], "{heard}");
}

/// A handshake (RFC 6455 §1.3).
const WEBSOCKET: &str = "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\
                         Sec-WebSocket-Version: 13\r\n";

#[test]
fn a_websocket_passes_when_both_ends_want_it() {
    let bench = Bench::new(
        open(),
        b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
          Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\nhello",
    );
    let mut stream = bench.connect();
    let handshake = format!("GET /open HTTP/1.1\r\nHost: a\r\n{WEBSOCKET}\r\n");
    stream.write_all(handshake.as_bytes()).unwrap();
    let mut heard = String::new();
    let mut octets = [0; 512];
    while !heard.ends_with("hello") {
        let count = stream.read(&mut octets).unwrap();
        assert!(count > 0, "{heard}");
        heard.push_str(std::str::from_utf8(&octets[..count]).unwrap());
    }
    assert!(heard.starts_with("HTTP/1.1 101 "), "{heard}");
    stream.write_all(b"raw octets").unwrap();
    while !bench.seen().contains("raw octets") {
        thread::yield_now();
    }
    // Unasked, it is the server's mistake.
    let heard = bench.ask(b"GET /open HTTP/1.1\r\nHost: a\r\n\r\n");
    assert_eq!(codes(&heard), ["502"], "{heard}");
}

/// A tunnel carries requests that nobody judges: it opens for the one answer to the handshake that was asked for.
#[test]
fn only_the_answer_to_its_handshake_opens_a_tunnel() {
    const ACCEPT: &str = "Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n";
    let switching = |fields: &str| format!("HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\n{fields}\r\n");
    let websocket = format!("Upgrade: websocket\r\n{ACCEPT}");
    for (what, asked, fields) in [
        ("unasked", "", &websocket),
        ("no answer to the key", WEBSOCKET, &"Upgrade: websocket\r\n".to_owned()),
        ("the answer to another key", WEBSOCKET, &websocket.replace("s3pP", "S3pP")),
        ("another protocol", WEBSOCKET, &format!("Upgrade: h2c\r\n{ACCEPT}")),
        ("two protocols", WEBSOCKET, &format!("Upgrade: h2c\r\n{websocket}")),
        ("no protocol", WEBSOCKET, &ACCEPT.to_owned()),
        ("without a key", "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n", &websocket),
        ("another version", &WEBSOCKET.replace("13", "8"), &websocket),
        ("another protocol asked for", &WEBSOCKET.replace("websocket", "h2c"), &websocket),
    ] {
        let reply: &'static str = Box::leak(switching(fields).into_boxed_str());
        let bench = Bench::new(open(), reply.as_bytes());
        let heard = bench.ask((format!("GET /open HTTP/1.1\r\nHost: a\r\n{asked}\r\n") + &get("/shut")).as_bytes());
        assert!(!heard.contains("HTTP/1.1 101") && heard.starts_with("HTTP/1.1 502"), "{what}: {heard}");
        assert!(!bench.seen().contains("/shut"), "{what}: {}", bench.seen());
    }
    let bench = Bench::new(open(), OK);
    for body in ["Content-Length: 30\r\n", "Transfer-Encoding: chunked\r\n"] {
        let heard =
            bench.ask((format!("GET /open HTTP/1.1\r\nHost: a\r\n{WEBSOCKET}{body}\r\n") + &get("/shut")).as_bytes());
        assert_eq!(codes(&heard), ["400"], "a body behind a handshake: {heard}");
    }
    assert_eq!(bench.seen(), "");
    // A server that does not change goes on with HTTP: each request is judged.
    let heard = bench.ask((format!("GET /open HTTP/1.1\r\nHost: a\r\n{WEBSOCKET}\r\n") + &get("/shut")).as_bytes());
    assert_eq!(codes(&heard), ["200", "403"], "{heard}");
}

#[test]
fn other_answers_ahead_of_the_response_end_at_the_proxy() {
    for ahead in ["100 Continue", "102 Processing", "103 Early Hints\r\nLink: </x>"] {
        let reply = format!("HTTP/1.1 {ahead}\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok");
        let bench = Bench::new(open(), Box::leak(reply.into_boxed_str()).as_bytes());
        let heard = bench.ask(get("/open").as_bytes());
        assert_eq!(codes(&heard), ["200"], "{ahead}: {heard}");
    }
}

#[test]
fn heads_of_responses_have_a_number_of_fields() {
    for (fields, want) in [(120, "200"), (200, "502")] {
        let reply = format!("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n{}\r\nok", "X: y\r\n".repeat(fields));
        let bench = Bench::new(open(), Box::leak(reply.into_boxed_str()).as_bytes());
        let heard = bench.ask(get("/open").as_bytes());
        assert_eq!(codes(&heard), [want], "{fields}: {heard}");
        let failed = bench.proxy.counters().into_iter().find(|(word, _)| *word == "server_failed").unwrap().1;
        assert_eq!(failed, u64::from(want == "502"));
    }
}

/// The client's mistake is its own: 400, counted as malformed, and no failure of the server.
#[test]
fn broken_bodies_are_the_clients_mistake() {
    // It never answers: what ends the request is the body.
    let bench = Bench::new(open(), b"");
    let count = |word: &str| bench.proxy.counters().into_iter().find(|(name, _)| *name == word).unwrap().1;
    let chunked = "POST /open HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n";
    for (number, chunks) in [
        "zz\r\n",
        "0x5\r\nhello\r\n0\r\n\r\n",
        "-5\r\nhello\r\n0\r\n\r\n",
        "+5\r\nhello\r\n0\r\n\r\n",
        "fffffffffffffffff\r\nhello\r\n0\r\n\r\n",
        "5\nhello\r\n0\r\n\r\n",
        "5\rhello\r\n0\r\n\r\n",
        "5;a=\"b\nc\"\r\nhello\r\n0\r\n\r\n",
        "5\r\nhello0\r\n\r\n",
        "5\r\nhello\n0\r\n\r\n",
        "5 5\r\nhello\r\n0\r\n\r\n",
        "5,5\r\nhello\r\n0\r\n\r\n",
        "\r\n5\r\nhello\r\n0\r\n\r\n",
        "5\r\nhel",
    ]
    .into_iter()
    .enumerate()
    {
        let heard = bench.ask((chunked.to_owned() + chunks + &get("/shut")).as_bytes());
        assert_eq!(codes(&heard).first().copied().unwrap_or("400"), "400", "{chunks:?}: {heard}");
        assert!(!bench.seen().contains("/shut"), "{chunks:?}: {}", bench.seen());
        assert_eq!((count("malformed"), count("server_failed")), (number as u64 + 1, 0), "{chunks:?}: {heard}");
    }
}

#[test]
fn a_body_waits_for_the_verdict() {
    let bench = Bench::new(open(), OK);
    for (path, want) in [("/open", "HTTP/1.1 100 Continue"), ("/shut", "HTTP/1.1 403 Forbidden")] {
        let mut stream = bench.connect();
        let question = format!("POST {path} HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\nExpect: 100-continue\r\n\r\n");
        stream.write_all(question.as_bytes()).unwrap();
        let mut octets = [0; 512];
        let count = stream.read(&mut octets).unwrap();
        let heard = String::from_utf8_lossy(&octets[..count]).into_owned();
        assert!(heard.starts_with(want), "{path}: {heard}");
    }
}

#[test]
fn a_body_is_passed_on_as_it_comes_with_its_trailers() {
    // A server that answers ahead of the body's end would end the reading of it.
    let bench = Bench::new(open(), b"");
    let mut stream = bench.connect();
    let wait = |text: &str| {
        let started = std::time::Instant::now();
        while !bench.seen().to_ascii_lowercase().contains(text) {
            assert!(started.elapsed() < WITHIN, "no `{text}`: {}", bench.seen());
            thread::sleep(Duration::from_millis(1));
        }
    };
    stream.write_all(b"POST /open HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nTrailer: X-T\r\n\r\n").unwrap();
    stream.write_all(b"5\r\nhello\r\n").unwrap();
    wait("hello");
    stream.write_all(b"5\r\nworld\r\n0\r\nX-T: 1\r\n\r\n").unwrap();
    wait("world");
    wait("x-t: 1");
}

/// A server that answers below `/open/early` at once, and else once the body is whole. Its answers have a long head.
const NODE: &str = r"
    require('http').createServer((request, response) => {
        const answer = () => response.writeHead(204, {'X-Long': 'x'.repeat(15000)}).end();
        if (request.url === '/open/early') answer(); else request.resume().on('end', answer);
    }).listen(PORT, '127.0.0.1');";

/// Reads a head.
fn head(stream: &mut TcpStream) -> String {
    let (mut head, mut octet) = (Vec::new(), [0]);
    while !head.ends_with(b"\r\n\r\n") {
        stream.read_exact(&mut octet).unwrap();
        head.extend(octet);
    }
    String::from_utf8(head).unwrap().to_ascii_lowercase()
}

/// Else the next head would be read while the response still waits to be written: a client that reads nothing would have
/// heads of responses pile up.
#[test]
fn a_request_that_is_answered_before_its_end_is_the_last_of_its_connection() {
    let server = Server::start(Path::new("."), "node", &["-e", NODE]);
    let rules = Rules { limits: Arc::new(Mutex::new(open())), revision: Arc::default(), records: Arc::default() };
    let config = Config { fixed_server: Some(server.address), ..Config::default() };
    let bench = Bench { proxy: Proxy::start(&config, rules.clone()).unwrap(), rules, seen: Arc::default() };
    let allowed = || bench.proxy.counters().into_iter().find(|(word, _)| *word == "allowed").unwrap().1;
    let post = |path: &str| format!("POST {path} HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\n\r\n");
    let mut stream = bench.connect();
    for end in ["x", "x"] {
        stream.write_all((post("/open/whole") + end).as_bytes()).unwrap();
        let heard = head(&mut stream);
        assert!(heard.starts_with("http/1.1 204") && !heard.contains("\r\nconnection:"), "{}", &heard[..100]);
    }
    stream.write_all(post("/open/early").as_bytes()).unwrap();
    let heard = head(&mut stream);
    assert!(heard.contains("\r\nconnection: close\r\n"), "the connection stays: {}", &heard[..100]);
    stream.write_all(b"x").unwrap();
    assert_eq!(stream.read(&mut [0; 8]).unwrap(), 0);
    let before = allowed();
    let mut stream = bench.connect();
    for _ in 0..200 {
        let _ = stream.write_all(post("/open/early").as_bytes());
        thread::sleep(Duration::from_millis(3));
        let _ = stream.write_all(b"x");
    }
    // Where the machine is busy, some are whole before they are answered.
    assert!(allowed() < before + 100, "{} of 200", allowed() - before);
    // A denial is an answer too, also one without a body, and also where the end has come already.
    for method in ["HEAD", "POST"] {
        let heard = bench.ask((post("/shut").replace("POST", method) + "x" + &get("/open/next")).as_bytes());
        assert!(heard.starts_with("HTTP/1.1 403") && codes(&heard).len() == 1, "{method}: {heard}");
        assert!(heard.contains("\r\nconnection: close\r\n"), "{method}: {heard}");
    }
}

#[test]
fn new_rules_hold_for_the_next_request() {
    let bench = Bench::new(open(), OK);
    let mut stream = bench.connect();
    let mut ask = || {
        stream.write_all(b"GET /open HTTP/1.1\r\nHost: a\r\n\r\n").unwrap();
        let mut octets = [0; 2_048];
        let count = stream.read(&mut octets).unwrap();
        String::from_utf8_lossy(&octets[9..count.min(12)]).into_owned()
    };
    assert_eq!(ask(), "200");
    *bench.rules.limits.lock().unwrap() = Limits::Closed(None);
    *bench.rules.revision.lock().unwrap() += 1;
    assert_eq!(ask(), "403");
}

#[test]
fn a_server_that_is_not_there_is_told() {
    let rules = Rules { limits: Arc::new(Mutex::new(open())), revision: Arc::default(), records: Arc::default() };
    let gone = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let config = Config { fixed_server: Some(gone), ..Config::default() };
    let bench = Bench { proxy: Proxy::start(&config, rules.clone()).unwrap(), rules, seen: Arc::default() };
    let heard = bench.ask(b"GET /open HTTP/1.1\r\nHost: a\r\n\r\n");
    assert_eq!(codes(&heard), ["502"], "{heard}");
    bench.proxy.stop();
}

#[test]
fn http2_requests_are_judged_one_by_one() {
    let bench = Bench::new(open(), OK);
    // The preface, empty SETTINGS, and a GET of "/" on stream 1 (RFC 7541 §6.1: indexed fields, and authority "a").
    let block = [0x82, 0x84, 0x86, 0x41, 0x01, b'a'];
    let mut octets = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0".to_vec();
    octets.extend([0, 0, 6, 1, 5, 0, 0, 0, 1]);
    octets.extend(block);
    let mut stream = bench.connect();
    stream.write_all(&octets).unwrap();
    let mut heard = Vec::new();
    let mut part = [0; 1_024];
    while !String::from_utf8_lossy(&heard).contains("Access denied") {
        let count = stream.read(&mut part).unwrap();
        assert!(count > 0, "{heard:?}");
        heard.extend_from_slice(&part[..count]);
    }
    let records = bench.rules.records.lock().unwrap().clone();
    assert!(matches!(&records[..], [Access { verdict: AccessVerdict::Denied, .. }]), "{records:?}");
    assert_eq!(bench.seen(), "");
}

/// What ends a stream or the connection, or the end itself (h2spec has many more cases: `cargo xtask h2spec`).
#[test]
fn http2_that_breaks_the_protocol_reaches_nobody() {
    const HEADERS: u8 = 1;
    const RST_STREAM: u8 = 3;
    const SETTINGS: u8 = 4;
    const GOAWAY: u8 = 7;
    let frame = |kind: u8, flags: u8, stream: u8, payload: &[u8]| {
        let head = [0, 0, u8::try_from(payload.len()).unwrap(), kind, flags, 0, 0, 0, stream];
        [&head[..], payload].concat()
    };
    // A POST of "/open" (RFC 7541 §6), and a field with a name of its own.
    let post = [&[0x83, 0x86, 0x04, 0x05][..], b"/open", &[0x41, 0x01, b'a']].concat();
    let with = |name: &str, value: &str| {
        let text = |text: &str| [&[u8::try_from(text.len()).unwrap()][..], text.as_bytes()].concat();
        [&post[..], &[0], &text(name), &text(value)].concat()
    };
    let bench = Bench::new(open(), OK);
    for (what, octets) in [
        ("an even stream", frame(HEADERS, 5, 2, &post)),
        ("a body before its head", frame(0, 1, 1, b"x")),
        ("a field of the connection", frame(HEADERS, 5, 1, &with("connection", "close"))),
        ("an upper-case name", frame(HEADERS, 5, 1, &with("X-Y", "z"))),
        ("a coding", frame(HEADERS, 5, 1, &with("transfer-encoding", "chunked"))),
        ("a second path", frame(HEADERS, 5, 1, &[&post[..], &[0x04, 0x05], b"/shut"].concat())),
        ("no path", frame(HEADERS, 5, 1, &[0x83, 0x86, 0x41, 0x01, b'a'])),
        ("a promise", frame(5, 4, 1, &[&[0, 0, 0, 2][..], &post].concat())),
        ("half a setting", frame(SETTINGS, 0, 0, &[0; 5])),
        ("an index beyond the table", frame(HEADERS, 5, 1, &[0xfe])),
    ] {
        let mut stream = bench.connect();
        stream.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").unwrap();
        stream.write_all(&[frame(SETTINGS, 0, 0, &[]), octets].concat()).unwrap();
        let mut head = [0; 9];
        // The end may come by a reset.
        while stream.read_exact(&mut head).is_ok() {
            let mut payload = vec![0; usize::from(u16::from_be_bytes([head[1], head[2]]))];
            stream.read_exact(&mut payload).unwrap();
            assert_ne!(head[3], HEADERS, "{what} is answered");
            if [RST_STREAM, GOAWAY].contains(&head[3]) {
                assert_ne!(payload[payload.len().min(8) - 4..][..4], [0; 4], "{what} is no error");
                break;
            }
        }
    }
    assert_eq!(bench.seen(), "");
}

/// A `ClientHello` for a name, as one record.
fn hello(name: &str) -> Vec<u8> {
    let vector = |octets: &[u8]| [&u16::try_from(octets.len()).unwrap().to_be_bytes()[..], octets].concat();
    let sni = [&[0, 0][..], &vector(&vector(&[&[0][..], &vector(name.as_bytes())].concat()))].concat();
    let body = [&[3, 3][..], &[7; 32], &[0], &vector(&[0x13, 1]), &[1, 0], &vector(&sni)].concat();
    let length = u32::try_from(body.len()).unwrap().to_be_bytes();
    let message = [&[1][..], &length[1..], &body].concat();
    [&[22, 3, 1][..], &vector(&message)].concat()
}

#[test]
fn tls_is_passed_on_by_its_server_name() {
    let bench = Bench::new(rule(L7::ServerNames(vec![NamePattern::pattern("*.io").unwrap()])), b"");
    let good = hello("a.io");
    for cut in 1..good.len() {
        let mut stream = bench.connect();
        stream.set_nodelay(true).unwrap();
        stream.write_all(&good[..cut]).unwrap();
        stream.write_all(&good[cut..]).unwrap();
        stream.shutdown(Shutdown::Write).unwrap();
        let before = cut;
        while bench.seen.lock().unwrap().len() < before || bench.seen.lock().unwrap()[cut - 1] != good {
            thread::sleep(Duration::from_millis(1));
        }
    }
    let passed = bench.seen.lock().unwrap().len();
    for (what, octets) in [
        ("another name", hello("a.org")),
        ("an address", hello("192.0.2.1")),
        ("no TLS", b"GET / HTTP/1.1\r\nHost: a.io\r\n\r\n".to_vec()),
        ("an alert", vec![21, 3, 1, 0, 2, 1, 0]),
        ("half of it", good[..good.len() - 1].to_vec()),
    ] {
        assert_eq!(bench.ask(&octets), "", "{what}");
        assert_eq!(bench.seen.lock().unwrap().len(), passed, "{what} reaches the server");
    }
}

#[test]
fn its_own_address_is_no_server() {
    let rules = Rules { limits: Arc::new(Mutex::new(open())), revision: Arc::default(), records: Arc::default() };
    let proxy = Proxy::start(&Config::default(), rules.clone()).unwrap();
    let bench = Bench { proxy, rules, seen: Arc::default() };
    assert_eq!(bench.ask(b"GET /open HTTP/1.1\r\nHost: a\r\n\r\n"), "");
    assert!(bench.rules.records.lock().unwrap().is_empty());
}
