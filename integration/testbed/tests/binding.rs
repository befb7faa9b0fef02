//! Names bound to connections: an address that one name opened is not open for its other names, through the real agent.
#![expect(clippy::unwrap_used, reason = "a test ends at the first surprise")]

#[path = "binding/attacks.rs"]
mod attacks;
#[expect(dead_code, reason = "each program of this folder uses its own part")]
mod common;
#[path = "binding/datagrams.rs"]
mod datagrams;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use common::{TIE, WITHIN, XWING, echo, egress, ip, namegate, text, world};
use http_body_util::Empty;
use hyper_util::rt::{TokioExecutor, TokioIo};
use namegate_testbed::proto::rr::RecordType;
use namegate_testbed::{Agent, Failure, Options, Pod, Visit, World, client};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio_rustls::rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use tokio_rustls::rustls::crypto::{ActiveKeyExchange, CryptoProvider, SharedSecret, SupportedKxGroup, ring};
use tokio_rustls::rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use tokio_rustls::rustls::{
    ClientConfig, ClientConnection, DigitallySignedStruct, Error, NamedGroup, SignatureScheme,
    SupportedProtocolVersion, version,
};

/// One address with many names, as of a content delivery network.
const SHARED: &str = "192.0.2.80";
const GOOD: &str = "good.shared.test";
const BAD: &str = "bad.shared.test";
const OTHER: &str = "other.shared.test";
/// Ports of servers that speak first.
const GREETING: u16 = 2_222;
/// On a port where connections must ask for a name by the setting.
const NAMED: u16 = 3_333;
/// How long a QUIC connection may take that is not to come about, and one of which nothing is lost: a client sends again
/// after a second.
const QUIC_SILENT: Duration = Duration::from_millis(2_500);
const QUIC_AGAIN: Duration = Duration::from_millis(900);
/// After the word that an agent must have said by now.
const TOLD: Duration = Duration::from_millis(300);

fn shared_world(pods: &[&str]) -> World {
    let world = world(pods);
    for name in [GOOD, BAD, OTHER] {
        world.zone().set_addresses(name, 600, &[ip(SHARED)]);
    }
    for port in [GREETING, NAMED] {
        world.serve_outside(move |host| host.greet_tcp(port, b"SSH-2.0-testbed\r\n")).unwrap();
    }
    world
}

fn names(names: &[&str]) -> String {
    let names: Vec<String> = names.iter().map(|name| format!("{{matchName: {name}}}")).collect();
    egress(&format!("  - toFQDNs: [{}]\n", names.join(", ")))
}

fn start<'w>(world: &'w World, policies: &str, binding: &str) -> Agent<'w> {
    let options = Options::default().policies(policies).with(json!({"dns": {"nameBinding": binding}}));
    let agent = Agent::start(world, &options).unwrap();
    let policy = agent.policy().unwrap();
    assert_eq!(policy["diagnostics"].as_array().map(Vec::len), Some(0), "{policy:#}");
    agent
}

fn get(pod: &Pod, url: &str) -> Visit {
    let (mut client, url) = (pod.client(), url.to_owned());
    client.within = WITHIN;
    pod.run(client, move |client| async move { client.get(&url).await })
}

fn resolve(pod: &Pod, names: &[&str]) {
    for name in names {
        assert_eq!(pod.lookup(name, RecordType::A).unwrap().addresses, [ip(SHARED)]);
    }
}

