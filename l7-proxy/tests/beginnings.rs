//! First bytes that real servers take for HTTP or TLS, and that are not so in every respect. The server's own log says what
//! it answered.
#[expect(dead_code, reason = "each program of this folder uses its own part")]
mod common;

use std::{
    io::{Read, Write},
    net::{Shutdown, TcpListener, TcpStream},
    thread,
};

use common::{BAD, By, ClientHello, GOOD, Names, Server, certificates, connect, count, proxy, send, wait};
use namegate_l7_proxy::AccessVerdict;

/// Python's servers, which say what they were asked for and by which name: the one for files, and the one for programs,
/// which takes every method.
const PYTHON: &str = "
import http.server, sys, wsgiref.simple_server
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        print('served', self.headers.get('Host'), flush=True)
        self.send_response(200)
        self.end_headers()
def serve(environ, start):
    print('served', environ.get('HTTP_HOST'), flush=True)
    start('200 OK', [])
    return []
if sys.argv[1] == 'files':
    http.server.ThreadingHTTPServer(('127.0.0.1', PORT), Handler).serve_forever()
else:
    wsgiref.simple_server.make_server('127.0.0.1', PORT, serve).serve_forever()
";

/// Says all at once, and gives what comes back.
fn ask(stream: &mut TcpStream, bytes: &[u8]) -> Vec<u8> {
    send(stream, bytes);
    // It may be reset already.
    let _ = stream.shutdown(Shutdown::Write);
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer);
    answer
}

/// Request lines for the denied name that Python reads as requests, and some that no server should.
fn lines() -> Vec<Vec<u8>> {
    let mut lines: Vec<Vec<u8>> = Vec::new();
    for blank in [
        &b"\x0b"[..],
        b"\x0c",
        b"\x1c",
        b"\x1d",
        b"\x1e",
        b"\x1f",
        b"\x85",
        b"\xa0",
        b"\r",
        b" ",
        b"\t",
        b"\r\n",
        b"\n",
    ] {
        lines.push([blank, b"GET / HTTP/1.1"].concat());
        lines.push([b"GET", blank, b"/", blank, b"HTTP/1.1"].concat());
        lines.push([blank, blank, b"GET ", blank, b"/", blank, b" HTTP/1.1", blank].concat());
    }
    for control in 1..32 {
        lines.push([b"GET /", &[control][..], b" HTTP/1.1"].concat());
        lines.push([b"ANY\x0b/", &[control][..], b"\x0bHTTP/1.1"].concat());
        lines.push([&[control][..], b"GET / HTTP/1.1"].concat());
    }
    lines.extend([&b"GET /"[..], b"GET x", b"GET  x", b"get / http/1.1", b"GET\0 / HTTP/1.1"].map(<[u8]>::to_vec));
    lines
}

#[test]
fn request_lines_that_servers_forgive_are_requests() {
    let folder = certificates();
    for kind in ["files", "programs"] {
        let server = Server::start(&folder, "python3", &["-c", PYTHON, kind]);
        for by in [By::Binding, By::NamedPort] {
            let names = Names::new(by);
            let proxy = proxy(&names, server.address);
            let answer = ask(&mut connect(&proxy), format!("GET / HTTP/1.1\r\nHost: {GOOD}\r\n\r\n").as_bytes());
            assert!(answer.starts_with(b"HTTP/1.") && answer.windows(3).any(|three| three == b"200"), "{by:?}");
            for line in lines() {
                let answer =
                    ask(&mut connect(&proxy), &[&line[..], b"\r\nHost: ", BAD.as_bytes(), b"\r\n\r\n"].concat());
                let is_served = answer.windows(4).any(|four| four == b" 200");
                assert!(!is_served, "{kind} {by:?} {}: {}", line.escape_ascii(), answer.escape_ascii());
            }
        }
        let heads = server.log().lines().filter(|line| line.starts_with("served")).count();
        assert_eq!(heads, 2, "{kind}: {}", server.log());
    }
}

/// A server of Go: it takes any version of a record below 16, and alerts before the first message.
const GO: &str = r#"package main

import (
	"crypto/tls"
	"fmt"
	"net"
)

func main() {
	good, err := tls.LoadX509KeyPair("good.test.crt", "good.test.key")
	if err != nil {
		panic(err)
	}
	config := &tls.Config{GetConfigForClient: func(hello *tls.ClientHelloInfo) (*tls.Config, error) {
		fmt.Println("asked for", hello.ServerName)
		return &tls.Config{Certificates: []tls.Certificate{good}}, nil
	}}
	listener, err := net.Listen("tcp", "127.0.0.1:PORT")
	if err != nil {
		panic(err)
	}
	for {
		stream, err := listener.Accept()
		if err != nil {
			panic(err)
		}
		go func() {
			defer stream.Close()
			_ = tls.Server(stream, config).Handshake()
		}()
	}
}
"#;

