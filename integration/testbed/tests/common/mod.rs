//! What the programs of this folder set up alike: a small world, policies as text, and what the agent tells as values.
#![expect(clippy::unwrap_used, reason = "a test ends at the first surprise")]

use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use namegate_testbed::{Agent, ECHO_PORT, Failure, Pod, Spec, World};
use serde_json::Value;

/// Waiting time for what must come.
pub(crate) const WITHIN: Duration = Duration::from_secs(3);
/// Waiting time for what must not come: every denial costs it.
pub(crate) const SILENT: Duration = Duration::from_millis(400);
/// Between two tries of something that changes by itself.
pub(crate) const PAUSE: Duration = Duration::from_millis(10);

/// Two pods of one namespace, and the resolver.
pub(crate) const TIE: &str = "empire/tiefighter";
pub(crate) const XWING: &str = "empire/xwing";
pub(crate) const DNS: &str = "kube-system/coredns-1";

/// Elements of `egress` that open one name, and two documentation networks (RFC 5737).
pub(crate) const ALLOWED_TEST: &str = "  - toFQDNs: [{matchPattern: '*.allowed.test'}]\n";
pub(crate) const TEST_NETS: &str = "  - toCIDR: [198.51.100.0/24, 203.0.113.0/24]\n";

/// The world of the article with these pods and one resolver.
pub(crate) fn world(pods: &[&str]) -> World {
    let pods: Vec<_> = pods.iter().copied().chain([DNS]).collect();
    World::build(Spec::empire().unwrap().only(&pods)).unwrap()
}

/// A policy for every pod of `empire`: cluster DNS is open, and what further elements of `egress` say.
pub(crate) fn egress(elements: &str) -> String {
    document("dns-and-more", &format!("  endpointSelector: {{}}\n  egress:\n{TO_DNS}{elements}"))
}

const TO_DNS: &str =
    "  - toEndpoints: [{matchLabels: {'k8s:io.kubernetes.pod.namespace': kube-system, 'k8s:k8s-app': kube-dns}}]\n";

/// A CiliumNetworkPolicy of `empire` with this `spec`, its lines indented by two.
pub(crate) fn document(name: &str, spec: &str) -> String {
    format!(
        "apiVersion: cilium.io/v2\nkind: CiliumNetworkPolicy\nmetadata: {{name: {name}, namespace: empire}}\nspec:\n{spec}"
    )
}

/// An address from its text.
pub(crate) fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

/// The echo server of an outside address.
pub(crate) fn echo(address: &str) -> SocketAddr {
    SocketAddr::new(ip(address), ECHO_PORT)
}

/// Whether a new connection comes about; anything but an answer or a silent drop is a surprise.
pub(crate) fn opens(pod: &Pod, to: SocketAddr) -> bool {
    match pod.connect(to, SILENT) {
        Ok(()) => true,
        Err(Failure::Timeout) => false,
        Err(other) => panic!("{} to {to}: {other}", pod.spec.key()),
    }
}

/// Connects again and again until a connection is dropped; when that one began.
pub(crate) fn first_drop(pod: &Pod, to: SocketAddr) -> Instant {
    let deadline = Instant::now() + Duration::from_secs(20);
    loop {
        let began = Instant::now();
        if !opens(pod, to) {
            return began;
        }
        assert!(began < deadline, "{to} stays open");
        std::thread::sleep(PAUSE);
    }
}

/// The newest flow of the pod to an address with this verdict, as soon as the agent tells of it.
pub(crate) fn flow(agent: &Agent<'_>, pod: &Pod, to: IpAddr, verdict: &str) -> Value {
    let query = format!("endpoint={}", pod.spec.key().replace('/', "%2F"));
    let found = agent.wait_for("the record of a flow", |agent| {
        let wanted = |flow: &Value| flow["destination"] == to.to_string() && flow["verdict"] == verdict;
        Ok(agent.flows(&query)?.into_iter().rev().find(wanted))
    });
    found.unwrap()
}

/// Packets that were denied so far.
pub(crate) fn denied_packets(agent: &Agent<'_>) -> u64 {
    let status = agent.json("/v1/status").unwrap();
    let counters = status["counters"].as_array().unwrap();
    counters
        .iter()
        .filter(|counter| counter["denied"] == true)
        .map(|counter| counter["packets"].as_u64().unwrap())
        .sum()
}

/// Names in the cache; `query` as `GET /v1/fqdn/cache` takes it.
pub(crate) fn cached_names(agent: &Agent<'_>, query: &str) -> Vec<String> {
    let entries = agent.json(&format!("/v1/fqdn/cache{query}")).unwrap();
    let mut names: Vec<_> = entries.as_array().unwrap().iter().map(|entry| text(&entry["fqdn"])).collect();
    names.sort();
    names.dedup();
    names
}

/// The text of a JSON value.
pub(crate) fn text(value: &Value) -> String {
    value.as_str().unwrap_or_else(|| panic!("no text: {value}")).to_owned()
}

/// What `namegate` said to the agent's socket: exit code, standard output, standard error.
pub(crate) fn namegate(agent: &Agent<'_>, arguments: &[&str]) -> (Option<i32>, String, String) {
    let socket = agent.socket();
    let output = agent.cli(&[&["--socket", socket.to_str().unwrap()], arguments].concat()).unwrap();
    let text = |octets: &[u8]| String::from_utf8(octets.to_vec()).unwrap();
    (output.status.code(), text(&output.stdout), text(&output.stderr))
}

/// Changes the endpoints file and puts it in place at once.
pub(crate) fn edit_endpoints(agent: &Agent<'_>, change: impl FnOnce(&mut Value)) {
    let (path, beside) = (agent.path("endpoints.yaml"), agent.path("endpoints.new"));
    let mut file = serde_json::from_str(&std::fs::read_to_string(&path).unwrap()).unwrap();
    change(&mut file);
    std::fs::write(&beside, file.to_string()).unwrap();
    std::fs::rename(beside, path).unwrap();
}

/// The entry of a pod in the endpoints file.
pub(crate) fn entry<'f>(file: &'f mut Value, pod: &str) -> &'f mut Value {
    let entries = file["endpoints"].as_array_mut().unwrap();
    entries.iter_mut().find(|entry| format!("{}/{}", text(&entry["namespace"]), text(&entry["name"])) == pod).unwrap()
}

/// `GET /v1/endpoint/{pod}`.
pub(crate) fn endpoint(agent: &Agent<'_>, pod: &str) -> Value {
    agent.json(&format!("/v1/endpoint/{}", pod.replace('/', "%2F"))).unwrap()
}

/// Waits until the agent has read changed files and the kernel holds them.
pub(crate) fn settle(agent: &Agent<'_>, above: u64) {
    let settled = agent.wait_for("a newer revision", |agent| {
        let revision = agent.policy()?["revision"].clone();
        let enforced = revision["enforced"].as_u64().unwrap_or(0);
        Ok((enforced > above && revision["wanted"] == revision["enforced"]).then_some(()))
    });
    settled.unwrap();
}

/// The revision that the kernel holds.
pub(crate) fn revision(agent: &Agent<'_>) -> u64 {
    agent.policy().unwrap()["revision"]["enforced"].as_u64().unwrap()
}