/// Sends octets in parts, a moment apart, and gives what comes back first.
fn talk(pod: &Pod, port: u16, parts: Vec<Vec<u8>>) -> Result<Vec<u8>, Failure> {
    pod.netns.run(async move {
        let mut stream = client::connect(SocketAddr::new(ip(SHARED), port), WITHIN).await?;
        stream.set_nodelay(true).unwrap();
        for part in parts {
            if stream.write_all(&part).await.is_err() {
                return Err(Failure::Reset);
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        let mut heard = vec![0; 4_096];
        match tokio::time::timeout(WITHIN, stream.read(&mut heard)).await {
            Err(_) => Err(Failure::Timeout),
            Ok(Err(_)) => Err(Failure::Reset),
            Ok(Ok(count)) => Ok(heard[..count].to_vec()),
        }
    })
}

fn talk_text(pod: &Pod, request: &str) -> String {
    String::from_utf8(talk(pod, 80, vec![request.as_bytes().to_vec()]).unwrap()).unwrap()
}

/// Takes every certificate: what is tested is who gets an answer at all.
#[derive(Debug)]
struct Anybody;

impl ServerCertVerifier for Anybody {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        ring::default_provider().signature_verification_algorithms.supported_schemes()
    }
}

/// A key share of the size of X25519MLKEM768, of a group that the server does not have: the handshake goes on with
/// another after a retry.
#[derive(Debug)]
struct Large;

impl SupportedKxGroup for Large {
    fn start(&self) -> Result<Box<dyn ActiveKeyExchange>, Error> {
        Ok(Box::new(Share(vec![0x5a; 1_216])))
    }

    fn name(&self) -> NamedGroup {
        NamedGroup::X25519MLKEM768
    }
}

struct Share(Vec<u8>);

impl ActiveKeyExchange for Share {
    fn complete(self: Box<Self>, _: &[u8]) -> Result<SharedSecret, Error> {
        Err(Error::General("nobody agrees on this group".into()))
    }

    fn pub_key(&self) -> &[u8] {
        &self.0
    }

    fn group(&self) -> NamedGroup {
        NamedGroup::X25519MLKEM768
    }
}

fn tls(versions: &[&'static SupportedProtocolVersion], large: bool) -> Arc<ClientConfig> {
    let mut provider = ring::default_provider();
    if large {
        provider.kx_groups.insert(0, &Large);
    }
    let provider: Arc<CryptoProvider> = provider.into();
    let builder = ClientConfig::builder_with_provider(provider).with_protocol_versions(versions).unwrap();
    builder.dangerous().with_custom_certificate_verifier(Arc::new(Anybody)).with_no_client_auth().into()
}

/// The versions and sizes of first messages that clients have.
fn kinds() -> [(&'static str, Arc<ClientConfig>); 3] {
    [
        ("TLS 1.2", tls(&[&version::TLS12], false)),
        ("TLS 1.3", tls(&[&version::TLS13], false)),
        ("TLS 1.3 with a large key share", tls(&[&version::TLS13], true)),
    ]
}

/// The first message of a connection to a name.
fn hello(config: &Arc<ClientConfig>, name: &str) -> Vec<u8> {
    let name = ServerName::try_from(name.to_owned()).unwrap();
    let mut connection = ClientConnection::new(config.clone(), name).unwrap();
    let mut octets = Vec::new();
    connection.write_tls(&mut octets).unwrap();
    octets
}

fn https(pod: &Pod, config: &Arc<ClientConfig>, name: &str) -> Visit {
    let (mut client, url) = (pod.client(), format!("https://{name}/v1"));
    (client.within, client.tls) = (WITHIN, config.clone().into());
    pod.run(client, move |client| async move { client.get(&url).await })
}

/// The status of a request over HTTP/2 with prior knowledge.
fn http2(pod: &Pod, name: &'static str) -> u16 {
    pod.netns.run(async move {
        let stream = client::connect(SocketAddr::new(ip(SHARED), 80), WITHIN).await.unwrap();
        let handshake = hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream));
        let (mut sender, connection) = handshake.await.unwrap();
        tokio::spawn(connection);
        let request = hyper::Request::get(format!("http://{name}/v1")).body(Empty::<bytes::Bytes>::new()).unwrap();
        let response = tokio::time::timeout(WITHIN, sender.send_request(request)).await.unwrap().unwrap();
        response.status().as_u16()
    })
}

/// Flows with the reason `name-mismatch`: verdict and name asked for.
fn mismatches(agent: &Agent<'_>) -> Vec<(String, Option<String>)> {
    let asked = |flow: &Value| flow["server-name"].as_str().or(flow["http"]["host"].as_str()).map(str::to_owned);
    let flows = agent.flows("").unwrap();
    let found = flows.iter().filter(|flow| flow["reason"] == "name-mismatch");
    found.map(|flow| (text(&flow["verdict"]), asked(flow))).collect()
}

#[test]
fn http_to_another_name_of_the_address_is_refused() {
    let world = shared_world(&[TIE]);
    let agent = start(&world, &names(&[GOOD]), "enforce");
    let pod = world.pod(TIE);
    assert_eq!(get(pod, &format!("http://{GOOD}/v1")).status(), Some(200));
    let before = world.outside_log().all().len();
    let refused = get(pod, &format!("http://{BAD}/v1"));
    assert_eq!(refused.status(), Some(403), "{:?}", refused.outcome);
    assert_eq!(get(pod, &format!("http://{SHARED}/v1")).status(), Some(403), "the address itself is no name");
    assert_eq!(get(pod, &format!("http://{GOOD}/a%2Fb/../c")).status(), Some(200), "paths are not looked at");

    let request = |host: &str| format!("GET /v1 HTTP/1.1\r\nHost: {host}\r\n\r\n");
    let ok = |heard: &str| heard.starts_with("HTTP/1.1 200");
    assert!(ok(&talk_text(pod, &request(GOOD))));
    for beginning in ["", "\r\n", "\r\n\n\r\n", "\n"] {
        let heard = talk_text(pod, &(beginning.to_owned() + &request(BAD)));
        assert!(heard.starts_with("HTTP/1.1 403"), "{beginning:?}: {heard}");
        assert!(heard.contains("x-namegate-reason: the name did not open this address"), "{heard}");
        assert!(ok(&talk_text(pod, &(beginning.to_owned() + &request(GOOD)))), "{beginning:?}");
    }
    for odd in
        ["GET /v1\r\n\r\n", " GET /v1 HTTP/1.1\r\nHost: x\r\n\r\n", "GET /v1 HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n"]
    {
        assert!(talk_text(pod, odd).starts_with("HTTP/1.1 400"), "{odd}");
    }
    let heard = talk_text(pod, "GET /v1 HTTP/1.0\r\n\r\n");
    assert!(heard.starts_with("HTTP/1.0 403"), "{heard}");
    let whole = request(BAD);
    let octet_by_octet = whole.bytes().map(|octet| vec![octet]).collect();
    let heard = talk(pod, 80, octet_by_octet).unwrap();
    assert!(heard.starts_with(b"HTTP/1.1 403"), "{}", heard.escape_ascii());

    assert_eq!(http2(pod, GOOD), 200);
    assert_eq!(http2(pod, BAD), 403);
    let reached = world.outside_log().all().len() - before;
    assert!(reached > 0, "connections are made at once");

    agent
        .wait_for("the refusals", |agent| {
            Ok(mismatches(agent).contains(&("denied".into(), Some(BAD.into()))).then_some(()))
        })
        .unwrap();
    let (_, shown, _) = namegate(&agent, &["status"]);
    assert!(shown.contains(&format!("asked for {BAD}, the address was opened by {GOOD}")), "{shown}");
}

#[test]
fn tls_to_another_name_of_the_address_is_refused() {
    let world = shared_world(&[TIE]);
    let agent = start(&world, &names(&[GOOD]), "enforce");
    let pod = world.pod(TIE);
    for (kind, config) in kinds() {
        let visit = https(pod, &config, GOOD);
        assert_eq!(visit.status(), Some(200), "{kind}: {:?}", visit.outcome);
        assert_eq!(https(pod, &config, BAD).outcome, Err(Failure::Reset), "{kind}");
        assert_eq!(https(pod, &config, SHARED).outcome, Err(Failure::Reset), "{kind}: no name");
        // Of the message, and from its end.
        for at in [1, 5, 6, 9, 43, 100, usize::MAX] {
            let split = |name: &str| {
                let mut first = hello(&config, name);
                let second = first.split_off(at.min(first.len() - 1));
                talk(pod, 443, vec![first, second])
            };
            let heard = split(GOOD).unwrap();
            assert_eq!(heard.first(), Some(&22), "{kind}, split after {at}");
            assert_eq!(split(BAD), Err(Failure::Reset), "{kind}, split after {at}");
        }
    }
    let (kind, config) = &kinds()[2];
    let parts: Vec<Vec<u8>> = hello(config, GOOD).chunks(300).map(<[u8]>::to_vec).collect();
    assert!(parts.len() > 4, "{kind}");
    assert_eq!(talk(pod, 443, parts).unwrap().first(), Some(&22), "{kind}, in many parts");
    assert!(mismatches(&agent).iter().all(|(verdict, _)| verdict == "denied"));
}

#[test]
fn a_name_that_another_endpoint_resolved_is_refused_until_the_endpoint_does() {
    let world = shared_world(&[TIE, XWING]);
    let _agent = start(&world, &names(&[GOOD, BAD]), "enforce");
    let (pod, other) = (world.pod(TIE), world.pod(XWING));
    resolve(pod, &[GOOD]);
    resolve(other, &[BAD]);
    let (_, config) = &kinds()[1];
    let passes = |pod: &Pod, name: &str| talk(pod, 443, vec![hello(config, name)]).is_ok();
    assert!(passes(pod, GOOD) && !passes(pod, BAD));
    assert!(passes(other, BAD) && !passes(other, GOOD));
    resolve(pod, &[BAD]);
    assert!(passes(pod, BAD), "resolved by itself now");
}

/// Other protocols go by the address alone, whoever speaks first.
#[test]
fn protocols_without_names_pass() {
    let world = shared_world(&[TIE]);
    let agent = start(&world, &names(&[GOOD]), "enforce");
    let pod = world.pod(TIE);
    resolve(pod, &[GOOD]);
    let greeted = talk(pod, GREETING, vec![]).unwrap();
    assert_eq!(greeted, b"SSH-2.0-testbed\r\n", "before the client has said anything");
    let conversation = pod.netns.run(async move {
        let mut stream = client::connect(SocketAddr::new(ip(SHARED), GREETING), WITHIN).await.unwrap();
        let mut heard = [0; 17];
        stream.read_exact(&mut heard).await.unwrap();
        stream.write_all(b"SSH-2.0-client\r\n").await.unwrap();
        let mut back = [0; 16];
        tokio::time::timeout(WITHIN, stream.read_exact(&mut back)).await.unwrap().unwrap();
        back
    });
    assert_eq!(&conversation, b"SSH-2.0-client\r\n");
    for beginning in [&b"\0\0\0\x08\x04\xd2\x16\x2f"[..], b"*1\r\n$4\r\nPING\r\n", b"EHLO a.io\r\n"] {
        let heard = talk(pod, echo(SHARED).port(), vec![beginning.to_vec()]).unwrap();
        assert_eq!(heard, beginning, "the client speaks first");
    }
    assert_eq!(mismatches(&agent), []);
    let unread = talk(pod, echo(SHARED).port(), vec![b"\x16\x03\x01\0\0".to_vec()]);
    assert_eq!(unread, Err(Failure::Reset), "neither TLS nor anything else");
}

#[test]
fn a_name_is_needed_on_the_ports_of_the_setting_or_of_the_policy() {
    let world = shared_world(&[TIE]);
    let dns = json!({"nameBinding": "enforce", "namedPorts": [443, "3300-3400"]});
    let options = Options::default().policies(&names(&[GOOD])).with(json!({"dns": dns}));
    let agent = Agent::start(&world, &options).unwrap();
    let pod = world.pod(TIE);
    resolve(pod, &[GOOD]);
    let greeting = |port| talk(pod, port, vec![]);
    assert_eq!(greeting(NAMED), Err(Failure::Reset));
    assert!(greeting(GREETING).is_ok());
    agent.wait_for("the refusal", |agent| Ok((mismatches(agent) == [("denied".into(), None)]).then_some(()))).unwrap();

    let annotated = |ports: &str| {
        let metadata = format!("metadata: {{name: dns-and-more, annotations: {{namegate.io/named-ports: '{ports}'}}, ");
        names(&[GOOD]).replace("metadata: {name: dns-and-more, ", &metadata)
    };
    agent.apply(&annotated("1-3000")).unwrap();
    assert_eq!(greeting(GREETING), Err(Failure::Reset));
    assert!(greeting(NAMED).is_ok());
    agent.apply(&annotated("none")).unwrap();
    assert!(greeting(GREETING).is_ok() && greeting(NAMED).is_ok());
    let mistakes = agent.apply(&annotated("ssh")).unwrap().mistakes();
    assert!(mistakes.len() == 1 && mistakes[0].contains("`ssh`"), "{mistakes:?}");
}

/// What was let pass ends with its rule, and not with the TTL of its name.
#[test]
fn connections_end_with_their_rule_and_not_with_their_name() {
    let world = shared_world(&[TIE]);
    world.zone().set_addresses(GOOD, 1, &[ip(SHARED)]);
    let agent = start(&world, &names(&[GOOD]), "enforce");
    let pod = world.pod(TIE);
    resolve(pod, &[GOOD]);
    let conversation = pod.open(echo(SHARED), WITHIN).unwrap();
    conversation.say(b"\0first", WITHIN).unwrap();
    std::thread::sleep(Duration::from_millis(1_500));
    // Another policy changes, and the name has ended.
    agent.apply(&(names(&[GOOD]) + "---\n" + &names(&[OTHER]).replace("dns-and-more", "other"))).unwrap();
    std::thread::sleep(Duration::from_millis(600));
    conversation.say(b"second", WITHIN).unwrap();
    agent.apply(&names(&[OTHER]).replace("dns-and-more", "other")).unwrap();
    let revoked = |agent: &Agent<'_>| {
        let status = agent.json("/v1/status")?;
        let counts = status["requests"].as_array().unwrap();
        let count = counts.iter().find(|count| count["what"] == "revoked").unwrap()["count"].as_u64();
        Ok((count == Some(1)).then_some(()))
    };
    agent.wait_for("the end", revoked).unwrap();
    assert!(conversation.say(b"third", WITHIN).is_err());
}

