//! The API over its socket, before a stand-in for the gate.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use std::os::unix::fs::PermissionsExt;

use common::{World, flow};
use namegate_api::{CacheFilter, PROBLEM_JSON, Server, SocketError, view::Verdict};
use serde_json::{Value, json};

#[tokio::test]
async fn the_cache_is_listed_with_ciliums_field_names() {
    let world = World::start();
    let (status, body) = world.get("/v1/fqdn/cache?matchpattern=*.Cilium.io.&cidr=104.0.0.0/8&source=lookup").await;
    assert_eq!(status, 200);
    let want = json!([{
        "fqdn": "docs.cilium.io", "ips": ["104.198.14.52", "2001:db8::1"], "ttl": 30,
        "lookup-time": "2026-07-01T12:00:00.000Z", "expiration-time": "2026-07-01T12:00:30.000Z",
        "endpoint-id": 7, "source": "lookup",
    }]);
    assert_eq!(body, want);
    let filter = world.gate.last_filter();
    assert_eq!(filter.pattern.unwrap().as_str(), "*.cilium.io", "the pattern is normalised");
    assert_eq!(filter.cidr.unwrap().to_string(), "104.0.0.0/8");
}

#[tokio::test]
async fn nothing_found_is_an_empty_list() {
    let world = World::start();
    assert_eq!(world.get("/v1/fqdn/cache?matchpattern=nobody.example").await, (200, json!([])));
}

#[tokio::test]
async fn the_cache_of_one_endpoint_has_its_own_path() {
    let world = World::start();
    assert_eq!(world.get("/v1/fqdn/cache/empire%2Ftiefighter").await.0, 200);
    assert_eq!(world.gate.last_filter().endpoint.as_deref(), Some("empire/tiefighter"));
    let (status, body) = world.get("/v1/fqdn/cache/99").await;
    assert_eq!((status, &body["parameter"], &body["status"]), (404, &json!("endpoint"), &json!(404)));
    assert!(body["detail"].as_str().unwrap().contains("`99`"), "{body}");
}

#[tokio::test]
async fn cleaning_normalises_the_pattern_as_listing_does() {
    let world = World::start();
    let (status, body) = world.send("DELETE", "/v1/fqdn/cache?matchpattern=*.CILIUM.io").await;
    assert_eq!((status, body), (200, json!({"names": 1, "addresses": 2})));
    assert_eq!(world.gate.last_filter().pattern.unwrap().as_str(), "*.cilium.io");
    assert_eq!(world.send("DELETE", "/v1/fqdn/cache").await.0, 200);
    assert_eq!(world.gate.last_filter(), CacheFilter::default());
    assert_eq!(world.send("DELETE", "/v1/fqdn/cache/7").await.0, 200);
    assert_eq!(world.gate.last_filter().endpoint.as_deref(), Some("7"));
}

#[tokio::test]
async fn mistakes_are_problem_documents_that_name_the_parameter() {
    let world = World::start();
    for (method, path, status, parameter) in [
        ("GET", "/v1/fqdn/cache?matchpatern=a.io", 400, Some("matchpatern")),
        ("DELETE", "/v1/fqdn/cache?matchpattern=a..io", 400, Some("matchpattern")),
        ("GET", "/v1/fqdn/cache?cidr=300.0.0.0/8", 400, Some("cidr")),
        ("GET", "/v1/fqdn/cache?source=", 400, Some("source")),
        ("GET", "/v1/fqdn/names?x=1", 400, Some("x")),
        ("GET", "/v1/endpoint?name=x", 400, Some("name")),
        ("GET", "/v1/endpoint/99", 404, Some("endpoint")),
        ("GET", "/v1/flows?last=many", 400, Some("last")),
        ("GET", "/metrics?format=json", 400, Some("format")),
        ("GET", "/v1/nothing", 404, None),
        ("POST", "/v1/status", 405, None),
    ] {
        let response = world.request(method, path).await;
        assert_eq!(response.status, status, "{method} {path}");
        assert_eq!(response.content_type, PROBLEM_JSON, "{method} {path}");
        let body: Value = serde_json::from_str(&response.body).unwrap();
        assert_eq!(body["status"], status, "{method} {path}");
        assert_eq!(body["parameter"].as_str(), parameter, "{method} {path}");
        for member in ["type", "title", "detail"] {
            assert!(!body[member].as_str().unwrap().is_empty(), "{method} {path}: {member}");
        }
    }
}

#[tokio::test]
async fn the_rest_answers_with_views() {
    let world = World::start();
    for (path, pointer, want) in [
        ("/v1/fqdn/names", "/selectors/0/selector", json!("*.cilium.io")),
        ("/v1/endpoint", "/0/name", json!("tiefighter")),
        ("/v1/endpoint/empire%2Ftiefighter", "/egress", json!("enabled")),
        ("/v1/policy", "/revision/enforced", json!(3)),
        ("/v1/status", "/endpoints/guarded", json!(1)),
        ("/v1/openapi.json", "/paths/~1v1~1fqdn~1cache/delete/operationId", json!("forgetNames")),
    ] {
        let (status, body) = world.get(path).await;
        assert_eq!((status, body.pointer(pointer)), (200, Some(&want)), "{path}");
    }
}