#[test]
fn what_begins_like_tls_is_tls_or_refused() {
    let folder = certificates();
    // The port stands in the source.
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    std::fs::write(folder.join("main.go"), GO.replace("PORT", &port.to_string())).unwrap();
    let built =
        std::process::Command::new("go").current_dir(&folder).args(["build", "-o", "server", "main.go"]).output();
    let built = built.unwrap();
    assert!(built.status.success(), "{}", String::from_utf8_lossy(&built.stderr));
    let server = Server::start_at(&folder, folder.join("server").to_str().unwrap(), &[], port);
    let bad = ClientHello { name: Some(BAD), ..ClientHello::first() }.record();
    let version = |major, minor| [&[22, major, minor][..], &bad[3..]].concat();
    let before = |bytes: &[u8]| [bytes, &bad].concat();
    let mut forms: Vec<Vec<u8>> = (0..=4).filter(|major| *major != 3).map(|major| version(major, 0)).collect();
    forms.extend([
        version(2, 0),
        version(15, 255),
        before(&[21, 3, 1, 0, 2, 1, 0]),
        before(&[21, 3, 1, 0, 2, 1, 112]),
        before(&[21, 3, 1, 0, 2, 1, 0].repeat(3)),
        before(&[20, 3, 1, 0, 1, 1]),
        before(&[23, 3, 1, 0, 1, 1]),
        before(&[24, 3, 1, 0, 3, 1, 0, 0]),
        before(&[22, 3, 1, 0, 0]),
        b"\x80\x2e\x01\x03\x01".to_vec(),
        before(b"PROXY TCP4 192.0.2.1 192.0.2.2 1 443\r\n"),
        before(b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c\xc0\0\x02\x01\xc0\0\x02\x02\0\x01\x01\xbb"),
        before(b"\r\n\r\n\0\r\nQUIT\n\x20\0\0\0"),
    ]);
    for by in [By::ServerNames, By::Binding, By::NamedPort] {
        let names = Names::new(by);
        let proxy = proxy(&names, server.address);
        assert_eq!(ask(&mut connect(&proxy), &ClientHello::first().record()).first(), Some(&22), "{by:?}");
        for form in &forms {
            let answer = ask(&mut connect(&proxy), form);
            assert_eq!(answer, b"", "{by:?} {}", form[..12.min(form.len())].escape_ascii());
        }
    }
    let log = server.log();
    assert!(log.contains(GOOD) && !log.contains(BAD), "{log}");
}

/// Servers that take the PROXY protocol read TLS and HTTP after its header.
#[test]
fn a_header_of_the_proxy_protocol_hides_no_name() {
    let folder = certificates();
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let text = format!(
        "daemon off; master_process off; pid {0}/nginx.pid; error_log {0}/nginx.log; events {{}}
         http {{ access_log off;
         server {{ listen 127.0.0.1:{port} proxy_protocol; server_name {BAD}; location / {{ return 200 served-{BAD}; }} }} }}",
        folder.display()
    );
    std::fs::write(folder.join("nginx.conf"), text).unwrap();
    let configuration = folder.join("nginx.conf");
    let server = Server::start_at(&folder, "nginx", &["-c", configuration.to_str().unwrap(), "-p", "."], port);
    let request = format!("GET / HTTP/1.1\r\nHost: {BAD}\r\nConnection: close\r\n\r\n");
    for by in [By::Binding, By::NamedPort] {
        let names = Names::new(by);
        let proxy = proxy(&names, server.address);
        for header in [
            &b"PROXY TCP4 192.0.2.1 192.0.2.2 1 443\r\n"[..],
            b"PROXY UNKNOWN\r\n",
            b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c\xc0\0\x02\x01\xc0\0\x02\x02\0\x01\x01\xbb",
        ] {
            let mut stream = connect(&proxy);
            send(&mut stream, &[header, request.as_bytes()].concat());
            let mut answer = Vec::new();
            // A reset is what is wanted.
            let _ = stream.read_to_end(&mut answer);
            assert_eq!(answer.escape_ascii().to_string(), "", "{by:?} {}", header.escape_ascii());
        }
    }
}

/// A server that speaks first, or a client without names, passes where the port is not for names alone.
#[test]
fn protocols_without_names_pass_only_where_they_may() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            thread::spawn(move || {
                let _ = stream.write_all(b"SSH-2.0-test\r\n");
                let (mut seen, mut bytes) = (Vec::new(), [0; 99]);
                while let Ok(count @ 1..) = stream.read(&mut bytes) {
                    seen.extend_from_slice(&bytes[..count]);
                    let _ = stream.write_all(&bytes[..count]);
                }
            });
        }
    });
    for (by, passes) in [(By::Binding, true), (By::NamedPort, false)] {
        let names = Names::new(by);
        let proxy = proxy(&names, address);
        for said in [&b""[..], b"SSH-2.0-client\r\n", b"\0\0\0\x08\x04\xd2\x16\x2f"] {
            let mut stream = connect(&proxy);
            send(&mut stream, said);
            let mut heard = vec![0; 14 + said.len()];
            let is_heard = stream.read_exact(&mut heard).is_ok();
            assert_eq!(is_heard, passes, "{by:?} {}", said.escape_ascii());
            assert!(!is_heard || heard == [b"SSH-2.0-test\r\n", said].concat());
        }
        let records = names.records.lock().unwrap();
        assert_eq!(records.len(), if passes { 0 } else { 3 }, "{records:?}");
        assert!(records.iter().all(|record| record.verdict == AccessVerdict::Denied && record.mismatch));
        // A connection that says nothing is no refusal.
        drop(records);
        drop(connect(&proxy));
        wait("connection", || count(&proxy, "connections") == 4);
    }
}