#[test]
fn what_would_be_refused_is_told_and_passes() {
    let world = shared_world(&[TIE]);
    let agent = start(&world, &names(&[GOOD]), "observe");
    let pod = world.pod(TIE);
    for name in [GOOD, BAD] {
        assert_eq!(get(pod, &format!("http://{name}/v1")).status(), Some(200), "{name}");
        for (kind, config) in kinds() {
            let visit = https(pod, &config, name);
            assert_eq!(visit.status(), Some(200), "{kind} {name}: {:?}", visit.outcome);
        }
    }
    assert_eq!((http2(pod, GOOD), http2(pod, OTHER)), (200, 200));
    assert!(talk(pod, echo(SHARED).port(), vec![b"\0\x01\x02".to_vec()]).is_ok());
    let status = agent
        .wait_for("the connections", |agent| {
            let status = agent.json("/v1/status")?;
            let count = |what: &str| {
                let tallies = status["name-checks"].as_array().unwrap();
                tallies.iter().find(|tally| tally["what"] == what).unwrap()["count"].as_u64().unwrap()
            };
            let done = (count("matched"), count("mismatched"), count("nameless")) == (5, 5, 1);
            Ok(done.then_some(status.clone()))
        })
        .unwrap();
    let found = mismatches(&agent);
    assert_eq!(found.len(), 5, "{found:?}");
    assert!(found.iter().all(|(verdict, _)| verdict == "audited"), "{found:?}");
    let listed = status["mismatches"].as_array().unwrap();
    let counts: Vec<_> =
        listed.iter().map(|one| (text(&one["asked"]), one["port"].clone(), one["count"].clone())).collect();
    assert!(counts.contains(&(BAD.into(), 443.into(), 3.into())), "{counts:?}");
    assert!(
        counts.contains(&(BAD.into(), 80.into(), 1.into())) && counts.contains(&(OTHER.into(), 80.into(), 1.into()))
    );
    assert!(listed.iter().all(|one| one["names"] == json!([GOOD]) && one["endpoint"] == TIE), "{listed:?}");
    let (_, shown, _) = namegate(&agent, &["status"]);
    assert!(shown.contains("would refuse") && shown.contains(BAD), "{shown}");
}

