//! What kube-proxy makes of services and slices, as rows say it.

use serde_json::{Value, json};

use super::*;

/// RFC 7396.
fn merge(into: &mut Value, patch: Value) {
    match patch {
        Value::Object(patch) => patch.into_iter().for_each(|(key, value)| merge(&mut into[key], value)),
        other => *into = other,
    }
}

/// A service with addresses of every kind, and what differs.
fn service(more: Value) -> Service {
    let mut object = json!({
        "metadata": {"name": "web", "namespace": "shop"},
        "spec": {"type": "LoadBalancer", "clusterIP": "10.96.0.7", "clusterIPs": ["10.96.0.7"],
            "externalIPs": ["203.0.113.7"], "ports": [{"port": 80, "nodePort": 30080}]},
        "status": {"loadBalancer": {"ingress": [{"ip": "198.51.100.7"}]}},
    });
    merge(&mut object, more);
    match serde_json::from_value::<wire::Service>(object).unwrap().project() {
        Some(Row::Service(service)) => service,
        other => panic!("{other:?}"),
    }
}

/// A slice of it with backends at port 8080, and labels beside the service's name.
fn slice(backends: &[(&str, Value)], labels: &[&str]) -> Slice {
    let backend = |(address, conditions): &(&str, Value)| json!({"addresses": [address], "conditions": conditions});
    let mut object = json!({
        "metadata": {"name": "web-1", "namespace": "shop", "labels": {"kubernetes.io/service-name": "web"}},
        "endpoints": backends.iter().map(backend).collect::<Vec<_>>(),
        "ports": [{"name": "", "port": 8080, "protocol": "TCP"}],
    });
    for label in labels {
        object["metadata"]["labels"][label] = json!("");
    }
    match serde_json::from_value::<wire::EndpointSlice>(object).unwrap().project() {
        Some(Row::Slice(slice)) => slice,
        other => panic!("{other:?}"),
    }
}

fn texts(addresses: impl IntoIterator<Item = IpAddr>) -> Vec<String> {
    addresses.into_iter().map(|address| address.to_string()).collect()
}

/// Addresses of those behind port 80.
fn reached(service: &Service, slices: &[Slice]) -> Vec<String> {
    let service = service.with("shop", "web", &slices.iter().collect::<Vec<_>>());
    texts(service.ports[0].targets.iter().map(|target| target.address))
}

#[test]
fn an_address_that_kube_proxy_does_not_send_on_is_not_virtual() {
    const ALL: &[&str] = &["10.96.0.7", "203.0.113.7", "198.51.100.7"];
    let label = |key: &str, value: &str| json!({"metadata": {"labels": {key: value}}});
    let balancer =
        |mode: &str| json!({"status": {"loadBalancer": {"ingress": [{"ip": "198.51.100.7", "ipMode": mode}]}}});
    for (what, more, addresses, node_port) in [
        ("as it is", json!({}), ALL, true),
        ("ExternalName", json!({"spec": {"type": "ExternalName", "externalName": "a.example"}}), &[][..], false),
        (
            "ExternalName without an address",
            json!({"spec": {"type": "ExternalName", "clusterIP": null, "clusterIPs": null}}),
            &[],
            false,
        ),
        ("headless", json!({"spec": {"clusterIP": "None", "clusterIPs": ["None"]}}), &[], false),
        ("without an address", json!({"spec": {"clusterIP": "", "clusterIPs": []}}), &[], false),
        ("of another proxy", label("service.kubernetes.io/service-proxy-name", "other"), &[], false),
        ("of another proxy without a name", label("service.kubernetes.io/service-proxy-name", ""), &[], false),
        ("labelled as headless", label("service.kubernetes.io/headless", ""), &[], false),
        ("with another label", label("service.kubernetes.io/topology-mode", "Auto"), ALL, true),
        ("a balancer that sends to nodes", balancer("Proxy"), &ALL[..2], true),
        ("a balancer with the address", balancer("VIP"), ALL, true),
        (
            "other addresses of a family that it does not have",
            json!({"spec": {"externalIPs": ["2001:db8::7"]},
                "status": {"loadBalancer": {"ingress": [{"ip": "2001:db8::8"}, {"hostname": "a.example"}]}}}),
            &["10.96.0.7"],
            true,
        ),
        (
            "both families",
            json!({"spec": {"clusterIPs": ["10.96.0.7", "fd00::7"], "externalIPs": ["2001:db8::7"]},
                "status": {"loadBalancer": {"ingress": null}}}),
            &["10.96.0.7", "fd00::7", "2001:db8::7"],
            true,
        ),
    ] {
        let service = service(more);
        assert_eq!(texts(service.addresses), addresses, "{what}");
        assert_eq!(service.ports[0].on_nodes, node_port.then_some(30_080), "{what}");
    }
}