fn network(pod: &str) -> Value {
    json!({"namespace": "empire", "pod": pod, "uid": "u", "interface": "veth1", "addresses": ["10.244.1.10", "fd00::10"]})
}

#[tokio::test]
async fn networks_are_registered_listed_and_forgotten() {
    let world = World::start();
    let (status, answer) = world.send_body("PUT", "/v1/cni/c0ffee", &network("tie")).await;
    assert_eq!((status, &answer["state"], &answer["container-id"]), (200, &json!("guarded"), &json!("c0ffee")));
    assert_eq!(answer["registration"], network("tie"));
    assert_eq!(world.get("/v1/cni").await.1[0], answer);
    let (status, problem) = world.send_body("PUT", "/v1/cni/beef", &network("lost")).await;
    assert_eq!((status, &problem["type"]), (503, &json!("urn:namegate:problem:not-guarded")));
    assert_eq!(problem["detail"], "the network is not guarded: its interface is not there");
    for _ in 0..2 {
        assert_eq!(world.send_body("DELETE", "/v1/cni/c0ffee", &Value::Null).await.0, 204);
    }
    assert_eq!(world.get("/v1/cni").await, (200, json!([])));
}

#[tokio::test]
async fn networks_that_cannot_be_are_refused() {
    let world = World::start();
    let with = |key: &str, value: Value| {
        let mut network = network("tie");
        network[key] = value;
        network
    };
    for (path, body, parameter) in [
        ("/v1/cni/..", network("tie"), "container"),
        ("/v1/cni/.hidden", network("tie"), "container"),
        ("/v1/cni/a%2Fb", network("tie"), "container"),
        ("/v1/cni/c", json!({}), "body"),
        ("/v1/cni/c", with("interface", json!("a/b")), "body"),
        ("/v1/cni/c", with("interface", json!("sixteen-octets-x")), "body"),
        ("/v1/cni/c", with("addresses", json!([])), "body"),
        ("/v1/cni/c", with("addresses", json!(["127.0.0.1"])), "body"),
        ("/v1/cni/c", with("addresses", json!(["10.0.0.0/8"])), "body"),
        ("/v1/cni/c", with("pod", json!("../x")), "body"),
        ("/v1/cni/c", with("strange", json!(1)), "body"),
    ] {
        let (status, problem) = world.send_body("PUT", path, &body).await;
        assert_eq!((status, &problem["parameter"]), (400, &json!(parameter)), "{path} {body}: {problem}");
    }
    assert_eq!(world.get("/v1/cni").await, (200, json!([])));
}

#[tokio::test]
async fn health_is_503_when_not_well() {
    let world = World::start();
    for path in ["/v1/healthz", "/v1/readyz"] {
        assert_eq!(world.get(path).await, (200, json!({"healthy": true, "ready": true, "problems": []})));
    }
    let share = "bound shop/web has its share";
    world.gate.fall_ill(share);
    let body = json!({"healthy": false, "ready": true, "problems": [share]});
    assert_eq!(world.get("/v1/healthz").await, (503, body.clone()));
    assert_eq!(world.get("/v1/readyz").await, (200, body));
    world.gate.fall_ill("no kernel");
    for path in ["/v1/healthz", "/v1/readyz"] {
        let (status, body) = world.get(path).await;
        assert_eq!((status, &body["ready"]), (503, &json!(false)), "{path}");
    }
}

#[tokio::test]
async fn metrics_are_openmetrics() {
    let world = World::start();
    let response = world.request("GET", "/metrics").await;
    assert_eq!(response.status, 200);
    assert!(response.content_type.starts_with("application/openmetrics-text"), "{}", response.content_type);
    assert!(response.body.contains("namegate_endpoints{state=\"guarded\"} 1"), "{}", response.body);
}

#[tokio::test]
async fn openapi_describes_every_path_that_is_served() {
    let document = serde_json::to_value(namegate_api::openapi()).unwrap();
    let paths: Vec<&str> = document["paths"].as_object().unwrap().keys().map(String::as_str).collect();
    let mut want = vec![
        "/metrics",
        "/v1/cni",
        "/v1/cni/{container}",
        "/v1/endpoint",
        "/v1/endpoint/{id}",
        "/v1/flows",
        "/v1/fqdn/cache",
        "/v1/fqdn/cache/{endpoint}",
        "/v1/fqdn/names",
        "/v1/healthz",
        "/v1/readyz",
        "/v1/policy",
        "/v1/status",
    ];
    want.sort_unstable();
    let mut paths = paths;
    paths.sort_unstable();
    assert_eq!(paths, want);
    let operations: Vec<&Value> =
        document["paths"].as_object().unwrap().values().flat_map(|path| path.as_object().unwrap().values()).collect();
    let mut ids: Vec<&str> = operations.iter().map(|operation| operation["operationId"].as_str().unwrap()).collect();
    ids.sort_unstable();
    let count = ids.len();
    ids.dedup();
    assert_eq!(ids.len(), count, "each operation has an id of its own: {ids:?}");
    for operation in operations {
        let described = |response: &Value| !response["description"].as_str().unwrap_or_default().is_empty();
        assert!(operation["responses"].as_object().unwrap().values().all(described), "{operation}");
    }
    for schema in ["FqdnLookup", "Problem", "Flow", "Status"] {
        assert!(document.pointer(&format!("/components/schemas/{schema}")).is_some(), "{schema}");
    }
}