#[test]
fn off_tells_nothing_and_the_least_strict_rule_decides() {
    let world = shared_world(&[TIE]);
    let agent = start(&world, &names(&[GOOD]), "off");
    let pod = world.pod(TIE);
    resolve(pod, &[GOOD]);
    let (_, config) = &kinds()[1];
    let passes = |name: &str| talk(pod, 443, vec![hello(config, name)]).is_ok();
    assert!(passes(GOOD) && passes(BAD));
    std::thread::sleep(TOLD);
    assert_eq!(mismatches(&agent), []);

    // The annotation goes before the setting.
    let annotated = |name: &str, binding: &str, peers: &str| {
        let policy = egress(&format!("  - {peers}\n"));
        let metadata = format!("metadata: {{name: {name}, annotations: {{namegate.io/name-binding: {binding}}}, ");
        policy.replace("metadata: {name: dns-and-more, ", &metadata)
    };
    let good = format!("toFQDNs: [{{matchName: {GOOD}}}]");
    let bound = annotated("bound", "enforce", &good);
    agent.apply(&bound).unwrap();
    assert!(passes(GOOD) && !passes(BAD));
    agent.apply(&format!("{bound}---\n{}", annotated("loose", "off", &good))).unwrap();
    assert!(passes(GOOD) && passes(BAD), "another rule for the same name does not ask");
    agent.apply(&format!("{bound}---\n{}", annotated("cidr", "enforce", "toCIDR: [192.0.2.80/32]"))).unwrap();
    assert!(passes(GOOD) && passes(BAD), "a rule opens the address whatever its names");
    let other = format!("toFQDNs: [{{matchName: {OTHER}}}]");
    agent.apply(&format!("{bound}---\n{}", annotated("other", "enforce", &other))).unwrap();
    assert!(passes(GOOD) && !passes(BAD) && !passes(OTHER));
    resolve(pod, &[OTHER]);
    assert!(passes(GOOD) && !passes(BAD) && passes(OTHER), "each of two rules by its name");
    let mistakes = agent.apply(&annotated("bound", "strict", &good)).unwrap().mistakes();
    assert!(mistakes.len() == 1 && mistakes[0].contains("`strict` is none of the words"), "{mistakes:?}");
}

