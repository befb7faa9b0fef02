//! The agent on a real API server: what is applied there is enforced on the node's interfaces.

use std::net::SocketAddr;
use std::process::Command;
use std::time::{Duration, Instant};

use crate::common::{
    CNP, EVENT, NETWORK_POLICY, NODE, NODES, POD, SERVICE, Server, install_cilium, object, options, populate, send,
    state, wait,
};
use namegate_testbed::proto::rr::RecordType;
use namegate_testbed::{Agent, Failure, Pod, Spec, World};
use serde_json::{Value, json};

const TIE: &str = "empire/tiefighter";
const STAR: &str = "empire/deathstar-1";
const DNS: &str = "kube-system/coredns-1";
const XWING: &str = "empire/xwing";
/// Waiting time for what must not come.
const SILENT: Duration = Duration::from_millis(400);
/// Address of the service of the cluster's DNS.
const DNS_SERVICE: &str = "10.96.0.10";

fn world() -> World {
    World::build(Spec::empire().unwrap().only(&[TIE, STAR, DNS, XWING])).unwrap()
}

fn opens(pod: &Pod, to: SocketAddr) -> bool {
    match pod.connect(to, SILENT) {
        Ok(()) => true,
        Err(Failure::Timeout) => false,
        Err(other) => panic!("{} to {to}: {other}", pod.spec.key()),
    }
}

fn guarded(agent: &Agent<'_>, key: &str) {
    wait(&format!("{key} to be guarded"), || (state(agent, key).as_deref() == Some("guarded")).then_some(()));
}

fn until(what: &str, mut check: impl FnMut() -> bool) {
    wait(what, || check().then_some(()));
}

fn policy(name: &str, spec: &Value) -> Value {
    json!({"metadata": {"name": name, "namespace": "empire"}, "spec": spec})
}

/// What kube-proxy does for the service of the resolvers.
fn serve(world: &World, resolver: &Pod) {
    let rules = format!(
        "add table ip services; add chain ip services output {{ type nat hook output priority -100; }}; \
         add rule ip services output ip daddr {DNS_SERVICE} udp dport 53 dnat to {}:53",
        resolver.ipv4()
    );
    let uplink = world.uplink();
    world.node().call(move || {
        for command in [vec!["ip", "route", "add", DNS_SERVICE, "dev", uplink], vec!["nft", &rules]] {
            let output = Command::new(command[0]).args(&command[1..]).output().unwrap();
            assert!(output.status.success(), "{command:?}: {output:?}");
        }
    });
}

#[test]
fn what_is_applied_is_enforced() {
    let world = world();
    let server = Server::start(&world);
    populate(&server, &world, &[TIE, STAR, DNS]);
    let agent = Agent::start(&world, &options(&world, &server)).unwrap();
    // Pods that were there before are found by their addresses.
    for key in [TIE, STAR, DNS] {
        guarded(&agent, key);
    }
    let (tie, star) = (world.pod(TIE), world.pod(STAR));
    let web = SocketAddr::new(star.ipv4(), 80);
    assert!(opens(tie, web), "no policy selects anybody");

    server.apply(NETWORK_POLICY, policy("closed", &json!({"podSelector": {"matchLabels": {"class": "deathstar"}}})));
    until("the policy to close", || !opens(tie, web));
    let sources = agent.json("/v1/status").unwrap()["kubernetes"].clone();
    assert_eq!(sources["facts"], "server", "{sources}");
    let of = |kind: &str| {
        let sources = agent.json("/v1/status").unwrap()["kubernetes"]["sources"].clone();
        sources.as_array().unwrap().iter().find(|one| one["kind"] == kind).unwrap()["state"].clone()
    };
    assert_eq!((of("Pod"), of("CiliumNetworkPolicy")), (json!("watching"), json!("absent")));

    // A kind that comes later is found.
    install_cilium(&server);
    until("the new kind to be followed", || of("CiliumNetworkPolicy") == "watching");
    let from_empire = json!({"endpointSelector": {"matchLabels": {"class": "deathstar"}},
        "ingress": [{"fromEndpoints": [{"matchLabels": {"org": "empire"}}],
            "toPorts": [{"ports": [{"port": "80", "protocol": "TCP"}]}]}]});
    server.apply(CNP, policy("open", &from_empire));
    until("the policy to open", || opens(tie, web));

    // A form with a mistake is refused alone; the last good one stays.
    let mut wrong = from_empire;
    wrong["ingress"][0]["toPorts"][0]["ports"][0]["port"] = json!("eighty!");
    server.apply(CNP, policy("open", &wrong));
    let told = wait("the mistake to be told", || {
        let found = agent.policy().unwrap()["diagnostics"].as_array().unwrap().first().cloned();
        found.filter(|found| found["severity"] == "error")
    });
    assert_eq!(told["file"], "CiliumNetworkPolicy empire/open");
    assert_eq!(told["field"], "spec.ingress[0].toPorts[0].ports[0].port");
    assert!(opens(tie, web), "the last good form stays");
    server.delete(CNP, "empire", "open");
    until("the deleted policy to close", || !opens(tie, web));
    server.delete(NETWORK_POLICY, "empire", "closed");
    until("nothing to be closed", || opens(tie, web));
}

