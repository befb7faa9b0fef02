//! What follows the first message of TLS, before real servers: a second `ClientHello`, and renegotiation. The server's own
//! log says which names it saw.
#![expect(clippy::unwrap_used, reason = "a test ends at the first surprise")]

#[expect(dead_code, reason = "each program of this folder uses its own part")]
mod common;

use std::{
    io::{Read, Write},
    net::TcpStream,
    path::Path,
    process::{Command, Stdio},
    sync::Arc,
};

use common::{
    BAD, By, ClientHello, GOOD, Names, Server, certificates, connect, count, extension, proxy, read_record, records,
    send, server_hello, wait,
};
use namegate_l7_proxy::AccessVerdict;

/// Servers of TLS 1.3 that have P-384 alone, so that the client must send another key share, and log the names they see.
const SERVERS: [&str; 4] = ["openssl", "node", "python3", "nginx"];

/// A server in Node that writes down the names it is asked for.
const NODE: &str = "const tls = require('tls'), fs = require('fs');
                 const of = name => ({key: fs.readFileSync(name + '.key'), cert: fs.readFileSync(name + '.crt')});
                 const context = name => tls.createSecureContext(of(name));
                 tls.createServer({...of('good.test'), ecdhCurve: 'P-384', SNICallback: (name, done) => {
                   console.log('asked for ' + name); done(null, context(name)); }}, socket => socket.pipe(socket))
                   .on('tlsClientError', () => {}).listen(PORT, '127.0.0.1');";
/// The same in Python.
const PYTHON: &str = "import socket, ssl, threading
context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
context.load_cert_chain('good.test.crt', 'good.test.key')
context.set_ecdh_curve('secp384r1')
context.sni_callback = lambda connection, name, _: print('asked for', name, flush=True)
def serve(stream):
    try:
        stream = context.wrap_socket(stream, server_side=True)
        while data := stream.recv(4096):
            stream.sendall(data)
    except (OSError, ssl.SSLError):
        pass
listener = socket.create_server(('127.0.0.1', PORT))
while True:
    threading.Thread(target=serve, args=(listener.accept()[0],), daemon=True).start()";

fn serve(folder: &Path, program: &str) -> Server {
    match program {
        "openssl" => Server::start(
            folder,
            // Its log is to come line by line.
            "stdbuf",
            &[
                "-oL",
                "openssl",
                "s_server",
                "-accept",
                "127.0.0.1:PORT",
                "-cert",
                "good.test.crt",
                "-key",
                "good.test.key",
                "-servername",
                BAD,
                "-cert2",
                "bad.test.crt",
                "-key2",
                "bad.test.key",
                "-groups",
                "P-384",
                "-www",
                "-client_renegotiation",
            ],
        ),
        "node" => Server::start(folder, "node", &["-e", NODE]),
        "python3" => Server::start(folder, "python3", &["-c", PYTHON]),
        _ => nginx(folder),
    }
}

fn nginx(folder: &Path) -> Server {
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let hosts = [GOOD, BAD].map(|name| {
        format!(
            "server {{ listen 127.0.0.1:{port} ssl; server_name {name}; ssl_certificate {name}.crt;
             ssl_certificate_key {name}.key; ssl_ecdh_curve secp384r1; ssl_protocols TLSv1.2 TLSv1.3;
             location / {{ return 200 {name}; }} }}"
        )
    });
    let folder_text = folder.display();
    let text = format!(
        "daemon off; master_process off; pid {folder_text}/nginx.pid; error_log {folder_text}/nginx.log debug;
         events {{}} http {{ access_log off; {} }}",
        hosts.concat()
    );
    std::fs::write(folder.join("nginx.conf"), text).unwrap();
    let configuration = folder.join("nginx.conf");
    let mut server = Server::start_at(folder, "nginx", &["-c", configuration.to_str().unwrap(), "-p", "."], port);
    server = server.logging_to(folder.join("nginx.log"));
    server
}

/// Sends the first message, waits for the server's retry, sends more, and gives the record that comes back then.
fn retry(stream: &mut TcpStream, then: &[u8]) -> Option<Vec<u8>> {
    send(stream, &ClientHello::first().record());
    let answer = read_record(stream).expect("the server's answer");
    assert_eq!(server_hello(&answer), Some(true), "a HelloRetryRequest: {answer:?}");
    send(stream, then);
    loop {
        let record = read_record(stream)?;
        // ChangeCipherSpec, for middleboxes.
        if record[0] != 20 {
            return Some(record);
        }
    }
}