/// Limits on requests are those of the rules for the name that is asked for.
#[test]
fn limits_go_by_the_name_too() {
    let world = shared_world(&[TIE]);
    let limited = |name: &str, path: &str| {
        format!(
            "  - toFQDNs: [{{matchName: {name}}}]\n    toPorts:\n    - ports: [{{port: '80', protocol: TCP}}]\n      \
             rules: {{http: [{{path: '{path}'}}]}}\n"
        )
    };
    let _agent = start(&world, &egress(&(limited(GOOD, "/v1") + &limited(OTHER, "/version"))), "enforce");
    let pod = world.pod(TIE);
    resolve(pod, &[GOOD, OTHER]);
    for (name, path, want) in
        [(GOOD, "/v1", 200), (GOOD, "/version", 403), (OTHER, "/version", 200), (OTHER, "/v1", 403), (BAD, "/v1", 403)]
    {
        let heard = talk_text(pod, &format!("GET {path} HTTP/1.1\r\nHost: {name}\r\n\r\n"));
        assert!(heard.starts_with(&format!("HTTP/1.1 {want}")), "{name}{path}: {heard}");
    }
}

#[test]
fn without_the_agent_enforced_names_do_not_pass_and_observed_ones_do() {
    let world = shared_world(&[TIE]);
    let pod = world.pod(TIE);
    let (_, config) = &kinds()[1];
    for (binding, want) in [("enforce", false), ("observe", true)] {
        let mut agent = start(&world, &names(&[GOOD]), binding);
        resolve(pod, &[GOOD]);
        assert!(talk(pod, 443, vec![hello(config, GOOD)]).is_ok());
        agent.kill().unwrap();
        assert_eq!(talk(pod, 443, vec![hello(config, GOOD)]).is_ok(), want, "{binding}");
        agent.run().unwrap();
        assert!(talk(pod, 443, vec![hello(config, GOOD)]).is_ok(), "{binding}");
    }
}

