//! What was let pass ends when the rules do not let it pass any more, and goes on when they still do.
#![expect(clippy::unwrap_used, reason = "a test ends at the first surprise")]

#[expect(dead_code, reason = "each program of this folder uses its own part")]
mod common;

use std::{
    io::{Read, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    path::Path,
    thread,
};

use common::{By, ClientHello, Names, Server, Share, connect, count, proxy, read_record, rule, send, wait};
use namegate_config::{
    l7::{HttpRule, L7, RegexText},
    name::NamePattern,
    reference::Limits,
};
use namegate_l7_proxy::{AccessVerdict, Proxy};

/// A server that answers what begins as `begins` says with `first`, and then sends back what comes.
fn server(first: &'static [u8], begins: fn(&[u8]) -> bool) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            thread::spawn(move || {
                let (mut seen, mut bytes) = (Vec::new(), [0; 4_096]);
                let mut has_answered = false;
                while let Ok(count @ 1..) = stream.read(&mut bytes) {
                    seen.extend_from_slice(&bytes[..count]);
                    if has_answered {
                        stream.write_all(&bytes[..count]).unwrap();
                    } else if begins(&seen) {
                        has_answered = true;
                        stream.write_all(first).unwrap();
                    }
                }
            });
        }
    });
    address
}

/// A `ServerHello` of TLS 1.3 (RFC 8446 §4.1.3): a random value, no session, a suite, and the version as extension.
const FINAL: &[u8] = b"\x16\x03\x03\x00\x32\x02\x00\x00\x2e\x03\x03abcdefghijklmnopqrstuvwxyz012345\
                       \x00\x13\x01\x00\x00\x06\x00\x2b\x00\x02\x03\x04";

/// Whether bytes still go to the server and back.
fn goes_on(stream: &mut TcpStream) -> bool {
    let mut back = [0; 6];
    stream.write_all(&[23, 3, 3, 0, 1, 7]).is_ok() && stream.read_exact(&mut back).is_ok()
}

/// Opens what stays open, changes the rules so that they still allow it, then so that they do not.
fn check(names: &Names, proxy: &Proxy, mut stream: TcpStream, still: &Limits, gone: Limits) {
    assert!(goes_on(&mut stream));
    for _ in 0..2 {
        names.change(still.clone());
        thread::sleep(std::time::Duration::from_millis(500));
        assert!(goes_on(&mut stream), "the rules still allow it");
    }
    assert_eq!(count(proxy, "revoked"), 0);
    names.change(gone);
    wait("end", || count(proxy, "revoked") == 1);
    let mut rest = Vec::new();
    // A reset is an end too.
    let _ = stream.read_to_end(&mut rest);
    assert!(!goes_on(&mut stream));
    let last = names.records.lock().unwrap().last().unwrap().verdict;
    assert_eq!(last, AccessVerdict::Denied);
}

fn server_names(pattern: &str) -> Limits {
    rule(L7::ServerNames(vec![NamePattern::pattern(pattern).unwrap()]))
}

fn paths(path: &str) -> Limits {
    let path = Some(RegexText::new(path).unwrap());
    rule(L7::Http(vec![HttpRule { path, ..HttpRule::default() }]))
}

#[test]
fn a_tls_tunnel_ends_with_its_rule() {
    let address = server(FINAL, |seen| seen.len() > 200);
    for (by, still, gone) in [
        (By::ServerNames, server_names("*.test"), server_names("other.test")),
        (By::ServerNames, Limits::Free, Limits::Closed(None)),
        (By::Binding, Limits::Free, Limits::Closed(None)),
    ] {
        let names = Names::new(by);
        let proxy = proxy(&names, address);
        let mut stream = connect(&proxy);
        let hello = ClientHello { share: Share::P384, ..ClientHello::first() };
        stream.write_all(&hello.record()).unwrap();
        assert_eq!(read_record(&mut stream).unwrap(), FINAL);
        check(&names, &proxy, stream, &still, gone);
    }
}

#[test]
fn a_connection_without_a_name_ends_with_its_rule() {
    let address = server(b"", |_| true);
    let names = Names::new(By::Binding);
    let proxy = proxy(&names, address);
    let mut stream = connect(&proxy);
    stream.write_all(&[0; 8]).unwrap();
    thread::sleep(std::time::Duration::from_millis(100));
    check(&names, &proxy, stream, &Limits::Free, Limits::Closed(None));
}

fn has_head(seen: &[u8]) -> bool {
    seen.windows(4).any(|four| four == b"\r\n\r\n")
}