/// Second messages that are not the first one's.
fn inconsistent() -> Vec<(&'static str, Vec<u8>)> {
    let second = ClientHello::second;
    let bad = ClientHello { name: Some(BAD), ..second() };
    let (good, evil) = (second().message(), bad.message());
    vec![
        ("another name", bad.record()),
        ("after ChangeCipherSpec", [&[20, 3, 3, 0, 1, 1][..], &bad.record()].concat()),
        ("in small records", records(&evil, 7)),
        ("no name", ClientHello { name: None, ..second() }.record()),
        ("another random value", ClientHello { random: 8, ..second() }.record()),
        ("another session", ClientHello { session: 8, ..second() }.record()),
        ("other suites", ClientHello { suites: vec![0x13, 2, 0x13, 1], ..second() }.record()),
        ("early data", ClientHello { more: extension(42, &[]), ..second() }.record()),
        ("another extension", ClientHello { more: extension(0x2a2a, &[]), ..second() }.record()),
        ("a third message in its record", records(&[&good[..], &evil].concat(), 1 << 14)),
        ("a third message after it", [records(&good, 1 << 14), bad.record()].concat()),
        (
            "an alert within it",
            [records(&evil[..20], 99), vec![21, 3, 3, 0, 2, 1, 0], records(&evil[20..], 999)].concat(),
        ),
    ]
}

#[test]
fn a_second_hello_asks_for_the_name_of_the_first_one() {
    let folder = certificates();
    for program in SERVERS {
        let server = serve(&folder, program);
        for by in [By::ServerNames, By::Binding, By::NamedPort] {
            let names = Names::new(by);
            let proxy = proxy(&names, server.address);
            // The client is honest, its message in one piece or in many.
            for then in [ClientHello::second().record(), records(&ClientHello::second().message(), 50)] {
                let answer = retry(&mut connect(&proxy), &then).expect("an answer");
                assert_eq!(server_hello(&answer), Some(false), "{program} {by:?}: {answer:?}");
            }
            let forms = inconsistent();
            for (form, then) in &forms {
                let answer = retry(&mut connect(&proxy), then);
                let is_final = answer.as_deref().is_some_and(|record| server_hello(record) == Some(false));
                // The third message comes after the final answer.
                assert!(!is_final || form.starts_with("a third message after"), "{program} {by:?}: {form} is answered");
            }
            // Both messages at once, before the server asks for the second.
            let mut stream = connect(&proxy);
            let bad = ClientHello { name: Some(BAD), ..ClientHello::second() };
            send(&mut stream, &[ClientHello::first().record(), bad.record()].concat());
            while read_record(&mut stream).is_some() {}

            wait("count", || count(&proxy, "inconsistent") >= forms.len() as u64);
            let denied =
                names.records.lock().unwrap().iter().filter(|record| record.verdict == AccessVerdict::Denied).count();
            assert!(denied >= forms.len(), "{program} {by:?}: {denied} records of denials");
        }
        let log = server.log();
        assert!(log.contains(GOOD) && !log.contains(BAD), "{program} saw another name: {}", names_in(&log));
    }
}

fn names_in(log: &str) -> String {
    log.lines().filter(|line| line.contains(BAD)).take(3).collect::<Vec<_>>().join(" / ")
}

/// In audit mode everything passes, and is recorded.
#[test]
fn in_audit_mode_another_second_hello_passes_and_is_recorded() {
    let folder = certificates();
    let server = serve(&folder, "openssl");
    for by in [By::ServerNames, By::Binding] {
        let mut names = Names::new(by);
        names.audit = true;
        let proxy = proxy(&names, server.address);
        let bad = ClientHello { name: Some(BAD), ..ClientHello::second() };
        let answer = retry(&mut connect(&proxy), &bad.record()).expect("an answer");
        assert_eq!(server_hello(&answer), Some(false));
        let verdicts: Vec<AccessVerdict> = names.records.lock().unwrap().iter().map(|record| record.verdict).collect();
        assert_eq!(verdicts, [AccessVerdict::Allowed, AccessVerdict::Audited], "{by:?}");
    }
    wait("name", || server.log().contains(BAD));
}

/// Starts `openssl s_client` through the proxy, and gives what it says when these lines are its input.
fn s_client(port: u16, arguments: &[&str], input: &str) -> String {
    let mut child = Command::new("openssl")
        .args(["s_client", "-connect", &format!("127.0.0.1:{port}"), "-servername", GOOD])
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdin = child.stdin.take().unwrap();
    for line in input.lines() {
        // It may have ended.
        let _ = writeln!(stdin, "{line}");
        std::thread::sleep(std::time::Duration::from_millis(300));
    }
    let reading = std::thread::spawn(move || child.wait_with_output().unwrap());
    let output = reading.join().unwrap();
    drop(stdin);
    String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned()
}