#[test]
fn a_registered_network_is_guarded_before_it_is_used() {
    let world = world();
    let server = Server::start(&world);
    populate(&server, &world, &[STAR, DNS]);
    server.apply(
        NETWORK_POLICY,
        policy("closed", &json!({"podSelector": {"matchLabels": {"class": "tiefighter"}}, "policyTypes": ["Egress"]})),
    );
    let mut agent = Agent::start(&world, &options(&world, &server)).unwrap();
    let (tie, xwing, star) = (world.pod(TIE), world.pod(XWING), world.pod(STAR));
    let web = SocketAddr::new(star.ipv4(), 80);
    let network = |pod: &Pod, uid: &str| {
        json!({"namespace": pod.spec.namespace, "pod": pod.spec.name, "uid": uid,
            "interface": pod.interface, "addresses": pod.spec.ips, "netns": pod.netns.path()})
    };
    guarded(&agent, STAR);

    // The pod is known, and has no addresses yet: that is how it is when a plugin is called.
    let mut starting = object(tie, NODE);
    starting.as_object_mut().unwrap().remove("status");
    server.apply(POD, starting);
    let uid = server.get(POD, "empire", "tiefighter")["metadata"]["uid"].as_str().unwrap().to_owned();
    let (status, answer) = send(&agent, "PUT", "/v1/cni/c0ffee", &network(tie, &uid));
    assert_eq!((status, &answer["state"]), (200, &json!("guarded")), "{answer}");
    assert!(!opens(tie, web), "the first packet is judged");

    // One whose pod nobody knows is closed until the pod is known.
    let (status, answer) = send(&agent, "PUT", "/v1/cni/beef", &network(xwing, ""));
    assert_eq!((status, &answer["state"]), (200, &json!("unknown-pod")), "{answer}");
    assert!(!opens(xwing, web));
    server.apply(POD, object(xwing, NODE));
    until("the pod to be known", || opens(xwing, web));

    // Registrations outlive the agent.
    agent.kill().unwrap();
    agent.run().unwrap();
    let listed = agent.json("/v1/cni").unwrap();
    let ids: Vec<_> = listed.as_array().unwrap().iter().map(|one| one["container-id"].clone()).collect();
    assert_eq!(ids, ["beef", "c0ffee"]);
    until("all to be guarded again", || {
        let listed = agent.json("/v1/cni").unwrap();
        listed.as_array().unwrap().iter().all(|one| one["state"] == "guarded")
    });
    assert!(!opens(tie, web) && opens(xwing, web));

    // An interface that is not there cannot be guarded, and the plugin hears so.
    let mut lost = network(tie, &uid);
    lost["interface"] = json!("not-there");
    let (status, answer) = send(&agent, "PUT", "/v1/cni/dead", &lost);
    assert_eq!((status, &answer["type"]), (503, &json!("urn:namegate:problem:not-guarded")), "{answer}");
    for id in ["dead", "beef", "beef"] {
        assert_eq!(send(&agent, "DELETE", &format!("/v1/cni/{id}"), &Value::Null).0, 204);
    }
    assert_eq!(agent.json("/v1/cni").unwrap().as_array().unwrap().len(), 1);
}

