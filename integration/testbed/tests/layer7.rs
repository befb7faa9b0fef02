//! Limits on requests: HTTP rules in both directions and TLS server names, through the real agent.
#![expect(clippy::unwrap_used, reason = "a test ends at the first surprise")]

#[expect(dead_code, reason = "each program of this folder uses its own part")]
mod common;

use std::net::SocketAddr;

use common::{SILENT, TIE, WITHIN, XWING, document, echo, egress, flow, ip, opens, text, world};
use hyper::Method;
use namegate_testbed::proto::rr::RecordType;
use namegate_testbed::seed::{self, CHAPTERS, NAMESPACE};
use namegate_testbed::{Agent, Failure, Options, Pod, Visit, client};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

const DEATHSTAR: &str = "empire/deathstar-1";
const PROMETHEUS: &str = "monitoring/prometheus-core";
const CILIUM_IO: &str = "104.198.14.52";

fn metrics_policy() -> String {
    seed::kubectl_create(NAMESPACE, CHAPTERS[2].policy)
}

fn start<'w>(world: &'w namegate_testbed::World, policies: &str) -> Agent<'w> {
    let agent = Agent::start(world, &Options::default().policies(policies)).unwrap();
    let policy = agent.policy().unwrap();
    assert_eq!(policy["diagnostics"].as_array().map(Vec::len), Some(0), "{policy:#}");
    agent
}

fn request(pod: &Pod, method: Method, url: &str) -> Visit {
    let (mut client, url) = (pod.client(), url.to_owned());
    client.within = WITHIN;
    pod.run(client, move |client| async move { client.request(method, &url).await })
}

fn get(pod: &Pod, url: &str) -> Visit {
    request(pod, Method::GET, url)
}

/// Whether nothing comes back at all.
fn is_silent(pod: &Pod, to: SocketAddr) -> bool {
    !opens(pod, to)
}

/// Sends octets over one connection and gives all that comes back until the other side is done or silent.
fn talk(pod: &Pod, to: SocketAddr, parts: &[&str]) -> String {
    let parts: Vec<String> = parts.iter().map(|part| (*part).to_owned()).collect();
    pod.netns.run(async move {
        let mut stream = client::connect(to, WITHIN).await.unwrap();
        let mut heard = Vec::new();
        for part in parts {
            stream.write_all(part.as_bytes()).await.unwrap();
            let mut octets = [0; 16_384];
            // Each part is answered in one piece here.
            if let Ok(Ok(count)) = tokio::time::timeout(WITHIN, stream.read(&mut octets)).await {
                heard.extend_from_slice(&octets[..count]);
            }
        }
        String::from_utf8(heard).unwrap()
    })
}

#[test]
fn requests_to_an_endpoint_pass_by_method_and_path() {
    let world = world(&[DEATHSTAR, PROMETHEUS, TIE]);
    let agent = start(&world, &metrics_policy());
    let (prometheus, deathstar) = (world.pod(PROMETHEUS), world.pod(DEATHSTAR));
    for host in [deathstar.ipv4().to_string(), format!("[{}]", deathstar.ipv6())] {
        for (method, path, want) in [
            (Method::GET, "/metrics", 200),
            (Method::POST, "/metrics", 403),
            (Method::HEAD, "/metrics", 403),
            (Method::GET, "/secrets", 403),
            (Method::GET, "/metrics?x=1", 403),
            (Method::GET, "/metrics/../secrets", 403),
            (Method::GET, "//metrics", 200),
            (Method::GET, "/metrics%2fsecrets", 400),
        ] {
            let visit = request(prometheus, method.clone(), &format!("http://{host}:8080{path}"));
            assert_eq!(visit.status(), Some(want), "{method} {host} {path}: {:?}", visit.outcome);
            if want == 403 && method != Method::HEAD {
                assert_eq!(visit.outcome.unwrap().body, "Access denied\n");
            }
        }
    }
    let page = get(prometheus, &format!("http://{}:8080/metrics", deathstar.ipv4())).outcome.unwrap();
    assert!(page.body.starts_with("up{"), "{page:?}");
    for accepted in deathstar.log.all() {
        assert!(prometheus.spec.ips.contains(&accepted.peer.ip()), "the server sees {accepted:?}");
    }
    assert!(is_silent(prometheus, SocketAddr::new(deathstar.ipv4(), 80)), "another port");
    // A rule without limits lets the namespace's own requests pass unread.
    let visit = get(world.pod(TIE), &format!("http://{}:8080/secrets", deathstar.ipv4()));
    assert_eq!(visit.status(), Some(200), "{:?}", visit.outcome);

    let told = flow(&agent, deathstar, deathstar.ipv4(), "denied");
    assert_eq!(told["endpoint"]["name"], "deathstar-1", "{told:#}");
    let denials = agent.denials(deathstar).unwrap();
    let denied = denials.iter().find(|flow| flow["http"]["method"] == "POST").unwrap();
    assert_eq!((&denied["reason"], &denied["http"]["code"]), (&"l7".into(), &403.into()), "{denied:#}");
    assert_eq!((text(&denied["http"]["path"]), text(&denied["direction"])), ("/metrics".into(), "ingress".into()));
    assert!(text(&denied["rule"]).contains("allow-within-namespace"), "{denied:#}");
}

