//! Snapshots of made-up objects.

use kube::core::DynamicObject;
use serde_json::{Value, json};

use super::*;
use crate::{row::Project, tables::Changed, wire};

/// Rows from objects as the API server sends them.
fn put<K: Project + serde::de::DeserializeOwned + kube::Resource>(
    tables: &mut Tables,
    kind: Kind,
    object: Value,
) -> Changed {
    let object: K = serde_json::from_value(object).unwrap();
    let key = row::key(object.meta());
    tables.put(kind, key, object.project())
}

fn pod(tables: &mut Tables, name: &str, more: Value) -> Changed {
    let mut object = json!({
        "metadata": {"name": name, "namespace": "shop", "uid": format!("uid-{name}"), "labels": {"app": name},
            "creationTimestamp": "2026-07-01T12:00:00Z", "managedFields": [{"manager": "kubelet"}]},
        "spec": {"nodeName": "node1", "serviceAccountName": "default", "containers": [{"name": "c", "image": "i"}]},
        "status": {"phase": "Running"},
    });
    merge(&mut object, more);
    put::<wire::Pod>(tables, Kind::Pod, object)
}

/// RFC 7396.
fn merge(into: &mut Value, patch: Value) {
    match patch {
        Value::Object(patch) => patch.into_iter().for_each(|(key, value)| merge(&mut into[key], value)),
        other => *into = other,
    }
}

fn addresses(ips: &[&str]) -> Value {
    json!({"status": {"podIP": ips[0], "podIPs": ips.iter().map(|ip| json!({"ip": ip})).collect::<Vec<_>>()}})
}

fn seen(tables: &Tables) -> Who {
    who(tables, "node1", &Dns::default())
}

/// `name: addresses` of every endpoint.
fn endpoints(snapshot: &Who) -> Vec<String> {
    let line = |endpoint: &Arc<Endpoint>| {
        let addresses: Vec<String> = endpoint.addresses.iter().map(ToString::to_string).collect();
        format!("{}: {}", endpoint.name, addresses.join(" "))
    };
    snapshot.topology.endpoints.iter().map(line).collect()
}

#[test]
fn a_pod_has_both_families_its_named_ports_and_its_account() {
    let mut tables = Tables::default();
    let mut more = addresses(&["10.244.1.10", "fd00:10:244:1::10"]);
    merge(
        &mut more,
        json!({"spec": {
            "containers": [{"ports": [{"name": "HTTP", "containerPort": 8080}, {"containerPort": 9000},
                {"name": "dns", "containerPort": 53, "protocol": "UDP"}, {"name": "bad", "containerPort": 70000}]}],
            "initContainers": [{"ports": [{"name": "side", "containerPort": 15000, "protocol": "TCP"}]}]}}),
    );
    pod(&mut tables, "web", more);
    let snapshot = seen(&tables);
    assert_eq!(endpoints(&snapshot), ["web: 10.244.1.10 fd00:10:244:1::10"]);
    let web = &snapshot.topology.endpoints[0];
    assert_eq!(web.service_account.as_deref(), Some("default"));
    let ports: Vec<_> = web.named_ports.iter().map(|port| (&*port.name, port.port)).collect();
    assert_eq!(ports, [("http", 8080), ("dns", 53), ("side", 15000)]);
    assert!(snapshot.local["shop/web"].is_called("uid-web") && snapshot.local["shop/web"].is_called(""));
    assert!(!snapshot.local["shop/web"].is_called("uid-other"));
}

#[test]
fn a_pod_that_has_not_changed_is_the_same_endpoint() {
    let mut tables = Tables::default();
    for (name, ip) in [("a", "10.0.0.1"), ("b", "10.0.0.2"), ("c", "10.0.0.2")] {
        pod(&mut tables, name, addresses(&[ip, "10.0.0.9"]));
    }
    let before = seen(&tables);
    let mut more = addresses(&["10.0.0.2"]);
    merge(&mut more, json!({"metadata": {"labels": {"app": "other"}}}));
    assert_eq!(pod(&mut tables, "c", more), Changed::Facts);
    let after = seen(&tables);
    let pairs = before.topology.endpoints.iter().zip(&after.topology.endpoints);
    let same: Vec<bool> = pairs.map(|(before, after)| Arc::ptr_eq(before, after)).collect();
    // Of `b` an address belongs to `a`: it is made anew each time.
    assert_eq!(same, [true, false, false]);
    assert_eq!(endpoints(&after), ["a: 10.0.0.1 10.0.0.9", "b: 10.0.0.2", "c: "]);
}