#[test]
fn an_outage_changes_nothing() {
    let world = world();
    let mut server = Server::start(&world);
    populate(&server, &world, &[TIE, STAR, DNS]);
    let closed = policy("closed", &json!({"podSelector": {"matchLabels": {"class": "deathstar"}}}));
    server.apply(NETWORK_POLICY, closed);
    let mut agent = Agent::start(&world, &options(&world, &server)).unwrap();
    guarded(&agent, STAR);
    let (tie, star) = (world.pod(TIE), world.pod(STAR));
    let web = SocketAddr::new(star.ipv4(), 80);
    until("the policy to close", || !opens(tie, web));
    until("the objects to be saved", || agent.path("state/kubernetes.json").exists());

    server.end();
    let pods = |agent: &Agent<'_>| {
        let kubernetes = agent.json("/v1/status").unwrap()["kubernetes"].clone();
        let sources = kubernetes["sources"].as_array().unwrap().clone();
        let pods = sources.into_iter().find(|one| one["kind"] == "Pod").unwrap();
        (kubernetes["facts"].clone(), pods["state"].clone())
    };
    until("the outage to be told", || pods(&agent) == (json!("server"), json!("failing")));
    assert_eq!(agent.get("/v1/healthz").unwrap().status, 200, "the gate does its work");
    assert!(!opens(tie, web));
    agent.kill().unwrap();
    agent.run().unwrap();
    until("the saved objects to be in force", || pods(&agent) == (json!("saved"), json!("failing")));
    guarded(&agent, STAR);
    assert!(!opens(tie, web), "the last state is in force");

    server.begin();
    until("the server to be heard", || pods(&agent) == (json!("server"), json!("watching")));
    server.delete(NETWORK_POLICY, "empire", "closed");
    until("the change to be enforced", || opens(tie, web));
}

/// A condition of a policy of `empire`.
/// Packets of the agent's connections to the server go nowhere, and nobody is told: what translated an address is gone.
#[test]
fn connections_that_are_lost_without_a_word_are_made_anew() {
    let world = world();
    let server = Server::start(&world);
    populate(&server, &world, &[TIE, STAR, DNS]);
    let agent = Agent::start(&world, &options(&world, &server)).unwrap();
    guarded(&agent, TIE);
    let lost = world.node().call(|| {
        let output = Command::new("ss").args(["-tnH", "state", "established", "dport = :16443"]).output().unwrap();
        let listed = String::from_utf8(output.stdout).unwrap();
        let port = |line: &str| line.split_whitespace().nth(2)?.rsplit_once(':')?.1.parse().ok();
        let ports: Vec<u16> = listed.lines().filter_map(port).collect();
        let set = ports.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
        let rules = format!(
            "add table ip lost; add chain ip lost input {{ type filter hook input priority 0; }}; \
             add rule ip lost input tcp sport {{ {set} }} tcp dport 16443 drop; \
             add rule ip lost input tcp dport {{ {set} }} tcp sport 16443 drop"
        );
        let output = Command::new("nft").arg(&rules).output().unwrap();
        assert!(output.status.success(), "{rules}: {output:?}");
        ports.len()
    });
    assert!(lost >= 9, "each watch has a connection, {lost} are there");

    let (tie, star) = (world.pod(TIE), world.pod(STAR));
    let web = SocketAddr::new(star.ipv4(), 80);
    server.apply(NETWORK_POLICY, policy("closed", &json!({"podSelector": {"matchLabels": {"class": "deathstar"}}})));
    assert!(opens(tie, web), "the agent cannot know yet");
    until("a policy to be heard of", || !opens(tie, web));
    let mut other = object(tie, NODE);
    other["metadata"]["labels"] = json!({"class": "other"});
    server.apply(POD, other);
    until("a label to be heard of", || {
        let known = agent.json("/v1/endpoint/empire%2Ftiefighter").unwrap_or_default();
        known["labels"].as_array().is_some_and(|labels| labels.contains(&json!("k8s:class=other")))
    });
}

