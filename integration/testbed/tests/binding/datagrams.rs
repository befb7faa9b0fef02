//! Datagrams that begin nothing, or hide a beginning: which of them go on where names are bound.

use std::net::UdpSocket;
use std::process::{Child, Command, Stdio};

use nix::sys::socket::{setsockopt, sockopt};

use super::*;

/// How long a change of the rules may take to end what they allow no more.
const ENDS: Duration = Duration::from_secs(10);
/// Bytes of the header of a record of DTLS: OpenSSL steps over as many where it can not read one.
const RECORD_HEAD: usize = 13;
/// Bytes by which a message of a handshake is known, in a record of another version too; and fewer than are enough.
const DTLS_HEAD_BYTES: usize = 25;
const TOO_FEW_BYTES: usize = 11;

/// A server, ended with its test.
struct Server(Child);

impl Drop for Server {
    fn drop(&mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}

/// OpenSSL's server of DTLS outside, which writes the names that it is asked for to a file.
fn serve_dtls(world: &World, folder: &std::path::Path) -> Server {
    let certificate = world.certificate(&[GOOD, BAD]).unwrap();
    let path = |name: &str, text: &str| {
        let path = folder.join(name);
        std::fs::write(&path, text).unwrap();
        path
    };
    let chain = path("chain", &certificate.certificate);
    let key = path("key", &certificate.key);
    let log = std::fs::File::create(folder.join("log")).unwrap();
    let accept = format!("{SHARED}:{GREETING}");
    world.outside().call(move || {
        let mut openssl = Command::new("stdbuf");
        openssl.args(["-oL", "openssl", "s_server", "-dtls", "-accept", &accept, "-servername", "x.test"]);
        openssl.args([std::ffi::OsStr::new("-cert"), chain.as_os_str(), "-key".as_ref(), key.as_os_str()]);
        openssl.args([std::ffi::OsStr::new("-cert2"), chain.as_os_str(), "-key2".as_ref(), key.as_os_str()]);
        // It ends with its input.
        let child = openssl.stdin(Stdio::piped()).stdout(log).stderr(Stdio::null()).spawn();
        Server(child.unwrap())
    })
}

/// Has OpenSSL's client ask for a name, and puts bytes before each of its datagrams.
fn ask(pod: &Pod, before: Vec<u8>, name: &'static str) {
    pod.netns.call(move || {
        let near = UdpSocket::bind("127.0.0.1:0").unwrap();
        let far = UdpSocket::bind("0.0.0.0:0").unwrap();
        far.connect((SHARED, GREETING)).unwrap();
        for socket in [&near, &far] {
            socket.set_read_timeout(Some(Duration::from_millis(20))).unwrap();
        }
        let at = near.local_addr().unwrap().to_string();
        let mut client = Command::new("timeout");
        client.args(["1.5", "openssl", "s_client", "-dtls1_2", "-connect", &at, "-servername", name]);
        client.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let mut client = client.spawn().unwrap();
        let mut from = None;
        let mut bytes = vec![0; 2_048];
        while client.try_wait().unwrap().is_none() {
            if let Ok((length, client)) = near.recv_from(&mut bytes) {
                from = Some(client);
                let _ = far.send(&[&before, &bytes[..length]].concat());
            }
            while let (Some(client), Ok(length)) = (from, far.recv(&mut bytes)) {
                near.send_to(&bytes[..length], client).unwrap();
            }
        }
    });
}

/// OpenSSL steps over what is no record, and takes the hello behind it.
#[test]
fn a_hello_of_dtls_behind_something_else_reaches_no_server() {
    let world = shared_world(&[TIE]);
    let folder = tempfile::tempdir().unwrap();
    let pod = world.pod(TIE);
    let _server = serve_dtls(&world, folder.path());
    let asked = || {
        let log = std::fs::read_to_string(folder.path().join("log")).unwrap();
        log.lines()
            .filter_map(|line| line.strip_prefix("Hostname in TLS extension: "))
            .map(str::to_owned)
            .collect::<Vec<_>>()
    };
    ask(pod, vec![0; RECORD_HEAD], BAD);
    assert_eq!(asked(), [format!("\"{BAD}\"")], "without the agent the server takes it");
    let agent = start(&world, &names(&[GOOD]), "enforce");
    resolve(pod, &[GOOD]);
    for (heads, byte) in [(0, 0), (1, 0), (2, 0x2e), (7, 0x40), (40, 0xc0), (1, 0x16)] {
        ask(pod, vec![byte; heads * RECORD_HEAD], BAD);
        assert_eq!(asked().len(), 1, "behind {heads} times {RECORD_HEAD} bytes {byte:#x}");
    }
    assert!(mismatches(&agent).iter().all(|(verdict, _)| verdict == "denied"));
    assert!(!mismatches(&agent).is_empty());
}

#[test]
fn what_looks_like_a_hello_of_dtls_is_found_wherever_it_stands() {
    let world = shared_world(&[TIE]);
    let pod = world.pod(TIE);
    let hello = attacks::dtls(22, 0xfd);
    let echoes = |datagram: Vec<u8>| {
        pod.netns.run(async move { client::echo(echo(SHARED), &datagram, attacks::ANSWERS).await }).is_ok()
    };
    for (binding, want) in [("enforce", false), ("observe", true)] {
        let agent = start(&world, &names(&[GOOD]), binding);
        resolve(pod, &[GOOD]);
        for at in [1, 12, 13, 51, 52, 53, 63, 64, 65, 127, 128, 700, 1_200] {
            assert_eq!(echoes([vec![0; at], hello.clone()].concat()), want, "{binding}: at {at}");
            assert_eq!(
                echoes([vec![0; at], hello[..DTLS_HEAD_BYTES].to_vec()].concat()),
                want,
                "{binding}: at {at}, at the end"
            );
            assert!(echoes([vec![0; at], hello[..TOO_FEW_BYTES].to_vec()].concat()), "{binding}: a part, at {at}");
        }
        for version in [[0, 0], [1, 0], [3, 3], [0xff, 0]] {
            let mut other = hello.clone();
            other[1..3].copy_from_slice(&version);
            assert_eq!(echoes([vec![0; 13], other].concat()), want, "{binding}: version {version:x?}");
        }
        let verdict = if want { "audited" } else { "denied" };
        agent
            .wait_for("the records", |agent| {
                let found = mismatches(agent);
                Ok((found.len() >= 30).then(|| assert!(found.iter().all(|(found, _)| found == verdict), "{found:?}")))
            })
            .unwrap();
    }
}

/// The kernel carries several datagrams of one `send` as one frame.
#[test]
fn a_hello_of_dtls_in_a_later_datagram_of_a_frame_is_found() {
    const DATAGRAM: usize = 1_200;
    let world = shared_world(&[TIE]);
    let heard = attacks::note_datagrams(&world);
    let _agent = start(&world, &annotated("none"), "enforce");
    let pod = world.pod(TIE);
    resolve(pod, &[GOOD]);
    let datagram = |number: u8| vec![number; DATAGRAM];
    let send = move |datagrams: Vec<Vec<u8>>| {
        pod.netns.call(move || {
            let socket = UdpSocket::bind(("0.0.0.0", 0)).unwrap();
            setsockopt(&socket, sockopt::UdpGsoSegment, &i32::try_from(DATAGRAM).unwrap()).unwrap();
            assert!(socket.send_to(&datagrams.concat(), (SHARED, 443)).is_ok());
        });
        std::thread::sleep(TOLD);
    };
    let mut hides = datagram(3);
    hides[1_100..].copy_from_slice(&attacks::dtls(22, 0xfd)[..100]);
    send(vec![datagram(1), datagram(2), hides]);
    assert_eq!(heard.lock().unwrap().len(), 0);
    send(vec![datagram(4), datagram(5), datagram(6)]);
    assert_eq!(*heard.lock().unwrap(), [datagram(4), datagram(5), datagram(6)]);
}

/// Policies that allow names, with an annotation about ports.
fn annotated(ports: &str) -> String {
    let metadata = format!("metadata: {{name: dns-and-more, annotations: {{namegate.io/named-ports: '{ports}'}}, ");
    names(&[GOOD]).replace("metadata: {name: dns-and-more, ", &metadata)
}

#[test]
fn datagrams_without_a_name_need_a_connection_that_was_let_pass_where_names_are_required() {
    let world = shared_world(&[TIE]);
    let heard = attacks::note_datagrams(&world);
    let agent = start(&world, &names(&[GOOD]), "enforce");
    let pod = world.pod(TIE);
    resolve(pod, &[GOOD]);
    let bind = || pod.netns.call(|| UdpSocket::bind(("0.0.0.0", 0)).unwrap());
    let send = |socket: &UdpSocket, datagram: &[u8]| socket.send_to(datagram, (SHARED, 443)).unwrap();
    let passes = |socket: &UdpSocket, datagram: &[u8]| {
        send(socket, datagram);
        std::thread::sleep(TOLD);
        heard.lock().unwrap().iter().any(|heard| heard == datagram)
    };
    let client = bind();
    let moved = bind();
    assert!(!passes(&client, &[0x40; 30]), "before its connection has begun");
    assert!(!passes(&client, b"no QUIC at all"));
    let good = attacks::quic_hello(GOOD);
    let bad = attacks::quic_hello(BAD);
    assert!(!passes(&client, &attacks::Begins::v1(1).packet(0, 0, &bad)));
    assert!(!passes(&client, &[0x41; 30]), "a connection that was refused");
    assert!(passes(&client, &attacks::Begins::v1(2).packet(0, 0, &good)));
    assert!(passes(&client, &[0x42; 30]), "its packets");
    assert!(!passes(&moved, &[0x43; 30]), "from another port");
    agent.apply(&annotated("none")).unwrap();
    assert!(passes(&moved, &[0x44; 30]), "where no name is required");
    agent.apply(&annotated("443")).unwrap();
    assert!(!passes(&moved, &[0x45; 30]), "of a flow that had passed");
    assert!(passes(&client, &[0x46; 30]));
}

/// A connection that is open, and whether its bytes come back.
struct Open<'p> {
    pod: &'p Pod,
    quic: Quic,
}