#[test]
fn each_request_of_a_connection_is_judged() {
    let world = world(&[DEATHSTAR, PROMETHEUS]);
    let _agent = start(&world, &metrics_policy());
    let to = SocketAddr::new(world.pod(DEATHSTAR).ipv4(), 8080);
    let ask = |method: &str, path: &str| format!("{method} {path} HTTP/1.1\r\nHost: deathstar\r\n\r\n");
    let (good, bad) = (ask("GET", "/metrics"), ask("GET", "/v1"));
    let heard = talk(world.pod(PROMETHEUS), to, &[&good, &bad, &good, &bad]);
    let codes: Vec<&str> =
        heard.lines().filter_map(|line| line.strip_prefix("HTTP/1.1 ")).map(|line| &line[..3]).collect();
    assert_eq!(codes, ["200", "403", "200", "403"], "{heard}");
    assert!(heard.contains("x-namegate-reason: "), "{heard}");
    assert_eq!(world.pod(DEATHSTAR).log.all().len(), 1, "one connection to the server");

    let heard = talk(world.pod(PROMETHEUS), to, &["\x05\x01\x02SOCKS?\r\n\r\n"]);
    assert!(heard.starts_with("HTTP/1.1 400"), "what is not HTTP: {heard}");
    assert_eq!(world.pod(DEATHSTAR).log.all().len(), 1, "nothing of it reaches the server");
}

#[test]
fn requests_to_a_name_pass_by_method_path_and_host() {
    let world = world(&[TIE, XWING]);
    let http = "  - toFQDNs: [{matchName: cilium.io}]\n    toPorts:\n    - ports: [{port: '80', protocol: TCP}]\n      \
                rules: {http: [{method: GET, path: '/v1', host: 'cilium\\.io'}]}\n";
    let agent = start(&world, &egress(http));
    let tiefighter = world.pod(TIE);
    for (url, want) in [
        ("http://cilium.io/v1", Some(200)),
        ("http://cilium.io/version", Some(403)),
        ("http://google.com/v1", None),
        ("http://cilium.io:8080/v1", None),
    ] {
        let visit = get(tiefighter, url);
        assert_eq!(visit.status(), want, "{url}: {:?}", visit.outcome);
    }
    let by_address = get(tiefighter, &format!("http://{CILIUM_IO}/v1"));
    assert_eq!(by_address.status(), Some(403), "another Host: {:?}", by_address.outcome);
    let told = flow(&agent, tiefighter, ip(CILIUM_IO), "allowed");
    assert_eq!((&told["http"]["code"], &told["http"]["host"]), (&200.into(), &"cilium.io".into()), "{told:#}");
    assert_eq!(told["peer"]["fqdns"][0], "cilium.io", "{told:#}");
    // The other pod never asked for the name.
    assert!(is_silent(world.pod(XWING), SocketAddr::new(ip(CILIUM_IO), 80)));
}