#[test]
fn who_is_an_endpoint() {
    for (what, more, want, local) in [
        ("runs", addresses(&["10.0.0.1"]), &["a: 10.0.0.1"][..], true),
        ("has no address yet", json!({}), &["a: "], true),
        ("has ended", json!({"status": {"phase": "Succeeded", "podIP": "10.0.0.1"}}), &[], false),
        ("has failed", json!({"status": {"phase": "Failed", "podIP": "10.0.0.1"}}), &[], false),
        ("is the node", json!({"spec": {"hostNetwork": true}, "status": {"podIP": "192.0.2.1"}}), &[], false),
        (
            "is elsewhere",
            json!({"spec": {"nodeName": "node2"}, "status": {"podIP": "10.0.0.1"}}),
            &["a: 10.0.0.1"],
            false,
        ),
        ("is elsewhere, without an address", json!({"spec": {"nodeName": "node2"}}), &[], false),
        ("is nowhere yet", json!({"spec": {"nodeName": null}}), &[], false),
        ("has strange addresses", addresses(&["127.0.0.1", "x", "::ffff:10.0.0.1", "0.0.0.0"]), &["a: 10.0.0.1"], true),
    ] {
        let mut tables = Tables::default();
        pod(&mut tables, "a", more);
        let snapshot = seen(&tables);
        assert_eq!(endpoints(&snapshot), want, "{what}");
        assert_eq!(snapshot.local.contains_key("shop/a"), local, "{what}");
    }
}

#[test]
fn an_address_has_one_owner() {
    let mut tables = Tables::default();
    pod(&mut tables, "a-leaves", {
        let mut more = addresses(&["10.0.0.1"]);
        merge(&mut more, json!({"metadata": {"deletionTimestamp": "2026-07-01T13:00:00Z"}}));
        more
    });
    assert_eq!(endpoints(&seen(&tables)), ["a-leaves: 10.0.0.1"], "it may still run");
    pod(&mut tables, "b-old", addresses(&["10.0.0.1"]));
    pod(&mut tables, "c-young", {
        let mut more = addresses(&["10.0.0.1", "10.0.0.3"]);
        merge(&mut more, json!({"metadata": {"creationTimestamp": "2026-07-01T12:00:01Z"}}));
        more
    });
    assert_eq!(endpoints(&seen(&tables)), ["a-leaves: ", "b-old: ", "c-young: 10.0.0.1 10.0.0.3"]);
    tables.remove(Kind::Pod, &("shop".into(), "c-young".into()));
    assert_eq!(endpoints(&seen(&tables)), ["a-leaves: ", "b-old: 10.0.0.1"]);
}

#[test]
fn a_pod_of_the_kubelets_folder_has_two_uids() {
    let mut tables = Tables::default();
    pod(
        &mut tables,
        "static",
        json!({"metadata": {"annotations": {"kubernetes.io/config.mirror": "abc", "big": "x"}}}),
    );
    let snapshot = seen(&tables);
    assert!(snapshot.local["shop/static"].is_called("abc") && snapshot.local["shop/static"].is_called("uid-static"));
}

