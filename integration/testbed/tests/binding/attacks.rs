//! Clients that hide a name from the agent, with a real server that says which names it was asked for.

use std::net::UdpSocket;
use std::sync::Mutex;

use tokio_rustls::rustls::crypto::ring::cipher_suite::TLS13_AES_128_GCM_SHA256;
use tokio_rustls::rustls::quic::{self, Version};
use tokio_rustls::rustls::server::{ClientHello, ResolvesServerCert};
use tokio_rustls::rustls::sign::CertifiedKey;
use tokio_rustls::rustls::{ServerConfig, Side};

use super::*;

/// Between two datagrams: they are judged one after the other.
const PAUSE: Duration = Duration::from_millis(30);
/// How long an answer may take that is not to come.
pub(super) const ANSWERS: Duration = Duration::from_millis(500);
/// Bytes of a datagram that a server takes.
const DATAGRAM: usize = 1_200;

/// Notes the names that clients ask for.
#[derive(Debug)]
struct Names {
    key: Arc<CertifiedKey>,
    asked: Arc<Mutex<Vec<String>>>,
}

impl ResolvesServerCert for Names {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        self.asked.lock().unwrap().push(hello.server_name().unwrap_or("none").to_owned());
        Some(Arc::clone(&self.key))
    }
}

/// A QUIC server that notes the names it is asked for; with `retries` it has each client come again.
fn serve_noting(world: &World, retries: bool) -> Arc<Mutex<Vec<String>>> {
    let asked = Arc::new(Mutex::new(Vec::new()));
    let noted = Arc::clone(&asked);
    world
        .serve_outside(move |_| {
            let key = rcgen::KeyPair::generate()?;
            let certificate = rcgen::CertificateParams::new(vec![GOOD.to_owned()])?.self_signed(&key)?;
            let key = tokio_rustls::rustls::pki_types::PrivatePkcs8KeyDer::from(key.serialize_der()).into();
            let key = CertifiedKey::new(vec![certificate.der().clone()], ring::sign::any_supported_type(&key)?);
            let names = Names { key: Arc::new(key), asked: noted };
            let config = ServerConfig::builder_with_provider(ring::default_provider().into())
                .with_protocol_versions(&[&version::TLS13])?
                .with_no_client_auth()
                .with_cert_resolver(Arc::new(names));
            let config = quinn::crypto::rustls::QuicServerConfig::try_from(config)?;
            let config = quinn::ServerConfig::with_crypto(Arc::new(config));
            let endpoint = quinn::Endpoint::server(config, SocketAddr::new(ip("0.0.0.0"), 443))?;
            tokio::spawn(async move {
                while let Some(incoming) = endpoint.accept().await {
                    if retries && !incoming.remote_address_validated() {
                        incoming.retry().unwrap();
                        continue;
                    }
                    tokio::spawn(async move {
                        let Ok(connection) = incoming.await else { return };
                        while let Ok((mut send, mut receive)) = connection.accept_bi().await {
                            let heard = receive.read_to_end(1_024).await.unwrap();
                            send.write_all(&heard).await.unwrap();
                            send.finish().unwrap();
                        }
                    });
                }
            });
            Ok(())
        })
        .unwrap();
    asked
}

/// The first message of a QUIC client.
pub(super) fn quic_hello(name: &str) -> Vec<u8> {
    let name = ServerName::try_from(name.to_owned()).unwrap();
    let source = [&[0x0f, 8][..], &SOURCE].concat();
    let config = tls(&[&version::TLS13], false);
    let mut connection = quic::ClientConnection::new(config, Version::V1, name, source).unwrap();
    let mut message = Vec::new();
    assert!(connection.write_hs(&mut message).is_none());
    message
}

const SOURCE: [u8; 8] = [0x51; 8];

/// A connection as its client begins it.
#[derive(Clone, Copy)]
pub(super) struct Begins {
    version: Version,
    id: [u8; 8],
}

impl Begins {
    pub(super) fn v1(id: u8) -> Self {
        Self { version: Version::V1, id: [id; 8] }
    }

    /// An Initial packet with a part of the handshake (RFC 9000 §17.2.2, RFC 9001 §5); its number is sent in one byte, or in
    /// two.
    pub(super) fn packet(self, number: u64, offset: usize, part: &[u8]) -> Vec<u8> {
        self.packet_to(self.id, number, offset, part)
    }