fn condition(server: &Server<'_>, name: &'static str, kind: &str) -> Option<Value> {
    let policy = server.get(CNP, "empire", name);
    policy["status"]["conditions"].as_array()?.iter().find(|one| one["type"] == kind).cloned()
}

#[test]
fn an_object_says_what_became_of_it() {
    let world = world();
    let server = Server::start(&world);
    populate(&server, &world, &[TIE, STAR, DNS]);
    install_cilium(&server);
    let good = policy("good", &json!({"endpointSelector": {}, "egress": [{"toEntities": ["world"]}]}));
    server.apply(CNP, good);
    let agent = Agent::start(&world, &options(&world, &server)).unwrap();
    let told = |name, kind, status: &str| {
        wait(&format!("{kind} of {name} to be {status}"), || {
            condition(&server, name, kind).filter(|it| it["status"] == status)
        })
    };
    assert_eq!(told("good", "Accepted", "True")["reason"], "Valid");
    assert_eq!(told("good", "Enforced", "True")["message"], "enforced on 1 of 1 nodes");
    assert_eq!(server.get(CNP, "empire", "good")["status"]["namegate"]["nodes"]["node1"]["generation"], 1);

    // Conditions of others stay, and nothing is written while nothing changes.
    let others =
        json!({"conditions": [{"type": "Valid", "status": "True", "lastTransitionTime": "2026-07-01T12:00:00Z"}]});
    server.apply_status(CNP, "empire", "good", others);
    server.apply(NODES, json!({"metadata": {"name": "node2"}}));
    assert_eq!(told("good", "Enforced", "False")["message"], "enforced on 1 of 2 nodes");
    assert!(condition(&server, "good", "Valid").is_some());
    let version = || server.get(CNP, "empire", "good")["metadata"]["resourceVersion"].clone();
    let before = version();
    server.apply(POD, object(world.pod(XWING), "node2"));
    std::thread::sleep(Duration::from_secs(2));
    assert_eq!(version(), before, "a change elsewhere writes nothing");

    server.apply(CNP, policy("bad", &json!({"endpointSelector": {}, "egress": [{"toFQDNs": [{"matchName": "*.x"}]}]})));
    let refused = told("bad", "Accepted", "False");
    let message = refused["message"].as_str().unwrap();
    assert!(message.starts_with("`spec.egress[0].toFQDNs[0].matchName`: "), "{message}");
    assert_eq!(told("bad", "Enforced", "False")["reason"], "Refused");
    let events = || -> Vec<Value> {
        let all = server.try_list(EVENT).unwrap();
        all.into_iter().filter(|event| event["regarding"]["name"] == "bad").collect()
    };
    let event = wait("the event", || events().pop());
    assert_eq!((&event["reason"], &event["type"]), (&json!("Refused"), &json!("Warning")));
    assert!(event["note"].as_str().unwrap().starts_with("`spec.egress[0].toFQDNs[0].matchName`: "));
    drop(agent);
    let agent = Agent::start(&world, &options(&world, &server)).unwrap();
    guarded(&agent, TIE);
    std::thread::sleep(Duration::from_secs(1));
    assert_eq!(events().len(), 1, "a restart tells nothing twice");
}

/// Notes of the events about a policy that selects nobody.
fn idle(server: &Server<'_>, name: &str) -> Vec<String> {
    let all = server.try_list(EVENT).unwrap();
    let about = all.into_iter().filter(|event| event["regarding"]["name"] == name);
    let told = about.inspect(|event| {
        assert_eq!((&event["reason"], &event["type"]), (&json!("SelectsNobody"), &json!("Normal")), "{event}");
    });
    told.map(|event| event["note"].as_str().unwrap().to_owned()).collect()
}