#[test]
fn nodes_are_this_one_and_others() {
    let mut tables = Tables::default();
    for (name, address) in [("node1", "192.0.2.1"), ("node2", "192.0.2.2")] {
        let addresses = json!([{"type": "InternalIP", "address": address}, {"type": "Hostname", "address": name}]);
        let object = json!({"metadata": {"name": name, "labels": {"rack": name}}, "status": {"addresses": addresses}});
        put::<wire::Node>(&mut tables, Kind::Node, object);
    }
    let topology = seen(&tables).topology;
    assert_eq!(topology.host.addresses, ["192.0.2.1".parse::<IpAddr>().unwrap()]);
    assert_eq!(topology.host.labels["rack"], "node1");
    assert_eq!((topology.nodes.len(), &*topology.nodes[0].name), (1, "node2"));
}

fn service(tables: &mut Tables, namespace: &str, name: &str, spec: &Value) {
    put::<wire::Service>(
        tables,
        Kind::Service,
        json!({"metadata": {"name": name, "namespace": namespace}, "spec": spec}),
    );
}

#[test]
fn a_service_leads_to_the_backends_of_its_slices() {
    let mut tables = Tables::default();
    service(
        &mut tables,
        "shop",
        "web",
        &json!({
        "clusterIP": "10.96.0.7", "clusterIPs": ["10.96.0.7", "fd00::7"], "externalIPs": ["192.0.2.7"],
        "selector": {"app": "web"},
        "ports": [{"name": "http", "port": 80, "nodePort": 30080}, {"name": "none", "port": 81}]}),
    );
    service(&mut tables, "shop", "headless", &json!({"clusterIP": "None", "ports": [{"port": 80}]}));
    let slice = json!({
        "metadata": {"name": "web-1", "namespace": "shop", "labels": {"kubernetes.io/service-name": "web"}},
        "endpoints": [{"addresses": ["10.0.0.1"]}, {"addresses": ["10.0.0.2"], "conditions": {"ready": false}},
            {"addresses": ["10.0.0.3"], "conditions": {"serving": true, "ready": true}}],
        "ports": [{"name": "http", "port": 8080, "protocol": "TCP"}]});
    put::<wire::EndpointSlice>(&mut tables, Kind::EndpointSlice, slice);
    let nothing = json!({"metadata": {"name": "x", "namespace": "shop"}, "endpoints": null, "ports": null});
    put::<wire::EndpointSlice>(&mut tables, Kind::EndpointSlice, nothing);
    let services = seen(&tables).services;
    assert_eq!(services[0].addresses, [] as [IpAddr; 0], "headless");
    let web = &services[1];
    assert_eq!(
        web.addresses.iter().map(ToString::to_string).collect::<Vec<_>>(),
        ["10.96.0.7", "fd00::7", "192.0.2.7"]
    );
    let targets = |at: usize| -> Vec<String> {
        web.ports[at].targets.iter().map(|target| format!("{}:{}", target.address, target.port)).collect()
    };
    assert_eq!(
        (web.ports[0].node_port, targets(0)),
        (Some(30_080), vec!["10.0.0.1:8080".into(), "10.0.0.3:8080".into()])
    );
    assert!(targets(1).is_empty());
}

#[test]
fn the_service_of_the_resolvers_is_a_peer_like_them() {
    let mut tables = Tables::default();
    let dns = json!({"selector": {"k8s-app": "kube-dns"}, "clusterIP": "10.96.0.10", "ports": [{"port": 53, "protocol": "UDP"}]});
    service(&mut tables, "kube-system", "kube-dns", &dns);
    service(&mut tables, "elsewhere", "kube-dns", &dns);
    service(
        &mut tables,
        "kube-system",
        "metrics",
        &json!({"selector": {"k8s-app": "kube-dns"}, "clusterIP": "10.96.0.11",
        "ports": [{"port": 9153}]}),
    );
    for (name, hash) in [("one", "a"), ("two", "b")] {
        pod(&mut tables, name, {
            let mut more = addresses(&[if name == "one" { "10.0.0.1" } else { "10.0.0.2" }]);
            merge(
                &mut more,
                json!({"metadata": {"namespace": "kube-system", "labels": {"k8s-app": "kube-dns", "hash": hash, "app": null, "tier": "node"}}}),
            );
            more["metadata"]["labels"].as_object_mut().unwrap().remove("app");
            more
        });
    }
    let resolvers = seen(&tables).resolvers;
    assert_eq!(resolvers.len(), 1, "{resolvers:?}");
    assert_eq!(resolvers[0].addresses, ["10.96.0.10".parse::<IpAddr>().unwrap()]);
    let mut labels: Vec<&str> = resolvers[0].labels.keys().map(String::as_str).collect();
    labels.sort_unstable();
    assert_eq!(labels, ["k8s-app", "tier"], "what all have in common");
}