/// Every version with its tickets goes on as without the proxy; renegotiation does not.
#[test]
fn versions_tickets_and_renegotiation() {
    let folder = certificates();
    let server = serve(&folder, "openssl");
    for by in [By::ServerNames, By::Binding] {
        let names = Names::new(by);
        let proxy = proxy(&names, server.address);
        let port = proxy.port();
        for version in ["-tls1_2", "-tls1_3"] {
            let session = folder.join("session");
            let session = session.to_str().unwrap();
            for (arguments, state) in [(["-sess_out", session], "New"), (["-sess_in", session], "Reused")] {
                let page = s_client(port, &[&[version][..], &arguments].concat(), "GET / HTTP/1.0\n\n");
                assert!(page.contains(&format!("{state}, TLS")), "{by:?} {version}: {page}");
                assert!(page.contains("HTTP/1.0 200 ok"), "{by:?} {version}: {page}");
            }
        }
        assert_eq!(count(&proxy, "inconsistent"), 0);
        let page = s_client(port, &["-tls1_2"], "R\nGET / HTTP/1.0\n\n");
        assert!(page.contains("RENEGOTIATING") && !page.contains("HTTP/1.0 200 ok"), "{by:?}: {page}");
        wait("count", || count(&proxy, "inconsistent") == 1);
    }
}

/// A client of another program that has to send another key share, and one of an older version.
#[test]
fn honest_clients_finish_their_handshakes() {
    let folder = certificates();
    for program in ["openssl", "nginx"] {
        let server = serve(&folder, program);
        for by in [By::ServerNames, By::Binding] {
            let names = Names::new(by);
            let proxy = proxy(&names, server.address);
            for versions in [&[&rustls::version::TLS13][..], &[&rustls::version::TLS12]] {
                let page = get(connect(&proxy), GOOD, versions).unwrap();
                assert!(page.starts_with("HTTP/1.") && page.contains("200"), "{program} {by:?}: {page}");
                get(connect(&proxy), BAD, versions).unwrap_err();
            }
        }
    }
}

fn get(
    mut stream: TcpStream,
    name: &str,
    versions: &[&'static rustls::SupportedProtocolVersion],
) -> std::io::Result<String> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ClientConfig::builder_with_provider(provider).with_protocol_versions(versions).unwrap();
    let verifier = Arc::new(Anybody);
    let config = config.dangerous().with_custom_certificate_verifier(verifier).with_no_client_auth();
    let mut client = rustls::ClientConnection::new(Arc::new(config), name.to_owned().try_into().unwrap()).unwrap();
    let mut tls = rustls::Stream::new(&mut client, &mut stream);
    tls.write_all(format!("GET / HTTP/1.0\r\nHost: {name}\r\n\r\n").as_bytes())?;
    let mut page = Vec::new();
    // Servers may end without a word.
    if let Err(error) = tls.read_to_end(&mut page)
        && page.is_empty()
    {
        return Err(error);
    }
    Ok(String::from_utf8_lossy(&page).into_owned())
}

/// Takes every certificate: what is tested is who gets an answer at all.
#[derive(Debug)]
struct Anybody;

impl rustls::client::danger::ServerCertVerifier for Anybody {
    fn verify_server_cert(
        &self,
        _: &rustls::pki_types::CertificateDer<'_>,
        _: &[rustls::pki_types::CertificateDer<'_>],
        _: &rustls::pki_types::ServerName<'_>,
        _: &[u8],
        _: rustls::pki_types::UnixTime,
    ) -> Result<rustls::client::danger::ServerCertVerified, rustls::Error> {
        Ok(rustls::client::danger::ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &rustls::pki_types::CertificateDer<'_>,
        _: &rustls::DigitallySignedStruct,
    ) -> Result<rustls::client::danger::HandshakeSignatureValid, rustls::Error> {
        Ok(rustls::client::danger::HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &rustls::pki_types::CertificateDer<'_>,
        _: &rustls::DigitallySignedStruct,
    ) -> Result<rustls::client::danger::HandshakeSignatureValid, rustls::Error> {
        Ok(rustls::client::danger::HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<rustls::SignatureScheme> {
        rustls::crypto::ring::default_provider().signature_verification_algorithms.supported_schemes()
    }
}