    /// The same for a server that has chosen this identifier for itself.
    fn packet_to(self, id: [u8; 8], number: u64, offset: usize, part: &[u8]) -> Vec<u8> {
        let two = |number: usize| (u16::try_from(number).unwrap() | 0x4000).to_be_bytes();
        let number_bytes: usize = if number.trailing_zeros() >= 8 { 2 } else { 1 };
        let mut payload = [&[6][..], &two(offset), &two(part.len()), part].concat();
        let (first, version) = match self.version {
            Version::V2 => (0xd0, [0x6b, 0x33, 0x43, 0xcf]),
            _ => (0xc0, [0, 0, 0, 1]),
        };
        let first = first | u8::from(number_bytes == 2);
        let mut header = [&[first][..], &version, &[8], &id, &[8], &SOURCE, &[0]].concat();
        let number_at = header.len() + 2;
        payload.resize(payload.len().max(DATAGRAM - number_at - number_bytes - 16), 0);
        header.extend(two(number_bytes + payload.len() + 16));
        header.extend(&number.to_be_bytes()[8 - number_bytes..]);
        let suite = TLS13_AES_128_GCM_SHA256.tls13().unwrap().quic_suite().unwrap();
        let keys = suite.keys(&self.id, Side::Client, self.version).local;
        let tag = keys.packet.encrypt_in_place(number, &header, &mut payload).unwrap();
        payload.extend(tag.as_ref());
        let (head, number) = header.split_at_mut(number_at);
        keys.header.encrypt_in_place(&payload[4 - number_bytes..][..16], &mut head[0], number).unwrap();
        [header, payload].concat()
    }
}

/// Sends datagrams from one port.
fn send(pod: &Pod, datagrams: Vec<Vec<u8>>) {
    pod.netns.call(move || {
        let socket = UdpSocket::bind(("0.0.0.0", 0)).unwrap();
        for datagram in datagrams {
            socket.send_to(&datagram, (SHARED, 443)).unwrap();
            std::thread::sleep(PAUSE);
        }
    });
}

#[test]
fn a_quic_server_is_asked_for_no_name_that_was_not_judged() {
    let world = shared_world(&[TIE]);
    let asked = serve_noting(&world, false);
    let _agent = start(&world, &names(&[GOOD]), "enforce");
    let pod = world.pod(TIE);
    resolve(pod, &[GOOD]);
    let (bad, good) = (quic_hello(BAD), quic_hello(GOOD));
    let middle = bad.len() / 2;
    let (early, late) = bad.split_at(middle);
    let whole = |id| Begins::v1(id).packet(0, 0, &good);

    send(pod, vec![whole(1)]);
    await_that("what is allowed", || *asked.lock().unwrap() == [GOOD]);
    let hides = Begins::v1(2);
    send(pod, vec![hides.packet(0x300, 0, early), whole(3), hides.packet(0x301, middle, late), whole(4)]);
    let hides = Begins::v1(5);
    let others = (6..12).map(|id| Begins::v1(id).packet(0, 0, &good[..9]));
    let forgets = [hides.packet(0, 0, early)].into_iter().chain(others);
    send(pod, forgets.chain([hides.packet(1, middle, late), whole(12)]).collect());
    let hides = Begins::v1(13);
    send(pod, vec![hides.packet(0, 0, early), whole(14)]);
    send(pod, vec![hides.packet(1, middle, late), whole(15)]);
    // Each connection with the allowed name is judged for itself.
    await_that("the others", || asked.lock().unwrap().iter().filter(|name| *name == GOOD).count() == 6);
    let asked = asked.lock().unwrap();
    assert!(asked.iter().all(|name| name == GOOD), "{asked:?}");
}

/// Waits until something has come about.
fn await_that(what: &str, has: impl Fn() -> bool) {
    let until = std::time::Instant::now() + WITHIN;
    while !has() {
        assert!(std::time::Instant::now() < until, "{what}: not within {WITHIN:?}");
        std::thread::sleep(PAUSE);
    }
}