/// Limits on what one pod sends and on what the other takes in hold together.
#[test]
fn both_ends_of_a_connection_have_their_say() {
    let world = world(&[DEATHSTAR, TIE]);
    let limited = |side: &str, peer: &str, path: &str| {
        format!(
            "  - endpointSelector: {{}}\n    {side}gress:\n    - {peer}: [{{}}]\n      toPorts:\n      - ports: [{{port: '80', \
             protocol: TCP}}]\n        rules: {{http: [{{path: '{path}'}}]}}\n"
        )
    };
    let specs = [limited("e", "toEndpoints", "/v1|/version"), limited("in", "fromEndpoints", "/v1|/metrics")].concat();
    let policy = document("both", "").replace("spec:\n", &format!("specs:\n{specs}"));
    let _agent = start(&world, &policy);
    let (tiefighter, deathstar) = (world.pod(TIE), world.pod(DEATHSTAR));
    for (path, want) in [("/v1", 200), ("/version", 403), ("/metrics", 403), ("/other", 403)] {
        let visit = get(tiefighter, &format!("http://{}{path}", deathstar.ipv4()));
        assert_eq!(visit.status(), Some(want), "{path}: {:?}", visit.outcome);
    }
    let accepted = deathstar.log.all();
    assert!(accepted.iter().all(|accepted| accepted.peer.ip() == tiefighter.ipv4()), "{accepted:?}");
}

#[test]
fn a_change_ends_what_it_denies() {
    let world = world(&[DEATHSTAR, PROMETHEUS]);
    let agent = start(&world, &metrics_policy());
    let (prometheus, deathstar) = (world.pod(PROMETHEUS), world.pod(DEATHSTAR));
    let url = format!("http://{}:8080/metrics", deathstar.ipv4());
    assert_eq!(get(prometheus, &url).status(), Some(200));
    agent.apply(&metrics_policy().replace("\"/metrics\"", "\"/other\"")).unwrap();
    assert_eq!(get(prometheus, &url).status(), Some(403));
    agent.apply(&seed::kubectl_create(NAMESPACE, CHAPTERS[1].policy)).unwrap();
    assert!(get(prometheus, &url).timed_out());
}

/// Whoever calls, from wherever: outside of the node, and the node itself, which no rule limits.
#[test]
fn callers_from_outside_are_read_and_the_node_is_not() {
    let world = world(&[DEATHSTAR, TIE]);
    let spec = "  endpointSelector: {}\n  ingress:\n  - fromEntities: [world]\n    toPorts:\n    - ports: [{port: '80', protocol: \
                TCP}]\n      rules: {http: [{path: /v1}]}\n";
    let _agent = start(&world, &document("outside", spec));
    let deathstar = world.pod(DEATHSTAR);
    for address in [deathstar.ipv4(), deathstar.ipv6()] {
        let host = SocketAddr::new(address, 80);
        let ask = |netns: &namegate_testbed::Netns, path: &str| {
            let (mut client, url) = (world.pod(TIE).client(), format!("http://{host}{path}"));
            client.within = WITHIN;
            netns.run(async move { client.get(&url).await })
        };
        for (path, want) in [("/v1", 200), ("/version", 403)] {
            let visit = ask(world.outside(), path);
            assert_eq!(visit.status(), Some(want), "{host} {path}: {:?}", visit.outcome);
        }
        let seen = deathstar.log.all().last().unwrap().peer.ip();
        assert!(!world.spec().nodes[0].ips.contains(&seen), "the server sees the caller, not the node: {seen}");
        assert_eq!(ask(world.node(), "/version").status(), Some(200), "the node itself");
    }
}

#[test]
fn a_connection_that_is_denied_later_ends() {
    let world = world(&[DEATHSTAR, PROMETHEUS]);
    let agent = start(&world, &metrics_policy());
    let to = SocketAddr::new(world.pod(DEATHSTAR).ipv4(), 8080);
    let ask = "GET /metrics HTTP/1.1\r\nHost: deathstar\r\n\r\n";
    let prometheus = world.pod(PROMETHEUS);
    let stream = prometheus.netns.run(async move {
        let mut stream = client::connect(to, WITHIN).await.unwrap();
        let heard = exchange(&mut stream, ask).await;
        assert!(heard.starts_with("HTTP/1.1 200"), "{heard}");
        stream
    });
    agent.apply(&metrics_policy().replace("\"/metrics\"", "\"/other\"")).unwrap();
    let stream = prometheus.netns.run(async move {
        let mut stream = stream;
        let heard = exchange(&mut stream, ask).await;
        assert!(heard.starts_with("HTTP/1.1 403"), "the connection stays, the request does not pass: {heard}");
        stream
    });
    agent.apply(&seed::kubectl_create(NAMESPACE, CHAPTERS[1].policy)).unwrap();
    let heard = prometheus.netns.run(async move {
        let mut stream = stream;
        exchange(&mut stream, ask).await
    });
    assert_eq!(heard, "", "a flow that no rule allows");
    assert_eq!(world.pod(DEATHSTAR).log.all().len(), 1);
}