impl<'p> Open<'p> {
    fn new(pod: &'p Pod, name: &'static str) -> Self {
        let (_, config) = &kinds()[1];
        let config = config.clone();
        Self { pod, quic: pod.netns.run(async move { Quic::open(config, name).await.unwrap() }) }
    }

    fn talks(&self) -> bool {
        let quic = self.quic.clone();
        self.pod.netns.run(async move {
            let exchange = async {
                let (mut send, mut receive) = quic.connection.open_bi().await.ok()?;
                send.write_all(b"still here").await.ok()?;
                send.finish().ok()?;
                receive.read_to_end(100).await.ok()
            };
            tokio::time::timeout(attacks::ANSWERS, exchange).await.ok().flatten().is_some()
        })
    }

    fn assert_ends(&self, why: &str) {
        let until = std::time::Instant::now() + ENDS;
        while self.talks() {
            assert!(std::time::Instant::now() < until, "{why}: it goes on");
        }
    }
}

fn revoked(agent: &Agent<'_>) -> u64 {
    let status = agent.json("/v1/status").unwrap();
    let counts = status["name-checks"].as_array().unwrap();
    counts.iter().find(|count| count["what"] == "revoked").unwrap()["count"].as_u64().unwrap()
}

#[test]
fn quic_connections_end_with_their_rule_and_not_with_their_name() {
    let world = shared_world(&[TIE]);
    world.zone().set_addresses(GOOD, 1, &[ip(SHARED)]);
    serve_quic(&world);
    let agent = start(&world, &names(&[GOOD, OTHER]), "enforce");
    let pod = world.pod(TIE);
    resolve(pod, &[GOOD, OTHER]);
    let good = Open::new(pod, GOOD);
    let other = Open::new(pod, OTHER);
    assert!(good.talks() && other.talks());
    std::thread::sleep(Duration::from_millis(1_500));
    // Another rule changes, and the name has ended.
    agent.apply(&names(&[GOOD, OTHER, BAD])).unwrap();
    std::thread::sleep(Duration::from_secs(1));
    assert!(good.talks() && other.talks(), "their rules stay");
    assert_eq!(revoked(&agent), 0);
    agent.apply(&names(&[OTHER, BAD])).unwrap();
    good.assert_ends("its rule has gone");
    assert!(other.talks());
    assert_eq!(revoked(&agent), 1);
    agent.apply(&names(&[GOOD, OTHER])).unwrap();
    assert!(other.talks() && !good.talks(), "what has ended does not come back");
    assert!(Open::new(pod, OTHER).talks());
    let denied = agent.denials(pod).unwrap();
    assert!(denied.iter().any(|flow| flow["server-name"] == GOOD && flow["reason"] == "name-mismatch"), "{denied:#?}");
}