/// Reads the head of an answer.
fn head(stream: &mut TcpStream) -> String {
    let (mut head, mut byte) = (Vec::new(), [0]);
    while !has_head(&head) {
        stream.read_exact(&mut byte).unwrap();
        head.extend(byte);
    }
    String::from_utf8(head).unwrap()
}

#[test]
fn a_websocket_tunnel_ends_with_its_rule() {
    // The example of RFC 6455 §1.3.
    let switched = b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: upgrade\r\n\
        Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n";
    let address = server(switched, has_head);
    for (still, gone) in [(paths("/chat|/x"), paths("/x")), (Limits::Free, Limits::Closed(None))] {
        let names = Names::new(By::ServerNames);
        names.change(paths("/chat"));
        let proxy = proxy(&names, address);
        let mut stream = connect(&proxy);
        let handshake = b"GET /chat HTTP/1.1\r\nHost: good.test\r\nUpgrade: websocket\r\nConnection: upgrade\r\n\
            Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n";
        stream.write_all(handshake).unwrap();
        assert!(head(&mut stream).starts_with("HTTP/1.1 101"));
        check(&names, &proxy, stream, &still, gone);
    }
}

#[test]
fn a_response_that_goes_on_ends_with_its_rule() {
    let events = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nContent-Length: 1000\r\n\r\nfirst";
    let address = server(events, has_head);
    let names = Names::new(By::ServerNames);
    names.change(paths("/events"));
    let proxy = proxy(&names, address);
    let mut stream = connect(&proxy);
    stream.write_all(b"GET /events HTTP/1.1\r\nHost: good.test\r\n\r\n").unwrap();
    assert!(head(&mut stream).starts_with("HTTP/1.1 200"));
    let mut first = [0; 5];
    stream.read_exact(&mut first).unwrap();
    assert_eq!(&first, b"first");
    names.change(paths("/.*"));
    thread::sleep(std::time::Duration::from_millis(500));
    assert_eq!(count(&proxy, "revoked"), 0);
    names.change(paths("/other"));
    let mut rest = Vec::new();
    // A reset is an end too.
    let _ = stream.read_to_end(&mut rest);
    assert_eq!((count(&proxy, "revoked"), rest.len()), (1, 0));
}

#[test]
fn a_request_that_is_not_answered_ends_with_its_rule() {
    let address = server(b"", |_| false);
    let names = Names::new(By::ServerNames);
    names.change(paths("/upload"));
    let proxy = proxy(&names, address);
    let mut stream = connect(&proxy);
    stream.write_all(b"POST /upload HTTP/1.1\r\nHost: good.test\r\nContent-Length: 1000\r\n\r\nfirst").unwrap();
    wait("request", || count(&proxy, "allowed") == 1);
    names.change(paths("/other"));
    assert!(head(&mut stream).starts_with("HTTP/1.1 403"));
    assert_eq!(count(&proxy, "revoked"), 1);
}

/// A server that answers at once, and writes down each part of the body that comes.
const NODE: &str = r"
    require('http').createServer((request, response) => {
        response.writeHead(200, {'Content-Length': 2}).end('ok');
        request.on('data', part => console.log(String(part)));
    }).listen(PORT, '127.0.0.1');";

#[test]
fn an_upload_ends_with_its_rule_also_after_its_response() {
    let server = Server::start(Path::new("."), "node", &["-e", NODE]);
    let names = Names::new(By::ServerNames);
    names.change(paths("/upload"));
    let proxy = proxy(&names, server.address);
    let mut stream = connect(&proxy);
    let begin = b"POST /upload HTTP/1.1\r\nHost: good.test\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nfirst\r\n";
    stream.write_all(begin).unwrap();
    assert!(head(&mut stream).starts_with("HTTP/1.1 200"));
    let mut answer = [0; 2];
    stream.read_exact(&mut answer).unwrap();
    assert_eq!(&answer, b"ok");
    wait("first part", || server.log().contains("first"));
    names.change(paths("/.*"));
    thread::sleep(std::time::Duration::from_millis(500));
    stream.write_all(b"6\r\nsecond\r\n").unwrap();
    wait("second part", || server.log().contains("second"));
    assert_eq!(count(&proxy, "revoked"), 0);
    names.change(paths("/other"));
    thread::sleep(std::time::Duration::from_millis(500));
    // The connection may be reset already.
    send(&mut stream, b"5\r\nthird\r\n");
    thread::sleep(std::time::Duration::from_millis(500));
    assert!(!server.log().contains("third"), "{}", server.log());
    assert_eq!(count(&proxy, "revoked"), 1);
}
