//! The endpoints file.

use namegate_config::{
    diagnostic::Diagnostic,
    endpoints::{Attachment, Endpoint, EndpointsFile, parse},
    peer::NamedPort,
};
use serde_json::{Value, json};

/// An endpoints file.
///
/// # Panics
/// A file that was read cannot be written down and read again as the same; an endpoint lacks a label that the file gives
/// it; reading twice gives different mistakes; or a mistake stands outside the text.
pub fn endpoints(data: &[u8]) {
    let Ok(text) = str::from_utf8(data) else { return };
    match (parse("endpoints.yaml", text), parse("endpoints.yaml", text)) {
        (Ok(file), Ok(same)) => {
            assert_eq!(file, same);
            let written = written(&file).to_string();
            let again = parse("endpoints.json", &written);
            assert_eq!(again.as_ref().ok(), Some(&file), "{written}: {:?}", again.as_ref().err());
            file.endpoints.iter().for_each(|endpoint| check_labels(&file, endpoint));
        }
        (Err(found), Err(same)) => check_mistakes(&found, &same, text),
        (one, other) => panic!("read as {one:?}, then as {other:?}"),
    }
}

/// Mistakes are told, the same each time, and stand in the text.
pub(crate) fn check_mistakes(found: &[Diagnostic], same: &[Diagnostic], text: &str) {
    assert!(!found.is_empty());
    let told = |found: &[Diagnostic]| found.iter().map(ToString::to_string).collect::<Vec<_>>();
    assert_eq!(told(found), told(same));
    for one in found {
        let (start, end) = (one.span().offset(), one.span().offset() + one.span().len());
        assert!(text.is_char_boundary(start) && text.is_char_boundary(end), "{one:?}");
    }
}

fn check_labels(file: &EndpointsFile, endpoint: &Endpoint) {
    let labels = file.labels(endpoint);
    assert_eq!(labels.namespace(), Some(&*endpoint.namespace));
    for (key, value) in &endpoint.labels {
        let is_there = labels.iter().any(|label| (&*label.key, &*label.value) == (key, value));
        assert!(is_there, "{key}={value} is not among {labels}");
    }
    assert!(!labels.is_world() && labels.iter().all(|label| &*label.source == "k8s"), "{labels}");
}

fn written(file: &EndpointsFile) -> Value {
    json!({
        "host": {"addresses": file.host.addresses, "labels": file.host.labels},
        "nodes": file.nodes.iter().map(|node| json!({
            "name": node.name, "addresses": node.addresses, "labels": node.labels,
        })).collect::<Vec<_>>(),
        "namespaces": file.namespaces.iter().map(|namespace| json!({
            "name": namespace.name, "labels": namespace.labels,
        })).collect::<Vec<_>>(),
        "endpoints": file.endpoints.iter().map(|one| endpoint(one)).collect::<Vec<_>>(),
    })
}

fn endpoint(endpoint: &Endpoint) -> Value {
    let port = |port: &NamedPort| json!({"name": port.name, "port": port.port, "protocol": port.protocol.as_str()});
    let mut written = json!({
        "name": endpoint.name,
        "namespace": endpoint.namespace,
        "labels": endpoint.labels,
        "addresses": endpoint.addresses,
        "ports": endpoint.named_ports.iter().map(port).collect::<Vec<_>>(),
    });
    if let Some(account) = &endpoint.service_account {
        written["serviceAccount"] = account.as_str().into();
    }
    match &endpoint.attachment {
        Some(Attachment::Interface(name)) => written["interface"] = name.as_str().into(),
        Some(Attachment::Netns(path)) => written["netns"] = json!(path),
        None => {}
    }
    written
}