/// Sends a request and gives the first octets of the answer, where any come.
async fn exchange(stream: &mut tokio::net::TcpStream, octets: &str) -> String {
    stream.write_all(octets.as_bytes()).await.unwrap();
    let mut heard = [0; 4_096];
    match tokio::time::timeout(SILENT, stream.read(&mut heard)).await {
        Ok(Ok(count)) => String::from_utf8_lossy(&heard[..count]).into_owned(),
        _ => String::new(),
    }
}

#[test]
fn without_the_agent_limited_requests_do_not_pass_and_all_else_does() {
    let world = world(&[DEATHSTAR, PROMETHEUS, TIE]);
    let mut agent = start(&world, &metrics_policy());
    let (prometheus, deathstar) = (world.pod(PROMETHEUS), world.pod(DEATHSTAR));
    let url = format!("http://{}:8080/metrics", deathstar.ipv4());
    assert_eq!(get(prometheus, &url).status(), Some(200));
    let before = deathstar.log.all().len();
    agent.kill().unwrap();
    assert!(get(prometheus, &url).timed_out());
    assert!(is_silent(prometheus, SocketAddr::new(deathstar.ipv4(), 80)));
    assert_eq!(deathstar.log.all().len(), before, "nothing came past the proxy");
    assert_eq!(get(world.pod(TIE), &url).status(), Some(200), "the namespace's own requests");
    agent.run().unwrap();
    assert_eq!(get(prometheus, &url).status(), Some(200), "again with the agent");
}

/// Connections that the proxy holds for all.
const SEATS: usize = 512;

/// Takes all the connections that a pod gets: those beyond its share are reset.
fn fill(pod: &Pod, to: SocketAddr) -> Vec<tokio::net::TcpStream> {
    pod.netns.run(async move {
        let mut streams = Vec::with_capacity(SEATS);
        for _ in 0..SEATS {
            streams.extend(client::connect(to, WITHIN).await);
        }
        streams
    })
}

#[test]
fn a_full_proxy_refuses_what_it_would_have_to_read_and_nothing_else() {
    let world = world(&[TIE, XWING, DEATHSTAR]);
    let limited = "  - toCIDR: [192.0.2.73/32]\n    toPorts:\n    - ports: [{port: '80', protocol: TCP}]\n      \
                   rules: {http: [{path: /v1}]}\n  - toCIDR: [198.51.100.0/24]\n";
    let limits = serde_json::json!({"limits": {"l7Connections": SEATS}});
    let agent = Agent::start(&world, &Options::default().policies(&egress(limited)).with(limits)).unwrap();
    let to = SocketAddr::new(ip("192.0.2.73"), 80);
    let (url, free) = (format!("http://{to}/v1"), "http://198.51.100.73/v1");
    let pods = [TIE, XWING, DEATHSTAR].map(|key| world.pod(key));
    let count = |what: &str| {
        let status = agent.json("/v1/status").unwrap();
        let tallies = status["requests"].as_array().unwrap();
        tallies.iter().find(|tally| tally["what"] == what).unwrap()["count"].as_u64().unwrap()
    };
    let conversation = pods[0].open(echo("198.51.100.73"), WITHIN).unwrap();
    assert_eq!(get(pods[0], &url).status(), Some(200));

    let mut held = Vec::new();
    for (at, pod) in pods.iter().enumerate().take(2) {
        let before = count("connections");
        held.push(fill(pod, to));
        let accepted = |_: &Agent<'_>| Ok((count("connections") >= before + SEATS as u64).then_some(()));
        agent.wait_for("the connections", accepted).unwrap();
        let refused = count("connections_full");
        let visit = get(pod, &url);
        assert_eq!(visit.outcome, Err(Failure::Reset), "{}", pod.spec.key());
        assert_eq!(count("connections_full"), refused + 1);
        for other in &pods[at + 1..] {
            assert_eq!(get(other, &url).status(), Some(200), "one pod does not take the places of others");
        }
        for pod in pods {
            assert_eq!(get(pod, free).status(), Some(200), "{}: not read", pod.spec.key());
            assert!(pod.lookup("cilium.io", RecordType::A).is_ok(), "{}: DNS", pod.spec.key());
        }
        conversation.say(b"goes on", WITHIN).unwrap();
    }
    drop(held);
    let again = |_: &Agent<'_>| Ok((get(pods[0], &url).status() == Some(200)).then_some(()));
    agent.wait_for("places", again).unwrap();
    assert_eq!(get(pods[2], &url).status(), Some(200));
}