/// What reaches a server's port.
pub(super) fn note_datagrams(world: &World) -> Arc<Mutex<Vec<Vec<u8>>>> {
    let heard = Arc::new(Mutex::new(Vec::new()));
    let noted = Arc::clone(&heard);
    world
        .serve_outside(move |_| {
            let socket = UdpSocket::bind(("0.0.0.0", 443))?;
            socket.set_nonblocking(true)?;
            let socket = tokio::net::UdpSocket::from_std(socket)?;
            tokio::spawn(async move {
                let mut buffer = vec![0; 2_048];
                while let Ok(length) = socket.recv(&mut buffer).await {
                    noted.lock().unwrap().push(buffer[..length].to_vec());
                }
            });
            Ok(())
        })
        .unwrap();
    heard
}

#[test]
fn quic_packets_that_are_of_no_connection_that_passed_do_not_go_on() {
    let world = shared_world(&[TIE]);
    let heard = note_datagrams(&world);
    let _agent = start(&world, &names(&[GOOD]), "enforce");
    let pod = world.pod(TIE);
    resolve(pod, &[GOOD]);
    let (bad, good) = (quic_hello(BAD), quic_hello(GOOD));
    let passes = Begins::v1(1);
    let allowed = vec![passes.packet(0, 0, &good), passes.packet(1, good.len(), &good), vec![0x40; 30]];
    let mut damaged = passes.packet(2, 0, &good);
    *damaged.last_mut().unwrap() ^= 1;
    let mut another = good.clone();
    another[40] ^= 1;
    let mut keyed = vec![0x5a; 100];
    keyed[..9].copy_from_slice(&[0xe0, 0, 0, 0, 1, 0, 0, 0x40, 91]);
    let mut draft = Begins::v1(2).packet(0, 0, &good);
    draft[1..5].copy_from_slice(&[0xff, 0, 0, 29]);
    let denied = vec![
        Begins { version: Version::V2, ..passes }.packet(0, 0, &bad),
        Begins { version: Version::V2, id: [3; 8] }.packet(0, 0, &bad),
        damaged,
        keyed,
        draft,
        [passes.packet(3, 0, &good), Begins::v1(4).packet(0, 0, &bad)].concat(),
        // After it nothing of that connection goes on.
        passes.packet(4, 2 * good.len(), &bad),
    ];
    send(pod, allowed.iter().chain(&denied).cloned().collect());
    let hides = Begins::v1(5);
    send(pod, vec![hides.packet(0, 0, &good), hides.packet(1, good.len(), &bad)]);
    let other_hello = Begins::v1(6);
    send(pod, vec![other_hello.packet(0, 0, &good), other_hello.packet(1, 0, &another)]);
    let last = Begins::v1(7).packet(0, 0, &good);
    send(pod, vec![last.clone()]);
    await_that("the last datagram", || heard.lock().unwrap().contains(&last));
    let mut wanted: Vec<Vec<u8>> =
        [allowed, [hides, other_hello].map(|one| one.packet(0, 0, &good)).into(), vec![last]].concat();
    let mut heard = heard.lock().unwrap().clone();
    wanted.sort();
    heard.sort();
    let text = |datagrams: &[Vec<u8>]| datagrams.iter().map(|one| format!("{:x?}", &one[..14])).collect::<Vec<_>>();
    assert_eq!(text(&heard), text(&wanted));
    assert!(heard == wanted, "the same bytes");
}

#[test]
fn quic_clients_that_come_again_after_a_retry_are_judged_again() {
    let world = shared_world(&[TIE]);
    let asked = serve_noting(&world, true);
    let _agent = start(&world, &names(&[GOOD]), "enforce");
    let pod = world.pod(TIE);
    resolve(pod, &[GOOD]);
    for (kind, config) in &kinds()[1..] {
        let took = quic(pod, config, GOOD).unwrap_or_else(|| panic!("{kind}: no connection"));
        assert!(took < QUIC_AGAIN, "{kind}: nothing had to be sent again: {took:?}");
        assert_eq!(quic(pod, config, BAD), None, "{kind}");
    }
    assert!(asked.lock().unwrap().iter().all(|name| name == GOOD));
}