/// Nothing opens the address when the rule goes, and another name does later.
#[test]
fn quic_connections_stay_ended_when_another_name_opens_their_address_later() {
    let world = shared_world(&[TIE]);
    serve_quic(&world);
    let agent = start(&world, &names(&[GOOD, OTHER]), "enforce");
    let pod = world.pod(TIE);
    resolve(pod, &[GOOD]);
    let good = Open::new(pod, GOOD);
    assert!(good.talks());
    agent.apply(&names(&[OTHER])).unwrap();
    assert!(!good.talks(), "the address is closed");
    std::thread::sleep(Duration::from_secs(1));
    assert_eq!(revoked(&agent), 0);
    resolve(pod, &[OTHER]);
    agent.wait_for("the end", |agent| Ok((revoked(agent) == 1).then_some(()))).unwrap();
    assert!(!good.talks(), "its rule has gone");
    assert!(Open::new(pod, OTHER).talks());
}

#[test]
fn quic_connections_end_whose_rule_goes_while_the_agent_is_away() {
    let world = shared_world(&[TIE]);
    serve_quic(&world);
    let mut agent = start(&world, &names(&[GOOD, OTHER]), "enforce");
    let pod = world.pod(TIE);
    resolve(pod, &[GOOD, OTHER]);
    let good = Open::new(pod, GOOD);
    let other = Open::new(pod, OTHER);
    assert!(good.talks() && other.talks(), "their handshakes are complete");
    agent.kill().unwrap();
    std::fs::write(agent.path("policies/policies.yaml"), names(&[OTHER])).unwrap();
    assert!(good.talks() && other.talks(), "the old rules hold");
    agent.run().unwrap();
    good.assert_ends("its rule has gone");
    assert!(other.talks());
}