/// A QUIC server for every name, which sends back what comes.
fn serve_quic(world: &World) {
    world
        .serve_outside(|_| {
            let key = rcgen::KeyPair::generate()?;
            let certificate = rcgen::CertificateParams::new(vec![GOOD.to_owned()])?.self_signed(&key)?;
            let key = tokio_rustls::rustls::pki_types::PrivatePkcs8KeyDer::from(key.serialize_der());
            let config = quinn::ServerConfig::with_single_cert(vec![certificate.der().clone()], key.into())?;
            let endpoint = quinn::Endpoint::server(config, SocketAddr::new(ip("0.0.0.0"), 443))?;
            tokio::spawn(async move {
                while let Some(incoming) = endpoint.accept().await {
                    tokio::spawn(async move {
                        let Ok(connection) = incoming.await else { return };
                        while let Ok((mut send, mut receive)) = connection.accept_bi().await {
                            // A client may have given this stream up, and go on with others.
                            if let Ok(heard) = receive.read_to_end(1_024).await
                                && send.write_all(&heard).await.is_ok()
                            {
                                let _ = send.finish();
                            }
                        }
                    });
                }
            });
            Ok(())
        })
        .unwrap();
}

/// A connection of a pod over QUIC.
#[derive(Clone)]
struct Quic {
    /// Closed on drop.
    _endpoint: quinn::Endpoint,
    connection: quinn::Connection,
}