#[tokio::test]
async fn flows_come_as_lines_while_they_happen() {
    let world = World::start();
    world.gate.tell(flow("xwing", Verdict::Allowed));
    world.gate.tell(flow("tiefighter", Verdict::Denied));
    world.gate.tell(flow("tiefighter", Verdict::Denied));
    let mut stream = world.stream("/v1/flows?last=1&denied=true&endpoint=empire/tiefighter").await;
    let first = stream.line().await;
    assert_eq!((&first["verdict"], &first["reason-text"]), (&json!("denied"), &json!("no rule allows it")));
    world.gate.tell(flow("tiefighter", Verdict::Allowed));
    world.gate.tell(flow("xwing", Verdict::Denied));
    world.gate.tell(flow("tiefighter", Verdict::Audited));
    assert_eq!(stream.line().await["verdict"], "audited");
}

#[tokio::test]
async fn the_past_alone_ends_the_stream() {
    let world = World::start();
    world.gate.tell(flow("tiefighter", Verdict::Denied));
    world.gate.tell(flow("tiefighter", Verdict::Allowed));
    let response = world.request("GET", "/v1/flows?follow=false&last=10").await;
    assert_eq!((response.status, response.content_type.as_str()), (200, "application/x-ndjson"));
    assert_eq!(response.body.lines().count(), 2);
}

#[tokio::test]
async fn streams_are_bounded_and_given_back() {
    let world = World::start();
    let mut streams = Vec::new();
    for _ in 0..16 {
        streams.push(world.stream("/v1/flows").await);
    }
    let (status, body) = world.get("/v1/flows").await;
    assert_eq!((status, &body["type"]), (503, &json!("urn:namegate:problem:busy")));
    drop(streams);
    world.gate.tell(flow("tiefighter", Verdict::Denied));
    while world.gate.readers() > 0 {
        tokio::task::yield_now().await;
    }
    assert_eq!(world.request("GET", "/v1/flows?follow=false").await.status, 200);
}

#[tokio::test]
async fn long_bodies_are_refused() {
    let world = World::start();
    let response = world.request_with("GET", "/v1/status", &[("content-length", "70000")]).await;
    assert_eq!((response.status, response.content_type.as_str()), (413, PROBLEM_JSON));
}

#[tokio::test]
async fn the_socket_file_is_for_owner_and_group_and_replaces_a_stale_one() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("run/namegate.sock");
    std::fs::create_dir(folder.path().join("run")).unwrap();
    drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
    assert!(path.exists(), "a socket file outlives its listener");
    let server = Server::bind(&path).unwrap();
    let mode = std::fs::metadata(&path).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o660);
    let own = format!(" (process {})", std::process::id());
    assert!(
        matches!(Server::bind(&path), Err(SocketError::InUse { path: taken, holder }) if taken == path && holder == own)
    );
    drop(server);
    assert!(!path.exists());
    std::fs::write(&path, "mine").unwrap();
    assert!(matches!(Server::bind(&path), Err(SocketError::NotASocket(_))));
    assert_eq!(std::fs::read_to_string(&path).unwrap(), "mine");
}

#[tokio::test]
async fn sockets_of_others_are_neither_replaced_nor_removed() {
    let folder = tempfile::tempdir().unwrap();
    let datagrams = folder.path().join("datagrams.sock");
    let _other = std::os::unix::net::UnixDatagram::bind(&datagrams).unwrap();
    assert!(matches!(Server::bind(&datagrams), Err(SocketError::Make { .. })), "one of another type is in use");
    assert!(datagrams.exists());
    let path = folder.path().join("namegate.sock");
    let first = Server::bind(&path).unwrap();
    std::fs::remove_file(&path).unwrap();
    let second = Server::bind(&path).unwrap();
    drop(first);
    assert!(path.exists(), "the second one's socket");
    drop(second);
    assert!(!path.exists());
}

#[tokio::test]
async fn a_stop_ends_the_serving_and_removes_the_file() {
    let world = World::start();
    let stream = world.stream("/v1/flows").await;
    let path = world.stop().await;
    assert!(!path.exists());
    drop(stream);
}