/// A hello of DTLS 1.2 (RFC 6347 §4.2.2) with nothing in it: no server needs to read it.
pub(super) fn dtls(kind: u8, minor: u8) -> Vec<u8> {
    let mut record = vec![kind, 0xfe, minor, 0, 0, 0, 0, 0, 0, 0, 0, 0, 12, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    record.resize(200, 0);
    record
}

#[test]
fn dtls_does_not_begin_where_names_are_bound() {
    let world = shared_world(&[TIE]);
    let pod = world.pod(TIE);
    let echoes = |datagram: Vec<u8>| {
        let echoed = pod.netns.run(async move { client::echo(echo(SHARED), &datagram, ANSWERS).await });
        echoed.is_ok()
    };
    for (binding, want) in [("enforce", false), ("observe", true)] {
        let agent = start(&world, &names(&[GOOD]), binding);
        resolve(pod, &[GOOD]);
        for (kind, minor) in [(22, 0xff), (22, 0xfd), (22, 0), (20, 0xfd), (25, 0xfd)] {
            assert_eq!(echoes(dtls(kind, minor)), want, "{binding}: record {kind}");
        }
        assert!(echoes(b"\x16\x03\x01 is not DTLS".to_vec()), "{binding}");
        let verdict = if want { "audited" } else { "denied" };
        agent
            .wait_for("the records", |agent| {
                let found = mismatches(agent);
                Ok((found.len() >= 5).then(|| assert!(found.iter().all(|(found, _)| found == verdict), "{found:?}")))
            })
            .unwrap();
    }
}

#[test]
fn a_name_is_read_whose_later_part_goes_to_the_identifier_that_its_server_chose() {
    let world = shared_world(&[TIE]);
    let agent = start(&world, &names(&[GOOD]), "observe");
    let pod = world.pod(TIE);
    resolve(pod, &[GOOD]);
    let hello = quic_hello(BAD);
    let (early, late) = hello.split_at(hello.len() / 2);
    let begins = Begins::v1(1);
    send(pod, vec![begins.packet(0, 0, early), begins.packet_to([9; 8], 1, early.len(), late)]);
    let is_reported = |agent: &Agent<'_>| anyhow::Ok(agent.flows("")?.iter().any(|flow| flow["server-name"] == BAD));
    agent.wait_for("the mismatch", |agent| Ok(is_reported(agent)?.then_some(()))).unwrap();
}

#[test]
fn a_flood_of_one_pod_hides_no_mismatch_of_another_and_is_counted() {
    let world = shared_world(&[TIE, XWING]);
    serve_quic(&world);
    let agent = start(&world, &names(&[GOOD]), "observe");
    let (hostile, honest) = (world.pod(TIE), world.pod(XWING));
    resolve(hostile, &[GOOD]);
    resolve(honest, &[GOOD]);
    let (_, config) = &kinds()[1];
    let unread = |agent: &Agent<'_>| {
        let status = agent.json("/v1/status").unwrap();
        let rows = status["names-unread"].as_array().cloned().unwrap_or_default();
        let of = |endpoint| rows.iter().find(|row| row["endpoint"] == endpoint).map(|row| row["count"].clone());
        (of(TIE).and_then(|count| count.as_u64()).unwrap_or(0), of(XWING))
    };
    for round in 1..=3_u64 {
        hostile.netns.call(move || {
            for number in 0..1_500 {
                let socket = UdpSocket::bind(("0.0.0.0", 0)).unwrap();
                // Four packets of each connection are copied at most.
                (0..5).for_each(|_| drop(socket.send_to(&beginning(number), (SHARED, 443))));
            }
        });
        assert!(quic(honest, config, BAD).is_some(), "it passes");
        let told = agent.wait_for("the mismatches", |agent| {
            let status = agent.json("/v1/status")?;
            let listed = status["mismatches"].as_array().cloned().unwrap_or_default();
            let of_honest = listed.iter().find(|one| one["endpoint"] == XWING && one["asked"] == BAD);
            Ok(of_honest.and_then(|one| one["count"].as_u64()).filter(|count| *count == round))
        });
        told.unwrap();
    }
    agent.wait_for("the count", |agent| Ok((unread(agent).0 > 1_000).then_some(()))).unwrap();
    assert_eq!(unread(&agent).1, None, "all of the other endpoint was looked at");
    let metrics = agent.get("/metrics").unwrap().text();
    assert!(metrics.contains(&format!("namegate_names_unread_total{{endpoint=\"{TIE}\"}}")), "{metrics}");
}