#[test]
fn a_selector_of_nobody_is_told_once() {
    let world = world();
    let server = Server::start(&world);
    populate(&server, &world, &[TIE, STAR, DNS]);
    install_cilium(&server);
    let about = |name: &str, class: &str| {
        let spec =
            json!({"endpointSelector": {"matchLabels": {"class": class}}, "egress": [{"toEntities": ["world"]}]});
        server.apply(CNP, policy(name, &spec));
    };
    about("somebody", "tiefighter");
    about("nobody", "bwing");
    let to_nobody = json!({"endpointSelector": {}, "egress": [{"toEndpoints": [{"matchLabels": {"class": "awing"}}]}]});
    server.apply(CNP, policy("lonely", &to_nobody));
    let agent = Agent::start(&world, &options(&world, &server)).unwrap();
    let notes = wait("the event of the policy", || Some(idle(&server, "nobody")).filter(|notes| !notes.is_empty()));
    let none = "selects no endpoint that is known: none matches";
    assert!(notes.len() == 1 && notes[0].starts_with(none) && notes[0].contains("any:class=bwing"), "{notes:?}");
    let notes = wait("the event of the rule", || Some(idle(&server, "lonely")).filter(|notes| !notes.is_empty()));
    assert!(notes[0].starts_with("`spec.egress[0]`: no peer that is known matches {any:class=awing"), "{notes:?}");

    // Another agent, or this one later, tells it no second time: the new policy is told after the old ones were due.
    drop(agent);
    about("also-nobody", "ywing");
    let _agent = Agent::start(&world, &options(&world, &server)).unwrap();
    wait("the event of the new policy", || Some(idle(&server, "also-nobody")).filter(|notes| !notes.is_empty()));
    let told = ["nobody", "lonely", "somebody"].map(|name| idle(&server, name).len());
    assert_eq!(told, [1, 1, 0]);
}

#[test]
fn the_service_of_the_resolvers_is_one() {
    let world = world();
    let server = Server::start(&world);
    populate(&server, &world, &[TIE, STAR, DNS]);
    install_cilium(&server);
    server.apply(
        SERVICE,
        json!({"metadata": {"name": "kube-dns", "namespace": "kube-system"},
            "spec": {"clusterIP": DNS_SERVICE, "selector": {"k8s-app": "kube-dns"},
                "ports": [{"name": "dns", "port": 53, "protocol": "UDP"}]}}),
    );
    let rules = json!({"endpointSelector": {"matchLabels": {"class": "tiefighter"}}, "egress": [
        {"toEndpoints": [{"matchLabels": {"k8s:io.kubernetes.pod.namespace": "kube-system", "k8s:k8s-app": "kube-dns"}}],
            "toPorts": [{"ports": [{"port": "53", "protocol": "ANY"}], "rules": {"dns": [{"matchPattern": "*"}]}}]},
        {"toFQDNs": [{"matchName": "cilium.io"}]}]});
    server.apply(CNP, policy("names", &rules));
    let agent = Agent::start(&world, &options(&world, &server)).unwrap();
    guarded(&agent, TIE);
    serve(&world, world.pod(DNS));
    let tie = world.pod(TIE);
    let mut client = tie.client();
    client.resolver = SocketAddr::new(DNS_SERVICE.parse().unwrap(), 53);
    let ask = |name: &'static str| {
        let client = client.clone();
        tie.run(client, move |client| async move { client.lookup_type(name, RecordType::A).await })
    };
    until("the policy to be enforced", || agent.json("/v1/fqdn/names").unwrap()["selectors"] != json!([]));
    // The search list of a pod comes first, and opens nothing.
    for suffix in ["empire.svc.cluster.local", "svc.cluster.local", "cluster.local"] {
        let name: &'static str = format!("cilium.io.{suffix}").leak();
        assert_eq!(format!("{:?}", ask(name).unwrap_err()), "Code(NXDomain)", "{name}");
    }
    assert_eq!(agent.json("/v1/fqdn/cache").unwrap(), json!([]));
    let started = Instant::now();
    let found = ask("cilium.io").unwrap();
    assert!(started.elapsed() < Duration::from_secs(5));
    assert!(opens(tie, SocketAddr::new(found.addresses[0], 80)), "the name opens its address at once");
    assert!(!opens(tie, SocketAddr::new("203.0.113.99".parse().unwrap(), 80)));
}
