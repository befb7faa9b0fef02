//! DNS questions that are not asked: by name, by type, to public resolvers, and those that look like a tunnel.
#![expect(clippy::unwrap_used, reason = "a test ends at the first surprise")]

#[expect(dead_code, reason = "each program of this folder uses its own part")]
mod common;

use common::{TIE, XWING, document, flow, ip, opens, world};
use namegate_testbed::dns::{ClientReply, Question, ask};
use namegate_testbed::proto::op::{Message, ResponseCode};
use namegate_testbed::proto::rr::RecordType;
use namegate_testbed::{Agent, Options, Pod};
use serde_json::json;

/// Names of one pattern may be asked for at the cluster's resolver.
fn limited(annotations: &str, pattern: &str) -> String {
    let spec = format!(
        "  endpointSelector: {{}}\n  egress:\n  - toEndpoints: [{{matchLabels: {{'k8s:io.kubernetes.pod.namespace': \
         kube-system}}}}]\n    toPorts:\n    - ports: [{{port: '53', protocol: ANY}}]\n      rules: {{dns: [{{matchPattern: \
         '{pattern}'}}]}}\n"
    );
    document("names", &spec)
        .replace("namespace: empire}", &format!("namespace: empire, annotations: {{{annotations}}}}}"))
}

/// The message that answers a question with EDNS, and its octets as text.
fn answer(pod: &Pod, name: &str, kind: RecordType) -> (Message, String) {
    let name = name.to_owned();
    let reply: ClientReply = pod.run(pod.client(), move |client| async move {
        let mut question = Question::new(client.resolver, &name, kind);
        question.edns = Some(1232);
        ask(&question).await.unwrap()
    });
    (Message::from_vec(&reply.octets).unwrap(), String::from_utf8_lossy(&reply.octets).into_owned())
}

fn code(pod: &Pod, name: &str) -> ResponseCode {
    answer(pod, name, RecordType::A).0.metadata.response_code
}

fn tally(agent: &Agent<'_>, what: &str) -> u64 {
    let status = agent.json("/v1/status").unwrap();
    let tallies = status["dns"].as_array().unwrap();
    tallies.iter().find(|tally| tally["what"] == what).unwrap()["count"].as_u64().unwrap()
}

#[test]
fn a_forbidden_name_does_not_exist_by_setting() {
    let world = world(&[TIE]);
    let options = Options::default().policies(&limited("", "*.io")).with(json!({"dns": {"refusal": "nxdomain"}}));
    let agent = Agent::start(&world, &options).unwrap();
    let tiefighter = world.pod(TIE);
    assert_eq!(code(tiefighter, "cilium.io"), ResponseCode::NoError);
    let (message, text) = answer(tiefighter, "www.google.com", RecordType::A);
    assert_eq!(message.metadata.response_code, ResponseCode::NXDomain, "{message}");
    let soa = &message.authorities[0];
    assert_eq!((soa.record_type(), soa.name.to_string().as_str(), soa.ttl), (RecordType::SOA, "google.com.", 5));
    assert!(text.contains("no pattern of empire/names spec.egress[0] allows this name"), "{text}");
    assert_eq!(tally(&agent, "forbidden"), 1);
}

#[test]
fn an_annotation_limits_the_types() {
    let world = world(&[TIE]);
    let types = "namegate.io/dns-types: 'A,AAAA'";
    let agent = Agent::start(&world, &Options::default().policies(&limited(types, "*.io"))).unwrap();
    let tiefighter = world.pod(TIE);
    assert_eq!(code(tiefighter, "cilium.io"), ResponseCode::NoError);
    let (message, text) = answer(tiefighter, "cilium.io", RecordType::TXT);
    assert_eq!(message.metadata.response_code, ResponseCode::Refused, "{message}");
    assert!(text.contains("empire/names spec.egress[0] allows A, AAAA only, this asks for TXT"), "{text}");
    // A change holds for the next question.
    agent.apply(&limited("namegate.io/dns-types: TXT", "*.io")).unwrap();
    assert_ne!(answer(tiefighter, "cilium.io", RecordType::TXT).0.metadata.response_code, ResponseCode::Refused);
    assert_eq!(code(tiefighter, "cilium.io"), ResponseCode::Refused);
    let mistakes = agent.apply(&limited("namegate.io/dns-types: TXTT", "*.io")).unwrap().mistakes();
    assert!(mistakes.iter().any(|mistake| mistake.contains("`TXTT`: there is no record type")), "{mistakes:?}");
}

#[test]
fn public_resolvers_are_denied_by_name() {
    let world = world(&[TIE]);
    let spec =
        "  endpointSelector: {}\n  egress:\n  - toEntities: [all]\n  egressDeny:\n  - toEntities: [public-resolvers]\n";
    let agent = Agent::start(&world, &Options::default().policies(&document("resolvers", spec))).unwrap();
    let tiefighter = world.pod(TIE);
    for (address, port) in [("1.1.1.1", 853), ("8.8.8.8", 443), ("2620:fe::fe", 853)] {
        assert!(!opens(tiefighter, (ip(address), port).into()), "{address}");
        let told = flow(&agent, tiefighter, ip(address), "denied");
        assert_eq!(told["reason"], "deny-rule", "{told:#}");
    }
    assert!(opens(tiefighter, (ip("104.198.14.52"), 80).into()), "the rest of the world is open");
}

/// A label of fifty octets.
fn data(number: u32) -> String {
    format!("{:x}", 0x1234_5678_9abc_u64 + u64::from(number)).repeat(5)[..50].to_owned() + ".t.evil.test"
}

#[test]
fn tunnels_are_told_and_by_setting_refused() {
    for (word, is_refused) in [("observe", false), ("enforce", true)] {
        let world = world(&[TIE, XWING]);
        let dns = json!({"dns": {"tunnelling": word, "tunnellingNamesPerMinute": 10}});
        let agent = Agent::start(&world, &Options::default().policies(&limited("", "*")).with(dns)).unwrap();
        let tiefighter = world.pod(TIE);
        for number in 0..10 {
            assert_ne!(code(tiefighter, &data(number)), ResponseCode::Refused, "{word} {number}");
        }
        let (message, text) = answer(tiefighter, &data(10), RecordType::A);
        assert_eq!(message.metadata.response_code == ResponseCode::Refused, is_refused, "{word}");
        assert_eq!(text.contains("looks like a tunnel: 11 names under evil.test in a minute"), is_refused, "{text}");
        assert_eq!(code(tiefighter, &data(11)) == ResponseCode::Refused, is_refused);
        for (pod, name) in [(TIE, data(3)), (TIE, "cilium.io".to_owned()), (XWING, data(10))] {
            assert_ne!(code(world.pod(pod), &name), ResponseCode::Refused, "{word} {pod} {name}");
        }
        let told = (tally(&agent, "tunnel_suspected"), tally(&agent, "tunnel_refused"));
        assert_eq!(told, if is_refused { (2, 2) } else { (2, 0) });
        let line = "questions of a minute look like a tunnel";
        let log = agent.wait_for("the line of the log", |agent| Ok(Some(agent.log()).filter(|log| log.contains(line))));
        let log = log.unwrap();
        let lines: Vec<&str> = log.lines().filter(|text| text.contains(line)).collect();
        assert!(lines.len() == 1 && lines[0].contains("empire/tiefighter"), "{lines:?}");
    }
}