#[test]
fn tls_passes_by_server_name() {
    let world = world(&[TIE]);
    let names = "  - toEntities: [world]\n    toPorts:\n    - ports: [{port: '443', protocol: TCP}]\n      \
                 serverNames: [cilium.io, '*.allowed.test']\n";
    let agent = start(&world, &egress(names));
    let tiefighter = world.pod(TIE);
    let visit = get(tiefighter, "https://cilium.io/v1");
    assert_eq!(visit.status(), Some(200), "{:?}", visit.outcome);
    let denied = get(tiefighter, "https://google.com/v1");
    assert_eq!(denied.outcome, Err(Failure::Reset));
    assert!(get(tiefighter, "http://cilium.io/v1").timed_out(), "another port");
    let no_name = talk_raw(tiefighter, SocketAddr::new(ip(CILIUM_IO), 443), b"GET / HTTP/1.1\r\n\r\n");
    assert_eq!(no_name, Err(Failure::Reset), "what is not TLS");
    let told = flow(&agent, tiefighter, ip("142.250.74.78"), "denied");
    assert_eq!((&told["server-name"], &told["reason"]), (&"google.com".into(), &"l7".into()), "{told:#}");
    assert!(opens(tiefighter, SocketAddr::new(ip(CILIUM_IO), 443)), "the handshake of TCP says nothing yet");
    assert!(!opens(tiefighter, echo(CILIUM_IO)), "a port without a rule");
}

/// Sends octets and waits for an end.
fn talk_raw(pod: &Pod, to: SocketAddr, octets: &'static [u8]) -> Result<usize, Failure> {
    pod.netns.run(async move {
        let mut stream = client::connect(to, WITHIN).await?;
        stream.write_all(octets).await.map_err(|error| Failure::Other(error.to_string()))?;
        let mut heard = [0; 64];
        let reading = tokio::time::timeout(WITHIN, stream.read(&mut heard));
        match reading.await {
            Err(_) => Err(Failure::Timeout),
            Ok(Err(error)) if error.kind() == std::io::ErrorKind::ConnectionReset => Err(Failure::Reset),
            Ok(Err(error)) => Err(Failure::Other(error.to_string())),
            Ok(Ok(count)) => Ok(count),
        }
    })
}

#[test]
fn one_direction_alone_refuses_limits_by_name() {
    let world = world(&[DEATHSTAR]);
    let options = Options::default().with(serde_json::json!({"directions": ["ingress"]}));
    let agent = Agent::start(&world, &options).unwrap();
    let mistakes = agent.apply(&metrics_policy()).unwrap().mistakes();
    assert!(mistakes.iter().any(|mistake| mistake.contains("`rules.http`")), "{mistakes:?}");
}

#[test]
fn questions_pass_by_name() {
    use namegate_testbed::dns::DnsFailure;
    let world = world(&[TIE]);
    let dns = "  egress:\n  - toEndpoints: [{matchLabels: {'k8s:io.kubernetes.pod.namespace': kube-system}}]\n    \
               toPorts:\n    - ports: [{port: '53', protocol: ANY}]\n      rules: {dns: [{matchPattern: '*.io'}]}\n  \
               - toEntities: [world]\n";
    let agent = start(&world, &document("names", &format!("  endpointSelector: {{}}\n{dns}")));
    let tiefighter = world.pod(TIE);
    let mut client = tiefighter.client();
    client.edns = Some(1232);
    for (name, want) in [("cilium.io", true), ("google.com", false), ("CILIUM.io", true), ("io", false)] {
        let found =
            tiefighter.run(client.clone(), move |client| async move { client.lookup_type(name, RecordType::A).await });
        assert_eq!(found.is_ok(), want, "{name}: {found:?}");
        assert!(want || !matches!(found, Err(DnsFailure::Timeout)), "{name} is answered: {found:?}");
        println!("{name}: {found:?}");
    }
    let status = agent.json("/v1/status").unwrap();
    let tallies = status["dns"].as_array().unwrap();
    let forbidden = tallies.iter().find(|tally| tally["what"] == "forbidden").unwrap();
    assert_eq!(forbidden["count"], 2, "{status:#}");
}