#[test]
fn a_policy_is_what_was_written_less_what_the_server_adds() {
    let object: DynamicObject = serde_json::from_value(json!({
        "apiVersion": "cilium.io/v2", "kind": "CiliumNetworkPolicy",
        "metadata": {"name": "web", "namespace": "shop", "uid": "u", "generation": 3, "resourceVersion": "7",
            "annotations": {"kubectl.kubernetes.io/last-applied-configuration": "{}",
                "namegate.io/name-binding": "enforce"}, "labels": {"a": "b"}},
        "spec": {"endpointSelector": {}}, "strange": 1,
        "status": {"conditions": [{"type": "Valid"}], "other": {}},
    }))
    .unwrap();
    let row = row::policy(Kind::CiliumNetworkPolicy, "cilium.io/v2", object);
    let mut tables = Tables::default();
    assert_eq!(tables.put(Kind::CiliumNetworkPolicy, ("shop".into(), "web".into()), Some(row.clone())), Changed::Facts);
    let policies = policies(&tables);
    assert_eq!(&*policies[0].origin, "CiliumNetworkPolicy shop/web");
    assert_eq!(policies[0].version, ("u".to_owned(), 3));
    assert_eq!(
        policies[0].document.to_string(),
        r#"{"apiVersion":"cilium.io/v2","kind":"CiliumNetworkPolicy","metadata":{"name":"web","namespace":"shop","labels":{"a":"b"},"annotations":{"namegate.io/name-binding":"enforce"}},"spec":{"endpointSelector":{}},"strange":1}"#
    );
    let Row::Policy(mut policy) = row else { panic!("no policy") };
    policy.status = Arc::new(json!({"conditions": []}));
    let changed = tables.put(Kind::CiliumNetworkPolicy, ("shop".into(), "web".into()), Some(Row::Policy(policy)));
    assert_eq!(changed, Changed::Status, "a status is no fact");
}

#[test]
fn a_listing_replaces_the_table_when_it_ends() {
    let mut tables = Tables::default();
    pod(&mut tables, "old", addresses(&["10.0.0.1"]));
    tables.begin(Kind::Pod);
    tables.list(Kind::Pod, ("shop".into(), "new".into()), Some(Row::Pod(row::Pod::default())));
    assert_eq!(endpoints(&seen(&tables)), ["old: 10.0.0.1"], "half a listing is none");
    assert_eq!(tables.end(Kind::Pod), Changed::Facts);
    assert!(!tables.of(Kind::Pod).any(|(key, _)| &*key.1 == "old"));
    assert!(!tables.is_ready());
    for kind in Kind::ALL {
        tables.absent(kind);
    }
    assert!(tables.is_ready());
}

#[test]
fn what_is_saved_comes_back() {
    let folder = tempfile::tempdir().unwrap();
    let path = crate::saved::path(folder.path());
    assert!(crate::saved::read(&path).is_none());
    let mut tables = Tables::default();
    pod(&mut tables, "web", addresses(&["10.0.0.1", "fd00::1"]));
    service(&mut tables, "shop", "web", &json!({"clusterIP": "10.96.0.7", "ports": [{"port": 80, "nodePort": 30080}]}));
    crate::saved::write(&path, &crate::saved::octets(&tables).unwrap()).unwrap();
    let read = crate::saved::read(&path).unwrap();
    assert_eq!(seen(&read), seen(&tables));
    assert!(!read.is_ready(), "the server is asked all the same");
    std::fs::write(&path, "{\"form\":1,\"rows\":[").unwrap();
    assert!(crate::saved::read(&path).is_none(), "a torn file is none");
}