#[test]
fn who_is_ready_is_behind_a_service_else_who_is_being_deleted() {
    let (ready, draining) = (json!({}), json!({"ready": false, "serving": true, "terminating": true}));
    let starting = json!({"ready": false, "serving": false});
    // What the API server says of a pod that is not ready, with `publishNotReadyAddresses`.
    let published = json!({"ready": true, "serving": false});
    let serving = json!({"ready": false, "serving": true});
    let a = |conditions: &Value| ("10.0.0.1", conditions.clone());
    let b = |conditions: &Value| ("10.0.0.2", conditions.clone());
    let six = |conditions: &Value| ("fd00::1", conditions.clone());
    let cluster = service(json!({}));
    for (what, backends, want) in [
        ("one is ready, one starts", vec![a(&ready), b(&starting)], &["10.0.0.1"][..]),
        ("one is ready, one serves and is not", vec![a(&ready), b(&serving)], &["10.0.0.1"]),
        ("one is published", vec![a(&published)], &["10.0.0.1"]),
        ("one is published beside one that is ready", vec![a(&published), b(&ready)], &["10.0.0.1", "10.0.0.2"]),
        ("one is ready, one ends", vec![a(&ready), b(&draining)], &["10.0.0.1"]),
        ("nobody is ready, one ends", vec![a(&starting), b(&draining)], &["10.0.0.2"]),
        ("nobody is ready and nobody ends", vec![a(&starting), b(&serving)], &[]),
        ("the families are apart", vec![a(&ready), b(&draining), six(&draining)], &["10.0.0.1", "fd00::1"]),
        ("an IPv4 address in another form", vec![("::ffff:10.0.0.1", ready.clone()), b(&draining)], &["10.0.0.2"]),
    ] {
        assert_eq!(reached(&cluster, &[slice(&backends, &[])]), want, "{what}");
    }
    // On a node that has none which is ready, those that end get the connections.
    for policy in ["internalTrafficPolicy", "externalTrafficPolicy"] {
        let local = service(json!({"spec": {policy: "Local"}}));
        assert_eq!(reached(&local, &[slice(&[a(&ready), b(&draining)], &[])]), ["10.0.0.1", "10.0.0.2"], "{policy}");
        let other = service(json!({"spec": {policy: "Cluster"}}));
        assert_eq!(reached(&other, &[slice(&[a(&ready), b(&draining)], &[])]), ["10.0.0.1"], "{policy}");
    }
}

#[test]
fn slices_that_kube_proxy_does_not_believe_hide_nobody() {
    let (ready, draining) = (json!({}), json!({"ready": false, "serving": true, "terminating": true}));
    let starting = json!({"ready": false, "serving": false});
    let ends = slice(&[("10.0.0.2", draining)], &[]);
    let (a, not_a) = (slice(&[("10.0.0.1", ready.clone())], &[]), slice(&[("10.0.0.1", starting)], &[]));
    let service = service(json!({}));
    assert_eq!(reached(&service, &[a.clone(), ends.clone()]), ["10.0.0.1"]);
    assert_eq!(reached(&service, &[a.clone(), not_a, ends.clone()]), ["10.0.0.1", "10.0.0.2"], "they disagree");
    for label in NOT_PROXIED {
        let other = slice(&[("10.0.0.1", ready.clone())], &[label]);
        assert_eq!(reached(&service, &[other, ends.clone()]), ["10.0.0.2"], "{label}");
    }
    assert_eq!(reached(&service, &[a.clone(), a]), ["10.0.0.1"], "each once");
}

/// `toServices` finds the addresses behind a service that is not virtual.
#[test]
fn a_headless_service_has_its_backends() {
    let headless = service(json!({"spec": {"clusterIP": "None", "clusterIPs": ["None"]}}));
    let own = slice(&[("10.0.0.1", json!({}))], &["service.kubernetes.io/headless"]);
    let service = headless.with("shop", "web", &[&own]);
    assert_eq!(texts(service.as_reference().backends), ["10.0.0.1"]);
}