impl Quic {
    async fn open(config: Arc<ClientConfig>, name: &str) -> Option<Self> {
        let endpoint = quinn::Endpoint::client(SocketAddr::new(ip("0.0.0.0"), 0)).unwrap();
        let config = quinn::crypto::rustls::QuicClientConfig::try_from(config).unwrap();
        let config = quinn::ClientConfig::new(Arc::new(config));
        let connecting = endpoint.connect_with(config, SocketAddr::new(ip(SHARED), 443), name).unwrap();
        let connection = tokio::time::timeout(QUIC_SILENT, connecting).await.ok()?.unwrap();
        Some(Self { _endpoint: endpoint, connection })
    }

    /// Sends octets, many enough for many packets, and gets them back.
    async fn talk(&self) {
        let (mut send, mut receive) = self.connection.open_bi().await.unwrap();
        send.write_all(&[7; 1_000]).await.unwrap();
        send.finish().unwrap();
        let heard = tokio::time::timeout(WITHIN, receive.read_to_end(2_000)).await.unwrap().unwrap();
        assert_eq!(heard, [7; 1_000]);
    }
}

/// Whether a connection comes about, and how fast.
fn quic(pod: &Pod, config: &Arc<ClientConfig>, name: &'static str) -> Option<Duration> {
    let config = config.clone();
    pod.netns.run(async move {
        let began = std::time::Instant::now();
        let quic = Quic::open(config, name).await?;
        let took = began.elapsed();
        quic.talk().await;
        Some(took)
    })
}

#[test]
fn quic_to_another_name_of_the_address_is_refused() {
    let world = shared_world(&[TIE]);
    serve_quic(&world);
    let agent = start(&world, &names(&[GOOD]), "enforce");
    let pod = world.pod(TIE);
    resolve(pod, &[GOOD]);
    for (kind, config) in &kinds()[1..] {
        let took = quic(pod, config, GOOD).unwrap_or_else(|| panic!("{kind}: no connection"));
        assert!(took < QUIC_AGAIN, "{kind}: nothing had to be sent again: {took:?}");
        assert_eq!(quic(pod, config, BAD), None, "{kind}");
    }
    let denied = agent
        .wait_for("the refusals", |agent| {
            let denials = agent.denials(pod)?;
            let of_quic = denials.into_iter().filter(|flow| flow["protocol"] == "UDP");
            let found: Vec<_> = of_quic.filter(|flow| flow["reason"] == "name-mismatch").collect();
            Ok((found.len() == 2).then_some(found))
        })
        .unwrap();
    assert!(denied.iter().all(|flow| flow["server-name"] == BAD && flow["destination-port"] == 443), "{denied:#?}");
    assert_eq!(pod.netns.run(client::echo(echo(SHARED), b"not QUIC", WITHIN)), Ok(()), "other protocols pass");
}

#[test]
fn quic_without_the_agent_goes_on_where_it_was_let_pass() {
    let world = shared_world(&[TIE]);
    serve_quic(&world);
    let mut agent = start(&world, &names(&[GOOD]), "enforce");
    let pod = world.pod(TIE);
    resolve(pod, &[GOOD]);
    let (_, config) = &kinds()[1];
    let open = config.clone();
    let connection = pod.netns.run(async move { Quic::open(open, GOOD).await.unwrap() });
    let talk = |connection: &Quic| {
        let connection = connection.clone();
        pod.netns.run(async move { connection.talk().await });
    };
    talk(&connection);
    agent.kill().unwrap();
    talk(&connection);
    assert_eq!(quic(pod, config, GOOD), None, "nobody looks at its name");
    agent.run().unwrap();
    talk(&connection);
    assert!(quic(pod, config, GOOD).is_some());
    agent
        .wait_for("the record of what came while the agent was away", |agent| {
            let denials = agent.denials(pod)?;
            Ok(denials.iter().any(|flow| flow["reason"] == "proxy-absent").then_some(()))
        })
        .unwrap();
}

#[test]
fn quic_to_another_name_is_told_where_names_are_observed() {
    let world = shared_world(&[TIE]);
    serve_quic(&world);
    let agent = start(&world, &names(&[GOOD]), "observe");
    let pod = world.pod(TIE);
    resolve(pod, &[GOOD]);
    for (_, config) in &kinds()[1..] {
        assert!(quic(pod, config, GOOD).is_some() && quic(pod, config, BAD).is_some());
    }
    agent
        .wait_for("the connections", |agent| {
            let wanted = vec![("audited".to_owned(), Some(BAD.to_owned())); 2];
            Ok((mismatches(agent) == wanted).then_some(()))
        })
        .unwrap();
    let status = agent.json("/v1/status").unwrap();
    assert_eq!(status["mismatches"][0]["protocol"], "UDP", "{status:#}");
}

/// The beginning of a QUIC connection, of which the rest never comes: a long header of version 1 and noise.
fn beginning(number: u16) -> Vec<u8> {
    let mut datagram = vec![0x5a; 1_200];
    datagram[..6].copy_from_slice(&[0xc3, 0, 0, 0, 1, 8]);
    datagram[6..8].copy_from_slice(&number.to_be_bytes());
    // Connection identifiers of 8 and 0 bytes, no token, the rest of the datagram.
    datagram[14..18].copy_from_slice(&[0, 0, 0x44, 0x9e]);
    datagram
}

/// Ends a flood when it is dropped.
#[derive(Default)]
struct Ends(Arc<std::sync::atomic::AtomicBool>);

impl Drop for Ends {
    fn drop(&mut self) {
        self.0.store(true, std::sync::atomic::Ordering::Relaxed);
    }
}

#[test]
fn a_flood_of_beginnings_of_one_pod_leaves_quic_to_others() {
    let world = shared_world(&[TIE, XWING]);
    serve_quic(&world);
    let agent = start(&world, &names(&[GOOD]), "enforce");
    let (hostile, honest) = (world.pod(TIE), world.pod(XWING));
    resolve(hostile, &[GOOD]);
    resolve(honest, &[GOOD]);
    let (_, config) = &kinds()[1];
    assert!(quic(honest, config, GOOD).is_some());
    let ends = Ends::default();
    let ended = Arc::clone(&ends.0);
    std::thread::scope(|scope| {
        // The flood ends with this test, also where that fails.
        let ends = ends;
        let flooding = scope.spawn(move || {
            hostile.netns.call(move || {
                let sockets: Vec<_> = (0..300).map(|_| std::net::UdpSocket::bind(("0.0.0.0", 0)).unwrap()).collect();
                let mut sent = 0_u64;
                while !ended.load(std::sync::atomic::Ordering::Relaxed) {
                    for (number, socket) in (0..).zip(&sockets) {
                        sent += u64::from(socket.send_to(&beginning(number), (SHARED, 443)).is_ok());
                        // Many more than are copied, and no more than the node's queue for all interfaces takes.
                        if number % 100 == 0 {
                            std::thread::sleep(Duration::from_millis(5));
                        }
                    }
                }
                sent
            })
        });
        let told = agent.wait_for("the flood", |agent| {
            let checks = agent.json("/v1/status")?["name-checks"].clone();
            let lost = checks.as_array().unwrap().iter().find(|check| check["what"] == "lost").unwrap();
            Ok((lost["count"].as_u64().unwrap() > 20_000).then_some(()))
        });
        told.unwrap();
        let opened = (0..5).filter(|_| quic(honest, config, GOOD).is_some()).count();
        drop(ends);
        let sent = flooding.join().unwrap();
        let status = agent.json("/v1/status").unwrap();
        assert_eq!(opened, 5, "beside {sent} datagrams: {:#} {:#}", status["name-checks"], status["refused"]);
    });
    let of_hostile = |row: &Value| row["endpoint"] == TIE && row["bound"] == "copies of handshakes";
    let counted = agent.wait_for("the count", |agent| {
        let refused = agent.json("/v1/status")?["refused"].clone();
        Ok(refused.as_array().unwrap().iter().any(of_hostile).then_some(()))
    });
    counted.unwrap();
    assert!(quic(honest, config, GOOD).is_some(), "and after it");
}
